"""Calls that are written as another library would have them, answered with gradest's words."""

import contextlib
import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

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
    name = make.__name__
    called = (
        f"options, got a key or a distribution. Make the sampler first, sampler = ge.{name}(), "
        "and call that: sampler(key, dist)."
    )
    return _with_options(make, _ELSEWHERE, called, f"Write gradest.{name}(option=...)")


def of_loss(transform: Callable[P, T]) -> Callable[P, T]:
    """`transform`, of a loss, which answers who gives it the loss's arguments as well."""
    name = transform.__name__
    remedy = f"The loss's arguments are those of what it returns: gradest.{name}(loss)(*args)"
    elsewhere = dict.fromkeys(["key", "rng", "seed", "params", "dist", "args"], f"{remedy}.")
    called = f"a loss and options, got a key or a distribution. {remedy}."
    return _with_options(transform, elsewhere, called, remedy)


def _with_options(
    make: Callable[P, T], elsewhere: Mapping[str, str], called: str, remedy: str
) -> Callable[P, T]:
    """`make`, which takes options, and tells who gives it something else what to do.

    Args:
      make: the function.
      elsewhere: what to say of names that are none of its options.
      called: what to say that is expected where a key or a distribution is given.
      remedy: for more arguments without a name than there are.
    """

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        parameters = inspect.signature(make).parameters
        name = make.__name__
        if any(map(_is_key_or_distribution, args)):
            raise TypeError(f"{name}: expected {called}")
        for given in kwargs:
            if given not in parameters:
                raise TypeError(_unknown(name, given, parameters, elsewhere))
        positional = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
        if len(args) > len(positional):
            raise TypeError(
                f"{name}: expected its options by name, got {args[len(positional)]!r} without one. "
                f"{remedy}; its options: {', '.join(parameters)}."
            )
        for missing in list(parameters.values())[len(args) :]:
            named = missing.name in kwargs or missing.kind in (
                missing.VAR_POSITIONAL,
                missing.VAR_KEYWORD,
            )
            if missing.default is missing.empty and not named:
                raise TypeError(
                    f"{name}: expected {missing.name}, got none. Write "
                    f"gradest.{name}({missing.name}=...)."
                )
        return make(*args, **kwargs)

    return checked


def _is_key_or_distribution(x: Any) -> bool:
    is_key = isinstance(x, jax.Array) and (
        jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or x.dtype == jnp.uint32
    )
    return is_key or (hasattr(x, "log_prob") and hasattr(x, "sample"))


def _unknown(
    name: str, given: str, parameters: Mapping[str, Any], elsewhere: Mapping[str, str]
) -> str:
    if given in elsewhere:
        remedy = elsewhere[given].format(name=name)
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
        method = sample.__name__
        name = f"{type(self).__name__}.{method}"
        for given in kwargs:
            if given in _SAMPLING and given not in inspect.signature(sample).parameters:
                raise TypeError(
                    f"{name}: got an unexpected argument {given}=. Use {_SAMPLING[given]}=: "
                    f"{method}(key, shape)."
                )
        if not args and "key" not in kwargs:
            raise TypeError(
                f"{name}: expected {method}(key, shape), got no key. Give one, such as "
                "jax.random.key(0)."
            )
        if args and isinstance(args[0], (tuple, list)):
            raise TypeError(
                f"{name}: key: expected a PRNG key, got a {type(args[0]).__name__}. Keys come "
                f"first: {method}(key, shape)."
            )
        shape = kwargs.get("shape", args[1] if len(args) > 1 else ())
        if _is_key_or_distribution(shape):
            raise TypeError(
                f"{name}: shape: expected a tuple of integers, got a key. Keys come first: "
                f"{method}(key, shape)."
            )
        if np.ndim(shape) == 0:
            raise TypeError(
                f"{name}: shape: expected a tuple of integers, got {shape}. Use ({shape},)."
            )
        return sample(self, *args, **kwargs)

    return checked


