"""Exact expectations, found without gradest: sums over supports, quadrature over noise.

Everything is differentiable: the gradient of `expectation(dist, cost)` with respect to the
distribution's parameters, or to what the cost closes over, is the exact one. Dependent draws
nest: the cost may be an expectation itself.

A biased estimator has an expectation too, its own. Here it is a function of the distribution
and the cost whose value and whose gradient are those that the estimator's have on average.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from gradest import distributions as dists

Cost = Callable[[jax.Array], jax.Array]


class Points(NamedTuple):
    """A finite measure: values of shape (m, *shape) and their weights, which sum to one.

    In a sum over a support the weights depend on the parameters, in a quadrature over
    parameter-free noise the values do.
    """

    values: jax.Array
    weights: jax.Array


def expectation(dist: Any, cost: Cost) -> jax.Array:
    """E[cost(x)], x ~ dist, one of gradest's distributions or `Points`."""
    values, weights = dist if isinstance(dist, Points) else points(dist)
    return jnp.sum(weights * jax.vmap(cost)(values))


def bound(dist: Any, cost: Cost, *, num_samples: int = 2) -> jax.Array:
    """E[log mean_k exp(cost(x_k))] of independent draws x_k."""
    values, weights = points(dist)
    log_w = jax.vmap(cost)(values)
    joint, total = weights, log_w
    for _ in range(num_samples - 1):
        joint = (joint[:, None] * weights[None, :]).reshape(-1)
        total = jnp.logaddexp(total[:, None], log_w[None, :]).reshape(-1)
    return jnp.sum(joint * (total - math.log(num_samples)))


def map_points(function: Callable[[jax.Array], jax.Array], measure: Points) -> Points:
    """The points of `function(x)`."""
    return Points(jax.vmap(function)(measure.values), measure.weights)


@functools.singledispatch
def points(dist: Any) -> Points:
    raise NotImplementedError(f"no exact expectation for {type(dist).__name__}")


# ---- Finite supports -----------------------------------------------------------------------


@points.register
def _(dist: dists.Bernoulli) -> Points:
    odds = jnp.exp(dist.logits.reshape(-1))
    return _joint(jnp.arange(2.0), jnp.stack([1 / (1 + odds), odds / (1 + odds)], 1), dist.shape)


@points.register
def _(dist: dists.Categorical) -> Points:
    return _joint(jnp.arange(dist.logits.shape[-1]), _normalised(dist.logits), dist.shape)


@points.register
def _(dist: dists.VocabularyCategorical) -> Points:
    return points(dists.Categorical(dist.hidden @ dist.weights))


@points.register
def _(dist: dists.OneHotCategorical) -> Points:
    return _joint(jnp.eye(dist.logits.shape[-1]), _normalised(dist.logits), dist.shape)


@points.register
def _(dist: dists.Subset) -> Points:
    rows = np.array(list(itertools.product([0, 1], repeat=dist.logits.size)))
    values = _as(rows[rows.sum(axis=1) == dist.k], dist.logits)
    return Points(values, jax.nn.softmax(values @ dist.logits))


@points.register
def _(dist: dists.PlackettLuce) -> Points:
    """One order: each item in proportion to its weight among those that are left."""
    orders = np.array(list(itertools.permutations(range(dist.logits.size), dist.k)))
    weights, left = jnp.exp(dist.logits)[orders], jnp.sum(jnp.exp(dist.logits))
    probs = [weights[:, r] / (left - weights[:, :r].sum(axis=1)) for r in range(dist.k)]
    values = _as(np.eye(dist.logits.size)[orders], dist.logits)
    return Points(values, functools.reduce(jnp.multiply, probs))


@points.register
def _(dist: dists.LinearChainCRF) -> Points:
    length, num = dist.unary.shape
    labels = np.array(list(itertools.product(range(num), repeat=length)))
    score = dist.unary[np.arange(length), labels].sum(axis=1)
    score += dist.pairwise[labels[:, :-1], labels[:, 1:]].sum(axis=1)
    return Points(_as(np.eye(num)[labels], dist.unary), jax.nn.softmax(score))


def _normalised(logits: jax.Array) -> jax.Array:
    """Probabilities of the categories, shape (rows, K)."""
    weights = jnp.exp(logits.reshape(-1, logits.shape[-1]))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _joint(support: jax.Array, probs: jax.Array, shape: tuple[int, ...]) -> Points:
    """Independent elements, with `probs[i, k]` the probability that element i has value k."""
    configurations = np.array(list(itertools.product(range(len(support)), repeat=len(probs))))
    each = [probs[i, configurations[:, i]] for i in range(len(probs))]
    return Points(support[configurations].reshape(-1, *shape), functools.reduce(jnp.multiply, each))


