"""Densities, scores and baselines keep their digits: in half precision, far out and close by."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import gradest as ge
from gradest import distributions as dists

# ---- Densities -------------------------------------------------------------------------------

LOC_SCALE = {
    "Normal": scipy.stats.norm,
    "Laplace": scipy.stats.laplace,
    "Logistic": scipy.stats.logistic,
    "Gumbel": scipy.stats.gumbel_r,
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", LOC_SCALE)
def test_densities_and_scores_at_any_scale(name, dtype):
    """The score of a scale, times the scale, is a function of z alone."""
    scales = [0.05, 100.0] if dtype == jnp.float16 else [1e-2, 1e3, 1e-20, 1e20]
    log_prob = lambda s, x: getattr(dists, name)(jnp.zeros((), dtype), s).log_prob(x)
    value_and_score = jax.jit(jax.value_and_grad(log_prob))
    for scale, z in itertools.product(scales, (-2.0, 0.5, 3.0)):
        s = jnp.asarray(scale, dtype)
        x = jnp.asarray(z, dtype) * s
        value, score = value_and_score(s, x)
        s, at = float(s), float(x) / float(s)
        reference = LOC_SCALE[name]
        expected = reference.logpdf(at) - np.log(s)
        slope = (reference.logpdf(at + 1e-5) - reference.logpdf(at - 1e-5)) / 2e-5
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(float(value), expected, rtol=2 * eps, atol=8 * eps)
        np.testing.assert_allclose(float(score) * s, -1 - at * slope, rtol=4 * eps + 1e-4)


def test_densities_at_large_parameters():
    cases: Any = (
        (
            dists.Dirichlet(np.array([1e5, 2e5, 1e5])),
            scipy.stats.dirichlet([1e5, 2e5, 1e5]),
            [0.25, 0.5, 0.25],
        ),
        (
            dists.Dirichlet(np.array([1e6, 0.01])),
            scipy.stats.dirichlet([1e6, 0.01]),
            [1 - 2.0**-20, 2.0**-20],
        ),
        (dists.Beta(1e5, 2e5), scipy.stats.beta(1e5, 2e5), 0.334),
        (dists.Gamma(1e5, 2.0), scipy.stats.gamma(1e5, scale=0.5), 50_100.0),
        (dists.Poisson(1e5), scipy.stats.poisson(1e5), 100_100.0),
        (dists.Binomial(100_000, 0.0), scipy.stats.binom(100_000, 0.5), 50_100.0),
        (dists.NegativeBinomial(1e5, 0.0), scipy.stats.nbinom(1e5, 0.5), 100_100.0),
    )
    for dist, reference, x in cases:
        density = getattr(reference, "logpdf", None) or reference.logpmf
        if isinstance(dist, (dists.Poisson, dists.Binomial, dists.NegativeBinomial)):
            density = reference.logpmf
        np.testing.assert_allclose(dist.log_prob(jnp.asarray(x)), density(x), rtol=1e-4, atol=2e-3)


# ---- Draws -----------------------------------------------------------------------------------

HALF = {
    "LogNormal": (dists.LogNormal, (0.0, 4.0)),
    "Gamma": (dists.Gamma, (0.05, 1.0)),
    "Weibull": (dists.Weibull, (1.0, 0.05)),
    "Exponential": (dists.Exponential, (1e-4,)),
    "Normal": (dists.Normal, (0.0, 3e4)),
    "Laplace": (dists.Laplace, (0.0, 3e4)),
    "Gumbel": (dists.Gumbel, (0.0, 3e4)),
    "Logistic": (dists.Logistic, (0.0, 3e4)),
    "Beta": (dists.Beta, (0.01, 0.01)),
    "RelaxedBernoulli": (dists.RelaxedBernoulli, (0.05, 1.0)),
    "LogitRelaxedBernoulli": (dists.LogitRelaxedBernoulli, (1e-4, 1.0)),
}


@pytest.mark.parametrize("name", HALF)
def test_draws_in_half_precision_are_in_the_support(name):
    kind, parameters = HALF[name]
    dist = kind(*(jnp.float16(p) for p in parameters))

    def total(dist):
        x = dist.sample(jax.random.key(0), (2000,))
        return jnp.sum(x.astype(jnp.float32)), x

    gradient, x = jax.jit(jax.grad(total, has_aux=True))(dist)
    assert x.dtype == jnp.float16
    assert np.isfinite(x).all()
    assert all(not np.isnan(g) for g in jax.tree.leaves(gradient))
    assert np.isfinite(dist.log_prob(x)).all()


# ---- Scores ----------------------------------------------------------------------------------

STEEP = {
    "Gamma 0.05": lambda a: dists.Gamma(0.05 * a, 1.0),
    "Gamma 0.001": lambda a: dists.Gamma(0.001 * a, 3.0 * a),
    "Beta 0.03": lambda a: dists.Beta(0.03 * a, 0.03),
    "Beta 0.001, 1": lambda a: dists.Beta(1.0, 0.001 * a),
    "Dirichlet 0.001": lambda a: dists.Dirichlet(0.001 * a * jnp.ones(3)),
    "Weibull 0.05": lambda a: dists.Weibull(a, 0.05 * a),
    "Weibull 0.001": lambda a: dists.Weibull(a, 0.001 * a),
    "RelaxedBernoulli 0.01": lambda a: dists.RelaxedBernoulli(0.01 * a, 2.0 * a),
    "RelaxedOneHot 0.01": lambda a: dists.RelaxedOneHotCategorical(
        0.01 * a, a * jnp.array([1.0, 0.0, 3.0], a.dtype)
    ),
    "LogNormal 30": lambda a: dists.LogNormal(a, 30.0 * a),
}
ESTIMATORS = {
    "score_function": ge.score_function(),
    "optimal": ge.score_function(num_samples=4, baseline="optimal"),
    "relax": ge.relax(lambda w, x: jnp.asarray(w), 0.3),
    "dreg": ge.dreg(1),
}


def scores(make, sampler, dtype=jnp.float32, num=20_000):
    """Of a draw, whose mean is zero: the gradients of a constant but for a linear baseline."""

    def gradient(key):
        loss = lambda a: sampler.expect(key, make(a), lambda x: jnp.ones((), dtype))
        return jax.grad(loss)(jnp.ones((), dtype)).astype(jnp.float32)

    x = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(1), num))
    return np.asarray(x, np.float64)


def z_score(x):
    return x.mean() / (x.std() / np.sqrt(len(x)) + 1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("name", STEEP)
def test_scores_have_the_mean_zero(name, dtype):
    if dtype == jnp.float16 and ("0.001" in name or "30" in name):
        pytest.skip("the parameter itself is no number of such a type, or its score none")
    x = scores(STEEP[name], ge.score_function(), dtype)
    assert x.std() > 0.1
    assert abs(z_score(x)) < 4.5


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Gamma 0.05", "Dirichlet 0.001"])
@pytest.mark.parametrize("estimator", ["relax", "dreg"])
def test_scores_of_every_estimator_have_the_mean_zero(estimator, name):
    # What is left of a constant cost are scores only.
    x = scores(STEEP[name], ESTIMATORS[estimator])
    assert abs(z_score(x)) < 4.5


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Gamma 0.001", "Dirichlet 0.001", "Beta 0.001, 1"])
def test_scores_of_rounded_draws_would_be_noticed(name):
    """Those that the density gives at the draw itself."""

    def score(key):
        x = STEEP[name](jnp.float32(1)).sample(key)
        return jax.grad(lambda a: jnp.sum(STEEP[name](a).log_prob(x)))(jnp.float32(1))

    x = jax.jit(jax.vmap(score))(jax.random.split(jax.random.key(1), 20_000))
    assert abs(z_score(np.asarray(x, np.float64))) > 10


@pytest.mark.parametrize("name", ["Gamma", "Beta", "Dirichlet", "Weibull", "LogNormal", "Normal"])
def test_sample_and_log_prob_are_sample_and_log_prob(name):
    """Where the draw has all digits."""
    a = jnp.array([2.0, 3.0, 1.5])
    dist = dists.Dirichlet(a) if name == "Dirichlet" else getattr(dists, name)(a, a[::-1])

    x, log_p = dist.sample_and_log_prob(jax.random.key(0), (50,))
    np.testing.assert_array_equal(x, dist.sample(jax.random.key(0), (50,)))
    np.testing.assert_allclose(log_p, dist.log_prob(x), rtol=2e-5, atol=2e-5)

    @jax.jit
    def gradients(dist):
        total = lambda dist: jnp.sum(dist.sample_and_log_prob(jax.random.key(0), (50,))[1])
        return jax.grad(total)(dist), jax.grad(lambda dist: jnp.sum(dist.log_prob(x)))(dist)

    got, expected = gradients(dist)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)


# ---- Relaxed bits ----------------------------------------------------------------------------


def mean_gradient(loss, l, num=20_000):
    gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))
    g = np.asarray(gradient(l, jax.random.split(jax.random.key(2), num)), np.float64)
    return g.mean(), g.std() / np.sqrt(num)


def right(l, t, slope):
    """The integral of slope(y, noise) over the noise, y = (l + noise) / t."""

    def at(u):
        noise = np.log(u) - np.log1p(-u)
        return slope((l + noise) / t, noise)

    return scipy.integrate.quad(at, 0, 1, limit=400)[0]


@pytest.mark.statistical
@pytest.mark.parametrize(("l", "t"), [(2.0, 0.2), (5.0, 0.2), (-5.0, 0.1)])
@pytest.mark.parametrize("name", ["RelaxedBernoulli", "LogitRelaxedBernoulli"])
def test_entropy_of_relaxed_bits(name, l, t):
    def log_q(l, key):
        q = getattr(dists, name)(t, l)
        return q.log_prob(ge.reparameterize()(key, q))

    mean, error = mean_gradient(log_q, l)
    # log q(y) = log t + noise's own density; log q(x) = that - log x - log (1 - x).
    expected = 0.0
    if name == "RelaxedBernoulli":
        expected = right(l, t, lambda y, noise: np.tanh(y / 2) / t)
    assert abs(mean - expected) < 4.5 * error + 1e-4
    # An error of 5% would be found out.
    assert not expected or abs(1.05 * mean - expected) > 4.5 * error + 1e-4


@pytest.mark.statistical
@pytest.mark.parametrize(("l", "t"), [(5.0, 0.2), (-5.0, 0.1)])
def test_divergence_of_relaxed_bits(l, t):
    """Of draws that as bits round to 0 and 1, in logit space."""

    def divergence(l, key):
        q, p = dists.LogitRelaxedBernoulli(t, l), dists.LogitRelaxedBernoulli(0.5, 0.3)
        y = ge.reparameterize()(key, q)
        return q.log_prob(y) - p.log_prob(y)

    mean, error = mean_gradient(divergence, l)
    expected = right(l, t, lambda y, noise: -0.5 / t * np.tanh((0.3 - 0.5 * y) / 2))
    assert abs(mean - expected) < 4.5 * error
    assert abs(1.05 * mean - expected) > 4.5 * error


def test_the_logit_density_is_a_change_of_variables(x64):
    y = np.linspace(-5, 5, 21)
    x = jax.nn.sigmoid(y)
    got = dists.LogitRelaxedBernoulli(0.7, 0.4).log_prob(y)
    expected = dists.RelaxedBernoulli(0.7, 0.4).log_prob(x) + np.log(x * (1 - x))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


# ---- Baselines -------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("baseline", ["leave_one_out", "optimal", 100.0])
def test_baselines_in_half_precision(baseline):
    """Operation by operation: compiled code may keep more digits than the type has."""
    logits = jnp.asarray([1.5, 0.0], jnp.bfloat16)
    q = np.asarray(jax.nn.sigmoid(jnp.array([1.5, 0.0])))
    expected = [q[0] * (1 - q[0]) * (0.5 + q[1]), q[1] * (1 - q[1]) * q[0]]
    sampler = ge.score_function(num_samples=16, baseline=baseline)
    cost = lambda b: 100 + b[0] * 0.5 + b[1] * b[0]
    gradient = lambda k: jax.grad(lambda d: sampler.expect(k, d, cost))(dists.Bernoulli(logits))
    g = np.asarray(jax.vmap(gradient)(jax.random.split(jax.random.key(2), 10_000)).logits, float)
    tolerance = 4.5 * g.std(0) / 100 + 4e-3
    assert (abs(g.mean(0) - expected) < tolerance).all()
    # An error of 5% would be found out.
    assert (abs(1.05 * g.mean(0) - expected) > tolerance).any()


# ---- Probabilities of 0 and 1 ----------------------------------------------------------------

ONE_SIDED = {
    "enumeration": ge.enumeration(),
    "measure_valued": ge.measure_valued(),
    "sum_and_sample": ge.sum_and_sample(num_summed=1),
    "unordered_set": ge.unordered_set(num_samples=2),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ONE_SIDED)
def test_one_sided_derivatives_of_probabilities(name, dtype):
    sampler, key = ONE_SIDED[name], jax.random.key(0)
    of_bit = lambda p: sampler.expect(key, dists.Bernoulli(probs=p), lambda b: 3 * b + 1)
    # And with a cost that the impossible outcome does not have.
    infinite = lambda p: lambda b: jnp.log(abs(1 - p - b))
    of_infinite = lambda p: sampler.expect(key, dists.Bernoulli(probs=p), infinite(p))
    both = jax.jit(lambda p: (jax.grad(of_bit)(p), of_infinite(p)))
    for p in (0.0, 1.0):
        got, value = both(jnp.asarray(p, dtype))
        np.testing.assert_allclose(float(got), 3.0, rtol=1e-2)
        assert value == 0
    costs = jnp.array([1.0, 2.0, 5.0], dtype)
    of_row = lambda p: sampler.expect(key, dists.Categorical(probs=p), lambda k: costs[k])
    if name in ("enumeration", "measure_valued"):
        row = jnp.array([0.0, 1.0, 0.0], dtype)
        g = jax.jit(jax.grad(of_row))(row).astype(jnp.float32)
        np.testing.assert_allclose(g - g[1], [-1, 0, 3], rtol=1e-2, atol=1e-2)


def test_one_sided_derivatives_of_means():
    of = {
        0.0: [
            (lambda p: dists.Bernoulli(probs=p).mean(), 1.0),
            (lambda p: dists.Binomial(4, probs=p).mean(), 4.0),
            (lambda p: dists.NegativeBinomial(2.5, probs=p).mean(), 2.5),
            (lambda p: dists.OneHotCategorical(probs=jnp.stack([p, 1 - p])).mean()[0], 1.0),
            (lambda p: dists.Categorical(probs=jnp.stack([p, 1 - p])).probs[0], 1.0),
        ],
        1.0: [
            (lambda p: dists.Bernoulli(probs=p).probs, 1.0),
            (lambda p: dists.Geometric(probs=p).mean(), -1.0),
        ],
    }
    for p, means in of.items():
        for mean, slope in means:
            np.testing.assert_allclose(jax.grad(mean)(p), slope, rtol=1e-6)


REFUSED = {
    "score_function": ge.score_function(),
    "rebar": ge.rebar(),
    "arm": ge.arm(),
    "disarm": ge.disarm(),
    "muprop": ge.muprop(),
    "straight_through": ge.straight_through(),
    "gumbel_softmax": ge.gumbel_softmax(0.5),
    "relax": ge.relax(lambda w, x: w * jnp.sum(x), 0.3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_who_would_have_to_draw_the_impossible_outcome_raises(name):
    key = jax.random.key(0)
    loss = lambda p: REFUSED[name].expect(key, dists.Bernoulli(probs=p), lambda b: jnp.sum(3 * b))
    with pytest.raises(ge.UnestimatedGradientError, match=f"^{name}: probs: .* Use enumeration"):
        jax.grad(loss)(jnp.array([0.5, 0.0]))
    assert np.isfinite(jax.grad(loss)(jnp.array([0.5, 0.25]))).all()
    # Not differentiated, or logits that mask: nothing is lost.
    assert np.isfinite(loss(jnp.array([0.5, 0.0])))


COUNTS = {
    "rate": lambda p: dists.Poisson(p),
    "Binomial": lambda p: dists.Binomial(5, probs=p),
    "NegativeBinomial": lambda p: dists.NegativeBinomial(2.0, probs=p),
    "Geometric": lambda p: dists.Geometric(probs=1 - p),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_certain_is_scored_by_nobody(name):
    """What more of it would cost is known to who compares it with its neighbour."""
    key, where = jax.random.key(0), jnp.array([True, False])

    def loss(p, sampler, **masked):
        return sampler.expect(
            key, COUNTS[name](p), lambda x: jnp.sum((x.astype(float) - 1.5) ** 2), **masked
        )

    gradient, score = jax.grad(loss), ge.score_function()
    with pytest.raises(ge.UnestimatedGradientError, match=r"got a 0.* Use measure_valued"):
        gradient(jnp.array([0.5, 0.0]), score)
    # The cost falls by 2 from 0 to 1; by how much more probable 1 is, tells the mean.
    slope = {"rate": 1, "Binomial": 5, "NegativeBinomial": 2, "Geometric": 1}[name]
    neighbours = jax.jit(lambda p: gradient(p, ge.measure_valued()))
    np.testing.assert_allclose(neighbours(jnp.zeros(2)), -2 * slope, rtol=1e-5)
    # Masked, not differentiated, or inside: nothing is lost.
    assert gradient(jnp.array([0.5, 0.0]), score, where=where)[1] == 0
    assert loss(jnp.zeros(2), score) == 4.5
    assert np.isfinite(gradient(jnp.array([0.5, 0.25]), score)).all()


# ---- Temperatures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dist", [dists.Bernoulli(jnp.zeros(2)), dists.OneHotCategorical(jnp.zeros(2))]
)
@pytest.mark.parametrize("make", [ge.gumbel_softmax, ge.st_gumbel_softmax, ge.rebar, ge.reinmax])
def test_a_traced_temperature_of_zero_gives_nan(make, dist):
    @jax.jit
    def gradient(t):
        loss = lambda d: make(t).expect(jax.random.key(0), d, lambda x: jnp.sum(x * x))
        return jax.grad(loss)(dist).logits

    assert np.isnan(gradient(0.0)).all()
    assert np.isfinite(gradient(0.5)).all()


@pytest.mark.parametrize("name", ["RelaxedBernoulli", "RelaxedOneHotCategorical"])
def test_a_density_at_a_traced_temperature_of_zero_is_nan(name):
    @jax.jit
    def gradients(t):
        of = lambda t, l: jnp.sum(getattr(dists, name)(t, l).log_prob(jnp.array([0.3, 0.7])))
        return jax.grad(of, (0, 1))(t, jnp.zeros(2))

    for at_zero, inside in zip(gradients(0.0), gradients(0.5), strict=True):
        assert np.isnan(at_zero).all()
        assert np.isfinite(inside).all()
