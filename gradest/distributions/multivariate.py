"""Normal vectors, by a matrix of their covariance or by factors and a diagonal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from .. import _check, _mesh, _numerics, _random
from ._information import OfLowRankNormal, OfMultivariateNormal
from ._low_rank import in_factors
from .base import Distribution, Shape, Shifted, align, align_wide, as_float, finite, shifted
from .continuous import Normal


class _Vectors(Distribution):
    """Normal vectors around a centre."""

    reparameterizable = True
    loc: jax.Array

    @property
    def shape(self) -> Shape:
        return self.loc.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of vectors `x` of shape (..., d)."""
        return self._log_prob_unrounded(shifted(x, self.loc))

    def _rounded(self, u: Shifted) -> jax.Array:
        return finite(u.start + u.step, self.loc.dtype)

    @property
    def noise_shape(self) -> Shape:
        """Of the noise that a draw is made of."""
        return self.shape

    def of_noise(self, e: jax.Array) -> jax.Array:
        """The draw made of standard Normal noise."""
        return self._rounded(self._of_noise_unrounded(e))

    def reflect(self, x: jax.Array) -> jax.Array:
        """The draw that mirrors `x` at the centre."""
        return self.loc + (self.loc - x)


class MultivariateNormal(OfMultivariateNormal, _Vectors):
    """Multivariate Normal vectors, x = loc + scale_tril @ noise.

    Args:
      loc: mean, shape (..., d).
      scale_tril: lower-triangular Cholesky factor of the covariance, shape (..., d, d), with a
        positive diagonal; what stands above it is ignored. The leading axes of the two broadcast
        against each other.
      covariance_matrix: instead of it, the covariance, symmetric and positive definite, of which
        the factor is taken (O(d^3) operations, in at least single precision).
      precision_matrix: instead of it, the inverse of the covariance.

    Raises:
      TypeError: if not exactly one of the three is given.
      ValueError: for shapes that do not fit, numbers that are known not to be finite, a factor
        whose diagonal is known not to be positive, or a matrix that is known not to be symmetric
        or not positive definite.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradest.distributions import MultivariateNormal
      >>> MultivariateNormal(jnp.zeros(3), 2 * jnp.eye(3))
      MultivariateNormal(loc=float32[3], scale_tril=float32[3, 3])
      >>> print(MultivariateNormal(jnp.zeros(2), covariance_matrix=4 * jnp.eye(2)).scale_tril)
      [[2. 0.]
       [0. 2.]]
    """

    parameters = ("loc", "scale_tril")
    scale_tril: jax.Array

    def __init__(
        self,
        loc: ArrayLike,
        scale_tril: ArrayLike | None = None,
        *,
        covariance_matrix: ArrayLike | None = None,
        precision_matrix: ArrayLike | None = None,
    ):
        of = {
            "scale_tril": scale_tril,
            "covariance_matrix": covariance_matrix,
            "precision_matrix": precision_matrix,
        }
        given = [(name, value) for name, value in of.items() if value is not None]
        if len(given) != 1:
            names = ", ".join(name for name, _ in given) or "none"
            raise TypeError(f"{', '.join(of)}: expected exactly one of the three, got {names}.")
        ((name, value),) = given
        mean, matrix = as_float("loc", loc), as_float(name, value)
        d = matrix.shape[-1] if matrix.ndim >= 2 else None
        dtype = jnp.result_type(mean, matrix)
        try:
            if mean.ndim == 0 or matrix.shape[-2:] != (d, d) or mean.shape[-1] not in (1, d):
                raise ValueError
            # Aligned by adding the vector's missing axis, then taking it away again.
            columns, _ = align(mean[..., None], matrix)
        except ValueError:
            kind = "lower-triangular" if name == "scale_tril" else "symmetric"
            raise ValueError(
                f"loc, {name}: expected a vector of shape (..., d) and a {kind} matrix of shape "
                f"(..., d, d) whose leading axes broadcast, got {mean.shape} and {matrix.shape}."
            ) from None
        _check.elements(_check.FINITE, loc=loc)
        factor = _FACTORS[name](name, value, matrix)
        self.loc = columns[..., 0].astype(dtype)
        self.scale_tril = jnp.broadcast_to(factor.astype(dtype), columns.shape)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> Shifted:
        noise = _random.noise(jax.random.normal, key, (*shape, *self.shape), self.loc.dtype)
        return self._of_noise_unrounded(noise)

    def _of_noise_unrounded(self, e: jax.Array) -> Shifted:
        noise, loc = align_wide(e, self.loc)
        factor = _numerics.lower(self.scale_tril).astype(loc.dtype)
        factor = jnp.broadcast_to(factor, (*noise.shape, noise.shape[-1]))
        noise = _mesh.like(noise, jax.typeof(loc))
        return Shifted(loc, jnp.einsum("...ij,...j->...i", factor, noise))

    def _log_prob_unrounded(self, u: Shifted) -> jax.Array:
        x, loc = align_wide(u.step, self.loc)
        away = x - (loc - u.start)
        factor = jnp.broadcast_to(self.scale_tril, (*x.shape, x.shape[-1])).astype(x.dtype)
        z = _mesh.automatic(_solve_lower, factor, away[..., None])[..., 0]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
        return (jnp.sum(Normal._log_density(z), axis=-1) - log_det).astype(self.loc.dtype)


