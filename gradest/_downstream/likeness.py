"""Which values are computed alike, so that what was seen of one holds for the other.

As those in the layers of a network are. A program holds constants: some are thresholds, masks and
positions, which tell one value from another, and others are weights, any of which do as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .values import Origin, Value

# How many operations, and values, around a place are looked at for one that is like it.
_NEAR, _MANY = 8, 200
# A constant of more different numbers is an array of weights.
_DIFFERENT, _SAMPLED = 12, 4096
# Of these the parameters say less than the operands, or less than what is inside.
_WITHOUT_PARAMETERS = {"const", "leaf", "draw", "call", "scan", "cond", "while"}
# Results of these are not computed alike in all their elements.
_BY_POSITION = {
    *("iota", "concatenate", "stack", "pad", "dynamic_update_slice", "scatter", "scatter-add"),
    *("scatter_add", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
}


class Likeness:
    """Knows the constants of a program.

    Args:
      array: the array of a constant, or None.
    """

    def __init__(self, array: Callable[[Value], np.ndarray | None]):
        self._array = array
        self._contents: dict[int, Any] = {}

    def of(self, value: Value, origin: Origin) -> tuple[Any, ...] | None:
        """Something that is equal for values that are computed alike; None if none is like it."""
        around = _around(value)
        if len(around) > _MANY or not any(v.key == origin for v, _ in around):
            return None
        return tuple(
            (*self._known(v), v.flow > 0, v.hard, origin in v.jumps, operands)
            for v, operands in around
        )

    def by_position(self, value: Value) -> bool:
        """Whether the elements of `value` may be computed in different ways."""
        return any(
            v.name in _BY_POSITION or _differs(self.content(v)) for v, _ in _around(value)[:_MANY]
        )

    def content(self, value: Value) -> Any:
        """What tells a constant from others; None of weights, or where it is not known."""
        if value.number is not None or value.name != "const" or value.body is None:
            return value.number
        name = id(value.body)
        if name not in self._contents:
            self._contents[name] = _content(self._array(value))
        return self._contents[name]

    def _known(self, v: Value) -> tuple[Any, ...]:
        inside = id(v.body[1].jaxpr) if v.body is not None and v.name != "const" else None
        return v.name, v.out, self.content(v), inside, self._parameters(v)

    def _parameters(self, v: Value) -> Any:
        margin = v.params.get("margin") if v.name == "draw" else None
        anything = all(x.name == "leaf" or self._is_of_weights(x) for x in v.ins)
        if v.name in _WITHOUT_PARAMETERS or anything:
            return margin
        try:
            parameters = tuple(v.params.items())
            hash(parameters)
        except TypeError:
            return None
        return parameters

    def _is_of_weights(self, x: Value) -> bool:
        return x.name == "const" and x.number is None and self.content(x) is None


def _around(value: Value) -> list[tuple[Value, tuple[int, ...]]]:
    """The values near `value` of which it is made, each with the numbers of its operands."""
    numbers, queue, found = {value.id: 0}, [(value, 0)], []
    for v, depth in queue:
        operands = []
        for x in v.ins if depth < _NEAR else ():
            if x.id not in numbers:
                numbers[x.id] = len(numbers)
                queue.append((x, depth + 1))
            operands.append(numbers[x.id])
        found.append((v, tuple(operands)))
        if len(found) > _MANY:
            break
    return found


def _content(array: np.ndarray | None) -> Any:
    if array is None or not array.size:
        return None
    some = array.ravel()[:: max(1, array.size // _SAMPLED)]
    different = np.unique(some)
    if len(different) > _DIFFERENT and array.dtype.kind == "f":
        return None
    if len(different) == 1 and (array == different[0]).all():
        return different[0].item()
    return array.shape, hash(array.tobytes())


def _differs(content: Any) -> bool:
    return isinstance(content, tuple)
