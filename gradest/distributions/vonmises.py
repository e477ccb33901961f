"""Von Mises angles, drawn by rejection, with implicit reparameterization gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check
from .._numerics import in_compute_dtype
from ._derived import wide
from ._implicit import implicit, per_lane
from .base import Distribution, Shape, Shifted, align, align_wide, as_floats, shifted


class VonMises(Distribution):
    r"""Independent angles, p(x) = exp(k cos(x - loc)) / (2 pi I_0(k)), from -pi to pi.

    Draws are differentiable in both parameters, to every order: in the concentration k
    implicitly, with dx/dk = -(dF(x; k)/dk) / p(x; k), an integral that is computed by quadrature
    with a relative error below 1e-5 in single precision and 1e-9 in double. Since draws end at
    -pi and pi and go on at the other end, the gradient of an expectation is unbiased for costs
    that are functions of an angle: of period 2 pi.

    Args:
      loc: mean direction, in radians.
      concentration: k, not negative; 0 is uniform, and for a large one the standard deviation is
        1 / sqrt(k) radians. The two broadcast against each other.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradest.distributions import VonMises
      >>> x = VonMises(0.0, 4.0).sample(jax.random.key(0), (100_000,))
      >>> print(f"{jnp.cos(x).mean():.2f}")            # I_1(4) / I_0(4)
      0.86

    Reference:
      Best and Fisher 1979, "Efficient Simulation of the von Mises Distribution", section 2, for
      draws. Figurnov, Mohamed and Mnih 2018, "Implicit Reparameterization Gradients", eq. 5.
    """

    parameters = ("loc", "concentration")
    reparameterizable = True
    loc: jax.Array
    concentration: jax.Array

    def __init__(self, loc: ArrayLike, concentration: ArrayLike):
        self.loc, self.concentration = as_floats(loc=loc, concentration=concentration)
        _check.elements(_check.FINITE, loc=loc)
        _check.elements(_check.NOT_NEGATIVE, concentration=concentration)

    @property
    def shape(self) -> Shape:
        return self.loc.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self._rounded(self._sample_unrounded(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise, of period 2 pi in `x`."""
        return self._log_prob_unrounded(shifted(jnp.asarray(x, self.loc.dtype), self.loc))

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> Shifted:
        full = (*shape, *self.shape)
        loc, k = in_compute_dtype(self.loc, self.concentration)
        k = jnp.broadcast_to(k, full)
        angle = implicit(_tangent, per_lane(_reject, key, full, jax.lax.stop_gradient(k)), k)
        return Shifted(jnp.broadcast_to(loc, full), angle)

    def _rounded(self, u: Shifted) -> jax.Array:
        x = u.start + u.step
        turns = jax.lax.stop_gradient(jnp.round(x / (2 * np.pi)))
        return (x - 2 * np.pi * turns).astype(self.loc.dtype)

    def _log_prob_unrounded(self, u: Shifted) -> jax.Array:
        # Wide at once, for a derivative that is rounded once: not each of its terms.
        dist = wide(self)
        x, loc, k = align_wide(u.step, dist.loc, dist.concentration)
        # cos(x) - 1 without the digits that it loses where the concentration is large.
        below_mode = 2 * k * jnp.sin((x - (loc - u.start)) / 2) ** 2
        log_normaliser = align(x, _log_normaliser(dist.concentration))[1]
        return (-below_mode - log_normaliser).astype(self.loc.dtype)

    def entropy(self) -> jax.Array:
        """In nats, of each independent element."""
        (k,) = in_compute_dtype(self.concentration)
        log_normaliser, excess = _normaliser(k)
        return (log_normaliser - k * excess).astype(self.loc.dtype)

    def _relative_entropy(self, other: "VonMises") -> jax.Array:
        (of_p, excess), (of_q, _) = (
            _normaliser(self.concentration),
            _normaliser(other.concentration),
        )
        # E[1 - cos] around the other mode.
        apart = 2 * jnp.sin((self.loc - other.loc) / 2) ** 2
        around = apart * (1 + excess) - excess
        return of_q - of_p + other.concentration * around + self.concentration * excess


# ---- Draws ---------------------------------------------------------------------------------


