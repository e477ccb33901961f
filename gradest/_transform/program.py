"""Programs: jaxprs, cut at the equations that hold a draw or a cost.

What lies between two of them is evaluated as a jaxpr of its own, never equation by equation,
since the protocol for binding a single equation changes between JAX's releases.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend import core

from .._jaxpr import (
    Scan,
    While,
    as_scan,
    as_while,
    branches,
    called,
    collective_in,
    has_rule,
    is_var,
    needed,
    raw_draw,
    subjaxprs,
    variables,
)
from .._marks import cost_p, sample_p

Env = dict[Any, Any]


def marks_in(eqn: Any) -> Iterable[Any]:
    """The equations in `eqn`, at any depth, that draw or add a cost."""
    if eqn.primitive in (sample_p, cost_p):
        yield eqn
    for jaxpr in subjaxprs(eqn):
        for inner in jaxpr.eqns:
            yield from marks_in(inner)


def holds_cost(eqn: Any) -> bool:
    return any(mark.primitive is cost_p for mark in marks_in(eqn))


def read(env: Env, atom: Any) -> Any:
    """The value of a variable or a literal; None for an output that is not wanted."""
    return None if atom is None else atom.val if isinstance(atom, core.Literal) else env[atom]


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
        last_use = {v: len(jaxpr.eqns) for v in outputs if is_var(v)}
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
        followed = {v for v in self.outputs if is_var(v)}
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

    def collectives(self) -> Iterable[Any]:
        """The equations that mix the lanes of a named axis, between a draw and what it costs."""
        costs = [eqn for eqn in self.jaxpr.eqns if holds_cost(eqn)]
        ends = [*self.outputs, *(v for eqn in costs for v in (*variables(eqn), *eqn.outvars))]
        drawn: set[Any] = set()
        for eqn in needed(self.jaxpr, ends)[0]:
            draws = any(mark.primitive is sample_p for mark in marks_in(eqn))
            if draws or not drawn.isdisjoint(variables(eqn)):
                drawn.update(eqn.outvars)
                if (collective := collective_in(eqn)) is not None:
                    yield collective

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
        later = lambda v: self.last_use.get(v, -1) >= stop
        kept = {v: x for v, x in env.items() if later(v)}
        eqns = [self.jaxpr.eqns[i] for i in range(start, stop) if self.live[i]]
        if not eqns:
            return kept
        produced = dict.fromkeys(v for eqn in eqns for v in eqn.outvars)
        outvars = [v for v in produced if later(v)]
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
    if has_rule(eqn):
        return False
    if not (called(eqn) or branches(eqn) or as_scan(eqn) or as_while(eqn)):
        return False
    return any(
        any(_raw_draws(jaxpr)) or any(map(_holds_raw_draw, jaxpr.eqns)) for jaxpr in subjaxprs(eqn)
    )


def live_marks(eqn: Any, used: Sequence[bool]) -> list[Any]:
    """The draws and costs in `eqn` on which a cost, or a result that is `used`, depends."""
    if (programs := _programs(eqn, used)) is None:
        return list(marks_in(eqn))
    return [mark for program in programs for mark in program.marks()]


def _programs(eqn: Any, used: Sequence[bool]) -> list[Program] | None:
    """The programs that `eqn` runs, if it is a construct that is known here."""
    if (jaxpr := called(eqn)) is not None:
        return [Program.of(jaxpr.jaxpr, used)]
    if (jaxprs := branches(eqn)) is not None:
        return [Program.of(jaxpr.jaxpr, used) for jaxpr in jaxprs]
    if (scan := as_scan(eqn)) is not None:
        return [Program.of(scan.body.jaxpr, used_in_scan(scan, used))]
    if (loop := as_while(eqn)) is not None:
        condition = Program.of(loop.condition.jaxpr, [True])
        return [condition, Program.of(loop.body.jaxpr, used_in_while(loop, used))]
    return None


def used_in_scan(scan: Scan, used: Sequence[bool]) -> list[bool]:
    """Which outputs of the body matter, given which of the scan's results do."""
    return _used_in_body(scan.body.jaxpr, scan.num_consts, scan.num_carry, used)


def used_in_while(loop: While, used: Sequence[bool]) -> list[bool]:
    """Which outputs of the body matter, given which of the loop's results do."""
    tested = Program.of(loop.condition.jaxpr, [True]).used_inputs()[loop.num_condition_consts :]
    used = [u or t for u, t in zip(used, tested, strict=True)]
    return _used_in_body(loop.body.jaxpr, loop.num_consts, len(used), used)


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


def without_costs(jaxpr: core.Jaxpr, used: Sequence[bool]) -> Callable[..., list[Any]]:
    """The wanted outputs of `jaxpr` as a function of its inputs.

    Costs are left out, and so are effects on which no wanted output depends: those have taken
    place where the program was evaluated for its value.
    """
    outvars = [v for v, u in zip(jaxpr.outvars, used, strict=True) if u]
    stripped = _strip(jaxpr.replace(outvars=outvars, eqns=needed(jaxpr, outvars)[0]))
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
