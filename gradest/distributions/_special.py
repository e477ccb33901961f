"""Special functions where JAX's have too few digits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln

#: From here on six terms of Stirling's series are double precision.
STIRLING = 8.0

# ---- Quotients and exponentials --------------------------------------------------------------


@jax.custom_jvp
def standardized(x: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """(x - loc) / scale, whose derivative holds no square of the scale: that may overflow."""
    return (x - loc) / scale


@standardized.defjvp
def _standardized_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (_, _, scale), (dx, dloc, dscale) = primals, tangents
    z = standardized(*primals)
    return z, ((dx - dloc) - z * dscale) / scale


@jax.custom_jvp
def log_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(a / b) of positive numbers, with all digits where they are close, and without overflow.

    Finite for an `a` below the smallest normal number, which counts as that.
    """
    apart = jnp.log(jnp.maximum(a, float(jnp.finfo(a.dtype).tiny))) - jnp.log(b)
    close = jnp.abs(apart) < 0.6
    return jnp.where(close, jnp.log1p(jnp.where(close, a - b, 0) / b), apart)


@log_ratio.defjvp
def _log_ratio_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    return log_ratio(a, b), da / a - db / b


@jax.custom_jvp
def excess(r: jax.Array) -> jax.Array:
    """exp(r) - 1 - r, which is not negative, with all digits where it is small."""
    small = jnp.abs(r) < 0.5
    x = jnp.where(small, r, 0)
    series = jnp.zeros_like(x)
    for n in range(15, 1, -1):
        series = (series + 1) * x / n
    far = r > 60
    direct = jnp.where(far, jnp.exp(r), jnp.expm1(r) - jnp.where(far, 0, r))
    return jnp.where(small, series * x, direct)


@excess.defjvp
def _excess_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (r,), (dr,) = primals, tangents
    return excess(r), jnp.expm1(_below_overflow(r)) * dr


def _below_overflow(r: jax.Array) -> jax.Array:
    """At most what has an exponential, for no derivative of NaN where it is infinite."""
    return jnp.minimum(r, 0.999 * math.log(float(jnp.finfo(r.dtype).max)))


@jax.custom_jvp
def mass_excess(a: jax.Array, b: jax.Array, log_scale: jax.Array) -> jax.Array:
    """m - b - b log(m / b) of m = a exp(log_scale), which is not negative."""
    r = log_ratio(a, b) + log_scale
    far, m = _far(r, a, log_scale)
    return jnp.where(far, m - b * (1 + r), b * excess(jnp.where(far, 0, r)))


