"""Subsets of k of n items, as vectors of k ones and n - k zeros."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check, _random
from .._derivatives.primitives import log_sigmoid, log_sum, softplus, weighted
from .._numerics import below_highest, below_top, in_compute_dtype, tempered
from ._information import excludes
from .base import Distribution, Shape, align_wide, as_float, plain
from .bernoulli import certain

# Stands for infinity where infinities would be subtracted from each other.
_BIG = 1e30
#: Of log-weights that may exclude an item, and not force one in.
WEIGHTS = _check.Domain(
    "numbers below infinity",
    lambda x: x < np.inf,
    "-inf excludes an item; of one that is always in, draw the others only.",
)


def check_possible(k: int, logits: ArrayLike, num_items: int) -> None:
    """Raises for logits out of range, and unless `k` items of each row are possible."""
    _check.elements(WEIGHTS, logits=logits)
    known = _check.known(logits)
    possible = num_items
    if known is not None:
        possible = int(np.min(np.sum(known > -np.inf, axis=-1), initial=num_items))
    if k > possible:
        raise ValueError(
            f"k: expected at most {possible}, the number of items that are possible, got {k}. "
            "Draw fewer, or exclude fewer by logits of -inf."
        )


class Subset(Distribution):
    r"""Subsets of k of n items, P(x) proportional to exp(logits . x) for x of k ones.

    The conditional Bernoulli distribution: n Bernoulli variables of these log-odds, given that k
    of them are 1. (To draw the k items of the largest logits plus Gumbel noise is another law,
    that of `PlackettLuce` without its order.) Draws are vectors of floats, 0 or 1. A draw, a
    log-probability, the mean and the entropy take O(n k) operations, in n steps.

    Args:
      logits: log-weights of the items, shape (..., n); -inf excludes one. Of a row in which fewer
        than k are possible the first items are drawn, with log-probability -inf.
      k: how many are drawn, from 0 to n, a Python integer.

    Raises:
      ValueError: if `logits` has no axis, or are known to be infinite or to leave less than k
        items, or k is not from 0 to n.

    Example:
      >>> import jax
      >>> from gradest.distributions import Subset
      >>> chosen = Subset([0.3, -jax.numpy.inf, 2.0, 0.5], k=2)
      >>> print(chosen.sample(jax.random.key(0)).sum(), chosen.mean().sum())
      2.0 2.0

    Reference:
      Chen and Liu 1997, "Statistical Applications of the Poisson-Binomial and Conditional
      Bernoulli Distributions", sections 2 and 4, here in ratios of successive sums.
      Ahmed, Zeng, Niepert and Van den Broeck 2023, "SIMPLE: A Gradient Estimator for k-Subset
      Sampling", for the mean as what straight_through differentiates.
    """

    parameters = ("logits",)
    static = ("k",)
    logits: jax.Array
    k: int

    def __init__(self, logits: ArrayLike, k: int):
        self.logits = certain(as_float("logits", logits))
        if self.logits.ndim == 0:
            raise ValueError("logits: expected the items along the last axis, got a scalar.")
        self.k, n = _check.integer("k", k, 0), self.logits.shape[-1]
        check_possible(self.k, logits, n)

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    @property
    def num_outcomes(self) -> int:
        return math.comb(self.logits.shape[-1], self.k)

    def enumerate_support(self) -> jax.Array:
        """All subsets, shape (n choose k, n)."""
        n = self.logits.shape[-1]
        chosen = np.array(list(itertools.combinations(range(n), self.k)), int)
        rows = np.zeros((len(chosen), n))
        np.put_along_axis(rows, chosen.reshape(len(chosen), self.k), 1, axis=1)
        return jnp.asarray(rows, self.logits.dtype)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        l = self._log_weights()
        full = (*shape, *l.shape)
        drawn = _draw(_random.keys_of(key, full[:-1]), l, self.k, tuple(shape))
        return drawn.astype(self.logits.dtype)

    def _log_weights(self) -> jax.Array:
        """In the type to compute in, without what all logits have in common."""
        (l,) = in_compute_dtype(self.logits)
        return below_highest(l, -1)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of vectors `x` of shape (..., n); linear in `x` between the subsets.

        It is -inf for one whose elements do not add up to k, rounded.
        """
        l = self._log_weights()
        log_z = _log_sum(l, self.k)
        x, l = align_wide(x, l)
        of_items = jnp.sum(weighted(x, l, jnp.isneginf(l)), axis=-1)
        log_p = of_items - jnp.broadcast_to(log_z, of_items.shape)
        right = jnp.round(jnp.sum(x, axis=-1)) == self.k
        return jnp.where(right, log_p, -jnp.inf).astype(self.logits.dtype)

    def mean(self) -> jax.Array:
        """The probability of each item to be in, shape (..., n)."""
        return _marginals(self._log_weights(), self.k).astype(self.logits.dtype)

    def entropy(self) -> jax.Array:
        """In nats, shape (...,)."""

        def of_choice(a: jax.Array) -> jax.Array:
            return softplus(a) - a * jax.nn.sigmoid(a)

        of_items = _expected(self.k, of_choice, _choices(self._log_weights(), self.k))
        return jnp.sum(of_items, axis=-1).astype(self.logits.dtype)

    def _relative_entropy(self, other: "Subset") -> jax.Array:
        def of_choice(a: jax.Array, b: jax.Array) -> jax.Array:
            is_in = log_sigmoid(a) - log_sigmoid(b)
            is_out = log_sigmoid(-a) - log_sigmoid(-b)
            return jax.nn.sigmoid(a) * is_in + jax.nn.sigmoid(-a) * is_out

        l, others = self._log_weights(), other._log_weights()
        of_items = _expected(self.k, of_choice, _choices(l, self.k), _choices(others, self.k))
        infinite = jnp.any(excludes(others, l), axis=-1) & (self.k > 0)
        return jnp.where(infinite, jnp.inf, jnp.sum(of_items, axis=-1))

    def perturb(self, key: jax.Array) -> jax.Array:
        """z = logits + Gumbel noise, up to a constant."""
        (l,) = in_compute_dtype(self.logits)
        return below_top(l) + _random.noise(_random.gumbel, key, l.shape, l.dtype)

    def soften(self, z: jax.Array, temperature: ArrayLike) -> jax.Array:
        """The relaxed top k of `z`: k softmaxes, each without what the earlier ones have taken.

        As the temperature falls, the k largest: those of logits plus Gumbel noise are no draw of
        this distribution.

        Reference:
          Xie and Ermon 2019, "Reparameterizable Subset Sampling via Continuous Relaxations", eq. 2
          to 4.
        """
        t = jnp.asarray(temperature, z.dtype)

        def take(state: tuple[jax.Array, jax.Array], _: None) -> Any:
            z, taken = state
            weights = jnp.exp(tempered(below_top(z), t))
            one = weights / jnp.sum(weights, axis=-1, keepdims=True)
            left = jnp.log(jnp.maximum(1 - one, jnp.finfo(z.dtype).eps))
            return (z + left, taken + one), None

        (_, taken), _ = jax.lax.scan(take, (z, jnp.zeros_like(z)), None, length=self.k)
        return taken.astype(self.logits.dtype)


