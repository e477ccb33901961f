"""Programs of Bernoulli draws, and their exact expectations by running every path.

A program is written twice: as a loss for `gradest.expectation`, with JAX's control flow, and in
plain Python with a `draw` that it is given, whose outcomes are numbers that Python can branch on.
The second is run once for every sequence of outcomes; it knows nothing of gradest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradest as ge
from gradest import distributions as dists

from . import oracles as oracles
from .broken import own_run_in_baseline as own_run_in_baseline
from .broken import scaled_cost as scaled_cost
from .broken import with_factor as with_factor
from .broken import wrong_score as wrong_score
from .pages import definitions as definitions
from .statistical import MAX_Z as MAX_Z
from .statistical import NUM_KEYS as NUM_KEYS
from .statistical import assert_unbiased as assert_unbiased
from .statistical import assert_variance as assert_variance
from .statistical import keys as keys
from .statistical import optimized as optimized

Draw = Callable[[Any], float]


def enumerated(program: Callable[..., Any]) -> Callable[..., Any]:
    """E[program(draw, *args)] as a function of `args`, differentiable to any order."""

    def expected(*args: Any) -> Any:
        total, beginnings = jnp.zeros(()), [()]
        while beginnings:
            run = _Path(beginnings.pop())
            value = program(run.draw, *args)
            total += run.probability * value
            beginnings += run.alternatives
        return total

    return expected


class _Path:
    """One run: given outcomes first, then zeros, whose alternatives are noted."""

    def __init__(self, beginning: tuple[float, ...]):
        self.beginning, self.path = beginning, ()
        self.probability, self.alternatives = jnp.ones(()), []

    def draw(self, logit: Any) -> float:
        turn = len(self.path)
        if turn < len(self.beginning):
            outcome = self.beginning[turn]
        else:
            outcome = 0.0
            self.alternatives.append((*self.path, 1.0))
        self.path = (*self.path, outcome)
        p = 1 / (1 + jnp.exp(-logit))
        self.probability *= p if outcome else 1 - p
        return outcome


def bit(sampler: ge.Sampler, key: jax.Array, logit: Any) -> jax.Array:
    return sampler(key, dists.Bernoulli(logit))


def estimates(loss: Callable[..., Any], params: Any, num: int = NUM_KEYS, seed: int = 0) -> Any:
    """Values and gradients of `gradest.expectation(loss)(params, key)` at `num` keys."""
    grad = jax.value_and_grad(ge.expectation(loss))
    return jax.jit(jax.vmap(grad, in_axes=(None, 0)))(params, keys(num, seed))


def exact(program: Callable[..., Any], params: Any) -> Any:
    """Its expected value and its gradient. Paths by the dozen run faster than they compile."""
    return jax.value_and_grad(enumerated(program))(params)


def assert_exact_on_average(
    loss: Callable[..., Any], program: Callable[..., Any], params: Any, num: int = NUM_KEYS
) -> None:
    assert_unbiased(estimates(loss, params, num), exact(program, params))


leave_one_out = functools.partial(ge.score_function, num_samples=2, baseline="leave_one_out")
