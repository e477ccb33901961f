"""The forward pass through straight-line code; `constructs` takes it through the rest."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from .. import _jax_random, _jaxpr, _written
from .._jaxpr import is_var
from .graph import Graph, Tracked, compares_within
from .noise import is_noise, noise
from .probe import Prober
from .rules import STEEP, STEPS, Flow, Operation, continuous, flow_of, folded
from .values import NONE, Draws, Inputs, Origin, Value, is_float, joined, only


@dataclasses.dataclass(frozen=True)
class Special:
    """What an equation of gradest's own primitives is to the analysis.

    Attributes:
      draw: the draw that begins here, if it is followed.
      ends: whether what its operands depend on arrives here, at a cost or at the parameters of a
        draw that is estimated.
      cost: whether it counts though nothing depends on its results.
      passes: whether its results depend on what its operands do: "all" draws, "transparent" ones
        only, or "none".
    """

    draw: Tracked | None
    ends: bool
    cost: bool
    passes: str
    own: int = 0


@dataclasses.dataclass
class Arrived:
    """What reaches the loss and the costs: draws and inputs with a derivative, kinks, and steps."""

    flow: Draws = 0
    inputs: Inputs = 0
    kinked: Draws = 0
    jumps: Mapping[Origin, Draws] = dataclasses.field(default_factory=lambda: NONE)


class Facts(NamedTuple):
    """Of a jaxpr and those in it.

    Attributes:
      size: the number of equations.
      specials: whether one is of gradest's own primitives.
      costs: whether one is a cost.
    """

    size: int = 0
    specials: bool = False
    costs: bool = False

    def joined(self, other: "Facts") -> "Facts":
        return Facts(
            self.size + other.size, self.specials or other.specials, self.costs or other.costs
        )


class Walk(Graph):
    """What the values of straight-line code depend on.

    Args:
      special: what an equation is, of gradest's own primitives; None for any other.
      follows_noise: whether draws by `jax.random` are followed too.

    Attributes:
      arrived: what has reached the loss and the costs.
      unseen: the draws for each place that could not be looked at and counts as a kink.
      quiet: above 0 where nothing is probed, in a function whose rule is taken at its word.
      again: above 0 where what was walked is walked again, for a probe.
      trusted: above 0 in a function whose comparisons are how it is computed.
    """

    def __init__(
        self,
        special: Callable[[Any], Special | None] = lambda eqn: None,
        *,
        follows_noise: bool = False,
    ):
        super().__init__()
        self.special, self.follows_noise = special, follows_noise
        self.arrived = Arrived()
        self.unseen: dict[Origin, Draws] = {}
        self.quiet = self.again = self.trusted = 0
        self.walked: dict[Any, Any] = {}
        self._prober = Prober(self)
        self._edges: set[Origin] = set()
        self._same: dict[Any, Value] = {}
        self._known: dict[Any, Any] = {}
        self._facts: dict[int, Facts] = {}

    def run(
        self, closed: core.ClosedJaxpr, ins: Sequence[Value], used: Sequence[bool] | None = None
    ) -> list[Any]:
        """The results of a jaxpr; None for each that is not used."""
        jaxpr = closed.jaxpr
        used = tuple(used) if used is not None else (True,) * len(jaxpr.outvars)
        env = {
            v: self.constant(x, v.aval) for v, x in zip(jaxpr.constvars, closed.consts, strict=True)
        }
        env.update(zip(jaxpr.invars, ins, strict=True))

        def read(atom: Any) -> Value:
            return env[atom] if is_var(atom) else self.constant(atom.val, atom.aval)

        for eqn, needed, operands, complains in self._live(jaxpr, used):
            outs = self._equation(eqn, [read(v) for v in operands], needed)
            if complains:
                for out in filter(None, outs):
                    out.jumps = only(out.jumps, ~self.noise)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) if u else None for v, u in zip(jaxpr.outvars, used, strict=True)]

    def _live(self, jaxpr: core.Jaxpr, used: tuple[bool, ...]) -> Sequence[Any]:
        """The equations on which a result or a cost depends, with what is needed of them.

        That is: which of their results, the operands, and whether the equation is a discrete draw
        by `jax.random`, which complains itself of what it makes of noise.
        """
        name = id(jaxpr), used
        if name not in self._known:
            wanted = {v for v, u in zip(jaxpr.outvars, used, strict=True) if u and is_var(v)}
            live = []
            defined_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
            for eqn in reversed(jaxpr.eqns):
                if not wanted.isdisjoint(eqn.outvars) or self.facts_of(eqn).costs:
                    special = self.special(eqn)
                    operands = eqn.invars[0 if special is None else special.own :]
                    complains = _jax_random.raw_draw(eqn, defined_by) is not None
                    live.append((eqn, tuple(v in wanted for v in eqn.outvars), operands, complains))
                    wanted.update(filter(is_var, operands))
            self._known[name] = live[::-1]
        return self._known[name]

    def _equation(self, eqn: Any, ins: list[Value], used: Sequence[bool]) -> list[Any]:
        if (special := self.special(eqn)) is not None:
            return self._at(special, eqn, ins)
        if self.follows_noise and is_noise(self, eqn):
            return noise(self, eqn, ins)
        if any(x.depends for x in ins) or self.facts_of(eqn).specials:
            outs = self.construct(eqn, ins, used)
            if outs is not None:
                return outs
            return [self._plain(eqn, ins, i) if u else None for i, u in enumerate(used)]
        return self.without_draws(eqn, ins)

    def construct(self, eqn: Any, ins: list[Value], used: Sequence[bool]) -> list[Any] | None:
        """The results of a call, a branch or a loop; None for any other equation."""
        raise NotImplementedError

    def without_draws(self, eqn: Any, ins: Sequence[Value]) -> list[Value]:
        """The results of an equation without a draw, which only a probe looks into."""
        raise NotImplementedError

    def _plain(self, eqn: Any, ins: list[Value], out: int) -> Value:
        name, dtype = eqn.primitive.name, eqn.outvars[out].aval.dtype
        if (number := folded(name, ins)) is not None:
            return self.result(eqn, ins, out, Flow(number=number))
        if name == "select_n" and ins[0].number is not None:
            case = ins[1 + int(ins[0].number)]
            flow = Flow(case.flow, case.jumps, kinked=case.kinked, steep=case.steep)
            return self.result(eqn, (case,), out, flow, "copy")
        if name == "stop_gradient" and _written.is_own(eqn):
            return self.result(eqn, ins, out, Flow())
        may_step = name in STEPS or name in ("rem", "sort", "atan2") or not is_float(dtype)
        within = self.trusted or (may_step and compares_within(eqn))
        step = None if within else self.key(eqn, out)
        operands = tuple(_identity(x) for x in ins)
        same = name, out, self._parameters(eqn), operands, step is None, bool(self.quiet)
        if same in self._same:
            return self._same[same]
        flow = flow_of(Operation(name, eqn.params, ins, out, dtype, step, self))
        value = self.result(eqn, ins, out, flow)
        if flow.meets:
            select = name == "select_n"
            # What cannot be seen of an angle is seldom where it goes from pi to -pi.
            wraps = {value.key: flow.flow} if name == "atan2" and value.key is not None else NONE
            self.meet(value, ins[0].jumps if select else wraps, ins[1:] if select else ins)
        self._same[same] = value
        return value

    def meet(self, value: Value, chosen: Mapping[Origin, Draws], cases: Sequence[Value]) -> None:
        """Takes those steps off `value` at which it is continuous.

        Where that cannot be seen, what a predicate with the steps `chosen` selects has a kink if
        one of the cases depends on the draw. What is infinite on one side is a mask if it steps
        once it is finite again, and otherwise the edge of a support.
        """
        if self.quiet or not value.jumps:
            return
        mask = STEEP, value.key
        if mask in value.jumps and not self._prober.may_mask(value):
            value.jumps = {o: d for o, d in value.jumps.items() if o != mask}
        for origin, verdict in self._verdicts(value).items():
            draws = value.jumps[origin]
            if verdict == "edge":
                self._edges.add(origin)
            elif verdict == "jump":
                self._edges.discard(origin)
            kinked = verdict == "unknown" and any(case.flow & draws for case in cases)
            seen = continuous(value, origin, verdict, self.jumps[origin].what)
            if not seen and kinked and origin in chosen:
                self.unseen[origin] = self.unseen.get(origin, 0) | draws
                seen = True
            if seen:
                value.jumps = {o: d for o, d in value.jumps.items() if o != origin}
                value.kinked |= value.flow & draws

    def _verdicts(self, value: Value, times: int = 1) -> Mapping[Origin, str]:
        """A probe's, on the places at which `value` may step.

        Where noise from a range is compared with an input, it may have missed that.
        """
        found = dict(self._prober.verdicts(value, times))
        for origin, verdict in found.items():
            if verdict == "constant" and not value.jumps[origin] & ~self.ranged:
                found[origin] = "unknown"
        return found

    def arrive(self, value: Value) -> None:
        """Enters what has come to the end of its way."""
        if self.again:
            return
        # The whole way, where it is short.
        for origin, verdict in self._verdicts(value, 4).items():
            edge = origin in self._edges and verdict != "jump" and value.flow
            if edge:
                self.unseen[origin] = self.unseen.get(origin, 0) | value.jumps[origin]
            if edge or continuous(value, origin, verdict, self.jumps[origin].what):
                value.jumps = {o: d for o, d in value.jumps.items() if o != origin}
                value.kinked |= value.flow
        self.arrived.flow |= value.flow
        self.arrived.inputs |= value.inputs
        self.arrived.kinked |= value.kinked
        self.arrived.jumps = joined(self.arrived.jumps, value.jumps)

    def _at(self, special: Special, eqn: Any, ins: Sequence[Value]) -> list[Value]:
        if special.ends:
            for x in ins:
                if x.depends:
                    self.arrive(x)
                self.arrived.inputs |= x.inputs * (not self.again)
        if special.draw is not None and special.passes == "all" and not self.again:
            # A pathwise draw carries on the derivative in its parameters.
            for x in ins:
                self.arrived.inputs |= x.inputs
        kept: list[Value] = []
        for x in ins if special.passes != "none" else ():
            if x.depends and (special.passes == "all" or x.draws & self.transparent):
                part = self.leaf(x.shape, x.dtype, [x])
                if special.passes != "all":
                    part.flow, part.kinked = x.flow & self.transparent, x.kinked & self.transparent
                    part.jumps = only(x.jumps, self.transparent)
                kept.append(part)
        outs = []
        for v in eqn.outvars:
            shape, dtype = tuple(v.aval.shape), v.aval.dtype
            if special.draw is None:
                outs.append(self.leaf(shape, dtype, kept))
            else:
                outs.append(self.begin(special.draw, shape, dtype, kept))
        return outs

    def expand(self, value: Value, ins: Sequence[Value]) -> list[Value]:
        """The results of the jaxpr of a call, or of a step of a loop, for a probe to look at."""
        raise NotImplementedError

    # ---- Facts -----------------------------------------------------------------------------

    def facts_of(self, eqn: Any) -> "Facts":
        """Of the jaxprs in an equation."""
        special = self.special(eqn)
        facts = Facts() if special is None else Facts(1, True, special.cost)
        if self.follows_noise and special is None:
            if _jax_random.raw_draw(eqn, {}) is not None:
                return facts  # how it is made is not looked at
            facts = Facts(specials=_jax_random.noise(eqn) is not None)
        for jaxpr in _jaxpr.subjaxprs(eqn):
            if id(jaxpr) not in self._facts:
                self._facts[id(jaxpr)] = self._facts_in(jaxpr)
            facts = facts.joined(self._facts[id(jaxpr)])
        return facts

    def size_of(self, eqn: Any) -> int:
        """The number of equations in `eqn`."""
        return self.facts_of(eqn).size

    def _facts_in(self, jaxpr: core.Jaxpr) -> "Facts":
        facts = Facts(len(jaxpr.eqns))
        for eqn in jaxpr.eqns:
            facts = facts.joined(self.facts_of(eqn))
        return facts

    def _parameters(self, eqn: Any) -> Any:
        """Something that is equal for equations of equal parameters."""
        if not eqn.params:
            return None
        if id(eqn) not in self._known:
            try:
                parameters = tuple(sorted(eqn.params.items()))
                hash(parameters)
            except TypeError:
                parameters = id(eqn)
            self._known[id(eqn)] = parameters
        return self._known[id(eqn)]


def _identity(value: Value) -> Any:
    return value.id if value.number is None else ("number", value.number)
