"""What a single equation does to the draws that its operands depend on.

Names of primitives are those that JAX gave them over time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .values import NONE, Draws, Origin, Value, everywhere, is_float, joined, only

COMPARISONS = {"lt", "le", "gt", "ge", "lt_to", "le_to"}
EQUALITIES = {"eq", "ne", "eq_to"}
STEPS = {
    *("floor", "ceil", "round", "sign", "argmax", "argmin", "reduce_and", "reduce_or"),
    *("reduce_xor", "population_count", "clz", "bitcast_convert_type"),
}
KINKS = {
    *("max", "min", "abs", "clamp", "sort", "top_k", "approx_top_k", "reduce_max", "reduce_min"),
    *("cummax", "cummin", "reduce_window_max", "reduce_window_min", "pmax", "pmin"),
    *("scatter_max", "scatter_min", "scatter-max", "scatter-min"),
}
# Derivatives of max-pooling: of their first operand, where the second one is largest.
_POOLED = {"select_and_scatter_add", "select_and_gather_add"}
# What a boolean that is almost surely the same stays so through.
_FOLDED = {
    *("and", "or", "not", "broadcast_in_dim", "reshape", "squeeze", "transpose", "copy"),
    *("reduce_and", "reduce_or"),
}
# Integers that say in which order rows were taken, which whoever uses them undoes.
_ROW_ORDERS = {"lu", "lu_pivots_to_permutation"}
_WITHOUT_VALUE = {"random_wrap", "random_seed", "axis_index", "create_token"}
_SUMS = {"add", "sub", "add_any"}
_OF_TWO = {*_SUMS, "mul", "div", "max", "min"}
# Where a step of an operand may vanish. Elsewhere a value steps where its operand does.
_MEETINGS = {
    *(*_OF_TWO, "gather", "dynamic_slice", "reduce_sum", "reduce_max", "reduce_min"),
    *("reduce_prod", "dot_general", "cos", "sin", "abs", "integer_pow", "pow", "square"),
    "clamp",
}
# Through these what is steep in a draw stays so without harm: the slope of a mean is right,
# however large. Behind anything else a relaxed draw is as good as a hard one, and has no slope.
_LINEAR = {
    *(*_SUMS, "mul", "div", "neg", "reduce_sum", "cumsum", "dot_general", "broadcast_in_dim"),
    *("reshape", "squeeze", "transpose", "expand_dims", "slice", "dynamic_slice", "gather", "pad"),
    *("concatenate", "convert_element_type", "copy", "copy_p", "stop_gradient", "rev", "split"),
    *("real", "reduce_precision", "optimization_barrier", "pvary", "pcast", "psum", "stack"),
}
# A constant from which on a product with a relaxed draw is a mask.
LARGE = 1e4
# As origins, such products are told from steps, which a probe can see.
STEEP = "steep"
# What makes an array of one number.
_FILLS = ("broadcast_in_dim", "convert_element_type", "reshape")


class Following(Protocol):
    """Of the draws that are followed, those that differ from pathwise draws of a continuous law.

    Attributes:
      relaxed: those of a discrete law that are differentiated as if it were continuous.
      transparent: those of which no stop_gradient is obeyed.
    """

    relaxed: Draws
    transparent: Draws


class Flow:
    """What a result is made of: its draws, kinks and steps, and what is known of its value."""

    __slots__ = ("flow", "jumps", "kinked", "meets", "number", "steep")

    def __init__(
        self,
        flow: Draws = 0,
        jumps: Mapping[Origin, Draws] = NONE,
        *,
        kinked: Draws = 0,
        steep: Mapping[Origin, Draws] = NONE,
        number: Any = None,
        meets: bool = False,
    ):
        self.flow, self.jumps, self.kinked, self.steep = flow, jumps, kinked & flow, steep
        self.number, self.meets = number, meets


def flow_of(
    name: str,
    params: Mapping[str, Any],
    ins: Sequence[Value],
    out: int,
    dtype: Any,
    step: Origin | None,
    draws: Following,
) -> Flow:
    """What becomes of the operands in result number `out` of an equation without jaxprs.

    Args:
      name: of the primitive.
      params: of the equation.
      ins: the operands, of which one at least depends on a draw.
      out: the number of the result.
      dtype: of the result.
      step: the equation as an origin; None where it is known that what it compares is meant.
      draws: of the analysis.
    """
    if name == "gradest_weighted":
        # Where it is masked, it has no weight.
        ins = [x for x in ins if is_float(x.dtype)]
    dependent = [x for x in ins if x.depends]
    flow = kinked = 0
    for x in dependent:
        flow, kinked = flow | x.flow, kinked | x.kinked
    jumps = joined(*(x.jumps for x in dependent))
    steps = {step: flow | everywhere(jumps)} if flow and step is not None else NONE
    stepped = steps if flow else jumps  # what is compared, and how often it steps itself

    if name == "stop_gradient":
        kept = draws.transparent
        steep = only(dependent[0].steep, kept)
        return Flow(flow & kept, only(jumps, kept), kinked=kinked, steep=steep)
    if name in _WITHOUT_VALUE or (name in _ROW_ORDERS and not is_float(dtype)):
        return Flow()
    if name in COMPARISONS:
        return Flow(0, stepped)
    if name in EQUALITIES or (name == "convert_element_type" and dtype == np.bool_ and flow):
        # Almost surely different: from what is infinite, and if the draw's law has a density.
        infinite = any(map(_is_infinite, ins))
        smooth = flow and not (kinked or jumps or any(x.hard for x in dependent))
        return Flow(number=np.bool_(name != "eq")) if infinite or smooth else Flow(0, stepped)
    if name in ("rem", "atan2"):
        return Flow(flow, joined(jumps, steps), kinked=kinked, meets=True)
    if name in STEPS or not is_float(dtype):  # casts, indices of sort and top_k, unknown integers
        return Flow(0, stepped)
    num_keys = params["num_keys"] if name == "sort" else out + 1
    if out >= num_keys and any(x.depends for x in ins[:num_keys]):
        # What is carried along has its own derivative only.
        of = ins[out]
        return Flow(of.flow, joined(jumps, steps), kinked=of.kinked, meets=True)

    if name in _POOLED:
        return Flow(ins[0].flow, joined(jumps, steps if ins[1].depends else NONE), kinked=kinked)
    if name == "mul" and any(x.number is not None and not x.number for x in ins):
        return Flow()
    if name == "select_n" and step is not None and any(map(_is_infinite, ins[1:])):
        # A relaxed point is never at the values of the draw, so a mask need not be seen to change.
        masked = everywhere(ins[0].jumps) & draws.relaxed
        jumps = joined(jumps, {(STEEP, step): masked} if masked else NONE)
    steep = joined(*(x.steep for x in dependent))
    if name in ("mul", "div") and len(ins) == 2 and step is not None:
        steep = _scaled(name, ins, steep, step, draws.relaxed)
    if steep and name not in _LINEAR:
        jumps, steep = joined(jumps, steep), NONE
    if name in KINKS:
        kinked = flow
    # The steps of different places do not cancel.
    apart = name in _SUMS and not (ins[0].jumps.keys() & ins[1].jumps.keys())
    all_depend = name not in _OF_TWO or len(dependent) == len(ins)
    meets = name == "select_n" or (name in _MEETINGS and all_depend and not apart)
    meets = meets or (name.startswith("scatter") and bool(ins[1].jumps))
    return Flow(flow, jumps, kinked=kinked, steep=steep, meets=meets and bool(jumps))


def _is_infinite(x: Value) -> bool:
    """Whether all of `x` is known to be the same infinity."""
    while x.number is None and x.name in _FILLS and x.ins:
        x = x.ins[0]
    return isinstance(x.number, float) and bool(np.isinf(x.number))


def _scaled(
    name: str,
    ins: Sequence[Value],
    steep: Mapping[Origin, Draws],
    step: Origin,
    relaxed: Draws,
) -> Mapping[Origin, Draws]:
    """What is steep in a product, or a quotient by a constant."""
    for x, by in ((ins[0], ins[1]), (ins[1], ins[0])):
        if by.number is None or not (x.flow & relaxed):
            continue
        size = float(abs(by.number))
        if name == "div" and by is ins[1]:
            size = 1 / size if size else np.inf
        if size >= LARGE:
            return joined(steep, {(STEEP, step): x.flow & relaxed})
    return steep


def folded(name: str, ins: Sequence[Value]) -> Any:
    """The boolean that an equation gives, if it is one of known booleans or a guard; else None."""
    if name == "is_finite":
        return np.True_
    if name in ("eq", "ne") and ins[0] is ins[1]:  # isnan
        return np.bool_(name == "eq")
    if name not in _FOLDED or not all(isinstance(x.number, np.bool_) for x in ins):
        return None
    numbers = [bool(x.number) for x in ins]
    value = {"and": all(numbers), "or": any(numbers), "not": not numbers[0]}
    return np.bool_(value.get(name, numbers[0]))


def continuous(value: Value, origin: Origin, verdict: str, what: str) -> bool:
    """Whether a probe's verdict says that `value` does not step at `origin`."""
    if verdict == "continuous":
        # Without a derivative what is continuous is constant, which a few points do not show.
        return value.flow > 0
    tested = value.flow > 0 or not value.hard or what not in EQUALITIES
    return verdict == "constant" and tested
