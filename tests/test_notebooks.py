"""Notebooks are stored with what they show, which is what they show when they are run again."""

import base64
import copy
import os
import pathlib
import re
import struct
from typing import Any

import numpy as np
import pytest

from scripts import notebooks

nbformat = pytest.importorskip("nbformat", reason="needs gradest[test]")
for module in ("ipykernel", "matplotlib", "nbclient"):
    pytest.importorskip(module, reason="needs gradest[test]")

COLAB = "https://colab.research.google.com"
each = pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
#: A cell with this tag shows what differs from one machine to the next, such as times.
VARIES = "varies"
LESSONS = [path for path in notebooks.paths() if path.stem != "quickstart"]


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@each
def test_is_valid(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"


@each
def test_starts_with_the_badge_and_the_installation(path):
    cells = notebooks.read(path)["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert notebooks.source(cells[0]).startswith("# ")
    link = f"{COLAB}/github/gradest/gradest/blob/main/notebooks/{path.name}"
    assert f"({COLAB}/assets/colab-badge.svg)]({link})" in notebooks.source(cells[0])
    assert cells[1]["cell_type"] == "code"
    assert notebooks.source(cells[1]) == notebooks.INSTALL


@each
def test_was_run_as_it_stands(path):
    """Else: `python -m scripts.notebooks`."""
    notebook = notebooks.read(path)
    assert not notebooks.code_changed(notebook)
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert troubles(notebook) == []
    assert notebook["metadata"]["gradest"]["seconds"] < 120


@each
def test_pictures_have_a_text_in_their_place(path):
    shown = {
        cell["id"]: output
        for cell in code_cells(notebooks.read(path))
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    }
    assert shown
    for name, output in shown.items():
        assert len(output["metadata"]["image/png"]["alt"]) > 40, name
        width, height = size(output["data"]["image/png"])
        assert width > 400, name
        assert height > 150, name


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_ends_with_an_exercise_and_its_solution(path):
    cells = notebooks.read(path)["cells"]
    exercises = [
        i
        for i, cell in enumerate(cells)
        if re.search("^## Exercise", notebooks.source(cell), re.MULTILINE)
    ]
    assert exercises
    for i in exercises:
        solution = cells[i + 1]
        assert solution["cell_type"] == "code"
        assert notebooks.source(solution).startswith("# @title Solution\n")
        # Closed at first: on the site, and in Colab.
        assert "hide-cell" in solution["metadata"]["tags"]
        assert solution["metadata"]["cellView"] == "form"


def test_the_gallery_has_them_all():
    gallery = (notebooks.ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(\.\./notebooks/([\w.]+)\)", gallery)
    assert linked == [path.name for path in notebooks.paths()]


# ---- Run again -----------------------------------------------------------------------------

# Where there is no time for all of them, a choice of scripts/notebooks.py.
_SECONDS = os.environ.get("GRADEST_NOTEBOOKS_SECONDS")
CHOSEN = notebooks.chosen(float(_SECONDS)) if _SECONDS else notebooks.paths()


@pytest.mark.slow
@each
def test_shows_what_is_stored(path):
    if path not in CHOSEN:
        pytest.skip(f"not among those chosen for {_SECONDS} s: {[p.stem for p in CHOSEN]}")
    stored = notebooks.read(path)
    fresh = notebooks.executed(stored)
    assert troubles(fresh) == []
    assert differences(stored, fresh) == []
    if path.stem == "quickstart":
        check_quickstart({cell["id"]: cell["outputs"] for cell in code_cells(fresh)})


def troubles(notebook: dict[str, Any]) -> list[str]:
    """Warnings, errors, and failures of pip, which IPython reports and does not raise."""
    return [
        f"{cell['id']}: {said}"
        for cell in code_cells(notebook)
        for said in [text(cell["outputs"])]
        if re.search(r"\w+Warning:|^ERROR|Traceback", said, re.MULTILINE)
        or any(output["output_type"] == "error" for output in cell["outputs"])
        or any(output.get("name") == "stderr" for output in cell["outputs"])
    ]


_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


def differences(stored: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    """Where they print other words, or numbers that differ by more than a tenth.

    What is printed has a few digits, and a training takes another course where a sum is rounded
    in another way: a tenth, and two units in the last digit, tell a change from that. What stands
    after +- is the spread of a few runs, each of which takes its own course then: it is known to a
    half, and five units.
    """
    found = []
    for before, after in zip(code_cells(stored), code_cells(fresh), strict=True):
        if VARIES in before["metadata"].get("tags", []) or not before["outputs"]:
            continue
        old, new = text(before["outputs"]), text(after["outputs"])
        words = [" ".join(_NUMBER.sub("#", said).split()) for said in (old, new)]
        if words[0] != words[1]:
            found.append(f"{before['id']}: {words[0]!r}, now {words[1]!r}")
            continue
        for was, now in zip(_NUMBER.finditer(old), _NUMBER.finditer(new), strict=True):
            a, b = was[0], now[0]
            x, y = (float(number.replace(",", "")) for number in (a, b))
            part, units = (0.5, 5) if old[: was.start()].endswith("+- ") else (0.1, 2)
            mantissa, _, exponent = a.partition("e")
            last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
            if abs(x - y) > part * abs(x) + units * last:
                found.append(f"{before['id']}: {a}, now {b}")
    return found


def check_quickstart(outputs: dict[str, Any]) -> None:
    """What its prose says."""
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

    said = text(outputs["temperature-simplex"])
    largest = [float(x) for x in re.findall(r"element ([\d.]+)", said)]
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


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")


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


def size(png: str | list[str]) -> tuple[int, int]:
    """Width and height of a picture."""
    data = base64.b64decode("".join(png))
    assert data.startswith(b"\x89PNG")
    assert len(data) > 3_000
    return struct.unpack(">II", data[16:24])


# ---- The tests find what they look for, and the choice is one ------------------------------


def notebook_that_says(said: str, **metadata: Any) -> dict[str, Any]:
    output = {"output_type": "stream", "name": "stdout", "text": [said]}
    cell = {"cell_type": "code", "id": "a", "source": ["1"], "outputs": [output], "metadata": {}}
    return {"cells": [cell], "metadata": metadata}


@pytest.mark.parametrize(
    ("said", "same"),
    [
        ("bias 0.52, variance 1e-3", True),
        ("bias 0.70, variance 1e-3", False),
        ("bias -0.51, variance 1e-3", False),
        ("bias 0.51, variance 1e-2", False),
        ("BIAS 0.51, variance 1e-3", False),
    ],
)
def test_differences_are_seen(said, same):
    stored = notebook_that_says("bias 0.51, variance 1e-3")
    assert (differences(stored, notebook_that_says(said)) == []) is same


@pytest.mark.parametrize(
    ("said", "same"),
    [("20.1 +- 0.17", True), ("20.1 +- 0.30", False), ("24.5 +- 0.11", False)],
)
def test_a_spread_is_known_to_a_half(said, same):
    stored = notebook_that_says("20.5 +- 0.11")
    assert (differences(stored, notebook_that_says(said)) == []) is same


def test_warnings_are_seen():
    assert troubles(notebook_that_says("UserWarning: beware"))
    assert troubles(notebook_that_says("ERROR: no such package"))
    assert not troubles(notebook_that_says("a warning, in prose"))


def test_a_changed_cell_is_seen():
    notebook = notebook_that_says("1")
    notebook["metadata"]["gradest"] = {"code": notebooks.code_hash(notebook)}
    changed = copy.deepcopy(notebook)
    changed["cells"][0]["source"] = ["2"]
    assert not notebooks.code_changed(notebook)
    assert notebooks.code_changed(changed)


def test_a_choice_fits_into_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    monkeypatch.setattr(notebooks, "package_hash", lambda: "now")
    code = notebooks.code_hash(notebook_that_says("1"))

    def stored(name: str, **ran_on: Any) -> pathlib.Path:
        ran_on = {"code": code, "package": "now", "seconds": 60, **ran_on}
        path = tmp_path / f"{name}.ipynb"
        notebooks.write(path, notebook_that_says("1", gradest=ran_on))
        return path

    names = [stored(name) for name in ("a", "b", "c", "d")]
    assert len(notebooks.chosen(150)) == 1, "nothing changed: the one besides"
    changed = stored("b", code="another")
    assert notebooks.chosen(150)[0] == changed
    assert len(notebooks.chosen(150)) == 2
    assert notebooks.chosen(1) == [changed], "at least one"
    for name in ("a", "b", "c", "d"):
        stored(name, package="before")
    assert len(notebooks.chosen(150)) == 2, "all changed: what fits"
    assert sorted(notebooks.chosen(1000)) == names
    versions = set()
    for version in range(8):
        monkeypatch.setattr(notebooks, "package_hash", lambda version=version: str(version))
        versions.add(tuple(notebooks.chosen(150)))
    assert len(versions) > 1, "another version, another choice"


# ---- Their pictures ------------------------------------------------------------------------


def test_lines_are_told_apart_and_named():
    from gradest.problems import plots

    names = [f"estimator {i}" for i in range(7)]
    axes = plots.panels("Variance")
    both = np.array([1.0, 2.0])
    plots.curves(axes, both, dict.fromkeys(names, both), dashed=names[:1])
    lines, texts = axes.get_lines(), axes.texts
    assert [text.get_text() for text in texts] == names
    assert len({line.get_color() for line in lines}) == len(names)
    assert len({line.get_marker() for line in lines}) == len(names)
    assert [line.get_linestyle() for line in lines] == ["--"] + 6 * ["-"]
    for line, text in zip(lines, texts, strict=True):
        assert line.get_color() == text.get_color()
    # All lines end at one place, and their names do not touch.
    heights = np.sort([text.get_position()[1] for text in texts])
    assert np.diff(heights).min() > 0.07


def test_a_dot_has_its_row_and_its_number():
    from gradest.problems import plots

    axes = plots.panels("Variance")
    plots.dots(axes, {"a": 1.0, "b": 250.0}, hollow=["b"], form="{:.0f}", xscale="log")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["1", "250"]
