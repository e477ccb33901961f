"""Long runs that go on where they were interrupted.

A run is a state, a tree of arrays, and a function that takes it through a stage, such as an epoch
of training. Whatever a stage draws follows from its number, so that the state and the number of
finished stages are all there is to be saved: a run that goes on ends as if it had never stopped.
"""

import json
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

#: What a stage tells, anything that JSON has.
Told = Any
Stage = Callable[[Any, int], tuple[Any, Told]]


def run(file: pathlib.Path | None, state: Any, stage: Stage, count: int) -> tuple[Any, list[Told]]:
    """Goes through so many stages, all or those that a former run has not finished.

    Args:
      file: where state and stages are saved after every one, its name beside a progress bar; None
        for nowhere.
      state: before the first.
      stage: from state and number, 0 to `count` - 1, to the next state and what is told of it.
        It may donate the state.
      count: how many.

    Returns:
      The last state, and what each stage told.

    Raises:
      ValueError: the file holds something else.
    """
    told: list[Told] = []
    if file is not None and file.is_file():
        state, told = load(file, state)
        print(f"{file}: goes on after stage {len(told)} of {count}.", file=sys.stderr)
    stages = range(len(told), count)
    if file is not None:
        stages = track(stages, file.stem, console=Console(stderr=True), transient=True)
    for number in stages:
        state, new = stage(state, number)
        told.append(new)
        if file is not None:
            save(file, state, told)
    return state, told


def save(file: pathlib.Path, state: Any, told: list[Told]) -> None:
    """Writes both, or nothing: an interruption leaves the former file as it was."""
    file.parent.mkdir(parents=True, exist_ok=True)
    leaves: dict[str, Any] = {
        str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))
    }
    unfinished = file.with_suffix(".unfinished.npz")
    np.savez(unfinished, told=json.dumps(told), **leaves)
    os.replace(unfinished, file)


def load(file: pathlib.Path, like: Any) -> tuple[Any, list[Told]]:
    """The inverse of `save`, for a state like this one."""
    wrong = f"{file}: expected a run's state like the one asked for, got {{}}. Delete the file."
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(file, allow_pickle=False) as saved:
            # Copies: a stage may donate them.
            arrays = [jnp.array(saved[str(i)]) for i in range(len(saved.files) - 1)]
            told = json.loads(str(saved["told"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(wrong.format(f"a file that cannot be read ({error})")) from None
    kinds = lambda arrays: [(jnp.shape(x), jnp.result_type(x)) for x in arrays]
    if kinds(arrays) != kinds(leaves):
        raise ValueError(wrong.format("arrays of other shapes or types"))
    return structure.unflatten(arrays), told


def forget(folder: pathlib.Path | None, name: str) -> None:
    """Deletes what the runs of a reproduction saved, those that begin with its name."""
    if folder is not None:
        for file in folder.glob(f"{name}-*.npz"):
            file.unlink()


def file_of(folder: pathlib.Path | None, *names: object) -> pathlib.Path | None:
    """The file of a run, with names for what tells it from the others."""
    name = re.sub(r"[^\w.]+", "-", "-".join(map(str, names)))
    return None if folder is None else folder / f"{name}.npz"
