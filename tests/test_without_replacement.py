"""Draws without replacement, and what is estimated from them, against sums over all orders."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import estimates
from support.estimates import (
    assert_unbiased,
    assert_variance,
    gradients,
    keys,
    of_dist,
    optimized,
    oracles,
)

import gradest as ge
from gradest import distributions as dists
from gradest._cost import Cost
from gradest.estimators import _finite, unordered_set

# ---- Draws ---------------------------------------------------------------------------------

PAIR = dists.OneHotCategorical(jnp.array([[0.9, -0.3, 0.2], [-0.8, -jnp.inf, 0.5]]))


def probs_of(dist):
    """Of all joint draws, by their choices."""
    rows = np.exp(np.asarray(_finite.Finite.of("", dist).log_probs, np.float64))
    support = itertools.product(*(range(row.size) for row in rows))
    return {c: math.prod(row[i] for row, i in zip(rows, c, strict=True)) for c in support}


def order_probs(probs, num):
    """Of all sequences of `num` distinct outcomes."""
    found = {}
    for order in itertools.permutations([c for c, p in probs.items() if p > 0], num):
        p, rest = 1.0, 1.0
        for c in order:
            p, rest = p * probs[c] / rest, rest - probs[c]
        found[order] = p
    return found


def p_of_orders(dist, num, num_keys=60_000):
    draw = lambda key: _finite.Finite.of("", dist).without_replacement(key, num)
    choices, log_p = jax.jit(jax.vmap(draw))(keys(num_keys))
    probs = probs_of(dist)
    expected = order_probs(probs, num)
    counts = dict.fromkeys(expected, 0)
    for order in np.asarray(choices).tolist():
        counts[tuple(map(tuple, order))] += 1
    of_choice = [[probs[tuple(c)] for c in order] for order in np.asarray(choices[:50]).tolist()]
    np.testing.assert_allclose(np.exp(log_p[:50]), of_choice, rtol=1e-5)
    frequencies = np.array(list(expected.values()))
    frequencies *= num_keys / frequencies.sum()
    return scipy.stats.chisquare(list(counts.values()), frequencies).pvalue


@pytest.mark.statistical
@pytest.mark.parametrize("num", [1, 2, 3])
def test_draws_without_replacement(num):
    assert p_of_orders(PAIR, num) > 1e-4


@pytest.mark.statistical
def test_draws_are_found_out_when_prefixes_are_not_conditioned_on(monkeypatch):
    monkeypatch.setattr(_finite, "_below", lambda top, g: g)
    assert p_of_orders(PAIR, 2) < 1e-9


def test_most_probable():
    dist = dists.Bernoulli(jnp.asarray(np.random.default_rng(0).normal(size=7)))
    choices, log_p = _finite.Finite.of("", dist).most_probable(20)
    best = sorted(probs_of(dist).items(), key=lambda item: -item[1])[:20]
    assert [tuple(c) for c in np.asarray(choices).tolist()] == [c for c, _ in best]
    np.testing.assert_allclose(np.exp(log_p), [p for _, p in best], rtol=1e-5)


def test_more_than_there_are():
    """The rest is impossible, those that there are have all the mass."""
    finite = _finite.Finite.of("", PAIR)
    for _, log_p in (finite.most_probable(9), finite.without_replacement(keys(1)[0], 9)):
        assert np.isneginf(log_p[6:]).all()
        np.testing.assert_allclose(np.sum(np.exp(log_p[:6])), 1.0, rtol=1e-6)


# ---- The ratios ----------------------------------------------------------------------------


def set_prob(p, removed=0.0):
    """Of drawing all of `p`, in any order, from what is left after `removed`."""
    total = 0.0
    for order in itertools.permutations(p):
        q, rest = 1.0, 1.0 - removed
        for each in order:
            q, rest = q * each / rest, rest - each
        total += q
    return total


@pytest.mark.parametrize("p", [(0.1, 0.25), (0.3, 0.01, 0.6), (0.1, 0.25, 0.05, 0.3), (0.5, 0.5)])
def test_ratios(p, x64):
    first, second = map(np.exp, jax.jit(unordered_set._log_ratios)(np.log(np.array(p))))
    without = lambda *left_out: [x for i, x in enumerate(p) if i not in left_out]
    for i, s in enumerate(p):
        np.testing.assert_allclose(first[i], set_prob(without(i), s) / set_prob(p), rtol=1e-10)
        for j, other in enumerate(p):
            ratio = set_prob(without(i, j), s + other) / set_prob(without(i), s) if i != j else 1
            np.testing.assert_allclose(second[i, j], ratio, rtol=1e-10)


LOG_PROBS = {
    "one has nearly all": [-1e-9, -25.0, -30.0],
    "tiny": [-100.0, -101.0, -150.0],
    "of all sizes": [-1.0, -30.0, -80.0],
    "all there is": [math.log(0.5), math.log(0.3), math.log(0.2)],
    "more than there is": [math.log(0.4), math.log(0.6), -math.inf],
    "many": np.log(np.linspace(1, 9, 64) / 700),
}


@pytest.mark.parametrize("name", LOG_PROBS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weights_sum_to_one(name, dtype, x64):
    """Those of the draws and, for each, of the others and itself in its baseline."""
    l = jnp.asarray(LOG_PROBS[name], dtype)
    first, second = jax.jit(unordered_set._log_ratios)(l)
    rtol = 1e-10 if dtype == jnp.float64 else 2e-4
    np.testing.assert_allclose(jnp.sum(jnp.exp(l + first)), 1.0, rtol=rtol)
    of_others = jnp.exp(l[None] + second)
    possible = np.asarray(l) > -np.inf
    np.testing.assert_allclose(jnp.sum(of_others, 1)[possible], 1.0, rtol=rtol)
    assert np.isfinite(of_others).all()


@pytest.mark.parametrize("logit", [5.0, 12.0, 17.0, 20.0])
def test_ratios_in_single_precision(logit, x64):
    """Each of them, also where the first draw has all the mass but a few digits' worth."""
    finite = _finite.Finite.of("", dists.Bernoulli(jnp.full(3, logit)))
    _, l = finite.most_probable(3)
    for got, want in zip(
        unordered_set._log_ratios(l.astype(jnp.float32)), unordered_set._log_ratios(l), strict=True
    ):
        np.testing.assert_allclose(np.exp(got), np.exp(want), rtol=1e-4)


