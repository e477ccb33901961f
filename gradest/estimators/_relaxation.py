"""Discrete draws as functions of continuous noise, shared by the estimators that relax them.

A Bernoulli draw is the sign, and a one-hot draw the argmax, of z = logits + noise, with logistic
and Gumbel noise. Everything here is differentiable by JAX as it stands, to any order; infinite
logits give certain outcomes and finite derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _numerics, _random
from .._numerics import below_top, tempered
from ..distributions import Bernoulli, OneHotCategorical, base
from ..distributions._capabilities import RELAXABLE

Relaxable = Bernoulli | OneHotCategorical


def check(estimator: str, dist: Any, *, draws_all: bool = True) -> None:
    """Raises unless `dist` can be relaxed.

    Args:
      estimator: its name.
      dist: a distribution.
      draws_all: whether the gradient needs every outcome to be drawn.
    """
    if draws_all:
        base.check_edges(estimator, dist)
    _check.supported(
        estimator,
        dist,
        RELAXABLE,
        "Give integer categories as OneHotCategorical; for other distributions use "
        "score_function, or reparameterize where it applies.",
    )


def perturb(key: jax.Array, dist: Relaxable) -> jax.Array:
    """z = log-odds + logistic noise, or z = log-probabilities + Gumbel noise."""
    (logits,) = _numerics.in_compute_dtype(dist.logits)
    if isinstance(dist, Bernoulli):
        return logits + _random.noise(_random.logistic, key, dist.shape, logits.dtype)
    # Less the largest, which is exact where it matters, so that the sums have digits.
    return below_top(logits) + _random.noise(_random.gumbel, key, dist.shape, logits.dtype)


def harden(dist: Relaxable, z: jax.Array) -> jax.Array:
    """The draw that `z` stands for, exactly 0 or 1."""
    if isinstance(dist, Bernoulli):
        return (z > 0).astype(dist.logits.dtype)
    return jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=dist.logits.dtype)


def soften(dist: Relaxable, z: jax.Array, temperature: ArrayLike) -> jax.Array:
    """The relaxed draw: sigmoid(z / temperature), or softmax(z / temperature)."""
    t = jnp.asarray(temperature, z.dtype)
    if isinstance(dist, Bernoulli):
        return jax.nn.sigmoid(tempered(z, t)).astype(dist.logits.dtype)
    weights = jnp.exp(tempered(below_top(z), t))
    return (weights / jnp.sum(weights, axis=-1, keepdims=True)).astype(dist.logits.dtype)


def log_odds(dist: Relaxable) -> jax.Array:
    """Log-odds, or normalised log-probabilities, in the type of the noise."""
    l = dist.logits.astype(_numerics.compute_dtype(dist.logits.dtype))
    return l if isinstance(dist, Bernoulli) else jax.nn.log_softmax(l, axis=-1)


def mean(dist: Relaxable, l: jax.Array) -> jax.Array:
    """Of the draw: the probabilities, from the log-odds."""
    return jax.nn.sigmoid(l) if isinstance(dist, Bernoulli) else jnp.exp(l)


def pull_back_mean(dist: Relaxable, p: jax.Array, ct: jax.Array) -> jax.Array:
    """The cotangent of the logits, given that of the mean p: J(p) = diag(p) - p p^T times it."""
    ct = ct.astype(p.dtype)
    if isinstance(dist, Bernoulli):
        return p * (1 - p) * ct
    return p * (ct - jnp.sum(p * ct, axis=-1, keepdims=True))


def score(l: jax.Array, dist: Relaxable, b: jax.Array) -> jax.Array:
    """Derivative of log p(b) with respect to the logits."""
    return b.astype(l.dtype) - mean(dist, l)


def conditional(key: jax.Array, dist: Relaxable, l: jax.Array, b: jax.Array) -> jax.Array:
    """A draw of z given b: Tucker et al. 2017, appendices B (one-hot) and C (Bernoulli)."""
    if isinstance(dist, Bernoulli):
        noise = _random.noise(_random.logistic, key, l.shape, l.dtype)
        positive = jax.nn.softplus(noise - jax.nn.log_sigmoid(-l))
        return jnp.where(b > 0, positive, -jax.nn.softplus(noise - jax.nn.log_sigmoid(l)))
    noise = _random.noise(_random.gumbel, key, l.shape, l.dtype)
    # The winner's z is a Gumbel around log 1 = 0; each other one's is cut off there.
    top = jnp.sum(jnp.where(b > 0, noise, 0), axis=-1, keepdims=True)
    return jnp.where(b > 0, top, -jnp.logaddexp(-top, -(l + noise)))


def pull_back_conditional(
    dist: Relaxable, l: jax.Array, b: jax.Array, z: jax.Array, ct: jax.Array
) -> jax.Array:
    """The cotangent of the logits, given that of z, a draw given b with its noise held fixed.

    Bernoulli: dz/dl = P(b) (1 - exp(-|z|)).
    One-hot: dz_i/dl_j = w_i p_j + [i = j] (1 - w_i) with w_i = exp(z_i - max z).
    """
    if isinstance(dist, Bernoulli):
        prob_of_b = jax.nn.sigmoid(jnp.where(b > 0, l, -l))
        return prob_of_b * -jnp.expm1(-jnp.abs(z)) * ct
    w = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
    return jnp.exp(l) * jnp.sum(w * ct, axis=-1, keepdims=True) + (1 - w) * ct


@jax.custom_vjp
def replace_value(hard: jax.Array, soft: jax.Array) -> jax.Array:
    """The value of `hard`, to the last bit, with the derivative of `soft`."""
    del soft
    return hard


def _replace_value_fwd(hard: jax.Array, soft: jax.Array) -> tuple[jax.Array, None]:
    del soft
    return hard, None


def _replace_value_bwd(_: None, ct: jax.Array) -> tuple[None, jax.Array]:
    return None, ct


replace_value.defvjp(_replace_value_fwd, _replace_value_bwd)
