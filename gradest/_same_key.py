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


class _Outer(NamedTuple):
    """A `sampler.expect` whose cost is being evaluated.

    Attributes:
      key: as the user gave it.
      name: of the estimator.
      where: the user's line that calls it.
      cost_based: whether it needs the value of the cost.
      told: the names and lines of draws that were told of.
    """

    key: Any
    name: str
    where: str
    cost_based: bool
    told: set[tuple[str, str]]


_outer: contextvars.ContextVar[tuple[_Outer, ...]] = contextvars.ContextVar("outer", default=())


@contextlib.contextmanager
def in_cost_of(outer: _Outer) -> Iterator[None]:
    token = _outer.set((*_outer.get(), outer))
    try:
        yield
    finally:
        _outer.reset(token)


def outer(key: Any, name: str, cost_based: bool) -> _Outer:
    """For `in_cost_of`, by an estimator that is called by the user with this key."""
    return _Outer(key, name, _written.user_line(), cost_based, set())


def check(key: Any, name: str, cost_based: bool) -> None:
    """Warns of a draw with the key of an expectation in whose cost it is made."""
    for expect in _outer.get():
        # One that is equal only, as by jax.random.clone, may be meant.
        if not (cost_based or expect.cost_based) or key is not expect.key:
            continue
        line = name, _written.user_line()
        if line not in expect.told:
            warn(
                f"expect: a draw by {name}{line[1]} in the cost of one by {expect.name}"
                f"{expect.where} gets the same key"
            )
            # Not where it is an error: what is only looked at is then evaluated all the same.
            expect.told.add(line)
