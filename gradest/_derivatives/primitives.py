"""Constants and identities with the derivative of something else: a log-probability, a quantile.

Primitives and no custom_jvp functions, whose rules are forgotten by a scan that is differentiated
twice, and whose constant results a staged vmap cannot batch.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .. import _mesh


def lanes_first(args: Sequence[Any], dims: Sequence[Any]) -> list[Any]:
    """The operands of a vmapped equation with the lanes along their first axis, all of them."""
    mapped = next((a, d) for a, d in zip(args, dims, strict=True) if d is not None)
    return [
        jnp.moveaxis(a, d, 0) if d is not None else _mesh.repeated(a, *mapped)
        for a, d in zip(args, dims, strict=True)
    ]


def zero_tangent(x: Any) -> Any:
    """The tangent of `x` that is known to be zero."""
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jax.dtypes.float0
    return ad.Zero(jax.core.ShapedArray(x.shape, dtype))


# One, whatever its operand, a log-probability, whose derivative it has.
magic_p = core.Primitive("gradest_magic")
magic_p.def_impl(jnp.ones_like)
magic_p.def_abstract_eval(lambda aval: aval)
mlir.register_lowering(magic_p, mlir.lower_fun(jnp.ones_like, multiple_results=False))
ad.defjvp(magic_p, lambda tangent, log_prob: times_magic_p.bind(tangent, log_prob))
batching.defvectorized(magic_p)

# Its first operand, times `magic` of the second. Not as a product, for which a loop would keep the
# ones of every step: that the value does not need the second operand, the compiler sees.
times_magic_p = core.Primitive("gradest_times_magic")
times_magic_p.def_impl(lambda x, log_prob: x)
times_magic_p.def_abstract_eval(lambda x, log_prob: x)
mlir.register_lowering(times_magic_p, lambda ctx, x, log_prob: [x])
ad.defjvp(
    times_magic_p,
    lambda tangent, x, log_prob: times_magic_p.bind(tangent, log_prob),
    lambda tangent, x, log_prob: times_magic_p.bind(tangent * x, log_prob),
)
ad.primitive_transposes[times_magic_p] = lambda ct, x, log_prob: [
    ct if isinstance(ct, ad.Zero) else times_magic_p.bind(ct, log_prob),
    None,
]
batching.primitive_batchers[times_magic_p] = lambda args, dims: (
    times_magic_p.bind(*lanes_first(args, dims)),
    0,
)


def magic(log_prob: jax.Array) -> jax.Array:
    """exp(l - stop_gradient(l)): one, whose derivative is that of l (Foerster 2018, eq. 4).

    To every order, also where l is infinite; and l costs nothing where no derivative is taken.
    """
    return magic_p.bind(log_prob)


# The logarithm of a sigmoid. `jax.nn.log_sigmoid` is a custom_jvp function, and a scan that has
# forgotten its rule takes the second derivative at 0 for 0.
log_sigmoid_p = core.Primitive("gradest_log_sigmoid")
log_sigmoid_p.def_impl(jax.nn.log_sigmoid)
log_sigmoid_p.def_abstract_eval(lambda aval: aval)
mlir.register_lowering(log_sigmoid_p, mlir.lower_fun(jax.nn.log_sigmoid, multiple_results=False))
# By lax alone, since a loss is traced with it at every draw.
_of_log_sigmoid = lambda dx, x: jax.lax.mul(dx, jax.lax.logistic(jax.lax.neg(x)))
ad.defjvp(log_sigmoid_p, _of_log_sigmoid)
batching.defvectorized(log_sigmoid_p)


def log_sigmoid(x: jax.Array) -> jax.Array:
    """-log(1 + exp(-x)), whose derivatives of every order are right in scans too."""
    return log_sigmoid_p.bind(x)


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), with derivatives as those of `log_sigmoid`."""
    return -log_sigmoid(-x)


