"""Draws and costs that are accounted for in passing, in loops, branches and straight-line code.

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

from .. import _mesh, _numerics, _random
from .._control_variate import ControlVariate
from .._cost import Mode
from .._derivatives.primitives import magic
from .._derivatives.variance import attach_variance_gradient
from .._lockstep import Lockstep
from .._sampler import Sampler
from ..distributions import _joint
from . import complaints
from .program import (
    Branch,
    Call,
    Draw,
    Env,
    Loop,
    Node,
    Opaque,
    PathwiseDraw,
    Program,
    RawDraw,
    Run,
    Spend,
    While,
    axes_of,
    counted_in,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ledger:
    """Running sums over the draws and costs of a program, or of one step of a loop.

    Attributes:
      log_prob: of the draws so far.
      value: the costs so far, each weighted by magic(log-probability of the draws before it), and
        the control variates of the draws, which are zero, weighted likewise.
      trained: None if no control variate is, else the sums of A and of B - A * costs before, with
        the costs held fixed: with the total T of all costs, T * first + second has the derivative
        of the draws' A * (costs after) + B.
      shared: None if no draw takes a baseline from other runs of the loss, else, over the draws
        that do, the sums of their m = magic(log-probability before it) * (1 - magic(its own)) and
        of m * what the others had spent: with the mean `others` of the others' totals,
        others * first - second gives each draw the mean of what they spent after it.
    """

    log_prob: jax.Array | None = None
    value: jax.Array | None = None
    trained: tuple[jax.Array, jax.Array] | None = None
    shared: tuple[jax.Array, jax.Array] | None = None

    @staticmethod
    def of(nodes: Sequence[Run | Node], mode: Mode) -> "Ledger":
        """An empty one for the draws and costs in `nodes`; without any, one without sums."""
        marks = [mark for node in nodes for mark in counted_in(node)]
        if not marks:
            return Ledger()
        sites = [mark.site for mark in marks if isinstance(mark, Draw)]
        trains = any(site.has_traced_options for site in sites)
        shares = mode.baselines is not None and any(site.held.takes_baseline for site in sites)
        zero = _mesh.varying(jnp.zeros(()), axes_of(nodes))
        sums = zero, zero
        return Ledger(zero, zero, sums if trains else None, sums if shares else None)

    def book(self, log_prob: jax.Array, baseline: Any, runs: Lockstep | None) -> "Ledger":
        """Enters a draw, which takes its baseline from other runs if it is given some."""
        assert self.log_prob is not None
        assert self.value is not None
        l = log_prob.astype(self.log_prob.dtype)
        if runs is not None:
            assert self.shared is not None
            m = magic(self.log_prob) * (1 - magic(l))
            sums = self.shared[0] + m, self.shared[1] + m * runs.others_spent(self.value)
            return dataclasses.replace(self, log_prob=self.log_prob + l, shared=sums)
        control = ControlVariate.of(baseline, l)
        if control is None:
            return dataclasses.replace(self, log_prob=self.log_prob + l)
        sums = self.trained
        if sums is not None and control.trained is not None:
            a, b = (x.astype(self.value.dtype) for x in control.trained)
            sums = sums[0] + a, sums[1] + b - a * jax.lax.stop_gradient(self.value)
        term = control.term.astype(self.value.dtype)
        value = self.value + magic(self.log_prob) * term
        return Ledger(self.log_prob + l, value, sums, self.shared)

    def spend(self, c: jax.Array) -> "Ledger":
        """Enters a cost."""
        assert self.log_prob is not None
        assert self.value is not None
        c = jnp.sum(c).astype(self.value.dtype)
        return dataclasses.replace(self, value=self.value + c * magic(self.log_prob))

    def through(self, steps: "Ledger", reverse: bool, runs: Lockstep | None) -> "Ledger":
        """After a loop, given the ledgers of its `steps`, each from an empty one, stacked.

        Sums that a loop carries are sums of which its derivative keeps every term.
        """
        if steps.log_prob is None or steps.value is None:
            return self
        assert self.log_prob is not None
        assert self.value is not None
        before = lambda start, x: start + (jax.lax.cumsum(x, reverse=reverse) - x)
        log_prob = self.log_prob + jnp.sum(steps.log_prob)
        weight = magic(before(self.log_prob, steps.log_prob))
        value, trained, shared = steps.value * weight, self.trained, self.shared
        spent = before(self.value, value)
        if steps.trained is not None:
            assert trained is not None
            a, b = steps.trained
            b = b - a * jax.lax.stop_gradient(spent)
            trained = trained[0] + jnp.sum(a), trained[1] + jnp.sum(b)
        if steps.shared is not None:
            assert shared is not None
            assert runs is not None
            m, of_others = steps.shared
            of_others = of_others + m * runs.others_spent(spent)
            shared = shared[0] + jnp.sum(weight * m), shared[1] + jnp.sum(weight * of_others)
        return Ledger(log_prob, self.value + jnp.sum(value), trained, shared)

    def close(self, after: jax.Array, mode: Mode) -> jax.Array:
        """The value of the costs so far and of what comes after."""
        if self.log_prob is None or self.value is None:
            return after
        # In half precision the difference of cost and baseline would be mostly rounding.
        wide = after.astype(_numerics.compute_dtype(after.dtype))
        value = self.value.astype(wide.dtype) + wide * magic(self.log_prob.astype(wide.dtype))
        if self.trained is not None:
            total = jax.lax.stop_gradient(value)
            sums = [x.astype(wide.dtype) for x in self.trained]
            value = attach_variance_gradient(value, sums, (total, jnp.ones_like(total)))
        if self.shared is not None:
            assert mode.baselines is not None
            first, second = (x.astype(wide.dtype) for x in self.shared)
            value = value + mode.baselines.others(value) * first - second
        return value.astype(after.dtype)


def advance(
    program: Program, nodes: slice, env: Env, mode: Mode, ledger: Ledger
) -> tuple[Env, Ledger]:
    """Evaluates some of the program's nodes; the environment grows by their results."""
    env = dict(env)
    for node in program.nodes[nodes]:
        if isinstance(node, Run):
            outs = node(mode, *(env[v] for v in node.invars))
            env.update(zip(node.outvars, outs, strict=True))
        else:
            outs, ledger = account(node, node.operands(env), mode, ledger)
            env.update(node.bound(outs))
    return env, ledger


