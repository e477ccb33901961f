"""RELAX and LAX: moments by quadrature over the noise, cotangents, and the published toy."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimates
from support.estimates import (
    assert_unbiased,
    assert_variance,
    broken,
    coefficients,
    exact,
    of_dist,
    oracles,
    toy,
)

import gradest as ge
from gradest import distributions as dists

NUM_KEYS = 100_000
BITS = dists.Bernoulli(jnp.array([0.4, -0.7, 0.9]))
ROWS = dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]]))
DISTS = {"Bernoulli": BITS, "OneHotCategorical": ROWS}
COUPLING = pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "independent"])


def network(w: Any, relaxed: jax.Array) -> jax.Array:
    """1 to 10 (tanh) to 1, of each element; summed."""
    hidden = jnp.tanh(w["w1"] * (2 * relaxed[..., None] - 1) + w["b1"])
    return jnp.sum(hidden * w["w2"]) + w["b2"]


def network_params(key: jax.Array, shape: tuple[int, ...] = ()) -> Any:
    one, two = jax.random.split(key)
    limit = math.sqrt(6 / 11)
    weights = lambda key: jax.random.uniform(key, (*shape, 10), minval=-limit, maxval=limit)
    return {
        "w1": weights(one),
        "b1": jnp.zeros((*shape, 10)),
        "w2": weights(two),
        "b2": jnp.zeros(()),
    }


# ---- One Bernoulli variable ----------------------------------------------------------------


def toy_moments(l, t, c, temperature=0.5, eta=1.0, coupled=True):
    """Mean and second moment of the gradient of E[(b - t)^2], by quadrature over u, and v.

    z = l + logit(u), and z given b with P(b) = p_b the noise v of its own: for b = 1
    log(v / (1 - v) / q + 1), for b = 0 -log(v / (1 - v) / p + 1); coupled, v is where u is in the
    part of (0, 1) that gives b, counted from its edge at 1 - p.
    """
    nodes, weights = oracles.gauss_legendre(0.0, 1.0, 8, 12)
    p = jax.nn.sigmoid(l)
    logit = lambda x: jnp.log(x) - jnp.log1p(-x)
    relaxed = lambda z: jax.nn.sigmoid(z / temperature)

    def conditional(l, v, b):
        of_b = jax.nn.sigmoid(jnp.where(b > 0, -l, l))
        size = jnp.log(v / (1 - v) / of_b + 1)
        return jnp.where(b > 0, size, -size)

    def gradient(l, inside, v, b):
        p = jax.nn.sigmoid(l)
        # u, from its place within the part that gives b.
        u = jax.lax.stop_gradient(jnp.where(b > 0, 1 - p + p * inside, (1 - p) * (1 - inside)))
        c_z = lambda l: eta * c(relaxed(l + logit(u)))
        c_given = lambda l: eta * c(relaxed(conditional(l, v, b)))
        signal = (b - t) ** 2 - c_given(l)
        return signal * (b - p) + jax.grad(c_z)(l) - jax.grad(c_given)(l)

    first = second = 0.0
    for b, prob in ((1.0, p), (0.0, 1 - p)):
        g = lambda u, v, b=b: gradient(l, u, v, b)
        if coupled:
            values = jax.vmap(g)(jnp.asarray(nodes), jnp.asarray(nodes))
            joint = jnp.asarray(weights)
        else:
            grid = jnp.meshgrid(jnp.asarray(nodes), jnp.asarray(nodes), indexing="ij")
            values = jax.vmap(g)(grid[0].reshape(-1), grid[1].reshape(-1))
            joint = jnp.outer(jnp.asarray(weights), jnp.asarray(weights)).reshape(-1)
        first += prob * jnp.sum(joint * values)
        second += prob * jnp.sum(joint * values**2)
    return first, second


wavy = lambda w, relaxed: w[0] * relaxed + jnp.sin(3 * w[1] * relaxed)


@pytest.mark.statistical
@COUPLING
@pytest.mark.parametrize(("p", "t"), [(0.5, 0.2), (0.25, 0.3)])
@pytest.mark.usefixtures("x64")
def test_one_bernoulli(p, t, coupled):
    l, w = math.log(p / (1 - p)), jnp.array([0.6, -0.4])
    c = functools.partial(wavy, w)
    mean, second = jax.jit(lambda l: toy_moments(l, t, c, 0.7, 0.8, coupled))(l)
    np.testing.assert_allclose(mean, p * (1 - p) * (1 - 2 * t), rtol=1e-5)
    sampler = ge.relax(wavy, w, temperature=0.7, eta=0.8, coupled=coupled)
    samples = toy(sampler, p, t, NUM_KEYS)
    assert_unbiased(samples, mean)
    assert_variance(samples, second - mean**2)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, second - mean**2)


@pytest.mark.statistical
@COUPLING
@pytest.mark.usefixtures("x64")
def test_cotangents_are_those_of_the_squared_norm(coupled):
    """Of the surrogate's parameters, the temperature and eta; they scale with the magnitude."""
    l, t = 0.4, 0.2
    control = {"w": jnp.array([0.6, -0.4]), "temperature": 0.7, "eta": 0.8}

    def second_moment(control):
        c = functools.partial(wavy, control["w"])
        return toy_moments(l, t, c, control["temperature"], control["eta"], coupled)[1]

    def loss(control, key):
        scalars = {name: control[name] for name in ("temperature", "eta")}
        sampler = ge.relax(wavy, control["w"], coupled=coupled, **scalars)
        return sampler.expect(key, dists.Bernoulli(l), lambda b: (b - t) ** 2)

    want = jax.jit(jax.grad(second_moment))(control)
    samples = estimates.gradients(loss, control, 2 * NUM_KEYS)
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.1 * x, samples), want)
    twice = estimates.gradients(lambda *args: -2 * loss(*args), control, 100)
    first = jax.tree.map(lambda x: 2 * x[:100], samples)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), twice, first)


