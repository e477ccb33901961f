"""The transform: from a loss that draws to an estimate of its expectation.

The loss is staged to a jaxpr, which is read into nodes. Draws that need no more than the value of
what follows them are accounted for in passing, by the ledger; a draw that needs what follows it as
a function is given that, by the continuation.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr, _random
from .._cost import Mode
from . import complaints
from .continuation import value_of
from .downstream import complaints_of
from .keys import shared_keys
from .ledger import Ledger, advance
from .program import Program, Purpose, read_program

P = ParamSpec("P")
T = TypeVar("T")


@overload
def expectation(loss: Callable[P, T], has_aux: bool = False) -> Callable[P, T]: ...


@overload
def expectation(*, has_aux: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


def expectation(loss: Callable[..., Any] | None = None, has_aux: bool = False) -> Any:
    """Estimates the expectation of a loss that draws, with its gradient attached.

    The result takes the arguments of `loss` and returns one Monte Carlo estimate of
    E[loss(*args)] over its draws. `jax.grad` of it estimates the gradient of that expectation,
    at each draw by the estimator that the loss picked there. It composes with `jax.jit`,
    `jax.vmap` and `jax.grad` like any JAX function; call it under `jax.jit`, since every call
    stages the loss anew.

    Assumptions, bias, variance and cost evaluations are those of the samplers. Draws are taken
    in the order of the program, and a draw is credited only with costs that come after it
    (`gradest.cost`) and with the loss's result. Other randomness in the loss is left alone.

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
        but for those in what the loss needs at several points.

    Returns:
      A function with the arguments of `loss`, which returns a scalar, or the scalar and the
      auxiliary output.

    Raises:
      TypeError: if `loss` is not callable, or returns something else than it should.
      NotImplementedError: when a draw is inside a construct that the transform does not
        support; the message names it, the estimator and the remedy.
      ValueError: when the loss is not a real scalar.
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

    Reference:
      Schulman, Heess, Weber and Abbeel 2015, "Gradient Estimation Using Stochastic Computation
      Graphs", eq. 5 and Theorem 1, for draws credited with what is downstream of them.
    """

    if loss is None:
        return functools.partial(expectation, has_aux=has_aux)
    if not callable(loss):
        raise TypeError(
            f"loss: expected a function, got {type(loss).__name__}. Wrap the function that draws, "
            "not its result: gradest.expectation(loss)(*args)."
        )

    @functools.wraps(loss)
    def estimate(*args: Any, **kwargs: Any) -> Any:
        staged = stage(loss, has_aux, args, kwargs)
        with jax.named_scope("gradest.expectation"):
            value, aux = staged.evaluate()
        return (value, aux) if has_aux else value

    return estimate


# ---- Staging -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Staged:
    """A staged loss: its first output is the loss, the others are auxiliary."""

    jaxpr: Any
    values: list[Any]
    aux_treedef: Any

    def evaluate(self, *, complain: bool = True) -> tuple[jax.Array, Any]:
        """The loss, and its auxiliary output: of the same run where that is one run."""
        of_jumps = complaints_of(self.jaxpr) if complain else {}
        program = read_program(self.jaxpr, Purpose.BOTH, of_jumps)
        if complain:
            _check(program, self.values)
        if not program.needs_rest(Mode()):
            return self._of_one_run(program)
        if len(program.outputs) == 1:
            return self._value(program), self._aux([])
        # The loss may be evaluated at several points: auxiliary output is that of plain draws.
        loss = self._value(read_program(self.jaxpr, Purpose.LOSS, of_jumps))
        report = read_program(self.jaxpr, Purpose.REPORT)
        env = report.bind(*jax.lax.stop_gradient(jax.tree.map(_clone, self.values)))
        env, _ = advance(report, slice(None), env, Mode(), Ledger())
        return loss, self._aux(report.results(env)[1:])

    def _value(self, program: Program) -> jax.Array:
        try:
            return value_of(program, self.values, Mode(), lambda outs, _: outs[0])
        except RecursionError:
            raise complaints.nested_too_deep(len(program.marks)) from None

    def _of_one_run(self, program: Program) -> tuple[jax.Array, Any]:
        ledger = Ledger.of(program.nodes)
        env, ledger = advance(program, slice(None), program.bind(*self.values), Mode(), ledger)
        loss, *aux = program.results(env)
        return ledger.close(jnp.asarray(loss)), self._aux(aux)

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
        watched = _Arguments(args, kwargs)
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
    values = _jaxpr.varying_alike([leaves[i] for i in dynamic])[0]
    try:
        jaxpr, (_, aux) = jax.make_jaxpr(flat, return_shape=True)(values)
    except jax.errors.TracerBoolConversionError as error:
        raise complaints.with_way_out_of_if(error) from None
    return Staged(jaxpr, values, jax.tree.structure(aux))


class _Arguments:
    """The arguments that the loss is given, which it must not change: nobody would see it.

    They are copies, as under `jax.jit`, whose leaves are traced.
    """

    def __init__(self, *arguments: Any):
        self._arguments = arguments
        self._before = jax.tree_util.tree_flatten_with_path(arguments)
        # Some class makes its leaves anew whenever it is asked.
        again = jax.tree.leaves(arguments)
        self._kept = [a is b for (_, a), b in zip(self._before[0], again, strict=True)]

    def check(self, aux: Any) -> None:
        """Raises for what has changed, and is not part of the auxiliary output."""
        returned = set(map(id, jax.tree.leaves(aux)))
        leaves, treedef = self._before
        after, treedef_after = jax.tree_util.tree_flatten_with_path(self._arguments)
        if treedef_after != treedef:
            known = {path for path, _ in leaves}
            new = [path for path, leaf in after if path not in known and id(leaf) not in returned]
            if new or len(after) < len(leaves):
                raise complaints.argument_changed(self._name(new[0] if new else ()))
            return
        for (path, leaf), (_, leaf_after), kept in zip(leaves, after, self._kept, strict=True):
            if kept and leaf is not leaf_after and id(leaf_after) not in returned:
                raise complaints.argument_changed(self._name(path))

    @staticmethod
    def _name(path: Any) -> str:
        """Such as 'args[0].bn.mean', or nothing."""
        if not path:
            return ""
        of_args = path[0].idx == 0
        return ("args" if of_args else "kwargs") + jax.tree_util.keystr(path[1:])


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


def _check(program: Program, values: Sequence[Any]) -> None:
    complaints.check_keys(shared_keys(program, values))
    complaints.check_lanes([draw.site for draw in program.draws])
    complaints.check_collectives(program.collectives())
    complaints.check_rules(draw.site for draw in program.with_rules())


def _clone(x: Any) -> Any:
    return jax.random.clone(x) if _random.is_typed(x) else x
