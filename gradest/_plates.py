"""Between one lane of a plate and the plate.

A program that is written for a whole plate, whose lanes are independent, may be run lane by lane
under `jax.vmap` and computes what it did for the whole: `spread` takes what each lane has to the
plate, `pick` takes what a lane has from it. Between the two the program is not vmapped.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir


def spread(lane: jax.Array, x: jax.Array, size: int, axis: int) -> jax.Array:
    """What all lanes have, along an axis of their own: of a lane by itself, as if all had its `x`.

    Args:
      lane: the number of the lane, by which `jax.vmap` over the lanes is known.
      x: of this lane.
      size: how many lanes there are.
      axis: where they are in the result.
    """
    return jnp.moveaxis(spread_p.bind(lane, x, size=size), 0, axis)


def pick(lane: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """What the lane has of `x`, whose elements along the axis belong to one lane each."""
    return pick_p.bind(lane, jnp.moveaxis(x, axis, 0))


spread_p = core.Primitive("gradest_spread")
pick_p = core.Primitive("gradest_pick")


def _spread(lane: jax.Array, x: jax.Array, *, size: int) -> jax.Array:
    del lane
    return jnp.broadcast_to(x, (size, *jnp.shape(x)))


def _pick(lane: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, lane, keepdims=False)


def _spread_shape(lane: Any, x: Any, *, size: int) -> Any:
    del lane
    return jax.core.ShapedArray((size, *x.shape), x.dtype)


def _pick_shape(lane: Any, x: Any) -> Any:
    del lane
    return jax.core.ShapedArray(x.shape[1:], x.dtype)


# Both are linear. Since lanes are independent, each is the other's transpose: what the whole plate
# owes to a lane is what the lane's own elements owe.
def _spread_transpose(ct: Any, lane: Any, x: Any, *, size: int) -> Any:
    del x, size
    return [None, ct if isinstance(ct, ad.Zero) else pick_p.bind(lane, ct)]


def _pick_transpose(ct: Any, lane: Any, x: Any) -> Any:
    size = x.aval.shape[0]
    return [None, None if isinstance(ct, ad.Zero) else spread_p.bind(lane, ct, size=size)]


# A vmap that maps the numbers of the lanes is the one over the lanes; any other is of what each
# lane computes several times.
def _batch_spread(args: Any, dims: Any, *, size: int) -> Any:
    (lane, x), (lane_dim, x_dim) = args, dims
    if lane_dim is None:
        return spread_p.bind(lane, x, size=size), x_dim + 1
    if x_dim is None:
        return _spread(lane, x, size=size), None
    return jnp.moveaxis(x, x_dim, 0), None


def _batch_pick(args: Any, dims: Any) -> Any:
    (lane, x), (lane_dim, x_dim) = args, dims
    if lane_dim is None:
        moved = jnp.moveaxis(x, x_dim, 1)
        return pick_p.bind(lane, moved), 0
    if x_dim is None:
        return x, 0
    return jax.vmap(_pick)(jnp.moveaxis(lane, lane_dim, 0), jnp.moveaxis(x, x_dim, 0)), 0


for _p, _run, _shape, _transpose, _batch in (
    (spread_p, _spread, _spread_shape, _spread_transpose, _batch_spread),
    (pick_p, _pick, _pick_shape, _pick_transpose, _batch_pick),
):
    _p.def_impl(_run)
    _p.def_abstract_eval(_shape)
    mlir.register_lowering(_p, mlir.lower_fun(_run, multiple_results=False))
    ad.primitive_transposes[_p] = _transpose
    batching.primitive_batchers[_p] = _batch
ad.defjvp(spread_p, None, lambda dx, lane, x, *, size: spread_p.bind(lane, dx, size=size))
ad.defjvp(pick_p, None, lambda dx, lane, x: pick_p.bind(lane, dx))
