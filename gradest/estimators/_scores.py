"""Draws with their log-probabilities, and gradients that are weighted sums of scores."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _numerics
from .._derivatives.attach import attach_gradient
from ..distributions import _joint, _supports, base
from ..distributions._masked import law_of
from . import _needs


def draw(estimator: str, key: jax.Array, dist: Any) -> tuple[Any, jax.Array]:
    """A draw, fixed, and its log-probability, whose derivative is the score."""
    dist, zero = _checked(estimator, dist)
    x, u = unrounded(key, dist)
    log_prob = _joint.log_prob_unrounded(dist, u)
    return x, log_prob if zero is None else log_prob + zero.astype(log_prob.dtype)


def unrounded(key: jax.Array, dist: Any) -> tuple[Any, Any]:
    """A draw, fixed, and from before it was rounded: scores of that have the mean zero."""
    return jax.lax.stop_gradient(_joint.draw_unrounded(key, jax.lax.stop_gradient(dist)))


def checked(estimator: str, dist: Any) -> Any:
    """`dist`, if its scores have the mean zero: its derivative raises where a bound moves."""
    return _checked(estimator, dist)[0]


def _checked(estimator: str, dist: Any) -> tuple[Any, jax.Array | None]:
    """Likewise, with a zero for its log-probability, whose derivative raises there too, or None."""
    if isinstance(dist, base.Distribution) and not dist.fixed_support:
        raise TypeError(
            f"{estimator}: expected a distribution whose support does not depend on its "
            f"parameters, got {_check.name_of(law_of(dist))}: the moving bounds would be missing "
            "from the gradient. Use reparameterize."
        )
    if getattr(dist, "no_density", ""):
        raise TypeError(
            f"{estimator}: expected a distribution with a log-probability, got "
            f"{_check.name_of(law_of(dist))}: {dist.no_density}"
        )
    _needs.check_edges(estimator, dist)
    return _supports.refusing(estimator, dist)


def log_probs(dist: Any, draws: Any) -> jax.Array:
    """Of joint draws, stacked, from before they were rounded."""
    return jax.vmap(lambda u: _joint.log_prob_unrounded(dist, u))(draws)


def weighted_scores(dist: Any, draws: Any, weights: jax.Array) -> Any:
    """sum_k weights_k d log p(x_k), of the structure of `dist`; a weight of zero drops a draw."""

    def total(dist: Any) -> jax.Array:
        l = log_probs(dist, draws)
        return jnp.sum(jnp.where(weights == 0, 0, weights * l))

    return jax.grad(total, allow_int=True)(jax.lax.stop_gradient(dist))


def weighted_costs(
    dist: Any, draws: Any, costs: jax.Array, weights: jax.Array, signal: jax.Array
) -> jax.Array:
    """sum_k weights_k costs_k, with sum_k weights_k signal_k d log p(x_k) attached.

    The weights, which sum to one, and the signal are constants; a cost of weight zero counts for
    nothing, even if it is not finite; nor does one that is not, of the least weight that there is.
    """
    least = _numerics.least_probability(weights.dtype)
    counts = (weights > 2 * least) | ((weights > 0) & jnp.isfinite(costs))
    weights, signal = jax.lax.stop_gradient((weights, jnp.where(counts, signal, 0)))
    gradient = weighted_scores(dist, draws, weights * signal)
    attach = lambda c, l: attach_gradient(c, dist, gradient, log_prob=l)
    values = jax.vmap(attach)(jnp.where(counts, costs, 0), log_probs(dist, draws))
    return jnp.sum(weights.astype(costs.dtype) * values)
