"""`python -m gradest table`: the table of methods, every cell of it measured."""

import dataclasses
import functools
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
from jax.scipy import stats
from jax.typing import ArrayLike
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import gradest as ge
from gradest import records

from . import DURATION, cases

AGREE, DISAGREE = 0, 1
_SEED = 0
_NUM_KEYS = 100_000
# What the table takes.
_TABLE_WIDTH = 78
# An estimate further than this from the exact gradient, in standard errors, is biased; a nearer
# one is unbiased if the standard error is at most this part of the gradient.
_MAX_Z, _POWER = 4.5, 0.02
_MIN_P = 1e-4
# How many samples those take that estimate a bound of several.
_BOUND = 2

_HEADERS = {
    "distributions": "distri-\nbutions",
    "draws": "draws,\np",
    "unbiased": "unbiased,\nz",
    "differentiable_cost": "smooth\ncost, z",
    "evaluations": "evalu-\nations",
    "second_order": "second\norder",
}
_SHORT: dict[Any, str] = {
    True: "yes",
    False: "no",
    None: "-",
    "of the bound": "bound",
    "to second order": "order 2",
    "no gradient: raises": "raises",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: what it says, None if it says nothing, and why."""

    value: Any
    evidence: str = ""

    def __str__(self) -> str:
        return f"{_word(self.value)} {self.evidence}".strip()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a gradient estimate, seen against an exact gradient.

    Attributes:
      z: its largest deviation, in standard errors.
      error: the standard error's norm as a part of the exact gradient's.
    """

    z: float
    error: float


@dataclasses.dataclass(frozen=True)
class OnCase:
    """What is measured on one case.

    Attributes:
      share_hard: how many of the draws are values of the distribution at all.
      p_value: of the chi-squared test of the draws; NaN if they are relaxed.
      raises: whether there is an error where a gradient is asked for.
      evaluations: of the cost.
      of_expectation: the gradients of the costs' expectations, by the costs' names.
      of_bound: the same, against the gradients of the bound.
      exact: whether they have no variance.
    """

    share_hard: float
    p_value: float
    raises: bool = False
    evaluations: int | None = None
    of_expectation: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    of_bound: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    exact: bool = False


def run() -> int:
    """Prints the table, and returns the exit status."""
    console, rows, complaints = Console(highlight=False), [], []
    for record in _followed(list(records.ESTIMATORS.values())):
        measured, documented = measure(record), claims(record)
        rows.append([Text(record.name)])
        for name, cell in measured.items():
            rows[-1].append(Text(str(cell)))
            if cell.value != documented[name]:
                rows[-1][-1].append(" !", style="bold red")
                complaints.append(
                    f"! {record.name}, {name}: measured {cell}, documented "
                    f"{_word(documented[name])}."
                )
                if name == "distributions":
                    differing = set(cell.value) ^ set(documented[name])
                    complaints[-1] += f" They differ in {', '.join(sorted(differing))}."
    complaints += [f"! {name}: gradest has it, but no record of it." for name in missing()]
    _print(console, rows)
    console.print(
        f"\nMeasured now. Distributions: of {len(records.DISTRIBUTIONS)}, how many it serves. The "
        f"rest from {_NUM_KEYS:,} fixed keys on three bits, two one-hot rows and two Normal "
        "variables, as far as the estimator serves them. Draws: p of the chi-squared test, or how "
        "many are values of the distribution. Unbiased: the largest deviation of the gradient of a "
        "polynomial from the exact one in standard errors, z. Smooth cost: whether the cost must "
        "be differentiable, with the z of a step function. Evaluations of the cost: of each of the "
        "three. Second order: z of the second derivatives of a quadratic cost, from ten times the "
        "keys; where they are not right they raise."
    )
    for complaint in complaints:
        console.print(Text(complaint))
    if not complaints:
        console.print("Every cell agrees with what is documented.")
    return DISAGREE if complaints else AGREE


def _followed(listed: Sequence[records.Record]) -> Iterator[records.Record]:
    """The records one by one, while what is measured and for how long is shown."""
    console = Console(stderr=True, highlight=False)
    console.print(f"Measuring {len(listed)} estimators: {DURATION}.")
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task, start = progress.add_task("", total=len(listed)), time.monotonic()
        for number, record in enumerate(listed, 1):
            progress.update(task, description=record.name)
            yield record
            progress.update(task, completed=number)
            if not console.is_terminal:
                seconds = time.monotonic() - start
                console.print(f"{number}/{len(listed)} {record.name}, {seconds:.0f} s")


def _print(console: Console, rows: Sequence[Sequence[Text]]) -> None:
    """As a table or, where that is too wide, estimator by estimator."""
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("estimator", overflow="fold")
    for header in _HEADERS.values():
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if console.width >= _TABLE_WIDTH:
        console.print(table)
        return
    for name, *cells in rows:
        console.print(Text.assemble((name.plain, "bold")))
        for header, cell in zip(_HEADERS.values(), cells, strict=True):
            words = header.replace("-\n", "").replace("\n", " ")
            console.print(Text.assemble(f"  {words}: ", cell))


def missing() -> list[str]:
    """The estimators that gradest exports and that have no record."""
    return [name for name in estimators() if name not in records.ESTIMATORS]


def estimators() -> list[str]:
    """What gradest exports that returns a sampler."""
    functions = {name: f for name, f in vars(ge).items() if callable(f) and not isinstance(f, type)}
    returns = {name: typing.get_type_hints(f).get("return") for name, f in functions.items()}
    return sorted(name for name, kind in returns.items() if kind is ge.Sampler)


def _word(value: Any) -> str:
    if isinstance(value, frozenset):
        return str(len(value))
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    return _SHORT.get(value, str(value))


# ---- Claims and measurements ---------------------------------------------------------------


def claims(record: records.Record) -> dict[str, Any]:
    """What a record says, in the form in which it is measured."""
    served = [case for case in cases.all_cases() if case.name in record.distributions]
    counts = [record.count_evaluations(case.make(case.params)) for case in served]
    return {
        "distributions": frozenset(record.distributions),
        "draws": record.draws,
        "unbiased": record.unbiased,
        "differentiable_cost": record.differentiable_cost if record.estimates else None,
        "evaluations": tuple(counts) if record.estimates else (),
        "second_order": record.second_order,
    }


def measure(record: records.Record) -> dict[str, Cell]:
    """A cell for each claim."""
    served = [case for case in cases.all_cases() if _serves(record, case.make(case.params))]
    found = [on_case(record, case) for case in served]
    row = {"distributions": Cell(served_by(record)), "draws": _draws(found)}
    if not found or not all(on.of_expectation for on in found):
        raises = bool(found) and all(on.raises for on in found)
        return {
            **row,
            "unbiased": Cell("no gradient: raises" if raises else "zero" if found else None),
            "differentiable_cost": Cell(None),
            "evaluations": Cell(()),
            "second_order": Cell(False),
        }
    unbiased, of_what = _unbiased(found)
    of_step = _right([of_what(on)["step"] for on in found])
    return {
        **row,
        "unbiased": unbiased,
        "differentiable_cost": Cell(
            None if of_step.value is None else not of_step.value, of_step.evidence
        ),
        "evaluations": Cell(tuple(on.evaluations for on in found)),
        "second_order": _second_order(record, served),
    }


def served_by(record: records.Record) -> frozenset[str]:
    """The distributions, by name, that an estimator takes."""
    kinds = records.DISTRIBUTIONS.items()
    return frozenset(name for name, kind in kinds if _serves(record, kind.example()))


def _serves(record: records.Record, dist: Any) -> bool:
    """Whether a gradient with respect to the distribution can be asked for."""
    cost = lambda x: jnp.sum(jnp.asarray(x, float) ** 2)
    loss = lambda dist, key: record.sampler().expect(key, dist, cost)
    try:
        jax.eval_shape(jax.grad(loss, allow_int=True), dist, jax.random.key(_SEED))
    except TypeError:
        return False
    except ge.UnestimatedGradientError:
        pass
    return True


def on_case(record: records.Record, case: cases.Case) -> OnCase:
    """The measurements on a case that the estimator serves."""
    key, sampler = jax.random.key(_SEED), record.sampler()

    def draw(params: jax.Array, key: jax.Array) -> jax.Array:
        return sampler(key, case.make(params))

    draws = jax.jit(jax.vmap(draw, (None, 0)))(case.params, jax.random.split(key, _NUM_KEYS))
    draws = np.asarray(draws, float)
    hard = case.hard(draws)
    p_value = _chi_squared(*case.bins(draws)) if hard.all() else np.nan
    seen = OnCase(float(hard.mean()), p_value)
    try:
        with warnings.catch_warnings():
            # That a part is missing where a cost jumps is what is measured here.
            warnings.simplefilter("ignore", ge.UnestimatedGradientWarning)
            gradients = _gradients(sampler, case)
    except ge.UnestimatedGradientError:
        return dataclasses.replace(seen, raises=True)
    # A gradient that is zero whatever is drawn is none.
    if not any(leaf.mean.any() or leaf.variance.any() for leaf in gradients.values()):
        return seen
    dist = case.make(case.params)
    counted = ge.diagnose({"": sampler}, key, dist, cost=cases.smooth, num_draws=2, chunk_size=1)
    against = lambda num: {
        name: _estimate(gradients[name], exact)
        for name, exact in _exact_gradients(case, num).items()
    }
    return dataclasses.replace(
        seen,
        evaluations=counted[""].cost_evaluations,
        of_expectation=against(1),
        of_bound=against(_BOUND),
        exact=all(np.all(np.sqrt(leaf.variance) <= leaf.rounding) for leaf in gradients.values()),
    )


def _gradients(sampler: ge.Sampler, case: cases.Case) -> dict[str, Any]:
    """What diagnose says of the gradient of each of the costs."""
    costs = cases.COSTS.values()

    def gradient(which: jax.Array, key: jax.Array, params: jax.Array) -> jax.Array:
        # One program for all costs: it takes less time to compile.
        cost = lambda x: jnp.stack([cost(x) for cost in costs])[which]
        return jax.grad(lambda params: sampler.expect(key, case.make(params), cost))(params)

    def gradients(key: jax.Array, params: jax.Array) -> dict[str, jax.Array]:
        all_of_them = jax.vmap(gradient, (0, None, None))(jnp.arange(len(costs)), key, params)
        return dict(zip(cases.COSTS, all_of_them, strict=True))

    return _diagnosed(gradients, case, _exact_gradients(case, 1), _NUM_KEYS)


def _diagnosed(
    gradient: Callable[..., Any], case: cases.Case, exact: Any, num_draws: int
) -> dict[str, Any]:
    report = ge.diagnose(
        {"": gradient}, jax.random.key(_SEED), case.params, num_draws=num_draws, exact=exact
    )
    return dict(report[""].leaves)


@functools.cache
def _exact_gradients(case: cases.Case, num_samples: int) -> dict[str, jax.Array]:
    expected = functools.partial(case.expected_costs, num_samples=num_samples)
    return jax.jit(jax.jacobian(expected))(case.params)


def _estimate(leaf: Any, exact: ArrayLike) -> Estimate:
    """What a leaf of diagnose's report says of the mean."""
    target = np.asarray(exact, float)
    z = np.abs(leaf.mean - target) / (leaf.bias_error + leaf.rounding)
    error = np.linalg.norm(leaf.bias_error) / np.linalg.norm(target)
    return Estimate(float(np.max(z)), float(error))


def _chi_squared(counts: np.ndarray, masses: np.ndarray) -> float:
    expected = masses * counts.sum()
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    return float(stats.chi2.sf(statistic, len(counts) - 1.0))


# ---- What the measurements say -------------------------------------------------------------


def _draws(found: Sequence[OnCase]) -> Cell:
    """Whether draws follow the distribution in every case."""
    if not found:
        return Cell(None)
    share = min(on.share_hard for on in found)
    if share < 1:
        return Cell("relaxed", f"{100 * share:.0f}%")
    p = min(on.p_value for on in found)
    return Cell("exact" if p > _MIN_P else None, f"{p:.2f}" if p > 0.005 else "<.01")


_Estimates = Callable[[OnCase], dict[str, Estimate]]


def _unbiased(found: Sequence[OnCase]) -> tuple[Cell, _Estimates]:
    """What the gradients are right for, and against what they are then to be seen."""
    of_expectation: _Estimates = lambda on: on.of_expectation
    of_bound: _Estimates = lambda on: on.of_bound
    exact = all(on.exact for on in found)
    smooth = _right([on.of_expectation["smooth"] for on in found])
    # What the gradients are right for, from the most that can be asked.
    asked = [
        ("exact" if exact else "yes", smooth, of_expectation),
        ("of the bound", _right([on.of_bound["smooth"] for on in found]), of_bound),
        (
            "to second order",
            _right([on.of_expectation["quadratic"] for on in found]),
            of_expectation,
        ),
    ]
    for word, answer, of_what in asked:
        if answer.value is not False:
            # None where the measurement has not the power to say.
            return Cell(word if answer.value else None, answer.evidence), of_what
    return Cell("no", smooth.evidence), of_expectation


def _second_order(record: records.Record, served: Sequence[cases.Case]) -> Cell:
    """Whether second derivatives are right in every case; that they are not, they must raise."""
    try:
        found = _right([_on_hessian(record, case) for case in served])
    except NotImplementedError:
        return Cell(False)
    return Cell("wrong", found.evidence) if found.value is False else found


def _on_hessian(record: records.Record, case: cases.Case) -> Estimate:
    """The Hessian along one direction."""
    sampler, params = record.sampler(), case.params
    direction = jnp.cos(jnp.arange(float(params.size))).reshape(params.shape)

    def slope(params: jax.Array, key: jax.Array) -> jax.Array:
        loss = lambda params: sampler.expect(key, case.make(params), cases.quadratic)
        return jnp.sum(direction * jax.grad(loss)(params))

    expected = lambda params: case.expected_costs(params)["quadratic"]
    exact = jax.jit(jax.hessian(expected))(params)
    exact = jnp.tensordot(direction, exact, axes=params.ndim)
    second = lambda key, params: jax.grad(slope)(params, key)
    # Noisier than the gradient.
    (leaf,) = _diagnosed(second, case, exact, 10 * _NUM_KEYS).values()
    return _estimate(leaf, exact)


def _right(found: Sequence[Estimate]) -> Cell:
    """Whether gradient estimates have the exact mean in every case."""
    worst, error = max(e.z for e in found), max(e.error for e in found)
    if not worst <= _MAX_Z:  # Nor is what is not finite.
        return Cell(False, ">999" if worst >= 1000 else f"{worst:.0f}")
    return Cell(True if error <= _POWER else None, f"{worst:.1f}")
