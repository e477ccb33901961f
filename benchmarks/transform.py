"""What the transform itself costs: to trace, to run, and with estimators in sequence.

    python -m benchmarks.transform             # all of it, about six minutes on two cores
    python -m benchmarks.transform --quick     # small and few, to see that it runs

Three questions:

* trace: how long does tracing a gradient take next to the surrogate loss written by hand, and does
  it grow linearly with the number of draws?
* run: how long does a compiled gradient take next to the surrogate loss written by hand, in
  straight-line code and in a scan?
* layers: how often do n REBAR draws, each one's parameters from the one before, evaluate what
  follows them, and how long do tracing and running take?

Before anything is timed, the hand-written programs must give the same value and gradients.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest.distributions import Bernoulli

from . import _command, _measure, pictures

TRACE_GROWTH_GOAL = 1.50
TRACE_RATIO_GOAL = 2.00
RUN_GOAL = 1.05
WIDTH = 32
BATCH = 256

Params = dict[str, jax.Array]
#: (parameters, key) -> scalar.
Loss = Callable[[Params, jax.Array], jax.Array]


def arguments(num_draws: int) -> tuple[Params, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "logits": jax.random.normal(keys[0], (num_draws, WIDTH)),
        "link": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH,
        "weights": jax.random.normal(keys[2], (WIDTH,)),
    }
    return params, keys[3]


def cost(params: Params, x: jax.Array) -> jax.Array:
    return (jnp.dot(params["weights"], x) - 1.0) ** 2


# ---- Draws whose parameters depend on the draws before -------------------------------------


def by_expectation(sampler: Callable[[], ge.Sampler], num_draws: int) -> Loss:
    @ge.expectation
    def loss(params: Params, key: jax.Array) -> jax.Array:
        x, total = jnp.zeros(WIDTH), jnp.zeros(())
        for logits, k in zip(params["logits"], jax.random.split(key, num_draws), strict=True):
            x = sampler()(k, Bernoulli(logits + params["link"] @ x))
            total += cost(params, x)
        return total

    return loss


def by_hand(num_draws: int) -> Loss:
    def loss(params: Params, key: jax.Array) -> jax.Array:
        x, total, log_p = jnp.zeros(WIDTH), jnp.zeros(()), jnp.zeros(())
        for logits, k in zip(params["logits"], jax.random.split(key, num_draws), strict=True):
            x, l = draw(k, logits + params["link"] @ x)
            total, log_p = total + cost(params, x), log_p + l
        return surrogate(total, log_p)

    return loss


def draw(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A draw and its log-probability."""
    x = Bernoulli(jax.lax.stop_gradient(logits)).sample(key)
    log_p = x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)
    return x, jnp.sum(log_p)


def surrogate(total: jax.Array, log_p: jax.Array) -> jax.Array:
    """The value of `total`, with the score function's gradient."""
    return total + jax.lax.stop_gradient(total) * (log_p - jax.lax.stop_gradient(log_p))


def scan_by_expectation(num_draws: int) -> Loss:
    @ge.expectation
    def loss(params: Params, key: jax.Array) -> jax.Array:
        def step(carry: Any, inputs: Any) -> tuple[Any, None]:
            (x, total), (logits, key) = carry, inputs
            x = ge.score_function()(key, Bernoulli(logits + params["link"] @ x))
            return (x, total + cost(params, x)), None

        start = jnp.zeros(WIDTH), jnp.zeros(())
        inputs = params["logits"], jax.random.split(key, num_draws)
        return jax.lax.scan(step, start, inputs)[0][1]

    return loss


def scan_by_hand(num_draws: int) -> Loss:
    def loss(params: Params, key: jax.Array) -> jax.Array:
        def step(carry: Any, inputs: Any) -> tuple[Any, None]:
            (x, total, log_p), (logits, key) = carry, inputs
            x, l = draw(key, logits + params["link"] @ x)
            return (x, total + cost(params, x), log_p + l), None

        start = jnp.zeros(WIDTH), jnp.zeros(()), jnp.zeros(())
        inputs = params["logits"], jax.random.split(key, num_draws)
        _, total, log_p = jax.lax.scan(step, start, inputs)[0]
        return surrogate(total, log_p)

    return loss


def over_batch(loss: Loss) -> Callable[..., Any]:
    """Value and gradient of the mean over a batch, each example with its own draws."""

    def mean(params: Params, key: jax.Array) -> jax.Array:
        losses = jax.vmap(loss, in_axes=(None, 0))(params, jax.random.split(key, BATCH))
        return jnp.mean(losses)

    return jax.value_and_grad(mean)


