"""The straight-through estimator."""

from typing import Any

import jax
from jax.typing import ArrayLike

from .. import _check
from .._calls import estimator
from .._derivatives.refuse import first_order
from .._sampler import Sampler
from ..distributions import _joint
from . import _needs, _relaxation
from ._record import Record


@estimator
def straight_through(*, slope: ArrayLike = 1.0) -> Sampler:
    r"""Straight-through: exact draws, with the gradient of their mean.

    .. math:: x \sim p_l, \quad dx := d\,\mathrm{softmax}(s\,l)

    (sigmoid(s l) for Bernoulli; for the others their mean at s l), with slope s. Of a Subset it is
    SIMPLE, whose gradient is Cov(x) times that of the cost at the draw.

    Assumptions: the cost is differentiable at the corners of the simplex.
    Bias: zero for a cost linear in the draw, of second order in the cost otherwise: for one
    Bernoulli variable with P(1) = p and the cost (x - c)^2 it is p (1 - p) (2 p - 1).
    Variance: low; in that example 4 (p (1 - p))^3.
    Cost evaluations per gradient: 1.

    Args:
      slope: positive scalar; steeper makes the surrogate closer to the threshold of the logits.
        It may be traced, and annealed with `gradest.anneal`.

    Returns:
      A pathwise sampler for Bernoulli, OneHotCategorical, Subset, PlackettLuce (of up to 12 items)
      and LinearChainCRF.

    Raises:
      ValueError: if the slope is not positive and finite.
      NotImplementedError: when its draw is differentiated twice.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> bit = ge.straight_through()
      >>> print(jax.grad(lambda l: bit(jax.random.key(0), Bernoulli(l)))(0.0))
      0.25

    Reference:
      Bengio, Leonard and Courville 2013, "Estimating or Propagating Gradients Through Stochastic
      Neurons for Conditional Computation", section 3.1 (there with derivative 1 in place of the
      sigmoid's); Chung, Ahn and Bengio 2017, section 2.4, for the slope.
      Ahmed, Zeng, Niepert and Van den Broeck 2023, "SIMPLE: A Gradient Estimator for k-Subset
      Sampling", eq. 4.
    """
    options = {"slope": _check.positive("slope", slope)}
    return Sampler(
        "straight_through", draw=_straight_through, slope_in="discrete draw", options=options
    )


def _straight_through(key: jax.Array, dist: Any, *, slope: ArrayLike) -> jax.Array:
    _needs.check("straight_through", dist, "mean", "support")
    _needs.check_edges("straight_through", dist)
    dist = first_order("straight_through", dist)
    hard = jax.lax.stop_gradient(_joint.draw(key, dist))
    return _relaxation.replace_value(hard, dist._mean_at(slope).astype(hard.dtype))


RECORDS = (
    Record(
        straight_through,
        needs=("mean", "support"),
        unbiased="no",
        differentiable_cost=True,
        evaluations=1,
        reference="Bengio 2013",
    ),
)
