"""How single elements of arrays that are read or written at an index are computed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .elements import Elements, Index, Rule, TooLong, registering
from .values import Value

# More elements than can all be looked at.
WIDE = 24

RULES: dict[str, Rule] = {}
rule = registering(RULES)


def clipped(i: Any, size: int) -> Any:
    i = np.clip(i, 0, max(size - 1, 0))
    return i if np.ndim(i) else int(i)


# ---- Read ----------------------------------------------------------------------------------


@rule("dynamic_slice")
def _dynamic_slice(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x, *starts = v.ins
    of = []
    for start, i, size, width in zip(starts, index, x.shape, v.shape, strict=True):
        of.append(_plus(e, np.clip(e.at(start, (), depth), 0, size - width), i))
    return _taken(e, x, of, depth)


@rule("dynamic_update_slice")
def _dynamic_update_slice(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x, update, *starts = v.ins
    within, of = True, []
    for start, i, size, width in zip(starts, index, x.shape, update.shape, strict=True):
        first = np.clip(e.at(start, (), depth), 0, size - width)
        within = within & (i >= first) & (i < first + width)
        j = clipped(i - first, width)
        of.append(j if isinstance(j, int) else e.spread(j))
    return np.where(within, e.at(update, tuple(of), depth), e.at(x, index, depth))


@rule("gather")
def _gather(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x, where = v.ins
    numbers, sizes = v.params["dimension_numbers"], v.params["slice_sizes"]
    batch = [i for d, i in enumerate(index) if d not in numbers.offset_dims]
    offsets = iter([index[d] for d in numbers.offset_dims])
    single = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    of: list[Any] = [0 if d in single else next(offsets) for d in range(len(x.shape))]
    for k, d in enumerate(numbers.start_index_map):
        start = np.clip(e.at(where, (*batch, k), depth), 0, x.shape[d] - sizes[d])
        of[d] = _plus(e, start, of[d])
    for d, b in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        of[d] = batch[b]
    return _taken(e, x, of, depth)


def _plus(e: Elements, start: Any, i: Any) -> Any:
    if np.ndim(start) == 0 and not isinstance(i, np.ndarray):
        return int(start) + i
    return e.spread(start).astype(np.int64) + i


def _taken(e: Elements, x: Value, index: Sequence[Any], depth: int) -> Any:
    """The element at an index that may differ from point to point."""
    varying = [d for d, i in enumerate(index) if isinstance(i, np.ndarray)]
    computed = x.name not in ("leaf", "const", "draw") and x.number is None
    if len(varying) == 1 and computed and x.shape[varying[0]] <= WIDE:
        (d,) = varying
        at = lambda j: (*index[:d], j, *index[d + 1 :])
        xs = e.many(x, [at(j) for j in range(x.shape[d])], depth)
        return np.take_along_axis(xs, index[d][None], 0)[0]
    return e.at(x, tuple(index), depth)


# ---- Written at indices --------------------------------------------------------------------

_WRITTEN: Mapping[str, Callable[[Any, Any], Any]] = {
    "scatter": lambda x, update: update,
    **dict.fromkeys(("scatter-add", "scatter_add"), np.add),
    **dict.fromkeys(("scatter-sub", "scatter_sub"), np.subtract),
    **dict.fromkeys(("scatter-mul", "scatter_mul"), np.multiply),
    **dict.fromkeys(("scatter-max", "scatter_max"), np.maximum),
    **dict.fromkeys(("scatter-min", "scatter_min"), np.minimum),
}


@rule(*_WRITTEN)
def _scatter(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x, where, updates = v.ins
    numbers, clips = v.params["dimension_numbers"], "CLIP" in str(v.params["mode"])
    windows = numbers.update_window_dims
    single = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    of_windows = dict(zip((d for d in range(len(index)) if d not in single), windows, strict=True))
    scattered = [range(n) for d, n in enumerate(updates.shape) if d not in windows]
    for d, b in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        i = index[d]
        if isinstance(i, int):  # Of others nothing is written there.
            scattered[b] = range(i, i + 1)
    places = list(itertools.islice(itertools.product(*scattered), WIDE + 1))
    if len(places) > WIDE:
        raise TooLong
    written = e.at(x, index, depth)
    for place in places:
        starts: list[Any] = [0] * len(index)
        for k, d in enumerate(numbers.scatter_dims_to_operand_dims):
            starts[d] = e.at(where, (*place, k), depth)
        for d, b in zip(
            numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
        ):
            starts[d] = place[b]
        rest, within, of = iter(place), True, {}
        for d, (i, start) in enumerate(zip(index, starts, strict=True)):
            size = updates.shape[of_windows[d]] if d in of_windows else 1
            last = x.shape[d] - size
            # A window that is not all inside is dropped.
            start = np.clip(start, 0, last) if clips else start
            within = within & (start >= 0) & (start <= last) & (i >= start) & (i < start + size)
            of[of_windows.get(d)] = clipped(i - start, size)
        if not np.any(within):
            continue
        at = tuple(of[d] if d in windows else next(rest) for d in range(len(updates.shape)))
        at = tuple(i if isinstance(i, int) else e.spread(i) for i in at)
        new = _WRITTEN[v.name](written, e.at(updates, at, depth))
        written = np.where(within, new, written)
    return written
