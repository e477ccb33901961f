"""What implicitly reparameterized distributions share.

A draw x of distribution function F and density p keeps its quantile F(x) when the parameters
move, so that dx = -dF / p (Figurnov, Mohamed and Mnih 2018, eq. 5): a derivative for draws made
by any method, rejection included.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from .. import _mesh, _random
from .._derivatives.primitives import first_order_p, implicit_p


def per_lane(
    draw: Callable[..., jax.Array], key: ArrayLike, shape: Sequence[int], *parameters: jax.Array
) -> jax.Array:
    """`draw(key, *parameters)`, the parameters broadcast to `shape` and the draw's shape theirs.

    The axes of an array of keys are the first axes of `shape`.
    """
    keys, *alike = _mesh.varying_alike(_random.keys_of(key, shape), *parameters)
    full = [jnp.broadcast_to(parameter, tuple(shape)) for parameter in alike]
    draw = functools.partial(_mesh.automatic, draw)
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(keys, *full)


def inside(x: jax.Array, dtype: DTypeLike, upper: float | None = None) -> jax.Array:
    """`x` as numbers of type `dtype` within an open interval from 0: rounding must not leave it.

    The upper end is infinity if not given.
    """
    info = jnp.finfo(dtype)
    highest = info.max if upper is None else upper * (1 - info.epsneg)
    return jnp.clip(x, float(info.tiny), float(highest)).astype(dtype)


def bounded_exp(x: jax.Array, share: float = 0.7) -> jax.Array:
    """exp(x) up to a power of the largest number, for no derivative of NaN where it overflows."""
    return jnp.exp(jnp.minimum(x, share * math.log(jnp.finfo(x.dtype).max)))


def implicit(rule: Callable[[jax.Array, Any, Any], jax.Array], x: jax.Array, tree: Any) -> Any:
    """The draw `x`, whose derivative in the parameters in `tree` is `rule(x, tree, tangents)`.

    With the rule, a leading axis on `x` and every leaf is a leading axis of the derivative.
    """
    leaves, treedef = jax.tree.flatten(tree)
    return implicit_p.bind(x, *leaves, rule=rule, treedef=treedef)


def first_order_only(what: str, x: jax.Array) -> Any:
    """`x`, which is part of a derivative, and raises if it is differentiated again."""
    return first_order_p.bind(x, what=what)
