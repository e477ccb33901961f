"""Variances with a closed form, or known by quadrature: an estimator of another one is wrong.

The toy problem is E[(b - t)^2] with b ~ Bernoulli(p): f(1) = (1 - t)^2, f(0) = t^2, and the
gradient with respect to the log-odds p q (1 - 2 t), q = 1 - p.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.estimates import assert_unbiased, assert_variance, compiled, oracles

import gradest as ge
from gradest import distributions as dists

pytestmark = pytest.mark.usefixtures("x64")

NUM_KEYS = 500_000


def gradients(loss: Any, params: Any, num: int = NUM_KEYS) -> Any:
    """Gradients of `loss(params, key)` at `num` keys."""
    keys = jax.random.split(jax.random.key(0), num)
    return compiled(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, keys)


def toy(sampler: ge.Sampler, p: float, t: float, num: int = NUM_KEYS) -> jax.Array:
    """Gradients with respect to the log-odds."""
    loss = lambda l, key: sampler.expect(key, dists.Bernoulli(l), lambda b: (b - t) ** 2)
    return gradients(loss, math.log(p / (1 - p)), num)


# ---- Bernoulli -----------------------------------------------------------------------------

P, T = 0.3, 0.45
PQ, D = P * (1 - P), 1 - 2 * T
F1, F0 = (1 - T) ** 2, T**2
MEAN = P * F1 + (1 - P) * F0
REINFORCE = PQ * ((1 - P) * F1 + P * F0) ** 2


def leave_one_out_variance(n: int) -> float:
    return D**2 * PQ * ((1 - 3 * PQ) / n - PQ * (n - 3) / (n * (n - 1)))


TOY = {
    "score_function": (lambda: ge.score_function(), REINFORCE),
    "samples": (lambda: ge.score_function(num_samples=4), REINFORCE / 4),
    "mean": (lambda: ge.score_function(baseline=MEAN), PQ * (1 - 2 * P) ** 2 * D**2),
    "leave_one_out 2": (
        lambda: ge.score_function(num_samples=2, baseline="leave_one_out"),
        leave_one_out_variance(2),
    ),
    "leave_one_out 4": (
        lambda: ge.score_function(num_samples=4, baseline="leave_one_out"),
        leave_one_out_variance(4),
    ),
    "straight_through": (lambda: ge.straight_through(), 4 * PQ**3),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", TOY)
def test_closed_form(name):
    make, variance = TOY[name]
    samples = toy(make(), P, T)
    assert_variance(samples, variance)
    bias = PQ * (2 * P - 1) if name == "straight_through" else 0.0
    assert_unbiased(samples, PQ * D + bias)


# Right on average, and of the wrong variance.
NOT_AS_GOOD = {
    "score_function": lambda: ge.score_function(baseline=0.02),
    "samples": lambda: ge.score_function(num_samples=3),
    "mean": lambda: ge.score_function(baseline=MEAN + 0.01),
    "leave_one_out 2": lambda: ge.score_function(num_samples=2, baseline=MEAN),
    "leave_one_out 4": lambda: ge.score_function(num_samples=4, baseline=MEAN),
    "straight_through": lambda: ge.st_gumbel_softmax(3.0),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", TOY)
def test_closed_form_finds_out_another_variance(name):
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_variance(toy(NOT_AS_GOOD[name](), P, T), TOY[name][1])


@pytest.mark.statistical
@pytest.mark.parametrize("num_samples", [2, 5])
@pytest.mark.parametrize("name", ["OneHotCategorical", "Normal"])
def test_leave_one_out_of_any_distribution(name, num_samples):
    """mu22 / K - (K - 2) g^2 / (K (K - 1)) + Var f Var s / (K (K - 1)), s the score."""
    dist = {
        "OneHotCategorical": dists.OneHotCategorical(jnp.array([0.3, -0.5, 0.8])),
        "Normal": dists.Normal(jnp.array(0.4), jnp.array(0.7)),
    }[name]
    cost = lambda x: jnp.tanh(jnp.sum(x * jnp.arange(1.0, x.size + 1).reshape(x.shape)) - 0.5)
    score = jax.grad(lambda dist, x: jnp.sum(dist.log_prob(x)))
    # Of the first parameter: logits or mean.
    of_first = lambda tree: jax.tree.leaves(tree)[0]
    mean = lambda function: compiled(jax.vmap(function))(points.values).T @ points.weights
    points = oracles.points(dist)
    f = mean(cost)
    g = mean(lambda x: cost(x) * of_first(score(dist, x)))
    mu22 = mean(lambda x: (cost(x) - f) ** 2 * of_first(score(dist, x)) ** 2)
    var_f = mean(lambda x: (cost(x) - f) ** 2)
    var_s = mean(lambda x: of_first(score(dist, x)) ** 2)
    k = num_samples
    variance = mu22 / k - (k - 2) * g**2 / (k * (k - 1)) + var_f * var_s / (k * (k - 1))

    def samples(baseline):
        sampler = ge.score_function(num_samples=k, baseline=baseline)
        loss = lambda dist, key: sampler.expect(key, dist, cost)
        return of_first(gradients(loss, dist, 100_000))

    assert_variance(samples("leave_one_out"), variance)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_variance(samples(float(f)), variance)


# ---- REBAR ---------------------------------------------------------------------------------
#
# The reference: Tucker 2017, eq. 5 and appendix C, differentiated by JAX, at given noise.


def rebar_reference(p: float, t: float, z: jax.Array, odds: jax.Array | None) -> jax.Array:
    """The estimate of d/dl at temperature 0.5 and eta 1.

    Args:
      z: noisy log-odds.
      odds: v / (1 - v) of the uniform noise v of the conditional draw; None if it has the value
        of z.
    """
    l = math.log(p / (1 - p))
    b = (z > 0).astype(z.dtype)
    f = lambda y: (y - t) ** 2
    c = lambda z: f(jax.nn.sigmoid(z / 0.5))
    if odds is None:
        odds = jnp.expm1(jnp.abs(z)) * jnp.where(b > 0, 1 - p, p)

    def conditional(l):
        p = jax.nn.sigmoid(l)
        return jnp.where(b > 0, jnp.log1p(odds / (1 - p)), -jnp.log1p(odds / p))

    given_b, slope = jax.value_and_grad(conditional)(l)
    through = jax.grad(c)(z) - jax.grad(c)(given_b) * slope
    return (f(b) - c(given_b)) * (b - p) + through


def logistic_rule(low: float, high: float, mean: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Gauss-Legendre nodes in [low, high], and weights by the logistic density around `mean`."""
    nodes, w = oracles.gauss_legendre(low, high, 12, 40)
    tail = np.exp(-np.abs(nodes - mean))
    return jnp.asarray(nodes), jnp.asarray(w * tail / (1 + tail) ** 2)


