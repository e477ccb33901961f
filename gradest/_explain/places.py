"""Where in a program a draw is, in words."""

from typing import Any

from jax.extend import core

from .. import _jaxpr
from .._draws import draw_p, sample_p


def places(jaxpr: core.Jaxpr) -> dict[int, str]:
    """By the identity of the equation that draws: such as "scan of 100, branch 2 of 3"."""
    found: dict[int, str] = {}
    _collect(jaxpr, (), found)
    return found


def _collect(jaxpr: core.Jaxpr, path: tuple[str, ...], found: dict[int, str]) -> None:
    for eqn in jaxpr.eqns:
        if eqn.primitive in (draw_p, sample_p):
            found.setdefault(id(eqn), ", ".join((*path, *_lanes(eqn))))
        elif (branches := _jaxpr.branches(eqn)) is not None:
            for i, branch in enumerate(branches):
                step = f"branch {i + 1} of {len(branches)}"
                _collect(branch.jaxpr, (*path, step), found)
        elif (scan := _jaxpr.as_scan(eqn)) is not None:
            _collect(scan.body.jaxpr, (*path, f"scan of {scan.length}"), found)
        else:
            step = ("while",) if _jaxpr.as_while(eqn) is not None else ()
            for inner in _jaxpr.subjaxprs(eqn):
                _collect(inner, (*path, *step), found)


def _lanes(eqn: Any) -> tuple[str, ...]:
    if eqn.primitive is draw_p:
        lanes = eqn.params["source"].lanes
    else:
        site = eqn.params["site"]
        lanes = site.shapes[0].shape[: site.lanes]
    return tuple(f"vmapped {size}" for size in lanes)
