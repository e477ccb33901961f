"""Distributions against scipy, against quadrature, and against their own draws.

Those that are implicitly reparameterized, mixtures and counts have files of their own.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import test_counts
import test_implicit
import test_structured
from scipy.special import expit, logit, softmax

import gradest as ge
from gradest import distributions as dists
from gradest.distributions import _joint

# ---- The table: parameters, and the same distribution by scipy -------------------------------


class BinaryConcrete:
    """Maddison 2017, eq. 22 and its distribution function, with scipy's names."""

    def __init__(self, temperature, logits):
        self.t, self.l = temperature, logits

    def logpdf(self, x):
        a, t = np.exp(self.l), self.t
        density = t * a * x ** (-t - 1) * (1 - x) ** (-t - 1)
        return np.log(density / (a * x**-t + (1 - x) ** -t) ** 2)

    def cdf(self, x):
        return expit(self.t * logit(x) - self.l)

    def ppf(self, q):
        return expit((self.l + logit(q)) / self.t)


class Case(NamedTuple):
    """Independent continuous variables, three of them; `wrong` moves the first parameter by 5%."""

    parameters: dict[str, list[float]]
    scipy: Callable[..., Any]
    moved: str
    outside: tuple[float, ...] = ()


CONTINUOUS = {
    "Normal": Case({"loc": [0.5, -1, 2], "scale": [0.7, 1.3, 0.2]}, scipy.stats.norm, "scale"),
    "LogNormal": Case(
        {"loc": [0.5, -1, 2], "scale": [0.7, 1.3, 0.2]},
        lambda loc, scale: scipy.stats.lognorm(s=scale, scale=np.exp(loc)),
        "scale",
        outside=(-1.0, 0.0),
    ),
    "Laplace": Case({"loc": [0.5, -1, 2], "scale": [0.7, 1.3, 0.2]}, scipy.stats.laplace, "scale"),
    "Logistic": Case(
        {"loc": [0.5, -1, 2], "scale": [0.7, 1.3, 0.2]}, scipy.stats.logistic, "scale"
    ),
    "Gumbel": Case({"loc": [0.5, -1, 2], "scale": [0.7, 1.3, 0.2]}, scipy.stats.gumbel_r, "scale"),
    "Exponential": Case(
        {"rate": [0.5, 1, 3]},
        lambda rate: scipy.stats.expon(scale=1 / rate),
        "rate",
        outside=(-0.1,),
    ),
    "Uniform": Case(
        {"low": [0.5, -1, 0], "high": [1, 2, 0.3]},
        lambda low, high: scipy.stats.uniform(low, high - low),
        "high",
        outside=(-2.0, 3.0),
    ),
    "RelaxedBernoulli": Case(
        {"temperature": [0.5, 1, 2.5], "logits": [0.3, -1, 2]}, BinaryConcrete, "temperature"
    ),
    "LogitRelaxedBernoulli": Case(
        {"temperature": [0.5, 1, 2.5], "logits": [0.3, -1, 2]},
        lambda temperature, logits: scipy.stats.logistic(logits / temperature, 1 / temperature),
        "temperature",
    ),
}

LOGITS = [[0.3, -1.2, 2.0, -np.inf], [1.0, 0.0, -0.5, 0.7], [-np.inf, -np.inf, 3.0, 2.5]]
TRIL = [[[0.7, 0.0], [-0.6, 1.1]], [[1.0, 0.0], [0.5, 0.3]], [[0.2, 0.0], [0.0, 2.0]]]

DISCRETE = {
    "Bernoulli": {"logits": [0.3, -1.2, 2.0]},
    "Categorical": {"logits": LOGITS},
    "OneHotCategorical": {"logits": LOGITS},
}
VECTORS = {
    "MultivariateNormal": {"loc": [[0.5, -1.0], [0.0, 2.0], [1.0, 1.0]], "scale_tril": TRIL},
    "RelaxedOneHotCategorical": {"temperature": [0.5, 1.0, 2.5], "logits": LOGITS[1]},
    "ExpRelaxedOneHotCategorical": {"temperature": [0.5, 1.0, 2.5], "logits": LOGITS[1]},
}
PARAMETERS = {
    **{name: case.parameters for name, case in CONTINUOUS.items()},
    **DISCRETE,
    **VECTORS,
}
HALF = [jnp.float16, jnp.bfloat16]


def make(name, dtype=jnp.float32, **changed):
    """Three independent elements, or rows."""
    parameters = {**PARAMETERS[name], **changed}
    return getattr(dists, name)(**{k: jnp.asarray(v, dtype) for k, v in parameters.items()})


def event_rank(name):
    return 1 if name in VECTORS or name == "OneHotCategorical" else 0


# Each program runs a few times only, so that compiling it is what takes the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@jit
def draw_and_score(key, dist):
    x = dist.sample(key, (20,))
    return x, dist.log_prob(x)