_SAMPLING = {
    **dict.fromkeys(["seed", "rng", "rng_key", "prng_key"], "key"),
    **dict.fromkeys(["sample_shape", "size", "n", "num_samples"], "shape"),
}


def of_sampler(method: Callable[P, T]) -> Callable[P, T]:
    """`method`, of a sampler, which tells who calls it by other words what to do."""
    parameters = inspect.signature(method).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    is_expect = method.__name__ == "expect"
    call = f"sampler{'.expect' if is_expect else ''}({', '.join(positional)})"

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        name = getattr(args[0], "name", "sampler")
        for given in kwargs:
            if given not in parameters:
                remedy = _TO_A_SAMPLER.get(given, "")
                raise TypeError(
                    f"{name}: got an unexpected argument {given}=. {remedy or f'Write {call}.'}"
                )
        missing = [p for p in positional[len(args) - 1 :] if p not in kwargs]
        if missing or len(args) - 1 > len(positional):
            what = f"no {missing[0]}" if missing else f"{len(args) - 1} arguments"
            raise TypeError(f"{name}: expected {call}, got {what}. {_SEVERAL}")
        return method(*args, **kwargs)

    return checked


_SEVERAL = (
    "Several draws are those of several keys, jax.vmap(lambda key: sampler(key, dist))(keys), or "
    "of a distribution of that shape."
)
_TO_A_SAMPLER = {
    **dict.fromkeys(
        ["seed", "rng", "rng_key"], "The key is the first argument: sampler(key, dist)."
    ),
    **dict.fromkeys(["shape", "sample_shape", "num_samples", "n"], _SEVERAL),
    **dict.fromkeys(
        ["temperature", "tau", "hard", "baseline"],
        "Options are the estimator's: sampler = gradest.gumbel_softmax(temperature).",
    ),
    "mask": "Use where=.",
}

#: Of a sampler: attributes that a distribution has elsewhere.
INSTEAD_OF_SAMPLER = {
    **dict.fromkeys(["sample", "rsample"], "Call it: sampler(key, dist)."),
    "log_prob": "That is the distribution's: dist.log_prob(x).",
    **dict.fromkeys(
        ["grad", "value_and_grad", "surrogate"],
        "Differentiate sampler.expect(key, dist, cost), or a loss under gradest.expectation.",
    ),
}


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
    **dict.fromkeys(["stddev", "variance"], "Use its parameters."),
    "sample_n": "Use sample(key, (n,)).",
    **dict.fromkeys(["batch_shape", "event_shape"], "Use shape, that of one joint draw."),
    "expand": "Broadcast its parameters.",
    "to_event": "Sum its log_prob: the draws are joint ones already.",
    "mask": "Mask draws: sampler(key, dist, where=mask).",
    "logits_parameter": "Use dist.logits.",
    "entropy": "gradest has none in closed form. Average -dist.log_prob(x) over draws x by a "
    "sampler, in a loss under gradest.expectation.",
    "mean": "Average draws; of an angle its cosine and its sine. Of categories use probs.",
}


# ---- Values that Python asks for -----------------------------------------------------------

_NO_VALUE = "a draw has no value yet:"
_WAYS_OUT = {
    jax.errors.TracerBoolConversionError: "instead of a Python `if` on it use jax.lax.cond("
    "condition, function, function), in whose branches there may be draws too, a site for each, or "
    "jax.numpy.where.",
    jax.errors.TracerIntegerConversionError: "make an array of a list that it indexes, "
    "jax.numpy.asarray(values)[draw], and a loop of so many steps by gradest.while_loop.",
    jax.errors.NonConcreteBooleanIndexError: "instead of x[mask] use jax.numpy.where(mask, x, 0).",
    Exception: "keep it an array. Instead of int(draw) use draw.astype(int), and functions of "
    "jax.numpy instead of numpy's; what is only printed may be auxiliary output.",
}


