"""The transform: from a loss that draws to an estimate of its expectation.

The loss is staged to a jaxpr. Up to its first cost-based draw it is evaluated as it is; the
draw's sampler is then given the rest of the program as its cost. Sites thus nest in the order
of the program, and each is credited with what comes after it alone.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from . import _jaxpr, _random
from ._sampler import Cost, Sampler, SamplerSite, attach_variance_gradient, magic
from .distributions import base


def expectation(loss: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """Estimates the expectation of a loss that draws, with its gradient attached.

    The result takes the arguments of `loss` and returns one Monte Carlo estimate of
    E[loss(*args)] over its draws. `jax.grad` of it estimates the gradient of that expectation,
    at each draw by the estimator that the loss picked there. It composes with `jax.jit`,
    `jax.vmap` and `jax.grad` like any JAX function; call it under `jax.jit`, since every call
    stages the loss anew.

    Assumptions, bias, variance and cost evaluations are those of the samplers. Draws are taken
    in the order of the program, and a draw is credited only with costs that come after it
    (`gradest.cost`) and with the loss's result. Other randomness in the loss is left alone.

    Args:
      loss: a function whose result is a real scalar, or a pair of it and auxiliary output.
        Arrays among its arguments are traced, as under `jax.jit`; anything else is static.
      has_aux: whether `loss` returns a pair, as in `jax.value_and_grad`. The auxiliary output is
        that of one run of the program with plain draws: never averaged over samples, never
        differentiated.

    Returns:
      A function with the arguments of `loss`, which returns a scalar, or the scalar and the
      auxiliary output.

    Raises:
      NotImplementedError: when a draw is inside a construct that the transform does not
        support; the message names it, the estimator and the remedy.
      ValueError: when the loss is not a real scalar.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> coin = ge.enumeration()
      >>> @ge.expectation
      ... def loss(logit, key):
      ...     return (coin(key, Bernoulli(logit)) - 0.45) ** 2
      >>> print(f"{jax.grad(loss)(0.0, jax.random.key(0)):.4f}")
      0.0250

    Reference:
      Schulman, Heess, Weber and Abbeel 2015, "Gradient Estimation Using Stochastic Computation
      Graphs", eq. 5 and Theorem 1, for draws credited with what is downstream of them.
    """

    @functools.wraps(loss)
    def estimate(*args: Any, **kwargs: Any) -> Any:
        staged = _stage(loss, has_aux, args, kwargs)
        with jax.named_scope("gradest.expectation"):
            value = _evaluate(staged.jaxpr, staged.values)
            if not has_aux:
                return value
            return value, staged.aux()

    return estimate


def cost(c: jax.typing.ArrayLike) -> None:
    """Adds `c` to the loss, from inside it.

    Draws made before this line are credited with it and draws made after it are not, which
    spares their gradient estimates the variance that it would add.

    Args:
      c: real; an array adds the sum of its elements.

    Raises:
      RuntimeError: when run outside `gradest.expectation`.
    """
    c = jnp.asarray(c)
    if not jnp.issubdtype(c.dtype, jnp.floating):
        raise TypeError(f"c: expected a real floating-point array, got one of type {c.dtype}.")
    _jaxpr.cost_p.bind(c, where=_jaxpr.user_line())


# ---- Staging -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Staged:
    """A staged loss: its first output is the loss, the others are auxiliary."""

    jaxpr: Any
    values: list[Any]
    aux_treedef: Any

    def aux(self) -> Any:
        """Auxiliary output of a run with plain draws; equal work is shared when compiled."""
        jaxpr = _jaxpr.without_costs(self.jaxpr, [False] + [True] * (len(self.jaxpr.outvars) - 1))
        values = jax.lax.stop_gradient(_clone_keys(self.values))
        return jax.tree.unflatten(self.aux_treedef, jaxpr(*values))


def _stage(loss: Callable[..., Any], has_aux: bool, args: Any, kwargs: Any) -> _Staged:
    leaves, treedef = jax.tree.flatten((args, kwargs))
    dynamic = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))]

    def flat(values: list[Any]) -> Any:
        filled = list(leaves)
        for i, value in zip(dynamic, values, strict=True):
            filled[i] = value
        args, kwargs = jax.tree.unflatten(treedef, filled)
        out = loss(*args, **kwargs)
        if not has_aux:
            return _real_scalar(out, has_aux), None
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                "expectation: has_aux=True expects the loss to return a pair (loss, aux), got "
                f"{type(out).__name__}."
            )
        return _real_scalar(out[0], has_aux), out[1]

    values = [leaves[i] for i in dynamic]
    closed, (_, aux) = jax.make_jaxpr(flat, return_shape=True)(values)
    jaxpr, consts = _jaxpr.open_jaxpr(closed)
    return _Staged(jaxpr, [*consts, *values], jax.tree.structure(aux))


def _real_scalar(value: Any, has_aux: bool) -> Any:
    hint = "" if has_aux else " For auxiliary output pass has_aux=True."
    structure = jax.tree.structure(value)
    if structure != jax.tree.structure(0):
        raise TypeError(f"expectation: expected the loss to be a scalar, got {structure}.{hint}")
    shape, dtype = np.shape(value), jax.dtypes.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"expectation: expected the loss to be a real scalar, got shape {shape} and type "
            f"{dtype}. Wrap the loss of one example and vmap the result: "
            f"jax.vmap(gradest.expectation(per_example_loss)).{hint}"
        )
    return value


# ---- Evaluation ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Mode:
    """How the rest of a program is evaluated.

    Attributes:
      relaxed: an earlier site was given a relaxed value; relaxable sites follow suit.
      indices: of the samples that earlier sites drew: each has its own randomness downstream.
    """

    relaxed: bool = False
    indices: tuple[jax.Array, ...] = ()


# What follows a (part of a) program: from its outputs to the value of everything to come.
_Then = Callable[[list[Any], _Mode], jax.Array]


class _Rest(Cost):
    """The rest of a program as a function of a draw: a site's cost."""

    def __init__(self, function: Callable[[Any, _Mode], jax.Array], mode: _Mode, sampler: str):
        super().__init__(lambda draw: function(draw, mode), sampler)
        self._of_mode = lambda mode: _Rest(function, mode, sampler)
        self._mode = mode

    def batch(self, draws: Any) -> jax.Array:
        def one(index: jax.Array, draw: Any) -> jax.Array:
            indices = (*self._mode.indices, index)
            return self._of_mode(dataclasses.replace(self._mode, indices=indices))(draw)

        size = jax.tree.leaves(draws)[0].shape[0]
        return jax.vmap(one)(jnp.arange(size, dtype=jnp.uint32), draws)

    def relaxed(self, point: Any) -> jax.Array:
        return self._of_mode(dataclasses.replace(self._mode, relaxed=True))(point)


