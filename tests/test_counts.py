"""Counts: probabilities against scipy, draws against probabilities, gradients against sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit
from support.cases import assert_unbiased, grad, optimized

import gradest as ge
from gradest.distributions import Binomial, Geometric, NegativeBinomial, Poisson

KINDS = {
    "Poisson": lambda rate: Poisson(rate),
    "Geometric": lambda logits: Geometric(logits),
    "Binomial": lambda n, logits: Binomial(n, logits),
    "NegativeBinomial": lambda r, logits: NegativeBinomial(r, logits),
}
PARAMETERS = {
    "Poisson": ([0.3, 2.5, 40.0],),
    "Geometric": ([-2.0, 0.4, 3.0],),
    "Binomial": ([1, 7, 60], [0.4, -1.0, 2.0]),
    "NegativeBinomial": ([0.4, 2.0, 7.5], [0.4, -1.0, 1.0]),
}
SCIPY = {
    "Poisson": scipy.stats.poisson,
    "Geometric": lambda l: scipy.stats.geom(expit(l), loc=-1),
    "Binomial": lambda n, l: scipy.stats.binom(n, expit(l)),
    "NegativeBinomial": lambda r, l: scipy.stats.nbinom(r, expit(-np.asarray(l))),
}
HALF = [jnp.float16, jnp.bfloat16]


def as_leaf(parameter, dtype):
    """Numbers of trials stay integers."""
    whole = all(isinstance(number, int) for number in np.ravel(parameter).tolist())
    return jnp.asarray(parameter, int if whole else dtype)


def make(name, dtype=float, parameters=None):
    parameters = PARAMETERS[name] if parameters is None else parameters
    return KINDS[name](*(as_leaf(p, dtype) for p in parameters))


def reference(name):
    return SCIPY[name](*(np.asarray(p) for p in PARAMETERS[name]))


# ---- Probabilities --------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_log_probabilities_are_scipys(name, x64):
    x = np.arange(400)[:, None]
    got = np.asarray(make(name).log_prob(x))
    with np.errstate(divide="ignore"):
        expected = reference(name).logpmf(x)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.exp(got).sum(axis=0), 1, rtol=1e-10)


RARE_ODDS = [[-15.0, -40.0]]
#: The log-probability of 0, and parameters with which anything else is rare.
RARE = {
    "Poisson": (lambda rate: -rate, ([1e-6, 1e-15],)),
    "Geometric": (lambda l: -jax.nn.softplus(-l), ([15.0, 40.0],)),
    "Binomial": (
        lambda n, l: -n.astype(float) * jax.nn.softplus(l),
        ([[1], [30]], RARE_ODDS),
    ),
    "NegativeBinomial": (lambda r, l: -r * jax.nn.softplus(l), ([[0.5], [30.0]], RARE_ODDS)),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_outcome_that_is_all_but_certain(name, x64):
    """Its log-probability, its score and the derivative of that are small, with all digits."""
    exact, parameters = RARE[name]

    def derivatives(log_p, parameters):
        total = lambda p: jnp.sum(log_p(*p))
        slopes = lambda p: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(grad(total)(p)))
        return log_p(*parameters), grad(total)(parameters), grad(slopes)(parameters)

    given = [as_leaf(p, jnp.float32) for p in parameters]
    wide = [p.astype(float) if p.dtype == jnp.float32 else p for p in given]
    want = derivatives(exact, wide)
    of_none = lambda *p: KINDS[name](*p).log_prob(0)
    of_all = lambda n, l: Binomial(n, -l).log_prob(n)
    for log_p in [of_none, of_all] if name == "Binomial" else [of_none]:
        got = derivatives(log_p, given)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_impossible_counts(name):
    dist, x = make(name), jnp.array([[-1.0], [-3.0], [0.5]])
    np.testing.assert_array_equal(dist.log_prob(x), -np.inf)
    gradient = jax.jit(grad(lambda d: jnp.sum(d.log_prob(x))))(dist)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_more_successes_than_trials():
    dist = make("Binomial")
    log_p = dist.log_prob(np.array([[2], [8], [61]]))
    np.testing.assert_array_equal(np.isneginf(log_p), [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_certain_outcomes(dtype, x64):
    inf = np.inf
    certain = {
        "Poisson": (Poisson(jnp.zeros(1, dtype)), [0], [1]),
        "Geometric": (Geometric(jnp.full(1, inf, dtype)), [0], [1]),
        "Binomial": (
            Binomial(jnp.array([9, 9, 0]), jnp.asarray([inf, -inf, 0.3], dtype)),
            [9, 0, 0],
            [8, 1, 1],
        ),
        "NegativeBinomial": (
            NegativeBinomial(jnp.full(1, 2, dtype), jnp.full(1, -inf, dtype)),
            [0],
            [1],
        ),
    }

    @jax.jit
    def evaluate(dist, x, impossible):
        gradient = grad(lambda dist: jnp.sum(dist.log_prob(x)))(dist)
        draws = dist.sample(jax.random.key(0), (50,))
        return draws, dist.log_prob(x), dist.log_prob(impossible), gradient

    for dist, x, impossible in certain.values():
        x = jnp.array(x)
        draws, log_p, log_0, gradient = evaluate(dist, x, jnp.array(impossible))
        np.testing.assert_array_equal(draws, [x] * 50)
        np.testing.assert_allclose(log_p, 0, atol=1e-6)
        np.testing.assert_array_equal(log_0, -inf)
        leaves = jax.tree.leaves(gradient)
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_probabilities_or_log_odds():
    p = jnp.array([0.2, 0.9])
    for kind in (Geometric, functools.partial(Binomial, 7), functools.partial(NegativeBinomial, 2)):
        np.testing.assert_allclose(kind(probs=p).logits, jnp.log(p / (1 - p)), rtol=1e-5)
        np.testing.assert_allclose(kind(probs=p).probs, p, rtol=1e-6)
        with pytest.raises(TypeError, match="logits, probs: expected exactly one of the two"):
            kind()
        with pytest.raises(TypeError, match="logits, probs: expected exactly one of the two"):
            kind(p, probs=p)


def test_means():
    """As numpyro and TFP parametrise them."""
    key = jax.random.key(1)
    mean = lambda dist: float(np.mean(dist.sample(key, (100_000,))))
    assert mean(Geometric(probs=0.2)) == pytest.approx(0.8 / 0.2, rel=0.02)
    assert mean(NegativeBinomial(3.0, probs=0.4)) == pytest.approx(3 * 0.4 / 0.6, rel=0.02)
    assert mean(Binomial(12, probs=0.9)) == pytest.approx(12 * 0.9, rel=0.02)


# ---- Draws ------------------------------------------------------------------------------------


def assert_drawn_from(draws, pmf):
    """By the chi-squared test; counts that are rare are put together."""
    draws = np.asarray(draws)
    probs = pmf(np.arange(2000))
    edges = np.unique(np.searchsorted(np.cumsum(probs), np.linspace(0.002, 0.998, 40)))
    cells = np.searchsorted(edges, draws)
    expected = np.array([part.sum() for part in np.split(probs, edges + 1)])
    expected[-1] = 1 - expected[:-1].sum()
    kept = expected * len(draws) > 5
    counts = np.bincount(cells, minlength=len(expected))
    assert counts[~kept].sum() < 60
    expected = expected[kept] / expected[kept].sum() * counts[kept].sum()
    assert scipy.stats.chisquare(counts[kept], expected).pvalue > 1e-4


@pytest.mark.statistical
@pytest.mark.parametrize("name", KINDS)
def test_draws_follow_the_probabilities(name):
    x = make(name).sample(jax.random.key(2), (30_000,))
    assert x.shape == (30_000, 3)
    assert x.dtype == jnp.int32
    for i in range(3):
        case = SCIPY[name](*(p[i] for p in PARAMETERS[name]))
        assert_drawn_from(x[:, i], case.pmf)
    *others, last = (p[1] for p in PARAMETERS[name])
    moved = SCIPY[name](*others, last + 0.1)
    with pytest.raises(AssertionError):
        assert_drawn_from(x[:, 1], moved.pmf)


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [1e3, 1e5])
def test_large_rates(rate):
    # As a user's program is compiled: how logarithms of this size are rounded shows in the mean.
    as_installed = {"xla_backend_optimization_level": 3}
    draw = jax.jit(lambda key: Poisson(rate).sample(key, (200_000,)), compiler_options=as_installed)
    x = np.asarray(draw(jax.random.key(3)), float)
    z = (x.mean() - rate) / np.sqrt(rate / len(x))
    assert abs(z) < 4.5
    assert abs(x.var() / rate - 1) < 4.5 * np.sqrt(2 / len(x))


@pytest.mark.statistical
def test_rare_failures():
    """The less probable outcome decides: 1 - p has no digits in single precision."""
    x = np.asarray(Binomial(1000, 14.0).sample(jax.random.key(3), (100_000,)), float)
    mean = 1000 * expit(-14.0)
    assert (1000 - x).mean() == pytest.approx(mean, rel=4.5 / np.sqrt(mean * len(x)))
    x = np.asarray(Geometric(-14.0).sample(jax.random.key(3), (100_000,)), float)
    assert x.mean() == pytest.approx(np.exp(14.0), rel=0.015)


@jax.jit
def draw_and_score(dist):
    x = dist.sample(jax.random.key(0), (20,))
    return x, dist.log_prob(jnp.minimum(x, 1000))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_extreme_parameters(dtype, x64):
    inf = np.inf
    big = np.asarray([0.0, 1e-3, 1.0, 3e4], dtype)
    logits = np.asarray([-inf, -1e4, 0.0, 1e4], dtype)
    for dist in (
        Poisson(big),
        Geometric(logits),
        Binomial(jnp.array([[0], [1], [1000]]), logits),
        NegativeBinomial(jnp.asarray([[1e-3], [1e3]], dtype), logits),
    ):
        x, log_p = draw_and_score(dist)
        assert x.dtype == jnp.int64
        assert (x >= 0).all()
        assert (x <= 10**9).all()
        assert log_p.dtype == dtype
        assert not np.isnan(np.asarray(log_p, float)).any()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", KINDS)
def test_half_precision(name, dtype):
    dist = make(name, dtype)
    x = dist.sample(jax.random.key(0), (100,))
    wide = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == dtype else leaf, dist
    )
    np.testing.assert_array_equal(x, wide.sample(jax.random.key(0), (100,)))
    got = np.asarray(dist.log_prob(x), float)
    np.testing.assert_allclose(got, wide.log_prob(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", KINDS)
def test_empty_batches_lanes_and_transforms(name):
    stack = lambda leaf: jnp.stack([leaf, leaf + leaf, leaf])
    dist, keys = jax.tree.map(stack, make(name)), jax.random.split(jax.random.key(6), 3)
    alone = jax.jit(jax.vmap(lambda dist, key: dist.sample(key)))(dist, keys)
    draw = jax.jit(lambda dist, keys: dist.sample(keys))
    np.testing.assert_array_equal(draw(dist, keys), alone)
    empty = jax.tree.map(lambda leaf: leaf[:0], dist)
    x, log_p = draw_and_score(empty)
    assert x.shape == log_p.shape == (20, 0, 3)
    one = make(name)
    same = (draw(one, key(0)) for key in (jax.random.key, jax.random.PRNGKey))
    np.testing.assert_array_equal(*same)
    with jax.debug_key_reuse(True):
        one.sample(jax.random.key(0))
    assert jax.tree.unflatten(jax.tree.structure(one), jax.tree.leaves(one)).shape == (3,)


def excess_variance(name, *parameters):
    """By how much it is off, as a fraction, and its standard error of 0.2%."""
    dist = make(name, parameters=parameters)
    sample = optimized(lambda dist: dist.sample(jax.random.key(8), (500_000,)))
    x = np.asarray(sample(dist), float)
    variance = SCIPY[name](*map(np.asarray, parameters)).var()
    return np.var(x) / variance - 1


@pytest.mark.statistical
def test_draws_have_the_documented_limits(request):
    error = np.sqrt(2 / 500_000)
    assert abs(excess_variance("Poisson", 1e5)) < 4.5 * error
    for rate, least, most in ((1e6, 0.02, 0.09), (3e6, 0.02, 0.09), (1e8, 0.4, 0.6)):
        assert least - 4.5 * error < abs(excess_variance("Poisson", rate)) < most + 4.5 * error
    assert abs(excess_variance("Binomial", 10**6, -1.0)) < 4.5 * error
    assert 0.05 < excess_variance("Binomial", 10**8, -1.0) < 0.09
    request.getfixturevalue("x64")
    assert abs(excess_variance("Binomial", 10**8, -1.0)) < 4.5 * error


@pytest.mark.statistical
@pytest.mark.parametrize("name", KINDS)
def test_draws_by_keys_of_another_kind(name):
    """By which jax.random draws no Poisson variable."""
    draws = np.asarray(make(name).sample(jax.random.key(0, impl="rbg"), (50_000,)))
    assert_unbiased(draws, reference(name).mean())
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * draws, reference(name).mean())


# ---- Gradients ----------------------------------------------------------------------------------
#
# Those by score_function are in test_estimators.py, with every other distribution's.


@pytest.mark.parametrize("name", KINDS)
def test_pathwise_gradients_are_refused(name):
    with pytest.raises(TypeError, match="reparameterize: expected a distribution whose draws"):
        ge.reparameterize()(jax.random.key(0), make(name))


@pytest.mark.parametrize(
    ("name", "i"), [(name, i) for name in KINDS for i in range(len(PARAMETERS[name]))]
)
def test_a_plain_draw_warns_inside_an_expectation(name, i):
    """Differentiated in one of its parameters, to any order."""
    leaves, treedef = jax.tree.flatten(make(name))
    if not jnp.issubdtype(leaves[i].dtype, jnp.floating):
        return

    @ge.expectation
    def loss(leaf, key):
        dist = jax.tree.unflatten(treedef, [*leaves[:i], leaf, *leaves[i + 1 :]])
        return jnp.sum(leaf**2) + jnp.sum(dist.sample(key)).astype(float)

    for derivative in (jax.grad, jax.hessian) if loops_are_differentiable_twice() else (jax.grad,):
        with pytest.warns(ge.UnestimatedGradientWarning, match=rf"{name}\.sample"):
            jax.eval_shape(derivative(loss), leaves[i], jax.random.key(0))


@functools.cache
def loops_are_differentiable_twice():
    """Those of jax.random's own draws are not on jax 0.10.1, which raises a TypeError."""
    draw = lambda rate: jnp.sum(jax.random.poisson(jax.random.key(0), rate)).astype(float)
    try:
        jax.eval_shape(jax.hessian(draw), jnp.ones(3))
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("n", [7, 7.0, np.float32(7), np.int64(7), [7.0, 0], jnp.array([7, 3])])
def test_numbers_of_trials(n):
    dist = Binomial(n, 0.3)
    assert dist.total_count.dtype == jnp.int32
    np.testing.assert_array_equal(dist.total_count, n)


