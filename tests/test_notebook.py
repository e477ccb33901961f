"""The notebook runs from top to bottom, and shows what its prose says."""

import base64
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradest

nbformat = pytest.importorskip("nbformat", reason="needs gradest[test]")
for module in ("ipykernel", "matplotlib", "nbclient"):
    pytest.importorskip(module, reason="needs gradest[test]")

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
INSTALL = "%pip install -q gradest"
COLAB = "https://colab.research.google.com"
TIMEOUT = 600  # seconds, for all cells; on an idle machine they take a tenth of that

# Runs in a process of its own: an event loop and a kernel warn about what is none of gradest's.
EXECUTE = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
client = nbclient.NotebookClient(notebook, timeout=int(sys.argv[3]), kernel_name="this-python")
try:
    client.execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""


def committed() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_is_valid():
    notebook = committed()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"


def test_is_committed_without_outputs():
    """They would make every difference between two versions unreadable."""
    for cell in committed().cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_starts_with_the_badge_and_the_installation():
    cells = committed().cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    link = f"{COLAB}/github/gradest/gradest/blob/main/notebooks/{NOTEBOOK.name}"
    assert f"({COLAB}/assets/colab-badge.svg)]({link})" in cells[0].source
    assert cells[1].cell_type == "code"
    assert cells[1].source == INSTALL


@pytest.mark.slow
def test_runs(tmp_path):
    outputs = execute(tmp_path)
    # IPython reports that pip failed, and does not raise.
    assert "ERROR" not in text(outputs["install"])
    for cell, output in outputs.items():
        assert not re.search(r"\w+Warning:", text(output)), f"{cell}: {text(output)}"

    # The gradient that is silently zero, and the exact one.
    assert not values(text(outputs["zero-naive"]), "gradient by jax.random.bernoulli").any()
    exact = values(text(outputs["exact"]), "exact gradient")
    assert np.linalg.norm(exact) > 1

    # The means of estimates agree with it.
    for cell, label in (("expectation-loss", "mean of gradest"), ("samples-run", "chunk_size=")):
        said = text(outputs[cell])
        np.testing.assert_array_equal(values(said, "exact gradient"), exact)
        error = values(said, "standard error")
        assert np.linalg.norm(error) < 0.05 * np.linalg.norm(exact)
        for line in lines(said, label):
            # All three were rounded to print them.
            assert np.all(np.abs(numbers(line) - exact) < 4.5 * error + 2e-4)
        assert float(re.search(r"largest difference: ([\d.]+)", said)[1]) < 4.5
    whole, chunked = lines(text(outputs["samples-run"]), "chunk_size=")
    np.testing.assert_allclose(numbers(whole), numbers(chunked), atol=2e-4)
    memory = [float(re.search(r"([\d.]+) MiB", line)[1]) for line in (whole, chunked)]
    assert memory[1] < memory[0] / 10

    assert text(outputs["loud-error"]).startswith("UnestimatedGradientError: score_function: ")

    # What the prose says of the table.
    rows = [line.split() for line in text(outputs["estimators-table"]).splitlines()[1:]]
    table = {name: [float(x.rstrip("%")) for x in row] for name, *row in rows}
    for name, (bias, chance, variance) in table.items():
        assert bias <= 20
        if name in ("gumbel_softmax", "straight_through"):
            assert bias > 5 * chance
        elif name == "enumeration":
            assert bias == variance == 0
        else:
            assert bias < 3 * chance
            assert variance > 0
    assert table["leave_one_out"][2] < table["score_function"][2]
    assert table["rebar"][2] < table["score_function"][2]

    largest = [
        float(x) for x in re.findall(r"element ([\d.]+)", text(outputs["temperature-simplex"]))
    ]
    assert len(largest) == 4
    assert largest == sorted(largest)

    # Learning beats the poor temperature that it started from.
    said = text(outputs["learned-train"])
    first, last = zip(
        *(map(float, re.findall(r"[\d.]+", s)) for s in lines(said, "RE")), strict=True
    )
    assert first[1] == first[2]
    assert last[2] < 0.8 * last[1] < last[0]

    assert "temperature   1.000 -> 0.500\n" in text(outputs["annealing-train"])

    for cell in committed().cells:
        if "plt.show()" in cell.source:
            width, height = picture(outputs[cell.id])
            assert width > 400, cell.id
            assert height > 200, cell.id


def execute(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The outputs of each code cell, by the cell's id, in order."""
    notebook = committed()
    env = dict(os.environ)
    # Where pip has gradest, the cell that installs it needs no network; it is denied one.
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if not (installed() and importlib.util.find_spec("pip")):
        notebook.cells[1].source = "pass"
        package = str(pathlib.Path(gradest.__file__).parents[1])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH")]))
    # This Python, and none of what its user has set up: pictures come from the default backend.
    kernel = folder / "jupyter" / "kernels" / "this-python"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "This Python", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    env |= {"JUPYTER_PATH": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}
    env.pop("MPLBACKEND", None)

    source, result = folder / "source.ipynb", folder / "result.ipynb"
    nbformat.write(notebook, source)
    run = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(source), str(result), str(TIMEOUT // 2)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    executed = nbformat.read(result, as_version=4)
    return {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}


def installed() -> bool:
    """Whether pip knows gradest, beyond Python finding it."""
    try:
        importlib.metadata.distribution("gradest")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream")


def lines(said: str, label: str) -> list[str]:
    found = [line for line in said.splitlines() if line.startswith(label)]
    assert found, f"nothing starts with {label!r} in\n{said}"
    return found


def numbers(line: str) -> np.ndarray:
    """What is printed as an array in this line."""
    return np.array(re.search(r"\[(.*)\]", line)[1].split(), float)


def values(said: str, label: str) -> np.ndarray:
    (line,) = lines(said, label)
    return numbers(line)


def picture(outputs: list[dict[str, Any]]) -> tuple[int, int]:
    """Width and height of the one picture."""
    (data,) = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    png = base64.b64decode(data)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 5_000
    return struct.unpack(">II", png[16:24])