@contextlib.contextmanager
def with_way_out(where: str) -> Iterator[None]:
    """JAX's errors of a traced value that Python needs to know say what to write `where` it is."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        if _NO_VALUE not in error.args[0]:  # a cost in a loss has told already
            remedy = next(words for kind, words in _WAYS_OUT.items() if isinstance(error, kind))
            error.args = (f"{error.args[0]}\n{where} {_NO_VALUE} {remedy}", *error.args[1:])
        raise error from None


# ---- Names ---------------------------------------------------------------------------------


def missing_from(module: str, elsewhere: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module, which says what a name that it does not have is called here.

    Args:
      module: its name.
      elsewhere: what to write instead of names that other libraries have.
    """

    def missing(name: str) -> Any:
        here, remedy = vars(sys.modules[module]), ""
        if name in elsewhere:
            remedy = f" {elsewhere[name]}"
        elif name in vars(here.get("distributions", object)):
            remedy = f" Use {module}.distributions.{name}."
        elif not name.startswith("_"):
            public = [known for known in here if not known.startswith("_")]
            near = difflib.get_close_matches(name, public, 1)
            remedy = f" Did you mean {near[0]}?" if near else ""
        raise AttributeError(f"module {module} has no attribute {name}.{remedy}")

    return missing


_DISTRIBUTION = "Those of numpyro, distrax and TFP may be given to samplers too."
_OF_ONES_OWN = "One's own are derived from gradest.distributions.base.Distribution."
_OF_ONE_LAW = "A draw is a joint one of all elements of its distribution: leave it out."

#: Of the package.
INSTEAD_OF_ESTIMATORS = {
    "Distribution": _OF_ONES_OWN,
    **dict.fromkeys(["reinforce", "REINFORCE", "nvil", "likelihood_ratio"], "Use score_function."),
    **dict.fromkeys(
        ["rloo", "leave_one_out", "vimco_baseline"],
        'Use score_function(num_samples=4, baseline="leave_one_out").',
    ),
    **dict.fromkeys(["pathwise", "reparam", "reparametrize", "rsample"], "Use reparameterize."),
    **dict.fromkeys(["ste", "straight_through_estimator"], "Use straight_through."),
    **dict.fromkeys(["concrete", "gumbel"], "Use gumbel_softmax."),
    **dict.fromkeys(
        ["gumbel_softmax_st", "straight_through_gumbel_softmax", "gumbel_softmax_hard"],
        "Use st_gumbel_softmax.",
    ),
    **dict.fromkeys(
        ["grad", "value_and_grad"], "Use jax.grad(gradest.expectation(loss)), or jax's own."
    ),
    **{
        name: f"It is a module of its own: import gradest.{name}."
        for name in ("nnx", "numpyro", "problems", "records")
    },
}

#: Of its distributions.
INSTEAD_OF_LAWS = {
    "Distribution": _OF_ONES_OWN,
    "Gaussian": "Use Normal.",
    "Concrete": "Use RelaxedOneHotCategorical.",
    **dict.fromkeys(
        ["MultivariateNormalDiag", "DiagonalNormal"], "Use Normal: its elements are independent."
    ),
    **dict.fromkeys(["MultivariateNormalTriL", "MVN"], "Use MultivariateNormal."),
    **dict.fromkeys(["Independent", "Sample"], _OF_ONE_LAW),
    **dict.fromkeys(["Delta", "Deterministic"], "What is no draw needs no distribution."),
    **dict.fromkeys(["Transformed", "TransformedDistribution"], "Transform the draw."),
    **dict.fromkeys(
        ["HalfNormal", "Cauchy", "HalfCauchy", "Chi2", "InverseGamma", "Pareto", "Multinomial"],
        _DISTRIBUTION,
    ),
    **dict.fromkeys(
        ["RelaxedOneHotCategoricalStraightThrough", "RelaxedBernoulliStraightThrough"],
        "Draw by gradest.st_gumbel_softmax(temperature), from the discrete distribution.",
    ),
    **dict.fromkeys(["kl", "kl_div"], "Use kl_divergence."),
    "entropy": "It is a method: dist.entropy().",
}
