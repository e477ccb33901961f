"""The picture of a report. It alone needs matplotlib, and is imported when one is drawn."""

from typing import Any

import numpy as np

try:
    from matplotlib import ticker
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'Report.plot: expected matplotlib, which is not installed: pip install "gradest[examples]"',
        name=error.name,
    ) from None

_COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb"]
_MAX_Z = 4.5


def figure(report: Any) -> Figure:
    """Of a `gradest._report.Report`: a row of dots for each gradient, a colour for each leaf."""
    names = list(report.estimates)
    panels = 2 if report.against is None else 3
    it = Figure(figsize=(4 * panels, 1.4 + 0.32 * len(names)), layout="constrained")
    *of_z, of_variance, of_product = it.subplots(1, panels, sharey=True)
    paths = list(report[names[0]].leaves)
    for i, path in enumerate(paths):
        # Leaves side by side around their gradient's line.
        look: dict[str, Any] = {
            "color": _COLOURS[i % len(_COLOURS)],
            "linestyle": "none",
            "marker": "o",
            "markersize": 5,
            "zorder": 3,
        }
        for row, name in enumerate(names):
            estimate = report[name]
            leaf, y = estimate.leaves[path], row + 0.4 * ((i + 0.5) / len(paths) - 0.5)
            label = path if row == 0 else None
            for axes in of_z:
                if leaf.z is not None:
                    z = leaf.z.reshape(-1)
                    axes.plot(z, np.full(z.size, y), **{**look, "alpha": 0.6})
            _positive(of_variance, leaf.total_variance, y, leaf.total_variance_error, look, label)
            product = 1e6 * estimate.variance_x_time(leaf)
            _positive(of_product, product, y, 0.0, look, None)
    for axes in of_z:
        axes.axvspan(-_MAX_Z, _MAX_Z, color="0.9", zorder=0)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlabel(f"bias from {report.against}, in standard errors\n(chance: shaded)")
    of_variance.set(xscale="log", xlabel="variance of one gradient")
    of_product.set(xscale="log", xlabel="variance x time (us)")
    for axes in (of_variance, of_product):
        # Over many decades, numbers between their powers of ten would touch.
        low, high = axes.get_xlim()
        subs = (1,) if high > 100 * low else (1, 2, 5)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    for axes in it.axes:
        axes.grid(axis="both", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    it.axes[0].set_yticks(range(len(names)), names)
    it.axes[0].set_ylim(len(names) - 0.5, -0.5)
    if len(paths) > 1:
        it.legend(loc="outside lower center", ncols=min(len(paths), 6), frameon=False)
    it.suptitle(f"{report.num_draws:,} draws, on {report.device}", fontsize="medium")
    return it


def _positive(axes: Any, value: float, y: float, error: float, look: Any, label: Any) -> None:
    """A dot with its error bar, or a word where a logarithmic axis has no place for it."""
    if np.isfinite(value) and value > 0:
        axes.errorbar(value, y, xerr=min(error, 0.9 * value), label=label, **look)
    else:
        place = {"transform": axes.get_yaxis_transform(), "va": "center", "color": look["color"]}
        axes.text(0.02, y, "0" if value == 0 else "not finite", **place)
        axes.plot([], [], label=label, **look)
