"""Gradient estimates at many keys, and what every estimator is asked besides their moments."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import distributions as dists

from . import broken as broken
from . import oracles as oracles
from .cases import CASES as CASES
from .cases import DISTRIBUTIONS as DISTRIBUTIONS
from .cases import FINITE as FINITE
from .cases import wave as wave
from .statistical import NUM_KEYS as NUM_KEYS
from .statistical import assert_moments as assert_moments
from .statistical import assert_unbiased as assert_unbiased
from .statistical import assert_variance as assert_variance
from .statistical import keys as keys
from .statistical import optimized as optimized

LINK = ((0.9, -0.5), (0.3, 0.8))
WEIGHTS = (0.8, -0.6, 0.9, 0.5)


def gradients(loss: Any, params: Any, num: int = NUM_KEYS, seed: int = 0) -> Any:
    """Gradients of `loss(params, key)` at `num` keys."""
    return jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, keys(num, seed))


def of_dist(sampler: ge.Sampler, cost: Any, dist: Any, num: int = NUM_KEYS) -> Any:
    """Gradients of E[cost(x)] with respect to the distribution, at `num` keys."""
    return gradients(lambda dist, key: sampler.expect(key, dist, cost), dist, num)


def toy(sampler: ge.Sampler, p: float, t: float, num: int = NUM_KEYS) -> jax.Array:
    """Gradients of E[(b - t)^2], b ~ Bernoulli(p), with respect to the log-odds."""
    logit = math.log(p / (1 - p))
    return of_dist(sampler, lambda b: (b - t) ** 2, dists.Bernoulli(logit), num).logits


def exact(dist: Any, cost: Any) -> Any:
    """The gradient of E[cost(x)] with respect to the distribution."""
    return jax.jit(jax.grad(lambda dist: oracles.expectation(dist, cost)))(dist)


def coefficients(x: jax.Array) -> jax.Array:
    """One for each element, of either sign."""
    return jnp.asarray(np.cos(1.7 * np.arange(x.size)).reshape(x.shape), x.dtype)


def moments(estimate: Callable[[jax.Array], jax.Array], dist: Any) -> tuple[Any, Any]:
    """Mean and variance of a function of the draw."""
    draws, probs = oracles.points(dist)
    g = jax.vmap(estimate)(draws)
    mean = jnp.einsum("m...,m->...", g, probs)
    return mean, jnp.einsum("m...,m->...", (g - mean[None]) ** 2, probs)


# ---- Dependent sites and lanes -------------------------------------------------------------


def chain_params() -> Any:
    logits = jnp.array([0.4, -0.6])
    return {"logits": logits, "link": jnp.array(LINK), "w": jnp.array(WEIGHTS)}


def _chain(params: Any, first: Callable[..., Any], second: Callable[..., Any]) -> Any:
    def after(x: Any) -> Any:
        logits = params["link"] @ x - 0.4
        return second(logits, lambda y: wave(params["w"], jnp.concatenate([x, y])))

    return first(params["logits"], after)


def chain(first: Callable[[], ge.Sampler], second: Callable[[], ge.Sampler]) -> Any:
    """A loss of (params, key) with two dependent sites of two Bernoulli variables each."""

    @ge.expectation
    def loss(params, key):
        one, two = jax.random.split(key)
        step = lambda key, make: lambda l, then: then(make()(key, dists.Bernoulli(l)))
        return _chain(params, step(one, first), step(two, second))

    return loss


@functools.cache
def exact_chain() -> Any:
    step = lambda l, then: oracles.expectation(dists.Bernoulli(l), then)
    return jax.jit(jax.grad(lambda params: _chain(params, step, step)))(chain_params())


def lanes(make: Callable[[], ge.Sampler]) -> Any:
    """Gradients of a loss with a vmapped site, and the exact one: one joint draw."""
    logits = jnp.array([[0.4, -0.6], [0.2, 0.9], [-0.3, -0.8]])
    w = jnp.array([0.9, -0.6, 0.5, 0.7, -0.8, 0.4])

    @ge.expectation
    def loss(logits, key):
        draw = lambda key, logits: make()(key, dists.Bernoulli(logits))
        return wave(w, jax.vmap(draw)(jax.random.split(key, 3), logits))

    want = exact(dists.Bernoulli(logits), functools.partial(wave, w)).logits
    with pytest.warns(UserWarning, match="credited with the whole loss in every lane"):
        return gradients(loss, logits), want


# ---- The contract --------------------------------------------------------------------------


def assert_forms_agree(make: Callable[[], ge.Sampler], dist: Any) -> None:
    """`expect`, a draw in a loss, and a sampler made inside a jitted loss."""
    w = jnp.array(WEIGHTS)[: dist.logits.size]
    cost = functools.partial(wave, w)

    @jax.jit
    def run(dist, keys):
        losses = {
            "expect": lambda dist, key: make().expect(key, dist, cost),
            "draw": ge.expectation(lambda dist, key: cost(make()(key, dist))),
            "jit": jax.jit(lambda dist, key: make().expect(key, dist, cost)),
        }
        grad = lambda loss: jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))
        return {name: grad(loss)(dist, keys) for name, loss in losses.items()}

    results = run(dist, keys(20))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for name in ("draw", "jit"):
        jax.tree.map(close, results[name], results["expect"])


INF = float("inf")
_BITS = dists.Bernoulli(jnp.array([-INF, INF, 1e4, -1e4, 0.5]))
_ROWS = dists.OneHotCategorical(jnp.array([[0.5, -INF, 1e4], [-1e4, 0.3, -INF], [-INF, 0.3, -0.2]]))
_cast = lambda dist, dtype: jax.tree.map(lambda x: x.astype(dtype), dist)
EXTREMES = {
    "bits": _BITS,
    "bits, float16": _cast(_BITS, jnp.float16),
    "no bits": dists.Bernoulli(jnp.zeros(0)),
    "rows": _ROWS,
    "rows, bfloat16": _cast(_ROWS, jnp.bfloat16),
    "rows of one category": dists.OneHotCategorical(jnp.array([[0.7], [1e4]])),
    "no rows": dists.OneHotCategorical(jnp.zeros((0, 3))),
}


def assert_robust(make: Callable[[], ge.Sampler], only: str = "") -> None:
    """Finite values and gradients of the right type; what is impossible has no gradient.

    Of the extremes whose names begin with `only`.
    """
    extremes = {name: dist for name, dist in EXTREMES.items() if name.startswith(only)}

    def loss(dist: Any, key: Any) -> Any:
        sampler, dtype = make(), dist.logits.dtype
        cost = lambda x: (jnp.sum(x * x) - jnp.asarray(0.3, dtype)) ** 2 + jnp.sum(x)
        draw = sampler(key, jax.lax.stop_gradient(dist))
        return sampler.expect(key, dist, cost), draw

    run = jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0))
    results = jax.jit(lambda dists: {name: run(d, keys(64)) for name, d in dists.items()})
    for name, ((value, x), g) in results(extremes).items():
        logits = extremes[name].logits
        assert value.dtype == g.logits.dtype == x.dtype == logits.dtype, name
        x, g = np.asarray(x, np.float64), np.asarray(g.logits, np.float64)
        for array in (np.asarray(value, np.float64), x, g):
            assert np.isfinite(array).all(), name
        impossible = np.broadcast_to(np.isneginf(np.asarray(logits, np.float64)), x.shape)
        assert (x[impossible] == 0).all(), name
        assert (g[impossible] == 0).all(), name
        if name.startswith("rows"):
            assert (x.sum(axis=-1) == 1).all(), name


def assert_first_order(sampler: ge.Sampler, dist: Any) -> None:
    """The second derivative raises, and names the estimator."""
    loss = lambda dist: sampler.expect(
        jax.random.key(0), dist, lambda x: jnp.sum(x * x) + jnp.prod(x)
    )
    norm = lambda dist: sum(jnp.sum(g * g) for g in jax.tree.leaves(jax.grad(loss)(dist)))
    with pytest.raises(NotImplementedError, match=f"{sampler.name}: .*differentiated again"):
        jax.eval_shape(jax.grad(norm), dist)


def mixed(sampler: ge.Sampler, num: int = NUM_KEYS) -> tuple[jax.Array, jax.Array]:
    """Estimates of d/dl d/dw E[cost(w, x)], and the exact one."""
    dist, w = dists.Bernoulli(jnp.array([0.4, -0.7])), jnp.array([0.9, -0.6])

    def of(expected: Any) -> Any:
        by_w = lambda dist, *key: jax.grad(
            lambda w: expected(*key, dist, functools.partial(wave, w))
        )(w)
        return jax.jacrev(lambda dist, *key: by_w(dist, *key))

    got = jax.jit(jax.vmap(of(sampler.expect), in_axes=(None, 0)))(dist, keys(num))
    return got.logits, jax.jit(of(oracles.expectation))(dist).logits


def assert_unestimated(sampler: ge.Sampler, dist: Any) -> None:
    """A plain draw that is differentiated raises."""
    draw = lambda dist: jnp.sum(sampler(jax.random.key(0), dist))
    with pytest.raises(ge.UnestimatedGradientError, match=sampler.name):
        jax.grad(draw)(dist)
