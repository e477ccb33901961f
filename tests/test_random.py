"""Keys are told from what is not one, and categorical draws are exact to the last category."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gradest as ge
from gradest import _fixed_point, _random
from gradest.distributions import Bernoulli, Categorical, OneHotCategorical

# The smallest and the largest of the numbers that are inverted, as shares of 2^64.
ZERO, NEARLY_ONE = 0, 2**64 - 1


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


def words(numbers):
    """Integers below 2^64 as pairs of words."""
    numbers = np.asarray(numbers, np.uint64)
    halves = (numbers >> np.uint64(32), numbers & np.uint64(0xFFFFFFFF))
    return _fixed_point.Words(*(jnp.asarray(half.astype(np.uint32)) for half in halves))


def number(w):
    """Pairs of words as Python's integers, which do not overflow."""
    return np.asarray(w.high).astype(object) * 2**32 + np.asarray(w.low).astype(object)


@pytest.fixture(params=[ZERO, NEARLY_ONE], ids=["u=0", "u=1-2^-64"])
def stuck_uniform(request):
    """Every uniform number is one extreme value."""
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
    u = words(np.full(shape, stuck_uniform, np.uint64))
    draws = np.asarray(_random.category_at(u, jnp.asarray(logits)))
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
    u = words(np.full((*shape, 20), stuck_uniform, np.uint64))
    draws = np.asarray(_random.category_at(u, jnp.asarray(rows)))
    end = -1 if stuck_uniform == NEARLY_ONE else 0
    expected = [np.flatnonzero(row > -inf)[end] for row in rows]
    np.testing.assert_array_equal(draws, np.broadcast_to(expected, draws.shape))


@pytest.mark.statistical
def test_a_mostly_masked_vocabulary():
    logits = np.full(50_000, -inf, np.float32)
    kept = np.sort(np.random.default_rng(1).choice(50_000, 40, replace=False))
    logits[kept] = random_logits(40, [])
    draws = draw_together(jax.random.key(3), jnp.asarray(logits), 200_000)
    assert p_value(draws, softmax(logits)) > 1e-3


def test_a_naive_inversion_would_be_noticed():
    """Zero falls into a masked category where the first sum that is not below it is taken."""
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.asarray([-inf, 0.0, 1.0])))
    assert jnp.searchsorted(cumulative, 0.0, side="left") == 0


@pytest.mark.parametrize("shape", [(), (4,)], ids=["one", "many"])
@pytest.mark.parametrize("value", [-inf, np.nan])
def test_a_row_without_a_possible_category_draws_one_in_range(value, shape):
    for k in (1, 3, 100):
        draws = _random.categorical(jax.random.key(0), jnp.full((2, k), value), shape)
        assert ((draws >= 0) & (draws < k)).all()


# ---- Rare outcomes ---------------------------------------------------------------------------


def test_weights_are_the_probabilities_to_twelve_places():
    """Sums of 200,000 of them too, which in single precision are off by a percent."""
    logits = 4 * jax.random.normal(jax.random.key(5), (200_000,))
    got = number(_fixed_point.fixed(jax.nn.softmax(logits), 62))
    share = (got / 2.0**62).astype(float)
    probs = softmax(logits)
    rare = probs > 1e-12
    np.testing.assert_allclose(share[rare] / share.sum(), probs[rare], rtol=3e-6)
    assert abs(share / share.sum() - probs).sum() / 2 < 1e-6
    single = np.diff(np.asarray(jnp.cumsum(jax.nn.softmax(logits))), prepend=0)
    assert abs(single - probs).sum() / 2 > 1e-4


@pytest.mark.parametrize("logit", [-27.0, -17.0, -0.4, 0.4, 17.0])
def test_where_antithetic_draws_change(logit):
    """The one that is 1 below the probability, the other above its complement."""
    rare = scipy.special.expit(-abs(logit))
    near = [int(2**64 * rare * (1 - 3e-6)), int(2**64 * rare * (1 + 3e-6))]
    numbers = [*near, *(2**64 - 1 - n for n in reversed(near))]
    first, second, u = _random.antithetic_at(words(numbers), jnp.full(4, logit))
    edge = 1 if logit < 0 else 3
    np.testing.assert_array_equal(second, np.arange(4) < edge)
    np.testing.assert_array_equal(first, np.arange(4) >= 4 - edge)
    np.testing.assert_allclose(u, np.array(numbers, float) / 2.0**64, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "upper"),
    [(_random.gumbel, scipy.stats.gumbel_r), (_random.logistic, scipy.stats.logistic)],
)
def test_noise_reaches_far_out(family, upper, monkeypatch):
    """By its quantiles: those of `jax.random` end where the probability is 1e-7."""
    shares = np.array([1e-12, 1e-9, 1e-5, 0.1, 0.4])
    numbers = (shares * 2.0**64).astype(np.uint64)
    if family is _random.logistic:
        # The highest bit is the sign.
        numbers = np.concatenate([numbers, numbers + np.uint64(2**63)])
    monkeypatch.setattr(_random, "words", lambda key, shape: words(numbers))
    got = family(jax.random.key(0), numbers.shape, jnp.float32)
    expected = upper.isf(shares)
    if family is _random.logistic:
        expected = np.concatenate([expected, -expected])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.statistical
