"""Other libraries' distributions that are gradest's own in another class.

None of the libraries is imported: a class is known by its package and its name. A subclass is
another distribution, and a distribution that is not listed here is used as it is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from .. import _check
from .._derivatives.refuse import UnestimatedGradientError
from . import _supports
from .base import Distribution, Shape
from .bernoulli import Bernoulli, RelaxedBernoulli
from .categorical import (
    Categorical,
    ExpRelaxedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
)
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
from .mixture import COMPONENTS, MixtureSameFamily
from .multivariate import LowRankMultivariateNormal, MultivariateNormal
from .vonmises import VonMises
from .weibull import Weibull


@dataclasses.dataclass(frozen=True)
class Twin:
    """What a class of another library is here.

    Attributes:
      kind: gradest's class; None of a wrapper, which is what it wraps.
      convert: makes one from a distribution of the other class, or None where it has no twin.
      dense: whether it makes a matrix that the other class does without.
      wrapped: of a wrapper, the attribute that holds what it wraps.
    """

    kind: type[Distribution] | None
    convert: Callable[[Any], Any]
    dense: bool = False
    wrapped: str = ""


def counterpart(kind: type) -> type:
    """gradest's class of the law of that class, or `kind` itself where there is none."""
    twin = _twin(kind)
    return kind if twin is None or twin.kind is None else twin.kind


def own(dist: Any, *, always: bool = False) -> Any:
    """gradest's own distribution with the law of `dist`, or `dist` where it has none.

    A wrapper that changes neither the draws nor, summed over a joint draw, their density is looked
    through: independent elements, elements drawn several times; and one that masks the density, or
    has that of what is seen of a draw in its place, since an element that is drawn counts in the
    gradient, and as it was drawn.

    Args:
      dist: a distribution of any library.
      always: whether also where the support moves with the parameters (estimators that use scores
        refuse those of gradest's; of another library's it is known which bounds are
        differentiated), and where gradest's own is dearer: for who needs what only that has.

    Raises:
      TypeError: for what is no law of a draw.
    """
    kind = type(dist)
    _check_law(dist, kind)
    twin = _twin(kind)
    if twin is None or (_is_dense(dist) and not always):
        return dist
    converted = twin.convert(dist)
    return dist if converted is None or (_moves(converted) and not always) else converted


def _twin(kind: type) -> Twin | None:
    if kind.__name__ == "DistributionFromTFP":  # distrax's, derived from that of the other library
        kind = next(base for base in kind.__mro__ if library(base) == "tensorflow_probability")
    return TWINS.get((library(kind), kind.__name__))


def _is_dense(dist: Any) -> bool:
    """Whether gradest's own has a matrix that `dist`, or what it wraps, does without."""
    twin = _twin(type(dist))
    if twin is None:
        return False
    return twin.dense or (twin.wrapped != "" and _is_dense(getattr(dist, twin.wrapped)))


def _check_law(dist: Any, kind: type) -> None:
    """Raises for what draws nothing, or by another law than its density's."""
    name = library(kind), kind.__name__
    if name in FACTORS:
        raise TypeError(
            f"dist: expected a distribution, got {_check.name_of(kind)}, which is a term of a "
            "log-density: there is no law to draw from. Add the term to the cost, or give a "
            "distribution with a `sample` of its own."
        )
    if name == ("numpyro", "MixtureGeneral") and dist._support is None:
        first, *others = (component.support for component in dist.component_distributions)
        if not all(_same(first, other) for other in others):
            raise TypeError(
                f"dist: expected components of the same support, got {_check.name_of(kind)} of "
                "components with bounds of their own, whose densities say nothing outside of them "
                "unless the mixture is given its support. Use MixtureGeneral(..., "
                "support=numpyro.distributions.constraints.real)."
            )


def _same(a: Any, b: Any) -> bool:
    """Whether two of numpyro's constraints are known to be the same."""
    a, b = (_supports.innermost(constraint) for constraint in (a, b))
    if a is b:
        return True
    ends = [[_check.known(end) for end in jax.tree.leaves(one)] for one in (a, b)]
    known = all(end is not None for end in (*ends[0], *ends[1]))
    return type(a) is type(b) and known and all(map(np.array_equal, *ends))


def _moves(dist: Any) -> bool:
    """Whether it is one of gradest's whose support moves with its parameters."""
    return isinstance(dist, Distribution) and not dist.fixed_support


def library(kind: type) -> str:
    """The name of the package that a class is from."""
    return kind.__module__.partition(".")[0]


# ---- Classes -------------------------------------------------------------------------------


