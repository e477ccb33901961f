"""Which bounds of a support move with the parameters, for distributions of any library.

A score does not see that a bound moves. gradest's distributions say so themselves and numpyro's in
their `support`; for TFP's and distrax's there is a list.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check
from .._derivatives.refuse import Refusal, undifferentiable
from ._joint import Lanes, draw, seems_pathwise
from .base import Distribution


def refusing(estimator: str, dist: Any) -> tuple[Any, jax.Array | None]:
    """`dist`, whose derivative raises where it is one in a bound of the support as well.

    A bound that is not differentiated, a constant or data, does no harm.

    Returns:
      The distribution; and, if a bound may move, a zero whose derivative in it raises: for a
      log-probability that has none in the bound, such as that of a fixed value.
    """
    if isinstance(dist, Distribution):
        return dist, None
    moving = [jnp.asarray(b) for b in bounds(dist) if not _check.is_concrete(b)]
    moving = [b for b in moving if jnp.issubdtype(b.dtype, jnp.inexact)]
    if not moving:
        return dist, None
    ways = "" if seems_pathwise(dist) is False else "reparameterize, "
    refusal = Refusal(
        estimator,
        "",
        f"The support of {name_of(dist)} moves with a parameter, which a score does not see. Use "
        f"{ways}jax.lax.stop_gradient of the bound, or draw from a fixed support and shift and "
        "scale the draw.",
    )

    def zero(dtype: Any) -> jax.Array:
        return undifferentiable(refusal, jnp.zeros((), dtype), moving)

    def guarded(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf + zero(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(guarded, dist), zero(moving[0].dtype)


def name_of(dist: Any) -> str:
    """Its class, as errors name it; of one of another library in gradest's own wrappers, that."""
    while isinstance(dist, Lanes) or hasattr(dist, "_staged"):
        dist = dist.dist if isinstance(dist, Lanes) else dist._staged[2]
    return _check.name_of(type(dist))


def bounds(dist: Any) -> list[Any]:
    """The arrays on which the support's ends depend, constants among them; none of all reals."""
    if isinstance(dist, Lanes):
        return jax.vmap(lambda d: [jnp.asarray(b) for b in bounds(d)])(dist.dist)
    if type(dist).__module__.startswith("gradest."):
        return dist.bounds()
    for kind in type(dist).__mro__:
        # A class that is derived from one of theirs has its support.
        library, name = kind.__module__.partition(".")[0], kind.__name__
        if library == "numpyro":
            return _of_numpyro(dist, name)
        if library in ("tensorflow_probability", "distrax") and name not in _BASES:
            return _of_list(dist, name)
    return []


def _inside(fields: Any) -> list[Any]:
    """The distributions that a distribution is made of."""
    is_one = lambda x: hasattr(x, "log_prob") and hasattr(x, "sample") and not isinstance(x, type)
    return list(filter(is_one, jax.tree.leaves(fields, is_leaf=is_one)))


def _of_all(parts: Iterable[Any]) -> list[Any]:
    return [bound for part in parts for bound in bounds(part)]


# ---- Transforms ----------------------------------------------------------------------------

#: An end that does not move, and of which no more is known.
_SOMEWHERE = np.nan
#: Ends that stay whatever the parameters of a transform are, but for one by which they are shifted.
_KEPT: Mapping[str, tuple[Sequence[float], str]] = {
    "AffineTransform": ((0,), "loc"),
    "ScalarAffine": ((0,), "shift"),
    "Scale": ((0,), ""),
    "ScaleMatvecDiag": ((0,), ""),
    "DiagLinear": ((0,), ""),
    "PowerTransform": ((0, 1), ""),
    "Power": ((0, 1), ""),
    "KumaraswamyCDF": ((0, 1), ""),
}
#: Distribution functions: the ends of what they map onto the interval from 0 to 1.
_ONTO_INTERVAL: Mapping[str, Sequence[float]] = {
    **dict.fromkeys(("NormalCDF", "GumbelCDF", "MoyalCDF"), ()),
    **dict.fromkeys(("WeibullCDF", "GompertzCDF"), (0.0,)),
}


