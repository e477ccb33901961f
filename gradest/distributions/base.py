"""What a distribution is, and what makes its parameters arrays."""

import abc
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _calls, _numerics
from .._derivatives.primitives import drawn_p, scored_p
from .._derivatives.refuse import Refusal, undifferentiable
from .._written import user_line
from ._derived import Derived, rebuilt

Shape = tuple[int, ...]


class WeakDerivative(NamedTuple):
    r"""The derivative in one parameter as a difference of costs, w (f(x+) - f(x-)) on average.

    .. math:: \nabla_\theta E[f(x)] = E[w (f(x^+) - f(x^-))]

    In the others of the joint draw's variables x+ and x- are the draw; each element of the
    parameter belongs to one variable.

    Attributes:
      weight: w, of the shape of the parameter; it may be random, and negative where the draw has
        the place of x+.
      plus: x+, shape (*variables, *elements, *event), elements being those of the variable's
        parameter and an event being the value of one variable.
      minus: x-, likewise; None for the draw itself, which costs no evaluation.
      of_row: whether x- is, instead, each x+ of the parameter's last axis with its weight for its
        probability.
    """

    weight: jax.Array
    plus: jax.Array
    minus: jax.Array | None = None
    of_row: bool = False


class Distribution(Derived, abc.ABC):
    """A pytree whose leaves are its parameters.

    A subclass lists its parameters' names, where they are not those of its base, broadcasts them
    against each other when it is made (so that a leading axis on every leaf is a leading axis of
    the draw), and may be rebuilt by JAX with anything at all in the place of its leaves.

    `sample` and `log_prob` are all that it must have. What else it has decides which estimators
    serve it:

    * `reparameterizable = True`, if `sample` is differentiable in the parameters;
    * `enumerate_support()`, the outcomes of one independent element along a leading axis (and a
      property `num_outcomes`, where there may be too many to list). Their probabilities add up to
      1; if it is known that they do not, that raises, and else the estimate is NaN;
    * `mean()`, of the shape of a draw, differentiable in the parameters;
    * `weak_derivative(key, x, coupled=True)`, for each parameter a `WeakDerivative`, or a tuple of
      the same, at the draw `x`, with noise of `key`: coupled, x+ and x- have what noise they can
      in common, with `x` too; else they are independent. None for a parameter of integers. And
      `left_weak_derivative`, one from the other side, for counts;
    * `reflect(x)`, the draw as probable as `x` on the other side of the centre;
    * `quantile(u)`, the draw that u of the probability is below, elementwise, for u between 0 and 1
      of the shape of a draw, differentiable in the parameters;
    * `of_noise(e)`, the draw made of standard Normal noise e, of the shape that a property
      `noise_shape` has: linear in e but for the centre;
    * `perturb(key)`, z, a differentiable function of the parameters and of noise, such as their
      sum, and `soften(z, temperature)`, the relaxed draw there;
    * besides, `harden(z)`, an exact draw; `conditional(key, x)`, a z of which x is the draw; and
      `pull_back_conditional(x, z, ct)`, the cotangent of the parameter given that of such a z,
      whose noise is held fixed, or a tuple of those of several parameters.

    A `sample`, `mean`, `reflect`, `quantile` or `of_noise` that makes something of another shape
    than a draw's is refused.
    """

    parameters: ClassVar[tuple[str, ...]]
    #: Names of what is no array and the same in every lane, such as a size.
    static: ClassVar[tuple[str, ...]] = ()
    #: Whether `sample` is differentiable in the parameters, pathwise.
    reparameterizable: ClassVar[bool] = False
    #: Whether it is known that probabilities of 0 or 1 are differentiated, of what was just made.
    lost_edge: bool = False
    #: The parameter in which they are seen, and `_at_edge` tells where.
    edged: ClassVar[str] = "logits"
    #: The logits of what was just made, and as they were given: those have no derivative where they
    #: are infinite.
    _given: tuple[Any, Any] = (None, None)
    #: Whether the set of possible draws is the same whatever the parameters.
    fixed_support: ClassVar[bool] = True
    #: Why it has no log-probability to be scored, and what to use; empty if it has one.
    no_density: ClassVar[str] = ""
    #: Whether it has mass at 0 and at 1, besides a density: draws may be equal to these.
    atoms: ClassVar[bool] = False
    #: Whether its outcomes are those of a softmax or a sigmoid of its logits.
    categorical: ClassVar[bool] = False

    def _at_edge(self, parameter: jax.Array) -> jax.Array:
        return jnp.isinf(parameter)

    def _for_scores(self) -> Any:
        """Itself, for who takes nothing but scores of its draws, which infinite logits do not have.

        No mask says that they have no derivative, which loops would keep: of categories, one for
        every logit. (A Bernoulli's is as small as its draw, and XLA's loops are faster with it.)
        """
        own, given = self._given
        only = self.parameters == ("logits",) and given is not None
        return rebuilt(self, given) if only and own is self.logits else self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "sample" in vars(cls):
            cls.sample = _calls.sampling(vars(cls)["sample"])
        if "__init__" in vars(cls):
            cls.__init__ = _calls.made(vars(cls)["__init__"])
        if hasattr(cls, "parameters"):
            jax.tree_util.register_pytree_with_keys(
                cls, cls._flatten_with_keys, cls._unflatten, cls._flatten
            )

    def _flatten(self) -> tuple[tuple[Any, ...], tuple[Hashable, ...]]:
        leaves = tuple(getattr(self, name) for name in self.parameters)
        return leaves, tuple(getattr(self, name) for name in self.static)

    def _flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[Hashable, ...]]:
        leaves, aux = self._flatten()
        keys = map(jax.tree_util.GetAttrKey, self.parameters)
        return tuple(zip(keys, leaves, strict=True)), aux

    @classmethod
    def _unflatten(cls, aux: tuple[Hashable, ...], leaves: Iterable[Any]) -> Self:
        self = object.__new__(cls)
        for name, leaf in zip(cls.parameters, leaves, strict=True):
            setattr(self, name, leaf)
        for name, value in zip(cls.static, aux, strict=True):
            setattr(self, name, value)
        return self

    def __getattr__(self, name: str) -> Any:
        remedy = _calls.INSTEAD.get(name, "")
        raise AttributeError(f"{type(self).__name__} has no attribute {name}. {remedy}".rstrip())

    def __repr__(self) -> str:
        describe = lambda x: f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else repr(x)
        names = (*self.parameters, *self.static)
        fields = (f"{name}={describe(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({', '.join(fields)})"

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """Shape of one joint draw."""

    @abc.abstractmethod
    def sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        """Independent draws of shape `shape + self.shape`."""

    @abc.abstractmethod
    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Log-density or log-probability of each independent element of `x`."""

    @_calls.sampling
    def sample_and_log_prob(self, key: ArrayLike, shape: Shape = ()) -> tuple[jax.Array, jax.Array]:
        """Draws with their log-probabilities, from before they were rounded.

        Where a density is steep, as of a Gamma variable of small concentration near 0, the rounded
        draw alone does not tell its density. The draws are fixed: the derivative of the
        log-probabilities is the score.
        """
        fixed = jax.lax.stop_gradient(self)
        u = fixed._sample_unrounded(key, shape)
        return fixed._rounded(u), self._log_prob_unrounded(u)

    def _sample_unrounded(self, key: ArrayLike, shape: Shape) -> Any:
        """What draws are made of and the density is known by: the draws, or logarithms, say."""
        return self._sample(key, shape)

    def _sample(self, key: ArrayLike, shape: Shape = ()) -> jax.Array:
        """`sample`, of a discrete distribution without the refusal or the mark of `plain`.

        Raises:
          ValueError: if the draws have another shape, which `log_prob` would sum over.
        """
        x, expected = self.sample(key, shape), (*shape, *self.shape)
        if np.shape(x) != expected:
            name = type(self).__name__
            raise ValueError(
                f"dist: expected of {name}.sample(key, {shape}) draws of shape {expected}, that of "
                f"{name}.shape and what is asked for, got {np.shape(x)}. Mend one of the two."
            )
        return x

    def _rounded(self, u: Any) -> jax.Array:
        """The draws that are made of `u`."""
        return u

    def _log_prob_unrounded(self, u: Any) -> jax.Array:
        """The log-probability of the draws that are made of `u`."""
        return self.log_prob(u)

    def _of_noise_unrounded(self, e: jax.Array) -> Any:
        """`of_noise`, from before it is rounded."""
        return self.of_noise(e)

    def _weak_derivative_unrounded(self, key: jax.Array, u: Any, coupled: bool) -> Sequence[Any]:
        """`weak_derivative` at the draw that is made of `u`."""
        return self.weak_derivative(key, self._rounded(u), coupled=coupled)


def as_floats(**named: ArrayLike) -> list[jax.Array]:
    """The parameters as floating-point arrays of one type, broadcast against each other."""
    arrays = [as_float(name, value) for name, value in named.items()]
    dtype = jnp.result_type(*arrays)
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shapes = ", ".join(f"{name}: {a.shape}" for name, a in zip(named, arrays, strict=True))
        raise ValueError(f"expected parameters of shapes that broadcast, got {shapes}.") from None
    return [jnp.broadcast_to(array.astype(dtype), shape) for array in arrays]


def as_float(name: str, value: ArrayLike) -> jax.Array:
    """`value` as a floating-point array; integers become the default float type."""
    if isinstance(value, (np.ndarray, np.generic)) and np.issubdtype(value.dtype, np.integer):
        # JAX would cut those of 64 bits without a word.
        value = value.astype(float)
    try:
        array = jnp.asarray(value)
    except OverflowError:
        array = jnp.asarray(np.asarray(value, float))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a real array, got {type(value).__name__}.") from None
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.integer):
        # A Python integer takes the type of the other parameters, as a Python float does.
        return array * 1.0 if array.weak_type else array.astype(float)
    raise TypeError(f"{name}: expected a real array, got one of type {array.dtype}.")


def align_wide(x: ArrayLike, *parameters: jax.Array) -> list[jax.Array]:
    """`align`, in the type in which formulas are computed for parameters of this type."""
    dtype = _numerics.compute_dtype(jnp.result_type(*parameters))
    return align(*(jnp.asarray(array, dtype) for array in (x, *parameters)))


class Shifted(NamedTuple):
    """A draw x = start + step from before the two were added: what the sum rounds to is lost.

    Where a centre is large and the scale small, the density is steep between neighbouring numbers.

    Attributes:
      start: the centre that it was drawn around.
      step: of it.
    """

    start: jax.Array
    step: jax.Array


def shifted(x: ArrayLike, loc: jax.Array) -> Shifted:
    """`x` as a step from 0, in the type to compute in with a centre `loc`."""
    (x,) = align_wide(x, loc)[:1]
    return Shifted(jnp.zeros_like(x), x)


def align(*arrays: ArrayLike) -> list[jax.Array]:
    """The arrays broadcast against each other, whatever their ranks."""
    shape = np.broadcast_shapes(*map(np.shape, arrays))
    return [jnp.broadcast_to(array, shape) for array in arrays]


def finite(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x` as numbers of type `dtype`, finite where a narrower type has no such number."""
    if jnp.dtype(dtype) == x.dtype:
        return x
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -limit, limit).astype(dtype)


# ---- Draws without an estimator --------------------------------------------------------------


def plain(dist: Distribution, x: jax.Array) -> jax.Array:
    """`x`, drawn from the discrete `dist`, which no gradient reaches, as `sample` returns it.

    A floating-point draw refuses its derivative. An integer has none to refuse: it is marked, for
    gradest.expectation to judge it.
    """
    name = f"{type(dist).__name__}.sample"
    if jnp.issubdtype(x.dtype, jnp.floating):
        return undifferentiable(Refusal(name, user_line(), _REMEDIES), x, dist)
    return drawn_p.bind(x, *jax.tree.leaves(dist), name=name)


def scored(dist: Distribution, x: ArrayLike) -> ArrayLike:
    """`x`, whose log-probability is taken: that of an integer draw is no use of its value."""
    if isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.integer):
        return scored_p.bind(x, *jax.tree.leaves(dist))
    return x


_REMEDIES = (
    "Draw by a sampler, such as gradest.score_function()(key, dist), in a loss under "
    "gradest.expectation. For a score function by hand use jax.lax.stop_gradient(draw), and "
    "dist.log_prob of that."
)
