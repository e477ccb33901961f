"""What a single equation does to the draws that its operands depend on.

Names of primitives are those that JAX gave them over time.
"""

from collections.abc import Callable, Mapping, Sequence
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
# What a boolean that is almost surely the same stays so through.
_FOLDED = {
    *("and", "or", "not", "broadcast_in_dim", "reshape", "squeeze", "transpose", "copy"),
    *("reduce_and", "reduce_or"),
}
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


class Operation:
    """A result of an equation without jaxprs, one of whose operands at least depends on a draw.

    Attributes:
      name: of the primitive.
      params: of the equation.
      ins: the operands.
      out: the number of the result.
      dtype: of the result.
      step: the equation as an origin; None where it is known that what it compares is meant.
      draws: of the analysis.
      dependent: the operands that depend on a draw.
      flow: the draws of which an operand has a derivative.
      kinked: those of them in which one has kinks.
      jumps: the steps of the operands.
      steps: its own, if it steps where an operand moves.
    """

    def __init__(
        self,
        name: str,
        params: Mapping[str, Any],
        ins: Sequence[Value],
        out: int,
        dtype: Any,
        step: Origin | None,
        draws: Following,
    ):
        self.name, self.params, self.ins, self.out, self.dtype = name, params, ins, out, dtype
        self.step, self.draws = step, draws
        self.dependent = [x for x in ins if x.depends]
        self.flow = self.kinked = 0
        for x in self.dependent:
            self.flow, self.kinked = self.flow | x.flow, self.kinked | x.kinked
        self.jumps = joined(*(x.jumps for x in self.dependent))
        own = self.flow and step is not None
        self.steps = {step: self.flow | everywhere(self.jumps)} if own else NONE

    def of(self, ins: Sequence[Value]) -> "Operation":
        """As if it had only these operands."""
        return Operation(self.name, self.params, ins, self.out, self.dtype, self.step, self.draws)


Rule = Callable[[Operation], Flow]
_OF_ANY: dict[str, Rule] = {}
_OF_FLOATS: dict[str, Rule] = {}


def flow_of(operation: Operation) -> Flow:
    """What becomes of the operands in the result."""
    if (rule := _OF_ANY.get(operation.name)) is not None:
        return rule(operation)
    if not is_float(operation.dtype):  # the order of sort and top_k, unknown integers
        return _stepping(operation)
    return _OF_FLOATS.get(operation.name, _smooth)(operation)


