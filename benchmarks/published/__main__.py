"""Trains what papers trained, and compares the results with theirs.

python -m benchmarks.published [name ...]
"""

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from .. import _command, _measure
from . import _resume
from ._suite import Reproduction
from .blr import BLR
from .permutation_toy import PERMUTATION_TOY
from .polynomial import POLYNOMIAL
from .rebar_sbn import REBAR_SBN
from .relax_toy import RELAX_TOY
from .structured import BESIDE_IT, STRUCTURED
from .vae import VAE

FEW_MINUTES = (REBAR_SBN, POLYNOMIAL, BLR, RELAX_TOY, PERMUTATION_TOY)
ALL = {r.name: r for r in (*FEW_MINUTES, STRUCTURED, BESIDE_IT, VAE)}
STATE = pathlib.Path(__file__).parents[1] / ".state"
FAILED, INTERRUPTED = 1, _command.INTERRUPTED


def reproduce(
    what: Reproduction, seeds: int, quick: bool, state: pathlib.Path | None = None
) -> dict[str, Any]:
    options = {"state": state} if what.resumable else {}
    rows = [row.as_dict() for row in what.run(seeds, quick, **options)]
    return {"name": what.name, "source": what.source, "seeds": seeds, "rows": rows}


def render(result: dict[str, Any]) -> str:
    """A table, in Markdown."""

    def cells(row: dict[str, Any]) -> list[str]:
        ours, published = row["ours"], row["published"]
        spread = f" ({min(ours):.5g} to {max(ours):.5g})" if len(ours) > 1 else ""
        return [
            row["name"],
            f"{published:g}" if isinstance(published, float) else published or "",
            f"{row['result']:.5g}{spread}",
            row["allowed"],
            ("yes" if row["passed"] else "NO") if row["allowed"] else "",
        ]

    columns = ["what", "published", "ours", "allowed", "passed"]
    head = f"### {result['name']}\n\n{result['source']}. Seeds: {result['seeds']}.\n\n"
    return head + _measure.table(columns, map(cells, result["rows"]))


def render_all(folder: pathlib.Path = _measure.RESULTS) -> str:
    """What the README has of the committed results, those of every machine."""
    parts = []
    for name, what in ALL.items():
        for path in _measure.result_files(f"published-{name}", folder):
            result = json.loads(path.read_text())
            parts += [render(result), _measure.describe(result["machine"])]
            if what.picture is not None:
                parts.append(f"![{name}](results/{path.with_suffix('.png').name})")
    return "\n\n".join(parts)


def keep(what: Reproduction, result: dict[str, Any], out: pathlib.Path, record: bool) -> None:
    """The JSON and the picture and, if they are recorded, what the README has of them."""
    path = out / f"published-{what.name}-{_measure.slug(result['machine'])}.json"
    _measure.write_json(path, result)
    if what.picture is not None:
        what.picture(result["rows"]).savefig(path.with_suffix(".png"), dpi=110)
    if record:
        text = _measure.README.read_text()
        text = _measure.replace_between_markers(text, "published", render_all(out))
        _measure.README.write_text(text)


fail = functools.partial(_command.fail, "published")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.published", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(ALL)}")
    parser.add_argument("--list", action="store_true", help="list them and their sources")
    parser.add_argument("--seeds", type=int, help="how many runs of each, instead of its number")
    parser.add_argument("--quick", action="store_true", help="shortened runs")
    parser.add_argument(
        "--state",
        type=pathlib.Path,
        default=STATE,
        metavar="DIR",
        help="where long runs save what they need to go on after an interruption, which they then "
        "do unless it is deleted; default: benchmarks/.state",
    )
    _command.add_out(parser, "runs that are not shortened, with as many seeds as it takes")
    args = parser.parse_args(argv)
    if why := _command.unknown("name", args.names, list(ALL)):
        return fail(why)
    if args.seeds is not None and args.seeds < 1:
        return fail(f"--seeds: expected at least 1, got {args.seeds}")
    out, why = _command.destination(args, full=not args.quick and args.seeds is None)
    if why is not None:
        return fail(why)
    if args.list:
        for what in ALL.values():
            print(f"{what.name}: {what.source}")
        return 0
    passed = True
    for what in [ALL[name] for name in args.names or ALL]:
        if what.needs_data and not os.environ.get("GRADEST_DATA"):
            missing = "GRADEST_DATA names no directory of images"
            if args.names:
                return fail(f"{what.name}: {missing}")
            print(f"{what.name}: skipped, {missing}.\n")
            continue
        seeds = args.seeds or (what.quick_seeds if args.quick else what.seeds)
        machine = _measure.machine()
        try:
            result = reproduce(what, seeds, args.quick, None if args.quick else args.state)
        except KeyboardInterrupt:
            if what.resumable and not args.quick:
                print(f"{what.name}: interrupted. The same command goes on.", file=sys.stderr)
            return INTERRUPTED
        print(f"{render(result)}\n")
        passed = passed and all(row["passed"] for row in result["rows"])
        if out is not None:
            keep(what, {"machine": machine, **result}, out, args.record)
            _resume.forget(args.state, what.name)
    return 0 if passed else FAILED


if __name__ == "__main__":
    sys.exit(main())
