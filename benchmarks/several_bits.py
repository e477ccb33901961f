"""Gradients from several draws of bits: variances at equal numbers of evaluations, exactly.

    python -m benchmarks.several_bits             # a few seconds
    python -m benchmarks.several_bits --record    # writes the tables into docs/several-draws.md

Every variance is a sum over all outcomes of the draws, in double precision. The formulas are
written out here and do not use gradest's: they are what decided which estimators it has. ARMS and
the double control variate are the two that it has not.
"""

import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import _command, _measure

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "several-draws.md"

# ---- Joint laws of n draws of a bit --------------------------------------------------------

#: P(the draws) of n exchangeable draws of one bit, by how many of them are 1.
Law = np.ndarray


def independent(p: float, n: int) -> Law:
    return np.array([p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def stratified(p: float, n: int) -> Law:
    """Of n p, a whole part m and a rest r, m draws are 1, and with probability r one more."""
    m = math.floor(n * p)
    law = np.zeros(n + 2)
    law[m], law[m + 1] = 1 - (n * p - m), n * p - m
    return np.array([law[k] / math.comb(n, k) for k in range(n + 1)])


def arms(p: float, n: int) -> Law:
    """By a Dirichlet copula: the k-th of the shares of an interval cut at random is above c."""
    if p > 0.5:
        return arms(1 - p, n)[::-1]
    c = 1 - p ** (1 / (n - 1))
    above = [max(0.0, 1 - k * c) ** (n - 1) for k in range(n + 1)]
    terms = lambda k: ((-1) ** j * math.comb(n - k, j) * above[k + j] for j in range(n - k + 1))
    return np.array([sum(terms(k)) for k in range(n + 1)])


def correction(p: float, law: Law) -> float:
    """p (1 - p) / (p - P11), which leave-one-out of dependent draws is multiplied by."""
    n = len(law) - 1
    both = sum(math.comb(n - 2, k - 2) * law[k] for k in range(2, n + 1))
    return p * (1 - p) / (p - both)


# ---- A problem of a few bits ---------------------------------------------------------------


class Bits:
    """All outcomes of independent bits, with their costs.

    Args:
      logits: log-odds of the bits.
      cost: of outcomes along the last axis; defined between them too.
      slope: its derivative.
    """

    def __init__(self, logits: Sequence[float], cost: Callable, slope: Callable):
        self.p = 1 / (1 + np.exp(-np.asarray(logits)))
        self.x = np.array(list(itertools.product([0.0, 1.0], repeat=len(self.p))))
        self.prob = np.prod(np.where(self.x > 0, self.p, 1 - self.p), axis=1)
        self.f, self.slope = cost(self.x), slope(self.x)
        self.score = self.x - self.p
        self.at_mean, self.slope_at_mean = cost(self.p), slope(self.p)
        self.gradient = self.prob @ (self.f[:, None] * self.score)

    def variance(self, prob: np.ndarray, estimate: np.ndarray) -> float:
        """The trace of the covariance of an estimate, whose mean is the gradient."""
        mean = np.tensordot(prob, estimate, prob.ndim)
        np.testing.assert_allclose(mean, self.gradient, atol=1e-12)
        return float(np.sum(np.tensordot(prob, estimate**2, prob.ndim) - mean**2))

    def of_one(self, control: np.ndarray | float, mean: np.ndarray | float = 0.0) -> float:
        """The score times the cost less a control variate, whose mean is added back."""
        weights = self.f - control
        return self.variance(self.prob, weights[:, None] * self.score + mean)

    @property
    def mean_cost(self) -> float:
        return float(self.prob @ self.f)

    def muprop(self, baseline: Callable[[np.ndarray], float] = lambda residual: 0.0) -> float:
        tangent = self.at_mean + self.score @ self.slope_at_mean
        control = tangent + baseline(self.f - tangent)
        return self.of_one(control, self.slope_at_mean * self.p * (1 - self.p))

    def leave_one_out(self, n: int, law: Callable[[float, int], Law] = independent) -> float:
        """Of n draws of that law, with its correction."""
        axes = lambda values, i: values.reshape([-1 if i == j else 1 for j in range(n)])
        total = sum(axes(self.f, i) for i in range(n))
        prob, estimate = np.ones((len(self.x),) * n), []
        for d, p in enumerate(self.p):
            of_bit = law(p, n)
            count = np.sum(np.broadcast_arrays(*(axes(self.x[:, d], i) for i in range(n))), axis=0)
            prob = prob * of_bit[count.astype(int)]
            parts = sum((axes(self.f, i) - total / n) * axes(self.x[:, d], i) for i in range(n))
            estimate.append(correction(p, of_bit) * parts / (n - 1))
        return self.variance(prob, np.stack(estimate, axis=-1))

    def double_control_variates(self, alpha: float) -> float:
        """Of two draws: `alpha` times the tangent at one draw is added to the cost of the other."""
        at_other = self.score @ self.slope.T
        added = self.f[:, None] + alpha * at_other
        weight = added - (self.f[None] + alpha * at_other.T)
        first = weight[..., None] * self.score[:, None]
        # The tangent's own mean, which is not that of its difference from the other's.
        first = first - alpha * (self.slope * self.p * (1 - self.p))[None]
        estimate = (first + first.transpose(1, 0, 2)) / 2
        return self.variance(np.multiply.outer(self.prob, self.prob), estimate)


# ---- The problems --------------------------------------------------------------------------

_LOGITS = (0.5, -0.4, 1.0, -1.2, 0.2)
_T = 0.499
_PAIRS = 0.25 * np.array(
    [[0, 1, -1, 0, 2], [1, 0, 0.5, 1, 0], [-1, 0.5, 0, 0, 1], [0, 1, 0, 0, -1], [2, 0, 1, -1, 0]]
)


def _coupled(x: np.ndarray) -> np.ndarray:
    of_pairs = np.einsum("...i,ij,...j->...", x, _PAIRS, x)
    return np.sum((x - _T) ** 2, axis=-1) + of_pairs + 0.5 * np.prod(x[..., :3], axis=-1)


def _slope_of_coupled(x: np.ndarray) -> np.ndarray:
    slope = 2 * (x - _T) + 2 * x @ _PAIRS
    for i in range(3):
        slope[..., i] += 0.5 * np.prod(np.delete(x[..., :3], i, axis=-1), axis=-1)
    return slope


def coupled() -> Bits:
    """Five bits, whose cost couples them."""
    return Bits(_LOGITS, _coupled, _slope_of_coupled)


def separate() -> Bits:
    """The same bits, of which each is to be near 0.499 by itself."""
    cost = lambda x: np.sum((x - _T) ** 2, axis=-1)
    return Bits(_LOGITS, cost, lambda x: 2 * (x - _T))


def one(p: float, t: float) -> Bits:
    """One bit, with the cost (b - t)^2."""
    square = lambda x: np.sum((x - t) ** 2, axis=-1)
    return Bits([math.log(p / (1 - p))], square, lambda x: 2 * (x - t))


def several_bits() -> dict[str, tuple[str, float, float]]:
    """By estimator: how often it evaluates the cost, and the variances on the two problems."""
    problems = coupled(), separate()
    alphas = [best_alpha(bits) for bits in problems]
    both = lambda of: [of(bits) for bits in problems]
    rows = {
        "`score_function()`": ("1", both(lambda bits: bits.of_one(0.0))),
        "`score_function(baseline=b)`, b the mean cost": (
            "1",
            both(lambda bits: bits.of_one(bits.mean_cost)),
        ),
        "`muprop()`": ("1, 1 slope", both(Bits.muprop)),
        "`muprop(baseline=b)`, b the mean of what is left": (
            "1, 1 slope",
            both(lambda bits: bits.muprop(lambda left: float(bits.prob @ left))),
        ),
        "double control variate, the best weight": (
            "2, 2 slopes",
            [b.double_control_variates(a) for b, a in zip(problems, alphas, strict=True)],
        ),
    }
    for n in (2, 3, 4):
        loo = f'`score_function(num_samples={n}, baseline="leave_one_out")`'
        rows[loo] = (str(n), both(lambda bits, n=n: bits.leave_one_out(n)))
        rows[f"ARMS, {n} draws"] = (str(n), both(lambda bits, n=n: bits.leave_one_out(n, arms)))
        rows[f"`stratified({n})`"] = (
            str(n),
            both(lambda bits, n=n: bits.leave_one_out(n, stratified)),
        )
    pairs = both(lambda bits: bits.leave_one_out(2, arms) / 2)
    rows["`disarm()`, 2 pairs"] = ("4", pairs)
    return {name: (count, *numbers) for name, (count, numbers) in rows.items()}


def best_alpha(bits: Bits) -> float:
    """Of the least variance, which is a parabola in it."""
    a, b, c = (bits.double_control_variates(alpha) for alpha in (-1.0, 0.0, 1.0))
    return (a - c) / (2 * (a - 2 * b + c))


def one_bit() -> dict[tuple[float, float, int], dict[str, float]]:
    """By p, t and the number of draws: the gradient, and the variance of each estimator."""
    found = {}
    for p, t, n in [
        *((0.1, 0.49, 4), (0.3, 0.45, 3), (0.3, 0.45, 4), (0.3, 0.45, 6)),
        *((0.5, 0.45, 4), (0.5, 0.45, 8), (0.8, 0.45, 10)),
    ]:
        bit = one(p, t)
        found[p, t, n] = {
            "leave-one-out": bit.leave_one_out(n),
            "DisARM, n / 2 pairs": bit.leave_one_out(2, arms) / (n / 2),
            "ARMS": bit.leave_one_out(n, arms),
            "stratified": bit.leave_one_out(n, stratified),
        }
    return found


# ---- The page ------------------------------------------------------------------------------


def _short(number: float) -> str:
    return "0" if number < 1e-15 else f"{number:.4g}"


def tables() -> Mapping[str, str]:
    """In Markdown, by the names of their places in the page."""
    of_one = one_bit()
    columns = list(next(iter(of_one.values())))
    return {
        "several bits": _measure.table(
            ["estimator", "evaluations", "variance, coupled", "variance, separate"],
            [
                [name, count, *map(_short, numbers)]
                for name, (count, *numbers) in several_bits().items()
            ],
        ),
        "one bit": _measure.table(
            ["p", "t", "n", *columns],
            [
                [f"{p:g}", f"{t:g}", str(n), *(_short(row[name]) for name in columns)]
                for (p, t, n), row in of_one.items()
            ],
        ),
    }


def page(text: str) -> str:
    """With the tables as they are now."""
    for name, content in tables().items():
        text = _measure.replace_between_markers(text, name, content)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = _command.parser("several_bits", __doc__)
    parser.add_argument("--record", action="store_true", help=f"write into {PAGE.name}")
    if parser.parse_args(argv).record:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(tables().values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
