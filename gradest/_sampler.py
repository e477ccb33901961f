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

Elements of a draw may be masked, `where=`. No estimator knows of it: see `distributions._masked`.

A site is a cost-based draw in a program: an equation of `sample_p`, for which the transform finds
its sampler again. Samplers make sites and sites hold samplers, so both are here.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from . import _calls, _check, _draws, _jaxpr, _mesh, _random, _same_key, _written
from ._control_variate import ControlVariate
from ._cost import Cost, cost_of, staging
from ._derivatives.refuse import estimating
from ._derivatives.watch import guarded
from ._jumps import Complaint, CostComplaints, SlopeIn, Source, complaints_of_cost
from ._lockstep import key_of_run
from ._typing import DistributionLike
from .distributions import _closed, _foreign, _joint, base
from .distributions._masked import Masked, law_of, masked

# ---- What a sampler's functions look like --------------------------------------------------


class DrawFn(Protocol):
    """The value of one draw of `dist`; a pathwise one is differentiable in its parameters."""

    def __call__(self, key: jax.Array, dist: Any, /, *args: Any, **options: Any) -> Any: ...


class EstimateFn(Protocol):
    """The mean cost of one or more draws, with a gradient with respect to `dist` attached."""

    def __call__(
        self, key: jax.Array, dist: Any, cost: Cost, /, *args: Any, **options: Any
    ) -> jax.Array: ...


class ScoreFn(Protocol):
    """One draw, its log-probability, and what is taken off its score function's variance.

    The last is a baseline, a number that does not depend on the draw, or a `ControlVariate`.
    """

    def __call__(
        self, key: jax.Array, dist: Any, /, *args: Any, **options: Any
    ) -> tuple[Any, jax.Array, ArrayLike | ControlVariate]: ...


class HoistFn(Protocol):
    """(static, options), with the arrays that static functions close over among the options."""

    def __call__(
        self, dist: Any, /, *args: Any, **options: Any
    ) -> tuple[Mapping[str, Hashable], Mapping[str, Any]]: ...


