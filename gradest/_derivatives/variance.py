"""Cotangents of what affects the variance only: baselines, temperatures, control variates."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _check
from .attach import fixed_at_first, in_every_lane, scaled
from .refuse import second_order_counts_as_zero


def attach_variance_gradient(
    value: jax.Array, parameters: Any, gradient: Any, *, order: int = 2
) -> jax.Array:
    """`value`, with abs(ct)**order * gradient as the cotangent of `parameters`.

    For what affects variance only: the gradient of a squared gradient estimate scales with the
    square of the cotangent (order 2); that of the squared distance of a baseline from the cost
    with its magnitude (order 1), whose sign must not matter: a loss is minimised or a reward
    maximised, the distance is minimised in both.
    """
    # A number that is differentiated may not yet be an array.
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
    fixed = fixed_at_first(jax.tree.leaves(gradient), (value, leaves))
    return _attach_variance(order, value, leaves, fixed)


def _attach_variance_(order: int, value: Any, parameters: Any, gradient: Any) -> jax.Array:
    del order
    return in_every_lane(value, (parameters, gradient))


_attach_variance = jax.custom_vjp(_attach_variance_, nondiff_argnums=(0,))


def _attach_variance_fwd(order: int, value: Any, parameters: Any, gradient: Any) -> Any:
    value = _attach_variance_(order, value, parameters, gradient)
    return value, [g.astype(p.dtype) for p, g in zip(parameters, gradient, strict=True)]


def _attach_variance_bwd(order: int, gradient: Any, ct: jax.Array) -> Any:
    return ct, [scaled(jnp.abs(ct) ** order, g) for g in gradient], None


_attach_variance.defvjp(_attach_variance_fwd, _attach_variance_bwd)


def attach_squared_norm(value: jax.Array, squared_norm: jax.Array) -> jax.Array:
    """`value`, whose cotangent ct reaches `squared_norm` as ct**2.

    Of a gradient estimate that is differentiable in nothing but what the variance depends on.
    Where that is the weights of a network, lanes of a vmap are then summed over in the products of
    the backward pass, while `attach_variance_gradient` would hold a gradient of the weights for
    each.
    """
    return _attach_squared_norm(value, squared_norm)


@jax.custom_vjp
def _attach_squared_norm(value: jax.Array, squared_norm: jax.Array) -> jax.Array:
    return in_every_lane(value, squared_norm)


def _attach_squared_norm_fwd(value: jax.Array, squared_norm: jax.Array) -> Any:
    return in_every_lane(value, squared_norm), jnp.zeros((), squared_norm.dtype)


def _attach_squared_norm_bwd(like: jax.Array, ct: jax.Array) -> Any:
    return ct, (ct * ct).astype(like.dtype)


_attach_squared_norm.defvjp(_attach_squared_norm_fwd, _attach_squared_norm_bwd)


def with_variance_gradient(
    gradient: Callable[[Mapping[str, jax.Array]], jax.Array], hyper: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, Any], dict[str, jax.Array]]:
    """A gradient estimate, and the gradient of its squared norm.

    Args:
      gradient: from what affects variance only to the estimate.
      hyper: its argument, numbers or arrays.

    Returns:
      The estimate; those of `hyper` that are traced (a concrete one is not differentiated, and
      spared the second derivatives of the cost); the derivative with respect to them.
    """
    traced = {
        name: x
        for name, x in hyper.items()
        if not _check.is_concrete(x) and jnp.issubdtype(jax.dtypes.result_type(x), jnp.floating)
    }

    def squared_norm(traced: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        g = gradient({name: jnp.asarray(x) for name, x in {**hyper, **traced}.items()})
        return jnp.sum(g * g), g

    if not traced:
        return squared_norm(traced)[1], {}, {}
    with second_order_counts_as_zero():
        variance_gradient, g = jax.grad(squared_norm, has_aux=True)(traced)
    return g, traced, variance_gradient
