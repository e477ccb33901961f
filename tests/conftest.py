"""Strict JAX for every test: no silent promotion of types or ranks, warnings are errors."""

import gc
import importlib.metadata
import os
import pathlib

# What follows is read when JAX is imported.
flags = [os.environ.get("XLA_FLAGS", "")]
# A few CPU devices, so that sharding is tested for real.
flags += ["--xla_force_host_platform_device_count=4"]
# Tests compile more than they run: they do without optimizations that cost more time than they
# save, compile a program in one piece, not in one for each core, and, where there is a choice of
# emitters, take the one that compiles in half the time. With GRADEST_TESTS_AS_INSTALLED they run as
# a user's program runs.
if not os.environ.get("GRADEST_TESTS_AS_INSTALLED"):
    flags += ["--xla_backend_optimization_level=0"]
    jaxlib = importlib.metadata.version("jaxlib")
    if tuple(map(int, jaxlib.split(".")[:2])) < (0, 11):
        flags += ["--xla_cpu_use_fusion_emitters=false"]
        flags += ["--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join(flags).strip()
os.environ.setdefault("MPLBACKEND", "agg")
# A program that was compiled once is kept; in the environment, so that subprocesses find it.
cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "gradest-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes objects by the million; a collector that looks for cycles after every 700 of them
# takes a twentieth of the time.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Two workers that compile the same program meet in the cache's file.
        cached = "ignore:Error (reading|writing) persistent compilation cache"
        item.add_marker(pytest.mark.filterwarnings("error", cached), append=False)
        if not any(item.iter_markers("statistical")) and not any(item.iter_markers("slow")):
            item.add_marker(pytest.mark.quick)


@pytest.fixture
def x64():
    """Double precision, in which closed forms are compared to the last digits."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
