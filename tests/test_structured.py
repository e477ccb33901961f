"""Subsets, orders and chains: exact numbers by enumeration, and every estimator that takes them."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from support.cases import assert_unbiased, keys, oracles

import gradest as ge
from gradest.distributions import LinearChainCRF, OneHotCategorical, PlackettLuce, Subset

# ---- The cases: costs, exact gradients and variances, computed by enumeration elsewhere -------


class Case(NamedTuple):
    """A distribution, a cost, and what is known of them.

    Attributes:
      make: the distribution, from its parameters.
      parameters: of it.
      cost: of a draw.
      expected: the mean cost, and the entropy.
      gradient: of the mean cost.
      traces: of the covariance of the score function: plain, with the mean cost as baseline, and
        leave-one-out with 2 and with 4 samples.
    """

    make: Callable[..., Any]
    parameters: tuple[Any, ...]
    cost: Callable[[jax.Array], jax.Array]
    expected: tuple[float, float]
    gradient: tuple[Any, ...]
    traces: tuple[float, float, float, float]

    @property
    def dist(self) -> Any:
        return self.make(*(jnp.asarray(p, float) for p in self.parameters))


def of_subset(x):
    target = jnp.array([0.6, 0.51, 0.48, 0.2, 0.9], x.dtype)
    return jnp.sum((x - target) ** 2) + 0.8 * x[0] * x[3] - 1.1 * x[1] * x[2] * x[4]


def of_order(x):
    rank = jnp.arange(1.0, 5.0, dtype=x.dtype)
    return jnp.sum(rank * (x @ jnp.array([1.0, -2.0, 0.5, 3.0], x.dtype))) ** 2 / 10


def of_labels(x):
    changes = jnp.sum(1 - jnp.sum(x[1:] * x[:-1], axis=1))
    value = x @ jnp.arange(3.0, dtype=x.dtype)
    return changes**2 + 1.5 * jnp.sum(x[0] * x[3]) - 0.4 * value[1] * value[2]


CASES = {
    "Subset": Case(
        functools.partial(Subset, k=3),
        ([0.5, -0.3, 0.8, 0.0, -1.1],),
        of_subset,
        (2.00517317, 2.00687867),
        ([0.088870145, -0.122999744, -0.034962482, 0.354621941, -0.28552986],),
        (3.94044162, 0.724112199, 0.891783266, 0.269315911),
    ),
    "PlackettLuce": Case(
        PlackettLuce,
        ([0.4, -0.6, 1.0, 0.1],),
        of_order,
        (4.00466689, 2.82119469),
        ([-0.296182034, 2.482533471, -0.005153143, -2.181198294],),
        (77.673949, 39.2037164, 48.7175054, 14.653537),
    ),
    "LinearChainCRF": Case(
        LinearChainCRF,
        (
            [[0.3, -0.2, 0.6], [1, 0, -0.5], [-0.4, 0.7, 0.2], [0.1, -1, 0.8]],
            [[0.5, -0.3, 0], [0.2, 0.4, -0.6], [-1, 0.1, 0.9]],
        ),
        of_labels,
        (2.9416846, 3.64610773),
        (
            [
                [-0.200464277, 0.1722296, 0.028234677],
                [0.327168102, 0.156618385, -0.483786487],
                [0.027056709, 0.531788435, -0.558845144],
                [0.264329217, -0.026919504, -0.237409713],
            ],
            [
                [-0.460845435, 0.514627535, 0.099978434],
                [0.748255434, -0.193159456, 0.305540442],
                [0.331144029, 0.340019236, -1.68556022],
            ],
        ),
        (86.5917081, 44.3002985, 48.2428861, 15.4238641),
    ),
}
EACH = pytest.mark.parametrize("name", CASES)
# Each program runs a few times only, so that compiling it is what takes the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@EACH
def test_sums_over_the_support(name, x64):
    case = CASES[name]
    dist, exact = case.dist, oracles.points(case.dist)

    @jit
    def told(dist):
        of_outcomes = dist.log_prob(exact.values), dist.enumerate_support(), dist._outcomes()
        return dist.mean(), dist.entropy(), of_outcomes

    mean, entropy, (log_p, support, (listed, probs)) = told(dist)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    close(np.exp(log_p), exact.weights)
    close(mean, np.tensordot(exact.weights, exact.values, 1))
    close(entropy, case.expected[1], rtol=1e-8)
    assert dist.num_outcomes == len(support) == len(exact.values)
    np.testing.assert_array_equal(np.unique(support, axis=0), np.unique(exact.values, axis=0))
    close(np.exp(listed), probs)
    close(np.sum(probs), 1)


@EACH
def test_the_expectation_is_enumerated(name, x64):
    case = CASES[name]
    loss = lambda dist: ge.enumeration().expect(jax.random.key(0), dist, case.cost)
    value, gradient = jit(jax.value_and_grad(loss))(case.dist)
    np.testing.assert_allclose(value, case.expected[0], rtol=1e-8)
    for got, want in zip(jax.tree.leaves(gradient), case.gradient, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.statistical
@EACH
def test_draws_are_exact(name):
    """And successive sampling is found out, which draws a subset of other probabilities."""
    dist, num = CASES[name].dist, 20_000
    values, weights = (np.asarray(x, float) for x in oracles.points(dist))

    def p_value(draws):
        same = np.asarray(draws).reshape(num, 1, -1) == values.reshape(1, len(values), -1)
        counts = same.all(axis=-1).sum(axis=0)
        assert counts.sum() == num
        return scipy.stats.chisquare(counts, weights * num / weights.sum()).pvalue

    draws = jit(lambda dist, key: dist.sample(key, (num,)))(dist, jax.random.key(1))
    assert p_value(draws) > 1e-4
    if name == "Subset":
        successive = PlackettLuce(dist.logits, k=3)
        draws = jit(lambda dist, key: dist.sample(key, (num,)))(successive, jax.random.key(1))
        assert p_value(draws.sum(axis=1)) < 1e-9


# ---- Estimators ------------------------------------------------------------------------------

UNBIASED = {
    "muprop": ge.muprop(),
    "sum_and_sample": ge.sum_and_sample(num_summed=2, num_samples=2),
    "unordered_set": ge.unordered_set(4),
}
OF_ORDERS = {
    "rebar": ge.rebar(1.0),
    "rebar, independent": ge.rebar(1.0, coupled=False),
    "relax": ge.relax(lambda w, x: jnp.tanh(w * jnp.sum(x[0] * x[1])) + x[0, 1], 0.8),
}


def gradients(case, samplers, num):
    """Of the expected cost, by each sampler, at `num` keys: one program."""

    def gradient(sampler, dist, key):
        loss = lambda dist: sampler.expect(key, dist, case.cost)
        return jax.tree.leaves(jax.grad(loss)(dist))

    def run(dist, key):
        return {name: gradient(sampler, dist, key) for name, sampler in samplers.items()}

    return jit(jax.vmap(run, in_axes=(None, 0)))(case.dist, keys(num))


def assert_trace(got, case, trace):
    """The samples have this trace of the covariance."""
    off = [np.asarray(g, float) - e for g, e in zip(got, case.gradient, strict=True)]
    squared = sum(np.sum(np.square(o).reshape(len(o), -1), axis=1) for o in off)
    assert_unbiased(squared, trace)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.2 * squared, trace)


@pytest.mark.statistical
@EACH
def test_score_functions_have_the_mean_and_the_variance(name):
    case = CASES[name]
    samplers = {
        "plain": ge.score_function(),
        "mean": ge.score_function(baseline=case.expected[0]),
        "2": ge.score_function(num_samples=2, baseline="leave_one_out"),
        "4": ge.score_function(num_samples=4, baseline="leave_one_out"),
        "optimal": ge.score_function(num_samples=4, baseline="optimal"),
    }
    got = gradients(case, samplers, 60_000)
    want = [np.asarray(g) for g in case.gradient]
    for label, trace in zip(("plain", "mean", "2", "4"), case.traces, strict=True):
        assert_unbiased(got[label], want)
        assert_trace(got[label], case, trace)
    assert_unbiased(got["optimal"], want)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased([1.05 * g for g in got["4"]], want)


@pytest.mark.statistical
@EACH
def test_the_other_estimators_are_unbiased(name):
    case = CASES[name]
    samplers = UNBIASED | (OF_ORDERS if name == "PlackettLuce" else {})
    got = gradients(case, samplers, 30_000)
    want = [np.asarray(g) for g in case.gradient]
    for label in samplers:
        assert_unbiased(got[label], want)
        if label == "rebar, independent":
            # A fifth more than with the best baseline, a third less than without one.
            assert_trace(got[label], case, 52.6)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased([1.05 * g for g in got[label]], want)


@pytest.mark.statistical
def test_straight_through_of_a_subset_is_simple():
    """Mean and variance are those of Cov(x) df/dx at the draw."""
    case = CASES["Subset"]
    want = np.array([0.151684641, -0.151115358, 0.080445301, 0.391914446, -0.47292903])
    got = gradients(case, {"": ge.straight_through()}, 100_000)[""]
    assert_unbiased(got, [want])
    assert_trace(got, case._replace(gradient=(want,)), 0.36797513)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased([1.05 * got[0]], [want])


@EACH
def test_straight_through_differentiates_the_mean(name, x64):
    """At every draw: the mean's vector-Jacobian product with the cost's gradient there."""
    case, slope = CASES[name], 1.7

    def gradient(dist, key):
        x, pull_back = jax.vjp(lambda dist: ge.straight_through(slope=slope)(key, dist), dist)
        return x, pull_back(jax.grad(case.cost)(x))[0]

    def exact(dist, x):
        steeper = jax.tree.map(lambda l: slope * l, dist)

        def mean(dist):
            values, weights = oracles.points(dist)
            return jnp.tensordot(weights, values, 1)

        _, pull_back = jax.vjp(mean, steeper)
        return jax.tree.map(lambda g: slope * g, pull_back(jax.grad(case.cost)(x))[0])

    x, got = jit(jax.vmap(gradient, (None, 0)))(case.dist, keys(3))
    want = jit(jax.vmap(exact, (None, 0)))(case.dist, x)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [lambda l: Subset(l, k=1), lambda l: PlackettLuce(l, k=1)])
def test_one_of_n_is_one_hot(make):
    logits = jnp.array([0.3, -jnp.inf, 1.2, -0.5])
    dist, one = make(logits), OneHotCategorical(logits)
    x = jnp.eye(4).reshape(4, *dist.shape)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6)
    close(dist.log_prob(x), one.log_prob(jnp.eye(4)))
    close(dist.mean().reshape(4), one.mean())
    slope = jnp.arange(4.0)
    pulled = jax.grad(lambda l: jnp.sum(slope * make(l).mean().reshape(4)))
    expected = jax.grad(lambda l: jnp.sum(slope * OneHotCategorical(l).mean()))
    close(jax.jit(pulled)(logits), jax.jit(expected)(logits), atol=1e-6)


# ---- Relaxations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Subset", "PlackettLuce"])
def test_relaxed_draws_approach_the_largest(name):
    """As the temperature falls; they always add up to as many items."""
    dist = CASES[name].make(jnp.array([0.5, -jnp.inf, 0.8, 0.0, -1.1]), k=3)
    z = jax.vmap(dist.perturb)(keys(50))
    hard = PlackettLuce(dist.logits, k=3).harden(z)
    for temperature, near in ((1.0, False), (1e-3, True)):
        y = dist.soften(z, temperature)
        rows = y[:, None] if name == "Subset" else y
        np.testing.assert_allclose(rows.sum(axis=(-2, -1)), 3, rtol=1e-5)
        np.testing.assert_array_equal(y[..., 1], 0)
        off = np.abs(np.asarray(rows.sum(axis=1) - hard.sum(axis=1))).max(axis=1)
        assert (np.median(off) < 1e-3) == near


def test_gumbel_softmax_of_a_subset_is_of_another_law():
    """Not biased by the temperature only: its limit is the law of successive draws."""
    dist = CASES["Subset"].dist
    draw = lambda key: ge.gumbel_softmax(1e-3)(key, dist)
    mean = np.mean(jit(jax.vmap(draw))(keys(20_000)), axis=0)
    successive = [0.791186845, 0.487443334, 0.869014274, 0.612570124, 0.239785424]
    np.testing.assert_allclose(mean, successive, atol=0.015)
    assert np.abs(mean - dist.mean()).max() > 0.03


def relaxed_top(z, k, temperature):
    """Of rows z, as the reference's equations have it: k softmaxes, without what is taken."""
    taken = 0.0
    for _ in range(k):
        one = scipy.special.softmax(z / temperature, axis=-1)
        taken, z = taken + one, z + np.log1p(-np.minimum(one, 1 - 1e-15))
    return taken


