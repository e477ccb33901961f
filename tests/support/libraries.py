"""Distributions of other libraries, one for each class that gradest knows as one of its own.

Each is a function of the library's module of distributions, so that nothing is imported here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .statistical import assert_unbiased as assert_unbiased
from .statistical import keys as keys

#: How each library is imported; its distributions are there, or in `distributions` of it.
MODULES = {
    "numpyro": "numpyro.distributions",
    "tensorflow_probability": "tensorflow_probability.substrates.jax",
    "distrax": "distrax",
}

PAIR, SCALES = jnp.array([0.4, -0.7]), jnp.array([1.3, 0.8])
PROBS = jnp.array([0.35, 0.8])
LOGITS = jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])
ROWS = jax.nn.softmax(LOGITS, axis=-1)
FACTOR = jnp.array([[0.8, 0.0], [0.5, 0.9]])
COVARIANCE = FACTOR @ FACTOR.T

Example = Callable[[Any], Any]


def _loc_scale(name: str) -> Example:
    return lambda d: getattr(d, name)(PAIR, SCALES)


_LOC_SCALE = {name: _loc_scale(name) for name in ("Normal", "Laplace", "Logistic", "Gumbel")}

EXAMPLES: Mapping[str, Mapping[str, Example | list[Example]]] = {
    "numpyro": {
        **_LOC_SCALE,
        "BernoulliLogits": lambda d: d.Bernoulli(logits=PAIR),
        "BernoulliProbs": lambda d: d.Bernoulli(probs=PROBS),
        "CategoricalLogits": lambda d: d.Categorical(logits=LOGITS),
        "CategoricalProbs": lambda d: d.Categorical(probs=ROWS),
        "OrderedLogistic": lambda d: d.OrderedLogistic(PAIR, jnp.array([-0.3, 0.5])),
        "Poisson": lambda d: d.Poisson(SCALES),
        "GeometricLogits": lambda d: d.Geometric(logits=PAIR),
        "GeometricProbs": lambda d: d.Geometric(probs=PROBS),
        "BinomialLogits": lambda d: d.Binomial(5, logits=PAIR),
        "BinomialProbs": lambda d: d.Binomial(jnp.array([5, 3]), probs=PROBS),
        "NegativeBinomialLogits": lambda d: d.NegativeBinomial(2.5, logits=PAIR),
        "NegativeBinomialProbs": lambda d: d.NegativeBinomial(SCALES, probs=PROBS),
        "NegativeBinomial2": lambda d: d.NegativeBinomial2(PROBS, SCALES),
        "GammaPoisson": lambda d: d.GammaPoisson(SCALES, PROBS),
        "LogNormal": lambda d: d.LogNormal(PAIR, SCALES),
        "MultivariateNormal": [
            lambda d: d.MultivariateNormal(PAIR, scale_tril=FACTOR),
            lambda d: d.MultivariateNormal(PAIR, covariance_matrix=COVARIANCE),
            lambda d: d.MultivariateNormal(PAIR, precision_matrix=COVARIANCE),
        ],
        "LowRankMultivariateNormal": lambda d: d.LowRankMultivariateNormal(
            PAIR, FACTOR[:, 1:] - 0.3, SCALES
        ),
        "Exponential": lambda d: d.Exponential(SCALES),
        "Uniform": lambda d: d.Uniform(PAIR, 1.5),
        "Gamma": lambda d: d.Gamma(SCALES, 1.7),
        "Beta": lambda d: d.Beta(SCALES, 1.7),
        "Dirichlet": lambda d: d.Dirichlet(SCALES),
        "StudentT": lambda d: d.StudentT(3.0, PAIR, SCALES),
        "Weibull": lambda d: d.Weibull(SCALES, 1.7),
        "VonMises": lambda d: d.VonMises(PAIR, SCALES),
        "RelaxedBernoulliLogits": lambda d: d.RelaxedBernoulliLogits(0.7, PAIR),
        "MixtureSameFamily": lambda d: d.MixtureSameFamily(
            d.Categorical(logits=LOGITS), d.Normal(ROWS, 1.3)
        ),
        "Independent": lambda d: d.Normal(PAIR, SCALES).to_event(1),
        "MaskedDistribution": lambda d: d.Bernoulli(logits=PAIR).mask(jnp.array([True, True])),
        "ExpandedDistribution": [
            lambda d: d.Bernoulli(logits=PAIR).expand([3, 2]),
            lambda d: d.Categorical(logits=LOGITS[0]).expand([4]),
            lambda d: d.Normal(jnp.zeros((3, 1)), 1.0).expand([2, 3, 4]),
        ],
        # Of what was seen as it was drawn the densities are the same.
        "LeftCensoredDistribution": lambda d: d.LeftCensoredDistribution(
            d.Normal(0.3, 1.3), jnp.zeros(2)
        ),
        "RightCensoredDistribution": lambda d: d.RightCensoredDistribution(
            d.Normal(PAIR, SCALES), jnp.zeros(2)
        ),
    },
    "tensorflow_probability": {
        **_LOC_SCALE,
        "Bernoulli": [lambda d: d.Bernoulli(logits=PAIR), lambda d: d.Bernoulli(probs=PROBS)],
        "Categorical": [
            lambda d: d.Categorical(logits=LOGITS),
            lambda d: d.Categorical(probs=ROWS),
        ],
        "OneHotCategorical": [
            lambda d: d.OneHotCategorical(logits=LOGITS),
            lambda d: d.OneHotCategorical(probs=ROWS),
        ],
        "Poisson": [lambda d: d.Poisson(SCALES), lambda d: d.Poisson(log_rate=PAIR)],
        "Geometric": [lambda d: d.Geometric(logits=PAIR), lambda d: d.Geometric(probs=PROBS)],
        "Binomial": [
            lambda d: d.Binomial(5.0, logits=PAIR),
            lambda d: d.Binomial(jnp.array([5.0, 3.0]), probs=PROBS),
        ],
        "NegativeBinomial": [
            lambda d: d.NegativeBinomial(2.5, logits=PAIR),
            lambda d: d.NegativeBinomial(SCALES, probs=PROBS),
        ],
        "LogNormal": lambda d: d.LogNormal(PAIR, SCALES),
        "MultivariateNormalDiag": [
            lambda d: d.MultivariateNormalDiag(PAIR, SCALES),
            lambda d: d.MultivariateNormalDiag(scale_diag=SCALES),
        ],
        "MultivariateNormalDiagPlusLowRank": [
            lambda d: d.MultivariateNormalDiagPlusLowRank(
                PAIR, SCALES, scale_perturb_factor=FACTOR[:, :1]
            ),
            lambda d: d.MultivariateNormalDiagPlusLowRank(
                scale_diag=SCALES, scale_perturb_factor=FACTOR[:, :1]
            ),
        ],
        "MultivariateNormalTriL": lambda d: d.MultivariateNormalTriL(PAIR, FACTOR),
        "MultivariateNormalFullCovariance": lambda d: d.MultivariateNormalFullCovariance(
            PAIR, COVARIANCE
        ),
        "MultivariateNormalDiagPlusLowRankCovariance": [
            lambda d: d.MultivariateNormalDiagPlusLowRankCovariance(PAIR, SCALES, FACTOR[:, :1]),
            lambda d: d.MultivariateNormalDiagPlusLowRankCovariance(
                cov_diag_factor=SCALES, cov_perturb_factor=FACTOR[:, :1]
            ),
        ],
        "Exponential": lambda d: d.Exponential(SCALES),
        "Uniform": lambda d: d.Uniform(PAIR, 1.5),
        "Gamma": [lambda d: d.Gamma(SCALES, 1.7), lambda d: d.Gamma(SCALES, log_rate=0.7)],
        "Beta": lambda d: d.Beta(SCALES, 1.7),
        "Dirichlet": lambda d: d.Dirichlet(SCALES),
        "StudentT": lambda d: d.StudentT(3.0, PAIR, SCALES),
        "Weibull": lambda d: d.Weibull(SCALES, 1.7),
        "VonMises": lambda d: d.VonMises(PAIR, SCALES),
        "RelaxedBernoulli": lambda d: d.RelaxedBernoulli(0.7, logits=PAIR),
        "RelaxedOneHotCategorical": lambda d: d.RelaxedOneHotCategorical(0.7, logits=LOGITS),
        "ExpRelaxedOneHotCategorical": lambda d: d.ExpRelaxedOneHotCategorical(0.7, probs=ROWS),
        "MixtureSameFamily": lambda d: d.MixtureSameFamily(
            d.Categorical(logits=LOGITS), d.Normal(ROWS, 1.3)
        ),
        "Independent": lambda d: d.Independent(d.Normal(PAIR, SCALES), 1),
        "BatchBroadcast": lambda d: d.BatchBroadcast(d.Normal(PAIR, SCALES), with_shape=[3, 2]),
        "Sample": [
            lambda d: d.Sample(d.Normal(PAIR, SCALES), [3, 2]),
            lambda d: d.Sample(d.Bernoulli(logits=PAIR), 3),
        ],
    },
    "distrax": {
        **_LOC_SCALE,
        "Bernoulli": [lambda d: d.Bernoulli(logits=PAIR), lambda d: d.Bernoulli(probs=PROBS)],
        "Categorical": [
            lambda d: d.Categorical(logits=LOGITS),
            lambda d: d.Categorical(probs=ROWS),
        ],
        "Softmax": lambda d: d.Softmax(LOGITS, 2.0),
        "EpsilonGreedy": lambda d: d.EpsilonGreedy(LOGITS, 0.3),
        "OneHotCategorical": [
            lambda d: d.OneHotCategorical(logits=LOGITS),
            lambda d: d.OneHotCategorical(probs=ROWS),
        ],
        "LogStddevNormal": lambda d: d.LogStddevNormal(PAIR, SCALES),
        "MultivariateNormalDiag": lambda d: d.MultivariateNormalDiag(PAIR, SCALES),
        "MultivariateNormalDiagPlusLowRank": lambda d: d.MultivariateNormalDiagPlusLowRank(
            PAIR, SCALES, FACTOR[:, :1], -FACTOR[:, :1] / 4
        ),
        "MultivariateNormalTri": lambda d: d.MultivariateNormalTri(PAIR, FACTOR),
        "MultivariateNormalFullCovariance": lambda d: d.MultivariateNormalFullCovariance(
            PAIR, COVARIANCE
        ),
        "Uniform": lambda d: d.Uniform(PAIR, jnp.array([1.5, 2.0])),
        "Gamma": lambda d: d.Gamma(SCALES, jnp.array([1.7, 0.6])),
        "Beta": lambda d: d.Beta(SCALES, jnp.array([1.7, 0.6])),
        "Dirichlet": lambda d: d.Dirichlet(SCALES),
        "VonMises": lambda d: d.VonMises(PAIR, SCALES),
        "MixtureSameFamily": lambda d: d.MixtureSameFamily(
            d.Categorical(logits=LOGITS), d.Normal(ROWS, jnp.ones((2, 3)))
        ),
        "Independent": lambda d: d.Independent(d.Normal(PAIR, SCALES), 1),
    },
}
