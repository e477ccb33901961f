"""RELAX and LAX: REINFORCE with a learned surrogate of the cost as a control variate."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check, _numerics
from .._calls import estimator
from .._control_variate import ControlVariate, with_score
from .._cost import Cost
from .._derivatives.attach import attach_gradient
from .._derivatives.watch import watched
from .._jumps import Source, complaints_of_cost
from .._sampler import Sampler
from ..distributions import _joint
from ..distributions._capabilities import has
from . import _needs, _relaxation, _relaxed_control, _scores
from ._record import Record
from ._surrogate import Surrogate, closed
from .reparameterize import differentiable_draw


@estimator
def relax(
    surrogate: Surrogate,
    params: Any,
    *,
    temperature: ArrayLike = 0.5,
    eta: ArrayLike = 1.0,
    coupled: bool = True,
) -> Sampler:
    r"""RELAX: unbiased for any cost and any surrogate, of low variance where they are alike.

    For Bernoulli, OneHotCategorical and PlackettLuce, with z the noisy logits, b = H(z) the draw,
    z' a draw of z given b, and c(z) the surrogate at the relaxed draw, such as softmax(z / t),

    .. math:: \nabla_l E[f(b)] = E[(f(b) - \eta c(z')) \nabla_l \log p(b)
              + \eta \nabla_l c(z) - \eta \nabla_l c(z')]

    For a reparameterizable distribution, with the surrogate at the draw itself (LAX),

    .. math:: \nabla_\theta E[f(x)] = E[(f(x) - \eta c(x)) \nabla_\theta \log p_\theta(x)
              + \eta \nabla_\theta c(x_\theta)]

    Assumptions: the surrogate is differentiable. The cost need not be: it is evaluated at the
    exact draw and never differentiated.
    Bias: none, whatever the surrogate's parameters, temperature and eta.
    Variance: trained. The cotangents of `params`, `temperature` and `eta` are those of the squared
    norm of the gradient estimate, times the magnitude of the loss's own: put them into the
    parameters and they are trained with the rest.
    Cost evaluations per gradient: 1. (So it may be in a loop or a branch.) The surrogate is
    evaluated with its gradient, once if coupled, else twice.

    Args:
      surrogate: `surrogate(params, relaxed)` -> real scalar, any function of a relaxed draw: a
        network, say. It may close over whatever is at hand, an earlier draw or the state of a
        loop, which is held fixed: only what is in `params` is trained.
      params: any pytree. Arrays that are traced are trained, numbers and constants are not.
      temperature: positive scalar, of the relaxation. Not used for a continuous distribution.
      eta: finite scalar, strength of the control variate; 0 leaves REINFORCE.
      coupled: whether z' has the value of z (and another derivative), which saves an evaluation of
        the surrogate; else it has noise of its own.

    Returns:
      A cost-based sampler for Bernoulli, OneHotCategorical, PlackettLuce, and reparameterizable
      distributions, other libraries' included.

    Raises:
      ValueError: if the temperature is not positive, or eta not finite, or the surrogate's result
        not a real scalar.
      TypeError: if the surrogate is not callable; from the sampler, for another distribution, or
        for one of gradest's whose support moves.
      UnestimatedGradientError: when a bound of another library's support is differentiated.
      NotImplementedError: when differentiated twice with respect to the distribution.

    Example:
      >>> import gradest as ge, jax, jax.numpy as jnp
      >>> from gradest.distributions import Bernoulli
      >>> def surrogate(w, relaxed):
      ...     return jnp.sum(w * relaxed)
      >>> @jax.grad
      ... def gradients(params, key):
      ...     bits = ge.relax(surrogate, params["w"])
      ...     cost = lambda b: jnp.where(jnp.sum(b) > 1, 1.0, 0.0)
      ...     return bits.expect(key, Bernoulli(params["logits"]), cost)
      >>> start = {"logits": jnp.zeros(3), "w": jnp.zeros(3)}
      >>> sorted(gradients(start, jax.random.key(0)))
      ['logits', 'w']

    Reference:
      Grathwohl, Choi, Wu, Roeder and Duvenaud 2018, "Backpropagation through the Void", section 3
      (LAX), 3.1 (training the surrogate) and 3.3 (RELAX).
    """
    if not callable(surrogate):
        raise TypeError(
            f"surrogate: expected a function of (params, relaxed draw), got "
            f"{type(surrogate).__name__}. The surrogate comes first: relax(surrogate, params)."
        )
    options = {
        "params": params,
        "temperature": _check.positive("temperature", temperature),
        "eta": _check.finite("eta", eta),
    }
    static = {"surrogate": surrogate, "coupled": bool(coupled)}
    return Sampler(
        "relax",
        draw=_draw,
        estimate=_estimate,
        score=_score,
        relaxed=_relaxed,
        hoist=_hoist,
        options=options,
        static=static,
    )


def _discrete(dist: Any) -> bool:
    """Whether draws are relaxed (RELAX), or differentiable as they are (LAX)."""
    if has(type(dist), "relaxation"):
        _needs.check_edges("relax", dist)
        return True
    declared = getattr(dist, "reparameterizable", getattr(dist, "has_rsample", None))
    if declared is False:
        _needs.check("relax", dist, "density", ("relaxation", "pathwise"))
    _scores.checked("relax", dist)
    return False


def _draw(key: jax.Array, dist: Any, **_: Any) -> Any:
    key, _ = _relaxed_control.keys(key)
    if _discrete(dist):
        return _relaxation.harden(dist, _relaxation.perturb(key, dist))
    return differentiable_draw("relax", key, dist)[0]


def _relaxed(key: jax.Array, dist: Any, *, temperature: ArrayLike, **_: Any) -> Any:
    if not _discrete(dist):
        return _draw(key, dist)
    z = _relaxation.perturb(_relaxed_control.keys(key)[0], dist)
    return _relaxation.soften(dist, z, temperature)


def _estimate(key: jax.Array, dist: Any, cost: Cost, **options: Any) -> jax.Array:
    x, log_prob, control = _score(key, dist, **options)
    return with_score(cost(x), log_prob, control)


def _score(
    key: jax.Array,
    dist: Any,
    *,
    surrogate: Surrogate,
    params: Any,
    temperature: ArrayLike,
    eta: ArrayLike,
    coupled: bool,
) -> tuple[Any, jax.Array, ControlVariate]:
    """The draw, and the terms of the equations that do not hold the cost."""
    dist = _scores.checked("relax", dist)
    if not _check.is_zero(eta):
        dist = _watched(key, dist, surrogate, params)
    # Nothing is differentiated through the draw: its gradient is estimated here.
    fixed = jax.lax.stop_gradient(dist)
    traced = any(not _check.is_concrete(x) for x in jax.tree.leaves((params, temperature, eta)))

    def c(point: Any) -> tuple[jax.Array, jax.Array]:
        """The surrogate, summed over the lanes of the site, and for each of them."""
        at, closed_over = closed(surrogate, params, _of_one_lane(key, point))
        at = functools.partial(at, closed_over)
        for _ in range(key.ndim):
            at = jax.vmap(at)
        lanes = at(point)
        return jnp.sum(lanes), lanes

    if _discrete(dist):
        x, score, correction = _relax(key, fixed, c, temperature, eta, coupled)
        unrounded = x
    else:
        x, unrounded, score, correction = _lax(key, fixed, c, eta)
    term = attach_gradient(jnp.zeros(()), dist, _unflatten(fixed, correction))
    # |F s + g|^2 = F^2 |s|^2 + F 2 <s, g> + |g|^2, where g is what is trained.
    trained = (2 * jnp.sum(score * correction), jnp.sum(correction * correction))
    return (
        x,
        _joint.log_prob_unrounded(dist, unrounded),
        ControlVariate(term, trained if traced else None),
    )


def _of_one_lane(key: jax.Array, point: Any) -> Any:
    """The shapes of a point of one lane of the site, of which there is a key for each."""
    first = lambda leaf: leaf[(0,) * key.ndim]
    return jax.eval_shape(lambda point: jax.tree.map(first, point), point)


def _watched(key: jax.Array, dist: Any, surrogate: Surrogate, params: Any) -> Any:
    """`dist`, which complains when it is differentiated if the surrogate jumps."""
    slope_in = "relaxed point" if _discrete(dist) else "draw"
    point = _of_one_lane(key, jax.eval_shape(_draw, key, dist))
    at, closed_over = closed(surrogate, params, point)
    complaints = complaints_of_cost(
        Source("relax", slope_in, "", type(dist), with_score=True),
        lambda point: at(closed_over, point),
        point,
        what="its surrogate",
        remedy="Take a surrogate that is continuous: the cost need not be.",
    )
    return watched(dist, complaints.of_draw)


# The surrogate at a relaxed point, summed over the lanes of a site, and for each of them.
_Control = Callable[[Any], tuple[jax.Array, jax.Array]]


def _relax(
    key: jax.Array,
    dist: Any,
    c: _Control,
    temperature: ArrayLike,
    eta: ArrayLike,
    coupled: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """RELAX: the draw, its score and -eta c(z') score + eta (d c(z) - d c(z')), flat."""
    noise = _relaxed_control.noise(key, dist, coupled)
    dtype = noise.z.dtype
    t, eta = jnp.asarray(temperature, dtype), jnp.asarray(eta, dtype)

    def at(z: jax.Array, l: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        del l
        total, lanes = c(_relaxation.soften(dist, z, t))
        return total.astype(dtype), lanes.astype(dtype)

    value, through_z = _relaxed_control.value_and_gradient(dist, noise, at)
    score = jax.tree.leaves(_relaxation.score(dist, noise.b))
    correction = [
        eta * (through - _per_lane(value, s) * s)
        for through, s in zip(through_z, score, strict=True)
    ]
    return noise.b, _flat(score), _flat(correction)


def _lax(
    key: jax.Array, dist: Any, c: _Control, eta: ArrayLike
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """LAX: the draw, also from before it was rounded, its score and -eta c(x) score + eta d c(x).

    The last two are flat, in the parameters.
    """
    key, _ = _relaxed_control.keys(key)
    draw = lambda dist: differentiable_draw("relax", key, dist)
    x, pull_back, unrounded = jax.vjp(draw, dist, has_aux=True)
    slope, value = jax.grad(c, has_aux=True)(x)

    def weighted(dist: Any, weights: jax.Array | None) -> jax.Array:
        log_p = _joint.log_probs_unrounded(dist, unrounded)
        log_p = log_p.astype(_numerics.compute_dtype(log_p.dtype))
        if weights is not None:
            log_p = _per_lane(weights.astype(log_p.dtype), log_p) * log_p
        return jnp.sum(log_p)

    scores = jax.grad(weighted, allow_int=True)
    (pathwise,) = pull_back(slope)
    score, weighted_score = _flat(scores(dist, None)), _flat(scores(dist, value))
    return x, unrounded, score, jnp.asarray(eta, score.dtype) * (_flat(pathwise) - weighted_score)


def _per_lane(signal: jax.Array, like: jax.Array) -> jax.Array:
    """One number for each lane of the site, with the axes of `like`."""
    return signal.reshape(signal.shape + (1,) * (like.ndim - signal.ndim))


def _hoist(
    dist: Any, *, surrogate: Surrogate, params: Any, coupled: bool, **others: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    point = jax.eval_shape(lambda key: _draw(key, dist), jax.random.key(0))
    surrogate, params = closed(surrogate, params, point)
    return {"surrogate": surrogate, "coupled": coupled}, {"params": params, **others}


def _flat(gradient: Any) -> jax.Array:
    """The leaves as one vector, in the type that estimates are computed in."""
    leaves = _relaxation.floats(gradient)
    dtype = _numerics.compute_dtype(leaves[0].dtype)
    return jnp.concatenate([g.reshape(-1).astype(dtype) for g in leaves])


def _unflatten(dist: Any, flat: jax.Array) -> Any:
    """`dist`, with the elements of `flat` in the place of its leaves."""
    leaves, treedef = jax.tree.flatten(dist)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = jnp.split(flat, ends)
    shaped = [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


RECORDS = (
    Record(
        relax,
        needs=("density", ("relaxation", "pathwise")),
        unbiased="yes",
        differentiable_cost=False,
        evaluations=1,
        reference="Grathwohl 2018",
        arguments={"surrogate": lambda w, x: jnp.tanh(w * jnp.sum(x)), "params": 0.8},
    ),
)
