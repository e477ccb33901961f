"""Single elements of values, evaluated at many points at once, in NumPy.

Nothing is computed that an element does not depend on, so that it does not matter how large the
arrays of a program are. What is not known, an input or a function that is not understood, is a
random number, the same one for the same element.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .elementwise import BINARY, UNARY, as_real
from .rules import EQUALITIES
from .values import Draws, Origin, Value, is_float

# An index into an array; where it depends on the draw, an array with that of each point.
Index = tuple[Any, ...]

# Operations in sequence, beyond which an element is not followed.
_DEPTH = 100
# How far beyond its values a draw of a discrete law may be.
_MARGIN = 0.1
# What compares with single values.
_EQUALS = {*EQUALITIES, "convert_element_type"}
# Numbers of the program around which points are chosen.
_NUMBERS = 64


class Program(Protocol):
    """What is asked of the program that a value is of."""

    expanded: dict[Any, Any]
    relaxed: Draws
    too_long: set[int]
    unrolled: int

    def expand(self, value: Value, ins: Sequence[Value]) -> list[Value]: ...

    def array(self, constant: Value) -> np.ndarray | None: ...

    def element(self, x: Value, number: int) -> Value: ...

    def size_of(self, eqn: Any) -> int: ...


class TooLong(Exception):
    """An element takes too long to compute.

    Attributes:
      cut: whether a part of it was found that need not be computed again.
    """

    cut = False


class Elements:
    """Elements of what a value is computed from, at points on lines.

    Args:
      program: that the value is of.
      rules: how an element of the result of a primitive is computed.
      value: of which elements are asked for.
      origin: the place whose steps are looked for.
      lines: how many.
      budget: how many elements may be computed for one.
      hard: whether draws of a discrete law may be at the values of that, or beyond, where an
        equality of them may hold.

    Attributes:
      seen: whether the origin is among what was computed.
      cut: whether something was not computed, but taken for any number.
      num_draws: on how many elements of draws the value depends, as far as it was followed.
      terms: those of `value`, if it is a sum.
      total: how many elements were computed.
    """

    def __init__(
        self,
        program: Program,
        rules: Mapping[str, "Rule"],
        value: Value,
        origin: Origin,
        lines: int,
        budget: int,
        *,
        hard: bool = False,
    ):
        self.program, self.rules, self.value, self.origin = program, rules, value, origin
        self.lines, self.budget, self.hard = lines, budget, hard
        self.seen, self.cut, self.total = False, False, 0
        self.terms: np.ndarray | None = None
        self.touched: dict[int, list[Index]] = {}
        self._numbers, self._integers = {0.0}, {0}
        self._around: np.ndarray | None = None
        self._around_integers = np.zeros(1, int)
        self._ends: dict[Any, Any] = {}
        self._draws: set[Any] = set()
        # What is computed of the program's constants alone is the same at all points.
        self._fixed: dict[Any, Any] = {}
        self._num_random = 0  # how often anything else was come across
        line = np.arange(lines)
        near = 10.0 ** -(line % 5 / 2.0)
        self._scale = np.where(line % 3 == 0, near, 1.0)[:, None]
        # What all elements of draws have in common on some lines: a mean of many moves only so.
        self._common = np.where(line % 4 == 1, np.linspace(-3, 3, lines), 0.0)[:, None]

    @property
    def num_draws(self) -> int:
        return len(self._draws)

    def look_around(self, index: Index) -> None:
        """Collects the numbers of the program, around which points are then chosen."""
        self.evaluate(index, np.zeros((self.lines, 1)))
        self._around = np.array(sorted(self._numbers))[:_NUMBERS]
        self._around_integers = np.array(sorted(self._integers))[:_NUMBERS]

    def evaluate(self, index: Index, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value's element where the lines are at `t`, and a number that steps as the origin."""
        self.t, self._memo, self._work, self._weights = t, {}, 0, 0
        self.touched, self.terms = {}, None
        self._steps = np.zeros(t.shape)
        return as_real(self.spread(self.at(self.value, index))), self._steps

    def at(self, value: Value, index: Index, depth: int = 0) -> Any:
        """An element of `value`."""
        # Beside a larger array an axis of one element has that one everywhere.
        if not value.shape:
            index = ()
        elif 1 in value.shape:
            index = tuple(0 if n == 1 else i for n, i in zip(value.shape, index, strict=True))
        name = value.id, tuple(i if isinstance(i, int) else i.tobytes() for i in index)
        if name in self._memo:
            self._num_random += 1
            return self._memo[name]
        if name in self._fixed:
            return self._fixed[name]
        before, random = self._work, self._num_random
        self._work, self.total = before + 1, self.total + 1
        if self._work > self.budget:
            raise TooLong
        if value.depends and not varies(index):
            self.touched.setdefault(value.id, []).append(index)
        if self._is_cut(value, depth):
            self.cut = True
            x = self.leaf(value, index)
        else:
            try:
                x = self._compute(value, index, depth + 1)
            except TooLong as error:
                # The innermost that takes most of the time is any number, from now on.
                if not error.cut and self._work - before > self.budget // 2:
                    self.program.too_long.add(value.id)
                    error.cut = self._is_cut(value, depth)
                raise
        if self.origin in value.jumps:
            self._notice(value, index, x, depth)
        if self._num_random == random and not value.depends and not varies(index):
            x = self._fixed[name] = np.asarray(x).flat[0]
        else:
            self._memo[name] = x
        return x

    def _is_cut(self, value: Value, depth: int) -> bool:
        """Whether `value` is not computed, far from where something steps."""
        if self.origin in value.jumps:
            return False
        return depth > _DEPTH or value.id in self.program.too_long

    def _notice(self, value: Value, index: Index, x: Any, depth: int) -> None:
        """Has the steps of an element that steps where the origin does, or is the origin."""
        integer = not is_float(value.dtype)
        if not (value.key == self.origin or value.name == "leaf" or integer):
            return
        self.seen = True
        if self.hard and value.key == self.origin and value.name in _EQUALS:
            a, *b = (self.at(operand, index, depth) for operand in value.ins)
            self.mark(np.sign(np.subtract(a, b[0] if b else 0)))
        elif integer or value.name in ("floor", "ceil", "round", "sign"):
            self.mark(x)
        elif value.name == "rem":
            a, b = (self.at(x, index, depth) for x in value.ins)
            self.mark(np.trunc(a / b))
        elif value.name == "atan2":
            angle = self.spread(x)
            self.mark(np.round((angle - np.unwrap(angle, axis=1)) / (2 * np.pi)))

    def mark(self, x: Any) -> None:
        """Has `x` among what steps; weighted, so that no two steps cancel."""
        self._weights += 1
        self._steps = self._steps + np.nan_to_num(np.asarray(x, float)) * (
            0.1 + self._weights * 0.618034 % 1
        )

    def spread(self, x: Any) -> np.ndarray:
        """An element at each of the points."""
        x = np.asarray(x)
        return x if x.shape == self.t.shape else np.broadcast_to(x, self.t.shape)

    def many(self, value: Value, indices: Sequence[Index], depth: int) -> np.ndarray:
        return np.stack([self.spread(self.at(value, i, depth)) for i in indices])

    def _compute(self, value: Value, index: Index, depth: int) -> Any:
        if value.number is not None:
            return self._note(value.number)
        if value.name == "const" and value.body is not None:
            return self._constant(value, index)
        if value.name in UNARY:
            return UNARY[value.name](self.at(value.ins[0], index, depth))
        if value.name in BINARY:
            a, b = (self.at(x, index, depth) for x in value.ins)
            if value is self.value and value.name in ("add", "sub", "add_any"):
                self.terms = as_real(np.stack([self.spread(a), self.spread(b)]))
            return BINARY[value.name](a, b)
        if value.name == "call":
            return self.at(self.program.expand(value, value.ins)[value.out], index, depth)
        if value.name in self.rules:
            return self.rules[value.name](self, value, index, depth)
        return self.leaf(value, index)

    # ---- What is not computed --------------------------------------------------------------

    def _note(self, number: Any) -> Any:
        if isinstance(number, float) and np.isfinite(number) and abs(number) < 1e6:
            self._numbers.add(number)
        elif isinstance(number, int) and abs(number) < 1e6:
            self._integers.add(number)
        return number

    def _constant(self, value: Value, index: Index) -> Any:
        array = self.program.array(value)
        if array is None:
            return self.leaf(value, index)
        within = (np.clip(i, 0, n - 1) for i, n in zip(index, array.shape, strict=True))
        x = array[tuple(within)]
        return x if np.ndim(x) else self._note(x.item())

    def leaf(self, value: Value, index: Index) -> Any:
        """A random element; between two of them along a line if it depends on a draw."""
        dtype = value.dtype
        kind = "f" if is_float(dtype) else np.dtype(dtype).kind if _is_numeric(dtype) else ""
        if not kind:
            raise TooLong
        self._num_random += 1
        self.seen |= self.origin in value.jumps
        a, b, step = self._ends_of(value, index, kind)
        if not value.depends:
            return a
        self._draws.add((value.id, tuple(map(str, index))))
        if kind in "biu":
            return np.where(self.t < 0.37, a, b)
        x = a + self.t * (b - a)
        if self.origin in value.jumps:
            stepped = (self.t > 0.61).astype(float)
            self._steps = self._steps + stepped
            x = x + stepped * step
        return x

    def _ends_of(self, value: Value, index: Index, kind: str) -> Any:
        name = value.id, index
        fixed = not varies(index)
        if fixed and name in self._ends:
            return self._ends[name]
        line = np.arange(self.lines, dtype=np.uint64)[:, None]
        hashed = np.uint64(value.id * 7919 + 13) ^ (line * np.uint64(1000003))
        for d, i in enumerate(index):
            i = np.asarray(i, np.int64).astype(np.uint64)
            hashed = _mixed(hashed + i * np.uint64(2654435761 + d))
        ends = tuple(self._random(value, hashed, kind, salt) for salt in (1, 2, 3))
        if fixed and self._around is not None:
            self._ends[name] = ends
        return ends

    def _random(self, value: Value, hashed: np.ndarray, kind: str, salt: int) -> np.ndarray:
        """Normal ones, some large or small, and some near the numbers of the program."""
        u = [_uniform(hashed + np.uint64(salt + j * 977)) for j in range(4)]
        if kind == "b":
            return u[0] < 0.5
        if kind in "iu":
            of_program = self._around_integers[(u[1] * len(self._around_integers)).astype(int)]
            return np.where(u[0] < 0.5, np.floor(u[0] * 10).astype(int), of_program)
        if value.name == "bitcast_convert_type":  # as jax.random does: a mantissa
            return 1 + u[0]
        z = np.sqrt(-2 * np.log(np.maximum(u[0], 1e-300))) * np.cos(2 * np.pi * u[1]) * self._scale
        around = np.zeros(1) if self._around is None else self._around
        centre = around[(u[3] * len(around)).astype(int)] * np.where(u[1] < 0.25, -1, 1)
        close = centre + (0.2 + 0.3 * np.abs(centre)) * z
        scaled = z * 10 ** (4 * u[3] - 2)
        x = np.where(u[2] < 0.55, scaled, close)
        x = np.where(u[2] < np.where(self._scale == 1, 0.4, 0.85), z, x)
        margin = value.params.get("margin")
        if margin is None:
            moves = value.depends and salt < 3
            return x + self._common * (1 if salt == 1 else -1) if moves else x
        margin = max(margin, _MARGIN) if self.hard else margin
        # With all elements going from near one end to the other, on some lines.
        shift = np.linspace(-3, 3, self.lines)[:, None] * (1 if salt == 1 else -1)
        # Short of where it is rounded to an end, which no relaxed draw reaches.
        x = np.clip(x + shift, -30, 30)
        return (1 + 2 * margin) / (1 + np.exp(-x)) - margin


def varies(index: Index) -> bool:
    """Whether an index depends on the point."""
    return any(isinstance(i, np.ndarray) for i in index)


def _is_numeric(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "biu"


def _mixed(x: np.ndarray) -> np.ndarray:
    """Random bits (splitmix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(x: np.ndarray) -> np.ndarray:
    return (_mixed(x) >> np.uint64(11)).astype(np.float64) / 2.0**53


Rule = Callable[[Elements, Value, Index, int], Any]


def registering(rules: dict[str, Rule]) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that enters in `rules` how an element of the result of primitives is computed."""

    def rule(*names: str) -> Callable[[Rule], Rule]:
        def register(function: Rule) -> Rule:
            rules.update(dict.fromkeys(names, function))
            return function

        return register

    return rule
