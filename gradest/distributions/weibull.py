"""Weibull variables."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _random
from .._numerics import in_compute_dtype
from ._implicit import bounded_exp, inside
from .base import Distribution, Shape, align, as_floats


class Weibull(Distribution):
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

    @property
    def shape(self) -> Shape:
        return self.scale.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype, full = self.scale.dtype, (*shape, *self.shape)
        # Minus the logarithm of an exponential variable, finite where that rounds to zero.
        noise = _random.noise(jax.random.gumbel, key, full, dtype)
        noise, scale, k = align(noise, *in_compute_dtype(self.scale, self.concentration))
        return from_log(-noise, scale, k, dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf unless `x` is positive."""
        dtype = self.scale.dtype
        x, scale, k = in_compute_dtype(
            *align(jnp.asarray(x, dtype), self.scale, self.concentration)
        )
        positive = x > 0
        log_x = log_ratio(jnp.where(positive, x, scale), scale)
        log_p = jnp.log(k / scale) + (k - 1) * log_x - bounded_exp(k * log_x)
        return jnp.where(positive, log_p, -jnp.inf).astype(dtype)


def log_ratio(x: jax.Array, scale: jax.Array) -> jax.Array:
    """log(x / scale), finite where the ratio underflows."""
    return jnp.log(jnp.maximum(x / scale, float(jnp.finfo(x.dtype).tiny)))


def from_log(y: jax.Array, scale: jax.Array, k: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """scale * exp(y / k), finite and positive: the draw whose exponential variable is exp(y)."""
    limit = 0.9 * math.log(jnp.finfo(y.dtype).max)
    return inside(scale * jnp.exp(jnp.clip(y / k, -limit, limit)), dtype)
