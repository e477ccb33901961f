"""Means, entropies and relative entropies in closed form, for the classes that mix them in.

Each class here is the part of a distribution that has them. `_entropy` and `_relative_entropy` find
parameters of at least single precision, and of one shape.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln

from .. import _mesh, _numerics
from .._derivatives.primitives import log_sigmoid, softplus, weighted
from .._numerics import sigmoid
from ._derived import dtype_of, wide
from ._implicit import bounded_exp
from ._low_rank import in_factors
from ._special import (
    digamma_remainder,
    excess,
    gammaln_remainder,
    log_beta,
    log_ratio,
    mass_excess,
    shape_divergence,
    standardized,
)


class Information:
    """A distribution with a mean and an entropy; most also with one relative to another."""

    def mean(self) -> jax.Array:
        """Of the shape of a draw."""
        return wide(self)._mean().astype(dtype_of(self))

    def entropy(self) -> jax.Array:
        """In nats, of each independent element; the differential one of a continuous variable."""
        return wide(self)._entropy().astype(dtype_of(self))

    def _mean(self: Any) -> jax.Array:
        raise NotImplementedError

    def _entropy(self: Any) -> jax.Array:
        raise NotImplementedError


def surprise(log_p: jax.Array) -> jax.Array:
    """-p log p, which is 0 with derivative 0 where p is."""
    return -weighted(jnp.exp(log_p), log_p, log_p == -jnp.inf)


def excludes(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """Whether q has no mass where p has some: there their divergence is infinite."""
    return (log_p > -jnp.inf) & (log_q == -jnp.inf)


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """p (log p - log q): 0 with derivative 0 where p is, and where q is too.

    What is infinite then is said last, so that no product with it is differentiated.
    """
    both = (log_p > -jnp.inf) & (log_q > -jnp.inf)
    safe_p, safe_q = jnp.where(both, log_p, 0), jnp.where(both, log_q, 0)
    return jnp.where(both, jnp.exp(safe_p) * (safe_p - safe_q), 0)


class OfOutcomes:
    """A distribution of few outcomes, whose log-probabilities are at hand."""

    def entropy(self: Any) -> jax.Array:
        """In nats, of each independent element."""
        log_p, _ = self._for_scores()._outcomes()
        return jnp.sum(surprise(log_p), axis=-1).astype(dtype_of(self))

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        log_p, log_q = self._outcomes()[0], other._outcomes()[0]
        infinite = jnp.any(excludes(log_q, log_p), axis=-1)
        return jnp.where(infinite, jnp.inf, jnp.sum(divergence(log_p, log_q), axis=-1))


# ---- Location and scale --------------------------------------------------------------------


class OfNormal(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        return jnp.log(self.scale) + 0.5 * math.log(2 * math.pi * math.e)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        apart = standardized(self.loc, other.loc, other.scale)
        return 0.5 * (excess(2 * log_ratio(self.scale, other.scale)) + apart * apart)


class OfLogNormal(OfNormal):
    def _mean(self: Any) -> jax.Array:
        return jnp.exp(self.loc + self.scale * self.scale / 2)

    def _entropy(self: Any) -> jax.Array:
        return self.loc + OfNormal._entropy(self)


class OfLaplace(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        return jnp.log(self.scale) + math.log(2 * math.e)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        log_scales = log_ratio(self.scale, other.scale)
        apart = jnp.abs(standardized(self.loc, other.loc, self.scale))
        beyond = jnp.abs(standardized(self.loc, other.loc, other.scale))
        # The mean distance from the other centre less that from the own one, in its scale.
        far = apart > 60
        ratio = bounded_exp(log_scales, 0.999)
        near = ratio * excess(-jnp.where(far, 1, apart))
        return excess(log_scales) + jnp.where(far, beyond - ratio, near)


class OfLogistic(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        return jnp.log(self.scale) + 2


class OfGumbel(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc + _EULER * self.scale

    def _entropy(self: Any) -> jax.Array:
        return jnp.log(self.scale) + 1 + _EULER

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        apart = standardized(self.loc, other.loc, other.scale)
        return _of_extremes(log_ratio(self.scale, other.scale), apart)


def _of_extremes(log_scales: jax.Array, apart: jax.Array) -> jax.Array:
    """Of Gumbel variables, by the logarithm of the ratio of their scales, and their distance."""
    ratio = bounded_exp(log_scales, 0.999)
    log_gamma = gammaln(ratio + 1)
    return excess(log_gamma - apart) + log_gamma - log_scales + _EULER * (ratio - 1)


_EULER = 0.5772156649015329


class OfStudentT(Information):
    def _mean(self: Any) -> jax.Array:
        return jnp.where(self.df > 1, self.loc, jnp.nan)

    def _entropy(self: Any) -> jax.Array:
        half = self.df / 2
        # (df + 1) / 2 times digamma(half + 1/2) - digamma(half).
        remainders = digamma_remainder(half + 0.5) - digamma_remainder(half)
        of_digammas = (half + 0.5) * (jnp.log1p(1 / self.df) + remainders)
        of_beta = log_beta(half, jnp.full_like(half, 0.5)) + 0.5 * jnp.log(self.df)
        return of_digammas + of_beta + jnp.log(self.scale)


class OfMultivariateNormal(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        d = self.loc.shape[-1]
        return _log_det(self.scale_tril) + 0.5 * d * math.log(2 * math.pi * math.e)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        factor = other.scale_tril
        columns = [_numerics.lower(self.scale_tril), (self.loc - other.loc)[..., None]]
        columns = jnp.concatenate(columns, axis=-1)
        moved = _mesh.automatic(functools.partial(solve_triangular, lower=True), factor, columns)
        squares = jnp.sum(moved * moved, axis=(-2, -1)) - self.loc.shape[-1]
        return 0.5 * squares + _log_det(factor) - _log_det(self.scale_tril)


def _log_det(factor: jax.Array) -> jax.Array:
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


class OfLowRankNormal(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        d = self.loc.shape[-1]
        log_det = in_factors(*_mesh.replicated((self.cov_factor, self.cov_diag))).log_det()
        return 0.5 * log_det + 0.5 * d * math.log(2 * math.pi * math.e)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        self, other = _mesh.replicated((self, other))
        p, q = (in_factors(dist.cov_factor, dist.cov_diag) for dist in (self, other))
        columns = jnp.moveaxis(self.cov_factor, -1, 0)
        of_factor = jnp.sum(q.squared_norm(columns), axis=0)
        of_diag = jnp.sum(self.cov_diag * q.inverse_diagonal(), axis=-1)
        of_means = q.squared_norm(self.loc - other.loc)
        squares = of_factor + of_diag + of_means - self.loc.shape[-1]
        return 0.5 * (squares + q.log_det() - p.log_det())


# ---- Positive reals and intervals ----------------------------------------------------------


class OfExponential(Information):
    def _mean(self: Any) -> jax.Array:
        return 1 / self.rate

    def _entropy(self: Any) -> jax.Array:
        return 1 - jnp.log(self.rate)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        return excess(log_ratio(other.rate, self.rate))


class OfUniform(Information):
    def _mean(self: Any) -> jax.Array:
        return (self.low + self.high) / 2

    def _entropy(self: Any) -> jax.Array:
        return jnp.log(self.high - self.low)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        inside = (other.low <= self.low) & (self.high <= other.high)
        return jnp.where(inside, other._entropy() - self._entropy(), jnp.inf)


class OfGamma(Information):
    def _mean(self: Any) -> jax.Array:
        return self.concentration / self.rate

    def _entropy(self: Any) -> jax.Array:
        return _gamma_entropy(self.concentration) - jnp.log(self.rate)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        a, b = self.concentration, other.concentration
        of_means = mass_excess(a, b, log_ratio(other.rate, self.rate))
        return of_means + shape_divergence(a, b)


class OfWeibull(Information):
    def _mean(self: Any) -> jax.Array:
        return self.scale * jnp.exp(gammaln(1 + 1 / self.concentration))

    def _entropy(self: Any) -> jax.Array:
        k = self.concentration
        return _EULER * (1 - 1 / k) + jnp.log(self.scale / k) + 1

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        # Minus the logarithm of such a variable is a Gumbel one, of scale 1 / concentration.
        k = other.concentration
        apart = -k * log_ratio(self.scale, other.scale)
        return _of_extremes(log_ratio(k, self.concentration), apart)


class OfBeta(Information):
    def _mean(self: Any) -> jax.Array:
        return self.concentration1 / (self.concentration1 + self.concentration0)

    def _entropy(self: Any) -> jax.Array:
        return _dirichlet_entropy(_of_beta(self))

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        return _dirichlet_divergence(_of_beta(self), _of_beta(other))


def _of_beta(dist: Any) -> jax.Array:
    return jnp.stack([dist.concentration1, dist.concentration0], axis=-1)


class OfDirichlet(Information):
    def _mean(self: Any) -> jax.Array:
        return self.concentration / jnp.sum(self.concentration, axis=-1, keepdims=True)

    def _entropy(self: Any) -> jax.Array:
        return _dirichlet_entropy(self.concentration)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        return _dirichlet_divergence(self.concentration, other.concentration)


# In these, gammaln and digamma are their leading terms at large arguments and remainders. The
# former, of the order of a log(a), cancel on paper: as numbers they would leave no digits.


def _gamma_entropy(a: jax.Array) -> jax.Array:
    """Of Gamma(a, 1): a + gammaln(a) + (1 - a) digamma(a)."""
    of_shape = gammaln_remainder(a) + (1 - a) * digamma_remainder(a)
    return of_shape + 0.5 * jnp.log(a) + _HALF_LOG_2_PI


def _dirichlet_entropy(a: jax.Array) -> jax.Array:
    total, num = jnp.sum(a, axis=-1), a.shape[-1]
    of_total = gammaln_remainder(total) + (num - total) * digamma_remainder(total)
    of_total += (num - 0.5) * jnp.log(total) + _HALF_LOG_2_PI
    return jnp.sum(_gamma_entropy(a), axis=-1) - of_total


def _dirichlet_divergence(a: jax.Array, b: jax.Array) -> jax.Array:
    """sum_k b_k (m_k / n_k - 1 - log(m_k / n_k)) and what is of remainders, m and n the means."""
    total_a, total_b = (jnp.sum(x, axis=-1) for x in (a, b))
    log_scale = log_ratio(total_b, total_a)[..., None] + jnp.zeros_like(a)
    of_elements = mass_excess(a, b, log_scale) + shape_divergence(a, b)
    return jnp.sum(of_elements, axis=-1) - shape_divergence(total_a, total_b)


_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


# ---- Counts --------------------------------------------------------------------------------


class OfPoisson:
    def mean(self: Any) -> jax.Array:
        """Of the shape of a draw."""
        return self.rate

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        a, b = self.rate, other.rate
        both = (a > 0) & (b > 0)
        some_a, some_b = jnp.where(both, a, 1), jnp.where(both, b, 1)
        finite = mass_excess(some_b, some_a, jnp.zeros_like(a))
        # If it is certain that there are none, minus the log-probability of that.
        return jnp.where(both, finite, jnp.where(a > 0, jnp.inf, b))


class OfBinomial:
    def mean(self: Any) -> jax.Array:
        """Of the shape of a draw."""
        l = wide(self).logits
        return (self.total_count.astype(l.dtype) * sigmoid(l)).astype(dtype_of(self))


class OfNegativeBinomial:
    def mean(self: Any) -> jax.Array:
        """Of the shape of a draw."""
        dist = wide(self)
        return (dist.total_count * _odds(dist.logits)).astype(dtype_of(self))


def _odds(logits: jax.Array) -> jax.Array:
    """The exponential, whose derivative in a probability of 0 is one-sided."""
    return jnp.where(jnp.isneginf(logits), sigmoid(logits), jnp.exp(logits))


class OfGeometric(Information):
    def _mean(self: Any) -> jax.Array:
        return _odds(-self.logits)

    def _entropy(self: Any) -> jax.Array:
        l = self.logits
        certain = jnp.isinf(l)
        safe = jnp.where(certain, 0, l)
        # log(1 + x) / x at odds x, which is 1 where they are small.
        rare = safe < math.log(float(jnp.finfo(l.dtype).eps))
        likely = jnp.where(rare, 0, safe)
        of_failures = jnp.where(rare, 1, softplus(likely) * jnp.exp(-likely))
        h = softplus(-safe) + of_failures
        return jnp.where(certain, jax.lax.stop_gradient(jnp.maximum(-l, 0)), h)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        l, others = self.logits, other.logits
        inner = jnp.isfinite(l) & jnp.isfinite(others)
        p, q = (jnp.where(inner, x, 0) for x in (l, others))
        success = excess(log_sigmoid(q) - log_sigmoid(p))
        # By its logarithm: the mean number of failures, exp(-p), may be infinite where that is 0.
        d = softplus(p) - softplus(q)
        far = d > 60
        failure = excess(jnp.where(far, 1, d))
        some = far | (failure > 0)
        log_failure = jnp.where(far, d, jnp.log(jnp.where(failure > 0, failure, 1)))
        failures = jnp.where(some, jnp.exp(jnp.where(some, log_failure - p, 0)), 0)
        # Of the laws that leave nothing to chance each is another one.
        edge = jnp.where(l == others, 0, jnp.where(jnp.isposinf(l), softplus(-others), jnp.inf))
        return jnp.where(inner, success + failures, edge)
