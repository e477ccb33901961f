"""Which bounds of a support move with the parameters, for distributions of any library.

A score does not see that a bound moves. gradest's distributions say so themselves and numpyro's in
their `support`; for TFP's and distrax's there is a list.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check
from .._derivatives.refuse import Refusal, undifferentiable
from ._joint import Lanes
from .base import Distribution


def refusing(estimator: str, dist: Any) -> Any:
    """`dist`, whose derivative raises where it is one in a bound of the support as well.

    A bound that is not differentiated, a constant or data, does no harm.
    """
    if isinstance(dist, Distribution):
        return dist
    moving = [jnp.asarray(b) for b in bounds(dist) if not _check.is_concrete(b)]
    moving = [b for b in moving if jnp.issubdtype(b.dtype, jnp.inexact)]
    if not moving:
        return dist
    refusal = Refusal(
        estimator,
        "",
        f"The support of {_check.name_of(type(unwrapped(dist)))} moves with a parameter, which a "
        "score does not see. Use reparameterize, jax.lax.stop_gradient of the bound, or draw from "
        "a fixed support and shift and scale the draw.",
    )

    def guarded(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf + undifferentiable(refusal, jnp.zeros((), leaf.dtype), moving)

    return jax.tree.map(guarded, dist)


def unwrapped(dist: Any) -> Any:
    """The distribution of another library in gradest's own wrappers."""
    while type(dist).__module__.startswith("gradest."):
        dist = dist.dist if isinstance(dist, Lanes) else dist._staged[2]
    return dist


def bounds(dist: Any) -> list[Any]:
    """The arrays on which the support's ends depend, constants among them."""
    if isinstance(dist, Lanes):
        return jax.vmap(lambda d: [jnp.asarray(b) for b in bounds(d)])(dist.dist)
    if type(dist).__module__.startswith("gradest."):
        return dist.bounds()
    library, name = type(dist).__module__.partition(".")[0], type(dist).__name__
    if library == "numpyro":
        return _of_numpyro(dist)
    if library in ("tensorflow_probability", "distrax"):
        return _of_list(dist, name)
    return []


# ---- numpyro -------------------------------------------------------------------------------


def _of_numpyro(dist: Any) -> list[Any]:
    name = type(dist).__name__
    if name in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        return bounds(dist.base_dist)
    if name == "Delta":
        return [dist.v]
    if name == "TransformedDistribution":
        return _transformed(dist)
    return _ends(dist.support)


def _ends(constraint: Any) -> list[Any]:
    """The bounds that a constraint holds; those of the ones without parameters are no leaves."""
    inner = getattr(constraint, "base_constraint", constraint)
    named = [getattr(inner, name, None) for name in ("lower_bound", "upper_bound")]
    return [*jax.tree.leaves(inner), *(b for b in named if b is not None)]


def _transformed(dist: Any) -> list[Any]:
    """The bounds of the base, and those that transforms make, as later transforms carry them on."""
    found = bounds(dist.base_dist)
    for transform in dist.transforms:
        if type(transform).__name__ == "AffineTransform":
            # What stays at 0 whatever the scale is moved by the shift alone.
            at_zero = all(_check.is_concrete(b) and not np.any(np.asarray(b)) for b in found)
            carried = [transform.loc] if at_zero else [transform.loc, transform.scale]
            found = [*found, *carried] if found else []
        else:
            carried = jax.tree.leaves(transform) if found else []
            found = [*found, *carried, *_ends(transform.codomain)]
    return found


# ---- TFP and distrax -----------------------------------------------------------------------

#: The parameters with which a support moves.
_MOVING: Mapping[str, Sequence[str]] = {
    "Uniform": ("low", "high"),
    "Bates": ("low", "high"),
    "Triangular": ("low", "high"),
    "PERT": ("low", "high"),
    "TruncatedNormal": ("low", "high"),
    "TruncatedCauchy": ("low", "high"),
    "Pareto": ("scale",),
    "GeneralizedPareto": ("loc", "scale", "concentration"),
    "GeneralizedExtremeValue": ("loc", "scale", "concentration"),
    "HalfCauchy": ("loc",),
    "HalfStudentT": ("loc",),
    "Deterministic": ("loc",),
    "VectorDeterministic": ("loc",),
    "FiniteDiscrete": ("outcomes",),
    "Empirical": ("samples",),
    "Clipped": ("minimum", "maximum"),
    "ClippedNormal": ("minimum", "maximum"),
    "ClippedLogistic": ("minimum", "maximum"),
    "QuantizedDistribution": ("low", "high"),
    "Quantized": ("low", "high"),
}
#: Those that have one of another distribution inside, and its support.
_WRAPPERS = {
    *("Independent", "Sample", "BatchBroadcast", "BatchReshape", "Masked"),
    *("QuantizedDistribution", "Quantized"),
}
#: Those whose support is the whole space.
_UNBOUNDED = {
    *("Normal", "Laplace", "Logistic", "Gumbel", "Cauchy", "StudentT", "JohnsonSU", "SinhArcsinh"),
    *("MultivariateNormalDiag", "MultivariateNormalTriL", "MultivariateNormalTri"),
    *("MultivariateNormalFullCovariance", "MultivariateNormalDiagPlusLowRank"),
    *("MultivariateNormalFromBijector", "LogStddevNormal", "Moyal", "GeneralizedNormal"),
}
#: Transforms that map the whole space onto itself.
_ONTO = {
    *("Shift", "Scale", "ScalarAffine", "UnconstrainedAffine", "Linear", "DiagLinear"),
    *("TriangularLinear", "LowerUpperTriangularAffine", "ScaleMatvecDiag", "ScaleMatvecTriL"),
    *("ScaleMatvecLU", "MaskedCoupling", "SplitCoupling", "RationalQuadraticSpline", "RealNVP"),
    *("MaskedAutoregressiveFlow", "Identity", "Permute", "FFJORD", "Sinh", "SinhArcsinh"),
}


def _of_list(dist: Any, name: str) -> list[Any]:
    found = [getattr(dist, parameter) for parameter in _MOVING.get(name, ())]
    if name in ("TransformedDistribution", "Transformed"):
        base, bounded = _base(dist), False
        inner = base
        while type(inner).__name__ in _WRAPPERS:
            inner = _base(inner)
        bounded = type(inner).__name__ not in _UNBOUNDED
        found += bounds(base)
        for transform in _in_order(dist.bijector):
            if bounded:
                found += jax.tree.leaves(transform)
            bounded = bounded or type(transform).__name__ not in _ONTO
    elif name in _WRAPPERS:
        found += bounds(_base(dist))
    elif name in ("MixtureSameFamily",):
        found += bounds(dist.components_distribution)
    elif name.startswith("JointDistribution") and isinstance(dist.model, (tuple, list)):
        found += [b for part in dist.model if hasattr(part, "sample") for b in bounds(part)]
    return [leaf for leaf in jax.tree.leaves(found) if leaf is not None]


def _base(dist: Any) -> Any:
    return dist.distribution


def _in_order(bijector: Any) -> Iterable[Any]:
    """The transforms of a chain, from the one that is applied first."""
    name = type(bijector).__name__
    if name == "Chain":
        for part in reversed(bijector.bijectors):
            yield from _in_order(part)
    elif name == "Block":
        yield from _in_order(getattr(bijector, "bijector", None) or bijector._bijector)
    else:
        yield bijector
