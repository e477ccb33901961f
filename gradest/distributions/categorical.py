"""Categorical variables, as integers and one-hot, and the concrete densities that relax them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from jax.typing import ArrayLike

from .. import _check, _random
from .._derivatives.primitives import weighted
from .._numerics import (
    below_top,
    in_compute_dtype,
    least_probability,
    positive,
    softmax,
    tempered,
)
from ._information import OfOutcomes
from ._thresholds import Argmax, outcomes
from .base import (
    Distribution,
    Shape,
    WeakDerivative,
    align,
    align_wide,
    as_float,
    finite,
    plain,
    scored,
)
from .bernoulli import certain, on_the_edge

# What is not a number passes, as an element that is masked may be: no gradient of it is one.
_BELOW_INFINITY = _check.Domain(
    "numbers below infinity",
    lambda x: ~np.isposinf(x),
    "Of a category that is certain, give the others -inf.",
)


def logits_from(logits: ArrayLike | None, probs: ArrayLike | None) -> jax.Array:
    """Unnormalised log-probabilities along the last axis, whichever of the two was given."""
    if (logits is None) == (probs is None):
        given = "neither" if logits is None else "both"
        raise TypeError(f"logits, probs: expected exactly one of the two, got {given}.")
    if logits is not None:
        name, array = "logits", certain(as_float("logits", logits))
        _check.elements(_BELOW_INFINITY, logits=logits)
    else:
        name, p = "probs", as_float("probs", probs)  # pyright: ignore[reportArgumentType]
        _check.elements(_check.WEIGHT, probs=probs)
        array = _log(p)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(
            f"{name}: expected the categories along the last axis, at least one of them, got an "
            f"array of shape {array.shape}."
        )
    return array


@jax.custom_jvp
def _log(p: jax.Array) -> jax.Array:
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)


@_log.defjvp
def _log_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """That of an infinite one is one-sided: see `least_probability`."""
    (p,), (dp,) = primals, tangents
    least, total = least_probability(p.dtype), jnp.sum(p, axis=-1, keepdims=True)
    edge = (1 / least if least else 0.0) / jnp.where(total > 0, total, 1)
    return _log(p), jnp.where(p > 0, 1 / jnp.where(p > 0, p, 1), edge).astype(p.dtype) * dp


# Below it a weight has no derivative: a relaxed draw of an earlier site is all but hard there.
_SMALLEST_WEIGHT = 1e-6


def _weighted_logits(logits: jax.Array, weights: ArrayLike) -> jax.Array:
    """Those of probabilities proportional to `weights * exp(logits)`.

    The derivative of log w, which no relaxed draw could afford at 0, ends below 1e-6 (at half
    precision below what has a reciprocal).
    """
    w = as_float("weights", weights)
    remedy = "Where several draws are excluded, multiply: weights=(1 - a) * (1 - b)."
    _check.elements(_check.NOT_NEGATIVE._replace(remedy=remedy), weights=weights)
    try:
        logits, w = align(logits, w)
    except ValueError:
        raise ValueError(
            f"weights: expected a shape that broadcasts with that of logits, {logits.shape}, got "
            f"{w.shape}."
        ) from None
    impossible = w <= 0
    least = max(_SMALLEST_WEIGHT, 4 / float(jnp.finfo(w.dtype).max))
    w = jnp.where(w < least, jax.lax.stop_gradient(w), w)
    weighted = logits + jnp.where(impossible, -jnp.inf, jnp.log(jnp.where(impossible, 1, w)))
    # A row in which nothing is possible has the first category for certain.
    first = jnp.where(jnp.arange(w.shape[-1]) == 0, 0, -jnp.inf).astype(w.dtype)
    empty = jnp.all(jnp.isneginf(weighted), axis=-1, keepdims=True)
    return jnp.where(empty, jnp.broadcast_to(first, w.shape), weighted)


class _Logits(Distribution):
    """Holds logits of shape (..., K)."""

    parameters = ("logits",)
    categorical = True
    logits: jax.Array

    def __init__(self, logits: ArrayLike | None = None, *, probs: ArrayLike | None = None):
        given = None if logits is None else as_float("logits", logits)
        self.logits = logits_from(given, probs)
        self._given = self.logits, given
        self.lost_edge = on_the_edge(probs, lambda p: p <= 0)

    @property
    def num_categories(self) -> int:
        return self.logits.shape[-1]

    @property
    def probs(self) -> jax.Array:
        """Probabilities of the categories, shape (..., K)."""
        return softmax(self.logits)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """Each category, and all of them as they are probable."""
        del key, coupled
        (l,) = in_compute_dtype(self.logits)
        edge = least_probability(self.logits.dtype)
        p = jax.nn.softmax(l, axis=-1) + jnp.where(jnp.isneginf(l), edge, 0).astype(l.dtype)
        values = self.enumerate_support()
        values = jnp.broadcast_to(values.astype(x.dtype), (*p.shape[:-1], *values.shape))
        return [WeakDerivative(p, values, of_row=True)]


class Categorical(OfOutcomes, _Logits):
    r"""Independent categorical variables, P(x = k) = softmax(logits)[k]; draws are integers.

    Args:
      logits: unnormalised log-probabilities, shape (..., K); -inf masks a category.
      probs: (unnormalised) probabilities, instead of `logits`. At 0 their derivative is one-sided,
        as that of `Bernoulli`'s is.

    Raises:
      TypeError: if not exactly one of the two is given.

    Example:
      >>> import jax
      >>> from gradest.distributions import Categorical
      >>> Categorical(probs=[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).sample(jax.random.key(0))
      Array([1, 2], dtype=int32)
    """

    parameters = ("logits",)

    @property
    def shape(self) -> Shape:
        return self.logits.shape[:-1]

    def enumerate_support(self) -> jax.Array:
        """The values of one element, shape (K,)."""
        return jnp.arange(self.num_categories)

    def _outcomes(self) -> tuple[jax.Array, jax.Array]:
        return outcomes(self.logits)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return _random.categorical(key, self.logits, shape)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape of `x`, integers; -inf for one that is not from 0 to K - 1."""
        (logits,) = in_compute_dtype(self.logits)
        x = jnp.asarray(scored(self, x), int)
        # As in a log_softmax, of which only the one element is made.
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        log_total = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1))
        possible = (x >= 0) & (x < logits.shape[-1])
        picked, log_total, possible = align(_picked(logits - top, x), log_total, possible)
        return jnp.where(possible, picked - log_total, -jnp.inf).astype(self.logits.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _picked(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Of each row, 0 for what it has not.

    By a comparison and no gather: its transpose is a select and no scatter. It is made again there,
    since a loop would keep it, of as many elements as there are logits, for every step.
    """
    num = logits.shape[-1]
    x, logits, category = align(x[..., None], logits, jnp.arange(num))
    return jnp.sum(jnp.where(x == category, logits, 0), axis=-1)


class OneHotCategorical(OfOutcomes, _Logits, Argmax):
    r"""Independent categorical variables as one-hot rows of floats, gradients can flow through.

    Args:
      logits: unnormalised log-probabilities, shape (..., K); -inf masks a category.
      probs: (unnormalised) probabilities, instead of `logits`.
      weights: factors of the probabilities, not negative, of a shape that broadcasts with (..., K):
        P(x = k) is proportional to weights[k] exp(logits[k]), and 0 where the weight is. It is the
        mask to make of an earlier draw, since it has a meaning between the draw's outcomes too: a
        choice without replacement is `OneHotCategorical(logits, weights=1 - a)`, a third one
        `OneHotCategorical(logits, weights=(1 - a) * (1 - b))`, unbiased under every estimator,
        those that evaluate the program at relaxed draws or means included. (`logits - 1e9 * a` or
        a comparison of `a` are not, under those.) There, what is negative counts as 0. A row whose
        weights are all 0 draws the first category, with log-probability and gradient zero.

    Raises:
      TypeError: if not exactly one of `logits` and `probs` is given.
      ValueError: if a weight that is known is negative.

    Example:
      >>> import jax
      >>> from gradest.distributions import OneHotCategorical
      >>> OneHotCategorical(probs=[0.0, 1.0, 0.0]).sample(jax.random.key(0))
      Array([0., 1., 0.], dtype=float32)
    """

    parameters = ("logits",)

    def __init__(
        self,
        logits: ArrayLike | None = None,
        *,
        probs: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ):
        super().__init__(logits, probs=probs)
        if weights is not None:
            self.logits = _weighted_logits(self.logits, weights)

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        index = _random.categorical(key, self.logits, shape)
        return jax.nn.one_hot(index, self.num_categories, dtype=self.logits.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of one-hot rows `x` of shape (..., K); linear in `x` between them."""
        if np.ndim(x) == 0 or np.shape(x)[-1] != self.num_categories:
            raise ValueError(
                f"x: expected one-hot rows, {self.num_categories} numbers along the last axis, got "
                f"shape {np.shape(x)}. Of a label make one: jax.nn.one_hot(x, "
                f"{self.num_categories}); or use Categorical, whose draws are labels."
            )
        (logits,) = in_compute_dtype(self.logits)
        x, log_p, logits = align_wide(x, jax.nn.log_softmax(logits, axis=-1), logits)
        log_p = jnp.sum(weighted(x, log_p, jnp.isneginf(logits)), axis=-1)
        return log_p.astype(self.logits.dtype)


class _Relaxed(Distribution):
    """Holds a temperature of shape (...,) and logits of shape (..., K)."""

    parameters = ("temperature", "logits")
    reparameterizable = True
    temperature: jax.Array
    logits: jax.Array

    def __init__(
        self,
        temperature: ArrayLike,
        logits: ArrayLike | None = None,
        *,
        probs: ArrayLike | None = None,
    ):
        l, t = logits_from(logits, probs), as_float("temperature", temperature)
        dtype = jnp.result_type(l, t)
        _check.elements(_check.POSITIVE, temperature=temperature)
        if l.ndim > 1 and t.shape == (*l.shape[:-1], 1):
            # One for each row, with an axis in the place of the categories.
            t = t[..., 0]
        try:
            rows = np.broadcast_shapes(l.shape[:-1], t.shape)
        except ValueError:
            raise ValueError(
                f"temperature: expected a shape that broadcasts with that of logits less its "
                f"last axis, {l.shape[:-1]}, got {t.shape}."
            ) from None
        self.temperature = jnp.broadcast_to(t.astype(dtype), rows)
        self.logits = jnp.broadcast_to(l.astype(dtype), (*rows, l.shape[-1]))

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    def _sample_log(self, key: ArrayLike, shape: Shape) -> jax.Array:
        noise = _random.noise(_random.gumbel, key, (*shape, *self.shape), self.logits.dtype)
        noise, logits, temperature = align_wide(noise, self.logits, self.temperature[..., None])
        return jax.nn.log_softmax(tempered(below_top(logits + noise), temperature), axis=-1)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        """log x; a category that is masked has the smallest number."""
        y = self._sample_log(key, shape)
        return jnp.where(jnp.isneginf(y), math.log(float(jnp.finfo(y.dtype).tiny)), y)

    def _log_density(self, y: ArrayLike) -> jax.Array:
        """Of y = log x: eq. 26 of the reference."""
        k = self.logits.shape[-1]
        y, logits, t = align_wide(y, self.logits, self.temperature[..., None])
        t = positive(t)
        d = logits - t * y
        constant = gammaln(jnp.asarray(k, y.dtype)) + (k - 1) * jnp.log(t[..., 0])
        return constant + jnp.sum(d, axis=-1) - k * logsumexp(d, axis=-1)


class RelaxedOneHotCategorical(_Relaxed):
    r"""Concrete density on the open simplex: x = softmax((logits + Gumbel noise) / temperature).

    p(x) = (K-1)! t^(K-1) prod_k [exp(l_k) x_k^(-t-1)] / (sum_k exp(l_k) x_k^(-t))^K

    Args:
      temperature: positive, shape (...,), (..., 1) or scalar: one for each row.
      logits: log-weights of the categories, shape (..., K).
      probs: (unnormalised) probabilities, instead of `logits`.

    Reference:
      Maddison, Mnih and Teh 2017, "The Concrete Distribution", eq. 10.
    """

    parameters = ("temperature", "logits")

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_log(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of points `x` of the open simplex, of shape (..., K)."""
        return self._log_prob_unrounded(jnp.log(align_wide(x, self.logits)[0]))

    def _rounded(self, u: jax.Array) -> jax.Array:
        dtype = self.logits.dtype
        return jnp.maximum(jnp.exp(u).astype(dtype), jnp.finfo(dtype).tiny)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        return (self._log_density(u) - jnp.sum(u, axis=-1)).astype(self.logits.dtype)


class ExpRelaxedOneHotCategorical(_Relaxed):
    r"""The concrete density in log space: y = log x with x ~ RelaxedOneHotCategorical.

    log p(y) = log (K-1)! + (K-1) log t + sum_k (l_k - t y_k) - K logsumexp_k (l_k - t y_k),
    which neither underflows nor overflows at low temperatures, where x itself does.

    Args:
      temperature: positive, shape (...,), (..., 1) or scalar: one for each row.
      logits: log-weights of the categories, shape (..., K).
      probs: (unnormalised) probabilities, instead of `logits`.

    Reference:
      Maddison, Mnih and Teh 2017, "The Concrete Distribution", Appendix C.3, eq. 26.
    """

    parameters = ("temperature", "logits")

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_log(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of logarithms `x` of points of the simplex, of shape (..., K)."""
        return self._log_density(x).astype(self.logits.dtype)

    def _rounded(self, u: jax.Array) -> jax.Array:
        # Of a masked category it is -inf, and only of such a one.
        return jnp.where(jnp.isneginf(u), u.astype(self.logits.dtype), finite(u, self.logits.dtype))

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        return self.log_prob(u)
