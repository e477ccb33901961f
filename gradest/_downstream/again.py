"""What a walk through a jaxpr found, for another call of it with operands of the same kind.

A program may call a function that calls another twice, and so on: walked anew each time, such a
program would take a time that is exponential in its length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .rules import STEEP
from .values import Draws, Inputs, Jump, Origin, Value


@dataclasses.dataclass(frozen=True)
class Walked:
    """What was found in a jaxpr.

    Attributes:
      outs: its results.
      path: of the calls that it was in.
      origins: the places at which its operands stepped.
      inputs: of the program, on which each of its operands depended.
    """

    outs: Sequence[Any]
    path: tuple[Any, ...]
    origins: tuple[Origin, ...]
    inputs: tuple[Inputs, ...]

    def serves(self, inputs: tuple[Inputs, ...]) -> bool:
        """Whether it is of use for other inputs: who is beside a step is not told by name."""
        steps = set().union(*(out.jumps for out in self.outs if out)) - set(self.origins)
        return inputs == self.inputs or not steps


def class_of(x: Value, order: Mapping[Origin, int]) -> Any:
    """What there is to know of an operand, but for which it is."""
    jumps = tuple((order[origin], draws) for origin, draws in x.jumps.items())
    steep = tuple((order[origin], draws) for origin, draws in x.steep.items())
    return x.flow, x.kinked, jumps, steep, x.hard, x.number, bool(x.inputs)


class Renaming:
    """From the steps of an earlier walk through a jaxpr to those of this call of it."""

    def __init__(
        self,
        jumps: dict[Origin, Jump],
        line: str,
        path: tuple[Any, ...],
        earlier: Walked,
        origins: tuple[Origin, ...],
    ):
        self.jumps, self.line, self.path, self.earlier = jumps, line, path, earlier
        self.operands = dict(zip(earlier.origins, origins, strict=True))

    def __call__(self, jumps: Mapping[Origin, Draws]) -> Mapping[Origin, Draws]:
        return {self.origin(origin): draws for origin, draws in jumps.items()}

    def origin(self, origin: Any) -> Origin:
        if origin in self.operands:
            return self.operands[origin]
        path, *rest = origin[1] if origin[0] is STEEP else origin
        new: Any = ((*self.path, *path[len(self.earlier.path) :]), *rest)
        new = (STEEP, new) if origin[0] is STEEP else new
        jump = self.jumps[origin]
        self.jumps.setdefault(new, Jump(self.line or jump.where, jump.what))
        return new
