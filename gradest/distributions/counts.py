"""Distributions of counts: draws are integers, which no gradient flows through."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from .. import _check, _random
from .._derivatives.primitives import log_sigmoid, softplus, weighted
from .._numerics import in_compute_dtype, least_probability, sigmoid
from ._implicit import implicit, per_lane
from ._information import OfBinomial, OfGeometric, OfNegativeBinomial, OfPoisson
from ._log_gamma import by_stirling, log_gamma
from ._special import STIRLING, digamma_remainder, log_beta, log_ratio, simplex_log_density
from .base import (
    Distribution,
    Shape,
    WeakDerivative,
    align,
    as_float,
    as_floats,
    plain,
    scored,
)
from .bernoulli import logits_from, on_the_edge

#: Counts beyond are brought there, so that two of them can be added.
HIGHEST = 10**9

_COUNTABLE = _check.Domain(
    "numbers from 0 to 1e9",
    lambda x: (x >= 0) & (x <= HIGHEST),
    "Counts are integers of 32 bits. Larger ones are Normal in all but name: draw from that, by "
    "its mean and standard deviation.",
)
_TRIALS = _COUNTABLE._replace(
    expected="whole numbers from 0 to 1e9",
    holds=lambda x: _COUNTABLE.holds(x) & (x == np.floor(x)),
)


class Poisson(OfPoisson, Distribution):
    """Independent Poisson counts, P(x) = rate^x exp(-rate) / x!.

    Draws are exact up to rates of about 1e5 (from 1e6 to 1e7 their variance is off by 2 to 9%, at
    1e8 by half), and at most 1e9. `jax.random.poisson` makes them, in single precision with x64
    too, and needs keys of the default implementation, threefry2x32.

    Args:
      rate: mean and variance, not negative. At 0 its derivative is one-sided, from
        `measure_valued`; others would have to draw the impossible counts: they raise where the rate
        is known, and lack that term where it is traced.

    Example:
      >>> import jax
      >>> from gradest.distributions import Poisson
      >>> Poisson([0.0, 1e4]).sample(jax.random.key(0)).dtype
      dtype('int32')
    """

    parameters = ("rate",)
    edged = "rate"
    rate: jax.Array

    def __init__(self, rate: ArrayLike):
        self.rate = as_float("rate", rate)
        _check.elements(_check.NOT_NEGATIVE, rate=rate)
        _check.elements(_COUNTABLE, rate=rate)
        self.lost_edge = on_the_edge(rate, self._at_edge)

    def _at_edge(self, parameter: jax.Array) -> jax.Array:
        return parameter == 0

    @property
    def shape(self) -> Shape:
        return self.rate.shape

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return _poisson(key, in_compute_dtype(self.rate)[0], (*shape, *self.shape))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf for a negative count."""
        x, rate = _with_counts(scored(self, x), self.rate)
        # Where the rate is 0 its logarithm has weight 0, except at an impossible count.
        never = rate == 0
        some = jnp.where(never, 1, rate)
        log_rate = jnp.where(never, -jnp.inf, jnp.log(some))
        # That of 0! and 1! is 0, and no rounding of it, which would be more than a small rate.
        log_factorial = jnp.where(x < 2, 0, gammaln(x + 1))
        direct = weighted(x, log_rate, never) - rate - log_factorial
        # As a function of the rate it is a Gamma density, which loses no digits at large counts.
        n = jnp.maximum(x, STIRLING)
        log_p = jnp.where(
            never | (x < STIRLING), direct, by_stirling(some, n + 1, jnp.ones_like(n))
        )
        return _on_counts(x, log_p, self.rate.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """One more than the draw, or than another one."""
        (rate,) = in_compute_dtype(self.rate)
        first = x if coupled else self._sample(key)
        return [WeakDerivative(jnp.ones_like(rate), first + 1)]

    def left_weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, and one less."""
        del key, coupled
        wide, rate = _with_counts(x, self.rate)
        never = rate == 0
        down = wide / jnp.where(never, 1, rate)
        return [_neighbour(x, jnp.ones_like(rate), down, never)]


class _Logits(Distribution):
    """Holds log-odds."""

    logits: jax.Array

    @property
    def probs(self) -> jax.Array:
        """Probability of success of a trial."""
        return sigmoid(self.logits)

    @property
    def shape(self) -> Shape:
        return self.logits.shape


class Geometric(OfGeometric, _Logits):
    """Independent counts of failures before the first success, P(x) = (1 - probs)^x probs.

    The smallest count is 0, the mean (1 - probs) / probs. Draws are at most 1e9.

    Args:
      logits: log-odds of success.
      probs: probability of success, instead of `logits`; at 0 and 1 as Bernoulli's.

    Raises:
      TypeError: if not exactly one of the two is given.

    Example:
      >>> import jax
      >>> from gradest.distributions import Geometric
      >>> print(Geometric(probs=1.0).sample(jax.random.key(0)))
      0
    """

    parameters = ("logits",)

    def __init__(self, logits: ArrayLike | None = None, *, probs: ArrayLike | None = None):
        self.logits = logits_from(logits, probs)
        self.lost_edge = on_the_edge(probs, _certain)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        full, (logits,) = (*shape, *self.shape), in_compute_dtype(self.logits)
        # The integer part of an exponential variable of rate -log(1 - p).
        e = _random.noise(jax.random.exponential, key, full, logits.dtype)
        return _geometric(*align(e, -log_sigmoid(-logits)))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf for a negative count."""
        x, logits = _with_counts(scored(self, x), self.logits)
        log_p = weighted(x, *_log_sigmoid(-logits)) + log_sigmoid(logits)
        return _on_counts(x, log_p, self.logits.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, or another one, and one more success."""
        keys = _random.split(key, 2)
        first = x if coupled else self._sample(keys[0])
        return [WeakDerivative(-_failure(self.logits), first + self._sample(keys[1]) + 1)]

    def left_weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, and one less."""
        del key, coupled
        wide, l = _with_counts(x, self.logits)
        pair = _neighbour(x, _failure(self.logits), wide, jnp.isposinf(l))
        # It is a function of the log-odds of failure.
        return [pair._replace(weight=-pair.weight)]


class Binomial(OfBinomial, _Logits):
    """Independent counts of successes in a number of trials.

    P(x) = n! / (x! (n - x)!) probs^x (1 - probs)^(n - x) with n = total_count. `total_count` is a
    leaf of integers: it has no derivative.

    Args:
      total_count: number of trials, integers (or floats that are known and whole), not negative;
        up to about 1e6 in single precision (at 1e7 the variance is off by 1%, at 1e8 by 5 to 9%,
        and the mean by 0.01 standard deviations), and to 1e8 with parameters in double precision.
      logits: log-odds of success.
      probs: probability of success, instead of `logits`; at 0 and 1 as Bernoulli's. The two
        broadcast against each other.

    Raises:
      TypeError: if not exactly one of logits and probs is given.

    Example:
      >>> import jax
      >>> from gradest.distributions import Binomial
      >>> Binomial(10, probs=[0.0, 1.0]).sample(jax.random.key(0))
      Array([ 0, 10], dtype=int32)
    """

    parameters = ("total_count", "logits")
    total_count: jax.Array

    def __init__(
        self,
        total_count: ArrayLike,
        logits: ArrayLike | None = None,
        *,
        probs: ArrayLike | None = None,
    ):
        n, l = _as_trials(total_count), logits_from(logits, probs)
        try:
            shape = np.broadcast_shapes(n.shape, l.shape)
        except ValueError:
            raise ValueError(
                "expected parameters of shapes that broadcast, got total_count: "
                f"{n.shape}, logits or probs: {l.shape}."
            ) from None
        self.total_count, self.logits = jnp.broadcast_to(n, shape), jnp.broadcast_to(l, shape)
        self.lost_edge = on_the_edge(probs, _certain)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        (logits,) = in_compute_dtype(self.logits)
        n = self.total_count.astype(logits.dtype)
        # The less probable outcome is counted: its probability has the digits.
        rare = jax.nn.sigmoid(-jnp.abs(logits))
        draw = lambda k, n, p: jax.random.binomial(k, n, p, n.shape, n.dtype)
        x = per_lane(draw, key, (*shape, *self.shape), n, rare)
        x, n, logits = align(x, n, logits)
        return jnp.where(logits > 0, n - x, x).astype(int)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf for a count that is not from 0 to `total_count`."""
        x, logits = _with_counts(scored(self, x), self.logits)
        n = align(x, self.total_count.astype(x.dtype))[1]
        failures = jnp.where((x >= 0) & (x <= n), n - x, 0)
        x = jnp.where(x <= n, x, -1)
        log_p = _binary(jnp.maximum(x, 0), failures, logits)
        return _on_counts(x, log_p, self.logits.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative | None]:
        """The draw, and one more: weighted, it is the count of n - 1 trials and one success."""
        del key, coupled
        return None, self._neighbour(x, ~jnp.isposinf(self.logits))

    def left_weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative | None]:
        """The draw, and one less."""
        del key, coupled
        return None, self._neighbour(x, jnp.isneginf(self.logits))

    def _neighbour(self, x: jax.Array, right: jax.Array) -> WeakDerivative:
        wide, l = _with_counts(x, self.logits)
        left = self.total_count.astype(l.dtype) - wide
        return _neighbour(x, _failure(-l) * left, _failure(l) * wide, right)


class NegativeBinomial(OfNegativeBinomial, _Logits):
    """Independent counts of successes before the failure number `total_count`.

    P(x) = Gamma(x + r) / (x! Gamma(r)) probs^x (1 - probs)^r with r = total_count, any positive
    number. The mean is r probs / (1 - probs): the counts are Poisson with a Gamma rate. Draws are
    as exact as Poisson's, at most 1e9, and need keys of the default implementation.

    Args:
      total_count: r, positive.
      logits: log-odds of success.
      probs: probability of success, instead of `logits`; at 0 and 1 as Bernoulli's. The two
        broadcast against each other.

    Raises:
      TypeError: if not exactly one of logits and probs is given.
    """

    parameters = ("total_count", "logits")
    total_count: jax.Array

    def __init__(
        self,
        total_count: ArrayLike,
        logits: ArrayLike | None = None,
        *,
        probs: ArrayLike | None = None,
    ):
        self.total_count, self.logits = as_floats(
            total_count=total_count, logits=logits_from(logits, probs)
        )
        _check.elements(_check.POSITIVE, total_count=total_count)
        self.lost_edge = on_the_edge(probs, _certain)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return plain(self, jax.lax.stop_gradient(self)._sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        full, keys = (*shape, *self.shape), _random.split(_random.as_keys(key), 2)
        (r,) = in_compute_dtype(jnp.broadcast_to(self.total_count, full))
        y = log_gamma(keys[0], jax.lax.stop_gradient(r), full)
        # Any derivative will do, to tell gradest.expectation that the counts depend on r.
        y = implicit(lambda y, r, dr: dr, y, r)
        y, logits = align(y, *in_compute_dtype(self.logits))
        return _poisson(keys[1], jnp.exp(y + logits), full)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Elementwise; -inf for a negative count."""
        x, logits = _with_counts(scored(self, x), self.logits)
        r = align(x, *in_compute_dtype(self.total_count))[1]
        # (x + r - 1)! / (x! (r - 1)!) = r / (x + r) times (x + r)! / (x! r!).
        x = jnp.where(x >= 0, x, -1)
        log_p = _binary(jnp.maximum(x, 0), r, logits) - log_ratio(x + r, r)
        return _on_counts(x, log_p, self.logits.dtype)

    def weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, and one more; in r the draw, or another one, and a cluster more."""
        of_r = self._longer(key, x, coupled)
        wide, r = _with_counts(x, self.total_count)
        p = _failure(-self.logits)
        return of_r, WeakDerivative(p * (r + wide), x + 1)

    def left_weak_derivative(
        self, key: jax.Array, x: jax.Array, *, coupled: bool = True
    ) -> Sequence[WeakDerivative]:
        """The draw, and one less; in r as from the right."""
        of_r = self._longer(key, x, coupled)
        wide, r = _with_counts(x, self.total_count)
        never = jnp.isneginf(self.logits)
        return of_r, _neighbour(x, _failure(-self.logits) * r, wide, never)

    def _longer(self, key: jax.Array, x: jax.Array, coupled: bool) -> WeakDerivative:
        """In r: the counts are a Poisson number, of mean -r log(1 - p), of clusters."""
        keys = _random.split(key, 3)
        (l,) = in_compute_dtype(self.logits)
        first = x if coupled else self._sample(keys[0])
        # The size j of a cluster has the probability p^j / (-j log(1 - p)): a Geometric one, of
        # whose failures the probability is 1 - (1 - p)^u, u uniform (Kemp 1981).
        clusters = softplus(l)
        u = 1 - _random.noise(jax.random.uniform, keys[1], l.shape, l.dtype)
        rate = -jnp.log(-jnp.expm1(-u * clusters))
        size = 1 + _geometric(_random.exponential_like(keys[2], l), rate)
        return WeakDerivative(clusters, jnp.minimum(first + size, HIGHEST))


def _certain(probs: jax.Array) -> jax.Array:
    return (probs <= 0) | (probs >= 1)


# ---- Counts --------------------------------------------------------------------------------


def _poisson(key: ArrayLike, rate: jax.Array, shape: Shape) -> jax.Array:
    draw = lambda k, rate: jax.random.poisson(_random.threefry(k), rate, rate.shape, int)
    return jnp.minimum(per_lane(draw, key, shape, jnp.minimum(rate, HIGHEST)), HIGHEST)


@jax.jit
def _geometric(e: jax.Array, rate: jax.Array) -> jax.Array:
    """A call of the name of jax.random's own, for gradest.expectation to see that it is a draw."""
    return jnp.minimum(jnp.where(e > 0, e / rate, 0), HIGHEST).astype(int)


def _failure(logits: jax.Array) -> jax.Array:
    """1 - p, and the least that there is where it is 0, in at least single precision."""
    (l,) = in_compute_dtype(logits)
    edge = least_probability(logits.dtype)
    return jax.nn.sigmoid(-l) + jnp.where(jnp.isposinf(l), edge, 0)


def _neighbour(x: jax.Array, up: jax.Array, down: jax.Array, right: jax.Array) -> WeakDerivative:
    """up (f(x + 1) - f(x)) where `right`, else down (f(x) - f(x - 1)); weight 0 is at x."""
    weight = jnp.where(right, up, -down)
    return WeakDerivative(weight, jnp.where(weight == 0, x, jnp.where(right, x + 1, x - 1)))


def _with_counts(x: ArrayLike, parameter: jax.Array) -> list[jax.Array]:
    """`x` and the parameter, of one shape, in at least single precision."""
    (parameter,) = in_compute_dtype(parameter)
    return align(jnp.asarray(x, parameter.dtype), parameter)


@jax.custom_jvp
def _binary(x: jax.Array, y: jax.Array, logits: jax.Array) -> jax.Array:
    """log (x + y)! / (x! y!) p^x q^y, which in p is of the form of a Beta density."""
    (log_p, never), (log_q, always) = _log_sigmoid(logits), _log_sigmoid(-logits)
    # An infinite logarithm of weight 0 counts for nothing.
    powers = weighted(x, log_p, never, y, log_q, always)
    certain, alone = never | always, (x == 0) | (y == 0)
    logs = jnp.where(certain[..., None], -1, jnp.stack([log_p, log_q], -1))
    density = simplex_log_density(logs, jnp.stack([x + 1, y + 1], -1))
    product = jnp.where(certain, powers - log_beta(x + 1, y + 1), density) - jnp.log1p(x + y)
    # There is one way to have none of either kind, however close its probability is to 1.
    return jnp.where(alone, powers, product)


def _binary_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """That in the logits has its digits in this form only, which is small where x or y is 0."""
    (x, y, l), (dx, dy, dl) = primals, tangents
    slope = jnp.zeros_like(l)
    if not isinstance(dl, SymbolicZero):
        slope += (x * jax.nn.sigmoid(-l) - y * jax.nn.sigmoid(l)) * dl
    for count, others, moved, log_p in ((x, y, dx, l), (y, x, dy, -l)):
        if not isinstance(moved, SymbolicZero):
            slope += (_slope_of_choices(count, others) + log_sigmoid(log_p)) * moved
    return _binary(*primals), slope


_binary.defjvp(_binary_jvp, symbolic_zeros=True)


def _slope_of_choices(x: jax.Array, y: jax.Array) -> jax.Array:
    """digamma(x + y + 1) - digamma(x + 1), which is 0 where y is."""
    apart = digamma_remainder(x + y + 1) - digamma_remainder(x + 1)
    return jnp.log1p(y / (x + 1)) + apart


def _log_sigmoid(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of what has these log-odds, and where that is impossible."""
    return log_sigmoid(logits), jnp.isneginf(logits)


def _on_counts(x: jax.Array, log_p: jax.Array, dtype: jnp.dtype) -> jax.Array:
    possible = (x >= 0) & (x == jnp.floor(x))
    return jnp.where(possible, log_p, -jnp.inf).astype(dtype)


def _as_trials(value: ArrayLike) -> jax.Array:
    """Numbers of trials as integers. They have no derivative, so a traced float is refused."""
    floats = as_float("total_count", value)
    _check.elements(_TRIALS, total_count=value)
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array
    if not all(map(_check.is_concrete, jax.tree.leaves(value))):
        raise TypeError(
            f"total_count: expected integers, got a traced array of type {floats.dtype}. A "
            "Binomial has no derivative in its number of trials: use total_count.astype(int)."
        )
    return jnp.asarray(np.asarray(value).astype(int))
