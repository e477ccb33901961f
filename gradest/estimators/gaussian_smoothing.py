"""Gaussian smoothing: pairs of mirrored Normal draws, the gradient of evolution strategies."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check, _mesh, _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._sampler import Sampler
from ..distributions import _joint
from ..distributions._derived import dtype_of, wide
from . import _needs
from ._record import Evaluations, Record


@estimator
def gaussian_smoothing(num_pairs: int, *, orthogonal: bool = False) -> Sampler:
    r"""Differences of the costs of mirrored Normal draws: evolution strategies.

    With K pairs x = mu + s e and x' = mu - s e, of e ~ Normal(0, 1) in n dimensions,

    .. math:: \nabla_\mu E[f(x)] = E\Big[\frac1K \sum_k \frac{f(x_k) - f(x'_k)}{2 s} e_k\Big],
              \quad \nabla_s E[f(x)] = E\Big[\frac1K \sum_k
              \Big(\frac{f(x_k) + f(x'_k)}2 - b_k\Big) \frac{e_k^2 - 1}s\Big]

    It is the score function of each pair, in which what is even about mu cancels from the gradient
    of mu. The baseline b_k is the mean cost of the other pairs, if there are any. With `orthogonal`
    blocks of n directions are orthogonal to each other, their lengths being those of Normal vectors
    (chi with n degrees of freedom), so that each pair is distributed as before. There, with u the
    direction of length 1, e^2 - 1 is (e^2 - n u^2) + (n u^2 - 1): the first part, of the length,
    has that baseline, and the second, of the direction, the mean of the other blocks, since the
    other directions of a block depend on it. (A block that is full needs none: its n u^2 - 1 sum to
    0.)

    Assumptions: none on the cost, whose slope is not used.
    Bias: none.
    Variance: for f = b^T x + x^T A x / 2 the sum over the n coordinates of mu is (n + 1) |b|^2 / K,
    whatever A, with b the gradient at mu; of n orthogonal pairs it is 2 |b|^2 / n. That of
    score_function has besides s^2 (n + 4) (tr(A)^2 + 2 tr(A^2)) / 4. For a step 1[x > 1] and
    Normal(0.4, 1.5) it is 0.0490 and that of score_function 0.158.
    Cost evaluations per gradient: 2 `num_pairs`. What comes after is drawn alike for both of a
    pair, and anew for each pair.

    Args:
      num_pairs: K, how many pairs to average over.
      orthogonal: whether directions are orthogonal, n at a time; the last block may be shorter. It
        costs a QR decomposition of a matrix of n rows and min(n, K) columns for each block; n is
        the number of elements of the noise, for LowRankMultivariateNormal d + r of a vector.

    Returns:
      A cost-based sampler for Normal, for MultivariateNormal and LowRankMultivariateNormal, whose
      pairs are those of the noise that `scale_tril`, or `cov_factor` and the root of `cov_diag`,
      multiply, and for any distribution of one's own with `of_noise`. Its value is the mean of the
      2 K costs.

    Raises:
      ValueError: if `num_pairs` is less than 1.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to the distribution.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> loss = lambda m, key: ge.gaussian_smoothing(8).expect(
      ...     key, Normal(m, 1.0), lambda x: (x > 0.5).astype(float)
      ... )
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(0.0, keys)
      >>> print(f"{gradients.mean():.2f}")            # the density of Normal(0, 1) at 0.5
      0.35

    Reference:
      Nesterov and Spokoiny 2017, "Random Gradient-Free Minimization of Convex Functions", eq. 26.
      Salimans, Ho, Chen, Sidor and Sutskever 2017, "Evolution Strategies as a Scalable Alternative
      to Reinforcement Learning", section 2. Choromanski, Rowland, Sindhwani, Turner and Weller
      2018, "Structured Evolution with Compact Architectures for Scalable Policy Optimization",
      section 3.
    """
    static = {
        "num_pairs": _check.integer("num_pairs", num_pairs, 1),
        "orthogonal": bool(orthogonal),
    }
    return Sampler("gaussian_smoothing", estimate=_estimate, static=static, converts=True)


def _estimate(
    key: jax.Array, dist: Any, cost: Cost, *, num_pairs: int, orthogonal: bool
) -> jax.Array:
    _needs.check("gaussian_smoothing", dist, "density", "Normal noise")
    # A pair's directions are of all elements together.
    dist = _mesh.replicated(dist)
    fixed = jax.lax.stop_gradient(dist)
    dtype = _numerics.compute_dtype(dtype_of(dist))
    n = max(math.prod(fixed.noise_shape), 1)
    block = min(n, num_pairs) if orthogonal else 1
    e = _directions(key, fixed.noise_shape, dtype, num_pairs, block)
    of_pairs = lambda of: jax.vmap(jax.vmap(of))
    unrounded = of_pairs(fixed._of_noise_unrounded)(jnp.stack([e, -e]))
    pairs = of_pairs(fixed._rounded)(unrounded)
    # Both of a pair have its number in their batch: what follows is drawn alike for them.
    costs = jax.vmap(cost.batch)(pairs)

    plus, minus = costs.astype(dtype)
    even = (plus + minus) / 2
    of_length, of_direction = even - _of_others(even, 1), even - _of_others(even, block)
    # With e = |e| u, (F - b) (e^2 - n u^2) + (F - c) (n u^2 - 1) is linear in e^2 and 1.
    squared_length = jnp.sum(e.reshape(num_pairs, -1) ** 2, axis=1)
    ratio = n / jnp.where(squared_length > 0, squared_length, 1)
    of_square = of_length * (1 - ratio) + of_direction * ratio
    gradient = _gradient(fixed, unrounded, (plus - minus) / 2, of_square, of_direction)
    log_prob = functools.partial(_joint.log_prob_unrounded, dist)
    attach = lambda u, f: attach_gradient(f, dist, gradient, log_prob=log_prob(u))
    return jnp.mean(of_pairs(attach)(unrounded, costs))


def _directions(
    key: jax.Array, shape: tuple[int, ...], dtype: Any, num: int, block: int
) -> jax.Array:
    """Normal vectors e, shape (num, *shape), those of a block of them orthogonal."""
    num_blocks = -(-num // block)
    keys = _random.split(key, num_blocks * block)
    draw = lambda key: _random.noise(jax.random.normal, key, shape, dtype)
    e = jax.vmap(draw)(keys)
    if block > 1:
        # Gram and Schmidt's directions do not depend on the lengths of what they are made of, nor
        # those on each other. That a direction's sign is arbitrary makes no difference to a pair.
        columns = jnp.swapaxes(e.reshape(num_blocks, block, -1), 1, 2)
        lengths = jnp.linalg.norm(columns, axis=1, keepdims=True)
        columns = jnp.linalg.qr(columns).Q * lengths
        e = jnp.swapaxes(columns, 1, 2).reshape(e.shape)
    return e[:num]


def _of_others(costs: jax.Array, block: int) -> jax.Array:
    """The mean of the costs in other blocks; 0 if there are none."""
    block_of = np.arange(len(costs)) // block
    sums = jnp.zeros(block_of[-1] + 1, costs.dtype).at[block_of].add(costs)
    others = len(costs) - np.bincount(block_of)[block_of]
    mean = (jnp.sum(costs) - sums[block_of]) / np.maximum(others, 1).astype(costs.dtype)
    return jnp.where(others > 0, mean, 0)


def _gradient(
    dist: Any, pairs: Any, of_odd: jax.Array, of_square: jax.Array, of_one: jax.Array
) -> list[jax.Array]:
    """In each parameter, from the scores at the pairs: what is odd in e, quadratic, and constant.

    Of the log-density at a step from the centre the derivative in the mean is linear in e, and
    that in the scale is a quadratic form less its mean, which is the derivative at the centre.
    """
    dist = wide(dist)
    # What is odd in e changes its sign from one of a pair to the other, what is even does not.
    weights = jnp.stack([of_square + of_odd, of_square - of_odd]) / (2 * len(of_odd))
    rest = jnp.mean(of_one) - jnp.mean(of_square)
    centre = dist._of_noise_unrounded(jnp.zeros(dist.noise_shape, of_odd.dtype))

    def weighted(dist: Any) -> jax.Array:
        log_prob = functools.partial(_joint.log_prob_unrounded, dist)
        of_pairs = jnp.sum(weights * jax.vmap(jax.vmap(log_prob))(pairs))
        return of_pairs + rest * log_prob(centre)

    return jax.tree.leaves(jax.grad(weighted, allow_int=True)(dist))


RECORDS = (
    Record(
        gaussian_smoothing,
        needs=("density", "Normal noise"),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=Evaluations("2 `num_pairs`", lambda options, dist: 2 * options["num_pairs"]),
        reference="Nesterov 2017; Salimans 2017; Choromanski 2018",
        arguments={"num_pairs": 4},
    ),
)
