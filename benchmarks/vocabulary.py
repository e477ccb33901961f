"""What VocabularyCategorical costs in time, and saves in memory, beside Categorical of all logits.

    python -m benchmarks.vocabulary                 # under two minutes; --record keeps the results
    python -m benchmarks.vocabulary --quick         # few words and rounds, to see that it runs

64 rows of 128 activations and the weights of an output layer; of each law a draw, a
log-probability with its gradient, and the gradient of a cost by `score_function`, which takes one
of each. Gradients are those of both the activations and the weights.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import gradest as ge
from gradest.distributions import Categorical, VocabularyCategorical

from . import _command, _measure, pictures

ROWS, SIZE, CHUNK, ROUNDS = 64, 128, 4096, 12
WORDS = (10_000, 100_000)
#: Where what a compiled program needs is told by the compiler, and nothing is run.
MEMORY_ONLY = (1_000_000,)
PLAIN, CHUNKED = "Categorical(hidden @ weights)", "VocabularyCategorical"
#: The last of them is what a training step does.
OPERATIONS = ("draw", "log_prob and its gradient", "gradient by score_function")


def laws(chunk_size: int) -> dict[str, Callable[..., Any]]:
    return {
        PLAIN: lambda hidden, weights: Categorical(hidden @ weights),
        CHUNKED: lambda hidden, weights: VocabularyCategorical(hidden, weights, chunk_size),
    }


def operations(law: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions of (hidden, weights, key)."""
    log_prob = lambda params, x: jnp.sum(law(*params).log_prob(x))
    cost = lambda x: jnp.sum(jnp.cos(x.astype(jnp.float32)))
    loss = lambda params, key: ge.score_function().expect(key, law(*params), cost)
    draw, scored, estimated = OPERATIONS
    return {
        draw: lambda hidden, weights, key: law(hidden, weights).sample(key),
        scored: lambda hidden, weights, key: jax.grad(log_prob)(
            (hidden, weights), jax.random.randint(key, hidden.shape[:1], 0, weights.shape[1])
        ),
        estimated: lambda hidden, weights, key: jax.grad(loss)((hidden, weights), key),
    }


def arguments(words: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden = jax.random.normal(jax.random.key(0), (ROWS, SIZE))
    weights = jax.random.normal(jax.random.key(1), (SIZE, words)) / SIZE**0.5
    return hidden, weights, jax.random.key(2)


def measured(words: int, operation: str, rounds: int, chunk_size: int) -> dict[str, Any]:
    """Times, as quartiles, if there are to be rounds, and what the two programs need besides."""
    make = lambda: arguments(words)
    args = make() if rounds else jax.eval_shape(make)
    programs = {
        name: jax.jit(operations(law)[operation]).lower(*args).compile()
        for name, law in laws(chunk_size).items()
    }
    row: dict[str, Any] = {"words": words, "operation": operation}
    if rounds:
        calls = {name: lambda p=program: p(*args) for name, program in programs.items()}
        times = _measure.run_times(calls, rounds)
        row["ms"] = {name: _measure.quartiles(1e3 * times[name]) for name in times}
        row["time"] = _measure.quartiles(times[CHUNKED] / times[PLAIN])
    row["MB"] = {name: temporary(program) for name, program in programs.items()}
    return row


def temporary(program: Any) -> float | None:
    """Megabytes that a compiled program needs beside its arguments and results."""
    analysis = program.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes / 1e6


def measure(names: Sequence[str], quick: bool) -> dict[str, Any]:
    del names
    chunk = 64 if quick else CHUNK
    rounds_of: dict[int, int] = dict.fromkeys(WORDS, ROUNDS)
    rounds_of.update(dict.fromkeys(MEMORY_ONLY, 0))
    sizes = {300: 2, 600: 0} if quick else rounds_of
    rows = []
    for words, rounds in sizes.items():
        _command.progress("vocabulary", f"{words:,} words")
        # What is only compiled is that of a training step.
        chosen = OPERATIONS if rounds else OPERATIONS[-1:]
        rows += [measured(words, operation, rounds, chunk) for operation in chosen]
    return {"chunk_size": chunk, "rows": rows}


# ---- Tables --------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """The table of one machine, in Markdown."""
    columns = [
        *("operation", "words", "plain, ms", "chunked, ms", "time"),
        *("plain, MB", "chunked, MB"),
    ]

    def cells(row: dict[str, Any]) -> list[str]:
        ms = [_measure.spread(row["ms"][name]) if "ms" in row else "" for name in (PLAIN, CHUNKED)]
        time = _measure.spread(row["time"]) if "time" in row else ""
        needed = [row["MB"][name] for name in (PLAIN, CHUNKED)]
        megabytes = ["" if x is None else f"{x:.0f}" if x >= 10 else f"{x:.2g}" for x in needed]
        return [row["operation"], f"{row['words']:,}", *ms, time, *megabytes]

    table = _measure.table(columns, map(cells, results["rows"]))
    heading = f"### {_measure.describe(results['machine'])}"
    said = (
        f"In chunks of {results['chunk_size']:,} words; the time is a multiple of the plain one's."
    )
    link = pictures.link("vocabulary", results, picture(results))
    return "\n\n".join([heading, said, table, link])


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The ratios of times, and the memory of a gradient."""
    rows = results["rows"]
    label = lambda row: f"{row['operation']}, {row['words']:,} words"
    times = [pictures.Dot(label(row), row["time"]) for row in rows if "time" in row]
    memory = [
        pictures.Dot(f"{name}, {row['words']:,} words", [row["MB"][name]], name == PLAIN)
        for row in rows
        for name in (PLAIN, CHUNKED)
        if row["operation"] == OPERATIONS[-1] and row["MB"][name]
    ]
    return pictures.Picture(
        "Time of VocabularyCategorical as a multiple of Categorical's for a draw, a "
        "log-probability and a gradient, with quartiles; and the memory of a gradient, which does "
        "not grow with the vocabulary for the former and does for the latter",
        PLAIN,
        [
            pictures.Panel("Time, as a multiple of Categorical's", "time", times, 1),
            pictures.Panel(f"Memory, {OPERATIONS[-1]}", "MB beside arguments and results", memory),
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "vocabulary",
        __doc__,
        measure,
        render,
        argv,
        quick="few words and rounds",
        draw=pictures.draw("vocabulary", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