def _reject(key: jax.Array, k: jax.Array) -> jax.Array:
    """Angles around 0 by rejection from a wrapped Cauchy density, accepted at 66% or more.

    The envelope is 1 / (s - cos x), with s = (1 + sqrt(1 + 4 k^2)) / (2 k), in terms of k (s - 1),
    which loses no digits, be k large or 0.
    """
    k_s = (1 + 1 / (jnp.hypot(1.0, 2 * k) + 2 * k)) / 2
    width = jnp.sqrt(k_s / (k_s + 2 * k))

    def propose(state: Any) -> Any:
        key, x, pending = state
        key, key_cauchy, key_accept = jax.random.split(key, 3)
        turn = jax.random.uniform(key_cauchy, k.shape, k.dtype, -0.5, 0.5)
        half = jnp.arctan(width * jnp.tan(np.pi * turn))
        y = k_s + 2 * k * jnp.sin(half) ** 2
        u = jax.random.exponential(key_accept, k.shape, k.dtype)
        rejected = 1 - y + jnp.log(y) < -u
        return key, jnp.where(pending, 2 * half, x), pending & rejected

    start = (key, jnp.zeros_like(k), jnp.ones_like(k, bool))
    return jax.lax.while_loop(lambda state: jnp.any(state[2]), propose, start)[1]


# ---- Derivatives ---------------------------------------------------------------------------

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def _integral(function: Any, low: jax.Array, high: jax.Array) -> jax.Array:
    """By Gauss and Legendre's rule, the nodes along a new last axis of what `function` gets."""
    middle, half = (high + low)[..., None] / 2, (high - low)[..., None] / 2
    middle, half, node, weight = align(
        middle, half, jnp.asarray(_NODES, low.dtype), jnp.asarray(_WEIGHTS, low.dtype)
    )
    return jnp.sum(half * weight * function(middle + half * node), axis=-1)


def _spread(k: jax.Array) -> jax.Array:
    """Where the density has fallen by exp(-50), or pi: the range of integrals from 0."""
    sine = jnp.sqrt(jnp.minimum(25.0 / jnp.maximum(jax.lax.stop_gradient(k), 1.0), 1.0))
    return 2 * jnp.arcsin(sine)


def _log_normaliser(k: jax.Array) -> jax.Array:
    """log of the integral of exp(k (cos t - 1)) over the circle, 2 pi I_0(k) exp(-k)."""
    density = lambda t: jnp.exp(-2 * align(t, k[..., None])[1] * jnp.sin(t / 2) ** 2)
    return jnp.log(2 * _integral(density, jnp.zeros_like(k), _spread(k)))


def _normaliser(k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Its logarithm, and the derivative of that: E[cos] - 1."""
    return jax.jvp(_log_normaliser, (k,), (jnp.ones_like(k),))


def _tangent(x: jax.Array, k: jax.Array, dk: jax.Array) -> jax.Array:
    return _slope(x, k) * dk


def _slope(x: jax.Array, k: jax.Array) -> jax.Array:
    """dx/dk, the integral from x to 0 of (cos t - E[cos]) exp(k (cos t - cos x)).

    Or from x to the end of its side, pi or -pi: the integral from there to 0 is zero. That is
    taken where the exponential would be large.
    """
    excess = _normaliser(k)[1]

    def integrand(d: jax.Array) -> jax.Array:
        """At t = x + d: with k large, the difference of t and x would have few digits."""
        a, k_, x_ = align(excess[..., None], k[..., None], x[..., None] + jnp.zeros_like(d))
        fall = 2 * k_ * jnp.sin(x_ + d / 2) * jnp.sin(d / 2)
        return (-2 * jnp.sin((x_ + d) / 2) ** 2 - a) * jnp.exp(-fall)

    return _integral(integrand, jnp.zeros_like(x), _reach(x, k))


def _reach(x: jax.Array, k: jax.Array) -> jax.Array:
    """From x to where the integral ends, which stays there when x moves."""
    r = jnp.abs(x)
    far = 2 * k * jnp.sin(r / 2) ** 2 > 4
    # The tail is cut where the exponential has fallen by exp(-36) or more.
    tail = jnp.minimum(np.pi - r, 72.0 / jnp.maximum(k * jnp.sin(r), 1e-6))
    return jnp.where(far, jnp.sign(x) * tail, -x)
