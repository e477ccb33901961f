"""What is known of each distribution, once, beside what its class says itself."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from ._capabilities import CAPABILITIES
from .base import Distribution
from .bernoulli import Bernoulli, LogitRelaxedBernoulli, RelaxedBernoulli
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


@dataclasses.dataclass(frozen=True)
class DistributionRecord:
    """The facts of one distribution.

    Attributes:
      kind: its class.
      values: of one draw, in words.
      example: makes a small one, whose draw has more than one element: what claims are measured
        and tested on.
      discrete: whether its values can be counted.
    """

    kind: type[Distribution]
    values: str
    example: Callable[[], Distribution]
    discrete: bool = False

    @property
    def name(self) -> str:
        return self.kind.__name__

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.kind.parameters

    @property
    def reparameterizable(self) -> bool:
        return self.kind.reparameterizable

    @property
    def fixed_support(self) -> bool:
        return self.kind.fixed_support

    @property
    def relaxed(self) -> bool:
        """Whether it is the density of a relaxed discrete draw."""
        return "temperature" in self.parameters and self.scored

    @property
    def scored(self) -> bool:
        """Whether it has a log-probability over a fixed support."""
        return "density" in self.capabilities

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it has of what estimators need."""
        return tuple(name for name, can in CAPABILITIES.items() if can.of(self.kind))


