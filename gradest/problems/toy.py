r"""E[(b - t)^2] with one b ~ Bernoulli(sigmoid(l)): everything has a closed form.

With p = sigmoid(l), q = 1 - p, f1 = (1 - t)^2 and f0 = t^2,

    expected cost   p f1 + q f0
    gradient        p q (f1 - f0)
    variance        p q (q f1 + p f0)^2, of the score function without a baseline

For t just below 1/2 the best b is 0 by a small margin, which takes an unbiased gradient to find.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import gradest as ge
from gradest import distributions as dist

from .problem import Loss, Problem


def expected_cost(logit: ArrayLike, target: float) -> jax.Array:
    p = jax.nn.sigmoid(logit)
    return p * (1 - target) ** 2 + (1 - p) * target**2


def exact_gradient(logit: ArrayLike, target: float) -> jax.Array:
    """Of the expected cost, with respect to the logit."""
    p = jax.nn.sigmoid(logit)
    return p * (1 - p) * ((1 - target) ** 2 - target**2)


def score_function_variance(logit: ArrayLike, target: float) -> jax.Array:
    """Of the gradient that is estimated from one sample without a baseline."""
    p = jax.nn.sigmoid(logit)
    return p * (1 - p) * ((1 - p) * (1 - target) ** 2 + p * target**2) ** 2


class Toy(Problem):
    """Minimises the expected cost, from a logit on the wrong side.

    Args:
      target: t.
      start: the initial logit. The cost falls as the logit does.
      num_measured: how many gradients bias and variance are measured from.
    """

    name = "toy"
    metrics: ClassVar[Mapping[str, str]] = {"cost": "expected cost"}
    unit = ""
    lower_is_better = True
    latent = "bernoulli"
    shape = ()
    num_values = 2
    sampled = "logit"
    batch_size = 1
    learning_rate = 0.02
    num_keys = 200
    default_steps = 1000

    def __init__(self, target: float = 0.45, start: float = 1.0, num_measured: int = 200_000):
        self.target, self.start, self.num_measured = target, start, num_measured
        self.examples = np.full(1, target, np.float32)
        self.title = f"toy: E[(b - {target})^2], b ~ Bernoulli(sigmoid(l)), from l = {start}"
        self.caption = (
            f"Expected cost: in closed form, after training; the best is {target**2:.4f}. Bias and "
            f"gradient variance: measured from {num_measured:,} keys at the initial logit, with "
            "each estimator's control variate as trained from the first seed. In closed form the "
            f"gradient there is {exact_gradient(start, target):.5f}, and score_function's variance "
            f"{score_function_variance(start, target):.5f}."
        )

    def init(self, key: jax.Array) -> dict[str, Any]:
        del key
        return {"logit": jnp.asarray(self.start, float)}

    def init_baseline(self, key: jax.Array) -> jax.Array:
        del key
        return jnp.zeros(())

    def baseline(self, params: Any, x: jax.Array) -> jax.Array:
        del x
        return params

    def loss(self, params: Any, key: jax.Array, x: jax.Array, sampler: ge.Sampler) -> jax.Array:
        """The cost, of which the example x is the target."""
        return (sampler(key, dist.Bernoulli(params["logit"])) - x) ** 2

    def follow(self, params: Any, key: jax.Array) -> jax.Array:
        """The expected cost in closed form."""
        del key
        return expected_cost(params["logit"], self.target)

    def evaluate(self, params: Any, key: jax.Array) -> dict[str, jax.Array]:
        return {"cost": self.follow(params, key)}

    def measure(self, loss: Loss, params: Any, key: jax.Array) -> dict[str, float]:
        """Bias and variance of the gradient at the initial logit, with their standard errors."""

        def gradient(key: jax.Array, logit: jax.Array) -> jax.Array:
            of_logit = lambda logit: loss({**params, "logit": logit}, key, self.examples)
            return jax.grad(of_logit)(logit)

        start = self.init(key)["logit"]
        exact = exact_gradient(start, self.target)
        report = ge.diagnose(
            {"gradient": gradient}, key, start, num_draws=self.num_measured, exact=exact
        )
        (row,) = report.rows
        (leaf,) = report["gradient"].leaves.values()
        has_variance = leaf.rounding is None or bool((leaf.variance**0.5 > leaf.rounding).any())
        return {
            "exact_gradient": float(exact),
            "bias": row["bias"],
            "bias_se": row["bias_error"],
            "gradient_variance": row["variance"] if has_variance else 0.0,
            "gradient_variance_se": row["variance_error"],
        }
