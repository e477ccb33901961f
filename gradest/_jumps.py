"""What is said where the cost that an estimator differentiates jumps.

Such a cost is constant, or has a slope that is not its mean's, on both sides of the jump: a part of
the gradient is missing, in silence. That is known before anything is differentiated, and said when
the parameters of the draw are.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from ._derivatives.refuse import UnestimatedGradientError, UnestimatedGradientWarning
from ._derivatives.watch import Watcher
from ._downstream.fates import Beside, Fate, fate_of_inputs
from ._downstream.graph import Tracked
from ._downstream.noise import Noise
from ._downstream.rules import COMPARISONS, EQUALITIES
from ._downstream.values import Jump
from .distributions._capabilities import CAPABILITIES
from .distributions._foreign import counterpart
from .distributions.base import Distribution

#: What a cost is differentiated in: a draw of a continuous law; one that takes the place of a
#: discrete draw; a discrete one, as if it were continuous; a point at which no draw is, between
#: those of a discrete law; or nothing.
SlopeIn = Literal["draw", "relaxed draw", "discrete draw", "relaxed point", ""]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a draw: the static half of a pathwise one's equation.

    Attributes:
      name: of the estimator.
      slope_in: what it differentiates the cost in.
      where: the user's line that draws, as ' (at file:line)', or nothing.
      law: the class of the distribution.
      with_score: whether the slope is a part of the gradient only, beside a score.
      lanes: the sizes of the vmaps that the draw is under.
      complaint: of the cost that the draw was made for, in `Sampler.expect`.
    """

    name: str
    slope_in: SlopeIn
    where: str
    law: type
    with_score: bool = False
    lanes: tuple[int, ...] = ()
    complaint: "Complaint | None" = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def at_relaxed_points(self) -> bool:
        return self.slope_in == "relaxed point"

    def followed(self, name: Any) -> Tracked | None:
        """The draw as the analysis follows it, if what follows it has to have a slope.

        In the draw, or in what is beside it: the mean over a continuous draw has a slope in what
        that is compared with, whatever the estimator, and a comparison has none.
        """
        law = counterpart(self.law)
        continuous = issubclass(law, Distribution) and law.reparameterizable
        if not self.slope_in and not continuous:
            return None
        atoms = getattr(self.law, "atoms", False)
        relaxed = self.slope_in not in ("draw", "")
        return Tracked(name, relaxed, self.at_relaxed_points, atoms, bool(self.slope_in))


class Complaint(Watcher):
    """Of a draw that meets a jump.

    Args:
      source: of the draw.
      fate: what becomes of it.
      given: pairs of lines, of a draw and of a jump, of which the user was told already.
      what: that jumps, if it is not all that follows the draw.
      remedy: what to do; by default, to draw by another estimator.
    """

    def __init__(
        self, source: Source, fate: Fate, given: set[Any], *, what: str = "", remedy: str = ""
    ):
        self.source, self.fate, self.given = source, fate, given
        self.what = what or f"what follows the draw{source.where}"
        self.remedy = remedy or _remedy(source.law)

    def give(self) -> None:
        # At relaxed points, and of a surrogate, there is a score beside.
        if self.fate.lost and not self.source.with_score:
            first = self.fate.jumps[0]
            silently = "Nothing else reaches the loss: the gradient would silently be zero."
            raise UnestimatedGradientError(self._message(first, silently))
        for jump in self.fate.jumps:
            lines = self.source.where, jump.where
            if lines not in self.given:
                self.given.add(lines)
                missing = "That part of the gradient is missing."
                warn_at(self.source.where or jump.where, self._message(jump, missing))

    def _message(self, jump: Jump, missing: str) -> str:
        if self.source.at_relaxed_points:
            meant = (
                "If it is meant, give what jumps a rule of its own by jax.custom_jvp: at relaxed "
                "points jax.lax.stop_gradient is not obeyed."
            )
        else:
            meant = "If it is meant, put jax.lax.stop_gradient around what is compared or indexed."
        return (
            f"{self.source.name}: {self.what} jumps at {named(jump.what)}{jump.where}, which has "
            f"no slope. {missing} {self.remedy} {meant}"
        )


def complaint_beside(source: Source, beside: Beside, name: str, given: set[Any]) -> Complaint:
    """Of the input `name`, which enters what jumps beside a draw."""
    remedy = f"Write the draw so that {name} enters by the parameters of its distribution only."
    if source.slope_in:
        remedy = f"{remedy} {_remedy(source.law)}"
    return _complaint_beside(source, beside, "draw", name, given, remedy)