def _far(r: jax.Array, a: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where exp(r) may overflow though m does not, and m there."""
    far = r > 60
    return far, jnp.exp(jnp.where(far, jnp.log(a) + log_scale, 0))


@mass_excess.defjvp
def _mass_excess_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """That in b is a logarithm: the exponentials, which may be large, cancel on paper."""
    (a, b, log_scale), (da, db, dlog_scale) = primals, tangents
    r = log_ratio(a, b) + log_scale
    far, m = _far(r, a, log_scale)
    # Bounded, for no NaN from where another formula is taken.
    m = jnp.minimum(m, float(jnp.finfo(m.dtype).max))
    moved = jnp.where(far, m, b * jnp.expm1(jnp.where(far, 0, r))) * (da / a + dlog_scale)
    return mass_excess(*primals), moved - r * db


# ---- Gamma functions -------------------------------------------------------------------------


def log_beta(a: jax.Array, b: jax.Array) -> jax.Array:
    """log B(a, b) for positive a and b, to within rounding: `betaln` is off by up to 1e-6.

    Without the difference of large numbers in gammaln(a) + gammaln(b) - gammaln(a + b).

    Reference:
      Didonato and Morris 1992, "Algorithm 708", the functions ALGDIV and BCORR.
    """
    a, b = jnp.minimum(a, b), jnp.maximum(a, b)
    # No minimum with 8: at a tie it has half a derivative.
    small, large = jnp.where(b < STIRLING, b, STIRLING), jnp.where(b < STIRLING, STIRLING, b)
    direct = gammaln(a) + gammaln(small) - gammaln(a + small)
    # gammaln(b) - gammaln(a + b) by the series, then gammaln(a) too.
    ratio = (
        stirling_remainder(large)
        - stirling_remainder(a + large)
        - (a + large - 0.5) * jnp.log1p(a / large)
    )
    one = gammaln(a) + ratio + a - a * jnp.log(large)
    a_large = jnp.where(a < STIRLING, STIRLING, a)
    both = (
        a_large * jnp.log(a_large / large)
        + 0.5 * (math.log(2 * math.pi) - jnp.log(a_large))
        + stirling_remainder(a_large)
        + ratio
    )
    return jnp.where(b < STIRLING, direct, jnp.where(a < STIRLING, one, both))


def simplex_log_density(log_x: jax.Array, a: jax.Array) -> jax.Array:
    """log prod_k x_k^(a_k - 1) / B(a) along the last axis, at x that sum to one.

    With A = sum a the terms of the order of a log(a) are those of the sum over
    a_k log(A x_k / a_k) - (A x_k - a_k), whose second part is zero: none of them is positive, and
    no digits are lost among them.
    """
    total = jnp.sum(a, axis=-1, keepdims=True)
    constant = 0.5 * math.log(2 * math.pi)
    below = mass_excess(total + jnp.zeros_like(a), a, log_x)
    terms = -below - log_x + 0.5 * jnp.log(a) - gammaln_remainder(a) - constant
    whole = gammaln_remainder(total) - 0.5 * jnp.log(total) + constant
    return jnp.sum(terms, axis=-1) + whole[..., 0]


def gammaln_remainder(x: jax.Array) -> jax.Array:
    """gammaln(x) - ((x - 1/2) log x - x + log(2 pi) / 2), x > 0."""
    small, large = jnp.where(x < STIRLING, x, 1), jnp.where(x < STIRLING, STIRLING, x)
    main = (small - 0.5) * jnp.log(small) - small + 0.5 * math.log(2 * math.pi)
    return jnp.where(x < STIRLING, gammaln(small) - main, stirling_remainder(large))


def stirling_remainder(x: jax.Array) -> jax.Array:
    """gammaln(x) - ((x - 1/2) log x - x + log(2 pi) / 2), x >= 8."""
    r = 1 / (x * x)
    series = jnp.zeros_like(x)
    for coefficient in (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * r + coefficient
    return series / x


def digamma_remainder(x: jax.Array) -> jax.Array:
    """digamma(x) - log(x), x > 0."""
    small, large = jnp.where(x < STIRLING, x, 1), jnp.where(x < STIRLING, STIRLING, x)
    r = 1 / (large * large)
    series = jnp.zeros_like(x)
    for coefficient in (691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12):
        series = (series + coefficient) * r
    return jnp.where(x < STIRLING, digamma(small) - jnp.log(small), series - 0.5 / large)


def trigamma_remainder(x: jax.Array) -> jax.Array:
    """x^2 (trigamma(x) - 1 / x), x > 0: from 1, at 0, to 1/2."""
    y = jnp.where(x < STIRLING, x + 8, x)
    r = 1 / (y * y)
    series = jnp.zeros_like(y)
    for coefficient in (-691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6):
        series = series * r + coefficient
    small = jnp.where(x < STIRLING, x, 1)
    # That of x less that of x + 8, by terms of one sign.
    steps = 1 / (small + 1)
    for k in range(1, 8):
        steps += (small / (small + k)) ** 2 / (small + k + 1)
    return jnp.where(x < STIRLING, steps, 0) + (x / y) ** 2 * (0.5 + series / y)


@jax.custom_jvp
def shape_divergence(a: jax.Array, b: jax.Array) -> jax.Array:
    """Between Gamma(a, a) and Gamma(b, b), which have the same mean; it is not negative.

    By the remainders of gammaln, which of a and b that are close would cancel: there it is the
    integral over t from a to b of (b - t) (trigamma(t) - 1 / t), whose integrand has one sign.
    """
    of_mean_log = (a - b) * digamma_remainder(a)
    apart = 0.5 * log_ratio(a, b) + of_mean_log + gammaln_remainder(b) - gammaln_remainder(a)
    return jnp.where(_close(a, b), _between(a, b, lambda step, s: (1 - s) * step * step), apart)


def _close(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a < 2 * b) & (b < 2 * a)


def _between(a: jax.Array, b: jax.Array, weight: Any) -> jax.Array:
    """The mean over t = a + s (b - a) of trigamma_remainder(t) times `weight((b - a) / t, s)`."""
    # Exact to double precision, by the distance of the pole at 0.
    nodes, weights = np.polynomial.legendre.leggauss(10)

    def term(s: jax.Array, w: jax.Array) -> jax.Array:
        t = a + s * (b - a)
        return w * weight((b - a) / t, s) * trigamma_remainder(t)

    at = (jnp.asarray(x, a.dtype) for x in ((nodes + 1) / 2, weights / 2))
    return jnp.sum(jax.vmap(term)(*at), axis=0)


@shape_divergence.defjvp
def _shape_divergence_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    apart = digamma_remainder(b) - digamma_remainder(a)
    close = _between(a, b, lambda step, s: step / (a + s * (b - a)))
    in_b = jnp.where(_close(a, b), close, apart)
    in_a = (a - b) / a * (trigamma_remainder(a) / a)
    return shape_divergence(a, b), in_a * da + in_b * db
