"""Continuous distributions whose draws are explicit functions of parameter-free noise."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from .. import _check, _random
from .._numerics import in_compute_dtype
from ._derived import wide
from ._implicit import bounded_exp, inside
from ._information import (
    OfExponential,
    OfGumbel,
    OfLaplace,
    OfLogistic,
    OfLogNormal,
    OfNormal,
    OfUniform,
)
from ._special import standardized
from .base import (
    Distribution,
    Shape,
    Shifted,
    WeakDerivative,
    align_wide,
    as_float,
    as_floats,
    finite,
    shifted,
)


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
        _check.elements(_check.FINITE, loc=loc)
        _check.elements(_check.POSITIVE, scale=scale)

    @property
    def shape(self) -> Shape:
        return self.loc.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def quantile(self, u: ArrayLike) -> jax.Array:
        """The x with P(X <= x) = u, elementwise, for u between 0 and 1."""
        u, loc, scale = align_wide(u, self.loc, self.scale)
        return self._rounded(Shifted(loc, scale * self._standard_quantile(u)))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise."""
        return self._log_prob_unrounded(shifted(x, self.loc))

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> Shifted:
        noise = _random.noise(self._family, key, (*shape, *self.shape), self.loc.dtype)
        return self._of_noise_unrounded(noise)

    def _of_noise_unrounded(self, e: jax.Array) -> Shifted:
        e, loc, scale = align_wide(e, self.loc, self.scale)
        return Shifted(loc, scale * e)

    def _rounded(self, u: Shifted) -> jax.Array:
        return finite(u.start + u.step, self.loc.dtype)

    def _log_prob_unrounded(self, u: Shifted) -> jax.Array:
        # Wide at once, for a derivative that is rounded once: not each of its terms.
        return wide(self)._log_prob_wide(u).astype(self.loc.dtype)

    def _log_prob_wide(self, u: Shifted) -> jax.Array:
        scale = align_wide(u.step, self.scale)[1]
        return self._log_density(self._noise(u)) - jnp.log(scale)

    def _noise(self, u: Shifted) -> jax.Array:
        """That of which a draw is made."""
        step, loc, scale = align_wide(u.step, self.loc, self.scale)
        return standardized(step, loc - u.start, scale)

    @staticmethod
    @abc.abstractmethod
    def _log_density(z: jax.Array) -> jax.Array:
        """Of the noise."""

    @staticmethod
    @abc.abstractmethod
    def _standard_quantile(u: jax.Array) -> jax.Array:
        """Of the noise."""


class _Symmetric(_LocScale):
    """One whose noise is as probable as its negative."""

    def reflect(self, x: jax.Array) -> jax.Array:
        """The draw that mirrors `x` at the centre."""
        return self.loc + (self.loc - x)


class Normal(OfNormal, _Symmetric):
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

    @property
    def noise_shape(self) -> Shape:
        """Of the noise that a draw is made of."""
        return self.shape

    def of_noise(self, e: jax.Array) -> jax.Array:
        """The draw made of standard Normal noise."""
        return self._rounded(self._of_noise_unrounded(e))

    @staticmethod
    def _log_density(z: jax.Array) -> jax.Array:
        return -0.5 * (z * z + math.log(2 * math.pi))

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """In `loc` a Rayleigh variable to either side; in `scale` a double-sided Maxwell one."""
        return self._weak_derivative_unrounded(key, shifted(x, self.loc), coupled)

    def _weak_derivative_unrounded(
        self, key: jax.Array, u: Shifted, coupled: bool
    ) -> Sequence[WeakDerivative]:
        keys = _random.split(key, 4)
        loc, scale = in_compute_dtype(self.loc, self.scale)
        at = lambda z: self._rounded(Shifted(loc, scale * z))
        right = jnp.sqrt(2 * _random.exponential_like(keys[0], loc))
        left = right if coupled else jnp.sqrt(2 * _random.exponential_like(keys[1], loc))
        # n is uniform between 0 and m = sign(n) sqrt(n^2 + 2 e): the coupling of section 7.2 of
        # Mohamed et al. 2020, seen from the Normal variable.
        n = _random.noise(jax.random.normal, keys[2], loc.shape, loc.dtype)
        n = self._noise(u) if coupled else n
        m = jnp.where(n < 0, -1, 1) * jnp.sqrt(n * n + 2 * _random.exponential_like(keys[3], loc))
        of_loc = WeakDerivative(1 / (scale * math.sqrt(2 * math.pi)), at(right), at(-left))
        return of_loc, WeakDerivative(1 / scale, at(m))

    @staticmethod
    def _standard_quantile(u: jax.Array) -> jax.Array:
        return ndtri(u)


class Laplace(OfLaplace, _Symmetric):
    """Independent Laplace variables, p(x) = exp(-|x - loc| / scale) / (2 scale).

    Args:
      loc: mean.
      scale: mean absolute deviation, positive.
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.laplace)

    @staticmethod
    def _log_density(z: jax.Array) -> jax.Array:
        return -jnp.abs(z) - math.log(2)

    @staticmethod
    def _standard_quantile(u: jax.Array) -> jax.Array:
        below = u < 0.5
        # The distance from the nearer end, which floats have exactly.
        return jnp.where(below, 1, -1) * jnp.log(2 * jnp.where(below, u, 1 - u))


class Logistic(OfLogistic, _Symmetric):
    """Independent logistic variables, P(X <= x) = sigmoid((x - loc) / scale).

    Args:
      loc: mean.
      scale: positive; the standard deviation is scale * pi / sqrt(3).
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.logistic)

    @staticmethod
    def _log_density(z: jax.Array) -> jax.Array:
        return -2 * jnp.logaddexp(z / 2, -z / 2)

    @staticmethod
    def _standard_quantile(u: jax.Array) -> jax.Array:
        return jnp.log(u) - jnp.log1p(-u)


