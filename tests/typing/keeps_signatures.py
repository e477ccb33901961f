"""Transforms of functions, which keep the signature of the function that they transform."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import jax

import gradest as ge


def gradient(key: jax.Array, logits: jax.Array, *, scale: float = 1.0) -> dict[str, jax.Array]:
    return {"logits": scale * logits + jax.random.normal(key)}


def means(key: jax.Array, logits: jax.Array) -> None:
    mean = ge.monte_carlo(gradient, 1_000, chunk_size=100)
    assert_type(mean(key, logits), dict[str, jax.Array])
    assert_type(mean(key, logits=logits, scale=2.0), dict[str, jax.Array])
    mean(key)  # pyright: ignore[reportCallIssue]
    mean(key, logits, size=2.0)  # pyright: ignore[reportCallIssue]
    mean(key, logits, scale="large")  # pyright: ignore[reportArgumentType]


@ge.expectation
def loss(params: dict[str, jax.Array], key: jax.Array, scale: float = 1.0) -> jax.Array:
    return scale * jax.random.normal(key) * params["logits"].sum()


def with_aux(params: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, str]:
    return loss(params, key), "aux"


def expectations(params: dict[str, jax.Array], key: jax.Array) -> None:
    assert_type(loss(params, key, scale=2.0), jax.Array)
    loss(params)  # pyright: ignore[reportCallIssue]
    loss(params, key, size=2.0)  # pyright: ignore[reportCallIssue]
    loss(params["logits"], key)  # pyright: ignore[reportArgumentType]
    assert_type(ge.expectation(with_aux, has_aux=True)(params, key), tuple[jax.Array, str])
