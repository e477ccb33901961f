"""The score function with the cost's expansion at the mean as a control variate."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _mesh, _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._derivatives.refuse import second_order_counts_as_zero
from .._sampler import Sampler
from ..distributions import Normal, _joint
from . import _needs
from ._record import Evaluations, Record


@estimator
def delta_method(*, num_samples: int = 1) -> Sampler:
    r"""REINFORCE with the cost's quadratic expansion subtracted, and its mean added back.

    With d = x - mu, the expansion h(x) = f(mu) + d^T f'(mu) + d^T H d / 2, H = f''(mu), has a known
    mean, whose gradient is f'(mu) in mu and diag(H) s in s:

    .. math:: \nabla_\theta E[f(x)] = E[(f(x) - h(x)) \nabla_\theta \log p(x)]
              + \nabla_\theta E[h(x)]

    Assumptions: the cost is twice differentiable at the mean; elsewhere it need not be.
    Bias: none.
    Variance: none for a quadratic cost, low for narrow distributions; over K with K samples.
    Where the distribution is so wide that the cost leaves its expansion, h may add variance.
    Cost evaluations per gradient: `num_samples`, and 1 at the mean with its gradient and Hessian:
    n gradients for a site of n elements, and n^2 numbers in memory.

    Args:
      num_samples: K, how many draws to average over, with one expansion for all.

    Returns:
      A cost-based sampler for Normal.

    Raises:
      ValueError: if `num_samples` is less than 1.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to the distribution.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> loss = lambda m: ge.delta_method().expect(
      ...     jax.random.key(0), Normal(m, 1.0), lambda x: (x - 0.5) ** 2
      ... )
      >>> print(f"{jax.grad(loss)(2.0):.4f}")
      3.0000

    Reference:
      Paisley, Blei and Jordan 2012, "Variational Bayesian Inference with Stochastic Search",
      section 3.1. Mohamed, Rosca, Figurnov and Mnih 2020, "Monte Carlo Gradient Estimation in
      Machine Learning", section 7.4.
    """
    static = {"num_samples": _check.integer("num_samples", num_samples, 1)}
    return Sampler("delta_method", estimate=_estimate, relaxed=_relaxed, static=static)


def _relaxed(key: jax.Array, dist: Any, **_: Any) -> jax.Array:
    """The mean: any expansion will do, whose coefficients do not depend on the draws."""
    del key
    _needs.check("delta_method", dist, "density", only=(Normal,))
    return dist.loc


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, num_samples: int) -> jax.Array:
    _needs.check("delta_method", dist, "density", only=(Normal,))
    # Every element's slope depends on all of them.
    dist = _mesh.replicated(dist)
    fixed = jax.lax.stop_gradient(dist)
    draw = lambda k: _joint.draw_unrounded(k, fixed)
    draws, unrounded = jax.vmap(draw)(_random.split(key, num_samples))
    costs = cost.batch(draws)

    dtype, wide = draws.dtype, _numerics.compute_dtype(draws.dtype)
    loc, scale = fixed.loc.astype(wide), fixed.scale.astype(wide)
    at = lambda flat: cost.relaxed(flat.reshape(loc.shape).astype(dtype)).astype(wide)
    mean = loc.reshape(-1)

    def slope_at(mean: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        top, slope = jax.value_and_grad(at)(mean)
        return slope, (top, slope)

    # Reverse over reverse, as later draws need. Those are estimated to first order only, which
    # makes it another expansion, of which the mean is known as well.
    with second_order_counts_as_zero():
        hessian, (top, slope) = jax.jacrev(slope_at, has_aux=True)(mean)

    def gradient(u: Any, f: jax.Array) -> Normal:
        d = u.start - loc + u.step
        flat = d.reshape(-1)
        # Not as products of matrices, in which some devices drop digits.
        turn = jnp.sum(hessian * flat[None, :], axis=1)
        signal = f.astype(wide) - (top + jnp.sum(flat * (slope + turn / 2)))
        of_mean = slope.reshape(d.shape), jnp.diagonal(hessian).reshape(d.shape) * scale
        return Normal(
            signal * d / scale**2 + of_mean[0],
            signal * ((d / scale) ** 2 - 1) / scale + of_mean[1],
        )

    mean_gradient = jax.tree.map(
        lambda g: jnp.mean(g, axis=0), jax.vmap(gradient)(unrounded, costs)
    )
    log_prob = lambda u: _joint.log_prob_unrounded(dist, u)
    attach = lambda u, f: attach_gradient(f, dist, mean_gradient, log_prob=log_prob(u))
    return jnp.mean(jax.vmap(attach)(unrounded, costs))


RECORDS = (
    Record(
        delta_method,
        needs=("density",),
        # The mean of the expansion and its gradient are written out for it alone.
        only=(Normal,),
        unbiased="yes",
        differentiable_cost=False,
        cost_note="twice at the mean",
        evaluations=Evaluations(
            "`num_samples` + 1 with its Hessian at the mean",
            lambda options, dist: options["num_samples"] + 1,
        ),
        reference="Paisley 2012; Mohamed 2020",
    ),
)
