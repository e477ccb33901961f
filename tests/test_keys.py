"""Draws of one program with the same key: found where it is certain."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import distributions as dists

rebar, score = ge.rebar(), ge.score_function()


def bit(l, key, sampler=rebar):
    return sampler(key, dists.Bernoulli(l))


def scanned(step, carry, xs=None, length=3):
    return jax.lax.scan(step, carry, xs, length=length)[0]


# ---- Shared --------------------------------------------------------------------------------


def same_key(l, key):
    return bit(l, key) * bit(-l, key)


def same_half(l, key):
    return bit(l, jax.random.split(key)[0]) * bit(l, jax.random.split(key)[0])


def same_fold(l, key):
    return bit(l, jax.random.fold_in(key, 7)) * bit(l, jax.random.fold_in(key, 7))


def same_seed(l, key):
    del key
    return bit(l, jax.random.key(3)) * bit(l, jax.random.key(3))


def wrapped(l, key):
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return bit(l, jax.random.wrap_key_data(data)) * bit(l, key)


def function_twice(l, key):
    f = jax.jit(bit)
    return f(l, key) * f(2 * l, key)


def through_calls(l, key):
    return jax.jit(jax.checkpoint(bit))(l, key) + bit(l, key)


def arm_and_outside(l, key):
    return jax.lax.cond(l > 0, lambda: bit(l, key), lambda: 0.0) + bit(l, key)


def constant_of_a_scan(l, key):
    return scanned(lambda c, _: (c + bit(l, key, score), None), 0.0)


def constant_of_an_inner_scan(l, key):
    def outer(c, k):
        return scanned(lambda c, _: (c + bit(l, k, score), None), c), None

    return scanned(outer, 0.0, jax.random.split(key, 3))


def carried_through(l, key):
    return scanned(lambda c, _: ((c[0] + bit(l, c[1], score), c[1]), None), (0.0, key))[0]


def inside_and_after(l, key):
    total = scanned(lambda c, _: (c + bit(l, key, score), None), 0.0, length=1)
    return total + bit(l, key)


# ---- Not, or not for certain ---------------------------------------------------------------


def two_halves(l, key):
    first, second = jax.random.split(key)
    return bit(l, first) * bit(l, second)


def two_folds(l, key):
    return bit(l, jax.random.fold_in(key, 1)) * bit(l, jax.random.fold_in(key, 2))


def chain(l, key):
    total = 0.0
    for _ in range(3):
        key, sub = jax.random.split(key)
        total += bit(l, sub)
    return total


def two_arms(l, key):
    return jax.lax.cond(l > 0, lambda: bit(l, key), lambda: 2 * bit(-l, key))


def arms_of_two_conds(l, key):
    a = jax.lax.cond(l > 0, lambda: bit(l, key), lambda: 0.0)
    return a + jax.lax.cond(l > 0, lambda: 0.0, lambda: bit(l, key))


def split_for_a_scan(l, key):
    return scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, jax.random.split(key, 3))


def folded_in_a_scan(l, key):
    def step(c, t):
        return c + bit(l, jax.random.fold_in(key, t), score), None

    return scanned(step, 0.0, jnp.arange(3))


def split_in_a_scan(l, key):
    def step(c, _):
        key, sub = jax.random.split(c[1])
        return (c[0] + bit(l, sub, score), key), None

    return scanned(step, (0.0, key))[0]


def one_step(l, key):
    return scanned(lambda c, _: (c + bit(l, key, score), None), 0.0, length=1)


def meant(l, key):
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return bit(l, key) * bit(l, jax.random.clone(key))


def common_random_numbers(l, key):
    draw = lambda m: ge.reparameterize()(key, dists.Normal(m, 1.0))
    return draw(l) * draw(-l)


SHARED = [
    *(same_key, same_half, same_fold, same_seed, wrapped, function_twice, through_calls),
    *(arm_and_outside, constant_of_a_scan, constant_of_an_inner_scan, carried_through),
    inside_and_after,
]
OTHER = [
    *(two_halves, two_folds, chain, two_arms, arms_of_two_conds, split_for_a_scan),
    *(folded_in_a_scan, split_in_a_scan, one_step, meant, common_random_numbers),
]
KEYS = {"typed": jax.random.key, "legacy": jax.random.PRNGKey}


def said(loss, key):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(lambda l: ge.expectation(loss)(l, key), 0.3)
        jax.eval_shape(jax.grad(ge.expectation(loss)), 0.3, key)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("make", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("loss", SHARED)
def test_warns_once(loss, make):
    messages = said(loss, make(0))
    assert len(messages) == 2  # of each of the two times that it is staged
    for message in messages:
        assert re.search(r"same key.*not independent.*jax\.random\.clone", message)
        assert re.search(rf"{re.escape(__file__)}:\d+", message)


@pytest.mark.parametrize("make", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("loss", OTHER)
def test_stays_silent(loss, make):
    assert said(loss, make(0)) == []


def test_of_two_arguments_that_are_the_same_key():
    loss = ge.expectation(lambda l, a, b: bit(l, a) * bit(l, b))
    same, other = jax.random.key(0), jax.random.key(1)
    with pytest.warns(ge.UnestimatedGradientWarning, match="same key"):
        loss(0.3, same, jax.random.key(0))
    assert jnp.shape(loss(0.3, same, other)) == ()


def test_of_keys_in_numpy():
    loss = ge.expectation(lambda l, a, b: bit(l, a) * bit(l, b))
    key = lambda number: np.array([0, number], np.uint32)
    with pytest.warns(ge.UnestimatedGradientWarning, match="same key"):
        loss(0.3, key(1), key(1))
    assert jnp.shape(loss(0.3, key(1), key(2))) == ()


def test_a_metric_may_draw_again():
    @ge.expectation(has_aux=True)
    def loss(l, key):
        return bit(l, key), bit(l, key)

    assert jnp.shape(loss(0.3, jax.random.key(0))[0]) == ()
