"""score_function's "optimal" baseline: exact for counts of ones, its limit for Normal draws."""

import dataclasses
import functools
import math

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
    of_dist,
    oracles,
    toy,
)

import gradest as ge
from gradest import distributions as dists
from gradest.estimators import score_function as module

NUM_KEYS = 100_000
optimal = functools.partial(ge.score_function, baseline="optimal")
four = functools.partial(optimal, num_samples=4)


def counted(n: int, p: float, t: float, include_own: bool = False) -> tuple[float, float]:
    """Mean and variance for E[(b - t)^2]: the estimate depends on the number of ones alone."""
    q, f = 1 - p, np.array([t**2, (1 - t) ** 2])
    score = np.array([-p, q])
    mean = second = 0.0
    for ones in range(n + 1):
        counts = np.array([n - ones, ones])
        g = 0.0
        for b in (0, 1):
            if counts[b]:
                others = counts - (0 if include_own else np.eye(2)[b])
                best = np.sum(others * f * score**2) / np.sum(others * score**2)
                g += counts[b] * (f[b] - best) * score[b] / n
        prob = math.comb(n, ones) * p**ones * q ** (n - ones)
        mean, second = mean + prob * g, second + prob * g**2
    return mean, second - mean**2


@pytest.mark.statistical
@pytest.mark.parametrize("n", [2, 4, 10])
@pytest.mark.usefixtures("x64")
def test_one_bernoulli(n):
    p, t = 0.3, 0.2
    mean, variance = counted(n, p, t)
    np.testing.assert_allclose(mean, p * (1 - p) * (1 - 2 * t))
    samples = toy(optimal(num_samples=n), p, t, NUM_KEYS)
    assert_unbiased(samples, mean)
    assert_variance(samples, variance)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, variance)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(samples, counted(n, p, t, include_own=True)[0])


@pytest.mark.usefixtures("x64")
def test_two_samples_are_leave_one_out():
    dist = dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]]))
    both = [
        of_dist(ge.score_function(num_samples=2, baseline=kind), cost, dist, 50).logits
        for kind in ("optimal", "leave_one_out")
    ]
    np.testing.assert_allclose(*both, atol=1e-12)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_normal_with_many_samples():
    """K times the variance falls to that of the best baseline, 8 a^2 + 6 s^2."""
    a, s, n = 0.8, 0.7, 300
    samples = of_dist(
        optimal(num_samples=n), lambda x: (x - 0.5) ** 2, dists.Normal(0.5 + a, s), 8000
    )
    assert_unbiased(samples.loc, 2 * a)
    assert_unbiased(samples.scale, 2 * s)
    best, none = 8 * a**2 + 6 * s**2, a**4 / s**2 + 14 * a**2 + 15 * s**2
    assert_variance(math.sqrt(n) * samples.loc, best)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(math.sqrt(n) * samples.loc, 0.9 * best)
    # Neither no baseline nor the mean, with E[(f - E f)^2 s^2] - g^2 = 10 a^2 + 10 s^2 - 4 a^2.
    assert best < min(none, 6 * a**2 + 10 * s**2)


def cost(x):
    s = jnp.sum(coefficients(x) * x)
    return (s - 0.7) ** 2 + jnp.tanh(s) + x.reshape(-1)[0] * x.reshape(-1)[-1]


DISTS = {
    "Bernoulli": dists.Bernoulli(jnp.array([0.4, -0.7, 0.9])),
    "OneHotCategorical": dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])),
    "Categorical": dists.Categorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])),
    "Normal": dists.Normal(jnp.array([0.5, -0.3]), jnp.array([0.7, 0.4])),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", DISTS)
def test_several_elements(name):
    dist = DISTS[name]
    of = cost if name != "Categorical" else lambda x: cost(x.astype(float) - 0.4)
    want = exact(dist, of)
    samples = of_dist(four(), of, dist, NUM_KEYS)
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, samples), want)


