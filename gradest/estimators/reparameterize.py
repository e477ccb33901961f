"""The reparameterization (pathwise) estimator."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _jaxpr
from .._calls import estimator
from .._cost import Cost
from .._derivatives.primitives import magic
from .._derivatives.refuse import Refusal, undifferentiable
from .._sampler import Sampler
from .._written import user_line
from ..distributions import _joint, _supports, base
from . import _needs, _scores
from ._record import Record


@estimator
def reparameterize(*, sticking_the_landing: bool = False) -> Sampler:
    r"""Pathwise gradients: the draw as a differentiable function of parameter-free noise.

    .. math:: x = T_\theta(\epsilon), \quad
              \nabla_\theta E[f(x)] = E[\nabla f(x)\, \partial T_\theta(\epsilon)/\partial\theta]

    Assumptions: the cost is differentiable in the draw almost everywhere and has no jumps.
    Bias: none. Derivatives of every order are unbiased where the cost's are; where those of the
    draw are known to first order only, as in Gamma's concentration, further ones raise.
    Variance: usually low; for x ~ Normal(mu, s) and f = (x - k)^2 that of d/d mu is 4 s^2.
    Cost evaluations per gradient: 1.

    Args:
      sticking_the_landing: adds the score of the draw, a control variate of mean zero. Where the
        cost is the log weight log p(y, x) - log q(x) of a draw x ~ q, whose mean is the ELBO,
        it cancels what the cost's -log q has of it: no variance is left where q is the
        posterior. Write the log weight with `dist` itself, and negate the expectation, not the
        cost, to minimise it.

    Returns:
      A pathwise sampler for Normal, LogNormal, MultivariateNormal, LowRankMultivariateNormal,
      Laplace, Logistic, Gumbel, Exponential, Uniform, Gamma, Beta, Dirichlet, StudentT, Weibull,
      VonMises, MixtureSameFamily, the relaxed densities, HardConcrete, RelaxedPermutation, and
      other libraries' distributions whose `sample` is differentiable. With `sticking_the_landing`
      it is cost-based.

    Raises:
      TypeError: from the sampler, for a distribution that is known not to be reparameterizable,
        or whose support moves where the score is needed.
      UnestimatedGradientError: when another library's draw turns out to have no derivative.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Normal
      >>> normal = ge.reparameterize()
      >>> print(jax.grad(lambda m: normal(jax.random.key(0), Normal(m, 1.0)))(0.0))
      1.0

    Reference:
      Kingma and Welling 2014, "Auto-Encoding Variational Bayes", section 2.4.
      Rezende, Mohamed and Wierstra 2014, eq. 7.
      Figurnov, Mohamed and Mnih 2018, "Implicit Reparameterization Gradients", eq. 5.
      Roeder, Wu and Duvenaud 2017, "Sticking the Landing", eq. 7, for the control variate.
    """
    estimate = _path_only if sticking_the_landing else None
    return Sampler("reparameterize", draw=_draw, estimate=estimate, slope_in="draw")


def _draw(key: jax.Array, dist: Any) -> Any:
    return differentiable_draw("reparameterize", key, dist)[0]


def _path_only(key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
    dist = _scores.checked("reparameterize", dist)
    x, u = differentiable_draw("reparameterize", key, dist)
    c = cost(x)
    score = magic(_joint.log_prob_unrounded(dist, jax.lax.stop_gradient(u))) - 1
    return c + score.astype(c.dtype)


def differentiable_draw(estimator: str, key: jax.Array, dist: Any) -> tuple[Any, Any]:
    """A draw that is differentiable in the parameters, and that from before it was rounded."""
    if _joint.is_pathwise(dist) is False:
        raise TypeError(
            f"{estimator}: expected a distribution whose draws are differentiable in its "
            f"parameters, got {_supports.name_of(dist)}. {_needs.instead(dist)}"
        )
    x, u = _joint.draw_unrounded(key, dist)
    if isinstance(dist, base.Distribution):
        return x, u
    x = _judged(estimator, key, dist, x)
    return x, x


def _judged(estimator: str, key: jax.Array, dist: Any, x: Any) -> Any:
    """The draw `x`, each part of which refuses derivatives that it has not, although it depends.

    A joint draw may have discrete parts, and a part may depend on one parameter smoothly and on
    another by choices alone, as that of a mixture does on its weights.
    """
    parts, structure = jax.tree.flatten(x)
    values, treedef = jax.tree.flatten(dist)
    values = list(map(jnp.asarray, values))
    name = _supports.name_of(dist)
    refusal = Refusal(
        estimator,
        user_line(),
        f"A draw of {name} does not depend on its parameters differentiably there. Use "
        "score_function, for a part of a joint draw at a site of its own.",
    )
    draw = lambda values: jax.tree.leaves(_joint.draw(key, treedef.unflatten(values)))
    judged = []
    for part, missing in zip(parts, _without_slope(draw, values, dist, len(parts)), strict=True):
        lost = [values[j] for j in missing]
        if not lost:
            judged.append(part)
        elif jnp.issubdtype(part.dtype, jnp.inexact):
            judged.append(part + undifferentiable(refusal, jnp.zeros_like(part), lost))
        else:
            judged.append(undifferentiable(refusal, part, lost))
    return jax.tree.unflatten(structure, judged)


def _without_slope(draw: Any, values: list[Any], dist: Any, num_parts: int) -> list[set[int]]:
    """For each part of a draw, the parameters on which it depends, but not differentiably."""
    floats = [j for j, v in enumerate(values) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def both(moving: list[Any], tangents: list[Any]) -> Any:
        def of_moving(moving: list[Any]) -> Any:
            filled = list(values)
            for j, v in zip(floats, moving, strict=True):
                filled[j] = v
            return draw(filled)

        out, slopes = jax.jvp(of_moving, (moving,), (tangents,))
        # Integers have none.
        return out, [jnp.zeros(()) if s.dtype == jax.dtypes.float0 else s for s in slopes]

    moving = [values[j] for j in floats]
    depends = _jaxpr.dependence(jax.make_jaxpr(both)(moving, moving).jaxpr)
    says_no = [not declared for declared in _joint.declared_slopes(dist)]
    says_no = says_no if len(says_no) == num_parts else [False] * num_parts
    missing = []
    for i in range(num_parts):
        on = {j for j in depends[i] if j < len(floats)}
        smooth = {j - len(floats) for j in depends[num_parts + i] if j >= len(floats)}
        missing.append({floats[j] for j in (on if says_no[i] else on - smooth)})
    return missing


RECORDS = (
    Record(
        reparameterize,
        needs=("pathwise",),
        unbiased="yes",
        differentiable_cost=True,
        evaluations=1,
        reference="Kingma 2014; Rezende 2014; Figurnov 2018; Roeder 2017",
        second_order=True,
    ),
)
