"""Draws and costs inside a loop, or in branches that need no more than a loop allows.

What follows a step of a loop cannot be handed to a draw in it as a function. An estimator that
needs only the cost of its one draw does not ask for that: the running log-probability of the
draws so far weights every later cost, which is the same sum, sum_t c_t magic(sum_{s<=t} l_s).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _jaxpr
from ._gradient import attach_variance_gradient, magic
from ._sites import Mode, only_scores, read_site, unsupported, watched


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ledger:
    """Running sums over the draws and costs of a loop, carried through it.

    Attributes:
      log_prob: of the draws so far.
      cost: the costs so far, each weighted by magic(log-probability of the draws before it), and
        the baselines b of the draws as b (1 - magic(l)), which is zero with derivative -b dl.
      baselines: the sum of b, and that of b (b + costs before) with the bracket held fixed. With
        the total T of all costs, second - T * first has the derivative b - (T - costs before) in
        each b: that of (costs after - b)^2 / 2.
    """

    log_prob: jax.Array
    cost: jax.Array
    baselines: tuple[jax.Array, jax.Array]

    @staticmethod
    def empty() -> "Ledger":
        zero = jnp.zeros(())
        return Ledger(zero, zero, (zero, zero))

    def draw(self, log_prob: jax.Array, baseline: Any) -> "Ledger":
        l = log_prob.astype(self.log_prob.dtype)
        b = jnp.asarray(baseline, self.cost.dtype)
        first, second = self.baselines
        fixed_b, before = jax.lax.stop_gradient((b, self.cost))
        return Ledger(
            log_prob=self.log_prob + l,
            cost=self.cost + fixed_b * (1 - magic(l)),
            baselines=(first + b, second + b * (fixed_b + before)),
        )

    def spend(self, c: jax.Array) -> "Ledger":
        c = jnp.sum(c).astype(self.cost.dtype)
        return dataclasses.replace(self, cost=self.cost + c * magic(self.log_prob))

    def close(self, rest: jax.Array) -> jax.Array:
        """The value of the loop's costs and of the `rest` of the program."""
        ledger = jax.tree.map(lambda x: x.astype(rest.dtype), self)
        value = ledger.cost + rest * magic(ledger.log_prob)
        total = jax.lax.stop_gradient(value)
        gradient = (-total, jnp.ones_like(total))
        return attach_variance_gradient(value, ledger.baselines, gradient, order=1)


def account(
    eqn: Any, operands: list[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    """The results of `eqn`, with its draws and costs entered into the ledger."""
    if eqn.primitive is _jaxpr.cost_p:
        return operands, ledger.spend(operands[0])
    if eqn.primitive is _jaxpr.sample_p:
        key, sampler, dist = read_site(eqn, operands, mode)
        if sampler.score is None:
            raise only_scores(eqn)
        draw, log_prob, baseline = sampler._score(key, dist)
        return jax.tree.leaves(draw), ledger.draw(log_prob, baseline)
    if (called := _jaxpr.called(eqn)) is not None:
        jaxpr, consts = _jaxpr.open_jaxpr(called)
        return _account_all(jaxpr, [*consts, *operands], used, mode, ledger)
    if (branches := _jaxpr.branches(eqn)) is not None:
        index, *args = operands

        def arm(branch: Any, ledger: Ledger, *args: Any) -> tuple[list[Any], Ledger]:
            jaxpr, consts = _jaxpr.open_jaxpr(branch)
            return _account_all(jaxpr, [*consts, *args], used, mode, ledger)

        return jax.lax.switch(index, [functools.partial(arm, b) for b in branches], ledger, *args)
    if (loop := _jaxpr.loop(eqn)) is not None:
        return _account_loop(loop, operands, used, mode, ledger)
    raise unsupported(eqn)


def _account_all(
    jaxpr: Any, values: Sequence[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    program = _jaxpr.Program.of(jaxpr, used)
    env, start = program.bind(*values), 0
    for stop in program.stops:
        env = program.run(start, stop, env)
        eqn = jaxpr.eqns[stop]
        if stop in program.raw:
            env, start = watched(eqn, env, program.raw[stop]), stop
            continue
        operands = [_jaxpr.read(env, v) for v in eqn.invars]
        outs, ledger = account(eqn, operands, program.used(stop), mode, ledger)
        env, start = {**env, **dict(zip(eqn.outvars, outs, strict=True))}, stop + 1
    env = program.run(start, len(jaxpr.eqns), env)
    return [_jaxpr.read(env, v) for v in program.outputs], ledger


def _account_loop(
    loop: _jaxpr.Loop, operands: list[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    jaxpr, consts = _jaxpr.open_jaxpr(loop.body)
    fixed = [*consts, *operands[: loop.num_consts]]
    carry = operands[loop.num_consts : loop.num_consts + loop.num_carry]
    xs = operands[loop.num_consts + loop.num_carry :]
    used = _used_in_loop(jaxpr, len(fixed), loop.num_carry, used)

    def step(state: Any, x: list[Any]) -> Any:
        carry, ledger = state
        outs, ledger = _account_all(jaxpr, [*fixed, *carry, *x], used, mode, ledger)
        # A carry that nothing uses is not computed.
        new = [old if out is None else out for old, out in zip(carry, outs, strict=False)]
        return (new, ledger), outs[loop.num_carry :]

    (carry, ledger), ys = jax.lax.scan(
        step, (carry, ledger), xs, loop.length, loop.reverse, loop.unroll
    )
    return [*carry, *ys], ledger


def _used_in_loop(jaxpr: Any, num_fixed: int, num_carry: int, used: Sequence[bool]) -> list[bool]:
    """Which outputs of a loop's body matter: a carry also does if a later step needs it."""
    used = list(used)
    while True:
        inputs = _jaxpr.Program.of(jaxpr, used).used_inputs()
        carried = inputs[num_fixed : num_fixed + num_carry]
        grown = [u or c for u, c in zip(used, carried, strict=False)] + used[num_carry:]
        if grown == used:
            return used
        used = grown
