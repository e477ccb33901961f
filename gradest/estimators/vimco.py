"""VIMCO: the score function for bounds of several samples."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .. import _check, _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._sampler import Sampler
from . import _scores
from ._record import NUM_SAMPLES, Record


@estimator
def vimco(num_samples: int, *, mean: Literal["geometric", "arithmetic"] = "geometric") -> Sampler:
    r"""VIMCO: unbiased for the bound of K samples, each with the others for a baseline.

    The cost is the log weight of one draw, log w(x) = log p(y, x) - log q(x) for x ~ q, and the
    value is the bound (the importance-weighted ELBO)

    .. math:: L = \log \frac1K \sum_k w(x_k), \qquad
              \nabla_\theta E[L] = E\Big[\sum_k (L - L_{-k}) \nabla_\theta \log q(x_k)
              + \sum_k \tilde w_k \nabla_\theta \log w(x_k)\Big]

    where L_{-k} is L with w(x_k) replaced by the mean of the other weights, and tilde w are the
    normalised weights.

    Assumptions: the support does not depend on the parameters; log weights are finite. The cost
    need not be differentiable in the draw. It holds no further cost-based draw: several layers of
    variables are one joint distribution. A later pathwise draw has the same noise in all samples.
    The bound is that of the site's joint draw: of a batch, looser than the sum of the bounds of
    its examples, for which vmap the expectation of one example's loss.
    Bias: none, of the bound of K samples (which is not E[log w]: it lies between that and the
    log-likelihood).
    Variance: that of K samples with leave-one-out baselines, each credited with its own share of
    the bound; the signal-to-noise ratio falls with K no faster than 1 / sqrt(K).
    Cost evaluations per gradient: `num_samples`.

    Args:
      num_samples: K, at least 2.
      mean: of the other weights, "geometric" or "arithmetic".

    Returns:
      A cost-based sampler for any distribution with a log-probability. Its value is the bound, to
      be maximised: negate the expectation, not the cost, to minimise it.

    Raises:
      ValueError: if `num_samples` is less than 2, or `mean` is neither.
      TypeError: from the sampler, for one of gradest's distributions whose support moves.
      NotImplementedError: when differentiated twice with respect to the distribution, and in a
        loss with a later cost-based draw or under `jax.vmap` inside it.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> q = Bernoulli(0.0)
      >>> log_weight = lambda b: Bernoulli(1.0).log_prob(b) - q.log_prob(b)
      >>> bounds = lambda k: ge.vimco(50).expect(k, q, log_weight)
      >>> keys = jax.random.split(jax.random.key(0), 100)
      >>> bool(abs(jax.vmap(bounds)(keys).mean()) < 0.02)  # log 1, the normaliser of the target
      True

    Reference:
      Mnih and Rezende 2016, "Variational Inference for Monte Carlo Objectives", eq. 7 to 10.
    """
    static = {
        "num_samples": _check.integer("num_samples", num_samples, 2),
        "mean": _check.one_of("mean", mean, ["geometric", "arithmetic"]),
    }
    return Sampler("vimco", estimate=_estimate, linear=False, static=static)


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, num_samples: int, mean: str) -> jax.Array:
    dist, keys = _scores.checked("vimco", dist), _random.split(key, num_samples)
    draws, unrounded = jax.vmap(lambda k: _scores.unrounded(k, dist))(keys)
    log_w = cost.batch(draws)
    bound = log_mean_exp(log_w)

    l = jax.lax.stop_gradient(log_w.astype(_numerics.compute_dtype(log_w.dtype)))
    own = jnp.eye(num_samples, dtype=bool)
    of_others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, l[None, :]), axis=1)
    if mean == "geometric":
        log_mean = jnp.mean(jnp.where(own, 0, l[None, :]), axis=1) * num_samples / (num_samples - 1)
        without = jnp.logaddexp(of_others, log_mean) - math.log(num_samples)
    else:
        without = of_others - math.log(num_samples - 1)
    gradient = _scores.weighted_scores(dist, unrounded, log_mean_exp(l) - without)
    log_p = jnp.sum(_scores.log_probs(dist, unrounded))
    return attach_gradient(bound, dist, gradient, log_prob=log_p)


def log_mean_exp(log_w: jax.Array) -> jax.Array:
    """Exact where all are the same."""
    top = jax.lax.stop_gradient(jnp.max(log_w))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return top + jnp.log(jnp.mean(jnp.exp(log_w - top)))


RECORDS = (
    Record(
        vimco,
        needs=("density",),
        unbiased="of the bound",
        differentiable_cost=False,
        evaluations=NUM_SAMPLES,
        reference="Mnih 2016",
        arguments={"num_samples": 2},
    ),
)