@pytest.fixture
def standard_promotion():
    """For the code of other libraries."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_table_has_every_distribution():
    public = {name for name, value in vars(dists).items() if isinstance(value, type)}
    elsewhere = {*test_implicit.PARAMETERS, *test_counts.PARAMETERS, *test_structured.CASES}
    alone = {"MixtureSameFamily", "VocabularyCategorical", "LowRankMultivariateNormal"}
    alone |= {"HardConcrete", "RelaxedPermutation"}
    assert public == {*PARAMETERS, *elsewhere, *alone}


# ---- Densities and probabilities -------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_density_is_scipys(name, x64):
    case = CONTINUOUS[name]
    reference = case.scipy(**{k: np.asarray(v, float) for k, v in case.parameters.items()})
    quantiles = np.concatenate([[1e-8, 1e-4], np.linspace(0.01, 0.99, 50), [1 - 1e-4]])
    x = reference.ppf(quantiles[:, None] * np.ones(3))
    got = make(name, jnp.float64).log_prob(x)
    np.testing.assert_allclose(got, reference.logpdf(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [name for name, case in CONTINUOUS.items() if case.outside])
def test_outside_the_support_the_log_density_is_minus_infinity(name):
    dist, x = make(name), jnp.asarray(CONTINUOUS[name].outside)[:, None]
    np.testing.assert_array_equal(dist.log_prob(x), np.full((len(x), 3), -np.inf))
    # And its derivative is no NaN that would spread through a sum.
    gradient = jax.grad(lambda dist: jnp.sum(dist.log_prob(x)))(dist)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_integrate_to_one(name, x64):
    case = CONTINUOUS[name]
    reference = case.scipy(**{k: np.asarray(v, float) for k, v in case.parameters.items()})
    tail = 1e-6
    levels = np.concatenate([10.0 ** np.arange(-6, -1), np.linspace(0.05, 0.95, 19)])
    edges = reference.ppf(np.append(levels, 1 - 10.0 ** np.arange(-2, -7, -1.0))[:, None])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    x = middle + half * nodes[:, None, None]
    density = np.exp(make(name, jnp.float64).log_prob(x))
    mass = np.sum(density * half * weights[:, None, None], axis=(0, 1))
    # The densities with a kink or an endpoint there are hardest.
    np.testing.assert_allclose(mass, 1 - 2 * tail, rtol=1e-5)


def test_bernoulli_against_scipy(x64):
    dist = make("Bernoulli", jnp.float64)
    x = np.array([[0.0], [1.0]])
    probs = expit(PARAMETERS["Bernoulli"]["logits"])
    np.testing.assert_allclose(dist.log_prob(x), scipy.stats.bernoulli.logpmf(x, probs), rtol=1e-13)
    np.testing.assert_allclose(np.exp(dist.log_prob(x)).sum(axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(dist.probs, probs, rtol=1e-14)


def test_categorical_against_scipy(x64):
    dist = make("Categorical", jnp.float64)
    log_p = np.asarray(dist.log_prob(np.arange(4)[:, None]))
    for row, logits in enumerate(LOGITS):
        probs = softmax(logits)
        reference = scipy.stats.rv_discrete(values=(np.arange(4), probs))
        np.testing.assert_allclose(np.exp(log_p[:, row]), reference.pmf(np.arange(4)), rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(dist.probs, softmax(LOGITS, axis=-1), rtol=1e-14)


def test_one_hot_categorical_against_scipy(x64):
    dist = make("OneHotCategorical", jnp.float64)
    log_p = np.asarray(dist.log_prob(np.eye(4)[:, None, :]))
    expected = [scipy.stats.multinomial.pmf(np.eye(4), 1, softmax(row)) for row in LOGITS]
    np.testing.assert_allclose(np.exp(log_p).T, expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-14)


def test_a_category_out_of_range_is_impossible():
    log_p = dists.Categorical(jnp.zeros(3)).log_prob(jnp.array([-1, 0, 2, 3, 1000]))
    np.testing.assert_array_equal(np.isfinite(log_p), [False, True, True, False, False])
    assert log_p[0] == -jnp.inf
    slope = jax.grad(lambda l: dists.Categorical(l).log_prob(-1))(jnp.zeros(3))
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32, jnp.int64])
def test_categories_of_every_integer_type(dtype, x64):
    dist = dists.Categorical(jnp.arange(300.0))
    got = dist.log_prob(jnp.asarray([0, 7, 100], dtype))
    np.testing.assert_allclose(got - got[0], [0, 7, 100], rtol=1e-12)


def test_multivariate_normal_against_scipy(x64):
    dist = make("MultivariateNormal", jnp.float64)
    x = np.random.default_rng(0).normal(size=(30, 3, 2)) * 2
    got = dist.log_prob(x)
    for row in range(3):
        factor = np.asarray(TRIL[row])
        reference = scipy.stats.multivariate_normal(dist.loc[row], factor @ factor.T)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(got[:, row], reference.logpdf(x[:, row]), rtol=1e-11)


def test_multivariate_normal_integrates_to_one(x64):
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    # Any Gaussian weight will do, here one that is wider than the density.
    x, outer = 1.6 * grid, np.outer(weights, weights).ravel()
    dist = dists.MultivariateNormal(np.array([0.3, -0.2]), np.array([[0.9, 0], [0.5, 1.2]]))
    ratio = np.exp(dist.log_prob(x) + (grid**2).sum(axis=1) / 2) * 1.6**2
    np.testing.assert_allclose(outer @ ratio, 1, rtol=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_the_upper_triangle_of_scale_tril_is_ignored(cut):
    """By draws, densities and gradients alike."""
    rng = np.random.default_rng(cut)
    lower = jnp.tril(jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)) + 2 * jnp.eye(3)
    clean = dists.MultivariateNormal(jnp.zeros(3), lower)
    dirty = dists.MultivariateNormal(jnp.zeros(3), lower + jnp.triu(jnp.full((3, 3), 7.0), 1))
    for got, expected in zip(
        draw_and_score(jax.random.key(cut), dirty),
        draw_and_score(jax.random.key(cut), clean),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)

    def loss(dist):
        x = dist.sample(jax.random.key(cut), (20,))
        return jnp.sum(jnp.sin(x)) + jnp.sum(dist.log_prob(x))

    gradient = jit(jax.grad(loss))(dirty).scale_tril
    np.testing.assert_array_equal(jnp.triu(gradient, 1), 0)
    assert (np.asarray(gradient)[np.tril_indices(3)] != 0).all()


# ---- Relaxed densities -----------------------------------------------------------------------


def concrete_density(x, temperature, logits):
    """Maddison 2017, eq. 10, as printed, in double precision."""
    alpha, t, n = np.exp(np.float64(logits)), np.float64(temperature), len(logits)
    constant = math.factorial(n - 1) * t ** (n - 1)
    total = np.sum(alpha * x**-t, axis=-1, keepdims=True)
    return constant * np.prod(alpha * x ** (-t - 1) / total, axis=-1)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_relaxed_one_hot_density_is_equation_10(k, temperature, x64):
    rng = np.random.default_rng(k)
    logits, x = rng.normal(size=k), rng.dirichlet(np.ones(k), size=50)
    got = dists.RelaxedOneHotCategorical(temperature, logits).log_prob(x)
    np.testing.assert_allclose(np.exp(got), concrete_density(x, temperature, logits), rtol=1e-9)
    # Adding a constant to the logits changes nothing.
    shifted = dists.RelaxedOneHotCategorical(temperature, logits + 3.0).log_prob(x)
    np.testing.assert_allclose(shifted, got, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_exp_relaxed_density_is_a_change_of_variables(temperature, x64):
    rng = np.random.default_rng(1)
    logits, x = rng.normal(size=4), rng.dirichlet(np.ones(4), size=50)
    got = dists.ExpRelaxedOneHotCategorical(temperature, logits).log_prob(np.log(x))
    # The density of y = log x: that of x times dx / dy = x.
    jacobian = np.prod(x, axis=-1)
    expected = concrete_density(x, temperature, logits) * jacobian
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-9)


def test_relaxed_bernoulli_is_relaxed_one_hot_of_two(x64):
    x, logits = np.linspace(0.01, 0.99, 30), 0.7
    pair = dists.RelaxedOneHotCategorical(0.6, np.array([0.0, logits]))
    got = dists.RelaxedBernoulli(0.6, logits).log_prob(x)
    np.testing.assert_allclose(got, pair.log_prob(np.stack([1 - x, x], -1)), rtol=1e-11)


def test_relaxed_one_hot_integrates_to_one(x64):
    """Over u, v with x = (s(u), (1 - s(u)) s(v), ...), where the integrand is smooth."""
    u = np.arange(-50, 50, 0.25)
    first, second = expit(u)[:, None], expit(u)[None, :]
    x = np.stack(
        np.broadcast_arrays(first, expit(-u)[:, None] * second, expit(-u)[:, None] * expit(-u)), -1
    )
    jacobian = first * expit(-u)[:, None] ** 2 * second * expit(-u)
    for temperature in (0.6, 1.0, 3.0):
        dist = dists.RelaxedOneHotCategorical(temperature, np.array([0.3, -0.8, 0.5]))
        mass = np.sum(np.exp(dist.log_prob(x)) * jacobian) * 0.25**2
        np.testing.assert_allclose(mass, 1, rtol=1e-6)


TEMPERATURES = jnp.array([0.05, 0.1, 0.5, 1.0, 10.0])


@pytest.mark.parametrize(
    ("k", "dtype"), [*((k, jnp.float32) for k in (2, 3, 5, 8, 20)), *((20, half) for half in HALF)]
)
@pytest.mark.parametrize(
    "kind", [dists.RelaxedOneHotCategorical, dists.ExpRelaxedOneHotCategorical]
)
def test_densities_are_finite_on_their_own_draws(kind, k, dtype):
    logits = 2 * jax.random.normal(jax.random.key(k), (k,), dtype)
    dist = kind(TEMPERATURES.astype(dtype), logits)

    @jit
    def evaluate(key):
        x = dist.sample(key, (500,))
        log_p, pull = jax.vjp(lambda dist, x: dist.log_prob(x), dist, x)
        return x, log_p, pull(jnp.ones_like(log_p))

    x, log_p, gradients = evaluate(jax.random.key(0))
    assert np.isfinite(x).all()
    if kind is dists.RelaxedOneHotCategorical:
        assert (x > 0).all()
        assert (x <= 1).all()
    assert np.isfinite(log_p).all()
    # Through x the derivative is of the order of 1 / x, beyond the range of half precision.
    if dtype == jnp.float32 and kind is dists.ExpRelaxedOneHotCategorical:
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF])
def test_binary_concrete_densities_are_finite_on_their_own_draws(dtype):
    logits = jnp.linspace(-8, 8, 33).astype(dtype)
    dist = dists.RelaxedBernoulli(TEMPERATURES.astype(dtype)[:, None], logits)
    x, log_p = draw_and_score(jax.random.key(0), dist)
    assert (x > 0).all()
    assert (x < 1).all()
    assert np.isfinite(log_p).all()


@pytest.mark.parametrize("k", [2, 5, 20])
def test_log_space_densities_keep_their_digits(k):
    """In single precision, at draws whose exponentials underflow."""
    logits = 2 * jax.random.normal(jax.random.key(k), (k,))
    y, log_p = draw_and_score(
        jax.random.key(0), dists.ExpRelaxedOneHotCategorical(TEMPERATURES, logits)
    )
    assert k == 2 or y.min() < -100
    t, y, l = np.float64(TEMPERATURES)[:, None], np.float64(y), np.float64(logits)  # pyright: ignore[reportIndexIssue]
    d = l - t * y
    # Eq. 26.
    expected = math.lgamma(k) + (k - 1) * np.log(t[:, 0]) + d.sum(axis=-1)
    expected -= k * np.log(np.exp(d).sum(axis=-1))
    np.testing.assert_allclose(log_p, expected, rtol=1e-5, atol=2e-5 * k)


@pytest.mark.parametrize("name", ["RelaxedOneHotCategorical", "RelaxedBernoulli"])
@pytest.mark.parametrize("infinite", [-np.inf, -1e4])
def test_relaxed_draws_of_masked_categories_have_finite_derivatives(name, infinite):
    def draw(temperature, logits):
        dist = getattr(dists, name)(temperature, logits)
        return jnp.sum(dist.sample(jax.random.key(0)) * jnp.arange(1.0, 4.0))

    logits = jnp.array([0.3, infinite, -0.4])
    for temperature in (1e-3, 0.5, 1e3):
        value, gradients = jax.value_and_grad(draw, argnums=(0, 1))(temperature, logits)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)
        assert abs(gradients[1][1]) < 1e-30 or temperature == 1e3


# ---- Draws -----------------------------------------------------------------------------------


def ks_p_values(name, draws, **parameters):
    """One for each of the three elements."""
    values = {k: np.asarray(v, float) for k, v in {**PARAMETERS[name], **parameters}.items()}
    return [
        scipy.stats.kstest(
            np.asarray(draws[:, i], np.float64),
            CONTINUOUS[name].scipy(**{k: v[i] for k, v in values.items()}).cdf,
        ).pvalue
        for i in range(3)
    ]


@pytest.mark.statistical
@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_follow_the_distribution(name):
    draws = make(name).sample(jax.random.key(12), (100_000,))
    assert min(ks_p_values(name, draws)) > 1e-3
    # The elements are independent.
    assert np.abs(scipy.stats.spearmanr(draws).statistic - np.eye(3)).max() < 0.015  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.statistical
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_parameter_wrong_by_a_twentieth_is_noticed(name):
    moved = CONTINUOUS[name].moved
    wrong = {moved: 1.05 * np.asarray(PARAMETERS[name][moved])}
    draws = make(name, **wrong).sample(jax.random.key(12), (100_000,))
    assert max(ks_p_values(name, draws)) < 1e-4


def discrete_p_value(name, dist, probs):
    """Of the joint counts of the three independent elements, with probabilities `probs`."""
    x = np.asarray(dist.sample(jax.random.key(13), (200_000,)))
    x = x.argmax(axis=-1) if name == "OneHotCategorical" else x.astype(int)
    joint = np.einsum("i,j,k->ijk", *probs)
    counts = np.zeros(joint.shape)
    np.add.at(counts, tuple(x.T), 1)
    assert counts[joint == 0].sum() == 0
    possible = joint > 0
    return scipy.stats.chisquare(counts[possible], joint[possible] * len(x)).pvalue


def element_probs(name):
    logits = np.asarray(PARAMETERS[name]["logits"])
    if name == "Bernoulli":
        return np.stack([expit(-logits), expit(logits)], -1)
    return softmax(logits, axis=-1)


@pytest.mark.statistical
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_draws_follow_the_distribution(name):
    assert discrete_p_value(name, make(name), element_probs(name)) > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_probabilities_wrong_by_a_twentieth_are_noticed(name):
    wrong = 1.05 * jnp.asarray(PARAMETERS[name]["logits"], jnp.float32)
    dist = getattr(dists, name)(wrong)
    assert discrete_p_value(name, dist, element_probs(name)) < 1e-6


def test_one_hot_draws_are_one_hot():
    x = np.asarray(make("OneHotCategorical").sample(jax.random.key(0), (1000,)))
    assert set(np.unique(x)) == {0.0, 1.0}
    assert (x.sum(axis=-1) == 1).all()


def test_one_hot_and_integer_draws_agree():
    integers = make("Categorical").sample(jax.random.key(1), (1000,))
    rows = make("OneHotCategorical").sample(jax.random.key(1), (1000,))
    np.testing.assert_array_equal(np.argmax(rows, axis=-1), integers)


def whitened_p_values(dist, factor):
    x = np.asarray(dist.sample(jax.random.key(14), (50_000,)), np.float64)
    z = np.linalg.solve(np.asarray(factor), (x - np.asarray(dist.loc))[..., None])[..., 0]
    norm = scipy.stats.kstest(np.sum(z[:, 0] ** 2, -1), scipy.stats.chi2(2).cdf).pvalue
    # The two coordinates' sum and difference show a wrong correlation.
    turned = (z[..., 0] + z[..., 1]) / math.sqrt(2), (z[..., 0] - z[..., 1]) / math.sqrt(2)
    marginals = [scipy.stats.kstest(t[:, row], "norm").pvalue for t in turned for row in range(3)]
    return [norm, *marginals]


@pytest.mark.statistical
def test_multivariate_normal_draws():
    assert min(whitened_p_values(make("MultivariateNormal"), TRIL)) > 1e-3


@pytest.mark.statistical
def test_a_wrong_covariance_is_noticed():
    transposed = np.swapaxes(TRIL, -1, -2) + 0.05 * np.eye(2)
    assert min(whitened_p_values(make("MultivariateNormal"), transposed)) < 1e-6


def gumbel_softmax_p_values(name, temperature_factor=1.0):
    """t (y_i - y_j) - (l_i - l_j) is logistic, with y the logarithm of the draw."""
    dist = make(name)
    x = np.asarray(dist.sample(jax.random.key(15), (50_000,)), np.float64)
    y = x if name.startswith("Exp") else np.log(x)
    t, l = np.asarray(dist.temperature) * temperature_factor, np.asarray(dist.logits)
    d = t[:, None] * (y[..., 1:] - y[..., :1]) - (l[..., 1:] - l[..., :1])
    marginals = d.reshape(len(d), -1).T
    return [scipy.stats.kstest(marginal, "logistic").pvalue for marginal in marginals]


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["RelaxedOneHotCategorical", "ExpRelaxedOneHotCategorical"])
def test_relaxed_draws_follow_the_distribution(name):
    assert min(gumbel_softmax_p_values(name)) > 1e-3
    assert min(gumbel_softmax_p_values(name, temperature_factor=1.05)) < 1e-4


@pytest.mark.parametrize("name", PARAMETERS)
def test_only_reparameterizable_draws_have_a_derivative(name):
    dist = make(name, **({"logits": LOGITS[1]} if "OneHot" in name else {}))
    if name == "Categorical":
        assert not dist.reparameterizable
        return

    def loss(dist):
        x = dist.sample(jax.random.key(16), (20,))
        return jnp.sum(jnp.sin(x) * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))

    if not dist.reparameterizable:
        with pytest.raises(ge.UnestimatedGradientError, match=rf"{name}\.sample: its draw"):
            jax.grad(loss)(dist)
        return
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(dist)):
        assert np.isfinite(leaf).all()
        assert np.any(np.asarray(leaf) != 0)


# ---- Shapes and types ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes(name, shape):
    dist, key = make(name), jax.random.key(0)
    event = {"MultivariateNormal": (2,), "OneHotCategorical": (4,)}.get(name, ())
    event = (4,) if "OneHot" in name else event
    assert dist.shape == (3, *event)
    x = jax.eval_shape(lambda: dist.sample(key, shape))
    assert x.shape == (*shape, 3, *event)
    log_p = jax.eval_shape(dist.log_prob, x)
    assert log_p.shape == (*shape, 3)


@pytest.mark.parametrize(
    ("dist", "shape"),
    [
        (lambda: dists.Normal(jnp.zeros(3), jnp.ones((2, 1))), (2, 3)),
        (lambda: dists.Laplace(0.0, jnp.ones((2, 1))), (2, 1)),
        (lambda: dists.Uniform(jnp.zeros((4, 1, 1)), jnp.ones(2)), (4, 1, 2)),
        (lambda: dists.RelaxedBernoulli(jnp.ones((2, 1)), jnp.zeros(3)), (2, 3)),
        (lambda: dists.RelaxedOneHotCategorical(jnp.ones(2), jnp.zeros(3)), (2, 3)),
        (lambda: dists.RelaxedOneHotCategorical(1.0, jnp.zeros((2, 3))), (2, 3)),
        (lambda: dists.RelaxedOneHotCategorical(jnp.ones((4, 1)), jnp.zeros((2, 3))), (4, 2, 3)),
        (lambda: dists.ExpRelaxedOneHotCategorical(jnp.ones(2), jnp.zeros((4, 1, 3))), (4, 2, 3)),
        (lambda: dists.MultivariateNormal(jnp.zeros(3), jnp.ones((2, 3, 3))), (2, 3)),
        (lambda: dists.MultivariateNormal(jnp.zeros((2, 3)), jnp.eye(3)), (2, 3)),
        (lambda: dists.MultivariateNormal(jnp.zeros((4, 1, 3)), jnp.ones((2, 3, 3))), (4, 2, 3)),
        (lambda: dists.MultivariateNormal(jnp.zeros(1), jnp.eye(3)), (3,)),
    ],
)
def test_parameters_of_different_ranks_broadcast(dist, shape):
    dist = dist()
    assert dist.shape == shape
    x = jax.eval_shape(lambda: dist.sample(jax.random.key(0), (7,)))
    assert x.shape == (7, *shape)
    # Every leaf has the batch axes in front, so that a vmap over the draw is one over the leaves.
    rank = len(jax.eval_shape(dist.log_prob, x).shape) - 1
    assert all(leaf.shape[:rank] == shape[:rank] for leaf in jax.tree.leaves(dist))


def test_broadcast_parameters_meet_the_right_elements(x64):
    loc, scale = np.array([1.0, 2.0, 3.0]), np.array([[0.5], [2.0]])
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    got = dists.Normal(loc, scale).log_prob(x)
    np.testing.assert_allclose(got, scipy.stats.norm.logpdf(x, loc, scale), rtol=1e-12)


def test_a_single_value_broadcasts_against_the_parameters(x64):
    dist = dists.Normal(np.zeros((2, 3)), 1.0)
    np.testing.assert_allclose(dist.log_prob(0.5), np.full((2, 3), scipy.stats.norm.logpdf(0.5)))
    assert dists.Bernoulli(np.zeros((2, 3))).log_prob(1.0).shape == (2, 3)
    assert dists.Categorical(np.zeros((2, 3))).log_prob(1).shape == (2,)
    assert dists.OneHotCategorical(np.zeros((2, 3))).log_prob(np.eye(3)[0]).shape == (2,)


@pytest.mark.parametrize("dtype", [*HALF, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", PARAMETERS)
def test_types_of_draws_and_densities_are_the_parameters(name, dtype, x64):
    dist = make(name, dtype)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(dist))
    x, log_p = draw_and_score(jax.random.key(0), dist)
    assert x.dtype == (jnp.int64 if name == "Categorical" else dtype)
    assert log_p.dtype == dtype
    assert np.isfinite(x).all()
    assert np.isfinite(log_p).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_half_precision_draws_follow_the_distribution(name):
    """To the resolution of bfloat16: between the neighbours' values of the distribution."""
    dist = make(name, jnp.bfloat16)
    draws = np.asarray(dist.sample(jax.random.key(17), (20_000,)).astype(jnp.float32), np.float64)
    values = {k: np.asarray(v, float) for k, v in PARAMETERS[name].items()}
    reference = CONTINUOUS[name].scipy(**values)
    for q in (0.1, 0.5, 0.9):
        x = reference.ppf(q)
        slack, bit = 0.02 * np.abs(x) + 1e-3, name == "RelaxedBernoulli"
        with np.errstate(invalid="ignore"):
            low = reference.cdf(np.maximum(x - slack, 1e-9 if bit else -np.inf))
            high = reference.cdf(np.minimum(x + slack, 1 - 1e-9 if bit else np.inf))
        share = np.mean(draws <= x, axis=0)
        assert (share > low - 0.015).all()
        assert (share < high + 0.015).all()