def _transformed(
    ends: list[Any], transforms: Iterable[Any], made: Callable[[Any], list[Any]]
) -> list[Any]:
    """The bounds of what has these `ends`, transformed.

    Args:
      ends: of what is transformed.
      transforms: in order.
      made: the ends of all results of a transform.
    """
    for transform in transforms:
        parameters = _parameters(transform)
        moving = [e for e in ends if not _check.is_concrete(e)]
        still = [e for e in ends if _check.is_concrete(e)]
        name, inverse = _kind(transform)
        if name in _ONTO_INTERVAL:
            before, after = (_ONTO_INTERVAL[name], (0.0, 1.0))[:: -1 if inverse else 1]
            known = not moving and all(np.isin(x, before).all() for x in still)
            ends = list(after) if known else [*moving, *parameters, _SOMEWHERE]
        elif not ends:
            ends = made(transform)
        elif not parameters:
            ends = [*moving, *(y for x in still for y in _image(transform, x)), *made(transform)]
        else:
            kept, shift = _KEPT.get(name, ((), ""))
            if moving or (inverse and shift) or not np.all([np.isin(x, kept).all() for x in still]):
                ends = [*moving, *parameters]
            elif shift:
                ends = [getattr(transform, shift)]
    return ends


def _kind(transform: Any) -> tuple[str, bool]:
    """The name of its class, and whether it is the inverse of such a one, of TFP's or distrax's."""
    inverse = False
    while type(transform).__name__ in ("Invert", "Inverse"):
        transform = getattr(transform, "bijector", None) or transform._bijector
        inverse = not inverse
    return type(transform).__name__, inverse


def _parameters(transform: Any) -> list[Any]:
    """The traced arrays among the leaves of a transform, or in a function that it is made of."""
    found = [leaf for leaf in jax.tree.leaves(transform) if not _check.is_concrete(leaf)]
    with contextlib.suppress(Exception):
        found = found or jax.make_jaxpr(_forward(transform))(0.0).consts
    return [leaf for leaf in found if not _check.is_concrete(leaf)]


def _image(transform: Any, end: Any) -> list[Any]:
    """Where an end goes that is known, as the transform is; nowhere if that is at infinity."""
    image = _SOMEWHERE
    # It may have a meaning for whole vectors only.
    with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
        image = np.asarray(_forward(transform)(jnp.asarray(end, float)))
    return [] if np.isinf(image).all() else [image]


def _forward(transform: Any) -> Callable[[Any], Any]:
    return getattr(transform, "forward", transform)


# ---- numpyro -------------------------------------------------------------------------------


def _of_numpyro(dist: Any, name: str) -> list[Any]:
    if name == "Delta":
        return [dist.v]
    if name == "TransformedDistribution":
        made = lambda transform: _ends(transform.codomain)
        return _transformed(bounds(dist.base_dist), _parts(dist.transforms), made)
    of_parts = _of_all(_inside(vars(dist)))
    if name in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        return of_parts
    return [*_ends(dist.support), *of_parts]


def _ends(constraint: Any) -> list[Any]:
    """The bounds that a constraint holds; those of the ones without parameters are no leaves."""
    constraint = innermost(constraint)
    if type(constraint).__name__ == "_Real":
        return []
    named = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    found = [*jax.tree.leaves(constraint), *(b for b in named if b is not None)]
    return found or [_SOMEWHERE]