# ---- Several elements ----------------------------------------------------------------------


def cost(x):
    s = jnp.sum(coefficients(x) * x)
    return (s - 0.7) ** 2 + jnp.tanh(s) + x.reshape(-1)[0] * x.reshape(-1)[-1]


def surrogate(w, relaxed):
    return network(w, relaxed) + 0.5 * jnp.prod(relaxed)


@pytest.mark.statistical
@COUPLING
@pytest.mark.parametrize("name", DISTS)
def test_several_elements(name, coupled):
    dist = DISTS[name]
    w = network_params(jax.random.key(1), dist.shape)
    samples = of_dist(ge.relax(surrogate, w, coupled=coupled), cost, dist, NUM_KEYS).logits
    want = exact(dist, cost).logits
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore::gradest.UnestimatedGradientWarning")
@pytest.mark.parametrize("name", DISTS)
def test_cost_is_not_differentiated(name):
    black_box = lambda x: jnp.where(cost(x) > 0.9, 1.0, jnp.floor(3 * x.reshape(-1)[0]) - 0.3)
    w = network_params(jax.random.key(1), DISTS[name].shape)
    samples = of_dist(ge.relax(surrogate, w), black_box, DISTS[name]).logits
    want = exact(DISTS[name], black_box).logits
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(of_dist(ge.rebar(), black_box, DISTS[name]).logits, want)


def test_cost_is_evaluated_once_at_the_exact_draw():
    points = []

    def cost(x):
        jax.debug.callback(points.append, x)
        return jnp.sum(x)

    w = network_params(jax.random.key(1), (3,))
    expected = lambda dist: ge.relax(surrogate, w).expect(jax.random.key(0), dist, cost)
    jax.block_until_ready(jax.jit(jax.value_and_grad(expected))(BITS))
    jax.effects_barrier()
    assert len(points) == 1
    assert set(np.unique(points[0])) <= {0.0, 1.0}


@pytest.mark.statistical
@pytest.mark.parametrize("name", DISTS)
@pytest.mark.parametrize(
    "how",
    [broken.noise_not_given_the_draw, broken.conditional_not_differentiated],
    ids=lambda how: how.__name__,
)
def test_broken(name, how, monkeypatch):
    w = network_params(jax.random.key(1), DISTS[name].shape)
    sampler = how(lambda: ge.relax(surrogate, w, coupled=False))(monkeypatch)
    samples = of_dist(sampler, cost, DISTS[name], NUM_KEYS)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(samples, exact(DISTS[name], cost))


