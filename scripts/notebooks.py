"""Runs the notebooks and stores in them what they show.

    python -m scripts.notebooks                    # those whose code is not what was run last
    python -m scripts.notebooks --all
    python -m scripts.notebooks quickstart         # or any others by name
    python -m scripts.notebooks --check            # says which would run, with exit status 1

A notebook is run from top to bottom, in a kernel of its own, by the Python that runs this. Its
metadata then say what it was run on: its code and the package's, as hashes, and how many seconds of
a processor it took, which on an idle machine with two cores are more than those on the clock.

The text that stands for a picture is written in the metadata of its cell, out of a reader's way, at
`mystnb.image.alt`, where the site finds it; with the picture it is stored for other viewers.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
INSTALL = "%pip install -q gradest"
TIMEOUT = 1200  # seconds, for a whole notebook; on an idle machine it takes a tenth of that

# Runs in a process of its own: an event loop and a kernel warn about what is none of gradest's.
_EXECUTE = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
client = nbclient.NotebookClient(notebook, timeout=int(sys.argv[3]), kernel_name="this-python")
try:
    client.execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", help="of notebooks")
    parser.add_argument("--all", action="store_true", help="run all of them")
    parser.add_argument("--check", action="store_true", help="run nothing")
    arguments = parser.parse_args(argv)
    # Not by `choices`, which some versions of Python ask of an empty list too.
    known = [path.stem for path in paths()]
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown notebook {min(unknown)!r}; expected some of {', '.join(known)}")
    outdated = [
        path
        for path in paths()
        if path.stem in arguments.names
        or (not arguments.names and (arguments.all or code_changed(read(path))))
    ]
    for path in outdated:
        if arguments.check:
            print(f"not run since its code changed: {path.relative_to(ROOT)}")
        else:
            print(f"{path.relative_to(ROOT)}: ", end="", flush=True)
            ran = with_outputs(read(path))
            write(path, ran)
            print(f"{ran['metadata']['gradest']['seconds']} s")
    return 1 if arguments.check and outdated else 0


def paths() -> list[pathlib.Path]:
    """The notebooks, in the order in which they are read."""
    return sorted(FOLDER.glob("*.ipynb"), key=lambda path: (path.stem != "quickstart", path.stem))


def read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: pathlib.Path, notebook: dict[str, Any]) -> None:
    """As nbformat writes it."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)
    path.write_text(f"{text}\n", encoding="utf-8")


# ---- What a notebook was run on ------------------------------------------------------------


def code_hash(notebook: dict[str, Any]) -> str:
    code = [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return _short_hash(json.dumps(code))


def package_hash() -> str:
    package = sorted((ROOT / "gradest").rglob("*.py"))
    return _short_hash("".join(path.read_text(encoding="utf-8") for path in package))


def code_changed(notebook: dict[str, Any]) -> bool:
    return _ran_on(notebook, "code") != code_hash(notebook)


def package_changed(notebook: dict[str, Any]) -> bool:
    return _ran_on(notebook, "package") != package_hash()


def chosen(seconds: float) -> list[pathlib.Path]:
    """Those to run in a time that does not suffice for all.

    They are those whose code or library changed, and one besides. The library changes with nearly
    every commit: which of those fit into the time differs from one version of it to the next, and
    is the same whenever the same version is tested. At least one is run.
    """
    version = package_hash()
    notebooks = {path: read(path) for path in paths()}
    changed = {p: code_changed(n) or package_changed(n) for p, n in notebooks.items()}
    order = sorted(
        notebooks,
        key=lambda p: (
            not code_changed(notebooks[p]),
            not changed[p],
            _short_hash(version + p.stem),
        ),
    )
    taken: list[pathlib.Path] = []
    for path in order[: sum(changed.values()) + 1]:
        took = float(_ran_on(notebooks[path], "seconds") or seconds)
        if not taken or took <= seconds:
            taken.append(path)
            seconds -= took
    return taken


def _ran_on(notebook: dict[str, Any], name: str) -> Any:
    return notebook["metadata"].get("gradest", {}).get(name)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


# ---- Running -------------------------------------------------------------------------------


def with_outputs(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same notebook, as it is stored once it was run."""
    start = _seconds()
    ran = executed(notebook)
    seconds = _seconds() - start
    for cell, fresh in zip(notebook["cells"], ran["cells"], strict=True):
        if cell["cell_type"] == "code":
            # What pip says depends on the machine.
            cell["outputs"] = [] if source(cell) == INSTALL else fresh["outputs"]
            cell["execution_count"] = fresh["execution_count"]
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    output["metadata"] = {"image/png": {"alt": alt(cell)}}
    notebook["metadata"]["gradest"] = {
        "code": code_hash(notebook),
        "package": package_hash(),
        "seconds": round(seconds),
    }
    return notebook


def _seconds() -> float:
    """Of processors, so far, in processes that have ended: whatever else the machine does."""
    times = os.times()
    return times.children_user + times.children_system


def alt(cell: dict[str, Any]) -> str:
    """What stands for the picture of a cell; empty if nothing does."""
    return cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of a run; one that raises is raised here.

    Where pip has gradest, the cell that installs it needs no network, and is denied one; else the
    cell is left out.
    """
    notebook = json.loads(json.dumps(notebook))
    env = dict(os.environ)
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    # As a user's kernel: compiled with all optimizations, pictures from the default backend, and on
    # what everyone has.
    for name in ("XLA_FLAGS", "MPLBACKEND", "GRADEST_DATA"):
        env.pop(name, None)
    if not (_installed() and importlib.util.find_spec("pip")):
        for cell in notebook["cells"]:
            if source(cell) == INSTALL:
                cell["source"] = "pass"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # This Python, and none of what its user has set up.
        kernel = folder / "jupyter" / "kernels" / "this-python"
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "This Python", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))
        env |= {"JUPYTER_PATH": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}
        before, after = folder / "before.ipynb", folder / "after.ipynb"
        write(before, notebook)
        run = subprocess.run(
            [sys.executable, "-c", _EXECUTE, str(before), str(after), str(TIMEOUT)],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if run.returncode:
            raise RuntimeError(run.stderr[-4000:])
        return _tidied(read(after))


def _tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    """What was printed in one piece, without the names of files that no other run has."""
    for cell in notebook["cells"]:
        outputs: list[dict[str, Any]] = []
        for output in cell.get("outputs", []):
            last = outputs[-1] if outputs else {}
            if output["output_type"] == "stream":
                said = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", "".join(output["text"]))
                if last.get("name") == output["name"]:
                    said = "".join(last["text"]) + said
                    outputs.pop()
                output = {**output, "text": said.splitlines(keepends=True)}
            outputs.append(output)
        if "outputs" in cell:
            cell["outputs"] = outputs
    return notebook


def _installed() -> bool:
    """Whether pip knows gradest, beyond Python finding it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("gradest")
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
