"""Trains what papers trained, and compares the results with theirs.

python -m benchmarks.published [name ...]
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from .. import _measure
from . import _resume
from ._suite import Reproduction
from .blr import BLR
from .polynomial import POLYNOMIAL
from .rebar_sbn import REBAR_SBN
from .relax_toy import RELAX_TOY
from .structured import STRUCTURED
from .vae import VAE

ALL = {r.name: r for r in (REBAR_SBN, POLYNOMIAL, BLR, RELAX_TOY, STRUCTURED, VAE)}
FOLDER = pathlib.Path(__file__).parents[1]
RESULTS, README = FOLDER / "results", FOLDER / "README.md"
STATE = FOLDER / ".state"
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


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
            "" if published is None else f"{published:g}",
            f"{row['result']:.5g}{spread}",
            row["allowed"],
            ("yes" if row["passed"] else "NO") if row["allowed"] else "",
        ]

    columns = ["what", "published", "ours", "allowed", "passed"]
    head = f"### {result['name']}\n\n{result['source']}. Seeds: {result['seeds']}.\n\n"
    return head + _measure.table(columns, map(cells, result["rows"]))


def render_all(folder: pathlib.Path = RESULTS) -> str:
    """What the README has of the committed results."""
    parts = []
    for name, what in ALL.items():
        path = folder / f"published-{name}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            parts += [render(result), _measure.describe(result["machine"])]
            if what.picture is not None:
                parts.append(f"![{name}](results/{path.with_suffix('.png').name})")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.published", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(ALL)}")
    parser.add_argument("--list", action="store_true", help="list them and their sources")
    parser.add_argument("--seeds", type=int, help="how many runs of each")
    parser.add_argument("--quick", action="store_true", help="shortened runs, not recorded")
    parser.add_argument(
        "--state",
        type=pathlib.Path,
        default=STATE,
        metavar="DIR",
        help="where long runs save what they need to go on after an interruption, which they then "
        "do unless it is deleted; default: benchmarks/.state",
    )
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in ALL]
    if unknown:
        print(f"expected names of {', '.join(ALL)}, got {unknown[0]!r}.", file=sys.stderr)
        return UNUSABLE
    if args.seeds is not None and args.seeds < 1:
        print(f"--seeds: expected at least 1, got {args.seeds}.", file=sys.stderr)
        return UNUSABLE
    if args.list:
        for what in ALL.values():
            print(f"{what.name}: {what.source}")
        return 0
    passed = True
    for what in [ALL[name] for name in args.names or ALL]:
        if what.needs_data and not os.environ.get("GRADEST_DATA"):
            print(f"{what.name}: skipped, GRADEST_DATA names no directory of images.\n")
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
        if not args.quick:
            path = RESULTS / f"published-{what.name}.json"
            _measure.write_json(path, {"machine": machine, **result})
            if what.picture is not None:
                what.picture(result["rows"]).savefig(path.with_suffix(".png"), dpi=110)
            text = README.read_text()
            README.write_text(_measure.replace_between_markers(text, "published", render_all()))
            _resume.forget(args.state, what.name)
    return 0 if passed else FAILED


if __name__ == "__main__":
    sys.exit(main())
