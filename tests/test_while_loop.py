"""`gradest.while_loop`: programs whose number of steps is random, against exact expectations."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs
from support.programs import assert_unbiased, bit, keys, wrong_score

import gradest as ge
from gradest import distributions as dists

split = jax.random.split


# ---- Gambler's ruin ------------------------------------------------------------------------

GOAL, START, MAX_STEPS = 3, 1, 30
LOGIT = -0.3
SCORE = ge.score_function()


def game(logit, key, sampler=SCORE, after=lambda: None, max_steps=MAX_STEPS):
    """From START up or down by one, until GOAL or 0: (where it ended, after how many steps).

    It goes on after MAX_STEPS once in a million times.
    """

    def play(state):
        fortune, steps, key = state
        key, now = split(key)
        up = bit(sampler, now, logit)
        after()
        return fortune + jnp.where(up > 0.5, 1, -1), steps + 1, key

    in_play = lambda state: (state[0] > 0) & (state[0] < GOAL)
    fortune, steps, _ = ge.while_loop(in_play, play, (START, 0, key), max_steps=max_steps)
    return fortune, steps


def duration(logit, key, **options):
    return jnp.asarray(game(logit, key, **options)[1], float)


def won(logit, key, **options):
    return jnp.asarray(game(logit, key, **options)[0] == GOAL, float)


def steps_as_costs(logit, key, **options):
    game(logit, key, after=lambda: ge.cost(jnp.ones(())), **options)
    return jnp.zeros(())


def exactly(quantity, logit):
    """By the linear equations between the expectations from each fortune."""
    p = jax.nn.sigmoid(logit)
    inner = GOAL - 1
    change = jnp.eye(inner) - p * jnp.eye(inner, k=1) - (1 - p) * jnp.eye(inner, k=-1)
    known = p * jnp.eye(inner)[-1] if quantity is won else jnp.ones(inner)
    return jnp.linalg.solve(change, known)[START - 1]


@functools.cache
def exact(quantity):
    """Value and gradient, and the second derivative."""
    of = functools.partial(exactly, quantity)
    return jax.value_and_grad(of)(LOGIT), jax.grad(jax.grad(of))(LOGIT)


def estimates(loss, num, seed=0):
    grad = jax.value_and_grad(ge.expectation(loss))
    return jax.jit(jax.vmap(grad, in_axes=(None, 0)))(LOGIT, keys(num, seed))


SAMPLERS = {
    "score_function": SCORE,
    "baseline": ge.score_function(baseline=0.5),
    "relax": ge.relax(lambda w, x: w * jnp.sin(x), 0.7),
}


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_exit_side_of_gamblers_ruin(sampler):
    got = estimates(functools.partial(won, sampler=sampler), 10_000)
    assert_unbiased(got, exact(won)[0])


@pytest.mark.statistical
@pytest.mark.parametrize(("loss", "num"), [(duration, 60_000), (steps_as_costs, 25_000)])
def test_duration_of_gamblers_ruin(loss, num):
    assert_unbiased(estimates(loss, num), exact(duration)[0])


@pytest.mark.statistical
def test_gamblers_ruin_with_a_wrong_estimator():
    got = estimates(functools.partial(won, sampler=wrong_score()), 20_000)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, exact(won)[0])


@pytest.mark.statistical
def test_costs_in_the_loop_are_credited_to_earlier_steps_only():
    """The same sum has less variance than at the end."""
    _, at_the_end = estimates(duration, 10_000)
    _, at_each_step = estimates(steps_as_costs, 10_000)
    assert np.var(at_each_step) < 0.6 * np.var(at_the_end)


@pytest.mark.statistical
def test_second_derivative():
    second = jax.grad(jax.grad(ge.expectation(won)))
    got = jax.jit(jax.vmap(second, in_axes=(None, 0)))(LOGIT, keys(60_000))
    assert_unbiased(got, exact(won)[1])


def nested(params, key):
    """Bits until one is 1, two at most; twice, each time from where the first loop came to."""

    def round_of(state):
        n, t, key = state
        key, fixed = split(key)

        def toss(state):
            m, c = state
            # A key that the body closes over.
            x = bit(SCORE, jax.random.fold_in(fixed, m), params[0] + 0.2 * m)
            ge.cost(0.3 * x * (t + 1))
            return m + 1, c + x

        on = lambda state: (state[0] < 2) & (state[1] < 1)
        _, c = ge.while_loop(on, toss, (0, 0.0), max_steps=3)
        return n + 1, t + c * params[1], key

    _, t, _ = ge.while_loop(lambda state: state[0] < 2, round_of, (0, 0.1, key), max_steps=2)
    return t**2


def nested_exactly(draw, params):
    t, total = 0.1, 0.0
    for _ in range(2):
        m, c = 0, 0.0
        while m < 2 and c < 1:
            c += draw(params[0] + 0.2 * m)
            total += 0.3 * c * (t + 1)
            m += 1
        t += c * params[1]
    return total + t**2


@pytest.mark.statistical
def test_loop_in_a_loop():
    params = jnp.array([-0.4, 0.9])
    value, got = programs.estimates(nested, params, 20_000)
    exact_value, want = programs.exact(nested_exactly, params)
    assert_unbiased(value, exact_value)
    assert_unbiased(got, want)
    with pytest.raises(AssertionError):
        assert_unbiased(1.05 * got, want)


@pytest.mark.statistical
def test_games_in_lanes_of_the_loss():
    """As many steps as the longest one takes, in all lanes."""

    @functools.partial(jax.vmap, in_axes=(None, 0))
    def lanes(logit, key):
        return won(logit, key)

    loss = ge.expectation(lambda logit, key: jnp.mean(lanes(logit, split(key, 2))))
    with pytest.warns(UserWarning, match="credited with the whole loss"):
        got = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(LOGIT, keys(40_000))
    assert_unbiased(got, exact(won)[0])


# ---- A Gillespie simulation ----------------------------------------------------------------

FIRST = 2.0


def population(log_rates, key):
    """Into which members come at one rate, and which each leaves at another, up to the time 1.

    The time lived in it by all members is its cost, and the square of its last size.
    """
    log_arrival, log_departure = log_rates
    time_of, kind_of = ge.score_function(baseline=3.0), ge.score_function(baseline=3.0)

    def event(state):
        time, size, key = state
        key, k0, k1 = split(key, 3)
        waiting = time_of(
            k0, dists.Exponential(jnp.exp(log_arrival) + size * jnp.exp(log_departure))
        )
        later = jnp.minimum(time + waiting, 1.0)
        ge.cost(size * (later - time))
        odds = log_arrival - log_departure - jnp.log(jnp.maximum(size, 1.0))
        comes = bit(kind_of, k1, jnp.where(size > 0, odds, 30.0))
        return later, jnp.where(later < 1, size + 2 * comes - 1, size), key

    end = ge.while_loop(lambda state: state[0] < 1, event, (0.0, FIRST, key), max_steps=25)
    return 0.3 * end[1] ** 2


def population_exactly(log_rates):
    """The size is the sum of a Binomial number of the first and a Poisson number of the others."""
    arrival, departure = jnp.exp(log_rates)
    left = jnp.exp(-departure)
    limit = arrival / departure
    mean = FIRST * left + limit * (1 - left)
    variance = FIRST * left * (1 - left) + limit * (1 - left)
    lived = limit + (FIRST - limit) * (1 - left) / departure
    return lived + 0.3 * (variance + mean**2)


@pytest.mark.statistical
def test_gillespie():
    log_rates = jnp.log(jnp.array([1.5, 0.8]))
    grad = jax.value_and_grad(ge.expectation(population))
    got = jax.jit(jax.vmap(grad, in_axes=(None, 0)))(log_rates, keys(100_000))
    assert_unbiased(got, jax.value_and_grad(population_exactly)(log_rates))


# ---- What has not ended --------------------------------------------------------------------


def never(logit, key, sampler=SCORE, after=lambda: None, max_steps=5):
    """A game without an end: floats and integers."""

    def body(state):
        total, count, key = state
        key, now = split(key)
        after()
        return total + bit(sampler, now, logit), count + 1, key

    total, count, _ = ge.while_loop(lambda state: True, body, (0.0, 0, key), max_steps=max_steps)
    return total, count


def never_with_costs(logit, key):
    never(logit, key, after=lambda: ge.cost(jnp.ones(())))
    return logit


UNENDED = {
    "compared float": lambda logit, key: jnp.asarray(never(logit, key)[0] > 2, float),
    "cost": never_with_costs,
    "pathwise": lambda logit, key: never(logit, key, ge.gumbel_softmax(1.0))[1] * logit,
    "in a loop": lambda logit, key: jax.lax.scan(
        lambda total, key: (total + won(logit, key, max_steps=1), None), 0.0, split(key, 6)
    )[0],
    "before a draw that is given the rest": lambda logit, key: (
        never(logit, key)[1] * bit(ge.rebar(), split(key)[0], logit)
    ),
}


@pytest.mark.parametrize("loss", UNENDED.values(), ids=UNENDED)
def test_loss_is_nan_if_a_loop_has_not_ended(loss):
    assert np.isnan(ge.expectation(loss)(0.3, keys(1)[0]))


@pytest.mark.parametrize("position", [0, 1], ids=["float", "integer"])
def test_gradient_is_nan_too(position):
    loss = ge.expectation(lambda logit, key: never(logit, key)[position].astype(float))
    value, gradient = jax.jit(jax.value_and_grad(loss))(0.3, keys(1)[0])
    assert np.isnan(value)
    assert np.isnan(gradient)


def test_loop_that_has_not_ended_is_harmless_where_nothing_depends_on_it():
    loss = ge.expectation(lambda logit, key: (logit**2, never(logit, key)), has_aux=True)
    (value, (total, count)), gradient = jax.value_and_grad(loss, has_aux=True)(0.3, keys(1)[0])
    np.testing.assert_allclose([value, gradient], [0.09, 0.6], rtol=1e-6)
    assert np.isnan(total)
    assert count == 5


def test_only_lanes_that_have_not_ended_are_nan():
    halve = lambda n, max_steps: ge.while_loop(
        lambda x: x > 1, lambda x: x / 2, n, max_steps=max_steps
    )
    run = lambda max_steps: jax.vmap(
        jax.value_and_grad(functools.partial(halve, max_steps=max_steps))
    )(jnp.array([2.0, 8.0, 9.0]))
    np.testing.assert_array_equal(run(4), [[1, 1, 9 / 16], [1 / 2, 1 / 8, 1 / 16]])
    np.testing.assert_array_equal(run(3), [[1, 1, np.nan], [1 / 2, 1 / 8, np.nan]])


# ---- Outside of an expectation -------------------------------------------------------------


def root(a, start=1.0):
    """Of a, by Newton's method."""
    return ge.while_loop(
        lambda x: jnp.abs(x**2 - a) > 1e-5, lambda x: (x + a / x) / 2, start, max_steps=10
    )


