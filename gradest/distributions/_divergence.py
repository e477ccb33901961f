"""Relative entropies of two distributions of one class."""

from typing import Any

import jax

from .. import _check
from ._derived import dtype_of, rebuilt, wide
from ._foreign import own
from .base import align


def kl_divergence(p: Any, q: Any) -> jax.Array:
    r"""Kullback-Leibler divergence KL(p || q) = E[log p(x) - log q(x)], x ~ p, in closed form.

    Where p has no mass it counts 0, with derivative 0; where q has none and p has some it is
    infinite; it is never NaN for parameters in range.

    Args:
      p: a distribution of gradest's that has one (below), or another library's of the same law.
      q: of the same class. The parameters of the two broadcast.

    Returns:
      In nats, of each independent element: shape (...,). Sum it for a joint draw.

    Raises:
      TypeError: for two classes, or one that has none. Bernoulli, Categorical, OneHotCategorical,
        VocabularyCategorical (of equal chunks), Subset (of equal k), PlackettLuce (likewise, of up
        to 12 items), LinearChainCRF, Poisson, Geometric, Normal, LogNormal, MultivariateNormal,
        LowRankMultivariateNormal, Laplace, Gumbel, Exponential, Uniform, Gamma, Beta, Dirichlet,
        Weibull and VonMises have one.
      ValueError: if the shapes of the parameters do not broadcast.

    Example:
      >>> import gradest.distributions as dist
      >>> print(dist.kl_divergence(dist.Normal([0.0, 1.0], 1.0), dist.Normal(0.0, 1.0)))
      [0.  0.5]
    """
    p, q = own(p, always=True), own(q, always=True)
    same = jax.tree.structure(p) == jax.tree.structure(q)
    if not same or not hasattr(type(p), "_relative_entropy"):
        raise TypeError(
            "kl_divergence: expected two distributions of one class that has it in closed form, "
            f"got {_named(p)} and {_named(q)}. Average p.log_prob(x) - q.log_prob(x) over draws x "
            "of p."
        )
    dtype = dtype_of((p, q))
    pairs = zip(jax.tree.leaves(wide(p)), jax.tree.leaves(wide(q)), strict=True)
    try:
        of_p, of_q = zip(*(align(a, b) for a, b in pairs), strict=True)
    except ValueError:
        raise ValueError(
            f"kl_divergence: expected parameters of shapes that broadcast, got {p} and {q}."
        ) from None
    return rebuilt(p, *of_p)._relative_entropy(rebuilt(q, *of_q)).astype(dtype)


def _named(dist: Any) -> str:
    sizes = [f"{name}={getattr(dist, name)}" for name in getattr(type(dist), "static", ())]
    return f"{_check.name_of(type(dist))}{' with ' if sizes else ''}{', '.join(sizes)}"
