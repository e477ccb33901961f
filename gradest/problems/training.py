"""Training a model and a method's control variate together, by one gradient and one optimizer."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge

from .methods import Method


class Problem(Protocol):
    """What is trained."""

    @property
    def name(self) -> str: ...
    @property
    def latent(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def values(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sampled(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def num_keys(self) -> int: ...
    def examples(self) -> np.ndarray: ...
    def init(self, key: jax.Array) -> dict[str, Any]: ...
    def init_baseline(self, key: jax.Array) -> Any: ...
    def baseline(self, params: Any, x: jax.Array) -> jax.Array: ...
    def loss(
        self, params: dict[str, Any], key: jax.Array, x: jax.Array, sampler: ge.Sampler
    ) -> jax.Array: ...
    def evaluate(self, params: dict[str, Any], key: jax.Array) -> dict[str, float]: ...


def minibatch_loss(problem: Problem, method: Method) -> Callable[..., jax.Array]:
    """The mean over a minibatch of the expected loss: `loss(params, key, xs)`.

    The sampler is all that changes from method to method.
    """

    @ge.expectation
    def loss(params: dict[str, Any], key: jax.Array, x: jax.Array) -> jax.Array:
        control = dict(params["control"])
        if method.learns_baseline:
            control["baseline"] = problem.baseline(control["baseline"], x)
        return problem.loss(params, key, x, method.sampler(**control))

    def mean_loss(params: dict[str, Any], key: jax.Array, xs: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(xs))
        return jnp.mean(jax.vmap(loss, in_axes=(None, 0, 0))(params, keys, xs))

    return mean_loss


def initial_params(problem: Problem, method: Method, key: jax.Array) -> dict[str, Any]:
    """The model's parameters and, under "control", the control variate's."""
    key_model, key_control, key_baseline = jax.random.split(key, 3)
    control = method.initial_control(key_control, problem.shape)
    if method.learns_baseline:
        control["baseline"] = problem.init_baseline(key_baseline)
    return {**problem.init(key_model), "control": control}


def jang_schedule(steps: int) -> optax.Schedule:
    """max(0.5, exp(-r k)), held for a 20th of the training at a time; 0.5 from its middle on."""
    hold = max(1, steps // 20)
    rate = 2 * math.log(2) / steps
    return optax.exponential_decay(
        1.0, hold, math.exp(-rate * hold), staircase=True, end_value=0.5
    )


@dataclasses.dataclass
class Run:
    """The training of one method, while it goes on and when it is over."""

    method: Method
    steps: int
    done: int = 0
    status: str = "interrupted"
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ms_per_step(self) -> float:
        """Median over the steps, of which the first, which compiles, is none."""
        return 1e3 * statistics.median(self.step_seconds) if self.step_seconds else math.nan

    @property
    def variance_x_time(self) -> float:
        return self.last("gradient_variance") * self.ms_per_step

    def last(self, name: str) -> float:
        """The last value of a history, or NaN."""
        return self.history[name][-1] if self.history.get(name) else math.nan

    def log(self, **values: float) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(float(value))


def train(
    problem: Problem, method: Method, *, steps: int, seed: int, log_points: int = 20
) -> Iterator[Run]:
    """Trains, yielding the same `Run` again after every step.

    Every method gets the same initial model and the same minibatches.
    """
    run = Run(method, steps)
    yield run
    key_init, key_batches, key_draws, key_measure = jax.random.split(jax.random.key(seed), 4)
    examples = problem.examples()
    batches = np.asarray(
        jax.random.randint(key_batches, (steps + 1, problem.batch_size), 0, len(examples))
    )
    keys = jax.random.split(key_draws, steps)
    measure_keys = jax.random.split(key_measure, problem.num_keys)
    params = initial_params(problem, method, key_init)
    schedule = jang_schedule(steps)
    optimizer = ge.with_annealing(
        optax.adam(problem.learning_rate),
        {f"control.{name}": schedule for name in method.annealed},
    )
    state = optimizer.init(params)
    gradient = jax.jit(jax.grad(minibatch_loss(problem, method)))

    # Compiled apart from the gradient, which also measures the variance: one compilation less.
    @jax.jit
    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    logged = {round(i * steps / log_points) for i in range(log_points + 1)}
    for number in range(steps + 1):
        if number in logged:
            run.params = params
            of_sampled = lambda key: gradient(params, key, examples[batches[-1]])[problem.sampled]
            run.log(
                step=number,
                gradient_variance=summed_variance(map(of_sampled, measure_keys)),
                **problem.evaluate(params, key_measure),
            )
        if number == steps:
            break
        xs = examples[batches[number]]
        start = time.perf_counter()
        params, state = update(gradient(params, keys[number], xs), state, params)
        jax.block_until_ready(params)
        # The first step compiles.
        if number > 0:
            run.step_seconds.append(time.perf_counter() - start)
        run.done = number + 1
        if run.done < steps:
            yield run
    run.status = "finished"
    yield run


def summed_variance(gradients: Iterable[Any]) -> float:
    """The variance of each coordinate over several gradients, summed over the coordinates."""
    rows = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in gradients])
    return float(np.var(rows, axis=0, ddof=1, dtype=float).sum())
