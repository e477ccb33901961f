"""What complains when it is differentiated, and is otherwise what it was.

A complaint is known before anything is differentiated, and given when a derivative reaches the
array, or the cost, that it is about.
"""

import abc
import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .. import _mesh
from .primitives import lanes_first, zero_tangent

# ---- An array ------------------------------------------------------------------------------


class Watcher(abc.ABC):
    """What complains when something is differentiated."""

    def watch(self, x: jax.Array) -> jax.Array:
        """`x`, the draw or a parameter of it, which complains when it is differentiated."""
        is_float = jnp.issubdtype(jax.dtypes.result_type(x), jnp.floating)
        return _watched(self, x) if is_float else x

    @abc.abstractmethod
    def give(self) -> None:
        """Warns, if the user was not told already, or raises."""


def watched(dist: Any, complaint: Watcher | None) -> Any:
    """`dist`, which complains when it is differentiated if there is something to complain of."""
    return dist if complaint is None else jax.tree.map(complaint.watch, dist)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _watched(complaint: Watcher, x: jax.Array) -> jax.Array:
    del complaint
    return x


def _watched_jvp(complaint: Watcher, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    if isinstance(dx, SymbolicZero):
        return x, jnp.zeros_like(x)
    complaint.give()
    return x, dx


_watched.defjvp(_watched_jvp, symbolic_zeros=True)


# ---- A cost, beside what it was drawn from -----------------------------------------------------

# Its last operand, the cost of a draw, beside the parameters that it was drawn from.
guarded_p = core.Primitive("gradest_guarded")


def guarded(value: jax.Array, dist: Any, complaint: Watcher | None) -> jax.Array:
    """`value`, a cost, which complains when its derivative in the leaves of `dist` is asked for.

    That of a metric is computed too, and thrown away, without a complaint.
    """
    leaves = [x for x in jax.tree.leaves(dist) if isinstance(x, jax.core.Tracer)]
    if complaint is None or not leaves:
        return value
    return guarded_p.bind(*leaves, value, complaint=complaint)


guarded_p.def_impl(lambda *args, complaint: args[-1])
guarded_p.def_abstract_eval(lambda *avals, complaint: avals[-1])
mlir.register_lowering(guarded_p, lambda ctx, *args, complaint: [args[-1]])


def _differentiate_guarded(primals: Any, tangents: Any, *, complaint: Watcher) -> Any:
    value = guarded_p.bind(*primals, complaint=complaint)
    is_float0 = lambda t: getattr(t, "dtype", None) == jax.dtypes.float0
    live = [t for t in tangents[:-1] if not (isinstance(t, ad.Zero) or is_float0(t))]
    if not live:
        return value, tangents[-1]
    shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
    missing = missing_p.bind(*live, shape=shape, complaint=complaint)
    return value, ad.add_tangents(tangents[-1], missing)


def _batch_guarded(args: Any, dims: Any, **params: Any) -> Any:
    return guarded_p.bind(*lanes_first(args, dims), **params), 0


ad.primitive_jvps[guarded_p] = _differentiate_guarded
batching.primitive_batchers[guarded_p] = _batch_guarded

# What is missing of a cost's tangent: zero, and linear in the tangents of the parameters, with a
# complaint once a transpose has a cotangent for it, or a program is run with it.
missing_p = core.Primitive("gradest_missing")
missing_p.def_abstract_eval(lambda *avals, shape, complaint: _mesh.shaped(shape, avals))


@missing_p.def_impl
def _(*_: Any, shape: jax.ShapeDtypeStruct, complaint: Watcher) -> jax.Array:
    complaint.give()
    return jnp.zeros(shape.shape, shape.dtype)


def _transpose_missing(ct: Any, *tangents: Any, shape: Any, complaint: Watcher) -> list[None]:
    del shape
    if not isinstance(ct, ad.Zero):
        complaint.give()
    return [None] * len(tangents)


def _differentiate_missing(primals: Any, tangents: Any, **params: Any) -> Any:
    del tangents
    out = missing_p.bind(*primals, **params)
    return out, zero_tangent(out)


def _batch_missing(args: Any, dims: Any, *, shape: Any, complaint: Watcher) -> Any:
    moved = lanes_first(args, dims)
    shape = jax.ShapeDtypeStruct((moved[0].shape[0], *shape.shape), shape.dtype)
    return missing_p.bind(*moved, shape=shape, complaint=complaint), 0


ad.primitive_jvps[missing_p] = _differentiate_missing
ad.primitive_transposes[missing_p] = _transpose_missing
batching.primitive_batchers[missing_p] = _batch_missing
mlir.register_lowering(missing_p, mlir.lower_fun(missing_p.impl, multiple_results=False))
