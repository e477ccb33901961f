"""The contract of every estimator.

An estimator is a function that returns a `Sampler`, and a sampler offers two pure functions:

    sampler(key, dist)               -> one draw of `dist`
    sampler.expect(key, dist, cost)  -> a scalar: an estimate of E[cost(x)], gradient attached

Differentiating the scalar estimates the gradient of the expectation, with respect to whatever
`dist` was made from and to whatever `cost` closes over. There are two kinds of sampler:

* a *pathwise* one gives draws that are differentiable by themselves;
* a *cost-based* one needs the value of the cost, so its gradient exists in `expect` and in a
  loss under `gradest.expectation`. Its draw, differentiated anywhere else, raises
  `UnestimatedGradientError`: a gradient of zero would be wrong.

A cost-based estimator is a page of ordinary JAX: it computes a value and an estimate of the
gradient with respect to the leaves of `dist`, and ties the two with `attach_gradient`. The cost
is called in plain JAX, never inside a custom derivative, so it may close over anything.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from . import _check, _jaxpr, _random
from .distributions import base


class UnestimatedGradientError(RuntimeError):
    """A derivative was asked for where no estimator provides it, and is not zero."""


class Cost:
    """The cost as estimators see it: a function of the draw whose result is checked.

    The transform hands over the rest of the program in this form.
    """

    def __init__(self, function: Callable[[Any], ArrayLike], sampler: str):
        self._function = function
        self._sampler = sampler

    def __call__(self, draw: Any) -> jax.Array:
        c = self._function(draw)
        shape, dtype = np.shape(c), jax.dtypes.result_type(c)
        if shape != () or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{self._sampler}: expected the cost to be a real scalar, got shape {shape} and "
                f"type {dtype}. Sum or average it; to give every example its own credit, vmap "
                "the expectation of a per-example loss."
            )
        return jnp.asarray(c)

    def batch(self, draws: Any) -> jax.Array:
        """The costs of draws stacked along a leading axis, each with randomness of its own."""
        return jax.vmap(self)(draws)

    def relaxed(self, point: Any) -> jax.Array:
        """The cost at a relaxed point, from which later relaxable sites are relaxed too."""
        return self(point)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """What every estimator returns: a pytree of its options, with two pure functions.

    Args:
      name: the estimator's name, for errors and profiles.
      draw: `draw(key, dist, **static, **options) -> draw`; by default the distribution's own.
      estimate: `estimate(key, dist, cost, **static, **options) -> scalar`, with `cost` a function
        of the draw; None for a pathwise sampler.
      score: `score(key, dist, **static, **options) -> (draw, log-probability, baseline)`, for an
        estimator that needs nothing but the cost of its one draw. It is what allows draws inside
        a scan.
      relaxed: `relaxed(key, dist, **static, **options)`, the continuous draw that takes this
        site's place while an earlier site evaluates the rest of the program at a relaxed point.
      options: arrays and numbers, leaves of the sampler: a temperature, a baseline. They may be
        traced.
      static: hashable options: a number of samples, a flag.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> sampler = ge.score_function(num_samples=4, baseline="leave_one_out")
      >>> loss = lambda l: sampler.expect(jax.random.key(0), Bernoulli(l), lambda b: (b - 0.3) ** 2)
      >>> jax.grad(loss)(0.0).shape
      ()
    """

    name: str
    _: dataclasses.KW_ONLY
    draw: Callable[..., Any] | None = None
    estimate: Callable[..., jax.Array] | None = None
    score: Callable[..., tuple[Any, jax.Array, ArrayLike]] | None = None
    relaxed: Callable[..., Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: Mapping[str, Hashable] = dataclasses.field(default_factory=dict)

    @property
    def pathwise(self) -> bool:
        return self.estimate is None

    def __call__(self, key: ArrayLike, dist: Any) -> Any:
        """One draw of `dist`.

        Args:
          key: a PRNG key, typed or legacy.
          dist: one of `gradest.distributions`, or of numpyro's, distrax's or TFP's.

        Returns:
          The draw, of the distribution's shape.

        Raises:
          UnestimatedGradientError: when a cost-based sampler's draw is differentiated outside
            `gradest.expectation`.
        """
        if self.pathwise:
            return self._draw(_random.as_key(key), dist)
        return _draw_at_site(self, _random.as_key(key), dist)

    def expect(self, key: ArrayLike, dist: Any, cost: Callable[[Any], ArrayLike]) -> jax.Array:
        """An estimate of E[cost(x)], x ~ dist, whose gradient estimates the expectation's.

        Args:
          key: a PRNG key, typed or legacy.
          dist: the distribution; gradients reach whatever its parameters were made from.
          cost: a function of the draw that returns a real scalar. It may close over anything,
            traced or differentiated: gradients flow to that too.

        Returns:
          A scalar.
        """
        return self._expect(_random.as_key(key), dist, Cost(cost, self.name))

    def _draw(self, key: jax.Array, dist: Any) -> Any:
        with jax.named_scope(f"gradest.{self.name}"):
            if self.draw is None:
                return base.draw(key, dist)
            return self.draw(key, dist, **self.static, **self.options)

    def _expect(self, key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
        if self.estimate is None:
            return cost(self._draw(key, dist))
        with jax.named_scope(f"gradest.{self.name}"), _estimating(self.name):
            return self.estimate(key, dist, cost, **self.static, **self.options)

    def _score(self, key: jax.Array, dist: Any) -> tuple[Any, jax.Array, ArrayLike]:
        assert self.score is not None
        with jax.named_scope(f"gradest.{self.name}"):
            return self.score(key, dist, **self.static, **self.options)

    def _relaxed(self, key: jax.Array, dist: Any) -> Any:
        assert self.relaxed is not None
        return self.relaxed(key, dist, **self.static, **self.options)

    def __repr__(self) -> str:
        options = {**self.static, **self.options}
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def _flatten(sampler: Sampler) -> tuple[tuple[Any, ...], Hashable]:
    names = tuple(sampler.options)
    functions = (sampler.draw, sampler.estimate, sampler.score, sampler.relaxed)
    return tuple(sampler.options.values()), (
        sampler.name,
        names,
        functions,
        tuple(sampler.static.items()),
    )


def _flatten_with_keys(sampler: Sampler) -> tuple[tuple[Any, ...], Hashable]:
    leaves, aux = _flatten(sampler)
    keys = map(jax.tree_util.DictKey, sampler.options)
    return tuple(zip(keys, leaves, strict=True)), aux


def _unflatten(aux: Any, leaves: tuple[Any, ...]) -> Sampler:
    name, names, functions, static = aux
    fields = dict(zip(("draw", "estimate", "score", "relaxed"), functions, strict=True))
    options = dict(zip(names, leaves, strict=True))
    return Sampler(name, **fields, options=options, static=dict(static))


jax.tree_util.register_pytree_with_keys(Sampler, _flatten_with_keys, _unflatten, _flatten)


# ---- Draws ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class SamplerSite(_jaxpr.Site):
    """A cost-based draw in a program.

    Attributes:
      sampler: with `_Hole`s for those of its options that are operands.
      treedef: of (distribution, traced options), the operands' structure.
      draw_treedef: of a draw, filled in when it is first traced.
      num_dist: how many of the operands are the distribution's.
      where: the user's line that draws.
      lanes: how many vmaps the draw is under, each adding a leading axis to the operands.
      key_shared: whether one of those vmaps gave all its lanes the same key.
      option_per_lane: whether one of them mapped an option of the sampler.
    """

    sampler: Sampler
    treedef: Any
    draw_treedef: list[Any]
    num_dist: int
    where: str
    lanes: int = 0
    key_shared: bool = False
    option_per_lane: bool = False

    def parts(self, operands: tuple[jax.Array, ...]) -> tuple[Sampler, Any]:
        """The sampler and its distribution, put together from the operands."""
        dist, traced = jax.tree.unflatten(self.treedef, operands)
        return _fill(self.sampler, traced), dist

    def draw(self, key: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        def draw(key: jax.Array, *operands: jax.Array) -> Any:
            sampler, dist = self.parts(operands)
            return sampler._draw(key, dist)

        for _ in range(self.lanes):
            draw = jax.vmap(draw)
        leaves, treedef = jax.tree.flatten(draw(key, *operands))
        self.draw_treedef[:] = [treedef]
        return [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]

    def vmapped(self, key_shared: bool, mapped: Any) -> "SamplerSite":
        return dataclasses.replace(
            self,
            lanes=self.lanes + 1,
            key_shared=self.key_shared or key_shared,
            option_per_lane=self.option_per_lane or any(mapped[self.num_dist :]),
        )


class _Hole:
    """The place of a traced option in a site's sampler."""