@COUPLING
@pytest.mark.parametrize("name", DISTS)
@pytest.mark.usefixtures("x64")
def test_with_the_cost_as_surrogate_it_is_rebar(name, coupled):
    dist = jax.tree.map(lambda x: x.astype(float), DISTS[name])

    def loss(make):
        def of(params, key):
            dist, temperature, eta = params
            return make(temperature, eta=eta, coupled=coupled).expect(key, dist, cost)

        return estimates.gradients(of, (dist, 0.6, 0.8), 20)

    by_relax = lambda temperature, **options: ge.relax(
        lambda _, relaxed: cost(relaxed), None, temperature=temperature, **options
    )
    close = functools.partial(np.testing.assert_allclose, atol=1e-9)
    jax.tree.map(close, loss(by_relax), loss(ge.rebar))


# ---- LAX -----------------------------------------------------------------------------------


def lax_moments(w, mu, s, k):
    """Of d/d mu for f = (x - k)^2 and the surrogate w (x - k)^2, x ~ Normal(mu, s^2).

    (1 - w) times the score-function estimate and w times the pathwise one, with the covariance
    E[(x - k)^2 (x - mu) / s^2 * 2 (x - k)] - 4 a^2 = 2 a^2 + 6 s^2.
    """
    a = mu - k
    score, pathwise = a**4 / s**2 + 14 * a**2 + 15 * s**2, 4 * s**2
    covariance = 2 * a**2 + 6 * s**2
    return 2 * a, (1 - w) ** 2 * score + w**2 * pathwise + 2 * w * (1 - w) * covariance


parabola = lambda w, x: w["scale"] * (x - w["centre"]) ** 2


@pytest.mark.statistical
@pytest.mark.parametrize("w", [0.0, 0.6, 1.0])
@pytest.mark.usefixtures("x64")
def test_normal(w):
    mu, s, k = 0.9, 0.7, 0.1
    mean, variance = lax_moments(w, mu, s, k)
    sampler = ge.relax(parabola, {"scale": w, "centre": k})
    f = lambda x: (x - k) ** 2
    samples = of_dist(sampler, f, dists.Normal(mu, s), 2 * NUM_KEYS)
    assert_unbiased(samples, dists.Normal(mean, 2 * s))
    assert_variance(samples.loc, variance)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples.loc, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(samples.loc, lax_moments(w + 0.1, mu, s, k)[1])


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_cotangent_of_the_surrogates_scale():
    """The sum over both parameters of the squared estimates; eta has the same as the scale."""
    mu, s, k = 0.9, 0.7, 0.1
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    e, weights = jnp.asarray(nodes), jnp.asarray(weights / weights.sum())

    def norm(scale, eta):
        x = mu + s * e
        f, c, slope = (x - k) ** 2, eta * scale * (x - k) ** 2, eta * scale * 2 * (x - k)
        by_mu = (f - c) * e / s + slope
        by_s = (f - c) * (e**2 - 1) / s + slope * e
        return jnp.sum(weights * (by_mu**2 + by_s**2))

    def loss(control, key):
        sampler = ge.relax(parabola, {"scale": control[0], "centre": k}, eta=control[1])
        return sampler.expect(key, dists.Normal(mu, s), lambda x: (x - k) ** 2)

    want = jax.jit(jax.grad(norm, argnums=(0, 1)))(0.8, 0.9)
    samples = estimates.gradients(loss, (0.8, 0.9), 10 * NUM_KEYS)
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.1 * x, samples), want)


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distribution_of_another_library():
    numpyro = pytest.importorskip("numpyro.distributions")
    params = (jnp.array([0.5, -0.3]), jnp.array([0.7, 1.1]))
    f = lambda x: jnp.where(jnp.sum(x * jnp.array([0.7, -0.9])) > 0.3, 1.0, -0.4)
    sampler = ge.relax(lambda w, x: jnp.sum(jnp.tanh(w * x)), jnp.array([0.7, -0.9]))
    by = lambda make: estimates.gradients(
        lambda params, key: sampler.expect(key, make(*params), f), params, 4 * NUM_KEYS
    )
    theirs, ours = by(numpyro.Normal), by(dists.Normal)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), theirs, ours)
    deviation = lambda s: jnp.linalg.norm(s * jnp.array([0.7, -0.9]))
    above = lambda m, s: jax.scipy.stats.norm.cdf(
        (jnp.sum(m * jnp.array([0.7, -0.9])) - 0.3) / deviation(s)
    )
    want = jax.jit(jax.grad(lambda params: 1.4 * above(*params)))(params)
    assert_unbiased(ours, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, ours), want)


