"""Problems with a known gradient, and the estimators that are measured on each."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest.distributions import Bernoulli, Normal, OneHotCategorical
from gradest.problems.methods import METHODS

#: (distribution, draw) -> scalar.
Cost = Callable[[Any, Any], jax.Array]


def expect(sampler: ge.Sampler, key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
    """An estimate of the expected cost, whose gradient is meant."""
    return sampler.expect(key, dist, lambda x: cost(dist, x))


Expect = Callable[[ge.Sampler, jax.Array, Any, Cost], jax.Array]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A sampler whose parameters are trained before it is measured.

    Attributes:
      sampler: makes it from the parameters, as keywords.
      start: makes their values before, from (key, shape of the draw).
    """

    sampler: Callable[..., ge.Sampler]
    start: Callable[[jax.Array, tuple[int, ...]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A distribution, the gradient of an expected cost in its parameters, and who estimates it.

    Attributes:
      title: the heading of its table.
      about: one sentence below that.
      samplers: by how one would write them.
      exact: the gradient.
      expect: what else than a sampler's `expect` is to be differentiated.
    """

    title: str
    about: str
    dist: Any
    cost: Cost
    samplers: Mapping[str, ge.Sampler | Trained]
    exact: Callable[["Problem"], Any]
    expect: Expect = expect


def gradient(problem: Problem, sampler: ge.Sampler) -> Callable[[jax.Array, Any], Any]:
    def draw(key: jax.Array, dist: Any) -> Any:
        return jax.grad(lambda dist: problem.expect(sampler, key, dist, problem.cost))(dist)

    return draw


# ---- Costs and exact gradients -------------------------------------------------------------


def weights(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape) / shape[-1] ** 0.5


def smooth(dist: Any, x: jax.Array) -> jax.Array:
    """No sum of functions of one element each, and defined between the corners too."""
    x = jnp.ravel(x)
    return jnp.sum(jnp.tanh(2 * weights(4, x.size) @ x - 0.5) ** 2)


def with_jumps(dist: Any, x: jax.Array) -> jax.Array:
    """A quarter of the smooth one, and a jump of 1 in the middle."""
    x = jnp.ravel(x)
    return smooth(dist, x) / 4 + jnp.where(weights(x.size) @ x > 0.1, 1.0, 0.0)


def by_enumeration(problem: Problem) -> Any:
    return jax.jit(gradient(problem, ge.enumeration()))(jax.random.key(0), problem.dist)


def grid(dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the trapezoidal rule for standard normal noise."""
    z = np.arange(-6, 6.01, 0.25)
    p = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    points = np.stack(np.meshgrid(*[z] * dims, indexing="ij"), -1).reshape(-1, dims)
    return points, functools.reduce(np.multiply.outer, [p] * dims).reshape(-1)


def by_quadrature(problem: Problem) -> Normal:
    """E[f d log p] over a grid of noise, which is exact for a cost without jumps."""
    q = problem.dist
    z, p = grid(q.loc.size)
    cost = lambda z: problem.cost(q, q.loc + q.scale * z)
    f = p * np.asarray(jax.lax.map(cost, jnp.asarray(z, jnp.float32), batch_size=4096))
    of_loc, of_scale = f @ z / q.scale, f @ (z**2 - 1) / q.scale
    # Not by its constructor, for which the second would be a scale.
    return jax.tree.unflatten(jax.tree.structure(q), [jnp.asarray(of_loc), jnp.asarray(of_scale)])


def by_quadrature_with_jump(problem: Problem) -> Normal:
    """The jump is of a linear function of the draw, which is normal itself."""
    quarter = by_quadrature(dataclasses.replace(problem, cost=smooth))

    def of_jump(q: Normal) -> jax.Array:
        w = weights(q.loc.size)
        return jax.scipy.stats.norm.cdf((w @ q.loc - 0.1) / jnp.linalg.norm(w * q.scale))

    return jax.tree.map(lambda s, j: s / 4 + j, quarter, jax.grad(of_jump)(problem.dist))


# ---- Bounds of several samples -------------------------------------------------------------

SAMPLES = 8


def log_weight(q: Normal, x: jax.Array) -> jax.Array:
    """Of a draw x ~ q, which has independent elements, for a posterior whose elements are not."""
    prior, likelihood = jnp.sum(Normal(0.0, 1.0).log_prob(x)), Normal(jnp.sum(x), 0.7).log_prob(1.5)
    return prior + likelihood - jnp.sum(q.log_prob(x))


def expect_bound(sampler: ge.Sampler, key: jax.Array, q: Normal, cost: Cost) -> jax.Array:
    """The bound of 8 samples; those that know of none get all samples as one draw."""
    if sampler.name in ("vimco", "dreg"):
        return expect(sampler, key, q, cost)
    every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (SAMPLES, *leaf.shape)), q)

    def bound(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jax.vmap(lambda x: cost(q, x))(x)) - jnp.log(float(SAMPLES))

    return sampler.expect(key, every, bound)