RUNS = {
    "straight-line": (by_hand, functools.partial(by_expectation, ge.score_function)),
    "scan": (scan_by_hand, scan_by_expectation),
}


def check_agreement(form: str, num_draws: int) -> None:
    """Raises AssertionError unless both give the same value and gradients."""
    with jax.default_matmul_precision("highest"):
        hand, gradest = (
            jax.jit(over_batch(make(num_draws)))(*arguments(num_draws)) for make in RUNS[form]
        )
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(hand))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4 * scale)
    jax.tree.map(close, gradest, hand)


# ---- REBAR in layers -----------------------------------------------------------------------

#: Options of each form, and how often n draws evaluate what follows the last of them.
FORMS: dict[str, tuple[dict[str, Any], Callable[[int], int]]] = {
    "coupled": ({}, lambda n: n + 1),
    "independent": ({"coupled": False}, lambda n: 2 * n + 1),
    "nested": ({"nested": True}, lambda n: 2**n),
    "nested, independent": ({"nested": True, "coupled": False}, lambda n: 3**n),
}


def layers(form: str, num_draws: int, then: Callable[[jax.Array], Any] = lambda x: None) -> Loss:
    """REBAR draws in sequence, and a cost of the last one; `then` sees what that is given."""
    options, _ = FORMS[form]

    @ge.expectation
    def loss(params: Params, key: jax.Array) -> jax.Array:
        x = jnp.zeros(WIDTH)
        for logits, k in zip(params["logits"], jax.random.split(key, num_draws), strict=True):
            x = ge.rebar(**options)(k, Bernoulli(logits + params["link"] @ x))
        then(x)
        return cost(params, x)

    return loss


def evaluations(form: str, num_draws: int) -> int:
    """How often one gradient evaluates what follows the last draw: counted when it runs."""
    count = []
    seen = lambda x: jax.debug.callback(lambda: count.append(None))
    gradient = jax.jit(jax.grad(layers(form, num_draws, seen)))
    jax.block_until_ready(gradient(*arguments(num_draws)))
    jax.effects_barrier()
    return len(count)


# ---- Measurements --------------------------------------------------------------------------


