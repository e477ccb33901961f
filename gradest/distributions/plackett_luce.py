"""Orders of items, as rows of one-hot vectors: permutations, and the first k of them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from .. import _check, _random
from .._derivatives.primitives import weighted
from .._numerics import below_top, compute_dtype, in_compute_dtype, tempered
from ._information import divergence, excludes, surprise
from .base import Distribution, Shape, align, as_float, plain
from .bernoulli import certain
from .subset import check_possible

# Of more items than that there are too many subsets.
_MOST_SUMMED = 12


class PlackettLuce(Distribution):
    r"""The first k of n items, drawn one after the other, in proportion to exp(logits).

    P(i_1, ..., i_k) = prod_r exp(l_{i_r}) / (sum of exp(l_j) over the j not among i_1 to i_{r-1}).
    Draws are one-hot rows, of shape (..., k, n): for k = n matrices of permutations. They are the
    k largest of logits plus Gumbel noise, in order.

    Args:
      logits: log-weights of the items, shape (..., n); -inf excludes one. Of a row in which fewer
        than k are possible some draw has log-probability -inf.
      k: how many are drawn, from 1 to n, a Python integer; None for all.

    Raises:
      ValueError: if `logits` has no axis, or are known to be infinite or to leave less than k
        items, or k is not from 1 to n; from `mean` and `entropy` for more than 12 items.

    Example:
      >>> import jax
      >>> from gradest.distributions import PlackettLuce
      >>> order = PlackettLuce([0.0, 200.0, 100.0])
      >>> order.sample(jax.random.key(0)) @ jax.numpy.arange(3.0)
      Array([1., 2., 0.], dtype=float32)

    Reference:
      Plackett 1975, "The Analysis of Permutations"; Yellott 1977 for the Gumbel noise.
      Grover, Wang, Zweig and Ermon 2019, "Stochastic Optimization of Sorting Networks via
      Continuous Relaxations", eq. 5, for the relaxation.
      Gadetsky, Struminsky, Robinson, Quadrianto and Vetrov 2020, "Low-variance Black-box Gradient
      Estimates for the Plackett-Luce Distribution", section 3.2, for the noise given a draw.
    """

    parameters = ("logits",)
    static = ("k",)
    logits: jax.Array
    k: int

    def __init__(self, logits: ArrayLike, k: int | None = None):
        self.logits = certain(as_float("logits", logits))
        if self.logits.ndim == 0 or self.logits.shape[-1] == 0:
            raise ValueError(
                f"logits: expected the items along the last axis, at least one of them, got an "
                f"array of shape {self.logits.shape}."
            )
        n = self.logits.shape[-1]
        self.k = n if k is None else _check.integer("k", k, 1)
        check_possible(self.k, logits, n)

    @property
    def shape(self) -> Shape:
        return (*self.logits.shape[:-1], self.k, self.logits.shape[-1])

    @property
    def num_outcomes(self) -> int:
        return math.perm(self.logits.shape[-1], self.k)

    def enumerate_support(self) -> jax.Array:
        """All orders of k items, shape (n! / (n - k)!, k, n)."""
        n = self.logits.shape[-1]
        orders = np.array(list(itertools.permutations(range(n), self.k)))
        return jnp.asarray(np.eye(n)[orders], self.logits.dtype)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self.harden(self._perturbed(key, shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Shape (...,) of one-hot rows `x` of shape (..., k, n); -inf where an item comes twice.

        Between the orders, where the rows add up to one, it has a meaning too: what an earlier row
        has taken of an item is missing from its weight in later ones.
        """
        x, l = self._aligned(x)
        chosen = jnp.sum(weighted(x, l, jnp.isneginf(l)), axis=-1)
        log_p = jnp.sum(chosen - _log_mass_left(x, l), axis=-1)
        hard = jnp.all((x == 0) | (x == 1), axis=(-2, -1))
        once = jnp.all(jnp.sum(x, axis=-1) == 1, axis=-1) & jnp.all(jnp.sum(x, -2) <= 1, axis=-1)
        return jnp.where(hard & ~once, -jnp.inf, log_p).astype(self.logits.dtype)

    def mean(self) -> jax.Array:
        """The probability of each item to be drawn as number r, shape (..., k, n), for n <= 12."""
        choices = jnp.exp(_choice(self._log_odds(), self._left("mean")))
        joint = self._before()[..., None] * choices
        rows = [
            jnp.sum(joint[..., sets, :], axis=-2)
            for sets in _by_size(self.logits.shape[-1], self.k)
        ]
        return jnp.stack(rows, axis=-2).astype(self.logits.dtype)

    def entropy(self) -> jax.Array:
        """In nats, shape (...,), for n <= 12."""
        surprises = surprise(_choice(self._log_odds(), self._left("entropy")))
        return self._summed(surprises).astype(self.logits.dtype)

    def _relative_entropy(self, other: "PlackettLuce") -> jax.Array:
        l, others = self._log_odds(), other._log_odds()
        left = self._left("kl_divergence")
        finite = self._summed(divergence(_choice(l, left), _choice(others, left)))
        return jnp.where(jnp.any(excludes(others, l), axis=-1), jnp.inf, finite)

    # ---- The noise that is sorted ------------------------------------------------------------

    def perturb(self, key: jax.Array) -> jax.Array:
        """z = logits + Gumbel noise, up to a constant, shape (..., n)."""
        return self._perturbed(key, ())

    def _perturbed(self, key: ArrayLike, shape: Shape) -> jax.Array:
        (l,) = in_compute_dtype(self.logits)
        noise = _random.noise(_random.gumbel, key, (*shape, *l.shape), l.dtype)
        noise, l = align(noise, below_top(l))
        return l + noise

    def harden(self, z: jax.Array) -> jax.Array:
        """The k largest of `z`, in order."""
        _, first = jax.lax.top_k(z, self.k)
        return jax.nn.one_hot(first, z.shape[-1], dtype=self.logits.dtype)

    def soften(self, z: jax.Array, temperature: ArrayLike) -> jax.Array:
        """NeuralSort: softmax(((n + 1 - 2 r) z_j - sum_i |z_j - z_i|) / temperature) for row r."""
        t = jnp.asarray(temperature, z.dtype)
        possible = z > -jnp.inf
        s = jnp.where(possible, below_top(z), 0)
        apart = jnp.abs(s[..., :, None] - s[..., None, :])
        apart = jnp.sum(jnp.where(possible[..., None, :], apart, 0), axis=-1)
        num = jnp.sum(possible, axis=-1)[..., None, None].astype(z.dtype)
        rank = jnp.arange(1, self.k + 1, dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (-1, 1))
        scores = (num + 1 - 2 * rank) * s[..., None, :] - apart[..., None, :]
        scores = jnp.where(possible[..., None, :], scores, -jnp.inf)
        return jax.nn.softmax(tempered(below_top(scores), t), axis=-1).astype(self.logits.dtype)

    def conditional(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """A draw of z given the order x: exp(-z) are arrivals of a race, x says in which order.

        With e_r independent exponential variables and W_r the weight that is left before row r,
        item i_r arrives at e_1 / W_1 + ... + e_r / W_r; who comes later, e / w after the last.
        """
        keys = _random.split(key, 2)
        x, l = self._aligned(x)
        rows = -_random.noise(_random.gumbel, keys[0], l.shape[:-1], l.dtype)
        others = -_random.noise(_random.gumbel, keys[1], (*l.shape[:-2], l.shape[-1]), l.dtype)
        return _arrived(x, l, rows, others)

    def pull_back_conditional(self, x: jax.Array, z: jax.Array, ct: jax.Array) -> jax.Array:
        """The cotangent of the logits, given that of z, a draw given x with fixed noise."""
        x, l = self._aligned(x)
        # The logarithm of what passes between one arrival and the next, from which the noise.
        at = jnp.sum(jnp.where(x > 0, -z[..., None, :], 0), axis=-1)
        before = jnp.concatenate([jnp.full_like(at[..., :1], -_NEVER), at[..., :-1]], axis=-1)
        rows = _log_difference(at, before) + _log_mass_left(x, l)
        last = at[..., -1:]
        weights = l[..., 0, :]
        others = _log_difference(-z, jnp.minimum(last, -z)) + jnp.where(
            jnp.isneginf(weights), 0, weights
        )
        logits = self._log_odds()

        def arrived(logits: jax.Array) -> jax.Array:
            return _arrived(x, self._aligned(x, logits)[1], rows, others)

        _, pull_back = jax.vjp(arrived, logits)
        return pull_back(ct)[0]

    def _log_odds(self) -> jax.Array:
        """Normalised log-weights, in the type of the noise."""
        return jax.nn.log_softmax(self.logits.astype(compute_dtype(self.logits.dtype)), axis=-1)

    def _aligned(self, x: ArrayLike, l: jax.Array | None = None) -> list[jax.Array]:
        """The order and the logits, both of shape (..., k, n), in the type of the noise."""
        l = self._log_odds() if l is None else l
        if np.shape(x)[-2:] != self.shape[-2:]:
            raise ValueError(
                f"x: expected one-hot rows, of shape {self.shape[-2:]} along the last two axes, "
                f"got shape {np.shape(x)}. Of the items' numbers make them: jax.nn.one_hot(x, "
                f"{self.shape[-1]})."
            )
        return align(jnp.asarray(x, l.dtype), l[..., None, :])

    # ---- Sums over what was drawn before -----------------------------------------------------

    def _left(self, what: str) -> jax.Array:
        """Which items each set of earlier ones has left, shape (..., sets, n): of 0, then 1, ..."""
        n = self.logits.shape[-1]
        if n > _MOST_SUMMED:
            raise ValueError(
                f"PlackettLuce.{what}: expected at most {_MOST_SUMMED} items, got {n}: it is a sum "
                "over all their subsets. Average draws, or for the entropy -log_prob of draws, by "
                "an estimator that needs no mean: score_function or rebar."
            )
        left = np.concatenate([_without(n, r) for r in range(self.k)])
        return jnp.broadcast_to(left, (*self.logits.shape[:-1], *left.shape))

    def _before(self) -> jax.Array:
        """The probability of each set to be that of the earlier ones: shape (..., sets)."""
        return _masses(jnp.exp(_choice(self._log_odds(), self._left("mean"))), self.k)

    def _summed(self, rows: jax.Array) -> jax.Array:
        """The mean of the sum over rows, of what is given for each earlier set and each item."""
        return jnp.sum(self._before() * jnp.sum(rows, axis=-1), axis=-1)


# The logarithm of a time that is not to be waited for, and of one before all others.
_NEVER = 1e30


def _log_mass_left(x: jax.Array, l: jax.Array) -> jax.Array:
    """log of the weight of what earlier rows have left, for each row: shape (..., k)."""
    left = 1 - (jnp.cumsum(x, axis=-2) - x)
    possible = (left > 0) & (l > -jnp.inf)
    y = jnp.where(possible, l + jnp.log(jnp.where(possible, left, 1)), -jnp.inf)
    any_left = jnp.any(possible, axis=-1)
    return jnp.where(any_left, logsumexp(jnp.where(any_left[..., None], y, 0), axis=-1), 0)


def _arrived(x: jax.Array, l: jax.Array, rows: jax.Array, others: jax.Array) -> jax.Array:
    """z of every item, from the logarithms of exponential variables: of rows and of items."""
    times = jax.lax.cumlogsumexp(rows - _log_mass_left(x, l), axis=rows.ndim - 1)
    weights = l[..., 0, :]
    possible = weights > -jnp.inf
    later = jnp.logaddexp(times[..., -1:], others - jnp.where(possible, weights, 0))
    later = jnp.where(possible, -later, -jnp.inf)
    drawn = jnp.sum(x, axis=-2) > 0
    return jnp.where(drawn, -jnp.sum(x * times[..., None], axis=-2), later)


def _log_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp(a) - exp(b)) for a >= b; a large negative number where they are the same."""
    apart = jnp.isfinite(a) & (a > b)
    gap = jnp.where(apart, a - b, 1)
    return jnp.where(apart, jnp.where(apart, a, 0) + jnp.log(-jnp.expm1(-gap)), -_NEVER)


def _choice(l: jax.Array, left: jax.Array) -> jax.Array:
    """log-probabilities of the items that are left; -inf of the others, or if none is possible."""
    l = l[..., None, :]
    possible = left & (l > -jnp.inf)
    some = jnp.any(possible, axis=-1, keepdims=True)
    y = jnp.where(some, jnp.where(possible, l, -jnp.inf), 0)
    return jnp.where(possible, jax.nn.log_softmax(y, axis=-1), -jnp.inf)


@functools.partial(jax.jit, static_argnames="k")
def _masses(choices: jax.Array, k: int) -> jax.Array:
    """The probabilities of sets, given those of each item to follow each: shape (..., sets).

    Compiled together, as each size has shapes of its own.
    """
    n = choices.shape[-1]
    masses = [jnp.ones_like(choices[..., 0, :1])]
    for size, sets in enumerate(_by_size(n, k)[:-1], start=1):
        joint = masses[-1][..., None] * choices[..., sets, :]
        masses.append(jnp.sum(joint[..., _earlier(n, size), _members(n, size)], axis=-1))
    return jnp.concatenate(masses, axis=-1)


def _by_size(n: int, k: int) -> list[slice]:
    """Where the sets of 0, 1, ... and k - 1 of n items are."""
    ends = np.cumsum([math.comb(n, size) for size in range(k)]).tolist()
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


def _sets(n: int, size: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(n), size))


def _without(n: int, size: int) -> np.ndarray:
    """Which items each set of this size has not, shape (sets, n)."""
    return np.array([[i not in chosen for i in range(n)] for chosen in _sets(n, size)])


def _members(n: int, size: int) -> np.ndarray:
    """The items of each set, shape (sets, size)."""
    return np.array(_sets(n, size), int)


def _earlier(n: int, size: int) -> np.ndarray:
    """The numbers of the sets that are each set without one of its members, shape (sets, size)."""
    number = {chosen: i for i, chosen in enumerate(_sets(n, size - 1))}
    without = lambda chosen, i: number[chosen[:i] + chosen[i + 1 :]]
    return np.array([[without(chosen, i) for i in range(size)] for chosen in _sets(n, size)])
