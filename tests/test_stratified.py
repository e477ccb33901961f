"""stratified: exact moments of draws of which one is in each part, and limits of the formulas."""

import functools
import importlib
import itertools
import math
import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import estimates
from support.estimates import DISTRIBUTIONS, assert_unbiased, assert_variance, keys, toy

import gradest as ge
from gradest import distributions as dists
from gradest import records
from gradest.estimators import stratified as module

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

several_bits = importlib.import_module("benchmarks.several_bits")

NUM_KEYS = 100_000
KEY = jax.random.key(0)

# ---- Bits ----------------------------------------------------------------------------------


def closed_form(p, t, n):
    """By the number of draws of 1, one of two: the docstring's."""
    q = min(p, 1 - p)
    m = math.floor(n * q)
    r, odd = n * q - m, n - 1 - 2 * m
    return ((1 - 2 * t) * p * (1 - p) * odd / (m * (n - m) + r * odd)) ** 2 * r * (1 - r)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("p", "t", "n", "variance"),
    [
        *((0.1, 0.49, 4, 4.86e-6), (0.3, 0.45, 3, 4.9e-5)),
        *((0.3, 0.45, 4, 6.89062e-6), (0.3, 0.45, 6, 1.15968e-5)),
    ],
)
@pytest.mark.usefixtures("x64")
def test_one_bernoulli(p, t, n, variance):
    np.testing.assert_allclose(closed_form(p, t, n), variance, rtol=2e-6)
    exact = several_bits.one(p, t).leave_one_out(n, several_bits.stratified)
    np.testing.assert_allclose(exact, closed_form(p, t, n), rtol=1e-9)
    samples = toy(ge.stratified(n), p, t, NUM_KEYS)
    assert_unbiased(samples, p * (1 - p) * (1 - 2 * t))
    assert_variance(samples, exact)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * samples, p * (1 - p) * (1 - 2 * t))
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, exact)


