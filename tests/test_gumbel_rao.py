"""Gumbel-Rao: the mean of straight-through Gumbel-softmax, its variance part by part."""

import functools

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
    of_dist,
    oracles,
)

import gradest as ge
from gradest import distributions as dists

BITS = dists.Bernoulli(jnp.array([0.4, -0.7, 0.9]))
ROWS = dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]]))
DISTS = {"Bernoulli": BITS, "OneHotCategorical": ROWS}
MATRIX = np.exp(-2.0 * np.abs(np.subtract.outer(np.arange(3), np.arange(3))))
LOGITS = np.array([0.3, -0.5, 0.8])


def three_classes(x):
    """f = (D - 1/3)' Q (D - 1/3) with Q_ij = exp(-2 |i - j|)."""
    y = x - 1 / 3
    return y @ jnp.asarray(MATRIX, x.dtype) @ y


@functools.cache
def parts(temperature: float) -> tuple[np.ndarray, float, float]:
    """Mean of the gradient, tr E[Var(ST Gumbel-softmax | D)] and tr Var[its mean given D].

    By quadrature over the noise given D = b: z_i - z_b = -softplus(-d_i - l_i), with l normalised
    and d the differences of independent Gumbel variables.
    """
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum()
    d, weights = oracles.gumbel_differences(3)
    mean, second, within = np.zeros(3), 0.0, 0.0
    for b, p in enumerate(probs):
        distance = np.insert(d, b, 0.0, axis=1) + np.log(probs)
        z = -np.logaddexp(0.0, -distance)
        z[:, b] = 0.0
        y = np.exp(z / temperature) / np.exp(z / temperature).sum(axis=1, keepdims=True)
        ct = 2 * MATRIX @ (np.eye(3)[b] - 1 / 3)
        g = y * (ct - (y @ ct)[:, None]) / temperature
        of_b = weights @ g
        mean, second = mean + p * of_b, second + p * (of_b @ of_b)
        within += p * (weights @ np.sum((g - of_b) ** 2, axis=1))
    return mean, within, second - mean @ mean  # pyright: ignore[reportReturnType]


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_three_classes():
    """tr Var[GR_K] = E[tr Var(STGS | D)] / K + tr Var[GR], around the same mean for all K."""
    dist = dists.OneHotCategorical(jnp.asarray(LOGITS))
    mean, within, between = parts(0.5)
    assert within > 0.5 * between
    for k in (1, 3):
        sampler = ge.gumbel_rao(0.5, num_samples=k)
        samples = of_dist(sampler, three_classes, dist, 1_000_000).logits
        assert_unbiased(samples, mean)
        # Squared distances from the mean have the trace of the variance as theirs.
        distances = np.sum((np.asarray(samples) - mean) ** 2, axis=1)
        assert_unbiased(distances, np.array(within / k + between))
        with pytest.raises(AssertionError, match="mean is"):
            assert_unbiased(1.05 * samples, mean)
        with pytest.raises(AssertionError, match="mean is"):
            assert_unbiased(distances, np.array(within / (2 * k) + between))


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_one_sample_is_straight_through_gumbel_softmax():
    dist = dists.OneHotCategorical(jnp.asarray(LOGITS))
    mean, within, between = parts(0.5)
    samples = of_dist(ge.st_gumbel_softmax(0.5), three_classes, dist).logits
    assert_unbiased(np.sum((np.asarray(samples) - mean) ** 2, axis=1), np.array(within + between))


def cost(x):
    s = jnp.sum(coefficients(x) * x)
    return (s - 0.7) ** 2 + jnp.tanh(s) + x.reshape(-1)[0] * x.reshape(-1)[-1]


@pytest.mark.statistical
@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize("name", DISTS)
def test_mean_is_that_of_straight_through_gumbel_softmax(name, num_samples):
    dist = DISTS[name]
    own = lambda dist: oracles.st_gumbel_softmax(dist, cost, temperature=0.7)
    want = jax.jit(jax.grad(own))(dist).logits
    samples = of_dist(ge.gumbel_rao(0.7, num_samples=num_samples), cost, dist).logits
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


