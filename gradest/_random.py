"""Keys and noise.

Inside gradest every key is typed. A sampling site under `jax.vmap` has one key per lane,
so every function here also takes an array of keys: its axes are then the leading axes of
what is drawn, and lane `i` draws what it would have drawn alone.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from . import _numerics
from ._fixed_point import Words, as_float, first_above, fixed, halve, invert, less, search


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
    given, remedy = type(key).__name__, "Keys come first: sampler(key, dist)."
    if type(key).__name__ in ("Rngs", "RngStream"):
        remedy = "Take a key of it: rngs()."
    elif isinstance(key, int):
        remedy = f"Of a seed make one: jax.random.key({key})."
    elif isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim:
        # Words alone do not say what they are a key of.
        given = f"an array of type uint32 and shape {key.shape}"
        remedy = (
            "Of the words of another generator than JAX's default, such as rbg, make one: "
            'jax.random.wrap_key_data(key, impl="rbg").'
        )
    raise TypeError(f"key: expected a PRNG key such as jax.random.key(0), got {given}. {remedy}")


def split(key: jax.Array, num: int) -> jax.Array:
    """`num` keys per key, along a new leading axis."""
    return jnp.moveaxis(per_lane(lambda k, _: jax.random.split(k, num), key, ()), key.ndim, 0)


def fold_in(key: jax.Array, data: ArrayLike) -> jax.Array:
    return per_lane(lambda k, _: jax.random.fold_in(k, data), key, ())


def threefry(key: jax.Array) -> jax.Array:
    """A key of that implementation, the only one by which `jax.random` draws some families."""
    if str(jax.random.key_impl(key)) == _THREEFRY:
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl=_THREEFRY)


_THREEFRY = "threefry2x32"


def per_lane(
    draw: Callable[[jax.Array, tuple[int, ...]], Any], key: jax.Array, shape: Sequence[int]
) -> Any:
    """`draw(key, shape)`, where the axes of an array of keys are the first axes of `shape`."""
    inner = tuple(shape)[key.ndim :] if shape else ()
    mapped: Callable[[jax.Array], Any] = lambda k: draw(k, inner)
    for _ in range(key.ndim):
        mapped = jax.vmap(mapped)
    return mapped(key)


def noise(
    family: Callable[..., jax.Array], key: ArrayLike, shape: Sequence[int], dtype: DTypeLike
) -> jax.Array:
    """Draws of one of `jax.random`'s parameter-free families, for parameters of type `dtype`."""
    key = keys_of(key, shape)
    return per_lane(lambda k, s: family(k, s, _numerics.compute_dtype(dtype)), key, shape)


def exponential_like(key: jax.Array, like: jax.Array) -> jax.Array:
    """Exponential noise of the shape and for the type of an array."""
    return noise(jax.random.exponential, key, like.shape, like.dtype)


def words(key: jax.Array, shape: Sequence[int]) -> Words:
    """64 random bits for each element: the two words that keys of their own would have.

    A word of `jax.random.bits` costs the whole block of threefry that has two. Who is given the
    key must not split it besides.
    """
    data = jax.random.key_data(jax.random.split(key, tuple(shape)))
    return Words(data[..., 0], data[..., 1])


def words_of(keys: jax.Array, shape: Sequence[int]) -> Words:
    """`words`, of keys whose axes are the first ones of `shape`."""
    return Words(*per_lane(words, keys, shape))


def uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """As `jax.random.uniform`, never 0, and with all digits where it is small."""
    return as_float(words(key, shape), jnp.dtype(dtype))


def permutations(key: jax.Array, num: int, shape: Sequence[int]) -> jax.Array:
    """Of the numbers below `num`, along a new leading axis: an independent one for each element.

    The axes of an array of keys are the first axes of `shape`.
    """

    def draw(key: jax.Array, inner: tuple[int, ...]) -> jax.Array:
        numbers = jnp.arange(num).reshape(num, *(1,) * len(inner))
        every = jnp.broadcast_to(numbers, (num, *inner))
        return jax.random.permutation(key, every, axis=0, independent=True)

    return jnp.moveaxis(per_lane(draw, key, shape), key.ndim, 0)


