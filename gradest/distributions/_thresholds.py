"""Bits and one-hot rows as functions of continuous noise: what estimators that relax them need.

A Bernoulli draw is the sign, and a one-hot draw the argmax, of z = logits + noise, with logistic
and Gumbel noise. Everything here is differentiable by JAX as it stands, to any order; infinite
logits give certain outcomes and finite derivatives.
"""

import abc
from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _random
from .._derivatives.primitives import log_sigmoid
from .._numerics import below_top, compute_dtype, in_compute_dtype, sigmoid, softmax, tempered
from ._derived import rebuilt
from .base import Distribution


class Thresholds(Distribution):
    """A distribution by its logits alone, whose draw is a threshold of the logits plus noise."""

    categorical = True
    logits: jax.Array

    def _score(self, x: jax.Array) -> Self:
        l = self._log_odds()
        return rebuilt(self, x.astype(l.dtype) - self._wide_mean())

    def _pull_back_mean(self, ct: jax.Array) -> Self:
        return rebuilt(self, self._pull_back_mean_at(self._wide_mean(), ct))

    def _mean_at(self, slope: ArrayLike) -> jax.Array:
        (logits,) = in_compute_dtype(self.logits)
        # Multiplied by the slope, that is: divided by its inverse.
        return self.soften(logits, 1 / slope)

    def mean(self) -> jax.Array:
        """The probabilities, of the shape of a draw."""
        return self._wide_mean().astype(self.logits.dtype)

    @abc.abstractmethod
    def soften(self, z: jax.Array, temperature: ArrayLike) -> jax.Array:
        """The relaxed draw that `z` stands for."""

    @abc.abstractmethod
    def _log_odds(self) -> jax.Array:
        """Log-odds, or normalised log-probabilities, in the type of the noise."""

    @abc.abstractmethod
    def _wide_mean(self) -> jax.Array:
        """`mean`, in the type of the noise."""

    @abc.abstractmethod
    def _softened_mean(self, temperature: jax.Array) -> jax.Array:
        """The mean with the logits divided by the temperature."""

    @abc.abstractmethod
    def _pull_back_mean_at(self, p: jax.Array, ct: jax.Array) -> jax.Array:
        """J(p) ct, the cotangent of the logits given that of the mean p: J(p) = diag(p) - p p^T."""