# ---- The contract --------------------------------------------------------------------------

linear = lambda: ge.relax(lambda w, x: jnp.sum(w * x) + jnp.prod(x), 0.4)
CHAINS = {
    "relax, relax": (linear, linear),
    "relax, muprop-like rebar": (linear, lambda: ge.rebar(relaxation="muprop")),
    "rebar, relax": (lambda: ge.rebar(coupled=False), linear),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHAINS)
def test_dependent_sites(name):
    samples = estimates.gradients(
        estimates.chain(*CHAINS[name]), estimates.chain_params(), NUM_KEYS
    )
    assert_unbiased(samples, estimates.exact_chain())
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, samples), estimates.exact_chain())


@pytest.mark.statistical
def test_lanes():
    """Every lane has its own surrogate's value: the surrogate sees one lane's draw."""
    shapes = []

    def surrogate(w, x):
        shapes.append(x.shape)
        return w * jnp.sum(x) + jnp.prod(x)

    assert_unbiased(*estimates.lanes(lambda: ge.relax(surrogate, 0.4)))
    assert set(shapes) == {(2,)}


@pytest.mark.statistical
def test_lanes_of_a_continuous_distribution():
    loc = jnp.array([[0.4, -0.6], [0.2, 0.9], [-0.3, -0.8]])
    w = jnp.array([0.9, -0.6, 0.5, 0.7, -0.8, 0.4])

    @ge.expectation
    def loss(loc, key):
        draw = lambda key, loc: ge.relax(lambda w, x: w * jnp.sum(x), 0.3)(
            key, dists.Normal(loc, 0.7)
        )
        x = jax.vmap(draw)(jax.random.split(key, 3), loc)
        return jnp.tanh(jnp.sum(w * x.reshape(-1)))

    # The sum is Normal.
    nodes, weights = oracles.points(dists.Normal(jnp.zeros(1), jnp.ones(1)))
    spread = 0.7 * jnp.linalg.norm(w)
    mean = lambda loc: jnp.sum(
        weights * jnp.tanh(jnp.sum(w * loc.reshape(-1)) + spread * nodes[:, 0])
    )
    with pytest.warns(UserWarning, match="credited with the whole loss in every lane"):
        samples = estimates.gradients(loss, loc)
    want = jax.jit(jax.grad(mean))(loc)
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


@pytest.mark.statistical
def test_mixed_second_derivatives():
    samples, want = estimates.mixed(linear(), NUM_KEYS)
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


def test_second_derivatives():
    """Of the distribution's parameters they raise; of the control variate's they pass."""
    for sampler, dist in (
        (linear(), BITS),
        (ge.relax(parabola_of_all, 0.3), dists.Normal(jnp.zeros(2), jnp.float32(1.0))),
    ):
        # Raised while it is traced: nothing need run.
        jax.eval_shape(functools.partial(estimates.assert_first_order, sampler), dist)

    def norm(w, key):
        of = lambda dist: ge.relax(surrogate, w).expect(key, dist, cost)
        return jnp.sum(jax.grad(of)(BITS).logits ** 2)

    w, key = network_params(jax.random.key(1), (3,)), jax.random.key(0)
    loss = lambda w, key: ge.relax(surrogate, w).expect(key, BITS, cost)
    attached, direct = jax.jit(lambda *args: (jax.grad(loss)(*args), jax.grad(norm)(*args)))(w, key)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, direct, attached)