def test_derivatives_without_draws():
    a = jnp.float32(2.0)
    np.testing.assert_allclose(root(a), 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(root)(a), 0.5 * 2**-0.5, rtol=1e-4)
    np.testing.assert_allclose(jax.jvp(root, (a,), (a,))[1], 2**-0.5, rtol=1e-4)
    np.testing.assert_allclose(jax.hessian(root)(a), -0.25 * 2**-1.5, rtol=1e-3)


def test_draw_is_refused_outside_of_an_expectation():
    assert duration(0.3, keys(1)[0]) >= 1
    with pytest.raises(ge.UnestimatedGradientError):
        jax.grad(lambda logit: never(logit, keys(1)[0], max_steps=2)[0])(0.3)


def test_types_are_those_of_jax():
    """Python numbers take the type of what they become; every other leaf keeps its own."""
    body = lambda s: {"x": s["x"] + s["y"], "y": s["y"] * 2, "n": s["n"] + 1, "w": s["w"] + 1}
    init = {"x": 0, "y": jnp.ones(2, jnp.bfloat16), "n": np.uint8(0), "w": 0.0}
    init["x"] = jnp.zeros(2, jnp.bfloat16)
    run = lambda loop: loop(lambda s: s["n"] < 3, body, init)
    got = run(functools.partial(ge.while_loop, max_steps=4))
    want = run(jax.lax.while_loop)
    for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(leaf.astype(float), other.astype(float))
        assert leaf.dtype == other.dtype
        assert leaf.weak_type == other.weak_type
    halves = ge.while_loop(lambda x: x < 1, lambda x: x + jnp.float16(0.5), 0, max_steps=2)
    assert halves.dtype == jnp.float16


