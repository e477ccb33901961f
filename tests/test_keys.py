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


def scanned(step, carry, xs=None, length: int | None = 3):
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


def identity_of(key):
    return jax.jit(lambda k: k)(jax.checkpoint(lambda k: k)(key))


def stacked(key, num=3):
    return jnp.stack([key] * num)


def copied_in_a_scan(l, key):
    return scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, stacked(key))


def broadcast_in_a_scan(l, key):
    keys = jnp.broadcast_to(key, (3, *key.shape))
    return scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, keys)


def rows_of_copies(l, key):
    keys = jnp.tile(key, (3, *(1 for _ in key.shape)))
    return bit(l, keys[0]) * bit(l, keys[2])


def copied_in_lanes(l, key):
    return jnp.prod(jax.vmap(lambda k: bit(l, k))(jnp.repeat(key[None], 3, axis=0)))


def through_identities(l, key):
    return bit(l, identity_of(key)) * bit(l, jax.lax.optimization_barrier(key))


def carried_through_an_identity(l, key):
    def step(c, _):
        return (c[0] + bit(l, c[1], score), jax.jit(lambda k: jnp.where(l > 0, k, k))(c[1])), None

    return scanned(step, (0.0, key))[0]


def key_after_a_scan(l, key):
    (_, after) = scanned(lambda c, _: ((c[0] + 1.0, c[1]), None), (0.0, key))
    return bit(l, key) * bit(l, after)


def alike_from_both_arms(l, key):
    chosen = jax.lax.cond(l > 0, lambda: identity_of(key), lambda: key)
    return bit(l, chosen) * bit(l, key)


def two_scans_over_the_same(l, key):
    keys = jax.random.split(key, 3)
    one = scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, keys)
    return one + scanned(lambda c, k: (c - bit(l, k, score), None), 0.0, keys, length=None)


def one_that_a_scan_had(l, key):
    keys = jax.random.split(key, 3)
    return scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, keys) * bit(l, keys[-1])


def one_that_a_lane_gets(l, key):
    keys = jax.random.split(key, 3)
    return bit(l, keys[1]) * jnp.sum(jax.vmap(lambda k: bit(l, k))(keys))


def scan_over_the_same_in_every_step(l, key):
    keys = jax.random.split(key, 3)
    inner = lambda c, _: (scanned(lambda c, k: (c + bit(l, k, score), None), c, keys), None)
    return scanned(inner, 0.0)


def pathwise_and_not(l, key):
    return bit(l, key) * ge.reparameterize()(key, dists.Normal(l, 1.0))


def pathwise_in_a_call(l, key):
    draw = jax.jit(lambda k: ge.gumbel_softmax(1.0)(k, dists.Bernoulli(l)))
    return draw(identity_of(key)) * bit(l, key)


def pathwise_in_every_step(l, key):
    def step(c, _):
        return c + ge.reparameterize()(key, dists.Normal(l, 1.0)), None

    return scanned(step, 0.0) * bit(l, key)


def noise_and_bit(l, key):
    return jax.random.normal(key) * bit(l, key)


def dropout_in_a_call(l, key):
    drop = jax.jit(lambda x, k: jnp.where(jax.random.bernoulli(k, 0.9), x, 0.0))
    return drop(bit(l, jax.random.fold_in(key, 1)), jax.random.fold_in(identity_of(key), 1))


def noise_of_the_same_step(l, key):
    step = lambda c, k: (c + bit(l, k, score) * jax.random.uniform(k), None)
    return scanned(step, 0.0, jax.random.split(key, 3))


def by_hand_from_a_distribution(l, key):
    return dists.Normal(l, 1.0).sample(key) * bit(l, key)


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


def common_random_numbers_in_every_step(l, key):
    noisy, own = jax.random.split(key)

    def step(c, _):
        return c * ge.reparameterize()(noisy, dists.Normal(l, 1.0)), None

    return scanned(step, 1.0) * bit(l, own)


def pathwise_in_another_arm(l, key):
    normal = lambda: ge.reparameterize()(key, dists.Normal(l, 1.0))
    return jax.lax.cond(l > 0, lambda: bit(l, key), normal)


def halves_of_one_array(l, key):
    keys = jax.random.split(key, 4)
    one = scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, keys[:2], length=2)
    return one * bit(l, keys[2]) * bit(l, keys[3])


def swapped_in_a_scan(l, key):
    def step(c, _):
        return (c[0] + bit(l, c[1], score), c[2], jax.random.split(c[1])[0]), None

    return scanned(step, (0.0, *jax.random.split(key)))[0]


def stacked_of_different(l, key):
    keys = jnp.stack([*jax.random.split(key), jax.random.fold_in(key, 3)])
    return scanned(lambda c, k: (c + bit(l, k, score), None), 0.0, keys)


def one_arm_splits(l, key):
    chosen = jax.lax.cond(l > 0, lambda: jax.random.fold_in(key, 1), lambda: key)
    return bit(l, chosen) * bit(l, key)


def noise_of_another_half(l, key):
    first, second = jax.random.split(key)
    return jax.random.normal(first) * bit(l, second) + jax.random.uniform(first)


def noise_in_another_arm(l, key):
    return jax.lax.cond(l > 0, lambda: bit(l, key), lambda: jax.random.normal(key))


