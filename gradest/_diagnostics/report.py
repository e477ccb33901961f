"""What `gradest.diagnose` found: numbers, a table, a dict, a picture."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: A leaf is called biased where chance explains its bias this rarely.
_MIN_P = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """What the draws say of one leaf of the gradient. All arrays have the leaf's shape.

    Attributes:
      mean: of the draws.
      variance: of one draw, for each coordinate.
      variance_error: its standard error, sqrt((m4 - variance^2) / num_draws), with m4 the fourth
        central moment.
      bias: mean less the exact gradient, or less the reference's mean; None if neither is known.
      bias_error: its standard error.
      rounding: a deviation that is rounding, whatever the standard error; None for none.
    """

    mean: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    bias: np.ndarray | None = None
    bias_error: np.ndarray | None = None
    rounding: np.ndarray | None = None

    @property
    def total_variance(self) -> float:
        """The trace of the covariance: the variances' sum over the coordinates."""
        return float(np.sum(self.variance))

    @property
    def total_variance_error(self) -> float:
        """Its standard error; with several coordinates an upper bound of it, the errors' sum."""
        return float(np.sum(self.variance_error))

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio, |mean| / sqrt(total variance)."""
        return _ratio(float(np.linalg.norm(self.mean)), math.sqrt(self.total_variance))

    @property
    def total_bias(self) -> float | None:
        """The bias of a leaf with one coordinate, with its sign; the norm of any other's."""
        if self.bias is None:
            return None
        return float(self.bias.sum() if self.bias.size == 1 else np.linalg.norm(self.bias))

    @property
    def total_bias_error(self) -> float | None:
        """The root of the squared standard errors' sum: the norm that an unbiased one shows."""
        return None if self.bias_error is None else float(np.linalg.norm(self.bias_error))

    @property
    def z(self) -> np.ndarray | None:
        """The bias in standard errors."""
        if self.bias is None or self.bias_error is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            z = self.bias / (self.bias_error + (0.0 if self.rounding is None else self.rounding))
        return np.where(self.bias == 0, 0.0, z)

    @property
    def max_z(self) -> float | None:
        """The largest |z| of the coordinates."""
        return None if self.z is None else float(np.max(np.abs(self.z), initial=0.0))

    @property
    def p_value(self) -> float | None:
        """How likely chance alone makes a coordinate's |z| as large, by Bonferroni's bound."""
        if self.max_z is None:
            return None
        p = max(self.mean.size, 1) * math.erfc(self.max_z / math.sqrt(2))
        return min(p, 1.0) if p == p else math.nan

    @property
    def biased(self) -> bool | None:
        """Whether chance does not explain the bias (p < 1e-5), or it is not finite."""
        return None if self.p_value is None else not self.p_value >= _MIN_P


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """What the draws say of one gradient function.

    Attributes:
      leaves: of its gradient, by their paths; a gradient that is one array is named "gradient".
      cost_evaluations: per gradient; None if they cannot be counted.
      seconds: per gradient.
      num_nonfinite: how many of the draws are not finite.
    """

    leaves: Mapping[str, Leaf]
    cost_evaluations: int | None
    seconds: float
    num_nonfinite: int

    @functools.cached_property
    def total(self) -> Leaf:
        """All leaves as one."""
        leaves = list(self.leaves.values())
        if len(leaves) == 1:
            return leaves[0]
        joined = {
            field: None
            if getattr(leaves[0], field) is None
            else np.concatenate([getattr(leaf, field).reshape(-1) for leaf in leaves])
            for field in (f.name for f in dataclasses.fields(Leaf))
        }
        return Leaf(**joined)  # pyright: ignore

    def variance_x_time(self, leaf: Leaf) -> float:
        """In seconds: what it takes to bring the variance of a mean down to 1."""
        return leaf.total_variance * self.seconds


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What `gradest.diagnose` returns. Printed, it is a table.

    Attributes:
      estimates: by the name of the gradient function; `report[name]` is short for it.
      num_draws: of each.
      chunk_size: how many of them were evaluated at once.
      against: what the bias is measured from: "exact", the name of the reference, or None.
      device: where the time was measured.
    """

    estimates: Mapping[str, Estimate]
    num_draws: int
    chunk_size: int
    against: str | None
    device: str

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat row of numbers for each leaf of each gradient, as a data frame takes them."""
        return [
            {
                "estimator": name,
                "leaf": path,
                "bias": leaf.total_bias,
                "bias_error": leaf.total_bias_error,
                "max_z": leaf.max_z,
                "biased": leaf.biased,
                "variance": leaf.total_variance,
                "variance_error": leaf.total_variance_error,
                "snr": leaf.snr,
                "cost_evaluations": estimate.cost_evaluations,
                "seconds": estimate.seconds,
                "variance_x_time": estimate.variance_x_time(leaf),
                "num_nonfinite": estimate.num_nonfinite,
            }
            for name, estimate in self.estimates.items()
            for path, leaf in _with_total(estimate).items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can hold. Numbers that are not finite become None."""
        arrays = ("mean", "variance", "variance_error", "bias", "bias_error")
        coordinates = {
            (name, path): {field: getattr(leaf, field) for field in arrays}
            for name, estimate in self.estimates.items()
            for path, leaf in estimate.leaves.items()
        }
        rows = [
            {**row, "coordinates": coordinates.get((row["estimator"], row["leaf"]))}
            for row in self.rows
        ]
        return _plain(
            {
                "num_draws": self.num_draws,
                "chunk_size": self.chunk_size,
                "against": self.against,
                "device": self.device,
                "rows": rows,
            }
        )

    def __str__(self) -> str:
        several = any(len(estimate.leaves) > 1 for estimate in self.estimates.values())
        header = ["estimator", "leaf", "bias", "z", "variance", "SNR"]
        header += ["evals", "us", "variance x us"]
        lines = [header]
        for row in self.rows:
            bias = "-"
            if row["bias"] is not None:
                bias = f"{row['bias']:.2g} ± {row['bias_error']:.1g}" + " !" * row["biased"]
            evaluations = row["cost_evaluations"]
            lines.append(
                [
                    row["estimator"],
                    row["leaf"],
                    bias,
                    "-" if row["max_z"] is None else _short(row["max_z"]),
                    f"{row['variance']:.3g} ± {row['variance_error']:.1g}",
                    f"{row['snr']:.3g}",
                    "-" if evaluations is None else str(evaluations),
                    f"{1e6 * row['seconds']:.3g}",
                    f"{1e6 * row['variance_x_time']:.3g}",
                ]
            )
        if not several:
            lines = [line[:1] + line[2:] for line in lines]
        return "\n".join([*_aligned(lines, num_words=1 + several), "", *self._notes()])

    __repr__ = __str__

    def _notes(self) -> list[str]:
        notes = [
            f"{self.num_draws:,} draws in chunks of {self.chunk_size:,}, the same keys for all, "
            f"on {self.device}.",
            "Evals: of the cost, per gradient; us: microseconds per gradient.",
        ]
        if self.against is None:
            notes.append("Bias: unknown without `exact` or `reference`.")
        else:
            notes.append(
                f"Bias: from {self.against}; z: its largest coordinate, in standard errors."
            )
        for name, estimate in self.estimates.items():
            if estimate.num_nonfinite:
                notes.append(
                    f"! {name}: {estimate.num_nonfinite:,} of {self.num_draws:,} gradients are "
                    "not finite."
                )
            elif estimate.total.biased:
                notes.append(f"! {name}: biased, or wrong: chance does not explain its z.")
        return notes

    def plot(self) -> Any:
        """Draws each gradient's z, variance, and variance x time, a dot for each leaf.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows and `.savefig(path)` writes.

        Raises:
          ModuleNotFoundError: without matplotlib, which the extra `gradest[examples]` brings.
        """
        from .plot import figure

        return figure(self)


def _with_total(estimate: Estimate) -> dict[str, Leaf]:
    leaves = dict(estimate.leaves)
    return leaves if len(leaves) == 1 else {**leaves, "(all)": estimate.total}


def _aligned(lines: Sequence[Sequence[str]], num_words: int) -> list[str]:
    """The lines' cells in columns: the first ones are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return [
        "  ".join(
            cell.ljust(width) if i < num_words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [lines[0], rule, *lines[1:]]
    ]


def _short(z: float) -> str:
    return ">999" if z > 999 else f"{z:.1f}"


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return math.inf if a else math.nan
    return a / b


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return _plain(tree.tolist())
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