def test_noise_follows_its_family():
    for family, name in ((_random.gumbel, "gumbel_r"), (_random.logistic, "logistic")):
        x = np.asarray(family(jax.random.key(3), (200_000,), jnp.float32))
        assert scipy.stats.kstest(x, name).pvalue > 1e-3
        assert scipy.stats.kstest(1.05 * x, name).pvalue < 1e-3


SAMPLERS = {
    **{name: getattr(ge, name)() for name in ("gumbel_max", "rebar", "arm", "disarm", "muprop")},
    "score_function": ge.score_function(),
    "relax": ge.relax(lambda w, x: w * jnp.sum(x), 0.3),
    "st_gumbel_softmax": ge.st_gumbel_softmax(0.5),
    "gumbel_rao": ge.gumbel_rao(0.5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_estimators_draw_rare_outcomes(name, monkeypatch):
    """An outcome of probability 1e-11, where the number says so; there no single uniform is."""
    expect = SAMPLERS[name].expect
    for share, drawn in ((0.9e-11, True), (1.1e-11, False)):
        number = np.uint64(share * 2.0**64)
        monkeypatch.setattr(_random, "words", lambda key, shape: words(np.full(shape, number)))  # noqa: B023
        with jax.disable_jit():
            mean = expect(jax.random.key(0), Bernoulli(jnp.log(1e-11)), lambda b: b)
        assert (mean > 0) == drawn


# ---- One number per draw, the same on both paths ---------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 10, 1000])
def test_both_searches_find_the_category_of_exact_arithmetic(k):
    logits = jnp.asarray(random_logits(k, [] if k < 10 else [0, k // 2, k - 1], spread=8.0))
    weights = _fixed_point.fixed(jax.nn.softmax(logits), 62)
    exact = np.cumsum(number(weights))
    # Random numbers, and those on either side of where a category begins, to within two.
    numbers = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64).astype(object)
    edges = [-(-int(edge) * 2**64 // exact[-1]) for edge in exact[:50]]
    numbers = [*numbers, *(n for n in edges if n < 2**64), *(n - 1 for n in edges if n), ZERO]
    u = words(numbers)
    together = _random.category_at(u, logits)
    alone = jax.vmap(lambda *u: _random.category_at(_fixed_point.Words(*u), logits))(*u)
    np.testing.assert_array_equal(together, alone)
    # The product with the total is at most two less than it is.
    targets = [int(n) * exact[-1] // 2**64 for n in numbers]
    late = np.searchsorted(exact, targets, side="right")
    soon = np.searchsorted(exact, [max(t - 2, 0) for t in targets], side="right")
    assert ((soon <= together) & (together <= late)).all()
    assert np.mean(soon == late) > 0.7


def random_bits(jaxpr):
    """The shapes of all random bits and keys made in a jaxpr, at any depth."""
    shapes = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("random_bits", "random_split"):
            shapes += [eqn.outvars[0].aval.shape]
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                shapes += random_bits(value.jaxpr)
            elif hasattr(value, "eqns"):
                shapes += random_bits(value)
    return shapes


@pytest.mark.parametrize("shape", [(), (5,), (4, 3)])
@pytest.mark.parametrize("rows", [(), (2,), (2, 3)])
def test_one_block_of_bits_per_draw(shape, rows):
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


def test_one_row_of_many_draws_what_it_draws_alone_for_its_numbers():
    logits = jnp.asarray(np.stack([random_logits(9, [i]) for i in range(3)]))
    u = _random.words(jax.random.key(5), (7, 3))
    together = _random.category_at(u, logits)
    for row in range(3):
        column = _fixed_point.Words(u.high[:, row], u.low[:, row])
        np.testing.assert_array_equal(together[:, row], _random.category_at(column, logits[row]))


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


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_error_for_a_legacy_key_of_another_generator_has_what_makes_it_one(wrap):
    words = jax.random.PRNGKey(0, impl="rbg")
    with pytest.raises(TypeError, match=r"shape \(4,\)\. .* jax\.random\.wrap_key_data\(key, impl"):
        wrap(_random.as_key)(words)
    assert _random.as_key(jax.random.wrap_key_data(words, impl="rbg")).shape == ()
