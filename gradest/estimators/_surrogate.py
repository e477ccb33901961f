"""A surrogate of the cost, a user's function, as one that closes over nothing."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .. import _calls, _check
from .._transparent import without_stops

#: (parameters, relaxed draw) -> real scalar.
Surrogate = Callable[[Any, Any], jax.Array]


def closed(surrogate: Surrogate, params: Any, point: Any) -> tuple[Surrogate, Any]:
    """The surrogate as a function that closes over nothing, and its parameters.

    Those are the traced ones of `params` and the arrays that the surrogate closes over. Whatever
    these depend on, only what is in `params` is trained.
    """
    leaves, treedef = jax.tree.flatten(params)
    traced = [not _check.is_concrete(leaf) for leaf in leaves]

    @functools.wraps(surrogate, updated=())  # so that JAX's errors name the user's function
    def of_traced(values: list[Any], point: Any) -> jax.Array:
        remaining = iter(values)
        filled = [next(remaining) if t else x for x, t in zip(leaves, traced, strict=True)]
        return _scalar(surrogate(jax.tree.unflatten(treedef, filled), point))

    values = [leaf for leaf, t in zip(leaves, traced, strict=True) if t]
    with _calls.with_way_out("In a surrogate"):
        jaxpr = jax.make_jaxpr(of_traced)(values, point)
    depend = [*[False] * len(values), *[True] * len(jax.tree.leaves(point))]
    jaxpr = without_stops(jaxpr, depend)

    def of_point(params: Any, point: Any) -> jax.Array:
        values, closed_over = params
        filled = jaxpr.replace(consts=jax.lax.stop_gradient(closed_over))
        # A surrogate that is a number gives one that is no array.
        return jnp.asarray(core.jaxpr_as_fun(filled)(*values, *jax.tree.leaves(point))[0])

    return of_point, (values, jaxpr.consts)


def _scalar(c: Any) -> jax.Array:
    shape, dtype = np.shape(c), jax.dtypes.result_type(c)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"surrogate: expected its result to be a real scalar, got shape {shape} and type "
            f"{dtype}. Sum or average it."
        )
    return jnp.asarray(c)
