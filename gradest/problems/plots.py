"""Pictures of the notebooks, so that a cell of theirs is about gradients and not about axes.

Colours are Okabe and Ito's, told apart by the colour-blind too; a line has a marker or a dash of
its own besides, and its name at its end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike
from matplotlib import ticker
from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
#: The least distance of two names at the ends of lines, as a part of the axes' height.
_APART = 0.075


def panels(*titles: str, height: float = 3.4, width: float = 10.0, share_y: bool = False) -> Any:
    """A figure with an axes for each title, side by side.

    Args:
      titles: of the axes.
      height: of the figure in inches.
      width: of the figure in inches.
      share_y: whether the axes have one vertical scale.

    Returns:
      The axes; if there is one title, the one axes.
    """
    figure, axes = plt.subplots(
        1,
        len(titles),
        figsize=(width, height),
        layout="constrained",
        squeeze=False,
        sharey=share_y,
        dpi=90,
    )
    figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore
    for one, title in zip(axes[0], titles, strict=True):
        one.set_title(title, fontsize="medium")
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return axes[0] if len(titles) > 1 else axes[0, 0]


def curves(
    axes: Axes,
    x: ArrayLike,
    ys: Mapping[str, ArrayLike],
    *,
    errors: Mapping[str, ArrayLike] | None = None,
    dashed: Sequence[str] = (),
    markers: bool = True,
    lines: bool = True,
    names: bool = True,
    level: float | None = None,
    start: int = 0,
    **labels: Any,
) -> None:
    """A line for each name, which stands at its end.

    Args:
      axes: to draw in.
      x: of shape (n,).
      ys: of shape (n,), by name; NaN where there is nothing to draw.
      errors: half the height of a shaded band, by name.
      dashed: names of lines that are dashed; for biased estimators. By default none is.
      markers: whether points are marked.
      lines: whether they are joined.
      names: whether names stand at the ends.
      level: where a grey line stands to compare with; None for none.
      start: the number of the first colour.
      labels: of the axes, as `axes.set` takes them.
    """
    x = np.asarray(x)
    for i, (name, y) in enumerate(ys.items(), start):
        colour, y = COLOURS[i % len(COLOURS)], np.asarray(y)
        axes.plot(
            x,
            y,
            color=colour,
            linestyle=("--" if name in dashed else "-") if lines else "none",
            marker=_MARKERS[i % len(_MARKERS)] if markers else "",
            markersize=4,
            linewidth=1.6,
        )
        if errors and name in errors:
            error = np.asarray(errors[name])
            axes.fill_between(x, y - error, y + error, color=colour, alpha=0.18, linewidth=0)
    if level is not None:
        axes.axhline(level, color="0.5", linewidth=1, zorder=1)
    axes.set(**labels)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            plain_numbers(axis)
    if names:
        _names_at_ends(axes, x, ys, start)


def plain_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis as 0.1, 1 and 10, few of them."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _names_at_ends(axes: Axes, x: np.ndarray, ys: Mapping[str, ArrayLike], start: int) -> None:
    """Names right of the axes, in the colours of their lines, pushed apart where they meet."""
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {}
    for i, (name, y) in enumerate(ys.items(), start):
        y = np.asarray(y, float)
        (last,) = np.nonzero(np.isfinite(y))[0][-1:]
        ends[name] = to_axes.transform((x[last], y[last]))[1], COLOURS[i % len(COLOURS)]
    order = sorted(ends, key=lambda name: ends[name][0])
    heights = _apart(np.clip([ends[name][0] for name in order], 0.0, 1.0))
    for name, height in zip(order, heights, strict=True):
        axes.text(
            *(1.02, height, name),
            transform=axes.transAxes,
            color=ends[name][1],
            va="center",
            fontsize="small",
        )


def _apart(heights: np.ndarray) -> np.ndarray:
    """Ascending heights, moved as little as it takes to be `_APART` from each other."""
    places = np.asarray(heights, float).copy()
    for _ in range(200):
        overlap = _APART - np.diff(places)
        if len(places) < 2 or overlap.max() <= 1e-6:
            break
        push = np.maximum(overlap, 0.0) / 2
        places[:-1] -= push
        places[1:] += push
    return places


def dots(
    axes: Axes,
    values: Mapping[str, float],
    *,
    errors: Mapping[str, float] | None = None,
    form: str = "{:.3g}",
    at: float | None = None,
    hollow: Sequence[str] = (),
    **labels: Any,
) -> None:
    """A row with a dot for each name, and its number.

    Args:
      axes: to draw in.
      values: by name, from the top.
      errors: standard errors, by name.
      form: how a number is written.
      at: where a line stands to compare with; None for none.
      hollow: names whose dots are hollow; for biased estimators.
      labels: of the axes, as `axes.set` takes them.
    """
    names = list(values)
    for row, name in enumerate(names):
        colour = COLOURS[1] if name in hollow else COLOURS[0]
        axes.errorbar(
            float(values[name]),
            row,
            xerr=float(errors[name]) if errors and name in errors else None,
            color=colour,
            marker="D" if name in hollow else "o",
            markerfacecolor="white" if name in hollow else colour,
            linestyle="none",
            zorder=3,
        )
        axes.annotate(
            form.format(float(values[name])),
            (float(values[name]), row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    if at is not None:
        axes.axvline(at, color="0.4", linewidth=1, zorder=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.12)
    axes.set(**labels)
    if axes.get_xscale() == "log":
        plain_numbers(axes.xaxis)


def simplex(
    axes: Axes,
    points: ArrayLike | None = None,
    names: Sequence[str] = ("1", "2", "3"),
    *,
    paths: ArrayLike | None = None,
) -> None:
    """Points of three parts that add up to one, in a triangle whose corners are certainties.

    Args:
      axes: to draw in.
      points: of shape (n, 3); None for none.
      names: of the corners.
      paths: of shape (m, k, 3): k lines through m points each, in the colour of the corner where
        they end; None for none.
    """
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    axes.fill(*corners.T, facecolor="none", edgecolor="0.5")
    if points is not None:
        x, y = (np.asarray(points) @ corners).T
        axes.scatter(x, y, color=COLOURS[0], s=10, alpha=0.25, linewidths=0)
    if paths is not None:
        ways = np.asarray(paths) @ corners
        for way, end in zip(ways.swapaxes(0, 1), np.asarray(paths)[-1].argmax(1), strict=True):
            axes.plot(*way.T, color=COLOURS[end], linewidth=1, alpha=0.7)
            axes.plot(*way[-1], "o", color=COLOURS[end], markersize=4)
    for (cx, cy), name, drop in zip(corners, names, (-0.04, -0.04, 0.04), strict=True):
        vertical = "top" if drop < 0 else "bottom"
        axes.text(cx, cy + drop, name, ha="center", va=vertical, fontsize="small")
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.14, 1.0), aspect="equal")
    axes.axis("off")


def images(axes: Axes, rows: Mapping[str, ArrayLike], side: int) -> None:
    """Square images in rows, a pixel apart, each row with its name.

    Args:
      axes: to draw in.
      rows: by name, of shape (n, side * side), between 0 and 1, 1 being black.
      side: of an image in pixels.
    """
    (count,) = {len(np.asarray(row)) for row in rows.values()}
    step = side + 1
    sheet = np.full((len(rows) * step - 1, count * step - 1), 0.0)
    paper = np.ones_like(sheet, bool)
    for i, row in enumerate(rows.values()):
        for j, image in enumerate(np.asarray(row, float).reshape(count, side, side)):
            place = slice(i * step, i * step + side), slice(j * step, j * step + side)
            sheet[place], paper[place] = image, False
    shown = np.ma.masked_array(sheet, paper)
    axes.imshow(shown, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([i * step + (side - 1) / 2 for i in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