class _Static(dict[str, Hashable]):
    """Options that are known when a program is traced; hashable, as JAX's caches need them."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


# ---- Samplers ------------------------------------------------------------------------------


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["options"],
    meta_fields=[
        *("name", "draw", "estimate", "score", "relaxed", "hoist", "linear", "takes_baseline"),
        *("slope_in", "converts", "static"),
    ],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """What every estimator returns: a pytree of its options, with two pure functions.

    Each of its functions answers one question of a program's about the draw, and is given the
    options by name. The options are of two kinds, since JAX traces the one and caches by the other.

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
      hoist: `hoist(dist, **static, **options) -> (static, options)`, for an estimator that takes
        functions: where a program draws, what they close over becomes part of the options.
      linear: whether the value is a mean of costs. If it is not, but a bound of several samples,
        the draw is the last cost-based one of a loss.
      takes_baseline: whether it is a score function without a baseline, which takes the one that
        several runs of a loss give each other (`Cost.others`; the transform does it for `score`).
      slope_in: what the cost is differentiated in, and must not jump in: a "draw" of a continuous
        law; a "relaxed draw", of a discrete one; a "discrete draw", as if it were continuous; a
        "relaxed point" between discrete draws; or "", nothing. By default "draw" for a pathwise
        sampler, and "" for any other. Where that depends on the distribution, a function of its
        class.
      converts: whether a distribution of another library is converted to gradest's own even where
        that costs a matrix, or moves its support: for who needs what only gradest's have.
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
    draw: DrawFn | None = None
    estimate: EstimateFn | None = None
    score: ScoreFn | None = None
    relaxed: DrawFn | None = None
    hoist: HoistFn | None = None
    linear: bool = True
    takes_baseline: bool = False
    slope_in: SlopeIn | Callable[[type], SlopeIn] | None = None
    converts: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: Mapping[str, Hashable] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.estimate is None and (self.score is not None or self.relaxed is not None):
            raise ValueError(
                f"{self.name}: expected an estimate beside score or relaxed, got None. Without "
                "one a sampler is pathwise: its draw is differentiated as it is."
            )
        if self.slope_in is None:
            object.__setattr__(self, "slope_in", "draw" if self.pathwise else "")
        object.__setattr__(self, "static", _Static(self.static))

    @property
    def pathwise(self) -> bool:
        return self.estimate is None

    def __getattr__(self, name: str) -> Any:
        remedy = _calls.INSTEAD_OF_SAMPLER.get(name, "")
        raise AttributeError(f"Sampler has no attribute {name}. {remedy}".rstrip())

    @_calls.of_sampler
    def __call__(
        self, key: ArrayLike, dist: DistributionLike, *, where: ArrayLike | None = None
    ) -> jax.Array:
        """One draw of `dist`.

        Args:
          key: a PRNG key, typed or legacy.
          dist: one of `gradest.distributions`, or of numpyro's, distrax's or TFP's.
          where: booleans, True for the elements that are drawn, of a shape that broadcasts to the
            draw's without the axes of an event (a row of a OneHotCategorical, a vector); one for
            all switches the site on and off. By default all are drawn. The end of an episode,
            padding and ragged batches are masks: one may depend on earlier draws, and be a jump of
            those. A masked element is a fixed point of the support, whatever its parameters, NaN
            included: 0 where that is one, else 1, one half or the uniform point; the first
            category. It has no noise and no log-probability, and adds no variance to the
            gradient, which is exactly zero in its parameters; where all are masked no baseline,
            or other option of the sampler, is trained. How often the cost is evaluated does not
            change. (To mask the log-probability alone is another thing: an element that is still
            drawn, and enters the cost, then lacks its score, and the gradient is biased.)

        Returns:
          The draw, of the distribution's shape; of a joint distribution of another library's, a
          pytree of arrays.

        Raises:
          UnestimatedGradientError: when a cost-based sampler's draw is differentiated outside
            `gradest.expectation`.
          TypeError: if `where` is not boolean, or the distribution, or the draw of a sampler of
            one's own, cannot be masked.
          ValueError: if `where` has another shape than the elements of the draw.

        Example:
          >>> import gradest as ge, jax, jax.numpy as jnp
          >>> from gradest.distributions import Bernoulli
          >>> logits = jnp.array([2.0, -1.0, jnp.nan])                   # the last one is padding
          >>> loss = lambda l: ge.enumeration().expect(
          ...     jax.random.key(0), Bernoulli(l), lambda b: jnp.sum(b) ** 2, where=~jnp.isnan(l)
          ... )
          >>> [f"{g:.3f}" for g in jax.grad(loss)(logits)]
          ['0.161', '0.543', '0.000']
        """
        _same_key.check(key, self.name, not self.pathwise)
        key = key_of_run(_random.as_key(key))
        key, dist = self._alike(key, self._opened(dist, where))
        if self.pathwise:
            return self._recorded(key, self._draw(key, dist), dist)
        return _draw_at_site(self, key, dist)

    @_calls.of_sampler
    def expect(
        self,
        key: ArrayLike,
        dist: DistributionLike,
        cost: Callable[[Any], ArrayLike],
        *,
        where: ArrayLike | None = None,
    ) -> jax.Array:
        """An estimate of E[cost(x)], x ~ dist, whose gradient estimates the expectation's.

        Args:
          key: a PRNG key, typed or legacy. (An estimator that passes on its own key to another
            one has, at a draw under `jax.vmap`, an array of keys, one per lane.)
          dist: the distribution; gradients reach whatever its parameters were made from.
          cost: a function of the draw that returns a real scalar. It may close over anything,
            traced or differentiated: gradients flow to that too. In a transformation it may be
            traced once more than it is evaluated, to see where it jumps.
          where: booleans, True for the elements that are drawn, as of a draw.

        Returns:
          A scalar.

        Raises:
          TypeError: if `cost` is not a function.
          TypeError, ValueError: for a mask, or what cannot be masked, as of a draw.
        """
        if not callable(cost):
            raise TypeError(
                f"{self.name}: cost: expected a function of the draw, got {type(cost).__name__}. "
                "Write sampler.expect(key, dist, lambda x: ...)."
            )

        _same_key.check(key, self.name, not self.pathwise)
        keys = key_of_run(_random.as_keys(key))
        keys, dist = self._alike(keys, self._opened(dist, where))
        of = cost_of(cost, _same_key.expect_call(key, self.name, not self.pathwise))
        complaints = self._complaints(keys, dist, of)
        if self.pathwise:
            value = of(self._recorded(keys, self._draw(keys, dist), dist, complaints.of_draw))
        else:
            if staging.value:
                keys = _draws.estimating_with(keys, self.name, _written.user_line())
            value = self._estimate(keys, dist, of)
        for closed_over, complaint in complaints.of_closed_over:
            value = guarded(value, closed_over, complaint)
        return guarded(value, dist, complaints.of_draw)

    def _complaints(self, keys: jax.Array, dist: Any, cost: Cost) -> CostComplaints:
        """Of a cost that jumps, where it may be differentiated."""
        source = self._source(_written.user_line(), law_of(dist))
        if keys.ndim or not _jaxpr.is_tracing() or source.followed(None) is None:
            return CostComplaints()
        point = jax.eval_shape(self._draw, keys, dist)
        what = f"the cost of the draw{source.where}"
        try:
            complaints = complaints_of_cost(source, cost, point, what=what)
        except Exception:
            # A cost that is no program for JAX, such as a simulator of numbers. Where it is to be
            # differentiated in the draw, it has to be one.
            if self.slope_in and any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(dist)):
                raise
            return CostComplaints()
        # A loss that is staged sees for itself what follows a pathwise draw.
        seen = self.pathwise and staging.value
        return complaints._replace(of_closed_over=()) if seen else complaints

    def _opened(self, dist: Any, where: ArrayLike | None) -> Any:
        """`dist` as gradest's own, or with all that it depends on as leaves."""
        own = _foreign.own(dist, always=self.converts or where is not None)
        if self.score is not None and not self.slope_in and isinstance(own, base.Distribution):
            own = own._for_scores()
        return (
            _closed.closed(own, scored=not self.pathwise) if where is None else masked(own, where)
        )

    def _alike(self, key: jax.Array, dist: Any) -> tuple[jax.Array, Any]:
        """The key and the distribution, varying over the same axes of a shard_map."""
        traced = [x for x in jax.tree.leaves(self.options) if not _check.is_concrete(x)]
        return _mesh.varying_alike(key, dist, traced)[:2]

    # These give the sampler's functions what they are written for: of a masked distribution the
    # one without the parameters that are masked, and the cost of the draw with its fixed points.

    def _draw(self, key: jax.Array, dist: Any) -> Any:
        if isinstance(dist, Masked):
            return self._fixed(dist, self._draw(key, dist.safe))
        with jax.named_scope(f"gradest.{self.name}"):
            if self.draw is None:
                return _joint.plain_draw(key, dist) if self.pathwise else _joint.draw(key, dist)
            return self.draw(key, dist, **self.static, **self.options)

    def _estimate(self, key: jax.Array, dist: Any, cost: Cost) -> jax.Array:
        if self.estimate is None:
            return cost(self._draw(key, dist))
        options = self.options
        if isinstance(dist, Masked):
            options, cost = self._options_in(dist), cost.after(functools.partial(self._fixed, dist))
            dist = dist.safe if self.score is None else dist.scored
        with jax.named_scope(f"gradest.{self.name}"), estimating(self.name):
            return self.estimate(key, dist, cost, **self.static, **options)

    def _score(self, key: jax.Array, dist: Any) -> tuple[Any, jax.Array, Any]:
        assert self.score is not None
        options = self.options
        if isinstance(dist, Masked):
            options, dist = self._options_in(dist), dist.scored
        with jax.named_scope(f"gradest.{self.name}"), estimating(self.name):
            return self.score(key, dist, **self.static, **options)

    def _source(self, where: str, law: type) -> Source:
        """Of a draw at the user's line `where`."""
        slope_in = (self.slope_in(law) if callable(self.slope_in) else self.slope_in) or ""
        return Source(self.name, slope_in, where, law, with_score=slope_in == "relaxed point")

    def _recorded(
        self, key: jax.Array, draw: Any, dist: Any, complaint: Complaint | None = None
    ) -> Any:
        """A pathwise draw, recorded in the program that is being staged, if one is."""
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(draw)):
            return draw
        source = self._source(_written.user_line(), law_of(dist))
        source = dataclasses.replace(source, complaint=complaint)
        return _draws.recorded(source, key, draw, dist)

    def _relaxed(self, key: jax.Array, dist: Any) -> Any:
        assert self.relaxed is not None
        if isinstance(dist, Masked):
            return self._fixed(dist, self._relaxed(key, dist.safe))
        return self.relaxed(key, dist, **self.static, **self.options)

    def _fixed(self, dist: Masked, draw: Any) -> Any:
        """The draw, with fixed points where it is masked."""
        if not jax.tree_util.all_leaves([draw]) or np.shape(draw) != dist.shape:
            shapes = jax.tree.map(np.shape, draw)
            raise TypeError(
                f"{self.name}: where: expected draws of the distribution's shape, {dist.shape}, "
                f"whose elements can be masked, got {shapes}. Without where=, use "
                "jnp.where(where, draw, 0) for each part of it."
            )
        return dist.fixed(jnp.asarray(draw))

    def _options_in(self, dist: Masked) -> Mapping[str, Any]:
        """The options, which are not trained where all of the draw is masked."""
        drawn = jnp.any(dist.where)

        def trained(option: Any) -> Any:
            dtype = jax.dtypes.result_type(option)
            if _check.is_concrete(option) or not jnp.issubdtype(dtype, jnp.floating):
                return option
            return jnp.where(drawn, option, jax.lax.stop_gradient(option))

        return jax.tree.map(trained, self.options)

    def __repr__(self) -> str:
        options = {**self.static, **self.options}
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


