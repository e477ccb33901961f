"""Derivatives that are refused, with an error that names what to use instead."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


class UnestimatedGradientError(RuntimeError):
    """A derivative was asked for where no estimator provides it, and is not zero."""

    __module__ = "gradest"


class UnestimatedGradientWarning(UserWarning):
    """A part of a derivative that no estimator provides counts as zero."""

    __module__ = "gradest"


# ---- First derivatives ---------------------------------------------------------------------


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

# Rules read these while JAX traces, and JAX keeps what it traced: they are part of its cache's key.
_ESTIMATOR = jax.make_user_context("attach_gradient")
_SECOND_ORDER_IS_ZERO = jax.make_user_context(False)


def estimating(name: str) -> contextlib.AbstractContextManager[None]:
    """Names the estimator in the errors of what is attached meanwhile."""
    return _ESTIMATOR(name)


def estimator_name() -> str:
    return _ESTIMATOR.value


def second_order_counts_as_zero() -> contextlib.AbstractContextManager[None]:
    """Lets second derivatives of other estimators count as zero instead of raising.

    For the gradient of a variance, whose bias is no bias of the gradient estimate.
    """
    return _SECOND_ORDER_IS_ZERO(True)


def _refuse_second_(name: str, estimate: Any, inputs: Any) -> Any:
    del name, inputs
    return estimate


refuse_second = jax.custom_vjp(_refuse_second_, nondiff_argnums=(0,))


def first_order(name: str, inputs: Any) -> Any:
    """`inputs`, through which derivatives of first order pass and higher ones raise."""
    return jax.tree.map(lambda x: _first_order(name, jnp.asarray(x)), inputs)


def _first_order_(name: str, x: jax.Array) -> jax.Array:
    del name
    return x


_first_order = jax.custom_vjp(_first_order_, nondiff_argnums=(0,))


def _first_order_fwd(name: str, x: jax.Array) -> tuple[jax.Array, None]:
    return refuse_second(name, x, x), None


def _first_order_bwd(name: str, _: None, ct: jax.Array) -> tuple[jax.Array]:
    del name
    return (ct,)


_first_order.defvjp(_first_order_fwd, _first_order_bwd)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Refusal:
    """Whether, and how, `refuse_second` meets a live cotangent: a residual known at trace time."""

    perturbed: bool
    is_zero: bool


def _refuse_second_fwd(name: str, estimate: Any, inputs: Any) -> Any:
    value = lambda tree: jax.tree.map(lambda x: x.value, tree, is_leaf=_is_primal)
    perturbed = any(x.perturbed for x in jax.tree.leaves(inputs, is_leaf=_is_primal))
    # Called again, for a derivative of yet higher order to meet it too.
    passed = refuse_second(name, value(estimate), value(inputs))
    return passed, _Refusal(perturbed, _SECOND_ORDER_IS_ZERO.value)


def _refuse_second_bwd(name: str, refusal: _Refusal, cts: Any) -> Any:
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


refuse_second.defvjp(_refuse_second_fwd, _refuse_second_bwd, symbolic_zeros=True)
