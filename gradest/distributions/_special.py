"""Special functions where JAX's have too few digits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
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

    With A = sum a, m = a / A and r = log(x / m) the terms of the order of a log(a) are the
    sum over a_k (r_k - expm1(r_k)), since that over a_k expm1(r_k) = A x_k - a_k is zero: none of
    its terms is positive, and no digits are lost among them.
    """
    total = jnp.sum(a, axis=-1, keepdims=True)
    r = log_x - jnp.log(a / total)
    # Bounded, for derivatives of no NaN far out.
    r = jnp.minimum(r, 0.7 * math.log(float(jnp.finfo(r.dtype).max)))
    constant = 0.5 * math.log(2 * math.pi)
    terms = a * (r - jnp.expm1(r)) - log_x + 0.5 * jnp.log(a) - gammaln_remainder(a) - constant
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