@functools.cache
def rebar_moments(p: float, t: float, coupled: bool) -> tuple[float, float]:
    """Mean and variance by quadrature over the noise, on both sides of the jump at z = 0."""
    l = math.log(p / (1 - p))
    halves = [logistic_rule(-45.0, 0.0, l), logistic_rule(0.0, 45.0, l)]
    z, w = (jnp.concatenate(parts) for parts in zip(*halves, strict=True))
    estimate = functools.partial(rebar_reference, p, t)
    if coupled:
        g = compiled(jax.vmap(lambda z: estimate(z, None)))(z)
    else:
        v, w_v = logistic_rule(-45.0, 45.0)
        g = compiled(jax.vmap(lambda z: jax.vmap(lambda v: estimate(z, jnp.exp(v)))(v)))(z)
        w = w[:, None] * w_v[None, :]
    mean = jnp.sum(w * g)
    return float(mean), float(jnp.sum(w * g**2) - mean**2)


REBAR = {
    (0.5, 0.499): (2.2290e-2, 2.3502e-2),
    (0.5, 0.45): (2.2653e-2, 2.4067e-2),
    (0.25, 0.45): (2.0114e-2, 2.0511e-2),
}


@pytest.mark.statistical
@pytest.mark.parametrize("coupled", [False, True], ids=["independent", "coupled"])
@pytest.mark.parametrize(("p", "t"), REBAR)
def test_rebar(p, t, coupled):
    mean, variance = rebar_moments(p, t, coupled)
    np.testing.assert_allclose(mean, p * (1 - p) * (1 - 2 * t), rtol=1e-10)
    np.testing.assert_allclose(variance, REBAR[p, t][coupled], atol=5e-7)
    assert_variance(toy(ge.rebar(0.5, coupled=coupled), p, t), variance)


@pytest.mark.statistical
@pytest.mark.parametrize("coupled", [False, True], ids=["independent", "coupled"])
def test_rebar_finds_out_another_variance(coupled):
    _, variance = rebar_moments(0.5, 0.45, coupled)
    for other in (ge.rebar(0.5, coupled=not coupled), ge.rebar(0.5, coupled=coupled, eta=0.95)):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_variance(toy(other, 0.5, 0.45), variance)


# ---- Gumbel-softmax: its mean, which is not the gradient's, 0.025 --------------------------


@pytest.mark.statistical
@pytest.mark.parametrize(("temperature", "mean"), [(0.1, 0.024799), (0.5, 0.02146), (1.0, 1 / 60)])
def test_gumbel_softmax_mean(temperature, mean):
    z, w = logistic_rule(-45.0, 45.0)
    cost = lambda l, z: (jax.nn.sigmoid((l + z) / temperature) - 0.45) ** 2
    slopes = compiled(jax.vmap(jax.grad(cost), in_axes=(None, 0)))(0.0, z)
    by_quadrature = jnp.sum(w * slopes)
    np.testing.assert_allclose(by_quadrature, mean, atol=5e-7)
    assert_unbiased(toy(ge.gumbel_softmax(temperature), 0.5, 0.45), mean)