RECORDS = (
    DistributionRecord(
        Bernoulli, "0 or 1", lambda: Bernoulli(jnp.array([0.4, -0.7, 0.9])), discrete=True
    ),
    DistributionRecord(
        Categorical,
        "integers from 0 to K - 1",
        lambda: Categorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])),
        discrete=True,
    ),
    DistributionRecord(
        OneHotCategorical,
        "rows with one 1 among K - 1 zeros",
        lambda: OneHotCategorical(jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])),
        discrete=True,
    ),
    DistributionRecord(
        VocabularyCategorical,
        "integers from 0 to K - 1",
        lambda: VocabularyCategorical(
            jnp.array([[0.9, -0.4], [-0.2, 1.1]]),
            jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]]),
            chunk_size=2,
        ),
        discrete=True,
    ),
    DistributionRecord(
        Poisson, "integers from 0", lambda: Poisson(jnp.array([0.8, 1.7])), discrete=True
    ),
    DistributionRecord(
        Geometric, "integers from 0", lambda: Geometric(jnp.array([0.4, 0.8])), discrete=True
    ),
    DistributionRecord(
        Binomial,
        "integers from 0 to `total_count`",
        lambda: Binomial(jnp.array([3, 2]), jnp.array([0.4, -0.9])),
        discrete=True,
    ),
    DistributionRecord(
        NegativeBinomial,
        "integers from 0",
        lambda: NegativeBinomial(jnp.array([1.8, 2.5]), jnp.array([-0.4, -1.0])),
        discrete=True,
    ),
    DistributionRecord(
        Subset,
        "vectors of k ones among n - k zeros",
        lambda: Subset(jnp.array([0.5, -0.3, 0.8, 0.0, -1.1]), k=3),
        discrete=True,
    ),
    DistributionRecord(
        PlackettLuce,
        "k rows with one 1 each, in columns of their own",
        lambda: PlackettLuce(jnp.array([0.4, -0.6, 1.0]), k=2),
        discrete=True,
    ),
    DistributionRecord(
        LinearChainCRF,
        "rows with one 1 among K - 1 zeros",
        lambda: LinearChainCRF(
            jnp.array([[0.3, -0.2], [1.0, 0.0], [-0.4, 0.7]]), jnp.array([[0.5, -0.3], [0.2, 0.4]])
        ),
        discrete=True,
    ),
    DistributionRecord(
        Normal, "reals", lambda: Normal(jnp.array([0.5, -0.3]), jnp.array([0.7, 1.1]))
    ),
    DistributionRecord(
        LogNormal,
        "positive reals",
        lambda: LogNormal(jnp.array([0.2, -0.3]), jnp.array([0.5, 0.3])),
    ),
    DistributionRecord(
        MultivariateNormal,
        "vectors",
        lambda: MultivariateNormal(jnp.array([0.5, -0.3]), jnp.array([[0.8, 0.0], [0.5, 0.9]])),
    ),
    DistributionRecord(
        LowRankMultivariateNormal,
        "vectors",
        lambda: LowRankMultivariateNormal(
            jnp.array([0.5, -0.3]), jnp.array([[0.6], [-0.5]]), jnp.array([0.5, 0.8])
        ),
    ),
    DistributionRecord(
        Laplace, "reals", lambda: Laplace(jnp.array([0.5, -0.3]), jnp.array([0.7, 0.4]))
    ),
    DistributionRecord(
        Logistic, "reals", lambda: Logistic(jnp.array([0.5, -0.3]), jnp.array([0.5, 0.3]))
    ),
    DistributionRecord(
        Gumbel, "reals", lambda: Gumbel(jnp.array([0.5, -0.3]), jnp.array([0.5, 0.7]))
    ),
    DistributionRecord(Exponential, "reals from 0", lambda: Exponential(jnp.array([1.5, 0.8]))),
    DistributionRecord(
        Uniform,
        "reals from `low` to `high`",
        lambda: Uniform(jnp.array([-0.5, 0.2]), jnp.array([0.7, 1.9])),
    ),
    DistributionRecord(
        Gamma, "positive reals", lambda: Gamma(jnp.array([1.8, 2.6]), jnp.array([2.0, 1.7]))
    ),
    DistributionRecord(
        Beta, "reals between 0 and 1", lambda: Beta(jnp.array([1.7, 2.0]), jnp.array([1.5, 2.8]))
    ),
    DistributionRecord(
        Dirichlet, "points of the simplex", lambda: Dirichlet(jnp.array([1.8, 1.5, 2.6]))
    ),
    DistributionRecord(
        StudentT,
        "reals",
        lambda: StudentT(jnp.array([9.0, 8.0]), jnp.array([0.3, -0.5]), jnp.array([0.5, 0.4])),
    ),
    DistributionRecord(
        Weibull, "positive reals", lambda: Weibull(jnp.array([1.2, 0.7]), jnp.array([1.6, 2.0]))
    ),
    DistributionRecord(
        VonMises,
        "angles from -pi to pi",
        # So concentrated that costs without the period of an angle do not see its ends.
        lambda: VonMises(jnp.array([0.4, -0.1]), jnp.array([5.7, 5.1])),
    ),
    DistributionRecord(
        MixtureSameFamily,
        "those of its components",
        lambda: MixtureSameFamily(
            Categorical(jnp.array([[-0.2, 0.0], [-0.2, 0.6]])),
            Normal(jnp.array([[-0.2, -1.3], [0.8, -0.6]]), jnp.array([[0.6, 1.0], [0.4, 0.7]])),
        ),
    ),
    DistributionRecord(
        RelaxedBernoulli,
        "reals between 0 and 1",
        lambda: RelaxedBernoulli(0.8, jnp.array([-1.0, 1.0])),
    ),
    DistributionRecord(
        LogitRelaxedBernoulli,
        "log-odds of reals between 0 and 1",
        lambda: LogitRelaxedBernoulli(0.8, jnp.array([-1.0, 1.0])),
    ),
    DistributionRecord(
        RelaxedOneHotCategorical,
        "points of the simplex",
        lambda: RelaxedOneHotCategorical(0.8, jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])),
    ),
    DistributionRecord(
        ExpRelaxedOneHotCategorical,
        "logarithms of points of the simplex",
        lambda: ExpRelaxedOneHotCategorical(1.2, jnp.array([[-0.3, 1.5, 0.1], [-0.9, 0.6, 1.1]])),
    ),
    DistributionRecord(
        HardConcrete,
        "reals from 0 to 1, both of which have mass",
        lambda: HardConcrete(jnp.array([-0.4, 1.5])),
    ),
    DistributionRecord(
        RelaxedPermutation,
        "matrices whose columns add up to 1, and rows nearly",
        lambda: RelaxedPermutation(jnp.array([[0.4, -0.6], [1.0, 0.1]]), 0.8),
    ),
)
