"""Derivatives that are refused, with an error that names what to use instead."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .. import _mesh
from .primitives import lanes_first, zero_tangent


class UnestimatedGradientError(RuntimeError):
    """A derivative was asked for where no estimator provides it, and is not zero."""

    __module__ = "gradest"


class UnestimatedGradientWarning(UserWarning):
    """A part of a derivative that no estimator provides counts as zero."""

    __module__ = "gradest"


# ---- First derivatives ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a draw has no derivative.

    Attributes:
      estimator: the name of what drew it.
      where: the user's line, as ' (at file:line)', or nothing.
      remedies: what to do instead, as sentences.
    """

    estimator: str
    where: str
    remedies: str

    def of_float(self) -> Exception:
        return UnestimatedGradientError(
            f"{self.estimator}: its draw{self.where} was differentiated where nothing estimates "
            f"the gradient, which would silently be zero. {self.remedies}"
        )

    def of_integer(self) -> Exception:
        return UnestimatedGradientError(
            f"{self.estimator}: an integer draw was made{self.where} while its distribution's "
            "parameters are being differentiated, where its gradient would silently be zero. "
            f"{self.remedies} If the draw is for a metric only, give it "
            "jax.lax.stop_gradient(dist)."
        )


# The tangents of a draw, linear in those of its parameters, which raise once they are asked for: by
# a transpose that has a cotangent for them, or by the compiler.
no_gradient_p = core.Primitive("gradest_no_gradient")
no_gradient_p.multiple_results = True


def refused_tangents(refusal: Refusal, draw: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """The tangents of the leaves of a draw, given those of what it was drawn from."""
    is_float0 = lambda t: getattr(t, "dtype", None) == jax.dtypes.float0
    live = [t for t in tangents if not (isinstance(t, ad.Zero) or is_float0(t))]
    if not live:
        return list(map(zero_tangent, draw))
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in draw):
        # Integers carry no derivative: no transpose would raise.
        raise refusal.of_integer()
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in draw)
    return no_gradient_p.bind(*live, shapes=shapes, refusal=refusal)


@no_gradient_p.def_abstract_eval
def _(*avals: Any, shapes: Sequence[Any], refusal: Refusal) -> list[Any]:
    del refusal
    return [_mesh.shaped(shape, avals) for shape in shapes]


@no_gradient_p.def_impl
def _(*_: Any, shapes: Sequence[Any], refusal: Refusal) -> list[jax.Array]:
    # Run operation by operation, as the tangents of a metric are, which are thrown away.
    del refusal
    return [jnp.full(s.shape, jnp.nan, s.dtype) for s in shapes]


def _raise_in_compiler(*_: Any, shapes: Sequence[Any], refusal: Refusal) -> Any:
    del shapes
    raise refusal.of_float()


mlir.register_lowering(no_gradient_p, _raise_in_compiler)


def _transpose_no_gradient(cts: Any, *tangents: Any, shapes: Any, refusal: Refusal) -> list[None]:
    del shapes
    if not all(isinstance(ct, ad.Zero) for ct in cts):
        raise refusal.of_float()
    return [None] * len(tangents)


ad.primitive_transposes[no_gradient_p] = _transpose_no_gradient