_solve_lower = functools.partial(solve_triangular, lower=True)


# ---- Factors -------------------------------------------------------------------------------


def _given(name: str, value: Any, matrix: jax.Array) -> jax.Array:
    numbers = _check.known(value)
    if numbers is None:
        return matrix
    _check.elements(_check.FINITE, **{name: np.tril(numbers)})
    if not np.all(np.diagonal(numbers, axis1=-2, axis2=-1) > 0):
        raise ValueError(
            f"{name}: expected a positive diagonal, got one that is not. It is the Cholesky "
            "factor of a covariance: give that as covariance_matrix=."
        )
    return matrix


def _of_covariance(name: str, value: Any, matrix: jax.Array) -> jax.Array:
    _check_definite(name, value, matrix.dtype)
    return jnp.linalg.cholesky(*_numerics.in_compute_dtype(matrix))


def _of_precision(name: str, value: Any, matrix: jax.Array) -> jax.Array:
    _check_definite(name, value, matrix.dtype)
    (matrix,) = _numerics.in_compute_dtype(matrix)
    turn = lambda a: jnp.flip(a, axis=(-2, -1))
    # P = U U^T with U upper triangular, and so P^-1 = L L^T with L the inverse of U^T.
    lower = jnp.swapaxes(turn(jnp.linalg.cholesky(turn(matrix))), -1, -2)
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    # Along the axes of a mesh as the factor is.
    eye = jnp.zeros_like(lower) + eye
    return _mesh.automatic(_solve_lower, lower, eye)


_FACTORS = {
    "scale_tril": _given,
    "covariance_matrix": _of_covariance,
    "precision_matrix": _of_precision,
}


def _check_definite(name: str, value: Any, dtype: Any) -> None:
    numbers = _check.known(value)
    if numbers is None or numbers.size == 0:
        return
    _check.elements(_check.FINITE, **{name: value})
    size = np.max(np.abs(numbers), axis=(-2, -1), keepdims=True)
    apart = np.abs(numbers - np.swapaxes(numbers, -1, -2))
    # What was multiplied out of factors is symmetric but for rounding.
    if not np.all(apart <= 64 * numbers.shape[-1] * float(jnp.finfo(dtype).eps) * size):
        raise ValueError(
            f"{name}: expected a symmetric matrix, got one that is up to {np.max(apart):.3g} from "
            "its transpose. Give (a + a.T) / 2; or a triangular factor, as scale_tril=."
        )
    least = np.min(np.linalg.eigvalsh(numbers))
    if not least > 0:
        raise ValueError(
            f"{name}: expected a positive definite matrix, got one with an eigenvalue of "
            f"{least:.3g}. Add a small multiple of the identity: a + 1e-6 * jnp.eye(d)."
        )


# ---- Low rank ------------------------------------------------------------------------------