@pytest.mark.parametrize("logit", [3.0, 14.0, 20.0])
def test_nearly_certain_draws(logit):
    """One variable, both of whose values are evaluated: exact."""
    exact = jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit) * 0.1
    cost = lambda b: (b - 0.45) ** 2
    for sampler in (ge.unordered_set(2), ge.sum_and_sample()):
        loss = lambda l, s=sampler: s.expect(jax.random.key(0), dists.Bernoulli(l), cost)
        g = jax.jit(jax.grad(loss))(logit)
        np.testing.assert_allclose(g, exact, rtol=1e-5)


# ---- The published problem -----------------------------------------------------------------

TARGET = (0.6, 0.51, 0.48)
UNORDERED_SET = {2: 6.1125e-3, 3: 2.2625e-3, 4: 1.1308e-3, 5: 6.105e-4, 6: 3.165e-4, 7: 1.2917e-4}
LEAVE_ONE_OUT = {2: 7.275e-3, 3: 3.2e-3, 4: 1.9875e-3, 5: 1.425e-3, 6: 1.105e-3, 7: 9.0e-4}
LEAVE_ONE_OUT[8] = 7.58e-4
MEAN = -0.045


def shared_logit(sampler, num=100_000):
    """Gradients of E|b - target|^2, three Bernoulli variables that share one logit."""
    cost = lambda b: jnp.sum((b - jnp.array(TARGET)) ** 2)
    loss = lambda l, key: sampler.expect(key, dists.Bernoulli(jnp.full(3, l)), cost)
    return optimized(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(0.0, keys(num))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", UNORDERED_SET)
def test_published_variance(k, monkeypatch):
    """Over all sets, which are equally probable where all configurations are."""
    configurations = jnp.asarray(list(itertools.product([0, 1], repeat=3)))
    sets = jnp.asarray(list(itertools.combinations(range(8), k)))
    given = lambda self, key, num: (configurations[key], jnp.full(num, -math.log(8)))
    monkeypatch.setattr(_finite.Finite, "without_replacement", given)
    cost = lambda b: jnp.sum((b - jnp.array(TARGET)) ** 2)
    of_set = lambda l, s: unordered_set._estimate(
        s, dists.Bernoulli(jnp.full(3, l)), Cost(lambda b, _: cost(b), ""), num_samples=k
    )
    g = jax.jit(jax.vmap(jax.grad(of_set), in_axes=(None, 0)))(0.0, sets)
    np.testing.assert_allclose(g.mean(), MEAN, rtol=1e-10)
    # As it is printed.
    np.testing.assert_allclose(g.var(), UNORDERED_SET[k], rtol=5e-5)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_published_variance_of_draws():
    samples = shared_logit(ge.unordered_set(3))
    assert_unbiased(samples, MEAN)
    assert_variance(samples, UNORDERED_SET[3])
    with pytest.raises(AssertionError, match="the variance is"):
        assert_variance(samples, 1.1 * UNORDERED_SET[3])
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * samples, MEAN)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", LEAVE_ONE_OUT)
def test_published_variance_of_leave_one_out(k):
    sampler = ge.score_function(num_samples=k, baseline="leave_one_out")
    assert_variance(shared_logit(sampler), LEAVE_ONE_OUT[k])


@pytest.mark.usefixtures("x64")
def test_all_configurations_are_exact():
    np.testing.assert_allclose(shared_logit(ge.unordered_set(8), 100), MEAN, rtol=1e-12)
    all_summed = ge.sum_and_sample(num_summed=8)
    np.testing.assert_allclose(shared_logit(all_summed, 100), MEAN, rtol=1e-12)
    # One variable has no more than two.
    for k in (2, 5):
        toy = estimates.toy(ge.unordered_set(k), 0.3, 0.45, 100)
        np.testing.assert_allclose(toy, 0.3 * 0.7 * 0.1, rtol=1e-12)