# ---- Sites ---------------------------------------------------------------------------------


class _Hole:
    """The place of a traced option in a site's sampler."""


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """The static half of a `sample_p` equation: what to draw from its operands.

    Attributes:
      held: the sampler, with `_Hole`s for those of its options that are operands.
      operands: structure of (distribution, traced options).
      num_parameters: how many of the operands are the distribution's.
      structure: of the draw.
      shapes: of the leaves of the draw, and their types.
      where: the user's line that draws, as ' (at file:line)', or nothing.
      law: the class of the distribution.
      lanes: how many vmaps the draw is under, each adding a leading axis to the operands.
      key_shared: whether one of those vmaps gave all its lanes the same key.
      option_per_lane: whether one of them mapped an option of the sampler.
    """

    held: Sampler
    operands: Any
    num_parameters: int
    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    where: str
    law: type
    lanes: int = 0
    key_shared: bool = False
    option_per_lane: bool = False

    @property
    def name(self) -> str:
        return self.held.name

    @property
    def source(self) -> Source:
        return self.held._source(self.where, self.law)

    @property
    def has_traced_options(self) -> bool:
        """Whether the sampler has options that may be differentiated."""
        return self.operands.num_leaves > self.num_parameters

    def sampler_and_dist(self, operands: Sequence[jax.Array]) -> tuple[Sampler, Any]:
        """Put together from the operands; of options, which have no lanes, those of the first."""
        parameters, options = operands[: self.num_parameters], operands[self.num_parameters :]
        first = [option[(0,) * self.lanes] for option in options]
        return self._together([*parameters, *first])

    def dist_of_shapes(self, shapes: Sequence[jax.ShapeDtypeStruct]) -> Any:
        """The distribution, masked or not, with shapes in the place of its arrays."""
        dist = jax.tree.unflatten(self.operands, shapes)[0]
        return dist.dist if isinstance(dist, Masked) else dist

    def sample(self, key: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        """The leaves of one draw: by the sampler's own function, lane by lane."""

        def sample(key: jax.Array, *operands: jax.Array) -> Any:
            sampler, dist = self._together(operands)
            return sampler._draw(key, dist)

        for _ in range(self.lanes):
            sample = jax.vmap(sample)
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(sample(key, *operands))]

    def vmapped(self, size: int, key_shared: bool, mapped: Sequence[bool]) -> "Site":
        """The site of the joint draw over `size` lanes, which all operands have as first axis."""
        return dataclasses.replace(
            self,
            shapes=tuple(jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in self.shapes),
            lanes=self.lanes + 1,
            key_shared=self.key_shared or key_shared,
            option_per_lane=self.option_per_lane or any(mapped[self.num_parameters :]),
        )

    def _together(self, operands: Sequence[jax.Array]) -> tuple[Sampler, Any]:
        dist, traced = jax.tree.unflatten(self.operands, operands)
        values = iter(traced)
        leaves, treedef = jax.tree.flatten(self.held)
        filled = [next(values) if isinstance(leaf, _Hole) else leaf for leaf in leaves]
        return jax.tree.unflatten(treedef, filled), dist


