"""Distributions of TFP's, on JAX."""
# pyright: reportMissingImports=false

from typing import assert_type

import jax
from tensorflow_probability.substrates.jax import distributions as dist

import gradest as ge

bits = ge.score_function()


def draws(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits(key, dist.Bernoulli(logits)), jax.Array)
    assert_type(bits(key, dist.Independent(dist.Bernoulli(logits))), jax.Array)


def estimates(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits.expect(key, dist.Bernoulli(logits), lambda b: b.sum()), jax.Array)
