"""The table that drives the tests of estimators: one row for each.

An estimator added to gradest gets a row here and is then tested with every distribution it
supports, with costs of every kind, in every form and under every transform, against an exact
result, as are its broken variants, which must fail.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradest as ge
from gradest import distributions as dists
from gradest import records

from . import broken as broken
from . import oracles as oracles
from .broken import Broken
from .statistical import MAX_Z as MAX_Z
from .statistical import NoPower as NoPower
from .statistical import assert_unbiased as assert_unbiased
from .statistical import assert_variance as assert_variance
from .statistical import keys as keys
from .statistical import optimized as optimized

# ---- Distributions: more than one element in each ------------------------------------------

DISTRIBUTIONS: dict[str, Callable[[], Any]] = {
    "Bernoulli": lambda: dists.Bernoulli(jnp.array([0.4, -0.7, 0.9])),
    "OneHotCategorical": lambda: dists.OneHotCategorical(
        jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])
    ),
    "Categorical": lambda: dists.Categorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])),
    "Normal": lambda: dists.Normal(jnp.array([0.5, -0.3]), jnp.array([0.7, 1.1])),
    "LogNormal": lambda: dists.LogNormal(jnp.array([0.2, -0.3]), jnp.array([0.5, 0.3])),
    "MultivariateNormal": lambda: dists.MultivariateNormal(
        jnp.array([0.5, -0.3]), jnp.array([[0.8, 0.0], [0.5, 0.9]])
    ),
    "LowRankMultivariateNormal": lambda: dists.LowRankMultivariateNormal(
        jnp.array([0.5, -0.3]), jnp.array([[0.6], [-0.5]]), jnp.array([0.5, 0.8])
    ),
    "Laplace": lambda: dists.Laplace(jnp.array([0.5, -0.3]), jnp.array([0.7, 0.4])),
    "Logistic": lambda: dists.Logistic(jnp.array([0.5, -0.3]), jnp.array([0.5, 0.3])),
    "Gumbel": lambda: dists.Gumbel(jnp.array([0.5, -0.3]), jnp.array([0.5, 0.7])),
    "Exponential": lambda: dists.Exponential(jnp.array([1.5, 0.8])),
    "Uniform": lambda: dists.Uniform(jnp.array([-0.5, 0.2]), jnp.array([0.7, 1.9])),
    "RelaxedBernoulli": lambda: dists.RelaxedBernoulli(0.8, jnp.array([-1.0, 1.0])),
    "LogitRelaxedBernoulli": lambda: dists.LogitRelaxedBernoulli(2.0, jnp.array([4.0, -4.0])),
    "RelaxedOneHotCategorical": lambda: dists.RelaxedOneHotCategorical(
        0.8, jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])
    ),
    "ExpRelaxedOneHotCategorical": lambda: dists.ExpRelaxedOneHotCategorical(
        1.2, jnp.array([[-0.3, 1.5, 0.1], [-0.9, 0.6, 1.1]])
    ),
    "HardConcrete": lambda: dists.HardConcrete(jnp.array([-0.4, 1.5])),
    "RelaxedPermutation": lambda: dists.RelaxedPermutation(
        jnp.array([[0.4, -0.6], [1.0, 0.1]]), 0.8
    ),
    "Gamma": lambda: dists.Gamma(jnp.array([1.8, 2.6]), jnp.array([2.0, 1.7])),
    "Beta": lambda: dists.Beta(jnp.array([1.7, 2.0]), jnp.array([1.5, 2.8])),
    "Dirichlet": lambda: dists.Dirichlet(jnp.array([1.8, 1.5, 2.6])),
    "StudentT": lambda: dists.StudentT(
        jnp.array([9.0, 8.0]), jnp.array([0.3, -0.5]), jnp.array([0.5, 0.4])
    ),
    # So concentrated that the costs, which do not have the period of an angle, need not have it.
    "VonMises": lambda: dists.VonMises(jnp.array([0.4, -0.1]), jnp.array([5.7, 5.1])),
    "Weibull": lambda: dists.Weibull(jnp.array([1.2, 0.7]), jnp.array([1.6, 2.0])),
    "MixtureSameFamily": lambda: dists.MixtureSameFamily(
        dists.Categorical(jnp.array([[-0.2, 0.0], [-0.2, 0.6]])),
        dists.Normal(jnp.array([[-0.2, -1.3], [0.8, -0.6]]), jnp.array([[0.6, 1.0], [0.4, 0.7]])),
    ),
    "Subset": lambda: dists.Subset(jnp.array([0.5, -0.3, 0.8, 0.0, -1.1]), k=3),
    "PlackettLuce": lambda: dists.PlackettLuce(jnp.array([0.4, -0.6, 1.0]), k=2),
    "LinearChainCRF": lambda: dists.LinearChainCRF(
        jnp.array([[0.3, -0.2], [1.0, 0.0], [-0.4, 0.7]]), jnp.array([[0.5, -0.3], [0.2, 0.4]])
    ),
    "VocabularyCategorical": lambda: dists.VocabularyCategorical(
        jnp.array([[0.9, -0.4], [-0.2, 1.1]]),
        jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]]),
        chunk_size=2,
    ),
    "Poisson": lambda: dists.Poisson(jnp.array([0.8, 1.7])),
    "Geometric": lambda: dists.Geometric(jnp.array([0.4, 0.8])),
    "Binomial": lambda: dists.Binomial(jnp.array([3, 2]), jnp.array([0.4, -0.9])),
    "NegativeBinomial": lambda: dists.NegativeBinomial(
        jnp.array([1.8, 2.5]), jnp.array([-0.4, -1.0])
    ),
}


def _of(has: Callable[[records.DistributionRecord], bool]) -> tuple[str, ...]:
    names = (name for name in DISTRIBUTIONS if name not in STRUCTURED)
    return tuple(name for name in names if has(records.DISTRIBUTIONS[name]))


# Not of independent elements, or parameters: sampled in files of their own, here traced.
STRUCTURED = ("Subset", "PlackettLuce", "LinearChainCRF", "VocabularyCategorical")
FINITE = _of(lambda record: "support" in record.capabilities)
COUNTS = _of(lambda record: record.discrete and "support" not in record.capabilities)
RELAXABLE = _of(lambda record: "relaxation" in record.capabilities)
REPARAMETERIZABLE = _of(lambda record: record.reparameterizable)
# Whose draws take seconds to compile, and which have tests of their own in every type.
IMPLICIT = ("Gamma", "Beta", "Dirichlet", "StudentT", "VonMises", "MixtureSameFamily")
# Whose draws are arithmetic on those of another distribution in the table.
COMPOSED = ("Beta", "Dirichlet", "StudentT", "NegativeBinomial")
# The score function takes the derivative under an integral whose bounds must not move.
FIXED_SUPPORT = _of(lambda record: record.scored)


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.value_and_grad` in the floats of the first argument: integers have no derivative."""

    def run(params: Any, *args: Any) -> Any:
        value, gradient = jax.value_and_grad(loss, allow_int=True)(params, *args)
        return value, jax.tree.map(lambda p, g: g if _is_float(p) else None, params, gradient)

    return run


