"""The equations that draws leave in a program: `sample_p`, and `draw_p` of a pathwise draw.

One of `estimate_p` tells with which key a `sampler.expect` draws.

By these alone the transform, and what else reads a program, tells where it draws.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from . import _mesh
from ._derivatives.primitives import lanes_first
from ._derivatives.refuse import Refusal, refused_tangents
from ._jumps import Source

# ---- Cost-based draws ----------------------------------------------------------------------


class _Site(Protocol):
    """What the rules of `sample_p` ask of its static half, a `gradest._sampler.Site`."""

    @property
    def name(self) -> str: ...

    @property
    def where(self) -> str: ...

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]: ...

    def sample(self, key: jax.Array, *operands: jax.Array) -> list[jax.Array]: ...

    def vmapped(self, size: int, key_shared: bool, mapped: Sequence[bool]) -> "_Site": ...


# A draw from (key, *operands): the one equation at which the transform takes over.
sample_p = core.Primitive("gradest_sample")
sample_p.multiple_results = True


@sample_p.def_impl
def _(*args: Any, site: _Site) -> list[jax.Array]:
    # Run by itself, it may meet a number of the program that is not yet an array.
    return site.sample(*map(jnp.asarray, args))


@sample_p.def_abstract_eval
def _(*avals: Any, site: _Site) -> list[Any]:
    return _mesh.types_of(site.sample, avals, site.shapes)


mlir.register_lowering(
    sample_p, mlir.lower_fun(lambda *args, site: site.sample(*args), multiple_results=True)
)


def _batch_sample(args: Sequence[Any], dims: Sequence[Any], *, site: _Site) -> Any:
    moved = lanes_first(args, dims)
    mapped = [d is not None for d in dims]
    site = site.vmapped(moved[0].shape[0], not mapped[0], mapped[1:])
    out = sample_p.bind(*moved, site=site)
    return out, [0] * len(out)


batching.primitive_batchers[sample_p] = _batch_sample


def _differentiate_sample(primals: Any, tangents: Any, *, site: _Site) -> Any:
    draw = sample_p.bind(*primals, site=site)
    return draw, refused_tangents(Refusal(site.name, site.where, _REMEDIES), draw, tangents)


ad.primitive_jvps[sample_p] = _differentiate_sample

_REMEDIES = (
    "Either write the draw in a loss under gradest.expectation and differentiate the wrapped "
    "loss, or use sampler.expect(key, dist, cost). (A jax.grad inside the loss, around the "
    "draw, is not seen by gradest.expectation.)"
)


# ---- Estimates -----------------------------------------------------------------------------

# The bits of a key, as they are, with which a cost-based `sampler.expect` draws.
estimate_p = core.Primitive("gradest_estimate")
estimate_p.def_impl(lambda bits, **_: bits)
estimate_p.def_abstract_eval(lambda bits, **_: bits)
mlir.register_lowering(estimate_p, lambda ctx, bits, **_: [bits])
batching.primitive_batchers[estimate_p] = lambda args, dims, **params: (
    estimate_p.bind(*args, **params),
    dims[0],
)


def estimating_with(key: jax.Array, name: str, where: str) -> jax.Array:
    """The key, recorded in the program as one that the estimator `name` draws with."""
    bits = estimate_p.bind(jax.random.key_data(key), name=name, where=where)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))


# ---- Pathwise draws ------------------------------------------------------------------------

# The leaves of a pathwise draw, as they are, beside the parameters that it was drawn from and the
# key's bits: so a staged program tells what is a draw, and how it was made need not be looked into.
draw_p = core.Primitive("gradest_draw")
draw_p.multiple_results = True
draw_p.def_impl(lambda *args, source, num_leaves: list(args[:num_leaves]))
draw_p.def_abstract_eval(lambda *avals, source, num_leaves: list(avals[:num_leaves]))
mlir.register_lowering(draw_p, lambda ctx, *args, source, num_leaves: list(args[:num_leaves]))


def _differentiate_draw(primals: Any, tangents: Any, *, num_leaves: int, source: Source) -> Any:
    draw = draw_p.bind(*primals, num_leaves=num_leaves, source=source)
    return draw, list(tangents[:num_leaves])


def _batch_draw(args: Any, dims: Any, *, num_leaves: int, source: Source) -> Any:
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    source = dataclasses.replace(source, lanes=(size, *source.lanes))
    return draw_p.bind(*args, num_leaves=num_leaves, source=source), list(dims[:num_leaves])


ad.primitive_jvps[draw_p] = _differentiate_draw
batching.primitive_batchers[draw_p] = _batch_draw


def recorded(source: Source, key: jax.Array, draw: Any, dist: Any) -> Any:
    """`draw`, a pytree that was drawn from `dist` with `key`, as the result of a `draw_p`."""
    leaves, structure = jax.tree.flatten(draw)
    parameters = [leaf for leaf in jax.tree.leaves(dist) if isinstance(leaf, jax.core.Tracer)]
    # By its bits: to be recorded with a key is not to use it.
    bits = jax.random.key_data(key)
    out = draw_p.bind(*leaves, *parameters, bits, source=source, num_leaves=len(leaves))
    return jax.tree.unflatten(structure, out)
