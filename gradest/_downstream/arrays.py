"""How single elements of shaped and reduced arrays are computed."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _jaxpr
from . import indexing
from .elements import Elements, Index, Rule, TooLong, registering, varies
from .elementwise import as_real, inexact
from .indexing import WIDE, clipped
from .values import Value, is_float

# How many elements a reduction is over, if it is over more than is wide, or so many times that for
# a count, in which each matters.
_FEW, _COUNTED = 6, 4
# A loop of more steps, or of more equations in all, is not unrolled; nor are more of them once so
# many equations of a program were.
_STEPS, _EQUATIONS, _ALL_EQUATIONS = 100, 4_000, 20_000

RULES: dict[str, Rule] = dict(indexing.RULES)
rule = registering(RULES)


# ---- Elementwise ---------------------------------------------------------------------------


@rule("div")
def _div(e: Elements, v: Value, index: Index, depth: int) -> Any:
    a, b = (e.at(x, index, depth) for x in v.ins)
    if is_float(v.dtype):
        return np.divide(a, b)
    return np.trunc(a / np.where(b == 0, 1, b)).astype(np.int64)


@rule("rem")
def _rem(e: Elements, v: Value, index: Index, depth: int) -> Any:
    a, b = (e.at(x, index, depth) for x in v.ins)
    return np.fmod(a, np.where(b == 0, 1, b)) if not is_float(v.dtype) else np.fmod(a, b)


@rule("round")
def _round(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x = e.at(v.ins[0], index, depth)
    to_even = int(v.params["rounding_method"]) == 1
    return np.round(x) if to_even else np.trunc(x + np.copysign(0.5, x))


@rule("integer_pow")
def _integer_pow(e: Elements, v: Value, index: Index, depth: int) -> Any:
    return np.power(inexact(e.at(v.ins[0], index, depth)), v.params["y"])


@rule("convert_element_type")
def _convert(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x = np.asarray(e.at(v.ins[0], index, depth))
    if v.dtype == np.bool_:
        return x != 0
    return inexact(x) if is_float(v.dtype) else np.trunc(np.nan_to_num(x)).astype(np.int64)


@rule("clamp")
def _clamp(e: Elements, v: Value, index: Index, depth: int) -> Any:
    low, x, high = (e.at(x, index, depth) for x in v.ins)
    return np.minimum(np.maximum(x, low), high)


@rule("select_n", "cond")
def _select(e: Elements, v: Value, index: Index, depth: int) -> Any:
    which, *cases = v.ins
    chosen = np.asarray(e.at(which, index, depth)).astype(np.int64)
    chosen = np.minimum(np.maximum(chosen, 0), len(cases) - 1)
    if not which.depends and (chosen == chosen.flat[0]).all():
        return e.at(cases[int(chosen.flat[0])], index, depth)
    values = [e.spread(e.at(case, index, depth)) for case in cases]
    # Of two, as most are, this is the faster way.
    return np.where(chosen > 0, *values[::-1]) if len(values) == 2 else np.choose(chosen, values)


# ---- Shapes --------------------------------------------------------------------------------


@rule("broadcast_in_dim")
def _broadcast(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x, dims = v.ins[0], v.params["broadcast_dimensions"]
    repeated = (x.shape[k] == 1 and v.shape[d] != 1 for k, d in enumerate(dims))
    return e.at(x, tuple(0 if r else index[d] for d, r in zip(dims, repeated, strict=True)), depth)


@rule("reshape")
def _reshape(e: Elements, v: Value, index: Index, depth: int) -> Any:
    flat, of = 0, []
    for i, size in zip(index, v.shape, strict=True):
        flat = flat * size + i
    for size in reversed(v.ins[0].shape):
        of.append(flat % size)
        flat = flat // size
    return e.at(v.ins[0], tuple(reversed(of)), depth)


@rule("squeeze")
def _squeeze(e: Elements, v: Value, index: Index, depth: int) -> Any:
    rank = len(v.ins[0].shape)
    gone = {d % rank for d in v.params["dimensions"]}
    kept = iter(index)
    return e.at(v.ins[0], tuple(0 if d in gone else next(kept) for d in range(rank)), depth)


@rule("expand_dims")
def _expand_dims(e: Elements, v: Value, index: Index, depth: int) -> Any:
    new = v.params["dimensions"]
    return e.at(v.ins[0], tuple(i for d, i in enumerate(index) if d not in new), depth)


@rule("transpose")
def _transpose(e: Elements, v: Value, index: Index, depth: int) -> Any:
    of = dict(zip(v.params["permutation"], index, strict=True))
    return e.at(v.ins[0], tuple(of[d] for d in range(len(index))), depth)


@rule("rev")
def _reversed(e: Elements, v: Value, index: Index, depth: int) -> Any:
    turned = v.params["dimensions"]
    of = (
        n - 1 - i if d in turned else i for d, (i, n) in enumerate(zip(index, v.shape, strict=True))
    )
    return e.at(v.ins[0], tuple(of), depth)


@rule("slice")
def _slice(e: Elements, v: Value, index: Index, depth: int) -> Any:
    strides = v.params["strides"] or (1,) * len(index)
    starts = v.params["start_indices"]
    return e.at(
        v.ins[0], tuple(s + i * k for s, i, k in zip(starts, index, strides, strict=True)), depth
    )


@rule("concatenate", "stack")
def _concatenate(e: Elements, v: Value, index: Index, depth: int) -> Any:
    stacked = v.name == "stack"
    d = v.params["axis" if stacked else "dimension"]
    within = lambda i: (*index[:d], *(() if stacked else (i,)), *index[d + 1 :])
    start, x = 0, 0.0
    for part in v.ins:
        size = 1 if stacked else part.shape[d]
        i = index[d] - start
        if varies((i,)):
            here = e.at(part, within(np.clip(i, 0, size - 1)), depth)
            x = np.where((i >= 0) & (i < size), here, x)
        elif 0 <= i < size:
            return e.at(part, within(i), depth)
        start += size
    return x


@rule("split")
def _split(e: Elements, v: Value, index: Index, depth: int) -> Any:
    d, sizes = v.params["axis"], v.params["sizes"]
    return e.at(v.ins[0], (*index[:d], index[d] + sum(sizes[: v.out]), *index[d + 1 :]), depth)


@rule("pad")
def _pad(e: Elements, v: Value, index: Index, depth: int) -> Any:
    (x, filling), within, of = v.ins, True, []
    for i, (low, _, gap), size in zip(index, v.params["padding_config"], x.shape, strict=True):
        j = i - low
        last = size + (size - 1) * gap
        within = within & (j >= 0) & (j < last) & (j % (gap + 1) == 0)
        of.append(clipped(j // (gap + 1), size))
    if np.ndim(within):
        return np.where(within, e.at(x, tuple(of), depth), e.at(filling, (), depth))
    return e.at(x, tuple(of), depth) if within else e.at(filling, (), depth)


@rule("iota")
def _iota(e: Elements, v: Value, index: Index, depth: int) -> Any:
    return np.asarray(index[v.params["dimension"]], float if is_float(v.dtype) else np.int64)


# ---- Reductions ----------------------------------------------------------------------------

_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_and": np.all,
    "reduce_or": np.any,
    "argmax": np.argmax,
    "argmin": np.argmin,
}


@rule(*_REDUCTIONS)
def _reduce(e: Elements, v: Value, index: Index, depth: int) -> Any:
    x, axes = v.ins[0], v.params["axes"]
    sizes = [x.shape[d] for d in axes]
    # Those elements that the rest of the program looks at are among the few.
    rest = lambda i: tuple(n for d, n in enumerate(i) if d not in axes)
    touched = (i for i in e.touched.get(x.id, ()) if rest(i) == tuple(index))
    most = WIDE if is_float(v.dtype) else _COUNTED * WIDE
    places = _places(sizes, (tuple(i[d] for d in axes) for i in touched), most)
    indices = []
    for place in places:
        others, reduced = iter(index), dict(zip(axes, place, strict=True))
        indices.append(tuple(reduced[d] if d in reduced else next(others) for d in _dims(x)))
    xs = e.many(x, indices, depth)
    if v.name == "reduce_sum":
        # As large as the sum of all, which a mean divides by their number.
        xs = xs * (math.prod(sizes) / len(places)) if len(places) < math.prod(sizes) else xs
        if v is e.value:
            e.terms = as_real(xs)
    reduced = _REDUCTIONS[v.name](xs, axis=0)
    if v.name in ("argmax", "argmin") and len(axes) == 1:
        return np.array([place[0] for place in places])[reduced]
    return reduced


def _dims(x: Value) -> range:
    return range(len(x.shape))


def _places(sizes: Sequence[int], kept: Iterable[Index] = (), most: int = WIDE) -> list[Index]:
    """All indices into an array, or, of more than `most`, a few of them, with those to be kept."""
    total = math.prod(sizes)
    if total == 0:
        raise TooLong
    if total <= most:
        return list(np.ndindex(*sizes))
    picked = np.random.default_rng(total).choice(total, _FEW, replace=False)
    # Those at both ends too, where a value is looked at itself.
    few = (tuple(map(int, np.unravel_index(j, sizes))) for j in (0, total - 1, *picked))
    return sorted({*itertools.islice(kept, _FEW), *few})


_CUMULATIVE: Mapping[str, Callable[..., Any]] = {
    "cumsum": np.sum,
    "cumprod": np.prod,
    "cummax": np.max,
    "cummin": np.min,
    "cumlogsumexp": np.logaddexp.reduce,
}


@rule(*_CUMULATIVE)
def _cumulate(e: Elements, v: Value, index: Index, depth: int) -> Any:
    d = v.params["axis"]
    if isinstance(index[d], np.ndarray) or v.shape[d] > WIDE:
        return e.leaf(v, index)
    steps = range(index[d], v.shape[d]) if v.params["reverse"] else range(index[d] + 1)
    xs = e.many(v.ins[0], [(*index[:d], j, *index[d + 1 :]) for j in steps], depth)
    return _CUMULATIVE[v.name](xs, axis=0)


@rule("sort", "top_k")
def _sort(e: Elements, v: Value, index: Index, depth: int) -> Any:
    d = v.params["dimension"] if v.name == "sort" else len(index) - 1
    size = v.ins[0].shape[d]
    if size > WIDE:
        return e.leaf(v, index)
    row = [(*index[:d], j, *index[d + 1 :]) for j in range(size)]
    rows = [e.many(x, row, depth) for x in v.ins]
    if v.name == "sort":
        order = np.lexsort(tuple(reversed(rows[: v.params["num_keys"]])), axis=0)
        if v.key == e.origin:
            e.mark(np.tensordot(np.sqrt(2.0 + np.arange(size)), order, 1))
        xs = np.take_along_axis(rows[v.out], order, 0)
    else:
        order = np.argsort(-rows[0], axis=0, kind="stable")
        xs = order if v.out == 1 else np.take_along_axis(rows[0], order, 0)
    i = index[d]
    if not isinstance(i, np.ndarray):
        return xs[i]
    return np.take_along_axis(xs, np.clip(i, 0, size - 1)[None], 0)[0]


@rule("dot_general")
def _dot(e: Elements, v: Value, index: Index, depth: int) -> Any:
    contracted, batched = v.params["dimension_numbers"]
    num_batched = len(batched[0])
    free = [
        [d for d in _dims(x) if d not in contracted[k] and d not in batched[k]]
        for k, x in enumerate(v.ins)
    ]
    first = num_batched + len(free[0])
    of_free = index[num_batched:first], index[first:]
    terms = []
    for place in _places([v.ins[0].shape[d] for d in contracted[0]]):
        sides = []
        for k, x in enumerate(v.ins):
            of = dict(zip(batched[k], index[:num_batched], strict=True))
            of |= dict(zip(free[k], of_free[k], strict=True)) | dict(
                zip(contracted[k], place, strict=True)
            )
            sides.append(e.at(x, tuple(of[d] for d in _dims(x)), depth))
        terms.append(e.spread(np.multiply(*sides)))
    if v is e.value:
        e.terms = as_real(terms)
    return sum(terms)


# ---- Loops ---------------------------------------------------------------------------------


@rule("scan")
def _scan(e: Elements, v: Value, index: Index, depth: int) -> Any:
    """Unrolled, where it is short."""
    eqn = v.body[0]
    scan = _jaxpr.as_scan(eqn)
    assert scan is not None
    program, length = e.program, scan.length
    size = length * program.size_of(eqn)
    if not 0 < length <= _STEPS or size > _EQUATIONS:
        return e.leaf(v, index)
    name = "scan", id(eqn), tuple(x.id for x in v.ins)
    if name not in program.expanded:
        program.unrolled += size
        if program.unrolled > _ALL_EQUATIONS:
            return e.leaf(v, index)
        consts = v.ins[: scan.num_consts]
        carry = list(v.ins[scan.num_consts :][: scan.num_carry])
        xs, steps = v.ins[scan.num_consts + scan.num_carry :], {}
        for i in range(length)[:: -1 if scan.reverse else 1]:
            outs = program.expand(v, [*consts, *carry, *(program.element(x, i) for x in xs)])
            carry, steps[i] = outs[: scan.num_carry], outs
        program.expanded[name] = steps
    steps = program.expanded[name]
    if v.out >= scan.num_carry:
        if isinstance(index[0], np.ndarray):
            return e.leaf(v, index)
        return e.at(steps[index[0]][v.out], index[1:], depth)
    # In the order of the steps: each is then not far from what it depends on.
    return [e.at(outs[v.out], index, depth) for outs in steps.values()][-1]


@rule("element")
def _element(e: Elements, v: Value, index: Index, depth: int) -> Any:
    return e.at(v.ins[0], (v.params["number"], *index), depth)


@rule("searchsorted")
def _searchsorted(e: Elements, v: Value, index: Index, depth: int) -> Any:
    array, x = v.ins[0], e.at(v.ins[1], index, depth)
    known = e.program.array(array)
    if known is not None:
        return np.searchsorted(known, x)
    places = [(j,) for j in range(array.shape[0])]
    return np.sum(e.many(array, places, depth) < x, axis=0)


@rule("call_hi_primitive")
def _primitive(e: Elements, v: Value, index: Index, depth: int) -> Any:
    """From jax 0.12 on `searchsorted` is one."""
    if "earchsorted" not in str(v.params) or e.program.array(v.ins[0]) is None:
        return e.leaf(v, index)
    return _searchsorted(e, v, index, depth)
