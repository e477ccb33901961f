"""Cotangents of what affects the variance only: baselines, temperatures, control variates."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _mesh
from .attach import fixed_at_first, in_every_lane, scaled
from .refuse import second_order_counts_as_zero


def attach_variance_gradient(value: jax.Array, parameters: Any, gradient: Any) -> jax.Array:
    """`value`, with abs(ct) * gradient as the cotangent of `parameters`.

    For what affects variance only: `gradient` is that of the squared norm of a gradient estimate,
    or of the squared distance of a baseline from the cost. The magnitude of the cotangent weighs
    it: its sign must not matter, since a loss is minimised or a reward maximised and the variance
    is minimised in both; and as it enters once, what a batch learns does not depend on how the
    batch is split over steps or devices.
    """
    # A number that is differentiated may not yet be an array.
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
    value, leaves, given = _mesh.varying_alike(value, leaves, jax.tree.leaves(gradient))
    fixed = fixed_at_first(given, (value, leaves))
    return _attach_variance(value, leaves, fixed)


@jax.custom_vjp
def _attach_variance(value: Any, parameters: Any, gradient: Any) -> jax.Array:
    return in_every_lane(value, (parameters, gradient))


def _attach_variance_fwd(value: Any, parameters: Any, gradient: Any) -> Any:
    value = in_every_lane(value, (parameters, gradient))
    return value, [g.astype(p.dtype) for p, g in zip(parameters, gradient, strict=True)]


def _attach_variance_bwd(gradient: Any, ct: jax.Array) -> Any:
    return ct, [scaled(jnp.abs(ct), g) for g in gradient], None


_attach_variance.defvjp(_attach_variance_fwd, _attach_variance_bwd)


def with_variance_gradient(
    gradient: Callable[[Mapping[str, jax.Array]], Any], hyper: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, jax.Array]]:
    """A gradient estimate, and the gradient of its squared norm.

    Args:
      gradient: from what affects variance only to the estimate, a pytree.
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

    def squared_norm(traced: Mapping[str, Any]) -> tuple[jax.Array, Any]:
        g = gradient({name: jnp.asarray(x) for name, x in {**hyper, **traced}.items()})
        first, *others = (jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(g))
        return sum(others, start=first), g

    if not traced:
        return squared_norm(traced)[1], {}, {}
    with second_order_counts_as_zero():
        variance_gradient, g = jax.grad(squared_norm, has_aux=True)(traced)
    return g, traced, variance_gradient