def neural_sort(z, k, temperature):
    """Of rows z, entry by entry."""
    n = z.shape[-1]
    apart = sum(np.abs(z - z[..., [i]]) for i in range(n))
    rows = [(n + 1 - 2 * r) * z - apart for r in range(1, k + 1)]
    return scipy.special.softmax(np.stack(rows, axis=-2) / temperature, axis=-1)


def of_relaxed(y):
    """A cost of relaxed subsets and orders of three items, no sum of functions of one each."""
    flat = y.reshape(*y.shape[:-2], -1) if y.shape[-2:] == (2, 3) else y
    w = np.array([0.9, -0.6, 1.5, 0.7, -0.8, 0.4], flat.dtype)[: flat.shape[-1]]
    return ((flat * w).sum(-1) - 0.4) ** 2 + 0.8 * flat[..., 0] * flat[..., -1]


@pytest.mark.statistical
@pytest.mark.parametrize(("make", "soften"), [(Subset, relaxed_top), (PlackettLuce, neural_sort)])
def test_gumbel_softmax_has_the_gradient_of_its_own_expectation(make, soften):
    """By quadrature over differences of Gumbel noise, in which the density moves and not the cost.

    For d_i = z_i - z_3 that is 2 exp(-d_1 - d_2) / (1 + exp(-d_1) + exp(-d_2))^3 at d - l.
    """
    logits, k, temperature = np.array([0.5, -0.3, 0.8]), 2, 0.7
    axis = np.arange(-14.0, 14.0, 0.05)
    d = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    e = np.exp(-(d - (logits[:2] - logits[2])))
    whole = 1 + e.sum(-1)
    weights = 2 * e.prod(-1) / whole**3 * 0.05**2
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-4)
    costs = of_relaxed(soften(np.concatenate([d, np.zeros_like(d[..., :1])], -1), k, temperature))
    moves = 1 - 3 * e / whole[..., None]
    exact = np.einsum("ij,ij,ijk->k", weights, costs, moves)
    exact = np.append(exact, -exact.sum())

    def gradient(logits, key):
        sampler = ge.gumbel_softmax(temperature)
        return jax.grad(lambda l: of_relaxed(sampler(key, make(l, k=k))))(logits)

    got = jit(jax.vmap(gradient, in_axes=(None, 0)))(jnp.asarray(logits, float), keys(60_000))
    assert_unbiased(got, exact)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * got, exact)


