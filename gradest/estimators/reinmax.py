"""ReinMax: straight-through, corrected to second order in the cost."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _numerics
from .._calls import estimator
from .._derivatives.refuse import first_order
from .._sampler import Sampler
from ..distributions import _joint
from ..distributions._derived import rebuilt
from . import _needs
from ._record import Record


@estimator
def reinmax(temperature: ArrayLike = 1.0) -> Sampler:
    r"""ReinMax: exact draws, with a gradient that is exact on average for quadratic costs.

    .. math:: x \sim \pi_0 = \mathrm{softmax}(l), \quad
              \pi_1 = \tfrac12 (x + \mathrm{softmax}(l / t)), \quad
              \bar l = (2 J(\pi_1) - \tfrac12 J(\pi_0))\, \bar x

    with J(p) = diag(p) - p p^T, and p (1 - p) for Bernoulli: Heun's method for the difference of
    the costs of two categories, where straight-through is Euler's.

    Assumptions: the cost is differentiable at the corners of the simplex.
    Bias: at temperature 1 none for a cost that is quadratic in each variable separately, products
    of several variables included; of third order in the cost otherwise. ZGR is the same estimate.
    Variance: low; at temperature 1, for one Bernoulli variable with P(1) = p, q = 1 - p and the
    cost (x - c)^2 it is p q ((1 - c) q + c p)^2.
    Cost evaluations per gradient: 1.

    Args:
      temperature: positive scalar, dimensionless; above 1 it trades bias for variance. It may be
        traced, and annealed with `gradest.anneal`; its own gradient is zero.

    Returns:
      A pathwise sampler for Bernoulli and OneHotCategorical. One uniform number per draw.

    Raises:
      ValueError: if the temperature is not positive and finite.
      NotImplementedError: when its draw is differentiated twice.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> loss = lambda l, key: (ge.reinmax()(key, Bernoulli(l)) - 0.45) ** 2
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(0.0, keys)
      >>> bool(abs(gradients.mean() - 0.025) < 0.01)
      True

    Reference:
      Liu, Dong, Liu, Yu and Gao 2023, "Bridging Discrete and Backpropagation: Straight-Through and
      Beyond", Algorithm 2.
      Shekhovtsov 2023, "Cold Analysis of Rao-Blackwellized Straight-Through Gumbel-Softmax Gradient
      Estimator", section 5, for ZGR.
    """
    options = {"temperature": _check.positive("temperature", temperature)}
    return Sampler("reinmax", draw=_reinmax, slope_in="discrete draw", options=options)


def _reinmax(key: jax.Array, dist: Any, *, temperature: ArrayLike) -> jax.Array:
    _needs.check("reinmax", dist, "categorical", "mean")
    _needs.check_edges("reinmax", dist)
    dist = first_order("reinmax", dist)
    x = jax.lax.stop_gradient(_joint.draw(key, dist))
    pi_0 = dist._wide_mean()
    t = _numerics.positive(jnp.asarray(temperature, pi_0.dtype))
    return _attach(x, dist, pi_0, (x.astype(t.dtype) + dist._softened_mean(t)) / 2)


@jax.custom_vjp
def _attach(x: jax.Array, dist: Any, pi_0: jax.Array, pi_1: jax.Array) -> jax.Array:
    """`x`, whose derivative with respect to the logits is 2 J(pi_1) - J(pi_0) / 2."""
    del dist, pi_0, pi_1
    return x


def _attach_fwd(x: jax.Array, dist: Any, pi_0: jax.Array, pi_1: jax.Array) -> Any:
    return x, (dist, pi_0, pi_1)


def _attach_bwd(residuals: Any, ct: jax.Array) -> Any:
    dist, pi_0, pi_1 = residuals
    heun = 2 * dist._pull_back_mean_at(pi_1, ct)
    heun -= dist._pull_back_mean_at(pi_0, ct) / 2
    return None, rebuilt(dist, heun.astype(dist.logits.dtype)), None, None


_attach.defvjp(_attach_fwd, _attach_bwd)


RECORDS = (
    Record(
        reinmax,
        needs=("categorical", "mean"),
        unbiased="to second order",
        differentiable_cost=True,
        evaluations=1,
        reference="Liu 2023",
    ),
)
