"""Discrete draws as functions of continuous noise, shared by the estimators that relax them.

A Bernoulli draw is the sign, and a one-hot draw the argmax, of z = logits + noise, with logistic
and Gumbel noise. Everything here is differentiable by JAX as it stands, to any order; infinite
logits give certain outcomes and finite derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _random
from ..distributions import Bernoulli, OneHotCategorical

Relaxable = Bernoulli | OneHotCategorical


def check(estimator: str, dist: Any) -> None:
    _check.supported(
        estimator,
        dist,
        [Bernoulli, OneHotCategorical],
        "Give integer categories as OneHotCategorical; for other distributions use "
        "score_function, or reparameterize where it applies.",
    )


def perturb(key: jax.Array, dist: Relaxable) -> jax.Array:
    """z = log-odds + logistic noise, or z = log-probabilities + Gumbel noise."""
    if isinstance(dist, Bernoulli):
        logits, family = dist.logits, jax.random.logistic
    else:
        logits, family = dist.logits, jax.random.gumbel
    noise = _random.noise(family, key, dist.shape, logits.dtype)
    return bounded(logits.astype(noise.dtype)) + noise


def bounded(z: jax.Array) -> jax.Array:
    """`z` with infinities made finite: divided by a temperature they keep finite derivatives."""
    return jnp.clip(z, -1e30, 1e30)


def harden(dist: Relaxable, z: jax.Array) -> jax.Array:
    """The draw that `z` stands for, exactly 0 or 1."""
    if isinstance(dist, Bernoulli):
        return (z > 0).astype(dist.logits.dtype)
    return jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=dist.logits.dtype)


def soften(dist: Relaxable, z: jax.Array, temperature: ArrayLike) -> jax.Array:
    """The relaxed draw: sigmoid(z / temperature), or softmax(z / temperature)."""
    y = z / jnp.asarray(temperature, z.dtype)
    relaxed = jax.nn.sigmoid(y) if isinstance(dist, Bernoulli) else jax.nn.softmax(y, axis=-1)
    return relaxed.astype(dist.logits.dtype)


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
