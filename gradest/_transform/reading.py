"""Reading: a jaxpr is made into a `Program`, once, from its last equation to its first.

On the way back it is known what becomes of every result, so that what nobody wants is left out.
Which construct an equation is, is asked here alone: in `_Reader.node`.
"""

import enum
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core

from .. import _jax_random, _jaxpr, _written
from .._derivatives.primitives import drawn_p, scored_p
from .._draws import sample_p
from .._jaxpr import is_var, variables
from .._jumps import Complaint
from .complaints import OfRawDraw
from .numbering import Numbering
from .program import (
    Branch,
    Call,
    Draw,
    Loop,
    Node,
    Opaque,
    PathwiseDraw,
    Program,
    RawDraw,
    Run,
    Spend,
    While,
    counted_in,
    results_of,
)
from .spend import charge_p, cost_p

NO_COMPLAINTS: Mapping[int, Complaint] = {}

# What becomes of a variable, as bits: this run of the program wants it, the loss or a cost depends
# on it, auxiliary output does; and a derivative is expected of it, since the loss or a cost depends
# on it in another way than through a stop_gradient. A draw on which the loss or a cost depends is
# credited with what follows it. One that is drawn for auxiliary output or an effect alone is not:
# that would be noise in the gradient.
NOTHING, WANTED, COUNTS, REPORTED, FOLLOWED = 0, 1, 2, 4, 8


class Purpose(enum.Enum):
    """What a program is run for."""

    BOTH = "the loss and auxiliary output, in one run"
    LOSS = "the loss, perhaps at several points; auxiliary output is another run's"
    REPORT = "auxiliary output, with plain draws and no effects but its own"


def read_program(
    jaxpr: core.ClosedJaxpr, purpose: Purpose, complaints: Mapping[int, Complaint] = NO_COMPLAINTS
) -> Program:
    """The program of a staged loss, whose first output is the loss and the others auxiliary.

    Args:
      jaxpr: the loss, staged.
      purpose: what it is run for.
      complaints: of what follows draws, by the identities of their equations.
    """
    loss, report = {
        Purpose.BOTH: (WANTED | COUNTS | FOLLOWED, WANTED | REPORTED),
        Purpose.LOSS: (WANTED | COUNTS | FOLLOWED, REPORTED),
        Purpose.REPORT: (NOTHING, WANTED | REPORTED),
    }[purpose]
    uses = [loss] + [report] * (len(jaxpr.jaxpr.outvars) - 1)
    return _Reader(purpose, complaints).loss(jaxpr, uses)


