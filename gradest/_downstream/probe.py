"""Looks whether a value steps where something that it is computed from does.

What cannot be read off a program can be looked at: the value's element is evaluated at points on
random lines through what it is computed from, the step of the origin is closed in on, and the
values on both sides are compared. The points are the same each time.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import RULES
from .elements import Elements, Program, TooLong
from .likeness import Likeness
from .values import Origin, Value, is_float

# Lines, points on each; how often a bracket is narrowed, by how much.
_LINES, _POINTS = 32, 25
_NARROWED, _WITHIN = 11, 9
# Elements of one probe, of all probes together; places of a value, and probes of one place.
_ELEMENTS, _ALL_ELEMENTS = 600, 40_000
_PLACES, _PROBES = 6, 30
# How often what takes too long is taken for any number.
_CUTS = 4
# Of how many elements a probe is, where they may be computed in different ways; of no more than
# two once so many were computed for it.
_SOME, _LONG = 12, 6_000
# What does not change where a value steps.
_THROUGH = {
    *("add", "sub", "add_any", "neg", "mul", "div", "copy", "reshape", "squeeze"),
    *("convert_element_type", "broadcast_in_dim"),
}


class Prober:
    """Probes within a budget, so that looking takes no longer than a second.

    Args:
      program: whose values are looked at.
    """

    def __init__(self, program: Program):
        self._program = program
        self._spent = 0
        self._probes: dict[Origin, int] = {}
        self._seen: dict[Any, str] = {}
        self._likeness = Likeness(program.array)

    def verdicts(self, value: Value, times: int = 1) -> Mapping[Origin, str]:
        """Of places at which `value` may step.

        "jump", "continuous", "constant", "edge" where it is infinite on one side, or "unknown".
        """
        return {o: self._verdict(value, o, times) for o in list(value.jumps)[:_PLACES]}

    def may_mask(self, select: Value) -> bool:
        """Whether the predicate of `select` may change between relaxed draws, and hard ones.

        A density's edge does not, where it is of something positive.
        """
        predicate = select.ins[0]
        if self._spent > _ALL_ELEMENTS:
            return True
        some = _SOME if self._likeness.by_position(predicate) else 2
        for origin in predicate.jumps:
            e = Elements(self._program, RULES, predicate, origin, _LINES, _ELEMENTS, hard=True)
            try:
                changes = any(_changes(e, index) for index in _indices(predicate.shape, some))
            except Exception:
                changes = True
            self._spent += e.total
            if changes:
                return True
        return False

    def _verdict(self, value: Value, origin: Origin, times: int) -> str:
        # An infinite case masks a relaxed draw; for others it is the edge of a support.
        masks = bool(value.jumps[origin] & self._program.relaxed)
        value = _stepping(value, origin)
        like = self._likeness.of(value, origin)
        like = like and (times, masks, *like)
        if like in self._seen:
            return self._seen[like]
        self._probes[origin] = self._probes.get(origin, 0) + 1
        if self._probes[origin] > _PROBES or self._spent > _ALL_ELEMENTS:
            return "unknown"
        some = 2
        if self._spent < _ALL_ELEMENTS // 2 and self._likeness.by_position(value):
            some = _SOME
        probe = _Probe(self._program, value, origin, masks, times * _ELEMENTS)
        verdict = probe.verdict(some)
        self._spent += probe.total
        if like is not None:
            self._seen[like] = verdict
        return verdict


class _Probe:
    """Of one value, at one of the places where it may step."""

    def __init__(self, program: Program, value: Value, origin: Origin, masks: bool, budget: int):
        self.value, self.origin, self.masks = value, origin, masks
        self.elements = Elements(program, RULES, value, origin, _LINES, budget)

    @property
    def total(self) -> int:
        return self.elements.total

    def verdict(self, some: int) -> str:
        """That on as many as `some` elements."""
        if math.prod(self.value.shape) == 0 or not is_float(self.value.dtype):
            return "unknown"
        found = set()
        with np.errstate(all="ignore"):
            for number, index in enumerate(_indices(self.value.shape, some)):
                if number >= 2 and self.total > _LONG:
                    break
                try:
                    found.add(self._at(index))
                except Exception:
                    # A probe that fails has seen nothing; it must not break the program.
                    found.add("unknown")
                if "jump" in found:
                    return "jump"
        for verdict in ("edge", "continuous"):
            if verdict in found:
                return verdict
        return "constant" if found == {"constant"} else "unknown"

    def _at(self, index: tuple[int, ...]) -> str:
        """The verdict on one element."""
        e = self.elements
        self._look_around(index)
        t = _along()
        f, steps = e.evaluate(index, t)
        changes = steps[:, 1:] != steps[:, :-1]
        rows = np.flatnonzero(changes.any(1))
        if not len(rows):
            known = e.seen and not e.cut and (e.num_draws <= 3 or self.value.flow)
            return "constant" if known else "unknown"
        lines, first = np.arange(_LINES), self._one_change(changes)
        lo, hi = t[lines, first], t[lines, first + 1]
        typical, moves = float(np.median(_size(f))), _spread(f)[rows] > 0
        # Nearby: elsewhere on the line the value may be much larger.
        near = np.clip(first[:, None] + np.arange(-2, 4), 0, _POINTS - 1)
        f = np.take_along_axis(f, near, 1)
        size, spread = _size(f)[rows], _spread(f)[rows]
        for _ in range(_NARROWED):
            t = lo[:, None] + (hi - lo)[:, None] * np.linspace(0, 1, _WITHIN)
            f, steps = e.evaluate(index, t)
            first = (steps[:, 1:] != steps[:, :-1]).argmax(1)
            lo, hi = t[lines, first], t[lines, first + 1]
        before, after = f[lines, first][rows], f[lines, first + 1][rows]
        gap = np.abs(after - before)
        if not np.isfinite(gap).any() and (np.isinf(before) ^ np.isinf(after)).any():
            return "jump" if self.masks else "edge"
        if e.terms is not None:
            terms = np.abs(e.terms[:, lines, first + 1] - e.terms[:, lines, first]).max(0)[rows]
            return self._of_sum(gap, terms, size + typical, spread)
        if self.masks and ((np.isinf(before) ^ np.isinf(after)) & ~np.isnan(gap)).any():
            return "jump"
        # A value that grows without bound nearby says nothing: its spread hides the gap.
        ok = np.isfinite(gap) & np.isfinite(spread) & moves
        return self._of_gap(gap, size, spread, typical, ok) if ok.any() else "unknown"

    def _look_around(self, index: tuple[int, ...]) -> None:
        for _ in range(_CUTS):
            try:
                return self.elements.look_around(index)
            except TooLong as error:
                if not error.cut:
                    raise
        raise TooLong

    def _one_change(self, changes: np.ndarray) -> np.ndarray:
        """The number of an interval in which the origin steps, on each line where it does."""
        rng = np.random.default_rng(1)
        pick = [rng.choice(np.flatnonzero(row)) if row.any() else 0 for row in changes]
        return np.asarray(pick)

    def _of_sum(
        self, gap: np.ndarray, terms: np.ndarray, size: np.ndarray, spread: np.ndarray
    ) -> str:
        """Whether a sum steps by less than its terms do."""
        # What is steep goes some way between two points, however close.
        ok = np.isfinite(gap) & np.isfinite(terms) & (terms > 1e-8 * size)
        if ok.any():
            return _majority((gap > 1e-3 * terms) & ok, ok)
        # Of products, each of which is continuous.
        products = self.value.name == "dot_general" and (spread > 0).any()
        return "continuous" if products else "unknown"

    def _of_gap(
        self, gap: np.ndarray, size: np.ndarray, spread: np.ndarray, typical: float, ok: np.ndarray
    ) -> str:
        # In a flat tail any step is large.
        spread = np.maximum(spread, 0.05 * np.median(spread[ok]))
        chosen = self.value.name in ("select_n", "cond")
        least = 3e-4 * size * chosen + 1e-8 * size + 1e-5 * typical
        return _majority((gap > 1e-3 * spread) & (gap > least) & ok, ok)


def _changes(e: Elements, index: tuple[int, ...]) -> bool:
    with np.errstate(all="ignore"):
        e.look_around(index)
        _, steps = e.evaluate(index, _along())
    return e.cut or not e.seen or bool((steps[:, 1:] != steps[:, :-1]).any())


def _along() -> np.ndarray:
    """Points on each line."""
    return np.broadcast_to(np.linspace(0, 1, _POINTS), (_LINES, _POINTS))


def _stepping(value: Value, origin: Origin) -> Value:
    """The only term of a sum that steps, beside which others may be large."""
    while value.name in _THROUGH:
        steps = [x for x in value.ins if origin in x.jumps]
        alone = len(steps) == 1 and is_float(steps[0].dtype)
        others = [x for x in value.ins if x is not steps[0]] if alone else []
        # What is the same for all elements and at all points scales the step as the rest.
        alike = all(x.number is not None or not (x.shape or x.depends) for x in others)
        scaled = value.name in ("mul", "div") and not alike
        if not alone or scaled:
            break
        value = steps[0]
    return value


def _indices(shape: tuple[int, ...], some: int) -> list[tuple[int, ...]]:
    """Of two elements, or, where they differ, of all or of those at the ends and a few more."""
    size = math.prod(shape)
    rng = np.random.default_rng(0)
    picked = [tuple(int(rng.integers(n)) for n in shape) for _ in range(2 if size > 1 else 1)]
    if some > 2:
        if size <= some:
            picked += list(np.ndindex(*shape))
        else:
            picked += [tuple(n - 1 for n in shape), (0,) * len(shape)]
            picked += [tuple(int(rng.integers(n)) for n in shape) for _ in range(some - 4)]
    return list(dict.fromkeys(picked))


def _size(f: np.ndarray) -> np.ndarray:
    """The largest magnitude on each line."""
    return np.abs(np.where(np.isfinite(f), f, 0)).max(1)


def _spread(f: np.ndarray) -> np.ndarray:
    """The distance between the largest and the smallest number on each line."""
    low, high = (np.where(np.isfinite(f), f, end) for end in (np.inf, -np.inf))
    return high.max(1) - low.min(1)


def _majority(steps: np.ndarray, ok: np.ndarray) -> str:
    return "jump" if steps.sum() > 0.05 * ok.sum() else "continuous"
