"""Distributions whose parameters are not all leaves: a flow's network, what a closure holds.

What is differentiated must be an operand of a draw. A distribution of another library, or of a
user's, may hold traced arrays where JAX does not look for them, in a function or in a class that is
no pytree. Its `sample` and `log_prob` are then staged, and what they close over is found.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from .. import _check
from . import _joint, _supports
from .base import Distribution, Shape


def closed(dist: Any, *, scored: bool) -> Any:
    """`dist`, or if it closes over traced arrays, a distribution that has them as leaves.

    Args:
      dist: a distribution of any library.
      scored: whether its log-probability may be asked for.
    """
    if isinstance(dist, Distribution) or not hasattr(dist, "sample"):
        return dist
    staged = _stage(dist, scored)
    hidden = any(not _check.is_concrete(c) for jaxpr in staged.jaxprs for c in jaxpr.consts)
    return staged if hidden else dist


def _stage(dist: Any, scored: bool) -> "Closed":
    leaves, rebuild = [], lambda _: dist
    if not jax.tree_util.all_leaves([dist]):
        leaves, treedef = _flat(dist)
        rebuild = treedef.unflatten
    key = jax.random.key(0)
    draw = lambda key, leaves: _joint.draw(key, rebuild(leaves))
    with _named(dist, "sample", "Draw from another distribution."):
        sample, shapes = jax.make_jaxpr(draw, return_shape=True)(key, leaves)
    bounds = jax.make_jaxpr(lambda leaves: _supports.bounds(rebuild(leaves)))(leaves)
    jaxprs = [sample, bounds]
    if scored:
        score = lambda leaves, x: _joint.log_prob(rebuild(leaves), x)
        with _named(dist, "log_prob", "Use reparameterize, if its draws are differentiable."):
            jaxprs.append(jax.make_jaxpr(score)(leaves, shapes))
    structure = jax.tree.structure(shapes)
    consts = [jaxpr.consts for jaxpr in jaxprs]
    return Closed(leaves, consts, (jaxprs, structure, dist))


def _flat(dist: Any) -> tuple[list[Any], Any]:
    """Its leaves and its structure, which its library may fail to find."""
    try:
        return jax.tree.flatten(dist)
    except Exception as error:
        raise TypeError(
            f"dist: expected a pytree, got a {_check.name_of(type(dist))}, which is registered as "
            f"one and fails as one in this version of its library ({type(error).__name__}: "
            f"{str(error).rstrip('.')}): gradients could not reach its parameters. Draw its parts "
            "one after the other, each by a sampler, or use another class of the same law."
        ) from error


@contextlib.contextmanager
def _named(dist: Any, method: str, remedy: str) -> Iterator[None]:
    """Says of which distribution a method is not implemented."""
    try:
        yield
    except NotImplementedError as error:
        because = f": {str(error).rstrip('.')}" if str(error) else ""
        raise TypeError(
            f"dist: expected a distribution with a method `{method}`, got "
            f"{_check.name_of(type(dist))}, of which it is not implemented{because}. {remedy}"
        ) from error


class Closed:
    """A distribution by its staged functions, whose leaves are all that they depend on."""

    def __init__(self, parameters: Any, closed_over: Any, staged: Any):
        self.parameters, self.closed_over, self._staged = parameters, closed_over, staged

    @property
    def jaxprs(self) -> list[core.ClosedJaxpr]:
        """Of `sample`, of the bounds of the support and, if it is known, of `log_prob`."""
        return self._staged[0]

    def sample(self, key: jax.Array, shape: Shape = ()) -> Any:
        assert shape == (), "a site is drawn once"
        return jax.tree.unflatten(self._staged[1], self._run(0, key, *self.parameters))

    @property
    def law(self) -> type:
        """The class of the distribution."""
        return type(self._staged[2])

    def bounds(self) -> list[jax.Array]:
        return self._run(1, *self.parameters)

    def log_prob(self, x: Any) -> jax.Array:
        return self._run(2, *self.parameters, *jax.tree.leaves(x))[0]

    def _run(self, number: int, *args: Any) -> list[jax.Array]:
        jaxpr = self.jaxprs[number].replace(consts=self.closed_over[number])
        return core.jaxpr_as_fun(jaxpr)(*map(jnp.asarray, args))

    def __getattr__(self, name: str) -> Any:
        # What the distribution says of itself, such as whether its draws are differentiable.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._staged[2], name)


jax.tree_util.register_pytree_node(
    Closed,
    lambda d: ((d.parameters, d.closed_over), d._staged),
    lambda staged, children: Closed(*children, staged),
)
