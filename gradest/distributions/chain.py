"""Labels of a sequence: a linear-chain conditional random field."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check, _random
from .._derivatives.primitives import weighted
from .._numerics import below_highest, in_compute_dtype
from ._information import divergence, excludes, surprise
from .base import Distribution, Shape, as_float, plain
from .bernoulli import certain
from .subset import WEIGHTS


def _check_possible(unary: ArrayLike, pairwise: ArrayLike) -> None:
    """Raises where it is known of a chain that all its sequences are excluded."""
    u, w = _check.known(unary), _check.known(pairwise)
    if u is None or w is None or not (np.any(np.isneginf(u)) or np.any(np.isneginf(w))):
        return
    reached = np.ones(u[..., 0, :].shape, bool)
    for t in range(u.shape[-2]):
        before = reached if t == 0 else np.any(reached[..., :, None] & (w > -np.inf), axis=-2)
        reached = before & (u[..., t, :] > -np.inf)
        if not np.all(np.any(reached, axis=-1)):
            raise ValueError(
                "unary, pairwise: expected at least one sequence of labels that is possible, got "
                f"weights of -inf that exclude them all: place {t} has no label left. Exclude "
                "fewer labels or pairs."
            )


class LinearChainCRF(Distribution):
    r"""Labels of T places, of K kinds each, that depend on their neighbours.

    P(y) is proportional to exp(sum_t unary[t, y_t] + sum_t pairwise[y_t, y_{t+1}]). Draws are
    one-hot rows of shape (..., T, K), exact by forward filtering and backward sampling; that, a
    log-probability, the mean and the entropy take O(T K^2) operations, in T steps.

    Args:
      unary: log-weights of the labels of each place, shape (..., T, K); -inf excludes one.
      pairwise: log-weights of a label, in rows, and the next, in columns, shape (..., K, K); -inf
        excludes the pair. Leading axes broadcast.

    Raises:
      ValueError: if the shapes are others, a weight is known to be infinite or not a number, or it
        is known that no sequence is possible.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradest.distributions import LinearChainCRF
      >>> no_repeats = jnp.where(jnp.eye(2) > 0, -jnp.inf, 0)
      >>> labels = LinearChainCRF(jnp.zeros((4, 2)), no_repeats)
      >>> print(labels.sample(jax.random.key(0)).sum(axis=0))
      [2. 2.]

    Reference:
      Lafferty, McCallum and Pereira 2001, "Conditional Random Fields".
    """

    parameters = ("unary", "pairwise")
    unary: jax.Array
    pairwise: jax.Array

    def __init__(self, unary: ArrayLike, pairwise: ArrayLike):
        u, w = certain(as_float("unary", unary)), certain(as_float("pairwise", pairwise))
        _check.elements(WEIGHTS, unary=unary, pairwise=pairwise)
        try:
            if u.ndim < 2 or 0 in u.shape[-2:] or w.shape[-2:] != (u.shape[-1],) * 2:
                raise ValueError
            batch = np.broadcast_shapes(u.shape[:-2], w.shape[:-2])
        except ValueError:
            raise ValueError(
                "unary, pairwise: expected arrays of shapes (..., T, K) and (..., K, K), at least "
                f"one place and label, whose leading axes broadcast, got {u.shape} and {w.shape}."
            ) from None
        _check_possible(unary, pairwise)
        dtype = jnp.result_type(u, w)
        self.unary = jnp.broadcast_to(u.astype(dtype), (*batch, *u.shape[-2:]))
        self.pairwise = jnp.broadcast_to(w.astype(dtype), (*batch, *w.shape[-2:]))

    @property
    def shape(self) -> Shape:
        return self.unary.shape

    @property
    def num_outcomes(self) -> int:
        length, num_labels = self.unary.shape[-2:]
        return num_labels**length

    def enumerate_support(self) -> jax.Array:
        """All sequences of labels, shape (K^T, T, K)."""
        length, num_labels = self.unary.shape[-2:]
        labels = np.array(list(itertools.product(range(num_labels), repeat=length)))
        return jnp.asarray(np.eye(num_labels)[labels], self.unary.dtype)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        unary, pairwise = self._log_weights()
        keys = _random.keys_of(key, (*shape, *unary.shape[:-2]))
        labels = _draw(keys, unary, pairwise, tuple(shape))
        return jax.nn.one_hot(labels, unary.shape[-1], dtype=self.unary.dtype)

    def _log_weights(self) -> tuple[jax.Array, jax.Array]:
        """In the type to compute in, without what all labels of a place, or all pairs, share."""
        unary, pairwise = in_compute_dtype(self.unary, self.pairwise)
        return below_highest(unary, -1), below_highest(pairwise, (-2, -1))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of one-hot rows `x` of shape (..., T, K); bilinear between them."""
        if np.shape(x)[-2:] != self.shape[-2:]:
            raise ValueError(
                f"x: expected one-hot rows, of shape {self.shape[-2:]} along the last two axes, "
                f"got shape {np.shape(x)}. Of labels make them: jax.nn.one_hot(x, "
                f"{self.shape[-1]})."
            )
        unary, pairwise = self._log_weights()
        _, log_z = _filtered(unary, pairwise)
        x = jnp.asarray(x, unary.dtype)
        x = jnp.broadcast_to(x, np.broadcast_shapes(x.shape, unary.shape))
        unary = jnp.broadcast_to(unary, x.shape)
        of_places = jnp.sum(weighted(x, unary, jnp.isneginf(unary)), axis=(-2, -1))
        excluded = jnp.isneginf(pairwise)
        of_pairs = _bilinear(x, jnp.where(excluded, 0, pairwise))
        possible = _bilinear(x, excluded.astype(x.dtype)) <= 0
        log_p = jnp.where(possible, of_places + of_pairs, -jnp.inf)
        return (log_p - jnp.broadcast_to(log_z, log_p.shape)).astype(self.unary.dtype)

    def mean(self) -> jax.Array:
        """The probability of each label at each place, shape (..., T, K)."""
        last, before = _backward(*self._log_weights())
        of_places = _smoothed(jnp.exp(last), jnp.exp(before))
        return jnp.moveaxis(of_places, 0, -2).astype(self.unary.dtype)

    def entropy(self) -> jax.Array:
        """In nats, shape (...,)."""
        last, before = _backward(*self._log_weights())
        return _expected(surprise, last, before).astype(self.unary.dtype)

    def _relative_entropy(self, other: "LinearChainCRF") -> jax.Array:
        last, before = _backward(*self._log_weights())
        others = _backward(*other._log_weights())
        finite = _expected(divergence, last, before, *others)
        lost = lambda log_p, log_q: excludes(log_q, log_p).astype(log_p.dtype)
        return jnp.where(_expected(lost, last, before, *others) > 0, jnp.inf, finite)


