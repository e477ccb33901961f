"""Is the gradient right, and how noisy is it? Measured draw by draw, in the memory of a chunk."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _check, _numerics, _random
from .._sampler import Sampler
from .evaluations import count_evaluations, evaluation_p
from .moments import Stream
from .report import Estimate, Leaf, Report

_MIN_TIMED = 5
#: Rounding of a gradient, in units in the last place of a leaf's largest coordinate: the deviation
#: that is no bias.
_ROUNDING_ULPS = 100


def diagnose(
    gradients: Mapping[str, Callable[..., Any] | Sampler],
    key: ArrayLike,
    *args: Any,
    cost: Callable[[Any], ArrayLike] | None = None,
    num_draws: int = 100_000,
    chunk_size: int = 1_000,
    exact: Any = None,
    reference: str | None = None,
) -> Report:
    r"""Bias, variance, cost and time of gradient estimates, side by side.

    With g_1, ..., g_n the draws of a gradient, each from a key of its own,

    .. math:: \mathrm{bias} = \bar g - g_{\mathrm{exact}}, \quad
              \mathrm{variance} = \frac{1}{n - 1} \sum_i (g_i - \bar g)^2, \quad
              \mathrm{SNR} = \frac{|\bar g|}{\sqrt{\mathrm{total\ variance}}}

    for every coordinate, and for every leaf: there the variance is the sum over the coordinates,
    the bias a norm, and z the largest |bias| in standard errors. A leaf is called biased where
    chance explains that z with p < 1e-5 (all coordinates accounted for). Not to be called biased
    means no more than that a bias is not much larger than the standard error beside it.

    All gradients get the same keys. Bias is measured from `exact`, if that is known; else from the
    mean of the gradient that `reference` names, by the differences of the two, draw by draw, so
    that what is common to them cancels; else it is not reported.

    A chunk's gradients are held at once, and the reference's beside them; nothing else grows with
    `num_draws` but the time. Within a chunk moments are summed about its own mean, and joined in
    double precision. Draws that are not finite are counted, and make the moments of their
    coordinates NaN.

    Time is the median over the chunks of the compiled gradients' own, the keys included, divided
    by `chunk_size`; the gradients take turns, a first chunk does not count, and at least five do.
    Cost evaluations are counted in the traced program, those at relaxed points included. They are
    known for samplers only.

    Args:
      gradients: by name, either a function `fn(key, *args)` that returns the gradient, a pytree
        of floating-point arrays (`lambda key, params: jax.grad(loss)(params, key)`), or a
        `Sampler`, whose gradient of E[cost(x)] with respect to `dist`, by `expect`, is meant:
        `args` is then `dist` alone, and the gradient's leaves are the parameters of `dist`. Where
        the cost holds the distribution too, as a log weight does, give a function.
      key: a PRNG key, typed or legacy; the functions get keys of the same kind.
      args: arguments of the functions after the key: pytrees of arrays.
      cost: of the samplers, a function of the draw; only with samplers.
      num_draws: of each gradient, at least 2.
      chunk_size: draws evaluated at once, at least 1.
      exact: the exact gradient, of the same structure and shapes; or None.
      reference: the name of one of the gradients, known to be unbiased; or None.

    Returns:
      A report. `print(report)` shows a table; `report["rebar"]` has `leaves`, `total`,
      `cost_evaluations`, `seconds` and `num_nonfinite`, and each leaf `mean`, `variance`, `bias`,
      their standard errors, `z`, `biased` and `snr`; `report.rows`, `report.as_dict()` and
      `report.plot()` give a flat list of rows, what JSON can hold, and a matplotlib figure.

    Raises:
      ValueError: if there are no gradients, if they or `exact` differ in structure or shapes, if
        both `exact` and `reference` are given, or for a number or a name out of range.
      TypeError: if a gradient is neither a function nor a sampler, returns something else than
        floating-point arrays, or is a sampler without `cost` or with other arguments than `dist`;
        if called under a transformation such as `jax.jit`.

    Example:
      >>> import gradest as ge, jax
      >>> from gradest.distributions import Bernoulli
      >>> names = ["rebar", "straight_through", "enumeration"]
      >>> samplers = {name: getattr(ge, name)() for name in names}
      >>> report = ge.diagnose(
      ...     samplers,
      ...     jax.random.key(0),
      ...     Bernoulli(1.0),
      ...     cost=lambda b: (b - 0.45) ** 2,
      ...     reference="enumeration",
      ... )
      >>> [report[name].total.biased for name in names]
      [False, True, None]
      >>> report["rebar"].cost_evaluations
      2
    """
    num_draws = _check.integer("num_draws", num_draws, 2)
    chunk_size = min(_check.integer("chunk_size", chunk_size, 1), num_draws)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((key, args, exact))):
        raise TypeError(
            "diagnose: expected concrete arguments, got a traced array. It runs and times programs "
            "of its own: call it outside of jax.jit, jax.vmap and jax.grad."
        )
    root = _random.as_key(key)
    functions = _functions(gradients, args, cost)
    if reference is not None:
        _check.one_of("reference", reference, gradients)
        if exact is not None:
            raise ValueError("exact, reference: expected one of them, got both. Leave one out.")

    programs, shapes = {}, {}
    for name, function in functions.items():
        try:
            chunk = jax.jit(_chunk_of(function, chunk_size, legacy=not _random.is_typed(key)))
            lowered = chunk.lower(root, np.uint32(0), args)
            shapes[name] = _shapes(name, lowered.out_info)
            programs[name] = lowered.compile()
        except Exception as error:
            error.add_note(f"(Raised while diagnosing the gradient {name!r}.)")
            raise
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        _same_structure(f"the gradient {name!r}", other, f"the gradient {first!r}", shape)
    if exact is not None:
        exact = _without_float0(exact)
        _same_structure("exact", jax.eval_shape(lambda: exact), "the gradients", shape)

    streams = {name: Stream() for name in programs}
    differences = {name: Stream() for name in programs}
    seconds: dict[str, list[float]] = {name: [] for name in programs}

    def timed(name: str, start: int) -> Any:
        began = time.perf_counter()
        draws = jax.block_until_ready(programs[name](root, np.uint32(start), args))
        seconds[name].append(time.perf_counter() - began)
        return draws

    order = sorted(programs, key=lambda name: name != reference)
    for start in range(0, num_draws, chunk_size):
        count, of_reference = min(chunk_size, num_draws - start), None
        for name in order:
            draws = timed(name, start)
            streams[name].add(draws, count)
            if name == reference:
                of_reference = draws
            elif reference is not None:
                differences[name].add(jax.tree.map(jnp.subtract, draws, of_reference), count)
    # The first one is left out below: it warms up.
    while len(seconds[first]) <= _MIN_TIMED:
        for name in order:
            timed(name, 0)

    def estimate(name: str) -> Estimate:
        return Estimate(
            _leaves(streams[name], shape, exact, differences[name]),
            _count_evaluations(gradients[name], args, cost),
            statistics.median(seconds[name][1:]) / chunk_size,
            streams[name].num_nonfinite,
        )

    return Report(
        {name: estimate(name) for name in gradients},
        num_draws,
        chunk_size,
        reference if exact is None else "exact",
        jax.devices()[0].device_kind,
    )


# ---- Gradient functions --------------------------------------------------------------------


def _functions(
    gradients: Mapping[str, Any], args: tuple[Any, ...], cost: Callable[[Any], ArrayLike] | None
) -> dict[str, Callable[..., Any]]:
    """Each as a function of the key and the arguments."""
    if not isinstance(gradients, Mapping) or not gradients:
        raise ValueError(
            "gradients: expected a dict with at least one gradient function or sampler, got "
            f'{gradients!r}. Name it: {{"name": fn}}.'
        )
    for name, entry in gradients.items():
        if not callable(entry):
            raise TypeError(
                f"gradients: expected a function of a key or a Sampler for {name!r}, got "
                f"{type(entry).__name__}."
            )
        if isinstance(entry, Sampler) and (cost is None or len(args) != 1):
            raise TypeError(
                f"gradients: {name!r} is a sampler, for which diagnose expects a distribution as "
                f"the only argument after the key and a cost, got {len(args)} arguments and "
                f"{'no' if cost is None else 'a'} cost. Use diagnose(gradients, key, dist, "
                "cost=cost), or give a function that returns the gradient."
            )
    if cost is not None and not any(isinstance(entry, Sampler) for entry in gradients.values()):
        raise TypeError("cost: expected none, since no gradient is a sampler. Leave it out.")
    return {name: _function(entry, cost) for name, entry in gradients.items()}


def _function(entry: Any, cost: Any) -> Callable[..., Any]:
    if not isinstance(entry, Sampler):
        return lambda key, *args: _without_float0(entry(key, *args))

    def gradient(key: jax.Array, dist: Any) -> Any:
        expected = lambda dist: entry.expect(key, dist, cost)
        return _without_float0(jax.grad(expected, allow_int=True)(dist))

    return gradient


def _without_float0(gradient: Any) -> Any:
    """Without the leaves that stand for the gradient of an integer."""
    is_none = lambda g: getattr(g, "dtype", None) == jax.dtypes.float0
    return jax.tree.map(lambda g: None if is_none(g) else g, gradient)


def _chunk_of(function: Callable[..., Any], size: int, legacy: bool) -> Callable[..., Any]:
    """The draws number `start` to `start + size - 1`."""

    def one(root: jax.Array, number: jax.Array, args: tuple[Any, ...]) -> Any:
        key = jax.random.fold_in(root, number)
        return function(jax.random.key_data(key) if legacy else key, *args)

    def chunk(root: jax.Array, start: jax.Array, args: tuple[Any, ...]) -> Any:
        numbers = start + jnp.arange(size, dtype=jnp.uint32)
        return jax.vmap(one, (None, 0, None))(root, numbers, args)

    return chunk


def _count_evaluations(entry: Any, args: tuple[Any, ...], cost: Any) -> int | None:
    if not isinstance(entry, Sampler):
        return None
    counted = _function(entry, lambda x: evaluation_p.bind(jnp.asarray(cost(x))))
    return count_evaluations(jax.make_jaxpr(counted)(jax.random.key(0), *args).jaxpr)


def _shapes(name: str, chunk: Any) -> Any:
    """The gradient's shapes and types, from those of a chunk."""
    leaves = jax.tree.leaves(chunk)
    wrong = [str(g.dtype) for g in leaves if not jnp.issubdtype(g.dtype, jnp.floating)]
    if not leaves or wrong:
        raise TypeError(
            f"gradients: expected {name!r} to return a pytree of floating-point arrays, got "
            f"{f'one of type {wrong[0]}' if wrong else 'no array'}."
        )
    return jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype), chunk)


