"""Categories by chunks of a vocabulary: a plain Categorical's law, in the memory of a chunk."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support.cases import assert_unbiased, keys, optimized, oracles, value_and_grad

import gradest as ge
from gradest.distributions import Categorical, VocabularyCategorical, kl_divergence

KEY = jax.random.key(0)
ROWS, WIDTH, WORDS = 3, 4, 23


def parameters(dtype=jnp.float32, *, words=WORDS):
    rng = np.random.default_rng(0)
    hidden, weights = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(WIDTH, words))
    return jnp.asarray(hidden, dtype), jnp.asarray(weights, dtype)


def plain(hidden, weights):
    wide = jnp.promote_types(jnp.result_type(hidden, weights), jnp.float32)
    return Categorical(jnp.matmul(hidden.astype(wide), weights.astype(wide)))


def in_chunks(size):
    return functools.partial(VocabularyCategorical, chunk_size=size)


# ---- The same law --------------------------------------------------------------------------

# One word at a time, chunks that do not divide the vocabulary and one that does; all of it, more.
SIZES = [1, 7, 23, 100]
WORD = np.array([[0, 22, 21], [5, 13, 14]])


@pytest.mark.parametrize("size", [7, 100])
def test_everything_is_that_of_the_plain_law(size):
    """Log-probabilities, entropies, divergences and all their derivatives, to second order."""
    hidden, weights = parameters()

    def told(make, hidden, weights):
        dist, other = make(hidden, weights), make(0.5 * hidden[::-1], jnp.sin(weights))
        return dist.log_prob(WORD), dist.entropy(), kl_divergence(dist, other)

    def total(make, hidden, weights):
        return sum(jnp.sum(jnp.sin(x)) for x in told(make, hidden, weights))

    def twice(make, *params):
        slope = jax.grad(functools.partial(total, make), argnums=(0, 1))
        pull = lambda *params: jax.vjp(slope, *params)[1](params)
        # The forward mode over it as well.
        first = jax.jvp(lambda *params: (told(make, *params), slope(*params)), params, params)
        return first, pull(*params)

    got = jax.jit(functools.partial(twice, in_chunks(size)))(hidden, weights)
    want = jax.jit(functools.partial(twice, plain))(hidden, weights)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, got, want)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_equal_to_rounding_in_every_type(dtype, x64):
    hidden, weights = parameters(dtype)

    @jax.jit
    def run(dist):
        slopes = jax.grad(lambda d: jnp.sum(d.log_prob(WORD).astype(float)))(dist)
        return dist.log_prob(WORD), slopes, dist.sample(KEY), dist.entropy()

    log_p, slopes, x, entropy = run(in_chunks(5)(hidden, weights))
    assert log_p.dtype == entropy.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(slopes)} == {jnp.dtype(dtype)}
    assert x.dtype == int
    # Exactly what the wide result is, rounded once.
    exact = Categorical(hidden.astype(float) @ weights.astype(float))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(log_p.astype(float), exact.log_prob(WORD), rtol=8 * eps)
    np.testing.assert_allclose(entropy.astype(float), exact.entropy(), rtol=8 * eps)
    of_exact = jax.grad(lambda h, w: jnp.sum(Categorical(h @ w).log_prob(WORD)), argnums=(0, 1))(
        hidden.astype(float), weights.astype(float)
    )
    for got, want in zip(jax.tree.leaves(slopes), of_exact, strict=True):
        np.testing.assert_allclose(got.astype(float), want, rtol=8 * eps, atol=16 * eps)


def test_types_that_differ():
    """The wider one's, and each gradient in that of its parameter."""
    hidden, weights = parameters()
    total = lambda h, w: jnp.sum(VocabularyCategorical(h, w, 5).log_prob(0))
    of_hidden, of_weights = jax.grad(total, argnums=(0, 1))(hidden, weights.astype(jnp.bfloat16))
    assert of_hidden.dtype == jnp.float32
    assert of_weights.dtype == jnp.bfloat16
    narrow = weights.astype(jnp.bfloat16).astype(jnp.float32)
    want = jax.grad(lambda h: jnp.sum(Categorical(h @ narrow).log_prob(0)))(hidden)
    np.testing.assert_allclose(of_hidden, want, rtol=1e-5, atol=1e-6)


