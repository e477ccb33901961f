"""Whether a distribution has what an estimator needs, and what to do where it has not."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _numerics
from .._derivatives.refuse import UnestimatedGradientError
from ..distributions import _records, _supports
from ..distributions._capabilities import CAPABILITIES, has
from ..distributions._joint import seems_pathwise
from ..distributions.base import Distribution
from ..distributions.categorical import Categorical, OneHotCategorical
from ._record import Record

Need = str | tuple[str, ...]


def check(
    estimator: str, dist: Any, *needs: Need, only: tuple[type[Distribution], ...] | None = None
) -> None:
    """Raises unless `dist` has what `estimator` needs.

    Args:
      estimator: its name.
      dist: a distribution.
      *needs: names of capabilities, as in the estimator's record.
      only: the classes that it serves of those that have them; all if None. A subclass is another
        distribution: LogNormal is a Normal to Python only.

    Raises:
      TypeError: if something is missing.
      ValueError: if what a user's own method makes has not the shape of a draw.
    """
    kind = type(dist)
    lacking = [need for need in needs if not has(kind, need)]
    if not lacking and (only is None or kind in only):
        if not _check.is_gradests(kind):
            _check_shapes(estimator, dist, needs)
        return
    served = [record.kind for record in _records.RECORDS]
    served = [own for own in served if all(has(own, need) for need in needs)]
    names = ", ".join(own.__name__ for own in (served if only is None else only))
    remedy = instead(dist)
    if kind is Categorical and OneHotCategorical in (served if only is None else only):
        remedy += " Or draw the category as OneHotCategorical(logits)."
    raise TypeError(
        f"{estimator}: expected one of gradest.distributions' {names}"
        f"{_or_another(kind, lacking)}, got {_supports.name_of(dist)}. {remedy}"
    )


def _check_shapes(estimator: str, dist: Any, needs: Iterable[Need]) -> None:
    """Raises where a user's method makes another shape than a draw's, which would broadcast."""
    names = [name for need in needs for name in ([need] if isinstance(need, str) else need)]
    for capability in [CAPABILITIES[name] for name in names if has(type(dist), name)]:
        if capability.makes is None:
            continue
        call, make = capability.makes
        made = jax.eval_shape(functools.partial(make, dist)).shape
        if made != dist.shape:
            name = type(dist).__name__
            raise ValueError(
                f"{estimator}: expected of {name}.{call} the shape of a draw, {dist.shape}, got "
                f"{made}. Mend one of the two."
            )


def instead(dist: Any) -> str:
    """Which estimators there are for draws from `dist`, as the end of an error says it."""
    smooth = seems_pathwise(dist)
    not_smooth = ("reparameterize",) if isinstance(dist, Distribution) else _OF_SMOOTH_DRAWS
    others = [n for n in estimators_of(type(dist)) if smooth or n not in not_smooth]
    remedy = f"For that there are {', '.join(others)}" if others else "Use score_function"
    if smooth is None:
        remedy += f"; if its draws are differentiable, {', '.join(_OF_SMOOTH_DRAWS)} too"
    return f"{remedy}."


def check_edges(estimator: str, dist: Any) -> None:
    """Raises where a probability of 0 or 1 is differentiated by who would have to draw the other.

    That is known of what was made of probabilities just now, not of traced ones.
    """
    if getattr(dist, "lost_edge", False):
        others, ways = "measure_valued", ""
        if hasattr(dist, "enumerate_support"):
            others = "enumeration, measure_valued, sum_and_sample or unordered_set"
        expected = "rate: expected positive rates where they are differentiated, got a 0"
        if dist.edged == "logits":
            expected = "probs: expected probabilities between 0 and 1 where they are "
            expected += "differentiated, got a 0 or 1"
            ways = ", or give logits"
        floats = [x for x in jax.tree.leaves(dist) if jnp.issubdtype(x.dtype, jnp.floating)]
        if not _numerics.least_probability(jnp.result_type(*floats)):
            # Those others raise too.
            others += " in single precision"
        raise UnestimatedGradientError(
            f"{estimator}: {expected}. What the impossible outcome would cost is missing from the "
            f"gradient. Use {others}{ways}."
        )


def _or_another(kind: type, lacking: list[Need]) -> str:
    """What a user's own distribution would have to have, and be."""
    if not lacking:
        return ""
    own = "" if issubclass(kind, Distribution) else f" class derived from {_BASE}"
    of = lambda need: CAPABILITIES[need if isinstance(need, str) else need[0]].meaning
    return f", or another{own} with {' and '.join(map(of, lacking))}"


def estimators_of(kind: type) -> list[str]:
    """Names of those that estimate gradients of draws from a class of distributions."""
    if not issubclass(kind, Distribution):
        return ["score_function", "vimco", *_OF_SMOOTH_DRAWS]
    return [record.name for record in all_records() if record.estimates and record.serves(kind)]


#: Those that take any library's, if its draws are differentiable.
_OF_SMOOTH_DRAWS = ("reparameterize", "relax", "dreg")
_BASE = f"{Distribution.__module__}.{Distribution.__name__}"


@functools.cache
def all_records() -> tuple[Record, ...]:
    """Of all the modules of estimators; what serves most distributions first."""
    package = importlib.import_module(__package__ or "")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    records = [record for module in modules for record in getattr(module, "RECORDS", ())]
    return tuple(sorted(records, key=lambda record: (-len(record.distributions), record.name)))
