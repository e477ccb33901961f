"""Draws and costs that are accounted for in passing, in loops, branches and straight-line code.

What follows a step of a loop cannot be handed to a draw in it as a function. An estimator that
needs only the cost of its one draw does not ask for that: the running log-probability of the
draws so far weights every later cost, which is the same sum, sum_t c_t magic(sum_{s<=t} l_s).
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jaxpr, _marks
from .._derivatives.primitives import magic
from .._derivatives.variance import attach_variance_gradient
from . import program as _program
from .complaints import (
    Mode,
    check_rule,
    has_traced_options,
    needs_continuation,
    only_scores,
    read_site,
    unsupported,
    watched,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ledger:
    """Running sums over the draws and costs of a program, carried through its loops.

    Attributes:
      log_prob: of the draws so far.
      cost: the costs so far, each weighted by magic(log-probability of the draws before it), and
        the baselines b of the draws as b (1 - magic(l)), which is zero with derivative -b dl,
        weighted likewise.
      baselines: None if no baseline is trained, else the sum of b, and that of
        b (b + costs before) with the bracket held fixed. With the total T of all costs,
        second - T * first has the derivative b - (T - costs before) in each b: that of
        (costs after - b)^2 / 2.
    """

    log_prob: jax.Array
    cost: jax.Array
    baselines: tuple[jax.Array, jax.Array] | None

    @staticmethod
    def empty(marks: Iterable[Any]) -> "Ledger":
        """For the draws and costs `marks`."""
        zero = jnp.zeros(())
        return Ledger(zero, zero, (zero, zero) if has_traced_options(marks) else None)

    def draw(self, log_prob: jax.Array, baseline: Any) -> "Ledger":
        l = log_prob.astype(self.log_prob.dtype)
        if isinstance(baseline, float) and baseline == 0:
            # In a loop, its terms of the value zero would be kept for every step.
            return dataclasses.replace(self, log_prob=self.log_prob + l)
        b = jnp.asarray(baseline, self.cost.dtype)
        fixed_b, before = jax.lax.stop_gradient((b, self.cost))
        baselines = self.baselines
        if baselines is not None:
            baselines = baselines[0] + b, baselines[1] + b * (fixed_b + before)
        return Ledger(
            log_prob=self.log_prob + l,
            cost=self.cost + magic(self.log_prob) * fixed_b * (1 - magic(l)),
            baselines=baselines,
        )

    def spend(self, c: jax.Array) -> "Ledger":
        c = jnp.sum(c).astype(self.cost.dtype)
        return dataclasses.replace(self, cost=self.cost + c * magic(self.log_prob))

    def close(self, rest: jax.Array) -> jax.Array:
        """The value of the costs so far and of the `rest` of the program."""
        ledger = jax.tree.map(lambda x: x.astype(rest.dtype), self)
        value = ledger.cost + rest * magic(ledger.log_prob)
        if ledger.baselines is None:
            return value
        total = jax.lax.stop_gradient(value)
        gradient = (-total, jnp.ones_like(total))
        return attach_variance_gradient(value, ledger.baselines, gradient, order=1)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in a program its evaluation is.

    Attributes:
      turn: how many of the program's stops lie behind.
      equation: the number of the next equation.
      env: the values of the variables that are needed from there on.
    """

    turn: int
    equation: int
    env: _program.Env


def advance(
    program: _program.Program,
    position: Position,
    mode: Mode,
    ledger: Ledger,
    *,
    pause: bool = False,
) -> tuple[Position, Ledger]:
    """Evaluates the program to its end, or to `pause` before a draw that needs what follows it."""
    turn, start, env = position.turn, position.equation, position.env
    while turn < len(program.stops):
        stop = program.stops[turn]
        env, start = program.run(start, stop, env), stop
        eqn = program.jaxpr.eqns[stop]
        if pause and needs_continuation(program.marks_at(stop)):
            return Position(turn, start, env), ledger
        turn += 1
        if stop in program.raw:
            env = watched(eqn, env, program.raw[stop])
            continue
        operands = [_program.read(env, v) for v in eqn.invars]
        outs, ledger = account(eqn, operands, program.used(stop), mode, ledger)
        env, start = {**env, **dict(zip(eqn.outvars, outs, strict=True))}, stop + 1
    end = len(program.jaxpr.eqns)
    return Position(turn, end, program.run(start, end, env)), ledger


