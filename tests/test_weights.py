"""OneHotCategorical(logits, weights=...): choice without replacement, under every estimator."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.estimates import assert_unbiased, keys, oracles

import gradest as ge
from gradest import distributions as dists

VALUES = jnp.array([1.0, 3.0, -1.0, 0.5])
LOGITS = jnp.array([0.3, -0.2, 0.1, 0.5])


def chosen(logits, draw, number, mask):
    """The sum of `number` rows, each drawn from what is left."""
    left, total = jnp.ones_like(logits), jnp.zeros_like(logits)
    for _ in range(number):
        row = draw(mask(logits, left))
        left, total = left * (1 - row), total + row
    return total


def cost(total):
    return jnp.sum(total * VALUES[: total.shape[-1]]) ** 2


def by_weights(logits, left):
    return dists.OneHotCategorical(logits, weights=left)


def by_comparison(logits, left):
    return dists.OneHotCategorical(jnp.where(left < 0.5, -jnp.inf, logits))


def loss(sampler, number, mask=by_weights):
    @ge.expectation
    def program(logits, key):
        each = iter(jax.random.split(key, number))
        return cost(chosen(logits, lambda dist: sampler(next(each), dist), number, mask))

    return program


def exact(logits, number):
    """By the sum over all sequences of different categories."""
    p = jax.nn.softmax(logits)
    total = 0.0
    for sequence in itertools.permutations(range(len(logits)), number):
        probability, left = 1.0, 1.0
        for k in sequence:
            probability, left = probability * p[k] / left, left - p[k]
        total += probability * cost(jnp.eye(len(logits))[jnp.array(sequence)].sum(0))
    return total


def gradients(sampler, number, size, num, mask=by_weights):
    gradient = jax.grad(loss(sampler, number, mask))
    batched = lambda keys: jax.lax.map(lambda k: gradient(LOGITS[:size], k), keys, batch_size=8_192)
    return jax.jit(batched)(keys(num))


SAMPLERS = {
    "rebar": ge.rebar,
    "rebar, independent": functools.partial(ge.rebar, coupled=False),
    "rebar, nested": functools.partial(ge.rebar, nested=True),
    "muprop": ge.muprop,
    "score_function": ge.score_function,
    "disarm": ge.disarm,
    "relax": lambda: ge.relax(lambda w, x: w * jnp.sum(x * VALUES[:3]) ** 2, 0.8),
    "unordered_set": lambda: ge.unordered_set(2),
    "sum_and_sample": ge.sum_and_sample,
    "measure_valued": ge.measure_valued,
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", SAMPLERS)
def test_two_of_three(name):
    g, want = gradients(SAMPLERS[name](), 2, 3, 60_000), jax.grad(exact)(LOGITS[:3], 2)
    assert_unbiased(g, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * g, want)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["rebar", "muprop"])
def test_three_of_four(name):
    g, want = gradients(SAMPLERS[name](), 3, 4, 150_000), jax.grad(exact)(LOGITS, 3)
    assert_unbiased(g, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * g, want)


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore::gradest.UnestimatedGradientWarning")
def test_a_comparison_is_found_out():
    """The mask that everybody writes first is wrong at relaxed draws."""
    g = gradients(ge.rebar(), 2, 3, 60_000, by_comparison)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased(g, jax.grad(exact)(LOGITS[:3], 2))


@pytest.mark.parametrize(
    "mask",
    [
        by_comparison,
        lambda l, left: dists.OneHotCategorical(jnp.where(left < 1, -jnp.inf, l)),
        lambda l, left: dists.OneHotCategorical(l + jnp.where(left > 0, 0.0, -jnp.inf)),
        lambda l, left: dists.OneHotCategorical(l - 1e9 * (1 - left)),
    ],
    ids=["comparison", "never met between outcomes", "added", "large constant"],
)
def test_other_masks_warn_at_relaxed_points(mask):
    gradient = jax.grad(loss(ge.rebar(), 2, mask))
    with pytest.warns(
        ge.UnestimatedGradientWarning, match=r"rebar: what follows the draw.*jumps at"
    ):
        jax.eval_shape(gradient, LOGITS, jax.random.key(0))
    silent = jax.grad(loss(ge.rebar(), 2))
    assert jax.eval_shape(silent, LOGITS, jax.random.key(0)).shape == LOGITS.shape


def test_enumeration_is_exact():
    g = jax.jit(jax.grad(loss(ge.enumeration(), 3)))(LOGITS, jax.random.key(0))
    np.testing.assert_allclose(g, jax.grad(exact)(LOGITS, 3), rtol=1e-4, atol=1e-5)


def test_probabilities_and_their_derivatives():
    w, l = jnp.array([0.5, 0.0, 2.0]), LOGITS[:3]
    log_p = lambda l, w: by_weights(l, w).log_prob(jnp.eye(3))
    p = w * jnp.exp(l)
    np.testing.assert_allclose(jnp.exp(log_p(l, w)), p / p.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        dists.OneHotCategorical(probs=p).probs, by_weights(l, w).probs, rtol=1e-6
    )
    plain = lambda l, w: jax.nn.log_softmax(l + jnp.log(w))
    got = jax.jacobian(log_p, (0, 1))(l, jnp.array([0.5, 0.1, 2.0]))
    right = jax.jacobian(plain, (0, 1))(l, jnp.array([0.5, 0.1, 2.0]))
    for x, y in zip(got, right, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for x in jax.jacobian(lambda l, w: by_weights(l, w).probs, (0, 1))(l, w):
        assert np.all(np.isfinite(x))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_derivatives_end_below_the_smallest_weight(dtype):
    w = jnp.array([1.0, 1e-7, 0.0], dtype)
    g = jax.grad(lambda w: by_weights(jnp.zeros(3, dtype), w).log_prob(jnp.eye(3, dtype=dtype)[1]))(
        w
    )
    assert np.all(np.isfinite(g))
    assert g[1] == g[2] == 0


def test_negative_weights():
    with pytest.raises(
        ValueError, match=r"weights: expected finite numbers that are not negative, got -0\.5"
    ):
        by_weights(jnp.zeros(2), jnp.array([1.0, -0.5]))
    traced = jax.jit(lambda w: by_weights(jnp.zeros(2), w).probs)
    np.testing.assert_array_equal(traced(jnp.array([1.0, -0.5])), [1, 0])


def test_a_row_of_zeros():
    w = jnp.array([[0.0, 0.0], [1.0, 1.0]])

    def log_p(l, w):
        dist = dists.OneHotCategorical(l, weights=w)
        x = dist.sample(jax.random.key(0))
        return jax.lax.stop_gradient(x), dist.log_prob(jax.lax.stop_gradient(x))

    x, value = jax.jit(log_p)(jnp.zeros((2, 2)), w)
    np.testing.assert_array_equal(x[0], [1, 0])
    assert value[0] == 0
    for g in jax.jit(jax.grad(lambda l, w: log_p(l, w)[1][0], (0, 1)))(jnp.zeros((2, 2)), w):
        np.testing.assert_array_equal(g, 0)
    for sampler in (ge.rebar(), ge.muprop(), ge.disarm(), ge.enumeration(), ge.score_function()):
        loss = lambda l, s=sampler: s.expect(
            jax.random.key(1), dists.OneHotCategorical(l, weights=w[:1]), lambda z: jnp.sum(z[:, 0])
        )
        value, g = jax.jit(jax.value_and_grad(loss))(jnp.zeros((1, 2)))
        assert value == 1
        np.testing.assert_array_equal(g, 0)


def test_shapes():
    rows = dists.OneHotCategorical(jnp.zeros(3), weights=jnp.ones((2, 3)))
    assert rows.shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"weights: expected a shape that broadcasts .* \(3,\), got \(2,\)"
    ):
        dists.OneHotCategorical(jnp.zeros(3), weights=jnp.ones(2))
    assert oracles.expectation(by_weights(LOGITS, jnp.ones(4)), jnp.sum) == pytest.approx(1)
