"""Programs in which `jax.lax.stop_gradient` of what depends on a draw is transparent.

An estimator that differentiates the cost at a relaxed draw, or at a mean, takes the slope of the
function of the draw that the cost is: a stop_gradient in it says nothing about that, and would make
the slope that of another function than the one whose value it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from . import _jaxpr, _written
from ._jaxpr import is_var


def transparent(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of a draw, whose stop_gradients of what depends on the draw are the identity."""

    def of_draw(draw: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(draw)
        leaves = jax.tree.leaves(draw)
        closed = without_stops(closed, [True] * len(leaves))
        return jax.tree.unflatten(jax.tree.structure(shape), core.jaxpr_as_fun(closed)(*leaves))

    return of_draw


def without_stops(closed: core.ClosedJaxpr, depend: Sequence[bool]) -> core.ClosedJaxpr:
    """`closed` without the stop_gradients of what depends on some of its inputs.

    Those in calls, branches and loops are left out too; those in a function with a derivative rule
    of its own stay, and so do those that gradest wrote.

    Args:
      closed: a jaxpr.
      depend: for each of its inputs, whether it depends on the draw.
    """
    return core.ClosedJaxpr(_Remover().jaxpr(closed.jaxpr, depend)[0], closed.consts)


class _Remover:
    def __init__(self) -> None:
        # By identity, of jaxprs that are parts of one that is alive: one that is run twice stays
        # one, which is compiled once.
        self._done: dict[Any, tuple[core.Jaxpr, list[bool]]] = {}

    def jaxpr(self, jaxpr: core.Jaxpr, depend: Sequence[bool]) -> tuple[core.Jaxpr, list[bool]]:
        """The jaxpr without them, and which of its outputs depend on the draw."""
        name = id(jaxpr), tuple(depend)
        if name not in self._done:
            self._done[name] = self._removed(jaxpr, depend)
        return self._done[name]

    def _removed(self, jaxpr: core.Jaxpr, depend: Sequence[bool]) -> tuple[core.Jaxpr, list[bool]]:
        drawn = {v for v, d in zip(jaxpr.invars, depend, strict=True) if d}
        instead: dict[Any, Any] = {}
        renamed = lambda atoms: [instead.get(a, a) if is_var(a) else a for a in atoms]
        eqns, changed = [], False
        for eqn in jaxpr.eqns:
            operands = renamed(eqn.invars)
            of_operands = [is_var(a) and a in drawn for a in operands]
            if not any(of_operands):
                new, of_results = eqn, [False] * len(eqn.outvars)
            elif eqn.primitive.name == "stop_gradient" and not _written.is_own(eqn):
                instead[eqn.outvars[0]], changed = operands[0], True
                continue
            else:
                new, of_results = self._equation(eqn, of_operands)
            if operands != list(eqn.invars):
                new = new.replace(invars=operands)
            changed = changed or new is not eqn
            eqns.append(new)
            drawn.update(v for v, d in zip(eqn.outvars, of_results, strict=True) if d)
        outvars = renamed(jaxpr.outvars)
        of_outputs = [is_var(a) and a in drawn for a in outvars]
        return (jaxpr.replace(eqns=eqns, outvars=outvars) if changed else jaxpr), of_outputs

    def _equation(self, eqn: Any, depend: list[bool]) -> tuple[Any, list[bool]]:
        """The equation without them in what it runs, and which of its results depend."""
        everything = [True] * len(eqn.outvars)
        if _jaxpr.has_rule(eqn):
            return eqn, everything
        if _jaxpr.called(eqn) is not None:
            run = lambda jaxpr: self.jaxpr(jaxpr, depend)
        elif _jaxpr.branches(eqn) is not None:
            run = lambda jaxpr: self.jaxpr(jaxpr, depend[1:])
        elif (scan := _jaxpr.as_scan(eqn)) is not None:
            run = lambda jaxpr: self._step(jaxpr, depend, scan)
        else:
            return eqn, everything
        results: list[list[bool]] = []

        def part(jaxpr: core.Jaxpr) -> core.Jaxpr:
            jaxpr, of_results = run(jaxpr)
            results.append(of_results)
            return jaxpr

        new = _jaxpr.with_jaxprs(eqn, part)
        of_results = [any(of_one) for of_one in zip(*results, strict=True)]
        chosen = _jaxpr.branches(eqn) is not None and depend[0]
        return new, everything if chosen else of_results

    def _step(
        self, jaxpr: core.Jaxpr, depend: list[bool], scan: _jaxpr.Scan
    ) -> tuple[core.Jaxpr, list[bool]]:
        """The body of a loop, where what an earlier step made of the carry may depend too."""
        depend = list(depend)
        first, last = scan.num_consts, scan.num_consts + scan.num_carry
        while True:
            body, of_results = self.jaxpr(jaxpr, depend)
            carry = [a or b for a, b in zip(depend[first:last], of_results, strict=False)]
            if carry == depend[first:last]:
                return body, of_results
            depend[first:last] = carry
