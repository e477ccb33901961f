"""What becomes of the draws of a loss whose estimators differentiate what they cost.

Such an estimator is right where the cost has no jumps. `follow` says of each of a staged loss's
draws what becomes of it, and `complaints_of` what there is to complain of once the draw's
parameters are differentiated.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from .. import _jax_random, _jaxpr
from .._derivatives.watch import guarded, guarded_p
from .._downstream.fates import Fate, fates
from .._downstream.graph import Tracked
from .._downstream.noise import Noise
from .._downstream.walk import Special
from .._draws import draw_p, sample_p
from .._jumps import Complaint, Source, complaint_beside, complaint_beside_noise
from .spend import cost_p


@dataclasses.dataclass(frozen=True)
class Followed:
    """A draw, and what becomes of it.

    Attributes:
      eqn: the equation of the staged loss that draws.
      source: with the estimator's name, the law and the user's line.
      fate: None if the draw does not come near the loss, or need not be followed.
    """

    eqn: Any
    source: Source
    fate: Fate | None


def follow(loss: core.ClosedJaxpr, *, every: bool = False) -> list[Followed]:
    """The draws in a staged loss, whose first result is the loss, in order.

    Args:
      loss: staged.
      every: whether to follow the draws, too, whose estimators differentiate nothing: as another
        estimator that does would have it.
    """
    return _followed_in(loss, every)[0]


def _followed_in(
    loss: core.ClosedJaxpr, every: bool
) -> tuple[list[Followed], Mapping[Noise, Fate]]:
    """The draws, and the noise by `jax.random`, that inputs may be beside."""
    eqns = list(_draws_in(loss.jaxpr, set()))
    draws = [eqn for eqn in eqns if _is_draw(eqn)]
    found: Mapping[Any, Fate] = {}
    if every or len(draws) < len(eqns) or any(_source(eqn).followed(eqn) for eqn in draws):
        found = fates(loss, functools.partial(_special, every))
    of_noise = {name: fate for name, fate in found.items() if isinstance(name, Noise)}
    return [Followed(eqn, _source(eqn), found.get(id(eqn))) for eqn in draws], of_noise


class Complaints(NamedTuple):
    """What there is to say.

    Attributes:
      of_draws: by the identity of the equation that draws.
      of_inputs: by the number of the input, of which those that the loss closes over come last.
    """

    of_draws: Mapping[int, Complaint]
    of_inputs: Mapping[int, Sequence[Complaint]]

    def guard(self, value: Any, inputs: Sequence[Any]) -> Any:
        """The loss, which complains when its derivative in an input is asked for."""
        for number, complaints in self.of_inputs.items():
            for complaint in complaints:
                value = guarded(value, inputs[number], complaint)
        return value


def complaints_of(loss: core.ClosedJaxpr, name_of: Callable[[int], str]) -> Complaints:
    """What there is to say of a staged loss.

    Args:
      loss: staged.
      name_of: the name of an input, by its number.
    """
    given: set[Any] = set()
    of_draws: dict[int, Complaint] = {}
    of_inputs: dict[int, list[Complaint]] = {}
    draws, of_noise = _followed_in(loss, every=False)

    def watch(complaint: Callable[..., Complaint], of: Any, fate: Fate) -> None:
        for beside in fate.beside:
            said = complaint(of, beside, name_of(beside.number), given)
            of_inputs.setdefault(beside.number, []).append(said)

    for draw in draws:
        if draw.fate is None or not draw.fate.jumps:
            continue
        if draw.source.slope_in:
            of_draws[id(draw.eqn)] = Complaint(draw.source, draw.fate, given)
        if draw.source.complaint is not None:
            draw.source.complaint.given = given
        watch(complaint_beside, draw.source, draw.fate)
    for noise, fate in of_noise.items():
        watch(complaint_beside_noise, noise, fate)
    return Complaints(of_draws, of_inputs)


def _is_draw(eqn: Any) -> bool:
    return eqn.primitive in (draw_p, sample_p)


def _draws_in(jaxpr: core.Jaxpr, seen: set[int]) -> Iterable[Any]:
    """The equations that draw, noise by `jax.random` among them."""
    if id(jaxpr) in seen:
        return
    seen.add(id(jaxpr))
    for eqn in jaxpr.eqns:
        if _is_draw(eqn) or _jax_random.noise(eqn) is not None:
            yield eqn
        if _jax_random.raw_draw(eqn, {}) is not None:
            continue  # how it is made is not looked at
        for inner in _jaxpr.subjaxprs(eqn):
            yield from _draws_in(inner, seen)


def _source(eqn: Any) -> Source:
    return eqn.params["source"] if eqn.primitive is draw_p else eqn.params["site"].source


def _followed(every: bool, eqn: Any) -> Tracked | None:
    source = _source(eqn)
    if every and not source.slope_in:
        source = dataclasses.replace(source, slope_in="relaxed point")
    return source.followed(id(eqn))


def _special(every: bool, eqn: Any) -> Special | None:
    if eqn.primitive is draw_p:
        draw, own = _followed(every, eqn), eqn.params["num_leaves"]
        return Special(draw, ends=False, cost=False, passes="all", own=own)
    if eqn.primitive is sample_p:
        # Whatever its parameters depend on is estimated with it. At a relaxed point of an earlier
        # draw it may be relaxed itself.
        relaxed = eqn.params["site"].held.relaxed is not None
        passes = "transparent" if relaxed else "none"
        return Special(_followed(every, eqn), ends=True, cost=False, passes=passes)
    if eqn.primitive is guarded_p:
        return Special(None, ends=False, cost=False, passes="all", own=len(eqn.invars) - 1)
    if eqn.primitive is cost_p:
        return Special(None, ends=True, cost=True, passes="all")
    return None
