"""Draws that get the same key: what is said of them, and those in the cost of another draw.

In a staged loss they are found by `_transform/keys.py`. The cost of a `sampler.expect` is evaluated
where it is called, staged or not: what it draws with the key of that call is seen as it draws.
"""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import _written
from ._derivatives.refuse import UnestimatedGradientWarning


def warn(what: str, remedy: str = "Split the key: jax.random.split(key)") -> None:
    """Of draws of which `what` says how they share a key."""
    warnings.warn(
        f"{what}, so they are not independent, and the gradient is that of no expectation over "
        f"independent draws. {remedy}. If it is meant, say so with jax.random.clone(key).",
        UnestimatedGradientWarning,
        stacklevel=2,
    )


class ExpectCall(NamedTuple):
    """A `sampler.expect` that a user calls.

    Attributes:
      key: as the user gave it.
      name: of the estimator.
      where: the user's line that calls it, as ' (at file:line)', or nothing.
      cost_based: whether it needs the value of the cost.
      told: the names and lines of draws that were told of.
    """

    key: Any
    name: str
    where: str
    cost_based: bool
    told: set[tuple[str, str]]


def expect_call(key: Any, name: str, cost_based: bool) -> ExpectCall:
    """The one that is called now."""
    return ExpectCall(key, name, _written.user_line(), cost_based, set())


# Those whose costs are being evaluated, from the outermost in.
_around: contextvars.ContextVar[tuple[ExpectCall, ...]] = contextvars.ContextVar(
    "around", default=()
)


@contextlib.contextmanager
def in_cost_of(call: ExpectCall) -> Iterator[None]:
    """What draws here is checked."""
    token = _around.set((*_around.get(), call))
    try:
        yield
    finally:
        _around.reset(token)


def check(key: Any, name: str, cost_based: bool) -> None:
    """Warns of a draw with the key of an expectation in whose cost it is made."""
    for outer in _around.get():
        # One that is equal only, as by jax.random.clone, may be meant.
        if not (cost_based or outer.cost_based) or key is not outer.key:
            continue
        line = name, _written.user_line()
        if line not in outer.told:
            warn(
                f"expect: a draw by {name}{line[1]} in the cost of one by {outer.name}"
                f"{outer.where} gets the same key"
            )
            # Not where it is an error: what is only looked at is then evaluated all the same.
            outer.told.add(line)
