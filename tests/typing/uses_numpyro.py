"""Distributions of numpyro's."""

from typing import assert_type

import jax
import numpyro.distributions as dist

import gradest as ge

bits = ge.score_function()


def draws(key: jax.Array, logits: jax.Array) -> None:
    assert_type(bits(key, dist.BernoulliLogits(logits)), jax.Array)
    assert_type(ge.reparameterize()(key, dist.Normal(logits, 1.0)), jax.Array)
    assert_type(bits(key, dist.Independent(dist.Normal(logits, 1.0), 1)), jax.Array)


def estimates(key: jax.Array, logits: jax.Array) -> None:
    dist_of_bits = dist.BernoulliLogits(logits)
    assert_type(bits.expect(key, dist_of_bits, lambda b: b.sum()), jax.Array)