def exact_bound(problem: Problem) -> Normal:
    """By log s = int (exp(-exp(u)) - exp(-s exp(u))) du, of which the mean is E[exp(-w t)]^K."""
    z, p = map(jnp.asarray, grid(problem.dist.loc.size))
    u = jnp.arange(-30, 30, 0.1)

    def bound(q: Normal) -> jax.Array:
        w = jnp.exp(jax.vmap(lambda z: problem.cost(q, q.loc + q.scale * z))(z))
        of_mean = jax.lax.map(lambda t: jnp.dot(p, jnp.exp(-w * t)) ** SAMPLES, jnp.exp(u))
        return 0.1 * jnp.sum(jnp.exp(-jnp.exp(u)) - of_mean)

    return jax.grad(bound)(problem.dist)


# ---- A loop --------------------------------------------------------------------------------


def expect_walk(
    sampler: ge.Sampler, key: jax.Array, dist: Bernoulli, cost: Cost, told: bool = True
) -> jax.Array:
    """A walk of steps drawn in a scan, with a cost of the position after every step.

    Either gradest is told each as it arises, or the loss returns their sum.
    """

    @ge.expectation
    def loss(logits: jax.Array, key: jax.Array) -> jax.Array:
        def step(x: jax.Array, at: Any) -> Any:
            x = x + 2 * sampler(at[0], Bernoulli(at[1])) - 1
            c = cost(dist, x)
            if told:
                ge.cost(c)
            return x, jnp.zeros(()) if told else c

        keys = jax.random.split(key, logits.size)
        return jnp.sum(jax.lax.scan(step, jnp.zeros(()), (keys, logits))[1])

    return loss(dist.logits, key)


def off_target(dist: Bernoulli, x: jax.Array) -> jax.Array:
    return (x - 2) ** 2 / 4


def exact_walk(problem: Problem) -> Any:
    def cost(dist: Bernoulli, steps: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(lambda x: problem.cost(dist, x))(jnp.cumsum(2 * steps - 1)))

    return by_enumeration(dataclasses.replace(problem, cost=cost, expect=expect))


# ---- The problems --------------------------------------------------------------------------


def trained(sampler: Callable[..., ge.Sampler], **start: float) -> Trained:
    return Trained(sampler, lambda key, shape: {k: jnp.float32(v) for k, v in start.items()})


SCORE: dict[str, ge.Sampler | Trained] = {
    "score_function()": ge.score_function(),
    "score_function(baseline=b)": trained(lambda b: ge.score_function(baseline=b), b=0),
    'score_function(num_samples=4, baseline="leave_one_out")': ge.score_function(
        num_samples=4, baseline="leave_one_out"
    ),
    'score_function(num_samples=8, baseline="optimal")': ge.score_function(
        num_samples=8, baseline="optimal"
    ),
}
NETWORK = next(method for method in METHODS if method.name == "relax")
RELAX = {
    "relax(network, w, temperature=t, eta=eta)": Trained(NETWORK.sampler, NETWORK.initial_control)
}
REBAR = {
    "rebar(t, eta=eta, baseline=b)": trained(
        # The logarithm is what is trained: a temperature must stay positive.
        lambda log_t, eta, b: ge.rebar(jnp.exp(log_t), eta=eta, baseline=b),
        log_t=math.log(0.5),
        eta=1,
        b=0,
    )
}
CONTROL_VARIATES = {
    "disarm()": ge.disarm(),
    "muprop(baseline=b)": trained(lambda b: ge.muprop(baseline=b), b=0),
    **RELAX,
}
STRATIFIED = {"stratified(4)": ge.stratified(4)}
PAIRS = {"gaussian_smoothing(2)": ge.gaussian_smoothing(2)}
MEASURE_VALUED = {"measure_valued()": ge.measure_valued()}
FINITE = {
    **MEASURE_VALUED,
    "sum_and_sample()": ge.sum_and_sample(),
    "unordered_set(4)": ge.unordered_set(4),
    "enumeration()": ge.enumeration(),
}
RELAXED = {
    "straight_through()": ge.straight_through(),
    "reinmax()": ge.reinmax(),
    "gumbel_softmax(0.5)": ge.gumbel_softmax(0.5),
    "st_gumbel_softmax(0.5)": ge.st_gumbel_softmax(0.5),
    "gumbel_rao(0.5)": ge.gumbel_rao(0.5),
}
PATHWISE = {
    "reparameterize()": ge.reparameterize(),
    "antithetic()": ge.antithetic(),
}
DELTA = {"delta_method()": ge.delta_method()}
BITS = Bernoulli(jnp.linspace(-1.5, 1.5, 8))
NORMAL = Normal(jnp.array([-0.5, 0.0, 0.5]), jnp.array([0.4, 0.6, 0.8]))
POSTERIOR = Normal(jnp.array([0.4, 0.6]), jnp.array([0.5, 0.7]))

