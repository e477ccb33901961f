"""Sums over the chunks of a last axis that is too long to be computed with at once.

As a scan over slices, whose derivative with respect to what is sliced has the chunks' own in their
places: JAX's own transpose of a slice is an array of zeros of the whole size for every chunk, and
what it keeps for it the intermediate results of all chunks.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .. import _mesh

Flags = tuple[bool, ...]


class Chunk(NamedTuple):
    """Which part of the long axis it is.

    Attributes:
      indices: the places along the axis.
      fresh: which of them no chunk before had. The last chunk is as long as the others, and begins
        before the end of the last but one.
    """

    indices: jax.Array
    fresh: jax.Array


class Body(Protocol):
    """What a chunk adds: a list of arrays, zero where the chunk is not fresh.

    It depends on nothing but its arguments and is a function of a module: what is derived from it
    is kept.
    """

    def __call__(self, chunk: Chunk, /, *args: Any, **kwargs: Any) -> Sequence[jax.Array]: ...


def num_chunks(length: int, size: int) -> int:
    return -(-length // size)


def chunk_at(i: jax.Array, length: int, size: int) -> tuple[jax.Array, Chunk]:
    """Chunk number i of `size` places, at most `length`, and where it starts."""
    i = i.astype(jnp.int32)
    start = jnp.minimum(i * size, length - size)
    indices = start + jnp.arange(size, dtype=start.dtype)
    return start, Chunk(indices, indices >= i * size)


def slice_at(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1)


def sum_over_chunks(
    body: Body, args: Sequence[jax.Array], *, sliced: Sequence[bool], size: int
) -> list[jax.Array]:
    """The sum of `body(chunk, *args)` over the chunks of those arguments that are sliced.

    Along their last axes. The sum is differentiable to every order, in the memory of one chunk.

    Args:
      body: what a chunk adds.
      args: arrays.
      sliced: which of them have the long axis, their last.
      size: of a chunk.
    """
    args = _mesh.varying_alike(*args)
    length = next(x.shape[-1] for x, long in zip(args, sliced, strict=True) if long)
    chunks = {"length": length, "size": min(size, length)}
    shapes = _shapes(args, body=body, sliced=tuple(sliced), size=chunks["size"])
    placed = (False,) * len(shapes)
    return chunks_p.bind(*args, body=body, sliced=tuple(sliced), placed=placed, **chunks)


# The sums of what `body` returns over chunks, but for those results that are placed: these have the
# long axis, and each chunk's part in its place.
chunks_p = core.Primitive("gradest_chunks")
chunks_p.multiple_results = True


def _run(
    *args: jax.Array, body: Body, sliced: Flags, placed: Flags, length: int, size: int
) -> list[jax.Array]:
    def add(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        start, chunk = chunk_at(i, length, size)
        parts = [
            slice_at(x, start, size) if long else x for x, long in zip(args, sliced, strict=True)
        ]
        terms = body(chunk, *parts)
        return [
            _added_at(total, term, start) if in_place else total + term
            for total, term, in_place in zip(sums, terms, placed, strict=True)
        ]

    shapes = _shapes(args, body=body, sliced=sliced, size=size)
    whole = lambda s, in_place: (*s.shape[:-1], length) if in_place else s.shape
    zeros = [jnp.zeros(whole(s, p), s.dtype) for s, p in zip(shapes, placed, strict=True)]
    axes = frozenset().union(*map(_mesh.varying_axes, args))
    zeros = [_mesh.varying(x, axes) if axes else x for x in zeros]
    return jax.lax.fori_loop(0, num_chunks(length, size), add, zeros)


def _added_at(total: jax.Array, term: jax.Array, start: jax.Array) -> jax.Array:
    there = slice_at(total, start, term.shape[-1])
    return jax.lax.dynamic_update_slice_in_dim(total, there + term, start, axis=-1)


def _shapes(
    args: Sequence[Any], *, body: Body, sliced: Flags, size: int
) -> list[jax.ShapeDtypeStruct]:
    """Of what a chunk adds."""
    first = chunk_at(jnp.int32(0), size, size)[1]
    return list(jax.eval_shape(body, first, *_parts(args, sliced, size)))


def _parts(args: Sequence[Any], sliced: Flags, size: int) -> list[jax.ShapeDtypeStruct]:
    """The arguments of a chunk's body, as types."""
    part = lambda x, long: (*x.shape[:-1], size) if long else x.shape
    return [
        jax.ShapeDtypeStruct(part(x, long), x.dtype) for x, long in zip(args, sliced, strict=True)
    ]


def _abstract(
    *avals: Any, body: Body, sliced: Flags, placed: Flags, length: int, size: int
) -> list[Any]:
    shapes = _shapes(avals, body=body, sliced=sliced, size=size)
    whole = lambda s, in_place: (*s.shape[:-1], length) if in_place else s.shape
    of = lambda s, in_place: jax.ShapeDtypeStruct(whole(s, in_place), s.dtype)
    return [_mesh.shaped(of(s, p), avals) for s, p in zip(shapes, placed, strict=True)]


