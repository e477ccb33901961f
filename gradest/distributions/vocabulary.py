"""Categorical variables over a vocabulary whose logits are too many to be kept."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from .. import _check, _mesh, _numerics, _random
from .._derivatives.chunks import Body, Chunk, chunk_at, num_chunks, slice_at, sum_over_chunks
from .._fixed_point import Words, fixed, halve, less
from .base import Distribution, Shape, as_float, plain, scored


class VocabularyCategorical(Distribution):
    r"""Categorical variables over a vocabulary, by chunks: P(x = k) = softmax(hidden @ weights)[k].

    The law of `Categorical(hidden @ weights)`, whose logits are computed again wherever they are
    needed, `chunk_size` words at a time, and never kept: draws, log-probabilities, entropies and
    their derivatives of every order take the memory of one chunk, (..., chunk_size), beside the
    parameters and the gradient. Draws are integers. A draw multiplies hidden by weights once, a
    log-probability once and its gradient three times, where `Categorical` does so once and twice.

    Draws are exact as those of `Categorical` are, in one pass: each chunk has a word drawn from it
    in fixed point, which takes the place of the one before with the share that the chunk has in
    what was seen so far. A word's probability has a relative error of about 1e-7 times the square
    root of the number of chunks, small ones included. With another `chunk_size` the draws of a key
    are others.

    The weights are shared by all draws. A batch is rows of `hidden`, or a `jax.vmap` around the
    whole loss; under a vmap inside of a loss under `gradest.expectation` each lane has the weights
    once more.

    Args:
      hidden: the last layer's activations, shape (..., d).
      weights: of the output layer, shape (d, vocabulary). The products are computed in the type of
        the two, at least single precision, and as `jax.default_matmul_precision` says.
      chunk_size: how many words are computed with at a time, a Python integer; need not divide the
        vocabulary.

    Raises:
      ValueError: for other shapes, an empty vocabulary, or a `chunk_size` below 1.
      TypeError: for parameters that are not real, or a `chunk_size` that is not a Python integer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradest.distributions import Categorical, VocabularyCategorical
      >>> hidden, weights = jnp.ones((2, 3)), jnp.eye(3, 50_000)
      >>> words = VocabularyCategorical(hidden, weights, chunk_size=4096)
      >>> words.sample(jax.random.key(0)).shape
      (2,)
      >>> bool(jnp.allclose(words.log_prob(7), Categorical(hidden @ weights).log_prob(7)))
      True
    """

    parameters = ("hidden", "weights")
    static = ("chunk_size",)
    hidden: jax.Array
    weights: jax.Array
    chunk_size: int

    def __init__(self, hidden: ArrayLike, weights: ArrayLike, chunk_size: int):
        self.hidden, self.weights = as_float("hidden", hidden), as_float("weights", weights)
        h, w = self.hidden.shape, self.weights.shape
        if len(h) == 0 or len(w) != 2 or h[-1] != w[0] or w[1] == 0:
            raise ValueError(
                "hidden, weights: expected arrays of shapes (..., d) and (d, vocabulary), at least "
                f"one word, got {h} and {w}. Transpose a table of embeddings: embeddings.T."
            )
        self.chunk_size = _check.integer("chunk_size", chunk_size, 1)

    @property
    def shape(self) -> Shape:
        return self.hidden.shape[:-1]

    @property
    def num_categories(self) -> int:
        return self.weights.shape[-1]

    @property
    def _dtype(self) -> Any:
        # The weights stay in their own type, strict promotion or not: they are never copied.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.promote_types(self.hidden.dtype, self.weights.dtype)

    @property
    def _wide(self) -> tuple[jax.Array, jax.Array]:
        """`hidden`, in the type to compute in, and the weights, of which only chunks will be."""
        return self.hidden.astype(_numerics.compute_dtype(self._dtype)), self.weights

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        shape = tuple(shape)
        keys = _random.keys_of(key, (*shape, *self.shape))
        return _draw(keys, *self._wide, shape, self.chunk_size)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape of `x`, integers; -inf for one that is no word."""
        x = jnp.asarray(scored(self, x), int)
        x = jnp.broadcast_to(x, np.broadcast_shapes(x.shape, self.shape))
        chosen, top, log_mass = _scores(self.chunk_size, *self._wide, x)
        possible = (x >= 0) & (x < self.num_categories)
        log_p = (chosen - jnp.broadcast_to(top, x.shape)) - jnp.broadcast_to(log_mass, x.shape)
        return jnp.where(possible, log_p, -jnp.inf).astype(self._dtype)

    def entropy(self) -> jax.Array:
        """In nats, of each independent element."""
        return _entropy(self.chunk_size, *self._wide).astype(self._dtype)

    def _relative_entropy(self, other: "VocabularyCategorical") -> jax.Array:
        return _divergence(self.chunk_size, *self._wide, *other._wide)


# ---- Chunks --------------------------------------------------------------------------------