parabola_of_all = lambda w, x: w * jnp.sum(x**2)


surrogate_of_sums = lambda w, x: jnp.asarray(w, x.dtype) * jnp.sum(x)


def test_extremes():
    estimates.assert_robust(lambda: ge.relax(surrogate_of_sums, 0.3))
    estimates.assert_robust(lambda: ge.relax(surrogate_of_sums, 0.3, coupled=False), "rows")
    for temperature in (1e-3, 1e3):
        make = functools.partial(ge.relax, surrogate_of_sums, 0.3, temperature=temperature)
        estimates.assert_robust(make, "bits")


def test_params_may_hold_anything():
    """Integers, keys and constants pass through; traced floats alone are trained."""
    params = {"scale": jnp.float32(0.5), "index": jnp.int32(1), "key": jax.random.key(3), "off": 2}

    def surrogate(params, x):
        noise = jax.random.normal(params["key"])
        return params["scale"] * x[params["index"]] * noise + params["off"]

    @jax.jit
    def run(params, key):
        of = lambda scale: ge.relax(surrogate, {**params, "scale": scale}).expect(key, BITS, cost)
        return jax.grad(of)(params["scale"])

    assert run(params, jax.random.key(0)) != 0

    of_concrete = lambda logits: ge.relax(surrogate, params).expect(
        jax.random.key(0), dists.Bernoulli(logits), cost
    )
    assert np.isfinite(jax.jit(jax.grad(of_concrete))(BITS.logits)).all()


def test_trained_inside_a_loss_without_retracing():
    count = []

    @ge.expectation
    def loss(params, key):
        bits = ge.relax(network, params["control"], temperature=jnp.exp(params["log_temperature"]))
        return cost(bits(key, dists.Bernoulli(params["logits"])))

    @jax.jit
    def gradient(params, key):
        count.append(1)
        return jax.grad(loss)(params, key)

    params = {
        "logits": jnp.zeros(3),
        "control": network_params(jax.random.key(0), (3,)),
        "log_temperature": jnp.zeros(()),
    }
    for i in range(3):
        g = gradient(params, jax.random.key(i))
        assert all((np.asarray(x) != 0).any() for x in jax.tree.leaves(g))
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, g)
    assert len(count) == 1


def test_options():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"surrogate: expected a function .* got dict"):
        ge.relax({}, network)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"temperature: expected a finite number greater than 0"):
        ge.relax(network, {}, temperature=0.0)
    with pytest.raises(ValueError, match=r"eta: expected a finite number, got inf"):
        ge.relax(network, {}, eta=float("inf"))
    with pytest.raises(TypeError, match=r"relax: .* got Categorical.*as OneHotCategorical"):
        linear().expect(key, dists.Categorical(jnp.zeros(3)), jnp.sum)
    with pytest.raises(ValueError, match=r"surrogate: .* real scalar, got shape \(3,\) and type"):
        ge.relax(lambda w, x: w * x, 0.4).expect(key, BITS, jnp.sum)


def test_lanes_share_the_gradient_of_a_network():
    """Of each weight it is summed over lanes as it goes: no lane holds one of its own."""
    lanes, size, hidden = 7, 5, 11
    w = {"in": jnp.full((size, hidden), 0.1), "out": jnp.linspace(-1.0, 1.0, hidden)}
    surrogate = lambda w, x: jnp.dot(w["out"], jnp.tanh(jnp.dot(x, w["in"])))

    def loss(w, logits):
        def one(key, logits):
            sampler = ge.relax(surrogate, w)
            return sampler.expect(key, dists.Bernoulli(logits), lambda b: jnp.prod(b - 0.3))

        return jnp.mean(jax.vmap(one)(jax.random.split(jax.random.key(0), lanes), logits))

    logits = jnp.linspace(-1.0, 1.0, lanes * size).reshape(lanes, size)
    program = str(jax.make_jaxpr(jax.grad(loss))(w, logits))
    assert f"[{lanes},{hidden}]" in program
    assert f"[{lanes},{size},{hidden}]" not in program
    assert f"[{lanes},{hidden},{size}]" not in program
