"""One training step of a variational autoencoder: forward, backward, and Adam's update.

784 pixels, 200 hidden units, 20 one-hot variables of 10 categories, 200 hidden units, 784 pixels;
100 images at a time. The loss is the negative ELBO in nats, with the divergence from the uniform
prior in closed form. REBAR trains its temperature and the strength of its control variate, RELAX
the network of its surrogate too, by the gradient of the variance: as the other library does that
has them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradest as ge
from gradest._random import gumbel
from gradest.distributions import OneHotCategorical

from .. import _measure
from ..speed import COMPILE_GOAL, SAMPLES, draw
from . import _peers

PIXELS, HIDDEN, VARIABLES, CATEGORIES, BATCH = 784, 200, 20, 10, 100
SURROGATE_HIDDEN = 50
TEMPERATURE = 0.5
LEARNING_RATE = 1e-3
ESTIMATORS = ("gumbel_softmax", "leave_one_out", "rebar", "relax")

Params = dict[str, Any]
#: (parameters, key, images) -> (loss, gradients).
ValueAndGrad = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Params]]


def init(estimator: str) -> Params:
    """What the estimator trains: the two networks, and its control variate."""
    size = VARIABLES * CATEGORIES
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def layer(inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
        bound = inputs**-0.5
        weights = jax.random.uniform(next(keys), (inputs, outputs), minval=-bound, maxval=bound)
        return weights, jnp.zeros(outputs)

    params: Params = {
        "encoder": (layer(PIXELS, HIDDEN), layer(HIDDEN, size)),
        "decoder": (layer(size, HIDDEN), layer(HIDDEN, PIXELS)),
    }
    surrogate = layer(size, SURROGATE_HIDDEN), layer(SURROGATE_HIDDEN, 1)
    if estimator in ("rebar", "relax"):
        params["control"] = {"temperature": jnp.float32(TEMPERATURE), "eta": jnp.float32(1)}
    if estimator == "relax":
        params["control"]["surrogate"] = surrogate
    return params


def images(batch: int) -> np.ndarray:
    """Binary, of the density of handwritten digits."""
    return (np.random.default_rng(0).random((batch, PIXELS)) < 0.15).astype(np.float32)


def network(layers: Any, x: jax.Array) -> jax.Array:
    (w1, b1), (w2, b2) = layers
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def encode(encoder: Any, x: jax.Array) -> jax.Array:
    """The logits of the latent variables of one image, or of each of a batch."""
    return network(encoder, x).reshape(*x.shape[:-1], VARIABLES, CATEGORIES)


def divergence(logits: jax.Array) -> jax.Array:
    """From the uniform prior, of each image."""
    log_q = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_q) * (log_q + np.log(CATEGORIES)), axis=(-2, -1))


def flat(z: jax.Array) -> jax.Array:
    return z.reshape(*z.shape[:-2], VARIABLES * CATEGORIES)


def distortion(decoder: Any, z: jax.Array, x: jax.Array) -> jax.Array:
    """-log p(x | z) of each image."""
    l = network(decoder, flat(z))
    return jnp.sum(jax.nn.softplus(l) - x * l, axis=-1)


def surrogate(layers: Any, z: jax.Array) -> jax.Array:
    return network(layers, flat(z))[..., 0]


# ---- By hand -------------------------------------------------------------------------------
#
# In batches throughout; each image has the key that gradest gives it.


def gumbel_noise(keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: gumbel(key, (VARIABLES, CATEGORIES), jnp.float32))(keys)


def gumbel_softmax(params: Params, key: jax.Array, x: jax.Array) -> tuple[jax.Array, Params]:
    def loss(params: Params) -> jax.Array:
        logits = encode(params["encoder"], x)
        noise = gumbel_noise(jax.random.split(key, len(x)))
        z = jax.nn.softmax((logits + noise) / TEMPERATURE)
        return jnp.mean(divergence(logits) + distortion(params["decoder"], z, x))

    return jax.value_and_grad(loss)(params)


def leave_one_out(params: Params, key: jax.Array, x: jax.Array) -> tuple[jax.Array, Params]:
    def surrogate(params: Params) -> tuple[jax.Array, jax.Array]:
        logits = encode(params["encoder"], x)
        keys = jax.vmap(lambda key: jax.random.split(key, SAMPLES))(jax.random.split(key, len(x)))
        zs = jax.vmap(jax.vmap(draw, in_axes=(0, None)))(keys, logits)
        log_ps = jnp.sum(zs * jax.nn.log_softmax(logits)[:, None], axis=(-2, -1))
        cs = distortion(params["decoder"], zs, x[:, None])
        others = (jnp.sum(cs, axis=1, keepdims=True) - cs) / (SAMPLES - 1)
        kl, signal = divergence(logits), jax.lax.stop_gradient(cs - others)
        return jnp.mean(kl) + jnp.mean(cs + signal * log_ps), jnp.mean(kl) + jnp.mean(cs)

    (_, loss), gradients = jax.value_and_grad(surrogate, has_aux=True)(params)
    return loss, gradients


def controlled(
    control_variate: Callable[[Params, jax.Array, jax.Array], jax.Array],
) -> ValueAndGrad:
    """REBAR or RELAX with coupled noise; the control variate, of each image, is a function of the
    parameters, the relaxed draws and the images."""

    def value_and_grad(params: Params, key: jax.Array, x: jax.Array) -> tuple[jax.Array, Params]:
        logits, pull_back = jax.vjp(lambda encoder: encode(encoder, x), params["encoder"])
        kl, d_kl = jax.value_and_grad(lambda l: jnp.mean(divergence(l)))(logits)
        keys = jax.vmap(lambda key: jax.random.split(key)[0])(jax.random.split(key, len(x)))
        p = jax.nn.softmax(logits)
        z = logits + gumbel_noise(keys)
        b = jax.nn.one_hot(jnp.argmax(z, axis=-1), CATEGORIES, dtype=z.dtype)

        def mean_distortion(decoder: Any) -> tuple[jax.Array, jax.Array]:
            f = distortion(decoder, b, x)
            return jnp.mean(f), f

        (loss, f), d_decoder = jax.value_and_grad(mean_distortion, has_aux=True)(params["decoder"])
        w = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))

        def squared(control: Any) -> tuple[jax.Array, jax.Array]:
            def c(z: jax.Array) -> tuple[jax.Array, jax.Array]:
                relaxed = jax.nn.softmax(z / control["temperature"])
                of_each = control_variate({**params, "control": control}, relaxed, x)
                return jnp.sum(of_each), of_each

            d_z, of_each = jax.grad(c, has_aux=True)(z)
            # Given b and the noise, dz_i / dl_j = w_i p_j + [i = j] (1 - w_i).
            d_given_b = p * jnp.sum(w * d_z, axis=-1, keepdims=True) + (1 - w) * d_z
            eta = control["eta"]
            signal = (f - eta * of_each)[:, None, None]
            g = (signal * (b - p) + eta * (d_z - d_given_b)) / len(x)
            # The mean over the images of the squared norm of each one's gradient.
            return len(x) * jnp.sum(g * g), g

        d_control, g = jax.grad(squared, has_aux=True)(params["control"])
        (d_encoder,) = pull_back(g + d_kl)
        gradients = {"encoder": d_encoder, "decoder": d_decoder, "control": d_control}
        return kl + loss, gradients

    return value_and_grad


BY_HAND: dict[str, ValueAndGrad] = {
    "gumbel_softmax": gumbel_softmax,
    "leave_one_out": leave_one_out,
    "rebar": controlled(lambda params, z, x: distortion(params["decoder"], z, x)),
    "relax": controlled(lambda params, z, x: surrogate(params["control"]["surrogate"], z)),
}


def no_draw(params: Params, key: jax.Array, x: jax.Array) -> tuple[jax.Array, Params]:
    """The decoder meets the probabilities: nothing but matrix products, as in every estimator."""
    del key

    def loss(params: Params) -> jax.Array:
        logits = encode(params["encoder"], x)
        decoded = distortion(params["decoder"], jax.nn.softmax(logits), x)
        return jnp.mean(divergence(logits) + decoded)

    return jax.value_and_grad(loss)(params)


# ---- With gradest --------------------------------------------------------------------------


def sampler(estimator: str, control: Any) -> ge.Sampler:
    if estimator == "gumbel_softmax":
        return ge.gumbel_softmax(TEMPERATURE)
    if estimator == "leave_one_out":
        return ge.score_function(num_samples=SAMPLES, baseline="leave_one_out")
    options = {"temperature": control["temperature"], "eta": control["eta"]}
    if estimator == "rebar":
        return ge.rebar(**options)
    return ge.relax(surrogate, control["surrogate"], **options)


def with_gradest(estimator: str) -> ValueAndGrad:
    @ge.expectation
    def of_image(params: Params, key: jax.Array, x: jax.Array) -> jax.Array:
        logits = encode(params["encoder"], x)
        # Before the draw, which is not credited with it.
        ge.cost(divergence(logits))
        z = sampler(estimator, params.get("control"))(key, OneHotCategorical(logits))
        return distortion(params["decoder"], z, x)

    def loss(params: Params, key: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(of_image, (None, 0, 0))(params, jax.random.split(key, len(x)), x))

    return jax.value_and_grad(loss)


def step(value_and_grad: ValueAndGrad) -> Callable[..., Any]:
    """(parameters, state of Adam, key, images) -> (loss, parameters, state)."""
    optimizer = optax.adam(LEARNING_RATE)

    def run(params: Params, state: Any, key: jax.Array, x: jax.Array) -> Any:
        loss, gradients = value_and_grad(params, key, x)
        updates, state = optimizer.update(gradients, state)
        return loss, optax.apply_updates(params, updates), state

    return run


# ---- Measurements --------------------------------------------------------------------------


def arguments(estimator: str, batch: int) -> tuple[Any, ...]:
    params = init(estimator)
    state = optax.adam(LEARNING_RATE).init(params)
    return params, state, jax.random.key(1), jnp.asarray(images(batch))


def check_agreement(estimator: str, batch: int, tolerance: float = 1e-3) -> None:
    """Raises AssertionError unless both give the same loss and gradients."""
    params, _, key, x = arguments(estimator, batch)
    got, want = (
        jax.jit(function)(params, key, x)
        for function in (with_gradest(estimator), BY_HAND[estimator])
    )
    _peers.check_same(f"vae by {estimator}", got, want, tolerance)


def programs(estimator: str, batch: int) -> dict[str, _measure.Program]:
    """Of gradest, by hand, and of every library that is there."""
    check_agreement(estimator, batch)
    args = arguments(estimator, batch)
    programs: dict[str, _measure.Program] = {
        "gradest": functools.partial(jax.jit(step(with_gradest(estimator))), *args),
        _peers.HAND: functools.partial(jax.jit(step(BY_HAND[estimator])), *args),
    }
    if _peers.load("PyTorch") is not None:
        from . import _vae_torch

        for name, make in _peers.installed(_vae_torch.STEPS[estimator]).items():
            programs[name] = _peers.synchronized(make(init(estimator), images(batch)))
    # The losses of the first step.
    losses = {name: run() for name, run in programs.items()}
    first = {
        name: float(loss[0] if isinstance(loss, tuple) else loss) for name, loss in losses.items()
    }
    _peers.check_alike(f"vae by {estimator}", first)
    return {**programs, _peers.NO_DRAW: functools.partial(jax.jit(step(no_draw)), *args)}


def measure(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    goals: dict[str, _peers.Goal] = dict.fromkeys(
        ("PyTorch", "Storchastic"), _peers.FOUR_TIMES_FASTER
    )
    for estimator in ESTIMATORS:
        times = _peers.times(programs(estimator, 3 if quick else BATCH), rounds)
        yield from _peers.compare(estimator, times, goals)


def measure_compile(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """From a Python function to the compiled step, from empty caches."""
    for estimator in ESTIMATORS[: 1 if quick else None]:
        stages = _measure.compile_times(
            {
                "gradest": lambda e=estimator: step(with_gradest(e)),
                _peers.HAND: lambda e=estimator: step(lambda *args: BY_HAND[e](*args)),
            },
            arguments(estimator, 3 if quick else BATCH),
            max(1, rounds // 4),
        )
        times = {name: ts.sum(axis=1) for name, ts in stages.items()}
        goals = {_peers.HAND: _peers.Goal(COMPILE_GOAL, quartile=1)}
        yield from _peers.compare(estimator, times, goals)