class Gumbel(OfGumbel, _LocScale):
    """Independent Gumbel variables, P(X <= x) = exp(-exp(-(x - loc) / scale)).

    Args:
      loc: mode.
      scale: positive; the standard deviation is scale * pi / sqrt(6).
    """

    parameters = ("loc", "scale")
    _family = staticmethod(jax.random.gumbel)

    @staticmethod
    def _log_density(z: jax.Array) -> jax.Array:
        return -(z + bounded_exp(-z, 0.9))

    @staticmethod
    def _standard_quantile(u: jax.Array) -> jax.Array:
        return -jnp.log(-jnp.log(u))


class LogNormal(OfLogNormal, Normal):
    """x = exp(y) with y ~ Normal(loc, scale).

    Args:
      loc: mean of log x.
      scale: standard deviation of log x, positive.
    """

    parameters = ("loc", "scale")
    # Its logarithm has a centre.
    reflect = None  # pyright: ignore[reportAssignmentType]
    of_noise = None  # pyright: ignore[reportAssignmentType]

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf unless `x` is positive."""
        (x,) = align_wide(x, self.loc)[:1]
        log_p = self._log_prob_unrounded(self._logarithm(x))
        return jnp.where(x > 0, log_p, -jnp.inf)

    def _logarithm(self, x: ArrayLike) -> Shifted:
        """Of a draw, from which the others begin."""
        x = jnp.asarray(x)
        return shifted(jnp.log(jnp.where(x > 0, x, 1)), self.loc)

    def _rounded(self, u: Shifted) -> jax.Array:
        y, info = u.start + u.step, jnp.finfo(u.step.dtype)
        # Beyond, the exponential has a derivative of no number.
        y = jnp.clip(y, math.log(float(info.tiny)), math.log(float(info.max)))
        return inside(jnp.exp(y), self.loc.dtype)

    def _log_prob_wide(self, u: Shifted) -> jax.Array:
        return super()._log_prob_wide(u) - (u.start + u.step)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """Exponentials of Normal's."""
        return self._weak_derivative_unrounded(key, self._logarithm(x), coupled)


class Exponential(OfExponential, Distribution):
    """Independent exponential variables, p(x) = rate * exp(-rate * x) for x >= 0.

    Args:
      rate: inverse of the mean, positive.
    """

    parameters = ("rate",)
    reparameterizable = True
    rate: jax.Array

    def __init__(self, rate: ArrayLike = 1.0):
        self.rate = as_float("rate", rate)
        _check.elements(_check.POSITIVE, rate=rate)

    @property
    def shape(self) -> Shape:
        return self.rate.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.rate.dtype
        noise = _random.noise(jax.random.exponential, key, (*shape, *self.shape), dtype)
        noise, rate = align_wide(noise, self.rate)
        return finite(noise / rate, dtype)

    def quantile(self, u: ArrayLike) -> jax.Array:
        """The x with P(X <= x) = u, elementwise, for u between 0 and 1."""
        u, rate = align_wide(u, self.rate)
        return finite(-jnp.log1p(-u) / rate, self.rate.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf where `x` is negative."""
        x, rate = align_wide(x, self.rate)
        log_p = jnp.where(x >= 0, jnp.log(rate) - rate * x, -jnp.inf)
        return log_p.astype(self.rate.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, or another one, and one more."""
        keys = _random.split(key, 2)
        (rate,) = in_compute_dtype(self.rate)
        first = x if coupled else self.sample(keys[0])
        return [WeakDerivative(-1 / rate, first + self.sample(keys[1]))]


class Uniform(OfUniform, Distribution):
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
        _check.elements(_check.FINITE, low=low, high=high)
        lowest, highest = _check.known(low), _check.known(high)
        if lowest is not None and highest is not None and not np.all(lowest < highest):
            raise ValueError(
                f"low, high: expected `high` greater than `low`, got {highest} and {lowest}. The "
                "lower bound comes first."
            )

    @property
    def shape(self) -> Shape:
        return self.low.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        dtype = self.low.dtype
        noise = _random.noise(jax.random.uniform, key, (*shape, *self.shape), dtype)
        noise, low, high = align_wide(noise, self.low, self.high)
        return (low + (high - low) * noise).astype(dtype)

    def quantile(self, u: ArrayLike) -> jax.Array:
        """The x with P(X <= x) = u, elementwise, for u between 0 and 1."""
        u, low, high = align_wide(u, self.low, self.high)
        return (low + (high - low) * u).astype(self.low.dtype)

    def reflect(self, x: jax.Array) -> jax.Array:
        """The draw that mirrors `x` at the centre."""
        centre = (self.low + self.high) / 2
        return centre + (centre - x)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf where `x` is not from `low` to `high`."""
        x, low, high = align_wide(x, self.low, self.high)
        log_p = jnp.where((x >= low) & (x <= high), -jnp.log(high - low), -jnp.inf)
        return log_p.astype(self.low.dtype)
