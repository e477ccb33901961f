"""How fast gradest is next to the same mathematics written by hand.

    python -m benchmarks.speed                 # all of it, under four minutes on two cores
    python -m benchmarks.speed rebar draws     # some of it, printed only
    python -m benchmarks.speed --list          # the names

Three questions, each answered by programs that take turns in one process:

* run: the time of a compiled value_and_grad, by each estimator, of a batch of one-hot draws;
* compile: the time from a Python function to that program, from empty caches;
* draws: the time of exact categorical draws, next to `jax.random.categorical`.

Before anything is timed the programs are run and must agree: value and gradients with the same
key in the first two questions, the frequencies of the categories in the third.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest._random import gumbel
from gradest.distributions import Categorical, OneHotCategorical

from . import _command, _measure, pictures

RUN_GOAL = 1.10
COMPILE_GOAL = 1.50
TEMPERATURE = 0.5
SAMPLES = 4
FEATURES = 16

Params = dict[str, jax.Array]
#: (parameters, key, target) -> (value, gradients).
ValueAndGrad = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Params]]


def cost(x: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """Of all rows together, with parameters of its own."""
    return jnp.mean((x @ weights - target) ** 2)


# ---- By hand -------------------------------------------------------------------------------
#
# What one would write into a training script for just this loss: no generality, no checks, no
# masked categories, one derivative. The random numbers are gradest's, exact where JAX's end at a
# probability of 1e-7; what they cost is the third question.


def gumbel_softmax(params: Params, key: jax.Array, target: jax.Array) -> tuple[jax.Array, Params]:
    def loss(params: Params) -> jax.Array:
        logits = params["logits"]
        z = logits + gumbel(key, logits.shape, logits.dtype)
        return cost(jax.nn.softmax(z / TEMPERATURE), params["weights"], target)

    return jax.value_and_grad(loss)(params)


def st_gumbel_softmax(
    params: Params, key: jax.Array, target: jax.Array
) -> tuple[jax.Array, Params]:
    def loss(params: Params) -> jax.Array:
        logits = params["logits"]
        z = logits + gumbel(key, logits.shape, logits.dtype)
        soft = jax.nn.softmax(z / TEMPERATURE)
        hard = jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=z.dtype)
        x = soft + jax.lax.stop_gradient(hard - soft)
        return cost(x, params["weights"], target)

    return jax.value_and_grad(loss)(params)


def draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    """One-hot draws."""
    return OneHotCategorical(jax.lax.stop_gradient(logits)).sample(key)


def straight_through(params: Params, key: jax.Array, target: jax.Array) -> tuple[jax.Array, Params]:
    def loss(params: Params) -> jax.Array:
        soft = jax.nn.softmax(params["logits"])
        x = soft + jax.lax.stop_gradient(draw(key, params["logits"]) - soft)
        return cost(x, params["weights"], target)

    return jax.value_and_grad(loss)(params)


def score_function(params: Params, key: jax.Array, target: jax.Array) -> tuple[jax.Array, Params]:
    def surrogate(params: Params) -> tuple[jax.Array, jax.Array]:
        x = draw(key, params["logits"])
        log_p = jnp.sum(x * jax.nn.log_softmax(params["logits"]))
        c = cost(x, params["weights"], target)
        return c + jax.lax.stop_gradient(c) * log_p, c

    (_, c), gradients = jax.value_and_grad(surrogate, has_aux=True)(params)
    return c, gradients


def leave_one_out(params: Params, key: jax.Array, target: jax.Array) -> tuple[jax.Array, Params]:
    def surrogate(params: Params) -> tuple[jax.Array, jax.Array]:
        logits, weights = params["logits"], params["weights"]
        xs = jax.vmap(draw, in_axes=(0, None))(jax.random.split(key, SAMPLES), logits)
        log_ps = jnp.sum(xs * jax.nn.log_softmax(logits)[None], axis=(1, 2))
        cs = jax.vmap(cost, in_axes=(0, None, None))(xs, weights, target)
        others = (jnp.sum(cs) - cs) / (SAMPLES - 1)
        return jnp.mean(cs + jax.lax.stop_gradient(cs - others) * log_ps), jnp.mean(cs)

    (_, c), gradients = jax.value_and_grad(surrogate, has_aux=True)(params)
    return c, gradients


def rebar(params: Params, key: jax.Array, target: jax.Array) -> tuple[jax.Array, Params]:
    logits, weights = params["logits"], params["weights"]
    key_z, _ = jax.random.split(key)
    p = jax.nn.softmax(logits)
    z = logits + gumbel(key_z, logits.shape, logits.dtype)
    b = jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=z.dtype)
    relaxed = lambda z: cost(jax.nn.softmax(z / TEMPERATURE), weights, target)
    f, d_weights = jax.value_and_grad(cost, argnums=1)(b, weights, target)
    c, d_z = jax.value_and_grad(relaxed)(z)
    # Given b and the noise, dz_i / dl_j = w_i p_j + [i = j] (1 - w_i).
    w = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
    d_given_b = p * jnp.sum(w * d_z, axis=-1, keepdims=True) + (1 - w) * d_z
    d_logits = (f - c) * (b - p) + d_z - d_given_b
    return f, {"logits": d_logits, "weights": d_weights}


def rebar_independent(
    params: Params, key: jax.Array, target: jax.Array
) -> tuple[jax.Array, Params]:
    logits, weights = params["logits"], params["weights"]
    key_z, key_given_b = jax.random.split(key)
    noise = gumbel(key_z, logits.shape, logits.dtype)
    z = logits + noise
    b = jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=z.dtype)
    relaxed = lambda z: cost(jax.nn.softmax(z / TEMPERATURE), weights, target)
    f, d_weights = jax.value_and_grad(cost, argnums=1)(b, weights, target)

    def surrogate(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits)
        v = gumbel(key_given_b, logits.shape, logits.dtype)
        top = jnp.sum(b * v, axis=-1, keepdims=True)
        z_given_b = jnp.where(b > 0, top, -jnp.logaddexp(-top, -(log_p + v)))
        c_given_b = relaxed(z_given_b)
        signal = jax.lax.stop_gradient(f - c_given_b)
        return signal * jnp.sum(b * log_p) + relaxed(logits + noise) - c_given_b

    return f, {"logits": jax.grad(surrogate)(logits), "weights": d_weights}


# ---- With gradest --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """An estimator, and the same by hand."""

    label: str
    by_hand: ValueAndGrad
    sampler: Callable[[], ge.Sampler]


CASES = {
    "gumbel_softmax": Case(
        "gumbel_softmax", gumbel_softmax, lambda: ge.gumbel_softmax(TEMPERATURE)
    ),
    "st_gumbel_softmax": Case(
        "st_gumbel_softmax", st_gumbel_softmax, lambda: ge.st_gumbel_softmax(TEMPERATURE)
    ),
    "straight_through": Case("straight_through", straight_through, ge.straight_through),
    "score_function": Case("score_function", score_function, ge.score_function),
    "leave_one_out": Case(
        "score_function, leave-one-out of 4",
        leave_one_out,
        lambda: ge.score_function(num_samples=SAMPLES, baseline="leave_one_out"),
    ),
    "rebar": Case("rebar", rebar, lambda: ge.rebar(TEMPERATURE)),
    "rebar_independent": Case(
        "rebar, independent noise",
        rebar_independent,
        lambda: ge.rebar(TEMPERATURE, coupled=False),
    ),
}


def with_expect(case: Case) -> ValueAndGrad:
    """By the sampler's `expect`."""

    def loss(params: Params, key: jax.Array, target: jax.Array) -> jax.Array:
        dist = OneHotCategorical(params["logits"])
        return case.sampler().expect(key, dist, lambda x: cost(x, params["weights"], target))

    return jax.value_and_grad(loss)


