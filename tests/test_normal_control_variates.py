"""Antithetic draws and the delta method, whose moments have closed forms for Normal variables."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimates
from support.estimates import (
    DISTRIBUTIONS,
    assert_unbiased,
    assert_variance,
    gradients,
    keys,
    oracles,
)

import gradest as ge
from gradest import distributions as dists

LOC, SCALE, K = 0.9, 0.7, 0.2
A = LOC - K


def of_normal(sampler, cost, num=100_000):
    """Gradients with respect to the mean and the scale, in columns."""
    dist = dists.Normal(LOC, SCALE)
    g = estimates.of_dist(sampler, cost, dist, num)
    return np.stack([g.loc, g.scale], axis=1)


parabola = lambda x: (x - K) ** 2


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_antithetic_moments():
    samples = of_normal(ge.antithetic(), parabola)
    np.testing.assert_allclose(samples[:, 0], 2 * A, rtol=1e-12)
    assert_unbiased(samples, np.array([2 * A, 2 * SCALE]))
    assert_variance(samples[:, 1], 8 * SCALE**2)
    with pytest.raises(AssertionError, match="the variance is"):
        assert_variance(samples[:, 1], 4 * A**2 + 8 * SCALE**2)


@pytest.mark.parametrize(
    "name",
    [
        *("Normal", "MultivariateNormal", "LowRankMultivariateNormal"),
        *("Laplace", "Logistic", "StudentT", "Uniform"),
    ],
)
def test_mirrored_draws_are_as_probable(name):

    dist = DISTRIBUTIONS[name]()
    seen = []

    def cost(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.sum(x)

    ge.antithetic().expect(jax.random.key(0), dist, cost)
    jax.effects_barrier()
    first, second = seen
    assert np.abs(first - second).min() > 1e-3
    np.testing.assert_allclose(dist.log_prob(first), dist.log_prob(second), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_delta_method_is_exact_for_a_quadratic():
    samples = of_normal(ge.delta_method(), parabola, 100)
    np.testing.assert_allclose(samples, np.broadcast_to([2 * A, 2 * SCALE], (100, 2)), rtol=1e-12)
    # Not separable: the whole Hessian is needed, of which the mean takes the diagonal.
    dist = dists.Normal(jnp.array([0.4, -0.3]), jnp.array([0.8, 1.1]))
    cost = lambda x: x[0] ** 2 + 3 * x[0] * x[1] - x[1]
    got = estimates.of_dist(ge.delta_method(), cost, dist, 10)
    np.testing.assert_allclose(got.loc, [[2 * 0.4 - 0.9, 3 * 0.4 - 1]] * 10, rtol=1e-10)
    np.testing.assert_allclose(got.scale, [[1.6, 0.0]] * 10, atol=1e-10)


NARROW = 0.3


def delta_method_moments():
    """For the cosine of a narrow variable."""
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    d = NARROW * z
    rest = np.cos(LOC + d) - (np.cos(LOC) - np.sin(LOC) * d - np.cos(LOC) * d**2 / 2)
    g = rest[:, None] * np.stack([z, z**2 - 1], axis=1) / NARROW
    mean = weights @ g
    exact = mean - np.array([np.sin(LOC), NARROW * np.cos(LOC)])
    shrunk = math.exp(-(NARROW**2) / 2)
    in_closed_form = -shrunk * np.array([np.sin(LOC), NARROW * np.cos(LOC)])
    np.testing.assert_allclose(exact, in_closed_form, rtol=1e-10)
    return exact, weights @ (g - mean) ** 2


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_delta_method_moments():
    dist = dists.Normal(LOC, NARROW)
    g = estimates.of_dist(ge.delta_method(), jnp.cos, dist, 1_000_000)
    samples = np.stack([g.loc, g.scale], axis=1)
    exact, variance = delta_method_moments()
    assert_unbiased(samples, exact)
    # That of the scale has too heavy a tail to be measured.
    assert_variance(samples[:, 0], variance[0])
    with pytest.raises(AssertionError, match="the variance is"):
        assert_variance(samples[:, 0], 1.15 * variance[0])


@pytest.mark.usefixtures("x64")
def test_delta_method_averages_its_samples():
    dist = dists.Normal(LOC, NARROW)
    one, four = (
        np.asarray(estimates.of_dist(ge.delta_method(num_samples=n), jnp.cos, dist, 200_000).loc)
        for n in (1, 4)
    )
    np.testing.assert_allclose(one.var() / four.var(), 4.0, rtol=0.1)


@pytest.mark.statistical
@pytest.mark.parametrize("second", [ge.rebar, ge.score_function], ids=lambda make: make.__name__)
def test_delta_method_before_another_draw(second):
    """Second derivatives of what follows are those of an estimate of first order: no matter."""

    @ge.expectation
    def loss(params, key):
        one, two = jax.random.split(key)
        x = ge.delta_method(num_samples=4)(one, dists.Normal(params["loc"], 0.6))
        b = second()(two, dists.Bernoulli(params["slope"] * x))
        return jnp.sum((b - 0.3) ** 2 * x) + jnp.prod(b) * params["slope"]

    def exact(params):
        def given(x):
            cost = lambda b: jnp.sum((b - 0.3) ** 2 * x) + jnp.prod(b) * params["slope"]
            return oracles.expectation(dists.Bernoulli(params["slope"] * x), cost)

        return oracles.expectation(dists.Normal(params["loc"], 0.6), given)

    params = {"loc": jnp.array([0.5, -0.8]), "slope": jnp.float32(1.3)}
    assert_unbiased(gradients(loss, params, 100_000), jax.jit(jax.grad(exact))(params))


@pytest.mark.statistical
def test_antithetic_second_derivatives():
    cost = lambda x: jnp.sin(2 * x) + x**3 / 3
    loss = lambda dist, key: ge.antithetic().expect(key, dist, cost)
    dist = dists.Normal(jnp.float32(0.4), jnp.float32(0.8))
    got = jax.jit(jax.vmap(jax.hessian(loss), in_axes=(None, 0)))(dist, keys(100_000))
    want = jax.jit(jax.hessian(lambda dist: oracles.expectation(dist, cost)))(dist)
    stack = lambda tree, axis: jnp.stack(jax.tree.leaves(tree), axis)
    assert_unbiased(stack(got, 1), stack(want, 0))


@pytest.mark.statistical
def test_delta_method_mixed_second_derivatives():
    """The control variate depends on the cost's parameters, too; the cost has a jump."""
    dist, w = dists.Normal(jnp.array([0.4, -0.7]), jnp.array([0.6, 0.8])), jnp.array([0.9, -0.6])

    def cost(w, x):
        return jnp.sum(w * x) ** 2 / 2 + jnp.sum(x * x * w) / 4 + jnp.where(x[0] > 1.5, w[0], 0.0)

    def of(expected):
        by_w = lambda dist, *key: jax.grad(
            lambda w: expected(*key, dist, functools.partial(cost, w))
        )(w)
        return jax.jacrev(by_w)

    def exact(dist, of_x):
        """The jump in closed form."""
        jump = of_x.args[0][0]
        smooth = lambda x: of_x(x) - jnp.where(x[0] > 1.5, jump, 0.0)
        tail = jax.scipy.stats.norm.sf((1.5 - dist.loc[0]) / dist.scale[0])
        return oracles.expectation(dist, smooth) + jump * tail

    want = jax.jit(of(exact))(dist)
    sampler = ge.delta_method(num_samples=4)
    got = jax.jit(jax.vmap(of(sampler.expect), in_axes=(None, 0)))(dist, keys(400_000))
    assert_unbiased(got, want)


def test_delta_method_is_of_first_order():
    estimates.assert_first_order(
        ge.delta_method(), dists.Normal(jnp.array([0.4, -0.7]), jnp.array([0.8, 0.5]))
    )


def test_other_distributions():
    for sampler in (ge.antithetic(), ge.delta_method()):
        with pytest.raises(TypeError, match=r"expected one of .* got Gumbel"):
            sampler.expect(jax.random.key(0), dists.Gumbel(0.0, 1.0), jnp.sum)
    with pytest.raises(ValueError, match="num_samples: expected an integer of at least 1"):
        ge.delta_method(num_samples=0)