def _by(kind: type[Distribution], *parameters: str, **renamed: str) -> Twin:
    """Made of attributes, of the same names or renamed."""
    names = dict(zip(parameters, parameters, strict=True)) | renamed
    make = lambda d: kind(**{ours: getattr(d, theirs) for ours, theirs in names.items()})
    return Twin(kind, make)


def _odds(kind: Any, *parameters: str) -> Twin:
    """Made of logits or of probabilities, whichever the distribution holds."""

    def convert(d: Any) -> Distribution:
        others = [getattr(d, name) for name in parameters]
        # distrax computes the one that was not given, with a derivative of NaN at 0 and 1.
        given = lambda name: getattr(d, f"_{name}", getattr(d, name, None))
        logits = given("logits")
        if logits is not None:
            return kind(*others, logits)
        return kind(*others, probs=given("probs"))

    return Twin(kind, convert)


def _binomial(*odds: str) -> Twin:
    """With a number of trials that may be a traced float: TFP's always are floats."""

    def convert(d: Any) -> Distribution:
        n = d.total_count
        if not _check.is_concrete(n) and jnp.issubdtype(n.dtype, jnp.floating):
            n = _whole(n)
        given = {name: value for name in odds if (value := getattr(d, name)) is not None}
        return Binomial(n, **given)

    return Twin(Binomial, convert)


@jax.custom_jvp
def _whole(n: jax.Array) -> jax.Array:
    return jnp.round(n).astype(int)


def _whole_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    (n,), (dn,) = primals, tangents
    if not isinstance(dn, SymbolicZero):
        raise UnestimatedGradientError(
            "total_count: a Binomial has no derivative in its number of trials, which is being "
            "differentiated. Use jax.lax.stop_gradient(total_count)."
        )
    x = _whole(n)
    return x, np.zeros(x.shape, jax.dtypes.float0)


_whole.defjvp(_whole_jvp, symbolic_zeros=True)


def _gamma_poisson(d: Any) -> Distribution:
    """A Gamma rate of mean r p / (1 - p), by its concentration r and its inverse scale."""
    return NegativeBinomial(d.concentration, -jnp.log(jnp.asarray(d.rate)))


def _log_rate(kind: Any, *parameters: str) -> Twin:
    """Made of a rate that may be given by its logarithm, as TFP's are."""

    def convert(d: Any) -> Distribution:
        rate = jnp.exp(jnp.asarray(d.log_rate)) if d.rate is None else d.rate
        return kind(*(getattr(d, name) for name in parameters), rate)

    return Twin(kind, convert)


def _normal_by_operator(d: Any) -> Distribution:
    """A MultivariateNormal of TFP's whose scale is lower triangular."""
    factor = jnp.asarray(d.scale.to_dense())
    return MultivariateNormal(jnp.zeros(factor.shape[-1:]) if d.loc is None else d.loc, factor)


def _normal_by_low_rank(d: Any) -> Distribution:
    """One of TFP's with a covariance of low rank plus a diagonal, not a scale of that form."""
    factor, diagonal = jnp.asarray(d.cov_perturb_factor), jnp.asarray(d.cov_diag_factor)
    loc = jnp.zeros(factor.shape[-2:-1], factor.dtype) if d.loc is None else d.loc
    return LowRankMultivariateNormal(loc, factor, diagonal)


def _normal_by_scale(d: Any) -> Distribution:
    """One of TFP's or distrax's with a scale, not a covariance, of low rank plus a diagonal."""
    if hasattr(d, "scale_u_matrix"):
        eye = jnp.eye(d.event_shape[0], dtype=d.scale_diag.dtype)
        low_rank = d.scale_u_matrix @ jnp.swapaxes(d.scale_v_matrix, -1, -2)
        scale = d.scale_diag[..., None] * eye + low_rank
    else:
        scale = jnp.asarray(d.scale.to_dense())
    loc = jnp.zeros(scale.shape[-1:], scale.dtype) if d.loc is None else d.loc
    # By Q R of its transpose, with the signs that make the diagonal positive: of a covariance half
    # of the digits would be lost.
    r = jnp.linalg.qr(jnp.swapaxes(scale, -1, -2))[1]
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1).astype(r.dtype)
    return MultivariateNormal(loc, jnp.swapaxes(signs[..., None] * r, -1, -2))


def _normal_by_diagonal(d: Any) -> Distribution:
    scale = jnp.asarray(d.scale_diag)
    return MultivariateNormal(d.loc, scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype))


def _normal_by_triangle(d: Any) -> Distribution | None:
    return MultivariateNormal(d.loc, d.scale_tri) if d.is_lower else None


