"""Gumbel-max, and the Gumbel-softmax that relaxes it, plain and straight-through."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check
from .._calls import estimator
from .._derivatives.refuse import Refusal, first_order, undifferentiable
from .._sampler import Sampler
from .._written import user_line
from ..distributions import Categorical, OneHotCategorical
from . import _needs, _relaxation
from ._record import Record


@estimator
def gumbel_max() -> Sampler:
    r"""Exact draws as the argmax of logits plus Gumbel noise; no gradient.

    .. math:: x = \mathrm{onehot}(\arg\max_k (l_k + g_k)), \quad g_k \sim \mathrm{Gumbel}(0, 1)

    With the key of a `gumbel_softmax` it draws what that relaxes, whatever the temperature.

    Bias and variance: it estimates no gradient, and raises where one is asked for.
    Cost evaluations per gradient: none.

    Returns:
      A sampler for Bernoulli (the sign of log-odds plus logistic noise), Categorical and
      OneHotCategorical.

    Raises:
      UnestimatedGradientError: from the sampler's draw, when it is differentiated.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import OneHotCategorical
      >>> ge.gumbel_max()(jax.random.key(0), OneHotCategorical(probs=[0.0, 1.0]))
      Array([0., 1.], dtype=float32)

    Reference:
      Gumbel 1954; Maddison, Tarlow and Minka 2014, "A* Sampling", section 2.
    """
    return Sampler("gumbel_max", draw=_gumbel_max, slope_in="")


def _gumbel_max(key: jax.Array, dist: Any) -> jax.Array:
    _needs.check("gumbel_max", dist, "categorical")
    refusal = Refusal("gumbel_max", user_line(), _REMEDIES)
    if isinstance(dist, Categorical):
        x = jnp.argmax(_relaxation.perturb(key, OneHotCategorical(dist.logits)), axis=-1)
    else:
        x = _relaxation.harden(dist, _relaxation.perturb(key, dist))
    return undifferentiable(refusal, x, dist)


_REMEDIES = (
    "gumbel_max gives exact draws and no gradient: use gumbel_softmax or st_gumbel_softmax for "
    "a biased gradient of low variance, score_function or rebar for an unbiased one."
)


@estimator
def gumbel_softmax(temperature: ArrayLike) -> Sampler:
    r"""Gumbel-softmax (Concrete): differentiable draws that approach one-hot as t falls to 0.

    .. math:: y = \mathrm{softmax}((l + g) / t), \quad g_k \sim \mathrm{Gumbel}(0, 1)

    For Bernoulli the binary concrete, y = sigmoid((l + logistic noise) / t); for PlackettLuce
    NeuralSort of l + g; for Subset the relaxed top k of l + g, which is another law than that of
    its draws, whatever the temperature: that of `PlackettLuce` without the order.

    Assumptions: the cost is differentiable, and defined between the corners of the simplex.
    Bias: of the order of the temperature; the expectation that is differentiated is that of the
    relaxed draw.
    Variance: grows as 1 / t when the temperature falls.
    Cost evaluations per gradient: 1.

    Args:
      temperature: positive scalar, dimensionless; it may be traced, and annealed with
        `gradest.anneal`. Its own gradient is that of the relaxed expectation.

    Returns:
      A pathwise sampler for Bernoulli, OneHotCategorical, Subset and PlackettLuce.

    Raises:
      ValueError: if the temperature is not positive and finite.
      NotImplementedError: when its draw is differentiated twice; for the second derivatives of the
        relaxed expectation use `reparameterize` on `RelaxedOneHotCategorical`.

    Example:
      >>> import gradest as ge, jax, jax.numpy as jnp
      >>> from gradest.distributions import OneHotCategorical
      >>> sampler = ge.gumbel_softmax(0.5)
      >>> y = sampler(jax.random.key(0), OneHotCategorical(jnp.zeros(3)))
      >>> print(f"{y.sum():.4f}")
      1.0000

    Reference:
      Jang, Gu and Poole 2017, "Categorical Reparameterization with Gumbel-Softmax", eq. 2.
      Maddison, Mnih and Teh 2017, "The Concrete Distribution", eq. 9 and 17.
    """
    options = {"temperature": _check.positive("temperature", temperature)}
    return Sampler("gumbel_softmax", draw=_gumbel_softmax, slope_in="relaxed draw", options=options)


def _gumbel_softmax(key: jax.Array, dist: Any, *, temperature: ArrayLike) -> jax.Array:
    _needs.check_edges("gumbel_softmax", dist)
    _needs.check("gumbel_softmax", dist, "relaxed draw")
    dist = first_order("gumbel_softmax", dist)
    return _relaxation.soften(dist, _relaxation.perturb(key, dist), temperature)


@estimator
def st_gumbel_softmax(temperature: ArrayLike) -> Sampler:
    r"""Straight-through Gumbel-softmax: exact one-hot draws, the relaxed draw's gradient.

    .. math:: x = \mathrm{onehot}(\arg\max_k (l_k + g_k)), \quad
              dx := d\,\mathrm{softmax}((l + g) / t)

    Assumptions: the cost is differentiable at the corners of the simplex; its values between
    them are not used.
    Bias: does not vanish with the temperature in general, since the cost's gradient is taken at
    the exact draw.
    Variance: grows as 1 / t when the temperature falls.
    Cost evaluations per gradient: 1.

    Args:
      temperature: positive scalar, dimensionless; it may be traced, and annealed with
        `gradest.anneal`.

    Returns:
      A pathwise sampler for Bernoulli, OneHotCategorical and PlackettLuce.

    Raises:
      ValueError: if the temperature is not positive and finite.
      NotImplementedError: when its draw is differentiated twice.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> bit = ge.st_gumbel_softmax(0.5)
      >>> loss = lambda l: (bit(jax.random.key(0), Bernoulli(l)) - 0.45) ** 2
      >>> bool(jax.grad(loss)(0.0) != 0)
      True

    Reference:
      Jang, Gu and Poole 2017, "Categorical Reparameterization with Gumbel-Softmax", section 2.2.
    """
    options = {"temperature": _check.positive("temperature", temperature)}
    return Sampler(
        "st_gumbel_softmax", draw=_st_gumbel_softmax, slope_in="discrete draw", options=options
    )


def _st_gumbel_softmax(key: jax.Array, dist: Any, *, temperature: ArrayLike) -> jax.Array:
    _relaxation.check("st_gumbel_softmax", dist)
    dist = first_order("st_gumbel_softmax", dist)
    z = _relaxation.perturb(key, dist)
    hard = jax.lax.stop_gradient(_relaxation.harden(dist, z))
    return _relaxation.replace_value(hard, _relaxation.soften(dist, z, temperature))


RECORDS = (
    Record(
        gumbel_max,
        needs=("categorical",),
        unbiased="no gradient: raises",
        differentiable_cost=False,
        evaluations=0,
        reference="Gumbel 1954; Maddison 2014",
    ),
    Record(
        gumbel_softmax,
        needs=("relaxed draw",),
        draws="relaxed",
        unbiased="no",
        differentiable_cost=True,
        evaluations=1,
        reference="Jang 2017; Maddison 2017",
        arguments={"temperature": 0.5},
    ),
    Record(
        st_gumbel_softmax,
        needs=("relaxation",),
        unbiased="no",
        differentiable_cost=True,
        evaluations=1,
        reference="Jang 2017",
        arguments={"temperature": 0.5},
    ),
)
