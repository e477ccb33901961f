"""`python -m gradest compare`: trains one problem with every estimator, and reports."""

import contextlib
import math
import os
import pathlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import ProblemError, data, methods, report
from .problem import Problem
from .toy import Toy
from .training import Run, train
from .vae import VAE

#: Exit statuses.
DONE, INTERRUPTED = 0, 130

_QUICK_STEPS = 40
_QUICK_LOG_POINTS = 4
# Beyond it a step takes seconds and gigabytes.
_MAX_EVALUATIONS = 65_536


def make_problem(
    name: str,
    *,
    latent: str | None = None,
    latent_size: int | None = None,
    directory: str | None = None,
    quick: bool = False,
) -> Problem:
    """The problem of this name.

    Raises:
      ProblemError: if an option does not go with it, or its data cannot be had.
    """
    if directory is not None and name != "mnist":
        raise ProblemError(f"--data: expected with --problem mnist only, got --problem {name}.")
    if name == "toy":
        if latent == "categorical" or latent_size is not None:
            option = "--latent categorical" if latent_size is None else "--latent-size"
            raise ProblemError(f"{option}: --problem toy has one Bernoulli variable. Leave it out.")
        return Toy(num_measured=20_000) if quick else Toy()
    if name == "digits":
        images = data.load_digits()
    else:
        directory = directory or os.environ.get("GRADEST_DATA")
        if not directory:
            raise ProblemError(
                "--data: expected the directory that holds binarized_mnist.npz, got nothing. Name "
                "it with --data or the environment variable GRADEST_DATA."
            )
        images = data.load_binarized_mnist(directory)
    return VAE(images, latent or "bernoulli", latent_size or 20)


def feasible(
    problem: Problem, chosen: Sequence[methods.Method]
) -> tuple[list[methods.Method], dict[str, str]]:
    """The methods that can be run, and why the others cannot."""
    evaluations = problem.num_configurations * problem.batch_size
    count = problem.num_configurations
    digits = f"{count:,}" if count <= 10**20 else f"about 10^{int(math.log10(count))}"
    reason = (
        f"{problem.num_values}^{problem.size} = {digits} configurations, for each of "
        f"{problem.batch_size} examples, are more than {_MAX_EVALUATIONS:,} evaluations per step"
    )
    left_out = {m.name: reason for m in chosen if m.enumerates and evaluations > _MAX_EVALUATIONS}
    return [method for method in chosen if method.name not in left_out], left_out


def run(
    *,
    problem: str,
    latent: str | None,
    latent_size: int | None,
    estimators: Sequence[str] | None,
    steps: int | None,
    seed: int,
    data: str | None,
    out: str,
    quick: bool,
) -> int:
    """Trains, prints the table, writes the files, and returns the exit status."""
    names = None if estimators is None else _names(estimators)
    chosen = methods.choose(names, latent or "bernoulli")
    it = make_problem(problem, latent=latent, latent_size=latent_size, directory=data, quick=quick)
    chosen, left_out = feasible(it, chosen)
    if not chosen:
        name, reason = next(iter(left_out.items()))
        raise ProblemError(f"--estimators: {name} was left out: {reason}, and no other was given.")
    stem = it.name if it.name == "toy" else f"{it.name}-{it.latent}"
    path = writable(out) / f"compare-{stem}.json"
    steps = steps or (_QUICK_STEPS if quick else it.default_steps)
    settings = {"problem": it.name, "latent": it.latent, "steps": steps, "seed": seed}
    options: dict[str, Any] = {"steps": steps, "seed": seed}
    if quick:
        options["log_points"] = _QUICK_LOG_POINTS

    runs: list[Run] = []
    with interruptible() as interrupted, Bars(it, chosen, steps) as bars:
        for method in chosen:
            if interrupted.is_set():
                left_out[method.name] = "interrupted before it began"
                continue
            for current in train(it, method, **options):
                if current.done == 0:
                    runs.append(current)
                bars.show(current)
                if interrupted.is_set():
                    break
            report.write_json(path, it, runs, left_out, settings)
    report.write_json(path, it, runs, left_out, settings)
    report.print_table(Console(highlight=False), it, runs, left_out)
    report.write_png(path.with_suffix(".png"), it, runs)
    print(f"\nWritten: {path}\n         {path.with_suffix('.png')}")
    return INTERRUPTED if interrupted.is_set() else DONE


def _names(words: Sequence[str]) -> list[str]:
    """Names apart by spaces or commas."""
    return [name for word in words for name in word.split(",") if name]


def writable(directory: str) -> pathlib.Path:
    """The directory, made if need be, after a trial of writing into it."""
    path = pathlib.Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial = path / ".gradest-trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ProblemError(
            f"--out: expected a directory to write into, got {directory!r} ({error.strerror})."
        ) from None
    return path


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, to be met between two steps; the second one raises."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_signal(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class Bars:
    """A live bar for each method on a terminal; elsewhere a line when it is over."""

    def __init__(self, problem: Problem, chosen: Sequence[methods.Method], steps: int):
        self._metric, self._header = list(problem.metrics.items())[-1]
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks = {
            method.name: self._progress.add_task(method.name, total=steps, start=False, news="")
            for method in chosen
        }

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, run: Run) -> None:
        task, value = self._tasks[run.method.name], run.last(self._metric)
        news = "compiling" if run.done == 0 else f"{self._header} {report.fixed(value)}"
        if run.done == 0:
            self._progress.start_task(task)
        self._progress.update(task, completed=run.done, news=news)
        if run.status == "finished" and not self._console.is_terminal:
            self._console.print(f"{run.method.name}: {run.done} steps, {news}")
