"""Distributions of which some elements are masked: fixed points, whatever their parameters.

The parameters of a masked element are replaced by those of a law that is always the same, before
anything is computed, and its draw by a point. An estimator is given the first and its cost the
second; it need not know of masks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check
from ._closed import Closed
from .base import Distribution, Shape
from .bernoulli import Bernoulli, LogitRelaxedBernoulli, RelaxedBernoulli, on_the_edge
from .categorical import (
    Categorical,
    ExpRelaxedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
)
from .chain import LinearChainCRF
from .continuous import (
    Exponential,
    Gumbel,
    Laplace,
    Logistic,
    LogNormal,
    Normal,
    Uniform,
)
from .counts import Binomial, Geometric, NegativeBinomial, Poisson
from .gamma import Beta, Dirichlet, Gamma, StudentT
from .hard_concrete import HardConcrete
from .mixture import MixtureSameFamily
from .multivariate import LowRankMultivariateNormal, MultivariateNormal
from .plackett_luce import PlackettLuce
from .relaxed_permutation import RelaxedPermutation
from .subset import Subset
from .vocabulary import VocabularyCategorical
from .vonmises import VonMises
from .weibull import Weibull

# ---- What is known of each distribution ----------------------------------------------------


class Shared(NamedTuple):
    """A parameter that all elements of a draw have in common.

    It is replaced where all of them are masked in a lane of a vmap that has it for itself; what is
    one for all lanes stays as it is.

    Attributes:
      value: to put in its place.
      ndim: how many axes it has.
    """

    value: float
    ndim: int


class StandIn(NamedTuple):
    """What takes the place of a masked element.

    Attributes:
      point: the element's value, in the support: a number, or an array of the shape of an event.
      parameters: of a law that draws it, one for each leaf of the distribution.
      event_ndim: how many of the last axes of a draw are those of one element.
      certain: whether that law draws nothing but the point, so that its scores are zero.
    """

    point: ArrayLike
    parameters: Sequence[ArrayLike | Shared]
    event_ndim: int = 0
    certain: bool = False


def _elementwise(point: float, *parameters: float, certain: bool = False) -> Callable[..., StandIn]:
    return lambda dist: StandIn(point, parameters, certain=certain)


def _first(dist: Any) -> np.ndarray:
    """Logits of the first category for certain; of a subset, of the first k items."""
    logits = dist.unary if isinstance(dist, LinearChainCRF) else dist.logits
    k = dist.k if isinstance(dist, Subset) else 1
    return np.where(np.arange(logits.shape[-1]) < k, 0.0, -np.inf)


def _in_order(dist: PlackettLuce) -> np.ndarray:
    """Logits of the items as they stand, for certain but for exp(-100)."""
    return -100.0 * np.arange(dist.shape[-1])


def _of_rows(point: Callable[[int], float], *parameters: float) -> Callable[..., StandIn]:
    """A row of K equal numbers."""
    return lambda dist: StandIn(
        np.full(dist.shape[-1], point(dist.shape[-1])), parameters, event_ndim=1
    )


def _of_components(dist: MixtureSameFamily) -> StandIn:
    inner = stand_in(dist.component_distribution)
    return StandIn(inner.point, (0.0, *inner.parameters))


_STAND_INS: Mapping[type[Distribution], Callable[..., StandIn]] = {
    Bernoulli: _elementwise(0.0, -np.inf, certain=True),
    Categorical: lambda dist: StandIn(0, (_first(dist),), certain=True),
    OneHotCategorical: lambda dist: StandIn(np.exp(_first(dist)), (_first(dist),), 1, certain=True),
    Subset: lambda dist: StandIn(np.exp(_first(dist)), (_first(dist),), 1, certain=True),
    PlackettLuce: lambda dist: StandIn(
        np.eye(*dist.shape[-2:]), (_in_order(dist),), 2, certain=True
    ),
    LinearChainCRF: lambda dist: StandIn(
        np.exp(_first(dist)), (_first(dist), 0.0), 2, certain=True
    ),
    VocabularyCategorical: lambda dist: StandIn(0, (0.0, Shared(0.0, 2))),
    Poisson: _elementwise(0, 1.0),
    Geometric: _elementwise(0, 0.0),
    Binomial: _elementwise(0, 1, 0.0),
    NegativeBinomial: _elementwise(0, 1.0, 0.0),
    Normal: _elementwise(0.0, 0.0, 1.0),
    LogNormal: _elementwise(1.0, 0.0, 1.0),
    MultivariateNormal: lambda dist: StandIn(0.0, (0.0, np.eye(dist.shape[-1])), 1),
    LowRankMultivariateNormal: lambda dist: StandIn(0.0, (0.0, 0.0, 1.0), 1),
    Laplace: _elementwise(0.0, 0.0, 1.0),
    Logistic: _elementwise(0.0, 0.0, 1.0),
    Gumbel: _elementwise(0.0, 0.0, 1.0),
    Exponential: _elementwise(0.0, 1.0),
    Uniform: _elementwise(0.0, 0.0, 1.0),
    Gamma: _elementwise(1.0, 1.0, 1.0),
    Beta: _elementwise(0.5, 1.0, 1.0),
    Dirichlet: _of_rows(lambda k: 1 / k, 1.0),
    StudentT: _elementwise(0.0, 4.0, 0.0, 1.0),
    Weibull: _elementwise(1.0, 1.0, 1.0),
    VonMises: _elementwise(0.0, 0.0, 1.0),
    MixtureSameFamily: _of_components,
    RelaxedBernoulli: _elementwise(0.5, 1.0, 0.0),
    LogitRelaxedBernoulli: _elementwise(0.0, 1.0, 0.0),
    RelaxedOneHotCategorical: _of_rows(lambda k: 1 / k, 1.0, 0.0),
    HardConcrete: _elementwise(0.0, 0.0, 1.0, -0.1, 1.1),
    RelaxedPermutation: lambda dist: StandIn(
        np.full(dist.shape[-2:], 1 / dist.shape[-1]), (0.0, 1.0), event_ndim=2
    ),
    ExpRelaxedOneHotCategorical: _of_rows(lambda k: -math.log(k), 1.0, 0.0),
}


def stand_in(dist: Distribution) -> StandIn:
    return _STAND_INS[type(dist)](dist)


# ---- Masked distributions ------------------------------------------------------------------


class Masked(Distribution):
    """`dist`, whose elements are fixed points where `where` is false.

    Those have neither noise nor a log-probability, and no derivative reaches their parameters.

    Attributes:
      dist: one of gradest's distributions.
      where: booleans, of the shape of a draw without the axes of an event.
    """

    parameters = ("dist", "where")
    dist: Distribution
    where: jax.Array

    def __init__(self, dist: Distribution, where: jax.Array):
        self.dist, self.where = dist, where
        # Of the probabilities that are not masked.
        edges = lambda p: dist._at_edge(p) & _spread(where, p.shape)
        self.lost_edge = dist.lost_edge and on_the_edge(getattr(dist, dist.edged), edges)

    def __getattr__(self, name: str) -> Any:
        # A parameter, for who writes out a score.
        if name.startswith("_") or name in (*self.parameters, "safe"):
            raise AttributeError(name)
        return getattr(self.safe, name)

    @property
    def shape(self) -> Shape:
        return self.dist.shape

    @property
    def reparameterizable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dist.reparameterizable

    @property
    def fixed_support(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dist.fixed_support

    @property
    def edged(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dist.edged

    @property
    def no_density(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dist.no_density

    @property
    def safe(self) -> Any:
        """`dist`, with the parameters of a fixed law where masked."""
        leaves, treedef = jax.tree.flatten(self.dist)
        chosen = [
            _replaced(self.where, jnp.asarray(leaf), parameter)
            for leaf, parameter in zip(leaves, stand_in(self.dist).parameters, strict=True)
        ]
        safe = jax.tree.unflatten(treedef, chosen)
        safe.lost_edge = self.lost_edge
        return safe

    @property
    def scored(self) -> Any:
        """What a draw is taken from together with its score, which is zero where masked."""
        return self.safe if stand_in(self.dist).certain else self

    def fixed(self, x: jax.Array) -> jax.Array:
        """The draws `x`, exact or relaxed, with fixed points in their places."""
        instead = stand_in(self.dist)
        where = self.where.reshape(self.where.shape + (1,) * instead.event_ndim)
        return _select(where, x, instead.point)

    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self.fixed(self.safe.sample(key, shape))

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        return self.fixed(self.safe._sample(key, shape))

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> jax.Array:
        return self.safe._sample_unrounded(key, shape)

    def _rounded(self, u: jax.Array) -> jax.Array:
        return self.fixed(self.safe._rounded(u))

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """That of `dist`, and 0 where masked."""
        return _select(self.where, self.safe.log_prob(self.fixed(jnp.asarray(x))), 0)

    def _log_prob_unrounded(self, u: jax.Array) -> jax.Array:
        return _select(self.where, self.safe._log_prob_unrounded(u), 0)


def _replaced(where: jax.Array, leaf: jax.Array, parameter: ArrayLike | Shared) -> jax.Array:
    """The leaf, with the parameter of a fixed law where masked."""
    if isinstance(parameter, Shared):
        lanes = leaf.ndim - parameter.ndim
        if lanes == 0:
            return leaf
        where = jnp.any(where, axis=tuple(range(lanes, where.ndim)))
        parameter = parameter.value
    return _select(_spread(where, leaf.shape), leaf, parameter)


def _spread(where: jax.Array, shape: Shape) -> jax.Array:
    """The mask of elements as one of their parameters, of that shape."""
    return jnp.broadcast_to(where.reshape(where.shape + (1,) * (len(shape) - where.ndim)), shape)


def _select(where: jax.Array, x: jax.Array, instead: ArrayLike) -> jax.Array:
    instead = jnp.broadcast_to(jnp.asarray(instead, x.dtype), x.shape)
    return jnp.where(jnp.broadcast_to(where, x.shape), x, instead)


def law_of(dist: Any) -> type:
    """The class of the distribution, masked or not, closed or not."""
    inner = dist.dist if isinstance(dist, Masked) else dist
    return inner.law if isinstance(inner, Closed) else type(inner)


def masked(dist: Any, where: ArrayLike) -> Masked:
    """`dist`, one of gradest's own, masked.

    Raises:
      TypeError: if `where` is not boolean, or the distribution not one that can be masked.
      ValueError: if it has another shape than the draw's elements.
    """
    if type(dist) not in _STAND_INS:
        raise TypeError(
            f"where: expected one of gradest.distributions, or one of another library that is "
            f"turned into it, got {_check.name_of(type(dist))}: what its elements would be where "
            "masked is not known. Without where=, give it parameters by jnp.where that are in "
            "range, and use jnp.where(where, draw, 0)."
        )
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(
            "where: expected a mask of booleans, True where an element is drawn, got an array of "
            f"type {mask.dtype}. Compare it: where=mask > 0."
        )
    event_ndim = stand_in(dist).event_ndim
    shape = dist.shape[: len(dist.shape) - event_ndim]
    try:
        if np.broadcast_shapes(mask.shape, shape) != shape:
            raise ValueError
    except ValueError:
        of_events = f" less the last {event_ndim}, of one element" if event_ndim else ""
        raise ValueError(
            f"where: expected a shape that broadcasts to {shape}, that of a draw by "
            f"{type(dist).__name__}{of_events}, got {mask.shape}. Give one value for each "
            "element, or one for all."
        ) from None
    return Masked(dist, jnp.broadcast_to(mask, shape))
