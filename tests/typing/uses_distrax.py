"""Distributions of distrax's."""
# pyright: reportMissingImports=false

from typing import assert_type

import distrax
import jax

import gradest as ge

bits = ge.score_function()


def draws(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits(key, distrax.Bernoulli(logits)), jax.Array)
    assert_type(bits(key, distrax.Independent(distrax.Bernoulli(logits), 1)), jax.Array)


def estimates(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits.expect(key, distrax.Bernoulli(logits), lambda b: b.sum()), jax.Array)
