"""MuProp: moments in closed form, and over all draws."""

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
    moments,
    of_dist,
    oracles,
    toy,
)

import gradest as ge
from gradest import distributions as dists

NUM_KEYS = 150_000
BITS = dists.Bernoulli(jnp.array([0.4, -0.7, 0.9]))
ROWS = dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8, 0.2], [-0.9, 0.6, 0.1, 0.5]]))
DISTS = {"Bernoulli": BITS, "OneHotCategorical": ROWS}


def cost(x):
    """Not separable, and far from quadratic."""
    w = coefficients(x)
    s = jnp.sum(w * x)
    return (s - 0.7) ** 2 + jnp.tanh(s) + x.reshape(-1)[0] * x.reshape(-1)[-1] + 0.4


@pytest.mark.statistical
@pytest.mark.parametrize(("p", "t"), [(0.3, 0.2), (0.8, 0.3)])
@pytest.mark.usefixtures("x64")
def test_one_bernoulli(p, t):
    """The variance does not depend on the target: what is left of the cost is (b - p)^2."""
    pq = p * (1 - p)
    samples = toy(ge.muprop(), p, t, NUM_KEYS)
    assert_unbiased(samples, pq * (1 - 2 * t))
    assert_variance(samples, pq * (1 - 3 * pq) ** 2)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, pq * (1 - 2 * t))
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(toy(ge.muprop(baseline=0.05), p, t, NUM_KEYS), pq * (1 - 3 * pq) ** 2)


@pytest.mark.usefixtures("x64")
def test_linear_cost_has_no_variance():
    """For one element; several of them add their own scores."""
    for dist in (dists.Bernoulli(0.7), dists.OneHotCategorical(jnp.array([0.3, -0.5, 0.8]))):
        linear = lambda x: jnp.sum(x * jnp.arange(1.0, 1.0 + x.size).reshape(x.shape)) + 2.0
        samples = of_dist(ge.muprop(), linear, dist, 20).logits
        want = np.broadcast_to(exact(dist, linear).logits, samples.shape)
        np.testing.assert_allclose(samples, want, atol=1e-12)


def formula(dist, baseline=0.0):
    """The estimate as a function of the draw, by JAX's own derivatives."""
    mean = lambda dist: (
        jax.tree.map(
            jax.nn.sigmoid if isinstance(dist, dists.Bernoulli) else jax.nn.softmax, dist
        ).logits
    )
    m = mean(dist)

    def estimate(b):
        slope = jax.grad(cost)(m)
        left = cost(b) - cost(m) - jnp.sum(slope * (b - m)) - baseline
        of_draw = jax.grad(lambda dist: left * jnp.sum(dist.log_prob(b)))(dist)
        of_mean = jax.grad(lambda dist: jnp.sum(slope * mean(dist)))(dist)
        return of_draw.logits + of_mean.logits

    return estimate


@pytest.mark.statistical
@pytest.mark.parametrize("baseline", [None, 0.3])
@pytest.mark.parametrize("name", DISTS)
@pytest.mark.usefixtures("x64")
def test_several_elements(name, baseline):
    dist = jax.tree.map(lambda x: x.astype(float), DISTS[name])
    mean, variance = jax.jit(lambda dist: moments(formula(dist, baseline or 0.0), dist))(dist)
    want = exact(dist, cost).logits
    np.testing.assert_allclose(mean, want, atol=1e-12)

    samples = of_dist(ge.muprop(baseline=baseline), cost, dist, NUM_KEYS).logits
    assert_unbiased(samples, want)
    assert_variance(samples, variance)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, variance)


