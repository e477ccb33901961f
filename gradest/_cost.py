"""The cost of a draw as estimators see it, and how the program that it stands for is evaluated."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from . import _calls
from ._lockstep import Lockstep
from ._same_key import ExpectCall, in_cost_of
from ._transparent import transparent

# Whether a loss is being staged, and may spend. It is part of the key of JAX's caches: what is
# traced for a loss is not found again outside of one. (Were a cost an effect, which no compiler
# drops, libraries that trace a body for what does not change in it, as flax.linen's scan does,
# would spend it twice.)
staging = jax.make_user_context(False)


@dataclasses.dataclass(frozen=True)
class Mode:
    """How the rest of a program is evaluated.

    Attributes:
      smooth: at a relaxed point or a mean, as the function of the draw that is differentiated
        there: a stop_gradient of what depends on the draw is transparent.
      relaxed: later relaxable sites are relaxed too.
      indices: of the samples that earlier sites drew: each has its own randomness downstream.
      bound: the name of an earlier sampler whose value is no mean of costs, but a bound.
      lockstep: the runs that it is evaluated for, if there are several.
    """

    smooth: bool = False
    relaxed: bool = False
    indices: tuple[jax.Array, ...] = ()
    bound: str = ""
    lockstep: Lockstep | None = None

    @property
    def baselines(self) -> Lockstep | None:
        """The runs that give each other baselines, if any do."""
        return self.lockstep if self.lockstep is not None and self.lockstep.baselines else None


@dataclasses.dataclass(frozen=True)
class Cost:
    """A function of the draw, whose result is checked.

    Attributes:
      function: of the draw and the mode; the transform hands over the rest of the program so.
      estimator: its name, for errors.
      mode: the one in which the rest is evaluated.
    """

    function: Callable[[Any, Mode], ArrayLike]
    estimator: str
    mode: Mode = Mode()

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What JAX's errors name."""
        return self.function

    def __call__(self, draw: Any) -> jax.Array:
        c = self.function(draw, self.mode)
        if not jax.tree_util.all_leaves([c]) or c is None:
            raise TypeError(
                f"{self.estimator}: expected the cost to return a real scalar, got "
                f"{'None' if c is None else f'a {type(c).__name__}'}. Return the number alone; "
                "gradest.expectation(loss, has_aux=True) takes auxiliary output beside it."
            )
        shape, dtype = np.shape(c), jax.dtypes.result_type(c)
        if shape != () or not jnp.issubdtype(dtype, jnp.floating):
            remedy = (
                "Convert it to a floating-point number."
                if shape == ()
                else "Sum or average it; to give every example its own credit, vmap the "
                "expectation of a per-example loss."
            )
            raise ValueError(
                f"{self.estimator}: expected the cost to be a real scalar, got shape {shape} and "
                f"type {dtype}. {remedy}"
            )
        return jnp.asarray(c)

    def batch(self, draws: Any) -> jax.Array:
        """The costs of draws stacked along a leading axis, each with randomness of its own."""

        def one(index: jax.Array, draw: Any) -> jax.Array:
            return self._in_mode(indices=(*self.mode.indices, index))(draw)

        size = jax.tree.leaves(draws)[0].shape[0]
        return jax.vmap(one)(jnp.arange(size, dtype=jnp.uint32), draws)

    def others(self, c: jax.Array) -> jax.Array | None:
        """What the other runs of the loss cost where this one costs `c`: a baseline; or None."""
        runs = self.mode.baselines
        return None if runs is None else runs.others(c)

    def relaxed(self, point: Any, *, later: bool = True) -> jax.Array:
        """The cost at a relaxed point, to be differentiated there.

        Args:
          point: in the place of the draw.
          later: whether later relaxable sites are relaxed too.
        """
        return self._in_mode(smooth=True, relaxed=later)(point)

    def after(self, function: Callable[[Any], Any]) -> "Cost":
        """That of `function(draw)`."""
        changed = lambda draw, mode: self.function(function(draw), mode)
        return dataclasses.replace(self, function=changed)

    def _in_mode(self, **changes: Any) -> "Cost":
        return dataclasses.replace(self, mode=dataclasses.replace(self.mode, **changes))


def cost_of(function: Callable[[Any], ArrayLike], call: ExpectCall) -> Cost:
    """That of a user's function of the draw, in an expectation that they call."""

    @functools.wraps(function, updated=())  # so that JAX's errors name the user's function
    def of_draw(draw: Any, mode: Mode) -> ArrayLike:
        way_out = _calls.with_way_out("In the cost of sampler.expect, where it is staged,")
        with way_out, in_cost_of(call):
            return transparent(function)(draw) if mode.smooth else function(draw)

    return Cost(of_draw, call.name)
