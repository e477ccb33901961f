"""Checks of arguments. Every message names the argument, what is expected and what was given.

Only concrete values are looked at: a traced temperature cannot be compared with zero
while a program is being traced, and is never formatted into a message.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def is_concrete(value: Any) -> bool:
    """Whether `value` is known now, so that no derivative can flow to it."""
    return not isinstance(value, jax.core.Tracer)


def is_zero(value: Any) -> bool:
    """Whether the number `value` is known now, and is zero."""
    return is_concrete(value) and float(value) == 0


def scalar(name: str, value: Any) -> Any:
    """`value`, a number or a scalar array (traced or not) of real type.

    What stands for an array, as a flax.nnx.Param does, is that array.
    """
    if hasattr(value, "__jax_array__"):
        value = jnp.asarray(value)
    shape = np.shape(value)
    if shape != ():
        raise ValueError(
            f"{name}: expected a scalar, got an array of shape {shape}. To use one value per "
            "example, vmap the function that holds the sampler."
        )
    dtype = getattr(value, "dtype", type(value))
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)):
        given = repr(value) if is_concrete(value) else f"a traced {dtype}"
        raise TypeError(f"{name}: expected a real number, got {given}.")
    return value


def finite(name: str, value: Any) -> Any:
    value = scalar(name, value)
    if is_concrete(value) and not math.isfinite(float(value)):
        raise ValueError(f"{name}: expected a finite number, got {float(value)!r}.")
    return value


def positive(name: str, value: Any) -> Any:
    value = scalar(name, value)
    if is_concrete(value) and not 0.0 < float(value) < math.inf:
        raise ValueError(f"{name}: expected a finite number greater than 0, got {float(value)!r}.")
    return value


class Domain(NamedTuple):
    """Where the elements of a parameter lie.

    Attributes:
      expected: in words.
      holds: of an array, for each element.
      remedy: what to do with others.
    """

    expected: str
    holds: Callable[[np.ndarray], np.ndarray]
    remedy: str


FINITE = Domain("finite numbers", np.isfinite, "Is it the result of an overflow?")
POSITIVE = Domain(
    "finite numbers greater than 0",
    lambda x: np.isfinite(x) & (x > 0),
    "Give jax.nn.softplus or jnp.exp of what is unconstrained.",
)
NOT_NEGATIVE = Domain(
    "finite numbers that are not negative",
    lambda x: np.isfinite(x) & (x >= 0),
    "Give jax.nn.softplus or jnp.exp of what is unconstrained.",
)
PROBABILITY = Domain(
    "numbers from 0 to 1",
    lambda x: (x >= 0) & (x <= 1),
    "What is unconstrained are logits: give it by that name.",
)
WEIGHT = NOT_NEGATIVE._replace(remedy=PROBABILITY.remedy)


def is_gradests(made: object) -> bool:
    """Whether a method or a class is as gradest wrote it, not a user's; True of None."""
    return made is None or (getattr(made, "__module__", "") or "").startswith("gradest.")


def known(value: Any) -> np.ndarray | None:
    """The numbers that `value` holds, if they are known now and are all here."""
    leaves = jax.tree.leaves(value)
    if not all(map(is_concrete, leaves)):
        return None
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    return np.asarray(value).astype(np.float64)


def elements(domain: Domain, **named: Any) -> None:
    """Raises for an element of the named parameters, if known, that is not in the domain."""
    for name, value in named.items():
        numbers = known(value)
        if numbers is not None and not np.all(right := domain.holds(numbers)):
            bad = numbers[~right].flat[0]
            raise ValueError(f"{name}: expected {domain.expected}, got {bad}. {domain.remedy}")


def integer(name: str, value: Any, at_least: int, because: str = "") -> int:
    """`value` as a Python int. It sizes arrays, so it cannot be traced."""
    if not is_concrete(value):
        raise TypeError(
            f"{name}: expected a Python integer, got a traced array. It sizes arrays, so it must "
            "be known when the program is traced: mark it static, or close over it."
        )
    expected = f"an integer of at least {at_least}{because}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {value!r}.") from None
    if isinstance(value, bool) or number < at_least:
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")
    return number


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}.")
    return value


def supported(estimator: str, dist: Any, kinds: Sequence[type], remedy: str) -> None:
    """Raises if `dist` is none of the `kinds` of distribution that `estimator` handles.

    A subclass is another distribution: LogNormal is a Normal to Python only.
    """
    if type(dist) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(
            f"{estimator}: expected one of gradest.distributions' {names}, "
            f"got {name_of(type(dist))}. {remedy}"
        )


def name_of(kind: type) -> str:
    """A class as errors name it: with its module, unless it is gradest's or Python's."""
    own = kind.__module__.partition(".")[0] in ("gradest", "builtins")
    return kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"
