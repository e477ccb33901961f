"""Weibull variables."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _random
from .._numerics import in_compute_dtype
from ._implicit import bounded_exp, inside
from ._information import OfWeibull
from ._special import log_ratio
from .base import Distribution, Shape, WeakDerivative, align_wide, as_floats


class Weibull(OfWeibull, Distribution):
    """Independent Weibull variables, P(X > x) = exp(-(x / scale)^concentration) for x > 0.

    Args:
      scale: positive; the quantile at 1 - 1/e.
      concentration: shape, positive; 1 is the exponential, 2 the Rayleigh distribution. The two
        broadcast against each other.
    """

    parameters = ("scale", "concentration")
    reparameterizable = True
    scale: jax.Array
    concentration: jax.Array

    def __init__(self, scale: ArrayLike, concentration: ArrayLike):
        self.scale, self.concentration = as_floats(scale=scale, concentration=concentration)
        _check.elements(_check.POSITIVE, scale=scale, concentration=concentration)

    @property
    def shape(self) -> Shape:
        return self.scale.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def quantile(self, u: ArrayLike) -> jax.Array:
        """The x with P(X <= x) = u, elementwise, for u between 0 and 1."""
        u, scale, k = align_wide(u, self.scale, self.concentration)
        return self._rounded(jnp.log(scale) + jnp.log(-jnp.log1p(-u)) / k)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf unless `x` is positive."""
        x, scale, k = align_wide(x, self.scale, self.concentration)
        positive = x > 0
        log_p = _log_density(log_ratio(jnp.where(positive, x, scale), scale), scale, k)
        return jnp.where(positive, log_p, -jnp.inf).astype(self.scale.dtype)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        """log x."""
        # Minus the logarithm of an exponential variable, finite where that rounds to zero.
        noise = _random.noise(_random.gumbel, key, (*shape, *self.shape), self.scale.dtype)
        noise, scale, k = align_wide(noise, self.scale, self.concentration)
        return jnp.log(scale) - noise / k

    def _rounded(self, u: jax.Array) -> jax.Array:
        limit = 0.9 * math.log(jnp.finfo(u.dtype).max)
        return inside(jnp.exp(jnp.clip(u, -limit, limit)), self.scale.dtype)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        u, scale, k = align_wide(u, self.scale, self.concentration)
        return _log_density(u - jnp.log(scale), scale, k).astype(self.scale.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, and the one whose power of `concentration` is longer."""
        return self._weak_derivative_unrounded(key, jnp.log(x), coupled)

    def _weak_derivative_unrounded(
        self, key: jax.Array, u: jax.Array, coupled: bool
    ) -> Sequence[WeakDerivative]:
        keys = _random.split(key, 2)
        first = u if coupled else self._sample_unrounded(keys[0], ())
        u, first, scale, k = in_compute_dtype(u, first, self.scale, self.concentration)
        log_y, log_first = k * (u - jnp.log(scale)), k * (first - jnp.log(scale))
        e = _random.exponential_like(keys[1], scale)

        def longer(log_y: jax.Array) -> jax.Array:
            return self._rounded(jnp.log(scale) + jnp.log(jnp.exp(log_y) + e) / k)

        # With g(y) = f(x), k times the derivative is E[(1 + log y - y log y) g(y)]. The density of
        # z = y + e is z exp(-z) and E[1 + log y | z] = log z: it is E[(1 + log y) (g(y) - g(z))].
        weight = (1 + log_y) / k
        return WeakDerivative(k / scale, longer(log_first)), WeakDerivative(-weight, longer(log_y))


def _log_density(r: jax.Array, scale: jax.Array, k: jax.Array) -> jax.Array:
    """At r = log(x / scale)."""
    return jnp.log(k) - jnp.log(scale) + (k - 1) * r - bounded_exp(k * r)
