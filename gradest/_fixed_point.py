"""Numbers in fixed point, of 64 bits, and the first of many whose running sum is above another.

A uniform number in single precision has 23 bits, which outcomes of a probability below 1e-7 fall
through, and a running sum over 200,000 categories is off by a percent of what is small. A number
here is a pair of uint32 words, the high one first: sums are exact in any order, flat where nothing
is added, and need no 64-bit types.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_U32 = jnp.uint32
#: The branching of the tree of sums that one draw of a row descends.
_WIDTH = 16


class Words(NamedTuple):
    """Integers of 64 bits, high * 2^32 + low."""

    high: jax.Array
    low: jax.Array


def fixed(p: jax.Array, bits: int) -> Words:
    """floor(p 2^bits) of floats p, where that is below 2^64."""
    y = p * 2.0 ** (bits - 32)
    whole = jnp.floor(y)
    # Exact, as are the product and the difference.
    return Words(whole.astype(_U32), ((y - whole) * 2.0**32).astype(_U32))


def as_float(u: Words, dtype: jnp.dtype) -> jax.Array:
    """(u + 1/2) / 2^64, in the open interval from 0 to 1, with all digits where it is small."""
    x = u.high.astype(dtype) * 2.0**-32 + (u.low.astype(dtype) + 0.5) * 2.0**-64
    return jnp.minimum(x, 1 - float(jnp.finfo(dtype).epsneg))


def invert(u: Words) -> Words:
    """2^64 - 1 - u."""
    return Words(~u.high, ~u.low)


def less(a: Words, b: Words) -> jax.Array:
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def halve(a: Words) -> Words:
    """floor(a / 2)."""
    return Words(a.high >> 1, (a.high << 31) | (a.low >> 1))


def first_above(weights: Words, u: Words) -> jax.Array:
    """For each row the first index k such that weights[0] + ... + weights[k] > u / 2^64 * total.

    Args:
      weights: of shape (..., K), a row's sum being below 2^63.
      u: of the shape of the rows: one number each, for which sums of 16 make a tree.

    Returns:
      Indices from 0 to K - 1, whatever the weights; never one of weight 0 beside others.
    """
    num = weights.low.shape[-1]
    levels = [weights]
    while levels[-1].low.shape[-1] > _WIDTH:
        blocks = _blocks(levels.pop())
        levels += [blocks, _sums(blocks)]
    top = levels.pop()
    k, rest = _pick(top, _share(u, _sums(top)))
    for blocks in reversed(levels):
        j, rest = _pick(_row(blocks, k), rest)
        k = k * _WIDTH + j
    return jnp.minimum(k, num - 1)


def search(weights: Words, u: Words) -> jax.Array:
    """`first_above` for many numbers of one row: running sums, bisected.

    Args:
      weights: of shape (K,), their sum being below 2^63.
      u: of any shape.
    """
    num = weights.low.shape[0]
    low = jax.lax.cumsum(weights.low)  # Modulo 2^32, with a carry where it is less than its term.
    high = jax.lax.cumsum(weights.high + (low < weights.low).astype(_U32))
    target = _share(u, Words(high[-1], low[-1]))
    bits = (num - 1).bit_length()

    def step(i: jax.Array, k: jax.Array) -> jax.Array:
        # k of the running sums are known to be at most `target`.
        more = k + (jnp.int32(1) << (bits - 1 - i))
        at = jnp.minimum(more, num) - 1
        sums = Words(*(x.at[at].get(mode="promise_in_bounds") for x in (high, low)))
        return jnp.where((more < num) & ~less(target, sums), more, k)

    start = jnp.zeros_like(target.low, jnp.int32)
    return jax.lax.fori_loop(0, bits, step, start) if bits else start


# ---- Arithmetic ----------------------------------------------------------------------------


def _add(a: Words, b: Words) -> Words:
    low = a.low + b.low
    return Words(a.high + b.high + (low < b.low).astype(_U32), low)


def _subtract(a: Words, b: Words) -> Words:
    return Words(a.high - b.high - (a.low < b.low).astype(_U32), a.low - b.low)


def _product(a: jax.Array, b: jax.Array) -> Words:
    """Of two words."""
    half = _U32(0xFFFF)
    a1, a0, b1, b0 = a >> 16, a & half, b >> 16, b & half
    left, right = a0 * b1, a1 * b0
    middle = ((a0 * b0) >> 16) + (left & half) + (right & half)
    return Words(a1 * b1 + (left >> 16) + (right >> 16) + (middle >> 16), a * b)


def _share(u: Words, total: Words) -> Words:
    """floor(u / 2^64 * total) or at most two less: below the total, whatever u."""
    zero = jnp.zeros_like(u.low)
    result = _product(u.high, total.high)
    result = _add(result, Words(zero, _product(u.low, total.high).high))
    return _add(result, Words(zero, _product(u.high, total.low).high))


def _sums(w: Words) -> Words:
    """Along the last axis, of at most 2^16 entries."""
    total = lambda x: jnp.sum(x, axis=-1, dtype=_U32)
    low, middle, high = total(w.low & _U32(0xFFFF)), total(w.low >> 16), total(w.high)
    middle = middle + (low >> 16)
    return Words(high + (middle >> 16), (middle << 16) | (low & _U32(0xFFFF)))


# ---- The tree ------------------------------------------------------------------------------


def _blocks(w: Words) -> Words:
    """The last axis as rows of `_WIDTH`, the last one filled up with zeros."""
    *rows, num = w.low.shape
    n = math.ceil(num / _WIDTH)
    padding = [(0, 0)] * len(rows) + [(0, n * _WIDTH - num)]
    return Words(*(jnp.pad(x, padding).reshape(*rows, n, _WIDTH) for x in w))


def _row(blocks: Words, k: jax.Array) -> Words:
    """Block number k of each row."""
    take = lambda x: jnp.take_along_axis(x, k[..., None, None], -2, mode="promise_in_bounds")
    return Words(*(take(x)[..., 0, :] for x in blocks))


def _pick(w: Words, target: Words) -> tuple[jax.Array, Words]:
    """The first index whose running sum is above the target, and what is left of that there."""
    running = before = Words(jnp.zeros_like(target.high), jnp.zeros_like(target.low))
    k = jnp.zeros(target.low.shape, jnp.int32)
    for j in range(w.low.shape[-1] - 1):
        running = _add(running, Words(w.high[..., j], w.low[..., j]))
        past = ~less(target, running)
        k = k + past.astype(jnp.int32)
        before = Words(*(jnp.where(past, x, y) for x, y in zip(running, before, strict=True)))
    return k, _subtract(target, before)