def test_noise_given_an_order_makes_that_order():
    dist = PlackettLuce(jnp.array([0.4, -0.6, -jnp.inf, 1.0, 0.1]), k=3)

    def run(key):
        z = dist.perturb(key)
        x = dist.harden(z)
        other = dist.conditional(jax.random.fold_in(key, 1), x)
        moves = dist.pull_back_conditional(x, z, jnp.arange(5.0))
        return x, dist.harden(other), other, moves

    x, again, z, moves = jit(jax.vmap(run))(keys(100))
    np.testing.assert_array_equal(x, again)
    assert np.isneginf(z[:, 2]).all()
    assert np.isfinite(moves).all()
    np.testing.assert_array_equal(moves[:, 2], 0)


# ---- Masks, batches, types, sizes ------------------------------------------------------------

ITEMS = jnp.array([[0.5, -jnp.inf, 0.8, 0.1], [-jnp.inf, 2.0, 0.3, -1.0]])
MASKED = {
    "Subset": lambda: Subset(ITEMS, k=2),
    "PlackettLuce": lambda: PlackettLuce(ITEMS, k=2),
    "LinearChainCRF": lambda: LinearChainCRF(
        jnp.array([[[0.3, -jnp.inf], [1.0, 0.0], [-0.4, 0.7]], [[0.0, 0.2], [1.0, 0.0], [0.4, 0]]]),
        jnp.array([[0.5, -0.3], [0.2, -jnp.inf]]),
    ),
}