def _evaluate(jaxpr: Any, values: Sequence[Any]) -> jax.Array:
    used = [True] + [False] * (len(jaxpr.outvars) - 1)
    return _run(jaxpr, values, used, _Mode(), lambda outs, _: outs[0])


def _run(jaxpr: Any, values: Sequence[Any], used: Sequence[bool], mode: _Mode, then: _Then) -> Any:
    """The value of `jaxpr` at `values` followed by `then`, draws estimated."""
    program = _jaxpr.Program.of(jaxpr, used)

    def proceed(turn: int, start: int, env: _jaxpr.Env, mode: _Mode) -> jax.Array:
        """Goes on from the equation at `start`, with the stops from number `turn` on to come."""
        if turn == len(program.stops):
            env = program.run(start, len(jaxpr.eqns), env)
            return then([_jaxpr.read(env, v) for v in program.outputs], mode)
        stop = program.stops[turn]
        env = program.run(start, stop, env)
        eqn = jaxpr.eqns[stop]
        if stop in program.raw:
            env = _watched(eqn, env, program.raw[stop])
            return proceed(turn + 1, stop, env, mode)
        operands = [_jaxpr.read(env, v) for v in eqn.invars]

        def resume(outs: list[Any], mode: _Mode) -> jax.Array:
            # An estimator may run the rest more than once, with the same randomness on purpose.
            rest = {v: _clone_keys(x) for v, x in env.items()}
            results = dict(zip(eqn.outvars, outs, strict=True))
            return proceed(turn + 1, stop + 1, {**rest, **results}, mode)

        return _stop(eqn, operands, program.used(stop), mode, resume)

    return proceed(0, 0, program.bind(*values), mode)


