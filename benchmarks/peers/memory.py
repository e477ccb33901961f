"""The memory of an estimate from very many draws, each number of them in processes of its own.

python -m benchmarks.peers.memory DRAWS CHUNK    # what one process needed, as JSON
"""

import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import gradest as ge
from gradest.distributions import OneHotCategorical

from .. import _measure

DRAWS, QUICK_DRAWS = (10_000, 100_000, 1_000_000), (20, 40)
CHUNK, QUICK_CHUNK = 5_000, 10
PROCESSES = 3
#: How much more than the fewest draws the most may need.
GOAL = 1.10
SHAPE = (20, 10)


def estimate(draws: int, chunk: int | None) -> Any:
    """(logits, key) -> value and gradient, of a mean over so many draws."""

    def one(key: jax.Array, logits: jax.Array) -> jax.Array:
        x = ge.gumbel_softmax(0.5)(key, OneHotCategorical(logits))
        return jnp.sum((x - 0.3) ** 2) + jnp.prod(jnp.sum(x[:, :2], axis=-1))

    mean = ge.monte_carlo(one, draws, chunk_size=chunk)
    return jax.jit(jax.value_and_grad(lambda logits, key: mean(key, logits)))


def compiled(draws: int, chunk: int | None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    args = jnp.linspace(-1.0, 1.0, SHAPE[0] * SHAPE[1]).reshape(SHAPE), jax.random.key(0)
    return estimate(draws, chunk).lower(*args).compile(), args


def temporaries(draws: int, chunk: int | None) -> int:
    """Bytes that the compiled program sets aside for what it computes on the way."""
    return int(compiled(draws, chunk)[0].memory_analysis().temp_size_in_bytes)


def peak() -> int:
    """Bytes: of the device's memory where it counts them, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        # Not `getrusage`: on Linux a process begins with the peak of the one that started it.
        kilobytes = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        assert kilobytes is not None
        return 1024 * int(kilobytes.group(1))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but on a Mac.
    return used if sys.platform == "darwin" else 1024 * used


def one_process(draws: int, chunk: int) -> dict[str, Any]:
    """What the process needed: to import, to compile, and to run the program."""
    run, args = compiled(draws, chunk)
    value, _ = jax.block_until_ready(run(*args))
    return {"value": float(value), "bytes": peak()}


def in_process(draws: int, chunk: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.peers.memory", str(draws), str(chunk)]
    # The device's memory is this process's for the most part.
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    del rounds
    all_draws, chunk = (QUICK_DRAWS, QUICK_CHUNK) if quick else (DRAWS, CHUNK)
    processes = 1 if quick else PROCESSES
    found = _measure.interleave(
        {str(draws): lambda draws=draws: in_process(draws, chunk) for draws in all_draws}, processes
    )
    for draws in all_draws:
        yield {
            "draws": draws,
            "chunk": chunk,
            "megabytes": _measure.quartiles([run["bytes"] / 1e6 for run in found[str(draws)]]),
            "temporaries": temporaries(draws, chunk) / 1e6,
            "temporaries_at_once": temporaries(draws, None) / 1e6,
        }


def goal_met(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    fewest = rows[0]
    used = row["megabytes"][1] <= GOAL * fewest["megabytes"][1]
    return used and row["temporaries"] <= GOAL * fewest["temporaries"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser("benchmarks.peers.memory")
    parser.add_argument("draws", type=int)
    parser.add_argument("chunk", type=int)
    args = parser.parse_args()
    print(json.dumps(one_process(args.draws, args.chunk)))
