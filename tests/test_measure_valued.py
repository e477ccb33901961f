"""measure_valued: moments in closed form, and what it asks of distributions and costs."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import estimates
from support.estimates import (
    CASES,
    DISTRIBUTIONS,
    FINITE,
    assert_moments,
    assert_unbiased,
    assert_variance,
    of_dist,
    oracles,
    wave,
)

import gradest as ge
from gradest import _random
from gradest import distributions as dists

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

    gradients = jax.jit(jax.vmap(jax.grad(ge.expectation(loss)), in_axes=(None, 0)))
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
    assert_moments(got, mean, variance)
    with pytest.raises(AssertionError, match="standard error"):
        assert_variance(got, MOMENTS[name].closed_form(not coupled)[1])


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Normal", "Gamma", "Weibull"])
@pytest.mark.usefixtures("x64")
def test_pairs_that_are_too_far_apart(name, monkeypatch):
    exponential = _random.exponential_like
    monkeypatch.setattr(_random, "exponential_like", lambda *args: 1.1 * exponential(*args))
    got, (mean, variance) = samples(name, coupled=True), MOMENTS[name].closed_form(coupled=True)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(got, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(got, variance)


# ---- Counts --------------------------------------------------------------------------------


class Count(NamedTuple):
    """A count, and a derivative with its variances: by its score, less the mean cost; by pairs."""

    dist: Callable[[], Any]
    probs: Callable[[np.ndarray], np.ndarray]
    cost: Callable[[Any], Any]
    slope: float
    gradient: float
    left: float
    right: float


# In the probability, or the rate: that of the log-odds times `slope`.
COUNTS = {
    "Binomial, square": Count(
        lambda: dists.Binomial(5, probs=0.3),
        lambda x: scipy.stats.binom.pmf(x, 5, 0.3),
        lambda x: (x - 1.5) ** 2,
        1 / (0.3 * 0.7),
        *(2.0, 169.866667, 72.3428571),
    ),
    "Binomial, reciprocal": Count(
        lambda: dists.Binomial(8, probs=0.6),
        lambda x: scipy.stats.binom.pmf(x, 8, 0.6),
        lambda x: 1 / (1 + x),
        1 / (0.6 * 0.4),
        *(-0.3074688, 0.00879332433, 0.187262213),
    ),
    "Poisson, square": Count(
        lambda: dists.Poisson(3.0),
        lambda x: scipy.stats.poisson.pmf(x, 3),
        lambda x: (x - 2) ** 2,
        1.0,
        *(3.0, 35.0, 12.0),
    ),
    "Poisson, root": Count(
        lambda: dists.Poisson(4.0),
        lambda x: scipy.stats.poisson.pmf(x, 4),
        jnp.sqrt,
        1.0,
        *(0.2668670639, 0.00343377291, 0.0139134939),
    ),
}


def moments_of_counts(case, side):
    """Of w (f(x+) - f(x)) at each count, by its probability."""
    dist, x = case.dist(), jnp.arange(80)
    method = dist.weak_derivative if side == "right" else dist.left_weak_derivative

    @jax.vmap
    def estimate(x):
        pair = method(jax.random.key(0), x)[-1]
        return pair.weight * (case.cost(pair.plus.astype(float)) - case.cost(x.astype(float)))

    p = case.probs(np.arange(80))
    g = case.slope * np.where(p > 0, estimate(x), 0)
    return p @ g, p @ (g - p @ g) ** 2


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.usefixtures("x64")
def test_exact_moments_of_counts(name):
    case = COUNTS[name]
    for side, variance in (("right", case.right), ("left", case.left)):
        np.testing.assert_allclose(moments_of_counts(case, side), (case.gradient, variance), 1e-8)


class Measured(dists.Binomial):
    """With the textbook's pair: a count y of one trial less, and y + 1."""

    parameters = ("total_count", "logits")

    def weak_derivative(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key, x, *, coupled=True
    ):
        del x, coupled
        n, p = self.total_count, self.probs
        y = dists.Binomial(n - 1, self.logits)._sample(key)
        return None, (n * p * (1 - p), y + 1, y)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_variances_of_counts():
    """The values of the draws are as exact as their pairs; a pair of one's own has its variance."""
    one, other = COUNTS["Binomial, square"], COUNTS["Binomial, reciprocal"]
    ways = {
        "right": (one, ge.measure_valued(), one.dist(), one.right),
        "left": (other, ge.measure_valued(side="left"), other.dist(), other.left),
        "textbook": (one, ge.measure_valued(), Measured(5, probs=0.3), 84.0),
    }

    def run(dists, key):
        def of(name):
            case, sampler, *_ = ways[name]
            loss = lambda d: sampler.expect(key, d, lambda x: case.cost(x.astype(float)))
            return case.slope * jax.grad(loss, allow_int=True)(dists[name]).logits

        return {name: of(name) for name in ways}

    of_dists = {name: way[2] for name, way in ways.items()}
    got = jax.jit(jax.vmap(run, (None, 0)))(of_dists, estimates.keys(200_000))
    mean = {name: way[0].gradient for name, way in ways.items()}
    variance = {name: way[3] for name, way in ways.items()}
    assert_moments(got, mean, variance)