def _counts(log_weight: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> Points:
    """Independent counts below 60, of log-probability `log_weight(count)` up to a constant."""
    log_p = log_weight(jnp.arange(60.0)[None, :])
    return _joint(jnp.arange(60), jax.nn.softmax(log_p, axis=1), shape)


def poisson(rate: jax.Array) -> Points:
    """Two Poisson variables with rates up to about 5."""
    log_rate = jnp.log(rate)[:, None]
    return _counts(lambda count: count * log_rate - gammaln(count + 1), rate.shape)


@points.register
def _(dist: dists.Poisson) -> Points:
    return poisson(dist.rate)


@points.register
def _(dist: dists.Geometric) -> Points:
    log_failure = -jnp.log1p(jnp.exp(dist.logits))[:, None]
    return _counts(lambda count: count * log_failure, dist.shape)


@points.register
def _(dist: dists.Binomial) -> Points:
    n, logits = dist.total_count[:, None].astype(dist.logits.dtype), dist.logits[:, None]

    def log_weight(count: jax.Array) -> jax.Array:
        rest = jnp.maximum(n - count, 0)
        ways = -gammaln(count + 1) - gammaln(rest + 1)
        return jnp.where(count <= n, ways + count * logits, -jnp.inf)

    return _counts(log_weight, dist.shape)


@points.register
def _(dist: dists.NegativeBinomial) -> Points:
    r, log_p = dist.total_count[:, None], -jnp.log1p(jnp.exp(-dist.logits))[:, None]
    log_weight = lambda count: gammaln(count + r) - gammaln(count + 1) + count * log_p - gammaln(r)
    return _counts(log_weight, dist.shape)


# ---- Quadrature ----------------------------------------------------------------------------
#
# One-dimensional rules: nodes and weights for a parameter-free noise. The trapezoidal rule
# converges geometrically for smooth integrands on the real line that decay at both ends.

Rule = tuple[np.ndarray, np.ndarray]


def _trapezoid(low: float, high: float, step: float, density: Callable[..., np.ndarray]) -> Rule:
    nodes = np.arange(low, high, step)
    return nodes, step * density(nodes)


def gauss_legendre(low: float, high: float, panels: int, num_nodes: int) -> Rule:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    edges = np.linspace(low, high, panels + 1)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (
        (middle[:, None] + half[:, None] * nodes).reshape(-1),
        (half[:, None] * weights).reshape(-1),
    )


def _normal() -> Rule:
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return nodes, weights / weights.sum()


def _logistic() -> Rule:
    return _trapezoid(-16.0, 16.0, 0.8, lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2)


def _gumbel() -> Rule:
    return _trapezoid(-4.0, 25.0, 0.25, lambda x: np.exp(-x - np.exp(-x)))


def _uniform() -> Rule:
    return gauss_legendre(0.0, 1.0, 2, 16)


def _exponential() -> Rule:
    nodes, weights = gauss_legendre(0.0, 30.0, 10, 8)
    return nodes, weights * np.exp(-nodes)


def _laplace() -> Rule:
    nodes, weights = _exponential()
    return np.concatenate([-nodes, nodes]), np.concatenate([weights, weights]) / 2


def _product(rule: Rule, shape: tuple[int, ...]) -> Rule:
    """The rule for independent noise in every element: nodes (m, *shape) and weights (m,)."""
    nodes, weights = rule
    index = np.indices((len(nodes),) * int(np.prod(shape))).reshape(int(np.prod(shape)), -1)
    return _prune(nodes[index].T.reshape(-1, *shape), np.prod(weights[index], axis=0))


def _prune(nodes: np.ndarray, weights: np.ndarray) -> Rule:
    """Without the points that weigh nothing: 1e-6 of the whole in all."""
    order = np.argsort(weights)
    kept = order[np.cumsum(weights[order]) > 1e-6 * weights.sum()]
    return nodes[kept], weights[kept] / weights[kept].sum()


def gumbel_differences(k: int) -> Rule:
    """For g_i - g_k, i < k, of k Gumbel variables: nodes (m, k - 1).

    All that a softmax, or an argmax, sees of Gumbel noise; the density is
    (k-1)! exp(-sum d) / (1 + sum exp(-d))^k.
    """
    axis = np.arange(-14.0, 14.0, 0.8)
    d = np.stack(np.meshgrid(*[axis] * (k - 1), indexing="ij"), -1).reshape(-1, k - 1)
    density = np.exp(-d.sum(axis=1)) / (1 + np.exp(-d).sum(axis=1)) ** k
    return _prune(d, density)


def _gumbels(shape: tuple[int, ...]) -> Rule:
    """Gumbel noise for one-hot rows, shape (m, *shape), up to a constant in each row."""
    *rows, k = shape
    d, weights = gumbel_differences(k)
    d = np.concatenate([d, np.zeros((len(d), 1))], axis=1)
    index, joint = _product((np.arange(len(d)), weights), tuple(rows))
    return d[index], joint


def _points(values: jax.Array, weights: np.ndarray) -> Points:
    return Points(values, jnp.asarray(weights, values.dtype))


def _loc_scale(dist: Any, rule: Rule) -> Points:
    noise, weights = _product(rule, dist.shape)
    return _points(dist.loc[None] + dist.scale[None] * _as(noise, dist.loc), weights)


def _as(noise: np.ndarray, like: jax.Array) -> jax.Array:
    return jnp.asarray(noise, like.dtype)


@points.register
def _(dist: dists.Normal) -> Points:
    return _loc_scale(dist, _normal())


@points.register
def _(dist: dists.LogNormal) -> Points:
    normal = _loc_scale(dist, _normal())
    return Points(jnp.exp(normal.values), normal.weights)


@points.register
def _(dist: dists.Laplace) -> Points:
    return _loc_scale(dist, _laplace())


@points.register
def _(dist: dists.Logistic) -> Points:
    return _loc_scale(dist, _logistic())


@points.register
def _(dist: dists.Gumbel) -> Points:
    return _loc_scale(dist, _gumbel())


@points.register
def _(dist: dists.Exponential) -> Points:
    noise, weights = _product(_exponential(), dist.shape)
    return _points(_as(noise, dist.rate) / dist.rate[None], weights)


@points.register
def _(dist: dists.Uniform) -> Points:
    noise, weights = _product(_uniform(), dist.shape)
    values = dist.low[None] + (dist.high - dist.low)[None] * _as(noise, dist.low)
    return _points(values, weights)


@points.register
def _(dist: dists.MultivariateNormal) -> Points:
    noise, weights = _product(_normal(), dist.shape)
    moved = jnp.einsum("ij,mj->mi", jnp.tril(dist.scale_tril), _as(noise, dist.loc))
    return _points(dist.loc[None] + moved, weights)


@points.register
def _(dist: dists.LowRankMultivariateNormal) -> Points:
    low_rank = dist.cov_factor @ dist.cov_factor.T
    factor = jnp.linalg.cholesky(low_rank + jnp.diag(dist.cov_diag))
    return points(dists.MultivariateNormal(dist.loc, factor))


@points.register
def _(dist: dists.RelaxedBernoulli) -> Points:
    noise, weights = _product(_logistic(), dist.shape)
    z = dist.logits[None] + _as(noise, dist.logits)
    return _points(jax.nn.sigmoid(z / dist.temperature[None]), weights)


@points.register
def _(dist: dists.LogitRelaxedBernoulli) -> Points:
    noise, weights = _product(_logistic(), dist.shape)
    z = dist.logits[None] + _as(noise, dist.logits)
    return _points(z / dist.temperature[None], weights)


@points.register
def _(dist: dists.RelaxedOneHotCategorical) -> Points:
    noise, weights = _gumbels(dist.shape)
    z = dist.logits[None] + _as(noise, dist.logits)
    return _points(jax.nn.softmax(z / dist.temperature[None, ..., None]), weights)


@points.register
def _(dist: dists.ExpRelaxedOneHotCategorical) -> Points:
    noise, weights = _gumbels(dist.shape)
    z = dist.logits[None] + _as(noise, dist.logits)
    return _points(jax.nn.log_softmax(z / dist.temperature[None, ..., None]), weights)


@points.register
def _(dist: dists.RelaxedPermutation) -> Points:
    """Of two items: rows are divided first, so that what matters is their differences."""
    noise, weights = _product(_logistic(), (2,))
    apart = (dist.logits[:, 0] - dist.logits[:, 1])[None] + _as(noise, dist.logits)
    x = jnp.exp(jnp.stack([apart, -apart], axis=-1) / (2 * dist.temperature))
    for _ in range(dist.num_iterations):
        x = x / jnp.sum(x, axis=2, keepdims=True)
        x = x / jnp.sum(x, axis=1, keepdims=True)
    return _points(x, weights)


@points.register
def _(dist: dists.HardConcrete) -> Points:
    """The mass at 0, that at 1, and the density in between."""
    z, weights = gauss_legendre(0.0, 1.0, 1, 24)
    z, weights = _as(z[None], dist.low), _as(weights[None], dist.low)
    each = lambda x: x[:, None]
    log_alpha, t, low, high = map(each, (dist.log_alpha, dist.temperature, dist.low, dist.high))
    below = lambda z: t * (jnp.log(z - low) - jnp.log(high - z)) - log_alpha
    cumulative = lambda z: 1 / (1 + jnp.exp(-below(z)))
    steepness = t * (high - low) / ((z - low) * (high - z))
    density = steepness * cumulative(z) * (1 - cumulative(z))
    ends = cumulative(jnp.zeros((1, 1))), 1 - cumulative(jnp.ones((1, 1)))
    probs = jnp.concatenate([ends[0], weights * density, ends[1]], axis=1)
    return _joint(jnp.concatenate([jnp.zeros(1), z[0], jnp.ones(1)]), probs, dist.shape)


# Where no noise is free of the parameters, the nodes are and the weights are not: values x(t) of a
# variable t of the real line, and the density of t. It is given up to a constant, which may depend
# on the parameters, since the weights sum to one.


def _on_grid(values: jax.Array, log_density: jax.Array, shape: tuple[int, ...]) -> Points:
    """Independent elements; `log_density` of t, at equal steps, has a row for each."""
    return _joint(values, jax.nn.softmax(log_density, axis=1), shape)


def _grid(low: float, high: float, step: float, like: jax.Array) -> jax.Array:
    return jnp.arange(low, high, step, like.dtype)[None, :]


def gamma(concentration: jax.Array, rate: jax.Array) -> Points:
    """Two Gamma variables of concentrations above 1.5."""
    t = _grid(-12.0, 4.5, 0.15, rate)
    log_density = concentration[:, None] * t - rate[:, None] * jnp.exp(t)
    return _on_grid(jnp.exp(t[0]), log_density, rate.shape)


@points.register
def _(dist: dists.Gamma) -> Points:
    return gamma(dist.concentration, dist.rate)


@points.register
def _(dist: dists.Weibull) -> Points:
    t, k = _grid(-12.0, 3.0, 0.15, dist.scale), dist.concentration[:, None]
    log_density = k * t - jnp.exp(k * (t - jnp.log(dist.scale)[:, None]))
    return _on_grid(jnp.exp(t[0]), log_density, dist.shape)


@points.register
def _(dist: dists.Beta) -> Points:
    t = _grid(-14.0, 14.0, 0.3, dist.concentration1)
    x = 1 / (1 + jnp.exp(-t))
    a, b = dist.concentration1[:, None], dist.concentration0[:, None]
    return _on_grid(x[0], a * jnp.log(x) + b * jnp.log1p(-x), dist.shape)


@points.register
def _(dist: dists.Dirichlet) -> Points:
    """One vector of three."""
    t = np.arange(-14.0, 14.0, 0.4)
    t = np.stack([*np.meshgrid(t, t), np.zeros((len(t), len(t)))], -1).reshape(-1, 3)
    x = np.exp(t) / np.sum(np.exp(t), axis=1, keepdims=True)
    log_density = _as(np.log(x), dist.concentration) @ dist.concentration
    return Points(_as(x, dist.concentration), jax.nn.softmax(log_density))


@points.register
def _(dist: dists.StudentT) -> Points:
    t = _grid(-5.0, 5.0, 0.1, dist.df)
    z, df = jnp.sinh(t), dist.df[:, None]
    log_density = jnp.log(jnp.cosh(t)) - (df + 1) / 2 * jnp.log1p(z * z / df)
    noise = _on_grid(z[0], log_density, dist.shape)
    return Points(dist.loc[None] + dist.scale[None] * noise.values, noise.weights)


@points.register
def _(dist: dists.VonMises) -> Points:
    x = _grid(-np.pi, np.pi, np.pi / 64, dist.loc)
    log_density = dist.concentration[:, None] * jnp.cos(x - dist.loc[:, None])
    return _on_grid(x[0], log_density, dist.shape)


@points.register
def _(dist: dists.MixtureSameFamily) -> Points:
    """Of Normal components."""
    parts, weights = dist.component_distribution, _normalised(dist.mixing_distribution.logits)
    x = _grid(-6.0, 6.0, 0.1, parts.loc)  # pyright: ignore[reportAttributeAccessIssue]
    z = (x[..., None] - parts.loc[:, None]) / parts.scale[:, None]  # pyright: ignore[reportAttributeAccessIssue]
    density = jnp.sum(weights[:, None] / parts.scale[:, None] * jnp.exp(-(z**2) / 2), axis=-1)  # pyright: ignore[reportAttributeAccessIssue]
    return _on_grid(x[0], jnp.log(density), dist.shape)


# ---- What biased estimators estimate -------------------------------------------------------


def gumbel_softmax(dist: Any, cost: Cost, *, temperature: jax.Array | float) -> jax.Array:
    """The expectation under the relaxed draw."""
    relaxed = {
        dists.Bernoulli: dists.RelaxedBernoulli,
        dists.OneHotCategorical: dists.RelaxedOneHotCategorical,
    }[type(dist)]
    return expectation(relaxed(temperature, dist.logits), cost)


def straight_through(dist: Any, cost: Cost, *, slope: jax.Array | float = 1.0) -> jax.Array:
    """Costs and their gradients at exact draws, pulled back through the mean."""
    bernoulli = isinstance(dist, dists.Bernoulli)
    mean = (jax.nn.sigmoid if bernoulli else jax.nn.softmax)(slope * dist.logits)
    return _at_exact_draws(dist, cost, lambda draws: jnp.broadcast_to(mean[None], draws.shape))


def st_gumbel_softmax(dist: Any, cost: Cost, *, temperature: jax.Array | float) -> jax.Array:
    """Costs and their gradients at exact draws, pulled back through the relaxed draw.

    Averaged over the noise given the draw. Where category i of probability p_i lost to b,
    z_i - z_b = -softplus(-d_i - log p_i) with d the differences of independent Gumbel
    variables, so the relaxed draw is a smooth function of d, and the quadrature exact.
    """
    if isinstance(dist, dists.Bernoulli):
        # Two categories, the second one's logit being the log-odds.
        pair = dists.OneHotCategorical(jnp.stack([jnp.zeros_like(dist.logits), dist.logits], -1))
        return st_gumbel_softmax(pair, lambda x: cost(x[..., 1]), temperature=temperature)
    k = dist.logits.shape[-1]
    d, weights = gumbel_differences(k)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(dist.logits)).reshape(-1, k)
    # Noise that is held fixed while the logits move.
    move = (dist.logits - jax.lax.stop_gradient(dist.logits)).reshape(-1, k)

    def mean_given(b: int) -> jax.Array:
        """Of the relaxed rows whose draw is b: (rows, k)."""
        loses = -jax.nn.softplus(
            -jnp.asarray(np.insert(d, b, 0.0, axis=1))[None].astype(log_p.dtype) - log_p[:, None, :]
        )
        z = jnp.where(np.arange(k)[None, None] == b, 0.0, loses) + move[:, None, :]
        soft = jax.nn.softmax(z / temperature)
        return jnp.einsum("rmk,m->rk", soft, _as(weights, soft))

    means = jnp.stack([mean_given(b) for b in range(k)], axis=1)

    def soft(draws: jax.Array) -> jax.Array:
        rows = draws.reshape(len(draws), -1, k)
        return jnp.einsum("mrb,rbk->mrk", rows, means).reshape(draws.shape)

    return _at_exact_draws(dist, cost, soft)


def reinmax(dist: Any, cost: Cost, *, temperature: jax.Array | float = 1.0) -> jax.Array:
    """Costs and their gradients at exact draws, pulled back by twice the Jacobian of the mean
    between the draw's and the tempered one, less half of that of the mean."""
    bernoulli = isinstance(dist, dists.Bernoulli)
    mean = jax.nn.sigmoid if bernoulli else jax.nn.softmax
    fixed = jax.lax.stop_gradient(dist.logits)

    def soft(draws: jax.Array) -> jax.Array:
        middle = (draws + mean(fixed / temperature)[None]) / 2
        logits = jax.scipy.special.logit(middle) if bernoulli else jnp.log(middle)
        return 2 * mean(logits + (dist.logits - fixed)[None]) - mean(dist.logits)[None] / 2

    return _at_exact_draws(dist, cost, soft)


def _at_exact_draws(dist: Any, cost: Cost, soft: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Over exact draws whose derivative is that of `soft(draws)`, its mean given the draw."""
    draws, probs = jax.lax.stop_gradient(points(dist))
    surrogate = soft(draws)
    return expectation(Points(draws + surrogate - jax.lax.stop_gradient(surrogate), probs), cost)
