"""The transform: from a loss that draws to an estimate of its expectation.

The loss is staged to a jaxpr, which is read into nodes. Draws that need no more than the value of
what follows them are accounted for in passing, by the ledger; a draw that needs what follows it as
a function is given that, by the continuation.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from .. import _calls, _check, _jaxpr, _mesh, _numerics, _random
from .._cost import Mode, staging
from .._jumps import Complaint
from .._lockstep import Lockstep, in_lockstep
from . import complaints
from .arguments import Arguments, named
from .continuation import value_of
from .downstream import complaints_of
from .keys import shared_keys
from .ledger import Ledger, advance
from .program import Program
from .reading import Purpose, read_program

P = ParamSpec("P")
T = TypeVar("T")


@overload
def expectation(
    loss: Callable[P, T],
    has_aux: bool = False,
    *,
    num_samples: int = 1,
    baseline: Literal["leave_one_out"] | None = None,
) -> Callable[P, T]: ...


@overload
def expectation(
    *,
    has_aux: bool = False,
    num_samples: int = 1,
    baseline: Literal["leave_one_out"] | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


@_calls.of_loss
def expectation(
    loss: Callable[..., Any] | None = None,
    has_aux: bool = False,
    *,
    num_samples: int = 1,
    baseline: Literal["leave_one_out"] | None = None,
) -> Any:
    r"""Estimates the expectation of a loss that draws, with its gradient attached.

    The result takes the arguments of `loss` and returns one Monte Carlo estimate of
    E[loss(*args)] over its draws. `jax.grad` of it estimates the gradient of that expectation,
    at each draw by the estimator that the loss picked there. It composes with `jax.jit`,
    `jax.vmap` and `jax.grad` like any JAX function; call it under `jax.jit`, since every call
    stages the loss anew.

    Assumptions, bias, variance and cost evaluations are those of the samplers. Draws are taken
    in the order of the program, and a draw is credited only with costs that come after it
    (`gradest.cost`) and with the loss's result. Other randomness in the loss is left alone.

    With `num_samples` K the estimate is the mean of K runs of the whole loss, side by side:
    K times the cost evaluations, and 1/K of the variance. Every sampler draws anew in each run,
    pathwise ones included; arguments and draws by `jax.random` are the same in all, so that the
    noise of an environment is common to them. (To draw it anew, vmap the expectation, or make it a
    site. Within one run pathwise draws stay shared by the samples of an earlier site that draws
    several, as without runs.) As under `jax.vmap`, a branch that runs decide differently is
    evaluated in both of its arms.

    `baseline="leave_one_out"` gives a draw by `score_function` that has no baseline of its own the
    mean, over the other runs, of the cost still to come after the same point of the program, in
    scans and branches too (a run in another branch: after it came to the branch). Draws by other
    estimators take none. It is REINFORCE leave-one-out, time-aligned where the loss has costs at
    every step:

    .. math:: \nabla E[f] = E\Big[\frac1K \sum_k \sum_t \Big(R_t^k
              - \frac{1}{K-1} \sum_{j \ne k} R_t^j\Big) \nabla \log p(x_t^k)\Big]

    with R_t the cost after draw number t. Bias: none, in derivatives of every order. Variance of a
    draw with the score s, g the gradient: E[(R - E R)^2 s^2] / K - (K - 2) g^2 / (K (K - 1))
    + Var R Var s / (K (K - 1)). Cost evaluations: K.

    `jax.lax.stop_gradient` of a pathwise draw stops its gradient. Of a cost-based draw it means
    nothing, since what is estimated is the gradient of the expectation, in which the draw counts
    whether or not a derivative flows through it; so where an estimator differentiates the loss at a
    relaxed draw or a mean (`rebar`, `muprop`, `delta_method`), or its surrogate (`relax`), it is
    transparent for what depends on the draw, but inside a function with a derivative rule of its
    own. Of parameters it means what it always does.

    Args:
      loss: a function whose result is a real scalar, or a pair of it and auxiliary output.
        Arrays among its arguments are traced, as under `jax.jit`; anything else is static. Without
        one, `gradest.expectation(has_aux=True)` is a decorator.
      has_aux: whether `loss` returns a pair, as in `jax.value_and_grad`. The auxiliary output is
        never differentiated, and never averaged over samples: where the loss is evaluated once, as
        with draws by `score_function` with one sample and by pathwise samplers, it is that of the
        same run; else that of one run of the program with plain draws. Effects take place once,
        but for those after a draw whose cost is evaluated at several points: at each of them. Of
        several runs it has a leading axis, a row of each, and effects are each run's own.
      num_samples: how many runs to average over, at least 1.
      baseline: None, or "leave_one_out", for at least 2 runs.

    Returns:
      A function with the arguments of `loss`, which returns a scalar, or the scalar and the
      auxiliary output.

    Raises:
      TypeError: if `loss` is not callable, or returns something else than it should; for a
        baseline that is no string.
      NotImplementedError: when a draw is inside a construct that the transform does not
        support, or an ordered effect is in a loss of several runs; the message names it and the
        remedy.
      ValueError: when the loss is not a real scalar; for `num_samples` or `baseline` out of range,
        and a baseline that no draw of the loss takes.
      UnestimatedGradientError: when a draw is differentiated whose estimator differentiates what
        it costs, and every way from it to the loss jumps: at a comparison, an index, a rounding.
        Where only some do, a warning says which; docs/promise.md has the rule.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> coin = ge.enumeration()
      >>> @ge.expectation
      ... def loss(logit, key):
      ...     return (coin(key, Bernoulli(logit)) - 0.45) ** 2
      >>> print(f"{jax.grad(loss)(0.0, jax.random.key(0)):.4f}")
      0.0250

      Eight walks, with baselines from each other:

      >>> @ge.expectation(num_samples=8, baseline="leave_one_out")
      ... def walk(logit, key):
      ...     def step(x, key):
      ...         x = x + ge.score_function()(key, Bernoulli(logit - x))
      ...         ge.cost((x - 2.0) ** 2)
      ...         return x, None
      ...     return 0.0 * jax.lax.scan(step, 0.0, jax.random.split(key, 10))[0]
      >>> jax.grad(walk)(1.0, jax.random.key(0)).shape
      ()

    Reference:
      Schulman, Heess, Weber and Abbeel 2015, "Gradient Estimation Using Stochastic Computation
      Graphs", eq. 5 and Theorem 1, for draws credited with what is downstream of them.
      Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", eq. 4,
      for the baseline of the other runs.
    """

    num_samples = _check.integer("num_samples", num_samples, 1)
    if baseline is not None:
        if not isinstance(baseline, str):
            raise TypeError(
                f'baseline: expected "leave_one_out" or None, got {type(baseline).__name__}. A '
                "number, or a network's output, is a draw's own: score_function(baseline=...)."
            )
        _check.one_of("baseline", baseline, ["leave_one_out"])
        _check.integer("num_samples", num_samples, 2, because=f' with baseline="{baseline}"')
    if not isinstance(has_aux, bool):
        raise TypeError(
            f"has_aux: expected True or False, got {type(has_aux).__name__}. The loss's arguments "
            "are those of what expectation returns: gradest.expectation(loss)(*args)."
        )
    if loss is None:
        return functools.partial(
            expectation, has_aux=has_aux, num_samples=num_samples, baseline=baseline
        )
    if not callable(loss):
        raise TypeError(
            f"loss: expected a function, got {type(loss).__name__}. Wrap the function that draws, "
            "not its result: gradest.expectation(loss)(*args)."
        )

    @functools.wraps(loss)
    def estimate(*args: Any, **kwargs: Any) -> Any:
        def run(mode: Mode) -> tuple[jax.Array, Any]:
            staged = stage(loss, has_aux, args, kwargs)
            with jax.named_scope("gradest.expectation"):
                return staged.evaluate(mode)

        if num_samples == 1:
            value, aux = run(_ONE_RUN)
        else:
            mode_of = lambda axis: Mode(lockstep=Lockstep(axis, baseline is not None))
            values, aux = in_lockstep(lambda axis: run(mode_of(axis)), num_samples)
            wide = _numerics.compute_dtype(values.dtype)
            value = jnp.mean(values, dtype=wide).astype(values.dtype)
        return (value, aux) if has_aux else value

    setattr(estimate, _LOSS, (loss, has_aux))
    return estimate


_LOSS = "__gradest_loss__"


def loss_of(function: Callable[..., Any], has_aux: bool) -> tuple[Callable[..., Any], bool]:
    """The loss that `expectation` made `function` of, with its has_aux; else these themselves."""
    return getattr(function, _LOSS, (function, has_aux))


# ---- Staging -------------------------------------------------------------------------------

_ONE_RUN = Mode()


@dataclasses.dataclass(frozen=True)
class Staged:
    """A staged loss: its first output is the loss, the others are auxiliary."""

    jaxpr: Any
    values: list[Any]
    aux_treedef: Any
    names: Callable[[], list[str]]

    def evaluate(self, mode: Mode = _ONE_RUN, *, complain: bool = True) -> tuple[jax.Array, Any]:
        """The loss, and its auxiliary output: of the same run where that is one run."""
        if not complain:
            return self._evaluated(read_program(self.jaxpr, Purpose.BOTH), mode, {})
        said = complaints_of(self.jaxpr, self._name)
        program = read_program(self.jaxpr, Purpose.BOTH, said.of_draws)
        _complain(self.jaxpr, program, self.values, mode)
        value, aux = self._evaluated(program, mode, said.of_draws)
        return said.guard(value, [*self.values, *self.jaxpr.consts]), aux

    def _name(self, number: int) -> str:
        """Of an input; those that the loss closes over come last."""
        names = self.names()
        return names[number] if number < len(names) else "what the loss closes over"

    def _evaluated(
        self, program: Program, mode: Mode, of_jumps: Mapping[int, Complaint]
    ) -> tuple[jax.Array, Any]:
        if not program.needs_rest(mode):
            return self._of_one_run(program, mode)
        if len(program.outputs) == 1:
            return self._value(program, mode), self._aux([])
        # The loss may be evaluated at several points: auxiliary output is that of plain draws.
        loss = self._value(read_program(self.jaxpr, Purpose.LOSS, of_jumps), mode)
        report = read_program(self.jaxpr, Purpose.REPORT)
        env = report.bind(*jax.lax.stop_gradient(jax.tree.map(_clone, self.values)))
        env, _ = advance(report, slice(None), env, mode, Ledger())
        return loss, self._aux(report.results(env)[1:])

    def _value(self, program: Program, mode: Mode) -> jax.Array:
        try:
            return value_of(program, self.values, mode, lambda outs, _: jnp.asarray(outs[0]))
        except RecursionError:
            raise complaints.nested_too_deep(len(program.counted)) from None

    def _of_one_run(self, program: Program, mode: Mode) -> tuple[jax.Array, Any]:
        ledger = Ledger.of(program.nodes, mode)
        env, ledger = advance(program, slice(None), program.bind(*self.values), mode, ledger)
        loss, *aux = program.results(env)
        return ledger.close(jnp.asarray(loss), mode), self._aux(aux)

    def _aux(self, outs: Sequence[Any]) -> Any:
        # A constant output is a literal of the program, which is not yet an array.
        leaves = [jax.lax.stop_gradient(jnp.asarray(out)) for out in outs]
        return jax.tree.unflatten(self.aux_treedef, leaves)


def stage(loss: Callable[..., Any], has_aux: bool, args: Any, kwargs: Any) -> Staged:
    """The loss at these arguments, or at their shapes."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    dynamic = [i for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]

    @functools.wraps(loss)  # so that JAX's errors name the user's function
    def flat(values: list[Any]) -> Any:
        filled = list(leaves)
        for i, value in zip(dynamic, values, strict=True):
            filled[i] = value
        args, kwargs = jax.tree.unflatten(treedef, filled)
        watched = Arguments(args, kwargs)
        out = loss(*args, **kwargs)
        watched.check(out[1:] if has_aux and isinstance(out, tuple) else ())
        if not has_aux:
            return _real_scalar(out, has_aux), None
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                "expectation: has_aux=True expects the loss to return a pair (loss, aux), got "
                f"{type(out).__name__}."
            )
        return _real_scalar(out[0], has_aux), out[1]

    # In a shard_map what is given alike to every device gets a gradient that is summed over them:
    # here, once, and not inside a branch that some of them take.
    values = _mesh.varying_alike([leaves[i] for i in dynamic])[0]
    with staging(True), _calls.with_way_out("In a loss under gradest.expectation"):
        jaxpr, (_, aux) = jax.make_jaxpr(flat, return_shape=True)(values)

    def names() -> list[str]:
        paths = jax.tree_util.tree_flatten_with_path((args, kwargs))[0]
        return [named(paths[i][0]) for i in dynamic]

    return Staged(jaxpr, values, jax.tree.structure(aux), names)


_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


def _real_scalar(value: Any, has_aux: bool) -> Any:
    hint = "" if has_aux else " For auxiliary output use gradest.expectation(loss, has_aux=True)."
    if value is None:
        raise TypeError(
            "expectation: expected the loss to return a scalar, got None. Does it end with "
            "`return`? Return 0.0 where all of it goes to gradest.cost."
        )
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


def _complain(loss: Any, program: Program, values: Sequence[Any], mode: Mode) -> None:
    if mode.lockstep is not None:
        complaints.check_effects(_jaxpr.ordered_effects(program.jaxpr))
    if mode.baselines is not None:
        complaints.check_baselines([draw.site for draw in program.credited_draws])
    complaints.check_lanes([draw.site for draw in program.credited_draws])
    complaints.check_keys(shared_keys(loss, values, [draw.eqn for draw in program.credited_draws]))
    complaints.check_collectives(program.collectives())
    complaints.check_rules(draw.site for draw in program.with_rules())


def _clone(x: Any) -> Any:
    return jax.random.clone(x) if _random.is_typed(x) else x
