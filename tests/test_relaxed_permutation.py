"""Gumbel-Sinkhorn: relaxed permutations, the hard ones near them, and a network that sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.test_util import check_grads
from support.cases import keys

import gradest as ge
from gradest.distributions import ExpRelaxedOneHotCategorical, RelaxedPermutation

FORBIDDEN = np.array(
    [[0.5, -np.inf, 0.8, 0.1], [-0.2, 2.0, 0.3, -np.inf], [1.0, 0.0, -1.0, 0.4], [0, 0, 0.2, 1]]
)


def balanced(z, num):
    """Rows and columns are divided by their sums, by turns, and not in logarithms."""
    x = np.exp(z)
    for _ in range(num):
        x = x / x.sum(axis=-1, keepdims=True)
        x = x / x.sum(axis=-2, keepdims=True)
    return x


def noise_of(dist, key):
    """What is added to the logits, up to a constant in each row: as one-hot rows have it."""
    rows = ExpRelaxedOneHotCategorical(1.0, jnp.zeros_like(dist.logits))
    return np.asarray(rows.sample(key), float)


def test_draws_are_balanced_noise(x64):
    dist, key = RelaxedPermutation(FORBIDDEN, 0.7, 15), jax.random.key(0)
    want = balanced((FORBIDDEN + noise_of(dist, key)) / 0.7, 15)
    x = dist.sample(key)
    np.testing.assert_allclose(x, want, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(x)[np.isneginf(FORBIDDEN)], 0)
    off = max(abs(want.sum(axis) - 1).max() for axis in (0, 1))
    np.testing.assert_allclose(dist.marginal_error(x), off, rtol=1e-6)


def test_errors_of_rows_fall_with_iterations():
    of = lambda num: RelaxedPermutation(FORBIDDEN, 0.7, num)
    errors = [of(n).marginal_error(of(n).sample(jax.random.key(0), (20,))) for n in (1, 10, 100)]
    assert (np.diff(np.median(errors, axis=1)) < 0).all()
    assert np.max(errors[-1]) < 0.05
    np.testing.assert_allclose(of(1).sample(jax.random.key(0)).sum(axis=0), 1, rtol=1e-5)


def test_derivatives_are_those_of_the_iterations(x64):
    """Against finite differences, to the second order, in a batch with a temperature for each."""
    logits = jnp.stack([jnp.asarray(FORBIDDEN), jnp.cos(jnp.arange(16.0)).reshape(4, 4)])
    possible = jnp.isfinite(logits)
    weights = jnp.sin(jnp.arange(16.0)).reshape(4, 4)

    @jax.jit
    def cost(moves, temperature):
        moved = jnp.where(possible, logits + moves, -jnp.inf)
        x = RelaxedPermutation(moved, temperature, 5).sample(jax.random.key(0))
        return jnp.sum(jnp.sum(weights[None] * x, axis=(-2, -1)) ** 2)

    check_grads(cost, (jnp.zeros((2, 4, 4)), jnp.array([0.6, 1.1])), order=2, modes=["rev"])


@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-10])
def test_low_temperatures(temperature):
    """Gradients are finite, and what is forbidden has none; draws are close to matchings."""
    weights = jnp.arange(16.0).reshape(4, 4)

    def cost(logits, temperature, key):
        x = RelaxedPermutation(logits, temperature, 40).sample(key)
        return jnp.sum(weights * x) ** 2, x

    gradient = jax.vmap(jax.grad(cost, (0, 1), has_aux=True), (None, None, 0))
    logits = jnp.asarray(FORBIDDEN, jnp.float32)
    (of_logits, of_temperature), x = jax.jit(gradient)(logits, temperature, keys(20))
    assert np.isfinite(of_logits).all()
    assert np.isfinite(of_temperature).all()
    np.testing.assert_array_equal(np.asarray(of_logits)[:, np.isneginf(FORBIDDEN)], 0)
    assert np.isfinite(x).all()


def test_hard_permutations_are_matchings(x64):
    """Of the noisy logits, for a draw; of the logits, for `matching`; both in batches."""
    dist = RelaxedPermutation(np.stack([FORBIDDEN, FORBIDDEN.T]), 0.5, 30)

    def best(scores):
        scores = np.where(np.isfinite(scores), scores, -1e6)
        rows, columns = scipy.optimize.linear_sum_assignment(scores, maximize=True)
        return np.eye(4)[columns[np.argsort(rows)]]

    @jax.jit
    def run(dist, keys):
        return jax.vmap(lambda key: dist.harden(dist.sample(key)))(keys), dist.matching()

    hard, without_noise = run(dist, keys(10))
    for row, key in zip(hard, keys(10), strict=True):
        for got, scores in zip(row, dist.logits + noise_of(dist, key), strict=True):
            np.testing.assert_array_equal(got, best(scores))
    for got, scores in zip(without_noise, dist.logits, strict=True):
        np.testing.assert_array_equal(got, best(scores))


def test_a_hard_permutation_refuses_its_derivative():
    """But not the relaxed draw's in its place."""
    key, items = jax.random.key(0), jnp.arange(3.0)

    def loss(logits, straight_through):
        dist = RelaxedPermutation(logits, 0.5)
        x = ge.reparameterize()(key, dist)
        hard = dist.harden(x)
        if straight_through:
            hard = x + jax.lax.stop_gradient(hard - x)
        return jnp.sum((hard @ items)[:2] ** 2)

    for wrap in (lambda f: f, ge.expectation):
        gradient = jax.jit(jax.grad(wrap(lambda l: loss(l, True))))(jnp.zeros((3, 3)))
        assert np.any(np.asarray(gradient) != 0)
        with pytest.raises(ge.UnestimatedGradientError):
            jax.eval_shape(jax.grad(wrap(lambda l: loss(l, False))), jnp.zeros((3, 3)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    """Everything is computed in single precision and rounded once."""
    narrow = RelaxedPermutation(jnp.asarray(FORBIDDEN, dtype), jnp.asarray(0.3, dtype))
    wide = jax.tree.map(lambda l: l.astype(jnp.float32), narrow)
    key = jax.random.key(0)
    for got, want in (
        (narrow.sample(key), wide.sample(key)),
        (narrow.matching(), wide.matching()),
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want.astype(dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("sampler", [ge.score_function(), ge.vimco(2), ge.dreg(2)])
def test_a_score_is_refused_with_the_reason(sampler):
    dist = RelaxedPermutation(jnp.zeros((2, 2)))
    with pytest.raises(TypeError, match=f"^{sampler.name}: .*not tractable.*PlackettLuce"):
        sampler.expect(jax.random.key(0), dist, jnp.sum)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelaxedPermutation(jnp.zeros((2, 3))), "logits: expected square matrices"),
        (lambda: RelaxedPermutation(jnp.zeros(3)), "logits: expected square matrices"),
        (lambda: RelaxedPermutation(np.array([[0, np.inf], [0, 0]])), "numbers below infinity"),
        (lambda: RelaxedPermutation(np.array([[0, 0], [-np.inf] * 2])), r"a place \(a row\)"),
        (lambda: RelaxedPermutation(np.array([[0, -np.inf]] * 2)), r"an item \(a column\)"),
        (lambda: RelaxedPermutation(jnp.zeros((2, 2)), 0.0), "temperature: expected finite"),
        (lambda: RelaxedPermutation(jnp.zeros((2, 2)), jnp.ones(3)[:, None].repeat(2, 1)[:2]), ""),
        (lambda: RelaxedPermutation(jnp.zeros((4, 2, 2)), jnp.ones(3)), "temperature: expected a"),
        (lambda: RelaxedPermutation(jnp.zeros((2, 2)), 1.0, 0), "num_iterations: expected an int"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    if not message:
        assert make().shape == (2, 2, 2, 2)
        return
    with pytest.raises(ValueError, match=message):
        make()


def test_no_density_is_said():
    with pytest.raises(NotImplementedError, match=r"RelaxedPermutation\.log_prob: .*PlackettLuce"):
        RelaxedPermutation(jnp.zeros((2, 2))).log_prob(jnp.eye(2))


# ---- Sorting ---------------------------------------------------------------------------------

NUM = 6


def scores(params, numbers):
    """How well each number fits each place: a network of one number, the same for all."""
    hidden = jax.nn.relu(numbers[:, None] * params["in"][None] + params["bias"][None])
    return (hidden @ params["out"] + params["constant"][None]).T


@pytest.mark.slow
def test_a_network_learns_to_sort():
    """Mena et al. 2018, section 5.1: from lists and the same lists sorted, without their orders."""
    of_in, of_out, of_run = jax.random.split(jax.random.key(0), 3)
    params = {
        "in": jax.random.normal(of_in, (32,)),
        "bias": jnp.linspace(-1.0, 1.0, 32),
        "out": 0.1 * jax.random.normal(of_out, (32, NUM)),
        "constant": jnp.zeros(NUM),
    }
    optimizer = optax.adam(0.02)

    def loss(params, key):
        of_list, of_noise = jax.random.split(key)
        numbers = jax.random.uniform(of_list, (NUM,))
        order = ge.reparameterize()(of_noise, RelaxedPermutation(scores(params, numbers)))
        return jnp.sum((order @ numbers - jnp.sort(numbers)) ** 2)

    def step(state, key):
        params, moments = state
        batch = lambda params: jnp.mean(
            jax.vmap(loss, in_axes=(None, 0))(params, jax.random.split(key, 50))
        )
        updates, moments = optimizer.update(jax.grad(batch)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    def sorted_right(params):
        lists = jax.random.uniform(jax.random.key(1), (500, NUM))
        matched = jax.vmap(lambda x: RelaxedPermutation(scores(params, x)).matching() @ x)(lists)
        return np.mean(np.all(np.asarray(matched) == np.sort(lists, axis=1), axis=1))

    assert sorted_right(params) < 0.1
    state = (params, optimizer.init(params))
    train = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(of_run, 1500)))
    # As users have it, optax among them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (params, _), _ = train(state)
    assert sorted_right(params) > 0.95