def _rule(rules: dict[str, Rule], *names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        rules.update(dict.fromkeys(names, function))
        return function

    return register


# ---- Results of any type -------------------------------------------------------------------


@_rule(_OF_ANY, *COMPARISONS, *STEPS)
def _stepping(op: Operation) -> Flow:
    # What is compared steps as often as its operand does.
    return Flow(0, op.steps if op.flow else op.jumps)


@_rule(_OF_ANY, *EQUALITIES)
def _equal(op: Operation) -> Flow:
    # Almost surely different: from what is infinite, and if the draw's law has a density.
    infinite = any(map(_is_infinite, op.ins))
    smooth = op.flow and not (op.kinked or op.jumps or any(x.hard for x in op.dependent))
    return Flow(number=np.bool_(op.name != "eq")) if infinite or smooth else _stepping(op)


@_rule(_OF_ANY, "convert_element_type")
def _converted(op: Operation) -> Flow:
    if op.dtype == np.bool_ and op.flow:
        return _equal(op)  # to 0
    return _smooth(op) if is_float(op.dtype) else _stepping(op)


@_rule(_OF_ANY, "stop_gradient")
def _stopped(op: Operation) -> Flow:
    kept = op.draws.transparent
    steep = only(op.dependent[0].steep, kept)
    return Flow(op.flow & kept, only(op.jumps, kept), kinked=op.kinked, steep=steep)


@_rule(_OF_ANY, "random_wrap", "random_seed", "axis_index", "create_token")
def _without_value(op: Operation) -> Flow:
    del op
    return Flow()


@_rule(_OF_ANY, "lu", "lu_pivots_to_permutation")
def _factorized(op: Operation) -> Flow:
    # Integers say in which order rows were taken, which whoever uses them undoes.
    return _smooth(op) if is_float(op.dtype) else Flow()


@_rule(_OF_ANY, "rem", "atan2")
def _wrapped(op: Operation) -> Flow:
    return Flow(op.flow, joined(op.jumps, op.steps), kinked=op.kinked, meets=True)


# ---- Results that are floating numbers -----------------------------------------------------


def _smooth(op: Operation) -> Flow:
    return _continuous(op, op.jumps, joined(*(x.steep for x in op.dependent)))


def _continuous(
    op: Operation, jumps: Mapping[Origin, Draws], steep: Mapping[Origin, Draws]
) -> Flow:
    """Of what is continuous in its operands, but for `jumps`."""
    if steep and op.name not in _LINEAR:
        jumps, steep = joined(jumps, steep), NONE
    # The steps of different places do not cancel.
    apart = op.name in _SUMS and not (op.ins[0].jumps.keys() & op.ins[1].jumps.keys())
    all_depend = op.name not in _OF_TWO or len(op.dependent) == len(op.ins)
    meets = op.name == "select_n" or (op.name in _MEETINGS and all_depend and not apart)
    meets = meets or (op.name.startswith("scatter") and bool(op.ins[1].jumps))
    kinked = op.flow if op.name in KINKS else op.kinked
    return Flow(op.flow, jumps, kinked=kinked, steep=steep, meets=meets and bool(jumps))


@_rule(_OF_FLOATS, "sort")
def _sorted(op: Operation) -> Flow:
    num_keys = op.params["num_keys"]
    if op.out < num_keys or not any(x.depends for x in op.ins[:num_keys]):
        return _smooth(op)
    # What is carried along has its own derivative only.
    of = op.ins[op.out]
    return Flow(of.flow, joined(op.jumps, op.steps), kinked=of.kinked, meets=True)


@_rule(_OF_FLOATS, "select_and_scatter_add", "select_and_gather_add")
def _pooled(op: Operation) -> Flow:
    # Derivatives of max-pooling: of their first operand, where the second one is largest.
    steps = op.steps if op.ins[1].depends else NONE
    return Flow(op.ins[0].flow, joined(op.jumps, steps), kinked=op.kinked)


@_rule(_OF_FLOATS, "select_n")
def _selected(op: Operation) -> Flow:
    jumps = op.jumps
    if op.step is not None and any(map(_is_infinite, op.ins[1:])):
        # A relaxed point is never at the values of the draw, so a mask need not be seen to change.
        masked = everywhere(op.ins[0].jumps) & op.draws.relaxed
        jumps = joined(jumps, {(STEEP, op.step): masked} if masked else NONE)
    return _continuous(op, jumps, joined(*(x.steep for x in op.dependent)))


@_rule(_OF_FLOATS, "mul", "div")
def _scaled(op: Operation) -> Flow:
    if op.name == "mul" and any(x.number is not None and not x.number for x in op.ins):
        return Flow()
    steep = joined(*(x.steep for x in op.dependent))
    for x, by in (op.ins, op.ins[::-1]):
        relaxed = x.flow & op.draws.relaxed
        if op.step is None or by.number is None or not relaxed:
            continue
        size = float(abs(by.number))
        if op.name == "div" and by is op.ins[1]:
            size = 1 / size if size else np.inf
        if size >= LARGE:
            steep = joined(steep, {(STEEP, op.step): relaxed})
    return _continuous(op, op.jumps, steep)


@_rule(_OF_FLOATS, "gradest_weighted")
def _weighted(op: Operation) -> Flow:
    # Where it is masked, it has no weight.
    return _smooth(op.of([x for x in op.ins if is_float(x.dtype)]))


def _is_infinite(x: Value) -> bool:
    """Whether all of `x` is known to be the same infinity."""
    while x.number is None and x.name in _FILLS and x.ins:
        x = x.ins[0]
    return isinstance(x.number, float) and bool(np.isinf(x.number))


# ---- Values that are known -----------------------------------------------------------------


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
