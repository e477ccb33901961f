"""The control variate of REBAR and RELAX: a function of the relaxed draw, its mean taken pathwise.

With z the noisy logits, b = H(z) the draw and z' a draw of z given b, a function c(z, l) and any
number eta give the unbiased estimate (Tucker et al. 2017, eq. 5; Grathwohl et al. 2018, eq. 6)

    (f(b) - eta c(z')) d log p(b) + eta (d c(z) - d c(z'))

where the last two derivatives are with respect to the parameters, through z, through z' and
directly: l are the logits, of a distribution that has them.
REBAR and RELAX differ in where c comes from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .. import _random
from . import _relaxation


class Noise(NamedTuple):
    """A draw with the noise that made it.

    Attributes:
      key: of z.
      z: the logits with noise added.
      b: the draw, H(z).
      z_given_b: z', which is z itself if it is coupled.
      coupled: whether it is; the control variate is then evaluated once.
    """

    key: jax.Array
    z: jax.Array
    b: jax.Array
    z_given_b: jax.Array
    coupled: bool


def keys(key: jax.Array) -> jax.Array:
    """One for z and one for z'."""
    return _random.split(key, 2)


def noise(key: jax.Array, dist: Any, coupled: bool) -> Noise:
    key_z, key_conditional = keys(key)
    z = _relaxation.perturb(key_z, dist)
    b = _relaxation.harden(dist, z)
    z_given_b = z if coupled else _relaxation.conditional(key_conditional, dist, b)
    return Noise(key_z, z, b, z_given_b, coupled)


def value_and_gradient(
    dist: Any,
    noise: Noise,
    c: Callable[[jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, list[jax.Array]]:
    """c(z') and, of each parameter, d c(z) - d c(z').

    Args:
      dist: what was drawn from, held fixed.
      noise: of the draw.
      c: `c(z, l)`, a scalar to be differentiated, and the value that is taken from the cost, which
        is the same number unless draws of several lanes are made at once. l is None where the
        distribution has no logits.
    """
    key, z, b, z_given_b, coupled = noise
    l = _relaxation.log_odds(dist)
    of = jax.value_and_grad(c, argnums=(0, 1), has_aux=True)
    (_, value), (dz, dl) = of(z, l)
    dz_given_b, dl_given_b = dz, dl
    if not coupled:
        (_, value), (dz_given_b, dl_given_b) = of(z_given_b, l)
    through_z = _relaxation.pull_back(key, dist, dz)
    through_z_given_b = _relaxation.pull_back_conditional(dist, b, z_given_b, dz_given_b)
    if l is not None:
        through_z[0] += dl
        through_z_given_b[0] += dl_given_b
    return value, [a - b for a, b in zip(through_z, through_z_given_b, strict=True)]
