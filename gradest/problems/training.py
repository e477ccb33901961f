"""Training a model and a method's control variate together, by one gradient and one optimizer."""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge

from .methods import Method
from .problem import Loss, Problem


def minibatch_loss(problem: Problem, method: Method) -> Loss:
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
    key_model, key_control, key_baseline = _numbered(key, 3)
    control = method.initial_control(key_control, problem.shape)
    if method.learns_baseline:
        control["baseline"] = problem.init_baseline(key_baseline)
    return {**problem.init(key_model), "control": control}


def jang_schedule(steps: int) -> optax.Schedule:
    """max(0.5, exp(-r k)), held for a 20th of the training at a time; 0.5 from its middle on."""
    hold = max(1, steps // 20)
    rate = 2 * math.log(2) / steps
    return optax.exponential_decay(1.0, hold, math.exp(-rate * hold), staircase=True, end_value=0.5)


@dataclasses.dataclass
class Run:
    """The training of one method, while it goes on and when it is over.

    Attributes:
      method: what is trained.
      steps: how many updates were asked for.
      done: how many were made.
      status: "interrupted" until it is "finished".
      step_seconds: of every update but the first, which compiles.
      history: a list for "step", for "gradient_variance" and for each of the problem's metrics.
      measured: what was measured once, after training.
      params: as they are now.
    """

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
        """The median."""
        return 1e3 * statistics.median(self.step_seconds) if self.step_seconds else math.nan

    @property
    def variance_x_time(self) -> float:
        """Variance times milliseconds: what a given precision costs, if there is no bias."""
        return self.last("gradient_variance") * self.ms_per_step

    def last(self, name: str) -> float:
        """What was measured after training, or logged last; NaN if nothing was."""
        logged = self.history.get(name) or [math.nan]
        return self.measured.get(name, logged[-1])

    def log(self, **values: float) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


def train(
    problem: Problem, method: Method, *, steps: int, seed: int, log_points: int = 20
) -> Iterator[Run]:
    """Trains, yielding the same `Run` again before the first step and after every one.

    Every method gets the same initial model and the same minibatches.
    """
    run = Run(method, steps)
    yield run
    key_init, key_draws, key_log, key_metrics, key_end = _numbered(jax.random.key(seed), 5)
    log_keys = _numbered(key_log, problem.num_keys)
    rng = np.random.default_rng(seed)
    examples, size = problem.examples, problem.batch_size
    minibatch = lambda: examples[rng.integers(len(examples), size=size)]
    log_batch = minibatch()

    loss, schedule = minibatch_loss(problem, method), jang_schedule(steps)
    params = initial_params(problem, method, key_init)
    optimizer = ge.with_annealing(
        optax.adam(problem.learning_rate),
        {f"control.{name}": schedule for name in method.annealed},
    )
    state = optimizer.init(params)
    gradient = jax.jit(jax.grad(loss))

    # Compiled apart from the gradient, which is also what the variance is measured of.
    @jax.jit
    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def log() -> None:
        gradients = [gradient(params, key, log_batch)[problem.sampled] for key in log_keys]
        metrics = problem.evaluate(params, key_metrics)
        run.log(step=run.done, gradient_variance=summed_variance(gradients), **metrics)

    logged = {round(i * steps / log_points) for i in range(log_points + 1)}
    log()
    while run.done < steps:
        key, xs = jax.random.fold_in(key_draws, run.done), minibatch()
        start = time.perf_counter()
        params, state = update(gradient(params, key, xs), state, params)
        jax.block_until_ready(params)
        if run.done > 0:
            run.step_seconds.append(time.perf_counter() - start)
        run.done, run.params = run.done + 1, params
        if run.done in logged:
            log()
        if run.done < steps:
            yield run
    run.measured = problem.measure(loss, params, key_end)
    run.status = "finished"
    yield run


def _numbered(key: jax.Array, count: int) -> list[jax.Array]:
    """Keys, one by one: to unstack an array of them is compiled anew for every size."""
    return [jax.random.fold_in(key, number) for number in range(count)]


def summed_variance(gradients: Iterable[Any]) -> float:
    """The variance of each coordinate over several gradients, summed over the coordinates."""
    rows = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in gradients])
    return float(np.var(rows, axis=0, ddof=1, dtype=float).sum())
