"""What a reproduction is: rows of a published number, what it may be off by, and ours."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Target:
    """A published number or range, and the interval that ours must be in: any, if it is shown only.

    A claim of an order has no number, and what is not from the source has none either.
    """

    published: float | str | None
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def within(cls, published: float, tolerance: float) -> "Target":
        return cls(published, published - tolerance, published + tolerance)

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return ""
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        if math.isinf(self.high):
            return f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      name: what is compared.
      target: the published number; None for what is shown beside.
      ours: one number for each seed.
      center: what of ours is compared, `np.mean` or `np.median`.
      curve: points (step, number) that led there, for a picture; of the first seed.
    """

    name: str
    target: Target | None
    ours: Sequence[float]
    center: Callable[[Any], Any] = np.mean
    curve: Sequence[tuple[float, float]] = ()

    @property
    def result(self) -> float:
        return float(self.center(np.asarray(self.ours)))

    @property
    def passed(self) -> bool:
        if self.target is None:
            return True
        return bool(self.target.low <= self.result <= self.target.high)

    def as_dict(self) -> dict[str, Any]:
        published = None if self.target is None else self.target.published
        curve = {"curve": [[x, float(f"{y:.6g}")] for x, y in self.curve]} if self.curve else {}
        return {
            "name": self.name,
            "published": published,
            "allowed": "" if self.target is None else str(self.target),
            "ours": [float(f"{x:.6g}") for x in self.ours],
            "result": float(f"{self.result:.6g}"),
            "passed": self.passed,
            **curve,
        }


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A published experiment.

    Attributes:
      name: on the command line.
      source: of the published numbers.
      run: from (number of seeds, whether the run is shortened) to rows. A shortened run is
        compared with what the paper, or else the whole run, has at that step.
      seeds: their number by default.
      quick_seeds: the same, for shortened runs.
      needs_data: whether it reads the binarized MNIST images.
      picture: of the rows, as they are recorded; None for no picture.
      resumable: whether `run` also takes a folder, `state`, for what it needs to go on after an
        interruption.
    """

    name: str
    source: str
    run: Callable[..., list[Row]]
    seeds: int
    quick_seeds: int = 1
    needs_data: bool = False
    resumable: bool = False
    picture: Callable[[Sequence[Mapping[str, Any]]], Figure] | None = None
