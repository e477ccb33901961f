"""Keys are told from what is not one, and categorical draws are exact to the last category."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gradest import _random
from gradest.distributions import Categorical, OneHotCategorical

# The smallest and the largest number below 1 that a float32 uniform could be.
ZERO, NEARLY_ONE = 0.0, 1 - 2.0**-24


def p_value(draws, probs):
    """Of the chi-squared test that the integers `draws` follow `probs`."""
    counts = np.bincount(np.asarray(draws).ravel(), minlength=len(probs))
    possible = np.asarray(probs) > 0
    assert counts[~possible].sum() == 0, "a category of probability zero was drawn"
    expected = np.asarray(probs)[possible] / np.sum(probs) * counts.sum()
    assert expected.min() > 5
    return scipy.stats.chisquare(counts[possible], expected).pvalue


def random_logits(k, masked, spread=0.5):
    """Logits of k categories, some of them masked, as one numpy row in float32."""
    rng = np.random.default_rng(k)
    logits = rng.normal(size=k) * spread
    logits[masked] = -np.inf
    return logits.astype(np.float32)


def softmax(logits):
    """In float64, which the draws have to follow."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.fixture(params=[ZERO, NEARLY_ONE], ids=["u=0", "u=1-2^-24"])
def stuck_uniform(request, monkeypatch):
    """Every uniform number is one extreme value."""

    def uniform(key, shape, dtype):
        del key
        return jnp.full(shape, request.param, dtype)

    monkeypatch.setattr(jax.random, "uniform", uniform)
    return request.param


# ---- Exactness -------------------------------------------------------------------------------

MASKS = {
    2: [],
    10: [0, 4, 5, 9],
    1000: [*range(100), *range(400, 1000, 7), *range(950, 1000)],
}


def draw_one_by_one(key, logits, num):
    keys = jax.random.split(key, num)
    return jax.jit(jax.vmap(lambda k: _random.categorical(k, logits)))(keys)


def draw_together(key, logits, num):
    return jax.jit(lambda k: _random.categorical(k, logits, (num,)))(key)


@pytest.mark.statistical
@pytest.mark.parametrize("draw", [draw_one_by_one, draw_together])
@pytest.mark.parametrize("k", MASKS)
def test_follow_the_softmax(k, draw):
    logits = random_logits(k, MASKS[k])
    num = {draw_one_by_one: 100_000, draw_together: 1_000_000}[draw]
    draws = draw(jax.random.key(k), jnp.asarray(logits), num)
    assert p_value(draws, softmax(logits)) > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("k", MASKS)
def test_a_probability_wrong_by_a_twentieth_is_noticed(k):
    logits = random_logits(k, MASKS[k])
    wrong = logits + np.where(np.arange(k) % 2, 0.05, 0.0).astype(np.float32)
    draws = draw_together(jax.random.key(k), jnp.asarray(wrong), 1_000_000)
    assert p_value(draws, softmax(logits)) < 1e-6


@pytest.mark.statistical
def test_rows_are_independent_and_each_follows_its_own():
    logits = np.stack([random_logits(4, [1]), random_logits(4, [2], spread=2.0)])
    draws = _random.categorical(jax.random.key(1), jnp.asarray(logits), (200_000,))
    for row in range(2):
        assert p_value(draws[:, row], softmax(logits[row])) > 1e-3
    joint = np.outer(softmax(logits[0]), softmax(logits[1])).ravel()
    assert p_value(4 * draws[:, 0] + draws[:, 1], joint) > 1e-3
    # Draws that are copies of each other would be noticed.
    assert scipy.stats.pearsonr(draws[:, 0], draws[:, 1]).pvalue > 1e-3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_logits_are_drawn_in_single_precision(dtype):
    """300 categories: half-precision sums and uniforms could not tell them apart."""
    logits = jnp.asarray(random_logits(300, [0, 299, 150]), dtype)
    probs = softmax(logits.astype(jnp.float32))
    draws = draw_together(jax.random.key(2), logits, 300_000)
    assert p_value(draws, probs) > 1e-3
    bits = jax.make_jaxpr(lambda k: _random.categorical(k, logits, (7,)))(jax.random.key(0))
    assert "u32[7]" in str(bits)


