"""Annealing: a temperature, or any other leaf of the parameters, follows a schedule.

The leaf stays among the parameters, where a checkpoint finds it and where it reaches the
sampler as a traced value; its optimizer is a transformation that knows where it should be.
"""

import difflib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.typing import ArrayLike

from . import _check

# The labels of the transformations, and so their names in the state.
_OPTIMIZER, _ANNEAL = "optimizer", "anneal."


class AnnealState(NamedTuple):
    step: ArrayLike


def anneal(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Puts every leaf on a schedule, whatever its gradient.

        leaf ← leaf + (schedule(k) - leaf) = schedule(k)    at the k-th update, k = 1, 2, ...

    The update is taken from the leaf's present value, so rounding never accumulates. The
    sum is the schedule's value to the last bit whenever the leaf moves by at most a factor
    of two; beyond that it is off by at most the rounding of the move itself, which the next
    update undoes. Initialise the leaf with `schedule(0)`.

    Args:
        schedule: a function from the number of updates (int32, no unit) to the value of the
            leaves, a scalar or an array that broadcasts to each; any optax schedule.

    Returns:
        A transformation of floating-point leaves of any shape. Its updates have the leaf's
        type, its state is the number of updates, and it ignores extra arguments.

    Raises:
        TypeError: `schedule` cannot be called, or (from `init`) a leaf is not of floating type.
        ValueError: `update` is called without `params`.

    Example:
        The schedule of Jang et al., tau = max(0.5, exp(-r t)), updated every N steps:

        >>> import math
        >>> import gradest as ge, jax.numpy as jnp, optax
        >>> r, N = 1e-4, 1000
        >>> schedule = optax.exponential_decay(
        ...     1.0, transition_steps=N, decay_rate=math.exp(-r * N), staircase=True, end_value=0.5
        ... )
        >>> optimizer = ge.anneal(schedule)
        >>> temperature = jnp.float32(schedule(0))
        >>> state = optimizer.init(temperature)
        >>> for _ in range(N):
        ...     update, state = optimizer.update(jnp.nan, state, temperature)
        ...     temperature = optax.apply_updates(temperature, update)
        >>> print(f"{temperature:.4f}")  # exp(-r N)
        0.9048

        A straight-through slope that grows from 1 to 5 is `optax.linear_schedule(1.0, 5.0, steps)`.

    Reference:
        Jang, Gu and Poole 2017, Categorical reparameterization with Gumbel-softmax, sections
        2.2 (annealing) and 4 (the schedule).
    """
    _check_schedule("schedule", schedule)

    def init(params: optax.Params) -> AnnealState:
        _check_floating(params)
        return AnnealState(step=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, AnnealState]:
        del updates, extra_args
        step = optax.safe_increment(state.step)
        # Many of optax's schedules mix integers and floats.
        with jax.numpy_dtype_promotion("standard"):
            target = schedule(step)
        return _updates_to(target, params), AnnealState(step)

    return optax.GradientTransformationExtraArgs(init, update)


def with_annealing(
    optimizer: optax.GradientTransformation,
    schedules: Mapping[str, optax.Schedule | optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Anneals the leaves at some paths, and optimises all the others.

    `optimizer` sees its own leaves only: a global norm does not include the gradient of a
    temperature. Keep it so by wrapping the whole chain of transformations, not one of them. What
    mixes parameters with older ones, such as `optax.lookahead`, would take them off their schedules
    from outside: give it the others, and these to `anneal`.

    Args:
        optimizer: the transformation of every leaf that is on no path of `schedules`.
        schedules: from the path of a leaf, its keys, fields and indices joined by dots
            ("encoder.slope", "layers.0.temperature"), to what puts it on its way: a schedule,
            as for `anneal`, or a transformation, such as `anneal_on_plateau(...)`. The path of
            a subtree stands for every leaf under it.

    Returns:
        A transformation that passes extra arguments on to all those it is made of.

    Raises:
        TypeError: a value of `schedules` is neither a schedule nor a transformation.
        ValueError: (from `init` and `update`) a path leads nowhere, or two meet in one leaf.

    Example:
        >>> import gradest as ge, jax.numpy as jnp, optax
        >>> schedule = optax.linear_schedule(1.0, 0.5, transition_steps=100)
        >>> optimizer = ge.with_annealing(optax.sgd(0.1), {"temperature": schedule})
        >>> params = {"logits": jnp.ones(2), "temperature": jnp.float32(schedule(0))}
        >>> state = optimizer.init(params)
        >>> grads = {"logits": jnp.ones(2), "temperature": jnp.nan}
        >>> updates, state = optimizer.update(grads, state, params)
        >>> optax.apply_updates(params, updates)
        {'logits': Array([0.9, 0.9], dtype=float32), 'temperature': Array(0.995, dtype=float32)}
    """
    paths = [str(path) for path in schedules]
    transforms: dict[Hashable, optax.GradientTransformation] = {_OPTIMIZER: optimizer}
    for path, value in zip(paths, schedules.values(), strict=True):
        if not isinstance(value, optax.GradientTransformation):
            value = anneal(_check_schedule(f"schedules[{path!r}]", value))
        transforms[_ANNEAL + path] = value
    # The labels are worked out anew at every update (when it is traced, under jit), so a
    # leaf that was renamed since `init` is an error rather than a leaf no longer annealed.
    return optax.transforms.partition(transforms, lambda params: _labels(paths, params))


def anneal_on_plateau(
    init_value: float,
    *,
    factor: float = 0.5,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_value: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies every leaf by a factor each time the loss stops improving.

        leaf = max(min_value, init_value · factor^n)    after n plateaus,

    where a plateau is `patience` values in a row of which none is less than
    (1 - rtol) · best - atol. It is `optax.contrib.reduce_on_plateau` that finds them. The
    loss is the extra argument `value`: `optimizer.update(grads, state, params, value=loss)`.

    Args:
        init_value: the leaf's value before the first plateau; initialise the leaf with it.
        factor: between 0 and 1; the default halves the leaf, a move free of rounding.
        patience: how many values in a row without improvement make a plateau.
        rtol: the improvement that counts, relative to the best value. A loss that can be
            negative needs `rtol=0.0` and an `atol`.
        atol: the improvement that counts, in the unit of the loss.
        cooldown: how many values after a plateau are not held against the next one.
        accumulation_size: how many losses, one per update, are averaged into one value.
        min_value: the floor, in the unit of the leaf.

    Returns:
        A transformation of floating-point leaves of any shape, which ignores their gradient.

    Raises:
        TypeError: (from `init`) a leaf is not of floating type.
        ValueError: an argument is out of range, or `update` is called without `value` or
            without `params`.

    Example:
        >>> import gradest as ge, jax.numpy as jnp, optax
        >>> optimizer = ge.anneal_on_plateau(1.0, patience=2)
        >>> temperature = jnp.float32(1.0)
        >>> state = optimizer.init(temperature)
        >>> for loss in [3.0, 2.0, 2.0, 2.0]:
        ...     update, state = optimizer.update(jnp.nan, state, temperature, value=loss)
        ...     temperature = optax.apply_updates(temperature, update)
        ...     print(temperature)
        1.0
        1.0
        1.0
        0.5
    """
    init_value = float(_check.positive("init_value", init_value))
    _check_range("factor", factor, 0.0 < factor < 1.0, "a number between 0 and 1")
    _check.integer("patience", patience, at_least=1)
    _check_range("rtol", rtol, 0.0 <= rtol < 1.0, "a number in [0, 1)")
    _check_range("atol", atol, 0.0 <= atol < float("inf"), "a finite number of at least 0")
    _check_range("rtol, atol", (rtol, atol), rtol + atol > 0.0, "at least one greater than 0")
    _check.integer("cooldown", cooldown, at_least=0)
    _check.integer("accumulation_size", accumulation_size, at_least=1)
    expected = f"a number from 0 to init_value={init_value!r}"
    _check_range("min_value", min_value, 0.0 <= min_value <= init_value, expected)
    plateau = optax.contrib.reduce_on_plateau(
        factor=factor,
        patience=patience,
        rtol=rtol,
        atol=atol,
        cooldown=cooldown,
        accumulation_size=accumulation_size,
    )

    def init(params: optax.Params) -> optax.OptState:
        _check_floating(params)
        # Given not the leaf but a 1 of its own, it keeps factor^n in float32 or wider. In a
        # bfloat16 leaf's type the product would drift.
        state = plateau.init(jnp.ones(()))
        # Older versions of optax begin with weakly typed numbers and go on with strongly typed
        # ones, at the price of a second trace.
        return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), state)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del updates, extra_args
        if value is None:
            raise ValueError(
                "value: expected the loss, got None. Pass it as an extra argument: "
                "optimizer.update(grads, state, params, value=loss)."
            )
        loss = jnp.asarray(value, float)
        if loss.shape != ():
            raise ValueError(
                f"value: expected one loss, a scalar, got an array of shape {loss.shape}. "
                "Pass its mean."
            )
        with jax.numpy_dtype_promotion("standard"):
            _, state = plateau.update(jnp.ones(()), state, value=loss)
        return _updates_to(jnp.maximum(init_value * state.scale, min_value), params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _updates_to(target: Any, params: optax.Params | None) -> optax.Updates:
    """The updates that `optax.apply_updates` turns into `target`, at every leaf."""
    if params is None:
        raise ValueError(
            "params: expected the present parameters, got None. Pass them: "
            "optimizer.update(grads, state, params)."
        )

    # In the leaf's own type, and from the leaf itself: for leaf / 2 <= target <= 2 leaf the
    # difference of the two rounded numbers is exact (Sterbenz), hence so is the sum.
    def move(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return jnp.broadcast_to(jnp.asarray(target).astype(leaf.dtype), leaf.shape) - leaf

    return jax.tree.map(move, params)


def _labels(paths: Sequence[str], params: optax.Params) -> Any:
    """`params` with the label of its transformation in the place of each leaf."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [_name(keys) for keys, _ in leaves]
    owners = [[p for p in paths if name == p or name.startswith(f"{p}.")] for name in names]
    for path in paths:
        if not any(path in own for own in owners):
            subtrees = {_name(keys[:i]) for keys, _ in leaves for i in range(1, len(keys) + 1)}
            close = difflib.get_close_matches(path, sorted(subtrees), n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"schedules: expected the path of a parameter, got {path!r}, where there is "
                f"none. {hint}The parameters are: {', '.join(names)}."
            )
    for name, own in zip(names, owners, strict=True):
        if len(own) > 1:
            raise ValueError(
                f"schedules: expected one path to lead to {name!r}, got {own}. Keep one of them."
            )
    return treedef.unflatten(_ANNEAL + own[0] if own else _OPTIMIZER for own in owners)


def _name(keys: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def _check_floating(params: optax.Params) -> None:
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jax.dtypes.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params: expected leaves of floating type to anneal, got {dtype} at "
                f"{_name(keys)!r}, where the schedule would be truncated. Make it a float."
            )


def _check_range(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")


def _check_schedule(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(
            f"{name}: expected a function of the number of updates, such as an optax schedule, "
            f"got {value!r}. For a constant, use optax.constant_schedule."
        )
    return value
