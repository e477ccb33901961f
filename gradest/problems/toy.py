r"""E[(b - t)^2] with one b ~ Bernoulli(sigmoid(l)): everything has a closed form.

With p = sigmoid(l), q = 1 - p, f1 = (1 - t)^2 and f0 = t^2,

    expected cost   p f1 + q f0
    gradient        p q (f1 - f0)
    variance        p q (q f1 + p f0)^2, of the score function without a baseline

For t just below 1/2 the best b is 0 by a small margin, which takes an unbiased gradient to find.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest import distributions as dist


def expected_cost(logit: jax.Array, target: jax.Array) -> jax.Array:
    p = jax.nn.sigmoid(logit)
    return p * (1 - target) ** 2 + (1 - p) * target**2


def exact_gradient(logit: jax.Array, target: jax.Array) -> jax.Array:
    """Of the expected cost, with respect to the logit."""
    p = jax.nn.sigmoid(logit)
    return p * (1 - p) * ((1 - target) ** 2 - target**2)


def score_function_variance(logit: jax.Array, target: jax.Array) -> jax.Array:
    """Of the gradient estimated from one sample without a baseline."""
    p = jax.nn.sigmoid(logit)
    return p * (1 - p) * ((1 - p) * (1 - target) ** 2 + p * target**2) ** 2


@dataclasses.dataclass(frozen=True, eq=False)
class Toy:
    """The problem: minimise the expected cost, from a logit on the wrong side.

    Attributes:
      target: t.
      start: the initial logit; the cost falls as the logit does.
    """

    target: float = 0.45
    start: float = 1.0
    batch_size: int = 1
    learning_rate: float = 0.02
    num_keys: int = 200

    name = "toy"
    #: The entry of the parameters that the draw's distribution depends on.
    sampled = "logit"
    shape = ()
    size = 1
    values = 2
    latent = "bernoulli"

    def examples(self) -> np.ndarray:
        """The targets."""
        return np.full(1, self.target, np.float32)

    def init(self, key: jax.Array) -> dict[str, Any]:
        del key
        return {"logit": jnp.float32(self.start)}

    def init_baseline(self, key: jax.Array) -> Any:
        del key
        return jnp.zeros(())

    def baseline(self, params: Any, x: jax.Array) -> jax.Array:
        del x
        return params

    def loss(
        self, params: dict[str, Any], key: jax.Array, x: jax.Array, sampler: ge.Sampler
    ) -> jax.Array:
        """The cost, to be wrapped by `gradest.expectation`."""
        return (sampler(key, dist.Bernoulli(params["logit"])) - x) ** 2

    def evaluate(self, params: dict[str, Any], key: jax.Array) -> dict[str, float]:
        """The expected cost in closed form."""
        del key
        return {"cost": float(expected_cost(params["logit"], jnp.float32(self.target)))}
