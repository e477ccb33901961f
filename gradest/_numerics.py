"""Types to compute in, and softmax at extreme temperatures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike


def compute_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type in which noise is drawn and formulas are computed: at least float32."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def in_compute_dtype(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, of one type, in at least single precision."""
    return [array.astype(compute_dtype(array.dtype)) for array in arrays]


def lower(a: jax.Array) -> jax.Array:
    """The lower triangles of matrices. (`jnp.tril` refuses explicit axes of a mesh on old JAX.)"""
    below = jnp.broadcast_to(np.tri(*a.shape[-2:], dtype=bool), a.shape)
    return jnp.where(below, a, 0)


def positive(temperature: jax.Array) -> jax.Array:
    """NaN for one, traced, that is not: what is finite there, derivatives too, would be wrong."""
    return temperature + jnp.where(temperature > 0, 0, jnp.nan)


def least_probability(dtype: DTypeLike) -> float:
    """By which the derivative of a probability in the logit of an impossible outcome is replaced.

    That is 0, and that of the logit in the probability infinite; their product is 1. So estimators
    that evaluate the cost of the impossible outcome take this number for the one, and logits that
    were made from probabilities its reciprocal for the other. It is 0, and the derivative lost,
    where a type has no such number.
    """
    return 2.0**-100 if jnp.finfo(dtype).maxexp >= 128 else 0.0


@jax.custom_jvp
def softmax(l: jax.Array) -> jax.Array:
    """Along the last axis, in whose derivative impossible categories have `least_probability`."""
    return jax.nn.softmax(l, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (l,), (dl,) = primals, tangents
    # JAX's own: an impossible category has a derivative of first order only.
    p = jax.nn.softmax(l, axis=-1)
    moved = p + jnp.where(jnp.isneginf(l), least_probability(l.dtype), 0).astype(p.dtype)
    return softmax(l), moved * (dl - jnp.sum(moved * dl, axis=-1, keepdims=True))


@jax.custom_jvp
def sigmoid(l: jax.Array) -> jax.Array:
    """In whose derivative an impossible outcome has `least_probability`."""
    return jax.nn.sigmoid(l)


@sigmoid.defjvp
def _sigmoid_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (l,), (dl,) = primals, tangents
    edge = jnp.where(jnp.isinf(l), least_probability(l.dtype), 0).astype(l.dtype)
    return sigmoid(l), (jax.nn.sigmoid(l) * jax.nn.sigmoid(-l) + edge) * dl


@jax.custom_jvp
def tempered(z: jax.Array, temperature: jax.Array) -> jax.Array:
    """z / temperature, whose derivative in the temperature is zero where z is infinite.

    A masked category stays masked at every temperature; JAX's own rule gives 0 * inf = NaN. (To
    bound z first would do too, and made XLA draw the noise in z several times over.)
    """
    return z / positive(temperature)


def _tempered_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (z, t), (dz, dt) = primals, tangents
    y, t = tempered(z, t), positive(t)
    dy = jnp.zeros_like(y) if isinstance(dz, SymbolicZero) else dz / t
    if not isinstance(dt, SymbolicZero):
        dy -= jnp.where(jnp.isfinite(z), z, 0) / (t * t) * dt
    return y, dy


tempered.defjvp(_tempered_jvp, symbolic_zeros=True)


def below_top(z: jax.Array) -> jax.Array:
    """z less its maximum along the last axis: the same softmax, at every temperature.

    For use before z is divided by t: in z / t - max(z / t) compilers round the two quotients
    differently, and at t = 1e-10 the exponential of what is left at the maximum overflows.
    """
    return z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))


def below_highest(a: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Log-weights less the largest of them along axes, -inf where all are.

    The same law, if as many of them are chosen always. What all have in common would leave no
    digits to the difference of two sums of them.
    """
    highest = jax.lax.stop_gradient(jnp.max(a, axis=axis, keepdims=True, initial=-jnp.inf))
    return a - jnp.where(highest > -jnp.inf, highest, 0)
