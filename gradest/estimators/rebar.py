"""REBAR: REINFORCE with the relaxed draw as a control variate, its mean taken pathwise."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import _check
from .._calls import estimator
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._derivatives.variance import attach_variance_gradient, with_variance_gradient
from .._sampler import Sampler
from ..distributions import _joint
from . import _relaxation, _relaxed_control
from ._record import Evaluations, Record


@estimator
def rebar(
    temperature: ArrayLike = 0.5,
    *,
    eta: ArrayLike = 1.0,
    baseline: ArrayLike | None = None,
    relaxation: Literal["concrete", "muprop"] = "concrete",
    coupled: bool = True,
    nested: bool = False,
) -> Sampler:
    r"""REBAR: unbiased at any temperature, and of low variance where the cost is smooth.

    With z the noisy logits, b = H(z) the draw, z' a draw of z given b, and c(z) the cost at the
    relaxed draw,

    .. math:: \nabla_l E[f(b)] = E[(f(b) - \beta - \eta c(z')) \nabla_l \log p(b)
              + \eta \nabla_l c(z) - \eta \nabla_l c(z')]

    Assumptions: the cost is defined and differentiable between the corners of the simplex. One
    that has no derivative there at all, but depends on the draw, makes it warn.
    Bias: none, at any temperature, eta and baseline.
    Variance: trained. The cotangents of `temperature`, `eta` and `baseline` are those of the
    squared norm of the gradient estimate, times the magnitude of the loss's own: put them into
    the parameters and they are trained with the rest. There, second derivatives of other sites in
    the cost count as zero, which touches the variance only.
    Cost evaluations per gradient: 1 exact and, at relaxed points with their gradient, 1 if
    coupled, else 2. n sites in sequence take n + 1 if coupled, else 2 n + 1: while the cost is
    evaluated at a relaxed point later REBAR sites are relaxed too, from the noise of their exact
    draws.

    Args:
      temperature: positive scalar, of the relaxation.
      eta: finite scalar, strength of the control variate; 0 leaves REINFORCE.
      baseline: finite scalar taken from the cost, or None. It must not depend on the draw.
      relaxation: "concrete", the draw at (z / t); or "muprop", at z / t + l t / (t + 1), which
        approaches the mean-field evaluation as the temperature grows, so that the estimator
        interpolates between REBAR and MuProp.
      coupled: whether z' has the value of z (and another derivative), which saves an evaluation;
        else it has noise of its own.
      nested: whether later sites are estimated, not relaxed, at relaxed points: the literal form,
        which n sites in sequence evaluate 3^n (coupled: 2^n) times.

    Returns:
      A cost-based sampler for Bernoulli, OneHotCategorical and PlackettLuce.

    Raises:
      ValueError: if the temperature is not positive, or eta or the baseline not finite.
      TypeError: from the sampler, for another distribution.
      NotImplementedError: when differentiated twice with respect to the distribution.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> sampler = ge.rebar(temperature=0.5)
      >>> loss = lambda l, k: sampler.expect(k, Bernoulli(l), lambda b: (b - 0.45) ** 2)
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(0.0, keys)
      >>> bool(abs(gradients.mean() - 0.025) < 0.01)
      True

    Reference:
      Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein 2017, "REBAR", eq. 5 and section 3.3;
      appendices B and C for the conditional draws and several layers.
      Gadetsky et al. 2020, "Low-variance Black-box Gradient Estimates for the Plackett-Luce
      Distribution", section 3.2, for orders.
    """
    options = {
        "temperature": _check.positive("temperature", temperature),
        "eta": _check.finite("eta", eta),
    }
    if baseline is not None:
        options["baseline"] = _check.finite("baseline", baseline)
    static = {
        "relaxation": _check.one_of("relaxation", relaxation, ["concrete", "muprop"]),
        "coupled": bool(coupled),
        "nested": bool(nested),
    }
    return Sampler(
        "rebar",
        draw=_draw,
        estimate=_estimate,
        relaxed=_relaxed,
        slope_in="" if _check.is_zero(options["eta"]) else "relaxed point",
        options=options,
        static=static,
    )


def _draw(key: jax.Array, dist: Any, **_: Any) -> jax.Array:
    _relaxation.check("rebar", dist)
    return _relaxation.harden(dist, _relaxation.perturb(_relaxed_control.keys(key)[0], dist))


def _relaxed(
    key: jax.Array, dist: Any, *, temperature: ArrayLike, relaxation: str, **_: Any
) -> jax.Array:
    z = _relaxation.perturb(_relaxed_control.keys(key)[0], dist)
    return _relax(dist, z, _relaxation.log_odds(dist), temperature, relaxation)


def _relax(
    dist: Any, z: jax.Array, l: jax.Array | None, temperature: ArrayLike, relaxation: str
) -> jax.Array:
    """The relaxed draw; "muprop" is the unnumbered equation that ends section 3.3."""
    t = jnp.asarray(temperature, z.dtype)
    if relaxation == "muprop":
        if l is None:
            raise TypeError(
                'rebar(relaxation="muprop"): expected Bernoulli, OneHotCategorical or '
                f"PlackettLuce, whose logits it adds, got {type(dist).__name__}. Leave it out."
            )
        z = z + jnp.where(jnp.isfinite(l), l, 0) * (t * t / (t + 1))
    return _relaxation.soften(dist, z, t)


def _estimate(
    key: jax.Array,
    dist: Any,
    cost: Cost,
    *,
    relaxation: str,
    coupled: bool,
    nested: bool,
    **trained: ArrayLike,
) -> jax.Array:
    _relaxation.check("rebar", dist)
    # Nothing is differentiated through the draw: its gradient is estimated here.
    fixed = jax.lax.stop_gradient(dist)
    noise = _relaxed_control.noise(key, fixed, coupled)
    f = cost(noise.b)
    score = jax.tree.leaves(_relaxation.score(fixed, noise.b))

    def gradient(trained: Mapping[str, jax.Array]) -> list[jax.Array]:
        """With respect to the parameters, such as logits, eq. 5."""
        t, eta, baseline = (
            trained.get(name, jnp.zeros(())).astype(noise.z.dtype)
            for name in ("temperature", "eta", "baseline")
        )

        def c(z: jax.Array, l: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            relaxed = _relax(fixed, z, l, t, relaxation)
            at = cost.relaxed(relaxed, later=not nested).astype(z.dtype)
            return at, at

        at_z, through_z = _relaxed_control.value_and_gradient(fixed, noise, c)
        signal = f.astype(noise.z.dtype) - eta * at_z - baseline
        return [signal * s + eta * through for s, through in zip(score, through_z, strict=True)]

    g, traced, variance_gradient = with_variance_gradient(gradient, trained)
    value = attach_gradient(f, dist, g, log_prob=_joint.log_prob(dist, noise.b))
    return attach_variance_gradient(value, traced, variance_gradient)


RECORDS = (
    Record(
        rebar,
        needs=("relaxation",),
        unbiased="yes",
        differentiable_cost=True,
        cost_note="at relaxed points",
        evaluations=Evaluations("1 + 1 relaxed", lambda options, dist: 2),
        reference="Tucker 2017",
    ),
)
