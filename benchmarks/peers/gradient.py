"""A batch of draws, and the gradient of a cost of them with respect to the logits."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest._random import gumbel
from gradest.distributions import OneHotCategorical

from .. import _measure
from ..speed import draw
from . import _peers

TEMPERATURE = 0.5
SHAPES, QUICK_SHAPES = ((16384, 64), (128, 200), (1, 50_000)), ((6, 5),)
BANDWIDTH_SHAPES, QUICK_BANDWIDTH_SHAPES = ((16384, 64), (262_144, 64)), ((6, 5),)

#: (logits, key, target) -> (value, gradient).
ValueAndGrad = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def costs(x: Any, target: Any) -> Any:
    """Of each row; arrays of JAX or tensors of PyTorch."""
    return ((x - target) ** 2).sum(-1)


def pathwise(draw: Callable[[jax.Array, jax.Array], jax.Array]) -> ValueAndGrad:
    """With a draw from (key, logits) through which the cost is differentiated."""

    def loss(logits: jax.Array, key: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.sum(costs(draw(key, logits), target))

    return jax.value_and_grad(loss)


def scored(draw: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]) -> ValueAndGrad:
    """With a draw and its log-probabilities: each row is credited with its own cost."""

    def surrogate(logits: jax.Array, key: jax.Array, target: jax.Array) -> Any:
        x, log_p = draw(key, logits)
        c = costs(x, target)
        return jnp.sum(jax.lax.stop_gradient(c) * log_p), jnp.sum(c)

    def value_and_grad(logits: jax.Array, key: jax.Array, target: jax.Array) -> Any:
        gradient, value = jax.grad(surrogate, has_aux=True)(logits, key, target)
        return value, gradient

    return value_and_grad


# ---- By hand and with gradest --------------------------------------------------------------


def gumbel_softmax(key: jax.Array, logits: jax.Array) -> jax.Array:
    z = logits + gumbel(key, logits.shape, logits.dtype)
    return jax.nn.softmax(z / TEMPERATURE)


def straight_through(key: jax.Array, logits: jax.Array) -> jax.Array:
    soft = jax.nn.softmax(logits)
    return soft + jax.lax.stop_gradient(draw(key, logits) - soft)


def score_function(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = jax.vmap(draw)(jax.random.split(key, len(logits)), logits)
    return x, jnp.sum(x * jax.nn.log_softmax(logits), axis=-1)


BY_HAND: dict[str, ValueAndGrad] = {
    "gumbel_softmax": pathwise(gumbel_softmax),
    "straight_through": pathwise(straight_through),
    "score_function": scored(score_function),
}


def with_gradest(estimator: str) -> ValueAndGrad:
    if estimator == "score_function":
        return jax.value_and_grad(_score_function)
    sampler = {
        "gumbel_softmax": ge.gumbel_softmax(TEMPERATURE),
        "straight_through": ge.straight_through(),
    }[estimator]
    return pathwise(lambda key, logits: sampler(key, OneHotCategorical(logits)))


def _score_function(logits: jax.Array, key: jax.Array, target: jax.Array) -> jax.Array:
    @ge.expectation
    def of_row(logits: jax.Array, key: jax.Array, target: jax.Array) -> jax.Array:
        return costs(ge.score_function()(key, OneHotCategorical(logits)), target)

    return jnp.sum(jax.vmap(of_row)(logits, jax.random.split(key, len(logits)), target))


# ---- With other libraries ------------------------------------------------------------------


def _one_hot_with_score(distribution: Any, key: jax.Array, logits: jax.Array) -> Any:
    dist = distribution(logits=logits)
    x = dist.sample(seed=key)
    return x.astype(logits.dtype), dist.log_prob(x)


def _numpyro_with_score(numpyro: Any, key: jax.Array, logits: jax.Array) -> Any:
    dist = numpyro.Categorical(logits=logits)
    index = dist.sample(key)
    return jax.nn.one_hot(index, logits.shape[-1], dtype=logits.dtype), dist.log_prob(index)


# What each library has: a relaxed draw, one with the straight-through gradient of the
# probabilities, and an exact one with its log-probability. numpyro's relaxed draw is made of its
# Gumbel distribution, for want of one of its own.
WITH_JAX: dict[str, dict[str, Callable[[Any], ValueAndGrad]]] = {
    "gumbel_softmax": {
        "numpyro": lambda numpyro: pathwise(
            lambda key, l: jax.nn.softmax(numpyro.Gumbel(l, 1.0).sample(key) / TEMPERATURE)
        ),
        "TFP": lambda tfp: pathwise(
            lambda key, l: tfp.distributions.RelaxedOneHotCategorical(TEMPERATURE, logits=l).sample(
                seed=key
            )
        ),
    },
    "straight_through": {
        "distrax": lambda distrax: pathwise(
            lambda key, l: distrax.straight_through_wrapper(distrax.OneHotCategorical)(
                logits=l, dtype=l.dtype
            ).sample(seed=key)
        ),
    },
    "score_function": {
        "numpyro": lambda numpyro: scored(functools.partial(_numpyro_with_score, numpyro)),
        "TFP": lambda tfp: scored(
            functools.partial(_one_hot_with_score, tfp.distributions.OneHotCategorical)
        ),
        "distrax": lambda distrax: scored(
            functools.partial(_one_hot_with_score, distrax.OneHotCategorical)
        ),
    },
}

# Functions of the logits alone: PyTorch keeps the state of its generator.
WITH_TORCH: dict[str, dict[str, Callable[[Any], Callable[[Any], Any]]]] = {
    "gumbel_softmax": {
        "PyTorch": lambda torch: lambda l: torch.nn.functional.gumbel_softmax(l, tau=TEMPERATURE),
        "Pyro": lambda pyro: (
            lambda l: pyro.distributions.RelaxedOneHotCategorical(
                _peers.to_torch(np.float32(TEMPERATURE)), logits=l
            ).rsample()
        ),
    },
    "straight_through": {
        "Pyro": lambda pyro: (
            lambda l: pyro.distributions.OneHotCategoricalStraightThrough(logits=l).rsample()
        ),
    },
    "score_function": {
        "PyTorch": lambda torch: (
            lambda l: _torch_with_score(torch.distributions.OneHotCategorical(logits=l))
        ),
    },
}


def _torch_with_score(dist: Any) -> Any:
    x = dist.sample()
    return x, dist.log_prob(x)


def torch_program(
    draw: Callable[[Any], Any], estimator: str, logits: jax.Array, target: jax.Array
) -> _measure.Program:
    torch = _peers.load("PyTorch")
    logits, target = _peers.to_torch(logits).requires_grad_(), _peers.to_torch(target)

    def run() -> Any:
        if estimator == "score_function":
            x, log_p = draw(logits)
            c = costs(x, target)
            value, surrogate = c.sum(), (c * log_p).sum()
        else:
            value = surrogate = costs(draw(logits), target).sum()
        return value.detach(), *torch.autograd.grad(surrogate, logits)

    return _peers.synchronized(run)


# ---- Measurements --------------------------------------------------------------------------


def arguments(shape: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return jax.random.normal(keys[0], shape), keys[1], jax.random.normal(keys[2], shape)


def programs(estimator: str, shape: tuple[int, int]) -> dict[str, _measure.Program]:
    """Of gradest, by hand, and of every library that is there; they agree."""
    args = logits, _, target = arguments(shape)
    functions = {
        "gradest": with_gradest(estimator),
        _peers.HAND: BY_HAND[estimator],
        **_peers.installed(WITH_JAX[estimator]),
    }
    programs: dict[str, _measure.Program] = {
        name: functools.partial(jax.jit(function), *args) for name, function in functions.items()
    }
    for name, with_score in _peers.installed(WITH_TORCH[estimator]).items():
        programs[name] = torch_program(with_score, estimator, logits, target)
    where = f"{estimator} {shape}"
    _peers.check_same(where, programs["gradest"](), programs[_peers.HAND]())
    # Few draws, as of a quick run, tell nothing.
    if np.prod(shape) > 10_000:
        _peers.check_alike(where, {name: float(run()[0]) for name, run in programs.items()})
    return programs


def measure(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    for estimator in BY_HAND:
        for shape in QUICK_SHAPES if quick else SHAPES:
            problem = f"{estimator}, {shape[0]} x {shape[1]}"
            yield from _peers.compare(problem, _peers.times(programs(estimator, shape), rounds))


def measure_bandwidth(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Of gumbel_softmax, forward and backward, and of copying an array as large as its logits."""
    for shape in QUICK_BANDWIDTH_SHAPES if quick else BANDWIDTH_SHAPES:
        args = logits, *_ = arguments(shape)
        times = _peers.times(
            {
                "gradest": functools.partial(jax.jit(with_gradest("gumbel_softmax")), *args),
                # Not a mere copy, which the compiler would leave out.
                "copy": functools.partial(jax.jit(jnp.negative), logits),
            },
            rounds,
        )
        # The logits and the target are read, the gradient is written; a copy reads and writes.
        moved = {"gradest": 3 * logits.nbytes, "copy": 2 * logits.nbytes}
        rates: Mapping[str, np.ndarray] = {name: moved[name] / ts for name, ts in times.items()}
        yield {
            "shape": list(shape),
            "ms": {name: _measure.quartiles(ts * 1e3) for name, ts in times.items()},
            "gb_per_s": {name: _measure.quartiles(rate / 1e9) for name, rate in rates.items()},
            "fraction": _measure.quartiles(rates["gradest"] / rates["copy"]),
        }
