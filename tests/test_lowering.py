"""Programs for machines that are not here: lowered for a TPU and a GPU, saved and loaded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from support import cases

import gradest as ge
from gradest import distributions as dists

KEYS = tuple(jax.random.key(0, impl=impl) for impl in ("threefry2x32", "rbg"))


def lowered(fn, *args):
    """For both in one; nothing is compiled."""
    return export.export(jax.jit(fn), platforms=("tpu", "cuda"))(*args)


def laws_of(estimator):
    """One of each kind that it serves."""
    served = cases.CASES[estimator].record.distributions
    return [name for name in cases.KINDS if name in served] or served[:1]


@pytest.mark.parametrize(
    "estimator", [name for name, c in cases.CASES.items() if c.record.estimates]
)
def test_estimators_lower(estimator):
    """Value and gradient, in an expectation: by its first options, with keys of both kinds."""
    sampler = next(iter(cases.CASES[estimator].variants.values())).sampler()

    @ge.expectation
    def loss(dist, w, key):
        return cases.bowl(w, sampler(key, dist))

    def all_of_them(laws, keys):
        grad = cases.value_and_grad(loss)
        return [grad(dist, cases.weights(dist), key) for dist in laws for key in keys]

    lowered(all_of_them, [cases.DISTRIBUTIONS[name]() for name in laws_of(estimator)], KEYS)


@pytest.mark.parametrize("name", cases.DISTRIBUTIONS)
def test_distributions_lower(name):
    """Draws and their log-probabilities, with derivatives of both where they have them."""

    def log_prob(dist, key):
        x = dist.sample(key)
        x = x if dist.reparameterizable else jax.lax.stop_gradient(x)
        if dist.no_density:
            hard = jax.lax.stop_gradient(dist.harden(x)) if hasattr(dist, "harden") else 1.0
            return jnp.sum(jnp.sin(x) * hard)
        return jnp.sum(dist.log_prob(x).astype(float))

    def both(dist, keys):
        return [cases.value_and_grad(log_prob)(dist, key) for key in keys]

    lowered(both, cases.DISTRIBUTIONS[name](), KEYS)


# ---- Saved and loaded ----------------------------------------------------------------------


def test_training_step_that_was_saved():
    """Of a loss with a scan, a loop of random length, and draws of three kinds."""
    pytest.importorskip("flatbuffers", reason="jax.export serializes with flatbuffers")
    score, rebar, normal = ge.score_function(), ge.rebar(), ge.reparameterize()

    def loss(params, key):
        ks = jax.random.split(key, 4)
        noise = normal(ks[0], dists.Normal(params["mean"], 1.0))
        walk = lambda x, k: (x + score(k, dists.Bernoulli(params["logit"] - x)), None)
        steps, _ = jax.lax.scan(walk, 0.0, jax.random.split(ks[1], 3))

        def flip(state):
            tails, key = state
            key, now = jax.random.split(key)
            return tails - score(now, dists.Bernoulli(params["logit"])), key

        tails, _ = ge.while_loop(lambda state: state[0] > 0, flip, (steps, ks[2]), max_steps=50)
        return (tails + noise * steps - rebar(ks[3], dists.Bernoulli(params["logit"]))) ** 2

    def step(params, key_data):
        key = jax.random.wrap_key_data(key_data)
        gradient = jax.grad(ge.expectation(loss))(params, key)
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, gradient))

    params = {"mean": jnp.float32(0.3), "logit": jnp.float32(0.5)}
    key_data = jax.random.key_data(jax.random.key(0))
    saved = export.export(jax.jit(step), platforms=("cpu", "tpu", "cuda"))(params, key_data)
    loaded = export.deserialize(saved.serialize())
    assert loaded.platforms == ("cpu", "tpu", "cuda")
    got, want = loaded.call(params, key_data), jax.jit(step)(params, key_data)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    assert got["logit"] != params["logit"]
