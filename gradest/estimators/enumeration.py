"""The exact expectation of a draw with finite support, by summing over all its values."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check
from .._calls import estimator
from .._cost import Cost
from .._sampler import Sampler
from . import _finite
from ._record import Evaluations, Record


@estimator
def enumeration(*, max_configurations: int = 65_536) -> Sampler:
    r"""Sums over all values of the draw: no variance, at a cost exponential in its elements.

    .. math:: E[f(x)] = \sum_x p_\theta(x) f(x)

    Assumptions: finite support. The elements of a site are enumerated jointly: n elements of K
    categories are K^n configurations, and subsets, orders and sequences as many as there are.
    Bias: none. Variance: none from this draw. Derivatives of every order are exact.
    Cost evaluations per gradient: the number of configurations, vmapped.

    Args:
      max_configurations: more are refused.

    Returns:
      A cost-based sampler for Bernoulli, Categorical, OneHotCategorical, Subset,
      PlackettLuce and LinearChainCRF; its plain draws are exact.

    Raises:
      ValueError: from `expect`, when there are more than `max_configurations`.
      TypeError: from `expect`, for another distribution.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> loss = lambda l: ge.enumeration().expect(
      ...     jax.random.key(0), Bernoulli(l), lambda b: (b - 0.45) ** 2
      ... )
      >>> print(f"{jax.grad(loss)(0.0):.4f}")
      0.0250
    """
    limit = _check.integer("max_configurations", max_configurations, 1)
    return Sampler("enumeration", estimate=_estimate, static={"max_configurations": limit})


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, max_configurations: int) -> jax.Array:
    del key
    finite = _finite.Finite.of("enumeration", dist)
    num_elements, num_values = finite.log_probs.shape
    # A support of one value has one configuration, however many the elements.
    count = num_values**num_elements
    if count > max_configurations:
        raise ValueError(
            f"enumeration: expected at most max_configurations={max_configurations} joint "
            f"configurations, got {num_values}^{num_elements} = {_finite.readable(count)} "
            f"({num_elements} elements of {num_values} values). Enumerate fewer elements per "
            "site, raise max_configurations, or use score_function or rebar."
        )
    # Products, not exponentials of sums of logarithms: exact where a probability is zero.
    outer = lambda joint, row: (joint[:, None] * row[None, :]).reshape(-1)
    joint = functools.reduce(outer, finite.probs, jnp.ones(1, finite.probs.dtype))
    # Configuration number i spells its values as the digits of i, the last element's last.
    digit = num_values ** np.arange(num_elements)[::-1]
    grid = jnp.asarray((np.arange(count)[:, None] // digit[None, :]) % num_values)
    costs = cost.batch(finite.draws(grid))
    joint = joint.astype(costs.dtype)
    # An impossible configuration counts for nothing, even if its cost is not finite. If it is, it
    # counts in the derivative of its probability.
    possible = joint != 0
    known = jax.lax.stop_gradient(jnp.where(jnp.isfinite(costs), costs, 0))
    return jnp.sum(joint * jnp.where(possible, costs, known))


def _num_configurations(options: Mapping[str, Any], dist: Any) -> int:
    del options
    log_probs = jax.eval_shape(lambda dist: _finite.Finite.of("enumeration", dist).log_probs, dist)
    num_elements, num_values = log_probs.shape
    return num_values**num_elements


RECORDS = (
    Record(
        enumeration,
        needs=("support",),
        unbiased="exact",
        differentiable_cost=False,
        evaluations=Evaluations("all configurations", _num_configurations),
        reference="-",
        second_order=True,
    ),
)
