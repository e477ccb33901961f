"""The lower half of a digit from its upper half: 392-200-200-392 on fixed-binarized MNIST.

Two layers of 200 Bernoulli units between linear maps, of Glorot's uniform weights at first; batches
of 100. Trained on one sample, -log p(lower | h2), and tested after the last epoch with 1,000: the
negative log of their mean likelihood. ARM has the published 2,000 epochs of Adam at 1e-4.

Beside it all estimators train the same maps on the same batches for fewer epochs, at 1e-3. What
they have besides (a temperature, an eta, a surrogate) is the table of methods', one for each
layer, annealed or trained by its own cotangent at 1e-3.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge
from gradest.distributions import Bernoulli
from gradest.problems import data, methods, training

from . import _resume
from ._suite import Reproduction, Row, Target

HALF, UNITS, BATCH, NUM_SAMPLES = 392, 200, 100, 1000
PUBLISHED, EPOCHS = 57.9, 2000
BESIDE = [
    "straight_through",
    "gumbel_softmax",
    "st_gumbel_softmax",
    "gumbel_rao",
    "reinmax",
    "score_function",
    "score_function_loo",
    "arm",
    "disarm",
    "muprop",
    "rebar",
    "relax",
]
EPOCHS_BESIDE = 60
# The loss of the whole run's fifth epoch, and how far runs are apart there.
QUICK_EPOCHS, QUICK = 5, (109.57, 0.3)

Params = dict[str, Any]


def initial(method: methods.Method, key: jax.Array) -> Params:
    keys = jax.random.split(key, 5)
    sizes = itertools.pairwise((HALF, UNITS, UNITS, HALF))
    weights = jax.nn.initializers.glorot_uniform()
    layers = [
        {"w": weights(k, size), "b": jnp.zeros(size[1])}
        for k, size in zip(keys[:3], sizes, strict=True)
    ]
    return {"layers": layers, "control": [method.initial_control(k, (UNITS,)) for k in keys[3:]]}


def apply(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def loss(method: methods.Method, params: Params, key: jax.Array, image: jax.Array) -> jax.Array:
    first, second, last = params["layers"]
    upper, lower = image[:HALF], image[HALF:]
    of_first, of_second = (method.sampler(**control) for control in params["control"])
    first_key, second_key = jax.random.split(key)
    h1 = of_first(first_key, Bernoulli(apply(first, upper)))
    h2 = of_second(second_key, Bernoulli(apply(second, h1)))
    return -jnp.sum(Bernoulli(apply(last, h2)).log_prob(lower))


@jax.jit
def test_loss(layers: Any, key: jax.Array, images: jax.Array) -> jax.Array:
    """The mean over images of the negative log of the mean likelihood of samples, exact ones."""

    def of_one(key_and_image: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, image = key_and_image
        first, second, last = layers
        first_key, second_key = jax.random.split(key)
        h1 = Bernoulli(apply(first, image[:HALF])).sample(first_key, (NUM_SAMPLES,))
        h2 = Bernoulli(apply(second, h1)).sample(second_key)
        likelihoods = jnp.sum(Bernoulli(apply(last, h2)).log_prob(image[HALF:]), axis=-1)
        return math.log(NUM_SAMPLES) - jax.nn.logsumexp(likelihoods)

    return jnp.mean(jax.lax.map(of_one, (jax.random.split(key, len(images)), images)))


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, and on what.

    Attributes:
      learning_rate: of the maps.
      num_epochs: after which it is tested.
      train, test: images of 0s and 1s, one per row.
    """

    learning_rate: float
    num_epochs: int
    train: np.ndarray
    test: np.ndarray

    def run(
        self, method: methods.Method, seed: int, file: pathlib.Path | None = None
    ) -> tuple[Params, list[dict[str, float]]]:
        """The parameters; of every epoch its mean loss and milliseconds per step; the test loss."""
        num_steps = len(self.train) // BATCH
        schedule = training.jang_schedule(self.num_epochs * num_steps)
        optimizer = optax.multi_transform(
            {"layers": optax.adam(self.learning_rate), "control": optax.adam(1e-3)},
            {"layers": "layers", "control": "control"},
        )
        optimizer = ge.with_annealing(
            optimizer,
            {f"control.{i}.{name}": schedule for i in range(2) for name in method.annealed},
        )
        expected = ge.expectation(functools.partial(loss, method))
        pixels = jnp.asarray(self.train)

        def batch_loss(params: Params, key: jax.Array, batch: jax.Array) -> jax.Array:
            keys = jax.random.split(key, len(batch))
            return jnp.mean(jax.vmap(expected, in_axes=(None, 0, 0))(params, keys, batch))

        def step(state: Any, inputs: Any) -> tuple[Any, jax.Array]:
            params, moments = state
            key, rows = inputs
            batch = pixels[rows].astype(jnp.float32)
            value, gradient = jax.value_and_grad(batch_loss)(params, key, batch)
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), value

        steps = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)

        def stage(state: Any, number: int) -> tuple[Any, dict[str, float]]:
            key = jax.random.fold_in(of_run, number)
            if number == self.num_epochs:
                images = jnp.asarray(self.test, jnp.float32)
                return state, {"test": float(test_loss(state[0]["layers"], key, images))}
            order = np.random.default_rng([seed, number]).permutation(len(self.train))
            rows = jnp.asarray(order[: num_steps * BATCH].reshape(num_steps, BATCH))
            began = time.perf_counter()
            state, losses = steps(state, (jax.random.split(key, num_steps), rows))
            mean = float(jnp.mean(losses))
            return state, {"loss": mean, "ms": 1e3 * (time.perf_counter() - began) / num_steps}

        of_start, of_run = jax.random.split(jax.random.key(seed))
        params = initial(method, of_start)
        state = (params, optimizer.init(params))
        (params, _), told = _resume.run(file, state, stage, self.num_epochs + 1)
        return params, told