@pytest.mark.usefixtures("x64")
def test_where_there_is_a_whole_number_of_ones_there_is_no_variance():
    np.testing.assert_allclose(toy(ge.stratified(10), 0.8, 0.45, 20), 0.016, rtol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize(("n", "variance"), [(3, 0.201726), (4, 0.135067)])
def test_bits_that_the_cost_couples(n, variance):
    bits = several_bits.coupled()
    exact = bits.leave_one_out(n, several_bits.stratified)
    np.testing.assert_allclose(exact, variance, rtol=5e-6)
    law = dists.Bernoulli(jnp.asarray(several_bits._LOGITS))
    pairs = jnp.asarray(several_bits._PAIRS, jnp.float32)
    cost = lambda x: jnp.sum((x - 0.499) ** 2) + x @ pairs @ x + 0.5 * x[0] * x[1] * x[2]
    got = np.asarray(estimates.of_dist(ge.stratified(n), cost, law, NUM_KEYS).logits, float)
    assert_unbiased(got, bits.gradient)
    errors = got - got.mean(axis=0)
    # Of the trace: the sum of squares has the mean of the variance.
    assert_unbiased(np.sum(errors**2, axis=1), np.asarray(exact))
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(np.sum((1.05 * errors) ** 2, axis=1), np.asarray(exact))


@pytest.mark.usefixtures("x64")
def test_two_draws_are_disarm():
    """The same gradients, as often."""
    law = dists.Bernoulli(jnp.array([0.7, -1.1]))
    cost = lambda x: (x[0] - 0.3 + 2 * x[1]) ** 2

    def outcomes(sampler):
        found = np.round(estimates.of_dist(sampler, cost, law, 40_000).logits, 9) + 0.0
        return np.unique(found, axis=0, return_counts=True)

    (ours, counts), (theirs, expected) = outcomes(ge.stratified(2)), outcomes(ge.disarm())
    np.testing.assert_allclose(ours, theirs, atol=2e-9)
    _, p, *_ = scipy.stats.chi2_contingency(np.stack([counts, expected]))
    assert np.asarray(p, float) > 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_factor_in_the_limits(dtype, request):
    """1 - p at p = 0, p at p = 1, and never 0 / 0."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    logits = jnp.array([-jnp.inf, -60.0, -9.0, -1.2, 0.0, 0.4, 9.0, 60.0, jnp.inf], dtype)
    for n in (2, 5):
        correct = lambda l, n=n: module._bits(KEY, dists.Bernoulli(l), n)[2](jnp.ones(9))
        got = jax.jit(correct)(logits)
        p = 1 / (1 + np.exp(-np.asarray(logits, float)))
        rare = np.minimum(p, 1 - p)
        rare = np.where(np.abs(np.asarray(logits, float)) > 50, 0, rare)
        m = np.floor(n * rare)
        r = n * rare - m
        want = [
            1 - q if m == 0 else several_bits.correction(q, several_bits.stratified(q, n))
            for q, m in zip(rare, m, strict=True)
        ]
        np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=str(r))
    loss = lambda l: ge.stratified(3).expect(KEY, dists.Bernoulli(l), lambda b: jnp.sum(b) ** 2)
    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert np.isfinite(np.asarray(value, float))
    assert np.isfinite(np.asarray(gradient, float)).all()
    np.testing.assert_array_equal(np.asarray(gradient, float)[[0, -1]], 0.0)


# ---- Categories ----------------------------------------------------------------------------


def by_permutations(p, f, n):
    """Mean and variance of the gradient of one row, from every permutation and outcome."""
    k, ends = len(p), np.concatenate([[0], np.cumsum(p)])
    inside = lambda s, a: min(ends[a + 1], (s + 1) / n) - max(ends[a], s / n)
    q = np.array([[n * max(0.0, inside(s, a)) for a in range(k)] for s in range(n)])
    joint = {}
    for order in itertools.permutations(range(n)):
        for draws in itertools.product(range(k), repeat=n):
            prob = np.prod([q[s, a] for s, a in zip(order, draws, strict=True)])
            joint[draws] = joint.get(draws, 0.0) + prob / math.factorial(n)
    both = np.zeros((k, k))
    for draws, prob in joint.items():
        both[draws[0], draws[1]] += prob
    independent = np.diag(p) - np.outer(p, p)
    correction = independent @ np.linalg.pinv(np.diag(p) - both)
    costs = {d: f[list(d)] - f[list(d)].mean() for d in joint}
    g = {d: correction @ (c @ np.eye(k)[list(d)]) / (n - 1) for d, c in costs.items()}
    mean = sum(prob * g[d] for d, prob in joint.items())
    np.testing.assert_allclose(mean, independent @ f, atol=1e-12)
    return mean, np.sum([prob * (g[d] - mean) ** 2 for d, prob in joint.items()], axis=0)


@pytest.mark.statistical
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.usefixtures("x64")
def test_categories(n):
    """Two categories within one stratum are never drawn together."""
    p, f = np.array([0.62, 0.13, 0.15, 0.1]), np.array([1.3, -0.4, 0.9, 2.0])
    mean, variance = by_permutations(p, f, n)
    law = dists.OneHotCategorical(probs=jnp.asarray(p))
    got = estimates.of_dist(ge.stratified(n), lambda x: x @ jnp.asarray(f), law, NUM_KEYS).logits
    assert_unbiased(got, mean)
    assert_variance(got, variance)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got, mean)
    # Less than that of leave-one-out of as many independent draws.
    one = np.eye(4) - p
    around = f - p @ f
    score = p @ (around[:, None] * one) ** 2 / n - (n - 2) * mean**2 / (n * (n - 1))
    both = (p @ around**2) * (p @ one**2) / (n * (n - 1))
    assert variance.sum() < (score + both).sum()


def test_rare_categories_are_as_probable_as_they_should_be():
    """Though the running sums in single precision do not have the digits."""
    p = jnp.array([0.7, 1e-9, 0.3, 3e-9])
    shares = module._shares(5, p)
    np.testing.assert_allclose(jnp.sum(shares, axis=0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(5 * p[None] * shares, axis=1), 1.0, rtol=1e-6)
    # A category of the probability 0, and one of all of it.
    assert np.isfinite(module._shares(3, jnp.array([0.0, 1.0, 0.0]))).all()


# ---- Quantiles -----------------------------------------------------------------------------

QUANTILE = records.CAPABILITIES["quantile"]
WITH_QUANTILE = [r.name for r in records.DISTRIBUTIONS.values() if QUANTILE.of(r.kind)]
#: scipy's, of the same parameters.
REFERENCES = {
    "Normal": lambda d: scipy.stats.norm(d.loc, d.scale),
    "LogNormal": lambda d: scipy.stats.lognorm(d.scale, scale=np.exp(d.loc)),
    "Laplace": lambda d: scipy.stats.laplace(d.loc, d.scale),
    "Logistic": lambda d: scipy.stats.logistic(d.loc, d.scale),
    "Gumbel": lambda d: scipy.stats.gumbel_r(d.loc, d.scale),
    "Exponential": lambda d: scipy.stats.expon(scale=1 / d.rate),
    "Uniform": lambda d: scipy.stats.uniform(d.low, d.high - d.low),
    "Weibull": lambda d: scipy.stats.weibull_min(d.concentration, scale=d.scale),
}


def test_which_have_a_quantile_function():
    assert set(WITH_QUANTILE) == set(REFERENCES)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", WITH_QUANTILE)
def test_quantile(name, dtype, request):
    """In the tails too: as far as u itself has digits there."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    wide = "float64" if dtype == "float64" else "float32"
    dist = jax.tree.map(lambda x: x.astype(dtype), DISTRIBUTIONS[name]())
    numbers = jax.tree.map(lambda x: np.asarray(x, float), dist)
    epsilon = float(jnp.finfo(wide).epsneg)
    u = jnp.array([1e-18, 1e-7, 0.013, 0.25, 0.5, 0.61, 0.9, 1 - 3 * epsilon, 1 - epsilon], wide)
    u = jnp.stack([u, u[::-1]], axis=1)
    got = jax.vmap(dist.quantile)(u)
    assert got.dtype == dtype
    assert np.isfinite(np.asarray(got, float)).all()
    at = np.asarray(u, float)
    # From the nearer end: scipy's ppf loses digits of 1 - u where it computes in u.
    law = REFERENCES[name](numbers)
    want = np.where(at < 0.5, law.ppf(at), law.isf(1 - at))
    rtol = max(float(jnp.finfo(dtype).eps), {"float64": 1e-13, "float32": 3e-6}[wide])
    scale = np.max(np.abs(law.ppf(0.75)))
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=2 * rtol, atol=rtol * scale)