def _stop(
    eqn: Any, operands: list[Any], used: Sequence[bool], mode: _Mode, then: Callable[..., Any]
) -> jax.Array:
    """The value from `eqn` on, an equation that holds a draw or a cost."""
    if eqn.primitive is _jaxpr.cost_p:
        return jnp.sum(operands[0]) + then(operands, mode)
    if eqn.primitive is _jaxpr.sample_p:
        return _sample(eqn, operands, mode, then)
    if (called := _jaxpr.called(eqn)) is not None:
        jaxpr, consts = _jaxpr.open_jaxpr(called)
        return _run(jaxpr, [*consts, *operands], used, mode, then)
    if _jaxpr.loop(eqn) or (_jaxpr.branches(eqn) and not _needs_continuation(eqn)):
        outs, ledger = _account(eqn, operands, used, mode, _Ledger.empty())
        return ledger.close(then(outs, mode))
    if (branches := _jaxpr.branches(eqn)) is not None:
        index, *args = operands
        arms = [functools.partial(_arm, branch, used, mode, then) for branch in branches]
        return jax.lax.switch(index, arms, *args)
    raise _unsupported(eqn)


def _arm(branch: Any, used: Sequence[bool], mode: _Mode, then: _Then, *args: Any) -> jax.Array:
    """One branch of a cond, with the rest of the program inside."""
    jaxpr, consts = _jaxpr.open_jaxpr(branch)
    return _run(jaxpr, [*consts, *args], used, mode, then)


def _sample(eqn: Any, operands: list[Any], mode: _Mode, then: Callable[..., Any]) -> jax.Array:
    key, sampler, dist = _site(eqn, operands, mode)
    if mode.relaxed and sampler.relaxed is not None:
        return then(jax.tree.leaves(sampler._relaxed(key, dist)), mode)
    rest = lambda draw, mode: then(jax.tree.leaves(draw), mode)
    return sampler._expect(key, dist, _Rest(rest, mode, sampler.name))


def _site(eqn: Any, operands: list[Any], mode: _Mode) -> tuple[jax.Array, Sampler, Any]:
    """The key, the sampler and the distribution of a sample equation."""
    site: SamplerSite = eqn.params["site"]
    key, *rest = operands
    sampler, dist = site.parts(tuple(rest))
    for index in mode.indices:
        key = _random.fold_in(key, index)
    if site.lanes:
        _check_lanes(site)
        if not isinstance(dist, base.Distribution):
            for _ in range(site.lanes):
                dist = base.Lanes(dist)
    return key, sampler, dist


def _check_lanes(site: SamplerSite) -> None:
    name, where = site.sampler.name, site.where
    if site.key_shared:
        raise ValueError(
            f"{name}: a draw under jax.vmap inside a loss got the same key in every lane"
            f"{where}, so its lanes are not independent. Split the key and vmap over the keys."
        )
    if site.option_per_lane:
        raise NotImplementedError(
            f"{name}: a draw under jax.vmap inside a loss has options that differ from lane to "
            f"lane{where}. Vmap the expectation of a per-lane loss instead of the draw."
        )
    warnings.warn(
        f"{name}: a draw under jax.vmap inside a loss{where} is credited with the whole loss in "
        "every lane. If the loss is a sum over lanes, "
        "jax.vmap(gradest.expectation(per_lane_loss)) gives each lane its own cost only, with "
        "less variance.",
        stacklevel=2,
    )


