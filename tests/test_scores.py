"""The score of every distribution has mean zero under its own sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import MAX_Z, keys

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
