"""Many exact draws from a few rows of many categories."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gradest.distributions import Categorical

from .. import _measure, speed
from . import _peers

DRAWS = (speed.Draws(1024, 1, 4096), speed.Draws(1024, 4, 1024))
QUICK_DRAWS = (speed.Draws(16, 1, 64),)

#: (key, logits, draws of each row) -> integers of shape (draws, rows).
Sample = Callable[[jax.Array, jax.Array, int], jax.Array]

WITH_JAX: dict[str, Callable[[Any], Sample]] = {
    "numpyro": lambda numpyro: lambda key, l, n: numpyro.Categorical(logits=l).sample(key, (n,)),
    "TFP": lambda tfp: (
        lambda key, l, n: tfp.distributions.Categorical(logits=l).sample(n, seed=key)
    ),
    "distrax": lambda distrax: (
        lambda key, l, n: distrax.Categorical(logits=l).sample(seed=key, sample_shape=(n,))
    ),
}
WITH_TORCH: dict[str, Callable[[Any], Callable[[Any, int], Any]]] = {
    "PyTorch": lambda torch: (
        lambda l, n: torch.multinomial(torch.softmax(l, -1), n, replacement=True).T
    ),
    "Pyro": lambda pyro: lambda l, n: pyro.distributions.Categorical(logits=l).sample((n,)),
}


def programs(draws: speed.Draws) -> dict[str, _measure.Program]:
    """Of gradest, JAX, and every library that is there; the frequencies are right."""
    key, logits = jax.random.key(2), draws.logits()
    samples: dict[str, Sample] = {
        "gradest": lambda key, l, n: Categorical(l).sample(key, (n,)),
        "jax.random": lambda key, l, n: jax.random.categorical(key, l, shape=(n, *l.shape[:-1])),
        **_peers.installed(WITH_JAX),
    }
    programs: dict[str, _measure.Program] = {
        name: functools.partial(jax.jit(sample, static_argnums=2), key, logits, draws.draws)
        for name, sample in samples.items()
    }
    for name, sample in _peers.installed(WITH_TORCH).items():
        l = _peers.to_torch(logits)
        programs[name] = _peers.synchronized(functools.partial(sample, l, draws.draws))
    for name, run in programs.items():
        x = run()
        speed.check_counts(name, np.asarray(x if isinstance(x, jax.Array) else x.cpu()), draws)
    return programs


def measure(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    for draws in QUICK_DRAWS if quick else DRAWS:
        problem = f"{draws.draws} of each of {draws.rows}, {draws.categories} categories"
        yield from _peers.compare(problem, _peers.times(programs(draws), rounds))
