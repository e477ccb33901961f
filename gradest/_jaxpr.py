"""The primitives that mark a program's draws and costs, and all that depends on JAX's version.

A cost-based draw is one equation of `sample_p` in the staged program, `gradest.cost` one of
`cost_p`. `Program` cuts a jaxpr at such equations: it evaluates what lies between two of them
as a jaxpr of its own, never equation by equation, since the protocol for binding a single
equation changes between JAX's releases.
"""

import abc
import dataclasses
import functools
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


def live_marks(eqn: Any, used: Sequence[bool]) -> list[Any]:
    """Those of them on which a cost, or a result of `eqn` that is `used`, depends."""
    if (programs := _programs(eqn, used)) is None:
        return list(marks_in(eqn))
    return [mark for program in programs for mark in program.marks()]


def _programs(eqn: Any, used: Sequence[bool]) -> "list[Program] | None":
    """The programs that `eqn` runs, if it is a construct that is known here."""
    if (jaxpr := called(eqn)) is not None:
        return [Program.of(jaxpr.jaxpr, used)]
    if (jaxprs := branches(eqn)) is not None:
        return [Program.of(jaxpr.jaxpr, used) for jaxpr in jaxprs]
    if (scan := as_scan(eqn)) is not None:
        return [Program.of(scan.body.jaxpr, scan.used(used))]
    if (loop := as_while(eqn)) is not None:
        condition = Program.of(loop.condition.jaxpr, [True])
        return [condition, Program.of(loop.body.jaxpr, loop.used(used))]
    return None


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

    def used(self, used: Sequence[bool]) -> list[bool]:
        """Which outputs of the body matter, given which of the scan's results do."""
        return _used_in_body(self.body.jaxpr, self.num_consts, self.num_carry, used)


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

    def used(self, used: Sequence[bool]) -> list[bool]:
        """Which outputs of the body matter, given which of the loop's results do."""
        tested = Program.of(self.condition.jaxpr, [True]).used_inputs()[self.num_condition_consts :]
        used = [u or t for u, t in zip(used, tested, strict=True)]
        return _used_in_body(self.body.jaxpr, self.num_consts, len(used), used)


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


def _used_in_body(
    jaxpr: core.Jaxpr, num_consts: int, num_carry: int, used: Sequence[bool]
) -> list[bool]:
    """What is used of a loop body's outputs: a carry also is if a later step needs it."""
    used = list(used)
    while True:
        inputs = Program.of(jaxpr, used).used_inputs()
        carried = inputs[num_consts : num_consts + num_carry]
        grown = [u or c for u, c in zip(used, carried, strict=False)] + used[num_carry:]
        if grown == used:
            return used
        used = grown


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
      last_use: for each variable that is used, the position of the last equation that uses it;
        that of an output is past the last equation.
    """

    jaxpr: core.Jaxpr
    outputs: list[Any]
    live: list[bool]
    last_use: dict[Any, int]

    @staticmethod
    def of(jaxpr: core.Jaxpr, used: Sequence[bool]) -> "Program":
        """`used` tells which of the jaxpr's outputs are wanted."""
        outputs = [v if u else None for v, u in zip(jaxpr.outvars, used, strict=True)]
        last_use = {v: len(jaxpr.eqns) for v in outputs if _is_var(v)}
        live = [False] * len(jaxpr.eqns)
        for i in reversed(range(len(jaxpr.eqns))):
            eqn = jaxpr.eqns[i]
            if eqn.effects or holds_cost(eqn) or not last_use.keys().isdisjoint(eqn.outvars):
                live[i] = True
                for v in variables(eqn):
                    last_use.setdefault(v, i)
        return Program(jaxpr, outputs, live, last_use)

    @functools.cached_property
    def raw(self) -> dict[int, str]:
        """The names of the draws by jax.random of a discrete variable, by position.

        Of those that the outputs, or a draw or a cost, depend on in another way than through a
        stop_gradient, which says that no derivative is expected.
        """
        followed = {v for v in self.outputs if _is_var(v)}
        for eqn in reversed(self.jaxpr.eqns):
            if eqn.primitive.name == "stop_gradient":
                continue
            if any(marks_in(eqn)) or not followed.isdisjoint(eqn.outvars):
                followed.update(variables(eqn))
        eqns = self.jaxpr.eqns
        return {i: n for i, n in _raw_draws(self.jaxpr) if not followed.isdisjoint(eqns[i].outvars)}

    @functools.cached_property
    def stops(self) -> list[int]:
        """Positions of the live equations that hold a draw, by jax.random or not, or a cost."""
        holds = lambda i, eqn: i in self.raw or any(marks_in(eqn)) or _holds_raw_draw(eqn)
        return [i for i, eqn in enumerate(self.jaxpr.eqns) if self.live[i] and holds(i, eqn)]

    def marks(self) -> list[Any]:
        """The equations, at any depth, that draw or add a cost and are live."""
        eqns = ((i, eqn) for i, eqn in enumerate(self.jaxpr.eqns) if self.live[i])
        return [mark for i, eqn in eqns if any(marks_in(eqn)) for mark in self.marks_at(i)]

    def marks_at(self, position: int) -> list[Any]:
        """Those in the equation at `position`."""
        return live_marks(self.jaxpr.eqns[position], self.used(position))

    def used(self, position: int) -> list[bool]:
        """Which results of the equation at `position` the rest of the program uses."""
        return [v in self.last_use for v in self.jaxpr.eqns[position].outvars]

    def used_inputs(self) -> list[bool]:
        """Which of the jaxpr's inputs the wanted outputs depend on."""
        return [v in self.last_use for v in self.jaxpr.invars]

    def run(self, start: int, stop: int, env: Env) -> Env:
        """Evaluates the equations from `start` up to `stop`; returns what is needed from there."""
        needed = lambda v: self.last_use.get(v, -1) >= stop
        kept = {v: x for v, x in env.items() if needed(v)}
        eqns = [self.jaxpr.eqns[i] for i in range(start, stop) if self.live[i]]
        if not eqns:
            return kept
        produced = dict.fromkeys(v for eqn in eqns for v in eqn.outvars)
        outvars = [v for v in produced if needed(v)]
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


def _holds_raw_draw(eqn: Any) -> bool:
    """Whether `eqn` is a construct that is known here and holds a draw by jax.random.

    What has a derivative of its own is taken at its word.
    """
    if eqn.primitive.name.startswith("custom_"):
        return False
    if not (called(eqn) or branches(eqn) or as_scan(eqn) or as_while(eqn)):
        return False
    return any(
        any(_raw_draws(jaxpr)) or any(map(_holds_raw_draw, jaxpr.eqns)) for jaxpr in subjaxprs(eqn)
    )


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
