"""The unordered set estimator: draws without replacement, Rao-Blackwellized over their order."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _numerics
from .._calls import estimator
from .._cost import Cost
from .._sampler import Sampler
from . import _finite, _scores
from ._record import NUM_SAMPLES, Record


@estimator
def unordered_set(num_samples: int) -> Sampler:
    r"""Averages over distinct joint draws, whose costs are each other's baseline.

    With S a set of K joint draws without replacement, p^D(S) the probability of a set drawn from
    the distribution restricted to D, and the ratios R(S, s) = p^{-s}(S - s) / p(S),
    R^{-s}(S, s') = p^{-s-s'}(S - s - s') / p^{-s}(S - s) and R^{-s}(S, s) = 1,

    .. math:: \nabla_\theta E[f(x)] = E\left[\sum_{s \in S} \nabla_\theta p(s) R(S, s)
              \left(f(s) - \sum_{s' \in S} p(s') R^{-s}(S, s') f(s')\right)\right]

    Assumptions: finite support. The elements of a site are drawn jointly: K distinct
    configurations, however many there are. None on the cost.
    Bias: none.
    Variance: none where K is the number of possible configurations or more; below that of K
    independent samples with leave-one-out baselines most where a few configurations have most of
    the mass, and close to it where all are improbable.
    Cost evaluations per gradient: `num_samples`. The draws take one step for each element; the
    ratios some 50 K^(5/2) numbers in memory.

    Args:
      num_samples: K, at least 2.

    Returns:
      A cost-based sampler for Bernoulli, Categorical, OneHotCategorical, Subset,
      PlackettLuce and LinearChainCRF.

    Raises:
      ValueError: if `num_samples` is less than 2: the baseline needs another draw.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to the logits.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> loss = lambda l: ge.unordered_set(2).expect(
      ...     jax.random.key(0), Bernoulli(l), lambda b: (b - 0.45) ** 2
      ... )
      >>> print(f"{jax.grad(loss)(0.0):.4f}")      # both configurations: no variance
      0.0250

    Reference:
      Kool, van Hoof and Welling 2020, "Estimating Gradients for Discrete Random Variables by
      Sampling without Replacement", the estimator with its built-in baseline; the ratios by
      quadrature, as in its appendix.
    """
    static = {"num_samples": _check.integer("num_samples", num_samples, 2)}
    return Sampler("unordered_set", estimate=_estimate, static=static)


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, num_samples: int) -> jax.Array:
    finite = _finite.Finite.of("unordered_set", dist, num_samples).fixed()
    choices, l = finite.without_replacement(key, num_samples)
    draws = finite.draws(choices)
    costs = cost.batch(draws)
    if finite.num_draws <= num_samples:
        # All are in the set: nothing is left.
        log_ratio, log_second = jnp.zeros_like(l), jnp.zeros((len(l), len(l)), l.dtype)
    else:
        log_ratio, log_second = _log_ratios(l)
    # Products of a tiny probability and a huge ratio.
    weights, of_others = jnp.exp(l + log_ratio), jnp.exp(l[None, :] + log_second)
    least = _numerics.least_probability(l.dtype)
    f = jnp.where((jnp.exp(l) > 2 * least) | jnp.isfinite(costs), costs.astype(l.dtype), 0)
    # Not as a product of matrices, in which some devices drop digits.
    baselines = jnp.sum(of_others * f[None, :], axis=1)
    return _scores.weighted_costs(dist, draws, costs, weights, f - baselines)


def _log_ratios(l: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log R(S, s), shape (K,), and log R^{-s}(S, s'), shape (K, K), from log-probabilities.

    The draws are the K largest of perturbed log-probabilities. Given that the largest of the
    others, Gumbel around the logarithm of their mass, is that plus t, the set is S with
    probability prod_s (1 - exp(-a_s exp(-t))), a_s being the mass of s relative to theirs. The
    probability of a set is the mean over t, the ratios leave factors out.

    The integrand falls off exponentially on both sides and is analytic in a strip around the
    axis, where the trapezoidal rule is exact to within rounding at these steps.
    """
    k, eps = len(l), float(jnp.finfo(l.dtype).eps)
    step = min(0.25, 0.7 / math.sqrt(k + 1))
    t = jnp.arange(-math.log(k - math.log(eps)) - 1, -math.log(eps) + 1, step, dtype=l.dtype)
    log_rest = jnp.log(jnp.maximum(-jnp.expm1(_finite.log_mass(l)), eps**2))
    # log(1 - exp(-exp(y))), which is y where that is small.
    y = l[:, None] - log_rest - t[None, :]
    small = y < math.log(eps)
    factor = jnp.log(-jnp.expm1(-jnp.exp(jnp.where(small, 0, y))))
    # Are there fewer than K possible draws, all of them are in the set: nothing is left.
    factor = jnp.where(jnp.all(l > -jnp.inf), jnp.where(small, y, factor), 0)

    whole = -t - jnp.exp(-t) + jnp.sum(factor, axis=0)
    log_mean = lambda log_f: jax.nn.logsumexp(log_f, axis=-1)
    without = log_mean(whole[None] - factor)
    without_two = log_mean(whole[None, None] - factor[:, None, :] - factor[None, :, :])
    second = jnp.where(jnp.eye(k, dtype=bool), 0, without_two - without[:, None])
    return without - log_mean(whole), second


RECORDS = (
    Record(
        unordered_set,
        needs=("support",),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=NUM_SAMPLES,
        reference="Kool 2020",
        arguments={"num_samples": 4},
    ),
)