class Sign(Thresholds):
    """1 where logits + logistic noise are positive."""

    def perturb(self, key: jax.Array) -> jax.Array:
        """z = log-odds + logistic noise."""
        (logits,) = in_compute_dtype(self.logits)
        return logits + _random.noise(_random.logistic, key, self.shape, logits.dtype)

    def harden(self, z: jax.Array) -> jax.Array:
        """The draw that `z` stands for, exactly 0 or 1."""
        return (z > 0).astype(self.logits.dtype)

    def soften(self, z: jax.Array, temperature: ArrayLike) -> jax.Array:
        """The relaxed draw, sigmoid(z / temperature)."""
        t = jnp.asarray(temperature, z.dtype)
        return jax.nn.sigmoid(tempered(z, t)).astype(self.logits.dtype)

    def conditional(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """A draw of z given the draw x that it stands for: Tucker et al. 2017, appendix C."""
        l = self._log_odds()
        noise = _random.noise(_random.logistic, key, l.shape, l.dtype)
        positive = jax.nn.softplus(noise - jax.nn.log_sigmoid(-l))
        return jnp.where(x > 0, positive, -jax.nn.softplus(noise - jax.nn.log_sigmoid(l)))

    def pull_back_conditional(self, x: jax.Array, z: jax.Array, ct: jax.Array) -> jax.Array:
        """The cotangent of the logits, given that of z, a draw given x with its noise held fixed.

        dz/dl = P(x) (1 - exp(-|z|)).
        """
        l = self._log_odds()
        prob_of_x = jax.nn.sigmoid(jnp.where(x > 0, l, -l))
        return prob_of_x * -jnp.expm1(-jnp.abs(z)) * ct

    def enumerate_support(self) -> jax.Array:
        """The values of one element, shape (2,)."""
        return jnp.arange(2, dtype=self.logits.dtype)

    def _outcomes(self) -> tuple[jax.Array, jax.Array]:
        l = self.logits.astype(compute_dtype(self.logits.dtype))
        log_probs = jnp.stack([log_sigmoid(-l), log_sigmoid(l)], axis=-1)
        return log_probs, jnp.stack([sigmoid(-l), sigmoid(l)], axis=-1)

    def _log_odds(self) -> jax.Array:
        return self.logits.astype(compute_dtype(self.logits.dtype))

    def _wide_mean(self) -> jax.Array:
        return sigmoid(self._log_odds())

    def _pull_back_mean_at(self, p: jax.Array, ct: jax.Array) -> jax.Array:
        return p * (1 - p) * ct.astype(p.dtype)

    def _softened_mean(self, temperature: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self._log_odds() / temperature)


class Argmax(Thresholds):
    """One-hot rows, with the 1 where logits + Gumbel noise are largest."""

    def perturb(self, key: jax.Array) -> jax.Array:
        """z = log-probabilities + Gumbel noise, up to a constant."""
        (logits,) = in_compute_dtype(self.logits)
        # Less the largest, which is exact where it matters, so that the sums have digits.
        noise = _random.noise(_random.gumbel, key, logits.shape, logits.dtype)
        return below_top(logits) + noise

    def harden(self, z: jax.Array) -> jax.Array:
        """The draw that `z` stands for, a one-hot row."""
        return jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=self.logits.dtype)

    def soften(self, z: jax.Array, temperature: ArrayLike) -> jax.Array:
        """The relaxed draw, softmax(z / temperature)."""
        t = jnp.asarray(temperature, z.dtype)
        weights = jnp.exp(tempered(below_top(z), t))
        return (weights / jnp.sum(weights, axis=-1, keepdims=True)).astype(self.logits.dtype)

    def conditional(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """A draw of z given the draw x that it stands for: Tucker et al. 2017, appendix B."""
        l = self._log_odds()
        noise = _random.noise(_random.gumbel, key, l.shape, l.dtype)
        # The winner's z is a Gumbel around log 1 = 0; each other one's is cut off there.
        top = jnp.sum(jnp.where(x > 0, noise, 0), axis=-1, keepdims=True)
        return jnp.where(x > 0, top, -jnp.logaddexp(-top, -(l + noise)))

    def pull_back_conditional(self, x: jax.Array, z: jax.Array, ct: jax.Array) -> jax.Array:
        """The cotangent of the logits, given that of z, a draw given x with its noise held fixed.

        dz_i/dl_j = w_i p_j + [i = j] (1 - w_i) with w_i = exp(z_i - max z).
        """
        del x
        l = self._log_odds()
        w = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
        return jnp.exp(l) * jnp.sum(w * ct, axis=-1, keepdims=True) + (1 - w) * ct

    def enumerate_support(self) -> jax.Array:
        """The values of one row, shape (K, K)."""
        return jnp.eye(self.logits.shape[-1], dtype=self.logits.dtype)

    def _outcomes(self) -> tuple[jax.Array, jax.Array]:
        return outcomes(self.logits)

    def _log_odds(self) -> jax.Array:
        return jax.nn.log_softmax(self.logits.astype(compute_dtype(self.logits.dtype)), axis=-1)

    def _wide_mean(self) -> jax.Array:
        return self._outcomes()[1]

    def _pull_back_mean_at(self, p: jax.Array, ct: jax.Array) -> jax.Array:
        ct = ct.astype(p.dtype)
        return p * (ct - jnp.sum(p * ct, axis=-1, keepdims=True))

    def _softened_mean(self, temperature: jax.Array) -> jax.Array:
        return jax.nn.softmax(self._log_odds() / temperature)


def outcomes(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the categories, and probabilities, differentiable where they are 0."""
    l = logits.astype(compute_dtype(logits.dtype))
    return jax.nn.log_softmax(l, axis=-1), softmax(l)
