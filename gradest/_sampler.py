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

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from . import _jaxpr, _marks, _random
from ._derivatives.refuse import estimating, undifferentiable
from .distributions import base


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
            remedy = (
                "Convert it to a floating-point number."
                if shape == ()
                else "Sum or average it; to give every example its own credit, vmap the "
                "expectation of a per-example loss."
            )
            raise ValueError(
                f"{self._sampler}: expected the cost to be a real scalar, got shape {shape} and "
                f"type {dtype}. {remedy}"
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
      linear: whether the value is a mean of costs. If it is not, but a bound of several samples,
        the draw is the last cost-based one of a loss.
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
    linear: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: Mapping[str, Hashable] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.estimate is None and (self.score is not None or self.relaxed is not None):
            raise ValueError(
                f"{self.name}: expected an estimate beside score or relaxed, got None. Without "
                "one a sampler is pathwise: its draw is differentiated as it is."
            )

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
          key: a PRNG key, typed or legacy. (An estimator that passes on its own key to another
            one has, at a draw under `jax.vmap`, an array of keys, one per lane.)
          dist: the distribution; gradients reach whatever its parameters were made from.
          cost: a function of the draw that returns a real scalar. It may close over anything,
            traced or differentiated: gradients flow to that too.

        Returns:
          A scalar.
        """
        return self._expect(_random.as_keys(key), dist, Cost(cost, self.name))

    def _draw(self, key: jax.Array, dist: Any) -> Any:
        with jax.named_scope(f"gradest.{self.name}"):
            if self.draw is None:
                return base.draw(key, dist)
            return self.draw(key, dist, **self.static, **self.options)

    def _expect(self, key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
        if self.estimate is None:
            return cost(self._draw(key, dist))
        with jax.named_scope(f"gradest.{self.name}"), estimating(self.name):
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
        sampler.linear,
        tuple(sampler.static.items()),
    )


def _flatten_with_keys(sampler: Sampler) -> tuple[tuple[Any, ...], Hashable]:
    leaves, aux = _flatten(sampler)
    keys = map(jax.tree_util.DictKey, sampler.options)
    return tuple(zip(keys, leaves, strict=True)), aux


def _unflatten(aux: Any, leaves: Iterable[Any]) -> Sampler:
    name, names, functions, linear, static = aux
    fields = dict(zip(("draw", "estimate", "score", "relaxed"), functions, strict=True))
    options = dict(zip(names, leaves, strict=True))
    return Sampler(name, **fields, linear=linear, options=options, static=dict(static))


jax.tree_util.register_pytree_with_keys(Sampler, _flatten_with_keys, _unflatten, _flatten)


# ---- Draws ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class SamplerSite(_marks.Site):
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
    bind = lambda key, operands: _marks.sample_p.bind(key, *operands, site=site)
    leaves = undifferentiable(sampler.name, where, _REMEDIES, bind)(key, operands)
    return jax.tree.unflatten(site.draw_treedef[0], leaves)


_REMEDIES = (
    "Either write the draw in a loss under gradest.expectation and differentiate the wrapped "
    "loss, or use sampler.expect(key, dist, cost). (A jax.grad inside the loss, around the "
    "draw, is not seen by gradest.expectation.)"
)