@EACH
def test_masks_and_batches(name):
    """What is excluded is never drawn, and has no derivative; rows are as by themselves."""
    dist = MASKED[name]()

    @jit
    def run(dist):
        x = dist.sample(jax.random.key(0), (200,))
        of = lambda dist: (dist.log_prob(x), dist.mean(), dist.entropy())
        total = lambda dist: sum(jnp.sum(jnp.sin(part)) for part in of(dist))
        return x, of(dist), jax.grad(total)(dist)

    x, (log_p, mean, entropy), gradient = run(dist)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(np.mean(x, axis=0), mean, atol=0.15)
    np.testing.assert_array_equal(np.asarray(x)[:, np.asarray(mean) == 0], 0)
    for row in range(2):
        one = jax.tree.map(lambda leaf: leaf[row], dist)  # noqa: B023
        exact = jnp.exp(one.log_prob(one.enumerate_support()))
        np.testing.assert_allclose(jnp.sum(exact), 1, rtol=1e-5)
        surprise = np.where(exact > 0, -exact * np.log(np.where(exact > 0, exact, 1)), 0)
        np.testing.assert_allclose(entropy[row], surprise.sum(), rtol=1e-5)
    for leaf, parameter in zip(jax.tree.leaves(gradient), jax.tree.leaves(dist), strict=True):
        assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(np.asarray(leaf)[np.isneginf(parameter)], 0)