def test_extreme_logits():
    """Far apart, and far from zero: no overflow, and no NaN in a derivative."""
    hidden, weights = jnp.ones((1,)), jnp.array([[-1e4, 3e4, 3e4 - 5.0, 0.0, -3e38]])
    dist = VocabularyCategorical(hidden, weights, 2)
    log_p = dist.log_prob(jnp.arange(5))
    want = Categorical(weights[0]).log_prob(jnp.arange(5))
    np.testing.assert_allclose(log_p, want, rtol=1e-6)
    slope = jax.grad(lambda d: d.log_prob(2) + d.entropy())(dist)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert set(np.unique(dist.sample(KEY, (4000,)))) == {1, 2}


def test_impossible_words():
    """Those of a weight of -inf, by a hidden unit of 1: never drawn, and their surprise is none."""
    hidden, weights = parameters()
    one, some = jnp.ones((ROWS, 1)), jnp.arange(WORDS) % 5 == 1
    bias = jnp.where(some, -jnp.inf, 0.0)[None]

    def told(make, hidden, weights):
        of = lambda hidden, bias: make(
            jnp.concatenate([hidden, one], -1), jnp.concatenate([weights, bias])
        )
        dist, other = of(hidden, bias), of(jnp.sin(hidden), bias)
        return (
            dist.entropy(),
            kl_divergence(dist, other),
            kl_divergence(dist, of(hidden, 0 * weights[:1])),
        )

    def run(make, weights):
        total = lambda weights: sum(map(jnp.sum, told(make, hidden, weights)))
        excluding = lambda weights: kl_divergence(
            make(one, 0 * weights[:1]), make(one, bias + 0 * weights[:1])
        )
        return told(make, hidden, weights), jax.grad(total)(weights), excluding(weights)

    got = jax.jit(functools.partial(run, in_chunks(5)))(weights)
    want = jax.jit(functools.partial(run, plain))(weights)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), got, want)
    assert np.isposinf(got[2]).all()


def test_what_is_no_word_is_impossible():
    log_p = VocabularyCategorical(*parameters(), 5).log_prob(jnp.array([[-1], [WORDS]]))
    np.testing.assert_array_equal(log_p, np.full((2, ROWS), -np.inf))


# ---- Draws ---------------------------------------------------------------------------------

NUM = 100_000


@functools.partial(jax.jit, static_argnames=("size", "shape"))
def draws(hidden, weights, key, size, shape=(NUM,)):
    return VocabularyCategorical(hidden, weights, size).sample(key, shape)


def p_value(x, probs):
    """Of a chi-squared test; words that are expected less than five times count as one."""
    probs = np.asarray(probs, float)
    expected = NUM * probs / probs.sum()
    counts, rare = np.bincount(x, minlength=len(probs)), expected < 5
    pool = lambda y: np.append(y[~rare], y[rare].sum()) if rare.any() else y
    return scipy.stats.chisquare(pool(counts), pool(expected)).pvalue


@pytest.mark.statistical
@pytest.mark.parametrize("size", SIZES)
def test_draws_have_the_law(size):
    """And not one in which every other word is 5% more probable, and the rest less."""
    hidden, weights = parameters()
    drawn, probs = np.asarray(draws(hidden, weights, KEY, size)), plain(hidden, weights).probs
    for row in range(ROWS):
        assert p_value(drawn[:, row], probs[row]) > 1e-3
        broken = np.array(probs[row]) * (1 + 0.05 * (-1.0) ** np.arange(WORDS))
        assert p_value(drawn[:, row], broken) < 1e-6


@pytest.mark.statistical
def test_a_draw_of_each_key_has_the_law():
    """One draw of a row is found by another algorithm than many are."""
    hidden, weights = parameters()
    one = jax.jit(jax.vmap(lambda k: VocabularyCategorical(hidden, weights, 7).sample(k)))
    drawn, probs = np.asarray(one(keys(NUM))), plain(hidden, weights).probs
    for row in range(ROWS):
        assert p_value(drawn[:, row], probs[row]) > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("last", [False, True])
