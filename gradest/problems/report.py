"""What a comparison leaves behind on the terminal and as JSON."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gradest as ge

from . import ranking
from .problem import Problem
from .training import Run

# ---- Table ---------------------------------------------------------------------------------


def print_table(
    console: Console, problem: Problem, runs: Sequence[Run], left_out: Mapping[str, str]
) -> None:
    """Prints a row for each run, the best first, what its numbers are, and what they tell."""
    runs = ranking.ranked(problem, runs)
    best = ranking.best_by_metric(problem, runs)
    columns = _columns(problem, runs)
    kept = _that_fit(columns, console.width)
    # Headers broken by hand and cells in one piece: it fits into 80 columns.
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for header in kept:
        is_text = header in ("estimator", "draws")
        table.add_column(header, justify="left" if is_text else "right", no_wrap=True)
    told = len(best) < len(runs) and len(runs[0].seeds) > 1
    for row, run in enumerate(runs):
        cells = [columns[header][row] for header in kept]
        table.add_row(*cells, style="bold" if told and run in best else None)
    console.print()
    console.print(Text(problem.title, style="bold"))
    console.print(table)
    console.print()
    for line in notes(problem, runs, left_out):
        console.print(Text(line))
    if missing := [" ".join(h.split()) for h in columns if h not in kept]:
        console.print(
            Text(f"In the JSON, not in these {console.width} columns: {', '.join(missing)}.")
        )


def _columns(problem: Problem, runs: Sequence[Run]) -> dict[str, list[str]]:
    """The cells of every column, by its header."""
    measured_bias = any("bias" in run.measured for run in runs)

    def bias(run: Run) -> str:
        if not measured_bias:
            return "none" if run.method.record.is_unbiased else "yes"
        cells = [100 * run.last(name) / run.last("exact_gradient") for name in ("bias", "bias_se")]
        return "-" if math.isnan(cells[0]) else "{:+.2f}±{:.2f}%".format(*cells)

    metrics = {
        header.replace(" ", "\n", 1): [with_spread(run, name) for run in runs]
        for name, header in problem.metrics.items()
    }
    return {
        "estimator": [run.method.label + ("" if run.is_finished else " *") for run in runs],
        **metrics,
        "bias,\n% of gradient" if measured_bias else "bias": [bias(run) for run in runs],
        "gradient\nvariance": [known(f"{run.last('gradient_variance'):.3g}") for run in runs],
        "variance\nx ms": [known(f"{run.variance_x_time:.3g}") for run in runs],
        "ms per\nstep": [known(f"{run.ms_per_step:.3g}") for run in runs],
        "draws": [run.method.record.draws for run in runs],
    }


def _that_fit(columns: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """The headers of the columns that fit side by side, the most telling ones before others."""
    wide = lambda h: max(len(part) for part in (*h.split("\n"), *columns[h])) + 1
    first, *others = columns
    metrics = [h for h in others if "bias" not in h and "ms" not in h and "variance" not in h]
    metrics.remove("draws")
    by_worth = [metrics[-1], *(h for h in others if "bias" in h), "variance\nx ms", "ms per\nstep"]
    by_worth += ["gradient\nvariance", *metrics[:-1], "draws"]
    room, kept = width + 1 - wide(first), {first, metrics[-1]}
    room -= wide(metrics[-1])
    for header in by_worth[1:]:
        if wide(header) > room:
            break
        room -= wide(header)
        kept.add(header)
    return [header for header in columns if header in kept]


def known(cell: str) -> str:
    return "-" if cell == "nan" else cell


def fixed(value: float) -> str:
    """With digits enough to tell estimators apart."""
    return known(f"{value:.{_digits(value)}f}")


def with_spread(run: Run, name: str) -> str:
    """The mean over the seeds, and their standard deviation."""
    mean, deviation = run.last(name), run.deviation(name)
    return fixed(mean) + ("" if math.isnan(deviation) else f"±{deviation:.{_digits(mean)}f}")


def _digits(value: float) -> int:
    return 4 if abs(value) < 1 else 2


def notes(problem: Problem, runs: Sequence[Run], left_out: Mapping[str, str]) -> list[str]:
    count = max(len(run.seeds) for run in runs)
    share = "" if count == 1 else f"of one seed, a share of {count} that train side by side; "
    spread = "" if count == 1 else f" ±: the standard deviation over {count} seeds."
    lines = [
        f"{problem.caption}{spread} ms per step: {share}median, compilation excluded, on "
        f"{jax.devices()[0].device_kind} with {os.cpu_count()} cores.",
        "",
    ]
    for run in runs:
        if not run.is_finished:
            lines.append(
                f"* {run.method.label}: {run.status} after {run.done:,} of {run.steps:,} steps; "
                "its numbers are the last it logged."
            )
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        were = "was" if len(names) == 1 else "were"
        lines.append(f"{', '.join(names)} {were} left out: {reason}.")
    return lines + verdicts(problem, runs)


def verdicts(problem: Problem, runs: Sequence[Run]) -> list[str]:
    """What the seeds tell, and no more."""
    finished = [run for run in runs if run.is_finished]
    if len(finished) < 2:
        return []
    count = len(finished[0].seeds)
    if count == 1:
        return ["One seed is no verdict: another one can turn the order around. Try --seeds 3."]
    adjective = "Lowest" if problem.lower_is_better else "Highest"
    return [
        _verdict(f"{adjective} {problem.header}", ranking.best_by_metric(problem, runs), count),
        _verdict("Least variance x ms of the unbiased", ranking.cheapest(runs), count),
        "(The variance of a biased estimator does not say how far off it is.)",
    ]


def _verdict(what: str, best: Sequence[Run], count: int) -> str:
    if not best:
        return f"{what}: not measured."
    first, *others = [run.method.label for run in best]
    if not others:
        return f"{what}: {first}."
    return f"{what}: a tie of {len(best)}, which {count} seeds do not tell apart: {first}; " + (
        "; ".join(others) + "."
    )


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
        "estimators": [as_dict(problem, run) for run in ranking.ranked(problem, runs)],
        "left_out": dict(left_out),
    }
    # In one piece: a kill in the middle of writing leaves the file as it was before.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def as_dict(problem: Problem, run: Run) -> dict[str, Any]:
    """The means over the seeds and, under "seeds", what each of them reached."""
    method = run.method
    names = (*problem.metrics, "gradient_variance")
    of_seeds = len(run.seeds)
    control = {
        name: np.asarray(x, float)
        for name, x in run.params.get("control", {}).items()
        if getattr(x, "shape", None) == (of_seeds,)
    }
    return {
        "name": method.name,
        "label": method.label,
        "about": method.about,
        "status": run.status,
        "steps": run.done,
        "draws": method.record.draws,
        "unbiased": method.record.is_unbiased,
        **{name: x for name, x in run.measured.items() if name not in names},
        **{name: run.last(name) for name in names},
        "deviation": {name: run.deviation(name) for name in names},
        "ms_per_step": run.ms_per_step,
        "variance_x_ms": run.variance_x_time,
        "control": {name: x.mean() for name, x in control.items()},
        "seeds": {
            "seed": list(run.seeds),
            **{name: run.values(name) for name in names},
            **{f"control.{name}": x for name, x in control.items()},
        },
        "history": run.history,
    }


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, np.ndarray | np.generic):
        return _finite(tree.tolist())
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
