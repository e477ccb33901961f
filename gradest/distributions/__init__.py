"""Distributions whose structure the estimators use; every one is a pytree of its parameters."""

from .bernoulli import Bernoulli as Bernoulli
from .bernoulli import LogitRelaxedBernoulli as LogitRelaxedBernoulli
from .bernoulli import RelaxedBernoulli as RelaxedBernoulli
from .categorical import Categorical as Categorical
from .categorical import ExpRelaxedOneHotCategorical as ExpRelaxedOneHotCategorical
from .categorical import OneHotCategorical as OneHotCategorical
from .categorical import RelaxedOneHotCategorical as RelaxedOneHotCategorical
from .continuous import Exponential as Exponential
from .continuous import Gumbel as Gumbel
from .continuous import Laplace as Laplace
from .continuous import Logistic as Logistic
from .continuous import LogNormal as LogNormal
from .continuous import MultivariateNormal as MultivariateNormal
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
from .mixture import MixtureSameFamily as MixtureSameFamily
from .vonmises import VonMises as VonMises
from .weibull import Weibull as Weibull
