"""ARM and DisARM: a pair of antithetic draws, whose costs are each other's baseline."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._sampler import Sampler
from ..distributions import Bernoulli, _joint
from ..distributions._derived import rebuilt
from . import _needs
from ._record import Record


@estimator
def arm() -> Sampler:
    r"""Augment-REINFORCE-merge: the costs of two antithetic draws, at one uniform number each.

    .. math:: \nabla_l E[f(b)] = E[(f(b) - f(\tilde b)) (u - 1/2)], \quad
              b = 1[u > \sigma(-l)], \quad \tilde b = 1[u < \sigma(l)]

    Assumptions: none on the cost. What comes after the pair shares its randomness.
    Bias: none.
    Variance: higher than that of `disarm`, which is its mean given the pair, and which also
    takes OneHotCategorical. For one element with P(1) = p, q = 1 - p, m = min(p, q) and the
    difference d of its two costs, d^2 (2 (1/8 - (1/2 - m)^3) / 3 - p^2 q^2).
    Cost evaluations per gradient: 2.

    Returns:
      A cost-based sampler for Bernoulli. Its value is the mean of the two costs.

    Raises:
      TypeError: for another distribution.
      NotImplementedError: when differentiated twice with respect to the logits.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> loss = lambda l, k: ge.arm().expect(k, Bernoulli(l), lambda b: (b - 0.45) ** 2)
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(0.0, keys)
      >>> bool(abs(gradients.mean() - 0.025) < 0.01)
      True

    Reference:
      Yin and Zhou 2019, "ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks",
      Theorem 1.
    """
    return Sampler("arm", estimate=_arm)


@estimator
def disarm() -> Sampler:
    r"""DisARM: ARM with the uniform numbers integrated out, given the pair of draws.

    .. math:: \nabla_l E[f(b)] = E[\tfrac12 (f(b) - f(\tilde b)) (b - \tilde b) \sigma(|l|)]

    A one-hot draw walks down a balanced binary tree of its categories, with an antithetic pair of
    binary draws at every node. Where the two walks part, one into the set L of categories, the
    other into R, each goes on by itself; with probabilities renormalised within L and within R,
    and m the smaller of P(L) and P(R) over their sum,

    .. math:: \nabla_l E[f(x)] = E[\tfrac12 (f(x) - f(\tilde x))
              (x - \tilde x - m (E[x | L] - E[x | R]))]

    which is DisARM at that node, and the score function with the other draw's cost as baseline
    at those below it, in closed form. Two categories are one Bernoulli variable.

    Assumptions: none on the cost. What comes after the pair shares its randomness.
    Bias: none.
    Variance: never above that of `arm`; for one Bernoulli element with m = min(p, 1 - p) and the
    difference d of its two costs, d^2 m (1 - m)^2 (1/2 - m).
    Cost evaluations per gradient: 2.

    Returns:
      A cost-based sampler for Bernoulli and OneHotCategorical. Its value is the mean of the two
      costs.

    Raises:
      TypeError: for another distribution.
      NotImplementedError: when differentiated twice with respect to the logits.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> loss = lambda l: ge.disarm().expect(
      ...     jax.random.key(0), Bernoulli(l), lambda b: (b - 0.45) ** 2
      ... )
      >>> print(f"{jax.grad(loss)(0.0):.3f}")  # no variance where p = 1/2
      0.025

    Reference:
      Dong, Mnih and Tucker 2020, "DisARM: An Antithetic Gradient Estimator for Binary Latent
      Variables", section 3.
      Dong, Mnih and Tucker 2021, "Coupled Gradient Estimators for Discrete Latent Variables", for
      categories as sequences of binary variables, Rao-Blackwellized.
    """
    return Sampler("disarm", estimate=_disarm)


def _arm(key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
    _needs.check("arm", dist, "categorical", only=(Bernoulli,))
    _needs.check_edges("arm", dist)
    l = jax.lax.stop_gradient(dist)._log_odds()
    p, q = jax.nn.sigmoid(l), jax.nn.sigmoid(-l)
    first, second, u = _random.antithetic(key, l)
    # An element that is certain has no gradient, hence no noise from the others' costs.
    direction = jnp.where((p > 0) & (q > 0), 2 * u - 1, 0)
    return _estimate(dist, cost, first, second, direction)


def _disarm(key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
    _needs.check("disarm", dist, "categorical", "mean")
    _needs.check_edges("disarm", dist)
    l = jax.lax.stop_gradient(dist)._log_odds()
    walk = _bernoulli if isinstance(dist, Bernoulli) else _tree
    return _estimate(dist, cost, *walk(key, l))


def _estimate(
    dist: Any, cost: Cost, first: jax.Array, second: jax.Array, direction: jax.Array
) -> jax.Array:
    """The mean cost of a pair, with (f(first) - f(second)) / 2 * direction as its gradient."""
    pair = jnp.stack([first, second]).astype(dist.logits.dtype)
    # Not `cost.batch`: randomness of their own would be noise in the difference.
    costs = jax.vmap(cost)(pair)
    half = (costs[0] - costs[1]).astype(direction.dtype) / 2
    gradient = rebuilt(dist, half * direction)
    attach = lambda c, x: attach_gradient(c, dist, gradient, log_prob=_joint.log_prob(dist, x))
    return jnp.mean(jax.vmap(attach)(costs, pair))


def _antithetic(key: jax.Array, l: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two binary draws of log-odds `l`: never both on the rarer side."""
    first, second, _ = _random.antithetic(key, l)
    return first.astype(l.dtype), second.astype(l.dtype)


