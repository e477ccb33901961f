"""DReG: doubly reparameterized gradients, for bounds of several samples."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._sampler import Sampler
from . import _scores
from ._record import NUM_SAMPLES, Record
from .reparameterize import differentiable_draw
from .vimco import log_mean_exp


@estimator
def dreg(num_samples: int) -> Sampler:
    r"""Doubly reparameterized gradients of the bound of K samples, whose noise falls with K.

    The cost is the log weight of one draw, log w(x) = log p(y, x) - log q(x) for x ~ q, and the
    value is the bound L = log mean_k w(x_k), as with `vimco`. With normalised weights tilde w,

    .. math:: \nabla_\theta E[L] = E\Big[\sum_k \tilde w_k^2
              \frac{\partial \log w(x_k)}{\partial x_k} \frac{\partial x_k}{\partial \theta}\Big]

    for q's parameters. Write the log weight with `dist` itself: its gradient at fixed draws is
    taken out by adding sum_k tilde w_k d log q(x_k), whose mean is that of
    sum_k (tilde w_k - tilde w_k^2) d log w / dx dx / d theta for any cost. With one sample this
    is `reparameterize(sticking_the_landing=True)`.

    Assumptions: the support does not depend on the parameters. The cost is differentiable in the
    draw and holds no further cost-based draw. A later pathwise draw has the same noise in all
    samples. The bound is that of the site's joint draw, as with `vimco`.
    Bias: none, of the bound of K samples.
    Variance: the signal-to-noise ratio of the gradient in q's parameters grows as sqrt(K), where
    that of `reparameterize` falls as 1 / sqrt(K); none where q is the posterior.
    Cost evaluations per gradient: `num_samples`, and their gradients in the draws.

    Args:
      num_samples: K, at least 1.

    Returns:
      A cost-based sampler for the distributions of `reparameterize` with a fixed support. Its
      value is the bound, to be maximised: negate the expectation, not the cost, to minimise it.

    Raises:
      ValueError: if `num_samples` is less than 1.
      TypeError: from the sampler, for a distribution that is not reparameterizable or whose
        support moves.
      NotImplementedError: when differentiated twice with respect to the distribution, and in a
        loss with a later cost-based draw or under `jax.vmap` inside it.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> def bound(loc, key):
      ...     q, p = Normal(loc, 1.0), Normal(0.5, 1.0)
      ...     return ge.dreg(4).expect(key, q, lambda x: p.log_prob(x) - q.log_prob(x))
      >>> print(jax.grad(bound)(0.5, jax.random.key(0)))  # q is the posterior: no noise
      0.0

    Reference:
      Tucker, Lawson, Gu and Maddison 2019, "Doubly Reparameterized Gradient Estimators for Monte
      Carlo Objectives", eq. 8.
    """
    static = {"num_samples": _check.integer("num_samples", num_samples, 1)}
    return Sampler("dreg", estimate=_estimate, linear=False, slope_in="draw", static=static)


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, num_samples: int) -> jax.Array:
    dist = _scores.checked("dreg", dist)
    fixed, keys = jax.lax.stop_gradient(dist), _random.split(key, num_samples)
    draw = lambda dist: jax.vmap(lambda k: differentiable_draw("dreg", k, dist))(keys)
    draws, to_parameters, unrounded = jax.vjp(draw, fixed, has_aux=True)
    log_w, to_draws = jax.vjp(cost.batch, draws)
    weights = jax.nn.softmax(jax.lax.stop_gradient(log_w))

    (path,) = to_parameters(*to_draws(weights**2))
    score = _scores.weighted_scores(dist, unrounded, weights)
    add = lambda p, s: p if p.dtype == jax.dtypes.float0 else p + s
    gradient = jax.tree.map(add, path, score)
    log_p = jnp.sum(_scores.log_probs(dist, unrounded))
    return attach_gradient(log_mean_exp(log_w), dist, gradient, log_prob=log_p)


RECORDS = (
    Record(
        dreg,
        needs=("pathwise", "density"),
        unbiased="of the bound",
        differentiable_cost=True,
        evaluations=NUM_SAMPLES,
        reference="Tucker 2019",
        arguments={"num_samples": 2},
    ),
)
