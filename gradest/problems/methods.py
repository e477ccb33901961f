"""The ways of using an estimator that `python -m gradest compare` trains with.

They come from the estimators' records. One that is used with its own defaults, or with a
temperature that is annealed, is here as soon as it has a record; what is trained in another way is
written out in `_TRAINED`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import gradest as ge
from gradest import records

from . import ProblemError

Control = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of using one estimator.

    Attributes:
      name: on the command line.
      record: of its estimator.
      sampler: makes the sampler from the control variate's parameters, as keywords.
      about: a few words.
      control: those parameters' initial values, or a function of (key, shape of the draw) that
        makes them. They are trained with the model's.
      annealed: which of them follow a schedule instead.
      used: in a word or two, if the estimator is used in several ways.
      learns_baseline: whether `sampler` also takes the `baseline` that the problem learns.
      latents: the kinds of discrete variables that it trains.
    """

    name: str
    record: records.Record
    sampler: Callable[..., ge.Sampler]
    about: str
    _: dataclasses.KW_ONLY
    control: Control | Callable[[jax.Array, tuple[int, ...]], Control] = dataclasses.field(
        default_factory=dict
    )
    annealed: tuple[str, ...] = ()
    learns_baseline: bool = False
    used: str = ""
    latents: tuple[str, ...] = ("bernoulli", "categorical")

    def initial_control(self, key: jax.Array, shape: tuple[int, ...]) -> dict[str, Any]:
        """The control variate's parameters before training."""
        values = self.control(key, shape) if callable(self.control) else self.control
        return jax.tree.map(lambda x: jnp.asarray(x, float), dict(values))

    @property
    def label(self) -> str:
        """In tables and pictures: the estimator's own name, and how it is used."""
        return ", ".join(filter(None, (self.record.name, self.used)))

    @property
    def enumerates(self) -> bool:
        """Whether it evaluates the cost at every configuration."""
        return self.record.unbiased == "exact"


def _surrogate(w: Mapping[str, jax.Array], relaxed: jax.Array) -> jax.Array:
    """A network with one hidden layer."""
    x = jnp.ravel(relaxed)
    return jnp.dot(w["out"], jnp.tanh(w["in"] @ x + w["bias"])) + jnp.dot(w["skip"], x)


def _initial_surrogate(key: jax.Array, size: int) -> dict[str, jax.Array]:
    """Zero as a function, so that training starts from REINFORCE."""
    hidden = 10
    return {
        "in": jax.random.normal(key, (hidden, size)) / math.sqrt(size),
        "bias": jnp.zeros(hidden),
        "out": jnp.zeros(hidden),
        "skip": jnp.zeros(size),
    }


_SCORE, _REBAR, _RELAX = (records.ESTIMATORS[name] for name in ("score_function", "rebar", "relax"))
_TRAINED = [
    Method("score_function", _SCORE, ge.score_function, "score_function(), without a baseline"),
    Method(
        "score_function_baseline",
        _SCORE,
        lambda baseline: ge.score_function(baseline=baseline),
        "score_function(baseline=b), b learned by its own cotangent",
        learns_baseline=True,
        used="baseline=b",
    ),
    Method(
        "score_function_loo",
        _SCORE,
        lambda: ge.score_function(num_samples=4, baseline="leave_one_out"),
        'score_function(num_samples=4, baseline="leave_one_out")',
        used="leave_one_out",
    ),
    Method(
        "rebar",
        _REBAR,
        # The logarithm is what is trained: a temperature must stay positive.
        lambda log_temperature, eta: ge.rebar(jnp.exp(log_temperature), eta=eta),
        "rebar(t, eta=eta), t and eta trained by their own cotangents",
        control={"log_temperature": math.log(0.5), "eta": 1.0},
    ),
    Method(
        "relax",
        _RELAX,
        lambda surrogate, log_temperature, eta: ge.relax(
            _surrogate, surrogate, temperature=jnp.exp(log_temperature), eta=eta
        ),
        "relax(network, w, temperature=t, eta=eta), all trained by their own cotangents",
        control=lambda key, shape: {
            "surrogate": _initial_surrogate(key, math.prod(shape)),
            "log_temperature": math.log(0.5),
            "eta": 1.0,
        },
    ),
]

_DRAWN_AS = {"bernoulli": "Bernoulli", "categorical": "OneHotCategorical"}
#: What is not worth training with, though it draws them.
_LEFT_OUT = {
    # The most probable of 2^64 configurations has hardly any mass to be summed.
    "sum_and_sample": ("bernoulli", "categorical"),
    # The cost once more for every category of every variable.
    "measure_valued": ("categorical",),
}


def _methods(record: records.Record) -> list[Method]:
    """The ways of training with an estimator."""
    written_out = [method for method in _TRAINED if method.record is record]
    # A bound of several samples is not what the problems minimise.
    if written_out or not record.estimates or record.unbiased == "of the bound":
        return written_out
    served = [latent for latent, kind in _DRAWN_AS.items() if kind in record.distributions]
    latents = tuple(latent for latent in served if latent not in _LEFT_OUT.get(record.name, ()))
    if not latents:
        return []
    if "temperature" in record.arguments:
        return [
            Method(
                record.name,
                record,
                record.estimator,
                f"{record.name}(t), t annealed",
                control={"temperature": 1.0},
                annealed=("temperature",),
                latents=latents,
            )
        ]
    return [Method(record.name, record, record.sampler, record.call, latents=latents)]


METHODS = [method for record in records.ESTIMATORS.values() for method in _methods(record)]


def trainable(latent: str) -> list[Method]:
    """The methods that train discrete variables of this kind."""
    return [method for method in METHODS if latent in method.latents]


def choose(names: Iterable[str] | None, latent: str) -> list[Method]:
    """The methods of these names, in the order given; all that apply if None."""
    applicable = {method.name: method for method in trainable(latent)}
    if names is None:
        return list(applicable.values())
    chosen = list(dict.fromkeys(names))
    known = {method.name for method in METHODS} | set(records.ESTIMATORS)
    for name in chosen or [""]:
        if name not in known:
            raise ProblemError(unknown("--estimators", name, applicable))
        if name not in applicable:
            raise ProblemError(
                f"--estimators: expected estimators that train {latent} variables, got {name!r}. "
                f"Choose from {', '.join(applicable)}."
            )
    return [applicable[name] for name in chosen]


def unknown(option: str, given: str, expected: Iterable[str]) -> str:
    """One line about an unknown name, with the closest known one."""
    expected = list(expected)
    close = closest(given, expected)
    hint = f" Did you mean {close!r}?" if close else ""
    return f"{option}: expected one of {', '.join(expected)}, got {given!r}.{hint}"


def closest(given: str, expected: Iterable[str]) -> str | None:
    """The name that is most like the given one, if any is."""
    return next(iter(difflib.get_close_matches(given, list(expected), n=1)), None)