def grad(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: value_and_grad(loss)(*args)[1]


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


# ---- Costs: nonlinear, not separable, with parameters w of their own -----------------------


def bowl(w: jax.Array, x: jax.Array) -> jax.Array:
    x = x.reshape(-1).astype(w.dtype)
    return (jnp.sum(w * x) - 0.8) ** 2 + w[0] * x[0] * x[-1]


def wave(w: jax.Array, x: jax.Array) -> jax.Array:
    x = x.reshape(-1).astype(w.dtype)
    return jnp.tanh(jnp.sum(w * x)) + jnp.cos(x[0] - 2.0 * x[-1] + w[-1]) + 0.4


def steps(w: jax.Array, x: jax.Array) -> jax.Array:
    """Flat in x but for a jump."""
    return jnp.where(jump(x) > 1.15, 1.0 + w[0], w[-1] ** 2)


def jump(x: jax.Array) -> jax.Array:
    x = x.reshape(-1)
    return jnp.sum(x * _JUMP[: x.size].astype(x.dtype))


_JUMP = np.array([0.7, -0.9, 0.8, 0.4, 0.9, -0.6])


def expected_steps(dist: Any, w: jax.Array) -> jax.Array:
    """E[steps(w, x)]; for Normal x the probability of the jump is known in closed form."""
    if not isinstance(dist, dists.Normal):
        return oracles.expectation(dist, lambda x: steps(w, x))
    deviation = jnp.linalg.norm(dist.scale * _JUMP[: dist.scale.size].astype(dist.scale.dtype))
    above = jax.scipy.stats.norm.cdf((jump(dist.loc) - 1.15) / deviation)
    return above * (1.0 + w[0]) + (1 - above) * w[-1] ** 2


COSTS = {"bowl": bowl, "wave": wave}


def weights(dist: Any) -> jax.Array:
    """The cost's own parameters, for draws of `dist`."""
    return jnp.array([0.9, -0.6, 0.5, 0.7, -0.8, 0.4])[: math.prod(dist.shape)]


# ---- The rows ------------------------------------------------------------------------------


class Variant(NamedTuple):
    """An estimator with options, and what its gradient is on average: that of the oracle."""

    sampler: Callable[[], ge.Sampler]
    oracle: Callable[..., jax.Array] = oracles.expectation


@dataclasses.dataclass(frozen=True)
class Case:
    """An estimator, as the tests see it; what is known of it is in its record.

    Attributes:
      estimator: the public function.
      variants: by a name for their options. The first is tested with every distribution, the
        others with one of each kind.
      broken: wrong implementations by what is wrong, each a function of a pytest.MonkeyPatch.
      matrix: names of those distributions that it is sampled with, if not all but the structured
        ones: for a formula that is the same for every distribution. The others are traced.
    """

    estimator: Callable[..., ge.Sampler]
    variants: Mapping[str, Variant]
    broken: Mapping[str, Broken]
    matrix: tuple[str, ...] | None = None

    @property
    def record(self) -> records.Record:
        return records.ESTIMATORS[self.estimator.__name__]

    @property
    def sampled(self) -> tuple[str, ...]:
        """Names of the distributions that it is sampled with."""
        return self.matrix or tuple(n for n in self.record.distributions if n not in STRUCTURED)


_rebar = lambda **options: Variant(lambda: ge.rebar(**options))
_relaxed = lambda make, oracle, **options: Variant(
    lambda: make(**options), functools.partial(oracle, **options)
)


def surrogate(w: jax.Array, x: jax.Array) -> jax.Array:
    """Not much like any of the costs."""
    return jnp.tanh(w * jnp.sum(x)) + 0.02 * jnp.sum(x**2)


_relax = lambda **options: Variant(lambda: ge.relax(surrogate, 0.8, **options))

_bound = lambda make, num, **options: Variant(
    lambda: make(num, **options), functools.partial(oracles.bound, num_samples=num)
)

_ALL = (
    Case(
        ge.antithetic,
        variants={"": Variant(ge.antithetic)},
        matrix=("Normal", "MultivariateNormal", "Uniform"),
        broken={"scaled": broken.scaled(ge.antithetic)},
    ),
    Case(
        ge.arm,
        variants={"": Variant(ge.arm)},
        broken={"scaled": broken.scaled(ge.arm)},
    ),
    Case(
        ge.delta_method,
        # Its variance is high for distributions as wide as this one.
        variants={"16": Variant(lambda: ge.delta_method(num_samples=16))},
        broken={"scaled": broken.scaled(lambda: ge.delta_method(num_samples=16))},
    ),
    Case(
        ge.disarm,
        variants={"": Variant(ge.disarm)},
        broken={"scaled": broken.scaled(ge.disarm)},
    ),
    Case(
        ge.dreg,
        variants={"1": _bound(ge.dreg, 1), "2": _bound(ge.dreg, 2)},
        matrix=("Normal", "Exponential", "MultivariateNormal", "Gamma"),
        broken={
            "scaled": broken.scaled(lambda: ge.dreg(2)),
            "without the score": broken.without_scores(lambda: ge.dreg(2)),
        },
    ),
    Case(
        ge.enumeration,
        variants={"": Variant(ge.enumeration)},
        broken={"scaled": broken.scaled(ge.enumeration)},
    ),
    Case(
        ge.gaussian_smoothing,
        variants={
            "4": Variant(lambda: ge.gaussian_smoothing(4)),
            "orthogonal": Variant(lambda: ge.gaussian_smoothing(3, orthogonal=True)),
        },
        broken={
            "scaled": broken.scaled(lambda: ge.gaussian_smoothing(4)),
            "its own block in the baseline": broken.own_block_in_baseline(
                lambda: ge.gaussian_smoothing(2, orthogonal=True)
            ),
        },
    ),
    Case(ge.gumbel_max, variants={"": Variant(ge.gumbel_max)}, broken={}),
    Case(
        ge.gumbel_rao,
        variants={
            f"temperature={t}": Variant(
                functools.partial(ge.gumbel_rao, t, num_samples=4),
                functools.partial(oracles.st_gumbel_softmax, temperature=t),
            )
            for t in (0.5, 1.5)
        },
        broken={
            "scaled": broken.scaled(lambda: ge.gumbel_rao(0.5)),
            "z not given the draw": broken.noise_not_given_the_draw(lambda: ge.gumbel_rao(0.5)),
        },
    ),
    Case(
        ge.gumbel_softmax,
        variants={
            f"temperature={t}": _relaxed(ge.gumbel_softmax, oracles.gumbel_softmax, temperature=t)
            for t in (0.5, 1.5)
        },
        broken={"scaled": broken.scaled(lambda: ge.gumbel_softmax(0.5))},
    ),
    Case(
        ge.measure_valued,
        variants={
            "": Variant(ge.measure_valued),
            "independent": Variant(lambda: ge.measure_valued(coupled=False)),
        },
        broken={
            "scaled": broken.scaled(ge.measure_valued),
            "the others not as drawn": broken.others_not_as_drawn(ge.measure_valued),
        },
    ),
    Case(
        ge.muprop,
        variants={"": Variant(ge.muprop), "baseline": Variant(lambda: ge.muprop(baseline=0.3))},
        broken={
            "scaled": broken.scaled(ge.muprop),
            "mean not added back": broken.mean_not_added_back(ge.muprop),
        },
    ),
    Case(
        ge.rebar,
        variants={
            "": _rebar(),
            "independent": _rebar(coupled=False, temperature=1.5, eta=0.7),
            "muprop": _rebar(relaxation="muprop", baseline=0.3),
            "muprop-independent": _rebar(relaxation="muprop", coupled=False),
            "nested": _rebar(nested=True, temperature=0.2, eta=1.3),
        },
        broken={
            "scaled": broken.scaled(ge.rebar),
            "no reparameterization of the conditional draw": broken.conditional_not_differentiated(
                ge.rebar
            ),
            "z' not given the draw": broken.noise_not_given_the_draw(
                lambda: ge.rebar(coupled=False)
            ),
        },
    ),
    Case(
        ge.reinmax,
        variants={
            f"temperature={t}": _relaxed(ge.reinmax, oracles.reinmax, temperature=t)
            for t in (1.0, 1.5)
        },
        broken={"scaled": broken.scaled(ge.reinmax)},
    ),
    Case(
        ge.relax,
        variants={"": _relax(), "independent": _relax(coupled=False, temperature=1.5, eta=0.7)},
        matrix=(*RELAXABLE, "Normal", "MultivariateNormal", "Exponential"),
        broken={
            "scaled": broken.scaled(lambda: ge.relax(surrogate, 0.8)),
            "no reparameterization of the conditional draw": broken.conditional_not_differentiated(
                lambda: ge.relax(surrogate, 0.8)
            ),
        },
    ),
    Case(
        ge.reparameterize,
        variants={
            "": Variant(ge.reparameterize),
            "sticking_the_landing": Variant(lambda: ge.reparameterize(sticking_the_landing=True)),
        },
        broken={"scaled": broken.scaled(ge.reparameterize)},
    ),
    Case(
        ge.score_function,
        variants={
            "": Variant(ge.score_function),
            "samples": Variant(lambda: ge.score_function(num_samples=3)),
            "constant": Variant(lambda: ge.score_function(baseline=0.6)),
            "leave_one_out": Variant(
                lambda: ge.score_function(num_samples=4, baseline="leave_one_out")
            ),
        },
        matrix=tuple(n for n in FIXED_SUPPORT if n not in (*IMPLICIT[1:], "NegativeBinomial")),
        broken={
            "scaled": broken.scaled(ge.score_function),
            "own cost in the baseline": broken.own_cost_in_baseline,
        },
    ),
    Case(
        ge.st_gumbel_softmax,
        variants={
            f"temperature={t}": _relaxed(
                ge.st_gumbel_softmax, oracles.st_gumbel_softmax, temperature=t
            )
            for t in (0.5, 1.5)
        },
        broken={"scaled": broken.scaled(lambda: ge.st_gumbel_softmax(0.5))},
    ),
    Case(
        ge.straight_through,
        variants={
            f"slope={s}": _relaxed(ge.straight_through, oracles.straight_through, slope=s)
            for s in (1.0, 1.7)
        },
        broken={"scaled": broken.scaled(ge.straight_through)},
    ),
    Case(
        ge.stratified,
        variants={str(n): Variant(functools.partial(ge.stratified, n)) for n in (4, 3)},
        # The quantile functions of the others have a test of their own.
        matrix=("Bernoulli", "OneHotCategorical", "Categorical", "Normal"),
        broken={
            "scaled": broken.scaled(lambda: ge.stratified(4)),
            "as if drawn independently": broken.as_if_drawn_independently(lambda: ge.stratified(4)),
        },
    ),
    Case(
        ge.sum_and_sample,
        variants={
            "": Variant(ge.sum_and_sample),
            "2, 3": Variant(lambda: ge.sum_and_sample(num_summed=2, num_samples=3)),
        },
        broken={"scaled": broken.scaled(ge.sum_and_sample)},
    ),
    Case(
        ge.unordered_set,
        variants={str(k): Variant(functools.partial(ge.unordered_set, k)) for k in (2, 3)},
        broken={
            "scaled": broken.scaled(lambda: ge.unordered_set(2)),
            "as if drawn with replacement": broken.as_if_drawn_with_replacement(
                lambda: ge.unordered_set(2)
            ),
        },
    ),
    Case(
        ge.vimco,
        variants={
            "2": _bound(ge.vimco, 2),
            "2, arithmetic": _bound(ge.vimco, 2, mean="arithmetic"),
        },
        matrix=(*FINITE, "Normal"),
        broken={
            "scaled": broken.scaled(lambda: ge.vimco(2)),
            "own weight in the baseline": broken.own_weight_in_baseline,
        },
    ),
)
CASES = {case.record.name: case for case in _ALL}

KINDS = ("Bernoulli", "OneHotCategorical", "Normal")


class Cell(NamedTuple):
    """One square of the matrix: an estimator with options, and a distribution."""

    estimator: str
    variant: str
    distribution: str

    @property
    def row(self) -> Case:
        return CASES[self.estimator]

    def sampler(self) -> ge.Sampler:
        return self.row.variants[self.variant].sampler()

    def dist(self) -> Any:
        return DISTRIBUTIONS[self.distribution]()

    def oracle(self, dist: Any, cost: Callable[[Any], jax.Array]) -> jax.Array:
        return self.row.variants[self.variant].oracle(dist, cost)

    def __str__(self) -> str:
        return "-".join(part for part in self if part)


def cells() -> Iterator[Cell]:
    for estimator, row in CASES.items():
        if not row.record.estimates:
            continue
        for i, variant in enumerate(row.variants):
            for distribution in row.sampled:
                if i == 0 or distribution in KINDS:
                    yield Cell(estimator, variant, distribution)
