"""Gumbel-Rao: straight-through Gumbel-softmax, averaged over its noise given the draw."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _random
from .._calls import estimator
from .._derivatives.refuse import first_order
from .._sampler import Sampler
from ..distributions import _joint
from . import _relaxation
from ._record import Record


@estimator
def gumbel_rao(temperature: ArrayLike, *, num_samples: int = 10) -> Sampler:
    r"""Gumbel-Rao: the expectation of straight-through Gumbel-softmax, at less variance.

    .. math:: x \sim p_l, \quad dx := \frac1K \sum_k d\,\mathrm{softmax}((l + g_k) / t), \quad
              l + g_k \sim p(z | \mathrm{onehot}(\arg\max z) = x)

    with the noise g_k held fixed (for Bernoulli: sigmoid, and the sign of z).

    Assumptions: the cost is differentiable at the corners of the simplex.
    Bias: that of `st_gumbel_softmax` at the same temperature, whatever `num_samples`. What it
    saves in variance is there to be spent on a lower temperature, at less bias.
    Variance: that of `st_gumbel_softmax` given the draw over K, plus that of the limit K -> oo.
    Cost evaluations per gradient: 1. `num_samples` relaxed draws are held in memory.

    Args:
      temperature: positive scalar, dimensionless; it may be traced, and annealed with
        `gradest.anneal`.
      num_samples: K, how often the noise is drawn given the draw.

    Returns:
      A pathwise sampler for Bernoulli, OneHotCategorical and PlackettLuce.

    Raises:
      ValueError: if the temperature is not positive and finite, or `num_samples` is less than 1.
      NotImplementedError: when its draw is differentiated twice.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> bit = ge.gumbel_rao(0.5, num_samples=100)
      >>> loss = lambda l: (bit(jax.random.key(0), Bernoulli(l)) - 0.45) ** 2
      >>> bool(jax.grad(loss)(0.0) != 0)
      True

    Reference:
      Paulus, Maddison and Krause 2021, "Rao-Blackwellizing the Straight-Through Gumbel-Softmax
      Gradient Estimator", sections 3 and 4.
    """
    options = {"temperature": _check.positive("temperature", temperature)}
    static = {"num_samples": _check.integer("num_samples", num_samples, 1)}
    functions = {"draw": _gumbel_rao, "slope_in": "discrete draw"}
    return Sampler("gumbel_rao", **functions, options=options, static=static)


def _gumbel_rao(
    key: jax.Array, dist: Any, *, temperature: ArrayLike, num_samples: int
) -> jax.Array:
    _relaxation.check("gumbel_rao", dist, "added noise")
    dist = first_order("gumbel_rao", dist)
    key_draw, key_noise = _random.split(key, 2)
    hard = jax.lax.stop_gradient(_joint.draw(key_draw, dist))

    def relaxed(key: jax.Array) -> jax.Array:
        z = _relaxation.conditional(key, dist, hard)
        return _relaxation.soften(dist, _relaxation.with_fixed_noise(dist, z), temperature)

    soft = jnp.mean(jax.vmap(relaxed)(_random.split(key_noise, num_samples)), axis=0)
    return _relaxation.replace_value(hard, soft)


RECORDS = (
    Record(
        gumbel_rao,
        needs=("relaxation", "added noise"),
        unbiased="no",
        differentiable_cost=True,
        evaluations=1,
        reference="Paulus 2021",
        arguments={"temperature": 0.5},
    ),
)
