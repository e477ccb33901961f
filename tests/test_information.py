"""Means, entropies and relative entropies, against sums over supports and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from support import cases
from support.cases import oracles

from gradest import distributions as dists
from gradest.distributions import kl_divergence

has = lambda method: [n for n in cases.DISTRIBUTIONS if hasattr(getattr(dists, n), method)]
RELAXED = {n for n in cases.DISTRIBUTIONS if "Relaxed" in n}
OPEN = {"Binomial", "NegativeBinomial", "MixtureSameFamily"}


def test_most_have_them():
    every = {*cases.DISTRIBUTIONS} - RELAXED
    # The mean of an angle depends on where the circle is cut, that of categories on their numbers.
    assert {*has("mean")} == every - {"Categorical", "VocabularyCategorical", "VonMises"}
    # Of gates, which have mass at 0 and 1, there is no entropy.
    assert {*has("entropy")} == every - OPEN - {"Poisson", "HardConcrete"}
    assert {*has("_relative_entropy")} == every - OPEN - {"Logistic", "HardConcrete", "StudentT"}
    for name in OPEN:
        with pytest.raises(AttributeError, match=r"no attribute entropy.*Average -dist\.log_prob"):
            cases.DISTRIBUTIONS[name]().entropy()


#: Another one; of Uniform a wider one, beyond which it has no mass.
OTHER = {
    "Uniform": lambda dist: dists.Uniform(dist.low - 0.1, dist.high + 0.2),
    # With the kink where the quadrature expects it.
    "Laplace": lambda dist: dists.Laplace(dist.loc, 1.2 * dist.scale),
}


def in_floats(change):
    """Of a distribution, the parameters that are no integers."""
    floating = lambda l: jnp.issubdtype(l.dtype, jnp.floating)
    return lambda dist: jax.tree.map(lambda l: change(l) if floating(l) else l, dist)


@pytest.mark.parametrize("name", sorted({*has("mean"), *has("entropy")}))
def test_are_those_of_the_density(name, x64):
    dist, moved = cases.DISTRIBUTIONS[name](), in_floats(lambda l: l * 1.1 + 0.05)
    other = OTHER.get(name, moved)(dist)

    def sums(dist):
        exact = oracles.points(dist)
        average = lambda y: jnp.tensordot(exact.weights, y.astype(float), 1)
        if name not in (*cases.FIXED_SUPPORT, *cases.STRUCTURED, "Uniform"):
            return average(exact.values), None, None
        joint = lambda dist: jax.vmap(lambda x: jnp.sum(dist.log_prob(x)))(exact.values)
        log_p, log_q = joint(dist), joint(other)
        return average(exact.values), average(-log_p), average(log_p - log_q)

    def told(dist):
        return (
            dist.mean() if hasattr(dist, "mean") else None,
            jnp.sum(dist.entropy()) if hasattr(dist, "entropy") else None,
            jnp.sum(kl_divergence(dist, other)) if hasattr(dist, "_relative_entropy") else None,
        )

    for got, want in zip(jax.jit(told)(dist), jax.jit(sums)(dist), strict=True):
        if got is not None:
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


# That of Uniform has an edge there.
@pytest.mark.parametrize("name", [n for n in has("_relative_entropy") if n != "Uniform"])
def test_is_least_where_the_two_are_the_same(name):
    dist = cases.DISTRIBUTIONS[name]()
    apart = jax.jit(jax.value_and_grad(lambda dist: jnp.sum(kl_divergence(dist, fixed))))
    fixed = jax.lax.stop_gradient(dist)
    value, slope = apart(dist)
    np.testing.assert_allclose(value, 0, atol=2e-6)
    for leaf in jax.tree.leaves(slope):
        np.testing.assert_allclose(leaf, 0, atol=2e-6)


INF = np.inf
OVER_MASKS = {
    "Bernoulli": ([-INF, 0.3, INF], [0.2, INF, INF], [True, False, True]),
    "Categorical": (
        [[0.3, -INF, 1.0], [0.3, 0.1, -INF], [-INF, -INF, 0.4]],
        [[0.1, 0.2, 0.3], [-INF, 0.1, 0.2], [-INF, 0.1, 0.2]],
        [True, False, True],
    ),
    "Subset": (
        [[0.3, -INF, 1.0, 0.2], [0.3, 0.1, 0.4, -INF], [-INF, -INF, 0.4, 0.1]],
        [[0.1, 0.2, 0.3, 0.4], [-INF, 0.1, 0.2, 0.3], [-INF, 0.1, 0.2, 0.3]],
        [True, False, True],
    ),
}
OVER_MASKS["OneHotCategorical"] = OVER_MASKS["Categorical"]
OVER_MASKS["PlackettLuce"] = OVER_MASKS["Subset"]
SIZES = {"Subset": (2,), "PlackettLuce": (2,)}


@pytest.mark.parametrize("name", OVER_MASKS)
def test_masks(name):
    """0 log 0 is 0 with derivative 0, infinite where q excludes what p has, and never NaN."""
    *logits, finite = OVER_MASKS[name]
    make = lambda l: getattr(dists, name)(l, *SIZES.get(name, ()))

    def total(p, q):
        apart = kl_divergence(make(p), make(q))
        kept = jnp.where(jnp.isfinite(apart), apart, 0)
        return jnp.sum(kept) + jnp.sum(make(p).entropy()), (apart, make(p).entropy())

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, (apart, entropy)), gradients = run(*map(jnp.array, logits))
    np.testing.assert_array_equal(np.isposinf(apart), ~np.array(finite))
    assert not np.isnan(apart).any()
    assert np.isfinite(entropy).all()
    for g, l in zip(gradients, logits, strict=True):
        assert np.isfinite(g).all()
        np.testing.assert_array_equal(np.asarray(g)[np.isinf(l)], 0)


def test_a_chain_over_masks():
    p = dists.LinearChainCRF(jnp.zeros((4, 2)), jnp.array([[-jnp.inf, 0.3], [0.2, -jnp.inf]]))
    q = dists.LinearChainCRF(jnp.zeros((4, 2)), jnp.array([[0.1, 0.3], [0.2, 0.0]]))

    @jax.jit
    def run(p, q):
        gradient = jax.grad(lambda p: kl_divergence(p, q) + p.entropy())(p)
        return kl_divergence(p, q), kl_divergence(q, p), p.entropy(), gradient

    some, infinite, entropy, gradient = run(p, q)
    x = p.enumerate_support()
    log_p, log_q = np.asarray(p.log_prob(x)), np.asarray(q.log_prob(x))
    possible = np.isfinite(log_p)
    assert possible.sum() == 2
    log_p, log_q = log_p[possible], log_q[possible]
    exact = np.sum(np.exp(log_p) * (log_p - log_q))
    np.testing.assert_allclose(some, exact, rtol=1e-5)
    np.testing.assert_allclose(entropy, -np.sum(np.exp(log_p) * log_p), rtol=1e-5)
    assert np.isposinf(infinite)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


#: Pairs of parameters: large and small concentrations, scales far from 1, odds beyond exp.
FAR = {
    "Gamma": ((1e6, 1e-3, 30.0, 1e6), (1e-3, 1.0, 2.0, 1e6)),
    "Beta": ((1e6, 1e-3, 30.0, 1e3), (1e6, 1e3, 7.0, 1e6)),
    "Dirichlet": (((1e6, 1e6, 30.0), (1e-3, 1.0, 30.0), (1e3, 1e6, 1e6)),),
    "Poisson": ((1e9, 1e-30, 30.0, 1e6),),
    "Geometric": ((-90.0, -200.0, 90.0, -1.0),),
    "Normal": ((0.0, 3e20, 0.3, -2.0), (1e-30, 1e20, 1.0, 1e30)),
    "Laplace": ((0.0, 3e20, 0.3, -2.0), (1e-30, 1e20, 1.0, 1e30)),
    "Gumbel": ((0.0, 3e20, 0.3, -2.0), (1e-30, 1e20, 1.0, 1e30)),
    "Weibull": ((1e-18, 1e18, 1.0, 7.0), (0.5, 7.0, 30.0, 1.0)),
    "Exponential": ((1e-30, 1e30, 1.0, 30.0),),
    "VonMises": ((0.0, 1.0, 2.0, -3.0), (1e5, 0.3, 1.0, 50.0)),
}


@pytest.mark.parametrize("name", FAR)
def test_far_out_single_precision_has_the_digits(name, x64):
    """Where terms of the order of a log(a) cancel, and squares and quotients overflow."""
    kind = getattr(dists, name)

    def of(parameters):
        others = [factor * p for factor, p in zip((1.05, 1.2), parameters, strict=False)]
        apart = lambda p, q: kl_divergence(kind(*p), kind(*q))
        own = lambda p: kind(*p).entropy() if hasattr(kind, "entropy") else 0 * p[0]
        total = lambda p, q: jnp.sum(apart(p, q)) + jnp.sum(own(p))
        return (
            apart(parameters, others),
            own(parameters),
            jax.grad(total, (0, 1))(parameters, others),
        )

    wide = [jnp.asarray(np.float32(p), float) for p in FAR[name]]
    run = jax.jit(of)
    (apart, own, got), exact = run([p.astype(jnp.float32) for p in wide]), run(wide)
    np.testing.assert_allclose(apart, exact[0], rtol=2e-3, atol=1e-30)
    np.testing.assert_allclose(own, exact[1], rtol=1e-5, atol=1e-5)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(exact[2]), strict=True):
        np.testing.assert_allclose(g, w, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["Gamma", "Beta"])
def test_close_concentrations_in_single_precision(name, x64):
    """Divergences of 1e-6 too, where gammaln and digamma have errors of that size."""
    kind = getattr(dists, name)
    grid = np.meshgrid(*[np.array([1e-3, 0.1, 1.0, 3.0, 1e3], np.float32)] * 2)
    factors = np.array([[1.05, 1.05, 1.0], [1.2, 1.0, 0.98]], np.float32)

    @jax.jit
    def of(p, q):
        apart = lambda p, q: kl_divergence(kind(*p), kind(*q))
        return apart(p, q), jax.grad(lambda *both: jnp.sum(apart(*both)), (0, 1))(p, q)

    close = [np.multiply.outer(f, x) for f, x in zip(factors, grid, strict=True)]
    got, exact = of(grid, close), of(*jax.tree.map(lambda x: x.astype(float), (grid, close)))
    np.testing.assert_allclose(got[0], exact[0], rtol=3e-3)
    for g, w in zip(jax.tree.leaves(got[1]), jax.tree.leaves(exact[1]), strict=True):
        np.testing.assert_allclose(g, w, rtol=3e-3, atol=1e-6)


def test_concentrations_against_scipy(x64):
    a, b = np.meshgrid([1e-3, 0.3, 7.9, 8.1, 1e4], [1e-3, 0.5, 30.0, 1e4])
    np.testing.assert_allclose(dists.Beta(a, b).entropy(), scipy.stats.beta(a, b).entropy(), 1e-6)
    np.testing.assert_allclose(dists.Gamma(a).entropy(), scipy.stats.gamma(a).entropy(), 1e-8)
    plain = (a - b) * scipy.special.digamma(a) - scipy.special.gammaln(a) + scipy.special.gammaln(b)
    apart = kl_divergence(dists.Gamma(a, 2.0), dists.Gamma(b, 3.0))
    np.testing.assert_allclose(apart, plain - b * np.log(1.5) + a / 2, rtol=1e-9)
    # Close ones, by the derivatives, which have their digits.
    a, b = a.ravel(), np.multiply.outer([0.51, 0.97, 1.6, 1.99], a.ravel())
    apart = lambda a, b: jnp.sum(kl_divergence(dists.Gamma(a), dists.Gamma(b)))
    for_a, for_b = jax.jit(jax.grad(apart, (0, 1)))(jnp.broadcast_to(a, b.shape), b)
    digamma, trigamma = (functools.partial(scipy.special.polygamma, n) for n in (0, 1))
    np.testing.assert_allclose(for_a, (a - b) * trigamma(a), rtol=1e-9)
    np.testing.assert_allclose(for_b, digamma(b) - digamma(a), rtol=1e-8)
    df, k = np.array([1e-3, 0.5, 3.0, 40.0, 1e6]), np.array([1e-3, 0.5, 3.0, 40.0, 1e5])
    entropy = dists.StudentT(df, 2.0, 3.0).entropy()
    np.testing.assert_allclose(entropy, scipy.stats.t(df, 2, 3).entropy(), rtol=1e-9)
    np.testing.assert_array_equal(
        dists.StudentT(np.array([0.5, 1.0, 1.5]), 2.0).mean(), [np.nan, np.nan, 2]
    )
    np.testing.assert_allclose(
        dists.VonMises(2.0, k).entropy(), scipy.stats.vonmises(k).entropy(), rtol=1e-9
    )
    p = dists.Geometric(np.array([-np.inf, -np.inf, np.inf, np.inf, np.inf, 0.0, 0.0]))
    q = dists.Geometric(np.array([-np.inf, 0.0, np.inf, 0.0, -np.inf, np.inf, -np.inf]))
    want = [0, np.inf, 0, np.log(2), np.inf, np.inf, np.inf]
    np.testing.assert_allclose(kl_divergence(p, q), want)
    np.testing.assert_array_equal(p.entropy()[:3], [np.inf, np.inf, 0])


def test_parameters_broadcast_and_round_once():
    """A VAE's KL term in one call."""
    q = dists.Normal(jnp.array([[0.3, -0.2], [0.1, 0.4]]), jnp.array([[0.5, 0.7], [0.9, 1.1]]))
    apart = kl_divergence(q, dists.Normal(0.0, 1.0))
    exact = (q.scale**2 + q.loc**2 - 1) / 2 - jnp.log(q.scale)
    np.testing.assert_allclose(apart, exact, rtol=1e-5)
    narrow = jax.tree.map(lambda l: l.astype(jnp.float16), q)
    prior = jax.tree.map(lambda l: l.astype(jnp.float16), dists.Normal(0.0, 1.0))
    wide = jax.tree.map(lambda l: l.astype(jnp.float32), narrow)
    got = kl_divergence(narrow, prior)
    assert got.dtype == jnp.float16
    exact = kl_divergence(wide, dists.Normal(0.0, 1.0)).astype(jnp.float16)
    np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (dists.Normal(0.0, 1.0), dists.Laplace(0.0, 1.0)),
        (dists.StudentT(3.0), dists.StudentT(4.0)),
        (dists.Subset(jnp.zeros(3), 1), dists.Subset(jnp.zeros(3), 2)),
    ],
)
def test_what_has_none_is_refused(p, q):
    with pytest.raises(TypeError, match=f"^kl_divergence: .* got {type(p).__name__}.*Average"):
        kl_divergence(p, q)