def _same_structure(given: str, tree: Any, expected: str, other: Any) -> None:
    describe = lambda tree: {_name(path): x.shape for path, x in _paths(tree)}
    if describe(tree) != describe(other) or jax.tree.structure(tree) != jax.tree.structure(other):
        raise ValueError(
            f"{given}: expected the structure and shapes of {expected}, {describe(other)} in "
            f"{jax.tree.structure(other)}, got {describe(tree)} in {jax.tree.structure(tree)}."
        )


_paths = jax.tree_util.tree_leaves_with_path


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "gradient"


def _leaves(stream: Stream, shape: Any, exact: Any, difference: Stream) -> dict[str, Leaf]:
    """Each leaf's numbers. The bias is from `exact`, or the mean of the difference, if any."""
    leaves = {}
    for i, (path, leaf) in enumerate(_paths(shape)):
        found = stream.leaves[i]
        bias = bias_error = None
        target = found.mean
        if exact is not None:
            target = np.asarray(jax.tree.leaves(exact)[i], np.float64)
            bias, bias_error = found.mean - target, found.mean_error
        elif difference.leaves:
            bias, bias_error = difference.leaves[i].mean, difference.leaves[i].mean_error
        ulp = float(jnp.finfo(_numerics.compute_dtype(leaf.dtype)).eps)
        largest = np.max(np.abs(np.asarray(target, np.float64)), initial=0.0)
        rounding = np.full(leaf.shape, _ROUNDING_ULPS * ulp * largest)
        moments = found.mean, found.variance, found.variance_error
        leaves[_name(path)] = Leaf(*moments, bias, bias_error, rounding)
    return leaves
