"""What a given precision of the gradient costs: a discrete VAE, before and after training.

    python -m benchmarks.efficiency                  # all of it, about five minutes on two cores
    python -m benchmarks.efficiency rebar disarm     # some of the estimators, printed only
    python -m benchmarks.efficiency --list           # their names
    python -m benchmarks.efficiency --quick          # few keys, to see that it runs

The model is that of `python -m gradest compare`: scikit-learn's digits, with 20 Bernoulli or 20
categorical variables. Every estimator meets the same two sets of parameters, those before training
and those after it (by leave-one-out of 4), the same minibatch and the same keys; what only the
variance depends on is trained there first. Estimates are averaged over several samples, drawn
jointly by those estimators that have a scheme for it: the encoder runs once for all of them.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib import ticker
from matplotlib.figure import Figure

import gradest as ge
from gradest.problems import data, training
from gradest.problems.methods import METHODS, Method, trainable
from gradest.problems.vae import VAE

from . import _command, _measure

WHAT = {"bernoulli": "20 Bernoulli variables", "categorical": "20 variables of 10 classes"}
LATENTS = tuple(WHAT)
STATES = ("before training", "after training")
COUNTS = (1, 4, 16)
TRAINED_BY = "score_function_loo"
#: The reference, unbiased, for the bias of the others.
REFERENCE = "score_function_loo", 16

# ---- Estimators and sample counts ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """An estimator with a number of samples: `averaged` independent estimates by `method`."""

    method: Method
    samples: int
    averaged: int

    @property
    def name(self) -> str:
        return self.method.name


#: Samples that are drawn jointly, instead of averages of independent ones.
JOINT: dict[str, tuple[tuple[int, ...], Callable[[int], ge.Sampler]]] = {
    "score_function_loo": (
        (2, 4, 8, 16),
        lambda n: ge.score_function(num_samples=n, baseline="leave_one_out"),
    ),
    "stratified": ((2, 4, 8, 16), ge.stratified),
    "unordered_set": ((2, 4, 8), ge.unordered_set),
}


def entries(latent: str, names: Sequence[str]) -> Iterator[Entry]:
    for method in trainable(latent):
        if method.enumerates or (names and method.name not in names):
            continue
        if method.name in JOINT:
            counts, make = JOINT[method.name]
            for n in counts:
                sampler = functools.partial(make, n)
                yield Entry(dataclasses.replace(method, sampler=sampler), n, 1)
        else:
            for n in COUNTS:
                yield Entry(method, n, n)


def loss_of(problem: VAE, entry: Entry) -> Callable[..., jax.Array]:
    """`loss(params, key, xs)`, the mean over a minibatch and over the samples."""
    once = training.minibatch_loss(problem, entry.method)
    many = ge.monte_carlo(lambda key, params, xs: once(params, key, xs), entry.averaged)
    return lambda params, key, xs: many(key, params, xs)


# ---- Parameters ----------------------------------------------------------------------------


def model_states(problem: VAE, steps: int) -> dict[str, dict[str, Any]]:
    """The model's parameters before and after training."""
    method = next(m for m in METHODS if m.name == TRAINED_BY)
    *_, run = training.train(problem, method, steps=steps, log_points=1)
    key = jax.random.fold_in(jax.random.key(0), 0)
    before = training.initial_params(problem, method, key)
    strip = lambda params: {name: params[name] for name in ("encoder", "decoder")}
    return {STATES[0]: strip(before), STATES[1]: jax.tree.map(lambda x: x[0], strip(run.params))}


def control_for(
    problem: VAE, method: Method, model: dict[str, Any], state: str, steps: int
) -> dict[str, Any]:
    """The control variate's parameters, trained while the model's stay as they are."""
    params = training.initial_params(problem, method, jax.random.key(1))
    params = {**params, **model}
    for name in method.annealed:
        params["control"][name] = jnp.asarray(1.0 if state == STATES[0] else 0.5)
    if not params["control"] or method.annealed:
        return params
    loss = training.minibatch_loss(problem, method)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    examples = jnp.asarray(problem.examples)

    def of_control(control: Any, key: jax.Array) -> jax.Array:
        key, rows = jax.random.split(key)
        chosen = jax.random.randint(rows, (problem.batch_size,), 0, len(examples))
        return loss({**params, "control": control}, key, examples[chosen])

    def step(carry: Any, key: jax.Array) -> Any:
        control, state = carry
        updates, state = optimizer.update(jax.grad(of_control)(control, key), state)
        return (optax.apply_updates(control, updates), state), None

    @jax.jit
    def trained(control: Any) -> Any:
        keys = jax.random.split(jax.random.key(2), steps)
        return jax.lax.scan(step, (control, optimizer.init(control)), keys)[0][0]

    return {**params, "control": trained(params["control"])}


