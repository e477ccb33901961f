"""How the package's rooms are layered, and what its tests may reach for."""

import ast
import dataclasses
import graphlib
import itertools
import pathlib
from collections.abc import Iterator

import pytest

import gradest as ge
from scripts import rooms

PACKAGE = pathlib.Path(ge.__file__).parent
TESTS = pathlib.Path(__file__).parent

# ---- Imports of the package ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of the package.

    Attributes:
      name: dotted, from "gradest".
      path: of its file.
      imports: dotted names of the modules that it imports anywhere, of JAX and gradest.
      attributes: dotted names that it reads, such as "jax.lax.scan".
    """

    name: str
    path: pathlib.Path
    imports: frozenset[str]
    attributes: frozenset[str]

    @property
    def own(self) -> frozenset[str]:
        """What it imports of gradest."""
        return frozenset(name for name in self.imports if name.split(".")[0] == "gradest")


def module_name(path: pathlib.Path) -> str:
    parts = ["gradest", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def read(name: str, source: str) -> Module:
    """The module of that name, as if `source` were in its file."""
    path = PATHS[name]
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    imports = set(itertools.chain.from_iterable(_imports(node, name, path) for node in nodes))
    attributes = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return Module(name, path, frozenset(imports), frozenset(attributes))


def _imports(node: ast.AST, name: str, path: pathlib.Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            # One dot is the package that the module is in, or is.
            up = node.level - (path.name == "__init__.py")
            base = ".".join([*name.split(".")[: len(name.split(".")) - up], *base.split(".")])
            base = base.rstrip(".")
        for alias in node.names:
            full = f"{base}.{alias.name}"
            # `from .. import _check` imports a module, `from .base import draw` part of one.
            external = base.split(".")[0] != "gradest"
            yield full if external or full in PATHS else base


MODULES = {name: read(name, path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def uses(module: Module, prefix: str) -> bool:
    names = module.imports | module.attributes
    return any(name == prefix or name.startswith(f"{prefix}.") for name in names)


#: From the ground up: a module imports those of its own floor and of the floors below.
FLOORS = (
    {
        "_calls",
        "_check",
        "_fixed_point",
        "_installation",
        "_jax_random",
        "_jaxpr",
        "_mesh",
        "_numerics",
        "_plates",
        "_random",
        "_transparent",
        "_typing",
        "_version",
        "_written",
    },
    {"_derivatives", "_downstream"},
    {"distributions"},
    {"_control_variate", "_cost", "_draws", "_jumps", "_lockstep", "_same_key", "_sampler"},
)
#: What the package's front shows: built on the floors, and none on another.
ROOMS = {"_annealing", "_diagnostics", "_monte_carlo", "_transform", "estimators"}
#: What is built on the rooms, and shown by the front too.
ABOVE_ROOMS = {"_explain", "records"}
#: What uses the package, and nothing of it uses.
PROGRAMS = {"__main__", "_credit", "nnx", "numpyro", "problems"}


def allowed(module: Module) -> set[str]:
    """The rooms that a module may import."""
    if module.name == "gradest":
        return {room for floor in FLOORS for room in floor} | ROOMS | ABOVE_ROOMS
    room = module.name.split(".")[1]
    for height, floor in enumerate(FLOORS):
        if room in floor:
            return {room for below in FLOORS[: height + 1] for room in below}
    below = {room for floor in FLOORS for room in floor}
    if room in ROOMS:
        return below | {room}
    if room in ABOVE_ROOMS:
        return below | ROOMS | ABOVE_ROOMS
    assert room in PROGRAMS, f"{module.name}: on no floor; say here where it belongs"
    return below | ROOMS | ABOVE_ROOMS | PROGRAMS | {"gradest"}


def misplaced(module: Module) -> set[str]:
    """What this module imports of gradest against the order of its layers."""
    room_of = lambda name: name.split(".")[1] if "." in name else name
    return {name for name in module.own if room_of(name) not in allowed(module)}


@pytest.mark.parametrize("name", MODULES)
def test_module_uses_public_jax(name):
    module = MODULES[name]
    assert not uses(module, "jax._src")
    # Rules of primitives; everything else has a function of the public modules.
    if uses(module, "jax.interpreters"):
        assert uses(module, "jax.extend.core")


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    assert misplaced(MODULES[name]) == set()


def test_imports_have_no_cycle():
    graph = {name: module.own - {name} for name, module in MODULES.items()}
    # Importing a module runs the package it is in first; that is not what is meant here.
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_picture_shows_the_floors():
    shown = [{room.name.strip("/") for room in floor.rooms} for floor in rooms.FLOORS]
    assert shown == [PROGRAMS, {"__init__"}, ABOVE_ROOMS, ROOMS, *reversed(FLOORS)]


def test_the_arrows_of_the_picture_are_imports():
    for room in itertools.chain.from_iterable(floor.rooms for floor in rooms.FLOORS):
        names = [
            name for name in MODULES if f"{name}.".startswith(f"gradest.{room.name.strip('/')}.")
        ]
        below = f"gradest.{room.stands_on.strip('/')}".removesuffix(".__init__")
        imported = set().union(*(MODULES[name].own for name in names))
        assert not room.stands_on or any(f"{name}.".startswith(f"{below}.") for name in imported)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gradest._derivatives", "from ..distributions import base"),
        ("gradest._random", "from ._sampler import Sampler"),
        ("gradest.distributions.base", "from .. import _sampler"),
        ("gradest.distributions.base", "from .._transform.expectation import cost"),
        ("gradest.estimators.rebar", "from .._transform.expectation import cost"),
        ("gradest.estimators.rebar", "from .._diagnostics import diagnose"),
        ("gradest.estimators.rebar", "def f():\n  import gradest"),
        ("gradest._diagnostics.diagnose", "from ..estimators.rebar import rebar"),
        ("gradest._transform.expectation", "from ..estimators import rebar"),
        ("gradest._transform.expectation", "from ..problems import toy"),
        ("gradest._sampler", "from ._transform import expectation"),
        ("gradest._sampler", "from .estimators import rebar"),
        ("gradest", "from .problems import toy"),
        ("gradest", "from . import __main__"),
    ],
)
def test_misplaced_import_is_found(name, source):
    assert misplaced(read(name, source))


@pytest.mark.parametrize(
    "source",
    [
        "import jax._src.core",
        "from jax._src import core",
        "from jax import _src",
        "import jax\njax._src.core.Jaxpr",
    ],
)
def test_private_jax_is_found(source):
    assert uses(read("gradest._check", source), "jax._src")


# ---- What tests reach for ------------------------------------------------------------------

#: Private modules that a test imports, where what it tests is not to be seen from outside.
#: What is replaced by something wrong is in support/broken.py.
PRIVATE = {
    # What two estimators are made of, a function at a time: scores, trees and sets.
    "test_arm": {"gradest.estimators.arm"},
    "test_gaussian_smoothing": {
        "gradest.distributions.base",
        "gradest.estimators.gaussian_smoothing",
    },
    # The noise by which a pair is apart.
    "test_measure_valued": {"gradest._random"},
    "test_stratified": {"gradest.estimators.stratified"},
    "test_optimal_baseline": {"gradest.estimators.score_function"},
    "test_without_replacement": {
        "gradest._cost",
        "gradest.estimators._finite",
        "gradest.estimators.unordered_set",
    },
    # The derivative of the variance, which no public function attaches by itself.
    "test_contract": {"gradest._derivatives.variance"},
    # Chunks, clocks and streams of a run that is made to go wrong.
    "test_diagnostics": {"gradest._diagnostics.diagnose", "gradest._diagnostics.moments"},
    # What any object that is to be a distribution is asked, before it is one.
    "test_distributions": {"gradest.distributions._joint"},
    # Implicit derivatives, to the last digit of the special functions in them.
    "test_implicit": {
        "gradest.distributions._implicit",
        "gradest.distributions._log_gamma",
        "gradest.distributions._special",
        "gradest.distributions.vonmises",
    },
    # What kinds of node there are.
    "test_docs": {"gradest._transform.program"},
    # Which classes of other libraries are known, and as what.
    "test_libraries": {"gradest.distributions._foreign"},
    # What is said of an installation other than this one.
    "test_installation": {"gradest._installation"},
    # What becomes of each draw of a loss, and of which estimators a remedy speaks.
    "test_downstream": {"gradest._jumps", "gradest._transform.downstream"},
    # What stands in for a masked element.
    "test_where": {"gradest.distributions._masked"},
    # The budget within which a choice is looked at.
    "test_explain": {"gradest._downstream.probe"},
    "test_mixture": {"gradest.distributions.mixture"},
    # What a user derives a distribution from.
    "test_own_distributions": {"gradest.distributions.base"},
    # Its version, and how evaluations of a cost are counted.
    "test_records": {"gradest._diagnostics.evaluations", "gradest._version"},
    # How often a program is read.
    "test_transform": {"gradest._transform.reading"},
    # Bits of one draw.
    "test_random": {"gradest._fixed_point", "gradest._random"},
    "support.broken": {
        "gradest._lockstep",
        "gradest.estimators._relaxation",
        "gradest.estimators._scores",
        "gradest.estimators.gaussian_smoothing",
        "gradest.estimators.measure_valued",
        "gradest.estimators.stratified",
        "gradest.estimators.unordered_set",
    },
}


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names that a test module imports, functions as well as modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


TEST_MODULES = {
    ".".join(path.relative_to(TESTS).with_suffix("").parts): path
    for path in sorted([*TESTS.glob("test_*.py"), *TESTS.glob("support/*.py")])
}


@pytest.mark.parametrize("name", TEST_MODULES)
def test_private_modules_that_a_test_imports_are_listed(name):
    public = {
        *("gradest", "gradest.distributions", "gradest.records"),
        *("gradest.nnx", "gradest.numpyro"),
    }
    inside = lambda module: module not in public and not module.startswith("gradest.problems")
    modules = {m for m in MODULES if m != "gradest.__main__" and inside(m)}
    names = imports_of(TEST_MODULES[name])
    found = {m for m in modules if any(n == m or n.startswith(f"{m}.") for n in names)}
    # Of a package's own module, the package is not meant.
    found = {m for m in found if not any(other.startswith(f"{m}.") for other in found)}
    assert found == PRIVATE.get(name, set())


@pytest.mark.parametrize("name", [name for name in TEST_MODULES if name.startswith("test_")])
def test_has_one_module_of_support_in_mind(name):
    parts = [n.split(".") for n in imports_of(TEST_MODULES[name]) if n.startswith("support.")]
    assert len({part[1] for part in parts}) <= 1
