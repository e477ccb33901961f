"""Draws of one program that get the same key, and so are not independent.

Found where it is certain: equal operations on equal values are given one number, and two draws
that one run makes with keys of one number are a mistake. Keys of different numbers may still be
equal; nothing is said of those.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._jaxpr import is_var
from .._lockstep import number_p
from .program import Branch, Call, Draw, Loop, Program, Run

# The arms of the branches that a draw is in: of two draws, one run makes both for certain only if
# one is in all of the arms that the other is in.
_Arms = tuple[tuple[int, int], ...]

# How many numbers a key has, or a few of them.
_LARGEST_KEY = 16


@dataclasses.dataclass(frozen=True)
class Shared:
    """Draws with one key.

    Attributes:
      draws: the two of them, or the one that a loop makes with it in every step.
    """

    draws: tuple[Draw, ...]


def shared_keys(program: Program, values: Sequence[Any]) -> list[Shared]:
    """The credited draws of a staged loss that share a key.

    Args:
      program: of the loss.
      values: of its inputs.
    """
    if not program.draws:
        return []
    numbering = _Numbering()
    constants = [numbering.of_value(x) for x in (*program.consts, *values)]
    walk = _Walk(numbering)
    walk.program(program, constants, (), 0)
    return walk.found


class _Numbering:
    """Numbers for values: equal numbers are equal values.

    Each has a depth, that of the innermost loop in whose steps it may differ.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._fresh = itertools.count()
        self.depths: dict[int, int] = {}

    def of(self, name: Any, depth: int) -> int:
        number = self._numbers.setdefault(name, len(self._numbers))
        self.depths.setdefault(number, depth)
        return number

    def fresh(self, depth: int) -> int:
        return self.of(("fresh", next(self._fresh)), depth)

    def of_value(self, x: Any) -> int:
        """By what a key holds, if that is known; else by identity."""
        known = not isinstance(x, jax.Array) or (
            not isinstance(x, jax.core.Tracer) and _is_key_or_bits(x) and x.is_fully_addressable
        )
        # What is larger is no key, and is not read.
        if not known or np.size(x) > _LARGEST_KEY:
            return self.of(("object", id(x)), 0)
        kind = ""
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            kind = str(jax.random.key_impl(x))
            with jax.ensure_compile_time_eval():
                x = jax.random.key_data(x)
        x = np.asarray(x)
        return self.of(("value", kind, str(x.dtype), x.shape, x.tobytes()), 0)


class _Walk:
    def __init__(self, numbering: _Numbering):
        self.found: list[Shared] = []
        self._numbering = numbering
        self._drawn: dict[int, list[tuple[Draw, _Arms]]] = {}
        self._unwrapped: dict[int, int] = {}

    def program(
        self, program: Program, inputs: Sequence[int], arms: _Arms, depth: int
    ) -> list[int]:
        """Numbers of the program's outputs, given those of its inputs."""
        names = [*program.jaxpr.constvars, *program.jaxpr.invars]
        env = dict(zip(names, inputs, strict=True))

        def number(atom: Any) -> int:
            if not is_var(atom):
                return (
                    self._numbering.fresh(0) if atom is None else self._numbering.of_value(atom.val)
                )
            if atom not in env:
                env[atom] = self._numbering.fresh(depth)
            return env[atom]

        for node in program.nodes:
            if isinstance(node, Run):
                for eqn in filter(_may_make_keys, node.jaxpr.eqns):
                    results = self._equation(eqn, [number(v) for v in eqn.invars], depth)
                    env.update(zip(eqn.outvars, results, strict=True))
                continue
            match node:
                case Draw(credited=True):
                    self._draw(node, number(node.eqn.invars[0]), arms, depth)
                case Call():
                    operands = [number(v) for v in node.eqn.invars]
                    outs = self._inner(node.body, operands, arms, depth)
                    env.update(zip(node.eqn.outvars, outs, strict=True))
                case Branch():
                    operands = [number(v) for v in node.eqn.invars[1:]]
                    for i, arm in enumerate(node.arms):
                        self._inner(arm, operands, (*arms, (id(node), i)), depth)
                case Loop():
                    self._loop(node, [number(v) for v in node.eqn.invars], arms, depth)
        return [number(v) for v in program.outputs]

    def _inner(self, body: Program, inputs: list[int], arms: _Arms, depth: int) -> list[int]:
        constants = [self._numbering.of_value(x) for x in body.consts]
        return self.program(body, [*constants, *inputs], arms, depth)

    def _loop(self, node: Loop, operands: list[int], arms: _Arms, depth: int) -> None:
        scan, body = node.scan, node.body
        first, last = scan.num_consts, scan.num_consts + scan.num_carry
        inside = depth + 1 if scan.length > 1 else depth
        inputs = list(operands)
        for i in range(first, len(inputs)):
            kept = i < last and body.jaxpr.outvars[i - first] is body.jaxpr.invars[i]
            if not kept:
                inputs[i] = self._numbering.fresh(inside)
        self._inner(body, inputs, arms, inside)

    def _equation(self, eqn: Any, operands: list[int], depth: int) -> list[int]:
        kind = eqn.primitive.name
        name = (kind, tuple(sorted(eqn.params.items())), tuple(operands))
        effects = eqn.effects and eqn.primitive is not number_p
        if effects or kind == "random_clone" or not _hashable(name):
            return [self._numbering.fresh(depth) for _ in eqn.outvars]
        if kind == "random_wrap" and operands[0] in self._unwrapped:
            return [self._unwrapped[operands[0]]]
        deepest = max((self._numbering.depths[n] for n in operands), default=0)
        results = [self._numbering.of((name, i), deepest) for i in range(len(eqn.outvars))]
        if kind == "random_unwrap":
            self._unwrapped[results[0]] = operands[0]
        return results

    def _draw(self, node: Draw, key: int, arms: _Arms, depth: int) -> None:
        if self._numbering.depths[key] < depth:
            self.found.append(Shared((node,)))
        before = self._drawn.setdefault(key, [])
        for other, others_arms in before:
            shorter = min(len(arms), len(others_arms))
            if arms[:shorter] == others_arms[:shorter]:
                self.found.append(Shared((other, node)))
                break
        before.append((node, arms))


def _may_make_keys(eqn: Any) -> bool:
    """Whether `eqn` has a result that is a key, or the numbers of one, or that of a run."""
    return eqn.primitive is number_p or any(_is_key_or_bits(v.aval) for v in eqn.outvars)


def _is_key_or_bits(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype == jnp.uint32 or (dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _hashable(name: Any) -> bool:
    try:
        hash(name)
    except TypeError:
        return False
    return True
