"""Sum-and-sample: the most probable joint draws are summed over, the others sampled."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._sampler import Sampler
from . import _finite, _scores
from ._record import Evaluations, Record


@estimator
def sum_and_sample(*, num_summed: int = 1, num_samples: int = 1) -> Sampler:
    r"""Rao-Blackwellized REINFORCE: exact where most of the mass is, sampled elsewhere.

    With C the `num_summed` most probable joint draws and P their probability,

    .. math:: \nabla_\theta E[f(x)] = \sum_{x \in C} p(x) (f(x) - b) \nabla_\theta \log p(x)
              + (1 - P) E_{x \notin C}[(f(x) - b) \nabla_\theta \log p(x)]

    and the baseline b = E[f(x) | C], which no sample enters.

    Assumptions: finite support. The elements of a site are taken jointly. None on the cost.
    Bias: none.
    Variance: (1 - P)^2 times that of the score function for draws outside of C, with the baseline
    b, over `num_samples`; none where C has all possible draws.
    Cost evaluations per gradient: `num_summed` + `num_samples`. Each draw outside of C is the
    first such one of `num_summed` + 1 without replacement, in one step for each element.

    Args:
      num_summed: number of joint draws in C.
      num_samples: number of independent draws outside of C.

    Returns:
      A cost-based sampler for Bernoulli, Categorical, OneHotCategorical, Subset,
      PlackettLuce and LinearChainCRF; its plain draws are exact.

    Raises:
      ValueError: if either number is less than 1.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to the logits.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Categorical
      >>> sampler = ge.sum_and_sample(num_summed=3)
      >>> loss = lambda l: sampler.expect(jax.random.key(0), Categorical(l), lambda x: x**2 / 2)
      >>> [f"{g:.3f}" for g in jax.grad(loss)(jax.numpy.log(jax.numpy.array([0.2, 0.5, 0.3])))]
      ['-0.170', '-0.175', '0.345']

    Reference:
      Liu, Regier, Tripuraneni, Jordan and McAuliffe 2019, "Rao-Blackwellized Stochastic Gradients
      for Discrete Distributions", eq. 3.
    """
    static = {
        "num_summed": _check.integer("num_summed", num_summed, 1),
        "num_samples": _check.integer("num_samples", num_samples, 1),
    }
    return Sampler("sum_and_sample", estimate=_estimate, static=static)


def _estimate(
    key: jax.Array, dist: Any, cost: Cost, *, num_summed: int, num_samples: int
) -> jax.Array:
    finite = _finite.Finite.of("sum_and_sample", dist, num_summed + 1).fixed()
    summed, l = finite.most_probable(num_summed)

    def outside(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw that is not summed, and its log-probability; -inf where there is none."""
        candidates, log_p = finite.without_replacement(key, num_summed + 1)
        same = jnp.all(candidates[:, None] == summed[None], axis=-1)
        free = (log_p > -jnp.inf) & ~jnp.any(same & (l > -jnp.inf)[None], axis=1)
        first = jnp.argmax(free)
        return candidates[first], jnp.where(jnp.any(free), log_p[first], -jnp.inf)

    sampled, log_p = jax.vmap(outside)(_random.split(key, num_samples))
    p = jnp.exp(l)
    # No less than that of a draw: of an impossible one rounding would leave nothing.
    rest = jnp.maximum(-jnp.expm1(_finite.log_mass(l)), jnp.exp(log_p)) / num_samples
    rest = jnp.where(log_p > -jnp.inf, rest, 0)
    draws = finite.draws(jnp.concatenate([summed, sampled]))
    costs = cost.batch(draws)
    least = _numerics.least_probability(p.dtype)
    of_summed = jnp.where(p > 2 * least, costs[:num_summed].astype(p.dtype), 0)
    baseline = jnp.sum(p * of_summed) / jnp.sum(p)
    signal = costs.astype(p.dtype) - baseline
    return _scores.weighted_costs(dist, draws, costs, jnp.concatenate([p, rest]), signal)


RECORDS = (
    Record(
        sum_and_sample,
        needs=("support",),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=Evaluations(
            "`num_summed` + `num_samples`",
            lambda options, dist: options["num_summed"] + options["num_samples"],
        ),
        reference="Liu 2019",
    ),
)
