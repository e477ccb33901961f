"""Means over many samples, in the memory of one chunk."""

import dataclasses
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
    their size divides the chunk, and what they computed is summed over the devices once, after the
    last chunk: results and gradients of arguments together. (The gradient of what `fn` closes over
    is summed in every chunk.) Explicit axes are left to the arguments' own shardings; to spread
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

        def one(wide: list[Any], number: jax.Array) -> Any:
            sample_key = jax.random.fold_in(root, number)
            narrow = [
                w.astype(x.dtype) if _is_half(x) else w for w, x in zip(wide, given, strict=True)
            ]
            args, kwargs = jax.tree.unflatten(treedef, narrow)
            return call(jax.random.key_data(sample_key) if legacy else sample_key, *args, **kwargs)

        def sum_over(wide: list[Any], numbers: jax.Array) -> Any:
            return jax.tree.map(_sum, jax.vmap(functools.partial(one, wide))(numbers))

        def total(groups: "_Groups", start: jax.Array, size: int) -> Any:
            """The sum over the samples number `start` to `start + size - 1`, of each group."""
            return groups.map(sum_over, start + jnp.arange(size, dtype=jnp.uint32))

        groups = _Groups.of(wide, chunk)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def step(sums: Any, start: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, total(groups, start, chunk)), None

        num_chunks, left = divmod(num_samples, chunk)
        zero = jnp.zeros((), jnp.uint32)
        dtypes = jax.tree.map(lambda x: x.dtype, jax.eval_shape(lambda n: one(wide, n), zero))
        if num_chunks == 1 and not left:
            sums = groups.together(total(groups, zero, chunk))
        else:
            starts = chunk * jnp.arange(num_chunks, dtype=jnp.uint32)
            zeros = jax.tree.map(
                jnp.zeros_like, jax.eval_shape(lambda start: total(groups, start, chunk), zero)
            )
            sums, _ = jax.lax.scan(step, zeros, starts)
            sums = groups.together(sums)
            if left:
                others = _Groups.of(wide, left)
                rest = jax.checkpoint(lambda start: total(others, start, left))(starts[-1] + chunk)
                sums = jax.tree.map(jnp.add, sums, others.together(rest))
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


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Samples spread over the devices of the mesh, a group on each, if there is one.

    Attributes:
      axes: of the mesh, along which they are spread; none if they are not.
      args: of `fn`. Of what may be differentiated every group has a copy, and so a gradient of its
        own: however many the chunks, there is one reduction, after the last.
      copied: which of them are copies, along a first axis.
    """

    axes: tuple[str, ...]
    args: list[Any]
    copied: list[bool]

    @staticmethod
    def of(args: list[Any], num_samples: int) -> "_Groups":
        """An explicit axis stays out of it, since spread along it the samples would clash, in the
        types of whatever `fn` computes, with arguments that are sharded along it.
        """
        mesh = jax.sharding.get_abstract_mesh()
        types = zip(mesh.axis_names, mesh.axis_types, strict=True)
        axes = tuple(axis for axis, kind in types if kind == AxisType.Auto)
        num = math.prod(mesh.shape[axis] for axis in axes)
        if not axes or num_samples % num:
            return _Groups((), args, [False] * len(args))
        floats = [isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact) for x in args]
        copies = [
            _on_devices(axes, jnp.broadcast_to(x, (num, *x.shape))) if is_float else x
            for x, is_float in zip(args, floats, strict=True)
        ]
        return _Groups(axes, copies, floats)

    def map(self, fn: Callable[[list[Any], jax.Array], Any], numbers: jax.Array) -> Any:
        """`fn(args, numbers)` of each group, along a first axis if there are several."""
        if not self.axes:
            return fn(self.args, numbers)
        mesh = jax.sharding.get_abstract_mesh()
        num = math.prod(mesh.shape[axis] for axis in self.axes)
        copies = [x for x, copied in zip(self.args, self.copied, strict=True) if copied]

        def of_group(copies: list[Any], numbers: jax.Array) -> Any:
            own = iter(copies)
            pairs = zip(self.args, self.copied, strict=True)
            return fn([next(own) if copied else x for x, copied in pairs], numbers)

        results = jax.vmap(of_group)(copies, _on_devices(self.axes, numbers.reshape(num, -1)))
        return jax.tree.map(functools.partial(_on_devices, self.axes), results)

    def together(self, sums: Any) -> Any:
        return jax.tree.map(lambda s: jnp.sum(s, axis=0), sums) if self.axes else sums


def _on_devices(axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    """`x` with its first axis along those of the mesh, and the others as they are."""
    own = jax.typeof(x).sharding.spec[1:]
    rest = (PartitionSpec.UNCONSTRAINED if entry is None else entry for entry in own)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))
