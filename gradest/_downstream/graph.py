"""The graph of values that a walk makes of a program."""

import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .. import _written
from .rules import STEEP, STEPS, Flow
from .values import NONE, Draws, Inputs, Jump, Origin, Value, is_float, joined


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A draw that is followed.

    Attributes:
      name: its identity.
      relaxed: whether it is of a discrete law, and differentiated as if that were continuous:
        equality with a value, and a mask by a large constant, are steps for it.
      transparent: whether a stop_gradient is not obeyed, as where the cost is evaluated at points
        that no draw can be at.
      atoms: whether its law has mass at 0 and at 1: equality with these is a step for it too.
      slope: whether anything is differentiated in it: otherwise only steps count in which it meets
        an input.
    """

    name: Hashable
    relaxed: bool = False
    transparent: bool = False
    atoms: bool = False
    slope: bool = True


class Graph:
    """Makes values, and knows the draws and the steps in them.

    Attributes:
      bits: the draws that were met, by their names.
      relaxed: those of a discrete law that are differentiated as if it were continuous.
      transparent: those of which no stop_gradient is obeyed.
      without_slope: those in which nothing is differentiated.
      noise: those by `jax.random`.
      ranged: those of them that are from a range.
      jumps: where values step, and at what.
      closed_over: the numbers of the inputs that the program closes over, by their identities.
      beside: of which inputs what steps there has a derivative beside that in the draws.
    """

    def __init__(self) -> None:
        self.bits: dict[Hashable, Draws] = {}
        self.relaxed = self.transparent = self.without_slope = 0
        self.noise = self.ranged = 0
        self.jumps: dict[Origin, Jump] = {}
        self.closed_over: dict[int, int] = {}
        self.beside: dict[Origin, Inputs] = {}
        self._num_values = 0
        self.path: tuple[Any, ...] = ()
        # The equations that we are in, and whether each is a call of a library's function.
        self.callers: list[tuple[Any, bool]] = []
        self.expanded: dict[Any, Any] = {}
        self.too_long: set[int] = set()
        self.unrolled = 0
        self._arrays: dict[int, np.ndarray | None] = {}

    def begin(
        self, draw: Tracked, shape: tuple[int, ...], dtype: Any, ins: Sequence[Value]
    ) -> Value:
        """The value of a draw, with what else of `ins` it depends on."""
        bit = self.bits.setdefault(draw.name, 1 << len(self.bits))
        self.relaxed |= bit * draw.relaxed
        self.transparent |= bit * draw.transparent
        self.without_slope |= bit * (not draw.slope)
        hard = draw.relaxed or draw.atoms
        value = self._depending("draw", shape, dtype, ins, bit, hard)
        if hard:
            # A draw may be 0 or 1 itself, and a comparison with these may tell it from others.
            value.params = {"margin": 0.0 if draw.transparent else 0.1}
        return value

    def leaf(self, shape: tuple[int, ...], dtype: Any, like: Sequence[Value] = ()) -> Value:
        """A value of which no more is known than on what it depends."""
        return self._depending("leaf", shape, dtype, like)

    def input(self, number: int, shape: tuple[int, ...], dtype: Any) -> Value:
        """An input of the program."""
        value = self.leaf(shape, dtype)
        value.inputs = (1 << number) * is_float(dtype)
        return value

    def _depending(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        ins: Sequence[Value],
        flow: Draws = 0,
        hard: bool = False,
    ) -> Value:
        value = self.new(name, (), NONE, 0, shape, dtype)
        value.hard = hard or any(x.hard for x in ins if x.depends)
        value.jumps = joined(*(x.jumps for x in ins))
        if is_float(dtype):
            for x in ins:
                flow, value.kinked = flow | x.flow, value.kinked | x.kinked
                # Into a draw a derivative goes by its parameters, which complain themselves.
                value.inputs |= x.inputs * (name != "draw")
            value.flow, value.steep = flow, joined(*(x.steep for x in ins))
        return value

    def constant(self, x: Any, aval: Any = None) -> Value:
        aval = jax.typeof(x) if aval is None else aval
        value = self.new("const", (), NONE, 0, tuple(aval.shape), aval.dtype)
        if isinstance(x, jax.core.Tracer):
            number = self.closed_over.get(id(x))
            value.inputs = 0 if number is None else (1 << number) * is_float(value.dtype)
        else:
            value.body = x
            if value.shape == () and _is_number(value.dtype):
                value.number = np.asarray(x).item()
        return value

    def new(
        self,
        name: str,
        ins: tuple[Value, ...],
        params: Mapping[str, Any],
        out: int,
        shape: tuple[int, ...],
        dtype: Any,
    ) -> Value:
        self._num_values += 1
        value = Value(name, ins, params, out, shape, dtype, id=self._num_values)
        if is_float(dtype) and name not in ("stop_gradient", *STEPS):
            value.inputs = inputs_of(ins)
        return value

    def result(
        self, eqn: Any, ins: Sequence[Value], out: int, flow: Flow, name: str = "", body: Any = None
    ) -> Value:
        """Result number `out` of `eqn`; the same one for the same equation of the same values."""
        aval, operation = eqn.outvars[out].aval, name or eqn.primitive.name
        value = self.new(operation, tuple(ins), eqn.params, out, tuple(aval.shape), aval.dtype)
        value.body, value.number, value.jumps = body, flow.number, flow.jumps
        if is_float(value.dtype):
            value.flow, value.kinked, value.steep = flow.flow, flow.kinked, flow.steep
        value.hard = any(x.hard for x in ins if x.depends)
        if value.depends:
            value.key = self.key(eqn, out)
            self._locate(eqn, value)
            if value.key in value.jumps:
                inputs = self.beside.get(value.key, 0) | inputs_of(ins)
                self.beside[value.key] = inputs
                value.inputs *= value.flow > 0  # a rounding has no derivative
                if not inputs and not value.jumps[value.key] & ~self.without_slope:
                    value.jumps = {o: d for o, d in value.jumps.items() if o != value.key}
                    if not value.depends:
                        # Such as a mask, which is not to change beside what a probe looks at.
                        value.name, value.ins = "leaf", ()
        return value

    def _locate(self, eqn: Any, value: Value) -> None:
        for origin in (*value.jumps, *value.steep):
            if origin not in self.jumps:
                what = eqn.params.get("name", eqn.primitive.name)
                what = "mask" if origin[0] is STEEP else what
                self.jumps[origin] = Jump(self.line(eqn), what)

    def key(self, eqn: Any, out: int) -> Origin:
        return (self.path, id(eqn), out)

    def line(self, eqn: Any) -> str:
        """The user's: of a library's function, which JAX stages once, that of its caller."""
        lines = (_written.line_of(caller) for caller, of_library in self.callers if of_library)
        return next(filter(None, lines), None) or _written.line_of(eqn)

    # ---- For probes ------------------------------------------------------------------------

    def element(self, x: Value, number: int) -> Value:
        """One of `x` along its first axis."""
        value = self.leaf(x.shape[1:], x.dtype, [x])
        value.name, value.ins, value.params = "element", (x,), {"number": number}
        return value

    def array(self, constant: Value) -> np.ndarray | None:
        """An array of the program, in the types of a probe; None for one that is not known."""
        x = constant.body if constant.name == "const" else None
        if x is None or id(x) not in self._arrays:
            self._arrays[id(x)] = None if x is None else _array(x)
        return self._arrays[id(x)]


def inputs_of(values: Sequence[Value]) -> Inputs:
    """Those of any of `values`."""
    found = 0
    for x in values:
        found |= x.inputs
    return found


# Larger arrays among a program's constants are taken for any others of their shape.
_KNOWN = 1_000_000


def _array(x: Any) -> np.ndarray | None:
    if np.size(x) > _KNOWN or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    dtype = jax.dtypes.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(x).astype(np.float64)
    return np.asarray(x) if _is_number(dtype) else None


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.number) or dtype == np.bool_


# ---- Libraries -----------------------------------------------------------------------------


# JAX's own special functions, activations and linear algebra are continuous where they are defined:
# what they compare with is how they are computed. Not jax.scipy.stats: supports have edges.
_COMPARE_WITHIN = (
    "_src/scipy/special.py",
    "_src/scipy/linalg.py",
    "_src/numpy/linalg.py",
    "_src/ops/special.py",
    "_src/third_party/scipy/",
    "_src/lax/special.py",
    "_src/lax/linalg.py",
    # Weights of 0 mask a category, which is the limit of what is beside them.
    "gradest/distributions/categorical.py",
)


def compares_within(eqn: Any) -> bool:
    """Whether the comparisons in `eqn` are how a function of a library is computed."""
    for file in _written.files_of(eqn):
        if not _written.is_library_file(file):
            return False
        if any(part in file.replace(os.sep, "/") for part in _COMPARE_WITHIN):
            return True
    return False


def is_of_library(closed: core.ClosedJaxpr) -> bool:
    """Whether a function of a library was staged, whose equations have its first caller's line."""
    return _written.is_library_file(_written.file_of(closed))
