"""Which estimator has the least variance, for what it costs, on problems with a known gradient.

    python -m benchmarks.estimators              # all of it, under five minutes on two cores
    python -m benchmarks.estimators bits bound   # some of the problems, printed only
    python -m benchmarks.estimators --list       # their names
    python -m benchmarks.estimators --quick      # few draws of few estimators, to see that it runs

Every estimator that applies to a problem is measured there by `gradest.diagnose`, with the same
keys. What only affects the variance is trained first, by the cotangents that gradest gives it.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradest as ge
from gradest._diagnostics.evaluations import count_evaluations, evaluation_p

from . import _command, _measure, pictures
from ._problems import PROBLEMS, Problem, Trained, gradient

# ---- Measurements --------------------------------------------------------------------------


def evaluations(problem: Problem, sampler: ge.Sampler) -> int | None:
    """How often one gradient evaluates the cost."""
    marked = lambda dist, x: evaluation_p.bind(problem.cost(dist, x))
    counted = gradient(dataclasses.replace(problem, cost=marked), sampler)
    return count_evaluations(jax.make_jaxpr(counted)(jax.random.key(0), problem.dist).jaxpr)


def train(problem: Problem, method: Trained, steps: int, batch: int = 64) -> dict[str, Any]:
    """The parameters of a sampler, after steps along the gradient of the variance."""
    key, init = jax.random.split(jax.random.key(3))
    shape = jax.eval_shape(lambda: problem.dist.sample(key)).shape
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        sampler = method.sampler(**params)
        draw = lambda key: problem.expect(sampler, key, problem.dist, problem.cost)
        return jnp.mean(jax.vmap(draw)(jax.random.split(key, batch)))

    @jax.jit
    def trained(params: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(key, steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return trained(method.start(init, shape))


def measure(problem: Problem, steps: int, **options: Any) -> list[dict[str, Any]]:
    """A row for each sampler. Variances and biases are relative to the gradient."""
    samplers, tuned = {}, {}
    for name, sampler in problem.samplers.items():
        if isinstance(sampler, Trained):
            params = train(problem, sampler, steps)
            tuned[name] = {k: float(v) for k, v in params.items() if not isinstance(v, dict)}
            sampler = sampler.sampler(**params)
        samplers[name] = sampler
    exact = problem.exact(problem)
    gradients = {name: gradient(problem, sampler) for name, sampler in samplers.items()}
    report = ge.diagnose(gradients, jax.random.key(4), problem.dist, exact=exact, **options)
    norm = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(exact)) ** 0.5
    rows = []
    for name, found in report.estimates.items():
        if found.num_nonfinite:
            raise AssertionError(f"{name}: {found.num_nonfinite} gradients are not finite")
        total = found.total
        numbers = {
            "bias": total.total_bias / norm,  # pyright: ignore
            "bias_error": total.total_bias_error / norm,  # pyright: ignore
            "variance": total.total_variance / norm**2,
            "variance_error": total.total_variance_error / norm**2,
            "us": found.seconds * 1e6,
        }
        rows.append(
            {"estimator": name, "trained": tuned.get(name), "biased": bool(total.biased)}
            | {name: float(f"{number:.4g}") for name, number in numbers.items()}
            | {"evaluations": evaluations(problem, samplers[name])}
        )
    return rows


# ---- Tables --------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    parts = [f"### {_measure.describe(results['machine'])}"]
    for name, rows in results["problems"].items():
        problem = PROBLEMS[name]
        parts += [f"#### {problem.title}", problem.about, render_rows(rows)]
    return "\n\n".join([*parts, pictures.link("estimators", results, picture(results))])


#: The problems in the picture, which would be too long with all of them.
SHOWN = ("bits", "categories", "normal", "normal_jumps")


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The column by which a table is ordered."""
    return pictures.Picture(
        "Variance times cost evaluations of every estimator, a dot for each, on four of the "
        "problems above: bits, categories, a normal draw, and one whose cost jumps",
        "the estimator has a bias, which does not average out",
        [panel_of(PROBLEMS[name].title, results["problems"].get(name, [])) for name in SHOWN],
    )


def panel_of(title: str, rows: Sequence[dict[str, Any]]) -> pictures.Panel:
    """The rows as in their table, but for those without a variance, which a logarithm has not."""
    work = lambda row: row["variance"] * row["evaluations"]
    shown = [row for row in _ordered(rows) if work(row) > _ROUNDING]
    dots = [pictures.Dot(row["estimator"], [work(row)], hollow=row["biased"]) for row in shown]
    return pictures.Panel(title, "variance x evaluations", dots)


def _ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with a bias last, for it does not average out."""
    return sorted(rows, key=lambda row: (row["biased"], row["variance"] * row["evaluations"]))


def render_rows(rows: Sequence[dict[str, Any]], timed: bool = True) -> str:
    # With no draw, nothing depends on the key: XLA computes it once for all of a chunk.
    fastest = min((row["us"] for row in rows if timed and row["variance"]), default=1.0)
    columns = ["estimator", "bias, %", "variance", "evaluations", "variance x evaluations"]
    time = lambda row: _short(row["us"] / fastest) if row["variance"] else "-"
    return _measure.table(
        [*columns, *["time"] * timed],
        [
            [
                f"`{row['estimator']}`" + (", trained" if row["trained"] else ""),
                _bias(row),
                _short(row["variance"]),
                str(row["evaluations"]),
                _short(row["variance"] * row["evaluations"]),
                *([time(row)] if timed else []),
            ]
            for row in _ordered(rows)
        ],
    )


def _bias(row: dict[str, Any]) -> str:
    error = f"± {_short(100 * row['bias_error'], 2)}"
    return f"{_short(100 * row['bias'])} {error}" if row["biased"] else f"none seen, {error}"


_ROUNDING = 1e-5


def _short(number: float, digits: int = 3) -> str:
    """The rounding of single precision counts as zero."""
    if number < _ROUNDING:
        return "0"
    return f"{number:.{digits}g}" if number < 100 else f"{number:.0f}"


# ---- The command ---------------------------------------------------------------------------


def measure_all(names: Sequence[str], quick: bool) -> dict[str, Any]:
    rows = {}
    for name in names or list(PROBLEMS)[:: 3 if quick else 1]:
        _command.progress("estimators", name)
        rows[name] = _measure_one(PROBLEMS[name], quick)
    return {"problems": rows}


def _measure_one(problem: Problem, quick: bool) -> list[dict[str, Any]]:
    if not quick:
        return measure(problem, 2_000, num_draws=100_000)
    few = dict(list(problem.samplers.items())[:1])
    few = dataclasses.replace(problem, samplers=few)
    return measure(few, 2, num_draws=40, chunk_size=20)


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "estimators",
        __doc__,
        measure_all,
        render,
        argv,
        what="problem",
        names=PROBLEMS,
        quick="few draws of each one's first estimator; by default of every third problem",
        draw=pictures.draw("estimators", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
