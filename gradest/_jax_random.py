"""Draws that no estimator knows of, by `jax.random` or a distribution, as a program has them."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from . import _written
from ._jaxpr import variables

# jax.random's discrete families that are calls of their own in a jaxpr.
_DISCRETE_CALLS = {
    f"_{name}": f"jax.random.{name}" for name in ("bernoulli", "poisson", "geometric")
}
# Those that are loops.
_DISCRETE_LOOPS = {
    **dict.fromkeys(["binomial", "_binomial"], "jax.random.binomial"),
    "multinomial": "jax.random.multinomial",
}
# Continuous draws that others are made of, with the ends of what they may be.
_NOISE = {
    "_uniform": "between its operands",
    **dict.fromkeys(["_normal", "_normal_real", "_gumbel", "_logistic", "_laplace"], "any"),
    **dict.fromkeys(["_cauchy", "gradest_implicit"], "any"),
}
_RANDOM = os.path.join(_written.JAX, "_src", "random")  # a module, or from jax 0.12 on a package


def raw_draw(eqn: Any, defined_by: dict[Any, Any]) -> str | None:
    """The name of the discrete draw that `eqn` is, if it is one.

    Calls of its own are told by name, `categorical` as the argmax (without replacement: top_k) of
    a sum with Gumbel noise, `binomial` and `multinomial` as a loop that was written in them.
    Integer draws of gradest's distributions bear a mark.

    Args:
      eqn: an equation.
      defined_by: the equation that defines each variable of the jaxpr.
    """
    kind, name = eqn.primitive.name, eqn.params.get("name")
    if kind == "gradest_drawn":
        return name
    if kind in ("jit", "pjit"):
        return (
            _DISCRETE_CALLS.get(name)
            if _written.is_of_jax_or_gradest(eqn.params["jaxpr"])
            else None
        )
    if kind in ("argmax", "top_k"):
        for noisy in filter(None, map(defined_by.get, variables(eqn))):
            terms = filter(None, map(defined_by.get, variables(noisy)))
            if noisy.primitive.name == "add" and any(
                term.params.get("name") == "_gumbel" for term in terms
            ):
                return "jax.random.categorical"
    if kind in ("while", "scan"):
        frames = (f for f in _written.frames(eqn) if f.file_name.startswith(_RANDOM))
        names = (_DISCRETE_LOOPS.get(f.function_name) for f in frames)
        return next(filter(None, names), None)
    return None


def noise(eqn: Any) -> str | None:
    """Where the continuous draw that `eqn` is may be, if it is one; else None.

    By jax.random, or by a distribution of gradest's where its derivative is implicit.
    """
    name = eqn.primitive.name
    if name == "random_gamma":
        return "any" if eqn.params["log_space"] else "positive"
    if name in ("jit", "pjit"):
        name = eqn.params["name"]
        of_jax = name in _NOISE and _written.is_of_jax_or_gradest(eqn.params["jaxpr"])
        return _NOISE[name] if of_jax else None
    return _NOISE.get(name)


def draws_with_key(eqn: Any) -> bool:
    """Whether `eqn` is a draw by jax.random, with its first operand."""
    if eqn.primitive.name not in ("jit", "pjit") or not eqn.invars:
        return False
    is_key = lambda atom: jnp.issubdtype(atom.aval.dtype, jax.dtypes.prng_key)
    by_jax = _written.file_of(eqn.params["jaxpr"]).startswith(_RANDOM) and is_key(eqn.invars[0])
    return by_jax and not any(map(is_key, eqn.outvars))