def account(
    eqn: Any, operands: list[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    """The results of `eqn`, with its draws and costs entered into the ledger."""
    if eqn.primitive is _marks.cost_p:
        return operands, ledger.spend(operands[0])
    if eqn.primitive is _marks.sample_p:
        key, sampler, dist = read_site(eqn, operands, mode)
        if sampler.score is None:
            raise only_scores(eqn)
        draw, log_prob, baseline = sampler._score(key, dist)
        return jax.tree.leaves(draw), ledger.draw(log_prob, baseline)
    if (called := _jaxpr.called(eqn)) is not None:
        check_rule(eqn, used)
        run = lambda operands, ledger: _account_all(called, operands, used, mode, ledger)
        rerun = _jaxpr.rerun(eqn)
        return (run if rerun is None else rerun(run))(operands, ledger)
    if (branches := _jaxpr.branches(eqn)) is not None:
        index, *args = operands

        def arm(branch: Any, ledger: Ledger, *args: Any) -> tuple[list[Any], Ledger]:
            return _account_all(branch, args, used, mode, ledger)

        return jax.lax.switch(index, [functools.partial(arm, b) for b in branches], ledger, *args)
    if (scan := _jaxpr.as_scan(eqn)) is not None:
        return _account_scan(scan, operands, used, mode, ledger)
    if (loop := _jaxpr.as_while(eqn)) is not None and not _program.live_marks(eqn, used):
        return _replay_while(loop, operands, used, mode, ledger), ledger
    raise unsupported(eqn, used)


def _account_all(
    closed: Any, operands: Sequence[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    jaxpr, consts = _jaxpr.open_jaxpr(closed)
    program = _program.Program.of(jaxpr, used)
    start = Position(0, 0, program.bind(*consts, *operands))
    end, ledger = advance(program, start, mode, ledger)
    return [_program.read(end.env, v) for v in program.outputs], ledger


def _account_scan(
    scan: _jaxpr.Scan, operands: list[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    consts = operands[: scan.num_consts]
    carry = operands[scan.num_consts : scan.num_consts + scan.num_carry]
    xs = operands[scan.num_consts + scan.num_carry :]
    used = _program.used_in_scan(scan, used)

    def step(state: Any, x: list[Any]) -> Any:
        carry, ledger = state
        outs, ledger = _account_all(scan.body, [*consts, *carry, *x], used, mode, ledger)
        return (_carried(carry, outs), ledger), outs[scan.num_carry :]

    (carry, ledger), ys = jax.lax.scan(
        step, (carry, ledger), xs, scan.length, scan.reverse, scan.unroll
    )
    return [*carry, *ys], ledger


def _replay_while(
    loop: _jaxpr.While, operands: list[Any], used: Sequence[bool], mode: Mode, ledger: Ledger
) -> list[Any]:
    """A while without the draws in it that nothing uses, watched for those by jax.random."""
    condition_consts = operands[: loop.num_condition_consts]
    consts = operands[loop.num_condition_consts :][: loop.num_consts]
    carry = operands[loop.num_condition_consts + loop.num_consts :]
    used = _program.used_in_while(loop, used)

    def condition(carry: list[Any]) -> jax.Array:
        outs, _ = _account_all(loop.condition, [*condition_consts, *carry], [True], mode, ledger)
        return outs[0]

    def body(carry: list[Any]) -> list[Any]:
        outs, _ = _account_all(loop.body, [*consts, *carry], used, mode, ledger)
        return _carried(carry, outs)

    return jax.lax.while_loop(condition, body, carry)


def _carried(old: list[Any], outs: list[Any]) -> list[Any]:
    """The new carry. One that nothing uses is not computed."""
    return [before if out is None else out for before, out in zip(old, outs, strict=False)]