def test_rare_words_and_rare_chunks(last):
    """Chunks of probabilities 1e-3 to 1e-7, before or after what is likely."""
    log_p = np.log(np.repeat([1e-3, 1e-5, 1e-7], 4) / 4)
    log_p = np.append(log_p, np.log1p(-np.exp(log_p).sum()))
    log_p = log_p if last else log_p[::-1]
    weights = jnp.asarray(log_p[None], jnp.float32)
    dist, count = VocabularyCategorical(jnp.ones((1,)), weights, 4), np.zeros(13)
    sample = optimized(lambda key: dist.sample(key, (1_000_000,)))
    for key in keys(20):
        count += np.bincount(sample(key), minlength=13)
    expected = 20e6 * np.exp(log_p)
    rare = np.exp(log_p) < 1e-2
    z = (count - expected)[rare] / np.sqrt(expected[rare])
    assert np.abs(z[expected[rare] > 20]).max() < 4.5
    # Those of 1e-7 together, of which two are expected.
    tiny = np.exp(log_p) < 1e-6
    assert scipy.stats.poisson.sf(count[tiny].sum() - 1, 2.0) > 1e-4


def test_draws_of_a_lane_and_of_a_row():
    """A vmap, over parameters or keys, draws what each would alone; rows are independent."""
    hidden, weights = parameters()
    of = lambda h, w, k: VocabularyCategorical(h, w, 6).sample(k)
    ks = keys(4)
    many = jax.vmap(of, in_axes=(None, 0, 0))(hidden, jnp.stack([weights, -weights] * 2), ks)
    for lane, (key, sign) in enumerate(zip(ks, [1, -1, 1, -1], strict=True)):
        np.testing.assert_array_equal(many[lane], of(hidden, sign * weights, key))
    same = jnp.broadcast_to(hidden[0], (64, WIDTH))
    assert len(np.unique(of(same, weights, KEY))) > 4


# ---- Memory --------------------------------------------------------------------------------


def programs(chunk):
    """Of 8 rows: what is kept beside arguments and results must not grow with the vocabulary."""
    make = lambda params: VocabularyCategorical(params[0], params[1], chunk)
    words = jnp.arange(8)

    def in_expectation(sampler):
        cost = lambda x: jnp.sum(jnp.sin(x.astype(jnp.float32)))
        return ge.expectation(lambda params: cost(sampler(KEY, make(params))))

    def by_example(params):
        one = lambda h, x: make((h, params[1])).log_prob(x)
        return jnp.mean(jax.vmap(one)(params[0], words))

    log_prob = lambda params: jnp.sum(make(params).log_prob(words))
    slope_along = lambda f: lambda p: jax.jvp(jax.grad(f), (p,), (p,))[1]
    return {
        "draw": lambda params: make(params).sample(KEY),
        "log_prob": log_prob,
        "its gradient": jax.grad(log_prob),
        "of a vmapped loss": jax.grad(by_example),
        "of the entropy": jax.grad(lambda params: jnp.sum(make(params).entropy())),
        "second derivatives": slope_along(log_prob),
        "score_function": jax.grad(in_expectation(ge.score_function())),
        "leave_one_out": jax.grad(
            in_expectation(ge.score_function(num_samples=4, baseline="leave_one_out"))
        ),
        "vimco": jax.grad(in_expectation(ge.vimco(4))),
    }