# ---- Time and memory -----------------------------------------------------------------------


def test_blocks_are_skipped_when_all_lanes_are_over():
    """Of 100 steps those of two blocks of ten take place, if the longest lane needs twelve."""
    seen = []

    def body(x):
        jax.debug.callback(seen.append, x)
        return x - 1

    run = lambda n: ge.while_loop(lambda x: x > 0, body, n, max_steps=100)
    run(jnp.float32(12))
    jax.effects_barrier()
    assert len(seen) == 12
    seen.clear()
    jax.vmap(jax.vmap(run))(jnp.array([[1.0, 2.0], [12.0, 0.0]]))
    jax.effects_barrier()
    assert len(seen) == 4 * 20


def bytes_of_gradient(max_steps):
    """What a gradient through a loop needs beside its arguments and results."""

    def loss(logits, key):
        def body(state):
            x, n, key = state
            key, now = split(key)
            return jnp.sin(x + bit(ge.score_function(), now, logits)), n + 1, key

        return jnp.sum(
            ge.while_loop(lambda state: state[1] < 50, body, (logits, 0, key), max_steps=max_steps)[
                0
            ]
        )

    grad = jax.jit(jax.grad(ge.expectation(loss)))
    compiled = grad.lower(jnp.zeros(1_000), keys(1)[0]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_as_the_root_of_max_steps():
    assert bytes_of_gradient(10_000) < 5.5 * bytes_of_gradient(400)


# ---- Messages ------------------------------------------------------------------------------


def count(init_val=0, cond_fun=lambda n: n < 3, body_fun=lambda n: n + 1, max_steps=5):
    return ge.while_loop(cond_fun, body_fun, init_val, max_steps=max_steps)


STATE = {"a": [jnp.zeros(2), 0]}
WRONG = {
    "no steps": ({"max_steps": 0}, ValueError, "max_steps: expected an integer of at least 1"),
    "half a step": ({"max_steps": 2.5}, TypeError, "max_steps: expected an integer .* got 2.5"),
    "type": (
        {"body_fun": lambda n: n.astype(float), "init_val": jnp.int32(0)},
        TypeError,
        r"body_fun: .* but init_val is int32\[\] and becomes float32\[\]\. Give init_val",
    ),
    "shape of a leaf": (
        {
            "init_val": STATE,
            "cond_fun": lambda s: s["a"][1] < 3,
            "body_fun": lambda s: {"a": [s["a"][0][:1], s["a"][1] + 1]},
        },
        TypeError,
        r"init_val\['a'\]\[0\] is float32\[2\] and becomes float32\[1\]",
    ),
    "structure": (
        {"init_val": (0, 0), "cond_fun": lambda s: s[0] < 3, "body_fun": lambda s: s[:1]},
        TypeError,
        "body_fun: expected its result to have the structure of init_val",
    ),
    "number for a condition": ({"cond_fun": lambda n: n}, TypeError, r"cond_fun: .* int32\[\]"),
    "many conditions": (
        {"init_val": jnp.zeros(2), "cond_fun": lambda x: x < 3},
        TypeError,
        r"cond_fun: expected a boolean scalar, got bool\[2\]\. .* vmap the loop",
    ),
    "no condition": ({"cond_fun": lambda n: None}, TypeError, "cond_fun: .* got a NoneType"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        count(**arguments)


def test_traced_number_of_steps():
    with pytest.raises(TypeError, match="max_steps: expected a Python integer, got a traced"):
        jax.jit(lambda n: count(max_steps=n))(3)


def test_estimator_that_needs_the_rest_of_the_program():
    message = re.escape("use score_function with one sample")
    with pytest.raises(NotImplementedError, match=message):
        ge.expectation(functools.partial(won, sampler=ge.rebar()))(0.3, keys(1)[0])
