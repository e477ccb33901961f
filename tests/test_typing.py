"""What a checker of types says of the programs in tests/typing: what they say it does."""

import collections
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = {path.stem: path for path in sorted((ROOT / "tests" / "typing").glob("[!c]*.py"))}
#: What a program is about, where it is a library that may be missing: nothing is then known of it.
LIBRARIES = {
    "uses_numpyro": "numpyro",
    "uses_distrax": "distrax",
    "uses_tfp": "tensorflow_probability",
}
EXPECTED = re.compile(r"  # pyright: ignore\[\w+\]")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None,
    reason="pyright is not installed: the extra gradest[lint] brings it",
)


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """The lines with errors in each program, and in a copy of it that does not expect them."""
    copies = tmp_path_factory.mktemp("copies")
    for name, path in PROGRAMS.items():
        text = path.read_text(encoding="utf-8")
        (copies / f"{name}.py").write_text(EXPECTED.sub("", text), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    files = [*PROGRAMS.values(), *copies.glob("*.py")]
    done = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files)
    found = collections.defaultdict(set)
    for error in report["generalDiagnostics"]:
        found[pathlib.Path(error["file"])].add(error["range"]["start"]["line"] + 1)
    return lambda name: (found[PROGRAMS[name]], found[copies / f"{name}.py"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_as_it_says(name, errors):
    library = LIBRARIES.get(name, "gradest")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the extra gradest[bench] brings it")
    lines = PROGRAMS[name].read_text(encoding="utf-8").splitlines()
    expected = {i for i, line in enumerate(lines, start=1) if EXPECTED.search(line)}
    here, in_copy = errors(name)
    assert here == set()
    # An error that is expected is one, on its line.
    assert in_copy == expected


def test_there_is_a_program_of_each_kind():
    assert {"uses_gradest", "uses_own_distribution", "not_a_distribution", *LIBRARIES} <= {
        *PROGRAMS
    }
