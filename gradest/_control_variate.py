"""Control variates of a score function: what is known of a draw besides its cost."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from . import _check, _numerics
from ._derivatives.primitives import magic
from ._derivatives.variance import attach_variance_gradient


class ControlVariate(NamedTuple):
    """What an estimator adds to the score function of its draw: r - c s, of mean zero.

    The estimate of the gradient is (F - c) s + r, with F the cost of all that follows the draw, s
    its score, and c and r what the estimator knows at the draw.

    Attributes:
      term: a scalar of value zero whose derivative in the distribution is r - c s.
      trained: None, or scalars (A, B) such that A F + B has, in what the control variate depends
        on, the derivative of what is to be minimised: of the squared norm of the estimate, or of
        the squared distance of a baseline from F.
    """

    term: jax.Array
    trained: tuple[jax.Array, jax.Array] | None

    @staticmethod
    def of(baseline: "ArrayLike | ControlVariate", log_prob: jax.Array) -> "ControlVariate | None":
        """That of a baseline b, c = b and r = 0, trained on (F - b)^2 / 2; None without one."""
        if isinstance(baseline, ControlVariate):
            return baseline
        if _check.is_zero(baseline):
            # In a loop, its terms of the value zero would be kept for every step.
            return None
        b = jnp.asarray(baseline, log_prob.dtype)
        fixed = jax.lax.stop_gradient(b)
        trained = None if _check.is_concrete(baseline) else (-b, b * fixed)
        return ControlVariate(fixed * (1 - magic(log_prob)), trained)


def with_score(
    cost: jax.Array, log_prob: jax.Array, baseline: ArrayLike | ControlVariate
) -> jax.Array:
    """The cost of a draw, with what a `ScoreFn` says of the draw attached: (F - c) s + r."""
    # In half precision the difference of cost and baseline would be mostly rounding.
    wide = cost.astype(_numerics.compute_dtype(cost.dtype))
    l = log_prob.astype(wide.dtype)
    control = ControlVariate.of(baseline, l)
    value = wide * magic(l)
    if control is not None:
        value = value + control.term.astype(wide.dtype)
        if control.trained is not None:
            fixed = jax.lax.stop_gradient(wide)
            trained = control.trained
            value = attach_variance_gradient(value, trained, (fixed, jnp.ones_like(fixed)))
    return value.astype(cost.dtype)
