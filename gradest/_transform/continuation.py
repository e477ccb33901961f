"""Draws that are given what follows them as a function.

Up to such a draw the program is evaluated as it is, in the ledger; the draw's sampler is then
handed the rest of the program as its cost. Sites thus nest in the order of the program, and each is
credited with what comes after it alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from .._cost import Cost, Mode
from . import complaints
from .ledger import Ledger, advance, before_branch, open_site
from .program import Branch, Call, Draw, Env, Loop, Node, Program, counted_in, needs_rest

# What follows a (part of a) program: from its outputs to the value of everything to come.
Then = Callable[[list[Any], Mode], jax.Array]


def value_of(program: Program, args: Any, mode: Mode, then: Then) -> jax.Array:
    """The value of `program` at `args` followed by `then`, draws estimated."""
    return _value_from(program, 0, program.bind(*args), mode, then)


def _value_from(program: Program, first: int, env: Env, mode: Mode, then: Then) -> jax.Array:
    """From node number `first` on."""
    stop = first
    while stop < len(program.nodes) and not needs_rest(program.nodes[stop], mode):
        stop += 1
    passed = slice(first, stop)
    env, ledger = advance(program, passed, env, mode, Ledger.of(program.nodes[passed], mode))
    if stop == len(program.nodes):
        return ledger.close(then(program.results(env), mode), mode)
    node = program.nodes[stop]
    assert isinstance(node, Node)

    def resume(outs: list[Any], mode: Mode) -> jax.Array:
        # An estimator may run the rest more than once, with the same randomness on purpose.
        later = program.later[stop]
        kept = {v: _same_again(x, v in program.keys) for v, x in env.items() if v in later}
        kept.update(node.bound(outs))
        return _value_from(program, stop + 1, kept, mode, then)

    return ledger.close(_value_with_rest(node, node.operands(env), mode, resume), mode)


def _value_with_rest(node: Node, operands: list[Any], mode: Mode, then: Then) -> jax.Array:
    """The value of a node, which holds a draw that needs what follows it, and of the rest."""
    match node:
        case Draw():
            key, sampler, dist = open_site(node, operands, mode)
            if not sampler.linear:
                mode = dataclasses.replace(mode, bound=sampler.name)
            rest = lambda draw, mode: then(jax.tree.leaves(draw), mode)
            return sampler._estimate(key, dist, Cost(rest, sampler.name, mode))
        case Call():
            return value_of(node.body, operands, mode, then)
        case Branch():
            index, *args = operands
            mode = before_branch(node, mode)
            arm = lambda program, mode, *args: value_of(program, args, mode, then)
            arms = [
                functools.partial(arm, program, _into_arm(mode, index == i))
                for i, program in enumerate(node.arms)
            ]
            return jax.lax.switch(index, arms, *args)
        case Loop():
            # It cannot be left in the middle.
            draws = (mark for mark in counted_in(node) if isinstance(mark, Draw))
            raise complaints.only_scores(next(draw.site for draw in draws if draw.needs_rest(mode)))
        case _:
            raise AssertionError(node)


def _into_arm(mode: Mode, taken: jax.Array) -> Mode:
    """That of a branch with all that follows, which a run that takes another one does not see."""
    if mode.baselines is None:
        return mode
    return dataclasses.replace(mode, lockstep=mode.baselines.into_arm(taken))


def _same_again(x: Any, is_key: bool) -> Any:
    """`x`; a key marked as used again on purpose, for common random numbers."""
    return jax.random.clone(x) if is_key else x
