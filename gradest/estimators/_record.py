"""What is known of an estimator, once.

Every module of an estimator ends with its `RECORDS`. From them come the tables of the
documentation, `python -m gradest table`, which measures what they claim, and the matrix of the
tests.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .._sampler import Sampler
from ..distributions import _records
from ..distributions._capabilities import has
from ..distributions.base import Distribution

#: What the mean of the gradient is: that of the expectation ("exact": without any variance), of
#: the bound of several samples, that of the expectation for quadratic costs only, or another one.
Unbiased = Literal["yes", "exact", "of the bound", "to second order", "no", "no gradient: raises"]


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """How often the cost is evaluated for one gradient.

    Attributes:
      words: as tables say it.
      count: the number, from the estimator's options and the distribution.
    """

    words: str
    count: Callable[[Mapping[str, Any], Any], int]


NUM_SAMPLES = Evaluations("`num_samples`", lambda options, dist: options["num_samples"])


@dataclasses.dataclass(frozen=True)
class Record:
    """The facts of one estimator.

    Attributes:
      estimator: the public function, which makes the sampler.
      needs: what a distribution must have, by the names of `CAPABILITIES`; of several names in a
        tuple, one.
      unbiased: whether its gradient is.
      differentiable_cost: whether the cost must be differentiable in the draw, of one distribution
        at least (`needs_slope`).
      evaluations: of the cost.
      reference: first authors and years, which its docstring cites in full; "-" for none.
      draws: "exact" if they follow the distribution, or "relaxed".
      second_order: whether derivatives of order two are right; where not, they raise.
      cost_note: where the cost must be differentiable, or why it had better be.
      only: the distributions that it serves of those that have what it needs; all if None.
      arguments: values with which it is measured of those of its arguments without a default.
    """

    estimator: Callable[..., Sampler]
    _: dataclasses.KW_ONLY
    needs: tuple[str | tuple[str, ...], ...]
    unbiased: Unbiased
    differentiable_cost: bool
    evaluations: int | Evaluations
    reference: str
    draws: Literal["exact", "relaxed"] = "exact"
    second_order: bool = False
    cost_note: str = ""
    only: tuple[type[Distribution], ...] | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.estimator.__name__

    @property
    def estimates(self) -> bool:
        """Whether it gives a gradient at all."""
        return self.unbiased != "no gradient: raises"

    @property
    def is_unbiased(self) -> bool:
        """Whether its gradient's mean is that of what its value estimates."""
        return self.unbiased in ("yes", "exact", "of the bound")

    @property
    def distributions(self) -> tuple[str, ...]:
        """The names of those that it serves."""
        kinds = [record.kind for record in _records.RECORDS]
        return tuple(kind.__name__ for kind in kinds if self.serves(kind))

    def serves(self, kind: type[Distribution]) -> bool:
        """Whether it takes distributions of that class."""
        if self.only is not None and kind not in self.only:
            return False
        return all(has(kind, need) for need in self.needs)

    def needs_slope(self, kind: type[Distribution]) -> bool:
        """Whether the cost must be differentiable in draws of that class."""
        return self.differentiable_cost and bool(self.sampler()._source("", kind).slope_in)

    @property
    def options(self) -> dict[str, Any]:
        """What it is called with where its claims are measured, defaults included."""
        bound = inspect.signature(self.estimator).bind(**self.arguments)
        bound.apply_defaults()
        return bound.arguments

    @property
    def call(self) -> str:
        """How one writes that."""
        arguments = (f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({', '.join(arguments)})"

    def sampler(self) -> Sampler:
        """One with these options."""
        return self.estimator(**self.arguments)

    def count_evaluations(self, dist: Any) -> int:
        """How often that one evaluates the cost for one gradient."""
        if isinstance(self.evaluations, int):
            return self.evaluations
        return self.evaluations.count(self.options, dist)
