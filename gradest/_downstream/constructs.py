"""The forward pass through calls, branches and loops."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from .. import _jaxpr, _written
from .again import Renaming, Walked, class_of
from .graph import compares_within, is_of_library
from .indexing import WIDE
from .rules import Flow, folded
from .values import NONE, Draws, Origin, Value, is_float, joined
from .walk import Walk

# Functions of JAX's that are continuous, whatever they compare within, with so many operands:
# with more, `interp` is told what it is beyond its ends.
_CONTINUOUS = {"interp": 3, "_interp": 3}
# Draws of discrete variables, which step where their parameters move.
_DISCRETE = {"_bernoulli", "_poisson", "_geometric", "_binomial", "binomial", "_multinomial"}
# Constructs whose one jaxpr has the operands and the results of the equation, or parts of them.
_PARTS = {"shard_map", "custom_vmap_call"}
# What looks for numbers in a sorted array.
_SEARCHES = {"searchsorted"}
# What compares by the bits of a number.
_SIGNS = {"signbit"}
# A jaxpr that is larger is not walked again for operands like those of an earlier call.
_LARGE = 64


class Analysis(Walk):
    """What the values of a program depend on, constructs and all."""

    def without_draws(self, eqn: Any, ins: Sequence[Value]) -> list[Value]:
        """The results of an equation without a draw, which only a probe looks into."""
        name, body = "", None
        path = (*self.path, id(eqn))
        if (called := _jaxpr.called(eqn)) is not None:
            name, body = "call", (eqn, called, path)
        elif (scan := _jaxpr.as_scan(eqn)) is not None:
            body = eqn, scan.body, path
        elif _jaxpr.branches(eqn) is not None:
            name = "leaf"
        flow = Flow(number=folded(eqn.primitive.name, ins))
        return [self.result(eqn, ins, i, flow, name, body) for i in range(len(eqn.outvars))]

    def construct(self, eqn: Any, ins: list[Value], used: Sequence[bool]) -> list[Any] | None:
        """The results of a call, a branch or a loop; None for any other equation."""
        if (called := _jaxpr.called(eqn)) is not None:
            return self._call(eqn, called, ins, used)
        if (branches := _jaxpr.branches(eqn)) is not None:
            return self._branch(eqn, branches, ins, used)
        if (scan := _jaxpr.as_scan(eqn)) is not None:
            return self._scan(eqn, scan, ins, used)
        if (loop := _jaxpr.as_while(eqn)) is not None:
            return self._while(eqn, loop, ins)
        if eqn.primitive.name in _PARTS:
            return self._parts(eqn, ins, used)
        return None

    # ---- Calls ---------------------------------------------------------------------------------

    def _call(
        self,
        eqn: Any,
        called: core.ClosedJaxpr,
        ins: list[Value],
        used: Sequence[bool],
    ) -> list[Any]:
        name = eqn.params.get("name")
        searches = name in _SEARCHES and self._can_search(eqn, ins)
        continuous = _CONTINUOUS.get(name) == len(ins)
        known = name in _DISCRETE or continuous or name in _SIGNS or searches
        if known and any(x.depends for x in ins) and _written.is_of_jax_or_gradest(called):
            flow = lambda i: self._of_known(eqn, ins, i, not continuous)
            operation = name if name in _SIGNS or searches else "leaf"
            return [self.result(eqn, ins, i, flow(i), operation) for i in range(len(used))]
        if not _jaxpr.has_rule(eqn):
            return self.inside(eqn, called, ins, used)
        self.quiet += 1
        outs = self.inside(eqn, called, ins, used)
        self.quiet -= 1
        return [out and self._by_its_rule(out, ins) for out in outs]

    def _can_search(self, eqn: Any, ins: Sequence[Value]) -> bool:
        """Whether a probe can look for numbers in a sorted array as a whole."""
        array, *of = ins
        if (
            self.trusted
            or len(of) != 1
            or len(array.shape) != 1
            or eqn.outvars[0].aval.shape != of[0].shape
        ):
            return False
        return array.shape[0] <= WIDE or self.array(array) is not None

    def _of_known(self, eqn: Any, ins: Sequence[Value], out: int, discrete: bool) -> Flow:
        draws: Draws = 0
        for x in ins:
            draws |= x.draws
        if discrete:
            return Flow(0, {self.key(eqn, out): draws})
        return Flow(draws, joined(*(x.jumps for x in ins)), kinked=draws)

    def _by_its_rule(self, inner: Value, ins: Sequence[Value]) -> Value:
        """A result of a function with a rule of its own, which says what its derivative is."""
        before = set().union(*(x.jumps for x in ins))
        if not is_float(inner.dtype) or (inner.flow and inner.jumps.keys() <= before):
            return inner
        outer = self.new("copy", (inner,), NONE, 0, inner.shape, inner.dtype)
        outer.flow, outer.kinked, outer.hard = inner.flow, inner.kinked, inner.hard
        for x in ins:
            outer.flow, outer.inputs = outer.flow | x.flow, outer.inputs | x.inputs
        outer.jumps = {origin: draws for origin, draws in inner.jumps.items() if origin in before}
        return outer

    def inside(
        self,
        eqn: Any,
        jaxpr: core.ClosedJaxpr,
        ins: Sequence[Value],
        used: Sequence[bool],
    ) -> list[Any]:
        """The results of a jaxpr in `eqn`, as those of an earlier walk if that was like it."""
        facts = self.facts_of(eqn)
        path = (*self.path, id(eqn))
        if facts.size < _LARGE or facts.specials:
            return self.enter(eqn, jaxpr, ins, used, path)
        order: dict[Origin, int] = {}
        for x in ins:
            for origin in (*x.jumps, *x.steep):
                order.setdefault(origin, len(order))
        like = tuple(class_of(x, order) for x in ins)
        name = id(jaxpr.jaxpr), tuple(used), bool(self.trusted), bool(self.quiet), like
        inputs = tuple(x.inputs for x in ins)
        if name not in self.walked or not self.walked[name].serves(inputs):
            outs = self.enter(eqn, jaxpr, ins, used, path)
            self.walked[name] = Walked(outs, path, tuple(order), inputs)
            return outs
        line = self.line(eqn) if is_of_library(jaxpr) else ""
        rename = Renaming(self.jumps, line, path, self.walked[name], tuple(order))
        outs = self.walked[name].outs
        body = eqn, jaxpr, path
        return [out and self._again(out, rename, tuple(ins), i, body) for i, out in enumerate(outs)]

    def enter(
        self,
        eqn: Any,
        jaxpr: core.ClosedJaxpr,
        ins: Sequence[Value],
        used: Sequence[bool] | None,
        path: tuple[Any, ...],
    ) -> list[Any]:
        """The results of a jaxpr in `eqn`, walked."""
        trusted, outside = compares_within(eqn), self.path
        self.path = path
        self.callers.append((eqn, is_of_library(jaxpr)))
        self.trusted += trusted
        try:
            return self.run(jaxpr, ins, used)
        finally:
            self.path = outside
            self.callers.pop()
            self.trusted -= trusted

    def expand(self, value: Value, ins: Sequence[Value]) -> list[Value]:
        """The results of the jaxpr of a call, or of a step of a loop, for a probe to look at."""
        eqn, jaxpr, path = value.body
        name = path, tuple(x.id for x in ins)
        if name not in self.expanded:
            # What arrives in it has arrived.
            self.quiet, self.again = self.quiet + 1, self.again + 1
            try:
                self.expanded[name] = self.enter(eqn, jaxpr, ins, None, path)
            finally:
                self.quiet, self.again = self.quiet - 1, self.again - 1
        return self.expanded[name]

    def _again(
        self, found: Value, rename: Renaming, ins: tuple[Value, ...], out: int, body: Any
    ) -> Value:
        value = self.new("call", ins, NONE, out, found.shape, found.dtype)
        value.flow, value.kinked, value.hard = found.flow, found.kinked, found.hard
        value.jumps, value.steep = rename(found.jumps), rename(found.steep)
        value.number, value.body = found.number, body
        # Who is beside a step of an operand is known, and may be another one here.
        for origin in found.jumps.keys() - rename.operands.keys():
            self.beside[rename.origin(origin)] = self.beside.get(origin, 0)
        return value

    # ---- Branches ------------------------------------------------------------------------------

    def _branch(
        self,
        eqn: Any,
        branches: Sequence[core.ClosedJaxpr],
        ins: list[Value],
        used: Sequence[bool],
    ) -> list[Any]:
        index, *args = ins
        path = lambda i: (*self.path, id(eqn), i)
        arms = [self.enter(eqn, arm, args, used, path(i)) for i, arm in enumerate(branches)]
        if index.depends and self.facts_of(eqn).costs:
            self.arrive(index)  # a cost that is there or not
        outs: list[Any] = []
        for i, u in enumerate(used):
            cases = [arm[i] for arm in arms]
            if not u:
                outs.append(None)
                continue
            flow = kinked = 0
            for case in cases:
                flow, kinked = flow | case.flow, kinked | case.kinked
            chosen = index.jumps if any(case is not cases[0] for case in cases) else NONE
            jumps = joined(*(case.jumps for case in cases), chosen)
            steep = joined(*(case.steep for case in cases))
            found = Flow(flow, jumps, kinked=kinked, steep=steep)
            value = self.result(eqn, (index, *cases), i, found, "cond")
            if chosen and is_float(value.dtype):
                self.meet(value, chosen, cases)
            outs.append(value)
        return outs

    # ---- Loops ---------------------------------------------------------------------------------

    def _scan(
        self, eqn: Any, scan: _jaxpr.Scan, ins: list[Value], used: Sequence[bool]
    ) -> list[Any]:
        consts, carry = ins[: scan.num_consts], ins[scan.num_consts :][: scan.num_carry]
        xs = ins[scan.num_consts + scan.num_carry :]
        slices = [self.leaf(x.shape[1:], x.dtype, [x]) for x in xs]
        used = [*(True for _ in carry), *used[scan.num_carry :]]
        outs, carry = self._fixed_point(eqn, scan.body, consts, carry, slices, used)
        found = [*carry, *outs[scan.num_carry :]]
        body = eqn, scan.body, (*self.path, id(eqn))
        return [x and self._found(eqn, ins, i, x, "scan", body) for i, x in enumerate(found)]

    def _while(self, eqn: Any, loop: _jaxpr.While, ins: list[Value]) -> list[Any]:
        num = loop.num_condition_consts
        consts, carry = ins[num:][: loop.num_consts], ins[num + loop.num_consts :]
        _, state = self._fixed_point(eqn, loop.body, consts, carry, [], [True] * len(carry))
        (test,) = self.inside(eqn, loop.condition, [*ins[:num], *state], [True])
        body = loop.body.jaxpr
        outs = []
        for i, x in enumerate(state):
            flow = _flow(x)
            moves = body.outvars[i] is not body.invars[loop.num_consts + i]
            if test.depends and moves:
                if flow.flow:
                    # Iterating to a tolerance: what has a derivative is taken to have converged.
                    flow = Flow(flow.flow, flow.jumps, kinked=flow.flow, steep=flow.steep)
                else:
                    flow = Flow(0, joined(flow.jumps, test.jumps))
            outs.append(self.result(eqn, ins, i, flow, "leaf"))
            outs[-1].inputs = x.inputs
        return outs

    def _fixed_point(
        self,
        eqn: Any,
        body: core.ClosedJaxpr,
        consts: Sequence[Value],
        carry: Sequence[Value],
        xs: Sequence[Value],
        used: Sequence[bool],
    ) -> tuple[list[Any], list[Value]]:
        """The results of a loop's body, and the carry once another step adds nothing to it."""
        state = [self.leaf(x.shape, x.dtype, [x]) for x in carry]
        while True:
            outs = self.inside(eqn, body, [*consts, *state, *xs], used)
            grown = [
                self.leaf(x.shape, x.dtype, [x, out]) for x, out in zip(state, outs, strict=False)
            ]
            if all(_known(x) == _known(y) for x, y in zip(state, grown, strict=True)):
                return outs, state
            state = grown

    def _parts(self, eqn: Any, ins: list[Value], used: Sequence[bool]) -> list[Any]:
        (jaxpr,) = _jaxpr.subjaxprs(eqn)
        avals: list[Any] = [v.aval for v in jaxpr.invars]
        parts = [self.leaf(v.shape, v.dtype, [x]) for v, x in zip(avals, ins, strict=True)]
        outs = self.inside(eqn, core.ClosedJaxpr(jaxpr, ()), parts, used)
        return [out and self._found(eqn, ins, i, out, "leaf") for i, out in enumerate(outs)]

    def _found(
        self, eqn: Any, ins: Sequence[Value], out: int, x: Value, name: str, body: Any = None
    ) -> Value:
        """A result of a construct, which depends on what `x`, found inside, depends on."""
        value = self.result(eqn, ins, out, _flow(x), name, body)
        value.inputs = x.inputs
        return value


def _known(x: Value) -> Any:
    return x.flow, x.kinked, dict(x.jumps), dict(x.steep), x.hard, x.inputs


def _flow(x: Value) -> Flow:
    return Flow(x.flow, x.jumps, kinked=x.kinked, steep=x.steep)
