"""Polynomial programming: the mean of |z - 0.45|^P over 128 binary variables.

Each is a one-hot variable of two categories, with a logit for each, of which z is the second.
Uniform initial logits of (-0.01, 0.01), Adam at 1e-3, 64 draws a step, 8,000 steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge
from gradest.distributions import OneHotCategorical

from ._suite import Reproduction, Row, Target
from ._training import step_of

NUM_VARIABLES, BATCH, CENTER, NUM_STEPS = 128, 64, 0.45, 8000
PUBLISHED = {
    2.0: [0.24750, 0.20376, 0.20315, 0.2478, 0.20268],
    1.5: [0.35221, 0.30539, 0.30256, 0.3511, 0.30206],
    3.0: [0.12129, 0.09155, 0.09162, 0.1234, 0.09126],
}
# How far runs are apart from seed to seed, and more: what a wrong estimator would be off by.
NOISY, QUIET = 5e-4, 1e-4
# Of the whole run for P = 2, at step 2,000.
QUICK_STEPS = 2000
QUICK = [0.2475, 0.21471, 0.21493, 0.25146, 0.20812]


def cost(power: float, z: jax.Array) -> jax.Array:
    return jnp.mean(jnp.abs(z[..., 1] - CENTER) ** power)


def expected(power: float, logits: jax.Array) -> jax.Array:
    p = jax.nn.softmax(logits)[..., 1]
    return jnp.mean(p * (1 - CENTER) ** power + (1 - p) * CENTER**power)


def by(make: Callable[[], ge.Sampler], num_samples: int = 1) -> Callable[..., jax.Array]:
    """The loss by an estimator, averaged over so many of its estimates."""

    def loss(logits: jax.Array, key: jax.Array, power: float) -> jax.Array:
        once = lambda key: make().expect(key, OneHotCategorical(logits), lambda z: cost(power, z))
        return ge.monte_carlo(once, num_samples)(key)

    return loss


METHODS: dict[str, Callable[..., jax.Array]] = {
    "straight-through": by(ge.straight_through, BATCH),
    "ReinMax": by(ge.reinmax, BATCH),
    "leave-one-out(64)": by(lambda: ge.score_function(num_samples=BATCH, baseline="leave_one_out")),
    "REINFORCE": by(lambda: ge.score_function(num_samples=BATCH)),
    "exact": lambda logits, key, power: expected(power, logits),
}


def train(method: str, power: float, num_steps: int, num_seeds: int) -> np.ndarray:
    """Final expected losses."""
    optimizer = optax.adam(1e-3)
    step = step_of(optimizer, lambda logits, key: METHODS[method](logits, key, power))

    def run(key: jax.Array) -> jax.Array:
        of_start, of_run = jax.random.split(key)
        logits = jax.random.uniform(of_start, (NUM_VARIABLES, 2), minval=-0.01, maxval=0.01)
        state = (logits, optimizer.init(logits))
        (logits, _), _ = jax.lax.scan(step, state, jax.random.split(of_run, num_steps))
        return expected(power, logits)

    # One after the other: side by side they do not fit into the caches.
    keys = jax.random.split(jax.random.key(0), num_seeds)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys))


def run(seeds: int, quick: bool) -> list[Row]:
    rows = []
    for power, published in ({2.0: QUICK} if quick else PUBLISHED).items():
        for method, number in zip(METHODS, published, strict=True):
            ours = train(method, power, QUICK_STEPS if quick else NUM_STEPS, seeds)
            target = Target.within(number, NOISY if method == "REINFORCE" else QUIET)
            rows.append(Row(f"{method}, P = {power:g}", target, ours.tolist()))
    return rows


POLYNOMIAL = Reproduction(
    "polynomial",
    "Liu et al. 2023, polynomial programming (section 5.1)",
    run,
    seeds=3,
)
