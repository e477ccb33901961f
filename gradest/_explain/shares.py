"""How much of the gradient's variance comes through each draw.

The draws are closed one after another, from the last to the first: no derivative passes a closed
one. What the gradient loses with one is its part, which adds up whatever is between them.
"""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .. import _jaxpr, _random
from .._draws import draw_p
from .._jaxpr import is_var
from .._transform.expectation import Staged

_CHUNK = 256


def variance_shares(
    staged: Staged,
    draws: Sequence[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: Sequence[int],
    key_argnum: int | None,
    num_draws: int,
    seed: int,
) -> list[float]:
    """Of each of the equations that draw and, last, of what is differentiated directly."""
    programs = [
        dataclasses.replace(staged, jaxpr=_closed(staged.jaxpr, set(map(id, draws[first:]))))
        for first in range(len(draws) + 1)
    ]
    is_input = lambda leaf: isinstance(leaf, (jax.Array, np.ndarray))
    numbers = [jax.tree.map(lambda leaf, i=i: i, arg) for i, arg in enumerate(args)] + [
        jax.tree.map(lambda leaf: -1, kwargs)
    ]
    of_leaf = jax.tree.leaves((tuple(numbers[:-1]), numbers[-1]))
    leaves = jax.tree.leaves((args, kwargs))
    owners = [n for leaf, n in zip(leaves, of_leaf, strict=True) if is_input(leaf)]
    values = staged.values
    wanted = [
        i
        for i, (x, owner) in enumerate(zip(values, owners, strict=True))
        if owner in argnums and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    if not wanted:
        raise TypeError("argnums: expected arguments with floating-point arrays, got none.")
    keys = [i for i, x in enumerate(values) if _random.is_typed(x) or owners[i] == key_argnum]
    if not keys:
        raise TypeError(
            "num_draws: expected a PRNG key among the loss's arguments, to draw anew, got none "
            "that is typed. Use jax.random.key(seed), or say which argument is a legacy key: "
            "key_argnum."
        )

    def parts(number: jax.Array) -> jax.Array:
        drawn = list(values)
        for i in keys:
            drawn[i] = _folded(values[i], number, seed)

        def gradient(program: Staged) -> jax.Array:
            def value(floats: list[Any]) -> jax.Array:
                filled = list(drawn)
                for i, x in zip(wanted, floats, strict=True):
                    filled[i] = x
                return dataclasses.replace(program, values=filled).evaluate(complain=False)[0]

            g = jax.grad(value)([jnp.asarray(drawn[i]) for i in wanted])
            return jnp.concatenate([x.ravel().astype(jnp.float32) for x in g])

        up_to = [gradient(program) for program in programs]
        through = [b - a for a, b in itertools.pairwise(up_to)]
        return jnp.stack([*through, up_to[0]])

    chunk = jax.jit(jax.vmap(parts))
    size = min(_CHUNK, num_draws)
    found = [
        np.asarray(chunk(start + jnp.arange(size, dtype=jnp.uint32)), np.float64)
        for start in range(0, num_draws, size)
    ]
    samples = np.concatenate(found)[:num_draws]
    samples -= samples.mean(axis=0)
    whole = samples.sum(axis=1)
    total = np.sum(whole**2)
    each = np.einsum("nkp,np->k", samples, whole)
    return [float("nan")] * len(each) if total == 0 else [float(x / total) for x in each]


def _folded(key: Any, number: jax.Array, seed: int) -> jax.Array:
    typed = _random.is_typed(key)
    folded = jax.random.fold_in(_random.as_key(key), np.uint32(seed))
    folded = jax.random.fold_in(folded, number)
    return folded if typed else jax.random.key_data(folded)


def _closed(closed: core.ClosedJaxpr, draws: set[int]) -> core.ClosedJaxpr:
    """The program in which no derivative passes the given equations that draw."""
    return core.ClosedJaxpr(_with_stops(closed.jaxpr, draws), closed.consts)


def _with_stops(jaxpr: core.Jaxpr, draws: set[int]) -> core.Jaxpr:
    eqns = []
    for eqn in jaxpr.eqns:
        if id(eqn) not in draws:
            eqns.append(_jaxpr.with_jaxprs(eqn, lambda inner: _with_stops(inner, draws)))
        elif eqn.primitive is draw_p:
            # The derivative of a pathwise draw comes with its leaves.
            stops = [_jaxpr.stop_equation(v.aval) for v in eqn.outvars]
            eqns.append(eqn.replace(outvars=[stop.invars[0] for stop in stops]))
            eqns += [s.replace(outvars=[v]) for s, v in zip(stops, eqn.outvars, strict=True)]
        else:
            operands: list[Any] = list(eqn.invars)
            for i, atom in enumerate(operands):
                if is_var(atom) and jnp.issubdtype(atom.aval.dtype, jnp.floating):
                    stop = _jaxpr.stop_equation(atom.aval)
                    eqns.append(stop.replace(invars=[atom]))
                    operands[i] = stop.outvars[0]
            eqns.append(eqn.replace(invars=operands))
    same = len(eqns) == len(jaxpr.eqns) and all(map(operator.is_, eqns, jaxpr.eqns))
    return jaxpr if same else jaxpr.replace(eqns=eqns)