def noise_that_is_meant(l, key):
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return jax.random.normal(jax.random.clone(key)) * bit(l, key)


def noise_of_an_estimator(l, key):
    return rebar.expect(key, dists.Bernoulli(l), jnp.square) + bit(l, jax.random.fold_in(key, 1))


def estimate_in_a_cost(l, key):
    inner = lambda b: score.expect(key, dists.Bernoulli(l + b), lambda c: b * c + c)
    return rebar.expect(key, dists.Bernoulli(l), inner)


def pathwise_in_a_cost(l, key):
    normal = ge.reparameterize()
    return score.expect(key, dists.Bernoulli(l), lambda b: b * normal(key, dists.Normal(l, 1.0)))


def draw_and_estimate(l, key):
    return bit(l, key, score) + score.expect(key, dists.Bernoulli(l), jnp.square)


def draw_and_estimate_of_it(l, key):
    b = bit(l, key, score)
    return jax.jit(lambda b: score.expect(key, dists.Bernoulli(l + b), jnp.square))(b)


def two_estimates(l, key):
    """That are added: each is unbiased by itself."""
    return sum(rebar.expect(key, dists.Bernoulli(l), cost) for cost in (jnp.square, jnp.exp))


def estimate_in_a_cost_with_a_key_of_its_own(l, key):
    one, other = jax.random.split(key)
    inner = lambda b: score.expect(other, dists.Bernoulli(l + b), lambda c: b * c + c)
    return rebar.expect(one, dists.Bernoulli(l), inner)


def estimate_in_a_cost_that_is_meant(l, key):
    clone = jax.random.clone(key)
    inner = lambda b: score.expect(clone, dists.Bernoulli(l + b), lambda c: b * c + c)
    return rebar.expect(key, dists.Bernoulli(l), inner)


def estimate_in_another_arm(l, key):
    estimate = lambda: score.expect(key, dists.Bernoulli(l), jnp.square)
    return jax.lax.cond(l > 0, lambda: bit(l, key), estimate)


def common_random_numbers_in_a_cost(l, key):
    normal = ge.reparameterize()
    law = dists.Normal(l, 1.0)
    return normal.expect(key, law, lambda x: x * normal(key, law))


SHARED = [
    *(same_key, same_half, same_fold, same_seed, wrapped, function_twice, through_calls),
    *(arm_and_outside, constant_of_a_scan, constant_of_an_inner_scan, carried_through),
    *(inside_and_after, copied_in_a_scan, broadcast_in_a_scan, rows_of_copies, copied_in_lanes),
    *(through_identities, carried_through_an_identity, key_after_a_scan, alike_from_both_arms),
    *(two_scans_over_the_same, one_that_a_scan_had, one_that_a_lane_gets),
    *(scan_over_the_same_in_every_step, pathwise_and_not, pathwise_in_a_call),
    *(pathwise_in_every_step, noise_and_bit, dropout_in_a_call, noise_of_the_same_step),
    *(by_hand_from_a_distribution, estimate_in_a_cost, pathwise_in_a_cost, draw_and_estimate),
    draw_and_estimate_of_it,
]
OTHER = [
    *(two_halves, two_folds, chain, two_arms, arms_of_two_conds, split_for_a_scan),
    *(folded_in_a_scan, split_in_a_scan, one_step, meant, common_random_numbers),
    *(common_random_numbers_in_every_step, pathwise_in_another_arm, halves_of_one_array),
    *(swapped_in_a_scan, stacked_of_different, one_arm_splits, noise_of_another_half),
    *(noise_in_another_arm, noise_that_is_meant, noise_of_an_estimator, two_estimates),
    *(estimate_in_a_cost_with_a_key_of_its_own, estimate_in_a_cost_that_is_meant),
    *(estimate_in_another_arm, common_random_numbers_in_a_cost),
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
    messages = [m for m in said(loss, make(0)) if "under jax.vmap inside" not in m]
    assert len(messages) == 2  # of each of the two times that it is staged
    for message in messages:
        assert re.search(r"same key.*not independent.*jax\.random\.clone", message)
        assert re.search(rf"{re.escape(__file__)}:\d+", message)


@pytest.mark.parametrize("make", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("loss", OTHER)
def test_stays_silent(loss, make):
    assert said(loss, make(0)) == []


def test_of_an_estimate_in_a_cost_that_no_loss_stages():
    with pytest.warns(ge.UnestimatedGradientWarning, match="same key"):
        jax.grad(estimate_in_a_cost)(0.3, jax.random.key(0))
    # Where warnings are errors, as in these tests, it is one.
    with pytest.raises(ge.UnestimatedGradientWarning, match="same key"):
        jax.jit(estimate_in_a_cost)(0.3, jax.random.key(0))


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


@pytest.mark.parametrize("sampler", [rebar, ge.reparameterize()], ids=str)
def test_a_metric_may_draw_again(sampler):
    law = dists.Bernoulli if sampler is rebar else (lambda l: dists.Normal(l, 1.0))
    loss = ge.expectation(lambda l, key: (bit(l, key), sampler(key, law(l))), has_aux=True)
    assert jnp.shape(loss(0.3, jax.random.key(0))[0]) == ()
