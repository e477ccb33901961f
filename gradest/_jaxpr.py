"""The primitives that mark a program's draws and costs, and all that depends on JAX's version.

A cost-based draw is one equation of `sample_p` in the staged program, `gradest.cost` one of
`cost_p`. `Program` cuts a jaxpr at such equations: it evaluates what lies between two of them
as a jaxpr of its own, never equation by equation, since the protocol for binding a single
equation changes between JAX's releases.
"""

import abc
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir

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


sample_p.def_impl(lambda *args, site: site.draw(*args))
mlir.register_lowering(
    sample_p, mlir.lower_fun(lambda *args, site: site.draw(*args), multiple_results=True)
)


@sample_p.def_abstract_eval
def _(*avals: Any, site: Site) -> list[Any]:
    out = jax.eval_shape(site.draw, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    return [jax.core.ShapedArray(o.shape, o.dtype) for o in out]


def _batch_sample(args: Sequence[Any], dims: Sequence[Any], *, site: Site) -> Any:
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    mapped = [d is not None for d in dims]
    moved = [
        jnp.moveaxis(a, d, 0) if d is not None else jnp.broadcast_to(a, (size, *a.shape))
        for a, d in zip(args, dims, strict=True)
    ]
    out = sample_p.bind(*moved, site=site.vmapped(not mapped[0], mapped[1:]))
    return out, [0] * len(out)


batching.primitive_batchers[sample_p] = _batch_sample


def _cost_outside(*_: Any, **__: Any) -> Any:
    raise RuntimeError(
        "gradest.cost: expected to run inside a loss under gradest.expectation, which collects "
        "the costs. Wrap the loss in gradest.expectation, or add the term to its result."
    )


cost_p.def_impl(_cost_outside)
mlir.register_lowering(cost_p, _cost_outside)
cost_p.def_abstract_eval(lambda aval, *, where: aval)


def _batch_cost(args: Sequence[Any], dims: Sequence[Any], *, where: str) -> Any:
    # Costs of a vmapped computation are summed by the transform, like any other.
    (c,), (d,) = args, dims
    return cost_p.bind(jnp.moveaxis(c, d, 0), where=where), 0


batching.primitive_batchers[cost_p] = _batch_cost


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

    Calls of its own are told by name, `categorical` as the argmax of a sum with Gumbel noise and
    `binomial` as a loop that was written in it.

    Args:
      eqn: an equation.
      defined_by: the equation that defines each variable of the jaxpr.
    """
    kind, name = eqn.primitive.name, eqn.params.get("name")
    if kind in ("jit", "pjit"):
        return _DISCRETE_CALLS.get(name)
    if kind == "argmax":
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


def branches(eqn: Any) -> list[core.ClosedJaxpr] | None:
    """The branches of a cond or switch, whose first operand is the index, or None."""
    if eqn.primitive.name != "cond":
        return None
    return [_closed(branch) for branch in eqn.params["branches"]]


@dataclasses.dataclass(frozen=True)
class Loop:
    """A scan: its body maps (constants, carry, a slice of xs) to (carry, a slice of ys)."""

    body: core.ClosedJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


def loop(eqn: Any) -> Loop | None:
    """The scan that `eqn` is, or None."""
    if eqn.primitive.name != "scan":
        return None
    params = eqn.params
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # From jax 0.12 on.
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    body = _closed(params["jaxpr"])
    return Loop(body, num_consts, num_carry, params["length"], params["reverse"], params["unroll"])


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


Env = dict[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A jaxpr, cut at the equations that hold a draw or a cost.

    Attributes:
      jaxpr: with constants among its inputs.
      outputs: its outputs, None for each that is not wanted.
      live: for each equation, whether the wanted outputs, a cost or an effect depend on it.
      stops: positions of the live equations that hold a draw or a cost, in order; and of those
        that hold a draw by jax.random of a discrete variable.
      raw: by position, the names of such draws.
    """

    jaxpr: core.Jaxpr
    outputs: list[Any]
    live: list[bool]
    stops: list[int]
    raw: dict[int, str]

    @staticmethod
    def of(jaxpr: core.Jaxpr, used: Sequence[bool]) -> "Program":
        """`used` tells which of the jaxpr's outputs are wanted."""
        outputs = [v if u else None for v, u in zip(jaxpr.outvars, used, strict=True)]
        wanted = {v for v in outputs if _is_var(v)}
        live = [False] * len(jaxpr.eqns)
        for i in reversed(range(len(jaxpr.eqns))):
            eqn = jaxpr.eqns[i]
            if eqn.effects or holds_cost(eqn) or not wanted.isdisjoint(eqn.outvars):
                live[i] = True
                wanted.update(variables(eqn))
        raw = {i: name for i, name in _raw_draws(jaxpr) if live[i]}
        stops = [
            i
            for i, eqn in enumerate(jaxpr.eqns)
            if live[i] and (i in raw or any(marks_in(eqn)) or _calls_raw_draw(eqn))
        ]
        return Program(jaxpr, outputs, live, stops, raw)

    def used(self, position: int) -> list[bool]:
        """Which results of the equation at `position` the rest of the program uses."""
        needed = self._needed_from(position + 1)
        return [v in needed for v in self.jaxpr.eqns[position].outvars]

    def used_inputs(self) -> list[bool]:
        """Which of the jaxpr's inputs the wanted outputs depend on."""
        needed = self._needed_from(0)
        return [v in needed for v in self.jaxpr.invars]

    def _needed_from(self, start: int) -> set[Any]:
        needed = {v for v in self.outputs if _is_var(v)}
        for eqn, live in zip(self.jaxpr.eqns[start:], self.live[start:], strict=True):
            if live:
                needed.update(variables(eqn))
        return needed

    def run(self, start: int, stop: int, env: Env) -> Env:
        """Evaluates the equations from `start` up to `stop`; returns what is needed from there."""
        needed = self._needed_from(stop)
        kept = {v: x for v, x in env.items() if v in needed}
        eqns = [self.jaxpr.eqns[i] for i in range(start, stop) if self.live[i]]
        if not eqns:
            return kept
        produced = dict.fromkeys(v for eqn in eqns for v in eqn.outvars)
        outvars = [v for v in produced if v in needed]
        invars = list(dict.fromkeys(v for eqn in eqns for v in variables(eqn) if v not in produced))
        segment = self.jaxpr.replace(constvars=[], invars=invars, outvars=outvars, eqns=eqns)
        results = core.jaxpr_as_fun(core.ClosedJaxpr(segment, ()))(*(env[v] for v in invars))
        return {**kept, **dict(zip(outvars, results, strict=True))}

    def bind(self, *args: Any) -> Env:
        """The environment in which the jaxpr's inputs have the values `args`."""
        return dict(zip(self.jaxpr.invars, args, strict=True))


def _raw_draws(jaxpr: core.Jaxpr) -> Iterable[tuple[int, str]]:
    defined_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    for i, eqn in enumerate(jaxpr.eqns):
        if (name := raw_draw(eqn, defined_by)) is not None:
            yield i, name


def _calls_raw_draw(eqn: Any) -> bool:
    """Whether `eqn` is a call, of a call, ..., that holds a draw by jax.random."""
    closed = called(eqn)
    if closed is None:
        return False
    return any(_raw_draws(closed.jaxpr)) or any(map(_calls_raw_draw, closed.jaxpr.eqns))


def open_jaxpr(closed: core.ClosedJaxpr) -> tuple[core.Jaxpr, list[Any]]:
    """The jaxpr with its constants as its first inputs, and their values."""
    jaxpr = closed.jaxpr
    invars = [*jaxpr.constvars, *jaxpr.invars]
    return jaxpr.replace(constvars=[], invars=invars), list(closed.consts)


def without_costs(jaxpr: core.Jaxpr, used: Sequence[bool]) -> Callable[..., list[Any]]:
    """The wanted outputs of `jaxpr` as a function of its inputs; costs are left out."""
    outvars = [v for v, u in zip(jaxpr.outvars, used, strict=True) if u]
    stripped = _strip(jaxpr.replace(outvars=outvars))
    return core.jaxpr_as_fun(core.ClosedJaxpr(stripped, ()))


def _strip(value: Any) -> Any:
    """An equation's parameter with the costs taken out of the jaxprs in it."""
    if isinstance(value, core.Jaxpr):
        return value.replace(eqns=[_strip_eqn(e) for e in value.eqns if e.primitive is not cost_p])
    if isinstance(value, core.ClosedJaxpr):
        return value.replace(jaxpr=_strip(value.jaxpr))
    if type(value) in (tuple, list):
        return type(value)(_strip(item) for item in value)
    return value


def _strip_eqn(eqn: Any) -> Any:
    if not holds_cost(eqn):
        return eqn
    return eqn.replace(params={name: _strip(value) for name, value in eqn.params.items()})


def read(env: Env, atom: Any) -> Any:
    """The value of a variable or a literal; None for an output that is not wanted."""
    return None if atom is None else atom.val if isinstance(atom, core.Literal) else env[atom]


def variables(eqn: Any) -> list[Any]:
    """The operands of `eqn` that are not literals."""
    return [v for v in eqn.invars if _is_var(v)]


def _is_var(atom: Any) -> bool:
    return atom is not None and not isinstance(atom, core.Literal)
