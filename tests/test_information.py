"""Means, entropies and relative entropies, against sums over supports and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import oracles

from gradest import distributions as dists
from gradest.distributions import kl_divergence

has = lambda method: [n for n in cases.DISTRIBUTIONS if hasattr(getattr(dists, n), method)]
# Of integers there is no mean of the shape of a draw.
NEITHER = {"Binomial", "NegativeBinomial", "StudentT", "VonMises", "MixtureSameFamily"}
RELAXED = {n for n in cases.DISTRIBUTIONS if "Relaxed" in n}


def test_most_have_them():
    every = {*cases.DISTRIBUTIONS} - NEITHER - RELAXED
    assert {*has("mean")} == every - {"Categorical", "VocabularyCategorical"}
    # Of gates, which have mass at 0 and 1, there is no entropy.
    assert {*has("entropy")} == every - {"Poisson", "HardConcrete"}
    assert {*has("_relative_entropy")} == every - {"Logistic", "HardConcrete"}


#: Another one; of Uniform a wider one, beyond which it has no mass.
OTHER = {
    "Uniform": lambda dist: dists.Uniform(dist.low - 0.1, dist.high + 0.2),
    # With the kink where the quadrature expects it.
    "Laplace": lambda dist: dists.Laplace(dist.loc, 1.2 * dist.scale),
}


@pytest.mark.parametrize("name", sorted({*has("mean"), *has("entropy")}))
def test_are_those_of_the_density(name, x64):
    dist = jax.tree.map(lambda l: l * 1.0, cases.DISTRIBUTIONS[name]())
    moved = lambda dist: jax.tree.map(lambda l: l * 1.1 + 0.05, dist)
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
