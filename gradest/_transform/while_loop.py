"""`gradest.while_loop`: a loop that ends when it wants to, with draws, costs and a derivative.

It is a scan of a bounded number of steps, each of which takes place or does not, so that the
transform meets no other construct than it knows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir
from jax.typing import ArrayLike

from .. import _check, _jaxpr, _mesh, _random, _written
from .._draws import draw_p, sample_p
from .spend import charged, cost, cost_p

T = TypeVar("T")


def while_loop(
    cond_fun: Callable[[T], ArrayLike], body_fun: Callable[[T], T], init_val: T, *, max_steps: int
) -> T:
    """Runs `body_fun` while `cond_fun` holds: `jax.lax.while_loop` with draws and a derivative.

    Under `gradest.expectation` the functions may draw and call `gradest.cost`; draws are those of a
    `scan`: by `score_function` with one sample, by `relax`, or by a pathwise sampler. The number of
    steps may depend on them, and each draw is credited with what comes after it. Outside of an
    expectation it is a loop like any other.

    A loop that has not ended after `max_steps` is not passed over in silence: what it returns in
    floating point is NaN, with its gradient, and a loss that depends on anything that it returns is
    NaN if the loop draws; so is any loss if it holds a `gradest.cost`. To cut it off instead, count
    the steps in `cond_fun`, as in the example.

    Assumptions, bias and variance are those of the samplers. Steps are made in blocks of about
    sqrt(max_steps), each computed again in the backward pass: a gradient takes the time of one more
    run, and the memory of about sqrt(max_steps) steps. A block that begins when the loop is over is
    skipped. Under `jax.vmap` that is so once all lanes are over, so that the slowest one sets the
    time, and a lane that is over takes no further steps; but inside the loss, draws are made for it
    as long as others go on, and add variance: vmap the expectation instead.

    Args:
      cond_fun: takes the state, returns a boolean scalar.
      body_fun: takes the state, returns the next one, of the same structure, shapes and types.
      init_val: the first state, a pytree of arrays and numbers.
      max_steps: how often `body_fun` is run at most; a Python integer of at least 1.

    Returns:
      The first state for which `cond_fun` does not hold.

    Raises:
      TypeError: if `max_steps` is traced or no integer, if `cond_fun` does not return a boolean
        scalar, or if the state changes its structure, a shape or a type.
      ValueError: if `max_steps` is less than 1.

    Example:
      Rounds until a coin shows heads, ten at most:

      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> coin = ge.score_function()
      >>> @ge.expectation
      ... def rounds(logit, key):
      ...     def flip(state):
      ...         count, heads, key = state
      ...         key, now = jax.random.split(key)
      ...         return count + 1, coin(now, Bernoulli(logit)), key
      ...     going_on = lambda state: (state[1] == 0) & (state[0] < 10)
      ...     return ge.while_loop(going_on, flip, (0.0, 0.0, key), max_steps=10)[0]
      >>> mean = ge.monte_carlo(lambda key: rounds(0.0, key), 10_000)
      >>> bool(abs(mean(jax.random.key(0)) - 2.0) < 0.1)
      True
    """
    max_steps = _check.integer("max_steps", max_steps, 1)
    body, state = _Body.staged(cond_fun, body_fun, init_val)

    impls = list(map(_impl, state))

    def started(state: list[jax.Array]) -> Any:
        over = jnp.logical_not(_boolean(cond_fun(jax.tree.unflatten(body.structure, state))))
        return _mesh.varying_alike(over, _words(state))

    def take(carry: Any) -> Any:
        return started(body(_keys(carry[1], impls)))

    def keep(carry: Any) -> Any:
        return carry

    def step(carry: Any, exists: jax.Array) -> tuple[Any, None]:
        return jax.lax.cond(carry[0] | ~exists, keep, take, carry), None

    def steps(carry: Any, exist: jax.Array) -> Any:
        return jax.lax.scan(step, carry, exist)[0]

    def block(carry: Any, exist: jax.Array) -> tuple[Any, None]:
        skip = lambda carry, exist: carry
        return jax.lax.cond(_in_all_lanes(carry[0]), skip, steps, carry, exist), None

    size = math.isqrt(max_steps - 1) + 1
    num_blocks = -(-max_steps // size)
    # The last block may have fewer steps than the others.
    exist = (jnp.arange(num_blocks * size) < max_steps).reshape(num_blocks, size)
    rerun = jax.checkpoint(block, prevent_cse=False)
    (over, words), _ = jax.lax.scan(rerun, started(state), exist)
    state = _unless_going_on(body, over, _keys(words, impls))
    return jax.tree.unflatten(body.structure, state)


def _unless_going_on(body: "_Body", over: jax.Array, state: list[jax.Array]) -> list[jax.Array]:
    """The final state, if the loop is over; else NaN, where there is one."""
    # A jump from a number to NaN is none that an estimator must know of.
    one = jax.lax.stop_gradient(jnp.where(over, 1.0, jnp.nan))
    # A select would have the gradient zero, as if the steps that are missing had none.
    state = [x * one if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in state]
    if body.holds(cost_p):
        cost(one - 1)
    if not body.holds(sample_p, draw_p):
        return state
    where = _written.user_line()
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return [x if is_key(x) else charged(one - 1, x, where) for x in state]


# ---- The state -----------------------------------------------------------------------------


class _Body:
    """The body, a function of the leaves of the state."""

    def __init__(self, jaxpr: core.ClosedJaxpr, structure: Any):
        self._jaxpr, self.structure = jaxpr, structure
        self._impls, self._consts = list(map(_impl, jaxpr.consts)), _words(jaxpr.consts)

    @staticmethod
    def staged(
        cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any
    ) -> tuple["_Body", list[jax.Array]]:
        """It, and the leaves of the first state, of the types that they keep."""
        paths, structure = jax.tree_util.tree_flatten_with_path(init_val)
        state = [jnp.asarray(x) for _, x in paths]
        names = ["init_val" + jax.tree_util.keystr(path) for path, _ in paths]

        def flat(function: Callable[[Any], Any]) -> Callable[..., Any]:
            @functools.wraps(function, updated=())  # so that JAX's errors name the user's
            def of_leaves(*state: Any) -> Any:
                return function(jax.tree.unflatten(structure, state))

            return of_leaves

        while True:
            condition = jax.make_jaxpr(flat(cond_fun))(*state)
            jaxpr, out = jax.make_jaxpr(flat(body_fun), return_shape=True)(*state)
            _check_structure(structure, out)
            # A Python number has no type of its own yet; and in a shard_map the state differs along
            # the axes along which anything in the loop does.
            typed = list(map(_as_typed_as, state, jaxpr.out_avals))
            axes = map(_mesh.varying_axes, [*typed, *jaxpr.out_avals, *condition.out_avals])
            axes = frozenset().union(*axes)
            typed = [_mesh.varying(x, axes) for x in typed]
            if all(x is y for x, y in zip(state, typed, strict=True)):
                break
            state = typed
        for name, old, new in zip(names, state, jaxpr.out_avals, strict=True):
            _check_leaf(name, old, new)
        return _Body(jaxpr, structure), state

    def __call__(self, state: Sequence[jax.Array]) -> list[jax.Array]:
        jaxpr = core.ClosedJaxpr(self._jaxpr.jaxpr, _keys(self._consts, self._impls))
        new = core.jaxpr_as_fun(jaxpr)(*state)
        # One may be a Python number's, of the same type otherwise.
        return [
            jnp.asarray(x, old.dtype) if _is_weak(x) and not _is_weak(old) else x
            for x, old in zip(new, state, strict=True)
        ]

    def holds(self, *primitives: core.Primitive) -> bool:
        """Whether there is an equation of theirs in it, at any depth."""
        return _holds(self._jaxpr.jaxpr, primitives)


# Of a typed key that a checkpoint in a branch keeps, JAX makes no zeros for the other branch, and
# fails: through the loop goes what keys are made of.


def _impl(x: Any) -> Any:
    """What a key is a key of; None for another array."""
    return jax.random.key_impl(x) if _random.is_typed(x) else None


def _words(leaves: Sequence[Any]) -> list[Any]:
    """The leaves, with their words in the place of keys."""
    return [jax.random.key_data(x) if _random.is_typed(x) else x for x in leaves]


def _keys(leaves: Sequence[Any], impls: Sequence[Any]) -> list[Any]:
    """The leaves, with keys in the place of their words."""
    return [
        x if impl is None else jax.random.wrap_key_data(x, impl=impl)
        for x, impl in zip(leaves, impls, strict=True)
    ]


def _holds(jaxpr: core.Jaxpr, primitives: Sequence[core.Primitive]) -> bool:
    inner = lambda eqn: any(_holds(sub, primitives) for sub in _jaxpr.subjaxprs(eqn))
    return any(eqn.primitive in primitives or inner(eqn) for eqn in jaxpr.eqns)


def _is_weak(x: Any) -> bool:
    return getattr(x, "weak_type", False)


def _as_typed_as(old: jax.Array, new: Any) -> jax.Array:
    """`old`, in the type of `new` if it is a Python number that JAX would promote to that."""
    if not _is_weak(old) or _is_weak(new) or jnp.result_type(old, new) != new.dtype:
        return old
    return jnp.asarray(old, new.dtype)


def _check_structure(expected: Any, out: Any) -> None:
    given = jax.tree.structure(out)
    if given != expected:
        raise TypeError(
            "body_fun: expected its result to have the structure of init_val, "
            f"{expected}, got {given}. Return every part of the state, changed or not."
        )


def _check_leaf(name: str, old: Any, new: Any) -> None:
    if old.shape != new.shape or old.dtype != new.dtype:
        raise TypeError(
            f"body_fun: expected its result to have the shapes and types of init_val, but {name} "
            f"is {old.dtype}{list(old.shape)} and becomes {new.dtype}{list(new.shape)}. Give "
            "init_val the shape and the type of what the body returns, or convert that."
        )


def _boolean(value: Any) -> jax.Array:
    if not jax.tree_util.all_leaves([value]) or value is None:
        given = f"a {type(value).__name__}"
    else:
        given = f"{jnp.result_type(value)}{list(jnp.shape(value))}"
    if given != "bool[]":
        raise TypeError(
            f"cond_fun: expected a boolean scalar, got {given}. Compare what it returns with "
            "something; for a batch of states, vmap the loop."
        )
    return jnp.asarray(value)


# ---- Lanes ---------------------------------------------------------------------------------


# Whether its operand is true; under vmap, in all lanes together, so that a branch on it stays one.
_in_all_lanes_p = core.Primitive("gradest_in_all_lanes")
_in_all_lanes_p.def_impl(lambda x: x)
_in_all_lanes_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(_in_all_lanes_p, lambda ctx, x: [x])


def _batch_in_all_lanes(args: Sequence[Any], dims: Sequence[Any]) -> Any:
    (x,), (dim,) = args, dims
    return _in_all_lanes(jnp.all(x, axis=dim)), None


batching.primitive_batchers[_in_all_lanes_p] = _batch_in_all_lanes


def _in_all_lanes(x: jax.Array) -> jax.Array:
    return _in_all_lanes_p.bind(x)
