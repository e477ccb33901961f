"""Meshes: the axes of a `jax.shard_map`, along which values may differ, and explicit ones.

Both are parts of an array's type. What JAX's versions call them is read here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# ---- Axes of a shard_map -------------------------------------------------------------------


def varying_axes(x: Any) -> frozenset[Any]:
    """The axes of a `jax.shard_map` along which a value, or the type of one, may differ."""
    if not isinstance(x, (jax.core.Tracer, jax.core.AbstractValue)):
        return _NO_AXES
    kind = jax.typeof(x) if isinstance(x, jax.core.Tracer) else x
    # Under the names that JAX gave it over time.
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", _NO_AXES) if manual is None else manual.varying


def varying(x: Any, axes: Iterable[Any]) -> Any:
    """`x`, for its type as if it differed along `axes` too."""
    new = tuple(axis for axis in axes if axis not in varying_axes(x))
    if not new:
        return x
    if _HAS_PCAST:
        return jax.lax.pcast(x, new, to="varying")
    return jax.lax.pvary(x, new)  # pyright: ignore[reportAttributeAccessIssue]


def varying_alike(*trees: Any) -> Any:
    """The trees, of arrays that differ along the same axes for their types: along all of them.

    Loops and rules of our own cannot do with less.
    """
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves(trees)))
    return jax.tree.map(lambda x: varying(x, axes), trees) if axes else trees


def shaped(shape: jax.ShapeDtypeStruct, operands: Iterable[Any]) -> Any:
    most = max(operands, key=lambda operand: len(varying_axes(operand)))
    if not varying_axes(most):
        return jax.core.ShapedArray(shape.shape, shape.dtype)
    # Made of one that has the axes, which are called by one name and another.
    spec = PartitionSpec(*(None for _ in shape.shape))
    sharding = NamedSharding(most.sharding.mesh, spec)
    return most.update(shape=shape.shape, dtype=shape.dtype, weak_type=False, sharding=sharding)


_NO_AXES: frozenset[Any] = frozenset()
_HAS_PCAST = hasattr(jax.lax, "pcast")


# ---- Explicit axes -------------------------------------------------------------------------


def _sharded(x: Any) -> bool:
    """Whether an array, or the type of one, is spread along explicit axes of a mesh."""
    kind = x if isinstance(x, jax.core.AbstractValue) else jax.typeof(x)
    spec = getattr(getattr(kind, "sharding", None), "spec", ())
    return any(entry is not None for entry in spec)


def replicated(tree: Any) -> Any:
    """The arrays, whole on every device of a mesh with explicit axes: for what mixes elements."""
    whole = lambda x: jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim))
    return jax.tree.map(lambda x: whole(x) if _sharded(x) else x, tree)


def like(x: Any, kind: Any) -> Any:
    """`x`, spread and varying as a value of that type is."""
    x = varying(x, varying_axes(kind))
    if not (_sharded(x) or _sharded(kind)) or jax.typeof(x).sharding.spec == kind.sharding.spec:
        return x
    return jax.sharding.reshard(x, kind.sharding.spec)


def repeated(x: jax.Array, lanes: jax.Array, axis: int) -> jax.Array:
    """`x` as often as `lanes` has elements along `axis`, and spread as those are."""
    # It may be a literal of a program, a number that is no array.
    x = jnp.asarray(x)
    copies = jnp.broadcast_to(x, (lanes.shape[axis], *x.shape))
    if not _sharded(lanes):
        return copies
    entry = jax.typeof(lanes).sharding.spec[axis]
    return jax.sharding.reshard(copies, PartitionSpec(entry, *jax.typeof(x).sharding.spec))


def rows(values: jax.Array, index: jax.Array) -> jax.Array:
    """`values[index]`, in a `jax.vmap` over what is spread along an explicit axis too.

    There JAX wants to be told that nothing else of it is spread.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return values[index]
    whole = PartitionSpec(*(None,) * (index.ndim + values.ndim - 1))
    return values.at[index].get(out_sharding=whole)


def automatic(f: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """`f(*args)`, of the shape of the last of them, sharded like that one.

    For functions of JAX's own that do without explicit axes of a mesh.
    """
    if not any(map(_sharded, args)):
        return f(*args)
    run: Any = jax.sharding.auto_axes(f, out_sharding=jax.typeof(args[-1]).sharding)
    return run(*args)


def types_of(f: Callable[..., Any], operands: Sequence[Any], shapes: Sequence[Any]) -> list[Any]:
    """The types of the results of `f(*operands)`, which are known to be of these `shapes`."""
    if any(map(_sharded, operands)):
        # How they are spread, JAX's own rules tell.
        results = jax.eval_shape(f, *operands)
        return [jax.core.ShapedArray(x.shape, x.dtype, sharding=x.sharding) for x in results]
    return [shaped(shape, operands) for shape in shapes]
