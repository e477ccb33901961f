"""What the README, the docstrings and the metadata say of gradest; how its modules are layered."""

import importlib.metadata
import inspect
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import typing

import pytest

import gradest as ge
from gradest import distributions as dists

PACKAGE = pathlib.Path(ge.__file__).parent
ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def estimators() -> dict[str, typing.Any]:
    """The public functions that return a sampler."""
    public = {name: f for name, f in inspect.getmembers(ge, inspect.isfunction) if name[0] != "_"}
    returns = lambda f: typing.get_type_hints(f).get("return")
    return {name: f for name, f in public.items() if returns(f) is ge.Sampler}


ESTIMATORS = estimators()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_is_one_line_of_the_package(name):
    lines = (PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if re.search(rf"\b{name} as {name}\b", line)]
    assert re.fullmatch(rf"from \.estimators\.\w+ import {name} as {name}", line)


# ---- Docstrings ----------------------------------------------------------------------------

ORDER = ("Args", "Returns", "Raises", "Example", "Reference")


def sections(doc: str) -> dict[str, str]:
    """A docstring's named sections, in order, and "" for what comes before them."""
    parts = re.split(rf"^({'|'.join(ORDER)}):\n", doc, flags=re.MULTILINE)
    names = parts[1::2]
    assert len(set(names)) == len(names), "a section twice"
    return {"": parts[0], **dict(zip(names, parts[2::2], strict=True))}


def public_names() -> list[str]:
    return [name for name in dir(ge) if not name.startswith("_")]


@pytest.mark.parametrize("name", public_names())
def test_docstring(name):
    thing = getattr(ge, name)
    doc = inspect.getdoc(thing)
    assert doc, "no docstring"
    summary = doc.split("\n\n")[0]
    assert summary.endswith("."), "the first paragraph is no sentence"
    assert "\n" not in summary, "more than one line"
    found = sections(doc)
    assert list(found)[1:] == [name for name in ORDER if name in found], "out of order"
    if not inspect.isfunction(thing):
        return
    hints = typing.get_type_hints(thing)
    parameters = inspect.signature(thing).parameters
    assert ("Args" in found) == bool(parameters)
    for parameter in parameters:
        assert re.search(rf"^\s+{parameter}: ", found["Args"], re.MULTILINE), parameter
    assert ("Returns" in found) == (hints["return"] is not type(None))
    assert ">>> " in found.get("Example", ""), "no example"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_docstring_of_an_estimator(name):
    found = sections(inspect.getdoc(ESTIMATORS[name]))  # pyright: ignore[reportArgumentType]
    said = [m.lower() for m in re.findall(r"^(\w[\w ]*?):", found[""], re.MULTILINE)]
    text = found[""].lower()
    assert ".. math::" in text or name == "gumbel_max"
    order = ["bias", "variance", "cost evaluations per gradient"]
    if "bias and variance" not in said:
        positions = [text.find(f"{label}:") for label in order]
        assert -1 not in positions, f"not all of {order}"
        assert positions == sorted(positions), "out of order"
        assert "assumptions" in said
    else:
        assert order[-1] in said
    assert ("Reference" in found) == (name != "enumeration")


@pytest.mark.parametrize("name", [n for n in dir(dists) if inspect.isclass(getattr(dists, n))])
def test_docstring_of_a_distribution(name):
    doc = getattr(dists, name).__doc__
    assert doc
    assert doc.split("\n\n")[0].endswith(".")


# ---- Metadata ------------------------------------------------------------------------------


def test_version_is_that_of_the_metadata():
    try:
        installed = importlib.metadata.version("gradest")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gradest is imported from a folder that pip did not install")
    assert installed == PROJECT["version"]


def test_readme_tells_the_oldest_versions():
    python = PROJECT["requires-python"].removeprefix(">=")
    (jax,) = re.findall(r"\bjax>=([\d.]+)", " ".join(PROJECT["dependencies"]))
    assert f"Python {python} or later, JAX {jax} or later" in README


@pytest.mark.parametrize(
    ("marker", "extra", "end"),
    [
        ("main job", "examples", "python -m gradest compare"),
        ("tests", "test", "python -m pytest -q -n 2"),
    ],
)
def test_readme_has_the_command(marker, extra, end):
    """One line in a fence right below its marker, where the checks find it."""
    lines = README.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line == f"<!-- command: {marker} -->"]
    assert (lines[at + 1], lines[at + 3]) == ("```", "```")
    command = lines[at + 2]
    assert command.endswith(end)
    assert f'".[{extra}]"' in command
    assert extra in PROJECT["optional-dependencies"]


def test_readme_is_short():
    """What it has no room for is on the site."""
    assert len(README.split()) < 900


def test_readme_has_no_other_command():
    assert len(re.findall("<!-- command:", README)) == 2


# ---- Imports -------------------------------------------------------------------------------


def test_import_loads_nothing_optional():
    optional = ["flax", "matplotlib", "rich", "sklearn", "numpyro", "distrax"]
    optional += ["tensorflow_probability", "gradest.problems", "gradest.__main__"]
    code = (
        f"import gradest, sys, json; print(json.dumps([m for m in {optional} if m in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(out.stdout) == []
