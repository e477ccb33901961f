"""The transform: from a loss that draws to an estimate of its expectation.

The loss is staged to a jaxpr. Up to its first cost-based draw it is evaluated as it is; the
draw's sampler is then given the rest of the program as its cost. Sites thus nest in the order
of the program, and each is credited with what comes after it alone.
"""

import contextvars
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr, _marks
from .._sampler import Cost
from . import program as _program
from .complaints import (
    Mode,
    check_collectives,
    check_lanes,
    check_rule,
    clone_keys,
    read_site,
)
from .ledger import Ledger, Position, account, advance


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
      c: real; an array adds the sum of its elements. In a function under `jax.vmap`, one that is
        the same in all lanes is added once.

    Raises:
      RuntimeError: when run outside `gradest.expectation`.
      TypeError: if `c` is not a floating-point array.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> bit = ge.score_function()
      >>> @ge.expectation
      ... def loss(logit, key):
      ...     first = bit(key, Bernoulli(logit))
      ...     ge.cost((first - 0.3) ** 2)
      ...     return 0.0 * first
      >>> loss(0.0, jax.random.key(0)).shape
      ()
    """
    if not _STAGING.get():
        raise _marks.cost_outside()
    c = jnp.asarray(c)
    if not jnp.issubdtype(c.dtype, jnp.floating):
        raise TypeError(f"c: expected a real floating-point array, got one of type {c.dtype}.")
    _marks.cost_p.bind(c, where=_jaxpr.user_line())


# ---- Staging -------------------------------------------------------------------------------

# Whether a loss is being staged: a cost that nothing collects would be dropped by jax.jit.
_STAGING = contextvars.ContextVar("staging", default=False)


@dataclasses.dataclass(frozen=True)
class _Staged:
    """A staged loss: its first output is the loss, the others are auxiliary."""

    jaxpr: Any
    values: list[Any]
    aux_treedef: Any

    def aux(self) -> Any:
        """Auxiliary output of a run with plain draws; equal work is shared when compiled."""
        jaxpr = _program.without_costs(self.jaxpr, [False] + [True] * (len(self.jaxpr.outvars) - 1))
        values = jax.lax.stop_gradient(clone_keys(self.values))
        # A constant output is a literal of the program, which is not yet an array.
        return jax.tree.unflatten(self.aux_treedef, map(jnp.asarray, jaxpr(*values)))


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
    token = _STAGING.set(True)
    try:
        closed, (_, aux) = jax.make_jaxpr(flat, return_shape=True)(values)
    finally:
        _STAGING.reset(token)
    jaxpr, consts = _jaxpr.open_jaxpr(closed)
    return _Staged(jaxpr, [*consts, *values], jax.tree.structure(aux))


def _real_scalar(value: Any, has_aux: bool) -> Any:
    hint = "" if has_aux else " For auxiliary output pass has_aux=True."
    structure = jax.tree.structure(value)
    if structure != jax.tree.structure(0):
        raise TypeError(f"expectation: expected the loss to be a scalar, got {structure}.{hint}")
    shape, dtype = np.shape(value), jax.dtypes.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        remedy = (
            "Convert it to floating point; return 0.0 where all of it goes to gradest.cost."
            if shape == ()
            else "Wrap the loss of one example and vmap the result: "
            f"jax.vmap(gradest.expectation(per_example_loss)).{hint}"
        )
        raise ValueError(
            f"expectation: expected the loss to be a real scalar, got shape {shape} and type "
            f"{dtype}. {remedy}"
        )
    return value


# ---- Evaluation ----------------------------------------------------------------------------


# What follows a (part of a) program: from its outputs to the value of everything to come.
_Then = Callable[[list[Any], Mode], jax.Array]


class _Rest(Cost):
    """The rest of a program as a function of a draw: a site's cost."""

    def __init__(self, function: Callable[[Any, Mode], jax.Array], mode: Mode, sampler: str):
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
    program = _program.Program.of(jaxpr, [True] + [False] * (len(jaxpr.outvars) - 1))
    check_lanes(program.marks())
    check_collectives(program)
    try:
        return _run(program, values, Mode(), lambda outs, _: outs[0])
    except RecursionError:
        raise RecursionError(
            f"expectation: {len(program.marks())} draws and costs in sequence are nested too deep "
            f"for Python's recursion limit of {sys.getrecursionlimit()}: each draw is given what "
            "follows it as a function. Raise it with sys.setrecursionlimit, draw several variables "
            "at one site, or use score_function with one sample, which does not nest."
        ) from None


def _run(program: _program.Program, values: Sequence[Any], mode: Mode, then: _Then) -> jax.Array:
    """The value of `program` at `values` followed by `then`, draws estimated."""
    empty = Ledger.empty(program.marks())

    def proceed(position: Position, mode: Mode) -> jax.Array:
        position, ledger = advance(program, position, mode, empty, pause=True)
        rest = go_on(position, mode)
        return rest if ledger is empty else ledger.close(rest)

    def go_on(position: Position, mode: Mode) -> jax.Array:
        """Goes on from the program's end, or from a draw that is given all that follows it."""
        turn, env = position.turn, position.env
        if turn == len(program.stops):
            return then([_program.read(env, v) for v in program.outputs], mode)
        stop = program.stops[turn]
        eqn = program.jaxpr.eqns[stop]
        operands = [_program.read(env, v) for v in eqn.invars]

        def resume(outs: list[Any], mode: Mode) -> jax.Array:
            # An estimator may run the rest more than once, with the same randomness on purpose.
            rest = {v: clone_keys(x) for v, x in env.items()}
            results = dict(zip(eqn.outvars, outs, strict=True))
            return proceed(Position(turn + 1, stop + 1, {**rest, **results}), mode)

        return _continue(eqn, operands, program.used(stop), mode, resume)

    return proceed(Position(0, 0, program.bind(*values)), mode)


def _continue(
    eqn: Any, operands: list[Any], used: Sequence[bool], mode: Mode, then: _Then
) -> jax.Array:
    """The value from `eqn` on, an equation that holds a draw which needs what follows it."""
    if eqn.primitive is _marks.sample_p:
        return _sample(eqn, operands, mode, then)
    if (called := _jaxpr.called(eqn)) is not None:
        check_rule(eqn, used)
        return _run_closed(called, used, mode, then, *operands)
    if (branches := _jaxpr.branches(eqn)) is not None:
        index, *args = operands
        arms = [functools.partial(_run_closed, branch, used, mode, then) for branch in branches]
        return jax.lax.switch(index, arms, *args)
    # A loop: this raises, and says what is wrong with it.
    outs, _ = account(eqn, operands, used, mode, Ledger.empty([]))
    return then(outs, mode)


def _run_closed(closed: Any, used: Sequence[bool], mode: Mode, then: _Then, *args: Any) -> Any:
    jaxpr, consts = _jaxpr.open_jaxpr(closed)
    return _run(_program.Program.of(jaxpr, used), [*consts, *args], mode, then)


def _sample(eqn: Any, operands: list[Any], mode: Mode, then: _Then) -> jax.Array:
    key, sampler, dist = read_site(eqn, operands, mode)
    if mode.relaxed and sampler.relaxed is not None:
        return then(jax.tree.leaves(sampler._relaxed(key, dist)), mode)
    rest = lambda draw, mode: then(jax.tree.leaves(draw), mode)
    if not sampler.linear:
        mode = dataclasses.replace(mode, bound=sampler.name)
    return sampler._expect(key, dist, _Rest(rest, mode, sampler.name))
