"""Antithetic draws: a pair mirrored at the centre of a symmetric distribution."""

from typing import Any

import jax
import jax.numpy as jnp

from .._calls import estimator
from .._cost import Cost
from .._sampler import Sampler
from ..distributions import _joint
from . import _needs
from ._record import Record


@estimator
def antithetic() -> Sampler:
    r"""Pathwise gradients of a pair of mirrored draws, in which odd parts of the cost cancel.

    .. math:: \nabla_\theta E[f(x)] = E[\tfrac12 \nabla_\theta (f(x) + f(2 m_\theta - x))]

    with m the centre of symmetry.

    Assumptions: the cost is differentiable in the draw almost everywhere and has no jumps.
    Bias: none. Derivatives of every order are unbiased where the cost's are.
    Variance: that of the even part of the cost's gradient; for x ~ Normal(mu, s) and
    f = (x - k)^2 none in d/d mu and 8 s^2 in d/d s, where a single draw has 4 s^2 and
    4 (mu - k)^2 + 8 s^2.
    Cost evaluations per gradient: 2. What comes after each draw has randomness of its own.

    Returns:
      A cost-based sampler for Normal, MultivariateNormal, LowRankMultivariateNormal, Laplace,
      Logistic, StudentT and Uniform. Its value is the mean of the two costs.

    Raises:
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to StudentT's `df`.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> loss = lambda m: ge.antithetic().expect(
      ...     jax.random.key(0), Normal(m, 1.0), lambda x: (x - 0.5) ** 2
      ... )
      >>> print(f"{jax.grad(loss)(2.0):.4f}")
      3.0000

    Reference:
      Mohamed, Rosca, Figurnov and Mnih 2020, "Monte Carlo Gradient Estimation in Machine
      Learning", section 7.2, on coupling by mirrored noise.
    """
    return Sampler("antithetic", estimate=_estimate, slope_in="draw", converts=True)


def _estimate(key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
    _needs.check("antithetic", dist, "reflection", "pathwise")
    x = _joint.draw(key, dist)
    return jnp.mean(cost.batch(jnp.stack([x, dist.reflect(x)])))


RECORDS = (
    Record(
        antithetic,
        needs=("reflection", "pathwise"),
        unbiased="yes",
        differentiable_cost=True,
        evaluations=2,
        reference="Mohamed 2020",
        second_order=True,
    ),
)