@pytest.mark.statistical
@pytest.mark.parametrize("name", DISTS)
def test_noise_that_is_not_given_the_draw(name, monkeypatch):
    sampler = broken.noise_not_given_the_draw(lambda: ge.gumbel_rao(0.7))(monkeypatch)
    dist = DISTS[name]
    own = lambda dist: oracles.st_gumbel_softmax(dist, cost, temperature=0.7)
    samples = of_dist(sampler, cost, dist).logits
    want = jax.jit(jax.grad(own))(dist).logits
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(samples, want)


@pytest.mark.statistical
def test_one_bernoulli_is_two_categories():
    b = of_dist(ge.gumbel_rao(0.7), lambda b: (b - 0.2) ** 2, dists.Bernoulli(0.8)).logits
    pair = dists.OneHotCategorical(jnp.array([0.8, 0.0]))
    x = of_dist(ge.gumbel_rao(0.7), lambda x: (x[0] - 0.2) ** 2, pair).logits[:, 0]
    assert_unbiased(x, np.asarray(b, float).mean())
    assert_variance(x, np.asarray(b, float).var())


# ---- The contract --------------------------------------------------------------------------


def test_with_another_site():
    """A pathwise draw before a cost-based one, whose distribution depends on it."""
    sampler = ge.gumbel_rao(0.8, num_samples=4)
    w = jnp.array([0.9, -0.6, 0.5, 0.7, -0.8])

    @ge.expectation
    def loss(logits, key):
        one, two = jax.random.split(key)
        x = sampler(one, dists.OneHotCategorical(logits))
        y = ge.enumeration()(two, dists.Bernoulli(2.0 * x[:2] - 1.0))
        return jnp.tanh(jnp.sum(w * jnp.concatenate([x, y])))

    def summed_out(logits, key):
        one, _ = jax.random.split(key)
        x = sampler(one, dists.OneHotCategorical(logits))
        inner = lambda y: jnp.tanh(jnp.sum(w * jnp.concatenate([x, y])))
        return oracles.expectation(dists.Bernoulli(2.0 * x[:2] - 1.0), inner)

    logits = jnp.array([0.3, -0.5, 0.8])
    np.testing.assert_allclose(
        estimates.gradients(loss, logits, 50),
        estimates.gradients(summed_out, logits, 50),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.statistical
def test_draws_are_exact():
    x = jax.vmap(lambda key: ge.gumbel_rao(0.5)(key, ROWS))(estimates.keys())
    assert set(np.unique(x)) == {0.0, 1.0}
    assert_unbiased(x, np.asarray(jax.nn.softmax(ROWS.logits)))


def test_vmapped_draws():
    logits = jnp.array([[0.4, -0.6], [0.2, 0.9]])
    keys = jax.random.split(jax.random.key(0), 2)
    loss = lambda logits, key: cost(ge.gumbel_rao(0.5)(key, dists.Bernoulli(logits)))
    gradient = jax.jit(jax.grad(loss))
    one_by_one = [gradient(l, k) for l, k in zip(logits, keys, strict=True)]
    together = jax.jit(jax.vmap(jax.grad(loss)))(logits, keys)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5)


def test_temperature_may_be_traced():
    gradient = lambda dist, t: jax.grad(
        lambda dist: cost(ge.gumbel_rao(t)(jax.random.key(0), dist))
    )(dist)
    traced, want = jax.jit(gradient)(ROWS, 0.7), gradient(ROWS, 0.7)
    np.testing.assert_allclose(traced.logits, want.logits, rtol=1e-4, atol=1e-6)


def test_options():
    with pytest.raises(ValueError, match=r"temperature: expected a finite number greater than 0"):
        ge.gumbel_rao(-1.0)
    with pytest.raises(ValueError, match=r"num_samples: expected an integer of at least 1, got 0"):
        ge.gumbel_rao(0.5, num_samples=0)
    with pytest.raises(TypeError, match=r"gumbel_rao: .* got Normal"):
        ge.gumbel_rao(0.5)(jax.random.key(0), dists.Normal(0.0, 1.0))