def gumbel(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """As `jax.random.gumbel`, up to 45 and not to 17 only: an argmax finds rare categories."""
    u = uniform(key, shape, dtype)
    return -jnp.log(-jnp.log1p(-u))


def logistic(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """As `jax.random.logistic`, to 44 on either side."""
    u = words(key, shape)
    # A sign, and the smaller of the probabilities of the two sides.
    side = as_float(Words(u.high & 0x7FFFFFFF, u.low), jnp.dtype(dtype))
    size = jnp.log1p(-side) - jnp.log(side)
    return jnp.where(u.high >> 31 == 0, size, -size)


@functools.partial(jax.jit, static_argnames="shape")
def _categorical(key: jax.Array, logits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return category_at(words_of(key, (*shape, *logits.shape[:-1])), logits)


def category_at(u: Words, logits: jax.Array) -> jax.Array:
    """The category whose share of the interval from 0 to 2^64 holds u, of shape (..., *rows)."""
    rows = logits.shape[:-1]
    weights = fixed(jax.nn.softmax(logits, axis=-1), 62)
    shape = u.low.shape[: u.low.ndim - len(rows)]
    if math.prod(shape) == 1:
        one = first_above(weights, Words(*(x.reshape(rows) for x in u)))
        return one.reshape(u.low.shape).astype(int)
    find = search
    for _ in rows:
        find = jax.vmap(find, in_axes=(0, len(shape)), out_axes=len(shape))
    return find(weights, u).astype(int)


def categorical(key: ArrayLike, logits: jax.Array, shape: Sequence[int] = ()) -> jax.Array:
    """Exact categorical draws of shape `shape + logits.shape[:-1]`, by inverting the CDF.

    In integers of 62 bits: the probabilities are those of a softmax in at least single precision,
    rounded to 2^-62, however many the categories. One block of random bits per draw and one sum
    per row, where `jax.random.categorical` spends one block per category per draw. A category of
    zero probability is never drawn, and of a row of none but these some one in range.
    """
    (logits,) = _numerics.in_compute_dtype(logits)
    shape = tuple(shape)
    return _categorical(keys_of(key, (*shape, *logits.shape[:-1])), logits, shape)


@functools.partial(jax.jit, static_argnames="shape")
def _bernoulli(key: jax.Array, logits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    full = (*shape, *logits.shape)
    return antithetic_at(words_of(key, full), jnp.broadcast_to(logits, full))[1]


def bernoulli(key: ArrayLike, logits: jax.Array, shape: Sequence[int] = ()) -> jax.Array:
    """Exact draws, True with probability sigmoid(logits), of shape `shape + logits.shape`."""
    (logits,) = _numerics.in_compute_dtype(logits)
    shape = tuple(shape)
    return _bernoulli(keys_of(key, (*shape, *logits.shape)), logits, shape)


def antithetic(key: ArrayLike, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two draws each, 1[u > sigmoid(-logits)] and 1[u < sigmoid(logits)], and their uniform u.

    Never are both on the rarer side.
    """
    return antithetic_at(words_of(keys_of(key, logits.shape), logits.shape), logits)


def antithetic_at(u: Words, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same at these numbers, u being taken for u / 2^64."""
    # In 63 bits, and at most 2^62: the rarer outcome's probability has the digits.
    rare = fixed(jax.nn.sigmoid(-jnp.abs(logits)), 63)
    low, high = less(halve(u), rare), less(halve(invert(u)), rare)
    one = logits > 0
    first, second = (low & one) | (high & ~one), (high & one) | (low & ~one)
    return first ^ one, second ^ one, as_float(u, logits.dtype)