@pytest.mark.parametrize("name", programs(1000))
def test_memory_does_not_grow_with_the_vocabulary(name):
    """That of a plain Categorical does."""

    def temporary(function, words):
        of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        compiled = jax.jit(function).lower((of(8, 16), of(16, words))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = [temporary(programs(1000)[name], words) for words in (10**4, 10**5, 10**6)]
    # The logits of all words would be 32 MB.
    assert max(sizes) <= min(sizes) + 1024 < 1e6
    if name == "log_prob":
        whole = lambda params: jnp.sum(Categorical(params[0] @ params[1]).log_prob(jnp.arange(8)))
        assert temporary(whole, 10**6) > 3e7


# ---- Estimators ----------------------------------------------------------------------------


def cost(w, x):
    """Of words, each worth something."""
    worth = jnp.cos(1.3 * jnp.arange(1.0 * WORDS))[x]
    return jnp.sum(w * worth) ** 2 + worth[0] * worth[-1]


SAMPLERS = {
    "score_function": lambda b: ge.score_function(),
    "baseline": lambda b: ge.score_function(baseline=b),
    "leave_one_out": lambda b: ge.score_function(num_samples=3, baseline="leave_one_out"),
    "optimal": lambda b: ge.score_function(num_samples=3, baseline="optimal"),
}


@pytest.mark.statistical
@pytest.mark.parametrize("where", ["all", "where"])
def test_gradients_are_unbiased(where):
    """In what hidden and weights are made from, in closures too, under masks and without."""
    hidden, weights = parameters()
    hidden, w = 0.5 * hidden[:2], jnp.array([0.9, -0.6])
    mask = None if where == "all" else jnp.array([True, False])

    def exact(params):
        probs = jax.nn.softmax(jnp.tanh(params[0]) @ params[1])
        second = jnp.arange(WORDS) == 0 if mask is not None else probs[1]
        joint = probs[0][:, None] * jnp.asarray(second, float)[None, :]
        pairs = jnp.stack(jnp.meshgrid(*[jnp.arange(WORDS)] * 2, indexing="ij"), -1)
        costs = jax.vmap(jax.vmap(lambda x: cost(params[2], x)))(pairs)
        return jnp.sum(joint * costs)

    def run(params, key):
        def by(sampler):
            def loss(params):
                dist = VocabularyCategorical(jnp.tanh(params[0]), params[1], 6)
                return ge.expectation(lambda: cost(params[2], sampler(key, dist, where=mask)))()

            return value_and_grad(loss)(params)

        return {name: by(make(0.7)) for name, make in SAMPLERS.items()}

    params = (hidden, weights, w)
    want = value_and_grad(exact)(params)
    samples = optimized(jax.vmap(run, in_axes=(None, 0)))(params, keys(200_000))
    for name in SAMPLERS:
        value, gradient = samples[name]
        # Along the exact gradient: words one by one are too rare to be seen.
        of_one = lambda g, w: jnp.sum(g * w[None], tuple(range(1, g.ndim)))
        got = value, jax.tree.map(of_one, gradient, want[1])
        exactly = want[0], jax.tree.map(lambda w: jnp.sum(w * w), want[1])
        assert_unbiased(got, exactly)
        with pytest.raises(AssertionError):
            assert_unbiased(jax.tree.map(lambda g: 1.05 * g, got), exactly)


@pytest.mark.statistical
def test_bound_is_that_of_its_law():
    """VIMCO's, of two samples of one word."""
    hidden, weights = parameters()
    dist = in_chunks(6)(0.5 * hidden[:1], 0.5 * weights)
    log_weight = lambda x: jnp.sum(jnp.sin(1 + x.astype(float)))
    want = value_and_grad(lambda d: oracles.bound(d, log_weight))(dist)
    run = lambda d, key: ge.vimco(2).expect(key, d, log_weight)
    value, slope = jax.jit(jax.vmap(value_and_grad(run), in_axes=(None, 0)))(dist, keys(100_000))
    of_one = lambda g, w: jnp.sum(g * w[None], tuple(range(1, g.ndim)))
    got = value, jax.tree.map(of_one, slope, want[1])
    exactly = want[0], jax.tree.map(lambda w: jnp.sum(w * w), want[1])
    assert_unbiased(got, exactly)
    with pytest.raises(AssertionError):
        assert_unbiased(jax.tree.map(lambda g: 1.05 * g, got), exactly)


def test_a_language_model_in_a_loop():
    """Words are drawn one after the other, by a state that depends on them; costs on the way."""
    _, weights = parameters()
    table = jnp.asarray(np.random.default_rng(1).normal(size=(WORDS, WIDTH)), jnp.float32)
    word = ge.score_function()

    def loss(make, params, key):
        def step(state, key):
            x = word(key, make(state, params["head"]))
            ge.cost(jnp.sum(jnp.cos(x.astype(float))))
            return jnp.tanh(state + params["table"][x]), x

        start = jnp.zeros((ROWS, WIDTH))
        _, words = jax.lax.scan(step, start, jax.random.split(key, 4))
        return 0.0 * jnp.sum(params["table"]), words

    params = {"head": weights, "table": table}
    run = jax.jit(
        jax.vmap(
            jax.grad(
                ge.expectation(has_aux=True)(functools.partial(loss, in_chunks(6))), has_aux=True
            ),
            in_axes=(None, 0),
        )
    )
    gradient, words = run(params, keys(3))

    def by_hand(params, words):
        """Each draw credited with what is paid after it."""

        def step(state, x):
            return jnp.tanh(state + params["table"][x]), plain(state, params["head"]).log_prob(x)

        _, log_p = jax.lax.scan(step, jnp.zeros((ROWS, WIDTH)), words)
        paid = jnp.sum(jnp.cos(words.astype(float)), axis=-1)
        to_go = jnp.cumsum(paid[::-1])[::-1]
        return jnp.sum(log_p * to_go[:, None])

    want = jax.vmap(jax.grad(by_hand), in_axes=(None, 0))(params, words)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, gradient, want)


