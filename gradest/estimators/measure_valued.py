"""Measure-valued (weak) derivatives: the cost's difference between two draws."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln

from .. import _check, _random
from .._gradient import attach_gradient
from .._sampler import Cost, Sampler
from ..distributions import Bernoulli, Categorical, Exponential, Normal, OneHotCategorical, base
from ..distributions._implicit import in_noise_dtype, inside
from ..distributions.counts import Geometric, Poisson
from ..distributions.gamma import Gamma, log_gamma
from ..distributions.weibull import Weibull, from_log


def measure_valued(*, coupled: bool = True) -> Sampler:
    r"""Weak derivatives: unbiased for any cost, of low variance without its derivative.

    The derivative of a density is a difference of two densities, up to a constant:

    .. math:: \nabla_\theta p_\theta = c_\theta (p^+_\theta - p^-_\theta), \quad
              \nabla_\theta E[f(x)] = c_\theta (E[f(x^+)] - E[f(x^-)])

    For each element of each parameter, one element of the draw is replaced by x+ and x-, the
    others being held at their common draw x:

    | parameter | c | x+ | x- |
    |---|---|---|---|
    | Normal loc | 1 / (scale sqrt(2 pi)) | loc + scale r | loc - scale r, r Rayleigh |
    | Normal scale | 1 / scale | loc + scale m, m double-sided Maxwell | x |
    | Bernoulli logits | p (1 - p) | 1 | 0 |
    | Categorical, OneHotCategorical logits | p_k | k | x |
    | Poisson rate | 1 | x + 1 | x |
    | Geometric logits | 1 - p | x | x + x' + 1 |
    | Exponential rate | 1 / rate | x | x + x' |
    | Gamma rate | concentration / rate | x | x + e / rate, e Exponential(1) |
    | Gamma concentration a | B(a, 1/2) / sqrt(1 - v) | x | v x, v Beta(a, 1/2) |
    | Weibull scale | concentration / scale | scale (e + e')^(1 / concentration) | x |
    | Weibull concentration | 0.4624 / concentration | e+, by inversion | e-, by inversion |

    where x' is another draw and e = (x / scale)^concentration for Weibull. (Gamma's concentration
    has no such pair of finite mass and known sampler. There the pair is weighted: by
    Gamma(a) = Gamma(a + h) Beta(a, h) its derivative is the integral over v in (0, 1) of
    v^(a-1) / (1 - v) E[f(x) - f(v x)], here with importance weights whose variance is finite
    where the cost jumps, too.)

    Assumptions: none on the cost, which need not be differentiable.
    Bias: none.
    Variance: for x ~ Normal(mu, s), f = (x - k)^2 and a = mu - k, that of d/d mu is
    4 a^2 (4 / pi - 1) coupled and a^2 (8 / pi - 2) + 4 s^2 / pi independent; that of d/d s is
    4 a^2 + 4 s^2 and 16 a^2 + 8 s^2. For Poisson(rate) and f = (x - k)^2, 4 rate coupled.
    Cost evaluations per gradient: 1, and for every element of a parameter 1 more (the common
    draw serves as the other of the pair), or 2 for Normal's `loc` and Weibull's `concentration`;
    vmapped. A site of n elements takes n times as many, of which each evaluates the whole cost:
    for many elements score_function costs less.

    Args:
      coupled: whether x+ and x- share their noise, as written above, and the costs at both that
        of later draws. Else each has noise of its own, x- = x and later draws included; except
        for Gamma's `concentration`, whose pair is always x and v x.

    Returns:
      A cost-based sampler for Normal, Bernoulli, Categorical, OneHotCategorical, Poisson,
      Exponential, Geometric, Gamma and Weibull.

    Raises:
      TypeError: from the sampler, for another distribution.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> from gradest.estimators.measure_valued import measure_valued
      >>> sampler = measure_valued()
      >>> above = lambda m, k: sampler.expect(k, Normal(m, 1.0), lambda x: (x > 0.5) * 1.0)
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> gradients = jax.vmap(jax.grad(above), in_axes=(None, 0))(0.0, keys)
      >>> print(f"{gradients.mean():.2f}")             # the density of Normal(0, 1) at 0.5
      0.35

    Reference:
      Mohamed, Rosca, Figurnov and Mnih 2020, "Monte Carlo Gradient Estimation in Machine
      Learning", eq. 29 and table 1; section 7.2 for coupling.
      Rosca, Figurnov, Mohamed and Mnih 2019, "Measure-Valued Derivatives for Approximate Bayesian
      Inference". Pflug 1989, "Sampling Derivatives of Probabilities".
    """
    return Sampler(
        "measure_valued", draw=_draw, estimate=_estimate, static={"coupled": bool(coupled)}
    )


def _keys(key: jax.Array) -> jax.Array:
    """One for the draw and one for the pairs."""
    return _random.split(key, 2)


def _draw(key: jax.Array, dist: Any, **_: Any) -> jax.Array:
    _check.supported("measure_valued", dist, _KINDS, _REMEDY)
    return dist.sample(_keys(key)[0])


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, coupled: bool) -> jax.Array:
    _check.supported("measure_valued", dist, _KINDS, _REMEDY)
    # Nothing is differentiated through the draws: the gradient is estimated here.
    fixed = jax.lax.stop_gradient(dist)
    key_draw, key_pairs = _keys(key)
    x = fixed.sample(key_draw)
    value = cost(x)
    # As it is the cost draws later variables with the same keys at every point.
    costs = jax.vmap(cost) if coupled else cost.batch

    def gradient(pair: _Pair) -> jax.Array:
        # One batch for each parameter: XLA drops those of parameters not differentiated.
        plus = costs(_replaced(x, pair.plus, pair.constant))
        minus = value if pair.minus is None else costs(_replaced(x, pair.minus, pair.constant))
        difference = (plus - minus).astype(pair.constant.dtype).reshape(pair.constant.shape)
        # A value that is impossible counts for nothing, even if its cost is not finite.
        weighs = pair.constant != 0
        return jnp.where(weighs, pair.constant * jnp.where(weighs, difference, 0), 0)

    pairs = _pairs(fixed, x, key_pairs, coupled)
    leaves = [gradient(pairs[name]) for name in type(dist).parameters]
    estimate = jax.tree.unflatten(jax.tree.structure(dist), leaves)
    return attach_gradient(value, dist, estimate, log_prob=base.log_prob(dist, x))


def _replaced(x: jax.Array, new: jax.Array, constant: jax.Array) -> jax.Array:
    """Copies of the draw `x`, one per element of a parameter, each with one variable replaced.

    Args:
      x: shape (*variables, *event), an event being the value of one variable.
      new: shape (*variables, *elements, *event), elements being those of the variable's parameter.
      constant: shape (*variables, *elements).

    Returns:
      Shape (number of parameter elements, *x.shape).
    """
    event = new.shape[constant.ndim :]
    n, m = math.prod(x.shape[: x.ndim - len(event)]), constant.size
    variable = np.repeat(np.arange(n), m // max(n, 1))
    own = (variable[:, None] == np.arange(n)).reshape((m, n) + (1,) * len(event))
    copies = jnp.where(own, new.reshape(m, 1, *event), x.reshape(1, n, *event))
    return copies.reshape(m, *x.shape)


# ---- Pairs ---------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """The weak derivative in one parameter: constant * (cost at `plus` - cost at `minus`).

    Attributes:
      constant: negative where plus and minus changed places; of the parameter's shape.
      plus: replaces one variable.
      minus: replaces it too; None where it is the common draw.
    """

    constant: jax.Array
    plus: jax.Array
    minus: jax.Array | None = None


@functools.singledispatch
def _pairs(dist: Any, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    """By parameter, for the common draw `x`."""
    raise NotImplementedError(f"no weak derivative of {type(dist).__name__}")


def _exponentials(key: jax.Array, like: jax.Array) -> jax.Array:
    return _random.noise(jax.random.exponential, key, like.shape, like.dtype)


@_pairs.register
def _(dist: Normal, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    keys = _random.split(key, 4)
    wide, loc, scale = in_noise_dtype(x, dist.loc, dist.scale)
    at = lambda z: (loc + scale * z).astype(x.dtype)
    plus = jnp.sqrt(2 * _exponentials(keys[0], loc))
    minus = plus if coupled else jnp.sqrt(2 * _exponentials(keys[1], loc))
    # Of n and sign(n) sqrt(n^2 + 2 e), n is uniform on its way to 0 from the other: the coupling
    # of section 7.2, with the Normal variable given.
    n = _random.noise(jax.random.normal, keys[2], loc.shape, loc.dtype)
    n = (wide - loc) / scale if coupled else n
    maxwell = jnp.where(n < 0, -1, 1) * jnp.sqrt(n * n + 2 * _exponentials(keys[3], loc))
    return {
        "loc": _Pair(1 / (scale * math.sqrt(2 * math.pi)), at(plus), at(-minus)),
        "scale": _Pair(1 / scale, at(maxwell)),
    }


@_pairs.register
def _(dist: Bernoulli, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    del key, coupled
    (l,) = in_noise_dtype(dist.logits)
    sign = jnp.where(x > 0, -1, 1).astype(l.dtype)
    return {"logits": _Pair(sign * jax.nn.sigmoid(l) * jax.nn.sigmoid(-l), 1 - x)}


@_pairs.register
def _(dist: Categorical, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    del key, coupled
    (l,) = in_noise_dtype(dist.logits)
    category = jnp.arange(dist.num_categories, dtype=x.dtype)
    return {"logits": _Pair(jax.nn.softmax(l, axis=-1), jnp.broadcast_to(category, l.shape))}


@_pairs.register
def _(dist: OneHotCategorical, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    del key, coupled
    (l,) = in_noise_dtype(dist.logits)
    corner = jnp.eye(dist.num_categories, dtype=x.dtype)
    corners = jnp.broadcast_to(corner, (*l.shape, dist.num_categories))
    return {"logits": _Pair(jax.nn.softmax(l, axis=-1), corners)}


@_pairs.register
def _(dist: Poisson, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    (rate,) = in_noise_dtype(dist.rate)
    other = x if coupled else dist.sample(key)
    return {"rate": _Pair(jnp.ones_like(rate), other + 1)}


@_pairs.register
def _(dist: Geometric, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    keys = _random.split(key, 2)
    (l,) = in_noise_dtype(dist.logits)
    first = x if coupled else dist.sample(keys[0])
    return {"logits": _Pair(-jax.nn.sigmoid(-l), first + dist.sample(keys[1]) + 1)}


@_pairs.register
def _(dist: Exponential, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    keys = _random.split(key, 2)
    (rate,) = in_noise_dtype(dist.rate)
    first = x if coupled else dist.sample(keys[0])
    return {"rate": _Pair(-1 / rate, first + dist.sample(keys[1]))}


@_pairs.register
def _(dist: Gamma, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    keys = _random.split(key, 4)
    wide, a, rate = in_noise_dtype(x, dist.concentration, dist.rate)
    (first,) = (wide,) if coupled else in_noise_dtype(dist.sample(keys[0]))
    longer = first + _exponentials(keys[1], rate) / rate
    half = jnp.full_like(a, 0.5)
    log_odds = log_gamma(keys[2], a, a.shape) - log_gamma(keys[3], half, a.shape)  # of v
    weight = jnp.exp(betaln(a, half) - jax.nn.log_sigmoid(-log_odds) / 2)
    return {
        "concentration": _Pair(-weight, inside(wide * jax.nn.sigmoid(log_odds), x.dtype)),
        "rate": _Pair(-a / rate, inside(longer, x.dtype)),
    }


@_pairs.register
def _(dist: Weibull, x: jax.Array, key: jax.Array, coupled: bool) -> dict[str, _Pair]:
    keys = _random.split(key, 4)
    wide, scale, k = in_noise_dtype(x, dist.scale, dist.concentration)
    (first,) = (wide,) if coupled else in_noise_dtype(dist.sample(keys[0]))
    e = jnp.exp(k * jnp.log(first / scale)) + _exponentials(keys[1], scale)
    u = _random.noise(jax.random.uniform, keys[2], k.shape, k.dtype)
    v = u if coupled else _random.noise(jax.random.uniform, keys[3], k.shape, k.dtype)
    at = lambda y: from_log(y, scale, k, x.dtype)
    return {
        "scale": _Pair(k / scale, at(jnp.log(e))),
        "concentration": _Pair(_MASS / k, at(_invert_plus(u)), at(_invert_minus(v))),
    }


_KINDS = [
    Normal,
    Bernoulli,
    Categorical,
    OneHotCategorical,
    Poisson,
    Exponential,
    Geometric,
    Gamma,
    Weibull,
]
_REMEDY = "Use score_function, which takes any distribution with a log_prob."


# ---- The concentration of a Weibull variable -------------------------------------------------
#
# With e = (x / scale)^k ~ Exponential(1) and H(e) = e log(e) exp(-e), the derivative of the
# distribution function in k is H(e) / k, and that of the density H'(e) / k de/dx: negative below
# e_1, positive between e_1 and e_2, negative above, where H' has its zeros.


def _hump(y: Any) -> Any:
    """H at e = exp(y)."""
    e = jnp.exp(y)
    return y * e * jnp.exp(-e)


_LOG_E1, _LOG_E2 = -1.3499764854011256, 0.8064659942363268
_H1, _H2 = -0.2700533713174276, 0.19231792051127208
#: Of either part, times k.
_MASS = _H2 - _H1


def _invert_plus(u: jax.Array) -> jax.Array:
    """log e+ at quantile `u`."""
    return _bisect(_hump, _H1 + _MASS * u, jnp.full_like(u, _LOG_E1), jnp.full_like(u, _LOG_E2))


def _invert_minus(u: jax.Array) -> jax.Array:
    """log e- at quantile `u`: below e_1 or above e_2, where exp(-60) and 100 bound all draws."""
    below = _MASS * u < -_H1
    return _bisect(
        lambda y: -_hump(y),
        jnp.where(below, _MASS * u, -_MASS * (1 - u)),
        jnp.where(below, -60.0, _LOG_E2).astype(u.dtype),
        jnp.where(below, _LOG_E1, math.log(100.0)).astype(u.dtype),
    )


def _bisect(function: Any, target: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Where the increasing `function` reaches `target`, between low and high."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        beyond = function(middle) > target
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    low, high = jax.lax.fori_loop(0, jnp.finfo(target.dtype).nmant + 8, halve, (low, high))
    return (low + high) / 2
