"""Many samples, and assertions about them: with measured tolerance, and with power.

An assertion that a wrong sample could pass is none: where the standard error is too large for
an error of a few percent to be seen, it fails too, and says how many samples it would take.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

NUM_KEYS = 200_000


def keys(num: int = NUM_KEYS, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


def optimized(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, with optimizations that conftest.py has other programs do without.

    They are worth their time where a program runs for longer than it compiles.
    """
    as_installed = os.environ.get("GRADEST_TESTS_AS_INSTALLED")
    options = None if as_installed else {"xla_backend_optimization_level": 1}
    return jax.jit(function, compiler_options=options)


# ---- Assertions ----------------------------------------------------------------------------

# One false alarm in 150,000 coordinates; keys are fixed, so what passes once passes always.
MAX_Z = 4.5
# Largest standard error of a mean, as a fraction of the exact result's norm.
MAX_ERROR = 0.02
# What single precision may lose, as a fraction of the exact result's norm.
ROUNDING = 2e-5


class NoPower(AssertionError):
    """There are too few samples for an assertion to tell."""


def assert_unbiased(samples: Any, exact: Any) -> None:
    """The samples, stacked along the first axis of every leaf, have the mean `exact`.

    Each coordinate is tested, and the projection on the exact result, which an error of scale
    shows in most.

    Raises:
      AssertionError: if a mean is off by more than 4.5 standard errors.
      NoPower: if a standard error is more than 2% of the norm of the leaf of `exact`.
    """
    moments = [_moments(*leaf) for leaf in _leaves(samples, exact)]
    for path, _, g, error, num in moments:
        _assert_power(path, error.max() / g[-1], num)
    for path, mean, g, error, _ in moments:
        off = np.maximum(np.abs(mean - g) - ROUNDING * g[-1], 0)
        _assert_z(path, "mean", off / np.maximum(error, 1e-30), mean, g)


def _moments(
    path: str, sample: np.ndarray, leaf: np.ndarray
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, int]:
    """Means of the coordinates and, last, of the projection; exact ones; standard errors."""
    x, g = sample.reshape(len(sample), -1), leaf.reshape(-1)
    norm = np.linalg.norm(g)
    assert norm > 0, f"{path}: no power to see an error, where the exact result is zero"
    direction = g / norm
    mean = x.mean(axis=0)
    centred = x - mean
    covariance = centred.T @ centred / (len(x) - 1)
    variance = np.append(np.diag(covariance), direction @ covariance @ direction)
    means = np.append(mean, mean @ direction)
    return path, means, np.append(g, norm), np.sqrt(variance / len(x)), len(x)


def assert_variance(samples: Any, exact: Any) -> None:
    """The samples, stacked along the first axis of every leaf, have the variances `exact`.

    The variance v of N samples has the standard error sqrt((m4 - v^2) / N), with m4 the fourth
    central moment.

    Raises:
      AssertionError: if a variance is off by more than 4.5 standard errors.
      NoPower: if a standard error is more than 2% of it.
    """
    for path, sample, leaf in _leaves(samples, exact):
        x, v = sample.reshape(len(sample), -1), leaf.reshape(-1)
        centred = x - x.mean(axis=0)
        measured = np.sum(centred**2, axis=0) / (len(x) - 1)
        error = np.sqrt((np.mean(centred**4, axis=0) - measured**2) / len(x))
        _assert_power(path, (error / v).max(), len(x))
        _assert_z(path, "variance", np.abs(measured - v) / error, measured, v)


def assert_moments(samples: Any, mean: Any, variance: Any) -> None:
    """Mean and variance are these, and samples that are 5% too large have neither."""
    assert_unbiased(samples, mean)
    assert_variance(samples, variance)
    larger = jax.tree.map(lambda x: 1.05 * x, samples)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(larger, mean)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(larger, variance)


def _leaves(samples: Any, exact: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Path, samples and exact result of each leaf, in double precision."""
    expected = jax.tree.leaves_with_path(exact)
    out = []
    for (path, leaf), sample in zip(expected, jax.tree.leaves(samples), strict=True):
        x, g = np.asarray(sample, np.float64), np.asarray(leaf, np.float64)
        name = jax.tree_util.keystr(path) or "samples"
        assert x.shape[1:] == g.shape, f"{name}: samples of shape {x.shape[1:]}, exact {g.shape}"
        assert np.isfinite(x).all(), f"{name}: samples that are not finite"
        out.append((name, x, g))
    return out


def _assert_power(path: str, relative_error: float, num_samples: int) -> None:
    if not relative_error <= MAX_ERROR:
        enough = math.ceil(num_samples * (relative_error / MAX_ERROR) ** 2)
        raise NoPower(
            f"{path}: no power: the standard error is {relative_error:.1%} of the exact result's "
            f"norm, more than {MAX_ERROR:.0%}; it takes {enough} samples instead of {num_samples}"
        )


def _assert_z(path: str, what: str, z: np.ndarray, got: np.ndarray, exact: np.ndarray) -> None:
    assert z.max() <= MAX_Z, (
        f"{path}: the {what} is {z.max():.1f} standard errors off\n  got   {got}\n  exact {exact}"
    )