# ---- Measurements --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of the gradient of the encoder's parameters: mean and summed variance, in doubles."""

    mean: np.ndarray
    variance: float
    num: int

    @property
    def error(self) -> float:
        """The expected squared distance of the mean from the true one."""
        return self.variance / self.num


def moments(gradient: Callable[..., Any], params: Any, xs: Any, num: int) -> Moments:
    key = jax.random.key(4)
    # About the first gradient, so that nothing cancels.
    draw = lambda i: np.asarray(gradient(params, jax.random.fold_in(key, i), xs), np.float64)
    first, total, squares = draw(0), 0.0, 0.0
    for i in range(num):
        g = draw(i)
        total, squares = total + (g - first), squares + (g - first) ** 2
    mean = total / num
    variance = np.sum(squares - num * mean**2) / (num - 1)
    if not np.isfinite(variance):
        raise AssertionError("a gradient is not finite")
    return Moments(first + mean, float(variance), num)


def relative_bias(found: Moments, reference: Moments) -> float:
    """Norm of the bias over that of the gradient, less what the two means' noise makes of it."""
    square = np.sum((found.mean - reference.mean) ** 2) - found.error - reference.error
    return math.sqrt(max(square, 0.0)) / _norm(reference)


def _norm(reference: Moments) -> float:
    return math.sqrt(max(np.sum(reference.mean**2) - reference.error, 0.0))


def measure(latent: str, names: Sequence[str], quick: bool) -> list[dict[str, Any]]:
    """A row for each entry; variances are relative to the squared norm of the gradient."""
    num, num_reference = (4, 8) if quick else (200, 4_000)
    steps, control_steps, rounds = (2, 2, 2) if quick else (2_000, 1_000, 15)
    problem = VAE(data.load_digits(), latent)
    states = model_states(problem, steps)
    xs = jnp.asarray(problem.examples[: problem.batch_size])

    def compiled(entry: Entry) -> Callable[..., Any]:
        loss = loss_of(problem, entry)
        flat = lambda params, key, xs: ravel_pytree(jax.grad(loss)(params, key, xs)["encoder"])[0]
        return jax.jit(flat)

    name, samples = REFERENCE
    (reference_entry,) = (e for e in entries(latent, [name]) if e.samples == samples)
    gradient = compiled(reference_entry)
    references = {
        state: moments(
            gradient,
            control_for(problem, reference_entry.method, model, state, 0),
            xs,
            num_reference,
        )
        for state, model in states.items()
    }
    rows, programs = [], {}
    for name, group in itertools.groupby(entries(latent, names), lambda entry: entry.name):
        print(f"efficiency: {latent}, {name}", file=sys.stderr, flush=True)
        group = list(group)
        params = {
            state: control_for(problem, group[0].method, model, state, control_steps)
            for state, model in states.items()
        }
        for entry in group:
            gradient = compiled(entry)
            row: dict[str, Any] = {
                "estimator": name,
                "samples": entry.samples,
                "unbiased": entry.method.record.is_unbiased,
            }
            for state in STATES:
                found = moments(gradient, params[state], xs, num)
                row[state] = {
                    "bias": float(f"{relative_bias(found, references[state]):.3g}"),
                    "variance": float(f"{found.variance / _norm(references[state]) ** 2:.4g}"),
                }
            at = params[STATES[1]]
            programs[f"{name} {entry.samples}"] = functools.partial(
                gradient, at, jax.random.key(5), xs
            )
            rows.append(row)
    times = _measure.run_times(programs, rounds)
    for row, seconds in zip(rows, times.values(), strict=True):
        row["ms"] = [1e3 * q for q in _measure.quartiles(seconds)]
    return rows


# ---- Tables and picture --------------------------------------------------------------------


