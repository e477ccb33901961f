"""Strict JAX for every test: no silent promotion of types or ranks, warnings are errors."""

import importlib.metadata
import os

# Before JAX is imported: a few CPU devices, so that sharding is tested for real; where there is a
# choice, the emitters that compile in half the time; and jaxlib 0.10.2 without what makes some of
# its sums wrong (README, limits).
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    + " --xla_cpu_use_fusion_emitters=false"
    * (tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11))
    + " --xla_cpu_experimental_ynn_fusion_type="
    * (importlib.metadata.version("jaxlib") == "0.10.2")
)
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture
def x64():
    """Double precision, in which closed forms are compared to the last digits."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
