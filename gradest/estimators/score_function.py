"""The score-function estimator (REINFORCE, likelihood ratio) and its baselines."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check, _numerics, _random
from .._calls import estimator
from .._control_variate import with_score
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._derivatives.primitives import magic
from .._sampler import Sampler
from ..distributions import _joint
from . import _scores
from ._record import NUM_SAMPLES, Record


@estimator
def score_function(
    *,
    num_samples: int = 1,
    baseline: Literal["leave_one_out", "optimal"] | ArrayLike | None = None,
) -> Sampler:
    r"""REINFORCE: unbiased for any distribution with a log-probability and any cost.

    .. math:: \nabla_\theta E[f(x)] = E[(f(x) - b) \nabla_\theta \log p_\theta(x)]

    Written as the DiCE expression c * magic(l) + b * (1 - magic(l)), with magic(l) =
    exp(l - stop_gradient(l)) and l the log-probability of the draw, so that derivatives of every
    order are unbiased, mixed ones with the cost's parameters included. (Not with the "optimal"
    baseline, which is another number for every parameter: the gradient is attached, mixed second
    derivatives are unbiased and second derivatives in the parameters raise.)

    Assumptions: the support does not depend on the parameters. The cost need not be
    differentiable in the draw.
    Bias: none, with any of the baselines.
    Variance: with s = d log p, E[(f - b)^2 s^2] - g^2 for one sample; that of leave-one-out with
    K samples is E[(f - E f)^2 s^2] / K - (K - 2) g^2 / (K (K - 1)) + Var f Var s / (K (K - 1)).
    The baseline E[f s^2] / E[s^2] minimises the variance; "optimal" approaches it as K grows. For
    x ~ Normal(mu, t^2), f = (x - k)^2, a = mu - k and d/d mu, the variance of one sample is
    a^4 / t^2 + 14 a^2 + 15 t^2 without a baseline and 8 a^2 + 6 t^2 with the best one.
    Cost evaluations per gradient: `num_samples`.

    Args:
      num_samples: how many draws to average over. In a loss under `gradest.expectation` each has
        draws of its own at the later sites.
      baseline: what is subtracted from the cost.
        None: nothing; in a loss of several runs that give each other baselines
        (`gradest.expectation(baseline="leave_one_out")`), what the others cost.
        "leave_one_out": for each sample the mean cost of the others; `num_samples` >= 2.
        "optimal": for each sample and each of the distribution's parameters (each element of its
        leaves), sum f s^2 / sum s^2 over the other samples; `num_samples` >= 2, where two give
        what "leave_one_out" does. The scores of all samples are held in memory.
        A scalar: a constant, a running mean or a network's output, which must not depend on the
        draw. Its cotangent is that of (cost - baseline)^2 / 2 (times the magnitude of the
        loss's own), so that it is trained with the rest of the parameters: a step of SGD with
        rate r on a scalar baseline is the running mean b + r (cost - b).

    Returns:
      A cost-based sampler for any distribution.

    Raises:
      ValueError: for leave-one-out or the optimal baseline with fewer than two samples, or a
        baseline that is known and not finite.
      TypeError: from the sampler, for one of gradest's distributions whose support moves.
      UnestimatedGradientError: when a bound of another library's support is differentiated.
      NotImplementedError: with the optimal baseline, when differentiated twice with respect to
        the distribution.

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
      Ranganath, Gerrish and Blei 2014, "Black Box Variational Inference", section 3.2, for the
      optimal baseline of each parameter.
    """
    num_samples = _check.integer("num_samples", num_samples, 1)
    options = {}
    kind = None
    if isinstance(baseline, str):
        kind = _check.one_of("baseline", baseline, ["leave_one_out", "optimal"])
        _check.integer("num_samples", num_samples, 2, because=f' with baseline="{kind}"')
    elif baseline is not None:
        kind = "given"
        options["baseline"] = _check.finite("baseline", baseline)
    static = {"num_samples": num_samples, "kind": kind}
    score = _score if num_samples == 1 else None
    return Sampler(
        "score_function",
        estimate=_estimate,
        score=score,
        takes_baseline=kind is None,
        options=options,
        static=static,
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
        x, l = _scores.draw("score_function", key, dist)
        return with_score(cost(x), l, baseline)
    dist, keys = _scores.checked("score_function", dist), _random.split(key, num_samples)
    xs, unrounded = jax.vmap(lambda k: _scores.unrounded(k, dist))(keys)
    l = _scores.log_probs(dist, unrounded)
    c = cost.batch(xs)
    # In half precision the differences of costs would be mostly rounding.
    wide = c.astype(_numerics.compute_dtype(c.dtype))
    if kind == "optimal":
        values = _with_optimal_baseline(dist, unrounded, l, wide)
    elif kind == "leave_one_out":
        b, m = (jnp.sum(wide) - wide) / (num_samples - 1), magic(l.astype(wide.dtype))
        values = wide * m + b * (1 - m)
    elif kind is None and (b := cost.others(wide)) is not None:
        values = jax.vmap(with_score)(wide, l, b)
    else:
        values = jax.vmap(lambda c, l: with_score(c, l, baseline))(wide, l)
    return jnp.mean(values).astype(c.dtype)


def _score(
    key: jax.Array, dist: Any, *, baseline: ArrayLike = 0.0, **_: Any
) -> tuple[Any, jax.Array, ArrayLike]:
    return *_scores.draw("score_function", key, dist), baseline


def _with_optimal_baseline(dist: Any, draws: Any, l: jax.Array, costs: jax.Array) -> jax.Array:
    """The costs, with mean_k (f_k - b_k) s_k attached to each, b_k from the samples other than k.

    The draws are those from before they were rounded.
    """

    def score(u: Any) -> Any:
        s = jax.grad(_joint.log_prob_unrounded, allow_int=True)(jax.lax.stop_gradient(dist), u)
        # An integer parameter has none.
        return jax.tree.map(lambda s: jnp.zeros(()) if s.dtype == jax.dtypes.float0 else s, s)

    def gradient(s: jax.Array) -> jax.Array:
        s = s.astype(_numerics.compute_dtype(s.dtype))
        f = costs.astype(s.dtype).reshape(-1, *(1,) * (s.ndim - 1))
        weight = _sum_of_others(s * s)
        best = _sum_of_others(f * s * s) / jnp.where(weight > 0, weight, 1)
        # Where the others say nothing about the parameter: their mean cost.
        b = jnp.where(weight > 0, best, _sum_of_others(f) / (len(f) - 1))
        return jnp.mean((f - b) * s, axis=0)

    g = jax.tree.map(gradient, jax.vmap(score)(draws))
    return jax.vmap(lambda c, l: attach_gradient(c, dist, g, log_prob=l))(costs, l)


def _sum_of_others(x: jax.Array) -> jax.Array:
    """Over the first axis, for each entry without itself.

    Not as the sum less the entry, which loses everything where one entry dominates.
    """
    zero = jnp.zeros_like(x[:1])
    before = jnp.cumsum(jnp.concatenate([zero, x[:-1]]), axis=0)
    after = jax.lax.cumsum(jnp.concatenate([x[1:], zero]), axis=0, reverse=True)
    return before + after


RECORDS = (
    Record(
        score_function,
        needs=("density",),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=NUM_SAMPLES,
        reference="Williams 1992; Kool 2019; Foerster 2018",
        second_order=True,
    ),
)
