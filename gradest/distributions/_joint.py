"""One joint draw of a distribution of any library, and its log-probability."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _check, _numerics
from .base import Distribution, Shape


def check(dist: Any) -> None:
    """Raises unless `dist` is a distribution whose parameters gradients can reach."""
    _sample_method(type(dist))
    if jax.tree_util.all_leaves([dist]):
        raise TypeError(
            f"dist: expected a pytree, got a {_check.name_of(type(dist))} that is not registered "
            "as one: gradients could not reach its parameters. Use "
            "jax.tree_util.register_dataclass."
        )


def is_pathwise(dist: Any) -> bool | None:
    """Whether it says that its draws are differentiable; None if its library has no such flag."""
    if isinstance(dist, Distribution):
        return dist.reparameterizable
    return getattr(dist, "has_rsample", None)


def declared_slopes(dist: Any) -> list[bool]:
    """Whether each part of a draw is differentiable, as TFP says it; empty if its library does not.

    It says no of a draw with a discrete part, too.
    """
    declared = jax.tree.leaves(getattr(dist, "reparameterization_type", None))
    return ["NOT_" not in repr(kind) for kind in declared]


def seems_pathwise(dist: Any) -> bool | None:
    """Whether some of its draw is differentiable, as its library says it; None if it does not."""
    declared = declared_slopes(dist)
    return any(declared) if declared else is_pathwise(dist)


def draw(key: jax.Array, dist: Any) -> Any:
    """One joint draw of any distribution, with the gradient its library gives it.

    Of a discrete one of gradest's without the refusal of `plain`, which estimators see to.
    """
    if isinstance(dist, Distribution):
        return dist._sample(key)
    return _sample_method(type(dist))(dist, key)


def plain_draw(key: jax.Array, dist: Any) -> Any:
    """One joint draw of any distribution, by its `sample`."""
    return _sample_method(type(dist))(dist, key)


def draw_unrounded(key: jax.Array, dist: Any) -> tuple[Any, Any]:
    """`draw`, and that from before it was rounded, which `log_prob_unrounded` takes."""
    if not isinstance(dist, Distribution):
        x = draw(key, dist)
        return x, x
    u = dist._sample_unrounded(key, ())
    return dist._rounded(u), u


def log_probs_unrounded(dist: Any, u: Any) -> jax.Array:
    """Log-probabilities of the independent elements of the draw that is made of `u`."""
    own = isinstance(dist, Distribution)
    return dist._log_prob_unrounded(u) if own else dist.log_prob(u)


def log_prob_unrounded(dist: Any, u: Any) -> jax.Array:
    """`log_prob` of the draw that is made of `u`."""
    return _total(log_probs_unrounded(dist, u))


def log_prob(dist: Any, x: Any) -> jax.Array:
    """Log-probability of the joint draw `x`: the sum over its elements."""
    return _total(dist.log_prob(x))


def _total(log_p: jax.Array) -> jax.Array:
    # A sum over a half-precision batch loses digits that the elements still have.
    return jnp.sum(log_p, dtype=_numerics.compute_dtype(log_p.dtype))


@functools.cache
def _sample_method(kind: type) -> Callable[[Any, jax.Array], Any]:
    """How `kind` spells "draw once with this key", read from its signature.

    gradest's own classes and numpyro's say `sample(key, shape)`; distrax and TFP
    `sample(seed=, sample_shape=)`. The latter wrap typed keys badly, so they get raw ones.
    """
    sample = getattr(kind, "sample", None)
    if sample is None or not hasattr(kind, "log_prob"):
        of_logits = " Of logits make one: gradest.distributions.Bernoulli(logits)."
        raise TypeError(
            f"dist: expected a distribution with sample(key, shape) and log_prob(x), got "
            f"{_check.name_of(kind)}. The distribution comes second: sampler(key, dist)."
            f"{of_logits if hasattr(kind, 'dtype') else ''}"
        )
    if "seed" in _parameters_of_sample(kind):
        return lambda dist, key: dist.sample(seed=_raw(key))
    return lambda dist, key: dist.sample(key)


def _parameters_of_sample(kind: type) -> Mapping[str, inspect.Parameter]:
    """Of the first method, from `kind` on, that names them, and does not only hand them on."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    methods = (vars(base)["sample"] for base in kind.__mro__ if "sample" in vars(base))
    for parameters in (inspect.signature(method).parameters for method in methods):
        if any(p.kind not in variable for p in list(parameters.values())[1:]):
            return parameters
    return {}


