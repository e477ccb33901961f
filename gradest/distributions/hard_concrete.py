"""Hard concrete gates: relaxed bits that are 0 or 1 with a probability of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check, _random
from .._numerics import in_compute_dtype, tempered
from .base import Distribution, Shape, align, align_wide, as_floats

_BELOW = _check.Domain(
    "finite numbers less than 0",
    lambda x: np.isfinite(x) & (x < 0),
    "What is below 0 is cut off, and makes a gate 0.",
)
_ABOVE = _check.Domain(
    "finite numbers greater than 1",
    lambda x: np.isfinite(x) & (x > 1),
    "What is above 1 is cut off, and makes a gate 1.",
)


class HardConcrete(Distribution):
    r"""Independent gates between 0 and 1, both of which have a probability: L0 regularisation.

    A relaxed bit s = sigmoid((log_alpha + logistic noise) / temperature) is stretched to the
    interval from `low` to `high`, and cut off: z = min(1, max(0, s (high - low) + low)). Draws are
    differentiable in all parameters: a gate that is 0 or 1 has the derivative 0, and the mean of
    those in between is that of the expectation. The cut is a kink of the draw, and no jump; to
    count the gates that are not 0 is one. Their expected number is `prob_nonzero().sum()`, the
    penalty of the L0 norm.

    Args:
      log_alpha: log-odds of the bit that is relaxed, of any shape.
      temperature: positive; as it falls to 0 draws gather at 0 and 1. (The beta of the reference.)
      low: less than 0, the gamma of the reference.
      high: greater than 1, the zeta of the reference. The four broadcast against each other.

    There is no `log_prob`: the law is of mass at 0 and at 1, and of a density in between, whose
    logarithm would jump along a draw.

    Raises:
      ValueError: if the temperature, `low` or `high` is known to be out of range.
      NotImplementedError: from `log_prob`.

    Example:
      >>> import gradest as ge, jax, jax.numpy as jnp
      >>> from gradest.distributions import HardConcrete
      >>> x = jnp.array([1.0, 1.0, 0.0])                 # the last one is of no use
      >>> def loss(log_alpha, key):
      ...     gates = HardConcrete(log_alpha)
      ...     z = ge.reparameterize()(key, gates)
      ...     return (jnp.sum(z * x) - 2.0) ** 2 + 0.1 * jnp.sum(gates.prob_nonzero())
      >>> log_alpha, gradient = jnp.zeros(3), jax.jit(jax.grad(loss))
      >>> for key in jax.random.split(jax.random.key(0), 300):
      ...     log_alpha -= 0.2 * gradient(log_alpha, key)
      >>> HardConcrete(log_alpha).mean().round()
      Array([1., 1., 0.], dtype=float32)

    Reference:
      Louizos, Welling and Kingma 2018, "Learning Sparse Neural Networks through L0
      Regularization", eq. 10 and 11 for draws, eq. 12 for the probability of not being 0.
    """

    parameters = ("log_alpha", "temperature", "low", "high")
    reparameterizable = True
    atoms = True
    no_density = (
        "its law has mass at 0 and at 1 and a density in between. Use reparameterize, and for the "
        "number of gates that are not 0 prob_nonzero()."
    )
    log_alpha: jax.Array
    temperature: jax.Array
    low: jax.Array
    high: jax.Array

    def __init__(
        self,
        log_alpha: ArrayLike,
        temperature: ArrayLike = 2 / 3,
        low: ArrayLike = -0.1,
        high: ArrayLike = 1.1,
    ):
        self.log_alpha, self.temperature, self.low, self.high = as_floats(
            log_alpha=log_alpha, temperature=temperature, low=low, high=high
        )
        _check.elements(_check.POSITIVE, temperature=temperature)
        _check.elements(_BELOW, low=low)
        _check.elements(_ABOVE, high=high)

    @property
    def shape(self) -> Shape:
        return self.log_alpha.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        noise = _random.noise(_random.logistic, key, (*shape, *self.shape), self.log_alpha.dtype)
        noise, log_alpha, t, low, high = align_wide(
            noise, self.log_alpha, self.temperature, self.low, self.high
        )
        s = jax.nn.sigmoid(tempered(log_alpha + noise, t))
        return jnp.clip(s * (high - low) + low, 0, 1).astype(self.log_alpha.dtype)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Refused: it has no density."""
        raise NotImplementedError(f"HardConcrete.log_prob: {self.no_density}")

    def prob_zero(self) -> jax.Array:
        """The probability of a gate to be 0."""
        return jax.nn.sigmoid(-self._log_odds_above(0.0)).astype(self.log_alpha.dtype)

    def prob_nonzero(self) -> jax.Array:
        """The probability of a gate not to be 0: eq. 12, of which the L0 penalty is the sum."""
        return jax.nn.sigmoid(self._log_odds_above(0.0)).astype(self.log_alpha.dtype)

    def prob_one(self) -> jax.Array:
        """The probability of a gate to be 1."""
        return jax.nn.sigmoid(self._log_odds_above(1.0)).astype(self.log_alpha.dtype)

    def mean(self) -> jax.Array:
        """By quadrature, for temperatures up to 5 with a relative error below 1e-6.

        E[z] is the integral of P(z > t) over t from 0 to 1. (What the reference evaluates a trained
        network with is no mean: jnp.clip(sigmoid(log_alpha) * (high - low) + low, 0, 1).)
        """
        log_alpha, temperature, low, high = in_compute_dtype(*jax.tree.leaves(self))
        # Over y = logit(s), in which the integrand has no corner, however close the ends are.
        bottom, top = jnp.log(-low) - jnp.log(high), jnp.log1p(-low) - jnp.log(high - 1)
        middle, half, log_alpha, temperature, node, weight = align(
            *(x[..., None] for x in ((top + bottom) / 2, (top - bottom) / 2)),
            *(x[..., None] for x in (log_alpha, temperature)),
            *(jnp.asarray(x, low.dtype) for x in _RULE),
        )
        y = middle + half * node
        above = jax.nn.sigmoid(log_alpha - temperature * y)
        steps = half * weight * jax.nn.sigmoid(y) * jax.nn.sigmoid(-y)
        mean = (high - low) * jnp.sum(above * steps, axis=-1)
        return jnp.clip(mean, 0, 1).astype(self.log_alpha.dtype)

    def _log_odds_above(self, t: float) -> jax.Array:
        """Of a gate to be above t, or at 1: log_alpha - temperature logit((t - low)/(high - low)).

        In at least single precision.
        """
        log_alpha, temperature, low, high = in_compute_dtype(*jax.tree.leaves(self))
        return log_alpha - temperature * (jnp.log(t - low) - jnp.log(high - t))


_RULE = np.polynomial.legendre.leggauss(96)