@pytest.mark.statistical
def test_half_precision_sums_would_be_noticed():
    logits = jnp.asarray(random_logits(300, [0, 299, 150]), jnp.bfloat16)
    cumulative = jnp.cumsum(jax.nn.softmax(logits))
    u = jax.random.uniform(jax.random.key(2), (300_000,))
    cumulative = cumulative.astype(jnp.float32)
    draws = jnp.searchsorted(cumulative, u * cumulative[-1], side="right")
    counts = np.bincount(draws, minlength=300)[: len(logits)]
    probs = softmax(logits.astype(jnp.float32))
    expected = probs[probs > 0] / probs.sum() * counts[probs > 0].sum()
    assert scipy.stats.chisquare(counts[probs > 0], expected).pvalue < 1e-6


# ---- Categories of probability zero ----------------------------------------------------------

inf = np.inf
ADVERSARIAL = {
    "leading": [-inf, -inf, 0.0, 1.0],
    "trailing": [0.0, 1.0, -inf, -inf],
    "both ends": [-inf, 0.0, 1.0, -inf],
    "between": [0.0, -inf, 1.0, -inf, -inf, 0.5],
    "all but the first": [0.3, -inf, -inf],
    "all but the last": [-inf, -inf, 0.3],
    "only one": [0.0],
    "huge": [1e4, -1e4, 1e4, -1e4],
    "huge and masked": [-inf, -1e4, -1e4, -inf, 1e4, -inf],
    "all tiny": [-1e4, -1e4, -inf],
    "underflows": [0.0, -104.0, -200.0, -inf],
    "equal thirds": [0.0, 0.0, 0.0, -inf],
}


def possible(logits):
    """Whether a category has non-zero probability in float32."""
    return softmax(logits).astype(np.float32) > 0


@pytest.mark.parametrize("shape", [(), (3,)], ids=["one", "many"])
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_impossible_categories_at_the_extreme_uniforms(case, shape, stuck_uniform):
    logits = np.asarray(ADVERSARIAL[case], np.float32)
    draws = np.asarray(_random.categorical(jax.random.key(0), jnp.asarray(logits), shape))
    assert draws.shape == shape
    assert possible(logits)[draws].all()
    allowed = np.flatnonzero(possible(logits))
    if stuck_uniform == ZERO:
        assert (draws == allowed[0]).all()
    # The last category, of probability 5e-46, is beyond the resolution of the sum.
    if stuck_uniform == NEARLY_ONE and case != "underflows":
        assert (draws == allowed[-1]).all()


@pytest.mark.parametrize("shape", [(), (3,)])
def test_impossible_categories_among_50000(shape, stuck_uniform):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 50_000)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.97] = -inf
    rows[:, -20_000:] = -inf
    rows[::2, :10_000] = -inf
    draws = np.asarray(_random.categorical(jax.random.key(0), jnp.asarray(rows), shape))
    assert np.isfinite(np.take_along_axis(rows, draws.reshape(-1, 20).T, axis=-1)).all()
    if stuck_uniform == NEARLY_ONE and shape:
        last = [np.flatnonzero(row > -inf)[-1] for row in rows]
        # The parallel sum's rounding may swallow the last few of 1,500 categories, not 1%.
        assert ((np.asarray(last) - draws) < 500).all()


@pytest.mark.statistical
def test_a_mostly_masked_vocabulary():
    logits = np.full(50_000, -inf, np.float32)
    kept = np.sort(np.random.default_rng(1).choice(50_000, 40, replace=False))
    logits[kept] = random_logits(40, [])
    draws = draw_together(jax.random.key(3), jnp.asarray(logits), 200_000)
    assert p_value(draws, softmax(logits)) > 1e-3