def _bernoulli(key: jax.Array, l: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pair, and (b - b') sigma(|l|): one node of the tree."""
    p, q = jax.nn.sigmoid(l), jax.nn.sigmoid(-l)
    first, second = _antithetic(key, l)
    return first, second, (first - second) * jnp.maximum(p, q)


def _tree(key: jax.Array, l: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pair, one-hot, and x - x' - m (E[x | L] - E[x | R])."""
    *rows, k = l.shape
    depth = (k - 1).bit_length()
    # Log-odds of the nodes, the root's first, from their log-masses. Impossible categories, which
    # fill the lowest level up, have some, for a node without any to have odds.
    padding = [(0, 0)] * len(rows) + [(0, 2**depth - k)]
    mass = jnp.pad(jnp.maximum(l, _IMPOSSIBLE), padding, constant_values=_IMPOSSIBLE)
    odds = jnp.zeros_like(l[..., :0])
    for level in reversed(range(depth)):
        children = mass.reshape(*rows, 2**level, 2)
        left, right = children[..., 0], children[..., 1]
        mass = jnp.logaddexp(left, right)
        odds = jnp.concatenate([left - right, odds], axis=-1)
    goes_left, also = _antithetic(key, odds)

    # At every level: which node each walk is at, and m (E[x | L] - E[x | R]) summed within nodes.
    first = second = jnp.ones_like(l[..., :1])
    correction = jnp.zeros_like(l[..., :1])
    for level in range(depth):
        nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
        p, q = jax.nn.sigmoid(odds[..., nodes]), jax.nn.sigmoid(-odds[..., nodes])
        a, b = goes_left[..., nodes], also[..., nodes]
        parted = first * second * (a - b) * jnp.minimum(p, q)
        correction = _children(correction * p + parted, correction * q - parted)
        first = _children(first * a, first * (1 - a))
        second = _children(second * b, second * (1 - b))
    return first[..., :k], second[..., :k], (first - second - correction)[..., :k]


#: A log-mass.
_IMPOSSIBLE = -1e30


def _children(left: jax.Array, right: jax.Array) -> jax.Array:
    """The next level of the tree, from the left and the right child of each node of this one."""
    *rows, nodes = left.shape
    return jnp.stack([left, right], axis=-1).reshape(*rows, 2 * nodes)


RECORDS = (
    Record(
        arm,
        needs=("categorical",),
        # Written out for two outcomes; disarm takes more.
        only=(Bernoulli,),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=2,
        reference="Yin 2019",
    ),
    Record(
        disarm,
        needs=("categorical", "mean"),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=2,
        reference="Dong 2020; Dong 2021",
    ),
)
