"""Which trainings were better than which, as far as their seeds tell them apart.

All methods are trained from the same seeds, with the same initial models and minibatches, so that
what two of them reached is compared seed by seed. Two are told apart if the 95% interval of
Student's t around the mean difference does not hold zero.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from .problem import Problem
from .training import Run


def ranked(problem: Problem, runs: Sequence[Run]) -> list[Run]:
    """The best first, by the metric that training is about; what is not finished last."""
    sign = 1 if problem.lower_is_better else -1

    def key(run: Run) -> tuple[bool, float]:
        value = run.last(problem.metric)
        return not run.is_finished, sign * value if math.isfinite(value) else math.inf

    return sorted(runs, key=key)


def best_by_metric(problem: Problem, runs: Sequence[Run]) -> list[Run]:
    """The finished run with the best metric, and those that are not told apart from it."""
    finished = [r for r in runs if r.is_finished and math.isfinite(r.last(problem.metric))]
    if not finished:
        return []
    best, *others = ranked(problem, finished)
    values = best.values(problem.metric)
    tied = lambda run: not differ(run.values(problem.metric) - values)
    return [best, *filter(tied, others)]


def cheapest(runs: Sequence[Run]) -> list[Run]:
    """The finished unbiased run of the least variance x ms, and those not told apart from it.

    By their logarithms, since a variance is off by a factor. The milliseconds have one value for
    all seeds: how they vary in the course of the training is added to how the seeds do.
    """
    unbiased = [r for r in runs if r.is_finished and r.method.record.is_unbiased]
    unbiased = [r for r in unbiased if math.isfinite(r.variance_x_time)]
    if not unbiased:
        return []
    best, *others = sorted(unbiased, key=lambda run: run.variance_x_time)

    def tied(run: Run) -> bool:
        pair = [(r.values("gradient_variance"), r.ms_per_step) for r in (best, run)]
        if any(np.any(variance <= 0) for variance, _ in pair):
            # An exact estimator has no variance: another one that has none costs as little.
            return all(np.all(variance <= 0) for variance, _ in pair)
        (a, ms_a), (b, ms_b) = pair
        error = math.hypot(_relative_error(best), _relative_error(run))
        return not differ(np.log(b * ms_b) - np.log(a * ms_a), error)

    return [best, *filter(tied, others)]


def differ(differences: np.ndarray, error: float = 0.0) -> bool:
    """Whether the mean of the differences is told from zero.

    Args:
      differences: one for each seed.
      error: a standard error that the mean has besides that of the seeds. Without it, a single
        difference tells nothing.
    """
    count, mean = len(differences), abs(float(differences.mean()))
    if count < 2:
        return 0 < 1.96 * error < mean
    of_seeds = float(differences.std(ddof=1)) / math.sqrt(count)
    return mean > math.hypot(float(special.stdtrit(count - 1, 0.975)) * of_seeds, 1.96 * error)


def _relative_error(run: Run) -> float:
    """Of the time of a step, and of a variance that was measured once for all seeds."""
    low, median, high = np.quantile(run.step_seconds, [0.25, 0.5, 0.75])
    # The quartiles of a normal law are 1.35 standard deviations apart.
    of_time = float((high - low) / 1.35 / median)
    of_variance = run.last("gradient_variance_se") / run.last("gradient_variance")
    return math.hypot(of_time, of_variance if "gradient_variance_se" in run.measured else 0.0)
