"""What the reproductions share: affine maps, and steps and epochs of training."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = dict[str, Any]
#: Parameters and the optimizer's state.
State = tuple[Any, Any]
#: From a state and inputs to the next state and the loss: a step for `jax.lax.scan`.
Step = Callable[[State, Any], tuple[State, jax.Array]]


def affine(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def mean_over_batch(loss: Callable[..., jax.Array], keys: jax.Array, batch: jax.Array) -> jax.Array:
    """Of `loss(key, example)`."""
    return jnp.mean(jax.vmap(loss)(keys, batch))


def step_of(optimizer: optax.GradientTransformation, loss: Callable[..., jax.Array]) -> Step:
    """A step along the gradient of `loss(params, inputs)`."""

    def step(state: State, inputs: Any) -> tuple[State, jax.Array]:
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, inputs)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    return step


def compiled(step: Callable[..., Any]) -> Any:
    """A scan of steps, which takes the memory of the state that it is given."""
    return jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)


def batches(order: np.ndarray, size: int) -> jax.Array:
    """Rows of each batch, shape (batches, size); what is left over at the end is left out."""
    return jnp.asarray(order[: len(order) // size * size].reshape(-1, size))


def epoch(
    steps: Callable[..., Any], state: State, key: jax.Array, rows: jax.Array
) -> tuple[State, dict[str, float]]:
    """All batches once; the mean loss.

    Args:
      steps: a compiled scan of steps, whose inputs are a key and a batch's rows.
      state: before them. It is donated.
      key: of the epoch.
      rows: shape (batches, size).
    """
    state, losses = steps(state, (jax.random.split(key, len(rows)), rows))
    return state, {"loss": float(jnp.mean(losses))}
