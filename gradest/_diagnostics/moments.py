"""Moments of draws that come in chunks: in the memory of one, and in double precision."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _numerics


class Moments(NamedTuple):
    """Of the draws of an array: how many, their mean, and the sums of powers 2 to 4 about it."""

    num: int
    mean: np.ndarray
    m2: np.ndarray
    m3: np.ndarray
    m4: np.ndarray

    def join(self, other: "Moments") -> "Moments":
        """Of both sets of draws: Chan et al. 1979; for the higher powers Pébay 2008, eq. 2.1."""
        n, mean, a2, a3, a4 = self
        m, other_mean, b2, b3, b4 = other
        d = other_mean - mean
        s = d / (n + m)
        return Moments(
            n + m,
            mean + m * s,
            a2 + b2 + n * m * s * d,
            a3 + b3 + n * m * (n - m) * s**2 * d + 3 * s * (n * b2 - m * a2),
            a4
            + b4
            + n * m * (n**2 - n * m + m**2) * s**3 * d
            + 6 * s**2 * (n**2 * b2 + m**2 * a2)
            + 4 * s * (n * b3 - m * a3),
        )

    @property
    def variance(self) -> np.ndarray:
        return self.m2 / (self.num - 1)

    @property
    def mean_error(self) -> np.ndarray:
        """The mean's standard error."""
        return np.sqrt(self.variance / self.num)

    @property
    def variance_error(self) -> np.ndarray:
        """The variance's standard error."""
        squared = (self.m4 / self.num - self.variance**2) / self.num
        return np.sqrt(np.maximum(squared, 0))


class Stream:
    """The moments of a pytree's draws, chunk by chunk.

    Attributes:
      leaves: the moments of each leaf, once a chunk was added.
      num_nonfinite: how many draws are not finite.
    """

    def __init__(self):
        self.leaves: list[Moments] = []
        self.num_nonfinite = 0

    def add(self, draws: Any, count: int) -> None:
        """Adds the first `count` draws of those along the first axis of every leaf."""
        leaves, num_nonfinite = jax.device_get(_summarize(draws, count))
        self.num_nonfinite += int(num_nonfinite)
        new = []
        for leaf in leaves:
            first, mean, scale, *sums = (np.asarray(x, np.float64) for x in leaf)
            powers = (s * scale**k for k, s in zip((2, 3, 4), sums, strict=True))
            new.append(Moments(count, first + mean, *powers))
        # What is not finite stays so, without a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            joined = [a.join(b) for a, b in zip(self.leaves, new, strict=bool(self.leaves))]
        self.leaves = joined or new


@jax.jit
def _summarize(draws: Any, count: int) -> tuple[list[tuple[jax.Array, ...]], jax.Array]:
    """For each leaf its first draw, and of the deviations from that one their mean, and of those
    from the mean the largest and, over that one, the sums of powers; and how many are not finite.

    So nothing is lost where draws differ by little, and no power overflows.
    """
    leaves = jax.tree.leaves(draws)
    valid = jnp.arange(len(leaves[0])) < count
    finite = [jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1) for x in leaves]

    def summarize(x: jax.Array) -> tuple[jax.Array, ...]:
        x = x.astype(_numerics.compute_dtype(x.dtype))
        counts = valid.reshape(-1, *(1,) * (x.ndim - 1))
        shifted = jnp.where(counts, x - x[:1], 0)
        mean = jnp.sum(shifted, axis=0, keepdims=True) / count
        deviation = jnp.where(counts, shifted - mean, 0)
        scale = jnp.max(jnp.abs(deviation), axis=0, keepdims=True)
        unit = deviation / jnp.where(scale == 0, 1, scale)
        return x[0], mean[0], scale[0], *(jnp.sum(unit**k, axis=0) for k in (2, 3, 4))

    num_nonfinite = jnp.sum(valid & ~jnp.all(jnp.stack(finite), axis=0))
    return [summarize(x) for x in leaves], num_nonfinite