LEFT = ("Poisson", "Geometric", "Binomial", "NegativeBinomial")


@pytest.mark.statistical
def test_from_the_left():
    """Of two counts each, in sequence with another draw, the cost not separable."""
    of_dists = {name: DISTRIBUTIONS[name]() for name in LEFT}
    w = jnp.array([0.9, -0.6])

    def loss(dist, key):
        first, second = jax.random.split(key)
        x = ge.measure_valued(side="left")(first, dist).astype(float)
        y = ge.enumeration()(second, dists.Bernoulli(0.3 * x[0] - 0.2))
        return wave(w, x) * (0.5 + y)

    def expected(dist):
        after = lambda x: wave(w, x) * (0.5 + jax.nn.sigmoid(0.3 * x[0].astype(float) - 0.2))
        return estimates.oracles.expectation(dist, after)

    def run(dists, key):
        gradient = jax.grad(ge.expectation(loss), allow_int=True)
        return {name: floats(gradient(dist, key)) for name, dist in dists.items()}

    floats = lambda dist: [g for g in jax.tree.leaves(dist) if g.dtype == jnp.float32]
    got = jax.jit(jax.vmap(run, (None, 0)))(of_dists, estimates.keys(200_000))
    exact = jax.jit(jax.grad(expected, allow_int=True))
    want = {name: floats(exact(dist)) for name, dist in of_dists.items()}
    assert_unbiased(got, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, got), want)


def test_edges_of_counts():
    """One-sided derivatives, from either side; and no cost beyond the support."""
    key, inside = jax.random.key(0), lambda x: (x >= 0) & (x <= 4)
    cost = lambda x: jnp.where(inside(x), (x.astype(float) - 0.3) ** 2, jnp.nan)
    of = {
        "none": (lambda p: dists.Binomial(4, probs=p), 0.0, 4 * 0.4),
        "all": (lambda p: dists.Binomial(4, probs=p), 1.0, 4 * (3.7**2 - 2.7**2)),
        "no success": (lambda p: dists.NegativeBinomial(2.5, probs=p), 0.0, 2.5 * 0.4),
        "no failure": (lambda p: dists.Geometric(probs=p), 1.0, -0.4),
        "rate": (dists.Poisson, 0.0, 0.4),
    }

    def gradients(parameters, side):
        sampler = ge.measure_valued(side=side)
        loss = lambda make: lambda p: sampler.expect(key, make(p), cost)
        return {name: jax.grad(loss(of[name][0]))(p) for name, p in parameters.items()}

    parameters = {name: jnp.float32(p) for name, (_, p, _) in of.items()}
    within = lambda p, side: jax.grad(
        lambda p: ge.measure_valued(side=side).expect(key, dists.Binomial(4, probs=p), cost)
    )(p)
    for side in ("right", "left"):
        got = jax.jit(gradients, static_argnums=1)(parameters, side)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5),
            got,
            {name: want for name, (_, _, want) in of.items()},
        )
        both = jax.jit(jax.vmap(within, (0, None)), static_argnums=1)(jnp.array([0.1, 0.9]), side)
        assert jnp.isfinite(both).all()


def test_sides():
    with pytest.raises(ValueError, match=r"side: expected one of .*'left'.*, got 'up'"):
        ge.measure_valued(side="up")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r'side="left"\): expected Poisson.* got Normal, .*Leave'):
        ge.measure_valued(side="left").expect(jax.random.key(0), dists.Normal(), jnp.sum)


