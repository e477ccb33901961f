"""Bernoulli variables and the binary concrete density that relaxes them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from .. import _random
from .._numerics import tempered
from .base import Distribution, Shape, align, as_float, as_floats


def logits_from(logits: ArrayLike | None, probs: ArrayLike | None) -> jax.Array:
    """Log-odds, whichever of the two was given."""
    if (logits is None) == (probs is None):
        given = "neither" if logits is None else "both"
        raise TypeError(f"logits, probs: expected exactly one of the two, got {given}.")
    if logits is not None:
        return as_float("logits", logits)
    p = as_float("probs", probs)  # pyright: ignore[reportArgumentType]
    # Where p is 0 or 1 the logit is infinite and its derivative undefined: it counts as zero.
    inside = (p > 0) & (p < 1)
    safe = jnp.where(inside, p, 0.5)
    edge = jnp.where(p > 0, jnp.inf, -jnp.inf).astype(p.dtype)
    return jnp.where(inside, jnp.log(safe) - jnp.log1p(-safe), edge)


class Bernoulli(Distribution):
    r"""Independent Bernoulli variables, P(x = 1) = sigmoid(logits).

    Draws are floats, 0 or 1, so that gradients can flow through them.

    Args:
      logits: log-odds, of any shape; infinite ones are certain outcomes.
      probs: probabilities of 1, instead of `logits`.

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

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    @property
    def probs(self) -> jax.Array:
        """P(x = 1)."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return _random.bernoulli(key, self.logits, shape).astype(self.logits.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise, linear in `x` between 0 and 1 (minus the binary cross-entropy)."""
        x, logits = align(jnp.asarray(x, self.logits.dtype), self.logits)
        log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        # Where an outcome is impossible is read from the logits: its log-probability is then not
        # needed for a derivative alone.
        never, always = jnp.isneginf(logits), jnp.isposinf(logits)
        return weighted(x, log_p, never) + weighted(1 - x, log_q, always)


@jax.custom_jvp
def weighted(x: jax.Array, log_p: jax.Array, impossible: jax.Array) -> jax.Array:
    """`x * log_p`, and 0 where an impossible outcome (log_p = -inf) has weight 0."""
    return x * jnp.where((x == 0) & impossible, 0, log_p)


def _weighted_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """JAX's own, except that dlog_p has no mask, which loops would keep: x is zero there."""
    (x, log_p, impossible), (dx, dlog_p, _) = primals, tangents
    y = weighted(x, log_p, impossible)
    dy = jnp.zeros_like(y) if isinstance(dlog_p, SymbolicZero) else x * dlog_p
    if not isinstance(dx, SymbolicZero):
        dy += jnp.where((x == 0) & impossible, 0, log_p) * dx
    return y, dy


weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


class RelaxedBernoulli(Distribution):
    r"""Binary concrete density on (0, 1): x = sigmoid((logits + logistic noise) / temperature).

    log p(x) = log t + d - 2 softplus(d) - log x - log(1 - x), with d = l - t logit(x).

    Args:
      temperature: positive; as it falls to 0 draws gather at 0 and 1.
      logits: log-odds of the Bernoulli variable that is relaxed.
      probs: its probabilities, instead of `logits`.

    Reference:
      Maddison, Mnih and Teh 2017, "The Concrete Distribution", eq. 22 and Appendix B.
    """

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

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.logits.dtype
        noise = _random.noise(_random.logistic, key, (*shape, *self.shape), dtype)
        noise, logits, temperature = align(noise, self.logits, self.temperature)
        y = tempered(logits.astype(noise.dtype) + noise, temperature.astype(noise.dtype))
        # The density lives on the open interval: rounding must not leave it.
        info = jnp.finfo(dtype)
        return jnp.clip(jax.nn.sigmoid(y).astype(dtype), info.tiny, 1 - info.epsneg)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        x, logits, temperature = align(
            jnp.asarray(x, self.logits.dtype), self.logits, self.temperature
        )
        log_x, log_1mx = jnp.log(x), jnp.log1p(-x)
        d = logits - temperature * (log_x - log_1mx)
        return jnp.log(temperature) + d - 2 * jax.nn.softplus(d) - log_x - log_1mx
