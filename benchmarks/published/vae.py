"""Discrete variational autoencoders on fixed-binarized MNIST: which estimator trains them best.

The latent variables are 20 bits, or 20 variables of 16 categories, uniform a priori. Encoder
784-200 and decoder 200-784 with rectified linear units; x - mean comes in, and the mean's logit is
the output's first bias; the divergence in closed form. Batches of 20, Adam at 1e-3, 20,000 steps.
The temperature is annealed as by Jang et al. 2017, max(0.5, exp(-r t)), r = 1e-4, every 500 steps.
The ELBO is that of exact draws whatever the estimator trained on, ten for each test image. That of
relaxed draws is beside it for the Gumbel-softmax, which trains nothing else: it is no bound, and at
a temperature of 0.5 many nats better than what the model is worth.

The paper has a network that it does not describe in full, 50,000 steps, hyperparameters searched
for each estimator, and a tighter bound: what is compared is the order of the estimators. Where the
Gumbel-softmax stands next to ST-GS and Gumbel-Rao with 16 categories is shown only: ours is the
other way round. It trains on relaxed draws, whose loss is far from that of exact ones.
"""

import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge
from gradest.distributions import Bernoulli, OneHotCategorical
from gradest.problems import data

from . import _resume
from ._suite import Reproduction, Row, Target
from ._training import Params, affine, batches, compiled, epoch, mean_over_batch, step_of

PIXELS, HIDDEN, VARIABLES, BATCH, DRAWS, EPOCHS = 784, 200, 20, 20, 10, 8
ARITIES = {"binary": 2, "16-ary": 16}
HOLD, RATE = 500, 1e-4
SCHEDULE = optax.exponential_decay(1.0, HOLD, math.exp(-RATE * HOLD), staircase=True, end_value=0.5)

METHODS: dict[str, Callable[[jax.Array], ge.Sampler]] = {
    "GS": ge.gumbel_softmax,
    "GR-MC10": lambda temperature: ge.gumbel_rao(temperature, num_samples=10),
    "ST-GS": ge.st_gumbel_softmax,
    "ST": lambda temperature: ge.straight_through(),
    "REINFORCE": lambda temperature: ge.score_function(),
}
# Bounds on the test negative log-likelihood, batches of 20.
PUBLISHED = {
    "binary": {"GS": 98.2, "GR-MC10": 100.7, "ST-GS": 100.7, "ST": 105.5, "REINFORCE": 202.6},
    "16-ary": {"GS": 96.8, "GR-MC10": 97.9, "ST-GS": 98.8, "ST": 108.2, "REINFORCE": 169.4},
}
# Of whom the one that is the better in the paper is the worse here.
OTHERWISE = {("16-ary", "GS", "GR-MC10"), ("16-ary", "GS", "ST-GS")}
# Test losses of the whole run's first epoch, and how far runs are apart there.
QUICK = {"ST-GS": (141.0, 0.6)}


def initial(arity: int, mean: jax.Array, key: jax.Array) -> Params:
    weights = jax.nn.initializers.he_normal()
    size = VARIABLES * (1 if arity == 2 else arity)
    sizes = {
        "q1": (PIXELS, HIDDEN),
        "q2": (HIDDEN, size),
        "p2": (size, HIDDEN),
        "p1": (HIDDEN, PIXELS),
    }
    keys = jax.random.split(key, len(sizes))
    layers = {
        name: {"w": weights(k, shape), "b": jnp.zeros(shape[1])}
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }
    layers["p1"]["b"] = jax.scipy.special.logit(jnp.clip(mean, 0.001, 0.999))
    return {"layers": layers, "temperature": jnp.float32(SCHEDULE(0))}


def posterior(
    layers: Params, arity: int, mean: jax.Array, image: jax.Array
) -> Bernoulli | OneHotCategorical:
    logits = affine(layers["q2"], jax.nn.relu(affine(layers["q1"], image - mean)))
    return Bernoulli(logits) if arity == 2 else OneHotCategorical(logits.reshape(VARIABLES, arity))


def divergence(q: Bernoulli | OneHotCategorical) -> jax.Array:
    """KL(q || uniform)."""
    if isinstance(q, Bernoulli):
        log_q = jnp.stack([jax.nn.log_sigmoid(q.logits), jax.nn.log_sigmoid(-q.logits)], axis=-1)
    else:
        log_q = jax.nn.log_softmax(q.logits)
    return jnp.sum(jnp.exp(log_q) * (log_q + math.log(log_q.shape[-1])))