def test_a_naive_inversion_would_be_noticed(monkeypatch):
    """Without the running maximum over possible categories zero falls into a masked one."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.asarray([-inf, 0.0, 1.0])))
    u = _random.noise(jax.random.uniform, jax.random.key(0), (), jnp.float32)
    assert jnp.searchsorted(cumulative, u, side="left") == 0


# ---- One number per draw, the same on both paths ---------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 10, 1000])
def test_both_searches_find_the_same_category(k, monkeypatch):
    logits = jnp.asarray(random_logits(k, [] if k < 10 else [0, k // 2, k - 1]))
    uniforms = jax.random.uniform(jax.random.key(4), (500,))
    uniforms = jnp.concatenate([uniforms, jnp.asarray([ZERO, NEARLY_ONE], jnp.float32)])
    given = lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(values, dtype), shape)

    values = uniforms
    monkeypatch.setattr(jax.random, "uniform", given)
    together = _random.categorical(jax.random.key(0), logits, uniforms.shape)
    alone = []
    for values in uniforms:  # noqa: B007
        alone.append(_random.categorical(jax.random.key(0), logits))
    np.testing.assert_array_equal(together, np.stack(alone))


def random_bits(jaxpr):
    """The shapes of all random bits drawn in a jaxpr, at any depth."""
    shapes = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "random_bits":
            shapes += [eqn.outvars[0].aval.shape]
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                shapes += random_bits(value.jaxpr)
            elif hasattr(value, "eqns"):
                shapes += random_bits(value)
    return shapes


@pytest.mark.parametrize("shape", [(), (5,), (4, 3)])
@pytest.mark.parametrize("rows", [(), (2,), (2, 3)])
def test_one_uniform_per_draw(shape, rows):
    logits = jnp.zeros((*rows, 1024))
    draw = lambda key: _random.categorical(key, logits, shape)
    closed = jax.make_jaxpr(draw)(jax.random.key(0))
    assert random_bits(closed.jaxpr) == [(*shape, *rows)]
    # Which jax.random.categorical does not do: what is counted is there to be counted.
    gumbels = jax.make_jaxpr(lambda key: jax.random.categorical(key, logits))(jax.random.key(0))
    assert random_bits(gumbels.jaxpr) == [(*rows, 1024)]


# ---- Shapes and types ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("rows", [(), (4,), (1, 4), (0,), (0, 3)])
def test_shapes(shape, rows):
    logits = jnp.zeros((*rows, 6))
    draws = jax.eval_shape(lambda key: _random.categorical(key, logits, shape), jax.random.key(0))
    assert draws.shape == (*shape, *rows)
    assert draws.dtype == jnp.int32


@pytest.mark.parametrize("shape", [(), (5,)])
def test_integers_are_of_the_default_type(x64, shape):
    logits = jnp.zeros((4, 6))
    draws = jax.eval_shape(lambda key: _random.categorical(key, logits, shape), jax.random.key(0))
    assert draws.dtype == jnp.int64


def test_one_row_of_many_draws_what_it_draws_alone_for_its_uniforms(monkeypatch):
    logits = jnp.asarray(np.stack([random_logits(9, [i]) for i in range(3)]))
    u = jax.random.uniform(jax.random.key(5), (7, 3))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: u)
    together = _random.categorical(jax.random.key(0), logits, (7,))
    for row in range(3):
        column = u[:, row]
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: column)  # noqa: B023
        alone = _random.categorical(jax.random.key(0), logits[row], (7,))
        np.testing.assert_array_equal(together[:, row], alone)


# ---- Lanes: arrays of keys -------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [(3,), (2, 3)])
def test_lanes_draw_what_each_would_alone(lanes):
    keys = jax.random.split(jax.random.key(6), lanes)
    logits = jax.random.normal(jax.random.key(7), (*lanes, 4, 5))
    categorical = jax.jit(_random.categorical)
    draws = categorical(keys, logits)
    assert draws.shape == (*lanes, 4)
    for lane in np.ndindex(lanes):
        np.testing.assert_array_equal(draws[lane], categorical(keys[lane], logits[lane]))


@pytest.mark.parametrize("kind", [Categorical, OneHotCategorical])
def test_lanes_of_a_distribution(kind):
    keys = jax.random.split(jax.random.key(6), 3)
    dists = kind(jax.random.normal(jax.random.key(7), (3, 4, 5)))
    alone = jax.vmap(lambda key, dist: dist.sample(key))(keys, dists)
    np.testing.assert_array_equal(dists.sample(keys), alone)


def test_lanes_of_noise():
    keys = jax.random.split(jax.random.key(8), (2, 3))
    noise = _random.noise(jax.random.normal, keys, (2, 3, 4), jnp.bfloat16)
    assert noise.dtype == jnp.float32
    alone = jax.random.normal(keys[1, 2], (4,))
    np.testing.assert_array_equal(noise[1, 2], alone)


@pytest.mark.parametrize("lanes", [(), (3,), (2, 3)])
def test_split_and_fold_in_of_lanes(lanes):
    keys = jax.random.split(jax.random.key(9), lanes) if lanes else jax.random.key(9)
    data = lambda key: np.asarray(jax.random.key_data(key))
    parts, folded = _random.split(keys, 4), _random.fold_in(keys, 7)
    assert parts.shape == (4, *lanes)
    assert folded.shape == lanes
    for lane in np.ndindex(lanes):
        alone = jax.random.split(keys[lane], 4)
        np.testing.assert_array_equal(data(parts)[(slice(None), *lane)], data(alone))
        np.testing.assert_array_equal(data(folded)[lane], data(jax.random.fold_in(keys[lane], 7)))


# ---- Keys ------------------------------------------------------------------------------------


def test_legacy_and_typed_keys_give_the_same_numbers():
    typed, legacy = jax.random.key(11), jax.random.PRNGKey(11)
    for key in (legacy, np.asarray(legacy)):
        assert _random.as_key(key) == typed
        dist = Categorical(jnp.zeros(1000))
        np.testing.assert_array_equal(dist.sample(key, (50,)), dist.sample(typed, (50,)))
    under_jit = jax.jit(lambda key: _random.as_key(key))
    assert under_jit(legacy) == under_jit(typed) == typed


def test_other_implementations_of_keys_are_kept():
    key = jax.random.key(0, impl="rbg")
    assert _random.as_key(key) is key
    assert Categorical(jnp.zeros((2, 3))).sample(key, (5,)).shape == (5, 2)


@pytest.mark.parametrize(
    "what",
    [0, None, "key", 1.5, [0, 1], np.zeros(2), np.uint32(3), jnp.zeros(2, jnp.int32)],
    ids=lambda what: f"{type(what).__name__}-{np.shape(what)}",
)
def test_error_for_what_is_no_key(what):
    with pytest.raises(TypeError, match=r"^key: expected a PRNG key such as jax.random.key\(0\)"):
        _random.as_key(what)


def test_error_for_a_distribution_in_the_place_of_the_key():
    with pytest.raises(TypeError, match=r"got Categorical. Keys come first: sampler\(key, dist\)"):
        _random.as_key(Categorical(jnp.zeros(3)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_error_for_an_array_of_keys(make):
    keys = jax.random.split(make(0), 5)
    with pytest.raises(ValueError, match=r"got an array of keys of shape \(5,\)\. Vmap over"):
        _random.as_key(keys)


def test_error_for_a_legacy_key_of_the_wrong_size():
    with pytest.raises(TypeError, match="key: expected a PRNG key"):
        _random.as_key(np.zeros(3, np.uint32))