def _split(sampler: Sampler) -> tuple[Sampler, list[Any]]:
    """The sampler with holes for its traced options, and those options.

    A concrete option stays with the site: that it is concrete tells estimators that no
    derivative with respect to it will be asked for.
    """
    leaves, treedef = jax.tree.flatten(sampler)
    traced = [leaf for leaf in leaves if isinstance(leaf, jax.core.Tracer)]
    holes = [_Hole() if isinstance(leaf, jax.core.Tracer) else leaf for leaf in leaves]
    return jax.tree.unflatten(treedef, holes), traced


def _fill(sampler: Sampler, traced: list[Any]) -> Sampler:
    values = iter(traced)
    leaves, treedef = jax.tree.flatten(sampler)
    filled = [next(values) if isinstance(leaf, _Hole) else leaf for leaf in leaves]
    return jax.tree.unflatten(treedef, filled)


def _draw_at_site(sampler: Sampler, key: jax.Array, dist: Any) -> Any:
    base.check(dist)
    held, traced = _split(sampler)
    dist = jax.tree.map(jnp.asarray, dist)
    operands, treedef = jax.tree.flatten((dist, traced))
    where = _jaxpr.user_line()
    site = SamplerSite(held, treedef, [], len(operands) - len(traced), where)
    bind = lambda key, operands: _jaxpr.sample_p.bind(key, *operands, site=site)
    leaves = undifferentiable(sampler.name, where, _REMEDIES, bind)(key, operands)
    return jax.tree.unflatten(site.draw_treedef[0], leaves)


