"""What follows from what a distribution can do, where it has no closed form that does better."""

from typing import TYPE_CHECKING, Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from .. import _check, _numerics

T = TypeVar("T")
#: What the probabilities of a user's outcomes may lack of one: rounding, and the end of a tail.
_MISSING = 1e-3


def rebuilt(dist: T, *leaves: Any) -> T:
    """`dist`, with these in the place of its leaves."""
    return jax.tree.unflatten(jax.tree.structure(dist), leaves)


def wide(dist: T) -> T:
    """`dist`, with parameters of at least single precision."""

    def as_wide(leaf: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(_numerics.compute_dtype(leaf.dtype)) if floating else leaf

    return jax.tree.map(as_wide, dist)


def dtype_of(dist: Any) -> DTypeLike:
    """The type of its floating-point parameters; the default if there are none."""
    leaves = jax.tree.leaves(dist)
    floats = [x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.result_type(*(floats or [float]))


class Derived:
    """Methods of a distribution, in terms of its public ones. They compute in single precision."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def num_outcomes(self) -> int:
        """How many outcomes one element has, impossible ones among them."""
        return jax.eval_shape(self.enumerate_support).shape[0]

    def _outcomes(self) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and probabilities of each element's outcomes, shape (..., outcomes).

        In at least single precision, like what follows.

        Raises:
          ValueError: if the probabilities of a user's own outcomes are known not to add up to one.
            Where they are traced they are NaN then: a sum over some of them would be wrong.
        """
        dist, values = wide(self), self.enumerate_support()
        log_p = jax.vmap(lambda x: dist.log_prob(jnp.broadcast_to(x, self.shape)))(values)
        log_p = jnp.moveaxis(log_p, 0, -1)
        if not _check.is_gradests(type(self)):
            log_p = _of_all(type(self).__name__, log_p)
        possible = log_p != -jnp.inf
        return log_p, jnp.where(possible, jnp.exp(jnp.where(possible, log_p, 0)), 0)

    def _score(self, x: jax.Array) -> Self:
        """The derivative of log p(x), the sum over its elements, in each parameter."""
        return jax.grad(lambda dist: jnp.sum(dist.log_prob(x)), allow_int=True)(wide(self))

    def _mean_at(self, slope: ArrayLike) -> jax.Array:
        """The mean with the parameters, which are logits, times `slope`."""

        def steeper(l: jax.Array) -> jax.Array:
            finite = jnp.isfinite(l)
            return jnp.where(finite, jnp.where(finite, l, 0) * jnp.asarray(slope, l.dtype), l)

        return jax.tree.map(steeper, wide(self)).mean()

    def _pull_back_mean(self, ct: jax.Array) -> Self:
        """The cotangents of the parameters, given that of the mean."""
        mean, pull_back = jax.vjp(lambda dist: dist.mean(), wide(self))
        return pull_back(ct.astype(mean.dtype))[0]


def _of_all(name: str, log_p: jax.Array) -> jax.Array:
    """`log_p` of the outcomes of a user's distribution, whose probabilities add up to one."""
    total = jnp.sum(jnp.exp(log_p), axis=-1, keepdims=True)
    known = _check.known(total)
    if known is not None and np.any(apart := np.abs(known - 1) > _MISSING):
        raise ValueError(
            f"dist: expected of {name}.enumerate_support() all outcomes, whose probabilities by "
            f"{name}.log_prob add up to 1, got {known[apart][0]:.4g}. Mend one of the two."
        )
    # Added, not put in its place: so the derivative is NaN too.
    return log_p + jnp.where(jnp.abs(total - 1) > _MISSING, jnp.nan, 0.0).astype(log_p.dtype)