class _Reader:
    """Reads a jaxpr and those in it, each once for what is wanted of it."""

    def __init__(self, purpose: Purpose, complaints: Mapping[int, Complaint]):
        self.purpose, self.complaints = purpose, complaints
        self._programs: dict[Any, Program] = {}
        self._holds: dict[int, tuple[bool, bool]] = {}
        self._watches = False
        self._given: set[Any] = set()

    def loss(self, closed: core.ClosedJaxpr, uses: Sequence[int]) -> Program:
        self._watches = self._holds_of(closed.jaxpr)[1]
        return self.program(closed, uses)

    def program(self, closed: core.ClosedJaxpr, uses: Sequence[int]) -> Program:
        """`uses` tells what becomes of each of the jaxpr's outputs."""
        # The jaxpr is alive as long as the reader, since it is part of the one that is read.
        name = id(closed.jaxpr), tuple(uses)
        if name not in self._programs:
            self._programs[name] = self._read(closed, uses)
        return self._programs[name]

    def _read(self, closed: core.ClosedJaxpr, uses: Sequence[int]) -> Program:
        jaxpr = closed.jaxpr
        defined_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        use: dict[Any, int] = {}
        for v, u in zip(jaxpr.outvars, uses, strict=True):
            if is_var(v):
                use[v] = use.get(v, NOTHING) | u

        entries: list[Any] = []  # equations of runs, and nodes, from the last to the first
        for eqn in reversed(jaxpr.eqns):
            of_results = [use.get(v, NOTHING) for v in eqn.outvars]
            node = self.node(jaxpr, eqn, of_results, defined_by)
            marks = counted_in(node) if node is not None else []
            all_uses = functools.reduce(operator.or_, of_results, NOTHING)
            if marks:
                all_uses |= WANTED | COUNTS | FOLLOWED
            live = all_uses & WANTED or (eqn.effects and self._takes_place(all_uses))
            if live:
                entries.append(eqn if node is None else node)
                all_uses |= WANTED
            of_operands = self._of_operands(eqn, node, all_uses)
            if all_uses & FOLLOWED and node is None and self._watches:
                of_operands = self._not_stopped(eqn, of_results, of_operands, defined_by)
            for v, u in zip(eqn.invars, of_operands, strict=True):
                if is_var(v) and u:
                    use[v] = use.get(v, NOTHING) | u

        wanted = [v if u & WANTED else None for v, u in zip(jaxpr.outvars, uses, strict=True)]
        nodes, later = _grouped(jaxpr, reversed(entries), filter(is_var, wanted))
        inputs = [use.get(v, NOTHING) for v in jaxpr.invars]
        return Program(jaxpr, closed.consts, nodes, later, wanted, inputs)

    def _takes_place(self, use: int) -> bool:
        """Whether an effect does, on whose results at most what `use` says depends.

        Each does in one kind of run, so that none happens twice whose result is not used in both.
        """
        if self.purpose is Purpose.LOSS:
            return not use & REPORTED
        return self.purpose is Purpose.BOTH

    def _of_operands(self, eqn: Any, node: Node | None, use: int) -> Sequence[int]:
        """What becomes of the operands of `eqn`, of whose results `use` becomes."""
        if isinstance(node, Call):
            inner = node.body.input_uses
        elif isinstance(node, Branch):
            inner = [use, *_joined([arm.input_uses for arm in node.arms])]
        elif isinstance(node, Loop):
            inner = node.body.input_uses
        else:
            return [use] * len(eqn.invars)
        wanted = use & WANTED
        return [u & ~WANTED | wanted for u in inner]

    def _not_stopped(
        self, eqn: Any, of_results: Sequence[int], of_operands: Sequence[int], defined_by: Any
    ) -> Sequence[int]:
        """What becomes of the operands, of which no derivative is expected where it is stopped.

        That of an integer draw's own log-probability is a score function by hand.
        """
        if eqn.primitive.name == "stop_gradient" or _is_own_score(eqn, defined_by):
            return [of_operands[0] & ~FOLLOWED, *of_operands[1:]]
        if (called := _jaxpr.called(eqn)) is None or _jaxpr.has_rule(eqn):
            return of_operands
        inner = self.program(called, of_results).input_uses
        return [u & (~FOLLOWED | of) for u, of in zip(of_operands, inner, strict=True)]

    def node(
        self, jaxpr: core.Jaxpr, eqn: Any, uses: Sequence[int], defined_by: Any
    ) -> Node | None:
        """What `eqn` is, given what becomes of its results; None for a part of a run."""
        credited = any(u & COUNTS for u in uses) and self.purpose is not Purpose.REPORT
        if eqn.primitive is sample_p:
            return Draw(eqn, credited, self.complaints.get(id(eqn)))
        if eqn.primitive is cost_p:
            return Spend(eqn, self.purpose is not Purpose.REPORT)
        if eqn.primitive is charge_p:
            return Spend(eqn, credited)
        if id(eqn) in self.complaints:
            return PathwiseDraw(eqn, self.complaints[id(eqn)])
        followed = any(u & FOLLOWED for u in uses)
        if followed and (name := _jax_random.raw_draw(eqn, defined_by)) is not None:
            complaint = OfRawDraw(name, _written.line_of(eqn), self._given)
            return RawDraw(eqn, complaint, _run(jaxpr, [eqn], eqn.outvars))
        holds_marks, holds_watched = self._held(eqn)
        if not (holds_marks or holds_watched):
            return None
        if (called := _jaxpr.called(eqn)) is not None:
            rule = _jaxpr.has_rule(eqn)
            node = Call(eqn, self.program(called, uses), _jaxpr.rerun(eqn), rule)
        elif (branches := _jaxpr.branches(eqn)) is not None:
            node = Branch(eqn, [self.program(branch, uses) for branch in branches])
        elif (scan := _jaxpr.as_scan(eqn)) is not None:
            node = Loop(eqn, scan, self._scanned(scan, uses))
        elif (loop := _jaxpr.as_while(eqn)) is not None:
            node = While(eqn, loop, *self._repeated(loop, uses))
            if marks := counted_in(node):
                return Opaque(eqn, marks[0])
        else:
            held = (mark for mark in self._marks_in(eqn) if self._matters(mark, credited))
            return Opaque(eqn, mark) if (mark := next(held, None)) is not None else None
        # With no draw in it, and no cost, it is a part of a run.
        return node if any(p.marks or p.has_watched_draws for p in node.programs) else None

    def _scanned(self, scan: _jaxpr.Scan, uses: Sequence[int]) -> Program:
        carry = slice(scan.num_consts, scan.num_consts + scan.num_carry)
        return self._fixed_point(scan.body, uses, scan.num_carry, lambda p: p.input_uses[carry])

    def _repeated(self, loop: _jaxpr.While, uses: Sequence[int]) -> tuple[Program, Program]:
        # The condition decides how often everything else happens.
        condition = self.program(loop.condition, [functools.reduce(operator.or_, uses)])
        tested = condition.input_uses[loop.num_condition_consts :]
        uses = [u | t for u, t in zip(uses, tested, strict=True)]
        carried = lambda p: p.input_uses[loop.num_consts :]
        return condition, self._fixed_point(loop.body, uses, len(uses), carried)

    def _fixed_point(
        self, body: Any, uses: Sequence[int], num_carry: int, carried: Callable[[Program], Any]
    ) -> Program:
        """The body of a loop, where what a later step uses of the carry is used as well."""
        while True:
            program = self.program(body, uses)
            grown = [u | c for u, c in zip(uses, carried(program), strict=False)]
            grown += uses[num_carry:]
            if grown == list(uses):
                return program
            uses = grown

    def _matters(self, mark: Draw | Spend, credited: bool) -> bool:
        return credited if isinstance(mark, Draw) else self.purpose is not Purpose.REPORT

    def _held(self, eqn: Any) -> tuple[bool, bool]:
        """Whether `eqn` holds draws or costs, and draws that are watched, at any depth.

        What has a derivative of its own is taken at its word, and not searched for the latter.
        """
        marks = watched = False
        for jaxpr in _jaxpr.subjaxprs(eqn):
            if id(jaxpr) not in self._holds:
                self._holds[id(jaxpr)] = self._holds_of(jaxpr)
            inner = self._holds[id(jaxpr)]
            marks, watched = marks or inner[0], watched or inner[1]
        return marks, watched and _jaxpr.is_understood(eqn) and not _jaxpr.has_rule(eqn)

    def _holds_of(self, jaxpr: core.Jaxpr) -> tuple[bool, bool]:
        marks = watched = False
        defined_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        for eqn in jaxpr.eqns:
            marks = marks or eqn.primitive in (sample_p, cost_p, charge_p)
            raw = _jax_random.raw_draw(eqn, defined_by) is not None
            watched = watched or raw or id(eqn) in self.complaints
            inner = self._held(eqn)
            marks, watched = marks or inner[0], watched or inner[1]
        return marks, watched

    def _marks_in(self, eqn: Any) -> Iterable[Draw | Spend]:
        """Those in a construct that is not understood."""
        for jaxpr in _jaxpr.subjaxprs(eqn):
            for inner in jaxpr.eqns:
                if inner.primitive is sample_p:
                    yield Draw(inner, True)
                elif inner.primitive in (cost_p, charge_p):
                    yield Spend(inner, True)
                else:
                    yield from self._marks_in(inner)


