"""Programs: what a jaxpr is read into.

A node is a draw, a cost, a construct that holds some, or a run of equations that holds none and is
evaluated as a jaxpr of its own, never equation by equation, since the protocol for binding a single
equation changes between JAX's releases. CONTRIBUTING.md tells how to add a construct.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from .. import _jaxpr, _mesh
from .._cost import Mode
from .._derivatives.watch import Watcher
from .._jaxpr import variables
from .._jumps import Complaint
from .._mesh import varying_axes
from .._sampler import Site
from .._transparent import without_stops

Env = dict[Any, Any]


# ---- Nodes ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Equations without a draw or a cost, a jaxpr of their own."""

    jaxpr: core.Jaxpr

    @property
    def invars(self) -> list[Any]:
        return self.jaxpr.invars

    @property
    def outvars(self) -> list[Any]:
        return self.jaxpr.outvars

    def __call__(self, mode: Mode, *args: Any) -> list[Any]:
        return (self._smooth if mode.smooth else self._function)(*args)

    @functools.cached_property
    def _function(self) -> Callable[..., list[Any]]:
        return core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, ()))

    @functools.cached_property
    def _smooth(self) -> Callable[..., list[Any]]:
        # Nothing else than the relaxed draw is differentiated in that mode.
        closed = core.ClosedJaxpr(self.jaxpr, ())
        return core.jaxpr_as_fun(without_stops(closed, [True] * len(self.invars)))


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An equation that is no part of a run."""

    eqn: Any

    def operands(self, env: Env) -> list[Any]:
        return [read(env, v) for v in self.eqn.invars]

    def bound(self, outs: Sequence[Any]) -> Env:
        """The variables of its results, which are of the types that these had in the loss."""
        pairs = zip(self.eqn.outvars, outs, strict=True)
        return {v: x if x is None else _mesh.like(x, v.aval) for v, x in pairs}

    @property
    def programs(self) -> Sequence["Program"]:
        """Those that the equation runs."""
        return ()


@dataclasses.dataclass(frozen=True, eq=False)
class Draw(Node):
    """A draw by a cost-based sampler; credited, or else a plain one.

    Attributes:
      credited: whether it is.
      complaint: of what follows it, if there is one.
    """

    credited: bool
    complaint: Complaint | None = None

    @property
    def site(self) -> Site:
        return self.eqn.params["site"]

    @property
    def where(self) -> str:
        return self.site.where

    def needs_rest(self, mode: Mode) -> bool:
        """Whether it needs the rest of the program as a function, and not only its value."""
        held = self.site.held
        return self.credited and held.score is None and not (mode.relaxed and held.relaxed)


@dataclasses.dataclass(frozen=True, eq=False)
class Spend(Node):
    """A cost that the loss adds to itself, or that comes with a value; counted, or passed by."""

    counted: bool

    @property
    def where(self) -> str:
        return self.eqn.params["where"]


@dataclasses.dataclass(frozen=True, eq=False)
class RawDraw(Node):
    """A draw of a discrete variable by `jax.random`, which nothing estimates."""

    complaint: Watcher
    run: Run


@dataclasses.dataclass(frozen=True, eq=False)
class PathwiseDraw(Node):
    """A draw by a pathwise sampler, of what follows which there is a complaint."""

    complaint: Complaint


@dataclasses.dataclass(frozen=True, eq=False)
class Call(Node):
    """A program that is run once.

    Attributes:
      body: the program.
      rerun: the `jax.checkpoint` under which it is run, if it is.
      has_rule: whether it has a derivative rule of its own.
    """

    body: "Program"
    rerun: Callable[..., Any] | None
    has_rule: bool

    @property
    def programs(self) -> Sequence["Program"]:
        return (self.body,)


@dataclasses.dataclass(frozen=True, eq=False)
class Branch(Node):
    """A cond or switch, whose first operand is the index."""

    arms: Sequence["Program"]

    @property
    def programs(self) -> Sequence["Program"]:
        return self.arms


@dataclasses.dataclass(frozen=True, eq=False)
class Loop(Node):
    """A scan."""

    scan: _jaxpr.Scan
    body: "Program"

    @property
    def programs(self) -> Sequence["Program"]:
        return (self.body,)


@dataclasses.dataclass(frozen=True, eq=False)
class While(Node):
    """A while loop, in which no draw is credited."""

    loop: _jaxpr.While
    condition: "Program"
    body: "Program"

    @property
    def programs(self) -> Sequence["Program"]:
        return (self.condition, self.body)


@dataclasses.dataclass(frozen=True, eq=False)
class Opaque(Node):
    """A construct that is not understood, and holds a draw or a cost."""

    held: Draw | Spend


# ---- Programs ------------------------------------------------------------------------------


def read(env: Env, atom: Any) -> Any:
    """The value of a variable or a literal; None for one that is not wanted."""
    return atom.val if isinstance(atom, core.Literal) else env.get(atom)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A jaxpr, read.

    Attributes:
      jaxpr: what was read.
      consts: values of its constants.
      nodes: in order.
      later: for each node, the variables that are used after it.
      outputs: the jaxpr's outputs, None for each that is not wanted.
      input_uses: what becomes of each input.
    """

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    nodes: Sequence[Run | Node]
    later: Sequence[frozenset[Any]]
    outputs: Sequence[Any]
    input_uses: Sequence[int]

    def bind(self, *args: Any) -> Env:
        """The environment in which the jaxpr's inputs have the values `args`."""
        inputs = [*self.jaxpr.constvars, *self.jaxpr.invars]
        return dict(zip(inputs, [*self.consts, *args], strict=True))

    def results(self, env: Env) -> list[Any]:
        return [None if v is None else read(env, v) for v in self.outputs]

    @functools.cached_property
    def credited_draws(self) -> list[Draw]:
        """Those that are credited, at any depth."""
        return [mark for mark in self.marks if isinstance(mark, Draw) and mark.credited]

    @functools.cached_property
    def counted(self) -> list[Draw | Spend]:
        """The draws that are credited and the costs that are counted, at any depth."""
        return [m for m in self.marks if (m.credited if isinstance(m, Draw) else m.counted)]

    @functools.cached_property
    def marks(self) -> list[Draw | Spend]:
        """The draws and the costs at any depth, those that count for nothing too."""
        found = []
        for node in self.nodes:
            if isinstance(node, (Draw, Spend)):
                found.append(node)
            elif isinstance(node, Opaque):
                found.append(node.held)
            elif isinstance(node, Node):
                found.extend(mark for program in node.programs for mark in program.marks)
        return found

    @functools.cached_property
    def has_watched_draws(self) -> bool:
        """Whether there are draws, at any depth, that warn when they are differentiated."""
        nodes = [node for node in self.nodes if isinstance(node, Node)]
        watched = lambda node: any(program.has_watched_draws for program in node.programs)
        return any(isinstance(n, (RawDraw, PathwiseDraw)) or watched(n) for n in nodes)

    def needs_rest(self, mode: Mode) -> bool:
        return any(draw.needs_rest(mode) for draw in self.credited_draws)

    @functools.cached_property
    def keys(self) -> frozenset[Any]:
        """The variables that are PRNG keys."""
        inputs = [*self.jaxpr.constvars, *self.jaxpr.invars]
        return frozenset(v for v in [*inputs, *results_of(self.jaxpr.eqns)] if _is_key(v))

    def with_rules(self) -> Iterable[Draw]:
        """The draws in functions that have a derivative rule of their own."""
        for node in self.nodes:
            if isinstance(node, Call) and node.has_rule:
                yield from node.body.credited_draws
            elif isinstance(node, Node):
                for program in node.programs:
                    yield from program.with_rules()

    def collectives(self) -> Iterable[Any]:
        """The equations that mix the lanes of a named axis, between a draw and what it costs.

        Of a staged loss, whose first output is the loss.
        """
        held = {id(node.eqn): counted_in(node) for node in self.nodes if isinstance(node, Node)}
        marks = lambda eqn, kind: any(isinstance(m, kind) for m in held.get(id(eqn), ()))
        costs = [eqn for eqn in self.jaxpr.eqns if marks(eqn, Spend)]
        ends = [self.outputs[0], *(v for eqn in costs for v in (*variables(eqn), *eqn.outvars))]
        drawn: set[Any] = set()
        for eqn in _jaxpr.needed(self.jaxpr, ends)[0]:
            if marks(eqn, Draw) or not drawn.isdisjoint(variables(eqn)):
                drawn.update(eqn.outvars)
                if (collective := _jaxpr.collective_in(eqn)) is not None:
                    yield collective


