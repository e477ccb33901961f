"""Discrete draws as functions of continuous noise, shared by the estimators that relax them.

What a draw is relaxed by, and what a draw of the noise given it is, the distribution says: see
`gradest.distributions.base.Distribution`. With gradest's own z is logits plus noise, and
has their derivative; another's z is any function of its parameters and of noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import in_compute_dtype
from ..distributions._capabilities import has
from ..distributions._derived import rebuilt, wide
from ..distributions.base import Distribution
from . import _needs


def check(estimator: str, dist: Any, *more: str) -> None:
    """Raises unless `dist` can be relaxed, and every outcome be drawn, as the gradient needs.

    Args:
      estimator: its name.
      dist: a distribution.
      *more: what else it has to have, by name.
    """
    _needs.check_edges(estimator, dist)
    _needs.check(estimator, dist, "relaxation", *more)


def perturb(key: jax.Array, dist: Any) -> jax.Array:
    """z, such as logits plus noise."""
    return dist.perturb(key)


def harden(dist: Any, z: jax.Array) -> jax.Array:
    """The draw that `z` stands for."""
    return dist.harden(z)


def soften(dist: Any, z: jax.Array, temperature: ArrayLike) -> jax.Array:
    """The relaxed draw."""
    return dist.soften(z, temperature)


def conditional(key: jax.Array, dist: Any, b: jax.Array) -> jax.Array:
    """A draw of z given b."""
    return dist.conditional(key, b)


def _adds_noise(dist: Any) -> bool:
    return has(type(dist), "added noise")


def log_odds(dist: Any) -> jax.Array | None:
    """The logits that noise is added to, in the type of the noise; None if z is made otherwise."""
    return dist._log_odds() if _adds_noise(dist) else None


def with_fixed_noise(dist: Any, z: jax.Array) -> jax.Array:
    """`z`, with the derivative that it has in the logits that a fixed noise is added to."""
    return replace_value(z, in_compute_dtype(dist.logits)[0])


def pull_back(key: jax.Array, dist: Any, ct: jax.Array) -> list[jax.Array]:
    """The cotangents of the parameters, given that of z, with the noise of `key` held fixed."""
    z = lambda dist: dist.logits if _adds_noise(dist) else dist.perturb(key)
    _, pull_back = jax.vjp(z, wide(dist))
    return floats(pull_back(ct)[0])


def pull_back_conditional(dist: Any, b: jax.Array, z: jax.Array, ct: jax.Array) -> list[jax.Array]:
    """The cotangents of the parameters, given that of z, a draw given b with fixed noise."""
    given, expected = floats(dist.pull_back_conditional(b, z, ct)), jax.tree.leaves(dist)
    if list(map(jnp.shape, given)) != list(map(jnp.shape, expected)):
        raise ValueError(
            f"dist: expected of {type(dist).__name__}.pull_back_conditional a cotangent of each "
            f"parameter, of shapes {list(map(jnp.shape, expected))}, got "
            f"{list(map(jnp.shape, given))}. Of several give a tuple."
        )
    return given


def score(dist: Distribution, b: jax.Array) -> Any:
    """The derivative of log p(b) in each parameter, of the structure of `dist`."""
    return rebuilt(dist, *floats(dist._score(b)))


def floats(gradients: Any) -> list[jax.Array]:
    """The leaves, with zeros for the derivative in an integer, which there is not."""
    is_float0 = lambda g: getattr(g, "dtype", None) == jax.dtypes.float0
    leaves = jax.tree.leaves(gradients)
    return [jnp.zeros(g.shape) if is_float0(g) else g for g in leaves]


def pull_back_mean(dist: Distribution, ct: jax.Array) -> Any:
    """The cotangent of each parameter, given that of the mean."""
    return dist._pull_back_mean(ct)


@jax.custom_vjp
def replace_value(hard: jax.Array, soft: jax.Array) -> jax.Array:
    """The value of `hard`, to the last bit, with the derivative of `soft`."""
    del soft
    return hard


def _replace_value_fwd(hard: jax.Array, soft: jax.Array) -> tuple[jax.Array, None]:
    del soft
    return hard, None


def _replace_value_bwd(_: None, ct: jax.Array) -> tuple[None, jax.Array]:
    return None, ct


replace_value.defvjp(_replace_value_fwd, _replace_value_bwd)
