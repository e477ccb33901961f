"""Means, entropies and relative entropies in closed form, for the classes that mix them in.

Each class here is the part of a distribution that has them. `_entropy` and `_relative_entropy` find
parameters of at least single precision, and of one shape.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import betaln, digamma, gammaln
from jax.typing import DTypeLike

from ._derived import wide


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


def dtype_of(dist: Any) -> DTypeLike:
    """The type of its floating-point parameters."""
    leaves = jax.tree.leaves(dist)
    return jnp.result_type(*(x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)))


def surprise(log_p: jax.Array) -> jax.Array:
    """-p log p, which is 0 with derivative 0 where p is."""
    possible = log_p > -jnp.inf
    safe = jnp.where(possible, log_p, 0)
    return jnp.where(possible, -jnp.exp(safe) * safe, 0)


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
        log_p, _ = self._outcomes()
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
        ratio, apart = self.scale / other.scale, (self.loc - other.loc) / other.scale
        return 0.5 * (ratio * ratio - 1 + apart * apart) - jnp.log(ratio)


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
        ratio, apart = self.scale / other.scale, jnp.abs(self.loc - other.loc)
        return apart / other.scale + ratio * jnp.exp(-apart / self.scale) - 1 - jnp.log(ratio)


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
        ratio, apart = self.scale / other.scale, (self.loc - other.loc) / other.scale
        tail = jnp.exp(gammaln(ratio + 1) - apart)
        return _EULER * (ratio - 1) + apart + tail - 1 - jnp.log(ratio)


_EULER = 0.5772156649015329


class OfMultivariateNormal(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        d = self.loc.shape[-1]
        return _log_det(self.scale_tril) + 0.5 * d * math.log(2 * math.pi * math.e)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        factor = other.scale_tril
        columns = [jnp.tril(self.scale_tril), (self.loc - other.loc)[..., None]]
        moved = solve_triangular(factor, jnp.concatenate(columns, axis=-1), lower=True)
        squares = jnp.sum(moved * moved, axis=(-2, -1)) - self.loc.shape[-1]
        return 0.5 * squares + _log_det(factor) - _log_det(self.scale_tril)


def _log_det(factor: jax.Array) -> jax.Array:
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


class LowRank(NamedTuple):
    """A covariance D + W W^T by A = W / sqrt(D), and Q R of A on top of the identity.

    Attributes:
      root: the square root of the diagonal D, shape (..., d).
      a: shape (..., d, r).
      q: the first d rows of Q, shape (..., d, r): A R^-1.
      r: shape (..., r, r), of R^T R = 1 + A^T A.
    """

    root: jax.Array
    a: jax.Array
    q: jax.Array
    r: jax.Array

    def log_det(self) -> jax.Array:
        of_r = jnp.abs(jnp.diagonal(self.r, axis1=-2, axis2=-1))
        return 2 * (jnp.sum(jnp.log(self.root), axis=-1) + jnp.sum(jnp.log(of_r), axis=-1))

    def squared_norm(self, x: jax.Array) -> jax.Array:
        """x^T (D + W W^T)^-1 x of vectors x, with more axes in front or without."""
        x = x / jnp.broadcast_to(self.root, x.shape)
        spread = lambda matrix: jnp.broadcast_to(matrix, (*x.shape[:-1], *matrix.shape[-2:]))
        of_q = jnp.einsum("...ij,...i->...j", spread(self.q), x)
        m = solve_triangular(spread(self.r), of_q[..., None])[..., 0]
        left = x - jnp.einsum("...ij,...j->...i", spread(self.a), m)
        return jnp.sum(left * left, axis=-1) + jnp.sum(m * m, axis=-1)

    def inverse_diagonal(self) -> jax.Array:
        """Of (D + W W^T)^-1."""
        return (1 - jnp.sum(self.q * self.q, axis=-1)) / (self.root * self.root)


def in_factors(factor: jax.Array, diag: jax.Array) -> LowRank:
    root = jnp.sqrt(diag)
    a = factor / root[..., None]
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    below = jnp.broadcast_to(eye, (*a.shape[:-2], *eye.shape))
    q, r = jnp.linalg.qr(jnp.concatenate([a, below], axis=-2))
    return LowRank(root, a, q[..., : a.shape[-2], :], r)


class OfLowRankNormal(Information):
    def _mean(self: Any) -> jax.Array:
        return self.loc

    def _entropy(self: Any) -> jax.Array:
        d = self.loc.shape[-1]
        log_det = in_factors(self.cov_factor, self.cov_diag).log_det()
        return 0.5 * log_det + 0.5 * d * math.log(2 * math.pi * math.e)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
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
        ratio = other.rate / self.rate
        return ratio - 1 - jnp.log(ratio)


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
        a = self.concentration
        return a - jnp.log(self.rate) + gammaln(a) + (1 - a) * digamma(a)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        a, b, ratio = self.concentration, other.concentration, other.rate / self.rate
        of_shapes = (a - b) * digamma(a) - gammaln(a) + gammaln(b)
        return of_shapes - b * jnp.log(ratio) + a * (ratio - 1)


class OfWeibull(Information):
    def _mean(self: Any) -> jax.Array:
        return self.scale * jnp.exp(gammaln(1 + 1 / self.concentration))

    def _entropy(self: Any) -> jax.Array:
        k = self.concentration
        return _EULER * (1 - 1 / k) + jnp.log(self.scale / k) + 1

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        k, ratio = other.concentration / self.concentration, self.scale / other.scale
        power = other.concentration * jnp.log(ratio)
        return _EULER * (k - 1) - jnp.log(k) - power + jnp.exp(power + gammaln(k + 1)) - 1


class OfBeta(Information):
    def _mean(self: Any) -> jax.Array:
        return self.concentration1 / (self.concentration1 + self.concentration0)

    def _entropy(self: Any) -> jax.Array:
        a, b = self.concentration1, self.concentration0
        terms = (a - 1) * digamma(a) + (b - 1) * digamma(b)
        return betaln(a, b) - terms + (a + b - 2) * digamma(a + b)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        a, b, c, d = *_of_beta(self), *_of_beta(other)
        terms = (a - c) * digamma(a) + (b - d) * digamma(b) + (c - a + d - b) * digamma(a + b)
        return betaln(c, d) - betaln(a, b) + terms


def _of_beta(dist: Any) -> tuple[jax.Array, jax.Array]:
    return dist.concentration1, dist.concentration0


class OfDirichlet(Information):
    def _mean(self: Any) -> jax.Array:
        return self.concentration / jnp.sum(self.concentration, axis=-1, keepdims=True)

    def _entropy(self: Any) -> jax.Array:
        a = self.concentration
        return _log_beta(a) - jnp.sum((a - 1) * _mean_log(a), axis=-1)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        a, b = self.concentration, other.concentration
        return _log_beta(b) - _log_beta(a) + jnp.sum((a - b) * _mean_log(a), axis=-1)


def _log_beta(a: jax.Array) -> jax.Array:
    return jnp.sum(gammaln(a), axis=-1) - gammaln(jnp.sum(a, axis=-1))


def _mean_log(a: jax.Array) -> jax.Array:
    """E[log x]."""
    return digamma(a) - digamma(jnp.sum(a, axis=-1, keepdims=True))


# ---- Counts --------------------------------------------------------------------------------


class OfPoisson:
    def mean(self: Any) -> jax.Array:
        """Of the shape of a draw."""
        return self.rate

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        a, b = self.rate, other.rate
        some = a > 0
        ratio = jnp.where(some & (b > 0), b, 1) / jnp.where(some, a, 1)
        finite = b - a - jnp.where(some, a * jnp.log(ratio), 0)
        return jnp.where(some & (b == 0), jnp.inf, finite)


class OfGeometric(Information):
    def _mean(self: Any) -> jax.Array:
        return jnp.exp(-self.logits)

    def _entropy(self: Any) -> jax.Array:
        log_p, log_q = _of_trial(self)
        return (surprise(log_p) + surprise(log_q)) * jnp.exp(-log_p)

    def _relative_entropy(self: Any, other: Any) -> jax.Array:
        of_p, of_q = (jnp.stack(_of_trial(dist)) for dist in (self, other))
        of_trials = jnp.sum(divergence(of_p, of_q), axis=0) * jnp.exp(-of_p[0])
        return jnp.where(jnp.any(excludes(of_q, of_p), axis=0), jnp.inf, of_trials)


def _of_trial(dist: Any) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of success and of failure."""
    return jax.nn.log_sigmoid(dist.logits), jax.nn.log_sigmoid(-dist.logits)
