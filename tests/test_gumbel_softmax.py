"""What is known of the Gumbel-softmax distribution, property by property."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit, softmax

import gradest as ge
from gradest.distributions import (
    Bernoulli,
    Categorical,
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
)

LOGITS = jnp.array([0.3, -0.7, 1.1, -0.2])
ODDS = jnp.array(0.6)
NUM_DRAWS = 200_000


@jax.jit
def _draws(keys, dist, temperature):
    return jax.vmap(lambda key: ge.gumbel_softmax(temperature)(key, dist))(keys)


def draws(temperature, dist, seed=0, num=NUM_DRAWS):
    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(_draws(keys, dist, jnp.float32(temperature)))


def chi_squared(counts, probs):
    """P-value of the test that the counts follow the probabilities, rare ones pooled."""
    counts, expected = np.ravel(counts), np.ravel(probs) / np.sum(probs) * np.sum(counts)
    order = np.argsort(expected)
    counts, expected = counts[order], expected[order]
    starts = np.append(0, np.flatnonzero(np.cumsum(expected) > 20)[1:])
    pool = lambda x: np.add.reduceat(x, starts)
    return scipy.stats.chisquare(pool(counts), pool(expected)).pvalue


def distance_to_corner(x):
    """For draws of one-hot rows, or of single bits."""
    return 1 - x.max(axis=-1) if x.ndim == 2 else np.minimum(x, 1 - x)


# ---- Temperature to 0 and to infinity --------------------------------------------------------


@pytest.mark.parametrize("dist", [OneHotCategorical(LOGITS), Bernoulli(ODDS)], ids=["rows", "bits"])
def test_one_hot_as_the_temperature_goes_to_zero(dist):
    """The share of draws away from a corner falls with the temperature, in proportion."""
    shares = []
    for temperature in (1e-1, 1e-2, 1e-3):
        x = draws(temperature, dist, num=50_000)
        shares.append(np.mean(distance_to_corner(x) > 0.01))
    assert 0.1 < shares[0] < 0.5
    np.testing.assert_allclose(shares[0] / shares[1], 10, rtol=0.15)
    np.testing.assert_allclose(shares[1] / shares[2], 10, rtol=0.3)
    x = draws(1e-20, dist, num=50_000)
    assert (distance_to_corner(x) == 0).all()


def argmax_p_value(logits, temperature):
    counts = np.bincount(
        draws(temperature, OneHotCategorical(logits)).argmax(axis=-1),
        minlength=len(logits),
    )
    return chi_squared(counts, softmax(np.float64(LOGITS)))


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1e-20, 1e-3, 0.5, 10.0])
def test_the_argmax_follows_the_categorical_distribution(temperature):
    assert argmax_p_value(LOGITS, temperature) > 1e-3


@pytest.mark.statistical
def test_an_argmax_of_other_logits_is_noticed():
    assert argmax_p_value(1.05 * LOGITS, 1e-3) < 1e-6


@pytest.mark.parametrize("temperature", [1e-20, 0.5])
def test_the_larger_outcome_follows_the_bernoulli_distribution(temperature):
    count = np.sum(draws(temperature, Bernoulli(ODDS)) > 0.5)
    test = lambda p: scipy.stats.binomtest(int(count), NUM_DRAWS, p).pvalue
    assert test(expit(float(ODDS))) > 1e-3
    assert test(expit(1.05 * float(ODDS))) < 1e-6


@pytest.mark.parametrize("dist", [OneHotCategorical(LOGITS), Bernoulli(ODDS)], ids=["rows", "bits"])
def test_uniform_as_the_temperature_goes_to_infinity(dist):
    uniform = 0.5 if isinstance(dist, Bernoulli) else 0.25
    spread = []
    for temperature in (1e2, 1e3, 1e5):
        x = draws(temperature, dist, num=50_000)
        spread.append(np.abs(x - uniform).mean())
        assert np.abs(x - uniform).max() < 20 / temperature
    np.testing.assert_allclose(spread[0] / spread[1], 10, rtol=0.02)
    # At moderate temperatures it is far from uniform.
    assert np.abs(draws(1.0, dist, num=1000) - uniform).mean() > 0.1


# ---- One set of noise, at every temperature --------------------------------------------------

TEMPERATURES = (1e-3, 0.1, 0.5, 1.0, 2.0, 1e3)


@pytest.mark.parametrize("make", [ge.gumbel_softmax, ge.st_gumbel_softmax])
def test_the_argmax_does_not_depend_on_the_temperature(make):
    """Nor does it differ from the draw of gumbel_max with the same key."""
    logits = 2 * jax.random.normal(jax.random.key(1), (5000, 6))
    key = jax.random.key(2)
    hard = np.asarray(ge.gumbel_max()(key, OneHotCategorical(logits)))
    draw = jax.jit(lambda temperature: make(temperature)(key, OneHotCategorical(logits)))
    for temperature in TEMPERATURES:
        x = np.asarray(draw(temperature))
        # Compared as values: at a high temperature two that differ may round to the same.
        np.testing.assert_array_equal(x[hard == 1], x.max(axis=-1))
        if make is ge.st_gumbel_softmax:
            np.testing.assert_array_equal(x, hard)


@pytest.mark.parametrize("make", [ge.gumbel_softmax, ge.st_gumbel_softmax])
def test_the_larger_outcome_does_not_depend_on_the_temperature(make):
    logits = 2 * jax.random.normal(jax.random.key(1), (5000,))
    key = jax.random.key(2)
    hard = np.asarray(ge.gumbel_max()(key, Bernoulli(logits)))
    draw = jax.jit(lambda temperature: make(temperature)(key, Bernoulli(logits)))
    for temperature in TEMPERATURES:
        x = np.asarray(draw(temperature))
        assert (x[hard == 1] >= 0.5).all()
        assert (x[hard == 0] <= 0.5).all()
        if make is ge.st_gumbel_softmax:
            np.testing.assert_array_equal(x, hard)


def test_gumbel_max_draws_integers_from_the_same_noise():
    logits = 2 * jax.random.normal(jax.random.key(1), (500, 6))
    integers = ge.gumbel_max()(jax.random.key(2), Categorical(logits))
    rows = ge.gumbel_max()(jax.random.key(2), OneHotCategorical(logits))
    np.testing.assert_array_equal(np.argmax(rows, axis=-1), integers)


def test_another_key_draws_something_else():
    dist = OneHotCategorical(jnp.zeros((500, 6)))
    one, other = (ge.gumbel_max()(jax.random.key(seed), dist) for seed in (2, 3))
    assert np.mean(np.argmax(one, -1) == np.argmax(other, -1)) < 0.3


@pytest.mark.parametrize(
    ("kind", "relaxed"),
    [(OneHotCategorical, RelaxedOneHotCategorical), (Bernoulli, RelaxedBernoulli)],
)
def test_draws_what_the_relaxed_distributions_draw(kind, relaxed):
    logits = jax.random.normal(jax.random.key(1), (50, 6))

    @jax.jit
    def both(key, temperature):
        got = ge.gumbel_softmax(temperature)(key, kind(logits))
        return got, relaxed(temperature, logits).sample(key)

    for temperature in (0.1, 0.7, 5.0):
        got, expected = both(jax.random.key(2), temperature)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-30)


# ---- Log-convexity: modes at the corners -----------------------------------------------------


def log_density(logits, temperature):
    return jax.jit(RelaxedOneHotCategorical(temperature, jnp.asarray(logits)).log_prob)


def smallest_curvature(logits, temperature, x):
    """Smallest eigenvalue of the Hessian of the log-density along the simplex, at points x.

    In units of the distance to the boundary, without which it would be all boundary.
    """
    k = len(logits)
    hessian = jax.jit(jax.vmap(jax.hessian(log_density(logits, temperature))))(x)
    # Coordinates x_1 ... x_{k-1}, each scaled by its value; x_k takes up the difference.
    scale = np.min(np.stack([x[:, :-1], np.broadcast_to(x[:, -1:], (len(x), k - 1))]), axis=0)
    basis = np.concatenate([np.eye(k - 1), -np.ones((1, k - 1))])[None] * scale[:, None, :]
    return np.linalg.eigvalsh(np.einsum("nia,nij,njb->nab", basis, hessian, basis))[:, 0]


def simplex_points(k, num=2000):
    """Random points everywhere in the open simplex, many of them close to its boundary."""
    rng = np.random.default_rng(k)
    concentration = np.repeat([0.1, 0.5, 1.0, 5.0], num // 4)
    x = rng.gamma(concentration[:, None], size=(num, k)) + 1e-9
    return x / x.sum(axis=1, keepdims=True)


SKEWED = {2: [0.0, 1.0], 3: [0.5, -1.0, 0.3], 5: [0.5, -1.0, 0.3, 1.5, 0.0]}


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_log_convex_up_to_one_over_k_minus_one(k, share, x64):
    temperature, x = share / (k - 1), simplex_points(k)
    for logits in (SKEWED[k], [0.0] * k):
        assert smallest_curvature(logits, temperature, x).min() > -1e-8
        # Without second derivatives: no chord runs below the density.
        log_p = log_density(logits, temperature)
        one, other = x, np.random.default_rng(0).permutation(x)
        middle = (log_p(one) + log_p(other)) / 2 - log_p((one + other) / 2)
        assert middle.min() > -1e-9


@pytest.mark.parametrize("k", [2, 3, 5])
def test_not_log_convex_beyond(k, x64):
    """The bound is sharp: a twentieth above it the log-density is concave close to a face."""
    temperature = 1.05 / (k - 1)
    x = np.full((1, k), 1 / k)
    x[0, 0], x[0, 1] = 1e-9, x[0, 1] + x[0, 0] - 1e-9
    x = x if k > 2 else np.array([[0.5, 0.5]])
    logits = np.zeros(k)
    assert smallest_curvature(logits, temperature, x).min() < -1e-3
    log_p = log_density(logits, temperature)
    direction = np.zeros(k)
    direction[0], direction[1] = 1, -1
    step = 0.5 * x[0, 0] * direction
    assert (log_p(x[0] + step) + log_p(x[0] - step)) / 2 < log_p(x[0]) - 1e-3


@pytest.mark.parametrize("k", [3, 5])
def test_modes_are_at_the_corners(k, x64):
    log_p = log_density(SKEWED[k], 1 / (k - 1))
    inside = np.random.default_rng(0).dirichlet(np.ones(k), 20_000)
    close = np.full((k, k), 1e-12) + (1 - k * 1e-12) * np.eye(k)
    assert log_p(close).min() > log_p(inside).max()
    # At a high temperature the only mode is inside, and the corners are empty.
    log_p = log_density(SKEWED[k], 2.0 * k)
    assert log_p(close).max() < log_p(inside).max()
    assert smallest_curvature(SKEWED[k], 2.0 * k, inside[:10]).max() < 0


# ---- Draws against the density ---------------------------------------------------------------


def midpoints(edges, step):
    """Nodes between `edges`, the number of the bin that each is in, and their weights."""
    nodes, bins, weights = [], [], []
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        num = int(np.ceil((high - low) / step))
        nodes.append(low + (high - low) / num * (np.arange(num) + 0.5))
        bins.append(np.full(num, i))
        weights.append(np.full(num, (high - low) / num))
    return tuple(map(np.concatenate, (nodes, bins, weights)))


def log_odds(x, y):
    """log x / y; beyond 29 lies a share of 1e-6 of the draws, and what rounds to 0 or 1."""
    return np.clip(np.log(np.maximum(x, 1e-300)) - np.log(np.maximum(y, 1e-300)), -29, 29)


def bits_p_value(dist, temperature):
    """Of a histogram over the log-odds of draws, against the density `dist`."""
    edges = np.concatenate([[-30], np.linspace(-4, 4, 41), [30]])
    u, bins, weights = midpoints(edges, 0.02)
    density = np.exp(dist.log_prob(expit(u))) * expit(u) * expit(-u)
    probs = np.bincount(bins, density * weights)
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-4)
    x = draws(temperature, Bernoulli(ODDS), seed=5).astype(np.float64)
    return chi_squared(np.histogram(log_odds(x, 1 - x), edges)[0], probs)


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_bits_follow_the_binary_concrete_density(temperature, x64):
    assert bits_p_value(RelaxedBernoulli(temperature, float(ODDS)), temperature) > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("wrong", [{"temperature": 1.05}, {"logits": 0.65}])
def test_another_binary_density_is_noticed(wrong, x64):
    dist = RelaxedBernoulli(**{"temperature": 1.0, "logits": float(ODDS), **wrong})
    assert bits_p_value(dist, 1.0) < 1e-6


ROW = np.array([0.3, -0.7, 0.9])


def rows_p_value(dist, temperature):
    """Of a histogram of three categories, over u = log x_1 / (1 - x_1) and v = log x_2 / x_3."""
    edges = np.array([-30, -3, -1.5, -0.5, 0.5, 1.5, 3, 30])
    nodes, bins, weights = midpoints(edges, 0.1)
    u, v = nodes[:, None], nodes[None, :]
    rest = expit(-u)
    x = np.stack(np.broadcast_arrays(expit(u), rest * expit(v), rest * expit(-v)), axis=-1)
    jacobian = expit(u) * rest**2 * expit(v) * expit(-v)
    mass = np.exp(dist.log_prob(x)) * jacobian * weights[:, None] * weights[None, :]
    probs = np.zeros((len(edges) - 1,) * 2)
    np.add.at(probs, (bins[:, None], bins[None, :]), mass)
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-3)
    row = OneHotCategorical(jnp.asarray(ROW, jnp.float32))
    x = draws(temperature, row, seed=6).astype(np.float64)
    where = log_odds(x[:, 0], x[:, 1] + x[:, 2]), log_odds(x[:, 1], x[:, 2])
    return chi_squared(np.histogram2d(*where, (edges, edges))[0], probs)


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_rows_follow_the_concrete_density(temperature, x64):
    assert rows_p_value(RelaxedOneHotCategorical(temperature, ROW), temperature) > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("wrong", [{"temperature": 1.05}, {"logits": ROW + np.array([0.05, 0, 0])}])
def test_another_density_of_rows_is_noticed(wrong, x64):
    dist = RelaxedOneHotCategorical(**{"temperature": 1.0, "logits": ROW, **wrong})
    assert rows_p_value(dist, 1.0) < 1e-6


# ---- Straight-through ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", [OneHotCategorical, Bernoulli])
def test_straight_through_draws_are_bitwise_hard(kind, dtype):
    logits = (2 * jax.random.normal(jax.random.key(1), (1000, 5))).astype(dtype)
    x = ge.st_gumbel_softmax(0.7)(jax.random.key(2), kind(logits))
    assert x.dtype == dtype
    x = np.asarray(x, np.float32)
    assert set(np.unique(x)) == {0.0, 1.0}
    assert not np.signbit(x).any()
    assert kind is Bernoulli or (x.sum(axis=-1) == 1).all()
    if dtype == jnp.float32:
        # Arithmetic such as soft + stop_gradient(hard - soft) leaves rounding errors behind.
        soft = np.asarray(ge.gumbel_softmax(0.7)(jax.random.key(2), kind(logits)))
        assert set(np.unique((soft + x) - soft)) != {0.0, 1.0}


@pytest.mark.parametrize("kind", [OneHotCategorical, Bernoulli])
def test_straight_through_has_the_relaxed_gradient(kind):
    logits = 2 * jax.random.normal(jax.random.key(1), (50, 5))
    weights = jax.random.normal(jax.random.key(3), (50, 5))

    def gradient(make):
        # A cost that is linear in the draw: its gradient there is the same, hard or relaxed.
        def loss(logits, temperature):
            return jnp.sum(weights * make(temperature)(jax.random.key(2), kind(logits)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))

    relaxed, straight = gradient(ge.gumbel_softmax), gradient(ge.st_gumbel_softmax)
    for temperature in (0.3, 1.0, 4.0):
        expected, got = relaxed(logits, temperature), straight(logits, temperature)
        for want, have in zip(expected, got, strict=True):
            assert np.any(np.asarray(want) != 0)
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [OneHotCategorical, Bernoulli])
def test_the_costs_gradient_is_taken_at_the_hard_draw(kind):
    logits, key = 2 * jax.random.normal(jax.random.key(1), (50, 5)), jax.random.key(2)
    sampler = ge.st_gumbel_softmax(0.7)
    hard = sampler(key, kind(logits))
    _, pull = jax.vjp(lambda l: sampler(key, kind(l)), logits)
    got = jax.grad(lambda l: jnp.sum((sampler(key, kind(l)) - 0.45) ** 3))(logits)
    np.testing.assert_allclose(got, pull(3 * (hard - 0.45) ** 2)[0], rtol=1e-5, atol=1e-7)
