"""The score of every distribution has mean zero under its own sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import MAX_Z, keys

from gradest import distributions as dists

NUM = 20_000


@jax.jit
def scores(drawn, scored, keys):
    """Of one distribution, at draws of another one of the same kind."""

    def score(key):
        x = jax.lax.stop_gradient(drawn.sample(key))
        return cases.grad(lambda dist: jnp.sum(dist.log_prob(x)))(scored)

    return jax.vmap(score)(keys)


def worst(samples):
    """The largest mean, in standard errors."""
    leaves = [np.asarray(leaf, float).reshape(NUM, -1) for leaf in jax.tree.leaves(samples)]
    x = np.concatenate(leaves, axis=1)
    # Some have no derivative: above the diagonal of a factor.
    x = x[:, x.std(axis=0) > 0]
    return np.max(np.abs(x.mean(axis=0)) / x.std(axis=0)) * np.sqrt(NUM)


@pytest.mark.statistical
@pytest.mark.parametrize("name", [*cases.FIXED_SUPPORT, *cases.STRUCTURED])
def test_score_has_mean_zero(name):
    """And has not at the draws of what has other parameters."""
    dist = cases.DISTRIBUTIONS[name]()
    assert worst(scores(dist, dist, keys(NUM))) <= MAX_Z
    ramp = lambda l: 0.4 * jnp.arange(1.0, l.size + 1).reshape(l.shape) / l.size
    moved = lambda l: l + ramp(l) if jnp.issubdtype(l.dtype, jnp.floating) else l
    assert worst(scores(jax.tree.map(moved, dist), dist, keys(NUM))) > MAX_Z


def test_scores_in_half_precision_are_rounded_once():
    """Of terms that are rounded one by one a score near 0 has no digits left."""
    loc, scale = jnp.array([-0.3, 2.0], jnp.bfloat16), jnp.array([0.7, 1.3], jnp.bfloat16)
    given = [
        *(kind(loc, scale) for kind in (dists.Normal, dists.LogNormal, dists.Laplace)),
        *(kind(loc, scale) for kind in (dists.Logistic, dists.Gumbel, dists.VonMises)),
    ]
    x = jnp.tile(jnp.linspace(0.1, 4, 40, dtype=jnp.bfloat16)[:, None], 2)
    wide = lambda tree: jax.tree.map(lambda l: l.astype(jnp.float32), tree)

    @jax.jit
    def scores(given, x):
        score = lambda dist, x: jax.grad(lambda d: jnp.sum(d.log_prob(x).astype(float)))(dist)
        return [jax.vmap(score, (None, 0))(dist, x) for dist in given]

    both = scores(given, x), scores(*wide((given, x)))
    for got, want in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(got.astype(float), want, rtol=2**-8)


#: Draws that round to a few numbers, or are brought near: of them alone the score has another mean.
STEEP = {
    "Normal": (dists.Normal, (-3.0, 1e-3), jnp.float16),
    "Laplace": (dists.Laplace, (-3.0, 1e-3), jnp.float16),
    "Gumbel": (dists.Gumbel, (300.0, 1e-5), jnp.float32),
    "LogNormal": (dists.LogNormal, (-3.0, 2e-3), jnp.bfloat16),
    "StudentT": (dists.StudentT, (0.05, 0.5, 1.0), jnp.float32),
    "VonMises": (dists.VonMises, (3.0, 1e4), jnp.bfloat16),
    "MultivariateNormal": (
        lambda loc, scale: dists.MultivariateNormal(loc[None], scale[None, None]),
        (-3.0, 1e-3),
        jnp.float16,
    ),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", STEEP)
def test_score_has_mean_zero_where_rounding_loses_the_density(name):
    """As estimators take it: at what the draw was before it was rounded."""
    make, parameters, dtype = STEEP[name]

    def of(log_p):
        return jax.grad(lambda p: jnp.sum(log_p(make(*p)).astype(float)))

    def run(parameters, key):
        x = make(*parameters).sample(key)
        unrounded = of(lambda dist: dist.sample_and_log_prob(key)[1])(parameters)
        return unrounded, of(lambda dist: dist.log_prob(x))(parameters)

    given = [jnp.asarray(p, dtype) for p in parameters]
    got, rounded = jax.jit(jax.vmap(run, (None, 0)))(given, keys(NUM))
    assert worst(got) <= MAX_Z
    assert worst(rounded) > MAX_Z