def account(
    node: Node, operands: list[Any], mode: Mode, ledger: Ledger
) -> tuple[list[Any], Ledger]:
    """The results of `node`, with its draws and costs entered into the ledger."""
    match node:
        case Draw():
            return _draw(node, operands, mode, ledger)
        case Spend():
            return operands[-1:], ledger.spend(operands[0]) if node.counted else ledger
        case RawDraw():
            return node.run(mode, *_watched(node, operands)), ledger
        case PathwiseDraw():
            draw = operands[: len(node.eqn.outvars)]
            # At a relaxed point that is differentiated, it is not the user who asks for it.
            return (draw if mode.smooth else list(map(node.complaint.watch, draw))), ledger
        case Opaque():
            raise complaints.unsupported(node.eqn.primitive.name, node.held)
    # What holds nothing to account for carries no sums.
    carried = ledger if counted_in(node) else Ledger()
    match node:
        case Call():
            run = functools.partial(_run, node.body, mode)
            outs, carried = (node.rerun(run) if node.rerun else run)(carried, *operands)
        case Branch():
            index, *args = operands
            mode = before_branch(node, mode)
            arms = [
                functools.partial(_run, arm, _in_arm(mode, index == i, carried))
                for i, arm in enumerate(node.arms)
            ]
            outs, carried = jax.lax.switch(index, arms, carried, *args)
        case Loop():
            outs, carried = _scan(node, operands, mode, carried)
        case While():
            outs = _repeat(node, operands, mode)
        case _:
            raise AssertionError(node)
    return outs, carried if counted_in(node) else ledger


def _run(program: Program, mode: Mode, ledger: Ledger, *args: Any) -> tuple[list[Any], Ledger]:
    env, ledger = advance(program, slice(None), program.bind(*args), mode, ledger)
    return program.results(env), ledger


def before_branch(node: Branch, mode: Mode) -> Mode:
    """That of a branch, inside of which JAX refuses to let the samples' numbers start to vary."""
    axes = axes_of([node])
    return dataclasses.replace(mode, indices=tuple(_mesh.varying(i, axes) for i in mode.indices))


