"""What importing gradest does: it warns of a jaxlib whose sums are wrong, and starts nothing."""

import importlib.metadata
import importlib.util
import pathlib
import re
import socket
import subprocess
import sys
import tomllib
import warnings

import jax
import jaxlib.version
import pytest

from gradest import _installation

ROOT = pathlib.Path(__file__).parents[1]
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


@pytest.fixture
def on_cpu(monkeypatch):
    """A jaxlib 0.10.2, with nothing that says where JAX will compute."""
    monkeypatch.setattr(jaxlib.version, "__version__", "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", None)
    yield monkeypatch
    jax.config.update("jax_platforms", before)


def warned() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _installation.warn_of_wrong_sums()
    for warning in caught:
        # The message names what is wrong and both remedies.
        said = str(warning.message)
        assert all(
            part in said for part in ("jaxlib 0.10.2", "pip install -U", f"XLA_FLAGS={FLAG}")
        )
    return bool(caught)


def test_wrong_sums_are_told(on_cpu):
    assert warned()


@pytest.mark.parametrize("version", ["0.7.2", "0.10.1", "0.11.0"])
def test_other_versions_are_right(on_cpu, version):
    on_cpu.setattr(jaxlib.version, "__version__", version)
    assert not warned()


@pytest.mark.parametrize(
    ("flags", "told"),
    [(FLAG, False), (f"--xla_a=1 {FLAG} --xla_b=2", False), (f"{FLAG}reduce", True), ("", True)],
)
def test_the_remedy_is_a_flag_without_a_value(on_cpu, flags, told):
    on_cpu.setenv("XLA_FLAGS", flags)
    assert warned() == told


@pytest.mark.parametrize(
    ("platforms", "told"), [("cpu", True), ("cpu,cuda", True), ("cuda,cpu", False), ("tpu", False)]
)
def test_platforms_that_are_named_decide(on_cpu, platforms, told):
    jax.config.update("jax_platforms", platforms)
    assert warned() == told
    # Whatever is installed.
    on_cpu.setattr(importlib.util, "find_spec", lambda name: object())
    assert warned() == told


def test_an_installed_plugin_is_not_on_cpu(on_cpu):
    on_cpu.setattr(importlib.metadata, "entry_points", lambda group: [group])
    assert not warned()


@pytest.mark.parametrize("package", ["jax_plugins", "libtpu"])
def test_an_installed_platform_is_not_on_cpu(on_cpu, package):
    on_cpu.setattr(importlib.util, "find_spec", lambda name: object() if name == package else None)
    assert not warned()


def run(program: str) -> subprocess.CompletedProcess[str]:
    """`program` in a process of its own, in which JAX has started nothing yet."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_import_tells_once_and_names_its_line():
    program = """
import jax, jaxlib.version
jaxlib.version.__version__ = "0.10.2"
jax.config.update("jax_platforms", "cpu")
import os
os.environ["XLA_FLAGS"] = ""
import gradest
from gradest import distributions
import gradest
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\S+): UserWarning: jaxlib 0\.10\.2", done.stderr, re.M) == ["<string>:7"]


# Both raise once a backend is there.
STARTS_LATER = """
jax.config.update("jax_num_cpu_devices", 3)
jax.distributed.initialize("localhost:{port}", num_processes=1, process_id=0)
assert jax.process_count() == 1 and jax.device_count() == 3
loss = lambda l, k: (ge.reinmax()(k, ge.distributions.Bernoulli(l)) - 0.45) ** 2
assert float(jax.grad(loss)(0.0, jax.random.key(0))) != 0
jax.distributed.shutdown()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_the_import_starts_no_backend():
    done = run(
        "import os; os.environ.pop('XLA_FLAGS', None); import gradest as ge, jax"
        + STARTS_LATER.format(port=free_port())
    )
    assert done.returncode == 0, done.stderr


def test_a_backend_that_was_started_is_found():
    """The test above would fail if importing gradest made an array."""
    for line in STARTS_LATER.format(port=free_port()).splitlines()[1:3]:
        done = run(f"import jax, jax.numpy as jnp; jnp.zeros(1)\n{line}")
        assert done.returncode != 0
        assert "RuntimeError" in done.stderr


def test_the_dependencies_exclude_it():
    """Of jax and jaxlib together: one of them alone would keep the other where it is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    excluded = [d.split(">=")[0] for d in project["dependencies"] if "!=0.10.2" in d]
    assert excluded == ["jax", "jaxlib"]
