"""What a comparison leaves behind: a table, a JSON file and a picture."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.box
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gradest as ge

from .problem import Problem
from .training import Run

# ---- Table ---------------------------------------------------------------------------------


def print_table(
    console: Console, problem: Problem, runs: Sequence[Run], left_out: Mapping[str, str]
) -> None:
    """Prints a row for each run, what its numbers are, and which estimator they recommend."""
    measured_bias = any("bias" in run.measured for run in runs)
    # Headers broken by hand and cells in one piece: it fits into 80 columns.
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("estimator", no_wrap=True)
    for header in problem.metrics.values():
        table.add_column(header.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for header in [
        "bias,\n% of gradient" if measured_bias else "bias",
        "gradient\nvariance",
        "variance\nx ms",
        "ms per\nstep",
    ]:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("draws", no_wrap=True)
    best = best_run(problem, runs)
    for run in runs:
        record = run.method.record
        bias = "none" if record.is_unbiased else "yes"
        if measured_bias:
            cells = [
                100 * run.last(name) / run.last("exact_gradient") for name in ("bias", "bias_se")
            ]
            bias = "-" if math.isnan(cells[0]) else "{:+.2f}±{:.2f}%".format(*cells)
        table.add_row(
            run.method.name + ("" if run.status == "finished" else " *"),
            *(fixed(run.last(name)) for name in problem.metrics),
            bias,
            known(f"{run.last('gradient_variance'):.3g}"),
            known(f"{run.variance_x_time:.3g}"),
            known(f"{run.ms_per_step:.2f}"),
            record.draws,
            style="bold" if run is best else None,
        )
    console.print()
    console.print(Text(problem.title, style="bold"))
    console.print(table)
    console.print()
    for line in notes(problem, runs, left_out):
        console.print(Text(line))


def known(cell: str) -> str:
    return "-" if cell == "nan" else cell


def fixed(value: float) -> str:
    """With digits enough to tell estimators apart."""
    return known(f"{value:.{4 if abs(value) < 1 else 2}f}")


def best_run(problem: Problem, runs: Sequence[Run]) -> Run | None:
    """The finished run with the best of the metric that training is about."""
    name, sign = list(problem.metrics)[-1], -1 if problem.lower_is_better else 1
    finished = [r for r in runs if r.status == "finished" and math.isfinite(r.last(name))]
    return max(finished, key=lambda run: sign * run.last(name), default=None)


def notes(problem: Problem, runs: Sequence[Run], left_out: Mapping[str, str]) -> list[str]:
    lines = [
        f"{problem.caption} ms per step: median, compilation excluded, on "
        f"{jax.devices()[0].device_kind} with {os.cpu_count()} cores.",
        "",
    ]
    for run in runs:
        if run.status != "finished":
            lines.append(
                f"* {run.method.name}: {run.status} after {run.done:,} of {run.steps:,} steps; "
                "its numbers are the last it logged."
            )
    lines += [f"{name} was left out: {reason}." for name, reason in left_out.items()]
    best = best_run(problem, runs)
    if best is None:
        return lines
    metric, header = list(problem.metrics.items())[-1]
    adjective = "Lowest" if problem.lower_is_better else "Highest"
    lines.append(f"{adjective} {header}: {best.method.name}, {fixed(best.last(metric))}.")
    unbiased = [r for r in runs if r.status == "finished" and r.method.record.is_unbiased]
    unbiased = [r for r in unbiased if math.isfinite(r.variance_x_time)]
    if unbiased:
        cheapest = min(unbiased, key=lambda run: run.variance_x_time)
        lines.append(
            f"Least variance x ms of the unbiased: {cheapest.method.name}, "
            f"{cheapest.variance_x_time:.3g}. (The variance of a biased one does not say how far "
            "off it is.)"
        )
    return lines


# ---- JSON ----------------------------------------------------------------------------------


def write_json(
    path: pathlib.Path,
    problem: Problem,
    runs: Sequence[Run],
    left_out: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """Writes everything that was measured. Numbers that are not finite become null."""
    document = {
        "gradest": ge.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        **settings,
        "title": problem.title,
        "caption": problem.caption,
        "estimators": [as_dict(problem, run) for run in runs],
        "left_out": dict(left_out),
    }
    # In one piece: a kill in the middle of writing leaves the file as it was before.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def as_dict(problem: Problem, run: Run) -> dict[str, Any]:
    method, scalar = run.method, lambda x: getattr(x, "ndim", None) == 0
    control = run.params.get("control", {})
    return {
        "name": method.name,
        "about": method.about,
        "status": run.status,
        "steps": run.done,
        "draws": method.record.draws,
        "unbiased": method.record.is_unbiased,
        **{name: run.last(name) for name in (*problem.metrics, "gradient_variance")},
        **run.measured,
        "ms_per_step": run.ms_per_step,
        "variance_x_ms": run.variance_x_time,
        "control": {name: float(x) for name, x in control.items() if scalar(x)},
        "history": run.history,
    }


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


# ---- Picture -------------------------------------------------------------------------------

_COLOURS = ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#222222", "#999999"]
_MARKERS = "osD^vP*X"


def write_png(path: pathlib.Path, problem: Problem, runs: Sequence[Run]) -> None:
    """Draws the metric and the gradient variance against the step, a line for each run."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    metric, header = list(problem.metrics.items())[-1]
    shown = []
    for number, run in enumerate(runs):
        look = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 4,
            "linewidth": 1.5,
            "linestyle": "-" if run.status == "finished" else ":",
        }
        steps = run.history.get("step", [])
        label = run.method.name + ("" if run.status == "finished" else f" ({run.status})")
        variances = [v if v > 0 else math.nan for v in run.history.get("gradient_variance", [])]
        if variances and all(map(math.isnan, variances)):
            label += " (no variance)"
        left.plot(steps, run.history.get(metric, []), label=label, **look)
        right.plot(steps, variances, **look)
        # Where training has not begun to tell, the curves are one vertical line.
        shown += run.history.get(metric, [])[len(steps) // 10 :]
    finite = [value for value in shown if math.isfinite(value)]
    if finite:
        margin = 0.05 * (max(finite) - min(finite)) or 1.0
        left.set_ylim(min(finite) - margin, max(finite) + margin)
    left.set(xlabel="step", ylabel=f"{header} ({problem.unit})" if problem.unit else header)
    right.set(xlabel="step", ylabel="gradient variance", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(problem.title)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)