# ---- Parameters of other types ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("number", [int, float])
def test_python_numbers_take_the_type_of_the_others(number, dtype):
    one, ones = number(1), jnp.ones(3, dtype)
    for dist in (
        dists.Normal(one, ones),
        dists.Normal(ones, one),
        dists.Uniform(number(0), ones),
        dists.RelaxedBernoulli(one, ones),
        dists.RelaxedOneHotCategorical(one, ones),
        dists.ExpRelaxedOneHotCategorical(one, probs=ones),
    ):
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(dist))
    traced = jax.eval_shape(jax.jit(lambda x: dists.Normal(x, ones)), one)
    assert traced.loc.dtype == dtype


@pytest.mark.parametrize("number", [int, float])
def test_python_numbers_alone(number):
    for dist in (
        dists.Normal(number(0), number(1)),
        dists.Exponential(number(1)),
        dists.Bernoulli(number(0)),
        dists.Bernoulli(probs=number(1)),
        dists.Categorical([number(0), number(1)]),  # pyright: ignore[reportArgumentType]
        dists.Uniform(),
        dists.Gumbel(),
    ):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(dist))
        x, log_p = draw_and_score(jax.random.key(0), dist)
        assert x.shape == (20,)
        assert np.isfinite(log_p).all()


@pytest.mark.parametrize("integer", [jnp.int32, jnp.uint8])
def test_integer_arrays_become_floats(integer):
    dist = dists.Normal(jnp.arange(3, dtype=integer), jnp.arange(1, 4, dtype=integer))
    assert dist.loc.dtype == dist.scale.dtype == jnp.float32
    np.testing.assert_allclose(
        dist.log_prob(jnp.arange(3.0)), -0.919 - np.log([1, 2, 3]), atol=1e-3
    )
    one_hot = dists.OneHotCategorical(probs=jnp.array([0, 1, 0], integer))
    np.testing.assert_array_equal(one_hot.sample(jax.random.key(0)), [0.0, 1.0, 0.0])