def with_expectation(case: Case) -> ValueAndGrad:
    """By the transform."""

    @ge.expectation
    def loss(params: Params, key: jax.Array, target: jax.Array) -> jax.Array:
        x = case.sampler()(key, OneHotCategorical(params["logits"]))
        return cost(x, params["weights"], target)

    return jax.value_and_grad(loss)


def programs(case: Case) -> dict[str, Callable[[], ValueAndGrad]]:
    """What is compared: each makes its function anew, so that nothing is cached by identity."""
    return {
        "hand": lambda: lambda *args: case.by_hand(*args),
        "expect": lambda: with_expect(case),
        "expectation": lambda: with_expectation(case),
    }


def arguments(shape: tuple[int, int]) -> tuple[Params, jax.Array, jax.Array]:
    """Parameters, key and target for logits of this shape."""
    rows, categories = shape
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "logits": jax.random.normal(keys[0], shape),
        "weights": jax.random.normal(keys[1], (categories, FEATURES)),
    }
    return params, keys[2], jax.random.normal(keys[3], (rows, FEATURES))


def check_agreement(
    case: Case, shape: tuple[int, int], tolerance: float = 1e-3
) -> dict[str, Callable[[], Any]]:
    """The compiled programs, which gave the same value and gradients.

    Args:
      case: the estimator.
      shape: of the logits.
      tolerance: relative to an entry, or to the largest one. In differences between the costs of
        large batches few of a float32's digits are left.

    Raises:
      AssertionError: if gradest's results are not the hand-written ones.
    """
    args = arguments(shape)
    compiled = {
        name: functools.partial(jax.jit(make()), *args) for name, make in programs(case).items()
    }
    expected = compiled["hand"]()
    for name, program in compiled.items():

        def check(path: Any, got: jax.Array, want: jax.Array, name: str = name) -> None:
            at_most = tolerance * float(jnp.max(jnp.abs(want)))
            where = f"{case.label} by {name}: {jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(got, want, tolerance, at_most, err_msg=where)

        jax.tree_util.tree_map_with_path(check, program(), expected)
    return compiled


