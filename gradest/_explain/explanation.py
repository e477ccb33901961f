"""What `gradest.explain` found: rows, a table, a dict, a picture."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One draw of a loss.

    Attributes:
      line: of the user's, as "file:line", or "".
      distribution: the name of its class.
      estimator: its name.
      where: what the draw is in, from the outside in, or "".
      follows: "nothing", "smooth", "kinked", "unknown" or "jump": the strongest on the way to the
        loss.
      jumps: what jumps, and where.
      unknown: what chooses between cases that could not be looked at, and where. If they do not
        meet where the choice changes, it is a jump.
      later_draws: how many draws of the table come after it.
      cost_evaluations: of the estimator, for one gradient; None if it is not gradest's.
      others: estimators without bias there, and their cost evaluations if these are known.
      share: of the gradient's variance; None if it was not measured.
    """

    line: str
    distribution: str
    estimator: str
    where: str
    follows: str
    jumps: tuple[str, ...]
    unknown: tuple[str, ...]
    later_draws: int
    cost_evaluations: int | None
    others: Mapping[str, int | None]
    share: float | None


_HEADER = ("line", "distribution", "estimator", "where", "what follows", "later", "evals", "share")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A row for each draw of a loss, in order.

    Attributes:
      draws: the rows, as objects.
      num_draws: how many gradients the shares are of; None if none were measured.
      direct: the share of the variance of what is differentiated directly; None likewise.
    """

    draws: Sequence[Row]
    num_draws: int | None = None
    direct: float | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat list, such as `pandas.DataFrame` takes."""
        return [dataclasses.asdict(row) for row in self.draws]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        lists = lambda row: {name: list(row[name]) for name in ("jumps", "unknown")}
        rows = [{**row, **lists(row)} for row in self.rows]
        return {"num_draws": self.num_draws, "direct": self.direct, "rows": rows}

    def __str__(self) -> str:
        if not self.draws:
            return "No draw by a gradest sampler in this loss."
        lines = [_HEADER, *map(_cells, self.draws)]
        if self.num_draws is None:
            lines = [line[:-1] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        ruled = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
        pad = lambda line: "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        return "\n".join([*map(pad, ruled), "", *self._notes()])

    __repr__ = __str__

    def _notes(self) -> list[str]:
        notes = []
        for row in self.draws:
            place = f"{_short(row.line)}, {row.estimator}"
            notes += [f"{place}: what follows jumps at {jump}." for jump in row.jumps]
            notes += [
                f"{place}: what follows is chosen by {choice}; whether the cases meet there was "
                "not seen."
                for choice in row.unknown
            ]
            if row.others:
                listed = [f"{n} ({'?' if k is None else k})" for n, k in row.others.items()]
                notes.append(f"{place}: as unbiased there (evals): {', '.join(listed)}.")
        if self.direct is not None:
            notes.append(
                f"Share: of the gradient's variance, in {self.num_draws:,} draws; what is "
                f"differentiated directly has {self.direct:.0%}."
            )
        return list(dict.fromkeys(notes))

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.table import Table

        if not self.draws:
            yield str(self)
            return
        header = _HEADER if self.num_draws is not None else _HEADER[:-1]
        table = Table(*header)
        for row in self.draws:
            cells = _cells(row)[: len(header)]
            table.add_row(*cells, style="red" if row.follows == "jump" else None)
        yield table
        yield "\n".join(self._notes())

    def plot(self) -> Any:
        """Draws the shares of the variance, a bar for each draw; without them, what follows each.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows and `.savefig(path)` writes.

        Raises:
          ModuleNotFoundError: without matplotlib, which the extra `gradest[examples]` brings.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Explanation.plot: expected matplotlib, which is not installed: "
                'pip install "gradest[examples]"',
                name=error.name,
            ) from None

        labels = [f"{row.estimator}, {_short(row.line)}" for row in self.draws]
        colours = [_COLOURS[row.follows] for row in self.draws]
        bars = [
            _LEVELS.index(row.follows) if row.share is None else row.share for row in self.draws
        ]
        if self.direct is not None:
            labels, bars, colours = (
                [*labels, "directly"],
                [*bars, self.direct],
                [*colours, "#bbbbbb"],
            )
        it = Figure(figsize=(6, 1.2 + 0.35 * len(bars)), layout="constrained")
        axes = it.subplots()
        axes.barh(range(len(bars)), bars, color=colours)
        axes.set_yticks(range(len(bars)), labels)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if self.direct is None:
            axes.set_xticks(range(len(_LEVELS)), _LEVELS)
            axes.set_xlabel("what follows the draw")
        else:
            axes.set_xlabel("share of the gradient's variance")
        return it


_LEVELS = ["nothing", "smooth", "kinked", "unknown", "jump"]
_COLOURS = dict(zip(_LEVELS, ["#bbbbbb", "#4477aa", "#ccbb44", "#aa3377", "#ee6677"], strict=True))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        _short(row.line),
        row.distribution,
        row.estimator,
        row.where or "-",
        row.follows,
        str(row.later_draws),
        "?" if row.cost_evaluations is None else str(row.cost_evaluations),
        "-" if row.share is None else f"{row.share:.0%}",
    )


def _short(line: str) -> str:
    return os.path.basename(line) or "?"