@pytest.mark.parametrize("name", WITH_QUANTILE)
@pytest.mark.usefixtures("x64")
def test_derivative_of_the_quantile(name):
    """By differences, at a grid of u."""
    dist = jax.tree.map(lambda x: x.astype(float), DISTRIBUTIONS[name]())
    leaves, structure = jax.tree.flatten(dist)
    u = jnp.stack([jnp.linspace(1e-6, 1 - 1e-6, 7)] * 2, axis=1)
    of = lambda leaves: jax.vmap(jax.tree.unflatten(structure, leaves).quantile)(u)
    moved = [jnp.array([0.3, -0.2]) * (i + 1) for i in range(len(leaves))]
    _, got = jax.jvp(of, (leaves,), (moved,))
    at = lambda h: of([leaf + h * m for leaf, m in zip(leaves, moved, strict=True)])
    np.testing.assert_allclose(got, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-9)


def test_every_element_has_one_draw_in_each_part():
    """In lanes too; and each in an order of its own."""
    n, law = 8, dists.Uniform(jnp.zeros((2, 3)), 1.0)
    x = module._quantiles(KEY, law, n)
    parts = np.floor(n * np.asarray(x)).reshape(n, 6)
    np.testing.assert_array_equal(np.sort(parts, axis=0), np.arange(n)[:, None] * np.ones(6))
    assert len({tuple(column) for column in parts.T}) == 6
    lanes = jax.random.split(KEY, 2)
    together = module._quantiles(lanes, law, n)
    each = dists.Uniform(jnp.zeros(3), 1.0)
    for i in range(2):
        np.testing.assert_array_equal(together[:, i], module._quantiles(lanes[i], each, n))


