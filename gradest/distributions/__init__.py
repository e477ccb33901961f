"""Distributions whose structure the estimators use; every one is a pytree of its parameters."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from .._calls import INSTEAD_OF_LAWS as _INSTEAD
from .._calls import missing_from as _missing_from
from ._divergence import kl_divergence as kl_divergence
from .bernoulli import Bernoulli as Bernoulli
from .bernoulli import LogitRelaxedBernoulli as LogitRelaxedBernoulli
from .bernoulli import RelaxedBernoulli as RelaxedBernoulli
from .categorical import Categorical as Categorical
from .categorical import ExpRelaxedOneHotCategorical as ExpRelaxedOneHotCategorical
from .categorical import OneHotCategorical as OneHotCategorical
from .categorical import RelaxedOneHotCategorical as RelaxedOneHotCategorical
from .chain import LinearChainCRF as LinearChainCRF
from .continuous import Exponential as Exponential
from .continuous import Gumbel as Gumbel
from .continuous import Laplace as Laplace
from .continuous import Logistic as Logistic
from .continuous import LogNormal as LogNormal
from .continuous import Normal as Normal
from .continuous import Uniform as Uniform
from .counts import Binomial as Binomial
from .counts import Geometric as Geometric
from .counts import NegativeBinomial as NegativeBinomial
from .counts import Poisson as Poisson
from .gamma import Beta as Beta
from .gamma import Dirichlet as Dirichlet
from .gamma import Gamma as Gamma
from .gamma import StudentT as StudentT
from .hard_concrete import HardConcrete as HardConcrete
from .mixture import MixtureSameFamily as MixtureSameFamily
from .multivariate import LowRankMultivariateNormal as LowRankMultivariateNormal
from .multivariate import MultivariateNormal as MultivariateNormal
from .plackett_luce import PlackettLuce as PlackettLuce
from .relaxed_permutation import RelaxedPermutation as RelaxedPermutation
from .subset import Subset as Subset
from .vocabulary import VocabularyCategorical as VocabularyCategorical
from .vonmises import VonMises as VonMises
from .weibull import Weibull as Weibull

# Out of sight of checkers of types, to which a module with a `__getattr__` has any name.
if not _TYPE_CHECKING:
    __getattr__ = _missing_from(__name__, _INSTEAD)