def run(seeds: int, quick: bool, state: pathlib.Path | None = None) -> list[Row]:
    images = data.load_binarized_mnist(os.environ.get("GRADEST_DATA", ""))
    arm, *_ = methods.choose(["arm"], "bernoulli")
    if quick:
        short = Training(1e-4, QUICK_EPOCHS, images.train, images.test[:100])
        losses = [short.run(arm, seed)[1][QUICK_EPOCHS - 1]["loss"] for seed in range(seeds)]
        return [Row(f"ARM, epoch {QUICK_EPOCHS}: loss", Target.within(*QUICK), losses)]

    def rows(method: methods.Method, what: str, how: Training, target: Target | None) -> list[Row]:
        files = (_resume.file_of(state, "structured", what, method.name, s) for s in range(seeds))
        told = [how.run(method, seed, file)[1] for seed, file in enumerate(files)]
        ms = [statistics.median(t["ms"] for t in of_seed[:-1]) for of_seed in told]
        name = f"{method.name}, {how.num_epochs:,} epochs at {how.learning_rate:g}"
        return [
            Row(f"{name}: test loss", target, [of_seed[-1]["test"] for of_seed in told]),
            Row(f"{name}: ms for a step", None, ms),
        ]

    published = Training(1e-4, EPOCHS, images.train, images.test)
    beside = Training(1e-3, EPOCHS_BESIDE, images.train, images.test)
    return [
        *rows(arm, "published", published, Target.within(PUBLISHED, 0.5)),
        *(
            row
            for method in methods.choose(BESIDE, "bernoulli")
            for row in rows(method, "beside", beside, None)
        ),
    ]


STRUCTURED = Reproduction(
    "structured",
    "Yin and Zhou 2019, table 3: ARM's negative log-likelihood of the lower half",
    run,
    seeds=1,
    needs_data=True,
    resumable=True,
)
