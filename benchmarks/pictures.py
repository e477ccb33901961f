"""Pictures of what the benchmarks measured: a dot for each row of a table, with its quartiles.

    python -m benchmarks.pictures      # draws those of the recorded results anew

A benchmark says what is in its picture (`picture`); the picture is drawn when results are written,
and stands below their tables. That of `efficiency` is its own.
"""

import importlib
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.figure import Figure

from . import _measure

#: The benchmarks whose results are drawn here, by the name of their results.
BENCHMARKS = (
    *("speed", "transform", "programs", "elbo", "vocabulary"),
    *("estimators", "epidemic", "subsets", "peers"),
)
# Okabe and Ito's blue and vermilion, told apart without colours by being filled or not.
_GOOD, _OTHER, _INK = "#0072b2", "#d55e00", "0.15"
# An axis whose ends are closer than this is not logarithmic.
_NARROW = 1.3
_WIDTH, _ROW, _MARGIN, _DPI = 8.0, 0.2, 0.9, 110


class Dot(NamedTuple):
    """A row of a picture.

    Attributes:
      name: at the left.
      values: lower quartile, median and upper quartile; or a single one.
      hollow: whether it is told from the others: a goal that is missed, an estimator with a bias.
    """

    name: str
    values: Sequence[float]
    hollow: bool = False


class Panel(NamedTuple):
    """Rows on an axis of their own.

    Attributes:
      title: above them.
      x_label: of the axis.
      dots: the rows, from above.
      goal: a line that the dots should not be beyond, if there is one.
    """

    title: str
    x_label: str
    dots: Sequence[Dot]
    goal: float | None = None


class Picture(NamedTuple):
    """What a benchmark shows.

    Attributes:
      alt: what is seen, in words.
      hollow: what a hollow dot means.
      panels: one below the other.
    """

    alt: str
    hollow: str
    panels: Sequence[Panel]


#: Of the results of one machine.
PictureOf = Callable[[dict[str, Any]], Picture]


def figure(picture: Picture) -> Figure:
    """One panel below the other, each as high as it has rows."""
    panels = [panel for panel in picture.panels if panel.dots]
    heights = [_MARGIN + _ROW * len(panel.dots) for panel in panels]
    it = Figure(figsize=(_WIDTH, sum(heights) + 0.3), layout="constrained")
    all_axes = it.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, axes in zip(panels, all_axes, strict=True):
        _draw(panel, axes)
    if any(dot.hollow for panel in panels for dot in panel.dots):
        it.supxlabel(f"hollow: {picture.hollow}", fontsize="small", color=_OTHER)
    return it


def _draw(panel: Panel, axes: Any) -> None:
    for row, dot in enumerate(panel.dots):
        low, middle, high = dot.values[0], dot.values[len(dot.values) // 2], dot.values[-1]
        colour = _OTHER if dot.hollow else _GOOD
        axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
        face = "white" if dot.hollow else colour
        axes.plot(middle, row, "o", color=colour, markerfacecolor=face, markersize=5)
    if panel.goal is not None:
        axes.axvline(panel.goal, color=_INK, linestyle=(0, (4, 2)), linewidth=1)
    axes.set_yticks(range(len(panel.dots)), [dot.name for dot in panel.dots], fontsize="small")
    axes.set_ylim(len(panel.dots) - 0.5, -0.5)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.set_xlabel(panel.x_label, fontsize="small")
    shown = [value for dot in panel.dots for value in dot.values]
    low, high = min(shown), max(shown)
    if high > _NARROW * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=_steps(math.log10(high / low))))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.tick_params(axis="x", labelsize="small")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _steps(decades: float) -> Sequence[float]:
    """The ticks of a decade."""
    return (1,) if decades > 3 else (1, 2, 5) if decades > 0.7 else (1, 1.2, *range(2, 10), 1.5)


# ---- Files ---------------------------------------------------------------------------------


def name_of(benchmark: str, machine: Mapping[str, Any]) -> str:
    """Of the picture's file."""
    return f"{benchmark}-{_measure.slug(machine)}.png"


def link(benchmark: str, results: dict[str, Any], picture: Picture) -> str:
    """The picture, in the README's Markdown."""
    return f"![{picture.alt}](results/{name_of(benchmark, results['machine'])})"


def draw(benchmark: str, picture: PictureOf) -> Callable[[dict[str, Any], pathlib.Path], None]:
    """Writes the picture of results into a folder, if any of what it shows was measured."""

    def write(results: dict[str, Any], out: pathlib.Path) -> None:
        shown = picture(results)
        if any(panel.dots for panel in shown.panels):
            figure(shown).savefig(out / name_of(benchmark, results["machine"]), dpi=_DPI)

    return write


def main(argv: Sequence[str] | None = None) -> int:
    if sys.argv[1:] if argv is None else argv:
        print("benchmarks.pictures: expected no arguments", file=sys.stderr)
        return 2
    for benchmark in BENCHMARKS:
        module = "benchmarks.peers.__main__" if benchmark == "peers" else f"benchmarks.{benchmark}"
        picture = importlib.import_module(module).picture
        for path in _measure.result_files(benchmark):
            results = json.loads(path.read_text())
            draw(benchmark, picture)(results, _measure.RESULTS)
            print(name_of(benchmark, results["machine"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
