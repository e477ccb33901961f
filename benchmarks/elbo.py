"""The gradient of an ELBO by gradest's samplers and by numpyro's TraceGraph_ELBO: variance x time.

    python -m benchmarks.elbo                 # about a minute; --record keeps the results
    python -m benchmarks.elbo --quick         # few draws, to see that it runs

A variational autoencoder with 16 bits for each of 64 binarised digits, the same model and guide for
all, at the parameters that 500 steps by `disarm` have found. TraceGraph_ELBO has no baseline; its
row of four particles is for comparison with those of four runs.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from numpyro.infer import SVI, TraceGraph_ELBO
from sklearn.datasets import load_digits

import gradest as ge
from gradest.numpyro import ELBO

from . import _command, _measure, pictures

#: What the others are compared with.
PEER = "TraceGraph_ELBO"
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
        PEER: TraceGraph_ELBO(),
        f"{PEER}, 4 particles": TraceGraph_ELBO(num_particles=4),
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


def measure(names: Sequence[str], quick: bool) -> dict[str, Any]:
    """Of each bound the variance of its gradient, and its time."""
    del names
    steps, draws, rounds = (5, 8, 2) if quick else (500, 400, 100)
    pixels: Any = load_digits(return_X_y=True)[0]
    x = jnp.asarray(pixels[:64] > 7, jnp.float32)
    start = SVI(model, guide, optax.adam(0.01), bounds()["disarm"])
    params = start.run(jax.random.key(0), steps, x, progress_bar=False).params

    def gradient_of(bound: Any) -> Callable[[jax.Array], Any]:
        loss = lambda params, key: bound.loss(key, params, model, guide, x)
        return jax.jit(lambda key: jax.grad(loss)(params, key))

    gradients = {name: gradient_of(bound) for name, bound in bounds().items()}
    key = jax.random.key(2)
    programs = {name: lambda g=gradient: g(key) for name, gradient in gradients.items()}
    times = _measure.run_times(programs, rounds)
    rows = []
    for name, gradient in gradients.items():
        ratio = times[name] / times[PEER]
        rows.append(
            {
                "bound": name,
                "variance": variance(gradient, draws),
                "ms": _measure.quartiles(1e3 * times[name]),
                "time": _measure.quartiles(ratio),
            }
        )
    return {"bounds": rows}


def product(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float:
    """Variance times time, as a multiple of the peer's."""
    (of_peer,) = (other["variance"] for other in rows if other["bound"] == PEER)
    return row["variance"] / of_peer * row["time"][1]


def render(results: dict[str, Any]) -> str:
    """The table of one machine, in Markdown."""
    rows = results["bounds"]
    columns = ["bound", "trace of the covariance", "ms", "time", "variance x time"]
    table = _measure.table(
        columns,
        [
            [
                row["bound"],
                f"{row['variance']:.3g}",
                _measure.spread(row["ms"]),
                _measure.spread(row["time"]),
                f"{product(rows, row):.2g}",
            ]
            for row in rows
        ],
    )
    heading = f"### {_measure.describe(results['machine'])}"
    said = f"The last two columns are multiples of {PEER}'s."
    return "\n\n".join([heading, said, table, pictures.link("elbo", results, picture(results))])


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The last column of the table."""
    rows = results["bounds"]
    dots = [pictures.Dot(row["bound"], [product(rows, row)]) for row in rows]
    return pictures.Picture(
        f"Variance times time of the gradient of a bound, as a multiple of {PEER}'s: a dot for "
        "each way to estimate it",
        "",
        [pictures.Panel("Bound of a discrete autoencoder", "variance x time", dots, 1)],
    )


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "elbo",
        __doc__,
        measure,
        render,
        argv,
        quick="few steps and draws",
        draw=pictures.draw("elbo", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