_STATIC = ("body", "sliced", "placed", "length", "size")
chunks_p.def_impl(jax.jit(_run, static_argnames=_STATIC))
chunks_p.def_abstract_eval(_abstract)
mlir.register_lowering(chunks_p, mlir.lower_fun(_run, multiple_results=True))


# ---- Rules: each a sum over chunks again, of another body ------------------------------------


@functools.cache
def _tangent(body: Body, active: Flags) -> Body:
    """The tangents of the results, given the arguments and the tangents of the active ones."""

    def tangent(chunk: Chunk, *args: Any) -> Sequence[jax.Array]:
        primals, tangents = args[: len(active)], args[len(active) :]

        def of_active(*moving: Any) -> list[jax.Array]:
            rest = iter(moving)
            merged = [next(rest) if a else x for x, a in zip(primals, active, strict=True)]
            return list(body(chunk, *merged))

        moving = tuple(x for x, a in zip(primals, active, strict=True) if a)
        return jax.jvp(of_active, moving, tangents)[1]

    return tangent


def _differentiate(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    body: Body,
    sliced: Flags,
    placed: Flags,
    **chunks: int,
) -> tuple[Any, Any]:
    out = chunks_p.bind(*primals, body=body, sliced=sliced, placed=placed, **chunks)
    active = tuple(not isinstance(t, ad.Zero) for t in tangents)
    moving = [t for t in tangents if not isinstance(t, ad.Zero)]
    long = (*sliced, *(s for s, a in zip(sliced, active, strict=True) if a))
    moved = _mesh.varying_alike(*primals, *moving)
    of_tangent = _tangent(body, active)
    return out, chunks_p.bind(*moved, body=of_tangent, sliced=long, placed=placed, **chunks)


@functools.cache
def _transposed(body: Body, linear: Flags, live: Flags) -> Body:
    """The cotangents of the linear arguments, given the others and those of the live results."""

    def transposed(chunk: Chunk, *args: Any) -> Sequence[jax.Array]:
        known = len(linear) - sum(linear)
        fixed, shapes, cts = args[:known], args[known : len(linear)], iter(args[len(linear) :])

        def of_linear(*moving: Any) -> list[jax.Array]:
            of_fixed, of_moving = iter(fixed), iter(moving)
            merged = [next(of_moving if is_linear else of_fixed) for is_linear in linear]
            results = body(chunk, *merged)
            return [result for result, counts in zip(results, live, strict=True) if counts]

        return list(jax.linear_transpose(of_linear, *shapes)(list(cts)))

    return transposed


def _transpose(
    cts: Sequence[Any],
    *args: Any,
    body: Body,
    sliced: Flags,
    placed: Flags,
    length: int,
    size: int,
) -> list[Any]:
    linear = tuple(map(ad.is_undefined_primal, args))
    live = tuple(not isinstance(ct, ad.Zero) for ct in cts)
    pairs = list(zip(args, linear, strict=True))
    if not any(live):
        return [ad.Zero(x.aval) if is_linear else None for x, is_linear in pairs]
    fixed = [x for x in args if not ad.is_undefined_primal(x)]
    counted = [ct for ct in cts if not isinstance(ct, ad.Zero)]
    # What was summed is whole, and what was placed is sliced; and the other way round.
    of = lambda flags, chosen, value: tuple(
        f for f, c in zip(flags, chosen, strict=True) if c == value
    )
    long = (*of(sliced, linear, False), *of(placed, live, True))
    avals = [x.aval for x, is_linear in pairs if is_linear]
    parts = tuple(_parts(avals, of(sliced, linear, True), size))
    back = chunks_p.bind(
        *_mesh.varying_alike(*fixed, *counted),
        body=_with_shapes(_transposed(body, linear, live), len(fixed), parts),
        sliced=long,
        placed=of(sliced, linear, True),
        length=length,
        size=size,
    )
    results = iter(back)
    return [next(results) if is_linear else None for is_linear in linear]


@functools.cache
def _with_shapes(body: Body, at: int, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> Body:
    return lambda chunk, *args: body(chunk, *args[:at], *shapes, *args[at:])


@functools.cache
def _vmapped(body: Body, mapped: Flags) -> Body:
    axes = tuple(0 if m else None for m in mapped)
    return jax.vmap(lambda chunk, *args: list(body(chunk, *args)), in_axes=(None, *axes))


def _batch(
    args: Sequence[Any],
    dims: Sequence[Any],
    *,
    body: Body,
    sliced: Flags,
    placed: Flags,
    **chunks: int,
) -> tuple[Any, Any]:
    # What all lanes share stays one: its cotangent is summed over the lanes chunk by chunk.
    mapped = tuple(d is not None for d in dims)
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    vmapped = _vmapped(body, mapped)
    out = chunks_p.bind(*args, body=vmapped, sliced=sliced, placed=placed, **chunks)
    return out, [0] * len(out)


ad.primitive_jvps[chunks_p] = _differentiate
ad.primitive_transposes[chunks_p] = _transpose
batching.primitive_batchers[chunks_p] = _batch
