"""Timing on machines that do other work too, and the tables made of it.

Nothing is compared with a number measured at another moment. The programs under comparison take
turns, in a new order every round; each round gives one ratio, and a result is the median of the
ratios with their quartiles. Whatever slows the machine down for longer than a round slows all of
them down alike.
"""

import datetime
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"

Program = Callable[[], Any]


def interleave(measurements: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """The results of every measurement in every round, in a random order within the round."""
    order = list(measurements)
    shuffle = random.Random(0).shuffle
    results = {name: [] for name in measurements}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            results[name].append(measurements[name]())
    return results


def run_times(
    programs: Mapping[str, Program], rounds: int, at_least: float = 2e-3
) -> dict[str, np.ndarray]:
    """Seconds per call of each program in each round.

    Programs are compiled ones without arguments. One that takes less than `at_least` so many
    seconds is called several times in a row, as often in every round.
    """

    def seconds(program: Program, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(program())
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, program in programs.items():
        seconds(program, 1)
        calls[name] = max(1, round(at_least / min(seconds(program, 1) for _ in range(5))))
    gc.collect()
    measure = lambda name: lambda: seconds(programs[name], calls[name])
    times = interleave({name: measure(name) for name in programs}, rounds)
    return {name: np.array(ts) for name, ts in times.items()}


STAGES = ("trace", "lower", "compile")


def compile_times(
    make: Mapping[str, Callable[[], Callable[..., Any]]], args: tuple[Any, ...], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of each stage, an array (rounds, 3), of making each function ready to run.

    Every measurement makes its function anew and starts from empty caches: JAX's functions that
    are jitted themselves are traced again too. One round more is run first and not counted.
    """

    def seconds(make: Callable[[], Callable[..., Any]]) -> list[float]:
        function = jax.jit(make())
        jax.clear_caches()
        gc.collect()
        times = [time.perf_counter()]
        traced = function.trace(*args)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        lowered.compile()
        times.append(time.perf_counter())
        return list(np.diff(times))

    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore
    jax.config.update("jax_enable_compilation_cache", False)
    # JAX asks once whether there is one.
    compilation_cache.reset_cache()
    try:
        measure = lambda name: lambda: seconds(make[name])
        times = interleave({name: measure(name) for name in make}, rounds + 1)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()
    return {name: np.array(ts)[1:] for name, ts in times.items()}


def quartiles(values: Any) -> list[float]:
    """Lower quartile, median and upper quartile, to four digits."""
    return [float(f"{q:.4g}") for q in np.quantile(np.asarray(values), [0.25, 0.5, 0.75])]


# ---- The machine ---------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the program."""
    device = jax.devices()[0]
    # What else the machine was doing; not every system tells.
    load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    return load | {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "date": datetime.date.today().isoformat(),
    }


def slug(machine: Mapping[str, Any]) -> str:
    """A short name of the machine for files: cpu-2cores, gpu-nvidia-h200."""
    if machine["platform"] == "cpu":
        return f"cpu-{machine['cores']}cores"
    return re.sub(r"[^a-z0-9]+", "-", f"{machine['platform']} {machine['device']}".lower())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def describe(machine: Mapping[str, Any]) -> str:
    """One line for people."""
    device = "" if machine["platform"] == "cpu" else f"{machine['device']}, "
    load = f", load {machine['load']} before the start" if "load" in machine else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    return (
        f"{device}{cores} of {machine['cpu']}{load}, jax {machine['jax']} with "
        f"jaxlib {machine['jaxlib']}, Python {machine['python']}, {machine['date']}"
    )


# ---- Files and tables ----------------------------------------------------------------------


def write_json(path: pathlib.Path, data: Any) -> None:
    """Indented, but with every list of numbers on one line."""
    text = json.dumps(data, indent=2)
    join = lambda found: re.sub(r"\s+", " ", found.group()).replace("[ ", "[").replace(" ]", "]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\[[-\d.,e\s]+\]", join, text) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown, the first column to the left and the others to the right."""
    rows = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = lambda i, cell: cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i])
    aligned = [[align(i, cell) for i, cell in enumerate(row)] for row in rows]
    rule = [("-" * w if i == 0 else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [aligned[0], rule, *aligned[1:]])


def spread(quartiles: Sequence[float], unit: str = "") -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = (f"{q:.3g}" if q < 1000 else f"{q:.0f}" for q in quartiles)
    return f"{middle}{unit} ({low} to {high})"


def replace_between_markers(text: str, name: str, content: str) -> str:
    """`text` with `content` between its lines `<!-- begin name -->` and `<!-- end name -->`."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"expected the lines {begin.strip()} and {end}, found them not.")
    return f"{before}{begin}\n{content}\n\n{end}{after}"


# ---- What the benchmarks keep ---------------------------------------------------------------

#: The tables of one machine's results, in Markdown.
Render = Callable[[dict[str, Any]], str]


def result_files(benchmark: str, results: pathlib.Path = RESULTS) -> list[pathlib.Path]:
    return sorted(results.glob(f"{benchmark}-*.json"))


def render_all(benchmark: str, render: Render, results: pathlib.Path = RESULTS) -> str:
    """The tables of every machine whose results are there."""
    files = result_files(benchmark, results)
    return "\n\n".join(render(json.loads(path.read_text())) for path in files)
