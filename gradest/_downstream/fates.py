"""What became of each draw, once a program was walked."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from jax.extend import core

from .constructs import Analysis
from .graph import Tracked
from .values import Draws, Jump, Value
from .walk import Special


@dataclasses.dataclass(frozen=True)
class Beside:
    """An input of a program that is beside a draw where that jumps.

    Attributes:
      number: of the input; those that the program closes over come after its arguments.
      smooth: whether a derivative in it arrives on some way.
      jumps: the places, each once.
    """

    number: int
    smooth: bool
    jumps: tuple[Jump, ...]


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of a draw on its way to the loss and the costs.

    Attributes:
      smooth: whether a derivative arrives on some way.
      kinked: whether one does that has kinks.
      jumps: where ways end in a step, each place once.
      unseen: where a choice could not be looked at, and counts as a kink.
      beside: the inputs that have a derivative in what jumps, if the draw is of a continuous law:
        its mean over the draw has one that is missing.
    """

    smooth: bool
    kinked: bool
    jumps: tuple[Jump, ...]
    unseen: tuple[Jump, ...] = ()
    beside: tuple[Beside, ...] = ()

    @property
    def level(self) -> str:
        """The strongest of "nothing", "smooth", "kinked", "unknown" and "jump"."""
        if self.jumps:
            return "jump"
        if self.kinked and self.unseen:
            return "unknown"
        return "kinked" if self.kinked else "smooth" if self.smooth else "nothing"

    @property
    def lost(self) -> bool:
        """Whether every way ends in a step, so that the derivative is zero and is wrong."""
        return bool(self.jumps) and not self.smooth


def fates(
    loss: core.ClosedJaxpr, special: Callable[[Any], Special | None]
) -> Mapping[Hashable, Fate]:
    """Those of the draws and of noise in a staged loss, whose first result is the loss."""
    analysis = Analysis(special, follows_noise=True)
    jaxpr = loss.jaxpr
    ins = _inputs(analysis, loss, 0)
    used = [i == 0 for i in range(len(jaxpr.outvars))]
    analysis.arrive(analysis.run(loss, ins, used)[0])
    return {name: _fate(analysis, bit) for name, bit in analysis.bits.items()}


def fate_of_inputs(function: core.ClosedJaxpr, draw: Tracked, num_drawn: int) -> Fate:
    """That of the first inputs of a staged function of one result, as one draw."""
    analysis = Analysis()
    avals: list[Any] = [v.aval for v in function.jaxpr.invars]
    ins = _inputs(analysis, function, num_drawn)
    drawn = [analysis.begin(draw, tuple(v.shape), v.dtype, []) for v in avals[:num_drawn]]
    analysis.arrive(analysis.run(function, [*drawn, *ins])[0])
    return _fate(analysis, analysis.bits[draw.name])


def _inputs(analysis: Analysis, program: core.ClosedJaxpr, num_drawn: int) -> list[Value]:
    """The arguments of a program after those that are drawn."""
    avals: list[Any] = [v.aval for v in program.jaxpr.invars]
    analysis.closed_over = {id(x): len(avals) + i for i, x in enumerate(program.consts)}
    inputs = list(enumerate(avals))[num_drawn:]
    return [analysis.input(i, tuple(v.shape), v.dtype) for i, v in inputs]


def _fate(analysis: Analysis, bit: int) -> Fate:
    arrived = analysis.arrived
    places = lambda origins: {analysis.jumps[o] for o, draws in origins.items() if draws & bit}
    jumps = places(arrived.jumps)
    unseen = places(analysis.unseen) - jumps
    smooth, kinked = bool(arrived.flow & bit), bool(arrived.kinked & bit)
    beside = () if bit & analysis.relaxed else _beside(analysis, bit)
    return Fate(smooth, kinked, tuple(sorted(jumps)), tuple(sorted(unseen)), beside)


def _beside(analysis: Analysis, bit: Draws) -> tuple[Beside, ...]:
    places: dict[int, set[Jump]] = {}
    for origin, draws in analysis.arrived.jumps.items():
        inputs = analysis.beside.get(origin, 0) if draws & bit else 0
        while inputs:
            number = inputs.bit_length() - 1
            inputs ^= 1 << number
            places.setdefault(number, set()).add(analysis.jumps[origin])
    smooth = lambda number: bool(analysis.arrived.inputs >> number & 1)
    return tuple(Beside(n, smooth(n), tuple(sorted(places[n]))) for n in sorted(places))
