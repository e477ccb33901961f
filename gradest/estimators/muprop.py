"""MuProp: REINFORCE with the cost's Taylor expansion at the mean as a control variate."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _numerics
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._derivatives.variance import attach_variance_gradient, with_variance_gradient
from .._sampler import Sampler
from ..distributions import _joint
from . import _needs, _relaxation
from ._record import Evaluations, Record


@estimator
def muprop(*, baseline: ArrayLike | None = None) -> Sampler:
    r"""MuProp: unbiased, and of low variance where the cost is nearly linear in the draw.

    With m the mean of the draw, the control variate is the cost's expansion of first order there,
    and its own mean is added back:

    .. math:: \nabla_l E[f(b)] = E[(f(b) - f(m) - f'(m)^T (b - m) - \beta) \nabla_l \log p(b)]
              + \nabla_l m^T f'(m)

    Assumptions: none for the bias. Where the cost or its slope at the mean is not finite, the
    control variate is left out; where the cost jumps, its slope misses what the draw does there.
    Bias: none.
    Variance: none for one element and a linear cost; for one Bernoulli element with P(1) = p,
    q = 1 - p and a cost with f'' = 2, pq (1 - 3 pq)^2.
    Cost evaluations per gradient: 1 exact and 1 at the mean, with its gradient. n sites in
    sequence take n + 1: while the cost is evaluated at the mean of one, later MuProp sites give
    their means too (the mean-field network), and REBAR sites their relaxed draws.

    Args:
      baseline: finite scalar taken from the cost, or None. It must not depend on the draw. Its
        cotangent is that of the squared norm of the gradient estimate, times the magnitude of
        the loss's own: put it into the parameters and it is trained with the rest.

    Returns:
      A cost-based sampler for Bernoulli, OneHotCategorical, Subset, PlackettLuce (of up to 12
      items) and LinearChainCRF.

    Raises:
      ValueError: if the baseline is not finite.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to the logits.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> loss = lambda l: ge.muprop().expect(jax.random.key(0), Bernoulli(l), lambda b: 3 * b)
      >>> print(jax.grad(loss)(0.0))
      0.75

    Reference:
      Gu, Levine, Sutskever and Mnih 2016, "MuProp: Unbiased Backpropagation for Stochastic Neural
      Networks", section 3.
    """
    options = {} if baseline is None else {"baseline": _check.finite("baseline", baseline)}
    return Sampler("muprop", estimate=_estimate, relaxed=_relaxed, options=options)


def _relaxed(key: jax.Array, dist: Any, **_: Any) -> jax.Array:
    """The mean, which the relaxed draw of this estimator is."""
    del key
    _needs.check("muprop", dist, "mean", "support", "density")
    return dist.mean()


def _estimate(key: jax.Array, dist: Any, cost: Cost, **hyper: ArrayLike) -> jax.Array:
    _needs.check("muprop", dist, "mean", "support", "density")
    _needs.check_edges("muprop", dist)
    fixed = jax.lax.stop_gradient(dist)
    b, m = _joint.draw(key, fixed), fixed.mean()
    f = cost(b)
    at_mean, slope = _where_finite(*jax.value_and_grad(cost.relaxed)(m))
    (s,) = _numerics.in_compute_dtype(slope)
    expansion = at_mean.astype(s.dtype) + jnp.sum(s * (b - m).astype(s.dtype))
    signal = f.astype(s.dtype) - expansion
    score, of_mean = _relaxation.score(fixed, b), _relaxation.pull_back_mean(fixed, slope)

    def gradient(hyper: Mapping[str, jax.Array]) -> Any:
        centred = signal - hyper["baseline"].astype(s.dtype) if hyper else signal
        return jax.tree.map(lambda score, mean: centred * score + mean, score, of_mean)

    g, traced, variance_gradient = with_variance_gradient(gradient, hyper)
    value = attach_gradient(f, dist, g, log_prob=_joint.log_prob(dist, b))
    return attach_variance_gradient(value, traced, variance_gradient)


def _where_finite(at_mean: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zeros where either is not finite: no control variate, as the mean depends on no draw."""
    finite = jnp.isfinite(at_mean) & jnp.all(jnp.isfinite(slope))
    return jnp.where(finite, at_mean, 0), jnp.where(finite, slope, 0)


RECORDS = (
    Record(
        muprop,
        needs=("mean", "support", "density"),
        unbiased="yes",
        differentiable_cost=False,
        cost_note="the less variance, the smoother",
        evaluations=Evaluations("1 + 1 at the mean", lambda options, dist: 2),
        reference="Gu 2016",
    ),
)