@pytest.mark.statistical
def test_gumbel_softmax_mean_finds_out_another_temperature():
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(toy(ge.gumbel_softmax(0.6), 0.5, 0.45), 0.02146)


# ---- Continuous variables ------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pinned:
    """A distribution whose noise is given, so that an estimator is a function of the noise."""

    dist: Any
    noise: jax.Array

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        del key, shape
        if isinstance(self.dist, dists.Exponential):
            return self.noise / self.dist.rate
        return self.dist.loc + self.dist.scale * self.noise

    def log_prob(self, x: jax.Array) -> jax.Array:
        return self.dist.log_prob(x)


MU, S, K, RATE = 0.9, 0.7, 0.4, 1.3
A = MU - K


@dataclasses.dataclass(frozen=True)
class Case:
    """An estimator's variances for a distribution; `rule` integrates over its noise."""

    make: Any
    dist: Any
    cost: Any
    rule: Any
    mean: dict[str, float]
    variance: dict[str, float]
    num_keys: int = NUM_KEYS


def _case(make: Any, power: int, variance: dict[str, float], num_keys: int = NUM_KEYS) -> Case:
    if "rate" in variance:
        mean = {"rate": -math.factorial(power) * power / RATE ** (power + 1)}
        dist, cost = lambda: dists.Exponential(RATE), lambda x: x**power
        rule = np.polynomial.laguerre.laggauss(40)
    else:
        mean = {"loc": 2 * A, "scale": 2 * S}
        dist, cost = lambda: dists.Normal(MU, S), lambda x: (x - K) ** power
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        rule = nodes, weights / weights.sum()
    return Case(make, dist, cost, rule, mean, variance, num_keys)


CONTINUOUS = {
    "Normal score_function": _case(
        ge.score_function,
        2,
        {
            "loc": A**4 / S**2 + 14 * A**2 + 15 * S**2,
            "scale": 2 * A**4 / S**2 + 60 * A**2 + 74 * S**2,
        },
        2_000_000,
    ),
    "Normal score_function, the best baseline for loc": _case(
        lambda: ge.score_function(baseline=A**2 + 3 * S**2),
        2,
        {"loc": 8 * A**2 + 6 * S**2, "scale": 40 * A**2 + 32 * S**2},
        2_000_000,
    ),
    "Normal reparameterize": _case(
        ge.reparameterize, 2, {"loc": 4 * S**2, "scale": 4 * A**2 + 8 * S**2}
    ),
    "Exponential score_function": _case(ge.score_function, 1, {"rate": 13 / RATE**4}, 1_000_000),
    "Exponential reparameterize": _case(ge.reparameterize, 1, {"rate": 1 / RATE**4}),
    "Exponential squared score_function": _case(
        ge.score_function, 2, {"rate": 488 / RATE**6}, 5_000_000
    ),
    "Exponential squared reparameterize": _case(ge.reparameterize, 2, {"rate": 80 / RATE**6}),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_by_quadrature(name):
    case = CONTINUOUS[name]
    noise, w = (jnp.asarray(x) for x in case.rule)
    key = jax.random.key(0)
    loss = lambda dist, noise: case.make().expect(key, Pinned(dist, noise), case.cost)
    g = compiled(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(case.dist(), noise)
    for parameter, variance in case.variance.items():
        estimates = getattr(g, parameter)
        mean = jnp.sum(w * estimates)
        np.testing.assert_allclose(mean, case.mean[parameter], rtol=1e-9)
        np.testing.assert_allclose(jnp.sum(w * estimates**2) - mean**2, variance, rtol=1e-9)


def continuous_samples(case: Case) -> dict[str, jax.Array]:
    loss = lambda dist, key: case.make().expect(key, dist, case.cost)
    g = gradients(loss, case.dist(), case.num_keys)
    return {parameter: getattr(g, parameter) for parameter in case.variance}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous(name):
    case = CONTINUOUS[name]
    samples = continuous_samples(case)
    assert_unbiased(samples, case.mean)
    assert_variance(samples, case.variance)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Normal", "Exponential"])
def test_continuous_finds_out_another_variance(name):
    """A baseline leaves the mean and changes the variance."""
    case = CONTINUOUS[f"{name} score_function"]
    case = dataclasses.replace(case, make=lambda: ge.score_function(baseline=0.2))
    samples = continuous_samples(case)
    assert_unbiased(samples, case.mean)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_variance(samples, case.variance)