def _differentiate_no_gradient(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    out = no_gradient_p.bind(*primals, **params)
    if all(isinstance(t, ad.Zero) for t in tangents):
        return out, list(map(zero_tangent, out))
    moves = [ad.instantiate_zeros(t) for t in tangents]
    return out, no_gradient_p.bind(*moves, **params)


ad.primitive_jvps[no_gradient_p] = _differentiate_no_gradient


def _batch_no_gradient(args: Any, dims: Any, *, shapes: Any, refusal: Refusal) -> Any:
    moved = lanes_first(args, dims)
    size = moved[0].shape[0]
    shapes = tuple(jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in shapes)
    return no_gradient_p.bind(*moved, shapes=shapes, refusal=refusal), [0] * len(shapes)


batching.primitive_batchers[no_gradient_p] = _batch_no_gradient


# Its first operand, a draw from the other ones, of which it has no derivative.
undifferentiable_p = core.Primitive("gradest_undifferentiable")


def undifferentiable(refusal: Refusal, draw: jax.Array, drawn_from: Any) -> jax.Array:
    """`draw`, whose derivative with respect to the leaves of `drawn_from` raises."""
    leaves = jax.tree.leaves(drawn_from)
    return undifferentiable_p.bind(jax.lax.stop_gradient(draw), *leaves, refusal=refusal)


undifferentiable_p.def_impl(lambda draw, *_, refusal: draw)
undifferentiable_p.def_abstract_eval(lambda draw, *_, refusal: draw)
mlir.register_lowering(undifferentiable_p, lambda ctx, draw, *_, refusal: [draw])


def _differentiate_undifferentiable(primals: Any, tangents: Any, *, refusal: Refusal) -> Any:
    draw = undifferentiable_p.bind(*primals, refusal=refusal)
    (tangent,) = refused_tangents(refusal, [draw], tangents[1:])
    return draw, tangent


def _batch_undifferentiable(args: Any, dims: Any, **params: Any) -> Any:
    return undifferentiable_p.bind(*lanes_first(args, dims), **params), 0


ad.primitive_jvps[undifferentiable_p] = _differentiate_undifferentiable
batching.primitive_batchers[undifferentiable_p] = _batch_undifferentiable


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


def _refuse_second_order(name: str, estimate: Any, inputs: Any) -> Any:
    """`estimate`, a function of `inputs` that must not be differentiated with respect to them.

    A derivative with respect to anything else passes: of the squared gradient estimate with
    respect to a control variate's parameters, say.
    """
    del name, inputs
    return estimate


refuse_second_order = jax.custom_vjp(_refuse_second_order, nondiff_argnums=(0,))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Second:
    """Whether, and how, a live cotangent is refused: a residual known at trace time."""

    perturbed: bool
    is_zero: bool


def _refuse_second_order_fwd(name: str, estimate: Any, inputs: Any) -> Any:
    value = lambda tree: jax.tree.map(lambda x: x.value, tree, is_leaf=_is_primal)
    perturbed = any(x.perturbed for x in jax.tree.leaves(inputs, is_leaf=_is_primal))
    # Called again, for a derivative of yet higher order to meet it too.
    passed = refuse_second_order(name, value(estimate), value(inputs))
    return passed, _Second(perturbed, _SECOND_ORDER_IS_ZERO.value)


def _refuse_second_order_bwd(name: str, second: _Second, cts: Any) -> Any:
    cts = jax.tree.map(lambda ct: None if _is_zero(ct) else ct, cts, is_leaf=_is_zero)
    if not second.perturbed or not jax.tree.leaves(cts):
        return cts, None
    if second.is_zero:
        return None, None
    raise NotImplementedError(
        f"{name}: its gradient was differentiated again with respect to the distribution's "
        "parameters. The derivative of an estimate of a gradient does not estimate the second "
        "derivative. Use score_function, enumeration or, for a reparameterizable distribution, "
        "reparameterize, whose derivatives of every order are right."
    )


refuse_second_order.defvjp(_refuse_second_order_fwd, _refuse_second_order_bwd, symbolic_zeros=True)


def _is_primal(x: Any) -> bool:
    """Whether `x` is an argument as a forward rule with symbolic zeros gets it."""
    return hasattr(x, "perturbed")


def _is_zero(ct: Any) -> bool:
    """Whether a cotangent is known to be zero, an integer's included."""
    return isinstance(ct, SymbolicZero) or getattr(ct, "dtype", None) == jax.dtypes.float0


def first_order(name: str, inputs: Any) -> Any:
    """`inputs`, through which derivatives of first order pass and higher ones raise."""
    return jax.tree.map(lambda x: _pass_first_order(name, jnp.asarray(x)), inputs)


def _pass_first_order_(name: str, x: jax.Array) -> jax.Array:
    del name
    return x


_pass_first_order = jax.custom_vjp(_pass_first_order_, nondiff_argnums=(0,))


def _pass_first_order_fwd(name: str, x: jax.Array) -> tuple[jax.Array, None]:
    return refuse_second_order(name, x, x), None


def _pass_first_order_bwd(name: str, _: None, ct: jax.Array) -> tuple[jax.Array]:
    del name
    return (ct,)


_pass_first_order.defvjp(_pass_first_order_fwd, _pass_first_order_bwd)
