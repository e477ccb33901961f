"""What `python -m gradest compare` trains."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

import gradest as ge

#: The loss of a minibatch: `loss(params, key, xs)`.
Loss = Callable[[Any, jax.Array, Any], jax.Array]


class Problem(abc.ABC):
    """A loss of one example that draws discrete variables, and how to judge its training.

    Attributes:
      name: on the command line.
      title: one line.
      caption: what the numbers in the table are.
      metrics: from the metrics' names to their headers; training is about the last, `metric`.
      unit: of the metrics, or "".
      lower_is_better: of that last metric.
      latent: the kind of the discrete variables, "bernoulli" or "categorical".
      shape: of a draw.
      num_values: of one discrete variable.
      sampled: the entry of the parameters that the distribution of the draw depends on.
      examples: the training examples, along the first axis.
      batch_size: how many of them make a minibatch.
      learning_rate: of Adam.
      num_keys: how many gradients of each seed the logged variance is measured from.
      default_steps: of training.
    """

    name: str
    title: str
    caption: str
    metrics: ClassVar[Mapping[str, str]]
    unit: str
    lower_is_better: bool
    latent: str
    shape: tuple[int, ...]
    num_values: int
    sampled: str
    examples: np.ndarray
    batch_size: int
    learning_rate: float
    num_keys: int
    default_steps: int

    @property
    def metric(self) -> str:
        """What training is about."""
        return list(self.metrics)[-1]

    @property
    def header(self) -> str:
        """Of the metric."""
        return self.metrics[self.metric]

    @property
    def size(self) -> int:
        """How many discrete variables are drawn for an example."""
        return math.prod(self.shape if self.latent == "bernoulli" else self.shape[:-1])

    @property
    def num_configurations(self) -> int:
        """How many values all the variables of an example have jointly."""
        return self.num_values**self.size

    @abc.abstractmethod
    def init(self, key: jax.Array) -> dict[str, Any]:
        """The parameters before training."""

    @abc.abstractmethod
    def init_baseline(self, key: jax.Array) -> Any:
        """The parameters of the baseline before training."""

    @abc.abstractmethod
    def baseline(self, params: Any, x: jax.Array) -> jax.Array:
        """The cost to be expected for this example, whatever its draw."""

    @abc.abstractmethod
    def loss(self, params: Any, key: jax.Array, x: jax.Array, sampler: ge.Sampler) -> jax.Array:
        """The loss of one example, to be wrapped by `gradest.expectation`."""

    @abc.abstractmethod
    def follow(self, params: Any, key: jax.Array) -> jax.Array:
        """The metric that training is about, while training goes on."""

    @abc.abstractmethod
    def evaluate(self, params: Any, key: jax.Array) -> dict[str, jax.Array]:
        """All the metrics, which do not depend on how the parameters were trained."""

    def measure(self, loss: Loss, params: Any, key: jax.Array) -> dict[str, float]:
        """What else is measured once, after training, with the loss and the first seed's result."""
        del loss, params, key
        return {}
