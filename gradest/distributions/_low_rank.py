"""Covariances of low rank plus a diagonal, of which no matrix is made.

All by one QR decomposition, whose Q R has digits where the small matrix 1 + A^T A has none left.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular


class LowRank(NamedTuple):
    """A covariance D + W W^T by A = W / sqrt(D), and Q R of A on top of the identity.

    Attributes:
      root: the square root of the diagonal D, shape (..., d).
      a: shape (..., d, r).
      q: the first d rows of Q, shape (..., d, r): A R^-1.
      r: shape (..., r, r), of R^T R = 1 + A^T A.
    """

    root: jax.Array
    a: jax.Array
    q: jax.Array
    r: jax.Array

    def log_det(self) -> jax.Array:
        of_r = jnp.abs(jnp.diagonal(self.r, axis1=-2, axis2=-1))
        return 2 * (jnp.sum(jnp.log(self.root), axis=-1) + jnp.sum(jnp.log(of_r), axis=-1))

    def squared_norm(self, x: jax.Array) -> jax.Array:
        """x^T (D + W W^T)^-1 x of vectors x, with more axes in front or without."""
        x = x / jnp.broadcast_to(self.root, x.shape)
        spread = lambda matrix: jnp.broadcast_to(matrix, (*x.shape[:-1], *matrix.shape[-2:]))
        of_q = jnp.einsum("...ij,...i->...j", spread(self.q), x)
        m = solve_triangular(spread(self.r), of_q[..., None])[..., 0]
        left = x - jnp.einsum("...ij,...j->...i", spread(self.a), m)
        return jnp.sum(left * left, axis=-1) + jnp.sum(m * m, axis=-1)

    def inverse_diagonal(self) -> jax.Array:
        """Of (D + W W^T)^-1."""
        return (1 - jnp.sum(self.q * self.q, axis=-1)) / (self.root * self.root)


def in_factors(factor: jax.Array, diag: jax.Array) -> LowRank:
    """Of W and the diagonal of D."""
    root = jnp.sqrt(diag)
    a = factor / root[..., None]
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    below = jnp.broadcast_to(eye, (*a.shape[:-2], *eye.shape))
    q, r = jnp.linalg.qr(jnp.concatenate([a, below], axis=-2))
    return LowRank(root, a, q[..., : a.shape[-2], :], r)
