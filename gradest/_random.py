"""Keys and noise.

Inside gradest every key is typed. A sampling site under `jax.vmap` has one key per lane,
so every function here also takes an array of keys: its axes are then the leading axes of
what is drawn, and lane `i` draws what it would have drawn alone.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from . import _numerics


def as_key(key: ArrayLike) -> jax.Array:
    """`key` as one typed PRNG key; legacy uint32 keys are wrapped."""
    typed = key if isinstance(key, jax.Array) and is_typed(key) else _wrap_legacy(key)
    if typed.shape != ():
        raise _not_one(typed)
    return typed


def _not_one(keys: jax.Array) -> Exception:
    return ValueError(
        f"key: expected one PRNG key, got an array of keys of shape {keys.shape}. "
        "Vmap over the keys, or use one of them."
    )


def as_keys(key: ArrayLike) -> jax.Array:
    """`key` as one typed key, or as the array of typed keys, one per lane, that it is."""
    return key if isinstance(key, jax.Array) and is_typed(key) else as_key(key)


def keys_of(key: ArrayLike, shape: Sequence[int]) -> jax.Array:
    """`key` as typed keys, whose axes are the first axes of the draws of `shape`."""
    keys = as_keys(key)
    if keys.shape != tuple(shape)[: keys.ndim]:
        raise _not_one(keys)
    return keys


def is_typed(key: Any) -> bool:
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _wrap_legacy(key: Any) -> jax.Array:
    if getattr(key, "dtype", None) == jnp.uint32:
        # Of another shape it is no key either.
        with contextlib.suppress(TypeError):
            return jax.random.wrap_key_data(key)
    raise TypeError(
        f"key: expected a PRNG key such as jax.random.key(0), got {type(key).__name__}. "
        "Keys come first: sampler(key, dist)."
    )


def split(key: jax.Array, num: int) -> jax.Array:
    """`num` keys per key, along a new leading axis."""
    return jnp.moveaxis(per_lane(lambda k, _: jax.random.split(k, num), key, ()), key.ndim, 0)


def fold_in(key: jax.Array, data: ArrayLike) -> jax.Array:
    return per_lane(lambda k, _: jax.random.fold_in(k, data), key, ())


def per_lane(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    key: jax.Array,
    shape: Sequence[int],
) -> jax.Array:
    """`draw(key, shape)`, where the axes of an array of keys are the first axes of `shape`."""
    inner = tuple(shape)[key.ndim :] if shape else ()
    mapped: Callable[[jax.Array], jax.Array] = lambda k: draw(k, inner)
    for _ in range(key.ndim):
        mapped = jax.vmap(mapped)
    return mapped(key)


def noise(
    family: Callable[..., jax.Array], key: ArrayLike, shape: Sequence[int], dtype: DTypeLike
) -> jax.Array:
    """Draws of one of `jax.random`'s parameter-free families, for parameters of type `dtype`."""
    key = keys_of(key, shape)
    return per_lane(lambda k, s: family(k, s, _numerics.compute_dtype(dtype)), key, shape)


def categorical(key: ArrayLike, logits: jax.Array, shape: Sequence[int] = ()) -> jax.Array:
    """Exact categorical draws of shape `shape + logits.shape[:-1]`, by inverting the CDF.

    One uniform per draw and one cumulative sum per row, where `jax.random.categorical`
    spends one Gumbel per category per draw. A category of zero probability is never drawn.
    """
    probs = jax.nn.softmax(logits.astype(_numerics.compute_dtype(logits.dtype)), axis=-1)
    cumulative = jnp.cumsum(probs, axis=-1)
    rows = logits.shape[:-1]
    u = noise(jax.random.uniform, key, (*shape, *rows), logits.dtype)
    if math.prod(shape) == 1:
        return _first_above(probs, cumulative, u.reshape(rows)).reshape(u.shape)
    # A parallel cumulative sum may round differently from one entry to the next. Taking the
    # running maximum over categories of non-zero mass makes it monotone, and exactly flat at
    # the others, so that no uniform falls into them.
    cumulative = jax.lax.cummax(jnp.where(probs > 0, cumulative, 0), axis=cumulative.ndim - 1)
    search = lambda row, t: jnp.searchsorted(row, t, side="right").astype(int)
    for _ in rows:
        search = jax.vmap(search, in_axes=(0, len(shape)), out_axes=len(shape))
    # u * total < total whatever the rounding, since u <= 1 - epsilon: the last category of
    # non-zero mass is the highest that can be drawn.
    return search(cumulative, u * jnp.broadcast_to(cumulative[..., -1], u.shape))


def _first_above(probs: jax.Array, cumulative: jax.Array, u: jax.Array) -> jax.Array:
    """The first category of non-zero mass whose cumulative sum is above `u` times the total.

    For one draw per row: a minimum fuses with the sum and needs no sorted row. Should rounding
    leave no such category, it is the first one of non-zero mass.
    """
    num = probs.shape[-1]
    category = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32), probs.shape)
    above = cumulative > u[..., None] * cumulative[..., -1:]
    # A sum, since a mesh with explicit axes allows no choice between arrays of unlike sharding.
    rank = category + num * (~above).astype(category.dtype)
    best = jnp.min(jnp.where(probs > 0, rank, 2 * num - 1), axis=-1)
    return jnp.where(best >= num, best - num, best).astype(int)