def test_second_derivatives_of_a_score_function():
    """As of a plain Categorical at the same draw."""
    hidden, weights = parameters()
    hessian = {}
    for name, make in {"chunks": in_chunks(6), "plain": plain}.items():

        def value(params, make=make):
            fixed = in_chunks(6)(*jax.lax.stop_gradient(params)).sample(KEY)
            l = jnp.sum(make(*params).log_prob(fixed))
            return cost(jnp.ones(ROWS), fixed) * jnp.exp(l - jax.lax.stop_gradient(l))

        hessian[name] = jax.jit(jax.jacrev(jax.grad(value)))((hidden, weights))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, hessian["chunks"], hessian["plain"])


def test_what_needs_more_than_a_density_is_refused():
    dist = VocabularyCategorical(*parameters(), 6)
    for sampler in (ge.antithetic(), ge.enumeration(), ge.rebar(), ge.disarm(), ge.reinmax()):
        with pytest.raises(TypeError, match=rf"^{sampler.name}: .*VocabularyCategorical.*score_f"):
            sampler.expect(KEY, dist, lambda x: jnp.sum(x.astype(float)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((jnp.ones((2, 3)), jnp.ones((4, 9)), 2), "hidden, weights: .*(2, 3) and (4, 9)"),
        ((1.0, jnp.ones((4, 9)), 2), "hidden, weights: .*() and (4, 9)"),
        ((jnp.ones(3), jnp.ones((2, 3, 9)), 2), "hidden, weights: .*(2, 3, 9)"),
        ((jnp.ones(3), jnp.ones((3, 0)), 2), "hidden, weights: .*(3, 0)"),
        ((jnp.ones(3), jnp.ones((3, 9)), 0), "chunk_size: .*at least 1, got 0"),
        ((jnp.ones(3), jnp.ones((3, 9)), 2.5), "chunk_size: .*integer"),
        ((jnp.ones(3, bool), jnp.ones((3, 9)), 2), "hidden: .*real"),
    ],
)
def test_bad_arguments(arguments, told):
    pattern = re.escape(told).replace(r"\.\*", ".*")
    with pytest.raises((ValueError, TypeError), match=f"^{pattern}"):
        VocabularyCategorical(*arguments)


def test_divergences_of_other_sizes_are_refused():
    one, other = (VocabularyCategorical(*parameters(words=n), 6) for n in (23, 24))
    with pytest.raises(ValueError, match=r"^kl_divergence: .*23.* and .*24"):
        kl_divergence(one, other)