def innermost(constraint: Any) -> Any:
    """That of an element, of a constraint on arrays."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _parts(transforms: Iterable[Any]) -> Iterable[Any]:
    for transform in transforms:
        name = type(transform).__name__
        if name == "ComposeTransform":
            yield from _parts(transform.parts)
        elif name == "IndependentTransform":
            yield from _parts([transform.base_transform])
        else:
            yield transform


# ---- TFP and distrax -----------------------------------------------------------------------

#: What distrax's are derived from, and its class of those of TFP's.
_BASES = ("Distribution", "Jittable", "DistributionFromTFP")
#: The parameters with which a support moves.
_MOVING: Mapping[str, Sequence[str]] = {
    "Uniform": ("low", "high"),
    "CategoricalUniform": ("low", "high"),
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
    "Inflated": ("inflated_loc",),
    "Clipped": ("minimum", "maximum"),
    "ClippedNormal": ("minimum", "maximum"),
    "ClippedLogistic": ("minimum", "maximum"),
    "QuantizedDistribution": ("low", "high"),
    "Quantized": ("low", "high"),
}
#: Those whose support has one end, which is 0.
_FROM_ZERO = {
    *("Exponential", "Gamma", "InverseGamma", "GammaGamma", "Chi", "Chi2", "NoncentralChi2"),
    *("HalfNormal", "LogNormal", "LogLogistic", "InverseGaussian", "Weibull"),
}
#: Those whose support is the interval from 0 to 1.
_INTERVAL = {"Beta", "Kumaraswamy", "LogitNormal", "ContinuousBernoulli"}
#: Those whose support is the whole space.
_UNBOUNDED = {
    *("Normal", "Laplace", "Logistic", "Gumbel", "Cauchy", "StudentT", "JohnsonSU", "SinhArcsinh"),
    *("MultivariateNormalDiag", "MultivariateNormalTriL", "MultivariateNormalTri"),
    *("MultivariateNormalFullCovariance", "MultivariateNormalDiagPlusLowRank"),
    *("MultivariateNormalDiagPlusLowRankCovariance", "MultivariateNormalFromBijector"),
    *("LogStddevNormal", "Moyal", "GeneralizedNormal"),
}
#: Transforms that map the whole space onto itself.
_ONTO = {
    *("Shift", "Scale", "ScalarAffine", "UnconstrainedAffine", "Linear", "DiagLinear"),
    *("TriangularLinear", "LowerUpperTriangularAffine", "ScaleMatvecDiag", "ScaleMatvecTriL"),
    *("ScaleMatvecLU", "MaskedCoupling", "SplitCoupling", "RationalQuadraticSpline", "RealNVP"),
    *("MaskedAutoregressiveFlow", "Identity", "Permute", "FFJORD", "Sinh", "SinhArcsinh"),
}
#: Those that map it onto the positive numbers.
_ONTO_POSITIVE = {"Exp", "Softplus"}


def _of_list(dist: Any, name: str) -> list[Any]:
    if name in ("TransformedDistribution", "Transformed"):
        return _transformed(bounds(dist.distribution), _in_order(dist.bijector), _made)
    if name.startswith("JointDistribution"):
        return _of_all(_of_joint(dist))
    ends = [getattr(dist, parameter) for parameter in _MOVING.get(name, ())]
    ends = [leaf for leaf in jax.tree.leaves(ends) if leaf is not None]
    parts = _inside(getattr(dist, "parameters", None) or vars(dist))
    if ends or parts or name in _UNBOUNDED:
        return [*ends, *_of_all(parts)]
    if name in _INTERVAL:
        return [0.0, 1.0]
    return [0.0 if name in _FROM_ZERO else _SOMEWHERE]


def _of_joint(dist: Any) -> list[Any]:
    """The distributions of the parts, given the draws of those before."""
    x = jax.lax.stop_gradient(draw(jax.random.key(0), dist))
    parts, _ = dist.sample_distributions(seed=jax.random.PRNGKey(0), value=x)
    return _inside(parts)


def _made(transform: Any) -> list[Any]:
    name, _ = _kind(transform)
    if name in _ONTO:
        return []
    return [0.0] if name in _ONTO_POSITIVE else [*_parameters(transform), _SOMEWHERE]


def _in_order(bijector: Any) -> Iterable[Any]:
    """The transforms of a chain, from the one that is applied first."""
    name = type(bijector).__name__
    if name == "Chain":
        for part in reversed(bijector.bijectors):
            yield from _in_order(part)
    elif name == "Block":
        yield from _in_order(getattr(bijector, "bijector", None) or bijector._bijector)
    elif name == "BijectorFromTFP":
        yield from _in_order(bijector._tfp_bijector)
    else:
        yield bijector
