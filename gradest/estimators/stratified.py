"""Stratified draws: several samples, one from each part of a distribution."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _numerics, _random
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._jumps import SlopeIn
from .._sampler import Sampler
from ..distributions import _joint
from ..distributions._capabilities import has
from ..distributions._derived import dtype_of, rebuilt
from ..distributions.bernoulli import Bernoulli
from ..distributions.categorical import Categorical
from . import _needs
from ._record import NUM_SAMPLES, Record


@estimator
def stratified(num_samples: int) -> Sampler:
    r"""Several draws, of which every element has one in each of as many equally probable parts.

    .. math:: x_i = F_\theta^{-1}(u_i), \quad u_i = (\sigma(i) + v_i) / n, \quad i = 0, \dots, n - 1

    with F the distribution function of an element, v uniform and sigma a permutation, random and
    independent for every element: a Latin hypercube. For distributions with a quantile function
    that is differentiated as it stands,

    .. math:: \nabla_\theta E[f(x)] = E[\tfrac1n \sum_i \nabla_\theta f(x_i)] .

    Bernoulli variables and categories have the gradient of leave-one-out,

    .. math:: \hat g = \tfrac{1}{n - 1} \sum_i (f(x_i) - \bar f)\, x_i,

    corrected for the draws' dependence. With P_ab the probability that two of them are a and b,
    the mean of this is (diag(p) - P) f where that of independent ones is (diag(p) - p p^T) f. So

    .. math:: \nabla_l E[f(x)] = E[(\mathrm{diag}(p) - p p^T) (\mathrm{diag}(p) - P)^+ \hat g],

    for Bernoulli p (1 - p) / (p - P_11) times leave-one-out. The correction never lengthens: its
    eigenvalues are from 0 to 1.

    Assumptions: with a quantile function, the cost is differentiable in the draw almost everywhere
    and has no jumps. None on the cost of discrete draws.
    Bias: none. With a quantile function derivatives of every order are unbiased where the cost's
    are.
    Variance: of each element's effect by itself next to nothing is left, and interactions of
    elements average out as those of independent draws do. For x ~ Normal(mu, s), f = (x - k)^2
    and d/d mu it is 4 s^2 v, with v = .0349, .00139 and .0000610 at 4, 16 and 64 samples, where
    independent ones have 1 / n. For one Bernoulli element with P(1) = p <= 1/2, m the whole part
    of n p and r the rest, and the difference d of its two costs, it is
    (d p (1 - p) (n - 1 - 2m) / (m (n - m) + r (n - 1 - 2m)))^2 r (1 - r). Two draws of Bernoulli
    variables are those of `disarm`.
    Cost evaluations per gradient: `num_samples`. In a loss under `gradest.expectation` each sample
    has draws of its own at the later sites.

    Args:
      num_samples: how many draws there are, and parts; at least 2.

    Returns:
      A cost-based sampler for Bernoulli, OneHotCategorical and Categorical, and for Normal,
      LogNormal, Laplace, Logistic, Gumbel, Exponential, Uniform, Weibull and any distribution of
      one's own with `quantile`. Its value is the mean of the costs. Categories are stratified in
      their order: it helps if neighbours cost alike.

    Raises:
      ValueError: for fewer than two samples.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: of discrete draws, when differentiated twice with respect to the logits.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> loss = lambda m: ge.stratified(16).expect(
      ...     jax.random.key(1), Normal(m, 1.0), lambda x: (x - 0.5) ** 2
      ... )
      >>> print(f"{jax.grad(loss)(2.0):.1f}")
      3.0

    Reference:
      McKay, Beckman and Conover 1979, "A Comparison of Three Methods for Selecting Values of
      Input Variables in the Analysis of Output from a Computer Code", section 2, for the draws.
      Dimitriev and Zhou 2021, "ARMS: Antithetic-REINFORCE-Multi-Sample Gradient for Binary
      Variables", section 3, for leave-one-out of dependent Bernoulli draws, there antithetic ones.
    """
    static = {"num_samples": _check.integer("num_samples", num_samples, 2)}
    functions = {"estimate": _estimate, "slope_in": _slope_in}
    return Sampler("stratified", **functions, converts=True, static=static)


def _slope_in(law: type) -> SlopeIn:
    return "" if has(law, "categorical") and not has(law, "quantile") else "draw"


def _estimate(key: jax.Array, dist: Any, cost: Cost, *, num_samples: int) -> jax.Array:
    _needs.check("stratified", dist, ("quantile", "categorical"))
    if has(type(dist), "quantile"):
        return jnp.mean(cost.batch(_quantiles(key, dist, num_samples)))
    _needs.check_edges("stratified", dist)
    draws = _bits if isinstance(dist, Bernoulli) else _categories
    xs, indicators, correct = draws(key, jax.lax.stop_gradient(dist), num_samples)
    costs = cost.batch(xs)
    # In half precision the differences of costs would be mostly rounding.
    signal = costs.astype(indicators.dtype)
    signal = (signal - jnp.mean(signal)) / (num_samples - 1)
    # Around their mean, so that nothing is left where all are the same.
    around = indicators - jnp.mean(indicators, axis=0, keepdims=True)
    gradient = rebuilt(dist, correct(jnp.tensordot(signal, around, 1, precision="highest")))
    attach = lambda c, x: attach_gradient(c, dist, gradient, log_prob=_joint.log_prob(dist, x))
    return jnp.mean(jax.vmap(attach)(costs, xs))


def _quantiles(key: jax.Array, dist: Any, n: int) -> jax.Array:
    """Stratified draws of a distribution with a quantile function, stacked."""
    of_strata, within = _random.split(key, 2)
    dtype = _numerics.compute_dtype(dtype_of(dist))
    noise = lambda key: _random.noise(_random.uniform, key, dist.shape, dtype)
    v = jax.vmap(noise)(_random.split(within, n))
    u = (_random.permutations(of_strata, n, dist.shape).astype(dtype) + v) / n
    # The last one may round to 1.
    return jax.vmap(dist.quantile)(jnp.minimum(u, 1 - float(jnp.finfo(dtype).epsneg)))


#: Draws, stacked; one-hot if they are categories; and the correction of leave-one-out's gradient.
_Discrete = tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]


def _bits(key: jax.Array, dist: Bernoulli, n: int) -> _Discrete:
    of_strata, within = _random.split(key, 2)
    l = dist._log_odds()
    # By the rarer outcome, whose probability has the digits.
    p, q = jax.nn.sigmoid(-jnp.abs(l)), jax.nn.sigmoid(jnp.abs(l))
    # The rarer outcome fills the first m strata and a part r of the next.
    m = jnp.floor(n * p)
    r = n * p - m
    strata = _random.permutations(of_strata, n, l.shape).astype(l.dtype)
    share = jnp.clip(n * p[None] - strata, 0, 1)
    odds = jnp.log(share) - jnp.log1p(-share)
    rare = jax.vmap(_random.bernoulli)(_random.split(within, n), odds)
    xs = (rare ^ (l > 0)[None]).astype(dist.logits.dtype)
    # n (n - 1) (p - P11), which is n (n - 1) p where m = 0.
    parted = m * (n - m) + r * (n - 1 - 2 * m)
    factor = jnp.where(m == 0, q, n * (n - 1) * p * q / jnp.where(m == 0, 1, parted))
    return xs, xs.astype(l.dtype), lambda gradient: factor * gradient


def _categories(key: jax.Array, dist: Any, n: int) -> _Discrete:
    of_strata, within = _random.split(key, 2)
    (l,) = _numerics.in_compute_dtype(dist.logits)
    p = jax.nn.softmax(l, axis=-1)
    w = jnp.vectorize(functools.partial(_shares, n), signature="(k)->(n,k)")(p)
    strata = _random.permutations(of_strata, n, l.shape[:-1])
    # No gathers: along an explicit axis of a mesh they would have to be told where they end.
    in_stratum = lambda s: jnp.sum(jax.nn.one_hot(s, n, dtype=w.dtype)[..., None] * w, axis=-2)
    choose = lambda key, s: _random.categorical(key, l + jnp.log(in_stratum(s)))
    index = jax.vmap(choose)(_random.split(within, n), strata)
    one_hot = jax.nn.one_hot(index, l.shape[-1], dtype=l.dtype)
    correct = jnp.vectorize(_corrected, signature="(k),(k),(n,k)->(k)")
    xs = index if isinstance(dist, Categorical) else one_hot.astype(dist.logits.dtype)
    return xs, one_hot, lambda gradient: correct(gradient, p, w)


def _shares(n: int, p: jax.Array) -> jax.Array:
    """Which part of each of K categories is in which of n strata, shape (n, K).

    The categories lie side by side from 0 to 1, in their order. Of each the shares add up to 1,
    however small it is.
    """
    left = jnp.concatenate([jnp.zeros_like(p[:1]), jnp.cumsum(p)[:-1]])
    ends = jnp.arange(1, n, dtype=p.dtype) / n
    below = jnp.clip((ends[:, None] - left[None]) / jnp.where(p > 0, p, 1)[None], 0, 1)
    return jnp.diff(jnp.pad(below, ((1, 1), (0, 0)), constant_values=((0, 1), (0, 0))), axis=0)


def _corrected(g: jax.Array, p: jax.Array, w: jax.Array) -> jax.Array:
    """(diag(p) - p p^T) (diag(p) - P)^+ g, where g adds up to zero.

    Two draws are in different strata, in which the categories have the probabilities q = n p w: so
    P = ((n p) (n p)^T - q^T q) / (n (n - 1)). For the h with (diag(p) - P) h = g and p . h = 0, and
    for y = q h, that is diag(p) h + q^T y / (n (n - 1)) = g. The first term is the result; q / p
    times the equation is one for y, of a matrix with eigenvalues from 1 to 1 + 1 / (n - 1).
    """
    n = len(w)
    dot = functools.partial(jnp.matmul, precision="highest")
    q = n * p[None] * w
    # Richardson's iteration around the middle eigenvalue, whose error falls by 2n - 1 at each step:
    # on many small systems far faster than to factorize them.
    middle = 1 + 1 / (2 * (n - 1))
    rest = (dot(w, q.T) / (n - 1) - (middle - 1) * jnp.eye(n, dtype=q.dtype)) / middle
    first = n * dot(w, g) / middle
    step = lambda _, y: first - jnp.sum(rest * y[None], axis=1)
    steps = math.ceil(-math.log(float(jnp.finfo(q.dtype).eps)) / math.log(2 * n - 1))
    y = jax.lax.fori_loop(0, steps, step, first)
    return g - dot(y, q) / (n * (n - 1))


RECORDS = (
    Record(
        stratified,
        needs=(("quantile", "categorical"),),
        unbiased="yes",
        differentiable_cost=True,
        cost_note="with a quantile function; discrete draws: no",
        evaluations=NUM_SAMPLES,
        reference="McKay 1979; Dimitriev 2021",
        arguments={"num_samples": 4},
    ),
)
