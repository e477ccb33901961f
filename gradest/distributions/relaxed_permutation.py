"""Relaxed permutations: doubly stochastic matrices that gather at matrices of permutations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from optax.assignment import hungarian_algorithm

from .. import _check, _random
from .._derivatives.refuse import Refusal, undifferentiable
from .._numerics import in_compute_dtype, tempered
from .._written import user_line
from .base import Distribution, Shape, align_wide, as_float
from .subset import WEIGHTS


class RelaxedPermutation(Distribution):
    r"""Gumbel-Sinkhorn: relaxed permutations of n items, as matrices that matchings are made of.

    x = S((logits + Gumbel noise) / temperature), with S Sinkhorn's operator: to exponentiate, and
    then by turns to divide rows and columns by their sums, here a finite number of times. As the
    temperature falls, draws approach the permutation matrix in which logits plus noise have the
    largest sum, `harden(x)`. They are differentiable in logits and temperature through all
    iterations, to every order. Everything is computed in logarithms; a draw takes O(n^2) operations
    for each iteration.

    The columns of a draw add up to one. So do the rows only in the limit of many iterations: more
    are needed the lower the temperature. `marginal_error(x)` tells how far off they are.

    There is no `log_prob`: the density of a draw is not tractable, and that of a hard one a sum
    over noise. Where a score is needed, `PlackettLuce` is a distribution of permutations.

    Args:
      logits: how well item j fits place i, shape (..., n, n); -inf forbids it. Where no permutation
        is possible, draws are not doubly stochastic, which `marginal_error` tells.
      temperature: positive, shape (...,) or scalar: one for each matrix.
      num_iterations: how often rows and columns are divided, a Python integer of at least 1.

    Raises:
      ValueError: if `logits` are not square matrices, or known to be infinite or to forbid a place
        or an item altogether; if the temperature is not positive, or its shape another; if
        num_iterations is less than 1.
      NotImplementedError: from `log_prob`.
      UnestimatedGradientError: when what `harden` or `matching` returns is differentiated.

    Example:
      >>> import gradest as ge, jax, jax.numpy as jnp
      >>> from gradest.distributions import RelaxedPermutation
      >>> numbers = jnp.array([0.7, 0.1, 0.4])
      >>> logits = 20 * jnp.outer(jnp.arange(3.0), numbers)      # large numbers to late places
      >>> dist = RelaxedPermutation(logits, temperature=0.1)
      >>> x = ge.reparameterize()(jax.random.key(0), dist)
      >>> dist.harden(x) @ numbers
      Array([0.1, 0.4, 0.7], dtype=float32)

    Reference:
      Mena, Belanger, Linderman and Snoek 2018, "Learning Latent Permutations with Gumbel-Sinkhorn
      Networks", eq. 1 for Sinkhorn's operator, section 4 for the draws.
      Kuhn 1955, "The Hungarian Method for the Assignment Problem", for matchings.
    """

    parameters = ("logits", "temperature")
    static = ("num_iterations",)
    reparameterizable = True
    no_density = (
        "that of a Gumbel-Sinkhorn draw is not tractable. Use reparameterize; or draw the "
        "permutation from PlackettLuce, which has a log_prob."
    )
    logits: jax.Array
    temperature: jax.Array
    num_iterations: int

    def __init__(self, logits: ArrayLike, temperature: ArrayLike = 1.0, num_iterations: int = 20):
        l, t = as_float("logits", logits), as_float("temperature", temperature)
        if l.ndim < 2 or l.shape[-1] != l.shape[-2] or l.shape[-1] == 0:
            raise ValueError(
                "logits: expected square matrices along the last two axes, places by items, got "
                f"an array of shape {l.shape}. For the first k places of more items draw from "
                "PlackettLuce."
            )
        _check.elements(WEIGHTS, logits=logits)
        _check_possible(logits)
        _check.elements(_check.POSITIVE, temperature=temperature)
        try:
            batch = np.broadcast_shapes(l.shape[:-2], t.shape)
        except ValueError:
            raise ValueError(
                "temperature: expected a shape that broadcasts with that of logits less its last "
                f"two axes, {l.shape[:-2]}, got {t.shape}."
            ) from None
        dtype = jnp.result_type(l, t)
        self.logits = jnp.broadcast_to(l.astype(dtype), (*batch, *l.shape[-2:]))
        self.temperature = jnp.broadcast_to(t.astype(dtype), batch)
        self.num_iterations = _check.integer("num_iterations", num_iterations, 1)

    @property
    def shape(self) -> Shape:
        return self.logits.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        noise = _random.noise(_random.gumbel, key, (*shape, *self.shape), self.logits.dtype)
        noise, l, t = align_wide(noise, self.logits, self.temperature[..., None, None])
        # The same permutations, and nothing that overflows at low temperatures.
        z = l + noise
        top = jnp.max(z, axis=-1, keepdims=True)
        z = z - jax.lax.stop_gradient(jnp.where(top > -jnp.inf, top, 0))
        return jnp.exp(_sinkhorn(tempered(z, t), self.num_iterations)).astype(self.logits.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Refused: it is not tractable."""
        raise NotImplementedError(f"RelaxedPermutation.log_prob: {self.no_density}")

    def marginal_error(self, x: ArrayLike) -> jax.Array:
        """How far off one the sum of a row or a column of `x` is at most, shape (...,)."""
        (x,) = in_compute_dtype(as_float("x", x))
        off = [jnp.max(jnp.abs(jnp.sum(x, axis=axis) - 1), axis=-1) for axis in (-1, -2)]
        return jnp.maximum(*off).astype(self.logits.dtype)

    def harden(self, x: ArrayLike) -> jax.Array:
        """The permutation matrices in which log x has the largest sum, of the shape of `x`.

        For a draw x that is the matching of logits plus noise, since dividing rows and columns adds
        the same to all. It is found by the Hungarian algorithm, in O(n^3), and has no derivative:
        with that of the relaxed draw, `x + jax.lax.stop_gradient(dist.harden(x) - x)`.
        """
        (wide,) = in_compute_dtype(as_float("x", x))
        scores = jnp.log(jnp.maximum(wide, jnp.finfo(wide.dtype).tiny))
        return self._matching("harden", x, scores)

    def matching(self) -> jax.Array:
        """The permutation matrices in which the logits have the largest sum: without noise."""
        return self._matching("matching", self.logits, in_compute_dtype(self.logits)[0])

    def _matching(self, name: str, of: Any, scores: jax.Array) -> jax.Array:
        refusal = Refusal(
            f"RelaxedPermutation.{name}",
            user_line(),
            "A hard permutation is constant but for jumps. For the derivative of the relaxed draw "
            "x use x + jax.lax.stop_gradient(dist.harden(x) - x).",
        )
        hard = _matching(jax.lax.stop_gradient(scores)).astype(self.logits.dtype)
        return undifferentiable(refusal, hard, of)


