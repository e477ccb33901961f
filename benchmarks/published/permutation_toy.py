"""The toy problem of permutations: E[|P - T|^2], P ~ PlackettLuce(theta), 8 items.

T is doubly stochastic, 1/8 + 0.05 on the diagonal and 1/8 - 0.05/7 elsewhere, so that one order is
the best by little. From theta = 0, with one draw, by Adam at 0.01 on theta and, at the same rate,
on the control variate: the temperature, from 1, and REBAR's eta, and of RELAX, whose surrogate is
the cost at the relaxed order plus a network, its hidden layer of 32 rectified units.

What the network sees is the relaxed order, where that of the authors' code sees the noisy logits.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge
from gradest.distributions import PlackettLuce

from ._suite import Reproduction, Row, Target
from ._training import affine, step_of

ITEMS, EPSILON = 8, 0.05
_DIAGONAL = np.eye(ITEMS, dtype=np.float32)
TARGET = 1 / ITEMS + EPSILON * _DIAGONAL - EPSILON / (ITEMS - 1) * (1 - _DIAGONAL)


def cost(order: jax.Array) -> jax.Array:
    return jnp.sum((order - TARGET) ** 2)


def expected(theta: jax.Array) -> jax.Array:
    """E[cost], exactly: the cost is linear in an order, whose square is 8."""
    return ITEMS + jnp.sum(TARGET**2) - 2 * jnp.sum(TARGET * PlackettLuce(theta).mean())


def surrogate(w: Any, relaxed: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(affine(w["hidden"], relaxed.reshape(-1)))
    return cost(relaxed) + affine(w["out"], hidden)[0]


def initial_surrogate(key: jax.Array, width: int = 32) -> Any:
    """Uniform between the inverses of the square roots of what a unit sees, and minus those."""

    def layer(key: jax.Array, seen: int, units: int) -> Any:
        limit, (one, two) = 1 / math.sqrt(seen), jax.random.split(key)
        weights = lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)
        return {"w": weights(one, (seen, units)), "b": weights(two, (units,))}

    one, two = jax.random.split(key)
    return {"hidden": layer(one, ITEMS**2, width), "out": layer(two, width, 1)}


METHODS: dict[str, tuple[Callable[[Any], ge.Sampler], Callable[[jax.Array], Any]]] = {
    "REINFORCE": (lambda w: ge.score_function(), lambda key: {}),
    "leave-one-out(2)": (
        lambda w: ge.score_function(num_samples=2, baseline="leave_one_out"),
        lambda key: {},
    ),
    "REBAR": (
        lambda w: ge.rebar(jnp.exp(w["log_temperature"]), eta=w["eta"], coupled=False),
        lambda key: {"log_temperature": jnp.zeros(()), "eta": jnp.ones(())},
    ),
    "RELAX": (
        lambda w: ge.relax(
            surrogate, w["surrogate"], temperature=jnp.exp(w["log_temperature"]), coupled=False
        ),
        lambda key: {"log_temperature": jnp.zeros(()), "surrogate": initial_surrogate(key)},
    ),
}


def descend(num_steps: int) -> np.ndarray:
    """The expected cost before each step along the exact gradient, and after the last one."""
    step = step_of(optax.adam(0.01), lambda theta, _: expected(theta))
    theta = jnp.zeros(ITEMS)
    start = (theta, optax.adam(0.01).init(theta))
    (theta, _), costs = jax.jit(functools.partial(jax.lax.scan, step, length=num_steps))(start)
    return np.append(np.asarray(costs), expected(theta))


def train(method: str, checks: int, steps: int, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected costs, and log variances of the gradient, the mean over its coordinates.

    Args:
      method: one of METHODS.
      checks: how often both are looked at.
      steps: from one look to the next.
      num_seeds: how many runs.

    Returns:
      Two arrays, of shape (num_seeds, checks).
    """
    make, control = METHODS[method]
    optimizer = optax.adam(0.01)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return make(params["control"]).expect(key, PlackettLuce(params["theta"]), cost)

    step = step_of(optimizer, loss)

    def to_next(state: Any, key: jax.Array) -> tuple[Any, Any]:
        of_training, of_measuring = jax.random.split(key)
        state, _ = jax.lax.scan(step, state, jax.random.split(of_training, steps))
        gradient = jax.vmap(lambda key: jax.grad(loss)(state[0], key)["theta"])
        variances = jnp.var(gradient(jax.random.split(of_measuring, 1000)), axis=0)
        return state, (expected(state[0]["theta"]), jnp.log(jnp.mean(variances)))

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_control, of_run = jax.random.split(key)
        params = {"theta": jnp.zeros(ITEMS), "control": control(of_control)}
        state = (params, optimizer.init(params))
        return jax.lax.scan(to_next, state, jax.random.split(of_run, checks))[1]

    keys = jax.random.split(jax.random.key(0), num_seeds)
    costs, log_variances = jax.jit(jax.vmap(run))(keys)
    return np.asarray(costs), np.asarray(log_variances)


#: Of the exact gradient's costs, in double precision: the published curve reads the same.
EXACT = {
    100: 6.920198,
    200: 6.814311,
    500: 6.519625,
    1000: 6.346837,
    1500: 6.289965,
    2000: 6.264256,
}
#: Read off the curves, of one run each: costs at 10,000 and 50,000 steps, the last log variance.
PUBLISHED = {
    "REINFORCE": (7.05, 6.9, 2.8),
    "REBAR": (6.93, 6.23, -6.7),
    "RELAX": (6.33, 6.223, -13.8),
}
CHECKS, STEPS = 5, 10_000


def run(seeds: int, quick: bool) -> list[Row]:
    costs = descend(max(EXACT))
    rows = [
        Row(f"exact gradient, {s:,} steps: cost", Target(None, at - 2e-4, at + 2e-4), [costs[s]])
        for s, at in EXACT.items()
    ]
    if quick:
        costs, _ = train("RELAX", 1, 2000, seeds)
        # From 7.0229.
        target = Target(None, high=7.0)
        return [*rows, Row("RELAX, 2,000 steps: cost", target, costs[:, -1].tolist(), np.median)]
    for name in METHODS:
        costs, log_variances = train(name, CHECKS, STEPS, seeds)
        first, last, variance = PUBLISHED.get(name, (None, None, None))
        told = (
            (f"{STEPS:,} steps: cost", costs[:, 0], first),
            (f"{CHECKS * STEPS:,} steps: cost", costs[:, -1], last),
            (f"{CHECKS * STEPS:,} steps: log variance", log_variances[:, -1], variance),
        )
        for what, ours, published in told:
            target = None if published is None else Target(published)
            rows.append(Row(f"{name}, {what}", target, ours.tolist(), np.median))
    return rows


PERMUTATION_TOY = Reproduction(
    "permutation_toy",
    "Gadetsky et al. 2020, the toy experiment, of which the published numbers are read off a "
    "figure",
    run,
    seeds=5,
)