# ---- Normal variables: variances in closed form --------------------------------------------

A, SCALE = 0.9, 1.3


def of_strata(n):
    """E[z^k; stratum] of a standard normal z for k = 0, 1, 2, 3, 4, and each of n strata."""
    ends = scipy.stats.norm.ppf(np.arange(n + 1) / n)
    density = scipy.stats.norm.pdf(ends)
    inner = np.where(np.isfinite(ends), ends, 0)
    moments = [np.full(n, 1 / n), -np.diff(density)]
    for k in (2, 3, 4):
        moments.append((k - 1) * moments[k - 2] - np.diff(inner ** (k - 1) * density))
    return moments


def variance_of_mean(n, linear, square):
    """Of linear z + square z^2, with one z in each stratum."""
    _, z1, z2, z3, z4 = of_strata(n)
    second = linear**2 * z2 + 2 * linear * square * z3 + square**2 * z4
    mean = n * (linear * z1 + square * z2)
    return np.sum(n * second - mean**2) / n**2


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("n", "of_loc", "of_scale"),
    [
        (4, 0.235656003, 2.25072002),
        (16, 0.00939001639, 0.170100204),
        (64, 0.000412539593, 0.0116016155),
    ],
)
def test_normal_moments(n, of_loc, of_scale):
    exact = np.array([variance_of_mean(n, 2 * SCALE, 0), variance_of_mean(n, 2 * A, 2 * SCALE)])
    np.testing.assert_allclose(exact, [of_loc, of_scale], rtol=1e-8)
    cost = lambda x: (x - 0.4) ** 2
    g = estimates.of_dist(ge.stratified(n), cost, dists.Normal(A + 0.4, SCALE), 40_000)
    samples = np.stack([g.loc, g.scale], axis=1)
    assert_unbiased(samples, np.array([2 * A, 2 * SCALE]))
    assert_variance(samples, exact)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * samples, exact)


def logistic_regression():
    """Of 200 synthetic observations with 10 features: the negative log joint, and the weights."""
    of_features, of_weights, of_labels = jax.random.split(jax.random.key(0), 3)
    x, weights = jax.random.normal(of_features, (200, 10)), jax.random.normal(of_weights, (10,))
    y = jax.random.uniform(of_labels, (200,)) < jax.nn.sigmoid(x @ weights)

    def cost(w):
        return jnp.sum(jax.nn.softplus(jnp.where(y, -1, 1) * (x @ w))) + jnp.sum(w**2) / 2

    return cost, weights


@pytest.mark.statistical
@pytest.mark.parametrize(("n", "loc", "log_scale"), [(16, 0.03, 0.25), (64, 0.009, 0.11)])
def test_what_it_is_worth_late_in_a_logistic_regression(n, loc, log_scale):
    """The variance next to that of as many independent draws, with standard deviations of 0.2."""
    cost, weights = logistic_regression()
    params = (weights, jnp.full(10, np.log(0.2)))

    def variances(sampler, num):
        def loss(params, key):
            mean, log_scale = params
            return sampler.expect(key, dists.Normal(mean, jnp.exp(log_scale)), cost)

        of = lambda keys: jax.lax.map(lambda k: jax.grad(loss)(params, k), keys, batch_size=100)
        found = jax.jit(of)(keys(num))
        return np.array([float(jnp.sum(jnp.var(leaf, axis=0))) for leaf in found])

    ratios = variances(ge.stratified(n), 1_000) / (variances(ge.reparameterize(), 4_000) / n)
    assert ratios[0] < loc
    assert ratios[1] < log_scale


# ---- In programs ---------------------------------------------------------------------------


def test_number_of_samples():
    for wrong in (1, 0, -2):
        with pytest.raises(ValueError, match=rf"^num_samples: .* at least 2.*{wrong}"):
            ge.stratified(wrong)
    with pytest.raises(TypeError, match=r"^num_samples: "):
        ge.stratified(2.5)  # pyright: ignore[reportArgumentType]