def _check_possible(logits: ArrayLike) -> None:
    """Raises if a place or an item is known to be forbidden altogether."""
    known = _check.known(logits)
    if known is None:
        return
    for axis, what in ((-1, "a place (a row)"), (-2, "an item (a column)")):
        if np.any(np.all(known == -np.inf, axis=axis)):
            raise ValueError(
                "logits: expected some number above -inf for every place and every item, got "
                f"{what} that has none. Forbid less."
            )


def _sinkhorn(z: jax.Array, num_iterations: int) -> jax.Array:
    """log of S^l(z) for l = num_iterations: rows first, columns last."""

    def divided(z: jax.Array, axis: int) -> jax.Array:
        total = logsumexp(z, axis=axis, keepdims=True)
        return z - jnp.where(total > -jnp.inf, total, 0)

    def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        return divided(divided(z, -1), -2), None

    return jax.lax.scan(step, z, None, length=num_iterations)[0]


def _matching(scores: jax.Array) -> jax.Array:
    """The permutation matrix in which finite or forbidding scores have the largest sum."""
    n = scores.shape[-1]

    def of_one(scores: jax.Array) -> jax.Array:
        # What is forbidden costs more than any permutation of what is not.
        possible = scores > -jnp.inf
        costs = jnp.where(possible, jnp.max(scores) - scores, 0)
        costs = jnp.where(possible, costs, 1 + 2 * n * jnp.max(costs))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            rows, columns = hungarian_algorithm(costs)
        return jnp.zeros((n, n), scores.dtype).at[rows, columns].set(1)

    for _ in range(scores.ndim - 2):
        of_one = jax.vmap(of_one)
    return of_one(scores)
