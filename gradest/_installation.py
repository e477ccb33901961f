"""What is wrong with the libraries that gradest is installed beside, told when it is imported."""

import importlib.metadata
import importlib.util
import os
import warnings

import jax
import jaxlib.version

_REMEDY = "--xla_cpu_experimental_ynn_fusion_type="


def warn_of_wrong_sums() -> None:
    """Warns whoever computes on CPU with jaxlib 0.10.2, which gets some sums wrong in silence.

    The dependencies exclude it, but an environment may be older than they are. JAX is not asked
    for its devices: that would start a backend, after which `jax.distributed.initialize` and the
    configuration of the user's program come too late.
    """
    if jaxlib.version.__version__ != "0.10.2" or _REMEDY in os.environ.get("XLA_FLAGS", "").split():
        return
    if _may_be_on_cpu():
        warnings.warn(
            "jaxlib 0.10.2 gets some sums of arrays of more than 32,768 numbers wrong on CPU, and "
            "with them gradients of large batches (https://github.com/jax-ml/jax/issues/39103). "
            "Install another version, `pip install -U jax gradest`, or set "
            f"XLA_FLAGS={_REMEDY} before JAX is imported.",
            # The line that imports gradest.
            stacklevel=3,
        )


def _may_be_on_cpu() -> bool:
    """Whether JAX will compute on CPU, as far as can be known before it has looked for devices.

    JAX_PLATFORMS says so, or else nothing is installed that brings another platform.
    """
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms:
        return platforms.split(",")[0] == "cpu"
    brought = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    return not (any(brought) or importlib.metadata.entry_points(group="jax_plugins"))
