"""`attach_gradient`, by which a gradient that an estimator computed itself meets JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _mesh
from .primitives import magic
from .refuse import estimator_name, refuse_second_order


def attach_gradient(
    value: jax.Array, inputs: Any, gradient: Any, *, log_prob: jax.Array | None = None
) -> jax.Array:
    """`value`, with `gradient` as its derivative with respect to `inputs`.

    In reverse mode a cotangent ct of the result becomes ct for `value` and ct * gradient for
    `inputs`. Nothing reaches whatever `gradient` was computed from.

    Args:
      value: a scalar.
      inputs: a pytree, usually the distribution.
      gradient: a pytree with a leaf for each of `inputs`, in their order, such as a tuple: a Normal
        would refuse a negative number as its scale. Leaves that are not floating-point are ignored.
      log_prob: log-probability of the draw at which `value` was computed, differentiable in
        `inputs`. With it, mixed second derivatives, once in `inputs` and once in what `value`
        depends on, are unbiased; without it they lack the draw's dependence on `inputs`.

    Returns:
      `value`.

    Raises:
      ValueError: if `gradient` has not the structure and shapes of `inputs`.
      NotImplementedError: when differentiated twice with respect to `inputs`: the derivative of
        an estimate of a gradient is not an estimate of the second derivative.

    Example:
      >>> import gradest as ge, jax
      >>> print(jax.grad(lambda x: ge.attach_gradient(x**2, x, 10.0))(3.0))
      16.0
    """
    leaves, gradients = [], []
    given, expected = jax.tree.leaves(gradient), jax.tree.leaves(inputs)
    if len(given) != len(expected):
        raise ValueError(
            f"gradient: expected a leaf for each of the {len(expected)} of inputs, "
            f"{jax.tree.structure(inputs)}, got {jax.tree.structure(gradient)}. Give it the "
            "structure of inputs."
        )
    for leaf, g in zip(expected, given, strict=True):
        if jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.floating):
            if np.shape(g) != np.shape(leaf):
                raise ValueError(
                    f"gradient: expected an array of shape {np.shape(leaf)}, that of the input, "
                    f"got shape {np.shape(g)}. Sum or broadcast it."
                )
            leaf = jnp.asarray(leaf)
            leaves.append(leaf)
            gradients.append(_mesh.like(jnp.asarray(g).astype(leaf.dtype), jax.typeof(leaf)))
    value = jnp.asarray(value)
    l = jnp.zeros_like(value) if log_prob is None else log_prob.astype(value.dtype)
    value, l, leaves, gradients = _mesh.varying_alike(value, l, leaves, gradients)
    fixed = fixed_at_first((gradients, l), (value, leaves))
    return _attach(estimator_name(), value, leaves, *fixed)


def _attach_(name: str, value: Any, inputs: Any, gradient: Any, log_prob: Any) -> jax.Array:
    del name
    return in_every_lane(value, (inputs, gradient, log_prob))


_attach = jax.custom_vjp(_attach_, nondiff_argnums=(0,))


def _attach_fwd(name: str, value: Any, inputs: Any, gradient: Any, log_prob: Any) -> Any:
    value = _attach_(name, value, inputs, gradient, log_prob)
    return value, (refuse_second_order(name, gradient, inputs), log_prob)


def _attach_bwd(name: str, residuals: Any, ct: jax.Array) -> Any:
    del name
    gradient, log_prob = residuals
    scaled_gradient = [scaled(ct, g) for g in gradient]
    return ct * magic(log_prob), scaled_gradient, None, None


_attach.defvjp(_attach_fwd, _attach_bwd)


@jax.custom_jvp
def fixed_at_first(tree: Any, beside: Any) -> Any:
    """`tree`, constant in the first differentiation of it or `beside`, no longer in later ones.

    The None of the backward rules, here and in `variance`, says as much, but JAX 0.10 cannot
    transpose a scan of whose results that is the cotangent.
    """
    del beside
    return tree


@fixed_at_first.defjvp
def _fixed_at_first_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    del tangents
    return primals[0], jax.tree.map(jnp.zeros_like, primals[0])


def in_every_lane(value: jax.Array, beside: Any) -> jax.Array:
    """`value`, under every `jax.vmap` that one of the arrays `beside` it is under.

    A result that has no lanes has one cotangent, the sum of those of all lanes, whose product
    with a gradient that has lanes would be too large by their number.
    """
    for leaf in jax.tree.leaves(beside):
        # Nothing is added, which has the lanes, and under a mesh the axes, of what it is cut from:
        # a primitive of our own would have to be told of every such thing.
        nothing = jax.lax.stop_gradient(leaf).ravel()[:0]
        value = value + jnp.sum(nothing).astype(value.dtype)
    return value


def scaled(ct: jax.Array, gradient: jax.Array) -> jax.Array:
    return ct.astype(gradient.dtype) * gradient
