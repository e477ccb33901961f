"""What estimators need of a distribution, by name, and which distributions have it.

An estimator's record names its needs; the distributions that it serves follow from here.
"""

import dataclasses
from collections.abc import Callable

from .base import Distribution
from .bernoulli import Bernoulli
from .categorical import Categorical, OneHotCategorical
from .continuous import (
    Exponential,
    Laplace,
    Logistic,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)
from .counts import Geometric, Poisson
from .gamma import Gamma, StudentT
from .weibull import Weibull

#: Those whose values can be listed.
FINITE = (Bernoulli, Categorical, OneHotCategorical)
#: Those whose draws are the sign or the argmax of continuous noise, and lie between floats.
RELAXABLE = (Bernoulli, OneHotCategorical)
#: Those that a reflection at their centre leaves as they are.
SYMMETRIC = (Normal, MultivariateNormal, Laplace, Logistic, StudentT, Uniform)
#: Those whose derivative is known as a difference of two distributions.
WEAKLY_DIFFERENTIABLE = (
    *(Bernoulli, Categorical, OneHotCategorical, Poisson, Geometric),
    *(Normal, LogNormal, Exponential, Gamma, Weibull),
)


@dataclasses.dataclass(frozen=True)
class Capability:
    """Something that a distribution has or has not.

    Attributes:
      meaning: what it is, in a few words.
      of: whether a class of distributions has it.
    """

    meaning: str
    of: Callable[[type[Distribution]], bool]


CAPABILITIES = {
    "density": Capability(
        "a log-probability, over a support that does not depend on the parameters",
        lambda kind: kind.fixed_support,
    ),
    "pathwise": Capability(
        "draws that are differentiable in the parameters", lambda kind: kind.reparameterizable
    ),
    "reflection": Capability(
        "a centre at which it can be mirrored", lambda kind: kind in SYMMETRIC
    ),
    "weak derivative": Capability(
        "a derivative that is a difference of two distributions",
        lambda kind: kind in WEAKLY_DIFFERENTIABLE,
    ),
    "support": Capability("finitely many values, which can be listed", lambda kind: kind in FINITE),
    "categorical": Capability("logits of a softmax or a sigmoid", lambda kind: kind in FINITE),
    "relaxation": Capability(
        "draws that are a threshold of continuous noise", lambda kind: kind in RELAXABLE
    ),
    "mean": Capability(
        "a mean between its values, differentiable in the parameters",
        lambda kind: kind in RELAXABLE,
    ),
}