def measure_run(case: Case, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    return compare(case, shape, _measure.run_times(check_agreement(case, shape), rounds))


def measure_compile(case: Case, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    stages = _measure.compile_times(programs(case), arguments(shape), rounds)
    return {
        **compare(case, shape, {name: ts.sum(axis=1) for name, ts in stages.items()}),
        "stages_ms": {
            name: {
                stage: _measure.quartiles(ts[:, i] * 1e3) for i, stage in enumerate(_measure.STAGES)
            }
            for name, ts in stages.items()
        },
    }


def compare(case: Case, shape: tuple[int, int], times: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "estimator": case.label,
        "shape": list(shape),
        "ms": {name: _measure.quartiles(ts * 1e3) for name, ts in times.items()},
        "ratio": {
            name: _measure.quartiles(ts / times["hand"])
            for name, ts in times.items()
            if name != "hand"
        },
    }


# ---- Exact categorical draws ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Draws:
    """`draws` of each of `rows` distributions over `categories`.

    Attributes:
      expected: how many times faster than `jax.random.categorical`, on two CPU cores.
    """

    categories: int
    rows: int
    draws: int
    expected: float | None = None

    def logits(self) -> jax.Array:
        return jax.random.normal(jax.random.key(1), (self.rows, self.categories))

    def samplers(self) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
        """Functions of a key and logits."""
        return {
            "jax": lambda key, l: jax.random.categorical(key, l, shape=(self.draws, self.rows)),
            "gradest": lambda key, l: Categorical(l).sample(key, (self.draws,)),
        }


def check_frequencies(draws: Draws) -> dict[str, Callable[[], jax.Array]]:
    """The compiled samplers, which drew every category about as often as they should.

    Raises:
      AssertionError: if one did not.
    """
    key, logits = jax.random.key(2), draws.logits()
    compiled = {
        name: functools.partial(jax.jit(sampler), key, logits)
        for name, sampler in draws.samplers().items()
    }
    for name, sampler in compiled.items():
        check_counts(name, np.asarray(sampler()), draws)
    return compiled


def check_counts(name: str, x: np.ndarray, draws: Draws) -> None:
    """Raises AssertionError unless `x`, of shape (draws, rows), has every category as often as
    it should."""
    if x.shape != (draws.draws, draws.rows):
        raise AssertionError(f"{name}: {draws} came in the shape {x.shape}")
    p = np.asarray(jax.nn.softmax(draws.logits()), np.float64)
    mean, variance = (draws.draws * v.sum(axis=0) for v in (p, p * (1 - p)))
    counts = np.bincount(x.ravel(), minlength=draws.categories)
    # Beyond standard deviations, for the tails of a count of a few.
    wrong = np.abs(counts - mean) > 6 * np.sqrt(variance) + 3
    if wrong.any():
        raise AssertionError(f"{name}: frequencies of {np.flatnonzero(wrong)} in {draws}")


def measure_draws(draws: Draws, rounds: int) -> dict[str, Any]:
    times = _measure.run_times(check_frequencies(draws), rounds)
    return {
        **dataclasses.asdict(draws),
        "ms": {name: _measure.quartiles(ts * 1e3) for name, ts in times.items()},
        "advantage": _measure.quartiles(times["jax"] / times["gradest"]),
    }


# ---- Tables --------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    parts = [f"### {_measure.describe(results['machine'])}"]
    for kind, title, goal in (
        ("run", "Compiled value_and_grad", RUN_GOAL),
        ("compile", "From a Python function to the compiled program", COMPILE_GOAL),
    ):
        if results[kind]:
            parts.append(f"{title}. Goal: at most {goal:.2f} times the hand-written one's time.")
            parts.append(_render_comparison(results[kind], goal))
    if results["draws"]:
        parts.append(
            "Exact categorical draws, next to `jax.random.categorical`; the last column is what "
            "to expect on two CPU cores."
        )
        parts.append(_render_draws(results["draws"]))
    return "\n\n".join([*parts, pictures.link("speed", results, picture(results))])


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The ratios of the tables."""

    def ratios(kind: str, goal: float) -> list[pictures.Dot]:
        return [
            pictures.Dot(
                f"{row['estimator']}, {' x '.join(map(str, row['shape']))}, {form}",
                ratio,
                hollow=ratio[1] > goal,
            )
            for row in results[kind]
            for form, ratio in row["ratio"].items()
        ]

    advantages = [
        pictures.Dot(f"{row['categories']:,} categories, {row['rows']} rows", row["advantage"])
        for row in results["draws"]
    ]
    times = "time, as a multiple of the hand-written program's"
    return pictures.Picture(
        "Ratios of gradest's time to that of the same mathematics by hand, a dot with quartiles "
        "for each estimator, size and form, to run and to compile, beside the goals as dashed "
        "lines; and how many times faster exact categorical draws are than those of jax.random",
        "the goal is missed",
        [
            pictures.Panel("Compiled value_and_grad", times, ratios("run", RUN_GOAL), RUN_GOAL),
            pictures.Panel(
                "Tracing and compiling", times, ratios("compile", COMPILE_GOAL), COMPILE_GOAL
            ),
            pictures.Panel("Exact categorical draws", "times as fast", advantages),
        ],
    )


def _render_comparison(rows: Sequence[dict[str, Any]], goal: float) -> str:
    columns = ["estimator", "logits", "by hand, ms", "`expect`", "`expectation`", "goal met"]
    return _measure.table(
        columns,
        [
            [
                row["estimator"],
                " x ".join(map(str, row["shape"])),
                _measure.spread(row["ms"]["hand"]),
                _measure.spread(row["ratio"]["expect"]),
                _measure.spread(row["ratio"]["expectation"]),
                "yes" if all(ratio[1] <= goal for ratio in row["ratio"].values()) else "no",
            ]
            for row in rows
        ],
    )


def _render_draws(rows: Sequence[dict[str, Any]]) -> str:
    sizes, times = ["categories", "rows", "draws each"], ["jax, ms", "gradest, ms"]
    return _measure.table(
        [*sizes, *times, "times faster", "expected"],
        [
            [
                *(str(row[name]) for name in ("categories", "rows", "draws")),
                _measure.spread(row["ms"]["jax"]),
                _measure.spread(row["ms"]["gradest"]),
                _measure.spread(row["advantage"]),
                "" if row["expected"] is None else f"{row['expected']:g}",
            ]
            for row in rows
        ],
    )


# ---- The command ---------------------------------------------------------------------------

fail = functools.partial(_command.fail, "speed")

SHAPES = ((16384, 64), (128, 200))
DRAWS = (
    Draws(1024, 1, 4096, expected=580),
    Draws(64, 64, 256, expected=40),
    Draws(10, 16384, 1, expected=1.7),
    Draws(200, 128, 1),
)
QUICK_SHAPES = ((16, 8),)
QUICK_DRAWS = (Draws(16, 1, 64), Draws(10, 16, 1))
NAMES = (*CASES, "draws")


def measure(names: Sequence[str], rounds: int, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of a question and one row of its answer."""
    shapes, all_draws = (QUICK_SHAPES, QUICK_DRAWS) if quick else (SHAPES, DRAWS)
    cases = [CASES[name] for name in CASES if name in names]
    for case in cases:
        for shape in shapes:
            yield "run", measure_run(case, shape, rounds)
    if "draws" in names:
        for draws in all_draws:
            yield "draws", measure_draws(draws, rounds)
    # Last, for it empties the caches. The shape hardly matters to it.
    for case in cases:
        yield "compile", measure_compile(case, shapes[0], max(1, rounds // 7))


def main(argv: Sequence[str] | None = None) -> int:
    parser = _command.parser("speed", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; default: all")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two rounds")
    parser.add_argument("--repeats", type=int, help="rounds of every comparison, default 50")
    _command.add_out(parser, "a full run")
    args = parser.parse_args(argv)
    if args.list:
        print(*NAMES, sep="\n")
        return 0
    if why := _command.unknown("name", args.names, NAMES):
        return fail(why)
    if args.repeats is not None and args.repeats < 1:
        return fail(f"--repeats: expected at least 1, got {args.repeats}")
    full = not args.names and not args.quick and args.repeats is None
    out, why = _command.destination(args, full)
    if why is not None:
        return fail(why)

    rounds = args.repeats or (2 if args.quick else 50)
    results: dict[str, Any] = {"machine": _measure.machine(), "rounds": rounds}
    results |= {"run": [], "compile": [], "draws": []}
    # For the results to agree wherever products are rounded to fewer bits by default.
    with jax.default_matmul_precision("highest"):
        try:
            for question, row in measure(args.names or NAMES, rounds, args.quick):
                results[question].append(row)
                print(progress(question, row), file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            return _command.interrupted("speed")
    _command.finish("speed", results, render, out, args.record)
    if out is not None:
        pictures.draw("speed", picture)(results, out)
    return 0


def progress(question: str, row: dict[str, Any]) -> str:
    if question == "draws":
        what, numbers = f"{row['categories']} categories", [row["advantage"]]
    else:
        what = f"{row['estimator']} {tuple(row['shape'])}"
        numbers = list(row["ratio"].values())
    return f"{question}: {what}: {', '.join(_measure.spread(n) for n in numbers)}"


if __name__ == "__main__":
    sys.exit(main())