def _normal_by_covariance(d: Any) -> Distribution:
    return MultivariateNormal(d.loc, covariance_matrix=d.covariance_matrix)


def _mixture(weights: str, components: str) -> Twin:
    def convert(d: Any) -> Distribution | None:
        parts = getattr(d, components)
        w, c = own(getattr(d, weights)), own(parts)
        # gradest's mixes each element by itself, and knows some families only.
        mixable = type(c) in COMPONENTS and parts.event_shape == ()
        return MixtureSameFamily(w, c) if mixable and type(w) is Categorical else None

    return Twin(MixtureSameFamily, convert)


# ---- Wrappers ------------------------------------------------------------------------------


def _inside(name: str) -> Twin:
    """The law of the distribution that is the attribute `name`."""
    return Twin(None, lambda d: own(getattr(d, name), always=True), wrapped=name)


def _independent(name: str) -> Twin:
    """Likewise, if it is gradest's: else the wrapper is as good as what is in it."""

    def convert(d: Any) -> Distribution | None:
        inner = own(getattr(d, name), always=True)
        return inner if isinstance(inner, Distribution) else None

    return Twin(None, convert, wrapped=name)


def _expanded(d: Any) -> Distribution | None:
    """numpyro's, whose elements are drawn for each index of the larger shape."""
    return _broadcast(own(d.base_dist, always=True), len(d.base_dist.batch_shape), d.batch_shape)


def _censored(d: Any) -> Any:
    """Its `log_prob` is that of an observation; what it draws is not censored."""
    inner = _broadcast(own(d.base_dist, always=True), len(d.batch_shape), d.batch_shape)
    return d.base_dist.expand(d.batch_shape) if inner is None else inner


def _batch_broadcast(d: Any) -> Distribution | None:
    return _broadcast(
        own(d.distribution, always=True), len(d.distribution.batch_shape), tuple(d.batch_shape)
    )


def _repeated(d: Any) -> Distribution | None:
    """TFP's Sample: the axes that it adds stand after those of the batch."""
    inner, batch = own(d.distribution, always=True), tuple(d.distribution.batch_shape)
    if not isinstance(inner, Distribution):
        return None
    added = tuple(map(int, np.ravel(d.sample_shape)))
    spread = lambda x: x.reshape((*batch, *(1,) * len(added), *x.shape[len(batch) :]))
    return _broadcast(jax.tree.map(spread, inner), len(batch) + len(added), batch + added)


def _broadcast(inner: Any, rank: int, shape: Shape) -> Distribution | None:
    """`inner`, with the first `rank` axes of its leaves broadcast to `shape`."""
    if not isinstance(inner, Distribution):
        return None
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[rank:])), inner)


# ---- The table -----------------------------------------------------------------------------

_LOC_SCALE: Mapping[str, Twin] = {
    kind.__name__: _by(kind, "loc", "scale") for kind in (Normal, Laplace, Logistic, Gumbel)
}

_NUMPYRO: Mapping[str, Twin] = {
    **_LOC_SCALE,
    "BernoulliLogits": _by(Bernoulli, "logits"),
    "BernoulliProbs": _by(Bernoulli, "probs"),
    "CategoricalLogits": _by(Categorical, "logits"),
    "CategoricalProbs": _by(Categorical, "probs"),
    "OrderedLogistic": _by(Categorical, "probs"),
    "Poisson": _by(Poisson, "rate"),
    "GeometricLogits": _by(Geometric, "logits"),
    "GeometricProbs": _by(Geometric, "probs"),
    "BinomialLogits": _binomial("logits"),
    "BinomialProbs": _binomial("probs"),
    "NegativeBinomialLogits": _by(NegativeBinomial, "logits", total_count="concentration"),
    "NegativeBinomialProbs": _by(NegativeBinomial, "probs", total_count="concentration"),
    "NegativeBinomial2": Twin(NegativeBinomial, _gamma_poisson),
    "GammaPoisson": Twin(NegativeBinomial, _gamma_poisson),
    "LogNormal": _by(LogNormal, "loc", "scale"),
    "MultivariateNormal": _by(MultivariateNormal, "loc", "scale_tril"),
    "LowRankMultivariateNormal": _by(LowRankMultivariateNormal, "loc", "cov_factor", "cov_diag"),
    "Exponential": _by(Exponential, "rate"),
    "Uniform": _by(Uniform, "low", "high"),
    "Gamma": _by(Gamma, "concentration", "rate"),
    "Beta": _by(Beta, "concentration1", "concentration0"),
    "Dirichlet": _by(Dirichlet, "concentration"),
    "StudentT": _by(StudentT, "df", "loc", "scale"),
    "Weibull": _by(Weibull, "scale", "concentration"),
    "VonMises": _by(VonMises, "loc", "concentration"),
    "RelaxedBernoulliLogits": _by(RelaxedBernoulli, "temperature", "logits"),
    "MixtureSameFamily": _mixture("mixing_distribution", "component_distribution"),
    "Independent": _independent("base_dist"),
    "MaskedDistribution": _inside("base_dist"),
    "ExpandedDistribution": Twin(None, _expanded, wrapped="base_dist"),
    "LeftCensoredDistribution": Twin(None, _censored),
    "RightCensoredDistribution": Twin(None, _censored),
}

