"""Numbers for the values of a program: equal operations on equal values have one number.

So two keys are known to be equal. Those of different numbers may be equal too.
"""

import itertools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._lockstep import number_p

# The loops that a value is computed in, from the outermost in.
Loops = tuple[int, ...]

# How many numbers a key has, or a few of them.
_LARGEST_KEY = 16


class Numbering:
    """Numbers for values: equal numbers are equal values. A key has the number of its bits.

    Attributes:
      loops: of each number, those from step to step of which the value may differ.
      repeats: of an array's, the number of what it repeats, and along how many leading axes.
      array_of: of an array's elements, the number of the array.
      each_of: of what is each of an array's elements in turn, likewise.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._fresh = itertools.count()
        self.loops: dict[int, frozenset[int]] = {}
        self.repeats: dict[int, tuple[int, int]] = {}
        self.array_of: dict[int, int] = {}
        self.each_of: dict[int, int] = {}

    def of(self, name: Any, loops: frozenset[int] = frozenset()) -> int:
        number = self._numbers.setdefault(name, len(self._numbers))
        self.loops.setdefault(number, loops)
        return number

    def fresh(self, loops: Loops) -> int:
        return self.of(("fresh", next(self._fresh)), frozenset(loops))

    def of_value(self, x: Any) -> int:
        """By what a key holds, if that is known; else by identity."""
        known = not isinstance(x, jax.Array) or (
            not isinstance(x, jax.core.Tracer) and _is_key_or_bits(x) and x.is_fully_addressable
        )
        # What is larger is no key, and is not read.
        if not known or np.size(x) > _LARGEST_KEY:
            return self.of(("object", id(x)))
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            with jax.ensure_compile_time_eval():
                x = jax.random.key_data(x)
        x = np.asarray(x)
        return self.of(("value", str(x.dtype), x.shape, x.tobytes()))

    def repeated(self, number: int, axes: int) -> int:
        """The number of an array of one value, along so many leading axes."""
        if axes == 0:
            return number
        array = self.of(("repeated", number, axes), self.loops[number])
        self.repeats[array] = number, axes
        return array

    def element(self, array: int, loop: int) -> int:
        """The number of an array's element in a step of a loop over them."""
        if array in self.repeats:
            number, axes = self.repeats[array]
            return self.repeated(number, axes - 1)
        element = self.of(("element", array, loop), self.loops[array] | {loop})
        self.each_of[element] = array
        return element

    def of_results(self, eqn: Any, operands: list[int], loops: Loops) -> list[int]:
        """The numbers of the results of an equation, in those loops, given its operands'."""
        kind = eqn.primitive.name
        name = (kind, tuple(sorted(eqn.params.items())), tuple(operands))
        effects = eqn.effects and eqn.primitive is not number_p
        if effects or kind == "random_clone" or not _hashable(name):
            return [self.fresh(loops) for _ in eqn.outvars]
        if kind in _HANDING_ON and len(operands) == len(eqn.outvars):
            return operands
        if (unit := self._rearranged(eqn, operands)) is not None:
            number, rank = unit
            return [self.repeated(number, v.aval.ndim - rank) for v in eqn.outvars]
        differ = frozenset().union(*(self.loops[n] for n in operands))
        results = [self.of((name, i), differ) for i in range(len(eqn.outvars))]
        if kind in _TAKING:
            array = self.array_of.get(operands[0], operands[0])
            self.array_of.update(dict.fromkeys(results, array))
        return results

    def _rearranged(self, eqn: Any, operands: list[int]) -> tuple[int, int] | None:
        """What all of an equation's results repeat, and the number of its axes."""
        which = _REARRANGING.get(eqn.primitive.name)
        if which is None or not eqn.invars[which]:
            return None
        units = set()
        for n, v in zip(operands[which], eqn.invars[which], strict=True):
            number, axes = self.repeats.get(n, (n, 0))
            units.add((number, v.aval.shape[axes:]))
        if len(units) > 1:
            return None
        ((number, shape),) = units
        whole = all(v.aval.shape[v.aval.ndim - len(shape) :] == shape for v in eqn.outvars)
        return (number, len(shape)) if whole and _along_leading_axes(eqn, len(shape)) else None


# ---- What equations do to keys -------------------------------------------------------------

# The results are the operands, in order. The bits of a key are taken for the key.
_HANDING_ON = {
    *("random_wrap", "random_unwrap", "copy", "copy_p", "stop_gradient", "optimization_barrier"),
    *("device_put", "sharding_constraint", "pvary", "pcast", "gradest_varying"),
    "gradest_estimate",
}
# The elements of the results are those of some operands, rearranged.
_REARRANGING = {
    **dict.fromkeys(["broadcast_in_dim", "reshape", "squeeze", "slice", "tile"], slice(0, 1)),
    **dict.fromkeys(["dynamic_slice", "gather", "split", "expand_dims"], slice(0, 1)),
    **dict.fromkeys(["stack", "concatenate"], slice(0, None)),
    "select_n": slice(1, None),
}
# The results are elements of the first operand.
_TAKING = {"slice", "dynamic_slice", "gather", "squeeze", "reshape", "split"}


def _along_leading_axes(eqn: Any, rank: int) -> bool:
    """Whether `eqn` rearranges what has so many axes, the last ones, as a whole."""
    params, ndim = eqn.params, eqn.invars[0].aval.ndim
    match eqn.primitive.name:
        case "broadcast_in_dim":
            last = params["broadcast_dimensions"][ndim - rank :]
            out = eqn.outvars[0].aval.ndim
            return tuple(last) == tuple(range(out - rank, out))
        case "stack":
            return params["axis"] <= ndim - rank
        case "concatenate":
            return params["dimension"] < ndim - rank
        case "split":
            return params["axis"] < ndim - rank
        case "squeeze":
            return all(d < ndim - rank for d in params["dimensions"])
        case "gather":
            sizes, out = params["slice_sizes"], eqn.outvars[0].aval.ndim
            whole = tuple(sizes[ndim - rank :]) == eqn.invars[0].aval.shape[ndim - rank :]
            last = params["dimension_numbers"].offset_dims[-rank:] if rank else ()
            return whole and tuple(last) == tuple(range(out - rank, out))
    return True


def _is_key_or_bits(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype == jnp.uint32 or (dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _hashable(name: Any) -> bool:
    try:
        hash(name)
    except TypeError:
        return False
    return True
