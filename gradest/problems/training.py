"""Training a model and a method's control variate together, by one gradient and one optimizer."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
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
    """The training of one method from several seeds, while it goes on and when it is over.

    What differs from seed to seed is an array with an entry for each, in the seeds' order.

    Attributes:
      method: what is trained.
      steps: how many updates of each seed were asked for.
      seeds: of the initial parameters, minibatches and draws.
      done: how many updates were made.
      status: "interrupted" until it is "finished".
      step_seconds: of one update of all the seeds together, but for the first, which compiles.
      history: lists of the "step" and, for each seed, of the "gradient_variance" and of the metric
        that training is about.
      measured: what was measured once, after training: the metrics for each seed, and numbers.
      params: as they are now, stacked.
    """

    method: Method
    steps: int
    seeds: tuple[int, ...] = (0,)
    done: int = 0
    status: str = "interrupted"
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    history: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"

    @property
    def ms_per_step(self) -> float:
        """The share of one seed in the median time of a step."""
        if not self.step_seconds:
            return math.nan
        return 1e3 * statistics.median(self.step_seconds) / len(self.seeds)

    @property
    def variance_x_time(self) -> float:
        """Variance times milliseconds: what a given precision costs, if there is no bias."""
        return self.last("gradient_variance") * self.ms_per_step

    def values(self, name: str) -> np.ndarray:
        """What was measured after training, or logged last, for each seed; NaN if nothing was."""
        logged = self.history.get(name) or [math.nan]
        return np.atleast_1d(np.asarray(self.measured.get(name, logged[-1]), float))

    def last(self, name: str) -> float:
        """The mean of `values`."""
        return float(self.values(name).mean())

    def deviation(self, name: str) -> float:
        """The standard deviation of `values` from seed to seed; NaN of one."""
        values = self.values(name)
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan

    def log(self, **values: Any) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


#: Steps between two looks at the clock: JAX is not waited for after every one.
_STRETCH = 10


def train(
    problem: Problem,
    method: Method,
    *,
    steps: int,
    seed: int = 0,
    num_seeds: int = 1,
    log_points: int = 16,
) -> Iterator[Run]:
    """Trains, yielding the same `Run` again before the first step and every few steps.

    The seeds `seed`, `seed + 1`, ... are trained side by side, as lanes of one vmap. A seed gives
    every method the same initial model and the same minibatches.
    """
    seeds = tuple(range(seed, seed + num_seeds))
    run = Run(method, steps, seeds)
    yield run
    each = [_numbered(jax.random.key(seed), 5) for seed in seeds]
    keys_init, keys_draws, keys_log, keys_metrics, keys_end = zip(*each, strict=True)
    keys_draws, keys_log, keys_metrics = map(jnp.stack, (keys_draws, keys_log, keys_metrics))
    rngs = [np.random.default_rng(seed) for seed in seeds]
    examples, size = problem.examples, problem.batch_size
    minibatch = lambda: np.stack([examples[rng.integers(len(examples), size=size)] for rng in rngs])
    log_batch = minibatch()

    loss, schedule = minibatch_loss(problem, method), jang_schedule(steps)
    params = _stacked([initial_params(problem, method, key) for key in keys_init])
    # The model's updates are compiled once for all methods, and only the control variates' anew.
    of_model = _adam(problem.learning_rate)
    of_control = ge.with_annealing(of_model, dict.fromkeys(method.annealed, schedule))
    model, control = _parts(params)
    states = [_initial_state(o, p) for o, p in ((of_model, model), (of_control, control))]

    # Apart from the updates: it is also what the variance is measured of.
    @jax.jit
    def gradient(params: Any, keys: jax.Array, number: Any, xs: Any) -> Any:
        def of_seed(params: Any, key: jax.Array, xs: Any) -> Any:
            return jax.grad(loss)(params, jax.random.fold_in(key, number), xs)

        return jax.vmap(of_seed)(params, keys, xs)

    def log() -> None:
        numbers = range(problem.num_keys)
        at = lambda number: gradient(params, keys_log, number, log_batch)[problem.sampled]
        metric = np.asarray(jax.vmap(problem.follow)(_parts(params)[0], keys_metrics))
        variance = summed_variance(map(at, numbers))
        run.log(step=run.done, gradient_variance=variance, **{problem.metric: metric})

    logged = {round(i * steps / log_points) for i in range(log_points + 1)}
    log()
    while run.done < steps:
        # The first step, which compiles the updates, is a stretch of its own.
        stop = min(
            {n for n in logged if n > run.done} | {run.done // _STRETCH * _STRETCH + _STRETCH}
        )
        stop = 1 if run.done == 0 else stop
        start = time.perf_counter()
        for number in range(run.done, stop):
            grads = _parts(gradient(params, keys_draws, number, minibatch()))
            model, states[0] = _update(of_model, grads[0], states[0], model)
            if control:
                control, states[1] = _update(of_control, grads[1], states[1], control)
            params = {**model, "control": control}
        jax.block_until_ready(params)
        if run.done > 0:
            run.step_seconds.append((time.perf_counter() - start) / (stop - run.done))
        run.done, run.params = stop, params
        if run.done in logged:
            log()
        if run.done < steps:
            yield run
    metrics = jax.vmap(problem.evaluate)(model, keys_metrics)
    first = jax.tree.map(lambda x: x[0], params)
    run.measured = {name: np.asarray(values) for name, values in metrics.items()}
    run.measured |= problem.measure(loss, first, keys_end[0])
    run.status = "finished"
    yield run


def _parts(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and the control variate's."""
    return {name: x for name, x in params.items() if name != "control"}, params["control"]


@functools.cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """One and the same for every method, by which what is compiled for it is found again."""
    return optax.adam(learning_rate)


def _initial_state(optimizer: optax.GradientTransformation, params: Any) -> Any:
    return jax.vmap(optimizer.init)(params) if params else None


@functools.partial(jax.jit, static_argnums=0)
def _update(optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any) -> Any:
    def of_seed(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.vmap(of_seed)(grads, state, params)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _numbered(key: jax.Array, count: int) -> list[jax.Array]:
    """Keys, one by one: to unstack an array of them is compiled anew for every size."""
    return [jax.random.fold_in(key, number) for number in range(count)]


def summed_variance(gradients: Iterable[Any]) -> np.ndarray:
    """The variance of each coordinate over several gradients, summed over the coordinates.

    Args:
      gradients: pytrees whose leaves have an entry for each seed along their first axis.

    Returns:
      Of each seed; zero where the gradients differ by rounding only.
    """
    flat = lambda leaves: np.concatenate([np.reshape(x, (len(x), -1)) for x in leaves], axis=1)
    rows = np.stack([flat(jax.tree.leaves(g)) for g in gradients])
    variance = np.var(rows, axis=0, ddof=1, dtype=float).sum(axis=-1)
    square = np.mean(rows.astype(float) ** 2, axis=0).sum(axis=-1)
    rounding = 8 * np.finfo(rows.dtype).eps
    return np.where(variance <= rounding**2 * square, 0.0, variance)
