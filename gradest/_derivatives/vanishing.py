"""Functions that are known to be zero with their first derivatives, and cost nothing up to there.

A term of a loss that matters to second derivatives alone would be computed, and differentiated to
zero, for who asks for first ones. Here it is zeros, and so are its derivatives up to the order that
does not vanish: from there on it is the function, differentiated by JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .. import _jaxpr, _mesh
from .primitives import magic

#: From arrays to a list of arrays.
Function = Callable[..., Sequence[jax.Array]]
Flags = Sequence[bool]


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
    return _bound(run, order, operands)[0]


# Zeros, in the place of what `function` returns for its operands.
vanishing_p = core.Primitive("gradest_vanishing")
vanishing_p.multiple_results = True


def _bound(function: Function, order: int, operands: Sequence[Any]) -> list[Any]:
    return vanishing_p.bind(*_mesh.varying_alike(*operands), function=function, order=order)


def _zeros(*args: Any, function: Function, order: int) -> list[jax.Array]:
    del order
    return [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(function, *args)]


def _abstract(*avals: Any, function: Function, order: int) -> list[Any]:
    del order
    return _mesh.types_of(function, avals, jax.eval_shape(function, *avals))


vanishing_p.def_impl(_zeros)
vanishing_p.def_abstract_eval(_abstract)
mlir.register_lowering(vanishing_p, mlir.lower_fun(_zeros, multiple_results=True))


def _merged(chosen: Flags, these: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """One of `these` in the place of each that is chosen, one of the others in each other place."""
    of_these, of_others = iter(these), iter(others)
    return [next(of_these if is_chosen else of_others) for is_chosen in chosen]


def _differentiate(
    primals: Sequence[Any], tangents: Sequence[Any], *, function: Function, order: int
) -> tuple[Any, Any]:
    active = [not isinstance(t, ad.Zero) for t in tangents]
    moved = [x for x, is_active in zip(primals, active, strict=True) if is_active]
    fixed = [x for x, is_active in zip(primals, active, strict=True) if not is_active]
    moves = [t for t in tangents if not isinstance(t, ad.Zero)]
    num_fixed, num = len(fixed), len(moves)

    def tangent(*args: Any) -> Sequence[jax.Array]:
        fixed, moving = args[:num_fixed], args[num_fixed:]
        of_moved = lambda *moved: list(function(*_merged(active, moved, fixed)))
        return jax.jvp(of_moved, moving[:num], moving[num:])[1]

    args = [*fixed, *moved, *moves]
    moves_of_results = _bound(tangent, order - 1, args) if order > 1 else tangent(*args)
    return _bound(function, order, primals), moves_of_results


def _transpose(cts: Sequence[Any], *args: Any, function: Function, order: int) -> list[Any]:
    linear = list(map(ad.is_undefined_primal, args))
    avals = [x.aval for x in args if ad.is_undefined_primal(x)]
    live = [not isinstance(ct, ad.Zero) for ct in cts]
    fixed = [x for x in args if not ad.is_undefined_primal(x)]
    counted = [ct for ct in cts if not isinstance(ct, ad.Zero)]
    if not counted:
        return _merged(linear, list(map(ad.Zero, avals)), [None] * len(fixed))
    num_fixed = len(fixed)

    def transposed(*args: Any) -> Sequence[jax.Array]:
        fixed, cts = args[:num_fixed], args[num_fixed:]

        def of_linear(*moves: Any) -> list[jax.Array]:
            results = function(*_merged(linear, moves, fixed))
            return [result for result, counts in zip(results, live, strict=True) if counts]

        return jax.linear_transpose(of_linear, *avals)(list(cts))

    return _merged(linear, _bound(transposed, order, [*fixed, *counted]), [None] * len(fixed))


def _batch(args: Sequence[Any], dims: Sequence[Any], *, function: Function, order: int) -> Any:
    vmapped = jax.vmap(lambda *args: list(function(*args)), in_axes=tuple(dims))
    out = _bound(vmapped, order, args)
    return out, [0] * len(out)


ad.primitive_jvps[vanishing_p] = _differentiate
ad.primitive_transposes[vanishing_p] = _transpose
batching.primitive_batchers[vanishing_p] = _batch
