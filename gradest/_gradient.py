"""Derivatives that are not JAX's own: attached, refused, or passed once only.

`attach_gradient` is the one primitive that all cost-based estimators share. Everything here is
a `custom_vjp` or `custom_jvp` identity, whose rules are right below it.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from . import _check, _jaxpr


class UnestimatedGradientError(RuntimeError):
    """A derivative was asked for where no estimator provides it, and is not zero."""

    __module__ = "gradest"


class UnestimatedGradientWarning(UserWarning):
    """A part of a derivative that no estimator provides counts as zero."""

    __module__ = "gradest"


def magic(log_prob: jax.Array) -> jax.Array:
    """exp(l - stop_gradient(l)): one, whose derivative is that of l (Foerster 2018, eq. 4).

    To every order, also where l is infinite; and l costs nothing where no derivative is taken.
    """
    return _jaxpr.magic_p.bind(log_prob)


def attach_gradient(
    value: jax.Array, inputs: Any, gradient: Any, *, log_prob: jax.Array | None = None
) -> jax.Array:
    """`value`, with `gradient` as its derivative with respect to `inputs`.

    In reverse mode a cotangent ct of the result becomes ct for `value` and ct * gradient for
    `inputs`. Nothing reaches whatever `gradient` was computed from.

    Args:
      value: a scalar.
      inputs: a pytree, usually the distribution.
      gradient: a pytree of the same structure; leaves that are not floating-point are ignored.
      log_prob: log-probability of the draw at which `value` was computed, differentiable in
        `inputs`. With it, mixed second derivatives, once in `inputs` and once in what `value`
        depends on, are unbiased; without it they lack the draw's dependence on `inputs`.

    Returns:
      `value`.

    Raises:
      ValueError: if `gradient` has not the structure and shapes of `inputs`.
      NotImplementedError: when differentiated twice with respect to `inputs`: the derivative of
        an estimate of a gradient is not an estimate of the second derivative.

    Example:
      >>> import gradest as ge, jax
      >>> print(jax.grad(lambda x: ge.attach_gradient(x**2, x, 10.0))(3.0))
      16.0
    """
    leaves, gradients = [], []
    given, expected = jax.tree.leaves(gradient), jax.tree.leaves(inputs)
    if len(given) != len(expected):
        raise ValueError(
            f"gradient: expected a leaf for each of the {len(expected)} of inputs, "
            f"{jax.tree.structure(inputs)}, got {jax.tree.structure(gradient)}. Give it the "
            "structure of inputs."
        )
    for leaf, g in zip(expected, given, strict=True):
        if jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.floating):
            if np.shape(g) != np.shape(leaf):
                raise ValueError(
                    f"gradient: expected an array of shape {np.shape(leaf)}, that of the input, "
                    f"got shape {np.shape(g)}. Sum or broadcast it."
                )
            leaves.append(jnp.asarray(leaf))
            gradients.append(jnp.asarray(g).astype(leaves[-1].dtype))
    value = jnp.asarray(value)
    l = jnp.zeros_like(value) if log_prob is None else log_prob.astype(value.dtype)
    fixed = _fixed_at_first((gradients, l), (value, leaves))
    return _attach(_ESTIMATOR.get(), value, leaves, *fixed)


def _attach_(name: str, value: Any, inputs: Any, gradient: Any, log_prob: Any) -> jax.Array:
    del name
    return _in_every_lane(value, (inputs, gradient, log_prob))


_attach = jax.custom_vjp(_attach_, nondiff_argnums=(0,))


def _attach_fwd(name: str, value: Any, inputs: Any, gradient: Any, log_prob: Any) -> Any:
    value = _attach_(name, value, inputs, gradient, log_prob)
    return value, (_once(name, gradient, inputs), log_prob)


def _attach_bwd(name: str, residuals: Any, ct: jax.Array) -> Any:
    del name
    gradient, log_prob = residuals
    scaled = [_scale(ct, g) for g in gradient]
    return ct * magic(log_prob), scaled, None, None


_attach.defvjp(_attach_fwd, _attach_bwd)


@jax.custom_jvp
def _fixed_at_first(tree: Any, beside: Any) -> Any:
    """`tree`, constant in the first differentiation of it or `beside`, no longer in later ones.

    The None of the backward rules above and below says as much, but JAX 0.10 cannot transpose a
    scan of whose results that is the cotangent.
    """
    del beside
    return tree


@_fixed_at_first.defjvp
def _fixed_at_first_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    del tangents
    return primals[0], jax.tree.map(jnp.zeros_like, primals[0])


def _in_every_lane(value: jax.Array, beside: Any) -> jax.Array:
    """`value`, under every `jax.vmap` that one of the arrays `beside` it is under.

    A result that has no lanes has one cotangent, the sum of those of all lanes, whose product
    with a gradient that has lanes would be too large by their number.
    """
    for leaf in jax.tree.leaves(beside):
        nothing = jax.lax.stop_gradient(leaf).ravel()[:0]
        value = value + jnp.sum(nothing).astype(value.dtype)
    return value


def _scale(ct: jax.Array, gradient: jax.Array) -> jax.Array:
    return ct.astype(gradient.dtype) * gradient


def attach_variance_gradient(
    value: jax.Array, parameters: Any, gradient: Any, *, order: int = 2
) -> jax.Array:
    """`value`, with abs(ct)**order * gradient as the cotangent of `parameters`.

    For what affects variance only: the gradient of a squared gradient estimate scales with the
    square of the cotangent (order 2); that of the squared distance of a baseline from the cost
    with its magnitude (order 1), whose sign must not matter: a loss is minimised or a reward
    maximised, the distance is minimised in both.
    """
    # A number that is differentiated may not yet be an array.
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
    fixed = _fixed_at_first(jax.tree.leaves(gradient), (value, leaves))
    return _attach_variance(order, value, leaves, fixed)


def _attach_variance_(order: int, value: Any, parameters: Any, gradient: Any) -> jax.Array:
    del order
    return _in_every_lane(value, (parameters, gradient))


_attach_variance = jax.custom_vjp(_attach_variance_, nondiff_argnums=(0,))


def _attach_variance_fwd(order: int, value: Any, parameters: Any, gradient: Any) -> Any:
    value = _attach_variance_(order, value, parameters, gradient)
    return value, [g.astype(p.dtype) for p, g in zip(parameters, gradient, strict=True)]


def _attach_variance_bwd(order: int, gradient: Any, ct: jax.Array) -> Any:
    return ct, [_scale(jnp.abs(ct) ** order, g) for g in gradient], None


_attach_variance.defvjp(_attach_variance_fwd, _attach_variance_bwd)


def attach_squared_norm(value: jax.Array, squared_norm: jax.Array) -> jax.Array:
    """`value`, whose cotangent ct reaches `squared_norm` as ct**2.

    Of a gradient estimate that is differentiable in nothing but what the variance depends on.
    Where that is the weights of a network, lanes of a vmap are then summed over in the products of
    the backward pass, while `attach_variance_gradient` would hold a gradient of the weights for
    each.
    """
    return _attach_squared_norm(value, squared_norm)


@jax.custom_vjp
def _attach_squared_norm(value: jax.Array, squared_norm: jax.Array) -> jax.Array:
    return _in_every_lane(value, squared_norm)


def _attach_squared_norm_fwd(value: jax.Array, squared_norm: jax.Array) -> Any:
    return _in_every_lane(value, squared_norm), jnp.zeros((), squared_norm.dtype)


def _attach_squared_norm_bwd(like: jax.Array, ct: jax.Array) -> Any:
    return ct, (ct * ct).astype(like.dtype)


_attach_squared_norm.defvjp(_attach_squared_norm_fwd, _attach_squared_norm_bwd)


def with_variance_gradient(
    gradient: Callable[[Mapping[str, jax.Array]], jax.Array], hyper: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, Any], dict[str, jax.Array]]:
    """A gradient estimate, and the gradient of its squared norm.

    Args:
      gradient: from what affects variance only to the estimate.
      hyper: its argument, numbers or arrays.

    Returns:
      The estimate; those of `hyper` that are traced (a concrete one is not differentiated, and
      spared the second derivatives of the cost); the derivative with respect to them.
    """
    traced = {
        name: x
        for name, x in hyper.items()
        if not _check.is_concrete(x) and jnp.issubdtype(jax.dtypes.result_type(x), jnp.floating)
    }

    def squared_norm(traced: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        g = gradient({name: jnp.asarray(x) for name, x in {**hyper, **traced}.items()})
        return jnp.sum(g * g), g

    if not traced:
        return squared_norm(traced)[1], {}, {}
    with second_order_counts_as_zero():
        variance_gradient, g = jax.grad(squared_norm, has_aux=True)(traced)
    return g, traced, variance_gradient


# ---- Refused derivatives -------------------------------------------------------------------


def noting(x: jax.Array, note: Callable[[], None]) -> jax.Array:
    """`x`, which calls `note` if a derivative is traced back to it."""

    def bwd(_: None, ct: jax.Array) -> tuple[jax.Array]:
        note()
        return (ct,)

    function = jax.custom_vjp(lambda x: x)
    function.defvjp(lambda x: (x, None), bwd)
    return function(x)


def undifferentiable(
    name: str, where: str, remedies: str, draw: Callable[..., Any]
) -> Callable[..., Any]:
    """`draw(key, operands)`, whose derivative with respect to the operands raises."""

    def fwd(key: Any, operands: Any) -> tuple[Any, None]:
        out = draw(key.value, jax.tree.map(lambda x: x.value, operands, is_leaf=_is_primal))
        perturbed = any(x.perturbed for x in jax.tree.leaves(operands, is_leaf=_is_primal))
        dtypes = (x.dtype for x in jax.tree.leaves(out))
        if perturbed and not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
            # Integers carry no derivative, so there is no backward pass to raise from.
            raise UnestimatedGradientError(
                f"{name}: an integer draw was made{where} while its distribution's parameters are "
                f"being differentiated, where its gradient would silently be zero. {remedies} If "
                "the draw is for a metric only, give it jax.lax.stop_gradient(dist)."
            )
        return out, None

    def bwd(_: None, cts: Any) -> tuple[None, None]:
        if any(not _is_zero(ct) for ct in jax.tree.leaves(cts, is_leaf=_is_zero)):
            raise UnestimatedGradientError(
                f"{name}: its draw{where} was differentiated where nothing estimates the gradient, "
                f"which would silently be zero. {remedies}"
            )
        return None, None

    function = jax.custom_vjp(lambda key, operands: draw(key, operands))
    function.defvjp(fwd, bwd, symbolic_zeros=True)
    return function


# ---- Second derivatives --------------------------------------------------------------------

_ESTIMATOR = contextvars.ContextVar("estimator", default="attach_gradient")
_SECOND_ORDER_IS_ZERO = contextvars.ContextVar("second_order_is_zero", default=False)


@contextlib.contextmanager
def estimating(name: str) -> Iterator[None]:
    """Names the estimator in the errors of what is attached meanwhile."""
    token = _ESTIMATOR.set(name)
    try:
        yield
    finally:
        _ESTIMATOR.reset(token)


@contextlib.contextmanager
def second_order_counts_as_zero() -> Iterator[None]:
    """Lets second derivatives of other estimators count as zero instead of raising.

    For the gradient of a variance, whose bias is no bias of the gradient estimate.
    """
    token = _SECOND_ORDER_IS_ZERO.set(True)
    try:
        yield
    finally:
        _SECOND_ORDER_IS_ZERO.reset(token)


def once(estimate: Any, inputs: Any) -> Any:
    """`estimate`, a function of `inputs` that must not be differentiated with respect to them.

    A derivative with respect to anything else passes: of the squared gradient estimate with
    respect to a control variate's parameters, say.
    """
    return _once(_ESTIMATOR.get(), estimate, inputs)


def _once_(name: str, estimate: Any, inputs: Any) -> Any:
    del name, inputs
    return estimate


_once = jax.custom_vjp(_once_, nondiff_argnums=(0,))


def first_order(name: str, inputs: Any) -> Any:
    """`inputs`, through which derivatives of first order pass and higher ones raise."""
    return jax.tree.map(lambda x: _first_order(name, jnp.asarray(x)), inputs)


def _first_order_(name: str, x: jax.Array) -> jax.Array:
    del name
    return x


_first_order = jax.custom_vjp(_first_order_, nondiff_argnums=(0,))


def _first_order_fwd(name: str, x: jax.Array) -> tuple[jax.Array, None]:
    return _once(name, x, x), None


def _first_order_bwd(name: str, _: None, ct: jax.Array) -> tuple[jax.Array]:
    del name
    return (ct,)


_first_order.defvjp(_first_order_fwd, _first_order_bwd)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Refusal:
    """Whether, and how, `once` meets a live cotangent: a residual known at trace time."""

    perturbed: bool
    is_zero: bool


def _once_fwd(name: str, estimate: Any, inputs: Any) -> Any:
    value = lambda tree: jax.tree.map(lambda x: x.value, tree, is_leaf=_is_primal)
    perturbed = any(x.perturbed for x in jax.tree.leaves(inputs, is_leaf=_is_primal))
    # Called again, for a derivative of yet higher order to meet it too.
    passed = _once(name, value(estimate), value(inputs))
    return passed, _Refusal(perturbed, _SECOND_ORDER_IS_ZERO.get())


def _once_bwd(name: str, refusal: _Refusal, cts: Any) -> Any:
    cts = jax.tree.map(lambda ct: None if _is_zero(ct) else ct, cts, is_leaf=_is_zero)
    if not refusal.perturbed or not jax.tree.leaves(cts):
        return cts, None
    if refusal.is_zero:
        return None, None
    raise NotImplementedError(
        f"{name}: its gradient was differentiated again with respect to the distribution's "
        "parameters. The derivative of an estimate of a gradient does not estimate the second "
        "derivative. Use score_function, enumeration or, for a reparameterizable distribution, "
        "reparameterize, whose derivatives of every order are right."
    )


def _is_primal(x: Any) -> bool:
    """Whether `x` is an argument as a forward rule with symbolic zeros gets it."""
    return hasattr(x, "perturbed")


def _is_zero(ct: Any) -> bool:
    """Whether a cotangent is known to be zero, an integer's included."""
    return isinstance(ct, SymbolicZero) or getattr(ct, "dtype", None) == jax.dtypes.float0


_once.defvjp(_once_fwd, _once_bwd, symbolic_zeros=True)
