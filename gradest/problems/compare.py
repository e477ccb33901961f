"""`python -m gradest compare`: trains one problem with every estimator, and reports."""

import contextlib
import itertools
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from . import ProblemError, data, methods, pictures, report
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
        images = data.load_mnist(directory or os.environ.get("GRADEST_DATA"))
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
    seeds: int,
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
    directory = new_directory(out, it.name if it.name == "toy" else f"{it.name}-{it.latent}")
    path = directory / "compare.json"
    steps = steps or (_QUICK_STEPS if quick else it.default_steps)
    options: dict[str, Any] = {"steps": steps, "seed": seed}
    settings = {"problem": it.name, "latent": it.latent, **options, "seeds": seeds}
    if quick:
        options["log_points"] = _QUICK_LOG_POINTS

    runs: list[Run] = []
    with Bars(it, chosen, steps) as bars, interruptible(bars.say) as interrupted:
        for method in chosen:
            if interrupted.is_set():
                left_out[method.name] = "the run was interrupted before"
            else:
                for current in train(it, method, num_seeds=seeds, **options):
                    if current.done == 0:
                        runs.append(current)
                    bars.show(current)
                    if interrupted.is_set():
                        break
            report.write_json(path, it, runs, left_out, settings)
    if not any(run.history for run in runs):
        path.unlink(missing_ok=True)
        directory.rmdir()
        return INTERRUPTED
    report.print_table(Console(highlight=False), it, runs, left_out)
    written = [path, *pictures.write(directory, it, runs)]
    print(f"\nWritten to {directory}: {', '.join(each.name for each in written)}")
    return INTERRUPTED if interrupted.is_set() else DONE


def _names(words: Sequence[str]) -> list[str]:
    """Names apart by spaces or commas."""
    return [name for word in words for name in word.split(",") if name]


def new_directory(out: str, name: str) -> pathlib.Path:
    """A directory below `out` for the results of one run: those of others are kept.

    Raises:
      ProblemError: if it cannot be made.
    """
    try:
        pathlib.Path(out).mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = pathlib.Path(out) / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise ProblemError(
            f"--out: expected a directory to write into, got {out!r} ({error.strerror})."
        ) from None
    raise AssertionError


@contextlib.contextmanager
def interruptible(say: Callable[[str], None] = lambda line: None) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, to be met between steps; the second one raises.

    Args:
      say: is told at once what happens now: until a program is compiled, nothing else does.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_signal(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        say("Interrupted: what is there will be shown after this step. Again to stop at once.")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class _Clock(ProgressColumn):
    """Of what goes on, the time that remains; of what is over, the time that it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.finished_time if task.finished else task.time_remaining
        if seconds is None:
            return Text("" if not task.started else "-:--")
        minutes, seconds = divmod(round(seconds), 60)
        return Text(f"{minutes}:{seconds:02d}" + ("" if task.finished else " left"))


class Bars:
    """A live bar for each method on a terminal; elsewhere a line when it is over."""

    _WIDE = 76
    #: What a narrow line has besides the name: "compiling", "-:-- left" and a space before each.
    _NEWS = 20

    def __init__(self, problem: Problem, chosen: Sequence[methods.Method], steps: int):
        self._metric, self._header = problem.metric, problem.header
        self._console = Console(stderr=True, highlight=False)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[news]}"),
            _Clock(),
        ]
        self._narrow = self._console.is_terminal and self._console.width < self._WIDE
        if self._narrow:
            # Name, what is reached, and time.
            columns = [columns[0], columns[3], columns[4]]
        self._progress = Progress(
            *columns,
            console=self._console,
            disable=not self._console.is_terminal,
        )
        room = self._console.width - self._NEWS
        label = lambda name: f"{name[: room - 1]}…" if self._narrow and len(name) > room else name
        self._tasks = {
            method.name: self._progress.add_task(
                label(method.label), total=steps, start=False, news=""
            )
            for method in chosen
        }
        self._began: dict[str, float] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(line)

    def show(self, run: Run) -> None:
        task, value = self._tasks[run.method.name], run.last(self._metric)
        reached = report.fixed(value) if self._narrow else f"{self._header} {report.fixed(value)}"
        news = "compiling" if run.done == 0 else reached
        if run.done == 0:
            self._began[run.method.name] = time.monotonic()
            self._progress.start_task(task)
        # The last step is not the end: what is measured after training is a part of it.
        completed = run.steps if run.is_finished else min(run.done, run.steps - 1)
        self._progress.update(task, completed=completed, news=news)
        if run.is_finished and not self._console.is_terminal:
            seconds = time.monotonic() - self._began[run.method.name]
            self._console.print(
                f"{run.method.label}: {run.done} steps, {news}, {seconds:.0f} s", soft_wrap=True
            )
