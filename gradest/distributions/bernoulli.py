"""Bernoulli variables and the binary concrete density that relaxes them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _random
from .._derivatives.primitives import log_sigmoid, softplus, weighted
from .._numerics import in_compute_dtype, least_probability, positive, sigmoid, tempered
from ._implicit import inside
from ._information import OfOutcomes
from ._thresholds import Sign
from .base import (
    Distribution,
    Shape,
    WeakDerivative,
    align_wide,
    as_float,
    as_floats,
    finite,
    plain,
)


def logits_from(logits: ArrayLike | None, probs: ArrayLike | None) -> jax.Array:
    """Log-odds, whichever of the two was given."""
    if (logits is None) == (probs is None):
        given = "neither" if logits is None else "both"
        raise TypeError(f"logits, probs: expected exactly one of the two, got {given}.")
    if logits is not None:
        return certain(as_float("logits", logits))
    p = as_float("probs", probs)  # pyright: ignore[reportArgumentType]
    _check.elements(_check.PROBABILITY, probs=probs)
    return _log_odds(p)


def certain(logits: jax.Array) -> jax.Array:
    """The logits, of which infinite ones have no derivative, unlike those of probabilities."""
    if not isinstance(logits, jax.core.Tracer):
        return logits
    return jnp.where(jnp.isinf(logits), jax.lax.stop_gradient(logits), logits)


@jax.custom_jvp
def _log_odds(p: jax.Array) -> jax.Array:
    within = (p > 0) & (p < 1)
    safe = jnp.where(within, p, 0.5)
    edge = jnp.where(p > 0, jnp.inf, -jnp.inf).astype(p.dtype)
    return jnp.where(within, jnp.log(safe) - jnp.log1p(-safe), edge)


@_log_odds.defjvp
def _log_odds_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """That of an infinite one is one-sided: see `least_probability`."""
    (p,), (dp,) = primals, tangents
    within, least = (p > 0) & (p < 1), least_probability(p.dtype)
    safe = jnp.where(within, p, 0.5)
    slope = jnp.where(within, 1 / (safe * (1 - safe)), 1 / least if least else 0)
    return _log_odds(p), slope.astype(p.dtype) * dp


def on_the_edge(p: ArrayLike | None, edges: Callable[[Any], Any]) -> bool:
    """Whether the probabilities are differentiated, and known to have one of the edges."""
    if p is None or _check.is_concrete(p):
        return False
    try:
        return bool(jnp.any(edges(p)))
    except (TypeError, jax.errors.ConcretizationTypeError):
        # Traced, or one of a batch.
        return False


class Bernoulli(OfOutcomes, Sign):
    r"""Independent Bernoulli variables, P(x = 1) = sigmoid(logits).

    Draws are floats, 0 or 1, so that gradients can flow through them.

    Args:
      logits: log-odds, of any shape; infinite ones are certain outcomes.
      probs: probabilities of 1, instead of `logits`. At 0 and 1 their derivative is one-sided,
        from `enumeration` and `measure_valued`, and from `sum_and_sample` and `unordered_set` where
        they evaluate every outcome; to the first order, and not in float16. Others would have to
        draw the impossible outcome: they raise where the probability is known, and lack that term
        where it is traced.

    Raises:
      TypeError: if not exactly one of the two is given.

    Example:
      >>> import jax
      >>> from gradest.distributions import Bernoulli
      >>> Bernoulli(probs=[0.0, 1.0]).sample(jax.random.key(0))
      Array([0., 1.], dtype=float32)
    """

    parameters = ("logits",)
    logits: jax.Array

    def __init__(self, logits: ArrayLike | None = None, *, probs: ArrayLike | None = None):
        self.logits = logits_from(logits, probs)
        self.lost_edge = on_the_edge(probs, lambda p: (p <= 0) | (p >= 1))

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    @property
    def probs(self) -> jax.Array:
        """P(x = 1)."""
        return sigmoid(self.logits)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return _random.bernoulli(key, self.logits, shape).astype(self.logits.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise, linear in `x` between 0 and 1 (minus the binary cross-entropy)."""
        x, logits = align_wide(x, self.logits)
        log_p, log_q = log_sigmoid(logits), log_sigmoid(-logits)
        # Where an outcome is impossible is read from the logits: its log-probability is then not
        # needed for a derivative alone.
        never, always = logits == -jnp.inf, logits == jnp.inf
        log_p = weighted(x, log_p, never, 1 - x, log_q, always)
        return log_p.astype(self.logits.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, and the other outcome."""
        del key, coupled
        (l,) = in_compute_dtype(self.logits)
        edge = least_probability(self.logits.dtype)
        weight = jax.nn.sigmoid(l) * jax.nn.sigmoid(-l) + jnp.where(jnp.isinf(l), edge, 0)
        return [WeakDerivative(jnp.where(x > 0, -weight, weight), 1 - x)]


class _Relaxed(Distribution):
    """Holds a temperature and logits; a draw is a function of y = logit(x)."""

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
        self.temperature, self.logits = as_floats(
            temperature=temperature, logits=logits_from(logits, probs)
        )
        _check.elements(_check.POSITIVE, temperature=temperature)

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        """logit(x)."""
        noise = _random.noise(_random.logistic, key, (*shape, *self.shape), self.logits.dtype)
        noise, logits, temperature = align_wide(noise, self.logits, self.temperature)
        return tempered(logits + noise, temperature)

    def _log_density(self, y: ArrayLike) -> jax.Array:
        """Of y = logit(x)."""
        y, logits, temperature = align_wide(y, self.logits, self.temperature)
        temperature = positive(temperature)
        d = logits - temperature * y
        return jnp.log(temperature) + d - 2 * softplus(d)


class RelaxedBernoulli(_Relaxed):
    r"""Binary concrete density on (0, 1): x = sigmoid((logits + logistic noise) / temperature).

    log p(x) = log t + d - 2 softplus(d) - log x - log(1 - x), with d = l - t logit(x).

    Args:
      temperature: positive; as it falls to 0 draws gather at 0 and 1.
      logits: log-odds of the Bernoulli variable that is relaxed.
      probs: its probabilities, instead of `logits`.

    A draw that rounds to 1 has lost its distance from there, and `log_prob` at it its value:
    relative entropies of confident bits at low temperatures are `LogitRelaxedBernoulli`'s.

    Raises:
      TypeError: if not exactly one of logits and probs is given.

    Reference:
      Maddison, Mnih and Teh 2017, "The Concrete Distribution", eq. 22 and Appendix B.
    """

    parameters = ("temperature", "logits")

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise, `x` between 0 and 1."""
        x, _ = align_wide(x, self.logits)
        log_x, log_1mx = jnp.log(x), jnp.log1p(-x)
        log_p = self._log_density(log_x - log_1mx) - log_x - log_1mx
        return log_p.astype(self.logits.dtype)

    def _rounded(self, u: jax.Array) -> jax.Array:
        return _inner_sigmoid(self.logits.dtype, u)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        log_p = self._log_density(u) - log_sigmoid(u) - log_sigmoid(-u)
        return log_p.astype(self.logits.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inner_sigmoid(dtype: jnp.dtype, y: jax.Array) -> jax.Array:
    """sigmoid(y) as numbers of type `dtype` in the open interval from 0 to 1."""
    return inside(jax.nn.sigmoid(y), dtype, 1.0)


@_inner_sigmoid.defjvp
def _inner_sigmoid_jvp(dtype: jnp.dtype, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """x (1 - x) of the rounded x: it meets derivatives like 1 / (1 - x) that are large there."""
    x = _inner_sigmoid(dtype, *primals)
    wide = x.astype(primals[0].dtype)
    return x, (wide * (1 - wide) * tangents[0]).astype(dtype)


class LogitRelaxedBernoulli(_Relaxed):
    r"""The binary concrete density in logit space: y = logit(x) with x ~ RelaxedBernoulli.

    y = (logits + logistic noise) / temperature, log p(y) = log t + d - 2 softplus(d), with
    d = l - t y: a logistic density, exact where x itself rounds to 0 or 1.

    Args:
      temperature: positive.
      logits: log-odds of the Bernoulli variable that is relaxed.
      probs: its probabilities, instead of `logits`.

    Raises:
      TypeError: if not exactly one of logits and probs is given.

    Example:
      >>> import gradest as ge, jax, jax.numpy as jnp
      >>> from gradest.distributions import LogitRelaxedBernoulli
      >>> def divergence(l, key):                        # of one from another, in nats
      ...     q, p = LogitRelaxedBernoulli(0.2, l), LogitRelaxedBernoulli(0.2, 0.0)
      ...     y = ge.reparameterize()(key, q)            # the relaxed bit is sigmoid(y)
      ...     return q.log_prob(y) - p.log_prob(y)
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> print(f"{jax.vmap(divergence, (None, 0))(3.0, keys).mean():.1f}")
      1.3

    Reference:
      Maddison, Mnih and Teh 2017, "The Concrete Distribution", Appendix B, eq. 24.
    """

    parameters = ("temperature", "logits")

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return finite(self._sample_unrounded(key, shape), self.logits.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise, at logits `x` of relaxed bits."""
        return self._log_density(x).astype(self.logits.dtype)

    def _rounded(self, u: jax.Array) -> jax.Array:
        return finite(u, self.logits.dtype)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        return self.log_prob(u)
