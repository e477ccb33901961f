"""ReinMax: exact for quadratic costs, and over all draws its own expectation for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimates
from support.estimates import (
    assert_unbiased,
    assert_variance,
    coefficients,
    exact,
    moments,
    of_dist,
    oracles,
    toy,
)

import gradest as ge
from gradest import distributions as dists

NUM_KEYS = 400_000
BITS = dists.Bernoulli(jnp.array([0.4, -0.7, 0.9]))
ROWS = dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8, 0.2], [-0.9, 0.6, 0.1, 0.5]]))
DISTS = {"Bernoulli": BITS, "OneHotCategorical": ROWS}


def quadratic(x):
    """Not separable: exact all the same."""
    w = coefficients(x)
    return (jnp.sum(w * x) - 0.7) ** 2 + x.reshape(-1)[0] * x.reshape(-1)[-1]


def cubic(x):
    w = coefficients(x)
    return quadratic(x) + 0.6 * jnp.sum(w * x) ** 3


@pytest.mark.statistical
@pytest.mark.parametrize(("p", "t"), [(0.5, 0.3), (0.3, 0.2)])
@pytest.mark.usefixtures("x64")
def test_one_bernoulli(p, t):
    """(1 - t) q for a draw of 1 and -t p for one of 0."""
    pq = p * (1 - p)
    samples = toy(ge.reinmax(), p, t, NUM_KEYS)
    assert_unbiased(samples, pq * (1 - 2 * t))
    assert_variance(samples, pq * ((1 - t) * (1 - p) + t * p) ** 2)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, pq * (1 - 2 * t))
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, pq * ((1 - t) * (1 - p) + t * p) ** 2)


def formula(dist, cost, temperature):
    """The estimate as a function of the draw: the surrogate 2 pi_1 - pi_0 / 2, by JAX."""
    mean = jax.nn.sigmoid if isinstance(dist, dists.Bernoulli) else jax.nn.softmax
    # The parameters that the Jacobian is taken with respect to, and the mean as their function.
    inverse = (lambda p: jnp.log(p) - jnp.log1p(-p)) if mean is jax.nn.sigmoid else jnp.log

    def estimate(b):
        pi_1 = (b + mean(dist.logits / temperature)) / 2
        ct = jax.grad(cost)(b)
        of = lambda l: jax.grad(lambda l: jnp.sum(ct * mean(l)))(l)
        return 2 * of(inverse(pi_1)) - of(dist.logits) / 2

    return estimate


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("cost", "temperature"),
    [(quadratic, 1.0), (cubic, 1.0), (quadratic, 1.6)],
    ids=["quadratic", "cubic", "temperature"],
)
@pytest.mark.parametrize("name", DISTS)
@pytest.mark.usefixtures("x64")
def test_moments(name, cost, temperature):
    dist = jax.tree.map(lambda x: x.astype(float), DISTS[name])
    mean, variance = moments(formula(dist, cost, temperature), dist)
    of_cost = exact(dist, cost).logits
    if cost is quadratic and temperature == 1.0:
        np.testing.assert_allclose(mean, of_cost, atol=1e-12)
    else:
        assert np.abs(mean - of_cost).max() > 0.02 * np.abs(of_cost).max()

    samples = of_dist(ge.reinmax(temperature), cost, dist, NUM_KEYS).logits
    assert_unbiased(samples, mean)
    assert_variance(samples, variance)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, variance)


@pytest.mark.statistical
@pytest.mark.parametrize("make", [ge.straight_through, lambda: ge.reinmax(1.6)], ids=["st", "1.6"])
def test_others_are_biased_for_quadratics(make):
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(of_dist(make(), quadratic, ROWS).logits, exact(ROWS, quadratic).logits)


@pytest.mark.statistical
def test_gradients_of_the_costs_own_parameters():
    loss = lambda w, key: ge.reinmax().expect(key, BITS, lambda x: jnp.tanh(jnp.sum(w * x)))
    w = jnp.array([0.9, -0.6, 0.5])
    want = jax.grad(lambda w: oracles.expectation(BITS, lambda x: jnp.tanh(jnp.sum(w * x))))(w)
    assert_unbiased(estimates.gradients(loss, w), want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * estimates.gradients(loss, w), want)


# ---- The contract --------------------------------------------------------------------------


@pytest.mark.statistical
def test_dependent_sites():
    """Exact for a quadratic cost of two draws that are not dependent through the parameters."""
    w = jnp.array([0.9, -0.6, 0.5, 0.7, -0.8, 0.4])

    @ge.expectation
    def loss(logits, key):
        one, two = jax.random.split(key)
        x = ge.reinmax()(one, dists.Bernoulli(logits[0]))
        y = ge.rebar()(two, dists.Bernoulli(logits[1]))
        return (jnp.sum(w * jnp.concatenate([x, y])) - 0.5) ** 2

    logits = jnp.array([[0.4, -0.6, 0.2], [0.9, -0.3, -0.8]])
    want = exact(dists.Bernoulli(logits), lambda x: (jnp.sum(w * x.reshape(-1)) - 0.5) ** 2).logits
    samples = estimates.gradients(loss, logits)
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


def test_plain_gradients_need_no_transform():
    key = jax.random.key(3)
    plain = jax.grad(lambda dist: cubic(ge.reinmax()(key, dist)))(ROWS)
    by_expect = jax.grad(lambda dist: ge.reinmax().expect(key, dist, cubic))(ROWS)
    np.testing.assert_array_equal(plain.logits, by_expect.logits)


@pytest.mark.statistical
def test_draws_are_exact():
    x = jax.vmap(lambda key: ge.reinmax(0.5)(key, ROWS))(estimates.keys())
    assert_unbiased(x, np.asarray(jax.nn.softmax(ROWS.logits)))


def test_vmapped_draws():
    logits = jnp.array([[0.4, -0.6], [0.2, 0.9]])
    keys = jax.random.split(jax.random.key(0), 2)
    loss = lambda logits, key: quadratic(ge.reinmax()(key, dists.Bernoulli(logits)))
    one_by_one = [jax.grad(loss)(l, k) for l, k in zip(logits, keys, strict=True)]
    together = jax.vmap(jax.grad(loss))(logits, keys)
    np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-5)


def test_temperature_may_be_traced_and_has_no_gradient():
    loss = lambda t: quadratic(ge.reinmax(t)(jax.random.key(0), BITS))
    assert jax.jit(jax.grad(loss))(0.7) == 0.0
    traced = jax.jit(jax.grad(lambda dist, t: quadratic(ge.reinmax(t)(jax.random.key(0), dist))))
    want = jax.grad(lambda dist: quadratic(ge.reinmax(0.7)(jax.random.key(0), dist)))(BITS)
    np.testing.assert_allclose(traced(BITS, 0.7).logits, want.logits, rtol=1e-5)


def test_options():
    with pytest.raises(ValueError, match=r"temperature: expected a finite number greater than 0"):
        ge.reinmax(0.0)
    with pytest.raises(TypeError, match=r"reinmax: .* got Normal"):
        ge.reinmax()(jax.random.key(0), dists.Normal(0.0, 1.0))


@pytest.mark.parametrize("name", DISTS)
@pytest.mark.usefixtures("x64")
def test_zgr_is_reinmax_at_temperature_1(name):
    """Half of straight-through and half of the score, draw by draw."""
    dist = jax.tree.map(lambda x: x.astype(float), DISTS[name])

    def zgr(b):
        def surrogate(l):
            if name == "Bernoulli":
                p, log_p = jax.nn.sigmoid(l), jax.nn.log_sigmoid((2 * b - 1) * l)
            else:
                p = jax.nn.softmax(l)
                log_p = jnp.sum(b * jax.nn.log_softmax(l), axis=-1, keepdims=True)
            x = (p + (b - jax.lax.stop_gradient(p)) * log_p) / 2
            return jnp.sum(jax.grad(cubic)(b) * x)

        return jax.grad(surrogate)(dist.logits)

    def gradient(dist, key):
        x, pull_back = jax.vjp(lambda dist: ge.reinmax(1.0)(key, dist), dist)
        return x, pull_back(jax.grad(cubic)(x))[0].logits

    draws, got = jax.jit(jax.vmap(gradient, (None, 0)))(dist, estimates.keys(50))
    np.testing.assert_allclose(got, jax.vmap(zgr)(draws), atol=1e-14)


@pytest.mark.parametrize("name", DISTS)
@pytest.mark.usefixtures("x64")
def test_unbiased_for_costs_quadratic_in_each_variable(name):
    """Of the sixth order in all of them."""
    dist = jax.tree.map(lambda x: x.astype(float), DISTS[name])

    def cost(x):
        of_each = (coefficients(x) * x).reshape(len(x), -1).sum(axis=1)
        return jnp.prod((of_each - 0.4) ** 2 + of_each)

    mean, _ = moments(formula(dist, cost, 1.0), dist)
    np.testing.assert_allclose(mean, exact(dist, cost).logits, rtol=1e-12, atol=1e-14)
