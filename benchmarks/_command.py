"""The commands of the benchmarks: what is asked for, and where the results go."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import _measure

INTERRUPTED = 130


def run(
    benchmark: str,
    doc: str | None,
    measure: Callable[[Sequence[str], bool], dict[str, Any]],
    render: _measure.Render,
    argv: Sequence[str] | None,
    *,
    quick: str,
    what: str = "",
    names: Iterable[str] = (),
    draw: Callable[[dict[str, Any], pathlib.Path], None] | None = None,
) -> int:
    """Measures what the command line asks for; returns the status to exit with.

    Args:
      benchmark: its name, that of its results and of their place in the README.
      doc: of its module, whose first line describes the command.
      measure: of the names that are asked for, none if all are, and whether it is to be quick.
      render: the tables of what `measure` returned, beside which `machine` was put.
      argv: the arguments; those of the process if None.
      quick: what --quick leaves of the run.
      what: one of the names is the name of this. Without it there is nothing to choose.
      names: those that can be asked for.
      draw: writes figures of the results into a folder.
    """
    command, names = parser(benchmark, doc), list(names)
    if what:
        command.add_argument("names", nargs="*", metavar=what.upper(), help="default: all")
        command.add_argument("--list", action="store_true", help=f"print the {what}s and stop")
    command.add_argument("--quick", action="store_true", help=quick)
    add_out(command, "a full run")
    command.set_defaults(names=[], list=False)
    args = command.parse_args(argv)
    if args.list:
        print(*names, sep="\n")
        return 0
    if why := unknown(what, args.names, names):
        return fail(benchmark, why)
    out, why = destination(args, full=not args.names and not args.quick)
    if why is not None:
        return fail(benchmark, why)
    try:
        results = {"machine": _measure.machine(), **measure(args.names, args.quick)}
    except KeyboardInterrupt:
        return interrupted(benchmark)
    finish(benchmark, results, render, out, args.record)
    if draw is not None and out is not None:
        draw(results, out)
    return 0


def parser(benchmark: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark's command, described by the first line of its module's `doc`."""
    description = (doc or "").split("\n")[0]
    return argparse.ArgumentParser(f"benchmarks.{benchmark}", description=description)


def unknown(what: str, asked: Iterable[str], names: Sequence[str]) -> str | None:
    """What to say of a name that is asked for and is none of `names`."""
    others = [name for name in asked if name not in names]
    return f"unknown {what} {others[0]!r}; expected some of {', '.join(names)}" if others else None


def progress(benchmark: str, what: str) -> None:
    """Says what is being measured."""
    print(f"{benchmark}: {what}", file=sys.stderr, flush=True)


def add_out(command: argparse.ArgumentParser, full: str) -> None:
    """The options --out and --record, without which nothing is written."""
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help="folder for the results; default: nowhere"
    )
    where.add_argument(
        "--record",
        action="store_true",
        help=f"keep the results of {full} in benchmarks/results and write them into "
        "benchmarks/README.md",
    )


def destination(args: argparse.Namespace, full: bool) -> tuple[pathlib.Path | None, str | None]:
    """The folder for the results, which is made, and what to say if nothing can be written there.

    Args:
      args: as parsed, with the options of `add_out`.
      full: whether so much is measured that it may be recorded.
    """
    if args.record and not full:
        return None, "--record: expected a full run, whose results those of the README are"
    out = _measure.RESULTS if args.record else args.out
    if out is None:
        return None, None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return None, f"--out: cannot write to {out}: {error.strerror}"
    if not os.access(out, os.W_OK):
        return None, f"--out: cannot write to {out}: permission denied"
    return out, None


def fail(benchmark: str, message: str) -> int:
    print(f"benchmarks.{benchmark}: {message}", file=sys.stderr)
    return 2


def interrupted(benchmark: str) -> int:
    progress(benchmark, "interrupted: nothing was written.")
    return INTERRUPTED


def finish(
    benchmark: str,
    results: dict[str, Any],
    render: _measure.Render,
    out: pathlib.Path | None,
    record: bool,
) -> None:
    """Prints the tables, writes the JSON and, if it is recorded, the README."""
    print(render(results))
    if out is not None:
        _measure.write_json(out / f"{benchmark}-{_measure.slug(results['machine'])}.json", results)
    if record:
        tables = _measure.render_all(benchmark, render)
        text = _measure.README.read_text()
        _measure.README.write_text(_measure.replace_between_markers(text, benchmark, tables))
