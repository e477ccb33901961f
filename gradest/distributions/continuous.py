"""Continuous distributions whose draws are explicit functions of parameter-free noise."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy import stats
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from .. import _numerics, _random
from ._implicit import bounded_exp
from .base import Distribution, Shape, align, as_float, as_floats


class _LocScale(Distribution):
    """x = loc + scale * noise, elementwise, with the noise of the subclass."""

    parameters = ("loc", "scale")
    reparameterizable = True
    loc: jax.Array
    scale: jax.Array
    #: Draws the noise: one of jax.random's parameter-free families.
    _family: ClassVar[Callable[..., jax.Array]]

    def __init__(self, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0):
        self.loc, self.scale = as_floats(loc=loc, scale=scale)

    @property
    def shape(self) -> Shape:
        return self.loc.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.loc.dtype
        noise = _random.noise(self._family, key, (*shape, *self.shape), dtype)
        noise, loc, scale = align(noise.astype(dtype), self.loc, self.scale)
        return loc + scale * noise


class Normal(_LocScale):
    """Independent Normal variables.

    Args:
      loc: mean.
      scale: standard deviation, positive. The two broadcast against each other.

    Example:
      >>> from gradest.distributions import Normal
      >>> Normal([0.0, 1.0], 2.0)
      Normal(loc=float32[2], scale=float32[2])
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.normal)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        return stats.norm.logpdf(*align(x, self.loc, self.scale))


class Laplace(_LocScale):
    """Independent Laplace variables, p(x) = exp(-|x - loc| / scale) / (2 scale).

    Args:
      loc: mean.
      scale: mean absolute deviation, positive.
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.laplace)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        return stats.laplace.logpdf(*align(x, self.loc, self.scale))


class Logistic(_LocScale):
    """Independent logistic variables, P(X <= x) = sigmoid((x - loc) / scale).

    Args:
      loc: mean.
      scale: positive; the standard deviation is scale * pi / sqrt(3).
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.logistic)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        return stats.logistic.logpdf(*align(x, self.loc, self.scale))


class Gumbel(_LocScale):
    """Independent Gumbel variables, P(X <= x) = exp(-exp(-(x - loc) / scale)).

    Args:
      loc: mode.
      scale: positive; the standard deviation is scale * pi / sqrt(6).
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.gumbel)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        x, loc, scale = align(x, self.loc, self.scale)
        z = (x - loc) / scale
        return -(z + bounded_exp(-z, 0.9)) - jnp.log(scale)


class LogNormal(Normal):
    """x = exp(y) with y ~ Normal(loc, scale).

    Args:
      loc: mean of log x.
      scale: standard deviation of log x, positive.
    """

    parameters = ("loc", "scale")

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return jnp.exp(super().sample(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        x, loc, scale = align(jnp.asarray(x, self.loc.dtype), self.loc, self.scale)
        y = jnp.log(jnp.where(x > 0, x, 1))
        return jnp.where(x > 0, stats.norm.logpdf(y, loc, scale) - y, -jnp.inf)


class Exponential(Distribution):
    """Independent exponential variables, p(x) = rate * exp(-rate * x) for x >= 0.

    Args:
      rate: inverse of the mean, positive.
    """

    parameters = ("rate",)
    reparameterizable = True
    rate: jax.Array

    def __init__(self, rate: ArrayLike = 1.0):
        self.rate = as_float("rate", rate)

    @property
    def shape(self) -> Shape:
        return self.rate.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.rate.dtype
        noise = _random.noise(jax.random.exponential, key, (*shape, *self.shape), dtype)
        noise, rate = align(noise.astype(dtype), self.rate)
        return noise / rate

    def log_prob(self, x: ArrayLike) -> jax.Array:
        x, rate = align(x, self.rate)
        return jnp.where(x >= 0, jnp.log(rate) - rate * x, -jnp.inf)


class Uniform(Distribution):
    """Independent uniform variables on [low, high).

    Args:
      low: lower bound.
      high: upper bound, greater than `low`.
    """

    parameters = ("low", "high")
    reparameterizable = True
    fixed_support = False
    low: jax.Array
    high: jax.Array

    def __init__(self, low: ArrayLike = 0.0, high: ArrayLike = 1.0):
        self.low, self.high = as_floats(low=low, high=high)

    @property
    def shape(self) -> Shape:
        return self.low.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.low.dtype
        noise = _random.noise(jax.random.uniform, key, (*shape, *self.shape), dtype)
        noise, low, high = align(noise.astype(dtype), self.low, self.high)
        return low + (high - low) * noise

    def log_prob(self, x: ArrayLike) -> jax.Array:
        x, low, high = align(x, self.low, self.high)
        return jnp.where((x >= low) & (x <= high), -jnp.log(high - low), -jnp.inf)


class MultivariateNormal(Distribution):
    """Multivariate Normal vectors, x = loc + scale_tril @ noise.

    Args:
      loc: mean, shape (..., d).
      scale_tril: lower-triangular Cholesky factor of the covariance, shape (..., d, d), with a
        positive diagonal. The leading axes of the two broadcast against each other.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradest.distributions import MultivariateNormal
      >>> MultivariateNormal(jnp.zeros(3), 2 * jnp.eye(3))
      MultivariateNormal(loc=float32[3], scale_tril=float32[3, 3])
    """

    parameters = ("loc", "scale_tril")
    reparameterizable = True
    loc: jax.Array
    scale_tril: jax.Array

    def __init__(self, loc: ArrayLike, scale_tril: ArrayLike):
        mean, factor = as_float("loc", loc), as_float("scale_tril", scale_tril)
        d = factor.shape[-1] if factor.ndim >= 2 else None
        dtype = jnp.result_type(mean, factor)
        try:
            if mean.ndim == 0 or factor.shape[-2:] != (d, d) or mean.shape[-1] not in (1, d):
                raise ValueError
            # Aligned by adding the vector's missing axis, then taking it away again.
            columns, matrices = align(mean[..., None].astype(dtype), factor.astype(dtype))
        except ValueError:
            raise ValueError(
                "loc, scale_tril: expected a vector of shape (..., d) and a lower-triangular "
                "matrix of shape (..., d, d) whose leading axes broadcast, got "
                f"{mean.shape} and {factor.shape}."
            ) from None
        self.loc, self.scale_tril = columns[..., 0], matrices

    @property
    def shape(self) -> Shape:
        return self.loc.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.loc.dtype
        noise = _random.noise(jax.random.normal, key, (*shape, *self.shape), dtype).astype(dtype)
        factor = jnp.broadcast_to(jnp.tril(self.scale_tril), (*noise.shape, noise.shape[-1]))
        return jnp.broadcast_to(self.loc, noise.shape) + jnp.einsum(
            "...ij,...j->...i", factor, noise
        )

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of vectors `x` of shape (..., d)."""
        x, loc = align(x, self.loc)
        # No triangular solve in half precision.
        dtype = _numerics.compute_dtype(self.loc.dtype)
        factor = jnp.broadcast_to(self.scale_tril, (*x.shape, x.shape[-1])).astype(dtype)
        z = solve_triangular(factor, (x - loc).astype(dtype)[..., None], lower=True)[..., 0]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
        return (jnp.sum(stats.norm.logpdf(z), axis=-1) - log_det).astype(self.loc.dtype)
