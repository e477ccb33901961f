"""The lower half of a digit from its upper half, by two layers of 200 Bernoulli units.

Trained on one sample, -log p(lower | h2), and tested with 1,000: the negative log of their mean
likelihood. Both released programs of ARM's authors have Adam at 1e-4, batches of 100 and 2,000
epochs of the 55,000 images after the first 5,000, a pixel being 1 where it is above one half; and
differ in the network. The paper's is 392-200-200-392. That of the earlier program, of July 2018,
has a layer of 300 leaky rectified units within each of the three maps; the one that has stood in
its place since September has linear maps, of -1 and 1 instead of 0 and 1. Ours train by the
expectation of both samples of every pair, which share what comes after them; theirs draw it anew.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import gradest as ge
from gradest.distributions import Bernoulli
from gradest.problems import data, methods

from . import _resume
from ._suite import Reproduction, Row, Target
from ._training import Params, affine, batches, compiled, epoch, mean_over_batch, step_of

HALF, UNITS, BATCH, NUM_SAMPLES = 392, 200, 100, 1000
PUBLISHED, EPOCHS = 57.9, 2000
SHOWN_ONLY = Target(PUBLISHED)
# Images of the 60,000 that are left out of training; the leaky rectifier's slope.
HELD_OUT, SLOPE = 5000, 0.2
GREY_FILE = "grey_mnist.npz"
# The epochs between tests of 1,000 images, and those after which a row has their loss.
TESTED_EVERY, SHOWN = 50, (150, 250, 400, 550, 1000)
# The loss of the whole runs' fifth epoch, and how far runs are apart there.
QUICK_EPOCHS, QUICK_TOLERANCE = 5, 1.0
QUICK = {
    "arm": 107.3,
    "straight_through": 95.1,
    "score_function_loo": 109.1,
    "disarm": 107.9,
    "rebar": 108.3,
}


@dataclasses.dataclass(frozen=True)
class Network:
    """Three maps to logits: of the first layer's units, of the second's, of the pixels.

    Attributes:
      hidden: units with a leaky rectifier within each map; None for linear maps.
      signs: whether what comes into a map is -1 and 1 instead of 0 and 1.
    """

    hidden: int | None
    signs: bool

    def initial(self, key: jax.Array) -> list[list[Params]]:
        """Glorot's uniform weights."""
        weights = jax.nn.initializers.glorot_uniform()
        inner = () if self.hidden is None else (self.hidden,)

        def map_of(key: jax.Array, size_in: int, size_out: int) -> list[Params]:
            sizes = (size_in, *inner, size_out)
            keys = jax.random.split(key, len(sizes) - 1)
            pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
            return [{"w": weights(k, (m, n)), "b": jnp.zeros(n)} for k, m, n in pairs]

        sizes = [(HALF, UNITS), (UNITS, UNITS), (UNITS, HALF)]
        return [map_of(k, *s) for k, s in zip(jax.random.split(key, 3), sizes, strict=True)]

    def logits(self, layers: list[Params], x: jax.Array) -> jax.Array:
        if self.signs:
            x = 2 * x - 1
        for layer in layers[:-1]:
            x = jax.nn.leaky_relu(affine(layer, x), SLOPE)
        return affine(layers[-1], x)


NONLINEAR, LINEAR = Network(300, signs=False), Network(None, signs=True)
NETWORKS = {"linear": LINEAR, "nonlinear": NONLINEAR}
# Estimator, network, epochs; of fewer epochs than all: as far as they were trained.
RUNS = [("arm", "linear", EPOCHS), ("arm", "nonlinear", 250)]
BESIDE = [
    ("straight_through", "linear", 425),
    ("score_function_loo", "linear", 350),
    ("disarm", "linear", 425),
    ("rebar", "linear", 425),
]


def log_likelihood(logits: jax.Array, pixels: jax.Array) -> jax.Array:
    """`Bernoulli(logits).log_prob(pixels)` summed, with one logarithm: a fifth of a step's time."""
    log_normalizer = jnp.maximum(logits, 0) + jnp.log(1 + jnp.exp(-jnp.abs(logits)))
    return jnp.sum(pixels * logits - log_normalizer, axis=-1)


def initial(network: Network, method: methods.Method, key: jax.Array) -> Params:
    of_maps, *of_controls = jax.random.split(key, 3)
    control = [method.initial_control(k, (UNITS,)) for k in of_controls]
    return {"maps": network.initial(of_maps), "control": control}