class LowRankMultivariateNormal(OfLowRankNormal, _Vectors):
    r"""Normal vectors of covariance cov_factor @ cov_factor.T + diag(cov_diag).

    x = loc + cov_factor @ z + sqrt(cov_diag) * noise with z of r elements. Draws take O(d r)
    operations and the rest O(d r^2): no matrix of d x d elements is made. With A = cov_factor /
    sqrt(cov_diag), v = (x - loc) / sqrt(cov_diag), and the QR decomposition of A on top of the
    identity, Q R,

    .. math:: \log\det\Sigma = \sum_i \log d_i + 2 \sum_j \log |R_{jj}|, \qquad
              (x - \mu)^T \Sigma^{-1} (x - \mu) = \min_m |v - A m|^2 + |m|^2

    which are the lemma of the determinant and Woodbury's identity, without a difference of large
    numbers where the factors are large.

    Args:
      loc: mean, shape (..., d).
      cov_factor: shape (..., d, r).
      cov_diag: positive, shape (..., d). The leading axes of the three broadcast.

    Raises:
      ValueError: for shapes that do not fit, or a diagonal that is known not to be positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradest.distributions import LowRankMultivariateNormal
      >>> wide = LowRankMultivariateNormal(jnp.zeros(50_000), jnp.ones((50_000, 3)), 0.1)
      >>> wide.log_prob(wide.sample(jax.random.key(0))).shape
      ()

    Reference:
      Woodbury 1950, "Inverting Modified Matrices".
    """

    parameters = ("loc", "cov_factor", "cov_diag")
    cov_factor: jax.Array
    cov_diag: jax.Array

    def __init__(self, loc: ArrayLike, cov_factor: ArrayLike, cov_diag: ArrayLike):
        mean, factor = as_float("loc", loc), as_float("cov_factor", cov_factor)
        diag = as_float("cov_diag", cov_diag)
        dtype = jnp.result_type(mean, factor, diag)
        try:
            if mean.ndim == 0 or factor.ndim < 2:
                raise ValueError
            *batch, d = np.broadcast_shapes(mean.shape, factor.shape[:-1], diag.shape)
            if factor.shape[-2] != d:
                raise ValueError
        except ValueError:
            raise ValueError(
                "loc, cov_factor, cov_diag: expected arrays of shapes (..., d), (..., d, r) and "
                "(..., d) whose leading axes broadcast, got "
                f"{mean.shape}, {factor.shape} and {diag.shape}."
            ) from None
        _check.elements(_check.FINITE, loc=loc, cov_factor=cov_factor)
        _check.elements(_check.POSITIVE, cov_diag=cov_diag)
        self.loc = jnp.broadcast_to(mean.astype(dtype), (*batch, d))
        self.cov_factor = jnp.broadcast_to(factor.astype(dtype), (*batch, *factor.shape[-2:]))
        self.cov_diag = jnp.broadcast_to(diag.astype(dtype), (*batch, d))

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> Shifted:
        keys = _random.split(_random.as_keys(key), 2)
        full, dtype = (*shape, *self.shape), self.loc.dtype
        rank = self.cov_factor.shape[-1]
        z = _random.noise(jax.random.normal, keys[0], (*full[:-1], rank), dtype)
        noise = _random.noise(jax.random.normal, keys[1], full, dtype)
        return self._made_of(z, noise)

    @property
    def noise_shape(self) -> Shape:
        """Of the noise that a draw is made of: an element's own, and what they have in common."""
        *batch, d, rank = self.cov_factor.shape
        return (*batch, d + rank)

    def _of_noise_unrounded(self, e: jax.Array) -> Shifted:
        noise, z = jnp.split(e, [self.loc.shape[-1]], axis=-1)
        return self._made_of(z, noise)

    def _made_of(self, z: jax.Array, noise: jax.Array) -> Shifted:
        noise, loc, diag = align_wide(noise, self.loc, self.cov_diag)
        factor = self.cov_factor.astype(loc.dtype)
        z = _mesh.like(z, jax.typeof(loc))
        low_rank = jnp.einsum("...ij,...j->...i", *_of_rank(factor, z))
        return Shifted(loc, low_rank + jnp.sqrt(diag) * noise)

    def _log_prob_unrounded(self, u: Shifted) -> jax.Array:
        x, loc = align_wide(u.step, self.loc)
        # JAX's factorizations do without explicit axes of a mesh.
        away = _mesh.replicated(x - (loc - u.start))
        covariance = _mesh.replicated((self.cov_factor, self.cov_diag))
        factors = in_factors(*(a.astype(loc.dtype) for a in covariance))
        squares = factors.squared_norm(away)
        constant = -Normal._log_density(jnp.zeros((), loc.dtype)) * loc.shape[-1]
        log_det = jnp.broadcast_to(factors.log_det(), squares.shape)
        return (-0.5 * (squares + log_det) - constant).astype(self.loc.dtype)


def _of_rank(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix and vectors of it, of as many axes of a batch."""
    return jnp.broadcast_to(a, (*b.shape[:-1], *a.shape[-2:])), b
