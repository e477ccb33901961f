"""What a loss spends before its end: `gradest.cost`, and what comes with values that reach it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from .. import _written
from .._cost import staging
from . import complaints


def cost(c: jax.typing.ArrayLike) -> None:
    """Adds `c` to the loss, from inside it.

    Draws made before this line are credited with it and draws made after it are not, which
    spares their gradient estimates the variance that it would add.

    Args:
      c: real; an array adds the sum of its elements. In a function under `jax.vmap`, one that is
        the same in all lanes is added once.

    Raises:
      RuntimeError: when run outside `gradest.expectation`.
      TypeError: if `c` is not a floating-point array.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> bit = ge.score_function()
      >>> @ge.expectation
      ... def loss(logit, key):
      ...     first = bit(key, Bernoulli(logit))
      ...     ge.cost((first - 0.3) ** 2)
      ...     return 0.0 * first
      >>> loss(0.0, jax.random.key(0)).shape
      ()
    """
    where = _written.user_line()
    if not staging.value:
        raise complaints.cost_outside(where)
    c = jnp.asarray(c)
    if not jnp.issubdtype(c.dtype, jnp.floating):
        raise TypeError(f"c: expected a real floating-point array, got one of type {c.dtype}.")
    cost_p.bind(c, where=where)


cost_p = core.Primitive("gradest_cost")


def _cost_outside(*_: Any, where: str) -> Any:
    raise complaints.cost_outside(where)


cost_p.def_impl(_cost_outside)
cost_p.def_abstract_eval(lambda c, *, where: c)
mlir.register_lowering(cost_p, lambda ctx, *_, where: _cost_outside(where=where))


def _batch_cost(args: Sequence[Any], dims: Sequence[Any], *, where: str) -> Any:
    # Under vmap a cond evaluates both of its branches: whose cost this is cannot be told.
    raise complaints.cost_under_vmap(where)


def _differentiate_cost(*_: Any, where: str) -> Any:
    raise complaints.cost_differentiated(where)


batching.primitive_batchers[cost_p] = _batch_cost
ad.primitive_jvps[cost_p] = _differentiate_cost


def _stage_cost(trace: Any, c: Any, *, where: str) -> Any:
    # Known or not, it stays where it was written: a scan whose body is evaluated in part (as
    # flax.linen's is) would otherwise have the known ones outside of the loop as well.
    tracer = trace.instantiate_const(c)
    return trace.default_process_primitive(cost_p, [tracer], {"where": where})


pe.custom_partial_eval_rules[cost_p] = _stage_cost


# Its second operand; the first is added to the loss if that one reaches it.
charge_p = core.Primitive("gradest_charge")


def charged(c: jax.Array, x: jax.Array, where: str) -> jax.Array:
    """`x`, which costs `c` wherever the loss depends on it; `c` is not differentiated."""
    return charge_p.bind(c, x, where=where)


def _differentiate_charge(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    return charge_p.bind(*primals, **params), tangents[1]


def _batch_charge(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
    return charge_p.bind(*args, **params), dims[1]


charge_p.def_impl(lambda c, x, *, where: x)
charge_p.def_abstract_eval(lambda c, x, *, where: x)
mlir.register_lowering(charge_p, lambda ctx, c, x, *, where: [x])
ad.primitive_jvps[charge_p] = _differentiate_charge
batching.primitive_batchers[charge_p] = _batch_charge
