"""Calls that are written as another library would have them, answered with gradest's words."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

P = ParamSpec("P")
T = TypeVar("T")

# What others call it.
_OPTIONS = {
    **dict.fromkeys(["tau", "temp", "t"], "temperature"),
    **dict.fromkeys(["n_samples", "n", "k", "num", "samples", "sample_shape"], "num_samples"),
    **dict.fromkeys(["control_variate", "b"], "baseline"),
}
_ELSEWHERE = {
    "hard": "Whether draws are hard is the choice of the estimator: st_gumbel_softmax(temperature) "
    "draws hard ones, gumbel_softmax(temperature) relaxed ones.",
    "logits": "An estimator is made without a distribution: sampler = gradest.{name}(), then "
    "sampler(key, gradest.distributions.Bernoulli(logits)).",
    "key": "An estimator is made without a key: sampler = gradest.{name}(), then "
    "sampler(key, dist).",
}


def estimator(make: Callable[P, T]) -> Callable[P, T]:
    """`make`, an estimator, which answers who calls it as a sampler, or by other words."""

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        parameters = inspect.signature(make).parameters
        name = make.__name__
        if any(map(_is_key_or_distribution, args)):
            raise TypeError(
                f"{name}: expected options, got a key or a distribution. Make the sampler first, "
                f"sampler = ge.{name}(), and call that: sampler(key, dist)."
            )
        for given in kwargs:
            if given not in parameters:
                raise TypeError(_unknown(name, given, parameters))
        return make(*args, **kwargs)

    return checked


def _is_key_or_distribution(x: Any) -> bool:
    is_key = isinstance(x, jax.Array) and (
        jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or x.dtype == jnp.uint32
    )
    return is_key or (hasattr(x, "log_prob") and hasattr(x, "sample"))


def _unknown(name: str, given: str, parameters: Mapping[str, Any]) -> str:
    if given in _ELSEWHERE:
        remedy = _ELSEWHERE[given].format(name=name)
    else:
        word = _OPTIONS.get(given)
        near = [word] if word in parameters else difflib.get_close_matches(given, parameters, 1)
        listed = ", ".join(parameters) or "none"
        remedy = f"Use {near[0]}=." if near else f"Its options: {listed}."
    return f"{name}: got an unexpected option {given}=. {remedy}"


def sampling(sample: Callable[..., T]) -> Callable[..., T]:
    """`sample`, a method of (key, shape), which tells who calls it by other words what to do."""

    @functools.wraps(sample)
    def checked(self: Any, *args: Any, **kwargs: Any) -> T:
        name = f"{type(self).__name__}.sample"
        for given in ("seed", "rng", "rng_key", "sample_shape"):
            if given in kwargs and given not in inspect.signature(sample).parameters:
                word = "shape" if given == "sample_shape" else "key"
                raise TypeError(
                    f"{name}: got an unexpected argument {given}=. Use {word}=: sample(key, shape)."
                )
        shape = kwargs.get("shape", args[1] if len(args) > 1 else ())
        if isinstance(shape, int):
            raise TypeError(
                f"{name}: shape: expected a tuple of integers, got {shape}. Use ({shape},)."
            )
        return sample(self, *args, **kwargs)

    return checked


def made(init: Callable[..., None]) -> Callable[..., None]:
    """`init`, of a distribution, which answers who calls it by other words."""
    parameters = tuple(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for given in kwargs:
            if given not in parameters:
                raise TypeError(_unknown_parameter(type(self).__name__, given, parameters))
        init(self, *args, **kwargs)

    return checked


def _unknown_parameter(name: str, given: str, parameters: Sequence[str]) -> str:
    words = [word for word in _PARAMETERS.get(given, ()) if word in parameters]
    near = words or difflib.get_close_matches(given, parameters, 1)
    remedy = f"Use {near[0]}=." if near else f"Its parameters: {', '.join(parameters)}."
    return f"{name}: got an unexpected parameter {given}=. {remedy}"


# Of distributions: what others call their parameters.
_PARAMETERS = {
    **dict.fromkeys(["mu", "mean", "m"], ("loc",)),
    **dict.fromkeys(["sigma", "std", "stddev", "s"], ("scale",)),
    **dict.fromkeys(["n", "total", "n_trials", "num_trials"], ("total_count",)),
    **dict.fromkeys(["lam", "rate_parameter", "beta"], ("rate", "concentration0")),
    **dict.fromkeys(["alpha", "a", "shape", "kappa"], ("concentration", "concentration1")),
    "b": ("concentration0",),
    **dict.fromkeys(["p", "ps", "pi"], ("probs", "logits")),
    "nu": ("df",),
}

#: Of a distribution: attributes that it has elsewhere.
INSTEAD = {
    "rsample": "Draw by a sampler, which says how the gradient is estimated: "
    "gradest.reparameterize()(key, dist).",
    "prob": "Use jax.numpy.exp(dist.log_prob(x)).",
    "stddev": "Use its parameters.",
    "logits_parameter": "Use dist.logits.",
}