def _unsupported(eqn: Any) -> Exception:
    mark = next(iter(_jaxpr.marks_in(eqn)))
    if mark.primitive is _jaxpr.sample_p:
        held, where = f"a draw by {mark.params['site'].sampler.name}", mark.params["site"].where
    else:
        held, where = "a cost", mark.params["where"]
    construct = eqn.primitive.name
    remedy = _REMEDIES.get(construct, "Move it out of the construct.")
    return NotImplementedError(
        f"expectation: {held}{where} is inside a `{construct}`, which the transform does not "
        f"support. {remedy} Or use sampler.expect(key, dist, cost) there, with a cost of its own."
    )


_REMEDIES = {
    "while": "Use jax.lax.scan with a fixed number of steps, and a mask for those that are over.",
    "shard_map": "Put the expectation inside: jax.shard_map(gradest.expectation(loss), ...).",
    "xla_pmap": "Put the expectation inside: jax.pmap(gradest.expectation(loss)).",
}


# ---- Draws that nothing estimates ------------------------------------------------------------


class UnestimatedGradientWarning(UserWarning):
    """A draw by jax.random in a loss depends on what is being differentiated."""


def _watched(eqn: Any, env: _jaxpr.Env, name: str) -> _jaxpr.Env:
    """The environment in which the parameters of a draw by jax.random warn when differentiated."""
    parameters = [
        v
        for v in _jaxpr.variables(eqn)
        if jnp.issubdtype(jax.dtypes.result_type(env[v]), jnp.floating)
    ]
    where = _jaxpr.line_of(eqn)
    return {**env, **{v: _watch(name, where, env[v]) for v in parameters}}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _watch(name: str, where: str, x: jax.Array) -> jax.Array:
    del name, where
    return x