def test_who_has_neither_quantile_nor_logits_is_refused():
    loss = lambda a: ge.stratified(2).expect(KEY, dists.Gamma(a, 1.0), lambda x: x)
    with pytest.raises(TypeError, match=r"^stratified: .*a quantile function.*got Gamma.*reparam"):
        jax.grad(loss)(2.0)


def test_jumps_matter_to_draws_by_quantiles_only():
    step = lambda x: jnp.where(x > 0.4, 1.0, 0.0)
    of = lambda law: lambda p: ge.stratified(4).expect(KEY, law(p), step)
    with pytest.raises(ge.UnestimatedGradientError, match=r"^stratified: .* jumps at a comparison"):
        jax.grad(of(lambda m: dists.Normal(m, 1.0)))(0.3)
    both = lambda m: ge.expectation(
        lambda m, key: step(ge.stratified(4)(key, dists.Normal(m, 1.0))) + m
    )(m, KEY)
    with pytest.raises(ge.UnestimatedGradientError, match="stratified"):
        jax.grad(both)(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.grad(of(dists.Bernoulli))(0.3) > 0
        bits = ge.expectation(lambda l, key: step(ge.stratified(4)(key, dists.Bernoulli(l))))
        assert jax.grad(bits)(0.3, KEY) > 0


def test_explain_offers_it_where_it_is_right():
    jump = lambda law: lambda p, key: jnp.where(ge.score_function()(key, law(p)) > 0.4, 1.0, 0.0)
    others = lambda law: ge.explain(jump(law))(0.3, KEY).rows[0]["others"]
    assert others(dists.Bernoulli)["stratified"] == 4
    assert "stratified" not in others(lambda m: dists.Normal(m, 1.0))
    smooth = lambda m, key: ge.stratified(6)(key, dists.Normal(m, 1.0)) ** 2
    (row,) = ge.explain(smooth)(0.3, KEY).rows
    assert (row["follows"], row["cost_evaluations"]) == ("smooth", 6)


def test_in_a_loop_it_is_refused_as_others_of_several_samples_are():
    def loss(l, key, sampler):
        step = lambda x, key: (x + sampler(key, dists.Bernoulli(l)), None)
        return jax.lax.scan(step, 0.0, jax.random.split(key, 3))[0] ** 2

    messages = []
    for sampler in (ge.stratified(2), ge.disarm()):
        with pytest.raises(NotImplementedError) as error:
            jax.grad(ge.expectation(functools.partial(loss, sampler=sampler)))(0.3, KEY)
        messages.append(str(error.value))
    ours, theirs = messages
    assert ours.replace("stratified", "disarm").split(" (at")[0] == theirs.split(" (at")[0]


def test_second_derivatives():
    """By quantiles they are right, of discrete draws they raise; mixed ones are right."""
    second = jax.grad(
        jax.grad(
            lambda s: ge.stratified(64).expect(KEY, dists.Normal(0.3, s), lambda x: x**3 + x**2)
        )
    )(0.7)
    np.testing.assert_allclose(second, 2 + 6 * 0.3, rtol=0.05)
    of_bits = lambda l: ge.stratified(3).expect(KEY, dists.Bernoulli(l), lambda b: (b - 0.3) ** 2)
    with pytest.raises(NotImplementedError, match="stratified: its gradient was differentiated"):
        jax.grad(jax.grad(of_bits))(0.2)
    got, want = estimates.mixed(ge.stratified(3), 50_000)
    assert_unbiased(got, want)


def test_several_runs_of_a_loss():
    """Each with draws of its own; as many as there are runs, and independent."""

    def loss(m, key):
        x = ge.stratified(4)(key, dists.Normal(m, 1.0))
        b = ge.stratified(3)(jax.random.fold_in(key, 1), dists.Bernoulli(x))
        return (b - 0.3) ** 2 * x

    runs = ge.expectation(loss, num_samples=2)
    one, two = (
        np.asarray(jax.jit(jax.vmap(jax.grad(f), (None, 0)))(0.4, keys(20_000)), float)
        for f in (ge.expectation(loss), runs)
    )
    np.testing.assert_allclose(one.mean(), two.mean(), atol=5 * one.std() / len(one) ** 0.5)
    np.testing.assert_allclose(two.var() / one.var(), 0.5, rtol=0.1)
