"""Several runs of a loss in lockstep: the lanes of a vmap, whose axis has a name.

By that name a draw finds the number of its run, and a baseline what the other runs cost. JAX keeps
what it traced by the names that are bound, so nothing of one run by itself is taken for a part of
several.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from . import _random
from ._derivatives.primitives import zero_tangent


@dataclasses.dataclass(frozen=True)
class Lockstep:
    """The runs that a program is evaluated for, side by side.

    Attributes:
      axis: the name of the vmap's axis.
      baselines: whether draws that have no baseline take one from the other runs.
      here: which runs come here with all that follows, None for all of them: the others evaluate it
        too, in the lanes of a branch that they did not take, but what they get is not theirs.
      entered: None, or whether the run is in this branch, which is left again, and what it had
        spent where it came to it.
    """

    axis: str
    baselines: bool
    here: jax.Array | None = None
    entered: tuple[jax.Array, jax.Array] | None = None

    def others(self, x: jax.Array) -> jax.Array:
        """The mean of `x` over the other runs that come here; zero if there is none. Held fixed."""
        if self.here is None:
            return others_p.bind(x, axis=self.axis)
        total = others_p.bind(jnp.where(self.here, x, 0), axis=self.axis)
        share = others_p.bind(jnp.asarray(self.here, x.dtype), axis=self.axis)
        return total / jnp.where(share > 0, share, 1)

    def others_spent(self, value: jax.Array) -> jax.Array:
        """The same of what was spent: of runs in other branches, before these."""
        if self.entered is not None:
            value = jnp.where(self.entered[0], value, self.entered[1])
        return self.others(value)

    def in_arm(self, taken: jax.Array, value: jax.Array) -> "Lockstep":
        """In a branch that is left again, entered with the costs `value`."""
        if self.entered is not None:
            was_here, before = self.entered
            taken, value = was_here & taken, jnp.where(was_here, value, before)
        return dataclasses.replace(self, entered=(taken, value))

    def in_step(self) -> "Lockstep":
        """In a step of a loop, where what is spent is counted from its beginning."""
        if self.entered is None:
            return self
        taken, before = self.entered
        return dataclasses.replace(self, entered=(taken, jnp.zeros_like(before)))

    def into_arm(self, taken: jax.Array) -> "Lockstep":
        """In a branch that holds all that follows."""
        here = taken if self.here is None else self.here & taken
        return dataclasses.replace(self, here=here)


def in_lockstep(run: Callable[[str], Any], num: int) -> Any:
    """The results of `num` runs, along a leading axis. `run` is given the name of the lanes."""
    # Of runs within runs, each has a name of its own.
    axis = _name(len(list(_bound())))
    return jax.vmap(lambda _: run(axis), axis_name=axis)(jnp.arange(num))


def key_of_run(key: jax.Array) -> jax.Array:
    """A key of the run's own where several runs are being staged, and `key` itself elsewhere."""
    for axis in _bound():
        key = _random.fold_in(key, number_p.bind(axis=axis))
    return key


def _bound() -> Iterator[str]:
    """The names of the runs that are being staged or evaluated, from the outermost in."""
    for axis in map(_name, itertools.count()):
        try:
            jax.lax.axis_size(axis)
        except NameError:
            return
        yield axis


def _name(depth: int) -> str:
    return f"gradest_run_{depth}"


# The number of the run. (No axis_index: it varies over an axis that a mesh in a shard_map lacks.)
number_p = core.Primitive("gradest_number")
number_p.def_impl(lambda *, axis: jnp.zeros((), jnp.uint32))


@functools.cache
def _effects(axis: str) -> Any:
    # Its effect tells JAX that a part of the program without operands is not the same in all lanes.
    return jax.make_jaxpr(lambda: jax.lax.axis_index(axis), axis_env=[(axis, 1)])().effects


@number_p.def_effectful_abstract_eval
def _(*, axis: str) -> Any:
    return jax.core.ShapedArray((), jnp.dtype(jnp.uint32)), _effects(axis)


def _batch_number(lanes: Any, args: Sequence[Any], dims: Sequence[Any], *, axis: str) -> Any:
    del args, dims
    if lanes.name != axis:
        return number_p.bind(axis=axis), None
    return jnp.arange(lanes.size, dtype=jnp.uint32), 0


batching.fancy_primitive_batchers[number_p] = _batch_number

# The mean of its operand over the other lanes of a named axis, held fixed. An operand without these
# lanes is the same in all of them. (No psum, since that knows only the mesh's axes in a shard_map.)
others_p = core.Primitive("gradest_others")
others_p.def_impl(lambda x, *, axis: x)
others_p.def_abstract_eval(lambda aval, *, axis: aval)
mlir.register_lowering(others_p, lambda ctx, x, *, axis: [x])


def _differentiate_others(primals: Sequence[Any], tangents: Any, *, axis: str) -> Any:
    x = others_p.bind(*primals, axis=axis)
    return x, zero_tangent(x)


def _batch_others(lanes: Any, args: Sequence[Any], dims: Sequence[Any], *, axis: str) -> Any:
    (x,), (dim,) = args, dims
    if dim is None or lanes.name != axis:
        return others_p.bind(x, axis=axis), dim
    return (jnp.sum(x, axis=dim, keepdims=True) - x) / (lanes.size - 1), dim


ad.primitive_jvps[others_p] = _differentiate_others
batching.fancy_primitive_batchers[others_p] = _batch_others
