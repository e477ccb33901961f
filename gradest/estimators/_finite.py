"""Joint draws of distributions with a finite support: their values, and several distinct ones."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _mesh, _numerics, _random
from ..distributions._derived import dtype_of
from . import _needs


class Finite(NamedTuple):
    """A distribution of n independent elements, each of which takes one of V values.

    Attributes:
      values: the values of one element, stacked.
      log_probs: those of each element's values, of shape (n, V), in at least single precision.
      probs: likewise, with a derivative where they are 0.
      shape: of a joint draw.
      rows: its axes that number the elements.
    """

    values: jax.Array
    log_probs: jax.Array
    probs: jax.Array
    shape: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, estimator: str, dist: Any, at_most: int = 0) -> "Finite":
        """Of `dist`.

        Impossible values have `least_probability` where there are `at_most` so many joint draws:
        who meets all of them estimates the derivatives of their probabilities too.
        """
        _needs.check(estimator, dist, "support")
        _limited(estimator, dist)
        values, (log_probs, probs) = dist.enumerate_support(), dist._outcomes()
        least = _numerics.least_probability(dtype_of(dist))
        *rows, num_values = log_probs.shape
        if least and num_values ** math.prod(rows) <= at_most:
            log_probs = jnp.maximum(log_probs, math.log(least))
        elif at_most or not least:
            _needs.check_edges(estimator, dist)
        log_probs, probs = _mesh.replicated((log_probs, probs))
        flat = (log_probs.reshape(-1, num_values), probs.reshape(-1, num_values))
        return cls(values, *flat, dist.shape, tuple(rows))

    def fixed(self) -> "Finite":
        """The same, without derivatives."""
        return self._replace(
            log_probs=jax.lax.stop_gradient(self.log_probs),
            probs=jax.lax.stop_gradient(self.probs),
        )

    @property
    def num_draws(self) -> int:
        """How many joint draws there are, impossible ones among them."""
        num_elements, num_values = self.log_probs.shape
        return num_values**num_elements

    def draws(self, choices: jax.Array) -> jax.Array:
        """Joint draws, from the number of each element's value along the last axis."""
        return _mesh.rows(self.values, choices).reshape((*choices.shape[:-1], *self.shape))

    def most_probable(self, num: int) -> tuple[jax.Array, jax.Array]:
        """`num` joint draws of the highest probability, as `choices`, and their log-probabilities.

        Where there are fewer the rest has log-probability -inf.
        """
        return _search(self.log_probs, num, None)

    def without_replacement(self, key: ArrayLike, num: int) -> tuple[jax.Array, jax.Array]:
        """`num` distinct joint draws, as `choices` in the order drawn, and log-probabilities.

        Where there are fewer the rest has log-probability -inf.

        Reference:
          Kool, van Hoof and Welling 2019, "Stochastic Beams and Where to Find Them", algorithm 1.
        """
        n, num_values = self.log_probs.shape
        shape = (*self.rows, num, num_values)
        noise = _random.noise(_random.gumbel, key, shape, self.log_probs.dtype)
        return _search(self.log_probs, num, noise.reshape(n, num, num_values))


def _limited(estimator: str, dist: Any) -> None:
    """Raises for an element of too many outcomes to list."""
    if dist.num_outcomes > _MAX_OUTCOMES:
        raise ValueError(
            f"{estimator}: expected a distribution of at most {_MAX_OUTCOMES:,} outcomes, which "
            f"are listed, got {_check.name_of(type(dist))} of {readable(dist.num_outcomes)}. Use "
            f"{', '.join(n for n in _needs.estimators_of(type(dist)) if n not in _LISTING)}."
        )


_MAX_OUTCOMES = 2**20
_LISTING = ("enumeration", "sum_and_sample", "unordered_set")


def readable(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"about 10^{int(math.log10(count))}"


def log_mass(l: jax.Array) -> jax.Array:
    """log of the sum of exp(l), with all its digits where one has nearly all the mass."""
    top = jnp.argmax(l)
    others = jnp.where(jnp.arange(len(l)) == top, 0, jnp.exp(l - l[top]))
    return jnp.minimum(l[top] + jnp.log1p(jnp.sum(others)), 0)


def _search(log_probs: jax.Array, num: int, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Beam search, element by element: by log-probability, or by that plus Gumbel noise.

    It is exact: the prefixes of the best joint draws are among the best prefixes, since what
    follows is the same for all; or since a prefix has the largest perturbed log-probability of
    the joint draws that begin with it.
    """
    n, num_values = log_probs.shape
    # The root, whose perturbed log-probability may be any number: no order depends on it.
    score = jnp.where(jnp.arange(num) == 0, 0, -jnp.inf).astype(log_probs.dtype)
    choices = jnp.zeros((num, n), jnp.int32)
    if n == 0:
        return choices, score

    def extend(state: Any, row: Any) -> tuple[Any, None]:
        score, l, choices = state
        i, log_p, gumbel = row
        of_children = l[:, None] + log_p[None, :]
        scores = of_children if gumbel is None else _below(score, of_children + gumbel)
        best, index = jax.lax.top_k(scores.reshape(-1), num)
        parent, value = index // num_values, index % num_values
        choices = _mesh.rows(choices, parent).at[:, i].set(value.astype(choices.dtype))
        return (best, _mesh.rows(of_children.reshape(-1), index), choices), None

    rows = (jnp.arange(n), log_probs, noise)
    start, _ = _mesh.varying_alike((score, score, choices), rows)
    (_, l, choices), _ = jax.lax.scan(extend, start, rows)
    return choices, l


def _below(top: jax.Array, g: jax.Array) -> jax.Array:
    """Gumbel variables `g`, one parent's in each row, given that the largest of a row is `top`.

    -log(exp(-top) - exp(-max g) + exp(-g)), without overflow.
    """
    possible = g > -jnp.inf
    top = jnp.where(possible, top[:, None], 0)
    largest = jnp.max(g, axis=1, keepdims=True)
    g = jnp.where(possible, g, 0)
    v = top - g + jnp.log1p(-jnp.exp(jnp.where(possible, g - largest, -1)))
    return jnp.where(possible, top - jnp.maximum(v, 0) - jnp.log1p(jnp.exp(-jnp.abs(v))), -jnp.inf)
