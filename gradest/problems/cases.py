"""Small distributions and costs whose exact expectations are known, to measure properties on."""

import abc
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from gradest import distributions as dist

_WEIGHTS = np.array([0.8, -0.5, 0.9, 0.3, 0.7, -0.6], np.float32)
_THRESHOLD = 0.4


def smooth(x: jax.Array) -> jax.Array:
    """A cost that is not separable, nor quadratic: some estimators are exact for those."""
    return quadratic(x) + 0.3 * _weighted_sum(x.reshape(-1)) ** 3


def quadratic(x: jax.Array) -> jax.Array:
    """A cost of second order, not separable either."""
    x = x.reshape(-1)
    return (_weighted_sum(x) - 0.3) ** 2 + x[0] * x[-1]


def step(x: jax.Array) -> jax.Array:
    """A cost that is flat but for a jump: its own derivative is zero and says nothing."""
    return (_weighted_sum(x.reshape(-1)) > _THRESHOLD).astype(x.dtype)


COSTS = {"smooth": smooth, "quadratic": quadratic, "step": step}


def _weighted_sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x * _WEIGHTS[: x.size])


def _expected(probs: jax.Array, costs: jax.Array, num_samples: int) -> jax.Array:
    """E[log mean_k exp(cost(x_k))] of independent draws."""
    joint, total = probs, costs
    for _ in range(num_samples - 1):
        joint = (joint[:, None] * probs[None, :]).reshape(-1)
        total = jnp.logaddexp(total[:, None], costs[None, :]).reshape(-1)
    return jnp.sum(joint * (total - math.log(num_samples)))


class Case(abc.ABC):
    """A distribution with parameters, whose exact expectations and probabilities are known.

    Attributes:
      name: of the distribution.
      params: an array, with respect to which gradients are taken.
    """

    name: str
    params: jax.Array

    @abc.abstractmethod
    def make(self, params: jax.Array) -> Any:
        """The distribution with these parameters."""

    @abc.abstractmethod
    def expected_costs(self, params: jax.Array, num_samples: int = 1) -> dict[str, jax.Array]:
        """The exact expectations of the `COSTS`, differentiable.

        Of the log mean exp at `num_samples` draws, that is: with one, of the costs themselves.
        """

    @abc.abstractmethod
    def hard(self, draws: np.ndarray) -> np.ndarray:
        """Which of the draws are values of the distribution at all."""

    @abc.abstractmethod
    def bins(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many of the draws fall into each of some bins, and the bins' probabilities."""


class Finite(Case):
    """By enumeration of the support, whose joint draws are given one per row."""

    def __init__(self, kind: Any, params: Any, support: Any):
        self._kind, self.name = kind, kind.__name__
        self.params, self.support = jnp.asarray(params, float), jnp.asarray(support, float)

    def make(self, params: jax.Array) -> Any:
        return self._kind(params)

    def probs(self, params: jax.Array) -> jax.Array:
        d = self.make(params)
        return jnp.exp(jax.vmap(lambda x: jnp.sum(d.log_prob(x)))(self.support))

    def expected_costs(self, params: jax.Array, num_samples: int = 1) -> dict[str, jax.Array]:
        probs = self.probs(params)
        expected = lambda cost: _expected(probs, jax.vmap(cost)(self.support), num_samples)
        return {name: expected(cost) for name, cost in COSTS.items()}

    def hard(self, draws: np.ndarray) -> np.ndarray:
        return np.any(self._matches(draws), axis=1)

    def bins(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._matches(draws).sum(axis=0), np.asarray(self.probs(self.params), float)

    def _matches(self, draws: np.ndarray) -> np.ndarray:
        same = draws[:, None] == np.asarray(self.support)[None]
        return np.all(same.reshape(len(draws), len(self.support), -1), axis=-1)


class Normal(Case):
    """Two Normal variables; the rows of the parameters are their means and scales."""

    name = "Normal"
    _NUM_BINS = 8

    def __init__(self):
        self.params = jnp.array([[0.5, -0.3], [0.7, 1.1]])

    def make(self, params: jax.Array) -> dist.Normal:
        return dist.Normal(*params)

    def expected_costs(self, params: jax.Array, num_samples: int = 1) -> dict[str, jax.Array]:
        """By a quadrature, exact for polynomials themselves, and the probability of the jump."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(8 if num_samples == 1 else 32)
        noise = np.array(list(itertools.product(nodes, nodes)), np.float32)
        masses = jnp.asarray(np.outer(weights, weights).reshape(-1) / (2 * np.pi), jnp.float32)
        loc, scale = params
        points = jax.vmap(lambda noise: loc + scale * noise)(noise)
        deviation = jnp.sqrt(jnp.sum((_WEIGHTS[:2] * scale) ** 2))
        above = stats.norm.cdf((_weighted_sum(loc) - _THRESHOLD) / deviation)
        jump = jnp.stack([1 - above, above])
        of_polynomial = lambda cost: _expected(masses, jax.vmap(cost)(points), num_samples)
        return {
            "smooth": of_polynomial(smooth),
            "quadratic": of_polynomial(quadratic),
            "step": _expected(jump, jnp.arange(2.0), num_samples),
        }

    def hard(self, draws: np.ndarray) -> np.ndarray:
        return np.all(np.isfinite(draws), axis=1)

    def bins(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A grid of cells of equal probability."""
        loc, scale = np.asarray(self.params)
        uniform = np.asarray(stats.norm.cdf((draws - loc) / scale))
        n = self._NUM_BINS
        column, row = np.clip((uniform * n).astype(int), 0, n - 1).T
        return np.bincount(n * column + row, minlength=n * n), np.full(n * n, 1 / n**2)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Bits, one-hot rows, and reals; more than one element in each."""
    bits = list(itertools.product([0, 1], repeat=3))
    rows = [np.eye(3)[list(pair)] for pair in itertools.product(range(3), repeat=2)]
    return (
        Finite(dist.Bernoulli, [0.4, -0.7, 0.9], bits),
        Finite(dist.OneHotCategorical, [[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]], rows),
        Normal(),
    )
