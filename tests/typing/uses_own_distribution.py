"""Distributions of the user's own, whose `sample` is spelt as gradest's, distrax's or TFP's."""

from collections.abc import Sequence
from typing import Any, assert_type

import jax

import gradest as ge

bits = ge.score_function()


class AsGradest:
    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        raise NotImplementedError

    def log_prob(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError


class AsDistrax:
    def sample(self, *, seed: int | jax.Array, sample_shape: int | Sequence[int] = ()) -> jax.Array:
        raise NotImplementedError

    def log_prob(self, value: jax.Array) -> jax.Array:
        raise NotImplementedError


class AsTFP:
    def sample(self, sample_shape: Any = (), seed: Any = None, name: str = "", **_: Any) -> Any:
        raise NotImplementedError

    def log_prob(self, value: Any, name: str = "", **_: Any) -> Any:
        raise NotImplementedError


def draws(key: jax.Array) -> None:
    assert_type(bits(key, AsGradest()), jax.Array)
    assert_type(bits(key, AsDistrax()), jax.Array)
    assert_type(bits(key, AsTFP()), jax.Array)


def estimates(key: jax.Array) -> None:
    assert_type(bits.expect(key, AsGradest(), lambda b: b.sum()), jax.Array)
