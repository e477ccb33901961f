"""Wrong implementations on purpose: what a statistical test must find out.

Most are an estimator one of whose parts is replaced by a wrong one, so this is the module of the
tests that reaches into the package's own: what is renamed there is renamed here. Each is made of
the right sampler's maker, and is a function of a `pytest.MonkeyPatch` that gives the wrong one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import gradest as ge
from gradest import _lockstep
from gradest.estimators import (
    _relaxation,
    _scores,
    gaussian_smoothing,
    measure_valued,
    stratified,
    unordered_set,
)

Make = Callable[[], ge.Sampler]
Broken = Callable[[pytest.MonkeyPatch], ge.Sampler]


# ---- Of any estimator ----------------------------------------------------------------------


def scaled(make: Make) -> Broken:
    """A sampler whose gradient is 5% too large, its value being right."""
    scale = lambda x: 1.05 * x - 0.05 * jax.lax.stop_gradient(x)

    def broken(_: pytest.MonkeyPatch) -> ge.Sampler:
        sampler = make()
        if sampler.pathwise:
            return ge.Sampler("scaled", draw=lambda key, dist: scale(sampler(key, dist)))
        estimate = lambda key, dist, cost: scale(sampler.expect(key, dist, cost))
        return ge.Sampler("scaled", estimate=estimate)

    return broken


def replaced(module: Any, name: str, function: Callable[..., Any], make: Make) -> Broken:
    """A sampler one of whose helpers is another function."""

    def broken(patch: pytest.MonkeyPatch) -> ge.Sampler:
        patch.setattr(module, name, function)
        return make()

    return broken


# ---- Of several runs of a loss -------------------------------------------------------------


def own_run_in_baseline(patch: pytest.MonkeyPatch) -> None:
    """Baselines of two runs that are the mean of both."""
    others = _lockstep.Lockstep.others
    of_both = lambda self, x: (others(self, x) + jax.lax.stop_gradient(x)) / 2
    patch.setattr(_lockstep.Lockstep, "others", of_both)


# ---- Of one draw of several ----------------------------------------------------------------


def wrong_score() -> ge.Sampler:
    """A score-type sampler whose log-probability is 40% too large."""
    right = ge.score_function()

    def score(key: jax.Array, dist: Any) -> Any:
        draw, log_prob, baseline = right._score(key, dist)
        return draw, 1.4 * log_prob, baseline

    return ge.Sampler("wrong_score", estimate=right.estimate, score=score)


def scaled_cost(sampler: ge.Sampler) -> ge.Sampler:
    """A cost-based sampler whose gradient is 40% too large."""
    scale = lambda x: 1.4 * x - 0.4 * jax.lax.stop_gradient(x)
    estimate = lambda key, dist, cost: scale(sampler.expect(key, dist, cost))
    relaxed = sampler._relaxed if sampler.relaxed else None
    return ge.Sampler("scaled_cost", estimate=estimate, draw=sampler._draw, relaxed=relaxed)


def with_factor(sampler: ge.Sampler, factor: Any) -> ge.Sampler:
    """Its gradient times `factor`, which may be traced: one program has all that are wrong."""

    def estimate(key: jax.Array, dist: Any, cost: Any, factor: Any) -> jax.Array:
        value = sampler.expect(key, dist, cost)
        return factor * value + (1 - factor) * jax.lax.stop_gradient(value)

    def scored(key: jax.Array, dist: Any, factor: Any) -> Any:
        draw, log_prob, baseline = sampler._score(key, dist)
        return draw, factor * log_prob, baseline

    return ge.Sampler(
        "with_factor",
        draw=lambda key, dist, factor: sampler._draw(key, dist),
        estimate=estimate,
        score=scored if sampler.score else None,
        options={"factor": factor},
    )


# ---- Of one estimator's formula ------------------------------------------------------------


def noise_not_given_the_draw(make: Make) -> Broken:
    """z' is drawn as z is, whatever was drawn."""

    def unconditional(key: jax.Array, dist: Any, b: jax.Array) -> jax.Array:
        del b
        return _relaxation.perturb(key, dist)

    return replaced(_relaxation, "conditional", unconditional, make)