_REMEDIES = (
    "Either write the draw in a loss under gradest.expectation and differentiate the wrapped "
    "loss, or use sampler.expect(key, dist, cost). (A jax.grad inside the loss, around the "
    "draw, is not seen by gradest.expectation.)"
)


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


# ---- Gradients -----------------------------------------------------------------------------


@jax.custom_jvp
def magic(log_prob: jax.Array) -> jax.Array:
    """exp(l - stop_gradient(l)): one, whose derivative is that of l (Foerster 2018, eq. 4).

    Written as a rule so that an infinite l does not make it NaN, and so that l costs nothing
    where no derivative is taken.
    """
    return jnp.ones_like(log_prob)


@magic.defjvp
def _magic_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, ...]:
    one = magic(*primals)
    return one, one * tangents[0]


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
      NotImplementedError: when differentiated twice with respect to `inputs`: the derivative of
        an estimate of a gradient is not an estimate of the second derivative.

    Example:
      >>> import gradest as ge, jax
      >>> jax.grad(lambda x: ge.attach_gradient(x**2, x, 10.0))(3.0)
      Array(16., dtype=float32, weak_type=True)
    """
    leaves, gradients = [], []
    for leaf, g in zip(jax.tree.leaves(inputs), jax.tree.leaves(gradient), strict=True):
        if jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.floating):
            leaves.append(jnp.asarray(leaf))
            gradients.append(jnp.asarray(g).astype(leaves[-1].dtype))
    value = jnp.asarray(value)
    l = jnp.zeros_like(value) if log_prob is None else log_prob.astype(value.dtype)
    return _attach(_ESTIMATOR.get(), value, leaves, gradients, l)


def _attach_(name: str, value: Any, inputs: Any, gradient: Any, log_prob: Any) -> jax.Array:
    del name, inputs, gradient, log_prob
    return value


_attach = jax.custom_vjp(_attach_, nondiff_argnums=(0,))


def _attach_fwd(name: str, value: Any, inputs: Any, gradient: Any, log_prob: Any) -> Any:
    return value, (_once(name, gradient, inputs), log_prob)


def _attach_bwd(name: str, residuals: Any, ct: jax.Array) -> Any:
    del name
    gradient, log_prob = residuals
    scaled = [_scale(ct, g) for g in gradient]
    return ct * magic(log_prob), scaled, None, None


_attach.defvjp(_attach_fwd, _attach_bwd)


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
    leaves = jax.tree.leaves(parameters)
    return _attach_variance(order, value, leaves, jax.tree.leaves(gradient))


def _attach_variance_(order: int, value: Any, parameters: Any, gradient: Any) -> jax.Array:
    del order, parameters, gradient
    return value


_attach_variance = jax.custom_vjp(_attach_variance_, nondiff_argnums=(0,))


def _attach_variance_fwd(order: int, value: Any, parameters: Any, gradient: Any) -> Any:
    del order
    return value, [g.astype(p.dtype) for p, g in zip(parameters, gradient, strict=True)]


def _attach_variance_bwd(order: int, gradient: Any, ct: jax.Array) -> Any:
    return ct, [_scale(jnp.abs(ct) ** order, g) for g in gradient], None


_attach_variance.defvjp(_attach_variance_fwd, _attach_variance_bwd)


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
    traced = {name: x for name, x in hyper.items() if not _check.is_concrete(x)}

    def squared_norm(traced: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        g = gradient({name: jnp.asarray(x) for name, x in {**hyper, **traced}.items()})
        return jnp.sum(g * g), g

    if not traced:
        return squared_norm(traced)[1], {}, {}
    with _second_order_counts_as_zero():
        variance_gradient, g = jax.grad(squared_norm, has_aux=True)(traced)
    return g, traced, variance_gradient


# ---- Second derivatives --------------------------------------------------------------------

_ESTIMATOR = contextvars.ContextVar("estimator", default="attach_gradient")
_SECOND_ORDER_IS_ZERO = contextvars.ContextVar("second_order_is_zero", default=False)


@contextlib.contextmanager
def _estimating(name: str) -> Iterator[None]:
    """Names the estimator in the errors of what is attached meanwhile."""
    token = _ESTIMATOR.set(name)
    try:
        yield
    finally:
        _ESTIMATOR.reset(token)


@contextlib.contextmanager
def _second_order_counts_as_zero() -> Iterator[None]:
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
