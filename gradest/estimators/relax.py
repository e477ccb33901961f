"""RELAX and LAX: REINFORCE with a learned surrogate of the cost as a control variate."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check, _numerics, _random
from .._derivatives.attach import attach_gradient
from .._derivatives.variance import attach_squared_norm
from .._sampler import Cost, Sampler
from ..distributions import Bernoulli, OneHotCategorical, base
from . import _relaxation, _scores
from ._record import Record
from .reparameterize import reparameterize

Surrogate = Callable[[Any, Any], jax.Array]


def relax(
    surrogate: Surrogate,
    params: Any,
    *,
    temperature: ArrayLike = 0.5,
    eta: ArrayLike = 1.0,
    coupled: bool = True,
) -> Sampler:
    r"""RELAX: unbiased for any cost and any surrogate, of low variance where they are alike.

    For Bernoulli and OneHotCategorical, with z the noisy logits, b = H(z) the draw, z' a draw of z
    given b, and c(z) the surrogate at the relaxed draw, sigmoid(z / t) or softmax(z / t),

    .. math:: \nabla_l E[f(b)] = E[(f(b) - \eta c(z')) \nabla_l \log p(b)
              + \eta \nabla_l c(z) - \eta \nabla_l c(z')]

    For a reparameterizable distribution, with the surrogate at the draw itself (LAX),

    .. math:: \nabla_\theta E[f(x)] = E[(f(x) - \eta c(x)) \nabla_\theta \log p_\theta(x)
              + \eta \nabla_\theta c(x_\theta)]

    Assumptions: the surrogate is differentiable. The cost need not be: it is evaluated at the
    exact draw and never differentiated.
    Bias: none, whatever the surrogate's parameters, temperature and eta.
    Variance: trained. The cotangents of `params`, `temperature` and `eta` are those of the squared
    norm of the gradient estimate, times the square of the loss's own: put them into the parameters
    and they are trained with the rest.
    Cost evaluations per gradient: 1. The surrogate is evaluated with its gradient, once if coupled,
    else twice.

    Args:
      surrogate: `surrogate(params, relaxed)` -> real scalar, any function of a relaxed draw: a
        network, say. In a loss under `gradest.expectation` it must not close over arrays that are
        made there; let them come in `params`, by `jax.lax.stop_gradient` if they are not to be
        trained.
      params: any pytree. Arrays that are traced are trained, numbers and constants are not.
      temperature: positive scalar, of the relaxation. Not used for a continuous distribution.
      eta: finite scalar, strength of the control variate; 0 leaves REINFORCE.
      coupled: whether z' has the value of z (and another derivative), which saves an evaluation of
        the surrogate; else it has noise of its own.

    Returns:
      A cost-based sampler for Bernoulli, OneHotCategorical, and reparameterizable distributions,
      other libraries' included.

    Raises:
      ValueError: if the temperature is not positive, or eta not finite, or the surrogate's result
        not a real scalar.
      TypeError: if the surrogate is not callable; from the sampler, for another distribution, or
        for one of gradest's whose support moves. (Of other libraries' that is not known: there the
        gradient is wrong.)
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
    functions = {"draw": _draw, "estimate": _estimate, "relaxed": _relaxed}
    return Sampler("relax", **functions, options=options, static=static)


def _keys(key: jax.Array) -> jax.Array:
    """One for z and one for z'."""
    return _random.split(key, 2)


def _discrete(dist: Any) -> bool:
    """Whether draws are relaxed (RELAX), or differentiable as they are (LAX)."""
    if isinstance(dist, (Bernoulli, OneHotCategorical)):
        return True
    declared = getattr(dist, "reparameterizable", getattr(dist, "has_rsample", None))
    if declared is False:
        raise TypeError(
            "relax: expected one of gradest.distributions' Bernoulli, OneHotCategorical, or a "
            f"reparameterizable distribution, got {type(dist).__name__}. Give integer categories "
            "as OneHotCategorical; for other distributions use score_function."
        )
    _scores.check("relax", dist)
    return False


def _draw(key: jax.Array, dist: Any, **_: Any) -> Any:
    key, _ = _keys(key)
    if _discrete(dist):
        return _relaxation.harden(dist, _relaxation.perturb(key, dist))
    return reparameterize()._draw(key, dist)


def _relaxed(key: jax.Array, dist: Any, *, temperature: ArrayLike, **_: Any) -> Any:
    if not _discrete(dist):
        return _draw(key, dist)
    return _relaxation.soften(dist, _relaxation.perturb(_keys(key)[0], dist), temperature)


# The surrogate at a relaxed point, for each lane of the site.
_Control = Callable[[Mapping[str, jax.Array], Any], jax.Array]
# The gradient estimate, flat, from what is trained and the cost of the draw.
_Gradient = Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]


def _estimate(
    key: jax.Array,
    dist: Any,
    cost: Cost,
    *,
    surrogate: Surrogate,
    coupled: bool,
    params: Any,
    **hyper: ArrayLike,
) -> jax.Array:
    leaves, treedef = jax.tree.flatten(params)
    # Those that can be trained go by a name, next to the temperature and eta.
    hyper |= {f"params {i}": leaf for i, leaf in enumerate(leaves) if _is_floating(leaf)}

    def control(hyper: Mapping[str, jax.Array], point: Any) -> jax.Array:
        filled = [hyper.get(f"params {i}", leaf) for i, leaf in enumerate(leaves)]
        c = lambda point: _scalar(surrogate(jax.tree.unflatten(treedef, filled), point))
        for _ in range(key.ndim):
            c = jax.vmap(c)
        return c(point)

    # Nothing is differentiated through the draw: its gradient is estimated here.
    fixed = jax.lax.stop_gradient(dist)
    x, gradient = (_relax if _discrete(dist) else _lax)(key, fixed, control, coupled)
    f = cost(x)
    traced = {name: x for name, x in hyper.items() if not _check.is_concrete(x)}

    def estimate(traced: Mapping[str, Any]) -> jax.Array:
        return gradient({k: jnp.asarray(v) for k, v in {**hyper, **traced}.items()}, f)

    # Whatever the surrogate closes over, only what is trained is to be differentiated.
    converted, closed_over = jax.closure_convert(estimate, traced)
    g = converted(traced, *jax.lax.stop_gradient(closed_over))
    value = attach_gradient(f, dist, _unflatten(fixed, g), log_prob=base.log_prob(dist, x))
    return attach_squared_norm(value, jnp.sum(g * g)) if traced else value


def _relax(
    key: jax.Array, dist: Any, control: _Control, coupled: bool
) -> tuple[jax.Array, _Gradient]:
    """RELAX: the draw, and the gradient with respect to the logits."""
    key_z, key_conditional = _keys(key)
    l, z = _relaxation.log_odds(dist), _relaxation.perturb(key_z, dist)
    b = _relaxation.harden(dist, z)
    z_given_b = z if coupled else _relaxation.conditional(key_conditional, dist, l, b)

    def gradient(hyper: Mapping[str, jax.Array], f: jax.Array) -> jax.Array:
        t, eta = hyper["temperature"].astype(z.dtype), hyper["eta"].astype(z.dtype)

        def c(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            lanes = control(hyper, _relaxation.soften(dist, z, t)).astype(z.dtype)
            return jnp.sum(lanes), lanes

        dz, value = jax.grad(c, has_aux=True)(z)
        dz_given_b = dz
        if not coupled:
            dz_given_b, value = jax.grad(c, has_aux=True)(z_given_b)
        through_z = dz - _relaxation.pull_back_conditional(dist, l, b, z_given_b, dz_given_b)
        signal = _per_lane(f.astype(z.dtype) - eta * value, z)
        return (signal * _relaxation.score(l, dist, b) + eta * through_z).reshape(-1)

    return b, gradient


def _lax(key: jax.Array, dist: Any, control: _Control, coupled: bool) -> tuple[Any, _Gradient]:
    """LAX: the draw, and the gradient with respect to the distribution's parameters."""
    del coupled
    x, pull_back = jax.vjp(lambda dist: _draw(key, dist), dist)

    def gradient(hyper: Mapping[str, jax.Array], f: jax.Array) -> jax.Array:
        def c(x: Any) -> tuple[jax.Array, jax.Array]:
            lanes = control(hyper, x)
            return jnp.sum(lanes), lanes

        slope, value = jax.grad(c, has_aux=True)(x)
        eta = hyper["eta"]

        def weighted_log_prob(dist: Any) -> jax.Array:
            log_p = dist.log_prob(x)
            log_p = log_p.astype(_numerics.compute_dtype(log_p.dtype))
            signal = f.astype(log_p.dtype) - eta.astype(log_p.dtype) * value.astype(log_p.dtype)
            return jnp.sum(_per_lane(signal, log_p) * log_p)

        score = jax.grad(weighted_log_prob, allow_int=True)(dist)
        (pathwise,) = pull_back(jax.tree.map(lambda s: eta.astype(s.dtype) * s, slope))
        return _flat(score) + _flat(pathwise)

    return x, gradient


def _per_lane(signal: jax.Array, like: jax.Array) -> jax.Array:
    """One number for each lane of the site, with the axes of `like`."""
    return signal.reshape(signal.shape + (1,) * (like.ndim - signal.ndim))


def _scalar(c: Any) -> jax.Array:
    shape = np.shape(c)
    if shape != () or not _is_floating(c):
        raise ValueError(
            f"surrogate: expected its result to be a real scalar, got shape {shape} and type "
            f"{jax.dtypes.result_type(c)}. Sum or average it."
        )
    return jnp.asarray(c)


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.floating)


def _flat(gradient: Any) -> jax.Array:
    """The leaves as one vector, in the type that estimates are computed in."""
    leaves = jax.tree.leaves(gradient)
    # An integer parameter has no gradient.
    leaves = [jnp.zeros(g.shape) if g.dtype == jax.dtypes.float0 else g for g in leaves]
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
