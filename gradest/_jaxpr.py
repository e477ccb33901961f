"""The constructs of a jaxpr, whose names and parameters depend on JAX's version.

What a call, a branch or a loop of JAX's means is read here.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
from jax.extend import core


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


def with_jaxprs(eqn: Any, change: Callable[[core.Jaxpr], core.Jaxpr]) -> Any:
    """`eqn` with others in the place of its jaxprs; itself, if they are the same ones."""

    def changed(value: Any) -> Any:
        if isinstance(value, core.Jaxpr):
            return change(value)
        if isinstance(value, core.ClosedJaxpr):
            jaxpr = change(value.jaxpr)
            return value if jaxpr is value.jaxpr else core.ClosedJaxpr(jaxpr, value.consts)
        if isinstance(value, (tuple, list)) and next(iter(_jaxprs(value)), None) is not None:
            items = type(value)(map(changed, value))
            return value if all(map(operator.is_, items, value)) else items
        return value

    params = {name: changed(value) for name, value in eqn.params.items()}
    same = all(params[name] is value for name, value in eqn.params.items())
    return eqn if same else eqn.replace(params=params)


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
    """Whether `eqn` runs a function of the user's that has a derivative rule of its own."""
    return eqn.primitive.name.startswith("custom_")


def is_understood(eqn: Any) -> bool:
    """Whether `eqn` is a call, a branch or a loop that is known here."""
    return eqn.primitive.name in (*_CALLS, "cond", "scan", "while")


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


def ordered_effects(jaxpr: core.Jaxpr) -> Iterable[Any]:
    """The equations, at any depth, whose effects take place in order."""
    for eqn in jaxpr.eqns:
        if any("Ordered" in type(effect).__name__ for effect in eqn.effects):
            inner = [e for part in subjaxprs(eqn) for e in ordered_effects(part)]
            yield from inner or [eqn]


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


def is_tracing() -> bool:
    """Whether we are in a transformation: whether anything may be a tracer."""
    name = "get_opaque_trace_state"
    # It has moved from one of JAX's modules to the other.
    state = getattr(core, name) if hasattr(core, name) else getattr(jax.core, name)
    with jax.core.eval_context():
        outside = state()
    return state() != outside


def open_jaxpr(closed: core.ClosedJaxpr) -> tuple[core.Jaxpr, list[Any]]:
    """The jaxpr with its constants as its first inputs, and their values."""
    jaxpr = closed.jaxpr
    invars = [*jaxpr.constvars, *jaxpr.invars]
    return jaxpr.replace(constvars=[], invars=invars), list(closed.consts)


def stop_equation(aval: Any) -> Any:
    """An equation that stops the gradient of a value, of variables of its own."""
    shape = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    return jax.make_jaxpr(jax.lax.stop_gradient)(shape).jaxpr.eqns[0]


def needed(jaxpr: core.Jaxpr, outputs: Iterable[Any]) -> tuple[list[Any], set[Any]]:
    """The equations and the variables of `jaxpr` on which some of its variables depend."""
    variables_needed, eqns = set(filter(is_var, outputs)), []
    for eqn in reversed(jaxpr.eqns):
        if not variables_needed.isdisjoint(eqn.outvars):
            variables_needed.update(variables(eqn))
            eqns.insert(0, eqn)
    return eqns, variables_needed


def dependence(jaxpr: core.Jaxpr) -> list[frozenset[int]]:
    """For each output of `jaxpr` the numbers of the inputs on which it depends."""
    of: dict[Any, frozenset[int]] = {v: frozenset([i]) for i, v in enumerate(jaxpr.invars)}
    nothing: frozenset[int] = frozenset()
    look = lambda atom: of.get(atom, nothing) if is_var(atom) else nothing
    for eqn in jaxpr.eqns:
        operands = list(map(look, eqn.invars))
        inner = called(eqn)
        if inner is None:
            results = [nothing.union(*operands)] * len(eqn.outvars)
        else:
            inside = dependence(inner.jaxpr)
            results = [nothing.union(*(operands[i] for i in inputs)) for inputs in inside]
        of.update(zip(eqn.outvars, results, strict=True))
    return list(map(look, jaxpr.outvars))


def variables(eqn: Any) -> list[Any]:
    """The operands of `eqn` that are not literals."""
    return [v for v in eqn.invars if is_var(v)]


def is_var(atom: Any) -> bool:
    return atom is not None and not isinstance(atom, core.Literal)