def test_numpy_and_nested_lists():
    assert dists.Bernoulli(np.zeros(3, np.float32)).shape == (3,)
    assert dists.Categorical([[0.0, 1.0], [2.0, 3.0]]).shape == (2,)  # pyright: ignore[reportArgumentType]


# ---- probs= ----------------------------------------------------------------------------------


def test_bernoulli_probs_are_logits(x64):
    p, x = np.array([0.1, 0.5, 0.999]), np.array([[0.0], [1.0], [0.3]])
    got, expected = dists.Bernoulli(probs=p), dists.Bernoulli(logit(p))
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(got.log_prob(x), expected.log_prob(x), rtol=1e-13)
    relaxed = dists.RelaxedBernoulli(0.5, probs=p)
    np.testing.assert_allclose(relaxed.logits, expected.logits, rtol=1e-13, atol=1e-15)


def test_bernoulli_gradient_through_probs(x64):
    p, x = np.array([0.2, 0.7, 0.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    total = lambda p: jnp.sum(dists.Bernoulli(probs=p).log_prob(x))
    gradient = jax.grad(total)(p)
    np.testing.assert_allclose(gradient[:2], [1 / 0.2, -1 / 0.3], rtol=1e-12)
    # That of a certain outcome counts as zero, that of an impossible one is all but infinite.
    np.testing.assert_array_equal(gradient[2:4], 0)
    np.testing.assert_array_less(1e20, abs(gradient[4:]))


@pytest.mark.parametrize("name", ["Categorical", "OneHotCategorical"])
def test_categorical_probs_are_logits_and_need_no_normalising(name, x64):
    kind, p = getattr(dists, name), np.array([0.2, 0.0, 0.5, 0.3])
    x = np.arange(4) if name == "Categorical" else np.eye(4)
    with np.errstate(divide="ignore"):
        expected = kind(np.log(p)).log_prob(x)
    np.testing.assert_allclose(np.exp(expected), p, rtol=1e-13)
    np.testing.assert_allclose(kind(probs=p).log_prob(x), expected, rtol=1e-13)
    np.testing.assert_allclose(kind(probs=7 * p).log_prob(x), expected, rtol=1e-13)


@pytest.mark.parametrize("name", ["Categorical", "OneHotCategorical"])
def test_categorical_gradient_through_probs(name, x64):
    kind, p = getattr(dists, name), np.array([0.4, 0.0, 1.0, 0.6])
    x = np.asarray(0) if name == "Categorical" else np.eye(4)[0]
    gradient = jax.grad(lambda p: kind(probs=p).log_prob(x))(p)
    # log p_0 - log sum p, but for the masked category.
    np.testing.assert_allclose(gradient, [1 / 0.4 - 0.5, 0, -0.5, -0.5], rtol=1e-12)


@pytest.mark.parametrize("name", ["RelaxedOneHotCategorical", "ExpRelaxedOneHotCategorical"])
def test_relaxed_one_hot_takes_probs(name):
    p = jnp.array([0.2, 0.5, 0.3])
    got, expected = (
        getattr(dists, name)(0.5, **given) for given in ({"probs": p}, {"logits": jnp.log(p)})
    )
    np.testing.assert_array_equal(got.logits, expected.logits)


# ---- Edges -----------------------------------------------------------------------------------


def test_bernoulli_at_relaxed_points_is_linear(x64):
    x, dist = np.linspace(0, 1, 11)[:, None], make("Bernoulli", jnp.float64)
    zero, one = np.asarray(dist.log_prob(0.0)), np.asarray(dist.log_prob(1.0))
    np.testing.assert_allclose(dist.log_prob(x), (1 - x) * zero + x * one, rtol=1e-13)


def test_one_hot_at_relaxed_points_is_linear(x64):
    logits = np.array([0.3, -np.inf, -1.0])
    x = np.random.default_rng(0).dirichlet(np.ones(2), 10) @ np.eye(3)[[0, 2]]
    dist = dists.OneHotCategorical(logits)
    corners = np.asarray(dist.log_prob(np.eye(3)))
    np.testing.assert_allclose(dist.log_prob(x), x[:, [0, 2]] @ corners[[0, 2]], rtol=1e-13)


def test_certain_outcomes():
    inf = jnp.inf
    dist = dists.Bernoulli(jnp.array([-inf, inf, -inf, inf]))
    np.testing.assert_array_equal(dist.sample(jax.random.key(0), (100,)), [[0, 1, 0, 1]] * 100)
    log_p = dist.log_prob(jnp.array([0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(log_p, [0, 0, -inf, -inf])


@pytest.mark.parametrize("dtype", [*HALF, jnp.float32, jnp.float64])
def test_bernoulli_gradients_are_finite(dtype, x64):
    logits = jnp.asarray([-np.inf, np.inf, -1e4, 1e4, -1e4, 1e4, 0.5], dtype)
    x = jnp.asarray([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype)
    value, gradient = jax.value_and_grad(lambda l: jnp.sum(dists.Bernoulli(l).log_prob(x)))(logits)
    assert np.isfinite(value)
    expected = np.asarray(x, float) - expit(np.asarray(logits, float))
    np.testing.assert_allclose(np.asarray(gradient, float), expected, atol=1e-2)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [*HALF, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["Categorical", "OneHotCategorical"])
def test_gradients_with_masked_categories_are_finite(name, dtype, x64):
    logits = jnp.asarray([[0.5, -np.inf, 1.0, -np.inf], [1e4, -1e4, -np.inf, 1e4]], dtype)
    x = jnp.asarray([2, 3]) if name == "Categorical" else jnp.eye(4, dtype=dtype)[jnp.array([2, 3])]
    total = lambda l: jnp.sum(getattr(dists, name)(l).log_prob(x))
    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert np.isfinite(value)
    expected = np.eye(4)[[2, 3]] - softmax(np.asarray(logits, float), axis=-1)
    np.testing.assert_allclose(np.asarray(gradient, float), expected, atol=1e-2)
    assert (np.asarray(gradient, float)[np.isneginf(np.asarray(logits, float))] == 0).all()


@pytest.mark.parametrize("name", ["Categorical", "OneHotCategorical", "RelaxedOneHotCategorical"])
def test_one_category(name):
    relaxed = {"temperature": jnp.ones(2)} if name.startswith("Relaxed") else {}
    dist = getattr(dists, name)(logits=jnp.array([[0.3], [-1e4]]), **relaxed)
    x, log_p = draw_and_score(jax.random.key(0), dist)
    np.testing.assert_array_equal(
        x, np.zeros((20, 2)) if name == "Categorical" else np.ones((20, 2, 1))
    )
    np.testing.assert_allclose(log_p, 0, atol=1e-6)


EMPTY = {
    **{
        name: lambda name=name: getattr(dists, name)(
            **{k: jnp.ones((0, 3)) * (i + 1) for i, k in enumerate(PARAMETERS[name])}
        )
        for name in PARAMETERS
        if event_rank(name) == 0 or name == "OneHotCategorical"
    },
    "RelaxedOneHotCategorical": lambda: dists.RelaxedOneHotCategorical(1.0, jnp.ones((0, 3))),
    "ExpRelaxedOneHotCategorical": lambda: dists.ExpRelaxedOneHotCategorical(1.0, jnp.ones((0, 3))),
    "MultivariateNormal": lambda: dists.MultivariateNormal(jnp.ones((0, 3)), jnp.eye(3)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_empty_batches(name):
    dist = EMPTY[name]()

    def evaluate(dist):
        x = jax.lax.stop_gradient(dist.sample(jax.random.key(0), (2,)))
        log_p = dist.log_prob(x)
        return jnp.sum(log_p), (x, log_p)

    gradient, (x, log_p) = jit(jax.grad(evaluate, has_aux=True))(dist)
    assert x.shape == (2, *dist.shape)
    assert log_p.shape == ((2, 0) if event_rank(name) or name == "Categorical" else (2, 0, 3))
    shapes = [leaf.shape for leaf in jax.tree.leaves(dist)]
    assert [leaf.shape for leaf in jax.tree.leaves(gradient)] == shapes


# ---- Pytrees ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_is_a_pytree_of_its_parameters(name):
    dist = make(name)
    leaves, treedef = jax.tree.flatten(dist)
    assert len(leaves) == len(PARAMETERS[name])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(dist)]
    assert paths == [f".{parameter}" for parameter in type(dist).parameters]
    again = jax.tree.unflatten(treedef, leaves)
    assert type(again) is type(dist)
    assert jax.tree.structure(again) == treedef
    for parameter in type(dist).parameters:
        assert getattr(again, parameter) is getattr(dist, parameter)


@pytest.mark.parametrize("name", PARAMETERS)
def test_holds_whatever_jax_puts_in_the_place_of_its_leaves(name):
    dist = make(name)
    treedef = jax.tree.structure(dist)
    for leaf in (object(), None, "x", 3, jax.ShapeDtypeStruct((2,), jnp.float32), (1, 2)):
        odd = jax.tree.unflatten(treedef, [leaf] * treedef.num_leaves)
        assert all(getattr(odd, parameter) is leaf for parameter in type(dist).parameters)
        assert repr(odd).startswith(f"{name}(")


@pytest.mark.parametrize("name", PARAMETERS)
def test_travels_through_transformations(name):
    dist, key = make(name), jax.random.key(0)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, dist)
    assert type(doubled) is type(dist)

    @jit
    def travel(dist):
        """In and out of jit, and of vmap, where every lane is a distribution of one element."""
        keys = jax.random.split(key, 3)
        alone = jax.vmap(lambda dist, key: dist.sample(key))(dist, keys)
        lanes = jax.vmap(lambda dist, x: dist.log_prob(x))(dist, alone)
        return dist, (dist.sample(keys), alone), (dist.log_prob(alone), lanes)

    same, *pairs = travel(dist)
    assert type(same) is type(dist)
    for together, alone in pairs:
        np.testing.assert_allclose(together, alone, rtol=2e-6)


def test_stacked_by_vmap_over_the_constructor():
    stacked = jax.vmap(lambda l: dists.Normal(l, 1.0))(jnp.arange(3.0))
    assert stacked.shape == (3,)
    assert stacked.scale.shape == (3,)


def test_repr():
    assert (
        repr(dists.Normal(jnp.zeros((2, 3)), 1.0))
        == "Normal(loc=float32[2, 3], scale=float32[2, 3])"
    )
    assert (
        repr(dists.Categorical(jnp.zeros((5, 4), jnp.bfloat16)))
        == "Categorical(logits=bfloat16[5, 4])"
    )
    assert repr(dists.Exponential(1.0)) == "Exponential(rate=float32[])"


# ---- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in PARAMETERS if "logits" in PARAMETERS[n]])
def test_error_for_neither_or_both_of_logits_and_probs(name):
    kind = getattr(dists, name)
    given = {"temperature": 1.0} if "temperature" in PARAMETERS[name] else {}
    with pytest.raises(
        TypeError, match="logits, probs: expected exactly one of the two, got neither"
    ):
        kind(**given)
    with pytest.raises(TypeError, match="logits, probs: expected exactly one of the two, got both"):
        kind(logits=jnp.zeros(2), probs=jnp.ones(2), **given)


def test_error_for_shapes_that_do_not_broadcast():
    message = r"shapes that broadcast, got loc: \(2,\), scale: \(3,\)"
    with pytest.raises(ValueError, match=message):
        dists.Normal(jnp.zeros(2), jnp.ones(3))


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("one", "str"),
        (None, "NoneType"),
        (object(), "object"),
        (jnp.array([True]), "of type bool"),
        (jnp.array([1j]), "of type complex64"),
    ],
)
def test_error_for_parameters_that_are_not_real(value, given):
    with pytest.raises(TypeError, match=f"scale: expected a real array, got .*{given}"):
        dists.Normal(0.0, value)


@pytest.mark.parametrize("given", ["logits", "probs"])
@pytest.mark.parametrize("value", [1.0, np.zeros((2, 0))])
def test_error_for_no_categories(given, value):
    shape = r"\(\)" if np.ndim(value) == 0 else r"\(2, 0\)"
    message = f"{given}: expected the categories along the last axis, at least one.*{shape}"
    with pytest.raises(ValueError, match=message):
        dists.OneHotCategorical(**{given: value})


OUT_OF_RANGE = [
    ("Normal", "scale", {"loc": 0.0, "scale": -1.0}),
    ("Normal", "loc", {"loc": np.nan, "scale": 1.0}),
    ("LogNormal", "scale", {"loc": 0.0, "scale": [1.0, 0.0]}),
    ("Laplace", "scale", {"loc": 0.0, "scale": np.inf}),
    ("Exponential", "rate", {"rate": 0.0}),
    ("Uniform", "low, high", {"low": 1.0, "high": [2.0, 0.5]}),
    ("MultivariateNormal", "scale_tril", {"loc": np.zeros(2), "scale_tril": -np.eye(2)}),
    ("Gamma", "concentration", {"concentration": -1.0, "rate": 1.0}),
    ("Gamma", "rate", {"concentration": 1.0, "rate": 0.0}),
    ("Beta", "concentration0", {"concentration1": 1.0, "concentration0": -0.1}),
    ("Dirichlet", "concentration", {"concentration": [1.0, 0.0]}),
    ("StudentT", "df", {"df": 0.0}),
    ("Weibull", "concentration", {"scale": 1.0, "concentration": -2.0}),
    ("VonMises", "concentration", {"loc": 0.0, "concentration": -1.0}),
    ("Poisson", "rate", {"rate": -1.0}),
    ("Poisson", "rate", {"rate": 10**12}),
    ("Geometric", "probs", {"probs": -0.1}),
    ("Binomial", "total_count", {"total_count": -1, "probs": 0.5}),
    ("Binomial", "probs", {"total_count": 3, "probs": 1.01}),
    ("NegativeBinomial", "total_count", {"total_count": 0.0, "probs": 0.5}),
    ("Bernoulli", "probs", {"probs": [0.2, 1.5]}),
    ("Categorical", "probs", {"probs": [0.2, -0.5]}),
    ("Categorical", "logits", {"logits": [0.2, np.inf]}),
    ("OneHotCategorical", "probs", {"probs": [0.2, np.nan]}),
    # The last label must be 1, the first one is 0, and none changes.
    (
        "LinearChainCRF",
        "unary, pairwise",
        {
            "unary": [[0.3, -np.inf], [0.0, 0.1], [-np.inf, 0.0]],
            "pairwise": [[0.2, -np.inf], [-np.inf, 0.0]],
        },
    ),
    ("RelaxedBernoulli", "temperature", {"temperature": 0.0, "logits": 0.0}),
    ("LogitRelaxedBernoulli", "temperature", {"temperature": -1.0, "logits": 0.0}),
    ("RelaxedOneHotCategorical", "temperature", {"temperature": 0.0, "logits": [0.0, 1.0]}),
]


@pytest.mark.parametrize(("name", "parameter", "values"), OUT_OF_RANGE)
def test_error_for_a_parameter_out_of_range(name, parameter, values):
    kind = getattr(dists, name)
    with pytest.raises(ValueError, match=rf"^{parameter}: expected .*, got .*\. [A-Z].*"):
        kind(**values)
    # What is traced is not known.
    if name != "Binomial":
        arrays = {key: jnp.asarray(value, jnp.float32) for key, value in values.items()}
        jax.eval_shape(lambda values: kind(**values), arrays)


def test_integers_of_64_bits_keep_their_value():
    integers: tuple[Any, ...] = (2**40, [2**40, 1], np.array(2**40), np.int64(2**40))
    for n in integers:
        assert np.ravel(dists.Normal(n, 1.0).loc)[0] == 2.0**40


def test_a_temperature_for_each_row_may_keep_the_axis():
    for shape in ((), (4,), (4, 1)):
        dist = dists.RelaxedOneHotCategorical(jnp.full(shape, 0.7), jnp.zeros((4, 3)))
        assert dist.shape == (4, 3)
    assert dists.RelaxedOneHotCategorical(jnp.ones((5, 1)), jnp.zeros((4, 3))).shape == (5, 4, 3)


def test_error_for_a_temperature_of_the_wrong_shape():
    message = r"temperature: expected .* logits less its last axis, \(2,\), got \(3,\)"
    with pytest.raises(ValueError, match=message):
        dists.RelaxedOneHotCategorical(jnp.ones(3), jnp.zeros((2, 3)))


@pytest.mark.parametrize(
    ("loc", "scale_tril"),
    [((), (2, 2)), ((3,), (2, 2)), ((2,), (2,)), ((2,), (2, 3)), ((4, 2), (3, 2, 2))],
)
def test_error_for_the_shapes_of_a_multivariate_normal(loc, scale_tril):
    message = r"loc, scale_tril: expected a vector of shape \(\.\.\., d\)"
    with pytest.raises(ValueError, match=message):
        dists.MultivariateNormal(jnp.zeros(loc), jnp.ones(scale_tril))


def test_error_for_what_is_no_distribution():
    for what in (jnp.zeros(3), "Normal", scipy.stats.norm):
        with pytest.raises(
            TypeError, match=r"dist: expected a distribution with sample\(key, shape\)"
        ):
            _joint.check(what)


def test_error_for_a_distribution_that_is_no_pytree():
    class Mine:
        def sample(self, key, shape=()):
            return jax.random.normal(key, shape)

        def log_prob(self, x):
            return -(x**2)

    with pytest.raises(
        TypeError,
        match=r"dist: expected a pytree, got a test_distributions\..*Mine that is not registered",
    ):
        _joint.check(Mine())


# ---- Distributions of other libraries --------------------------------------------------------


def assert_adapted(dist, draw_shape, logpdf):
    """Drawing, scoring and differentiating through the adapter."""
    _joint.check(dist)
    arrays, rebuild = split_arrays(dist)

    @jit
    def evaluate(key, arrays):
        x = jax.lax.stop_gradient(_joint.draw(key, rebuild(arrays)))
        log_p, gradient = jax.value_and_grad(lambda a: _joint.log_prob(rebuild(a), x))(arrays)
        return x, log_p, gradient

    x, log_p, leaves = evaluate(jax.random.key(0), arrays)
    assert jnp.shape(x) == draw_shape
    np.testing.assert_allclose(log_p, np.sum(logpdf(np.asarray(x))), rtol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in leaves)


def split_arrays(dist):
    """The leaves that are floating-point arrays, and the distribution as a function of them."""
    leaves, treedef = jax.tree.flatten(dist)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def rebuild(floats):
        floats = iter(floats)
        return treedef.unflatten(
            [next(floats) if f else leaf for f, leaf in zip(is_float, leaves, strict=True)]
        )

    return [leaf for f, leaf in zip(is_float, leaves, strict=True) if f], rebuild


def imported(name):
    """An optional library, imported with the warnings that its own imports raise ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


PROBS = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], np.float32)


def test_numpyro(standard_promotion):
    nd = imported("numpyro.distributions")
    loc, rate = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.7, 2.0, 5.0])
    logits = jnp.log(PROBS)
    assert_adapted(nd.Normal(loc, 2.0), (3,), scipy.stats.norm(loc, 2.0).logpdf)  # pyright: ignore[reportAttributeAccessIssue]
    assert_adapted(nd.Poisson(rate), (3,), scipy.stats.poisson(rate).logpmf)  # pyright: ignore[reportAttributeAccessIssue]
    assert_adapted(nd.Bernoulli(logits=loc), (3,), scipy.stats.bernoulli(expit(loc)).logpmf)  # pyright: ignore[reportAttributeAccessIssue]
    assert_adapted(nd.Gamma(rate, 2.0), (3,), scipy.stats.gamma(rate, scale=0.5).logpdf)  # pyright: ignore[reportAttributeAccessIssue]
    chosen = lambda x: np.log(np.take_along_axis(PROBS, x[:, None], axis=-1))
    assert_adapted(nd.Categorical(logits=logits), (2,), chosen)
    assert_adapted(nd.Normal(loc, 2.0).to_event(1), (3,), scipy.stats.norm(loc, 2.0).logpdf)  # pyright: ignore[reportAttributeAccessIssue]


def test_numpyro_lanes(standard_promotion):
    nd = imported("numpyro.distributions")
    stacked = jax.vmap(lambda m: nd.Normal(m, jnp.ones(2)))(jnp.arange(6.0).reshape(3, 2))
    lanes, keys = _joint.Lanes(stacked), jax.random.split(jax.random.key(0), 3)
    x = lanes.sample(keys)
    assert x.shape == (3, 2)
    np.testing.assert_allclose(
        x,
        jnp.arange(6.0).reshape(3, 2) + jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys),
        rtol=1e-6,
    )
    expected = scipy.stats.norm.logpdf(x, np.arange(6.0).reshape(3, 2)).sum(axis=1)
    np.testing.assert_allclose(lanes.log_prob(x), expected, rtol=1e-5)


def test_distrax(standard_promotion):
    distrax = imported("distrax")
    loc, logits = jnp.array([0.5, -1.0, 2.0]), jnp.log(PROBS)
    normal = distrax.Normal(loc, jnp.full(3, 2.0))
    assert_adapted(normal, (3,), scipy.stats.norm(loc, 2.0).logpdf)  # pyright: ignore[reportAttributeAccessIssue]
    bernoulli = distrax.Bernoulli(logits=loc)
    assert_adapted(bernoulli, (3,), scipy.stats.bernoulli(expit(loc)).logpmf)  # pyright: ignore[reportAttributeAccessIssue]
    chosen = lambda x: np.log(np.take_along_axis(PROBS, x[:, None], axis=-1))
    assert_adapted(distrax.Categorical(logits=logits), (2,), chosen)


# Its own code warns: of types that it asks for in vain, of what JAX will drop.
@pytest.mark.filterwarnings("ignore")
def test_tensorflow_probability(standard_promotion):
    tfd = imported("tensorflow_probability.substrates.jax").distributions
    loc, rate = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.7, 2.0, 5.0])
    assert_adapted(tfd.Normal(loc, 2.0), (3,), scipy.stats.norm(loc, 2.0).logpdf)  # pyright: ignore[reportAttributeAccessIssue]
    assert_adapted(tfd.Poisson(rate), (3,), scipy.stats.poisson(rate).logpmf)  # pyright: ignore[reportAttributeAccessIssue]
    assert_adapted(tfd.Bernoulli(logits=loc), (3,), scipy.stats.bernoulli(expit(loc)).logpmf)  # pyright: ignore[reportAttributeAccessIssue]