def _logits(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Of a chunk of words; weights of more axes than two have them in common with `hidden`."""
    times = lambda h, w: jnp.matmul(h, w.astype(h.dtype))
    for _ in range(weights.ndim - 2):
        times = jax.vmap(times)
    return times(hidden, weights)


def _total(terms: jax.Array, kept: jax.Array) -> jax.Array:
    """The sum over the words of a chunk that are kept."""
    return jnp.sum(jnp.where(jnp.broadcast_to(kept, terms.shape), terms, 0), axis=-1)


def _of(x: jax.Array, chunk: Chunk, logits: jax.Array) -> jax.Array:
    """The logits of the words x, those of them that are in the chunk; 0 of others."""
    aligned = jnp.broadcast_to(logits, (*x.shape, logits.shape[-1]))
    indices = chunk.indices.reshape((1,) * x.ndim + (-1,)).astype(x.dtype)
    return _total(aligned, (x[..., None] == indices) & _kept(chunk, x.ndim))


def _kept(chunk: Chunk, rank: int) -> jax.Array:
    return chunk.fresh.reshape((1,) * rank + (-1,))


def _log_p(logits: jax.Array, top: jax.Array, log_mass: jax.Array) -> jax.Array:
    """Of logits far from 0 the digits are in what they are below the largest."""
    return (logits - top[..., None]) - log_mass[..., None]


def _chosen_and_mass(
    chunk: Chunk, hidden: jax.Array, weights: jax.Array, x: jax.Array, *normaliser: jax.Array
) -> list[jax.Array]:
    """What a chunk adds to the logits of the words x and to the sum of all probabilities."""
    l = _logits(hidden, weights)
    p = jnp.exp(_log_p(l, *normaliser))
    return [_of(x, chunk, l), _total(p, _kept(chunk, p.ndim - 1))]


# ---- Log-probabilities ---------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scores(
    size: int, hidden: jax.Array, weights: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The logits of the words x, 0 of what is no word, and the normaliser of all logits.

    That is their maximum, which counts as constant, and log sum exp of what they are below it: a
    running sum relative to the running maximum, in one pass.
    """
    hidden, weights, x = _mesh.varying_alike(hidden, weights, x)
    length = weights.shape[-1]
    size = min(size, length)

    def step(i: jax.Array, state: Any) -> Any:
        top, mass, chosen = state
        start, chunk = chunk_at(i, length, size)
        l = _logits(hidden, slice_at(weights, start, size))
        top, mass, of_chunk = _joined(top, mass, l, chunk)
        return top, mass + of_chunk, chosen + _of(x, chunk, l)

    nothing = _nothing(hidden)
    none_chosen = jnp.broadcast_to(nothing, x.shape) + jnp.zeros_like(x, hidden.dtype)
    state = (nothing - jnp.inf, nothing, none_chosen)
    top, mass, chosen = jax.lax.fori_loop(0, num_chunks(length, size), step, state)
    return chosen, top, jnp.log(mass)


@functools.partial(_scores.defjvp, symbolic_zeros=True)
def _scores_jvp(size: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    *parameters, x = primals
    chosen, *normaliser = _scores(size, *parameters, x)

    def sums(hidden: jax.Array, weights: jax.Array) -> list[jax.Array]:
        # That of the probabilities is 1, and its derivative that of the logarithm of the mass.
        return _summed(_chosen_and_mass, size, (hidden, weights, x, *normaliser))

    of_chosen, of_mass = _slope(sums, parameters, tangents)
    return (chosen, *normaliser), (of_chosen, jnp.zeros_like(normaliser[0]), of_mass)


def _slope(
    sums: Callable[..., list[jax.Array]], primals: Sequence[Any], tangents: Sequence[Any]
) -> list[jax.Array]:
    """The tangent of `sums`, a function of `primals`, those that have a tangent."""
    given = [None if isinstance(t, SymbolicZero) else t for t in tangents[: len(primals)]]

    def of_moving(*moving: jax.Array) -> list[jax.Array]:
        rest = iter(moving)
        return sums(*(p if t is None else next(rest) for p, t in zip(primals, given, strict=True)))

    moving = tuple(p for p, t in zip(primals, given, strict=True) if t is not None)
    return jax.jvp(of_moving, moving, tuple(t for t in given if t is not None))[1]


def _summed(body: Body, size: int, args: Sequence[jax.Array]) -> list[jax.Array]:
    """Over the chunks of the arguments number 1 and 5, which are weights."""
    sliced = [k in (1, 5) for k in range(len(args))]
    return sum_over_chunks(body, args, sliced=sliced, size=size)


def _nothing(hidden: jax.Array) -> jax.Array:
    """A zero for each row."""
    return jnp.zeros_like(hidden[..., 0])


def _joined(
    top: jax.Array, mass: jax.Array, l: jax.Array, chunk: Chunk
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The maximum of all logits so far, and relative to that the mass before and of the chunk."""
    kept = jnp.broadcast_to(_kept(chunk, l.ndim - 1), l.shape)
    now = jnp.maximum(top, jnp.max(jnp.where(kept, l, -jnp.inf), axis=-1))
    return now, mass * jnp.exp(top - now), _total(jnp.exp(l - now[..., None]), kept)


# ---- Entropies -----------------------------------------------------------------------------
#
# Each is a sum over the words of what depends on normalisers and on the result itself, too: in its
# derivative they stand as constants, and what they add is in the terms. So one sum has it all.


def _law(size: int, hidden: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """The parameters, and their normaliser."""
    return hidden, weights, *_scores(size, hidden, weights, jnp.full(hidden.shape[:-1], -1))[1:]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _entropy(size: int, hidden: jax.Array, weights: jax.Array) -> jax.Array:
    law = _law(size, hidden, weights)
    return _summed(_surprise, size, (*law, jnp.ones_like(law[-1])))[0]


@functools.partial(_entropy.defjvp, symbolic_zeros=True)
def _entropy_jvp(size: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    h, (_, _, *normaliser) = _entropy(size, *primals), _law(size, *primals)
    sums = lambda hidden, weights: _summed(_surprise, size, (hidden, weights, *normaliser, h))
    return h, _slope(sums, primals, tangents)[0]


def _possible(*law: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of a chunk of words, finite ones, and which of the words are possible."""
    l, top, log_mass = _logits(*law[:2]), *law[2:]
    possible = l > -jnp.inf
    return _log_p(jnp.where(possible, l, top[..., None]), top, log_mass), possible


def _surprise(chunk: Chunk, *terms: jax.Array) -> list[jax.Array]:
    """Terms of -sum p (log p + h - 1), whose derivative in the logits is -p (log p + h)."""
    (log_p, possible), h = _possible(*terms[:4]), terms[-1]
    kept = _kept(chunk, h.ndim) & possible
    return [_total(-jnp.exp(log_p) * (log_p + h[..., None] - 1), kept)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _divergence(size: int, *parameters: jax.Array) -> jax.Array:
    """Of two laws, of (hidden, weights) each."""
    p, q = _law(size, *parameters[:2]), _law(size, *parameters[2:])
    return _summed(_excess, size, (*p, *q, jnp.zeros_like(p[-1])))[0]


@functools.partial(_divergence.defjvp, symbolic_zeros=True)
def _divergence_jvp(size: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    d = _divergence(size, *primals)
    # Where it is infinite it does not move.
    at = jnp.where(jnp.isfinite(d), d, 0)
    of_p, of_q = (_law(size, *primals[k : k + 2])[2:] for k in (0, 2))

    def sums(*moved: jax.Array) -> list[jax.Array]:
        return _summed(_excess, size, (*moved[:2], *of_p, *moved[2:], *of_q, at))

    return d, _slope(sums, primals, tangents)[0]


def _excess(chunk: Chunk, *terms: jax.Array) -> list[jax.Array]:
    """Terms of sum p (log p - log q - d - 1) + q, of slopes p (log p - log q - d) and q - p."""
    (log_p, of_p), (log_q, of_q) = _possible(*terms[:4]), _possible(*terms[4:8])
    apart = jnp.exp(log_p) * (log_p - log_q - terms[-1][..., None] - 1)
    excess = jnp.where(of_p & of_q, apart, 0) + jnp.where(of_q, jnp.exp(log_q), 0)
    excluded = jnp.where(of_p & ~of_q, jnp.inf, 0).astype(excess.dtype)
    return [_total(excess + excluded, _kept(chunk, log_p.ndim - 1))]


# ---- Draws ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("shape", "size"))
def _draw(
    keys: jax.Array, hidden: jax.Array, weights: jax.Array, shape: Shape, size: int
) -> jax.Array:
    """One word of each chunk, which takes the place of that before with the chunk's share."""
    keys, hidden, weights = _mesh.varying_alike(keys, hidden, weights)
    rows, length = hidden.shape[:-1], weights.shape[-1]
    size = min(size, length)

    def step(i: jax.Array, state: Any) -> Any:
        top, mass, word = state
        start, chunk = chunk_at(i, length, size)
        l = _logits(hidden, slice_at(weights, start, size))
        words = _random.words_of(_random.fold_in(keys, i), (*shape, *rows, 2))
        inside, between = (Words(*(w[..., k] for w in words)) for k in range(2))
        masked = jnp.where(jnp.broadcast_to(_kept(chunk, len(rows)), l.shape), l, -jnp.inf)
        found = start + _random.category_at(inside, masked).astype(start.dtype)
        top, before, of_chunk = _joined(top, mass, l, chunk)
        word = jnp.where(_is_second(between, before, of_chunk), found, word)
        return top, before + of_chunk, word

    nothing = _nothing(hidden)
    first = jnp.broadcast_to(nothing, (*shape, *rows)).astype(jnp.int32)
    state = (nothing - jnp.inf, nothing, first)
    return jax.lax.fori_loop(0, num_chunks(length, size), step, state)[2].astype(int)


def _is_second(u: Words, first: jax.Array, second: jax.Array) -> jax.Array:
    """True with probability second / (first + second), by 63 bits of the smaller of the two."""
    of_smaller = fixed(jnp.minimum(first, second) / (first + second), 63)
    smaller = less(halve(u), Words(*(jnp.broadcast_to(w, u.low.shape) for w in of_smaller)))
    return smaller ^ jnp.broadcast_to(second > first, smaller.shape)
