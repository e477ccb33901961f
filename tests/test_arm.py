"""ARM and DisARM: moments in closed form, and over all pairs of walks down a tree."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import estimates
from support.estimates import assert_unbiased, assert_variance, exact, of_dist, toy

import gradest as ge
from gradest import distributions as dists
from gradest.estimators import arm as module

NUM_KEYS = 400_000
ESTIMATORS = {"arm": ge.arm, "disarm": ge.disarm}

# ---- One Bernoulli variable ----------------------------------------------------------------


def closed_form(name: str, p: float, t: float) -> float:
    d, m = 1 - 2 * t, min(p, 1 - p)
    if name == "arm":
        return d**2 * (2 / 3 * (1 / 8 - (1 / 2 - m) ** 3) - (p * (1 - p)) ** 2)
    return d**2 * m * (1 - m) ** 2 * (1 / 2 - m)


@pytest.mark.statistical
@pytest.mark.parametrize(("p", "t"), [(0.3, 0.45), (0.8, 0.2)])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("x64")
def test_one_bernoulli(name, p, t):
    samples = toy(ESTIMATORS[name](), p, t, NUM_KEYS)
    assert_unbiased(samples, p * (1 - p) * (1 - 2 * t))
    assert_variance(samples, closed_form(name, p, t))
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, p * (1 - p) * (1 - 2 * t))


@pytest.mark.usefixtures("x64")
def test_one_even_bernoulli_by_disarm_has_no_variance():
    np.testing.assert_allclose(toy(ge.disarm(), 0.5, 0.45, 100), 0.025, rtol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("x64")
def test_one_bernoulli_by_a_broken_one(name, monkeypatch):
    other = {"arm": ge.disarm, "disarm": ge.arm}[name]
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(toy(other(), 0.3, 0.45, NUM_KEYS), closed_form(name, 0.3, 0.45))

    antithetic = module._random.antithetic

    def not_antithetic(key, logits):
        # The uniform number is not reflected: the second draw is always the first.
        _, second, u = antithetic(key, logits)
        return second, second, u

    monkeypatch.setattr(module._random, "antithetic", not_antithetic)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(toy(ESTIMATORS[name](), 0.3, 0.45, NUM_KEYS), 0.021)


# ---- Several elements, separable -----------------------------------------------------------


P, T = np.array([0.3, 0.6, 0.85]), np.array([0.3, 0.7, 0.1])


def separable(name: str) -> np.ndarray:
    """Variances for the cost |b - t|^2: those of one element, and noise from the others."""
    d, m = 1 - 2 * T, np.minimum(P, 1 - P)
    others = np.sum(d**2 * m) - d**2 * m
    alone = np.array([closed_form(name, p, t) for p, t in zip(P, T, strict=True)])
    return alone + ((1 - m) ** 2 * m * others if name == "disarm" else others / 6)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("x64")
def test_several_bernoullis(name):
    dist = dists.Bernoulli(jnp.log(P / (1 - P)))
    samples = of_dist(ESTIMATORS[name](), lambda b: jnp.sum((b - T) ** 2), dist, NUM_KEYS).logits
    assert_unbiased(samples, P * (1 - P) * (1 - 2 * T))
    assert_variance(samples, separable(name))
    other = {"arm": "disarm", "disarm": "arm"}[name]
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(samples, separable(other))
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, P * (1 - P) * (1 - 2 * T))


# ---- Categories ----------------------------------------------------------------------------


def pairs(p: np.ndarray) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of draws: probability, the two one-hot draws, and the gradient's direction.

    Walks down the tree of categories, node by node: a node's two binary draws are antithetic
    while both walks are there, and independent of the other walk's below. The direction is
    (half of) DisARM's at the nodes that both visit and of the score's at the others.
    """
    k = len(p)
    padded = np.concatenate([p, np.zeros(2 ** math.ceil(math.log2(k)) - k)])
    onehot = np.eye(len(padded))

    def score(node: list[int], side: list[int]) -> np.ndarray:
        """d log(P(side) / P(node)) / d logits."""
        of = lambda part: np.where(np.isin(np.arange(len(padded)), part), padded, 0)
        return of(side) / of(side).sum() - of(node) / of(node).sum()

    def one(node: list[int]) -> list[tuple[float, int, np.ndarray]]:
        """A single walk: probability, category, and its score."""
        if len(node) == 1:
            return [(1.0, node[0], np.zeros(len(padded)))]
        out = []
        for side in (node[: len(node) // 2], node[len(node) // 2 :]):
            if share := padded[side].sum() / padded[node].sum():
                out += [(share * q, x, s + score(node, side)) for q, x, s in one(side)]
        return out

    def both(node: list[int]) -> list[tuple[float, int, int, np.ndarray]]:
        if len(node) == 1:
            return [(1.0, node[0], node[0], np.zeros(len(padded)))]
        left, right = node[: len(node) // 2], node[len(node) // 2 :]
        share = padded[left].sum() / padded[node].sum()
        out = []
        # P(both left) = max(0, 2 P(left) - 1), as of u and 1 - u.
        for side, prob in ((left, 2 * share - 1), (right, 1 - 2 * share)):
            if prob > 0:
                out += [(prob * q, x, y, d) for q, x, y, d in both(side)]
        if min(share, 1 - share) > 0:
            # d log-odds of left against right, times sigma(|log-odds|).
            odds = (score(node, left) - score(node, right)) * max(share, 1 - share)
            for (q, x, s), (r, y, t) in itertools.product(one(left), one(right)):
                prob = min(share, 1 - share) * q * r
                out += [(prob, x, y, odds + s - t), (prob, y, x, -(odds + s - t))]
        return out

    walks = both(list(range(len(padded))))
    return [(q, onehot[x, :k], onehot[y, :k], d[:k]) for q, x, y, d in walks]


def moments(p: np.ndarray, cost) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of DisARM's gradient, for rows of categories."""
    mean = second = np.zeros_like(p)
    for rows in itertools.product(*map(pairs, p)):
        prob = math.prod(row[0] for row in rows)
        x, y, direction = (np.stack([row[i] for row in rows]) for i in (1, 2, 3))
        g = (cost(x) - cost(y)) / 2 * direction
        mean, second = mean + prob * g, second + prob * g**2
    return mean, second - mean**2


LOGITS = {
    "one row": np.array([[0.3, -1.5, 0.8, -0.2, 0.4]]),
    "eight": np.array([[0.3, -0.5, 0.8, -0.2, 0.1, 1.1, -0.9, 0.2]]),
    "two rows": np.array([[0.3, -0.5, 0.8], [-0.9, 1.6, 0.1]]),
    "masked": np.array([[0.3, -np.inf, 0.8, 0.1], [-0.9, 1.6, -np.inf, -np.inf]]),
}


def rows_cost(x):
    """Not separable; of NumPy and of JAX arrays."""
    w = np.cos(1.7 * np.arange(x.size)).reshape(x.shape)
    s = (w * x).sum()
    return (s - 0.7) ** 2 + 0.6 * s**3 + x[0, 0] * x[-1, -1]


@pytest.mark.statistical
@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.usefixtures("x64")
def test_categories(name):
    logits = LOGITS[name]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    dist = dists.OneHotCategorical(jnp.asarray(logits))
    want = exact(dist, rows_cost).logits
    mean, variance = moments(p, rows_cost)
    np.testing.assert_allclose(mean, want, atol=1e-12)
    samples = of_dist(ge.disarm(), rows_cost, dist, NUM_KEYS).logits
    possible = np.isfinite(logits)
    assert (np.asarray(samples)[:, ~possible] == 0).all()
    assert_unbiased(samples, want)
    assert_variance(samples[:, possible], variance[possible])
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples[:, possible], variance[possible])


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_categories_with_no_correction_where_the_walks_part(monkeypatch):
    """The score function below the node and above it: right only if the walks are independent."""
    dist = dists.OneHotCategorical(jnp.asarray(LOGITS["two rows"]))
    tree = module._tree

    def without_correction(key, l):
        first, second, _ = tree(key, l)
        return first, second, first - second

    monkeypatch.setattr(module, "_tree", without_correction)
    samples = of_dist(ge.disarm(), rows_cost, dist, NUM_KEYS).logits
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(samples, exact(dist, rows_cost).logits)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_two_categories_are_one_bernoulli():
    cost = lambda b: (b - 0.2) ** 2
    p, t = 0.8, 0.2
    logits = jnp.array([math.log(p / (1 - p)), 0.0])
    dist = dists.OneHotCategorical(logits)
    samples = of_dist(ge.disarm(), lambda x: cost(x[0]), dist, NUM_KEYS).logits
    np.testing.assert_allclose(samples[:, 0], -samples[:, 1], atol=1e-12)
    assert_unbiased(samples[:, 0], p * (1 - p) * (1 - 2 * t))
    assert_variance(samples[:, 0], closed_form("disarm", p, t))


# ---- The contract --------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("name", ESTIMATORS)
def test_value_is_the_mean_of_both_costs(name):
    """Each of the pair has the distribution of a draw, so the value has its mean."""
    dist, seen = dists.Bernoulli(jnp.array([0.4, -0.7])), []

    def cost(b):
        seen.append(b.shape)
        return jnp.sum(b * jnp.array([1.0, 2.0]))

    value = jax.jit(jax.vmap(lambda key: ESTIMATORS[name]().expect(key, dist, cost)))(
        estimates.keys()
    )
    assert seen == [(2,)]
    assert_unbiased(value, np.array(jax.nn.sigmoid(dist.logits)) @ [1.0, 2.0])
    possible = {0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0}
    assert set(np.unique(value)) <= possible


def test_the_pair_shares_what_comes_after():
    """A later draw that the first has no part in cancels from the difference of the costs."""

    @ge.expectation
    def loss(logits, key):
        one, two = jax.random.split(key)
        b = ge.disarm()(one, dists.Bernoulli(logits))
        later = ge.score_function()(two, dists.Bernoulli(jnp.zeros(20)))
        return (b - 0.45) ** 2 + 100 * jnp.sum(later)

    np.testing.assert_allclose(estimates.gradients(loss, 0.0, 100), 0.025, rtol=1e-2)


CHAINS = {
    "arm, disarm": (ge.arm, ge.disarm),
    "disarm, arm": (ge.disarm, ge.arm),
    "disarm, relax": (ge.disarm, lambda: ge.relax(lambda w, x: jnp.sum(w * x), 0.4)),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHAINS)
def test_dependent_sites(name):
    samples = estimates.gradients(estimates.chain(*CHAINS[name]), estimates.chain_params())
    assert_unbiased(samples, estimates.exact_chain())
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(jax.tree.map(lambda x: 1.05 * x, samples), estimates.exact_chain())


@pytest.mark.statistical
@pytest.mark.parametrize("name", ESTIMATORS)
def test_lanes(name):
    assert_unbiased(*estimates.lanes(ESTIMATORS[name]))


@pytest.mark.statistical
@pytest.mark.parametrize("name", ESTIMATORS)
def test_mixed_second_derivatives(name):
    samples, want = estimates.mixed(ESTIMATORS[name]())
    assert_unbiased(samples, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, want)


def test_other_distributions():
    key, cost = jax.random.key(0), lambda x: jnp.sum(x)
    with pytest.raises(TypeError, match=r"arm: .* got OneHotCategorical.*disarm"):
        ge.arm().expect(key, dists.OneHotCategorical(jnp.zeros(3)), cost)
    with pytest.raises(TypeError, match=r"disarm: .* got Normal"):
        ge.disarm().expect(key, dists.Normal(0.0, 1.0), cost)
