"""Costs from inside a loss, the credit that draws get for them, and baselines."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs
from support.programs import (
    MAX_Z,
    assert_exact_on_average,
    assert_unbiased,
    assert_variance,
    bit,
    keys,
    leave_one_out,
    optimized,
)

import gradest as ge
from gradest import distributions as dists

score, rebar, enumeration = ge.score_function(), ge.rebar(), ge.enumeration()
split = jax.random.split


def params():
    return {"a": jnp.array([0.4, -0.6, 0.8]), "w": jnp.array([0.9, -0.7])}


# ---- Costs anywhere ------------------------------------------------------------------------


def costs_everywhere(samplers, params, key):
    """Before, between and after draws; in a call, a branch and a loop; scalars and arrays."""
    first, second, third = samplers
    a, w = params["a"], params["w"]
    k0, k1, k2, k3 = split(key, 4)
    ge.cost(w[0] * a[0])
    x = bit(first, k0, a[0])
    ge.cost(jnp.stack([x * w[0], x * x - 0.3]))

    @jax.jit
    def call(x, key):
        y = bit(second, key, a[1] + x)
        ge.cost(w[1] * y * x)
        return y

    y = call(x, k1)

    def branch():
        ge.cost(y * w[0] + a[1] ** 2)
        z = bit(third, k2, a[2] * y)
        ge.cost(jnp.sin(z + w[1]))
        return z

    z = jax.lax.cond(x > 0.5, branch, lambda: 0.5 * y)

    def step(position, key):
        u = bit(score, key, a[0] - position)
        ge.cost(u * w[1])
        ge.cost(jnp.array([position**2, 0.1]))
        return position + u - 0.3, None

    position, _ = jax.lax.scan(step, w[0] * x, split(k3, 2))
    return (x - y * z) ** 2 + position


def costs_everywhere_exactly(draw, params):
    a, w = params["a"], params["w"]
    total = w[0] * a[0]
    x = draw(a[0])
    total += x * w[0] + x * x - 0.3
    y = draw(a[1] + x)
    total += w[1] * y * x
    z = 0.5 * y
    if x:
        total += y * w[0] + a[1] ** 2
        z = draw(a[2] * y)
        total += jnp.sin(z + w[1])
    position = w[0] * x
    for _ in range(2):
        u = draw(a[0] - position)
        total += u * w[1] + position**2 + 0.1
        position = position + u - 0.3
    return total + (x - y * z) ** 2 + position


MIXTURES = {
    "score_function": (score, score, score),
    "rebar, score_function": (score, rebar, score),
    "leave_one_out, rebar, enumeration": (leave_one_out(), rebar, enumeration),
}


@functools.cache
def exact_costs_everywhere():
    return programs.exact(costs_everywhere_exactly, params())


@pytest.mark.statistical
@pytest.mark.parametrize("samplers", MIXTURES.values(), ids=MIXTURES)
def test_costs_everywhere(samplers):
    got = programs.estimates(functools.partial(costs_everywhere, samplers), params(), 50_000)
    assert_unbiased(got, exact_costs_everywhere())


# ---- Credit --------------------------------------------------------------------------------


def straight_line(params, key):
    k0, k1 = split(key)
    ge.cost(7.0 + params["w"][0])
    x = bit(score, k0, params["a"][0])
    ge.cost(5.0 * x)
    y = bit(score, k1, params["a"][1])
    ge.cost(3.0 * y - x)
    return x * y, ((x, y), (7.0, 5.0 * x, 3.0 * y - x, x * y))


def call(params, key):
    return jax.jit(straight_line)(params, key)


def branch(params, key):
    other = lambda *_: (0.0, ((0.0, 0.0), (0.0, 0.0, 0.0, 0.0)))
    return jax.lax.cond(params["w"][0] > 0, straight_line, other, params, key)


def loop(params, key):
    def step(carry, x):
        key, logit, factor = x
        before = carry
        u = bit(score, key, logit)
        ge.cost(factor * u - before)
        return carry + u, (u, factor * u - before)

    ge.cost(7.0 + params["w"][0])
    xs = split(key), params["a"][:2], jnp.array([5.0, 3.0])
    last, ((x, y), (c0, c1)) = jax.lax.scan(step, 0.0, xs)
    return last, ((x, y), (7.0, c0, c1, last))


def with_rebar_before(params, key):
    """Estimators that call the rest of the program a few times credit its draws likewise."""
    bit(rebar, key, params["a"][2])
    return straight_line(params, key)


@pytest.mark.parametrize("loss", [straight_line, call, branch, loop, with_rebar_before])
def test_draws_are_credited_with_what_comes_after_them(loss):
    """Exactly: sum_s (costs after s) d log p_s, for every key."""
    grad = jax.grad(ge.expectation(loss, has_aux=True), has_aux=True)
    got, (draws, costs) = jax.jit(jax.vmap(grad, in_axes=(None, 0)))(params(), keys(64))
    p = np.asarray(jax.nn.sigmoid(params()["a"][:2]))
    after = np.cumsum(np.stack(np.broadcast_arrays(*costs))[::-1], axis=0)[::-1]
    want = (np.stack(draws) - p[:, None]) * after[1:3]
    assert len(np.unique(want)) > 2
    np.testing.assert_allclose(got["a"][:, :2].T, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["w"][:, 0], 1.0)


@pytest.mark.statistical
@pytest.mark.parametrize("early", [True, False])
def test_cost_before_a_draw_adds_no_variance(early):
    """Var[(c - n) d log p] is that of c d log p, if n is a cost that came before, and not else."""

    def loss(logit, key):
        k0, k1 = split(key)
        noise = 3.0 * jax.random.normal(k0)
        if early:
            ge.cost(noise)
        x = bit(score, k1, logit)
        if not early:
            ge.cost(noise)
        return (x - 0.3) ** 2

    p = 1 / (1 + math.exp(-0.4))
    score_of = {1.0: 1 - p, 0.0: -p}
    second = sum(
        q * ((x - 0.3) * (x - 0.3) * score_of[x]) ** 2 for x, q in ((1.0, p), (0.0, 1 - p))
    )
    first = p * (1 - p) * (0.7**2 - 0.3**2)
    variance = second - first**2 + (0 if early else 9.0 * p * (1 - p))
    _, got = programs.estimates(loss, jnp.float32(0.4), 50_000)
    assert_variance(got, np.float64(variance))


# ---- A policy ------------------------------------------------------------------------------

STATES, HORIZON = 4, 50


def problem():
    """Transition probabilities (state, action, next state) and costs (state, action)."""
    rng = np.random.default_rng(1)
    transition = rng.dirichlet(np.full(STATES, 0.4), size=(STATES, 2))
    return jnp.asarray(transition, jnp.float32), jnp.asarray(
        rng.normal(size=(STATES, 2)), jnp.float32
    )


def policy_gradient(per_step, logits, key):
    """Takes action 1 with probability sigmoid(logits[state]), `HORIZON` times."""
    transition, costs = problem()

    def step(carry, key):
        state, total = carry
        k0, k1 = split(key)
        action = bit(score, k0, logits[state]).astype(int)
        c = costs[state, action]
        if per_step:
            ge.cost(c)
        state = jax.random.categorical(k1, jnp.log(transition[state, action]))
        return (state, total + c), None

    start = jnp.zeros((), int), 0.0
    (_, total), _ = jax.lax.scan(step, start, split(key, HORIZON))
    return 0.0 * total if per_step else total


def expected_cost_of_policy(logits):
    """By dynamic programming backwards in time."""
    transition, costs = problem()
    p = jax.nn.sigmoid(logits)
    value = jnp.zeros(STATES)
    for _ in range(HORIZON):
        of_action = costs + jnp.einsum("san,n->sa", transition, value)
        value = (1 - p) * of_action[:, 0] + p * of_action[:, 1]
    return value[0]


@pytest.mark.statistical
def test_reward_to_go():
    """Unbiased like the gradient that credits every action with all costs, and less variable."""
    logits = jnp.array([0.4, -0.5, 0.3, 0.8])
    want = jax.jit(jax.value_and_grad(expected_cost_of_policy))(logits)
    variance = {}
    for per_step in (True, False):
        loss = functools.partial(policy_gradient, per_step)
        grad = jax.value_and_grad(ge.expectation(loss))
        run = optimized(jax.vmap(grad, in_axes=(None, 0)))
        got = run(logits, keys(50_000 if per_step else 150_000))
        assert_unbiased(got[1], want[1])
        assert_unbiased(1 + got[0], 1 + want[0])
        variance[per_step] = np.var(np.asarray(got[1], np.float64), axis=0)
    assert np.all(variance[True] < 0.6 * variance[False])


# ---- A random walk -------------------------------------------------------------------------
#
# n steps from 0, up by 1 with probability exp(-X / p), else down by 1; f = X^2 at the end. With
# p = 2 n these are the exact derivative of E[f] in p, and the standard deviations of the score
# function's estimate of it without a baseline and with E[f] for one.

WALKS = {
    10: (1.489818, 3.796, 1.867),
    50: (7.558188, 34.81, 10.59),
    100: (15.134901, 94.43, 21.38),
}


def moments_of_walk(n, p):
    """E[f], E[f S], E[f^2 S^2] and E[(f - E f)^2 S^2], S the derivative of the log-probability.

    By dynamic programming over positions x, with E[S^k; X = x] for k = 0, 1, 2.
    """
    x = np.arange(n + 2.0)
    up = np.exp(-x / p)
    score_up = -(-x / p**2)
    score_down = np.divide(-up * x / p**2, 1 - up, out=np.zeros_like(x), where=up < 1)
    m = np.zeros((3, n + 2))
    m[0, 0] = 1.0
    for _ in range(n):
        after = np.zeros_like(m)
        for prob, s, shift in ((up, score_up, 1), (1 - up, score_down, -1)):
            moved = prob * np.stack([m[0], m[1] + s * m[0], m[2] + 2 * s * m[1] + s * s * m[0]])
            after += np.roll(moved, shift, axis=1)
        m = after
    f = x**2
    mean = f @ m[0]
    return mean, f @ m[1], f**2 @ m[2], (f - mean) ** 2 @ m[2]


@pytest.mark.parametrize("n", WALKS)
def test_moments_of_walk(n):
    derivative, plain, with_mean = WALKS[n]
    _, first, second, second_with_mean = moments_of_walk(n, 2.0 * n)
    np.testing.assert_allclose(first, derivative, rtol=1e-6)
    np.testing.assert_allclose(math.sqrt(second - first**2), plain, rtol=3e-4)
    np.testing.assert_allclose(math.sqrt(second_with_mean - first**2), with_mean, rtol=3e-4)


@pytest.mark.statistical
@pytest.mark.parametrize("n", [10, 100])
def test_random_walk(n):
    derivative, plain, with_mean = WALKS[n]
    mean, *_ = moments_of_walk(n, 2.0 * n)

    def walk(p, key, baseline):
        def step(x, key):
            sampler = ge.score_function(baseline=baseline)
            return x + 2 * sampler(key, dists.Bernoulli(probs=jnp.exp(-x / p))) - 1, None

        x, _ = jax.lax.scan(step, 0.0, split(key, n))
        return x**2

    num = 50_000
    grad = jax.value_and_grad(ge.expectation(walk))
    run = jax.jit(jax.vmap(grad, in_axes=(None, 0, None)))
    for baseline, deviation in ((0.0, plain), (mean, with_mean)):
        values, got = run(jnp.float32(2 * n), keys(num), jnp.float32(baseline))
        assert_unbiased(values, np.float64(mean))
        got = np.asarray(got, np.float64)
        assert abs(got.mean() - derivative) <= MAX_Z * got.std() / math.sqrt(num)
        centred = got - got.mean()
        # Of a standard deviation: half of that of the variance, divided by it.
        error = math.sqrt((np.mean(centred**4) - got.var() ** 2) / num) / (2 * got.std())
        assert abs(got.std() - deviation) <= MAX_Z * error + 5e-4 * deviation
        assert error <= 0.02 * deviation


# ---- Baselines -----------------------------------------------------------------------------


def downstream_draw(key, logit):
    return bit(score, key, logit)


def downstream_loop(key, logit):
    step = lambda x, key: (bit(score, key, logit), None)
    return jax.lax.scan(step, 0.0, split(key, 2))[0]


def downstream_branch(key, logit):
    draw = lambda key: bit(rebar, key, logit)
    return jax.lax.cond(logit > 0, draw, lambda key: 0.0, key)


@pytest.mark.statistical
@pytest.mark.parametrize("downstream", [downstream_draw, downstream_loop, downstream_branch])
def test_every_sample_has_its_own_draws_downstream(downstream):
    """The mean of what two samples lead to has half the variance of one."""

    def loss(logit, key):
        k0, k1 = split(key)
        x = bit(leave_one_out(), k0, 0.0)
        return downstream(k1, logit) + 0.0 * x

    p = 1 / (1 + math.exp(-0.4))
    values, gradients = programs.estimates(loss, jnp.float32(0.4), 50_000)
    assert_variance(values, np.float64(p * (1 - p) / 2))
    assert_unbiased((values, gradients), (np.float64(p), np.float64(p * (1 - p))))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(3)(x)))[0]


def test_network_baseline_is_trained_by_its_cotangent():
    """sum_s |ct| (b_s - cost to go after s) d b_s, exactly, for each lane of a vmap of a scan."""
    network, signs = Network(), jnp.array([-2.0, 0.5, 3.0])
    features = jnp.array([[0.3, -0.8, 1.1], [0.9, 0.2, -0.4], [-0.6, 0.7, 0.1]])
    start = {
        "logit": jnp.float32(0.3),
        "baseline": network.init(jax.random.key(1), jnp.zeros(2)),
    }

    def loss(params, key, features):
        def step(position, x):
            key, feature = x
            inputs = jnp.stack([position, feature])
            sampler = ge.score_function(baseline=network.apply(params["baseline"], inputs))  # pyright: ignore[reportArgumentType]
            u = bit(sampler, key, params["logit"] + feature)
            c = (u - 0.3) * feature + position
            ge.cost(c)
            return position + u, (inputs, c)

        end, (inputs, costs) = jax.lax.scan(step, 0.5, (split(key, 3), features))
        first = ge.score_function(baseline=network.apply(params["baseline"], inputs[0]))  # pyright: ignore[reportArgumentType]
        last = bit(first, key, params["logit"]) * end
        return last, (inputs, jnp.append(costs, last), last)

    def total(params):
        lanes = jax.vmap(ge.expectation(loss, has_aux=True), in_axes=(None, 0, 0))
        values, aux = lanes(params, keys(3), features)
        return jnp.sum(signs * values), aux

    got, (inputs, costs, _) = jax.jit(jax.grad(total, has_aux=True))(start)
    to_go = jnp.cumsum(costs[:, ::-1], axis=1)[:, ::-1]
    # The last draw's baseline has the inputs of the first step, and the last cost to go.
    inputs = jnp.concatenate([inputs, inputs[:, :1]], axis=1)

    def half_squares(baseline):
        b = jax.vmap(jax.vmap(functools.partial(network.apply, baseline)))(inputs)
        return jnp.sum(jnp.abs(signs)[:, None] * (b - to_go) ** 2 / 2)  # pyright: ignore[reportOperatorIssue]

    want = jax.jit(jax.grad(half_squares))(start["baseline"])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, got["baseline"], want)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(want))


@pytest.mark.statistical
def test_network_baseline_does_not_bias():
    network = Network()
    variables = network.init(jax.random.key(1), jnp.zeros(2))

    def loss(params, key):
        a, w = params["a"], params["w"]

        def step(position, key):
            # Its cotangent must not reach the program's own parameters through its inputs.
            b = network.apply(variables, jax.lax.stop_gradient(jnp.stack([position, w[0]])))
            u = bit(ge.score_function(baseline=b), key, a[0] - position)  # pyright: ignore[reportArgumentType]
            ge.cost(u * w[1])
            return position + u, None

        end, _ = jax.lax.scan(step, a[1], split(key, 3))
        return end**2

    def program(draw, params):
        a, w = params["a"], params["w"]
        position, total = a[1], 0.0
        for _ in range(3):
            u = draw(a[0] - position)
            total, position = total + u * w[1], position + u
        return total + position**2

    assert_exact_on_average(loss, program, params())


# ---- Lanes ---------------------------------------------------------------------------------


def per_example(sampler, logit, key, target):
    k0, k1 = split(key)
    step = lambda x, key: (x + bit(score, key, logit - x), None)
    x, _ = jax.lax.scan(step, 0.0, split(k0, 2))
    return (x + bit(sampler, k1, logit * x) - target) ** 2


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [score, rebar, leave_one_out()], ids=["score", "rebar", "loo"])
def test_vmapped_expectation_has_the_variance_of_one_lane(sampler):
    """A sum over 32 lanes has 32 times one lane's variance: no lane sees another's cost."""
    lanes, logit, target = 32, jnp.float32(0.4), jnp.float32(0.7)
    loss = ge.expectation(functools.partial(per_example, sampler))
    one = jax.grad(loss)

    def all_lanes(logit, key):
        targets = jnp.full(lanes, target)
        return jnp.sum(jax.vmap(loss, in_axes=(None, 0, 0))(logit, split(key, lanes), targets))

    of_one = jax.jit(jax.vmap(one, in_axes=(None, 0, None)))(logit, keys(200_000, 1), target)
    of_all = jax.jit(jax.vmap(jax.grad(all_lanes), in_axes=(None, 0)))(logit, keys(20_000))
    variance = np.var(np.asarray(of_one, np.float64))
    assert_variance(np.asarray(of_all, np.float64) / math.sqrt(lanes), variance)