def _raw(key: jax.Array) -> jax.Array:
    """A raw key, which JAX takes for one of its default implementation."""
    default = jax.random.key(0)
    if key.dtype == default.dtype:
        return jax.random.key_data(key)
    like = jax.random.key_data(default)
    return jax.random.bits(key, like.shape, like.dtype)


def in_lanes(dist: Any) -> Any:
    """The distribution of a joint draw of all lanes, of one with a leading axis on every leaf.

    gradest's own are that: a leading axis of the leaves, and of the key, is one of the draw.
    """
    if not isinstance(dist, Distribution):
        return Lanes(dist)
    kind = type(dist)
    if all(map(_check.is_gradests, (getattr(kind, name, None) for name in _NUM_MAPPED))):
        return dist
    leaves, aux = kind._flatten(dist)
    if not leaves:
        raise TypeError(
            f"dist: expected a distribution with parameters under jax.vmap, got {kind.__name__}, "
            "of which nothing tells the lanes. Draw outside of the vmap."
        )
    return _lane_by_lane(kind)._unflatten(aux, leaves)


@functools.cache
def _lane_by_lane(kind: type[Distribution]) -> type[Distribution]:
    """A user's own class, each of whose methods is vmapped over the leading axis."""

    def of_lanes(name: str, num_mapped: int) -> Callable[..., Any]:
        @functools.wraps(getattr(kind, name))
        def method(self: Distribution, *args: Any, **static: Any) -> Any:
            leaves, aux = self._flatten()
            mapped, others = args[:num_mapped], args[num_mapped:]
            flags: list[Any] = []

            def of_one(leaves: Any, *mapped: Any) -> Any:
                result = getattr(kind._unflatten(aux, leaves), name)(*mapped, *others, **static)
                parts, treedef = jax.tree.flatten(result)
                # What is no array, such as `WeakDerivative.of_row`, is of all lanes.
                flags[:] = treedef, [x if isinstance(x, bool) else None for x in parts]
                return [x for x in parts if not isinstance(x, bool)]

            shape = static.get("shape", others[0] if others else ()) if name == "sample" else ()
            arrays = iter(jax.vmap(of_one, out_axes=len(shape))(leaves, *mapped))
            treedef, known = flags
            return jax.tree.unflatten(treedef, [next(arrays) if x is None else x for x in known])

        return method

    def first(self: Distribution) -> Distribution:
        leaves, aux = self._flatten()
        return kind._unflatten(aux, [leaf[0] for leaf in leaves])

    def along(name: str) -> property:
        size = lambda self: jax.tree.leaves(self)[0].shape[:1]
        return property(lambda self: (*size(self), *getattr(first(self), name)))

    methods: dict[str, Any] = {
        name: of_lanes(name, num_mapped)
        for name, num_mapped in _NUM_MAPPED.items()
        if callable(getattr(kind, name, None))
    }
    methods["shape"] = along("shape")
    if hasattr(kind, "noise_shape"):
        methods["noise_shape"] = along("noise_shape")
    if callable(getattr(kind, "enumerate_support", None)):
        # The values of one element are the same in all lanes.
        methods["enumerate_support"] = lambda self: first(self).enumerate_support()
        methods["num_outcomes"] = property(lambda self: first(self).num_outcomes)
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})


# How many of the arguments of a distribution's methods have an axis of lanes, from the first on.
_NUM_MAPPED = {
    **dict.fromkeys(["mean"], 0),
    **dict.fromkeys(["sample", "log_prob", "reflect", "quantile", "of_noise"], 1),
    **dict.fromkeys(["perturb", "harden", "soften"], 1),
    **dict.fromkeys(["conditional", "weak_derivative", "left_weak_derivative"], 2),
    **dict.fromkeys(["pull_back_conditional"], 3),
}


class Lanes:
    """A vmapped distribution of another library: one joint draw of all its lanes."""

    def __init__(self, dist: Any):
        self.dist = dist

    def sample(self, key: jax.Array, shape: Shape = ()) -> Any:
        assert shape == (), "a site is drawn once"
        return jax.vmap(draw)(key, self.dist)

    def log_prob(self, x: Any) -> jax.Array:
        return jax.vmap(log_prob)(self.dist, x)


jax.tree_util.register_pytree_node(
    Lanes, lambda lanes: ((lanes.dist,), None), lambda _, children: Lanes(*children)
)