def complaint_beside_noise(noise: Noise, beside: Beside, name: str, given: set[Any]) -> Complaint:
    """Of the input `name`, which enters what jumps beside noise by `jax.random`."""
    source = Source("jax.random", "", noise.where, Noise)
    remedy = (
        f"Draw by a sampler such as gradest.score_function(), with {name} in the parameters of its "
        "distribution: Bernoulli(probs=p) for uniform < p, Normal(mu, sigma) for "
        "mu + sigma * normal."
    )
    return _complaint_beside(source, beside, "noise", name, given, remedy)


def _complaint_beside(
    source: Source, beside: Beside, kind: str, name: str, given: set[Any], remedy: str
) -> Complaint:
    fate = Fate(beside.smooth, kinked=False, jumps=beside.jumps)
    what = f"what is made of the {kind}{source.where} and of {name}"
    return Complaint(source, fate, given, what=what, remedy=remedy)


class CostComplaints(NamedTuple):
    """What there is to complain of in a function of a draw.

    Attributes:
      of_draw: of its derivative in the draw; None if that is smooth.
      of_closed_over: the arrays that the function closes over, with the complaint of each.
    """

    of_draw: Complaint | None = None
    of_closed_over: tuple[tuple[jax.Array, Complaint], ...] = ()


# Whether a cost is being staged to be looked at: those within it are when it is evaluated. It is
# part of the key of JAX's caches, as `staging` is.
_looking = jax.make_user_context(False)


def complaints_of_cost(
    source: Source,
    function: Callable[..., Any],
    point: Any,
    *,
    what: str,
    remedy: str = "",
) -> CostComplaints:
    """What there is to complain of if `function` is differentiated.

    Args:
      source: of the draw.
      function: of the point, with a scalar result.
      point: where it is differentiated, or the shapes of that.
      what: the function, in the words of the complaint.
      remedy: what to do where it jumps; by default, to draw by another estimator.
    """
    draw = source.followed("the draw")
    if draw is None or _looking.value:
        return CostComplaints()
    with _looking(True):
        staged = jax.make_jaxpr(function)(point)
    num_drawn = len(jax.tree.leaves(point))
    fate = fate_of_inputs(staged, draw, num_drawn)
    given: set[Any] = set()
    speaks = bool(source.slope_in and fate.jumps)
    of_draw = Complaint(source, fate, given, what=what, remedy=remedy) if speaks else None
    beside = (
        (
            staged.consts[beside.number - num_drawn],
            complaint_beside(source, beside, "what the cost closes over", given),
        )
        for beside in fate.beside
    )
    return CostComplaints(of_draw, tuple(beside))


# ---- Words ---------------------------------------------------------------------------------


def named(what: str) -> str:
    """What jumps, in words, by the name of the operation."""
    if what in COMPARISONS or what in EQUALITIES:
        return "a comparison"
    return _NAMES.get(what, f"`{what.strip('_')}`")


_NAMES = {
    "convert_element_type": "a cast",
    "rem": "a remainder",
    "atan2": "the wrap of an angle",
    "while": "the number of a loop's steps",
    "mask": "a mask by a large constant or an infinite one",
}


#: Estimators that do not differentiate the cost, with what they need of a distribution.
WITHOUT_SLOPE = {
    "enumeration": ("support",),
    "disarm": ("categorical", "mean"),
    "measure_valued": ("weak derivative",),
    "score_function": ("density",),
}


def estimators_without_slope(law: type) -> list[str]:
    """Those of draws of that law that do not differentiate what follows."""
    if not issubclass(law, Distribution):
        return ["score_function"]
    has = lambda needs: all(CAPABILITIES[need].of(law) for need in needs)
    return [name for name, needs in WITHOUT_SLOPE.items() if has(needs)]


def _remedy(law: type) -> str:
    names = estimators_without_slope(law)
    if not names:
        return (
            f"No estimator of draws from {law.__name__} does without a slope: make the cost "
            "continuous, or take a law whose support does not move, with score_function."
        )
    *some, last = names
    listed = f"{', '.join(some)} or {last}" if some else last
    return f"Draw by {listed}, which {'need' if some else 'needs'} none."


def warn_at(where: str, message: str) -> None:
    """At the user's line, as ' (at file:line)', if it is known."""
    at = re.fullmatch(r" \(at (.*):(\d+)\)", where)
    if at is None:
        warnings.warn(message, UnestimatedGradientWarning, stacklevel=2)
    else:
        warnings.warn_explicit(message, UnestimatedGradientWarning, at[1], int(at[2]))