# ---- Sums over subsets ---------------------------------------------------------------------


def _ratios(l: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """log e(i, j) / e(i, j - 1), with e(i, j) the sum over subsets of j of the first i items.

    Ratios and no sums: these lose digits as they grow. e(i, j) = e(i - 1, j) + w e(i - 1, j - 1).

    Returns:
      Those for i = n and j from 0 to k, shape (..., k + 1), and for i from 0 to n - 1, stacked
      along a leading axis. (For j = 0 infinity; for j above i, where both sums are 0, minus that.)
    """
    none = jnp.where(jnp.arange(k + 1) == 0, _BIG, -_BIG).astype(l.dtype)
    # Along the axes of a mesh as the logits are.
    start = jnp.broadcast_to(none, (*l.shape[:-1], k + 1)) + jnp.zeros_like(l[..., :1])

    def add(ratios: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        w = w[..., None]
        possible = w > -jnp.inf
        safe = jnp.where(possible, w, 0)
        more = log_sum(ratios[..., 1:], safe) - softplus(safe - ratios[..., :-1])
        new = jnp.concatenate([ratios[..., :1], more], axis=-1)
        return jnp.where(possible, new, ratios), ratios

    return jax.lax.scan(add, start, jnp.moveaxis(l, -1, 0))


def _choices(l: jax.Array, k: int) -> jax.Array:
    """Log-odds that item i is in, where j of the items from 0 to i are: shape (n, ..., k + 1)."""
    w = jnp.moveaxis(l, -1, 0)[..., None]
    _, ratios = _ratios(l, k)
    possible = w > -jnp.inf
    odds = jnp.where(possible, jnp.where(possible, w, 0) - ratios, -_BIG)
    # If as many are wanted as there are, all are in.
    i = jnp.arange(l.shape[-1]).reshape(-1, *(1,) * l.ndim)
    return jnp.where(jnp.arange(k + 1).reshape((1,) * l.ndim + (-1,)) > i, _BIG, odds)


def _expected(k: int, term: Callable[..., jax.Array], *choices: jax.Array) -> jax.Array:
    """E[term(log-odds of item i)] over what is drawn of the later items, shape (..., n).

    Args:
      k: how many are drawn.
      term: of the log-odds, elementwise.
      *choices: those of the distribution, and others that `term` takes too.
    """

    def step(p: jax.Array, odds: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """From the probabilities that j are wanted of the items up to this one."""
        of_item = jnp.sum(p * term(*odds), axis=-1)
        stay, fall = p * jax.nn.sigmoid(-odds[0]), p * jax.nn.sigmoid(odds[0])
        fallen = jnp.concatenate([fall[..., 1:], jnp.zeros_like(fall[..., :1])], axis=-1)
        return stay + fallen, of_item

    start = jnp.zeros_like(choices[0][0])
    start += jnp.broadcast_to((jnp.arange(k + 1) == k).astype(start.dtype), start.shape)
    _, of_items = jax.lax.scan(step, start, choices, reverse=True)
    return jnp.moveaxis(of_items, 0, -1)


def _marginals(l: jax.Array, k: int) -> jax.Array:
    return _expected(k, jax.nn.sigmoid, _choices(l, k))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_sum(l: jax.Array, k: int) -> jax.Array:
    """The logarithm of the sum over all subsets of k."""
    ratios, _ = _ratios(l, k)
    return jnp.sum(ratios[..., 1:], axis=-1)


@_log_sum.defjvp
def _log_sum_jvp(k: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Its derivative is the mean, which differences of sums would not tell to the last digits."""
    (l,), (dl,) = primals, tangents
    return _log_sum(l, k), jnp.sum(_marginals(l, k) * dl, axis=-1)


@functools.partial(jax.jit, static_argnames=("k", "shape"))
def _draw(keys: jax.Array, l: jax.Array, k: int, shape: Shape) -> jax.Array:
    """Exact draws, shape + l.shape, item by item from the last: each in or out with its odds."""
    rows = l.shape[:-1]
    words = _random.words_of(keys, (*shape, *l.shape))

    def at(odds: jax.Array, wanted: jax.Array) -> jax.Array:
        return odds.at[wanted].get(mode="promise_in_bounds")

    for _ in rows:
        at = jax.vmap(at, in_axes=(0, len(shape)), out_axes=len(shape))

    def step(wanted: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        odds, u = item
        chosen = _random.antithetic_at(u, at(odds, wanted))[1]
        return wanted - chosen.astype(wanted.dtype), chosen

    of_items = _random.Words(*(jnp.moveaxis(word, -1, 0) for word in words))
    alike = jnp.zeros_like(l[(None,) * len(shape) + (..., 0)], jnp.int32)
    start = jnp.full((*shape, *rows), k, jnp.int32) + alike
    _, chosen = jax.lax.scan(step, start, (_choices(l, k), of_items), reverse=True)
    return jnp.moveaxis(chosen, 0, -1)