def loss(
    network: Network, method: methods.Method, params: Params, key: jax.Array, image: jax.Array
) -> jax.Array:
    first, second, last = params["maps"]
    upper, lower = image[:HALF], image[HALF:]
    of_first, of_second = (method.sampler(**control) for control in params["control"])
    first_key, second_key = jax.random.split(key)
    h1 = of_first(first_key, Bernoulli(network.logits(first, upper)))
    h2 = of_second(second_key, Bernoulli(network.logits(second, h1)))
    return -log_likelihood(network.logits(last, h2), lower)


@functools.partial(jax.jit, static_argnums=0)
def test_loss(network: Network, maps: Any, key: jax.Array, images: jax.Array) -> jax.Array:
    """The mean over images of the negative log of the mean likelihood of samples, exact ones."""
    first, second, last = maps

    def of_one(key_and_image: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, image = key_and_image
        first_key, second_key = jax.random.split(key)
        of_first = Bernoulli(network.logits(first, image[:HALF]))
        h1 = of_first.sample(first_key, (NUM_SAMPLES,))
        h2 = Bernoulli(network.logits(second, h1)).sample(second_key)
        likelihoods = log_likelihood(network.logits(last, h2), image[HALF:])
        return math.log(NUM_SAMPLES) - jax.nn.logsumexp(likelihoods)

    return jnp.mean(jax.lax.map(of_one, (jax.random.split(key, len(images)), images)))


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, and on what.

    Attributes:
      network: whose maps are trained.
      num_epochs: of batches, at `learning_rate`.
      train: images of 0s and 1s, one per row.
      watched: images whose test loss is told every few epochs.
      test: images whose test loss is told after the last epoch of a run of `EPOCHS`.
    """

    network: Network
    num_epochs: int
    train: np.ndarray
    watched: np.ndarray
    test: np.ndarray
    learning_rate: float = 1e-4

    def run(
        self, method: methods.Method, seed: int, file: pathlib.Path | None = None
    ) -> tuple[Params, list[dict[str, float]]]:
        """The parameters; of every epoch its mean loss and, of some, the test loss; the last.

        A file of more epochs than these serves too, and that of fewer goes on.
        """
        optimizer = optax.multi_transform(
            {"maps": optax.adam(self.learning_rate), "control": optax.adam(1e-3)},
            {"maps": "maps", "control": "control"},
        )
        expected = ge.expectation(functools.partial(loss, self.network, method))
        pixels, watched = jnp.asarray(self.train), jnp.asarray(self.watched, jnp.float32)

        def batch_loss(params: Params, inputs: Any) -> jax.Array:
            key, rows = inputs
            batch = pixels[rows].astype(jnp.float32)
            keys = jax.random.split(key, len(batch))
            return mean_over_batch(functools.partial(expected, params), keys, batch)

        steps = compiled(step_of(optimizer, batch_loss))

        def stage(state: Any, number: int) -> tuple[Any, dict[str, float]]:
            key = jax.random.fold_in(of_run, number)
            test = lambda images: float(test_loss(self.network, state[0]["maps"], key, images))
            if number == EPOCHS:
                return state, {"test": test(jnp.asarray(self.test, jnp.float32))}
            order = np.random.default_rng([seed, number]).permutation(len(self.train))
            state, told = epoch(steps, state, key, batches(order, BATCH))
            if (number + 1) % TESTED_EVERY == 0 or number + 1 == self.num_epochs:
                told["watched"] = test(watched)
            return state, told

        of_start, of_run = jax.random.split(jax.random.key(seed))
        params = initial(self.network, method, of_start)
        state = (params, optimizer.init(params))
        num_stages = self.num_epochs + (self.num_epochs == EPOCHS)
        (params, _), told = _resume.run(file, state, stage, num_stages)
        return params, told[:num_stages]


def thresholded(directory: str | pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The 55,000 images after the first 5,000, and the test images, a pixel above 1/2 being 1."""
    path = pathlib.Path(directory) / GREY_FILE
    if not path.is_file():
        raise data.ProblemError(f"{path}: expected the grey images, got no such file.")
    with np.load(path) as grey:
        train = np.concatenate([grey["train_images"], grey["valid_images"]])[HELD_OUT:]
        return (train > 127).astype(np.uint8), (grey["test_images"] > 127).astype(np.uint8)


def rows_of(
    label: str,
    num_epochs: int,
    told: list[list[dict[str, float]]],
    target: Target | None = SHOWN_ONLY,
) -> list[Row]:
    """The test loss: of all images if the run is a whole one, of 1,000 every few epochs.

    Args:
      label: of the run.
      num_epochs: of the run.
      told: by `Training.run`, of every seed.
      target: of the losses on the way.
    """
    rows = []
    if num_epochs == EPOCHS:
        ours = [of_seed[-1]["test"] for of_seed in told]
        whole = Target(PUBLISHED, high=PUBLISHED + 0.5)
        rows.append(Row(f"{label}, all {EPOCHS:,} epochs: test loss", whole, ours))
    tested = sorted({*range(TESTED_EVERY, num_epochs + 1, TESTED_EVERY), num_epochs})
    watched = {after: [of_seed[after - 1]["watched"] for of_seed in told] for after in tested}
    curve = [(after, losses[0]) for after, losses in watched.items()]
    shown = sorted({*SHOWN, num_epochs} & watched.keys())
    for after in shown:
        last = curve if after == shown[-1] else ()
        name = f"{label}, {after:,} epochs: test loss of 1,000 images"
        rows.append(Row(name, target, watched[after], curve=last))
    below = [after for after, loss in curve if loss <= PUBLISHED]
    if below:
        rows.append(Row(f"{label}: first epoch of at most {PUBLISHED}", None, below[:1]))
    return rows


def run(seeds: int, quick: bool, state: pathlib.Path | None = None) -> list[Row]:
    if quick:
        return quick_rows(["arm"], seeds)
    return trained_rows("structured", RUNS, seeds, state, SHOWN_ONLY)


def run_beside(seeds: int, quick: bool, state: pathlib.Path | None = None) -> list[Row]:
    if quick:
        return quick_rows([name for name, *_ in BESIDE], seeds)
    return trained_rows("structured_beside", BESIDE, seeds, state, None)


def quick_rows(names: Sequence[str], seeds: int) -> list[Row]:
    """The training loss of an early epoch, of the linear maps."""
    train, test = thresholded(os.environ.get("GRADEST_DATA", ""))
    rows = []
    for name in names:
        (method,) = methods.choose([name], "bernoulli")
        short = Training(LINEAR, QUICK_EPOCHS, train, test[:10], test[:100])
        losses = [short.run(method, seed)[1][QUICK_EPOCHS - 1]["loss"] for seed in range(seeds)]
        target = Target.within(QUICK[name], QUICK_TOLERANCE)
        rows.append(Row(f"{name}, linear, epoch {QUICK_EPOCHS}: loss", target, losses))
    return rows


def trained_rows(
    of: str,
    runs: Sequence[tuple[str, str, int]],
    seeds: int,
    state: pathlib.Path | None,
    target: Target | None,
) -> list[Row]:
    """The rows of each run: its estimator, network and epochs; `of` begins its files' names."""
    train, test = thresholded(os.environ.get("GRADEST_DATA", ""))
    rows = []
    for name, of_network, num_epochs in runs:
        (method,) = methods.choose([name], "bernoulli")
        how = Training(NETWORKS[of_network], num_epochs, train, test[::10], test)
        files = (_resume.file_of(state, of, of_network, name, seed) for seed in range(seeds))
        told = [how.run(method, seed, file)[1] for seed, file in enumerate(files)]
        rows += rows_of(f"{name}, {of_network}", num_epochs, told, target)
    return rows


def picture(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The curves of the runs, from the rows, and the published number."""
    it = Figure(figsize=(7, 4), layout="constrained")
    axes = it.subplots()
    for row in rows:
        if "curve" not in row:
            continue
        name, curve = re.split(r", [\d,]+ epochs", row["name"])[0], row["curve"]
        axes.plot(*zip(*curve, strict=True), linewidth=1.3, marker=".", markersize=4, label=name)
    axes.axhline(PUBLISHED, color="black", linestyle="--", linewidth=1, label="published, of ARM")
    axes.set_xscale("log")
    ticks = [50, 100, 200, 400, 1000, 2000]
    last = max((row["curve"][-1][0] for row in rows if "curve" in row), default=0)
    axes.set_xticks([tick for tick in ticks if tick <= last])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize="small")
    axes.set(
        xlabel="epochs", ylabel="test loss of 1,000 images", title="The lower half from the upper"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return it


STRUCTURED = Reproduction(
    "structured",
    "Yin and Zhou 2019, table 3: ARM's negative log-likelihood of the lower half",
    run,
    seeds=1,
    needs_data=True,
    resumable=True,
    picture=picture,
)

BESIDE_IT = Reproduction(
    "structured_beside",
    "The same experiment by other estimators, of which nothing is published",
    run_beside,
    seeds=1,
    needs_data=True,
    resumable=True,
    picture=picture,
)
