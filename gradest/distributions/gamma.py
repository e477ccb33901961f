"""Gamma variables and what is made of them, with implicit reparameterization gradients."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _random
from .._numerics import in_compute_dtype
from ._implicit import bounded_exp, inside
from ._information import OfBeta, OfDirichlet, OfGamma, OfStudentT
from ._log_gamma import log_density, log_gamma
from ._special import log_beta, simplex_log_density, standardized
from .base import (
    Distribution,
    Shape,
    WeakDerivative,
    align,
    align_wide,
    as_float,
    as_floats,
    finite,
)


class Gamma(OfGamma, Distribution):
    r"""Independent Gamma variables, p(x) = rate^a x^(a-1) exp(-rate x) / Gamma(a) for x > 0.

    Draws are differentiable in both parameters, once in the concentration a: implicitly, with
    dx/da = -(dF(x; a)/da) / p(x; a). They are no less than the smallest normal number of their
    type, where those with a concentration below 0.05 (in half precision 0.5) gather.

    Args:
      concentration: a, positive; the mean is a / rate and the variance a / rate^2.
      rate: inverse scale, positive. The two broadcast against each other.

    Example:
      >>> import jax
      >>> from gradest.distributions import Gamma
      >>> mean = lambda a: Gamma(a, 2.0).sample(jax.random.key(0), (100_000,)).mean()
      >>> print(f"{jax.grad(mean)(3.0):.2f}")
      0.50

    Reference:
      Figurnov, Mohamed and Mnih 2018, "Implicit Reparameterization Gradients", eq. 5 and
      section 4.
    """

    parameters = ("concentration", "rate")
    reparameterizable = True
    concentration: jax.Array
    rate: jax.Array

    def __init__(self, concentration: ArrayLike, rate: ArrayLike = 1.0):
        self.concentration, self.rate = as_floats(concentration=concentration, rate=rate)
        _check.elements(_check.POSITIVE, concentration=concentration, rate=rate)

    @property
    def shape(self) -> Shape:
        return self.rate.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf unless `x` is positive."""
        x, a, rate = align_wide(x, self.concentration, self.rate)
        positive = x > 0
        x = jnp.where(positive, x, 1)
        log_p = log_density(x, jnp.log(x), a, rate)
        return jnp.where(positive, log_p, -jnp.inf).astype(self.rate.dtype)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        """log x."""
        y = log_gamma(key, self.concentration, (*shape, *self.shape))
        y, rate = align_wide(y, self.rate)
        return y - jnp.log(rate)

    def _rounded(self, u: jax.Array) -> jax.Array:
        return inside(jnp.exp(u), self.rate.dtype)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        u, a, rate = align_wide(u, self.concentration, self.rate)
        return log_density(bounded_exp(u), u, a, rate).astype(self.rate.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, a shorter one, and one that is longer by an exponential variable."""
        keys = _random.split(key, 3)
        first = x if coupled else self.sample(keys[0])
        wide, first, a, rate = in_compute_dtype(x, first, self.concentration, self.rate)
        longer = first + _random.exponential_like(keys[1], rate) / rate
        # As Gamma(a) = Gamma(a + h) Beta(a, h), the derivative in a is the integral over v in
        # (0, 1) of v^(a - 1) / (1 - v) E[f(x) - f(v x)]. With this density of v the weight varies
        # little, and what it gives a jump of the cost, which is between x and v x with a chance of
        # order 1 - v, has finite variance.
        u = 1 - _random.noise(jax.random.uniform, keys[2], a.shape, a.dtype)
        log_v = jnp.log1p(-u * u) / a
        weight = 2 * u / (a * -jnp.expm1(log_v))
        shorter = inside(wide * jnp.exp(log_v), x.dtype)
        return WeakDerivative(-weight, shorter), WeakDerivative(-a / rate, inside(longer, x.dtype))


class Beta(OfBeta, Distribution):
    r"""Independent Beta variables, p(x) = x^(a-1) (1-x)^(b-1) / B(a, b) on (0, 1).

    A draw is g / (g + h) with g ~ Gamma(a, 1) and h ~ Gamma(b, 1), taken in log space, whose
    implicit derivatives in a and b make its own, of first order.

    Args:
      concentration1: a, positive; the mean is a / (a + b).
      concentration0: b, positive. The two broadcast against each other.

    Reference:
      Figurnov, Mohamed and Mnih 2018, "Implicit Reparameterization Gradients", section 4.
    """

    parameters = ("concentration1", "concentration0")
    reparameterizable = True
    concentration1: jax.Array
    concentration0: jax.Array

    def __init__(self, concentration1: ArrayLike, concentration0: ArrayLike):
        self.concentration1, self.concentration0 = as_floats(
            concentration1=concentration1, concentration0=concentration0
        )
        _check.elements(
            _check.POSITIVE, concentration1=concentration1, concentration0=concentration0
        )

    @property
    def shape(self) -> Shape:
        return self.concentration1.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        """log x - log(1 - x)."""
        keys, full = _random.split(_random.as_keys(key), 2), (*shape, *self.shape)
        of_one = log_gamma(keys[0], self.concentration1, full)
        return of_one - log_gamma(keys[1], self.concentration0, full)

    def _rounded(self, u: jax.Array) -> jax.Array:
        return inside(jax.nn.sigmoid(u), self.concentration1.dtype, 1.0)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf unless `x` is between 0 and 1."""
        x, _ = align_wide(x, self.concentration1)
        within = (x > 0) & (x < 1)
        x = jnp.where(within, x, 0.5)
        log_p = self._log_density(jnp.log(x), jnp.log1p(-x))
        return jnp.where(within, log_p, -jnp.inf).astype(self.concentration1.dtype)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        log_p = self._log_density(jax.nn.log_sigmoid(u), jax.nn.log_sigmoid(-u))
        return log_p.astype(self.concentration1.dtype)

    def _log_density(self, log_x: jax.Array, log_1mx: jax.Array) -> jax.Array:
        log_x, a, b = align_wide(log_x, self.concentration1, self.concentration0)
        log_1mx, a = align(log_1mx, a)
        logs, concentrations = jnp.stack([log_x, log_1mx], -1), jnp.stack([a, b], -1)
        return simplex_log_density(logs, concentrations)


class Dirichlet(OfDirichlet, Distribution):
    r"""Dirichlet vectors on the open simplex, p(x) = prod_k x_k^(a_k - 1) / B(a).

    A draw is g / sum(g) with g_k ~ Gamma(a_k, 1), taken in log space, whose implicit derivatives
    make its own, of first order.

    Args:
      concentration: a, positive, shape (..., K); the mean is a / sum(a).

    Raises:
      ValueError: if `concentration` is a scalar or K is 0.

    Example:
      >>> import jax
      >>> from gradest.distributions import Dirichlet
      >>> Dirichlet([1.0, 2.0, 3.0]).sample(jax.random.key(0), (5,)).shape
      (5, 3)

    Reference:
      Figurnov, Mohamed and Mnih 2018, "Implicit Reparameterization Gradients", section 4.
    """

    parameters = ("concentration",)
    reparameterizable = True
    concentration: jax.Array

    def __init__(self, concentration: ArrayLike):
        a = as_float("concentration", concentration)
        if a.ndim == 0 or a.shape[-1] == 0:
            raise ValueError(
                "concentration: expected the categories along the last axis, at least one of "
                f"them, got an array of shape {a.shape}."
            )
        _check.elements(_check.POSITIVE, concentration=concentration)
        self.concentration = a

    @property
    def shape(self) -> Shape:
        return self.concentration.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of vectors `x` of shape (..., K), which are taken to sum to one."""
        x, a = align_wide(x, self.concentration)
        positive = x > 0
        log_p = simplex_log_density(jnp.log(jnp.where(positive, x, 1)), a)
        possible = jnp.all(positive, axis=-1)
        return jnp.where(possible, log_p, -jnp.inf).astype(self.concentration.dtype)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        """log x."""
        y = log_gamma(key, self.concentration, (*shape, *self.shape))
        return jax.nn.log_softmax(y, axis=-1)

    def _rounded(self, u: jax.Array) -> jax.Array:
        dtype = self.concentration.dtype
        return jnp.maximum(jnp.exp(u).astype(dtype), jnp.finfo(dtype).tiny)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        return simplex_log_density(*align_wide(u, self.concentration)).astype(
            self.concentration.dtype
        )


class StudentT(OfStudentT, Distribution):
    r"""Independent Student t variables, x = loc + scale * n / sqrt(g / (df / 2)).

    With n ~ Normal(0, 1) and g ~ Gamma(df / 2, 1), whose implicit derivative makes that in `df`,
    of first order. Draws are kept finite: those of |x - loc| / scale beyond 1e15 (in double
    precision 1e120), which a `df` below 0.5 can make, are brought to about there. (Their
    log-probabilities by `sample_and_log_prob`, and so score functions, are of where they were.)

    Args:
      df: degrees of freedom, positive; moments of lower order than `df` exist. Where it is not
        above 1, `mean()` is NaN.
      loc: median.
      scale: positive. The three broadcast against each other.

    Reference:
      Figurnov, Mohamed and Mnih 2018, "Implicit Reparameterization Gradients", section 4.
    """

    parameters = ("df", "loc", "scale")
    reparameterizable = True
    df: jax.Array
    loc: jax.Array
    scale: jax.Array

    def __init__(self, df: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0):
        self.df, self.loc, self.scale = as_floats(df=df, loc=loc, scale=scale)
        _check.elements(_check.FINITE, loc=loc)
        _check.elements(_check.POSITIVE, df=df, scale=scale)

    @property
    def shape(self) -> Shape:
        return self.df.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def reflect(self, x: jax.Array) -> jax.Array:
        """The draw that mirrors `x` at the centre."""
        return self.loc + (self.loc - x)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise."""
        (x,) = in_compute_dtype(jnp.asarray(x, self.loc.dtype))
        return self._log_density(x, jnp.zeros_like(x)).astype(self.loc.dtype)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> tuple[jax.Array, jax.Array]:
        """x, brought near, and the logarithm of the factor by which its distance was cut."""
        full, keys = (*shape, *self.shape), _random.split(_random.as_keys(key), 2)
        df, loc, scale = align(*in_compute_dtype(self.df, self.loc, self.scale))
        n = _random.noise(jax.random.normal, keys[0], full, self.loc.dtype)
        y = log_gamma(keys[1], df / 2, full)
        n, y, df, loc, scale = align(n, y, df, loc, scale)
        # Its square must be a number too.
        limit = 0.4 * math.log(jnp.finfo(n.dtype).max)
        stretch = (jnp.log(df / 2) - y) / 2
        x = loc + scale * n * jnp.exp(jnp.minimum(stretch, limit))
        return x, jnp.maximum(stretch - limit, 0)

    def _rounded(self, u: tuple[jax.Array, jax.Array]) -> jax.Array:
        return finite(u[0], self.loc.dtype)

    def _log_prob_unrounded(self, u: tuple[jax.Array, jax.Array]) -> jax.Array:
        return self._log_density(*u).astype(self.loc.dtype)

    def _log_density(self, x: jax.Array, cut: jax.Array) -> jax.Array:
        x, cut, df, loc, scale = align(x, cut, *in_compute_dtype(self.df, self.loc, self.scale))
        z = standardized(x, loc, scale)
        # Of z^2 / df, which far out may not be a number.
        size = jnp.where(z == 0, 1, jnp.abs(z))
        log_square = 2 * (jnp.log(size) + cut) - jnp.log(df)
        far = (log_square > 40) & (z != 0)
        near = jnp.where(far, 0, z) / jnp.sqrt(df)
        log_tail = jnp.where(far, log_square, jnp.log1p(near * near))
        # log_beta(df / 2, 1 / 2) keeps the digits that the difference of two gammaln loses.
        constant = -log_beta(df / 2, jnp.full_like(df, 0.5)) - 0.5 * jnp.log(df) - jnp.log(scale)
        return constant - 0.5 * (df + 1) * log_tail