def test_a_draw_from_what_leaves_too_little_is_a_draw_and_impossible():
    """Where it is not known when the program is traced."""

    @jit
    def run(logits):
        made = Subset(logits, 3), PlackettLuce(logits, 3)
        draws = [d.sample(jax.random.key(0)) for d in made]
        return draws, [d.log_prob(x) for d, x in zip(made, draws, strict=True)], made[0].mean()

    (subset, order), log_p, mean = run(jnp.array([-jnp.inf, 0.3, -jnp.inf, -jnp.inf]))
    assert subset.sum() == 3
    np.testing.assert_array_equal(order.sum(axis=1), 1)
    np.testing.assert_array_equal(log_p, -np.inf)
    assert np.isfinite(mean).all()


@EACH
def test_what_all_weights_have_in_common_costs_no_digits(name):
    """It changes no probability."""
    dist = jax.tree.map(lambda l: jnp.round(l * 64) / 64, MASKED[name]())
    high = jax.tree.map(lambda l: l + 4096, dist)
    x = dist.sample(jax.random.key(0), (3,))
    run = jit(lambda dist: (dist.log_prob(x), dist.mean(), dist.entropy()))
    for got, want in zip(run(high), run(dist), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@EACH
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(name, dtype):
    """Everything is computed in single precision and rounded once."""
    narrow = jax.tree.map(lambda l: l.astype(dtype), MASKED[name]())
    wide = jax.tree.map(lambda l: l.astype(jnp.float32), narrow)

    @jit
    def run(dist):
        x = dist.sample(jax.random.key(0), (3,))
        return x, dist.log_prob(x), dist.mean(), dist.entropy()

    for got, want in zip(run(narrow), run(wide), strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want.astype(dtype))


def test_a_subset_of_many():
    """300 of 1,000: the sums have the digits of single precision."""
    dist = Subset(jnp.zeros(1000), 300)

    @jit
    def run(dist):
        x = dist.sample(jax.random.key(0), (2,))
        log_p, score = jax.value_and_grad(lambda dist: dist.log_prob(x)[0])(dist)
        return x, log_p, score.logits, dist.mean(), dist.entropy()

    x, log_p, score, mean, entropy = run(dist)
    log_number = math.lgamma(1001) - math.lgamma(301) - math.lgamma(701)
    np.testing.assert_array_equal(x.sum(axis=1), 300)
    np.testing.assert_allclose(mean, 0.3, rtol=2e-5)
    np.testing.assert_allclose([-log_p, entropy], log_number, rtol=2e-6)
    np.testing.assert_allclose(score, x[0] - 0.3, atol=1e-5)


def test_sums_over_sets_of_items_are_few_operations():
    """Out of a jit each is compiled by itself."""
    for sums in (PlackettLuce.entropy, PlackettLuce.mean):
        assert len(jax.make_jaxpr(lambda l, f=sums: f(PlackettLuce(l)))(jnp.zeros(12)).eqns) < 80


def test_a_long_chain_and_a_long_order():
    """1,000 places of 50 labels; all orders of 1,000 items."""
    chain = LinearChainCRF(jnp.zeros((1000, 50)), jnp.zeros((50, 50)))
    order = PlackettLuce(jnp.zeros(1000))

    @jit
    def run(chain, order):
        x, y = chain.sample(jax.random.key(0)), order.sample(jax.random.key(0))
        log_p, score = jax.value_and_grad(lambda chain: chain.log_prob(x))(chain)
        return x, log_p, score.unary, chain.entropy(), y, order.log_prob(y)

    x, log_p, score, entropy, y, log_order = run(chain, order)
    np.testing.assert_array_equal(x.sum(axis=1), 1)
    np.testing.assert_allclose([-log_p, entropy], 1000 * np.log(50), rtol=1e-5)
    np.testing.assert_allclose(score, x - 0.02, atol=1e-4)
    np.testing.assert_array_equal(y.sum(axis=0), 1)
    np.testing.assert_allclose(-log_order, math.lgamma(1001), rtol=1e-5)


# ---- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subset(0.3, 1), "logits: expected the items"),
        (lambda: Subset(np.array([0.3, 0.1]), 3), "k: expected at most 2"),
        (lambda: Subset(np.array([0.3, -np.inf, 0.1]), 3), "k: expected at most 2.*possible"),
        (lambda: Subset(np.array([0.3, np.inf]), 1), "logits: expected numbers below infinity"),
        (lambda: Subset(np.array([0.3, 0.1]), -1), "k: expected an integer of at least 0"),
        (lambda: PlackettLuce(np.array([0.3, 0.1]), 0), "k: expected an integer of at least 1"),
        (lambda: PlackettLuce(np.array([-np.inf, 0.1])), "k: expected at most 1"),
        (lambda: PlackettLuce(jnp.zeros(13)).mean(), "at most 12 items, got 13"),
        (lambda: PlackettLuce(jnp.zeros(13)).entropy(), "-log_prob of draws"),
        (lambda: PlackettLuce(jnp.zeros(3)).log_prob(jnp.arange(3)), "x: expected one-hot rows"),
        (lambda: LinearChainCRF(jnp.zeros((4, 3)), jnp.zeros((2, 2))), "unary, pairwise: expected"),
        (lambda: LinearChainCRF(jnp.zeros((4, 2)), jnp.full((2, 2), np.nan)), "pairwise: expected"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sampler", [ge.enumeration(), ge.unordered_set(2), ge.sum_and_sample()])
def test_too_many_outcomes_are_not_listed(sampler):
    for dist in (Subset(jnp.zeros(100), 50), PlackettLuce(jnp.zeros(20))):
        with pytest.raises(ValueError, match=f"^{sampler.name}: expected .* Use score_function"):
            sampler.expect(jax.random.key(0), dist, jnp.sum)


def test_an_item_that_comes_twice_is_impossible():
    dist = PlackettLuce(jnp.zeros(3))
    orders = jnp.eye(3)[np.array(list(itertools.product(range(3), repeat=3)))]
    possible = np.isfinite(dist.log_prob(orders))
    np.testing.assert_array_equal(possible, (orders.sum(axis=1) == 1).all(axis=-1))
    subsets = jnp.array(list(itertools.product([0.0, 1.0], repeat=3)))
    possible = np.isfinite(Subset(jnp.zeros(3), 2).log_prob(subsets))
    np.testing.assert_array_equal(possible, subsets.sum(axis=1) == 2)
