"""Bounds of several samples, VIMCO and DReG, and sticking the landing."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimates
from support.estimates import assert_unbiased, assert_variance, gradients, keys, oracles

import gradest as ge
from gradest import distributions as dists

# ---- VIMCO ---------------------------------------------------------------------------------

LOGITS = jnp.array([0.6, -0.4])
LOG_JOINT = np.array([[0.3, -1.4], [-0.2, 0.9]])


def log_weight(dist):
    """Of two bits, with the distribution itself."""
    table = jnp.asarray(LOG_JOINT, jnp.float32)
    return lambda b: b @ table @ b + 0.4 * b[0] - jnp.sum(dist.log_prob(b))


def vimco_moments(num_samples, mean):
    """Mean and variance of the gradient, over all tuples of draws."""
    p = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    points = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    log_q = points @ np.log(p) + (1 - points) @ np.log(1 - p)
    log_w = np.einsum("ni,ij,nj->n", points, LOG_JOINT, points) + 0.4 * points[:, 0] - log_q
    scores = points - p
    first = second = np.zeros(2)
    for draws in itertools.product(range(4), repeat=num_samples):
        l, s = log_w[list(draws)], scores[list(draws)]
        bound = np.log(np.mean(np.exp(l)))
        g = -np.exp(l - bound) @ s / num_samples
        for k in range(num_samples):
            others = np.delete(l, k)
            center = others.mean() if mean == "geometric" else np.log(np.mean(np.exp(others)))
            without = np.log(np.mean(np.exp(np.append(others, center))))
            g += (bound - without) * s[k]
        weight = np.exp(log_q[list(draws)].sum())
        first, second = first + weight * g, second + weight * g**2
    return first, second - first**2


def vimco_gradients(num_samples, mean):
    def loss(logits, key):
        dist = dists.Bernoulli(logits)
        return ge.vimco(num_samples, mean=mean).expect(key, dist, log_weight(dist))

    return gradients(loss, LOGITS, 100_000)


@pytest.mark.statistical
@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("num_samples", [2, 4])
def test_vimco_moments(num_samples, mean):
    samples = vimco_gradients(num_samples, mean)
    exact, variance = vimco_moments(num_samples, mean)
    assert_unbiased(samples, exact)
    assert_variance(samples, variance)


def test_vimco_means_differ():
    """Or the test above would not tell them apart; of one other weight they are the same."""
    two, four = (
        [vimco_moments(k, mean)[1] for mean in ("geometric", "arithmetic")] for k in (2, 4)
    )
    np.testing.assert_allclose(*two)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert (abs(four[0] / four[1] - 1) > 0.1).any()


@pytest.mark.statistical
def test_vimco_finds_out_another_baseline():
    samples = vimco_gradients(4, "geometric")
    with pytest.raises(AssertionError, match="the variance is"):
        assert_variance(samples, vimco_moments(4, "arithmetic")[1])


@pytest.mark.statistical
def test_the_value_is_the_bound():
    """Between the ELBO and the log-likelihood."""
    dist = dists.Bernoulli(LOGITS)
    for sampler in (ge.vimco(3), ge.vimco(3, mean="arithmetic")):
        values = jax.jit(jax.vmap(lambda k, s=sampler: s.expect(k, dist, log_weight(dist))))
        bound = oracles.bound(dist, log_weight(dist), num_samples=3)
        assert_unbiased(values(keys(50_000)), bound)
    elbo = oracles.expectation(dist, log_weight(dist))
    points = oracles.points(dist).values
    likelihood = jax.nn.logsumexp(
        jax.vmap(lambda b: log_weight(dist)(b) + jnp.sum(dist.log_prob(b)))(points)
    )
    assert elbo + 0.05 < bound < likelihood - 0.01


# ---- DReG ----------------------------------------------------------------------------------

OBSERVED = 0.7


def log_weight_of_normal(q):
    """Prior Normal(0, 1), likelihood Normal(x, 1): the posterior is Normal(y / 2, 1 / sqrt 2)."""
    prior, normal = dists.Normal(0.0, 1.0), lambda x: dists.Normal(x, 1.0)
    return lambda x: prior.log_prob(x) + normal(x).log_prob(OBSERVED) - q.log_prob(x)


def of_normal(sampler, params, num=100_000):
    def loss(params, key):
        q = dists.Normal(*params)
        return sampler.expect(key, q, log_weight_of_normal(q))

    return jnp.stack(gradients(loss, params, num), axis=1)


ELSEWHERE = (0.1, 0.9)


def exact_gradient(num_samples):
    def bound(params):
        q = dists.Normal(*params)
        return oracles.bound(q, log_weight_of_normal(q), num_samples=num_samples)

    return jnp.stack(jax.jit(jax.grad(bound))(ELSEWHERE))


@pytest.mark.statistical
@pytest.mark.parametrize("num_samples", [1, 2])
def test_dreg_of_log_weights(num_samples):
    samples = of_normal(ge.dreg(num_samples), ELSEWHERE)
    assert_unbiased(samples, exact_gradient(num_samples))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * samples, exact_gradient(num_samples))


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_dreg_moments():
    """Of two samples, by a quadrature over the noise of both, in NumPy."""
    loc, scale = ELSEWHERE
    z, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    x = loc + scale * z
    log_w = -(x**2) / 2 - (OBSERVED - x) ** 2 / 2 + z**2 / 2
    # d log w / d x, and with d x / d loc = 1, d x / d scale = z.
    slope = -x + (OBSERVED - x) + z / scale
    path = slope[:, None] * np.stack([np.ones_like(z), z], axis=1)
    share = 1 / (1 + np.exp(log_w[None, :] - log_w[:, None]))
    g = share[..., None] ** 2 * path[:, None] + (1 - share[..., None]) ** 2 * path[None, :]
    mean = np.einsum("i,j,ijp->p", weights, weights, g)
    variance = np.einsum("i,j,ijp->p", weights, weights, (g - mean) ** 2)
    np.testing.assert_allclose(mean, exact_gradient(2), rtol=1e-5)
    samples = of_normal(ge.dreg(2), ELSEWHERE, 200_000)
    assert_unbiased(samples, mean)
    assert_variance(samples, variance)
    with pytest.raises(AssertionError, match="the variance is"):
        assert_variance(samples, 1.15 * variance)


@pytest.mark.parametrize(
    "sampler", [ge.dreg(1), ge.dreg(5), ge.reparameterize(sticking_the_landing=True)], ids=repr
)
def test_nothing_is_noise_at_the_posterior(sampler):
    posterior = (OBSERVED / 2, math.sqrt(0.5))
    np.testing.assert_allclose(of_normal(sampler, posterior, 100), 0, atol=2e-5)
    assert jnp.std(of_normal(ge.reparameterize(), posterior, 100)) > 0.1


def test_one_sample_is_sticking_the_landing():
    landing, dreg = ge.reparameterize(sticking_the_landing=True), ge.dreg(1)

    def run(key):
        def gradient(sampler, key):
            def loss(params):
                q = dists.Normal(*params)
                return sampler.expect(key, q, log_weight_of_normal(q))

            return jnp.stack(jax.grad(loss)(ELSEWHERE))

        return gradient(dreg, key), gradient(landing, jax.random.split(key, 1)[0])

    got, want = jax.jit(jax.vmap(run))(keys(10))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_signal_to_noise_grows_with_the_samples():
    """As sqrt(K), where that of pathwise gradients falls as 1 / sqrt(K)."""
    ratio = lambda g: abs(g.mean(axis=0)) / g.std(axis=0)
    few, many = (ratio(of_normal(ge.dreg(k), ELSEWHERE, 20_000)) for k in (16, 256))
    np.testing.assert_allclose(many / few, 4.0, rtol=0.15)


# ---- Sticking the landing ------------------------------------------------------------------


@pytest.mark.statistical
def test_sticking_the_landing_of_any_cost():
    """A control variate of mean zero, to every order."""
    cost = lambda x: jnp.sin(x) + x**2 / 3
    make = lambda p: dists.Normal(*p)
    sampler = ge.reparameterize(sticking_the_landing=True)
    params = (jnp.float32(0.4), jnp.float32(0.8))
    loss = lambda p, key: sampler.expect(key, make(p), cost)
    hessian = lambda f: lambda p, *key: jax.hessian(f)(p, *key)
    got = jax.jit(jax.vmap(hessian(loss), in_axes=(None, 0)))(params, keys(400_000))
    want = jax.jit(hessian(lambda p: oracles.expectation(make(p), cost)))(params)
    stack = lambda tree, axis: jnp.stack(jax.tree.leaves(tree), axis)
    assert_unbiased(stack(got, 1), stack(want, 0))


# ---- The contract --------------------------------------------------------------------------


@pytest.mark.statistical
def test_mixed_second_derivatives():
    dist, w = dists.Normal(jnp.array([0.4, -0.7]), jnp.array([0.6, 0.8])), jnp.array([0.9, -0.6])

    def of(expected):
        cost = lambda w: lambda x: jnp.tanh(jnp.sum(w * x)) + jnp.sum(x * x * w) / 4
        by_w = lambda dist, *key: jax.grad(lambda w: expected(*key, dist, cost(w)))(w)
        return jax.jacrev(by_w)

    want = jax.jit(of(oracles.bound))(dist)
    for sampler in (ge.dreg(2), ge.vimco(2)):
        got = jax.jit(jax.vmap(of(sampler.expect), in_axes=(None, 0)))(dist, keys(400_000))
        assert_unbiased(got, want)


@pytest.mark.parametrize("sampler", [ge.dreg(2), ge.vimco(2)], ids=repr)
def test_first_order_only(sampler):
    estimates.assert_first_order(sampler, dists.Normal(jnp.array([0.4, -0.7]), 0.8))


LATER = {
    "straight line": lambda key, x: ge.score_function()(key, dists.Bernoulli(x)),
    "cond": lambda key, x: jax.lax.cond(
        x > 0, lambda: ge.rebar()(key, dists.Bernoulli(x)), lambda: 0.0
    ),
    "scan": lambda key, x: jax.lax.scan(
        lambda c, k: (c + ge.score_function()(k, dists.Bernoulli(x)), None),
        0.0,
        jax.random.split(key, 2),
    )[0],
}


@pytest.mark.parametrize("sampler", [ge.dreg(2), ge.vimco(2)], ids=repr)
@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_a_bound_is_the_last_draw(sampler, later):
    """What follows would be credited with its cost, not with the bound."""

    @ge.expectation
    def loss(loc, key):
        first, second = jax.random.split(key)
        x = sampler(first, dists.Normal(loc, 0.8))
        return later(second, x) * x

    message = rf"a draw \(at .*test_bounds.py:\d+\) comes after one by {sampler.name}"
    with pytest.raises(NotImplementedError, match=message):
        loss(0.3, jax.random.key(0))


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [ge.dreg(2), ge.vimco(2)], ids=repr)
def test_before_pathwise_draws_and_after_any(sampler):
    @ge.expectation
    def loss(params, key):
        keys = jax.random.split(key, 3)
        b = ge.score_function()(keys[0], dists.Bernoulli(params["logit"]))
        x = sampler(keys[1], dists.Normal(params["loc"] + b, 0.6))
        y = ge.reparameterize()(keys[2], dists.Normal(x, params["scale"]))
        return jnp.sin(x) + 0.4 * y**2

    params = {"logit": jnp.float32(0.4), "loc": jnp.float32(0.3), "scale": jnp.float32(0.5)}

    def exact(params):
        # The later draw's noise is shared by the samples of the bound, as is its key.
        def given(b):
            first = oracles.points(dists.Normal(params["loc"] + b, 0.6))
            noise = oracles.points(dists.Normal(0.0, 1.0))
            x, z = first.values[None, :], noise.values[:, None]
            log_w = jnp.sin(x) + 0.4 * (x + params["scale"] * z) ** 2
            pairs = jnp.logaddexp(log_w[:, :, None], log_w[:, None, :]) - math.log(2)
            by_noise = jnp.einsum("i,j,nij->n", first.weights, first.weights, pairs)
            return noise.weights @ by_noise

        return oracles.expectation(dists.Bernoulli(params["logit"]), given)

    assert_unbiased(gradients(loss, params, 400_000), jax.jit(jax.grad(exact))(params))


@pytest.mark.parametrize("sampler", [ge.dreg(2), ge.vimco(2)], ids=repr)
def test_lanes_have_bounds_of_their_own(sampler):
    @ge.expectation
    def loss(loc, key):
        draw = lambda key, loc: sampler(key, dists.Normal(loc, 1.0))
        return jnp.sum(jax.vmap(draw)(jax.random.split(key, 3), loc))

    with pytest.raises(NotImplementedError, match=rf"{sampler.name}: .*jax.vmap\(gradest.exp"):
        loss(jnp.zeros(3), jax.random.key(0))


@pytest.mark.parametrize("sampler", [ge.dreg(2), ge.reparameterize(sticking_the_landing=True)])
def test_moving_supports_are_refused(sampler):
    with pytest.raises(TypeError, match=f"^{sampler.name}: .* support .* got Uniform"):
        sampler.expect(jax.random.key(0), dists.Uniform(0.0, 1.0), jnp.sum)


def test_dreg_refuses_discrete_draws():
    with pytest.raises(TypeError, match=r"^dreg: .* differentiable .* got Bernoulli"):
        ge.dreg(2).expect(jax.random.key(0), dists.Bernoulli(0.0), jnp.sum)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ge.vimco(1), "num_samples: expected an integer of at least 2, got 1"),
        (lambda: ge.vimco(2, mean="harmonic"), "mean: expected one of .* got 'harmonic'"),  # pyright: ignore[reportArgumentType]
        (lambda: ge.dreg(0), "num_samples: expected an integer of at least 1, got 0"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
