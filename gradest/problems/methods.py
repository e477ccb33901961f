"""The table of methods: what each is made from, what it trains, and what is documented of it.

Adding an estimator to `python -m gradest compare` and `python -m gradest table` is one entry of
`METHODS`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

import gradest as ge

from . import ProblemError

Control = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Properties:
    """A row of the article's table.

    Attributes:
      variables: what it draws: "discrete", "continuous" or "both".
      differentiable: whether there is a gradient in the distribution's parameters.
      exact: whether draws follow the distribution exactly.
      smooth_cost: whether the cost must be differentiable; None where there is no gradient.
      unbiased: whether the gradient is unbiased; None where there is none.
    """

    variables: Literal["discrete", "continuous", "both"]
    differentiable: bool
    exact: bool
    smooth_cost: bool | None
    unbiased: bool | None


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of using one estimator.

    Attributes:
      name: on the command line and in tables.
      estimator: gradest's name for it.
      sampler: makes the sampler from the control variate's parameters, as keywords.
      about: a few words.
      control: those parameters' initial values, or a function of (key, shape of the draw) that
        makes them. They are trained with the model's.
      annealed: which of them follow a schedule instead.
      learns_baseline: whether `sampler` also takes the `baseline` that the problem learns.
      latents: the kinds of discrete variables that it draws; none if it is not for training.
      bound_of: how many samples the bound has that it estimates; 1 is the expectation itself.
      enumerates: whether it evaluates the cost at every configuration.
      documented: its row of the table of methods; None if another entry of the same estimator
        has it.
    """

    name: str
    estimator: str
    sampler: Callable[..., ge.Sampler]
    about: str
    _: dataclasses.KW_ONLY
    control: Control | Callable[[jax.Array, tuple[int, ...]], Control] = dataclasses.field(
        default_factory=dict
    )
    annealed: tuple[str, ...] = ()
    learns_baseline: bool = False
    latents: tuple[str, ...] = ("bernoulli", "categorical")
    bound_of: int = 1
    enumerates: bool = False
    documented: Properties | None = None

    def initial_control(self, key: jax.Array, shape: tuple[int, ...]) -> dict[str, Any]:
        """The control variate's parameters before training."""
        values = self.control(key, shape) if callable(self.control) else self.control
        return jax.tree.map(lambda x: jnp.asarray(x, float), dict(values))

    @property
    def properties(self) -> Properties:
        """What is documented of its estimator."""
        rows = [m.documented for m in METHODS if m.estimator == self.estimator]
        return next(row for row in rows if row is not None)


def _surrogate(w: Mapping[str, jax.Array], relaxed: jax.Array) -> jax.Array:
    """A network with one hidden layer."""
    x = jnp.ravel(relaxed)
    return jnp.dot(w["out"], jnp.tanh(w["in"] @ x + w["bias"])) + jnp.dot(w["skip"], x)


def _initial_surrogate(key: jax.Array, size: int, hidden: int = 10) -> dict[str, jax.Array]:
    """Zero as a function, so that training starts from REINFORCE."""
    return {
        "in": jax.random.normal(key, (hidden, size)) / math.sqrt(size),
        "bias": jnp.zeros(hidden),
        "out": jnp.zeros(hidden),
        "skip": jnp.zeros(size),
    }


