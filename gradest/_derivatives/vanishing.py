"""Functions known to be zero together with their first derivatives, which then cost nothing.

A term of a loss that matters to second derivatives alone would be evaluated, and differentiated, to
zero by who asks for first ones. Here it is zeros, whose derivatives are zeros up to the order that
is not known to vanish; there the function is differentiated as it stands.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .. import _jaxpr, _mesh
from .primitives import magic

Flags = tuple[bool, ...]
Function = Callable[..., Sequence[jax.Array]]


def without_score(log_prob: Callable[[], jax.Array]) -> jax.Array:
    """Zero, with the derivatives of a draw's own log-probability but for what has mean zero.

    With a cost l and the draw that has it, E[l magic(l)] is E[l magic(l) - magic(l) + 1]: as if the
    cost were l - 1 + magic(-l), with no first derivative and with the squared score as second one.
    """

    def excess() -> jax.Array:
        l = log_prob()
        return jnp.log(magic(l)) - 1 + magic(-l)

    return vanishing(excess, order=2)


def vanishing(function: Callable[[], jax.Array], order: int) -> jax.Array:
    """`function()`, known to be zero with its derivatives of orders below `order`, at least 1."""
    jaxpr, operands = _jaxpr.open_jaxpr(jax.make_jaxpr(function)())
    run = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return vanishing_p.bind(*_mesh.varying_alike(*operands), function=run, order=order)[0]


# Zeros, in the place of what `function` returns, a list, of the operands.
vanishing_p = core.Primitive("gradest_vanishing")
vanishing_p.multiple_results = True


def _zeros(*args: Any, function: Function, order: int) -> list[jax.Array]:
    del order
    return [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(function, *args)]


def _abstract(*avals: Any, function: Function, order: int) -> list[Any]:
    del order
    of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    shapes = jax.eval_shape(function, *map(of, avals))
    return _mesh.types_of(function, avals, shapes)


vanishing_p.def_impl(_zeros)
vanishing_p.def_abstract_eval(_abstract)
mlir.register_lowering(vanishing_p, mlir.lower_fun(_zeros, multiple_results=True))


def _differentiate(
    primals: Sequence[Any], tangents: Sequence[Any], *, function: Function, order: int
) -> tuple[Any, Any]:
    out = vanishing_p.bind(*primals, function=function, order=order)
    active = tuple(not isinstance(t, ad.Zero) for t in tangents)
    moving = [t for t in tangents if not isinstance(t, ad.Zero)]
    tangent, args = _tangent(function, active), _mesh.varying_alike(*primals, *moving)
    if order == 1:
        return out, tangent(*args)
    return out, vanishing_p.bind(*args, function=tangent, order=order - 1)


def _tangent(function: Function, active: Flags) -> Function:
    """The tangents of the results, given the arguments and the tangents of the active ones."""

    def tangent(*args: Any) -> Sequence[jax.Array]:
        primals, tangents = args[: len(active)], args[len(active) :]

        def of_active(*moving: Any) -> Sequence[jax.Array]:
            rest = iter(moving)
            return function(
                *(next(rest) if a else x for x, a in zip(primals, active, strict=True))
            )

        moving = tuple(x for x, a in zip(primals, active, strict=True) if a)
        return jax.jvp(of_active, moving, tangents)[1]

    return tangent


def _transpose(
    cts: Sequence[Any], *args: Any, function: Function, order: int
) -> list[Any]:
    linear = tuple(map(ad.is_undefined_primal, args))
    live = tuple(not isinstance(ct, ad.Zero) for ct in cts)
    shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in args if ad.is_undefined_primal(x)]
    if not any(live):
        return [ad.Zero(x.aval) if is_linear else None for x, is_linear in zip(args, linear, strict=True)]
    fixed = [x for x in args if not ad.is_undefined_primal(x)]
    counted = [ct for ct in cts if not isinstance(ct, ad.Zero)]

    def transposed(*args: Any) -> Sequence[jax.Array]:
        fixed, cts = args[: -len(counted)], args[-len(counted) :]

        def of_linear(*moving: Any) -> Sequence[jax.Array]:
            of_fixed, of_moving = iter(fixed), iter(moving)
            results = function(*(next(of_moving if l else of_fixed) for l in linear))
            return [result for result, counts in zip(results, live, strict=True) if counts]

        return list(jax.linear_transpose(of_linear, *shapes)(list(cts)))

    back = iter(vanishing_p.bind(*fixed, *counted, function=transposed, order=order))
    return [next(back) if is_linear else None for is_linear in linear]


def _batch(
    args: Sequence[Any], dims: Sequence[Any], *, function: Function, order: int
) -> tuple[Any, Any]:
    vmapped = jax.vmap(lambda *args: list(function(*args)), in_axes=tuple(dims))
    out = vanishing_p.bind(*args, function=vmapped, order=order)
    return out, [0] * len(out)


ad.primitive_jvps[vanishing_p] = _differentiate
ad.primitive_transposes[vanishing_p] = _transpose
batching.primitive_batchers[vanishing_p] = _batch