_TFP: Mapping[str, Twin] = {
    **_LOC_SCALE,
    "Bernoulli": _odds(Bernoulli),
    "Categorical": _odds(Categorical),
    "OneHotCategorical": _odds(OneHotCategorical),
    "Poisson": _log_rate(Poisson),
    "Geometric": _odds(Geometric),
    "Binomial": _binomial("logits", "probs"),
    "NegativeBinomial": _odds(NegativeBinomial, "total_count"),
    "LogNormal": _by(LogNormal, "loc", "scale"),
    "MultivariateNormalDiag": Twin(MultivariateNormal, _normal_by_operator, dense=True),
    "MultivariateNormalTriL": Twin(MultivariateNormal, _normal_by_operator),
    "MultivariateNormalFullCovariance": Twin(MultivariateNormal, _normal_by_operator),
    "MultivariateNormalDiagPlusLowRank": Twin(MultivariateNormal, _normal_by_scale, dense=True),
    "MultivariateNormalDiagPlusLowRankCovariance": Twin(
        LowRankMultivariateNormal, _normal_by_low_rank
    ),
    "Exponential": _by(Exponential, "rate"),
    "Uniform": _by(Uniform, "low", "high"),
    "Gamma": _log_rate(Gamma, "concentration"),
    "Beta": _by(Beta, "concentration1", "concentration0"),
    "Dirichlet": _by(Dirichlet, "concentration"),
    "StudentT": _by(StudentT, "df", "loc", "scale"),
    "Weibull": _by(Weibull, "scale", "concentration"),
    "VonMises": _by(VonMises, "loc", "concentration"),
    "RelaxedBernoulli": _odds(RelaxedBernoulli, "temperature"),
    "RelaxedOneHotCategorical": _odds(RelaxedOneHotCategorical, "temperature"),
    "ExpRelaxedOneHotCategorical": _odds(ExpRelaxedOneHotCategorical, "temperature"),
    "MixtureSameFamily": _mixture("mixture_distribution", "components_distribution"),
    "Independent": _independent("distribution"),
    "BatchBroadcast": Twin(None, _batch_broadcast, wrapped="distribution"),
    "Sample": Twin(None, _repeated, wrapped="distribution"),
}

_DISTRAX: Mapping[str, Twin] = {
    **_LOC_SCALE,
    "Bernoulli": _odds(Bernoulli),
    "Categorical": _odds(Categorical),
    **dict.fromkeys(["Softmax", "EpsilonGreedy"], _odds(Categorical)),
    "OneHotCategorical": _odds(OneHotCategorical),
    "LogStddevNormal": _by(Normal, "loc", "scale"),
    "MultivariateNormalDiag": Twin(MultivariateNormal, _normal_by_diagonal, dense=True),
    "MultivariateNormalDiagPlusLowRank": Twin(MultivariateNormal, _normal_by_scale, dense=True),
    "MultivariateNormalTri": Twin(MultivariateNormal, _normal_by_triangle),
    "MultivariateNormalFullCovariance": Twin(MultivariateNormal, _normal_by_covariance),
    "Uniform": _by(Uniform, "low", "high"),
    "Gamma": _by(Gamma, "concentration", "rate"),
    "Beta": _by(Beta, concentration1="alpha", concentration0="beta"),
    "Dirichlet": _by(Dirichlet, "concentration"),
    "VonMises": _by(VonMises, "loc", "concentration"),
    "MixtureSameFamily": _mixture("mixture_distribution", "components_distribution"),
    "Independent": _independent("distribution"),
}

#: By package and name.
TWINS: Mapping[tuple[str, str], Twin] = {
    (package, name): twin
    for package, kinds in (
        ("numpyro", _NUMPYRO),
        ("tensorflow_probability", _TFP),
        ("distrax", _DISTRAX),
    )
    for name, twin in kinds.items()
}

#: What has the interface of a distribution, by package and name, and is none.
FACTORS = {
    ("numpyro", name) for name in ("ImproperUniform", "Unit", "IntervalCensoredDistribution")
}
