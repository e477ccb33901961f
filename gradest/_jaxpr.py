"""gradest's primitives, and all that depends on JAX's version.

A cost-based draw is one equation of `sample_p` in the staged program, `gradest.cost` one of
`cost_p`; `magic_p` passes on the derivative of a log-probability, `implicit_p` that of a draw that
keeps its quantile; `evaluation_p` marks what is to be counted. What other constructs of a jaxpr
mean is read here, and nowhere else.
"""

import dataclasses
import functools
import itertools
import operator
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
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


# jax.random's discrete families that are calls of their own in a jaxpr.
_DISCRETE_CALLS = {
    f"_{name}": f"jax.random.{name}" for name in ("bernoulli", "poisson", "geometric")
}


def raw_draw(eqn: Any, defined_by: dict[Any, Any]) -> str | None:
    """The name of the discrete draw without an estimator that `eqn` is, if it is one.

    Calls of its own are told by name, `categorical` as the argmax (without replacement: top_k) of
    a sum with Gumbel noise and `binomial` as a loop that was written in it. Integer draws of
    gradest's distributions bear a mark.

    Args:
      eqn: an equation.
      defined_by: the equation that defines each variable of the jaxpr.
    """
    kind, name = eqn.primitive.name, eqn.params.get("name")
    if kind == "gradest_drawn":
        return name
    if kind in ("jit", "pjit"):
        return _DISCRETE_CALLS.get(name) if is_of_jax(eqn.params["jaxpr"]) else None
    if kind in ("argmax", "top_k"):
        for noisy in filter(None, map(defined_by.get, variables(eqn))):
            terms = filter(None, map(defined_by.get, variables(noisy)))
            if noisy.primitive.name == "add" and any(
                term.params.get("name") == "_gumbel" for term in terms
            ):
                return "jax.random.categorical"
    of_jax = (f for f in _frames(eqn) if f.file_name.startswith(_JAX))
    if kind == "while" and any(f.function_name in _BINOMIAL for f in of_jax):
        return "jax.random.binomial"
    return None


def is_of_jax(jaxpr: Any) -> bool:
    """Whether a function of JAX's or gradest's was staged, and not a user's of the same name."""
    return file_of(jaxpr).startswith(_LIBRARIES)


def file_of(jaxpr: Any) -> str:
    """Of the function that was staged; empty if it is not known."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return getattr(info, "func_filename", None) or ""


_BINOMIAL = ("binomial", "_binomial")
_JAX = os.path.dirname(jax.__file__) + os.sep
_RANDOM = os.path.join(_JAX, "_src", "random")  # a module, or from jax 0.12 on a package

# Continuous draws that others are made of, with the ends of what they may be.
_NOISE = {
    "_uniform": "between its operands",
    **dict.fromkeys(["_normal", "_normal_real", "_gumbel", "_logistic", "_laplace"], "any"),
    **dict.fromkeys(["_cauchy", "gradest_implicit"], "any"),
}


def noise(eqn: Any) -> str | None:
    """Where a continuous draw without an estimator may be, if `eqn` is one; else None.

    By jax.random, or by a distribution of gradest's where its derivative is implicit.
    """
    name = eqn.primitive.name
    if name == "random_gamma":
        return "any" if eqn.params["log_space"] else "positive"
    if name in ("jit", "pjit"):
        name = eqn.params["name"]
        return _NOISE.get(name) if name in _NOISE and is_of_jax(eqn.params["jaxpr"]) else None
    return _NOISE.get(name)


def draws_with_key(eqn: Any) -> bool:
    """Whether `eqn` is a draw by jax.random, with its first operand."""
    if eqn.primitive.name not in ("jit", "pjit") or not eqn.invars:
        return False
    is_key = lambda atom: jnp.issubdtype(atom.aval.dtype, jax.dtypes.prng_key)
    by_jax = file_of(eqn.params["jaxpr"]).startswith(_RANDOM) and is_key(eqn.invars[0])
    return by_jax and not any(map(is_key, eqn.outvars))


def is_estimators(eqns: Iterable[Any]) -> bool:
    """Whether an equation was written by an estimator, gradest's or a user's, not in the loss.

    Where a user draws from a distribution it stands in the loss.

    Args:
      eqns: the equation, and the calls, branches and loops that it is in, from the innermost out.
    """
    of_user = False
    in_loss = lambda eqn: itertools.takewhile(lambda file: file != _STAGING, files_of(eqn))
    for file in itertools.chain.from_iterable(map(in_loss, eqns)):
        if not is_library_file(file):
            of_user = True
        elif file.startswith(_OWN) and not file.startswith(_SAMPLING):
            return not of_user or file == _SAMPLER  # which calls a user's estimator, but no cost
    return False


def _frames(eqn: Any) -> Iterable[Any]:
    return getattr(getattr(eqn.source_info, "traceback", None), "frames", None) or ()


def is_jax_or_own_file(file: str) -> bool:
    """Whether a file is one of JAX's or gradest's."""
    return file.startswith(_LIBRARIES)


def line_of(eqn: Any, is_skipped: Callable[[str], bool] = is_jax_or_own_file) -> str:
    """Where in the user's code `eqn` was written, as ' (at file:line)', or nothing."""
    for frame in _frames(eqn):
        if not is_skipped(frame.file_name):
            return f" (at {frame.file_name}:{frame.line_num})"
    return ""


def is_own(eqn: Any) -> bool:
    """Whether `eqn` was written by gradest or in drawing from a distribution, of anybody's."""
    files = [f.file_name for f in _frames(eqn) if not f.file_name.startswith(_JAX)]
    # What an expectation stages is called by it, but its own.
    written = itertools.takewhile(lambda file: file != _STAGING, files)
    # Those that are written here, by `stop_equation`, stand in a loss as if it had them.
    first = (file for file in files[:1] if file != __file__)
    return not _DRAWING.isdisjoint(written) or any(file.startswith(_OWN) for file in first)


def files_of(eqn: Any) -> Iterable[str]:
    """The files from which `eqn` was written, from the innermost function out to what is staged."""
    # Older versions of JAX add who had it staged, which may have been for another call.
    is_within = lambda frame: not frame.function_name.startswith("trace_to_jaxpr")
    return (frame.file_name for frame in itertools.takewhile(is_within, _frames(eqn)))


def is_library_file(file: str) -> bool:
    """Whether a file is none of the user's own."""
    return file.startswith(_LIBRARIES) or "site-packages" in file


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


def user_line() -> str:
    """Where in the user's code we are, as ' (at file:line)', or nothing."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES):
            return f" (at {file}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


def is_tracing() -> bool:
    """Whether we are in a transformation: whether anything may be a tracer."""
    name = "get_opaque_trace_state"
    # It has moved from one of JAX's modules to the other.
    state = getattr(core, name) if hasattr(core, name) else getattr(jax.core, name)
    with jax.core.eval_context():
        outside = state()
    return state() != outside


_OWN = os.path.dirname(__file__) + os.sep
_STAGING = os.path.join(_OWN, "_transform", "expectation.py")
_SAMPLER = os.path.join(_OWN, "_sampler.py")
# Where it is drawn from a distribution, whoever asks for it.
_SAMPLING = tuple(
    os.path.join(_OWN, part)
    for part in ("distributions" + os.sep, "_derivatives" + os.sep, "_random.py", "_calls.py")
)
_DRAWING = {os.path.join(_OWN, "distributions", f"{name}.py") for name in ("base", "_joint")}
_LIBRARIES = (_JAX, _OWN)


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
