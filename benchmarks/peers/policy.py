"""A policy gradient: 100 steps of a policy in a scan, each action credited with later costs."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import gradest as ge
from gradest.distributions import OneHotCategorical

from .. import _measure
from ..speed import draw
from . import _peers

STEPS, QUICK_STEPS = 100, 3
EPISODES, QUICK_EPISODES = 64, 4
STATE, HIDDEN, ACTIONS = 8, 32, 4

Params = dict[str, jax.Array]
#: (parameters, key, first states) -> (mean cost of an episode, gradient).
ValueAndGrad = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Params]]


def arguments(episodes: int) -> tuple[Params, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "hidden": jax.random.normal(keys[0], (STATE, HIDDEN)) / STATE**0.5,
        "out": jax.random.normal(keys[1], (HIDDEN, ACTIONS)) / HIDDEN**0.5,
    }
    return params, keys[2], jax.random.normal(keys[3], (episodes, STATE))


def dynamics() -> tuple[jax.Array, jax.Array]:
    """What moves a state, and what an action adds."""
    keys = jax.random.split(jax.random.key(1))
    return (
        jax.random.normal(keys[0], (STATE, STATE)) / STATE**0.5,
        jax.random.normal(keys[1], (ACTIONS, STATE)),
    )


def policy(params: Params, state: jax.Array) -> jax.Array:
    return jnp.tanh(state @ params["hidden"]) @ params["out"]


def move(state: jax.Array, action: jax.Array) -> jax.Array:
    drift, push = dynamics()
    return jnp.tanh(state @ drift + action @ push)


def with_gradest(steps: int) -> ValueAndGrad:
    @ge.expectation
    def episode(params: Params, key: jax.Array, start: jax.Array) -> jax.Array:
        def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            action = ge.score_function()(key, OneHotCategorical(policy(params, state)))
            state = move(state, action)
            ge.cost(jnp.mean(state**2))
            return state, None

        jax.lax.scan(step, start, jax.random.split(key, steps))
        return jnp.zeros(())

    def loss(params: Params, key: jax.Array, starts: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(starts))
        return jnp.mean(jax.vmap(episode, (None, 0, 0))(params, keys, starts))

    return jax.value_and_grad(loss)


def by_hand(steps: int) -> ValueAndGrad:
    def surrogate(params: Params, key: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(states: jax.Array, keys: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            logits = policy(params, states)
            actions = jax.vmap(draw)(keys, logits)
            log_p = jnp.sum(actions * jax.nn.log_softmax(logits), axis=-1)
            states = move(states, actions)
            return states, (log_p, jnp.mean(states**2, axis=-1))

        keys = jax.random.split(key, len(starts))
        keys = jax.vmap(lambda key: jax.random.split(key, steps), out_axes=1)(keys)
        _, (log_ps, costs) = jax.lax.scan(step, starts, keys)
        to_go = jnp.cumsum(costs[::-1], axis=0)[::-1]
        return jnp.mean(jnp.sum(log_ps * to_go, axis=0)), jnp.mean(jnp.sum(costs, axis=0))

    def value_and_grad(params: Params, key: jax.Array, starts: jax.Array) -> Any:
        gradient, value = jax.grad(surrogate, has_aux=True)(params, key, starts)
        return value, gradient

    return value_and_grad


def with_torch(torch: Any) -> Callable[[int, int], _measure.Program]:
    def make(steps: int, episodes: int) -> _measure.Program:
        params, _, starts = arguments(episodes)
        hidden, out = (_peers.to_torch(params[n]).requires_grad_() for n in ("hidden", "out"))
        starts, (drift, push) = _peers.to_torch(starts), map(_peers.to_torch, dynamics())

        def run() -> Any:
            states, log_ps, costs = starts, [], []
            for _ in range(steps):
                log_p = torch.log_softmax(torch.tanh(states @ hidden) @ out, -1)
                action = torch.multinomial(log_p.detach().exp(), 1)
                log_ps.append(log_p.gather(-1, action)[:, 0])
                states = torch.tanh(states @ drift + push[action[:, 0]])
                costs.append((states**2).mean(-1))
            costs = torch.stack(costs)
            to_go = costs.flip(0).cumsum(0).flip(0)
            surrogate = (torch.stack(log_ps) * to_go).sum(0).mean()
            return costs.sum(0).mean().detach(), *torch.autograd.grad(surrogate, (hidden, out))

        return _peers.synchronized(run)

    return make


def check_agreement(steps: int, episodes: int, tolerance: float = 1e-3) -> None:
    """Raises AssertionError unless both give the same value and gradient."""
    args = arguments(episodes)
    got, want = (jax.jit(make(steps))(*args) for make in (with_gradest, by_hand))
    _peers.check_same("policy", got, want, tolerance)


def measure(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    steps, episodes = (QUICK_STEPS, QUICK_EPISODES) if quick else (STEPS, EPISODES)
    check_agreement(steps, episodes)
    args = arguments(episodes)
    programs: dict[str, _measure.Program] = {
        "gradest": functools.partial(jax.jit(with_gradest(steps)), *args),
        _peers.HAND: functools.partial(jax.jit(by_hand(steps)), *args),
    }
    for name, make in _peers.installed({"PyTorch": with_torch}).items():
        programs[name] = make(steps, episodes)
    if not quick:
        _peers.check_alike("policy", {name: float(run()[0]) for name, run in programs.items()})
    problem = f"{steps} steps, {episodes} episodes"
    yield from _peers.compare(problem, _peers.times(programs, rounds))
