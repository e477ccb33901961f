"""What the transform says of the draws, the costs and the constructs of a loss."""

import sys
import warnings
from collections.abc import Iterable
from typing import Any

from .. import _same_key, _written
from .._derivatives.refuse import UnestimatedGradientWarning
from .._derivatives.watch import Watcher
from .._jumps import warn_at
from .._sampler import Site
from .program import Draw, Spend

# ---- Draws ---------------------------------------------------------------------------------


def check_lanes(sites: Iterable[Site]) -> None:
    """Raises for draws whose lanes cannot be drawn together, and warns of the others.

    Once for each line of the user's: such a draw is credited with other lanes' cost.
    """
    vmapped = [site for site in sites if site.lanes]
    for site in vmapped:
        _check_site(site)
    for name, where in dict.fromkeys((site.name, site.where) for site in vmapped):
        warnings.warn(
            f"{name}: a draw under jax.vmap inside a loss{where} is credited with the whole loss "
            "in every lane. If the loss is a sum over lanes, "
            "jax.vmap(gradest.expectation(per_lane_loss)) gives each lane its own cost only, with "
            "less variance.",
            stacklevel=2,
        )


def _check_site(site: Site) -> None:
    name, where = site.name, site.where
    if not site.held.linear:
        raise NotImplementedError(
            f"{name}: a draw under jax.vmap inside a loss{where}: its value is the bound of the "
            "joint draw of all lanes, which is looser than the sum of the lanes' bounds. Use "
            "jax.vmap(gradest.expectation(per_lane_loss)), or draw the lanes at one site."
        )
    if site.key_shared:
        raise ValueError(
            f"{name}: a draw under jax.vmap inside a loss got the same key in every lane"
            f"{where}, so its lanes are not independent. Split the key and vmap over the keys."
        )
    if site.option_per_lane:
        raise NotImplementedError(
            f"{name}: a draw under jax.vmap inside a loss has options that differ from lane to "
            f"lane{where}. Vmap the expectation of a per-lane loss instead of the draw."
        )


def check_keys(found: Iterable[Any]) -> None:
    """Warns of draws that share a key, once for each pair of lines."""
    for (name, where), *others, in_every in dict.fromkeys((*s.draws, s.in_every) for s in found):
        if not others:
            what = f"a draw by {name}{where} gets the same key in every {_REPEATS[in_every]}"
            _same_key.warn(f"expectation: {what}", _KEYS_EACH[in_every])
        else:
            one, other = f"{name}{where}", f"{others[0][0]}{others[0][1]}"
            _same_key.warn(f"expectation: a draw by {one} and one by {other} get the same key")


_REPEATS = {"step": "step of a `scan`", "lane": "lane of a `jax.vmap`"}
_KEYS_EACH = {
    "step": "Scan over jax.random.split(key, length), or fold the step's number in",
    "lane": "Vmap over jax.random.split(key, lanes)",
}


def after_a_bound(site: Site, bound: str) -> Exception:
    return NotImplementedError(
        f"{site.name}: a draw{site.where} comes after one by {bound}, whose value, a "
        "bound of several samples, is no mean of costs that a later draw could be credited "
        "with. Draw all variables at one site, from a joint distribution, or the later ones "
        "by a pathwise sampler, whose noise all the samples then share."
    )


def only_scores(site: Site) -> Exception:
    return NotImplementedError(
        f"{site.name}: a draw{site.where} is inside a `scan`, where the rest of the "
        "program cannot be evaluated at several points. There use score_function with one sample "
        "(baseline: None or a scalar), relax, or a pathwise sampler such as reparameterize or "
        "gumbel_softmax; or unroll the loop in Python. Several samples there are several runs of "
        "the loss: gradest.expectation(loss, num_samples=8), with baselines from each other by "
        'baseline="leave_one_out".'
    )


def nested_too_deep(num: int) -> Exception:
    return RecursionError(
        f"expectation: {num} draws and costs in sequence are nested too deep "
        f"for Python's recursion limit of {sys.getrecursionlimit()}: each draw is given what "
        "follows it as a function. Raise it with sys.setrecursionlimit, draw several variables "
        "at one site, or use score_function with one sample, which does not nest."
    )


# ---- Arguments -----------------------------------------------------------------------------


def argument_changed(name: str, of_nnx: bool) -> Exception:
    what = f" {name}" if name else ""
    remedy = (
        "Use gradest.nnx.expectation(loss), which carries out what the loss changes in flax.nnx "
        "modules and Rngs; or return it as auxiliary output, nnx.state(module), with "
        "expectation(loss, has_aux=True), and put it in place outside."
        if of_nnx
        else "Return what is new as auxiliary output, with expectation(loss, has_aux=True), and "
        "put it in place outside."
    )
    return ValueError(
        f"expectation: the loss changed its argument{what} (the state of a module, of Rngs, a list "
        f"or a dictionary). It is given copies, as under jax.jit: the change would be lost. "
        f"{remedy}"
    )


# ---- Constructs ----------------------------------------------------------------------------


