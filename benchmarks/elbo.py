"""The gradient of an ELBO by gradest's samplers and by numpyro's TraceGraph_ELBO: variance x time.

    python -m benchmarks.elbo                 # about a minute
    python -m benchmarks.elbo --quick         # few draws, to see that it runs

A variational autoencoder with 16 bits for each of 64 binarised digits, the same model and guide for
all, at the parameters that 500 steps by `disarm` have found. TraceGraph_ELBO has no baseline; its
row of four particles is for comparison with those of four runs.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI, TraceGraph_ELBO
from sklearn.datasets import load_digits

import gradest as ge
from gradest.numpyro import ELBO

BITS = 16
_sample: Any = numpyro.sample
_param: Any = numpyro.param
_bernoulli: Any = numpyro.distributions.Bernoulli


def model(x: jax.Array) -> None:
    weights = _param("weights", lambda key: 0.1 * jax.random.normal(key, (BITS, x.shape[1])))
    bias = _param("bias", jnp.zeros(x.shape[1]))
    prior = _param("prior", jnp.zeros(BITS))
    with numpyro.plate("data", x.shape[0]):
        z = _sample("z", _bernoulli(logits=prior).to_event(1))
        _sample("x", _bernoulli(logits=z @ weights + bias).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    kernel = _param("kernel", lambda key: 0.1 * jax.random.normal(key, (x.shape[1], BITS)))
    offset = _param("offset", jnp.zeros(BITS))
    with numpyro.plate("data", x.shape[0]):
        _sample("z", _bernoulli(logits=x @ kernel + offset).to_event(1))


def bounds() -> dict[str, Any]:
    by = lambda sampler, **options: ELBO({"z": sampler}, default=ge.reparameterize(), **options)
    runs = {"num_particles": 4, "baseline": "leave_one_out"}
    return {
        "TraceGraph_ELBO": TraceGraph_ELBO(),
        "TraceGraph_ELBO, 4 particles": TraceGraph_ELBO(num_particles=4),
        "score_function": by(ge.score_function()),
        "score_function, leave-one-out of 4 particles": by(ge.score_function(), **runs),
        "score_function, leave-one-out of 4 samples": by(
            ge.score_function(num_samples=4, baseline="leave_one_out")
        ),
        "rebar": by(ge.rebar()),
        "disarm": by(ge.disarm()),
    }


def variance(gradient: Callable[..., Any], num: int) -> float:
    """The trace of the covariance of a gradient."""
    found = jax.lax.map(gradient, jax.random.split(jax.random.key(1), num))
    return sum(float(jnp.sum(jnp.var(leaf, axis=0))) for leaf in jax.tree.leaves(found))


def milliseconds(gradient: Callable[..., Any], num: int) -> float:
    """The median time of a compiled gradient."""
    times = []
    for key in jax.random.split(jax.random.key(2), num + 1):
        start = time.perf_counter()
        jax.block_until_ready(gradient(key))
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[1:]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="ELBO beside TraceGraph_ELBO")
    parser.add_argument("--quick", action="store_true", help="few steps and draws")
    quick = parser.parse_args(argv).quick
    pixels: Any = load_digits(return_X_y=True)[0]
    x = jnp.asarray(pixels[:64] > 7, jnp.float32)
    start = SVI(model, guide, optax.adam(0.01), bounds()["disarm"])
    params = start.run(jax.random.key(0), 5 if quick else 500, x, progress_bar=False).params
    print("| bound | trace of the covariance | ms | product, of TraceGraph_ELBO's |")
    print("|---|---|---|---|")
    first = None
    for name, bound in bounds().items():
        loss = lambda params, key, bound=bound: bound.loss(key, params, model, guide, x)
        gradient = jax.jit(lambda key, loss=loss: jax.grad(loss)(params, key))
        trace = variance(gradient, 8 if quick else 400)
        ms = milliseconds(gradient, 3 if quick else 200)
        first = trace * ms if first is None else first
        print(f"| {name} | {trace:.3g} | {ms:.3g} | {trace * ms / first:.2g} |")


if __name__ == "__main__":
    main()
