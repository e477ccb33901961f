"""The draws of a loss, and what the transform knows of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check
from .._draws import draw_p
from .._jumps import named
from .._sampler import Site
from .._transform.downstream import Followed, follow
from .._transform.expectation import loss_of, stage
from ..estimators._record import Record
from ..records import ESTIMATORS
from .explanation import Explanation, Row
from .places import places
from .shares import variance_shares


def explain(
    loss: Callable[..., Any],
    has_aux: bool = False,
    *,
    num_draws: int | None = None,
    argnums: int | Sequence[int] = 0,
    key_argnum: int | None = None,
    seed: int = 0,
) -> Callable[..., Explanation]:
    """What `gradest.expectation` makes of a loss: a row for each of its draws.

    For each draw: its line, its distribution and estimator; where it is (in a scan, in a branch,
    under a vmap); what follows it on the way to the loss and the costs ("smooth", "kinked" by a
    maximum or a choice whose cases meet, or "jump", with the line), which estimators that need a
    slope must know; how many draws come later; how often the estimator evaluates the cost; and
    which other estimators would be right there, with how often those do. What jumps is found as
    `gradest.expectation` finds it. Where that cannot tell, a choice of which one case depends on
    the draw is taken for a kink, and is "unknown" here, with its line.

    With `num_draws` the gradient is estimated that often, and each draw has its share of the
    variance, Cov(its part, whole) / Var(whole), summed over the coordinates. A draw's part is what
    arrives through it and through no later one; with what is differentiated directly, the parts add
    up to the gradient, and the shares to 1. A share may be negative, where parts cancel. That
    compiles one gradient more than there are draws.

    Args:
      loss: as for `gradest.expectation`, of which it needs no wrapping. Of one that has it, with
        several runs or not, the rows and shares are those of one run by itself.
      has_aux: whether `loss` returns a pair of the loss and auxiliary output.
      num_draws: how many gradients the shares are measured with, at least 2; None for no shares.
        Without them nothing runs, and arrays may be given as `jax.ShapeDtypeStruct`s.
      argnums: which positional arguments the gradient is taken in, as in `jax.grad`.
      key_argnum: which argument is a legacy key. Typed keys among the arguments are found; each
        draw of the gradient has the number of the draw folded into all of them.
      seed: an integer of which the draws depend besides.

    Returns:
      A function of the arguments of `loss`, which returns an `Explanation`. Printed, that is a
      table; it has `rows`, `as_dict()` and `plot()`, and is shown by rich's console.

    Raises:
      TypeError: if `loss` is not callable, or there is no key to draw anew.
      ValueError: for a number out of range.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> def loss(logit, key):
      ...     return (ge.rebar()(key, Bernoulli(logit)) - 0.45) ** 2
      >>> (row,) = ge.explain(loss)(0.0, jax.random.key(0)).rows
      >>> row["estimator"], row["follows"], row["cost_evaluations"]
      ('rebar', 'smooth', 2)
    """
    if not callable(loss):
        raise TypeError(f"loss: expected a function, got {type(loss).__name__}.")
    loss, has_aux = loss_of(loss, has_aux)
    if num_draws is not None:
        num_draws = _check.integer("num_draws", num_draws, 2)
    argnums = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def of_arguments(*args: Any, **kwargs: Any) -> Explanation:
        args = tuple(
            jax.tree.map(_as_array, arg) if i in argnums or i == key_argnum else arg
            for i, arg in enumerate(args)
        )
        staged = stage(loss, has_aux, args, kwargs)
        draws = follow(staged.jaxpr, every=True)
        where = places(staged.jaxpr.jaxpr)
        shares: list[float | None] = [None] * len(draws)
        direct = None
        if num_draws is not None and draws:
            eqns = [draw.eqn for draw in draws]
            *measured, direct = variance_shares(
                staged, eqns, args, kwargs, argnums, key_argnum, num_draws, seed
            )
            shares = list(measured)
        rows = [
            _row(draw, where.get(id(draw.eqn), ""), len(draws) - 1 - i, shares[i])
            for i, draw in enumerate(draws)
        ]
        return Explanation(rows, num_draws, direct)

    return of_arguments


def _as_array(x: Any) -> Any:
    """Python numbers as arrays, as under `jax.grad`."""
    return jnp.asarray(x) if isinstance(x, (float, np.ndarray)) else x


def _row(draw: Followed, where: str, later: int, share: float | None) -> Row:
    source, eqn = draw.source, draw.eqn
    jumps, unseen = ((), ()) if draw.fate is None else (draw.fate.jumps, draw.fate.unseen)
    record = ESTIMATORS.get(source.name)
    site = None if eqn.primitive is draw_p else eqn.params["site"]
    others = {
        other.name: _evaluations(other, None, eqn)
        for other in ESTIMATORS.values()
        if other.name != source.name and _right(other, source.law, bool(jumps), "scan" in where)
    }
    return Row(
        line=source.where.removeprefix(" (at ").removesuffix(")"),
        distribution=source.law.__name__,
        estimator=source.name,
        where=where,
        follows="nothing" if draw.fate is None else draw.fate.level,
        jumps=tuple(f"{named(jump.what)}{jump.where}" for jump in jumps),
        unknown=tuple(f"{named(place.what)}{place.where}" for place in unseen),
        later_draws=later,
        cost_evaluations=None if record is None else _evaluations(record, site, eqn),
        others=others,
        share=share,
    )


def _right(record: Record, law: type, jumps: bool, in_scan: bool) -> bool:
    """Whether the estimator has no bias for such a draw there."""
    if law.__name__ not in record.distributions or not record.is_unbiased:
        return False
    if record.unbiased == "of the bound" or (jumps and record.needs_slope(law)):
        return False
    sampler = record.sampler()
    return not in_scan or sampler.pathwise or sampler.score is not None


def _evaluations(record: Record, site: Site | None, eqn: Any) -> int | None:
    """How often the cost is evaluated, None if that is not known."""
    if isinstance(record.evaluations, int):
        return record.evaluations
    options = dict(record.options)
    if site is not None:
        options.update({**site.held.static, **site.held.options})
    dist: Any = _Unknown()
    if eqn.primitive is not draw_p:
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars[1:]]
        dist = eqn.params["site"].dist_of_shapes(shapes)
    try:
        return record.evaluations.count(options, dist)
    except (AttributeError, KeyError, TypeError):
        return None


class _Unknown:
    """The distribution of a pathwise draw, of which a program holds the draw only."""


def _no_leaves(_: _Unknown) -> Any:
    raise TypeError("The parameters of a pathwise draw are not known.")


jax.tree_util.register_pytree_node(_Unknown, _no_leaves, lambda *_: _Unknown())