# ---- Draws that are rounded where their density is steep -----------------------------------


@pytest.mark.statistical
def test_what_is_less_than_the_smallest_number():
    """P(x > t) = exp(-t^k) of Weibull; a sixth of the draws are no numbers of their type."""
    k, t = 0.02, 1e-30
    got = of_dist(
        ge.measure_valued(), lambda x: (x > t).astype(float), dists.Weibull(1.0, k), 200_000
    ).concentration
    y = t**k
    want = -np.exp(-y) * y * np.log(t)
    assert_unbiased(got, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got, want)


def test_what_is_more_than_the_largest_number():
    g = of_dist(
        ge.measure_valued(), lambda x: x / 6e4, dists.LogNormal(jnp.float16(9), jnp.float16(4)), 500
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(g))


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
    parameters, treedef = jax.tree.flatten(dist)

    def norm(last):
        of = lambda last: loss(jax.tree.unflatten(treedef, [*parameters[:-1], last]))
        return jnp.sum(jax.grad(of)(last) ** 2)

    with pytest.raises(NotImplementedError, match="measure_valued: its gradient was diff"):
        jax.eval_shape(jax.grad(norm), parameters[-1])


def test_what_follows_is_evaluated_once():
    """For the draw and for every pair of every parameter, together: also in JAX's program."""
    shapes = []

    def cost(x):
        shapes.append(x.shape)
        return jnp.sum(jnp.arctan(x))

    of = lambda dist: ge.measure_valued().expect(estimates.keys(1)[0], dist, cost)
    program = jax.make_jaxpr(jax.grad(of))(dists.Normal(jnp.zeros(5), jnp.ones(5)))
    assert str(program).count(" atan ") == 1
    assert shapes == [(5,), (5,)], "once to see where it jumps, and once to evaluate it"


@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in FINITE])
def test_half_precision(name):
    """Finite supports are among the extremes of every estimator."""

    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)

    def loss(dist, dtype):
        cost = lambda x: jnp.sum(x.astype(dtype) ** 2)
        return ge.measure_valued().expect(jax.random.key(0), dist, cost)

    for dtype in (jnp.float16, jnp.bfloat16):
        cast = lambda leaf: leaf.astype(dtype) if is_float(leaf) else leaf  # noqa: B023
        dist = jax.tree.map(cast, DISTRIBUTIONS[name]())
        value, g = jax.jit(jax.value_and_grad(loss, allow_int=True), static_argnums=1)(dist, dtype)
        assert value.dtype == dtype
        for leaf, parameter in zip(jax.tree.leaves(g), jax.tree.leaves(dist), strict=True):
            if not is_float(parameter):
                continue
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


@pytest.mark.usefixtures("x64")
def test_of_one_hot_draws_it_is_indecater():
    """Draw by draw: each row in turn has every category, weighted by d p, the others as drawn."""
    logits = jnp.array([[0.2, -0.5, 1.0], [0.0, 0.8, -0.3], [-1.0, 0.4, 0.1]])
    w = jnp.array([[1.0, -1.0, 0.5], [0.3, 2.0, -0.7], [-0.4, 0.9, 1.1]])
    cost = lambda x: jnp.sum(w * x) ** 2 / 2 + 0.7 * jnp.sum(x[0] * x[2])
    dist = dists.OneHotCategorical(logits)

    def indecater(x):
        every = lambda d: jax.vmap(lambda row: cost(x.at[d].set(row)))(jnp.eye(3))
        costs = jax.lax.stop_gradient(jnp.stack([every(d) for d in range(3)]))
        return jax.grad(lambda l: jnp.sum(jax.nn.softmax(l) * costs))(logits)

    draws, probs = oracles.points(dist)
    possible = np.asarray(jax.vmap(indecater)(draws)).reshape(27, 9)
    mean = probs @ possible
    variance = np.sum(probs @ possible**2 - mean**2)
    np.testing.assert_allclose(variance, 0.426539898, rtol=1e-8)
    got = np.asarray(of_dist(ge.measure_valued(), cost, dist, 300).logits).reshape(-1, 9)
    distance = np.abs(got[:, None] - possible[None]).max(axis=-1)
    np.testing.assert_array_less(distance.min(axis=1), 1e-12)
    assert len(set(distance.argmin(axis=1))) > 15
