"""gradest's primitives, and all that depends on JAX's version.

A cost-based draw is one equation of `sample_p` in the staged program, `gradest.cost` one of
`cost_p`; `magic_p` passes on the derivative of a log-probability, `implicit_p` that of a draw that
keeps its quantile; `evaluation_p` marks what is to be counted. What other constructs of a jaxpr
mean is read here, and nowhere else.
"""

import abc
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

sample_p = core.Primitive("gradest_sample")
sample_p.multiple_results = True

cost_p = core.Primitive("gradest_cost")


class Site(abc.ABC):
    """The static half of a `sample_p` equation: what to draw from its operands."""

    @abc.abstractmethod
    def draw(self, key: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        """The leaves of one draw."""

    @abc.abstractmethod
    def vmapped(self, key_shared: bool, mapped: Sequence[bool]) -> "Site":
        """The site of the joint draw over the lanes of a `jax.vmap`.

        Every operand it gets has the lanes along its first axis, those that were not mapped
        too, and so has the key, repeated where `key_shared`.
        """


# Run by itself, it may meet a number of the program that is not yet an array.
sample_p.def_impl(lambda *args, site: site.draw(*map(jnp.asarray, args)))
mlir.register_lowering(
    sample_p, mlir.lower_fun(lambda *args, site: site.draw(*args), multiple_results=True)
)


@sample_p.def_abstract_eval
def _(*avals: Any, site: Site) -> list[Any]:
    out = jax.eval_shape(site.draw, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    return [jax.core.ShapedArray(o.shape, o.dtype) for o in out]


def _batch_sample(args: Sequence[Any], dims: Sequence[Any], *, site: Site) -> Any:
    mapped = [d is not None for d in dims]
    site = site.vmapped(not mapped[0], mapped[1:])
    out = sample_p.bind(*_lanes_first(args, dims), site=site)
    return out, [0] * len(out)


def _lanes_first(args: Sequence[Any], dims: Sequence[Any]) -> list[Any]:
    """The operands of a vmapped equation with the lanes along their first axis, all of them."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    return [
        jnp.moveaxis(a, d, 0) if d is not None else jnp.broadcast_to(a, (size, *a.shape))
        for a, d in zip(args, dims, strict=True)
    ]


batching.primitive_batchers[sample_p] = _batch_sample


def cost_outside(*_: Any, **__: Any) -> Exception:
    return RuntimeError(
        "gradest.cost: expected to run inside a loss under gradest.expectation, which collects "
        "the costs. Wrap the loss in gradest.expectation, or add the term to its result."
    )


def _cost_outside(*_: Any, **__: Any) -> Any:
    raise cost_outside()


cost_p.def_impl(_cost_outside)
mlir.register_lowering(cost_p, _cost_outside)
cost_p.def_abstract_eval(lambda aval, *, where: aval)


def _batch_cost(args: Sequence[Any], dims: Sequence[Any], *, where: str) -> Any:
    # Under vmap a cond evaluates both of its branches: whose cost this is cannot be told.
    raise NotImplementedError(
        f"gradest.cost: a cost{where} is under jax.vmap inside a loss, where it cannot be told "
        "whether a branch that holds it is taken. Vmap the expectation of a per-lane loss, "
        "jax.vmap(gradest.expectation(per_lane_loss)), or return the costs from the vmapped "
        "function and give gradest.cost the whole array."
    )


batching.primitive_batchers[cost_p] = _batch_cost


def _differentiate_cost(*_: Any, where: str) -> Any:
    raise NotImplementedError(
        f"gradest.cost: a cost{where} is inside a function that the loss itself differentiates. "
        "Give the costs to gradest.cost outside of that jax.grad, or jax.jvp; auxiliary output "
        "(has_aux=True) takes them there."
    )


ad.primitive_jvps[cost_p] = _differentiate_cost


# A primitive and no custom_jvp function, whose rule is forgotten by a scan that is differentiated
# twice, and whose constant result a staged vmap cannot batch.
magic_p = core.Primitive("gradest_magic")
magic_p.def_impl(jnp.ones_like)
magic_p.def_abstract_eval(lambda aval: aval)
mlir.register_lowering(magic_p, mlir.lower_fun(jnp.ones_like, multiple_results=False))
ad.defjvp(magic_p, lambda tangent, log_prob: tangent * magic_p.bind(log_prob))
batching.defvectorized(magic_p)


# The draw that is its first operand, whose derivative in the other ones, the leaves of a tree, is
# `rule(draw, tree, tangents)`. A primitive for the same reason.
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
    return implicit_p.bind(*_lanes_first(args, dims), **params), 0


ad.primitive_jvps[implicit_p] = _differentiate_implicit
batching.primitive_batchers[implicit_p] = _batch_implicit

# Its operand, `what` a derivative depends on and that has no derivative itself.
once_p = core.Primitive("gradest_once")
once_p.def_impl(lambda x, *, what: x)
once_p.def_abstract_eval(lambda x, *, what: x)
mlir.register_lowering(once_p, lambda ctx, x, *, what: [x])
batching.defvectorized(once_p)


def _differentiate_once(*_: Any, what: str) -> Any:
    raise NotImplementedError(
        f"{what} was differentiated twice with respect to it: the derivative of an implicitly "
        "reparameterized draw is known to first order only. Use score_function, whose "
        "derivatives of every order are right."
    )


ad.primitive_jvps[once_p] = _differentiate_once

# Its operand, whose elements `count_evaluations` counts in the program; its derivative has none.
evaluation_p = core.Primitive("gradest_evaluation")
evaluation_p.def_impl(lambda x: x)
evaluation_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(evaluation_p, lambda ctx, x: [x])
batching.defvectorized(evaluation_p)
ad.defjvp(evaluation_p, lambda tangent, x: tangent)


def count_evaluations(jaxpr: core.Jaxpr) -> int | None:
    """How many scalars `evaluation_p` meets when the program runs; None if that depends on data."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive is evaluation_p:
            total += math.prod(eqn.outvars[0].aval.shape)  # pyright: ignore
            continue
        counts = [count_evaluations(inner) for inner in subjaxprs(eqn)]
        if not any(count != 0 for count in counts):
            continue
        if None in counts or eqn.primitive.name == "while":
            return None
        if eqn.primitive.name == "cond":
            if len(set(counts)) > 1:
                return None
            counts = counts[:1]
        scan = as_scan(eqn)
        total += sum(filter(None, counts)) * (1 if scan is None else scan.length)
    return total


def _jaxprs(value: Any) -> Iterable[core.Jaxpr]:
    """The jaxprs among an equation's parameters, open and closed, in tuples or not."""
    if isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)


def subjaxprs(eqn: Any) -> Iterable[core.Jaxpr]:
    for value in eqn.params.values():
        yield from _jaxprs(value)


def marks_in(eqn: Any) -> Iterable[Any]:
    """The equations in `eqn`, at any depth, that draw or add a cost."""
    if eqn.primitive in (sample_p, cost_p):
        yield eqn
    for jaxpr in subjaxprs(eqn):
        for inner in jaxpr.eqns:
            yield from marks_in(inner)


def holds_cost(eqn: Any) -> bool:
    return any(mark.primitive is cost_p for mark in marks_in(eqn))


# jax.random's discrete families that are calls of their own in a jaxpr.
_DISCRETE_CALLS = {"_bernoulli": "bernoulli", "_poisson": "poisson", "_geometric": "geometric"}


def raw_draw(eqn: Any, defined_by: dict[Any, Any]) -> str | None:
    """The name of the jax.random draw of a discrete variable that `eqn` is, if it is one.

    Calls of its own are told by name, `categorical` as the argmax (without replacement: top_k) of
    a sum with Gumbel noise and `binomial` as a loop that was written in it.

    Args:
      eqn: an equation.
      defined_by: the equation that defines each variable of the jaxpr.
    """
    kind, name = eqn.primitive.name, eqn.params.get("name")
    if kind in ("jit", "pjit"):
        return _DISCRETE_CALLS.get(name)
    if kind in ("argmax", "top_k"):
        for noisy in filter(None, map(defined_by.get, variables(eqn))):
            terms = filter(None, map(defined_by.get, variables(noisy)))
            if noisy.primitive.name == "add" and any(
                term.params.get("name") == "_gumbel" for term in terms
            ):
                return "categorical"
    if kind == "while" and any(f.function_name in _BINOMIAL for f in _frames(eqn)):
        return "binomial"
    return None


_BINOMIAL = ("binomial", "_binomial")


def _frames(eqn: Any) -> Iterable[Any]:
    return getattr(getattr(eqn.source_info, "traceback", None), "frames", None) or ()


def line_of(eqn: Any) -> str:
    """Where in the user's code `eqn` was written, as ' (at file:line)', or nothing."""
    for frame in _frames(eqn):
        if not frame.file_name.startswith(_LIBRARIES):
            return f" (at {frame.file_name}:{frame.line_num})"
    return ""


# Calls that run one jaxpr on their operands, under the names that JAX gave them over time.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def called(eqn: Any) -> core.ClosedJaxpr | None:
    """The jaxpr that `eqn` runs once on its operands, or None for any other construct."""
    name = _CALLS.get(eqn.primitive.name)
    return None if name is None else _closed(eqn.params[name])


def has_rule(eqn: Any) -> bool:
    """Whether `eqn` runs a function of the user's that has a derivative rule of its own.

    The one around each draw, which refuses the derivative, is gradest's.
    """
    if not eqn.primitive.name.startswith("custom_"):
        return False
    closed = called(eqn)
    return closed is None or all(inner.primitive is not sample_p for inner in closed.jaxpr.eqns)


def rerun(eqn: Any) -> Callable[..., Any] | None:
    """The transformation under which `eqn` runs its jaxpr, if it is a `jax.checkpoint`."""
    if eqn.primitive.name not in ("remat2", "checkpoint"):
        return None
    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return functools.partial(jax.checkpoint, **options)


# Those that mix the lanes of a named axis, under the names that JAX gave them over time.
_COLLECTIVES = {
    *("psum", "psum2", "psum_invariant", "pmax", "pmin", "ppermute", "all_to_all"),
    *("all_gather", "all_gather_invariant", "reduce_scatter"),
}


def collective_in(eqn: Any) -> Any | None:
    """An equation in `eqn`, at any depth, that mixes the lanes of a named axis, if there is one."""
    if eqn.primitive.name in _COLLECTIVES:
        axes = eqn.params.get("axes", eqn.params.get("axis_name"))
        if any(isinstance(axis, str) for axis in (axes if isinstance(axes, tuple) else (axes,))):
            return eqn
    inner = (collective_in(e) for jaxpr in subjaxprs(eqn) for e in jaxpr.eqns)
    return next(filter(None, inner), None)


def branches(eqn: Any) -> list[core.ClosedJaxpr] | None:
    """The branches of a cond or switch, whose first operand is the index, or None."""
    if eqn.primitive.name != "cond":
        return None
    return [_closed(branch) for branch in eqn.params["branches"]]


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan: its body maps (constants, carry, a slice of xs) to (carry, a slice of ys)."""

    body: core.ClosedJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


def as_scan(eqn: Any) -> Scan | None:
    """The scan that `eqn` is, or None."""
    if eqn.primitive.name != "scan":
        return None
    params = eqn.params
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # From jax 0.12 on.
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    body = _closed(params["jaxpr"])
    return Scan(body, num_consts, num_carry, params["length"], params["reverse"], params["unroll"])


@dataclasses.dataclass(frozen=True)
class While:
    """A while: (constants of the condition, constants of the body, carry) to the carry."""

    condition: core.ClosedJaxpr
    body: core.ClosedJaxpr
    num_condition_consts: int
    num_consts: int


def as_while(eqn: Any) -> While | None:
    """The while that `eqn` is, or None."""
    if eqn.primitive.name != "while":
        return None
    params = eqn.params
    return While(
        _closed(params["cond_jaxpr"]),
        _closed(params["body_jaxpr"]),
        params["cond_nconsts"],
        params["body_nconsts"],
    )


def _closed(jaxpr: Any) -> core.ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())


def user_line() -> str:
    """Where in the user's code we are, as ' (at file:line)', or nothing."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES):
            return f" (at {file}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


_LIBRARIES = tuple(os.path.dirname(file) + os.sep for file in (jax.__file__, __file__))


def open_jaxpr(closed: core.ClosedJaxpr) -> tuple[core.Jaxpr, list[Any]]:
    """The jaxpr with its constants as its first inputs, and their values."""
    jaxpr = closed.jaxpr
    invars = [*jaxpr.constvars, *jaxpr.invars]
    return jaxpr.replace(constvars=[], invars=invars), list(closed.consts)


def needed(jaxpr: core.Jaxpr, outputs: Iterable[Any]) -> tuple[list[Any], set[Any]]:
    """The equations and the variables of `jaxpr` on which some of its variables depend."""
    variables_needed, eqns = set(filter(is_var, outputs)), []
    for eqn in reversed(jaxpr.eqns):
        if not variables_needed.isdisjoint(eqn.outvars):
            variables_needed.update(variables(eqn))
            eqns.insert(0, eqn)
    return eqns, variables_needed


def depends(function: Callable[..., Any], *args: Any) -> bool:
    """Whether the result of `function` depends on its arguments at all."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return not needed(jaxpr, jaxpr.outvars)[1].isdisjoint(jaxpr.invars)


def variables(eqn: Any) -> list[Any]:
    """The operands of `eqn` that are not literals."""
    return [v for v in eqn.invars if is_var(v)]


def is_var(atom: Any) -> bool:
    return atom is not None and not isinstance(atom, core.Literal)
