"""Distributions of gradest's, which every sampler takes."""

from typing import assert_type

import jax

import gradest as ge
from gradest import distributions as dist

bits = ge.rebar()
normals = ge.reparameterize()


def draws(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits(key, dist.Bernoulli(logits)), jax.Array)
    assert_type(ge.score_function()(key, dist.OneHotCategorical(logits)), jax.Array)
    assert_type(normals(key, dist.Normal(logits, 1.0)), jax.Array)


def estimates(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits.expect(key, dist.Bernoulli(logits), lambda b: b.sum()), jax.Array)
