"""Noise by `jax.random`, which a loss may be made of beside, or instead of, gradest's draws.

A parameter that is compared with noise is one of a discrete law that no sampler knows of:
`uniform < p`, or `mu + sigma * normal > strike`. It is found as one beside a draw is. What of
`jax.random`'s is discrete by itself, and known by its name, complains itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import _jax_random, _written
from .graph import Graph, Tracked, inputs_of
from .values import NONE, Value


class Noise(NamedTuple):
    """All noise of one line of the user's, as the name of a draw.

    Attributes:
      where: the line, as ' (at file:line)', or nothing.
    """

    where: str


def is_noise(graph: Graph, eqn: Any) -> bool:
    """Whether `eqn` draws it, and not for a draw of gradest's."""
    within = [eqn, *(caller for caller, _ in reversed(graph.callers))]
    return _jax_random.noise(eqn) is not None and not _written.is_estimators(within)


def noise(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """The result of `eqn`, a draw of noise from parameters that may be inputs themselves."""
    (v,) = eqn.outvars
    shape, dtype = tuple(v.aval.shape), v.aval.dtype
    name = Noise(_line(graph, eqn))
    draw = graph.begin(Tracked(name, slope=False), shape, dtype, ins)
    graph.noise |= graph.bits[name]

    def made(name: str, *of: Value) -> Value:
        value = graph.new(name, of, NONE, 0, shape, dtype)
        value.flow, value.jumps, value.kinked = draw.flow, draw.jumps, draw.kinked
        value.hard, value.inputs = draw.hard, inputs_of(ins)
        return value

    # What a probe makes of a draw, which may be any number.
    place = _jax_random.noise(eqn)
    if place != "between its operands":
        return [made("exp" if place == "positive" else "copy", draw)]
    graph.ranged |= graph.bits[name]
    draw.params = {"margin": 0.0}  # between 0 and 1
    _, low, high = ins
    return [made("add", low, made("mul", draw, made("sub", high, low)))]


def _line(graph: Graph, eqn: Any) -> str:
    """The user's, not that of another library which draws for them."""
    # A library's function, which JAX stages once for all calls, has that of its first call.
    outermost = next((caller for caller, of_library in graph.callers if of_library), eqn)
    return _written.line_of(outermost, _written.is_library_file) or graph.line(eqn)
