"""measure_valued: moments in closed form, and what it asks of distributions and costs."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimates
from support.estimates import (
    CASES,
    DISTRIBUTIONS,
    FINITE,
    assert_unbiased,
    assert_variance,
    of_dist,
)

import gradest as ge
from gradest import distributions as dists
from gradest.estimators import measure_valued as module

SUPPORTED = CASES["measure_valued"].record.distributions
independent = functools.partial(ge.measure_valued, coupled=False)

# ---- One variable --------------------------------------------------------------------------

MU, S, K = 0.9, 0.7, 0.4
A = MU - K
RATE, SHAPE, SCALE, GAMMA = 1.3, 1.8, 1.2, 0.5772156649015329
P = 0.6
Q = 1 - P
LAMBDA = 1.7
B = LAMBDA - K


class Moments(NamedTuple):
    """By parameter: the gradient of E[cost(x)], and the variances coupled and independent."""

    dist: Callable[[], Any]
    cost: Callable[[Any], Any]
    moments: dict[str, tuple[float, float, float]]

    def closed_form(self, coupled: bool) -> tuple[dict[str, float], dict[str, float]]:
        mean = {name: moments[0] for name, moments in self.moments.items()}
        return mean, {name: moments[1 if coupled else 2] for name, moments in self.moments.items()}


NORMAL = {
    "loc": (2 * A, 4 * A**2 * (4 / math.pi - 1), A**2 * (8 / math.pi - 2) + 4 * S**2 / math.pi),
    "scale": (2 * S, 4 * A**2 + 4 * S**2, 16 * A**2 + 8 * S**2),
}
# The independent pair of Poisson counts: the variances of (x - k)^2 and of (x + 1 - k)^2.
POISSON = 2 * LAMBDA + 4 * LAMBDA**2 + 4 * LAMBDA * (2 * B + 1 + B**2 + (B + 1) ** 2)
# Where the pair is the same, coupled or not.
OF_GAMMA = (SHAPE + 4) / (3 * SHAPE * RATE**2)
OF_WEIBULL = (SCALE**SHAPE / SHAPE) ** 2 * ((1 - GAMMA) ** 2 + math.pi**2 / 3)
LINEAR = (SHAPE * SCALE ** (SHAPE - 1)) ** 2

MOMENTS = {
    "Normal": Moments(lambda: dists.Normal(MU, S), lambda x: (x - K) ** 2, NORMAL),
    "LogNormal": Moments(lambda: dists.LogNormal(MU, S), lambda x: (jnp.log(x) - K) ** 2, NORMAL),
    "Poisson": Moments(
        lambda: dists.Poisson(LAMBDA),
        lambda x: (x.astype(float) - K) ** 2,
        {"rate": (2 * B + 1, 4 * LAMBDA, POISSON)},
    ),
    "Geometric": Moments(
        lambda: dists.Geometric(probs=P),
        lambda x: x.astype(float),
        {"logits": (-Q / P, Q**3 / P**2, 3 * Q**3 / P**2)},
    ),
    "Exponential": Moments(
        lambda: dists.Exponential(RATE),
        lambda x: x,
        {"rate": (-1 / RATE**2, 1 / RATE**4, 3 / RATE**4)},
    ),
    "Exponential squared": Moments(
        lambda: dists.Exponential(RATE),
        lambda x: x**2,
        {"rate": (-4 / RATE**3, 48 / RATE**6, 104 / RATE**6)},
    ),
    "Gamma": Moments(
        lambda: dists.Gamma(SHAPE, RATE),
        lambda x: x,
        {
            "rate": (-SHAPE / RATE**2, SHAPE**2 / RATE**4, SHAPE**2 * (2 * SHAPE + 1) / RATE**4),
            "concentration": (1 / RATE, OF_GAMMA, OF_GAMMA),
        },
    ),
    "Weibull": Moments(
        lambda: dists.Weibull(SCALE, SHAPE),
        lambda x: x**SHAPE,
        {
            "scale": (math.sqrt(LINEAR), LINEAR, 3 * LINEAR),
            "concentration": (-(SCALE**SHAPE) * (1 - GAMMA) / SHAPE, OF_WEIBULL, OF_WEIBULL),
        },
    ),
}


# Draws that take long to make; variances of heavy tails.
NUM_KEYS = {
    "Poisson": 100_000,
    "Gamma": 100_000,
    "Weibull": 400_000,
    "Exponential squared": 1_200_000,
}


def samples(name: str, coupled: bool) -> dict[str, jax.Array]:
    case, sampler = MOMENTS[name], ge.measure_valued(coupled=coupled)
    g = of_dist(sampler, case.cost, case.dist(), NUM_KEYS.get(name, 200_000))
    return {parameter: getattr(g, parameter) for parameter in case.moments}


@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "independent"])
@pytest.mark.parametrize("parameter", ["loc", "scale"])
def test_later_draws_are_shared_if_coupled(parameter, coupled):
    """A pair that makes no difference has none then, and noise of mean zero else."""

    def loss(dist, key):
        first, second = jax.random.split(key)
        x = ge.measure_valued(coupled=coupled)(first, dist)
        return ge.score_function()(second, dists.Normal(0.0, 1.0)) + 0 * x

    gradients = jax.vmap(jax.grad(ge.expectation(loss)), in_axes=(None, 0))
    keys = jax.random.split(jax.random.key(0), 1_000)
    g = getattr(gradients(dists.Normal(0.0, 1.0), keys), parameter)
    if coupled:
        assert not jnp.any(g)
    else:
        # Of two independent draws, of variance one, times the constant.
        constant = {"loc": 1 / np.sqrt(2 * np.pi), "scale": 1.0}[parameter]
        np.testing.assert_allclose(np.std(g), constant * np.sqrt(2), rtol=0.1)


@pytest.mark.statistical
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "independent"])
@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.usefixtures("x64")
def test_closed_form(name, coupled):
    got, (mean, variance) = samples(name, coupled), MOMENTS[name].closed_form(coupled)
    assert_unbiased(got, mean)
    assert_variance(got, variance)
    larger = jax.tree.map(lambda x: 1.05 * x, got)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(larger, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(larger, variance)
    with pytest.raises(AssertionError, match="standard error"):
        assert_variance(got, MOMENTS[name].closed_form(not coupled)[1])


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Normal", "Gamma", "Weibull"])
@pytest.mark.usefixtures("x64")
def test_pairs_that_are_too_far_apart(name, monkeypatch):
    exponential = module._exponential
    monkeypatch.setattr(module, "_exponential", lambda *args: 1.1 * exponential(*args))
    got, (mean, variance) = samples(name, coupled=True), MOMENTS[name].closed_form(coupled=True)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(got, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(got, variance)


# ---- Several variables ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dists.Categorical, dists.OneHotCategorical])
@pytest.mark.usefixtures("x64")
def test_one_discrete_variable_has_no_variance(kind):
    values = jnp.array([0.3, -0.9, 1.7])
    cost = lambda x: jnp.sum(values * x) if x.ndim else values[x]
    p = jax.nn.softmax(jnp.array([0.3, -0.5, 0.8]))
    got = of_dist(ge.measure_valued(), cost, kind(jnp.log(p)), 20).logits
    want = p * (values - jnp.sum(p * values))
    np.testing.assert_allclose(got, jnp.broadcast_to(want, got.shape), rtol=1e-12)
    bits = estimates.toy(ge.measure_valued(), 0.3, 0.45, 20)
    np.testing.assert_allclose(bits, 0.3 * 0.7 * 0.1, rtol=1e-12)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_two_bernoullis():
    """Of the product of both, the derivative in one is p (1 - p) times the other."""
    p = np.array([0.3, 0.6])
    q, other = 1 - p, p[::-1]
    got = of_dist(ge.measure_valued(), jnp.prod, dists.Bernoulli(jnp.log(p / q)), 100_000).logits
    assert_unbiased(got, p * q * other)
    assert_variance(got, (p * q) ** 2 * other * (1 - other))
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got, p * q * other)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * got, (p * q) ** 2 * other * (1 - other))


@pytest.mark.statistical
@pytest.mark.parametrize("kind", [dists.Categorical, dists.OneHotCategorical])
@pytest.mark.usefixtures("x64")
def test_two_categories(kind):
    """Of g(x) h(y), the derivative in a logit of x is p_k (g_k - E g(x)) h(y)."""
    logits = jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])
    values = jnp.array([[1.3, 0.6, 2.7], [0.8, 1.9, 2.4]])
    p = jax.nn.softmax(logits, axis=1)

    def cost(x):
        row = jnp.arange(2)
        return jnp.prod(values[row, x] if x.ndim == 1 else jnp.sum(values * x, axis=1))

    mean = jnp.sum(p * values, axis=1, keepdims=True)
    alone = p * (values - mean)
    variance = (jnp.sum(p * values**2, axis=1, keepdims=True) - mean**2)[::-1]
    got = of_dist(ge.measure_valued(), cost, kind(logits), 100_000).logits
    assert_unbiased(got, alone * mean[::-1])
    assert_variance(got, alone**2 * variance)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got, alone * mean[::-1])
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * got, alone**2 * variance)


@pytest.mark.parametrize(
    "name", ["Bernoulli", "Categorical", "OneHotCategorical", "Normal", "Geometric", "Weibull"]
)
def test_what_the_others_add_to_the_cost_cancels(name):
    """And a lane of a vmapped site draws, and pairs, what it would have alone."""
    dist = DISTRIBUTIONS[name]()
    sampler, keys = ge.measure_valued(), estimates.keys(len(jax.tree.leaves(dist)[0]))

    def of_one(x):
        x = x.astype(jnp.float32)
        return jnp.sum(estimates.coefficients(x) * jnp.cos(2.3 * x))

    @ge.expectation
    def lanes(dist):
        return jnp.sum(jax.vmap(of_one)(jax.vmap(sampler)(keys, dist)))

    alone = lambda dist: jnp.sum(
        jax.vmap(lambda key, one: sampler.expect(key, one, of_one))(keys, dist)
    )
    with pytest.warns(UserWarning, match="credited with the whole loss in every lane"):
        got = jax.jit(jax.grad(lanes))(dist)
    want = jax.jit(jax.grad(alone))(dist)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, got, want)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(got))


# ---- The contract --------------------------------------------------------------------------

CHAINS = {
    "measure_valued, independent": (ge.measure_valued, independent),
    "independent, rebar": (independent, ge.rebar),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHAINS)
def test_dependent_sites(name):
    got = estimates.gradients(estimates.chain(*CHAINS[name]), estimates.chain_params())
    assert_unbiased(got, estimates.exact_chain())
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, got), estimates.exact_chain())


def test_the_pair_shares_what_comes_after():
    """Unless independent, a later draw that the first has no part in cancels."""

    def gradients(sampler):
        @ge.expectation
        def loss(logits, key):
            one, two = jax.random.split(key)
            b = sampler(one, dists.Bernoulli(logits))
            later = ge.score_function()(two, dists.Bernoulli(jnp.zeros(20)))
            return (b - 0.45) ** 2 + 100 * jnp.sum(later)

        return estimates.gradients(loss, 0.0, 100)

    np.testing.assert_allclose(gradients(ge.measure_valued()), 0.025, rtol=1e-2)
    assert jnp.std(gradients(independent())) > 10


@pytest.mark.statistical
def test_mixed_second_derivatives():
    got, want = estimates.mixed(ge.measure_valued())
    assert_unbiased(got, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got, want)


@pytest.mark.parametrize("name", SUPPORTED)
def test_second_derivatives_raise(name):
    dist = DISTRIBUTIONS[name]()
    loss = lambda dist: ge.measure_valued().expect(
        jax.random.key(0), dist, lambda x: jnp.sum(jnp.cos(x.astype(jnp.float32)))
    )
    norm = lambda dist: sum(jnp.sum(g * g) for g in jax.tree.leaves(jax.grad(loss)(dist)))
    with pytest.raises(NotImplementedError, match="measure_valued: its gradient was diff"):
        jax.eval_shape(jax.grad(norm), dist)


def test_what_follows_is_traced_once():
    """For the draw and for every pair of every parameter, together."""
    count = []

    def cost(x):
        count.append(x.shape)
        return jnp.sum(x**2)

    of = lambda dist: ge.measure_valued().expect(estimates.keys(1)[0], dist, cost)
    jax.make_jaxpr(jax.grad(of))(dists.Normal(jnp.zeros(5), jnp.ones(5)))
    assert count == [(5,)]


@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in FINITE])
def test_half_precision(name):
    """Finite supports are among the extremes of every estimator."""

    def loss(dist, dtype):
        cost = lambda x: jnp.sum(x.astype(dtype) ** 2)
        return ge.measure_valued().expect(jax.random.key(0), dist, cost)

    for dtype in (jnp.float16, jnp.bfloat16):
        dist = jax.tree.map(lambda leaf: leaf.astype(dtype), DISTRIBUTIONS[name]())  # noqa: B023
        value, g = jax.jit(jax.value_and_grad(loss), static_argnums=1)(dist, dtype)
        assert value.dtype == dtype
        for leaf, parameter in zip(jax.tree.leaves(g), jax.tree.leaves(dist), strict=True):
            assert leaf.dtype == dtype
            assert leaf.shape == parameter.shape
            assert jnp.isfinite(leaf).all()


def test_the_cost_of_what_is_impossible_counts_for_nothing():
    inf = float("inf")
    of_bits = lambda l: ge.measure_valued().expect(
        jax.random.key(0), dists.Bernoulli(l), lambda b: jnp.where(b[0] > 0, jnp.nan, jnp.sum(b))
    )
    np.testing.assert_allclose(jax.jit(jax.grad(of_bits))(jnp.array([-inf, 0.0])), [0, 0.25])
    of_rows = lambda l: ge.measure_valued().expect(
        jax.random.key(0), dists.Categorical(l), lambda x: jnp.array([1.0, inf, 3.0])[x]
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(of_rows))(jnp.array([0.0, -inf, 0.0])), [-0.5, 0, 0.5]
    )


def test_a_count_that_is_certain_has_a_derivative():
    """At rate 0, from above: that of the cost between 0 and 1."""
    loss = lambda rate: ge.measure_valued().expect(
        jax.random.key(0), dists.Poisson(rate), lambda x: (x.astype(jnp.float32) - 0.3) ** 2
    )
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.0), 0.4, rtol=1e-5)


def test_other_distributions():
    with pytest.raises(TypeError, match=r"measure_valued: .* got Laplace.*score_function"):
        ge.measure_valued().expect(jax.random.key(0), dists.Laplace(0.0, 1.0), jnp.sum)