# ---- Sum and sample ------------------------------------------------------------------------

ROW = dists.Categorical(jnp.array([0.9, -0.4, 0.3, -1.2, 0.1]))
COSTS = jnp.array([0.4, -1.3, 0.9, 2.0, -0.5])


def sum_and_sample_moments(num_summed, num_samples):
    p = np.asarray(jax.nn.softmax(ROW.logits), np.float64)
    f, scores = np.asarray(COSTS, np.float64), np.eye(5) - p
    best = np.argsort(-p)[:num_summed]
    rest = np.setdiff1d(np.arange(5), best)
    signal = (f - p[best] @ f[best] / p[best].sum())[:, None] * scores
    q = p[rest] / p[rest].sum()
    mean = q @ signal[rest]
    variance = q @ (signal[rest] - mean) ** 2
    share = p[rest].sum()
    return p @ (f[:, None] * scores), share**2 * variance / num_samples


@pytest.mark.statistical
@pytest.mark.parametrize(("num_summed", "num_samples"), [(1, 1), (2, 1), (3, 4)])
def test_sum_and_sample_moments(num_summed, num_samples):
    sampler = ge.sum_and_sample(num_summed=num_summed, num_samples=num_samples)
    samples = of_dist(sampler, lambda x: COSTS[x], ROW, 100_000).logits
    mean, variance = sum_and_sample_moments(num_summed, num_samples)
    assert_unbiased(samples, mean)
    assert_variance(samples, variance)
    with pytest.raises(AssertionError, match="the variance is"):
        assert_variance(samples, variance * 1.15)


# ---- The contract --------------------------------------------------------------------------

MAKE = {
    "unordered_set": lambda: ge.unordered_set(3),
    "sum_and_sample": lambda: ge.sum_and_sample(num_summed=2),
}
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@pytest.mark.statistical
@each
def test_dependent_sites(make):
    loss = estimates.chain(make, ge.score_function)
    samples = gradients(loss, estimates.chain_params(), 100_000)
    assert_unbiased(samples, estimates.exact_chain())


@pytest.mark.statistical
@each
def test_lanes_are_one_joint_draw(make):
    got, want = estimates.lanes(make)
    assert_unbiased(got, want)


@each
def test_first_order_only(make):
    estimates.assert_first_order(make(), dists.Bernoulli(jnp.array([0.4, -0.7])))


@pytest.mark.statistical
@each
def test_mixed_second_derivatives(make):
    got, want = estimates.mixed(make(), 100_000)
    assert_unbiased(got, want)


@each
def test_impossible_draws_count_for_nothing(make):
    """Whatever they cost."""
    dist = dists.Categorical(jnp.array([0.3, -jnp.inf, 0.8, -0.2]))
    costs = jnp.array([1.0, jnp.nan, 2.0, 0.5])
    got = of_dist(make(), lambda x: costs[x], dist, 50).logits
    assert np.isfinite(got).all()
    assert (np.asarray(got)[:, 1] == 0).all()


@pytest.mark.statistical
def test_many_variables():
    """Thirty bits, whose configurations nobody can list."""
    dist = dists.Bernoulli(jnp.linspace(-3, 3, 30))
    cost = lambda b: jnp.sum(b * jnp.linspace(1.0, 2.0, 30))
    exact = jax.jit(jax.grad(lambda d: cost(jax.nn.sigmoid(d.logits))))(dist).logits
    for make in MAKE.values():
        samples = np.asarray(of_dist(make(), cost, dist, 20_000).logits)
        along = (samples @ np.asarray(exact) / np.sum(np.asarray(exact) ** 2))[:, None]
        assert_unbiased(along, np.ones(1))
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(1.1 * along, np.ones(1))


@pytest.mark.statistical
def test_value_is_unbiased():
    dist = dists.Bernoulli(jnp.array([0.4, -0.7, 0.9]))
    cost = functools.partial(lambda w, x: jnp.sum(w * x) ** 2 + 1, jnp.array([0.9, -0.6, 0.5]))
    for make in MAKE.values():
        value = jax.jit(jax.vmap(lambda k, make=make: make().expect(k, dist, cost)))(keys(50_000))
        assert_unbiased(value, oracles.expectation(dist, cost))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ge.unordered_set(1), "num_samples: expected an integer of at least 2, got 1"),
        (lambda: ge.sum_and_sample(num_summed=0), "num_summed: expected an integer of at least 1"),
        (lambda: ge.sum_and_sample(num_samples=0), "num_samples: expected an integer of at least"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@each
def test_other_distributions(make):
    with pytest.raises(TypeError, match=r"expected one of .* got Normal"):
        make().expect(jax.random.key(0), dists.Normal(0.0, 1.0), jnp.sum)
