"""Measure-valued (weak) derivatives: differences of the costs of two draws."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check, _mesh, _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._sampler import Sampler
from ..distributions import _joint
from ..distributions.base import WeakDerivative
from . import _needs
from ._record import Evaluations, Record


@estimator
def measure_valued(*, coupled: bool = True, side: Literal["right", "left"] = "right") -> Sampler:
    r"""Weak derivatives: unbiased for any cost, of low variance without its derivative.

    The derivative of a density is a difference of two densities, up to a constant:

    .. math:: \nabla_\theta p_\theta = c_\theta (p^+_\theta - p^-_\theta), \quad
              \nabla_\theta E[f(x)] = c_\theta (E[f(x^+)] - E[f(x^-)])

    For each element of each parameter, one variable of the draw x is replaced by x+ and by x-,
    the others being held:

    | parameter | c | x+ | x- |
    |---|---|---|---|
    | Normal loc | 1 / (scale sqrt(2 pi)) | loc + scale r | loc - scale r, r Rayleigh |
    | Normal scale | 1 / scale | loc + scale m, m double-sided Maxwell | x |
    | Bernoulli logits | p (1 - p) | 1 | 0 |
    | Categorical, OneHotCategorical logits | p_k | k | each category j with weight p_j |
    | Poisson rate | 1 | x + 1 | x |
    | Geometric logits | 1 - p | x | x + x' + 1 |
    | Binomial logits | p (n - x) | x + 1 | x |
    | NegativeBinomial logits | p (r + x) | x + 1 | x |
    | NegativeBinomial total_count r | -log(1 - p) | x + j | x |
    | Exponential rate | 1 / rate | x | x + x' |
    | Gamma rate | concentration / rate | x | x + e / rate |
    | Gamma concentration a | w | x | v x, v = (1 - u^2)^(1 / a) |
    | Weibull scale | concentration / scale | scale (y + e)^(1 / concentration) | x |
    | Weibull concentration | w | x | scale (y + e)^(1 / concentration) |

    where x' is another draw, e ~ Exponential(1), u ~ Uniform(0, 1), y = (x / scale)^concentration
    and j has the logarithmic law p^j / (-j log(1 - p)); LogNormal is the exponential of Normal. In
    a concentration the pair has a random weight: w = 2 u / (a (1 - v)) for Gamma, (1 + log y) /
    concentration for Weibull. From the left, counts are compared with one less:

    | parameter | c | x+ | x- |
    |---|---|---|---|
    | Poisson rate | x / rate | x | x - 1 |
    | Geometric logits | x | x - 1 | x |
    | Binomial logits | (1 - p) x | x | x - 1 |
    | NegativeBinomial logits | x | x | x - 1 |

    At x = 0, and at x = n from the right, the weight is 0 and the cost beyond not evaluated.
    Where a probability or a rate is so that one side has no weight, 0 or 1, it is the other.

    Assumptions: none on the cost, which need not be differentiable.
    Bias: none.
    Variance: for x ~ Normal(mu, s), f = (x - k)^2 and a = mu - k, that of d/d mu is
    4 a^2 (4 / pi - 1) coupled and a^2 (8 / pi - 2) + 4 s^2 / pi independent; that of d/d s is
    4 a^2 + 4 s^2 and 16 a^2 + 8 s^2. For Poisson(rate) and f = (x - k)^2, 4 rate coupled. None
    for a single Bernoulli or categorical variable. Of counts neither side always wins: in the
    probability of Binomial(5, 0.3) it is 72.3 from the right and 169.9 from the left for
    (x - 1.5)^2, where score_function has 332, and 0.187 and 0.00879 in that of Binomial(8, 0.6) for
    1 / (1 + x), where it has 2.09.
    Cost evaluations per gradient: 1, and for every element of a parameter 1 more, or 2 for the
    `loc` of Normal and LogNormal, in one batch, whichever of the parameters are differentiated.
    Each is of the whole cost: for many elements score_function costs less.

    Args:
      coupled: whether x+ and x- share their noise, as in the table, and what comes after them.
        Else they are independent, but for the weighted pairs (those whose c has an x, u or y), and
        have later draws of their own.
      side: whether counts are compared with one more, "right", or with one less, "left".

    Returns:
      A cost-based sampler for Normal, LogNormal, Bernoulli, Categorical, OneHotCategorical,
      Poisson, Geometric, Binomial, NegativeBinomial, Exponential, Gamma and Weibull, and any other
      distribution with a method `weak_derivative`, such as a user's own.

    Raises:
      ValueError: if `side` is neither, or a distribution's own pairs do not match its parameters.
      TypeError: from the sampler, for another distribution, or from the left for one that is none
        of counts.
      NotImplementedError: when differentiated twice with respect to the distribution.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> sampler = ge.measure_valued()
      >>> above = lambda m, k: sampler.expect(k, Normal(m, 1.0), lambda x: (x > 0.5).astype(float))
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> gradients = jax.vmap(jax.grad(above), in_axes=(None, 0))(0.0, keys)
      >>> print(f"{gradients.mean():.2f}")             # the density of Normal(0, 1) at 0.5
      0.35

    Reference:
      Mohamed, Rosca, Figurnov and Mnih 2020, "Monte Carlo Gradient Estimation in Machine
      Learning", section 6 and table 1; section 7.2 for coupling.
      Pflug 1989, "Sampling Derivatives of Probabilities".
    """
    static = {"coupled": bool(coupled), "side": _check.one_of("side", side, ("right", "left"))}
    return Sampler("measure_valued", estimate=_estimate, static=static)


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, coupled: bool, side: str) -> jax.Array:
    _needs.check("measure_valued", dist, "weak derivative")
    # Copies of the draw are side by side, one for each element of a parameter.
    dist = _mesh.replicated(dist)
    # Nothing is differentiated through the draws: the gradient is estimated here.
    fixed = jax.lax.stop_gradient(dist)
    floats = filter(_is_float, jax.tree.leaves(dist))
    if not _numerics.least_probability(jnp.result_type(*floats)):
        _needs.check_edges("measure_valued", dist)
    key_draw, key_pairs = _random.split(key, 2)
    x, u = _joint.draw_unrounded(key_draw, fixed)
    pairs = _pairs(fixed, key_pairs, u, coupled, side)
    # The draw and all that it is compared with in one batch: what follows is traced once.
    points = [x[None]]
    for pair in filter(None, pairs):
        points += [_replaced(x, new, pair.weight) for new in _evaluated(pair)]
    # As it is the cost draws later variables with the same keys at every point.
    costs = (jax.vmap(cost) if coupled else cost.batch)(jnp.concatenate(points))
    ends = np.cumsum([len(batch) for batch in points])[:-1]
    value, *of_points = jnp.split(costs, ends)
    value, of_points = value[0], iter(of_points)

    # The weight of what is impossible: of counts the least probability has a factor.
    least = _numerics.least_probability(jnp.float32)
    least *= 2.0**31 if jnp.issubdtype(x.dtype, jnp.integer) else 1

    def derivative(pair: WeakDerivative | None, leaf: jax.Array) -> jax.Array:
        if pair is None:
            return jnp.zeros_like(leaf)
        w = pair.weight
        at = lambda: next(of_points).astype(w.dtype).reshape(w.shape)
        plus, minus = at(), value.astype(w.dtype) if pair.minus is None else at()
        # A value that is impossible counts for nothing, even if its cost is not finite.
        counts = (jnp.abs(w) > least) | jnp.isfinite(plus - minus)
        change = jnp.where(counts, w * jnp.where(counts, plus - minus, 0), 0)
        return change - w * jnp.sum(change, axis=-1, keepdims=True) if pair.of_row else change

    gradient = tuple(map(derivative, pairs, jax.tree.leaves(dist)))
    return attach_gradient(value, dist, gradient, log_prob=_joint.log_prob_unrounded(dist, u))


def _pairs(
    dist: Any, key: jax.Array, u: jax.Array, coupled: bool, side: str
) -> list[WeakDerivative | None]:
    """What the distribution says at the draw that is made of `u`, one for each of its leaves."""
    if side == "right":
        of = dist._weak_derivative_unrounded(key, u, coupled)
    elif hasattr(dist, "left_weak_derivative"):
        of = dist.left_weak_derivative(key, u, coupled=coupled)
    else:
        raise TypeError(
            'measure_valued(side="left"): expected Poisson, Geometric, Binomial or '
            f"NegativeBinomial, got {_check.name_of(type(dist))}, whose weak derivative has one "
            'form only. Leave out side="left".'
        )
    pairs = [pair if pair is None else WeakDerivative(*pair) for pair in of]
    leaves = jax.tree.leaves(dist)
    given = [None if pair is None else np.shape(pair.weight) for pair in pairs]
    expected = [leaf.shape if _is_float(leaf) else None for leaf in leaves]
    if given != expected:
        raise ValueError(
            f"measure_valued: expected of {type(dist).__name__}.weak_derivative a (weight, plus, "
            f"minus) for each parameter, with weights of the shapes {expected} (None for one of "
            f"integers), got {given}."
        )
    return pairs


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _evaluated(pair: WeakDerivative) -> list[jax.Array]:
    """Those of x+ and x- whose costs are not known."""
    return [pair.plus] if pair.minus is None else [pair.plus, pair.minus]


def _replaced(x: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
    """Copies of the draw `x`, one per element of a parameter, each with one variable replaced.

    Args:
      x: shape (*variables, *event), an event being the value of one variable.
      new: shape (*variables, *elements, *event), elements being those of the variable's parameter.
      weight: shape (*variables, *elements).

    Returns:
      Shape (number of parameter elements, *x.shape).
    """
    event = new.shape[weight.ndim :]
    n, m = math.prod(x.shape[: x.ndim - len(event)]), weight.size
    variable = np.repeat(np.arange(n), m // max(n, 1))
    own = (variable[:, None] == np.arange(n)).reshape(m, n, *(1 for _ in event))
    copies = jnp.where(own, new.reshape(m, 1, *event), x.reshape(1, n, *event))
    return copies.reshape(m, *x.shape)


def _num_evaluations(options: Mapping[str, Any], dist: Any) -> int:
    """The draw's, and those of the points it is compared with."""
    side, coupled = options["side"], options["coupled"]

    def evaluated(key: jax.Array, dist: Any) -> Any:
        pairs = filter(None, _pairs(dist, key, _joint.draw_unrounded(key, dist)[1], coupled, side))
        return [(pair.weight, _evaluated(pair)) for pair in pairs]

    of_pairs = jax.eval_shape(evaluated, jax.random.key(0), dist)
    return 1 + sum(weight.size * len(points) for weight, points in of_pairs)


RECORDS = (
    Record(
        measure_valued,
        needs=("weak derivative",),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=Evaluations(
            "1 + 1 per element of a parameter (2 for `loc`)",
            _num_evaluations,
        ),
        reference="Pflug 1989; Mohamed 2020",
    ),
)