def test_numbers_of_trials_have_no_derivative():
    message = (
        r"^total_count: expected integers, got a traced array of type float32\. A Binomial has no "
        r"derivative in its number of trials: use total_count\.astype\(int\)\."
    )
    log_p = lambda n: Binomial(n, 0.3).log_prob(2)
    for function in (jax.grad(log_p), jax.jit(log_p), lambda n: jax.jit(log_p)([n])):
        with pytest.raises(TypeError, match=message):
            function(7.0)
    whole = jax.jit(lambda n: Binomial(n.astype(int), 0.3).log_prob(2))
    np.testing.assert_allclose(whole(7.0), Binomial(7, 0.3).log_prob(2), rtol=1e-6)
    with pytest.raises(TypeError, match="int"):
        jax.grad(lambda dist: jnp.sum(dist.log_prob(2)))(Binomial(7, 0.3))


@pytest.mark.parametrize(
    "n", [7.5, np.inf, np.nan, [7.0, 0.5], -1, 2**31, [1, 2**31], np.array(2**31), 2**70]
)
def test_error_for_numbers_of_trials_that_are_none(n):
    message = r"^total_count: expected whole numbers from 0 to 1e9, got .*Normal"
    with pytest.raises(ValueError, match=message):
        Binomial(n, 0.3)


def test_error_for_shapes_that_do_not_broadcast():
    with pytest.raises(ValueError, match=r"total_count: \(2,\), logits or probs: \(3,\)"):
        Binomial(jnp.array([1, 2]), jnp.zeros(3))
    with pytest.raises(ValueError, match="shapes that broadcast, got total_count:"):
        NegativeBinomial(jnp.ones(2), jnp.zeros(3))


def test_error_for_what_is_no_number():
    with pytest.raises(TypeError, match="total_count: expected a real array, got one of type bool"):
        Binomial(jnp.array([True]), 0.3)
    with pytest.raises(TypeError, match="rate: expected a real array, got str"):
        Poisson("high")  # pyright: ignore[reportArgumentType]
