"""Values of a program as the analysis sees them: nodes of its graph of data."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

# Draws are bits of an integer, and sets of draws integers: a value depends on many.
Draws = int

# Inputs of the program likewise.
Inputs = int

# The place at which a value steps: the equation, and the calls that it is in.
Origin = tuple[Any, ...]


NONE: Mapping[Any, Any] = {}


class Jump(NamedTuple):
    """A place at which a value steps.

    Attributes:
      where: the user's line, as ' (at file:line)', or nothing.
      what: the name of the operation.
    """

    where: str
    what: str


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """The result of an equation, or an input.

    Attributes:
      name: of the primitive; "const" or "leaf" for one of which no more is known.
      ins: the operands.
      params: of the equation.
      out: which of its results this is.
      shape: of the array.
      dtype: of the array.
      flow: the draws of which it has a derivative.
      kinked: those of them in which it has kinks.
      jumps: for each place at which it steps, the draws that take it there. A value without
        `flow`, as an integer, is constant in between.
      steep: for each product with a large constant, the relaxed draws that are multiplied.
      hard: whether it depends on a draw of a discrete law, which is compared with single values.
      inputs: those of the program of which it has a derivative on a way beside the draws.
      number: what it is in all its elements, if that is known.
      key: it as an origin.
      body: what can be looked into: an array; (equation, jaxpr, path) of a call or a scan.
      id: its number, from which the points that a probe picks for it are made.
    """

    name: str
    ins: tuple["Value", ...] = ()
    params: Mapping[str, Any] = dataclasses.field(default_factory=lambda: NONE)
    out: int = 0
    shape: tuple[int, ...] = ()
    dtype: Any = None
    flow: Draws = 0
    kinked: Draws = 0
    jumps: Mapping[Origin, Draws] = dataclasses.field(default_factory=lambda: NONE)
    steep: Mapping[Origin, Draws] = dataclasses.field(default_factory=lambda: NONE)
    hard: bool = False
    inputs: Inputs = 0
    number: Any = None
    key: Origin | None = None
    body: Any = None
    id: int = 0

    @property
    def depends(self) -> bool:
        """Whether it depends on a draw."""
        return bool(self.flow or self.jumps)

    @property
    def draws(self) -> Draws:
        return self.flow | everywhere(self.jumps)


def everywhere(jumps: Mapping[Origin, Draws]) -> Draws:
    """All the draws in `jumps`."""
    found = 0
    for draws in jumps.values():
        found |= draws
    return found


def joined(*many: Mapping[Origin, Draws]) -> Mapping[Origin, Draws]:
    """The union of jumps."""
    filled = [jumps for jumps in many if jumps]
    if len(filled) <= 1:
        return filled[0] if filled else NONE
    if all(jumps is filled[0] for jumps in filled):
        return filled[0]
    union = dict(filled[0])
    for origin, draws in itertools.chain.from_iterable(jumps.items() for jumps in filled[1:]):
        union[origin] = union.get(origin, 0) | draws
    return union


def only(jumps: Mapping[Origin, Draws], draws: Draws) -> Mapping[Origin, Draws]:
    """Those of `draws`."""
    return {origin: kept for origin, of in jumps.items() if (kept := of & draws)}


def is_float(dtype: Any) -> bool:
    try:
        return bool(jnp.issubdtype(dtype, jnp.inexact))
    except TypeError:
        return False
