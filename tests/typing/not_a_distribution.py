"""What is given for a distribution and is none: each line is an error to a checker of types.

That it is one says the comment at its end: a comment that is not needed is an error itself.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import jax
import numpy as np

import gradest as ge
from gradest import distributions as dist

bits = ge.rebar()


def draws(key: jax.Array, logits: jax.Array, on_host: np.ndarray) -> None:
    bits(key, logits)  # pyright: ignore[reportArgumentType]
    bits(key, on_host)  # pyright: ignore[reportArgumentType]
    bits(key, 0.3)  # pyright: ignore[reportArgumentType]
    bits(key, {"logits": logits})  # pyright: ignore[reportArgumentType]
    bits(dist.Bernoulli(logits), key)  # pyright: ignore[reportArgumentType]


def estimates(key: jax.Array, logits: jax.Array) -> None:
    bits.expect(key, logits, lambda b: b.sum())  # pyright: ignore[reportArgumentType]
    bits.expect(key, lambda b: b.sum(), dist.Bernoulli(logits))  # pyright: ignore[reportArgumentType]