def log_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp(a) + exp(b)) of finite numbers, with derivatives as those of `log_sigmoid`."""
    first = a >= b
    return jnp.where(first, a, b) + softplus(jnp.where(first, b - a, a - b))


# The draw that is its first operand, whose derivative in the other ones, the leaves of a tree, is
# `rule(draw, tree, tangents)`.
implicit_p = core.Primitive("gradest_implicit")
implicit_p.def_impl(lambda x, *leaves, rule, treedef: x)
implicit_p.def_abstract_eval(lambda x, *leaves, rule, treedef: x)
mlir.register_lowering(implicit_p, lambda ctx, x, *leaves, rule, treedef: [x])


def _differentiate_implicit(
    primals: Sequence[Any], tangents: Sequence[Any], *, rule: Any, treedef: Any
) -> tuple[Any, Any]:
    # Bound again, so that higher derivatives see that the draw depends on the leaves.
    x = implicit_p.bind(*primals, rule=rule, treedef=treedef)
    moves = [ad.instantiate_zeros(tangent) for tangent in tangents[1:]]
    return x, rule(x, treedef.unflatten(primals[1:]), treedef.unflatten(moves))


def _batch_implicit(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
    return implicit_p.bind(*lanes_first(args, dims), **params), 0


ad.primitive_jvps[implicit_p] = _differentiate_implicit
batching.primitive_batchers[implicit_p] = _batch_implicit

# Its operand, on which a derivative depends, and which refuses to be differentiated again.
first_order_p = core.Primitive("gradest_first_order")
first_order_p.def_impl(lambda x, *, what: x)
first_order_p.def_abstract_eval(lambda x, *, what: x)
mlir.register_lowering(first_order_p, lambda ctx, x, *, what: [x])
batching.defvectorized(first_order_p)


def _differentiate_again(*_: Any, what: str) -> Any:
    raise NotImplementedError(
        f"{what} was differentiated twice with respect to it: the derivative of an implicitly "
        "reparameterized draw is known to first order only. Use score_function, whose "
        "derivatives of every order are right."
    )


ad.primitive_jvps[first_order_p] = _differentiate_again


# Its first operand, an integer draw, which has no derivative, beside what it was drawn from: as it
# was drawn, or where its log-probability is taken.
drawn_p = core.Primitive("gradest_drawn")
scored_p = core.Primitive("gradest_scored")


def _define_mark(mark_p: core.Primitive) -> None:
    mark_p.def_impl(lambda x, *_, **__: x)
    mark_p.def_abstract_eval(lambda x, *_, **__: x)
    mlir.register_lowering(mark_p, lambda ctx, x, *_, **__: [x])

    def differentiate(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
        del tangents
        x = mark_p.bind(*primals, **params)
        return x, zero_tangent(x)

    def batch(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
        return mark_p.bind(*lanes_first(args, dims), **params), 0

    ad.primitive_jvps[mark_p] = differentiate
    batching.primitive_batchers[mark_p] = batch


_define_mark(drawn_p)
_define_mark(scored_p)


# The sum of x * log_p over triples (x, log_p, impossible), its operands, with 0 where an impossible
# outcome (log_p = -inf) has weight 0.
weighted_p = core.Primitive("gradest_weighted")


def weighted(*triples: jax.Array) -> jax.Array:
    """The sum of x * log_p over triples (x, log_p, impossible), all of one shape.

    An impossible outcome, of log_p = -inf, counts for nothing where its weight x is 0. The
    derivative in log_p has no mask, which loops would keep: it is a multiple of x.
    """
    return weighted_p.bind(*_mesh.varying_alike(*triples))


def _bounded(x: Any, log_p: Any, impossible: Any) -> Any:
    return jnp.where((x == 0) & impossible, 0, log_p)


def _triples(args: Sequence[Any]) -> Iterable[tuple[Any, Any, Any]]:
    return zip(args[::3], args[1::3], args[2::3], strict=True)


@weighted_p.def_impl
def _weighted(*args: Any) -> Any:
    terms = [x * _bounded(x, log_p, impossible) for x, log_p, impossible in _triples(args)]
    return functools.reduce(jax.lax.add, terms)


def _type_of_weighted(*avals: Any) -> Any:
    return _mesh.types_of(lambda *args: [_weighted(*args)], avals, avals[:1])[0]


def _differentiate_weighted(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    out, terms = weighted_p.bind(*primals), []
    triples = zip(_triples(primals), _triples(tangents), strict=True)
    for (x, log_p, impossible), (dx, dlog_p, _) in triples:
        if not isinstance(dlog_p, ad.Zero):
            terms.append(x * dlog_p)
        if not isinstance(dx, ad.Zero):
            terms.append(_bounded(x, log_p, impossible) * dx)
    return out, functools.reduce(jax.lax.add, terms) if terms else zero_tangent(out)


def _batch_weighted(args: Sequence[Any], dims: Sequence[Any]) -> Any:
    return weighted_p.bind(*lanes_first(args, dims)), 0


weighted_p.def_abstract_eval(_type_of_weighted)
mlir.register_lowering(weighted_p, mlir.lower_fun(_weighted, multiple_results=False))
ad.primitive_jvps[weighted_p] = _differentiate_weighted
batching.primitive_batchers[weighted_p] = _batch_weighted