# ---- Messages ------------------------------------------------------------------------------


def _log_sum(a: jax.Array, axis: int) -> jax.Array:
    """logsumexp, with a derivative of zero where all are -inf."""
    top = jax.lax.stop_gradient(jnp.max(a, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(a - top), axis=axis)
    some = total > 0
    log_total = jnp.log(jnp.where(some, total, 1)) + jnp.squeeze(top, axis)
    return jnp.where(some, log_total, -jnp.inf)


def _normalised(a: jax.Array, axis: int) -> jax.Array:
    """log-probabilities along an axis; all -inf where nothing is possible."""
    total = jnp.expand_dims(_log_sum(a, axis), axis)
    some = total > -jnp.inf
    return jnp.where(some, a - jnp.where(some, total, 0), -jnp.inf)


def _filtered(unary: jax.Array, pairwise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log-probabilities of each place's label given the weights so far, and log of the sum of all.

    Of shapes (T, ..., K) and (...,).
    """
    places = jnp.moveaxis(unary, -2, 0)

    def step(state: Any, u: jax.Array) -> tuple[Any, jax.Array]:
        l, log_z = state
        a = u + _log_sum(l[..., :, None] + pairwise, -2)
        l = _normalised(a, -1)
        return (l, log_z + _log_sum(a, -1)), l

    first = _normalised(places[0], -1)
    (_, log_z), others = jax.lax.scan(step, (first, _log_sum(places[0], -1)), places[1:])
    return jnp.concatenate([first[None], others]), log_z


def _backward(unary: jax.Array, pairwise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log P(y_T), and log P(y_t = j | y_{t+1} = k) of the places before, (T - 1, ..., K, K)."""
    l, _ = _filtered(unary, pairwise)
    return l[-1], _normalised(l[:-1, ..., :, None] + pairwise[None], -2)


def _smoothed(last: jax.Array, before: jax.Array) -> jax.Array:
    """P(y_t) of all places, shape (T, ..., K)."""

    def step(p: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
        p = jnp.sum(given * p[..., None, :], axis=-1)
        return p, p

    _, others = jax.lax.scan(step, last, before, reverse=True)
    return jnp.concatenate([others, last[None]])


def _expected(
    term: Callable[..., jax.Array], last: jax.Array, before: jax.Array, *others: jax.Array
) -> jax.Array:
    """The sum of terms of all places' log P(y_t | y_{t+1}), the last one without a condition.

    Args:
      term: a mean's, p times what is averaged: of log p, and of those of another distribution.
      last: log-probabilities of the last label.
      before: of each label given the next.
      *others: `last` and `before` of the other distribution.
    """
    p = _smoothed(jnp.exp(last), jnp.exp(before))[1:]
    of_last = jnp.sum(term(last, *others[:1]), axis=-1)
    given = jnp.sum(term(before, *others[1:]), axis=-2)
    return of_last + jnp.sum(p * given, axis=(0, -1))


def _bilinear(x: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_t x_t . weights x_{t+1}."""
    times = lambda x: jnp.matmul(x, weights, precision="highest")
    for _ in range(x.ndim - weights.ndim):
        times = jax.vmap(times)
    return jnp.sum(times(x[..., :-1, :]) * x[..., 1:, :], axis=(-2, -1))


@functools.partial(jax.jit, static_argnames="shape")
def _draw(keys: jax.Array, unary: jax.Array, pairwise: jax.Array, shape: Shape) -> jax.Array:
    """Labels, shape + (..., T): the last from what was filtered, each other one given the next."""
    rows, length = unary.shape[:-2], unary.shape[-2]
    words = _random.words_of(keys, (*shape, *rows, length))
    words = _random.Words(*(jnp.moveaxis(word, -1, 0) for word in words))
    at = lambda i: _random.Words(*(word[i] for word in words))
    filtered, _ = _filtered(unary, pairwise)
    last = _random.category_at(at(-1), filtered[-1])
    columns = jnp.moveaxis(pairwise, -1, -2)

    def column(columns: jax.Array, label: jax.Array) -> jax.Array:
        return columns.at[label].get(mode="promise_in_bounds")

    for _ in rows:
        column = jax.vmap(column, in_axes=(0, len(shape)), out_axes=len(shape))

    def step(label: jax.Array, place: Any) -> tuple[jax.Array, jax.Array]:
        l, u = place
        given = column(columns, label)
        l = jnp.broadcast_to(l, given.shape) + given
        label = _random.category_at(u, l).astype(label.dtype)
        return label, label

    before = (filtered[:-1], at(slice(None, -1)))
    _, others = jax.lax.scan(step, last, before, reverse=True)
    return jnp.moveaxis(jnp.concatenate([others, last[None]]), 0, -1)
