"""Draws of one program that get the same key, and so are not independent.

Found where it is certain: values that are known to be equal have one number (`numbering.py`), and
two draws that one run makes with keys of one number are a mistake if one of them is cost-based.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core

from .. import _jax_random, _jaxpr, _written
from .._draws import draw_p, estimate_p, sample_p
from .._jaxpr import is_var, variables
from .._lockstep import number_p
from .numbering import Loops, Numbering
from .spend import charge_p, cost_p

# The arms of the branches that a draw is in: of two draws, one run makes both for certain only if
# one is in all of the arms that the other is in.
_Arms = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Shared:
    """Draws with one key, each by its estimator's name and the user's line.

    Attributes:
      draws: the two of them, or the one that is made again and again with it.
      in_every: "step" or "lane", if it is one.
    """

    draws: tuple[tuple[str, str], ...]
    in_every: str = ""


def shared_keys(
    loss: core.ClosedJaxpr, values: Sequence[Any], credited: Iterable[Any]
) -> list[Shared]:
    """The draws of a staged loss that share a key, of which one at least is cost-based.

    Args:
      loss: staged; its first result is the loss.
      values: of its inputs.
      credited: the equations of the cost-based draws on which the loss or a cost depends.
    """
    names = frozenset(map(id, credited))
    if not names:
        return []
    numbering = Numbering()
    walk = _Walk(numbering, names)
    used = [i == 0 for i in range(len(loss.jaxpr.outvars))]
    walk.program(loss, list(map(numbering.of_value, values)), used, (), ())
    return walk.found


# ---- The walk ------------------------------------------------------------------------------


class _Walk:
    """Goes through a program, and numbers what keys are made of.

    Args:
      credited: the identities of the equations of the cost-based draws that count.

    Attributes:
      found: draws that share a key.
    """

    def __init__(self, numbering: Numbering, credited: frozenset[int]):
        self.found: list[Shared] = []
        self._numbering, self._credited = numbering, credited
        self._drawn: dict[Any, list[tuple[Any, _Arms]]] = {}
        self._quiet = 0  # above 0 where draws are passed by
        self._used: dict[Any, list[tuple[Any, tuple[bool, ...]]]] = {}
        self._holds: dict[int, bool] = {}

    def program(
        self,
        closed: core.ClosedJaxpr,
        inputs: Sequence[int],
        used: Sequence[bool],
        arms: _Arms,
        loops: Loops,
    ) -> list[int]:
        """Numbers of the results, given those of the inputs, and which of the results are used."""
        jaxpr, numbering = closed.jaxpr, self._numbering
        env = dict(zip(jaxpr.constvars, map(numbering.of_value, closed.consts), strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def number(atom: Any) -> int:
            if not is_var(atom):
                return numbering.of_value(atom.val)
            if atom not in env:
                env[atom] = numbering.fresh(loops)
            return env[atom]

        for eqn, of_results in self._live(jaxpr, tuple(used)):
            if eqn.primitive is sample_p:
                if id(eqn) in self._credited:
                    site, key = eqn.params["site"], eqn.invars[0]
                    draw = _KeyUse(site.name, site.where, True)
                    self._draw(draw, number(key), key.aval.ndim, arms, loops)
            elif eqn.primitive is draw_p:
                source, bits = eqn.params["source"], eqn.invars[-1]
                draw = _KeyUse(source.name, source.where, False)
                self._draw(draw, number(bits), bits.aval.ndim - 1, arms, loops)
            elif eqn.primitive is estimate_p:
                # Two of them that are added up are each estimated by themselves.
                draw = _KeyUse(eqn.params["name"], eqn.params["where"], False)
                bits, env[eqn.outvars[0]] = eqn.invars[0], number(eqn.invars[0])
                self._draw(draw, number(bits), bits.aval.ndim - 1, arms, loops)
            elif _jax_random.draws_with_key(eqn):
                key, draw = eqn.invars[0], _KeyUse("jax.random", _written.line_of(eqn), False)
                if not _written.is_estimators([eqn]):
                    self._draw(draw, number(key), key.aval.ndim, arms, loops)
            elif self._matters(eqn):
                operands = list(map(number, eqn.invars))
                results = self._construct(eqn, operands, of_results, arms, loops)
                if results is None:
                    results = numbering.of_results(eqn, operands, loops)
                env.update(zip(eqn.outvars, results, strict=True))
        return list(map(number, jaxpr.outvars))

    def _live(
        self, jaxpr: core.Jaxpr, used: tuple[bool, ...]
    ) -> list[tuple[Any, tuple[bool, ...]]]:
        """The equations on which used results or costs depend, and which of theirs are used."""
        name = id(jaxpr), used
        if name not in self._used:
            wanted = {v for v, u in zip(jaxpr.outvars, used, strict=True) if u and is_var(v)}
            live = []
            for eqn in reversed(jaxpr.eqns):
                if not wanted.isdisjoint(eqn.outvars) or _has_cost(eqn):
                    live.append((eqn, tuple(v in wanted for v in eqn.outvars)))
                    wanted.update(variables(eqn))
            self._used[name] = live[::-1]
        return self._used[name]

    def _matters(self, eqn: Any) -> bool:
        """Whether `eqn` may make a key, or a part of one, or draws."""
        if eqn.primitive is number_p or any(_is_small_integer(v.aval) for v in eqn.outvars):
            return True
        return any(map(self._holds_draws, _jaxpr.subjaxprs(eqn)))

    def _holds_draws(self, jaxpr: core.Jaxpr) -> bool:
        if id(jaxpr) not in self._holds:
            self._holds[id(jaxpr)] = any(
                eqn.primitive in (sample_p, draw_p, estimate_p)
                or _jax_random.draws_with_key(eqn)
                or any(map(self._holds_draws, _jaxpr.subjaxprs(eqn)))
                for eqn in jaxpr.eqns
            )
        return self._holds[id(jaxpr)]

    # ---- Constructs ------------------------------------------------------------------------

    def _construct(
        self, eqn: Any, operands: list[int], used: Sequence[bool], arms: _Arms, loops: Loops
    ) -> list[int] | None:
        """Numbers of the results of a call, a branch or a loop; None for another equation."""
        if (called := _jaxpr.called(eqn)) is not None:
            return self.program(called, operands, used, arms, loops)
        if (branches := _jaxpr.branches(eqn)) is not None:
            of_arms = [
                self.program(branch, operands[1:], used, (*arms, (id(eqn), i)), loops)
                for i, branch in enumerate(branches)
            ]
            results = zip(*of_arms, strict=True)
            return [n[0] if len(set(n)) == 1 else self._numbering.fresh(loops) for n in results]
        if (scan := _jaxpr.as_scan(eqn)) is not None:
            return self._scan(scan, operands, used, arms, loops)
        return None

    def _scan(
        self,
        scan: _jaxpr.Scan,
        operands: list[int],
        used: Sequence[bool],
        arms: _Arms,
        loops: Loops,
    ) -> list[int]:
        first, last = scan.num_consts, scan.num_consts + scan.num_carry
        consts, before, arrays = operands[:first], operands[first:last], operands[last:]
        used = [*(True for _ in before), *used[scan.num_carry :]]
        fresh = self._numbering.fresh
        stacked = [fresh(loops) for _ in used[scan.num_carry :]]
        if scan.length == 0:
            return [*before, *stacked]
        # Of loops one after the other the number is the same: none is inside of the other.
        loop = len(loops)
        inside = (*loops, loop) if scan.length > 1 else loops
        xs = [self._numbering.element(array, loop) for array in arrays]
        carry = list(before)
        walk = lambda: self.program(scan.body, [*consts, *carry, *xs], used, arms, inside)
        # What every step hands on as it was is what it was before the loop.
        self._quiet += 1
        moved = True
        while moved:
            outs = walk()[: len(carry)]
            moved = [i for i, n in enumerate(before) if carry[i] == n and outs[i] != n]
            for i in moved:
                carry[i] = fresh(inside)
        self._quiet -= 1
        walk()
        kept = zip(carry, before, strict=True)
        return [*(n if n == old else fresh(loops) for n, old in kept), *stacked]

    # ---- Draws -----------------------------------------------------------------------------

    def _draw(self, draw: "_KeyUse", key: int, lanes: int, arms: _Arms, loops: Loops) -> None:
        if self._quiet:
            return
        numbering, line = self._numbering, (draw.name, draw.where)
        one, repeated = numbering.repeats.get(key, (key, 0))
        if draw.cost_based:
            if repeated:
                self.found.append(Shared((line,), "lane"))
            if not numbering.loops[one].issuperset(loops):
                self.found.append(Shared((line,), "step"))
        # Who draws with each element of an array draws with any one of them.
        array = one if lanes and not repeated else numbering.each_of.get(one)
        if array is None:
            array = numbering.array_of.get(one)
            names, seen = [("key", one), ("some", array)], [("key", one), ("all", array)]
        else:
            names, seen = [("all", array)], [("all", array), ("some", array)]
        before = (earlier for name in seen for earlier in self._drawn.get(name, ()))
        for other, others_arms in before:
            shorter = min(len(arms), len(others_arms))
            if arms[:shorter] == others_arms[:shorter] and (draw.cost_based or other.cost_based):
                self.found.append(Shared(((other.name, other.where), line)))
                break
        for name in names:
            self._drawn.setdefault(name, []).append((draw, arms))


class _KeyUse(NamedTuple):
    """A draw that uses a key: by the estimator `name`, at the line `where`."""

    name: str
    where: str
    cost_based: bool


def _has_cost(eqn: Any) -> bool:
    if eqn.primitive in (cost_p, charge_p):
        return True
    return any(_has_cost(inner) for jaxpr in _jaxpr.subjaxprs(eqn) for inner in jaxpr.eqns)


def _is_small_integer(x: Any) -> bool:
    """Whether it is of a key's type, or of that of what is folded into one."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return dtype is not None
    return dtype == jnp.uint32 or (jnp.issubdtype(dtype, jnp.integer) and x.ndim == 0)
