"""A discrete variational autoencoder of binary images."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest import distributions as dist

from .data import Images

Latents = dist.Bernoulli | dist.OneHotCategorical

#: Classes of one categorical variable.
NUM_CLASSES = 10
#: The ELBO of this many images of a split is evaluated, with this many draws for each.
NUM_EVALUATED = 2_000
NUM_DRAWS = 8


class Encoder(nn.Module):
    """From an image to the logits of its latent variables."""

    hidden: int
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(nn.Dense(self.hidden)(2 * x - 1))
        return nn.Dense(math.prod(self.shape))(h).reshape(self.shape)


class Decoder(nn.Module):
    """From the latent variables, exact or relaxed, to the log-odds of the pixels."""

    hidden: int
    num_pixels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = nn.relu(nn.Dense(self.hidden)(2 * z.reshape(-1) - 1))
        return nn.Dense(self.num_pixels)(h)


class Baseline(nn.Module):
    """From an image to the cost it will have, in nats."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(nn.Dense(self.hidden)(2 * x - 1))
        # Nats per pixel, times pixels: a network's output is of the order of one.
        return x.size * nn.Dense(1)(h)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class VAE:
    """The problem: minimise the negative ELBO of images, in nats.

    Attributes:
      images: the data.
      latent: "bernoulli" or "categorical" (of 10 classes).
      size: how many latent variables.
    """

    images: Images
    latent: str
    size: int
    hidden: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    num_keys: int = 32

    #: The entry of the parameters that the draw's distribution depends on.
    sampled = "encoder"

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a draw."""
        return (self.size,) if self.latent == "bernoulli" else (self.size, NUM_CLASSES)

    @property
    def values(self) -> int:
        """How many values one latent variable has."""
        return 2 if self.latent == "bernoulli" else NUM_CLASSES

    @property
    def modules(self) -> tuple[Encoder, Decoder, Baseline]:
        encoder = Encoder(self.hidden, self.shape)
        return encoder, Decoder(self.hidden, self.images.train.shape[1]), Baseline(self.hidden)

    def examples(self) -> np.ndarray:
        """The training images."""
        return self.images.train

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The model's parameters."""
        key_encoder, key_decoder = jax.random.split(key)
        encoder, decoder, _ = self.modules
        x, z = jnp.zeros(self.images.train.shape[1]), jnp.zeros(self.shape)
        return {"encoder": encoder.init(key_encoder, x), "decoder": decoder.init(key_decoder, z)}

    def init_baseline(self, key: jax.Array) -> Any:
        return self.modules[2].init(key, jnp.zeros(self.images.train.shape[1]))

    def baseline(self, params: Any, x: jax.Array) -> jax.Array:
        """The cost expected for this image, whatever its draw."""
        return jnp.asarray(self.modules[2].apply(params, x.astype(float)))

    def loss(
        self, params: dict[str, Any], key: jax.Array, x: jax.Array, sampler: ge.Sampler
    ) -> jax.Array:
        """The negative ELBO of one image, to be wrapped by `gradest.expectation`."""
        q = self.posterior(params, x)
        # Before the draw, which is therefore not credited with it.
        ge.cost(self.divergence(q))
        z = sampler(key, q)
        return -self.log_likelihood(params, x, z)

    def posterior(self, params: dict[str, Any], x: jax.Array) -> Latents:
        """q(z | x)."""
        logits = jnp.asarray(self.modules[0].apply(params["encoder"], x.astype(float)))
        bernoulli = self.latent == "bernoulli"
        return dist.Bernoulli(logits) if bernoulli else dist.OneHotCategorical(logits)

    def divergence(self, q: Latents) -> jax.Array:
        """KL(q || p) in nats, p uniform."""
        if isinstance(q, dist.Bernoulli):
            log_q = jnp.stack([jax.nn.log_sigmoid(-q.logits), jax.nn.log_sigmoid(q.logits)])
        else:
            log_q = jax.nn.log_softmax(q.logits)
        return jnp.sum(jnp.exp(log_q) * log_q) + self.size * math.log(self.values)

    def log_likelihood(self, params: dict[str, Any], x: jax.Array, z: jax.Array) -> jax.Array:
        """log p(x | z) in nats."""
        pixels = dist.Bernoulli(jnp.asarray(self.modules[1].apply(params["decoder"], z)))
        return jnp.sum(pixels.log_prob(x.astype(float)))

    def evaluate(self, params: dict[str, Any], key: jax.Array) -> dict[str, float]:
        """The ELBO of training and test images, from exact draws whatever the estimator."""
        splits = {"train_elbo": self.images.train, "test_elbo": self.images.test}
        model = {name: params[name] for name in ("encoder", "decoder")}
        return {
            name: float(_elbo(self, model, key, images[:NUM_EVALUATED]))
            for name, images in splits.items()
        }


@functools.partial(jax.jit, static_argnums=0)
def _elbo(vae: VAE, params: dict[str, Any], key: jax.Array, images: jax.Array) -> jax.Array:
    def of_one(key_and_image: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, x = key_and_image
        q = vae.posterior(params, x)
        draws = q.sample(key, (NUM_DRAWS,))
        likelihoods = jax.vmap(lambda z: vae.log_likelihood(params, x, z))(draws)
        return jnp.mean(likelihoods) - vae.divergence(q)

    keys = jax.random.split(key, len(images))
    return jnp.mean(jax.lax.map(of_one, (keys, images), batch_size=500))