def unsupported(construct: str, held: Draw | Spend) -> Exception:
    """For the draw or the cost `held` in a construct that is not understood."""
    what = f"a draw by {held.site.name}" if isinstance(held, Draw) else "a cost"
    remedy = _INSTEAD_OF.get(construct, "Move it out of the construct.")
    return NotImplementedError(
        f"expectation: {what}{held.where} is inside a `{construct}`, which the transform does not "
        f"support. {remedy} Or use sampler.expect(key, dist, cost) there, with a cost of its own."
    )


_INSTEAD_OF = {
    "while": "Use gradest.while_loop, which has a bound on the number of steps, or jax.lax.scan.",
    "shard_map": "Put the expectation inside: jax.shard_map(gradest.expectation(loss), ...).",
    "xla_pmap": "Put the expectation inside: jax.pmap(gradest.expectation(loss)).",
}


def check_rules(sites: Iterable[Site]) -> None:
    """Warns of draws in a function that has a derivative rule of its own, which is not used."""
    for site in sites:
        warnings.warn(
            f"expectation: a draw by {site.name}{site.where} is inside a function with a "
            "derivative rule of its own, by jax.custom_vjp or jax.custom_jvp. The rule is not "
            "used: the function is differentiated as it is written. Draw outside of it.",
            stacklevel=2,
        )


def check_collectives(eqns: Iterable[Any]) -> None:
    """Warns where draws reach other lanes, whose costs they are not credited with."""
    for eqn in eqns:
        warnings.warn(
            f"expectation: a `{eqn.primitive.name}`{_written.line_of(eqn)} in the loss mixes lanes "
            "of a named axis, and depends on a draw. A draw is credited with the loss of its own "
            "lane only: what it does to that of others is missing from the gradient. Mix the "
            "lanes after gradest.expectation, or draw those of all lanes in one loss.",
            UnestimatedGradientWarning,
            stacklevel=2,
        )


# ---- Several runs --------------------------------------------------------------------------


def check_effects(ordered: Iterable[Any]) -> None:
    """Raises for effects that take place in order, which there is none among several runs."""
    for eqn in ordered:
        raise NotImplementedError(
            f"expectation: an ordered `{eqn.primitive.name}`{_written.line_of(eqn)} is in a loss "
            "of several runs (num_samples), which are evaluated side by side: there is no order "
            "among them. Use ordered=False, or return what it shows as auxiliary output, "
            "has_aux=True."
        )


def check_baselines(sites: Iterable[Site]) -> None:
    """Raises if none of the loss's draws takes its baseline from the other runs."""
    sites = list(sites)
    if not any(site.held.takes_baseline for site in sites):
        names = ", ".join(dict.fromkeys(site.name for site in sites))
        raise ValueError(
            "baseline: expected a loss with a draw by score_function that has no baseline of its "
            f"own, which takes it, got {f'draws by {names}' if names else 'no cost-based draw'}"
            ". Leave baseline out, or draw by score_function()."
        )


# ---- Costs ---------------------------------------------------------------------------------


def cost_outside(where: str) -> Exception:
    return RuntimeError(
        f"gradest.cost: a cost{where} is outside of a loss under gradest.expectation, which "
        "collects the costs. Wrap the loss in gradest.expectation, or add the term to its result. "
        "In a flax.linen module that is being initialised, leave it out: "
        "if not self.is_initializing(): gradest.cost(...)."
    )


def cost_under_vmap(where: str) -> Exception:
    return NotImplementedError(
        f"gradest.cost: a cost{where} is under jax.vmap inside a loss, where it cannot be told "
        "whether a branch that holds it is taken. Vmap the expectation of a per-lane loss, "
        "jax.vmap(gradest.expectation(per_lane_loss)), or return the costs from the vmapped "
        "function and give gradest.cost the whole array."
    )


def cost_differentiated(where: str) -> Exception:
    return NotImplementedError(
        f"gradest.cost: a cost{where} is inside a function that the loss itself differentiates, or "
        "in a loss that is differentiated without gradest.expectation. Wrap the loss in "
        "gradest.expectation, and give the costs to gradest.cost outside of that jax.grad, or "
        "jax.jvp; auxiliary output (has_aux=True) takes them there."
    )


# ---- Draws by jax.random -------------------------------------------------------------------


class OfRawDraw(Watcher):
    """Of a discrete draw that nothing estimates.

    Args:
      name: of the function that draws.
      where: the user's line that draws, as ' (at file:line)', or nothing.
      given: the names and lines of which the user was told already.
    """

    def __init__(self, name: str, where: str, given: set[Any]):
        self.name, self.where, self.given = name, where, given

    def give(self) -> None:
        if (self.name, self.where) in self.given:
            return
        self.given.add((self.name, self.where))
        warn_at(
            self.where,
            f"expectation: {self.name}{self.where} draws in a loss from parameters that are being "
            "differentiated. Nothing estimates that part of the gradient: it counts as zero. Draw "
            "by a gradest sampler, or give it jax.lax.stop_gradient of the parameters.",
        )