STEPS = Bernoulli(jnp.linspace(-1.0, 1.0, 8))
IN_LOOP = {name: SCORE[name] for name in ("score_function(baseline=b)", "score_function()")}

PROBLEMS = {
    "bits": Problem(
        "Bits, smooth cost",
        "Eight Bernoulli variables. The cost is smooth between the corners as well.",
        BITS,
        smooth,
        SCORE | STRATIFIED | {"arm()": ge.arm()} | CONTROL_VARIATES | REBAR | FINITE | RELAXED,
        by_enumeration,
    ),
    "bits_jumps": Problem(
        "Bits, cost with jumps",
        "The same variables. What needs the cost's derivative is wrong.",
        BITS,
        with_jumps,
        SCORE
        | STRATIFIED
        | {"arm()": ge.arm()}
        | CONTROL_VARIATES
        | FINITE
        | {"straight_through()": ge.straight_through()},
        by_enumeration,
    ),
    "categories": Problem(
        "Categories, smooth cost",
        "Four one-hot variables of five categories each, 625 configurations.",
        OneHotCategorical(jax.random.normal(jax.random.key(2), (4, 5))),
        smooth,
        SCORE | STRATIFIED | CONTROL_VARIATES | REBAR | FINITE | RELAXED,
        by_enumeration,
    ),
    "peaked": Problem(
        "One category, most of the mass on few",
        "One one-hot variable of 50 categories with probabilities that fall off geometrically.",
        OneHotCategorical(-0.5 * jnp.arange(50.0)),
        with_jumps,
        SCORE
        | STRATIFIED
        | FINITE
        | {"sum_and_sample(num_summed=3)": ge.sum_and_sample(num_summed=3)},
        by_enumeration,
    ),
    "normal": Problem(
        "Normal, smooth cost",
        "Three Normal variables; the gradient is that in `loc` and `scale`.",
        NORMAL,
        smooth,
        PATHWISE | STRATIFIED | DELTA | PAIRS | MEASURE_VALUED | SCORE | RELAX,
        by_quadrature,
    ),
    "narrow": Problem(
        "Narrow normal, smooth cost",
        "The same, with a fifth of the standard deviations.",
        Normal(NORMAL.loc, NORMAL.scale / 5),
        smooth,
        PATHWISE | STRATIFIED | DELTA | PAIRS | MEASURE_VALUED | SCORE,
        by_quadrature,
    ),
    "normal_jumps": Problem(
        "Normal, cost with jumps",
        "Wide again. What needs the cost's derivative is wrong.",
        NORMAL,
        with_jumps,
        SCORE | RELAX | PAIRS | MEASURE_VALUED | DELTA | {"reparameterize()": ge.reparameterize()},
        by_quadrature_with_jump,
    ),
    "elbo": Problem(
        "The ELBO",
        "The mean log weight, for two Normal variables and a posterior that they do not reach.",
        POSTERIOR,
        log_weight,
        {"reparameterize(sticking_the_landing=True)": ge.reparameterize(sticking_the_landing=True)}
        | PATHWISE
        | STRATIFIED
        | {"score_function()": ge.score_function()},
        by_quadrature,
    ),
    "bound": Problem(
        "The bound of eight samples",
        "The same model. `reparameterize` and `score_function` take the samples for one draw.",
        POSTERIOR,
        log_weight,
        {
            "dreg(8)": ge.dreg(SAMPLES),
            "reparameterize()": ge.reparameterize(),
            "vimco(8)": ge.vimco(SAMPLES),
            "score_function()": ge.score_function(),
        },
        exact_bound,
        expect_bound,
    ),
    "loop": Problem(
        "Draws in a loop, `ge.cost` after every step",
        "A walk of eight Bernoulli steps in a scan, with a cost of the position after every step.",
        STEPS,
        off_target,
        IN_LOOP,
        exact_walk,
        expect_walk,
    ),
    "loop_sum": Problem(
        "Draws in a loop, the sum of the costs at the end",
        "The same walk and cost, of which gradest is not told when it arises.",
        STEPS,
        off_target,
        IN_LOOP,
        exact_walk,
        functools.partial(expect_walk, told=False),
    ),
}
