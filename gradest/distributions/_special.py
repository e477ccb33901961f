"""Special functions where JAX's have too few digits."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

#: From here on six terms of Stirling's series are double precision.
STIRLING = 8.0


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
