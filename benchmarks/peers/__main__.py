"""How fast gradest is next to other libraries, and next to JAX by hand.

    python -m benchmarks.peers                  # all of it, about four minutes on two cores
    python -m benchmarks.peers vae draws        # some of the parts, printed only
    python -m benchmarks.peers --list           # their names
    python -m benchmarks.peers --quick          # tiny shapes, to see that it runs

A library that is not installed is left out, and said to be. The extra `bench` has them all.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import _command, _measure, pictures
from . import _peers, draws, gradient, memory, policy, vae

Rows = list[dict[str, Any]]

ROUNDS, QUICK_ROUNDS = 21, 2

# ---- Tables --------------------------------------------------------------------------------


def render_comparison(rows: Rows) -> str:
    return _measure.table(
        ["problem", "peer", "peer, ms", "gradest, ms", "ratio", "goal", "goal met"],
        [
            [
                row["problem"],
                row["peer"],
                _measure.spread(row["peer_ms"]),
                _measure.spread(row["gradest_ms"]),
                _measure.spread(row["ratio"]),
                row["goal"],
                ("yes" if row["met"] else "NO") if row["goal"] else "",
            ]
            for row in rows
        ],
    )


def render_bandwidth(rows: Rows) -> str:
    return _measure.table(
        ["logits", "forward and backward, ms", "GB/s", "copy, GB/s", "fraction of copy"],
        [
            [
                " x ".join(map(str, row["shape"])),
                _measure.spread(row["ms"]["gradest"]),
                _measure.spread(row["gb_per_s"]["gradest"]),
                _measure.spread(row["gb_per_s"]["copy"]),
                _measure.spread(row["fraction"]),
            ]
            for row in rows
        ],
    )


def render_memory(rows: Rows) -> str:
    columns = [
        "draws",
        "chunk",
        "peak of the process, MB",
        "temporaries, MB",
        "temporaries in one chunk, MB",
        "goal met",
    ]
    return _measure.table(
        columns,
        [
            [
                f"{row['draws']:,}",
                f"{row['chunk']:,}",
                _measure.spread(row["megabytes"]),
                f"{row['temporaries']:.3g}",
                f"{row['temporaries_at_once']:.3g}",
                "yes" if memory.goal_met(rows, row) else "NO",
            ]
            for row in rows
        ],
    )


# ---- Parts ---------------------------------------------------------------------------------

#: What it is, how it is measured, and its table.
Part = tuple[str, Callable[[int, bool], Iterator[dict[str, Any]]], Callable[[Rows], str]]

PARTS: dict[str, Part] = {
    "gradient": (
        "A batch of draws and the gradient of a cost of them",
        gradient.measure,
        render_comparison,
    ),
    "vae": (
        "A training step of a 784-200-(20 x 10)-200-784 autoencoder, 100 images",
        vae.measure,
        render_comparison,
    ),
    "draws": (
        "Many exact draws from few rows",
        draws.measure,
        render_comparison,
    ),
    "policy": (
        "A policy gradient through a scan",
        policy.measure,
        render_comparison,
    ),
    "compile": (
        "From a Python function to the compiled training step",
        vae.measure_compile,
        render_comparison,
    ),
    "memory": (
        "Peak memory of an estimate from very many draws",
        memory.measure,
        render_memory,
    ),
    "bandwidth": (
        "Memory bandwidth of gumbel_softmax",
        gradient.measure_bandwidth,
        render_bandwidth,
    ),
}


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    versions = ", ".join(
        f"{name} {version}" if version else f"{name} not there, or not for this JAX"
        for name, version in results["versions"].items()
    )
    parts = [f"### {_measure.describe(results['machine'])}", f"Peers: {versions}."]
    for name, rows in results["parts"].items():
        title, _, table = PARTS[name]
        parts += [f"#### {title}", table(rows)]
    return "\n\n".join([*parts, pictures.link("peers", results, picture(results))])


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The ratios of times."""
    panels = []
    for name, rows in results["parts"].items():
        title, _, table = PARTS[name]
        if table is render_comparison:
            dots = [
                pictures.Dot(
                    f"{row['problem']}: {row['peer']}",
                    row["ratio"],
                    bool(row["goal"]) and not row["met"],
                )
                for row in rows
            ]
            panels.append(
                pictures.Panel(title, "gradest's time, as a multiple of the peer's", dots, 1)
            )
    return pictures.Picture(
        "Ratios of gradest's time to that of other libraries and of JAX by hand, a dot with its "
        "quartiles for each problem and peer; left of the dashed line gradest is faster",
        "the goal is missed",
        panels,
    )


# ---- The command ---------------------------------------------------------------------------


def measure_all(names: Sequence[str], quick: bool) -> dict[str, Any]:
    parts = {}
    for name in names or PARTS:
        _command.progress("peers", name)
        _, measure, _ = PARTS[name]
        parts[name] = list(measure(QUICK_ROUNDS if quick else ROUNDS, quick))
    return {"versions": _peers.versions(), "parts": parts}


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "peers",
        __doc__,
        measure_all,
        render,
        argv,
        what="part",
        names=PARTS,
        quick="tiny shapes, hardly any rounds",
        draw=pictures.draw("peers", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