def _is_own_score(eqn: Any, defined_by: Mapping[Any, Any]) -> bool:
    """Whether `eqn` stands where the log-probability is taken of a draw, by what it is drawn from.

    It takes the draw first, and then the parameters.
    """
    if eqn.primitive is not scored_p or not is_var(eqn.invars[0]):
        return False
    drawn = defined_by.get(eqn.invars[0])
    if drawn is None or drawn.primitive is not drawn_p:
        return False
    numbering = Numbering()
    known: dict[Any, int] = {}

    def number(atom: Any, steps: int) -> int:
        if not is_var(atom):
            return numbering.of_value(atom.val)
        if atom not in known:
            made = defined_by.get(atom)
            if made is None or steps == 0:
                known[atom] = numbering.fresh(())
            else:
                operands = [number(v, steps - 1) for v in made.invars]
                known.update(
                    zip(made.outvars, numbering.of_results(made, operands, ()), strict=True)
                )
        return known[atom]

    of_score, of_draw = ([number(v, _STEPS) for v in e.invars[1:]] for e in (eqn, drawn))
    return of_score == of_draw


# As many equations back the parameters of a distribution that is made anew are compared.
_STEPS = 30


def _grouped(
    jaxpr: core.Jaxpr, entries: Iterable[Any], outputs: Iterable[Any]
) -> tuple[list[Run | Node], list[frozenset[Any]]]:
    """The nodes, consecutive equations made into runs; and what is used after each of them."""
    groups: list[Any] = []
    for entry in entries:
        if isinstance(entry, Node):
            groups.append(entry)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    used = set(outputs)
    nodes: list[Run | Node] = []
    later = []
    for group in reversed(groups):
        later.append(frozenset(used))
        if isinstance(group, Node):
            nodes.append(group)
            used.update(variables(group.eqn))
        else:
            run = _run(jaxpr, group, used)
            nodes.append(run)
            used.update(run.invars)
    return nodes[::-1], later[::-1]


def _run(jaxpr: core.Jaxpr, eqns: Sequence[Any], wanted: Iterable[Any]) -> Run:
    """Those of the results of `eqns` that are `wanted`, as one run."""
    wanted = frozenset(wanted)
    produced = results_of(eqns)
    outvars = [v for v in produced if v in wanted]
    used = dict.fromkeys(v for eqn in eqns for v in variables(eqn))
    invars = [v for v in used if v not in produced]
    return Run(jaxpr.replace(constvars=[], invars=invars, outvars=outvars, eqns=list(eqns)))


def _joined(uses: Sequence[Sequence[int]]) -> list[int]:
    return [functools.reduce(operator.or_, of_arms) for of_arms in zip(*uses, strict=True)]
