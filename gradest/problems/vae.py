"""A discrete variational autoencoder of binary images."""

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest import distributions as dist

from .data import Images
from .problem import Problem

Latents = dist.Bernoulli | dist.OneHotCategorical

#: Classes of one categorical variable.
NUM_CLASSES = 10
#: The ELBO of this many images of a split is evaluated, with this many draws for each.
NUM_EVALUATED = 2_000
NUM_DRAWS = 8


class Encoder(nn.Module):
    """From an image, less the mean image, to the logits of its latent variables."""

    hidden: int
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(math.prod(self.shape))(h).reshape(self.shape)


class Decoder(nn.Module):
    """From latent variables, exact or relaxed, to log-odds of pixels, less the mean image's."""

    hidden: int
    num_pixels: int
    num_values: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        # Of mean zero and variance one a priori: a decoder that hardly sees its latent variables
        # lets the encoder give them up.
        p = 1 / self.num_values
        h = nn.relu(nn.Dense(self.hidden)((z.reshape(-1) - p) / math.sqrt(p * (1 - p))))
        return nn.Dense(self.num_pixels)(h)


class Baseline(nn.Module):
    """From an image, less the mean image, to the cost it will have in nats."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(nn.Dense(self.hidden)(x))
        # Nats per pixel, times pixels: a network's output is of the order of one.
        return x.size * nn.Dense(1)(h)[0]


class VAE(Problem):
    """Minimises the negative ELBO of images, in nats.

    Args:
      images: the data.
      latent: "bernoulli" or "categorical" (of 10 classes), uniform a priori.
      size: how many latent variables.
    """

    metrics: ClassVar[Mapping[str, str]] = {"train_elbo": "train ELBO", "test_elbo": "test ELBO"}
    unit = "nats per image"
    lower_is_better = False
    sampled = "encoder"
    batch_size = 64
    learning_rate = 2e-3
    num_keys = 16
    default_steps = 2000

    def __init__(self, images: Images, latent: str, size: int = 20):
        self.images, self.latent, self.name = images, latent, images.name
        self.examples = images.train
        self.num_values, self.shape, what = 2, (size,), "Bernoulli variables"
        if latent == "categorical":
            self.num_values, self.shape = NUM_CLASSES, (size, NUM_CLASSES)
            what = f"categorical variables of {NUM_CLASSES} classes"
        self.title = f"{images.name}: a variational autoencoder with {size} {what}"
        self.num_pixels = images.train.shape[1]
        # Away from 0 and 1: a pixel that no training image lights may be lit in another.
        mean = (0.5 + images.train.sum(axis=0)) / (1 + len(images.train))
        self.mean_image = mean.astype(np.float32)
        hidden = 2 * self.num_pixels if self.num_pixels < 128 else 256
        self.encoder = Encoder(hidden, self.shape)
        self.decoder = Decoder(hidden, self.num_pixels, self.num_values)
        self.baseline_network = Baseline(hidden)
        train, test = (min(len(x), NUM_EVALUATED) for x in (images.train, images.test))
        self.caption = (
            f"ELBO: nats per image, after training, from {NUM_DRAWS} exact draws per image for "
            "every estimator (relaxed draws serve in training only), on "
            f"{train:,} training and {test:,} test images. Gradient variance: summed over the "
            f"encoder's parameters, on one minibatch of {self.batch_size}, from {self.num_keys} "
            "keys, at the parameters that the estimator itself has reached."
        )
        if images.source:
            self.caption = f"{images.source} {self.caption}"

    def init(self, key: jax.Array) -> dict[str, Any]:
        key_encoder, key_decoder = jax.random.split(key)
        x, z = jnp.zeros(self.num_pixels), jnp.zeros(self.shape)
        return {
            "encoder": self.encoder.init(key_encoder, x),
            "decoder": self.decoder.init(key_decoder, z),
        }

    def init_baseline(self, key: jax.Array) -> Any:
        return self.baseline_network.init(key, jnp.zeros(self.num_pixels))

    def baseline(self, params: Any, x: jax.Array) -> jax.Array:
        return jnp.asarray(self.baseline_network.apply(params, self._centred(x)))

    def loss(self, params: Any, key: jax.Array, x: jax.Array, sampler: ge.Sampler) -> jax.Array:
        """The negative ELBO of one image."""
        q = self.posterior(params, x)
        # Before the draw, which is therefore not credited with it.
        ge.cost(self.divergence(q))
        z = sampler(key, q)
        return -self.log_likelihood(params, x, z)

    def posterior(self, params: Any, x: jax.Array) -> Latents:
        """q(z | x)."""
        logits = jnp.asarray(self.encoder.apply(params["encoder"], self._centred(x)))
        bernoulli = self.latent == "bernoulli"
        return dist.Bernoulli(logits) if bernoulli else dist.OneHotCategorical(logits)

    def divergence(self, q: Latents) -> jax.Array:
        """KL(q || p) in nats, p uniform."""
        if isinstance(q, dist.Bernoulli):
            log_q = jnp.stack([jax.nn.log_sigmoid(-q.logits), jax.nn.log_sigmoid(q.logits)])
        else:
            log_q = jax.nn.log_softmax(q.logits)
        return jnp.sum(jnp.exp(log_q) * log_q) + self.size * math.log(self.num_values)

    def log_likelihood(self, params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
        """log p(x | z) in nats."""
        # Before training every image is decoded as the mean image.
        log_odds = dist.Bernoulli(probs=self.mean_image).logits
        more = jnp.asarray(self.decoder.apply(params["decoder"], z))
        pixels = dist.Bernoulli(log_odds + more)
        return jnp.sum(pixels.log_prob(x))

    def _centred(self, x: jax.Array) -> jax.Array:
        return x.astype(float) - self.mean_image

    def follow(self, params: Any, key: jax.Array) -> jax.Array:
        """The ELBO of test images, from exact draws whatever the estimator."""
        return self._elbo(params, key, self.images.test[:NUM_EVALUATED])

    def evaluate(self, params: Any, key: jax.Array) -> dict[str, jax.Array]:
        """The ELBO of training and test images."""
        train = self._elbo(params, key, self.images.train[:NUM_EVALUATED])
        return {"train_elbo": train, "test_elbo": self.follow(params, key)}

    @functools.partial(jax.jit, static_argnums=0)
    def _elbo(self, params: Any, key: jax.Array, images: jax.Array) -> jax.Array:
        def of_one(key_and_image: tuple[jax.Array, jax.Array]) -> jax.Array:
            key, x = key_and_image
            q = self.posterior(params, x)
            likelihood = lambda z: self.log_likelihood(params, x, z)
            likelihoods = jax.vmap(likelihood)(q.sample(key, (NUM_DRAWS,)))
            return jnp.mean(likelihoods) - self.divergence(q)

        keys = jax.random.split(key, len(images))
        return jnp.mean(jax.lax.map(of_one, (keys, images), batch_size=500))
