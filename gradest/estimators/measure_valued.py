"""Measure-valued (weak) derivatives: differences of the costs of two draws."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._numerics import in_compute_dtype
from .._sampler import Sampler
from ..distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Gamma,
    Geometric,
    LogNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    Weibull,
    base,
)
from ..distributions._implicit import inside
from ..distributions.weibull import from_log, log_ratio
from . import _needs
from ._record import Evaluations, Record


@estimator
def measure_valued(*, coupled: bool = True) -> Sampler:
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
    | Exponential rate | 1 / rate | x | x + x' |
    | Gamma rate | concentration / rate | x | x + e / rate |
    | Gamma concentration a | w | x | v x, v = (1 - u^2)^(1 / a) |
    | Weibull scale | concentration / scale | scale (y + e)^(1 / concentration) | x |
    | Weibull concentration | w | x | scale (y + e)^(1 / concentration) |

    where x' is another draw, e ~ Exponential(1), u ~ Uniform(0, 1) and y =
    (x / scale)^concentration; LogNormal is the exponential of Normal. In a concentration the pair
    has a random weight: w = 2 u / (a (1 - v)) for Gamma, (1 + log y) / concentration for Weibull.

    Assumptions: none on the cost, which need not be differentiable.
    Bias: none.
    Variance: for x ~ Normal(mu, s), f = (x - k)^2 and a = mu - k, that of d/d mu is
    4 a^2 (4 / pi - 1) coupled and a^2 (8 / pi - 2) + 4 s^2 / pi independent; that of d/d s is
    4 a^2 + 4 s^2 and 16 a^2 + 8 s^2. For Poisson(rate) and f = (x - k)^2, 4 rate coupled. None
    for a single Bernoulli or categorical variable.
    Cost evaluations per gradient: 1, and for every element of a parameter 1 more, or 2 for the
    `loc` of Normal and LogNormal, in one batch, whichever of the parameters are differentiated.
    Each is of the whole cost: for many elements score_function costs less.

    Args:
      coupled: whether x+ and x- share their noise, as in the table, and what comes after them.
        Else they are independent, but for the weighted pairs, and have later draws of their own.

    Returns:
      A cost-based sampler for Normal, LogNormal, Bernoulli, Categorical, OneHotCategorical,
      Poisson, Geometric, Exponential, Gamma and Weibull.

    Raises:
      TypeError: for another distribution.
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
    return Sampler("measure_valued", estimate=_estimate, static={"coupled": bool(coupled)})


class _Pair(NamedTuple):
    """The weak derivative in a parameter: weight * (cost at plus - cost at minus).

    Attributes:
      weight: for every element of the parameter; negative where the draw is x+.
      plus: shape (*variables, *elements, *event), elements being those of the variable's parameter
        and an event being the value of one variable.
      minus: likewise; None for the draw.
      of_categories: whether x- is, instead of the draw, each category in proportion to its weight.
    """

    weight: jax.Array
    plus: jax.Array
    minus: jax.Array | None = None
    of_categories: bool = False


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, coupled: bool) -> jax.Array:
    _needs.check("measure_valued", dist, "weak derivative")
    # Nothing is differentiated through the draws: the gradient is estimated here.
    fixed = jax.lax.stop_gradient(dist)
    if not _numerics.least_probability(jnp.result_type(*jax.tree.leaves(dist))):
        base.check_edges("measure_valued", dist)
    key_draw, key_pairs = _random.split(key, 2)
    x = fixed.sample(key_draw)
    pairs = _pairs(fixed, x, key_pairs, coupled)
    # The draw and all that it is compared with in one batch: what follows is traced once.
    points = [x[None]]
    for pair in pairs:
        news = (pair.plus, pair.minus)
        points += [_replaced(x, new, pair.weight) for new in news if new is not None]
    # As it is the cost draws later variables with the same keys at every point.
    costs = (jax.vmap(cost) if coupled else cost.batch)(jnp.concatenate(points))
    ends = np.cumsum([len(batch) for batch in points])[:-1]
    value, *of_points = jnp.split(costs, ends)
    value, of_points = value[0], iter(of_points)

    def derivative(pair: _Pair) -> jax.Array:
        w = pair.weight
        at = lambda: next(of_points).astype(w.dtype).reshape(w.shape)
        plus, minus = at(), value.astype(w.dtype) if pair.minus is None else at()
        # A value that is impossible counts for nothing, even if its cost is not finite.
        least = _numerics.least_probability(w.dtype)
        counts = (jnp.abs(w) > least) | jnp.isfinite(plus - minus)
        change = jnp.where(counts, w * jnp.where(counts, plus - minus, 0), 0)
        return (
            change - w * jnp.sum(change, axis=-1, keepdims=True) if pair.of_categories else change
        )

    gradient = jax.tree.unflatten(jax.tree.structure(dist), map(derivative, pairs))
    return attach_gradient(value, dist, gradient, log_prob=base.log_prob(dist, x))


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


# ---- Weak derivatives ----------------------------------------------------------------------


@functools.singledispatch
def _pairs(dist: Any, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    """A pair for each parameter of the distribution, at the draw `x`."""
    raise NotImplementedError(f"no weak derivative of {type(dist).__name__}")


@_pairs.register
def _(dist: Normal, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    keys = _random.split(key, 4)
    wide, loc, scale = in_compute_dtype(x, dist.loc, dist.scale)
    at = lambda z: (loc + scale * z).astype(x.dtype)
    right = jnp.sqrt(2 * _exponential(keys[0], loc))
    left = right if coupled else jnp.sqrt(2 * _exponential(keys[1], loc))
    # n is uniform between 0 and m = sign(n) sqrt(n^2 + 2 e): the coupling of section 7.2, seen from
    # the Normal variable.
    n = _random.noise(jax.random.normal, keys[2], loc.shape, loc.dtype)
    n = (wide - loc) / scale if coupled else n
    m = jnp.where(n < 0, -1, 1) * jnp.sqrt(n * n + 2 * _exponential(keys[3], loc))
    of_loc = _Pair(1 / (scale * math.sqrt(2 * math.pi)), at(right), at(-left))
    return of_loc, _Pair(1 / scale, at(m))


@_pairs.register
def _(dist: LogNormal, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:

    def exp(pair: _Pair) -> _Pair:
        minus = None if pair.minus is None else jnp.exp(pair.minus)
        return pair._replace(plus=jnp.exp(pair.plus), minus=minus)

    of_log = _pairs(Normal(dist.loc, dist.scale), jnp.log(x), key, coupled)
    return [exp(pair) for pair in of_log]


@_pairs.register
def _(dist: Bernoulli, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    del key, coupled
    (l,) = in_compute_dtype(dist.logits)
    edge = _numerics.least_probability(dist.logits.dtype)
    weight = jax.nn.sigmoid(l) * jax.nn.sigmoid(-l) + jnp.where(jnp.isinf(l), edge, 0)
    return [_Pair(jnp.where(x > 0, -weight, weight), 1 - x)]


@_pairs.register(Categorical)
@_pairs.register(OneHotCategorical)
def _(dist: Any, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    del key, coupled
    (l,) = in_compute_dtype(dist.logits)
    edge = _numerics.least_probability(dist.logits.dtype)
    p = jax.nn.softmax(l, axis=-1) + jnp.where(jnp.isneginf(l), edge, 0).astype(l.dtype)
    k = dist.num_categories
    values = jnp.arange(k) if isinstance(dist, Categorical) else jnp.eye(k)
    values = jnp.broadcast_to(values.astype(x.dtype), (*p.shape[:-1], *values.shape))
    return [_Pair(p, values, of_categories=True)]


@_pairs.register
def _(dist: Poisson, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    (rate,) = in_compute_dtype(dist.rate)
    return [_Pair(jnp.ones_like(rate), (x if coupled else dist.sample(key)) + 1)]


@_pairs.register
def _(dist: Geometric, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    keys = _random.split(key, 2)
    (l,) = in_compute_dtype(dist.logits)
    first = x if coupled else dist.sample(keys[0])
    return [_Pair(-jax.nn.sigmoid(-l), first + dist.sample(keys[1]) + 1)]


@_pairs.register
def _(dist: Exponential, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    keys = _random.split(key, 2)
    (rate,) = in_compute_dtype(dist.rate)
    first = x if coupled else dist.sample(keys[0])
    return [_Pair(-1 / rate, first + dist.sample(keys[1]))]


@_pairs.register
def _(dist: Gamma, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    keys = _random.split(key, 3)
    first = x if coupled else dist.sample(keys[0])
    wide, first, a, rate = in_compute_dtype(x, first, dist.concentration, dist.rate)
    longer = first + _exponential(keys[1], rate) / rate
    # As Gamma(a) = Gamma(a + h) Beta(a, h), the derivative in a is the integral over v in (0, 1) of
    # v^(a - 1) / (1 - v) E[f(x) - f(v x)]. With this density of v the weight varies little, and
    # what it gives a jump of the cost, which is between x and v x with a chance of order 1 - v, has
    # finite variance.
    u = 1 - _random.noise(jax.random.uniform, keys[2], a.shape, a.dtype)
    log_v = jnp.log1p(-u * u) / a
    weight = 2 * u / (a * -jnp.expm1(log_v))
    shorter = inside(wide * jnp.exp(log_v), x.dtype)
    return _Pair(-weight, shorter), _Pair(-a / rate, inside(longer, x.dtype))


@_pairs.register
def _(dist: Weibull, x: jax.Array, key: jax.Array, coupled: bool) -> Sequence[_Pair]:
    keys = _random.split(key, 2)
    first = x if coupled else dist.sample(keys[0])
    x, first, scale, k = in_compute_dtype(x, first, dist.scale, dist.concentration)
    e = _exponential(keys[1], scale)

    def longer(x: jax.Array) -> jax.Array:
        y = jnp.exp(k * log_ratio(x, scale))
        return from_log(jnp.log(y + e), scale, k, dist.scale.dtype)

    # With g(y) = f(x), k times the derivative is E[(1 + log y - y log y) g(y)]. The density of
    # z = y + e is z exp(-z) and E[1 + log y | z] = log z: it is E[(1 + log y) (g(y) - g(z))].
    weight = (1 + k * log_ratio(x, scale)) / k
    return _Pair(k / scale, longer(first)), _Pair(-weight, longer(x))


def _exponential(key: jax.Array, like: jax.Array) -> jax.Array:
    return _random.noise(jax.random.exponential, key, like.shape, like.dtype)


def _num_evaluations(options: Mapping[str, Any], dist: Any) -> int:
    del options
    elements = sum(np.size(leaf) for leaf in jax.tree.leaves(dist))
    return 1 + elements + np.size(getattr(dist, "loc", ()))


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