@pytest.mark.statistical
def test_control_variate_whose_mean_is_not_added_back(monkeypatch):
    sampler = broken.mean_not_added_back(ge.muprop)(monkeypatch)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(of_dist(sampler, cost, BITS).logits, exact(BITS, cost).logits)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_baseline_is_trained():
    """Its cotangent is the derivative of the squared norm; SGD finds the best baseline."""
    dist = jax.tree.map(lambda x: x.astype(float), BITS)
    draws, probs = oracles.points(dist)
    norm = lambda b: jnp.einsum("mk,m->", jax.vmap(formula(dist, b))(draws) ** 2, probs)
    slope, curvature = (jax.jit(f)(0.9) for f in (jax.grad(norm), jax.grad(jax.grad(norm))))
    loss = lambda b, key: ge.muprop(baseline=b).expect(key, dist, cost)
    samples = estimates.gradients(loss, 0.9)
    assert_unbiased(samples, slope)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, slope)
    # The norm is a quadratic in the baseline.
    best = 0.9 - slope / curvature

    def step(b, key):
        return b - 0.02 * jax.grad(loss)(b, key), b

    _, path = jax.jit(lambda keys: jax.lax.scan(step, 0.9, keys))(estimates.keys(20_000))
    np.testing.assert_allclose(path[2000:].mean(), best, atol=0.05)


# ---- The contract --------------------------------------------------------------------------

CHAINS = {
    "muprop, muprop": (ge.muprop, ge.muprop),
    "muprop, score_function": (ge.muprop, ge.score_function),
    "muprop, rebar": (ge.muprop, ge.rebar),
    "rebar, muprop": (ge.rebar, ge.muprop),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHAINS)
def test_dependent_sites(name):
    samples = estimates.gradients(estimates.chain(*CHAINS[name]), estimates.chain_params())
    assert_unbiased(samples, estimates.exact_chain())
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, samples), estimates.exact_chain())


def test_later_sites_give_their_means():
    """n sites in sequence evaluate the cost n + 1 times: a mean-field network for each."""
    points = []

    @ge.expectation
    def loss(logits, key):
        x, total = jnp.zeros(()), jnp.zeros(())
        for k in jax.random.split(key, 3):
            x = ge.muprop()(k, dists.Bernoulli(logits + x))
            total += x
        jax.debug.callback(lambda x: points.append(float(x)), total)
        return jnp.tanh(total)

    jax.jit(jax.value_and_grad(loss))(0.3, jax.random.key(0))
    jax.effects_barrier()
    assert len(points) == 4
    first = jax.nn.sigmoid(0.3)
    second = jax.nn.sigmoid(0.3 + first)
    third = jax.nn.sigmoid(0.3 + second)
    assert np.isclose(points, first + second + third, rtol=1e-5).sum() == 1


@pytest.mark.statistical
def test_lanes():
    assert_unbiased(*estimates.lanes(ge.muprop))


@pytest.mark.statistical
def test_mixed_second_derivatives():
    samples, want = estimates.mixed(ge.muprop())
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


def test_options():
    with pytest.raises(ValueError, match="baseline: expected a finite number, got nan"):
        ge.muprop(baseline=float("nan"))
    with pytest.raises(TypeError, match=r"muprop: .* got Categorical.*as OneHotCategorical"):
        ge.muprop().expect(jax.random.key(0), dists.Categorical(jnp.zeros(3)), lambda x: 1.0)


def test_traced_baseline_does_not_retrace():
    count = []

    @jax.jit
    def gradient(baseline, key):
        count.append(1)
        return jax.grad(lambda b: ge.muprop(baseline=b).expect(key, BITS, cost))(baseline)

    for i in range(3):
        gradient(jnp.float32(i), jax.random.key(i))
    assert len(count) == 1


@pytest.mark.parametrize("at_mean", ["value", "slope"])
def test_without_a_finite_expansion_it_is_the_score_function(at_mean):
    """Infinite at one half, the mean, or of infinite slope there."""

    def cost(b):
        d = b[0] - 0.5
        return (1 / d**2 if at_mean == "value" else jnp.sqrt(jnp.abs(d))) + b[1]

    logits, key = jnp.array([0.0, 0.7]), jax.random.key(2)
    by = lambda sampler: jax.value_and_grad(
        lambda l: sampler.expect(key, dists.Bernoulli(l), cost)
    )(logits)
    for got, right in zip(by(ge.muprop()), by(ge.score_function()), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-6)