METHODS = [
    Method(
        "score_function",
        "score_function",
        ge.score_function,
        "score_function(), without a baseline",
        documented=Properties("both", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "score_function_baseline",
        "score_function",
        lambda baseline: ge.score_function(baseline=baseline),
        "score_function(baseline=b), b learned by its own cotangent",
        learns_baseline=True,
    ),
    Method(
        "score_function_loo",
        "score_function",
        lambda: ge.score_function(num_samples=4, baseline="leave_one_out"),
        'score_function(num_samples=4, baseline="leave_one_out")',
    ),
    Method(
        "straight_through",
        "straight_through",
        ge.straight_through,
        "straight_through()",
        documented=Properties("discrete", True, exact=True, smooth_cost=True, unbiased=False),
    ),
    Method(
        "gumbel_softmax",
        "gumbel_softmax",
        ge.gumbel_softmax,
        "gumbel_softmax(t), t annealed",
        control={"temperature": 1.0},
        annealed=("temperature",),
        documented=Properties("discrete", True, exact=False, smooth_cost=True, unbiased=False),
    ),
    Method(
        "st_gumbel_softmax",
        "st_gumbel_softmax",
        ge.st_gumbel_softmax,
        "st_gumbel_softmax(t), t annealed",
        control={"temperature": 1.0},
        annealed=("temperature",),
        documented=Properties("discrete", True, exact=True, smooth_cost=True, unbiased=False),
    ),
    Method(
        "gumbel_rao",
        "gumbel_rao",
        ge.gumbel_rao,
        "gumbel_rao(t), t annealed",
        control={"temperature": 1.0},
        annealed=("temperature",),
        documented=Properties("discrete", True, exact=True, smooth_cost=True, unbiased=False),
    ),
    Method(
        "reinmax",
        "reinmax",
        ge.reinmax,
        "reinmax()",
        documented=Properties("discrete", True, exact=True, smooth_cost=True, unbiased=False),
    ),
    Method(
        "arm",
        "arm",
        ge.arm,
        "arm()",
        latents=("bernoulli",),
        documented=Properties("discrete", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "disarm",
        "disarm",
        ge.disarm,
        "disarm()",
        documented=Properties("discrete", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "muprop",
        "muprop",
        ge.muprop,
        "muprop()",
        documented=Properties("discrete", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "rebar",
        "rebar",
        # The logarithm is what is trained: a temperature must stay positive.
        lambda log_temperature, eta: ge.rebar(jnp.exp(log_temperature), eta=eta),
        "rebar(t, eta=eta), t and eta trained by their own cotangents",
        control={"log_temperature": math.log(0.5), "eta": 1.0},
        documented=Properties("discrete", True, exact=True, smooth_cost=True, unbiased=True),
    ),
    Method(
        "relax",
        "relax",
        lambda surrogate, log_temperature, eta: ge.relax(
            _surrogate, surrogate, temperature=jnp.exp(log_temperature), eta=eta
        ),
        "relax(network, w, temperature=t, eta=eta), all trained by their own cotangents",
        control=lambda key, shape: {
            "surrogate": _initial_surrogate(key, math.prod(shape)),
            "log_temperature": math.log(0.5),
            "eta": 1.0,
        },
        documented=Properties("both", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "measure_valued",
        "measure_valued",
        ge.measure_valued,
        "measure_valued(), the cost once more for every latent variable",
        latents=("bernoulli",),
        documented=Properties("both", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "enumeration",
        "enumeration",
        ge.enumeration,
        "enumeration(), the exact gradient",
        enumerates=True,
        documented=Properties("discrete", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "unordered_set",
        "unordered_set",
        lambda: ge.unordered_set(4),
        "unordered_set(4)",
        documented=Properties("discrete", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "sum_and_sample",
        "sum_and_sample",
        ge.sum_and_sample,
        "sum_and_sample()",
        # The most probable of 2^64 configurations has hardly any mass to be summed.
        latents=(),
        documented=Properties("discrete", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "vimco",
        "vimco",
        lambda: ge.vimco(2),
        "vimco(2)",
        latents=(),
        bound_of=2,
        documented=Properties("both", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "dreg",
        "dreg",
        lambda: ge.dreg(2),
        "dreg(2)",
        latents=(),
        bound_of=2,
        documented=Properties("continuous", True, exact=True, smooth_cost=True, unbiased=True),
    ),
    Method(
        "antithetic",
        "antithetic",
        ge.antithetic,
        "antithetic()",
        latents=(),
        documented=Properties("continuous", True, exact=True, smooth_cost=True, unbiased=True),
    ),
    Method(
        "delta_method",
        "delta_method",
        ge.delta_method,
        "delta_method()",
        latents=(),
        documented=Properties("continuous", True, exact=True, smooth_cost=False, unbiased=True),
    ),
    Method(
        "reparameterize",
        "reparameterize",
        ge.reparameterize,
        "reparameterize()",
        latents=(),
        documented=Properties("continuous", True, exact=True, smooth_cost=True, unbiased=True),
    ),
    Method(
        "gumbel_max",
        "gumbel_max",
        ge.gumbel_max,
        "gumbel_max()",
        latents=(),
        documented=Properties("discrete", False, exact=True, smooth_cost=None, unbiased=None),
    ),
]


def trainable(latent: str) -> list[Method]:
    """The methods that train discrete variables of this kind."""
    return [method for method in METHODS if latent in method.latents]


def choose(names: Iterable[str] | None, latent: str) -> list[Method]:
    """The methods of these names, in the order given; all that apply if None."""
    if names is None:
        return trainable(latent)
    known = {method.name: method for method in METHODS}
    chosen = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise ProblemError(unknown("--estimators", name, [m.name for m in trainable(latent)]))
        if latent not in known[name].latents:
            raise ProblemError(
                f"--estimators: expected estimators that train {latent} variables, got {name!r}. "
                f"Choose from {', '.join(m.name for m in trainable(latent))}."
            )
        chosen.append(known[name])
    if not chosen:
        raise ProblemError(unknown("--estimators", "", [m.name for m in trainable(latent)]))
    return chosen


def unknown(option: str, given: str, expected: Iterable[str]) -> str:
    """One line about an unknown name, with the closest known one."""
    expected = list(expected)
    close = difflib.get_close_matches(given, expected, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{option}: expected one of {', '.join(expected)}, got {given!r}.{hint}"
