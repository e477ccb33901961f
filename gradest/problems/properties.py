"""`python -m gradest table`: the article's table of methods, every cell of it measured."""

import dataclasses
import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
from jax.scipy import stats
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

import gradest as ge

from . import cases, methods

AGREE, DISAGREE = 0, 1
_SEED = 0
_NUM_KEYS = 100_000
# An estimate further than this from the exact gradient, in standard errors, is biased; a nearer
# one is unbiased if the standard error is at most this part of the gradient.
_MAX_Z, _POWER = 4.5, 0.02
_MIN_P = 1e-4

_HEADERS = {
    "variables": "variables",
    "differentiable": "differ-\nentiable",
    "exact": "follows the\nexact distr.",
    "smooth_cost": "cost must be\ndifferentiable",
    "unbiased": "unbiased\ngradient",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: what it says, None if it says nothing, and why."""

    value: bool | str | None
    evidence: str = ""


@dataclasses.dataclass(frozen=True)
class OnCase:
    """What is measured on one case.

    Attributes:
      variables: "discrete" or "continuous".
      share_hard: how many of the draws are values of the distribution at all.
      p_value: of the chi-squared test of the draws; NaN if they are relaxed.
      gradients: of `smooth` and `step`, by these names, the estimate's largest deviation from the
        exact gradient, in standard errors, and that error's norm as a part of the gradient's;
        None if there is none.
    """

    variables: str
    share_hard: float
    p_value: float
    gradients: dict[str, tuple[float, float]] | None


def run() -> int:
    """Prints the table, and returns the exit status."""
    console = Console(highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ["estimator", *_HEADERS.values()]:
        table.add_column(header, no_wrap=True)
    complaints = []
    documented_methods = [m for m in methods.METHODS if m.documented is not None]
    for method in track(
        documented_methods, "Measuring", console=Console(stderr=True), transient=True
    ):
        row, documented = measure(method), dataclasses.asdict(method.properties)
        shown = [Text(method.name)]
        for name, cell in row.items():
            agrees = cell.value == documented[name]
            shown.append(Text(f"{_word(cell.value)} {cell.evidence}".strip()))
            if not agrees:
                shown[-1].append(" !", style="bold red")
                complaints.append(
                    f"! {method.name}, {name}: measured {_word(cell.value)}"
                    f"{f' ({cell.evidence})' if cell.evidence else ''}, documented "
                    f"{_word(documented[name])}."
                )
        table.add_row(*shown)
    complaints += [
        f"! {name}: gradest has it, the table of methods does not." for name in missing()
    ]
    console.print(table)
    console.print(
        f"\nMeasured now, from {_NUM_KEYS:,} fixed keys on three bits, two one-hot rows and two "
        "Normal variables, as far as the estimator draws them. Exact: p of the chi-squared test "
        "of the draws. Cost must be differentiable, unbiased: the largest deviation of a gradient "
        "of a step function, or of a polynomial, from the exact one in standard errors, z."
    )
    for complaint in complaints:
        console.print(Text(complaint))
    if not complaints:
        console.print("Every cell agrees with what is documented.")
    return DISAGREE if complaints else AGREE


def missing() -> list[str]:
    """The estimators that gradest exports and the table of methods lacks."""
    listed = {method.estimator for method in methods.METHODS if method.documented is not None}
    return [name for name in estimators() if name not in listed]


def estimators() -> list[str]:
    """What gradest exports that returns a sampler."""
    functions = {name: f for name, f in vars(ge).items() if callable(f) and not isinstance(f, type)}
    returns = {name: typing.get_type_hints(f).get("return") for name, f in functions.items()}
    return sorted(name for name, kind in returns.items() if kind is ge.Sampler)


def _word(value: bool | str | None) -> str:
    return {True: "yes", False: "no", None: "-"}.get(value, value)  # pyright: ignore


# ---- Measurements --------------------------------------------------------------------------


def measure(method: methods.Method) -> dict[str, Cell]:
    """A cell for each property of a method."""
    found = [on_case(method, case) for case in cases.all_cases()]
    supported = [on for on in found if on is not None]
    kinds = sorted({on.variables for on in supported})
    variables = "both" if len(kinds) == 2 else kinds[0] if kinds else None
    gradients = [on.gradients for on in supported if on.gradients is not None]
    row = {
        "variables": Cell(variables),
        "differentiable": Cell(bool(gradients) and len(gradients) == len(supported)),
        "exact": _exact(supported),
    }
    if not gradients:
        return {**row, "smooth_cost": Cell(None), "unbiased": Cell(None)}
    of_smooth, of_step = (_right([on[cost] for on in gradients]) for cost in ("smooth", "step"))
    needs = None if of_step.value is None else not of_step.value
    return {**row, "smooth_cost": Cell(needs, of_step.evidence), "unbiased": of_smooth}


def on_case(method: methods.Method, case: cases.Case) -> OnCase | None:
    """The measurements on one case; None if the estimator does not draw its variables."""
    key = jax.random.key(_SEED)
    sampler = method.sampler(**method.initial_control(key, case.make(case.params).shape))

    def draw(params: jax.Array, key: jax.Array) -> jax.Array:
        return sampler(key, case.make(params))

    def gradient(is_step: jax.Array, key: jax.Array, params: jax.Array) -> jax.Array:
        # One program for both costs: half the time to compile.
        cost = lambda x: jnp.where(is_step, cases.step(x), cases.smooth(x))
        return jax.grad(lambda params: sampler.expect(key, case.make(params), cost))(params)

    def gradients(key: jax.Array, params: jax.Array) -> dict[str, jax.Array]:
        of_smooth, of_step = jax.vmap(gradient, (0, None, None))(is_step, key, params)
        return {"smooth": of_smooth, "step": of_step}

    try:
        draws = jax.jit(jax.vmap(draw, (None, 0)))(case.params, jax.random.split(key, _NUM_KEYS))
        draws = np.asarray(draws, float)
    except TypeError:
        return None
    is_step = jnp.array([False, True])
    expected = functools.partial(case.expected_costs, num_samples=method.bound_of)
    jacobian = jax.jit(jax.jacobian(expected))(case.params)
    exact = {"smooth": jacobian[0], "step": jacobian[1]}
    measured = None
    try:
        report = ge.diagnose(
            {method.name: gradients}, key, case.params, num_draws=_NUM_KEYS, exact=exact
        )
        of_smooth = report[method.name].leaves["smooth"]
        # A gradient that is zero whatever is drawn is none.
        if of_smooth.mean.any() or of_smooth.variance.any():
            measured = {
                row["leaf"]: (row["max_z"], row["bias_error"] / jnp.linalg.norm(exact[row["leaf"]]))
                for row in report.rows
                if row["leaf"] in exact
            }
    except TypeError:  # It draws these variables, and estimates nothing of them.
        return None
    except ge.UnestimatedGradientError:
        pass
    hard = case.hard(draws)
    p_value = _chi_squared(*case.bins(draws)) if hard.all() else np.nan
    return OnCase(case.variables, float(hard.mean()), p_value, measured)


def _chi_squared(counts: np.ndarray, masses: np.ndarray) -> float:
    expected = masses * counts.sum()
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    return float(stats.chi2.sf(statistic, len(counts) - 1.0))


def _exact(found: Sequence[OnCase]) -> Cell:
    """Whether draws follow the distribution in every case."""
    if not found:
        return Cell(None)
    share = min(on.share_hard for on in found)
    if share < 1:
        return Cell(False, f"{100 * share:.0f}% hard")
    p = min(on.p_value for on in found)
    return Cell(p > _MIN_P, f"p={p:.2g}")


def _right(found: Sequence[tuple[float, float]]) -> Cell:
    """Whether gradient estimates have the exact mean in every case."""
    worst, error = np.max(np.asarray(found, float), axis=0)
    if not worst <= _MAX_Z:  # Nor is what is not finite.
        return Cell(False, "z>999" if worst >= 1000 else f"z={worst:.0f}")
    return Cell(True if error <= _POWER else None, f"z={worst:.1f}")
