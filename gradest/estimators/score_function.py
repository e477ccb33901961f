"""The score-function estimator (REINFORCE, likelihood ratio) and its baselines."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _random
from .._gradient import attach_variance_gradient, magic
from .._sampler import Cost, Sampler
from ..distributions import base


def score_function(
    *, num_samples: int = 1, baseline: Literal["leave_one_out"] | ArrayLike | None = None
) -> Sampler:
    r"""REINFORCE: unbiased for any distribution with a log-probability and any cost.

    .. math:: \nabla_\theta E[f(x)] = E[(f(x) - b) \nabla_\theta \log p_\theta(x)]

    Written as the DiCE expression c * magic(l) + b * (1 - magic(l)), with magic(l) =
    exp(l - stop_gradient(l)) and l the log-probability of the draw, so that derivatives of every
    order are unbiased, mixed ones with the cost's parameters included.

    Assumptions: the support does not depend on the parameters. The cost need not be
    differentiable in the draw.
    Bias: none, with any of the baselines.
    Variance: with s = d log p, E[(f - b)^2 s^2] - g^2 for one sample; that of leave-one-out with
    K samples is E[(f - E f)^2 s^2] / K - (K - 2) g^2 / (K (K - 1)) + Var f Var s / (K (K - 1)).
    Cost evaluations per gradient: `num_samples`.

    Args:
      num_samples: how many draws to average over. In a loss under `gradest.expectation` each has
        draws of its own at the later sites.
      baseline: what is subtracted from the cost.
        None: nothing.
        "leave_one_out": for each sample the mean cost of the others; `num_samples` >= 2.
        A scalar: a constant, a running mean or a network's output, which must not depend on the
        draw. Its cotangent is that of (cost - baseline)^2 / 2 (times the magnitude of the
        loss's own), so that it is trained with the rest of the parameters: a step of SGD with
        rate r on a scalar baseline is the running mean b + r (cost - b).

    Returns:
      A cost-based sampler for any distribution.

    Raises:
      ValueError: for leave-one-out with fewer than two samples, or a baseline that is neither
        finite nor known.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> sampler = ge.score_function(num_samples=1000, baseline="leave_one_out")
      >>> def loss(logit):
      ...     return sampler.expect(jax.random.key(0), Bernoulli(logit), lambda b: (b - 0.45) ** 2)
      >>> bool(abs(jax.grad(loss)(0.0) - 0.025) < 0.01)
      True

    Reference:
      Williams 1992, "Simple Statistical Gradient-Following Algorithms", eq. 11.
      Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", eq. 4.
      Foerster et al. 2018, "DiCE", eq. 4 and 9.
    """
    num_samples = _check.integer("num_samples", num_samples, 1)
    options = {}
    kind = None
    if isinstance(baseline, str):
        kind = _check.one_of("baseline", baseline, ["leave_one_out"])
        _check.integer("num_samples", num_samples, 2, because=' with baseline="leave_one_out"')
    elif baseline is not None:
        kind = "given"
        options["baseline"] = _check.finite("baseline", baseline)
    static = {"num_samples": num_samples, "kind": kind}
    score = _score if num_samples == 1 else None
    return Sampler(
        "score_function", estimate=_estimate, score=score, options=options, static=static
    )


def _estimate(
    key: jax.Array,
    dist: Any,
    cost: Cost,
    *,
    num_samples: int,
    kind: str | None,
    baseline: ArrayLike = 0.0,
) -> jax.Array:
    if num_samples == 1:
        x, l = _draw(key, dist)
        c = cost(x)
    else:
        xs, l = jax.vmap(_draw, in_axes=(0, None))(_random.split(key, num_samples), dist)
        c = cost.batch(xs)
    if kind == "leave_one_out":
        b = (jnp.sum(c) - c) / (num_samples - 1)
    else:
        b = jax.lax.stop_gradient(jnp.asarray(baseline, c.dtype))
    m = magic(l.astype(c.dtype))
    value = jnp.mean(c * m + b * (1 - m))
    if _check.is_concrete(baseline):
        return value
    # d/db of (c - b)^2 / 2, averaged over the samples.
    return attach_variance_gradient(value, baseline, jnp.mean(b - c), order=1)


def _score(
    key: jax.Array, dist: Any, *, baseline: ArrayLike = 0.0, **_: Any
) -> tuple[Any, jax.Array, ArrayLike]:
    return *_draw(key, dist), baseline


def _draw(key: jax.Array, dist: Any) -> tuple[Any, jax.Array]:
    x = jax.lax.stop_gradient(base.draw(key, dist))
    return x, base.log_prob(dist, x)