def conditional_not_differentiated(make: Make) -> Broken:
    """The parameters' effect on z' is left out."""
    nothing = lambda dist, b, z, ct: [jnp.zeros_like(ct)]
    return replaced(_relaxation, "pull_back_conditional", nothing, make)


def mean_not_added_back(make: Make) -> Broken:
    """The control variate's own gradient, at the mean, is left out."""
    nothing = lambda dist, ct: jax.tree.map(jnp.zeros_like, dist)
    return replaced(_relaxation, "pull_back_mean", nothing, make)


def without_scores(make: Make) -> Broken:
    def nothing(dist: Any, draws: Any, weights: jax.Array) -> Any:
        del draws, weights
        return jax.tree.map(jnp.zeros_like, dist)

    return replaced(_scores, "weighted_scores", nothing, make)


def as_if_drawn_with_replacement(make: Make) -> Broken:
    """Each draw, and each other one, with the same weight."""

    def ratios(l: jax.Array) -> tuple[jax.Array, jax.Array]:
        k = len(l)
        others = -jnp.log(float(k - 1)) + jnp.log1p(-jnp.exp(l))[:, None] - l[None, :]
        return -jnp.log(float(k)) - l, jnp.where(jnp.eye(k, dtype=bool), 0, others)

    return replaced(unordered_set, "_log_ratios", ratios, make)


def as_if_drawn_independently(make: Make) -> Broken:
    """Leave-one-out as it stands, of draws that are not independent."""
    right = stratified._bits
    uncorrected = lambda key, dist, n: (*right(key, dist, n)[:2], lambda gradient: gradient)
    return replaced(stratified, "_bits", uncorrected, make)


def others_not_as_drawn(make: Make) -> Broken:
    """The variables that are not replaced are ones."""
    right = measure_valued._replaced
    wrong = lambda x, new, weight: right(jnp.ones_like(x), new, weight)
    return replaced(measure_valued, "_replaced", wrong, make)


def own_block_in_baseline(make: Make) -> Broken:
    """The mean of all other pairs, those with directions that depend on a pair's own included."""
    right = gaussian_smoothing._of_others
    return replaced(gaussian_smoothing, "_of_others", lambda costs, _: right(costs, 1), make)


def own_cost_in_baseline(_: pytest.MonkeyPatch) -> ge.Sampler:
    """ "Leave-one-out" with the mean over all samples."""

    def estimate(key: jax.Array, dist: Any, cost: Callable[[Any], jax.Array]) -> jax.Array:
        draws = jax.lax.stop_gradient(jax.vmap(dist.sample)(jax.random.split(key, 4)))
        costs = jax.vmap(cost)(draws)
        l = jax.vmap(lambda x: jnp.sum(dist.log_prob(x)))(draws)
        magic = jnp.exp(l - jax.lax.stop_gradient(l))
        return jnp.mean(costs * magic + jnp.mean(costs) * (1 - magic))

    return ge.Sampler("own_cost_in_baseline", estimate=estimate)


def own_weight_in_baseline(_: pytest.MonkeyPatch) -> ge.Sampler:
    """ "VIMCO" with the mean over all weights."""

    def estimate(key: jax.Array, dist: Any, cost: Callable[[Any], jax.Array]) -> jax.Array:
        keys = jax.random.split(key, 2)
        draws, _ = jax.vmap(lambda k: _scores.draw("", k, dist))(keys)
        log_w = jax.vmap(cost)(draws)
        bound = jax.nn.logsumexp(log_w) - jnp.log(2.0)
        gradient = _scores.weighted_scores(dist, draws, jax.lax.stop_gradient(bound - log_w / 2))
        return ge.attach_gradient(bound, dist, gradient)

    return ge.Sampler("own_weight_in_baseline", estimate=estimate)