def _in_arm(mode: Mode, taken: jax.Array, ledger: Ledger) -> Mode:
    """That of a branch, in which a run that takes another one spends nothing."""
    if mode.baselines is None or ledger.shared is None:
        return mode
    assert ledger.value is not None
    return dataclasses.replace(mode, lockstep=mode.baselines.in_arm(taken, ledger.value))


# ---- Draws ---------------------------------------------------------------------------------


def _draw(node: Draw, operands: list[Any], mode: Mode, ledger: Ledger) -> tuple[list[Any], Ledger]:
    if not node.credited:
        key, *parameters = jax.lax.stop_gradient([jnp.asarray(x) for x in operands])
        return node.site.sample(_key_in(mode, key), *parameters), ledger
    key, sampler, dist = open_site(node, operands, mode)
    if mode.relaxed and sampler.relaxed is not None:
        return jax.tree.leaves(sampler._relaxed(key, dist)), ledger
    if sampler.score is None:
        raise complaints.only_scores(node.site)
    draw, log_prob, baseline = sampler._score(key, dist)
    runs = mode.baselines if sampler.takes_baseline else None
    return jax.tree.leaves(draw), ledger.book(log_prob, baseline, runs)


def open_site(node: Draw, operands: Sequence[Any], mode: Mode) -> tuple[jax.Array, Sampler, Any]:
    """The key, the sampler and the distribution of a draw."""
    # A parameter may be a literal of the program, a number that is not yet an array.
    key, *parameters = map(jnp.asarray, operands)
    if node.complaint is not None and not mode.smooth:
        parameters = list(map(node.complaint.watch, parameters))
    sampler, dist = node.site.sampler_and_dist(parameters)
    if mode.bound:
        raise complaints.after_a_bound(node.site, mode.bound)
    for _ in range(node.site.lanes):
        dist = _joint.in_lanes(dist)
    return _key_in(mode, key), sampler, dist


def _key_in(mode: Mode, key: jax.Array) -> jax.Array:
    for index in mode.indices:
        key = _random.fold_in(key, index)
    return key


def _watched(node: RawDraw, operands: Sequence[Any]) -> list[Any]:
    """The operands, of which the parameters of the draw warn when they are differentiated."""
    values = dict(zip(map(id, node.eqn.invars), operands, strict=True))
    return [node.complaint.watch(values[id(v)]) for v in node.run.invars]


# ---- Loops ---------------------------------------------------------------------------------


def _scan(node: Loop, operands: list[Any], mode: Mode, ledger: Ledger) -> tuple[list[Any], Ledger]:
    scan = node.scan
    consts = operands[: scan.num_consts]
    carry = operands[scan.num_consts : scan.num_consts + scan.num_carry]
    xs = operands[scan.num_consts + scan.num_carry :]

    runs = mode.baselines
    in_step = mode if runs is None else dataclasses.replace(mode, lockstep=runs.in_step())

    def step(carry: list[Any], x: list[Any]) -> Any:
        empty = Ledger.of(node.body.nodes, mode)
        outs, ledger = _run(node.body, in_step, empty, *consts, *carry, *x)
        return _carried(carry, outs), (outs[scan.num_carry :], ledger)

    carry, (ys, steps) = jax.lax.scan(step, carry, xs, scan.length, scan.reverse, scan.unroll)
    return [*carry, *ys], ledger.through(steps, scan.reverse, runs)


def _repeat(node: While, operands: list[Any], mode: Mode) -> list[Any]:
    loop = node.loop
    condition_consts = operands[: loop.num_condition_consts]
    consts = operands[loop.num_condition_consts :][: loop.num_consts]
    carry = operands[loop.num_condition_consts + loop.num_consts :]

    def condition(carry: list[Any]) -> jax.Array:
        return _run(node.condition, mode, Ledger(), *condition_consts, *carry)[0][0]

    def body(carry: list[Any]) -> list[Any]:
        return _carried(carry, _run(node.body, mode, Ledger(), *consts, *carry)[0])

    return jax.lax.while_loop(condition, body, carry)


def _carried(old: list[Any], outs: list[Any]) -> list[Any]:
    """The new carry. One that nothing uses is not computed."""
    return [before if out is None else out for before, out in zip(old, outs, strict=False)]
