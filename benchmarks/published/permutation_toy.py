"""The toy problem of permutations: E[|P - T|^2], P ~ PlackettLuce(theta), 8 items.

T is doubly stochastic, 1/8 + 0.05 on the diagonal and 1/8 - 0.05/7 elsewhere, so that one order is
the best by little. From theta = 0, with one draw, by Adam at 0.01 on theta and, at the same rate,
on the control variate: the temperature, from 1, and REBAR's eta, and of RELAX, whose surrogate is
the cost at the relaxed order plus a network, its hidden layer of 32 rectified units. It sees the
noisy logits, as that of the authors' code; beside it, one that sees the relaxed order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

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


class Unrelaxed(PlackettLuce):
    """The same law, whose relaxed order is the noisy logits, in every row."""

    def soften(self, z: jax.Array, temperature: ArrayLike) -> jax.Array:
        del temperature
        return jnp.broadcast_to(z[..., None, :], (*z.shape, z.shape[-1]))


def network(w: Any, seen: jax.Array) -> jax.Array:
    return affine(w["out"], jax.nn.relu(affine(w["hidden"], seen)))[0]


def of_relaxed(w: Any, relaxed: jax.Array) -> jax.Array:
    return cost(relaxed) + network(w, relaxed.reshape(-1))


def of_noisy_logits(w: Any, unrelaxed: jax.Array) -> jax.Array:
    z = unrelaxed[0]
    relaxed = PlackettLuce(jnp.zeros(ITEMS)).soften(z, jnp.exp(w["log_temperature"]))
    return cost(relaxed) + network(w, z)


def initial_network(key: jax.Array, seen: int, width: int = 32) -> Any:
    """Uniform between the inverses of the square roots of what a unit sees, and minus those."""

    def layer(key: jax.Array, seen: int, units: int) -> Any:
        limit, (one, two) = 1 / math.sqrt(seen), jax.random.split(key)
        weights = lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)
        return {"w": weights(one, (seen, units)), "b": weights(two, (units,))}

    one, two = jax.random.split(key)
    return {"hidden": layer(one, seen, width), "out": layer(two, width, 1)}


class Method(NamedTuple):
    """A way of training.

    Attributes:
      sampler: from the control variate's parameters.
      control: their initial values, from a key.
      law: of the orders.
    """

    sampler: Callable[[Any], ge.Sampler]
    control: Callable[[jax.Array], Any] = lambda key: {}
    law: type[PlackettLuce] = PlackettLuce


METHODS = {
    "REINFORCE": Method(lambda w: ge.score_function()),
    "leave-one-out(2)": Method(
        lambda w: ge.score_function(num_samples=2, baseline="leave_one_out")
    ),
    "REBAR": Method(
        lambda w: ge.rebar(jnp.exp(w["log_temperature"]), eta=w["eta"], coupled=False),
        lambda key: {"log_temperature": jnp.zeros(()), "eta": jnp.ones(())},
    ),
    "RELAX": Method(
        lambda w: ge.relax(of_noisy_logits, w, coupled=False),
        lambda key: {"log_temperature": jnp.zeros(()), **initial_network(key, ITEMS)},
        Unrelaxed,
    ),
    "RELAX of the relaxed order": Method(
        lambda w: ge.relax(
            of_relaxed, w["network"], temperature=jnp.exp(w["log_temperature"]), coupled=False
        ),
        lambda key: {
            "log_temperature": jnp.zeros(()),
            "network": initial_network(key, ITEMS**2),
        },
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
    how = METHODS[method]
    optimizer = optax.adam(0.01)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return how.sampler(params["control"]).expect(key, how.law(params["theta"]), cost)

    step = step_of(optimizer, loss)

    def to_next(state: Any, key: jax.Array) -> tuple[Any, Any]:
        of_training, of_measuring = jax.random.split(key)
        state, _ = jax.lax.scan(step, state, jax.random.split(of_training, steps))
        gradient = jax.vmap(lambda key: jax.grad(loss)(state[0], key)["theta"])
        variances = jnp.var(gradient(jax.random.split(of_measuring, 1000)), axis=0)
        return state, (expected(state[0]["theta"]), jnp.log(jnp.mean(variances)))

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_control, of_run = jax.random.split(key)
        params = {"theta": jnp.zeros(ITEMS), "control": how.control(of_control)}
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
        costs, _ = train("RELAX", 1, 3000, seeds)
        # From 7.0229.
        target = Target(None, high=7.0)
        return [*rows, Row("RELAX, 3,000 steps: cost", target, costs[:, -1].tolist(), np.median)]
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