def product(row: dict[str, Any], state: str) -> float:
    return row[state]["variance"] * row["ms"][1]


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    parts = [f"### {_measure.describe(results['machine'])}"]
    for latent, rows in results["latents"].items():
        parts += [f"#### A VAE with {WHAT[latent]}", _render_rows(rows)]
    if len(results["latents"]) == len(LATENTS):
        slug = _measure.slug(results["machine"])
        parts += [f"![{alt(latent)}](results/{picture(latent, slug)})" for latent in LATENTS]
    return "\n\n".join(parts)


def picture(latent: str, slug: str) -> str:
    return f"efficiency-{latent}-{slug}.png"


def alt(latent: str) -> str:
    return f"Variance against time for one gradient, {latent} variables, before and after training"


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    """Best first. Those with a bias come last, for it does not average out."""
    return not row["unbiased"], product(row, STATES[1])


def _render_rows(rows: Sequence[dict[str, Any]]) -> str:
    states = [f"{what}, {state}" for state in STATES for what in ("bias, %", "variance x ms")]
    return _measure.table(
        ["estimator", "samples", "ms", *states],
        [
            [
                f"`{row['estimator']}`",
                str(row["samples"]),
                f"{row['ms'][1]:.3g}",
                *itertools.chain.from_iterable(
                    (
                        "none" if row["unbiased"] else f"{100 * row[state]['bias']:.3g}",
                        f"{product(row, state):.3g}",
                    )
                    for state in STATES
                ),
            ]
            for row in sorted(rows, key=_rank)
        ],
    )


_COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#555555", "#ee8866"]
_MARKERS = "os^vDP"


def figure(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Variance against time: a line for each estimator, a point for each number of samples."""
    it = Figure(figsize=(11, 5), layout="constrained")
    panels = it.subplots(1, 2, sharex=True)
    # The legend begins with the best; those with a bias come last.
    names = list(dict.fromkeys(row["estimator"] for row in sorted(rows, key=_rank)))
    for axes, state in zip(panels, STATES, strict=True):
        for i, name in enumerate(names):
            of_name = [row for row in rows if row["estimator"] == name]
            unbiased = of_name[0]["unbiased"]
            colour = _COLOURS[i % len(_COLOURS)]
            axes.plot(
                [row["ms"][1] for row in of_name],
                [row[state]["variance"] for row in of_name],
                color=colour,
                marker=_MARKERS[i // len(_COLOURS) + 2 * (not unbiased)],
                markerfacecolor=colour if unbiased else "white",
                linestyle="-" if unbiased else ":",
                label=name if unbiased else f"{name} (biased)",
            )
        axes.set(xscale="log", yscale="log", title=state, xlabel="ms for a gradient")
        _equal_products(axes)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("variance / squared norm of the gradient")
    handles, labels = panels[0].get_legend_handles_labels()
    it.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    it.suptitle(f"{title}\nlower and further left is better; grey: equal variance x ms")
    return it


def _equal_products(axes: Any) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    lowest, highest = math.log10(left * bottom), math.log10(right * top)
    for exponent in range(math.floor(lowest), math.ceil(highest) + 1):
        x = np.array([left, right])
        axes.plot(x, 10.0**exponent / x, color="0.88", linewidth=0.8, zorder=0)
    axes.set(xlim=(left, right), ylim=(bottom, top))


# ---- The command ---------------------------------------------------------------------------

NAMES = [m.name for m in METHODS if not m.enumerates and set(LATENTS) & set(m.latents)]


def measure_all(names: Sequence[str], quick: bool) -> dict[str, Any]:
    latents = LATENTS[:1] if quick else LATENTS
    return {"latents": {latent: measure(latent, names, quick) for latent in latents}}


def draw(results: dict[str, Any], out: pathlib.Path) -> None:
    """A figure of each kind of latent variable."""
    slug = _measure.slug(results["machine"])
    for latent, rows in results["latents"].items():
        of = figure(rows, f"Digits, a VAE with {WHAT[latent]}")
        of.savefig(out / picture(latent, slug), dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "efficiency",
        __doc__,
        measure_all,
        render,
        argv,
        what="estimator",
        names=NAMES,
        quick="few keys, hardly any training",
        draw=draw,
    )


if __name__ == "__main__":
    sys.exit(main())
