"""What became of each draw, once a program was walked."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from jax.extend import core

from .constructs import Analysis
from .graph import Tracked
from .values import Jump
from .walk import Special


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of a draw on its way to the loss and the costs.

    Attributes:
      smooth: whether a derivative arrives on some way.
      kinked: whether one does that has kinks.
      jumps: where ways end in a step, each place once.
      unseen: where a choice could not be looked at, and counts as a kink.
    """

    smooth: bool
    kinked: bool
    jumps: tuple[Jump, ...]
    unseen: tuple[Jump, ...] = ()

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
    """Those of the draws in a staged loss, whose first result is the loss."""
    analysis = Analysis(special)
    jaxpr = loss.jaxpr
    inputs: list[Any] = [v.aval for v in jaxpr.invars]
    ins = [analysis.leaf(tuple(v.shape), v.dtype) for v in inputs]
    used = [i == 0 for i in range(len(jaxpr.outvars))]
    analysis.arrive(analysis.run(loss, ins, used)[0])
    return {name: _fate(analysis, bit) for name, bit in analysis.bits.items()}


def fate_of_inputs(function: core.ClosedJaxpr, draw: Tracked, num_drawn: int) -> Fate:
    """That of the first inputs of a staged function of one result, as one draw."""
    analysis = Analysis()
    inputs: list[Any] = [v.aval for v in function.jaxpr.invars]
    ins = [
        analysis.begin(draw, tuple(v.shape), v.dtype, [])
        if i < num_drawn
        else analysis.leaf(tuple(v.shape), v.dtype)
        for i, v in enumerate(inputs)
    ]
    analysis.arrive(analysis.run(function, ins)[0])
    return _fate(analysis, analysis.bits[draw.name])


def _fate(analysis: Analysis, bit: int) -> Fate:
    arrived = analysis.arrived
    places = lambda origins: {analysis.jumps[o] for o, draws in origins.items() if draws & bit}
    jumps = places(arrived.jumps)
    unseen = places(analysis.unseen) - jumps
    smooth, kinked = bool(arrived.flow & bit), bool(arrived.kinked & bit)
    return Fate(smooth, kinked, tuple(sorted(jumps)), tuple(sorted(unseen)))
