"""The other libraries, any of which may be missing, and what is kept of a comparison with them."""

import dataclasses
import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from .. import _measure

T = TypeVar("T")

HAND = "by hand"
#: The same step without a draw: what is left to be faster at.
NO_DRAW = "no draw"


@dataclasses.dataclass(frozen=True)
class Library:
    """Where to find a peer: the module it is used by, and the names it is published under."""

    module: str
    published: tuple[str, ...]


LIBRARIES = {
    "numpyro": Library("numpyro.distributions", ("numpyro",)),
    "TFP": Library(
        "tensorflow_probability.substrates.jax", ("tfp-nightly", "tensorflow-probability")
    ),
    "distrax": Library("distrax", ("distrax",)),
    "PyTorch": Library("torch", ("torch",)),
    "Pyro": Library("pyro", ("pyro-ppl",)),
    "Storchastic": Library("storch", ("storchastic",)),
}


@functools.cache
def load(name: str) -> Any:
    """The peer's module, or None if it is not installed or does not go with this JAX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(LIBRARIES[name].module)
        # A release made for another JAX fails in ways of its own.
        except Exception:
            return None
    if name == "PyTorch":
        module.set_num_threads(_measure.machine()["cores"])
        if module.cuda.is_available() and jax.default_backend() == "gpu":
            module.set_default_device("cuda")
    return module


def versions() -> dict[str, str | None]:
    """Of every peer; None for one that is missing."""

    def version(name: str) -> str | None:
        for published in LIBRARIES[name].published:
            try:
                return importlib.metadata.version(published)
            except importlib.metadata.PackageNotFoundError:
                continue
        return "unknown"

    return {name: None if load(name) is None else version(name) for name in LIBRARIES}


def installed(makers: Mapping[str, Callable[[Any], T]]) -> dict[str, T]:
    """What each maker makes of its peer's module, where there is one."""
    # PyTorch first: its settings hold for the libraries on top of it.
    load("PyTorch")
    modules = {name: load(name) for name in makers}
    return {name: makers[name](m) for name, m in modules.items() if m is not None}


def synchronized(program: _measure.Program) -> _measure.Program:
    """A program of PyTorch that has finished when it returns."""
    torch = load("PyTorch")
    if torch.get_default_device().type != "cuda":
        return program

    def run() -> Any:
        result = program()
        torch.cuda.synchronize()
        return result

    return run


def to_torch(x: Any) -> Any:
    torch = load("PyTorch")
    return torch.tensor(np.asarray(x), device=torch.get_default_device())


# ---- Comparisons ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Goal:
    """What the ratio of gradest's time to the peer's is to be.

    Attributes:
      at_most: the largest ratio.
      quartile: which one is meant, 0 for the lower quartile and 1 for the median.
    """

    at_most: float
    quartile: int

    def __str__(self) -> str:
        return f"{('lower quartile', 'median')[self.quartile]} <= {self.at_most:g}"

    def met(self, ratio: Sequence[float]) -> bool:
        return ratio[self.quartile] <= self.at_most


#: The default: not slower, as far as can be seen.
NOT_SLOWER = Goal(1.0, quartile=0)
AS_BY_HAND = Goal(1.05, quartile=1)
FOUR_TIMES_FASTER = Goal(0.25, quartile=1)


def times(programs: Mapping[str, _measure.Program], rounds: int) -> dict[str, np.ndarray]:
    """Like `_measure.run_times`, with so many calls in a row that what one library's threads
    still do when the next one begins does not count."""
    return _measure.run_times(programs, rounds, at_least=1e-2)


def compare(
    problem: str, times: Mapping[str, np.ndarray], goals: Mapping[str, Goal] | None = None
) -> list[dict[str, Any]]:
    """One row for each peer of a problem; `times` has gradest's own too, as "gradest".

    What has no draw is shown beside, and has no goal.
    """
    all_goals: dict[str, Goal | None] = {HAND: AS_BY_HAND, NO_DRAW: None, **(goals or {})}
    ours, rows = times["gradest"], []
    for peer, theirs in times.items():
        if peer == "gradest":
            continue
        ratio, goal = _measure.quartiles(ours / theirs), all_goals.get(peer, NOT_SLOWER)
        rows.append(
            {
                "problem": problem,
                "peer": peer,
                "peer_ms": _measure.quartiles(theirs * 1e3),
                "gradest_ms": _measure.quartiles(ours * 1e3),
                "ratio": ratio,
                "goal": "" if goal is None else str(goal),
                "met": goal is None or goal.met(ratio),
            }
        )
    return rows


def check_same(problem: str, got: Any, want: Any, tolerance: float = 1e-3) -> None:
    """Of gradest and what is written by hand: every number, relative to it or the largest one.

    Raises:
      AssertionError: if they differ.
    """

    def check(path: Any, got: jax.Array, want: jax.Array) -> None:
        at_most = tolerance * float(np.max(np.abs(want)))
        where = f"{problem}: {jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(got, want, tolerance, at_most, err_msg=where)

    jax.tree_util.tree_map_with_path(check, got, want)


def check_alike(problem: str, values: Mapping[str, float], tolerance: float = 0.05) -> None:
    """Of programs that draw other numbers: the value, which hardly depends on them.

    Raises:
      AssertionError: if a peer's value is not gradest's.
    """
    for peer, value in values.items():
        where = f"{problem}: the value by {peer}"
        np.testing.assert_allclose(value, values["gradest"], tolerance, err_msg=where)
