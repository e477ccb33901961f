"""The pictures of a comparison: a line for each estimator, with its name where it ends."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from . import ranking
from .methods import METHODS, Method
from .problem import Problem
from .training import Run

# Chosen one after the other, each as far as can be from those before it in CIELAB, as seen with
# and without deuteranopia and protanopia; between dark and light enough for white paper.
_COLOURS = ["#0078b4", "#ff0000", "#0000ff", "#1ec378", "#691e1e", "#3c1e96", "#ff69ff", "#e187b4"]
_COLOURS += ["#00695a", "#96963c", "#4b2d5a", "#e11e78", "#c300ff", "#a51e00", "#f09600", "#962d87"]
_COLOURS += ["#87694b", "#3c69d2", "#87b496", "#a596d2"]
_MARKERS = ["o", "s", "D", "^", "v", "<", ">", "p", "P", "*", "X", "h", "d", "H", "8"]
_MARKERS += [(3, 2, 0), (4, 2, 0), (5, 2, 0), (6, 2, 0)]

_SIZE, _DPI, _FONT = (8.0, 4.8), 150, 9
_INK = "0.15"


def look(method: Method) -> dict[str, Any]:
    """Colour, marker and dashes, the same in every picture whoever else is in it."""
    number = METHODS.index(method)
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "color": colour,
        # Their numbers have no common divisor: it takes long until a pair comes again.
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": colour if method.record.is_unbiased else "white",
        "linestyle": "-" if method.record.is_unbiased else (0, (4, 2)),
        "markersize": 5,
        "linewidth": 1.4,
    }


class Picture(NamedTuple):
    """What one of the pictures shows.

    Attributes:
      name: of the file.
      x: the positions of a run's logged points.
      x_label: of the axis.
      what: the logged values.
      y_label: of the axis.
      log: whether that axis is logarithmic.
      log_x: whether the other one is.
    """

    name: str
    x: Callable[[Run], np.ndarray]
    x_label: str
    what: str
    y_label: str
    log: bool = False
    log_x: bool = False


def pictures(problem: Problem) -> list[Picture]:
    steps = lambda run: np.asarray(run.history.get("step", []), float)
    seconds = lambda run: steps(run) * run.ms_per_step / 1e3
    metric = f"{problem.header} ({problem.unit})" if problem.unit else problem.header
    times = "seconds of one seed's updates, compilation excluded"
    return [
        Picture("steps", steps, "step", problem.metric, metric),
        Picture("seconds", seconds, times, problem.metric, metric, log_x=True),
        Picture("variance", steps, "step", "gradient_variance", "gradient variance", log=True),
    ]


def write(directory: pathlib.Path, problem: Problem, runs: Sequence[Run]) -> list[pathlib.Path]:
    """Writes the pictures as PNG, and returns their paths."""
    paths = []
    for picture in pictures(problem):
        paths.append(directory / f"{picture.name}.png")
        draw(picture, problem, runs).savefig(paths[-1], dpi=_DPI)
    return paths


def draw(picture: Picture, problem: Problem, runs: Sequence[Run]) -> Figure:
    """The figure: means over the seeds, with the range of the seeds at the end of each line."""
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    # The names have a panel of their own, as wide as the longest of them.
    axes, names = figure.subplots(1, 2, width_ratios=(0.7, 0.3), sharey=True)
    names.set_axis_off()
    runs = [run for run in ranking.ranked(problem, runs) if run.history]
    ends, shown = [], []
    for place, run in enumerate(runs):
        x, y = picture.x(run), _by_seed(run, picture)
        x = np.where(x > 0, x, np.nan) if picture.log_x else x
        mean = y.mean(axis=1)
        # Markers at different points, lest they hide each other.
        apart = max(1, len(x) // 4)
        style = look(run.method) | {"markevery": (place % apart, apart)}
        axes.plot(x, mean, zorder=3 - place / len(runs), **style)
        ends_of_range = y[-1:].min(axis=1), y[-1:].max(axis=1)
        axes.vlines(x[-1:], *ends_of_range, color=style["color"], linewidth=1)
        ends.append((run, float(x[-1]), float(mean[-1])))
        # Where training has not begun to tell, the curves are one vertical line.
        shown += [*mean[len(x) // 8 :], *y[-1]]
    axes.set(xlabel=picture.x_label, ylabel=picture.y_label)
    if picture.log_x:
        # Some take many times as long as others.
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if picture.log and any(map(math.isfinite, shown)):
        axes.set_yscale("log")
    _limit(axes, shown, picture.log)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT)
    figure.suptitle(problem.title, fontsize=_FONT + 1)
    figure.draw_without_rendering()
    _label(axes, names, ends, picture)
    return figure


def _by_seed(run: Run, picture: Picture) -> np.ndarray:
    """The logged values, a row for each point; NaN for what a logarithmic axis cannot show."""
    values = np.asarray(run.history[picture.what], float).reshape(len(run.history["step"]), -1)
    return np.where(values > 0, values, np.nan) if picture.log else values


def _limit(axes: Any, shown: Sequence[float], log: bool) -> None:
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    if log:
        axes.set_ylim(low / 1.5, high * 1.5)
    else:
        # What differs by rounding only is not to look like a difference.
        margin = max(0.05 * (high - low), 1e-4 * max(abs(low), abs(high)), 1e-12)
        axes.set_ylim(low - margin, high + margin)


def _label(axes: Any, names: Any, ends: Sequence[tuple[Run, float, float]], it: Picture) -> None:
    """Writes the names beside the ends of their lines, as near as they go without overlapping."""
    to_panel = lambda x, y: axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    height = axes.get_window_extent().height
    line = 1.45 * _FONT / 72 * axes.figure.dpi / height
    placed = []
    for run, x, y in ends:
        known = math.isfinite(x) and math.isfinite(y)
        placed.append((run, *(to_panel(x, y) if known else (math.nan, math.nan))))
    # What has no value comes last, at the bottom.
    placed.sort(key=lambda end: (not math.isfinite(end[2]), -end[2]))
    wanted = [min(max(y, 0.0), 1.0) if math.isfinite(y) else 0.0 for _, _, y in placed]
    for (run, x, y), at in zip(placed, spread_out(wanted, line), strict=True):
        style = look(run.method)
        note = "" if run.is_finished else f" ({run.status})"
        note += "" if math.isfinite(y) else " (none)" if it.log else " (not finite)"
        if math.isfinite(y):
            # From the end of the line to the name.
            axes.annotate(
                "",
                (x, min(max(y, 0.0), 1.0)),
                (1.06, at),
                xycoords="axes fraction",
                textcoords="axes fraction",
                arrowprops={"arrowstyle": "-", "color": style["color"], "alpha": 0.5, "lw": 0.7},
                annotation_clip=False,
            )
        names.plot([0.02, 0.14], [at, at], transform=names.transAxes, clip_on=False, **style)
        names.text(
            0.18,
            at,
            run.method.label + note,
            transform=names.transAxes,
            va="center",
            fontsize=_FONT,
            color=_INK,
        )


def spread_out(wanted: Sequence[float], distance: float) -> list[float]:
    """Places in [0, 1] at least `distance` apart, from high to low as given, near the wanted ones.

    Neighbours that would overlap are moved as one, about the mean of what they want.
    """
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while (
            len(groups) > 1
            and _places(groups[-2], distance)[-1] - distance < (_places(groups[-1], distance)[0])
        ):
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _places(group, distance)]


def _places(group: Sequence[float], distance: float) -> list[float]:
    half = distance * (len(group) - 1) / 2
    middle = min(max(sum(group) / len(group), half), max(1 - half, half))
    return [middle + half - distance * i for i in range(len(group))]