def _watch_jvp(name: str, where: str, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    if isinstance(dx, SymbolicZero):
        return x, jnp.zeros_like(x)
    warnings.warn(
        f"expectation: jax.random.{name}{where} draws in a loss from parameters that are being "
        "differentiated. Nothing estimates that part of the gradient: it counts as zero. Draw by "
        "a gradest sampler, or give it jax.lax.stop_gradient of the parameters.",
        UnestimatedGradientWarning,
        stacklevel=2,
    )
    return x, dx


_watch.defjvp(_watch_jvp, symbolic_zeros=True)


# ---- Loops ---------------------------------------------------------------------------------
#
# What follows a step of a loop cannot be handed to a draw in it as a function. An estimator that
# needs only the cost of its one draw does not ask for that: the running log-probability of the
# draws so far weights every later cost, which is the same sum, sum_t c_t magic(sum_{s<=t} l_s).


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Ledger:
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
    def empty() -> "_Ledger":
        zero = jnp.zeros(())
        return _Ledger(zero, zero, (zero, zero))

    def draw(self, log_prob: jax.Array, baseline: Any) -> "_Ledger":
        l = log_prob.astype(self.log_prob.dtype)
        b = jnp.asarray(baseline, self.cost.dtype)
        first, second = self.baselines
        fixed_b, before = jax.lax.stop_gradient((b, self.cost))
        return _Ledger(
            log_prob=self.log_prob + l,
            cost=self.cost + fixed_b * (1 - magic(l)),
            baselines=(first + b, second + b * (fixed_b + before)),
        )

    def spend(self, c: jax.Array) -> "_Ledger":
        c = jnp.sum(c).astype(self.cost.dtype)
        return dataclasses.replace(self, cost=self.cost + c * magic(self.log_prob))

    def close(self, rest: jax.Array) -> jax.Array:
        """The value of the loop's costs and of the `rest` of the program."""
        ledger = jax.tree.map(lambda x: x.astype(rest.dtype), self)
        value = ledger.cost + rest * magic(ledger.log_prob)
        total = jax.lax.stop_gradient(value)
        gradient = (-total, jnp.ones_like(total))
        return attach_variance_gradient(value, ledger.baselines, gradient, order=1)


def _account(
    eqn: Any, operands: list[Any], used: Sequence[bool], mode: _Mode, ledger: _Ledger
) -> tuple[list[Any], _Ledger]:
    """The results of `eqn`, with its draws and costs entered into the ledger."""
    if eqn.primitive is _jaxpr.cost_p:
        return operands, ledger.spend(operands[0])
    if eqn.primitive is _jaxpr.sample_p:
        key, sampler, dist = _site(eqn, operands, mode)
        if sampler.score is None:
            raise _only_scores(eqn)
        draw, log_prob, baseline = sampler._score(key, dist)
        return jax.tree.leaves(draw), ledger.draw(log_prob, baseline)
    if (called := _jaxpr.called(eqn)) is not None:
        jaxpr, consts = _jaxpr.open_jaxpr(called)
        return _account_all(jaxpr, [*consts, *operands], used, mode, ledger)
    if (branches := _jaxpr.branches(eqn)) is not None:
        index, *args = operands

        def arm(branch: Any, ledger: _Ledger, *args: Any) -> tuple[list[Any], _Ledger]:
            jaxpr, consts = _jaxpr.open_jaxpr(branch)
            return _account_all(jaxpr, [*consts, *args], used, mode, ledger)

        return jax.lax.switch(index, [functools.partial(arm, b) for b in branches], ledger, *args)
    if (loop := _jaxpr.loop(eqn)) is not None:
        return _account_loop(loop, operands, used, mode, ledger)
    raise _unsupported(eqn)


def _account_all(
    jaxpr: Any, values: Sequence[Any], used: Sequence[bool], mode: _Mode, ledger: _Ledger
) -> tuple[list[Any], _Ledger]:
    program = _jaxpr.Program.of(jaxpr, used)
    env, start = program.bind(*values), 0
    for stop in program.stops:
        env = program.run(start, stop, env)
        eqn = jaxpr.eqns[stop]
        if stop in program.raw:
            env, start = _watched(eqn, env, program.raw[stop]), stop
            continue
        operands = [_jaxpr.read(env, v) for v in eqn.invars]
        outs, ledger = _account(eqn, operands, program.used(stop), mode, ledger)
        env, start = {**env, **dict(zip(eqn.outvars, outs, strict=True))}, stop + 1
    env = program.run(start, len(jaxpr.eqns), env)
    return [_jaxpr.read(env, v) for v in program.outputs], ledger


def _account_loop(
    loop: _jaxpr.Loop, operands: list[Any], used: Sequence[bool], mode: _Mode, ledger: _Ledger
) -> tuple[list[Any], _Ledger]:
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


def _needs_continuation(eqn: Any) -> bool:
    """Whether a draw in `eqn` needs the rest of the program as a function."""
    sites = (m.params["site"] for m in _jaxpr.marks_in(eqn) if m.primitive is _jaxpr.sample_p)
    return any(site.sampler.score is None for site in sites)


def _only_scores(eqn: Any) -> Exception:
    site: SamplerSite = eqn.params["site"]
    return NotImplementedError(
        f"{site.sampler.name}: a draw{site.where} is inside a `scan`, where the rest of the "
        "program cannot be evaluated at several points. There use score_function with one sample "
        "(baseline: None or a scalar), averaged with gradest.monte_carlo, or a pathwise sampler "
        "such as reparameterize or gumbel_softmax; or unroll the loop in Python."
    )


def _clone_keys(tree: Any) -> Any:
    """Marks keys as used again on purpose: for common random numbers."""
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.clone(x) if is_key(x) else x, tree)
