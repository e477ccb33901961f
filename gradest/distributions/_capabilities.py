"""What estimators need of a distribution, by name, and which distributions have it.

An estimator's record names its needs; the distributions that it serves follow from here. Most are
methods: a user's own distribution that has them is served as gradest's are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .. import _check, _numerics
from ._derived import dtype_of
from .base import Distribution


@dataclasses.dataclass(frozen=True)
class Capability:
    """Something that a distribution has or has not.

    Attributes:
      meaning: what it is, in a few words.
      of: whether a class of gradest's distributions, or one derived from theirs, has it.
      makes: the call that makes something of the shape of a draw, if one does: in words, and of a
        distribution.
    """

    meaning: str
    of: Callable[[type[Distribution]], bool]
    makes: tuple[str, Callable[[Any], Any]] | None = None


def _methods(*names: str) -> Callable[[type[Distribution]], bool]:
    """Whether a class has all of these methods; one that it inherits may be None in it."""
    return lambda kind: all(callable(getattr(kind, name, None)) for name in names)


def _wide(dist: Distribution) -> jnp.dtype:
    """The type of noise for `dist`."""
    return _numerics.compute_dtype(dtype_of(dist))


CAPABILITIES = {
    "density": Capability(
        "a log-probability, over a support that does not depend on the parameters",
        lambda kind: kind.fixed_support and not kind.no_density,
    ),
    "pathwise": Capability(
        "draws that are differentiable in the parameters", lambda kind: kind.reparameterizable
    ),
    "reflection": Capability(
        "a centre at which it can be mirrored",
        _methods("reflect"),
        ("reflect(x)", lambda dist: dist.reflect(jnp.zeros(dist.shape, dtype_of(dist)))),
    ),
    "Normal noise": Capability(
        "draws that are a linear function of standard Normal noise",
        _methods("of_noise"),
        ("of_noise(e)", lambda dist: dist.of_noise(jnp.zeros(dist.noise_shape, _wide(dist)))),
    ),
    "quantile": Capability(
        "a quantile function, differentiable in the parameters",
        _methods("quantile"),
        ("quantile(u)", lambda dist: dist.quantile(jnp.full(dist.shape, 0.5, _wide(dist)))),
    ),
    "weak derivative": Capability(
        "a derivative that is a difference of two distributions",
        _methods("weak_derivative"),
    ),
    "support": Capability(
        "finitely many values, which can be listed", _methods("enumerate_support")
    ),
    "categorical": Capability("logits of a softmax or a sigmoid", lambda kind: kind.categorical),
    "relaxation": Capability(
        "draws that are a threshold of continuous noise",
        _methods("perturb", "harden", "soften", "conditional", "pull_back_conditional"),
    ),
    "added noise": Capability(
        "logits that noise is added to",
        lambda kind: (
            _methods("perturb")(kind) and _check.is_gradests(getattr(kind, "perturb", None))
        ),
    ),
    "relaxed draw": Capability(
        "a relaxed draw, differentiable in the parameters", _methods("perturb", "soften")
    ),
    "mean": Capability(
        "a mean of the shape of its draws, differentiable in the parameters",
        _methods("mean"),
        ("mean()", lambda dist: dist.mean()),
    ),
}


def has(kind: type, need: str | tuple[str, ...]) -> bool:
    """Whether a class, of any library, has a capability; of several names in a tuple, one."""
    if not issubclass(kind, Distribution):
        return False
    names = (need,) if isinstance(need, str) else need
    return any(CAPABILITIES[name].of(kind) for name in names)