def log_likelihood(layers: Params, z: jax.Array, image: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(affine(layers["p2"], z.reshape(-1)))
    return jnp.sum(Bernoulli(affine(layers["p1"], hidden)).log_prob(image))


def negative_elbo(
    make: Callable[[jax.Array], ge.Sampler],
    arity: int,
    mean: jax.Array,
    params: Params,
    key: jax.Array,
    image: jax.Array,
) -> jax.Array:
    layers = params["layers"]
    q = posterior(layers, arity, mean, image)
    # Before the draw, which is then not credited with it.
    ge.cost(divergence(q))
    z = make(params["temperature"])(key, q)
    return -log_likelihood(layers, z, image)


@functools.partial(jax.jit, static_argnums=(1, 2))
def test_loss(
    params: Params,
    arity: int,
    relaxed: bool,
    mean: jax.Array,
    key: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """The mean negative ELBO of exact draws, or of relaxed ones."""
    layers = params["layers"]

    def of_one(key_and_image: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, image = key_and_image
        q = posterior(layers, arity, mean, image)
        if relaxed:
            draw = lambda key: ge.gumbel_softmax(params["temperature"])(key, q)
            draws = jax.vmap(draw)(jax.random.split(key, DRAWS))
        else:
            draws = q.sample(key, (DRAWS,))
        likelihoods = jax.vmap(log_likelihood, in_axes=(None, 0, None))(layers, draws, image)
        return divergence(q) - jnp.mean(likelihoods)

    keys = jax.random.split(key, len(images))
    return jnp.mean(jax.lax.map(of_one, (keys, images), batch_size=100))


def train(
    name: str,
    arity: int,
    seed: int,
    images: data.Images,
    num_epochs: int = EPOCHS,
    file: pathlib.Path | None = None,
) -> tuple[Params, list[dict[str, float]]]:
    """The parameters; of every epoch its mean loss and the test loss."""
    pixels, test = jnp.asarray(images.train), jnp.asarray(images.test, jnp.float32)
    mean = jnp.asarray(images.train.mean(axis=0), jnp.float32)
    loss = ge.expectation(functools.partial(negative_elbo, METHODS[name], arity, mean))
    optimizer = ge.with_annealing(optax.adam(1e-3), {"temperature": SCHEDULE})

    def batch_loss(params: Params, inputs: Any) -> jax.Array:
        key, rows = inputs
        batch = pixels[rows].astype(jnp.float32)
        keys = jax.random.split(key, len(batch))
        return mean_over_batch(functools.partial(loss, params), keys, batch)

    steps = compiled(step_of(optimizer, batch_loss))

    def stage(state: Any, number: int) -> tuple[Any, dict[str, float]]:
        of_steps, of_test = jax.random.split(jax.random.fold_in(of_run, number))
        order = np.random.default_rng([seed, number]).permutation(len(pixels))
        state, told = epoch(steps, state, of_steps, batches(order, BATCH))
        evaluate = lambda relaxed: test_loss(state[0], arity, relaxed, mean, of_test, test)
        told["test"] = float(evaluate(False))
        if name == "GS":
            told["relaxed"] = float(evaluate(True))
        return state, told

    of_start, of_run = jax.random.split(jax.random.key(seed))
    params = initial(arity, mean, of_start)
    (params, _), told = _resume.run(file, (params, optimizer.init(params)), stage, num_epochs)
    return params, told


def run(seeds: int, quick: bool, state: pathlib.Path | None = None) -> list[Row]:
    images = data.load_binarized_mnist(os.environ.get("GRADEST_DATA", ""))
    rows = []
    if quick:
        for name, (loss, tolerance) in QUICK.items():
            told = [train(name, 16, seed, images, num_epochs=1)[1] for seed in range(seeds)]
            ours = [of_seed[0]["test"] for of_seed in told]
            rows.append(Row(f"{name}, epoch 1: test loss", Target.within(loss, tolerance), ours))
        return rows
    for kind, arity in ARITIES.items():
        losses = {}
        for name in METHODS:
            files = [
                _resume.file_of(state, "vae", kind, name, f"{EPOCHS} epochs", seed)
                for seed in range(seeds)
            ]
            told = [train(name, arity, s, images, file=file)[1] for s, file in enumerate(files)]
            losses[name] = np.array([of_seed[-1]["test"] for of_seed in told])
            # Beside: the paper's is a tighter bound of another network.
            target = Target(PUBLISHED[kind][name])
            rows.append(Row(f"{kind}, {name}: test loss", target, losses[name].tolist()))
            if name == "GS":
                relaxed = [of_seed[-1]["relaxed"] for of_seed in told]
                rows.append(Row(f"{kind}, GS: test loss of relaxed draws", None, relaxed))
        for better, worse in itertools.combinations(METHODS, 2):
            difference = round(PUBLISHED[kind][worse] - PUBLISHED[kind][better], 1)
            if difference > 0:
                low = -math.inf if (kind, better, worse) in OTHERWISE else 0.0
                target = Target(difference, low)
                ours = (losses[worse] - losses[better]).tolist()
                rows.append(Row(f"{kind}: {worse} less {better}", target, ours))
    return rows


VAE = Reproduction(
    "vae",
    "Paulus et al. 2021, table 2: bounds on the test negative log-likelihood, batches of 20",
    run,
    seeds=3,
    needs_data=True,
    resumable=True,
)