def _draw_at_site(sampler: Sampler, key: jax.Array, dist: Any) -> Any:
    _joint.check(dist)
    dist = jax.tree.map(jnp.asarray, dist)
    if sampler.hoist is not None:
        of = dist.safe if isinstance(dist, Masked) else dist
        static, options = sampler.hoist(of, **sampler.static, **sampler.options)
        sampler = dataclasses.replace(sampler, static=static, options=options)
    # A concrete option stays with the site: that it is concrete tells estimators that no derivative
    # with respect to it will be asked for.
    leaves, treedef = jax.tree.flatten(sampler)
    traced = [leaf for leaf in leaves if isinstance(leaf, jax.core.Tracer)]
    holes = [_Hole() if isinstance(leaf, jax.core.Tracer) else leaf for leaf in leaves]
    operands, operand_structure = jax.tree.flatten((dist, traced))
    # In the contexts in which it is estimated: what JAX traces here it finds again there.
    with staging(False), estimating(sampler.name):
        draw = jax.eval_shape(sampler._draw, key, dist)
    shapes, structure = jax.tree.flatten(draw)
    site = Site(
        held=jax.tree.unflatten(treedef, holes),
        operands=operand_structure,
        num_parameters=len(operands) - len(traced),
        structure=structure,
        shapes=tuple(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes),
        where=_written.user_line(),
        law=law_of(dist),
    )
    return jax.tree.unflatten(structure, _draws.sample_p.bind(key, *operands, site=site))