def counted_in(node: Run | Node) -> list[Draw | Spend]:
    """The draws that are credited and the costs that are counted in `node`, at any depth."""
    match node:
        case Draw(credited=True) | Spend(counted=True):
            return [node]
        case Opaque():
            return [node.held]
        case Node():
            return [mark for program in node.programs for mark in program.counted]
    return []


def axes_of(nodes: Iterable[Run | Node]) -> frozenset[Any]:
    """The axes of a `jax.shard_map` along which the draws and the costs in `nodes` may differ."""
    axes: frozenset[Any] = frozenset()
    for node in nodes:
        if isinstance(node, Node) and counted_in(node):
            axes = axes.union(*(varying_axes(v.aval) for v in node.eqn.invars))
            axes = axes.union(*(axes_of(program.nodes) for program in node.programs))
    return axes


def needs_rest(node: Run | Node, mode: Mode) -> bool:
    """Whether a draw in `node` needs the rest of the program as a function."""
    if isinstance(node, Draw):
        return node.needs_rest(mode)
    return isinstance(node, Node) and any(program.needs_rest(mode) for program in node.programs)


def results_of(eqns: Iterable[Any]) -> dict[Any, None]:
    """The variables that the equations define, in order."""
    return dict.fromkeys(v for eqn in eqns for v in eqn.outvars)


def _is_key(v: Any) -> bool:
    return jnp.issubdtype(getattr(v.aval, "dtype", jnp.int32), jax.dtypes.prng_key)
