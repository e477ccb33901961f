"""Means over many samples, in the memory of one chunk."""

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import ArrayLike

from . import _check, _numerics, _random

_P = ParamSpec("_P")
_R = TypeVar("_R")


def monte_carlo(
    fn: Callable[_P, _R], num_samples: int, chunk_size: int | None = None
) -> Callable[_P, _R]:
    r"""The mean of `fn(key, *args)` over independent keys.

    .. math:: \frac{1}{n} \sum_{i=1}^n \mathrm{fn}(\mathrm{key}_i, \mathrm{args})

    Bias: none. Variance: that of `fn` divided by `num_samples`.
    Cost evaluations per gradient: `num_samples` times those of `fn`.

    Within a chunk the samples are vmapped; the chunks are scanned one after the other and
    computed again in the backward pass, so that value and gradient need the memory of one chunk.
    The result does not depend on `chunk_size` but for rounding; with keys of the implementation
    rbg or unsafe_rbg, whose draws under `jax.vmap` are others than alone, it does.
    Under a mesh (`jax.set_mesh`)
    the samples are spread over its devices along those of its axes that are of type Auto, when
    their size divides the chunk. Explicit axes are left to the arguments' own shardings; to spread
    the samples over them too, wrap the result in `jax.sharding.auto_axes`.

    Args:
      fn: takes a key first; returns a floating-point array or a pytree of them. Results, and the
        gradients of the other arguments, are summed in at least single precision.
      num_samples: at least 1.
      chunk_size: samples evaluated at once; None for all of them.

    Returns:
      A function of a key and the other arguments of `fn`, with the results' mean, of the same
      shapes and types.

    Raises:
      ValueError: if `num_samples` or `chunk_size` is not a positive integer.
      TypeError: if a result of `fn` is not a floating-point array.

    Example:
      >>> import gradest as ge, jax
      >>> square = lambda key, scale: (scale * jax.random.normal(key)) ** 2
      >>> mean = ge.monte_carlo(square, 100_000, chunk_size=1_000)
      >>> bool(abs(jax.grad(mean, argnums=1)(jax.random.key(0), 3.0) - 6.0) < 0.1)
      True
    """
    num_samples = _check.integer("num_samples", num_samples, 1)
    if chunk_size is not None:
        chunk_size = _check.integer("chunk_size", chunk_size, 1)
    chunk = min(num_samples, chunk_size or num_samples)
    # Of its arguments the first is known here, which those of any signature need not have.
    call: Callable[..., Any] = fn

    @functools.wraps(fn)
    def mean(key: ArrayLike, *args: Any, **kwargs: Any) -> Any:
        root = _random.as_key(key)
        legacy = not _random.is_typed(key)

        # Seen from the samples the arguments are of at least single precision, in which their
        # gradients are therefore summed.
        given, treedef = jax.tree.flatten((args, kwargs))
        wide = [x.astype(jnp.float32) if _is_half(x) else x for x in given]

        def one(number: jax.Array) -> Any:
            sample_key = jax.random.fold_in(root, number)
            narrow = [
                w.astype(x.dtype) if _is_half(x) else x for w, x in zip(wide, given, strict=True)
            ]
            args, kwargs = jax.tree.unflatten(treedef, narrow)
            return call(jax.random.key_data(sample_key) if legacy else sample_key, *args, **kwargs)

        def total(start: jax.Array, size: int) -> Any:
            """The sum over the samples number `start` to `start + size - 1`."""
            numbers = _spread(start + jnp.arange(size, dtype=jnp.uint32))
            return jax.tree.map(_sum, jax.vmap(one)(numbers))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def step(sums: Any, start: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, total(start, chunk)), None

        num_chunks, left = divmod(num_samples, chunk)
        zero = jnp.zeros((), jnp.uint32)
        dtypes = jax.tree.map(lambda x: x.dtype, jax.eval_shape(one, zero))
        if num_chunks == 1 and not left:
            sums = total(zero, chunk)
        else:
            starts = chunk * jnp.arange(num_chunks, dtype=jnp.uint32)
            zeros = jax.tree.map(
                jnp.zeros_like, jax.eval_shape(lambda start: total(start, chunk), zero)
            )
            sums, _ = jax.lax.scan(step, zeros, starts)
            if left:
                rest = jax.checkpoint(lambda start: total(start, left))(starts[-1] + chunk)
                sums = jax.tree.map(jnp.add, sums, rest)
        return jax.tree.map(lambda s, dtype: (s / num_samples).astype(dtype), sums, dtypes)

    return cast(Callable[_P, _R], mean)


def _is_half(x: Any) -> bool:
    """Whether `x` is an array of a floating-point type of less than single precision."""
    dtype = getattr(x, "dtype", jnp.float32)
    return jnp.issubdtype(dtype, jnp.floating) and _numerics.compute_dtype(dtype) != dtype


def _sum(results: jax.Array) -> jax.Array:
    """Over the samples, in at least single precision."""
    if not jnp.issubdtype(results.dtype, jnp.floating):
        raise TypeError(
            f"fn: expected floating-point results to average, got one of type {results.dtype}. "
            "Return it as a float, or leave it out."
        )
    return jnp.sum(results, axis=0, dtype=_numerics.compute_dtype(results.dtype))


def _spread(numbers: jax.Array) -> jax.Array:
    """The samples' numbers spread over the devices of the mesh, if there is one.

    Everything that is computed from them follows: the partitioner inserts the one reduction.
    An explicit axis stays out of it, since spread along it the samples would clash, in the types
    of whatever `fn` computes, with arguments that are sharded along it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(axis for axis, kind in types if kind == AxisType.Auto)
    if not axes or numbers.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return numbers
    return jax.lax.with_sharding_constraint(numbers, PartitionSpec(axes))
