"""The equations at which a program stops: what each of them is, and what is wrong with it.

Shared by the two ways of going on from there, `_expectation` and `_loops`.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .. import _jaxpr, _marks, _random
from .._derivatives.refuse import UnestimatedGradientWarning
from .._sampler import Sampler, SamplerSite
from ..distributions import base
from . import program as _program


@dataclasses.dataclass(frozen=True)
class Mode:
    """How the rest of a program is evaluated.

    Attributes:
      relaxed: an earlier site was given a relaxed value; relaxable sites follow suit.
      indices: of the samples that earlier sites drew: each has its own randomness downstream.
      bound: the name of an earlier sampler whose value is no mean of costs, but a bound.
    """

    relaxed: bool = False
    indices: tuple[jax.Array, ...] = ()
    bound: str = ""


def read_site(eqn: Any, operands: list[Any], mode: Mode) -> tuple[jax.Array, Sampler, Any]:
    """The key, the sampler and the distribution of a sample equation."""
    site: SamplerSite = eqn.params["site"]
    # A parameter may be a literal of the program, a number that is not yet an array.
    key, *rest = map(jnp.asarray, operands)
    sampler, dist = site.parts(tuple(rest))
    if mode.bound:
        raise NotImplementedError(
            f"{sampler.name}: a draw{site.where} comes after one by {mode.bound}, whose value, a "
            "bound of several samples, is no mean of costs that a later draw could be credited "
            "with. Draw all variables at one site, from a joint distribution, or the later ones "
            "by a pathwise sampler, whose noise all the samples then share."
        )
    for index in mode.indices:
        key = _random.fold_in(key, index)
    if not isinstance(dist, base.Distribution):
        for _ in range(site.lanes):
            dist = base.Lanes(dist)
    return key, sampler, dist


def check_lanes(marks: Iterable[Any]) -> None:
    """Raises for draws whose lanes cannot be drawn together, and warns of the others.

    Once for each line of the user's: such a draw is credited with other lanes' cost.
    """
    vmapped = [site for site in _sites(marks) if site.lanes]
    for site in vmapped:
        _check_site(site)
    for name, where in dict.fromkeys((site.sampler.name, site.where) for site in vmapped):
        warnings.warn(
            f"{name}: a draw under jax.vmap inside a loss{where} is credited with the whole loss "
            "in every lane. If the loss is a sum over lanes, "
            "jax.vmap(gradest.expectation(per_lane_loss)) gives each lane its own cost only, with "
            "less variance.",
            stacklevel=2,
        )


def _check_site(site: SamplerSite) -> None:
    name, where = site.sampler.name, site.where
    if not site.sampler.linear:
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


def check_collectives(program: _program.Program) -> None:
    """Warns where draws reach other lanes, whose costs they are not credited with."""
    for eqn in program.collectives():
        warnings.warn(
            f"expectation: a `{eqn.primitive.name}`{_jaxpr.line_of(eqn)} in the loss mixes lanes "
            "of a named axis, and depends on a draw. A draw is credited with the loss of its own "
            "lane only: what it does to that of others is missing from the gradient. Mix the "
            "lanes after gradest.expectation, or draw those of all lanes in one loss.",
            UnestimatedGradientWarning,
            stacklevel=2,
        )


def check_rule(eqn: Any, used: Sequence[bool]) -> None:
    """Warns where a draw is in a function whose own derivative rule is not used for that."""
    for site in _sites(_program.live_marks(eqn, used)):
        if _jaxpr.has_rule(eqn):
            warnings.warn(
                f"expectation: a draw by {site.sampler.name}{site.where} is inside a function with "
                "a derivative rule of its own, by jax.custom_vjp or jax.custom_jvp. The rule is "
                "not used: the function is differentiated as it is written. Draw outside of it.",
                stacklevel=2,
            )


def needs_continuation(marks: Iterable[Any]) -> bool:
    """Whether one of these draws needs the rest of the program as a function."""
    return any(site.sampler.score is None for site in _sites(marks))


def has_traced_options(marks: Iterable[Any]) -> bool:
    """Whether one of these draws has options that may be differentiated."""
    return any(site.treedef.num_leaves > site.num_dist for site in _sites(marks))


def _sites(marks: Iterable[Any]) -> Iterable[SamplerSite]:
    return (mark.params["site"] for mark in marks if mark.primitive is _marks.sample_p)


def unsupported(eqn: Any, used: Sequence[bool]) -> Exception:
    mark = _program.live_marks(eqn, used)[0]
    if mark.primitive is _marks.sample_p:
        held, where = f"a draw by {mark.params['site'].sampler.name}", mark.params["site"].where
    else:
        held, where = "a cost", mark.params["where"]
    construct = eqn.primitive.name
    remedy = _REMEDIES.get(construct, "Move it out of the construct.")
    return NotImplementedError(
        f"expectation: {held}{where} is inside a `{construct}`, which the transform does not "
        f"support. {remedy} Or use sampler.expect(key, dist, cost) there, with a cost of its own."
    )


_REMEDIES = {
    "while": "Use jax.lax.scan with a fixed number of steps, and a mask for those that are over.",
    "shard_map": "Put the expectation inside: jax.shard_map(gradest.expectation(loss), ..., "
    "check_vma=False).",
    "xla_pmap": "Put the expectation inside: jax.pmap(gradest.expectation(loss)).",
}


def only_scores(eqn: Any) -> Exception:
    site: SamplerSite = eqn.params["site"]
    return NotImplementedError(
        f"{site.sampler.name}: a draw{site.where} is inside a `scan`, where the rest of the "
        "program cannot be evaluated at several points. There use score_function with one sample "
        "(baseline: None or a scalar), averaged with gradest.monte_carlo, or a pathwise sampler "
        "such as reparameterize or gumbel_softmax; or unroll the loop in Python."
    )


def clone_keys(tree: Any) -> Any:
    """Marks keys as used again on purpose: for common random numbers."""
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.clone(x) if is_key(x) else x, tree)


def watched(eqn: Any, env: _program.Env, name: str) -> _program.Env:
    """The environment in which the parameters of a draw by jax.random warn when differentiated."""
    parameters = [
        v
        for v in _jaxpr.variables(eqn)
        if jnp.issubdtype(jax.dtypes.result_type(env[v]), jnp.floating)
    ]
    where = _jaxpr.line_of(eqn)
    return {**env, **{v: _watch(name, where, env[v]) for v in parameters}}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _watch(name: str, where: str, x: jax.Array) -> jax.Array:
    del name, where
    return x


def _watch_jvp(name: str, where: str, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    if isinstance(dx, SymbolicZero):
        return x, jnp.zeros_like(x)
    warnings.warn(
        f"expectation: jax.random.{name}{where} draws in a loss from parameters that are being "
        "differentiated. Nothing estimates that part of the gradient: it counts as zero. Draw by "
        "a gradest sampler, or give it jax.lax.stop_gradient of the parameters.",
        UnestimatedGradientWarning,
        stacklevel=2,
    )
    return x, dx


_watch.defjvp(_watch_jvp, symbolic_zeros=True)