@pytest.mark.statistical
def test_own_sample_in_the_baseline(monkeypatch):
    everything = lambda x: jnp.broadcast_to(jnp.sum(x, axis=0), x.shape)
    monkeypatch.setattr(module, "_sum_of_others", everything)
    samples = of_dist(four(), cost, DISTS["Bernoulli"], NUM_KEYS)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(samples, exact(DISTS["Bernoulli"], cost))


@pytest.mark.statistical
def test_value_is_the_mean_cost():
    dist, w = DISTS["Bernoulli"], jnp.array([0.9, -0.6, 0.5])
    loss = lambda w, key: four().expect(key, dist, lambda x: jnp.tanh(jnp.sum(w * x)))
    exactly = lambda w: oracles.expectation(dist, lambda x: jnp.tanh(jnp.sum(w * x)))
    run = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))
    value, g = run(w, estimates.keys(50_000))
    want = jax.jit(jax.value_and_grad(exactly))(w)
    assert_unbiased((value, g), want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased((1.05 * value, g), want)


def test_one_score_that_dwarfs_the_others():
    """What the others say is not lost beside it."""
    x = jnp.array([1e-6, 1e6, 2e-6, 0.0])
    others = module._sum_of_others(x)
    np.testing.assert_allclose(others, [1e6, 3e-6, 1e6, 1e6], rtol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Successes:
    """Of `count` trials, an integer parameter."""

    count: jax.Array
    logits: jax.Array

    def sample(self, key, shape=()):
        trial = jax.random.uniform(key, (5,)) < jax.nn.sigmoid(self.logits)
        return jnp.sum(jnp.where(jnp.arange(5) < self.count, trial, False)).astype(float)

    def log_prob(self, x):
        log_p, log_q = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
        return x * log_p + (self.count.astype(float) - x) * log_q


@pytest.mark.statistical
def test_distribution_with_an_integer_parameter():
    n, p, t = 4, 0.3, 2.2

    def loss(logits, key):
        return four().expect(key, Successes(jnp.int32(n), logits), lambda x: (x - t) ** 2)

    # E (x - t)^2 = n p q + (n p - t)^2.
    want = p * (1 - p) * (n * (1 - 2 * p) + 2 * (n * p - t) * n)
    samples = estimates.gradients(loss, math.log(p / (1 - p)))
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


# ---- The contract --------------------------------------------------------------------------

CHAINS = {"optimal, rebar": (four, ge.rebar), "rebar, optimal": (ge.rebar, four)}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHAINS)
def test_dependent_sites(name):
    chain = estimates.chain(*CHAINS[name])
    samples = estimates.gradients(chain, estimates.chain_params(), 50_000)
    assert_unbiased(samples, estimates.exact_chain())
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, samples), estimates.exact_chain())


@pytest.mark.statistical
def test_lanes():
    assert_unbiased(*estimates.lanes(four))


@pytest.mark.statistical
def test_mixed_second_derivatives():
    samples, want = estimates.mixed(four())
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


def test_second_derivatives_raise():
    # Raised while it is traced: nothing need run.
    jax.eval_shape(functools.partial(estimates.assert_first_order, four()), DISTS["Bernoulli"])


def test_differentiated_draw_raises():
    jax.eval_shape(functools.partial(estimates.assert_unestimated, four()), DISTS["Bernoulli"])


def test_forms_agree():
    estimates.assert_forms_agree(four, dists.Bernoulli(jnp.array([0.4, -0.7])))


def test_extremes():
    estimates.assert_robust(four)


def test_options():
    expected = r'num_samples: expected an integer of at least 2 with baseline="optimal", got 1'
    with pytest.raises(ValueError, match=expected):
        optimal()
    with pytest.raises(ValueError, match=r"baseline: expected one of \['leave_one_out', 'optimal'"):
        ge.score_function(num_samples=3, baseline="best")  # pyright: ignore[reportArgumentType]