def measure_trace(numbers: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Times to trace a gradient, by hand and by the transform, per draw."""
    transformed = functools.partial(by_expectation, ge.score_function)
    rows = []
    for n in numbers:
        times = _measure.compile_times(
            {
                "hand": lambda n=n: jax.value_and_grad(by_hand(n)),
                "expectation": lambda n=n: jax.value_and_grad(transformed(n)),
            },
            arguments(n),
            rounds,
        )
        per_draw = {name: _measure.quartiles(ts[:, 0] * 1e3 / n) for name, ts in times.items()}
        ratio = _measure.quartiles(times["expectation"][:, 0] / times["hand"][:, 0])
        rows.append({"draws": n, "ms_per_draw": per_draw, "ratio": ratio})
    return rows


def measure_run(form: str, num_draws: int, rounds: int) -> dict[str, Any]:
    check_agreement(form, num_draws)
    args = arguments(num_draws)
    hand, transformed = (jax.jit(over_batch(make(num_draws))) for make in RUNS[form])
    times = _measure.run_times(
        {"hand": lambda: hand(*args), "expectation": lambda: transformed(*args)}, rounds
    )
    return {
        "form": form,
        "draws": num_draws,
        "ms": {name: _measure.quartiles(ts * 1e3) for name, ts in times.items()},
        "ratio": _measure.quartiles(times["expectation"] / times["hand"]),
    }


def measure_layers(form: str, num_draws: int, rounds: int) -> dict[str, Any]:
    args = arguments(num_draws)
    make = lambda: over_batch(layers(form, num_draws))
    compiled = jax.jit(make())
    run = _measure.run_times({form: lambda: compiled(*args)}, rounds)[form]
    stages = _measure.compile_times({form: make}, args, max(1, rounds // 10))[form]
    return {
        "form": form,
        "draws": num_draws,
        "evaluations": evaluations(form, num_draws),
        "trace_ms": _measure.quartiles(stages[:, 0] * 1e3),
        "compile_ms": _measure.quartiles(stages.sum(axis=1) * 1e3),
        "run_ms": _measure.quartiles(run * 1e3),
    }


def measure(names: Sequence[str], quick: bool) -> dict[str, Any]:
    del names
    rounds = 2 if quick else 30
    trace, run = ((1, 2), (2,)) if quick else ((1, 4, 16, 64), (1, 4, 16))
    depth, most = (2, 5) if quick else (6, 64)
    results: dict[str, Any] = {"rounds": rounds}
    results["run"] = [measure_run(form, n, rounds) for form in RUNS for n in run]
    results["layers"] = [
        measure_layers(form, n, rounds)
        for form, (_, count) in FORMS.items()
        for n in range(1, depth + 1)
        if count(n) <= most
    ]
    # Last, for it empties the caches.
    results["trace"] = measure_trace(trace, max(1, rounds // 5))
    return results


# ---- Tables --------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    return "\n\n".join(
        [
            f"### {_measure.describe(results['machine'])}",
            "Tracing a gradient. Goals: from 16 draws on at most "
            f"{TRACE_RATIO_GOAL:.2f} times the hand-written surrogate's time; the last row's time "
            f"per draw at most {TRACE_GROWTH_GOAL:.2f} times that of the row before.",
            _render_trace(results["trace"]),
            f"Compiled value_and_grad of {BATCH} examples. Goal: at most {RUN_GOAL:.2f} times the "
            "hand-written surrogate's time.",
            _render_run(results["run"]),
            "REBAR draws in sequence: how often a gradient evaluates what follows the last one.",
            _render_layers(results["layers"]),
            pictures.link("transform", results, picture(results)),
        ]
    )


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The ratios to what is written by hand."""
    met = trace_goals_met(results["trace"])
    tracing = [
        pictures.Dot(_draws(row), sorted(trace_ratio(row)), hollow=goals == "no")
        for row, goals in zip(results["trace"], met, strict=True)
    ]
    running = [
        pictures.Dot(
            f"{row['form']}, {_draws(row)}", row["ratio"], hollow=row["ratio"][1] > RUN_GOAL
        )
        for row in results["run"]
    ]
    times = "time, as a multiple of the hand-written surrogate's"
    return pictures.Picture(
        "Ratios of the transform's time to that of the surrogate loss by hand, a dot with its "
        "quartiles for each number of draws: to trace a gradient, and to run it compiled, in "
        "straight-line code and in a scan, beside the goals as dashed lines",
        "a goal is missed",
        [
            pictures.Panel("Tracing a gradient", times, tracing, TRACE_RATIO_GOAL),
            pictures.Panel("Compiled value_and_grad", times, running, RUN_GOAL),
        ],
    )


def _draws(row: dict[str, Any]) -> str:
    return f"{row['draws']} draw{'s' * (row['draws'] > 1)}"


def trace_ratio(row: dict[str, Any]) -> list[float]:
    """Quartiles; of what was recorded before rounds were compared, those of the times."""
    if "ratio" in row:
        return row["ratio"]
    times = row["ms_per_draw"]
    return [e / h for e, h in zip(times["expectation"], times["hand"], strict=True)]


def trace_goals_met(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each row, whether its goals are; nothing for a row without one."""
    per_draw = [row["ms_per_draw"]["expectation"][1] for row in rows]
    goals: list[list[bool]] = [
        [trace_ratio(row)[1] <= TRACE_RATIO_GOAL] if row["draws"] >= 16 else [] for row in rows
    ]
    goals[-1].append(per_draw[-1] <= TRACE_GROWTH_GOAL * per_draw[-2])
    return ["" if not of_row else "yes" if all(of_row) else "no" for of_row in goals]


def _render_trace(rows: Sequence[dict[str, Any]]) -> str:
    return _measure.table(
        ["draws", "by hand, ms per draw", "`expectation`, ms per draw", "ratio", "goals met"],
        [
            [
                str(row["draws"]),
                _measure.spread(row["ms_per_draw"]["hand"]),
                _measure.spread(row["ms_per_draw"]["expectation"]),
                _measure.spread(trace_ratio(row)),
                met,
            ]
            for row, met in zip(rows, trace_goals_met(rows), strict=True)
        ],
    )


def _render_run(rows: Sequence[dict[str, Any]]) -> str:
    return _measure.table(
        ["program", "draws", "by hand, ms", "`expectation`", "goal met"],
        [
            [
                row["form"],
                str(row["draws"]),
                _measure.spread(row["ms"]["hand"]),
                _measure.spread(row["ratio"]),
                "yes" if row["ratio"][1] <= RUN_GOAL else "no",
            ]
            for row in rows
        ],
    )


def _render_layers(rows: Sequence[dict[str, Any]]) -> str:
    return _measure.table(
        ["REBAR", "draws", "evaluations", "trace, ms", "trace and compile, ms", "run, ms"],
        [
            [
                row["form"],
                str(row["draws"]),
                str(row["evaluations"]),
                *(_measure.spread(row[name]) for name in ("trace_ms", "compile_ms", "run_ms")),
            ]
            for row in rows
        ],
    )


# ---- The command ---------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "transform",
        __doc__,
        measure,
        render,
        argv,
        quick="few draws and two rounds",
        draw=pictures.draw("transform", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
