"""Losses with control flow around their draws, against the programs' exact expectations."""

import functools
import gc
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs
from support.programs import (
    assert_exact_on_average,
    assert_unbiased,
    bit,
    keys,
    leave_one_out,
    with_factor,
)

import gradest as ge
from gradest import distributions as dists

score, rebar, enumeration = ge.score_function(), ge.rebar(), ge.enumeration()
split = jax.random.split


def params():
    return {"a": jnp.array([0.4, -0.6, 0.8]), "w": jnp.array([0.9, -0.7])}


# ---- Branches ------------------------------------------------------------------------------


def cost(w, x, y, z):
    return (w[0] * x + w[1] * y - z + 0.4) ** 2 + jnp.sin(w[0] + y * z) + 0.5 * x * y


def estimators_in_branches(first, second, third):
    """A cond whose branches draw by different estimators, after a draw and before one."""

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2, k3 = split(key, 4)
        x = bit(score, k0, a[0])
        y = jax.lax.cond(
            x > 0.5,
            lambda w: 1.5 * bit(first, k1, a[1] + w[0]) - 0.5,
            lambda w: bit(second, k2, a[2] * w[1]),
            w,
        )
        return cost(w, x, y, bit(third, k3, a[0] * y + 0.3))

    return loss


def estimators_in_branches_exactly(draw, params):
    a, w = params["a"], params["w"]
    x = draw(a[0])
    y = 1.5 * draw(a[1] + w[0]) - 0.5 if x else draw(a[2] * w[1])
    return cost(w, x, y, draw(a[0] * y + 0.3))


BRANCHES = {
    "score_function": (score, score, score),
    "rebar, enumeration": (rebar, enumeration, score),
    "rebar, leave_one_out": (rebar, leave_one_out(), rebar),
    "score_function, rebar": (score, rebar, leave_one_out()),
}


@functools.cache
def exact_cond():
    return programs.exact(estimators_in_branches_exactly, params())


@pytest.mark.statistical
@pytest.mark.parametrize("samplers", BRANCHES.values(), ids=BRANCHES)
def test_cond(samplers):
    got = programs.estimates(estimators_in_branches(*samplers), params(), 100_000)
    assert_unbiased(got, exact_cond())


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["score_function", "rebar, leave_one_out"])
def test_cond_with_a_wrong_estimator(name):
    def loss(params, factors, key):
        return estimators_in_branches(*map(with_factor, BRANCHES[name], factors))(params, key)

    run = jax.jit(jax.vmap(jax.value_and_grad(ge.expectation(loss)), in_axes=(None, None, 0)))
    for position in range(3):
        factors = jnp.ones(3).at[position].set(1.4)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(run(params(), factors, keys(100_000)), exact_cond())


@pytest.mark.statistical
def test_switch_with_draws_in_some_branches():
    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2, k3 = split(key, 4)
        x, y = bit(score, k0, a[0]), bit(rebar, k1, a[1])

        def two_draws():
            u = bit(leave_one_out(), k2, a[2])
            return u + bit(score, k3, a[0] + u) * w[1]

        index = jnp.where(x > 0.5, 2, jnp.where(a[0] > 0, 0, 1))
        z = jax.lax.switch(
            index, [lambda: w[0] ** 2, lambda: bit(enumeration, k2, a[2]), two_draws]
        )
        return cost(w, x, y, z)

    def program(positive, draw, params):
        a, w = params["a"], params["w"]
        x, y = draw(a[0]), draw(a[1])
        if x:
            u = draw(a[2])
            z = u + draw(a[0] + u) * w[1]
        else:
            z = w[0] ** 2 if positive else draw(a[2])
        return cost(w, x, y, z)

    run = jax.jit(jax.vmap(jax.value_and_grad(ge.expectation(loss)), in_axes=(None, 0)))
    for sign in (1.0, -1.0):
        start = {**params(), "a": params()["a"].at[0].multiply(sign)}
        exact = programs.exact(functools.partial(program, sign > 0), start)
        assert_unbiased(run(start, keys(100_000)), exact)


@pytest.mark.statistical
def test_two_conds_in_sequence():
    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2, k3 = split(key, 4)
        x = bit(score, k0, a[0])
        y = jax.lax.cond(x > 0.5, lambda: bit(rebar, k1, a[1]), lambda: w[0])
        z = jax.lax.cond(
            x > 0.5, lambda: bit(leave_one_out(), k2, a[2] * y), lambda: bit(score, k3, w[1] + y)
        )
        return cost(w, x, y, z)

    def program(draw, params):
        a, w = params["a"], params["w"]
        x = draw(a[0])
        y = draw(a[1]) if x else w[0]
        return cost(w, x, y, draw(a[2] * y if x else w[1] + y))

    start = {"a": jnp.array([0.4, 0.9, 0.8]), "w": jnp.array([1.2, 1.1])}
    assert_exact_on_average(loss, program, start, 50_000)


# ---- Loops ---------------------------------------------------------------------------------


def walk(params, key, body=lambda step: step, **options):
    """Two dependent draws per step, the second one's parameter from the carry; ys are used."""
    a, w = params["a"], params["w"]

    @body
    def step(carry, x):
        key, weight = x
        k0, k1 = split(key)
        up = bit(score, k0, a[0] - carry["position"])
        far = bit(score, k1, a[1] * up + w[0] * carry["position"])
        position = carry["position"] + weight * (up - far)
        return {"position": position, "steps": carry["steps"] + 1}, position * far

    start = {"position": a[2], "steps": 0}
    weights = jnp.array([0.7, 1.1, -0.5])
    end, ys = jax.lax.scan(step, start, (split(key, 3), weights), **options)
    return (end["position"] - w[1]) ** 2 + jnp.sum(jnp.sin(ys)) + end["steps"].astype(float)


def walk_exactly(draw, params, reverse=False):
    a, w = params["a"], params["w"]
    position, total = a[2], 3.0
    weights = [0.7, 1.1, -0.5]
    for weight in reversed(weights) if reverse else weights:
        up = draw(a[0] - position)
        far = draw(a[1] * up + w[0] * position)
        position = position + weight * (up - far)
        total += jnp.sin(position * far)
    return total + (position - w[1]) ** 2


LOOPS = {
    "forward": {},
    "unroll, checkpoint": {"unroll": 2, "body": jax.checkpoint},
    "reverse, jit": {"reverse": True, "body": jax.jit},
}


@functools.cache
def exact_walk(reverse):
    return programs.exact(functools.partial(walk_exactly, reverse=reverse), params())


@pytest.mark.statistical
@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_scan(options):
    got = programs.estimates(functools.partial(walk, **options), params(), 100_000)
    assert_unbiased(got, exact_walk(options.get("reverse", False)))


@pytest.mark.statistical
def test_scan_with_a_wrong_estimator(monkeypatch):
    monkeypatch.setitem(globals(), "score", programs.wrong_score())
    got = programs.estimates(walk, params(), 100_000)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, exact_walk(False))


@pytest.mark.statistical
def test_scan_in_scan_without_xs():
    """The inner loop runs backwards, the outer one has neither xs nor ys."""

    def loss(params, key):
        a, w = params["a"], params["w"]

        def outer(carry, _):
            key, position = carry
            key, *inner_keys = split(key, 3)

            def inner(position, x):
                key, weight = x
                return position + weight * bit(score, key, a[0] * position + a[1]), None

            xs = jnp.stack(inner_keys), jnp.array([0.8, -0.6])
            position, _ = jax.lax.scan(inner, position, xs, reverse=True)
            return (key, position - a[2] * bit(score, key, position)), None

        (_, position), _ = jax.lax.scan(outer, (key, w[0]), None, length=2)
        return (position - w[1]) ** 2

    def program(draw, params):
        a, w = params["a"], params["w"]
        position = w[0]
        for _ in range(2):
            for weight in (-0.6, 0.8):
                position = position + weight * draw(a[0] * position + a[1])
            position = position - a[2] * draw(position)
        return (position - w[1]) ** 2

    assert_exact_on_average(loss, program, params(), 50_000)


@pytest.mark.statistical
def test_cond_in_scan_in_cond():
    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2 = split(key, 3)

        def step(position, key):
            k0, k1 = split(key)
            jump = jax.lax.cond(
                position > 0.2, lambda: bit(score, k0, a[0]) - 0.6, lambda: bit(score, k1, a[1])
            )
            return position + jump, jump

        def loop():
            position, jumps = jax.lax.scan(step, 0.9, split(k1, 3))
            return w[0] * position + jnp.prod(jumps)

        x = bit(rebar, k0, a[2])
        y = jax.lax.cond(a[0] > 0, loop, lambda: bit(rebar, k1, a[1]))
        return cost(w, x, y, bit(enumeration, k2, x - y))

    def program(draw, params):
        a, w = params["a"], params["w"]
        x, position, product = draw(a[2]), 0.9, 1.0
        for _ in range(3):
            jump = draw(a[0]) - 0.6 if position > 0.2 else draw(a[1])
            position, product = position + jump, product * jump
        y = w[0] * position + product
        return cost(w, x, y, draw(x - y))

    assert_exact_on_average(loss, program, params())


@pytest.mark.statistical
def test_fori_loop_and_map():
    """Loops by other names."""

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1 = split(key)
        ks = split(k0, 2)
        x = jax.lax.fori_loop(0, 2, lambda i, x: x + bit(score, ks[i], a[0] + x), 0.0)
        ys = jax.lax.map(lambda k: bit(score, k, a[1] * x), split(k1, 2))
        return cost(w, x, ys[0], ys[1])

    def program(draw, params):
        a, w = params["a"], params["w"]
        x = draw(a[0])
        x = x + draw(a[0] + x)
        return cost(w, x, draw(a[1] * x), draw(a[1] * x))

    assert_exact_on_average(loss, program, params(), 100_000)


@pytest.mark.statistical
def test_draws_after_a_loop():
    """Estimators that need what follows them, after a loop that does not."""

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2 = split(key, 3)
        step = lambda x, k: (x + bit(score, k, a[0] - x), None)
        x, _ = jax.lax.scan(step, 0.0, split(k0, 2))
        y = bit(leave_one_out(), k1, a[1] * x)
        return cost(w, x, y, bit(rebar, k2, a[2] - y))

    def program(draw, params):
        a, w = params["a"], params["w"]
        x = draw(a[0])
        x = x + draw(a[0] - x)
        y = draw(a[1] * x)
        return cost(w, x, y, draw(a[2] - y))

    assert_exact_on_average(loss, program, params(), 100_000)


@pytest.mark.statistical
def test_a_loop_in_the_cost():
    """Its last carry and its ys, by an estimator that itself differentiates the cost."""

    def accumulated(w, x):
        step = lambda carry, weight: (carry + weight * x, carry * weight)
        carry, ys = jax.lax.scan(step, w[0], jnp.array([0.7, 1.1, -0.5]))
        return (carry - w[1]) ** 2 + jnp.sum(jnp.sin(ys))

    def loss(params, key):
        expected = lambda cost: rebar.expect(key, dists.Bernoulli(params["a"][0]), cost)
        return expected(functools.partial(accumulated, params["w"])) + jnp.sum(params["a"][1:])

    def program(draw, params):
        return accumulated(params["w"], draw(params["a"][0])) + jnp.sum(params["a"][1:])

    assert_exact_on_average(loss, program, params(), 20_000)


def test_many_draws_in_straight_line_code():
    """A hundred of them are not a hundred calls deep."""

    def loss(logits, key):
        xs = [bit(score, k, l) for k, l in zip(split(key, 100), logits, strict=True)]
        return sum(xs[:3]) ** 2

    assert jax.jit(jax.grad(ge.expectation(loss)))(jnp.zeros(100), keys(1)[0]).shape == (100,)


@pytest.mark.statistical
def test_pathwise_draws_in_loops():
    """They are differentiated by JAX, in a while_loop too, and may surround others."""

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2 = split(key, 3)
        normal = ge.reparameterize()
        step = lambda x, k: (x + normal(k, dists.Normal(a[0], 0.3)), None)
        x, _ = jax.lax.scan(step, w[0], split(k0, 2))
        first = lambda s: (s[0] + 1, s[1] + normal(k1, dists.Normal(0.0, 1.0)))
        _, noise = jax.lax.while_loop(lambda s: s[0] < 2, first, (0, 0.0))
        return (x - bit(score, k2, a[1])) ** 2 + 0.1 * noise

    # x ~ Normal(w0 + 2 a0, 0.3^2 * 2).
    def expected(params):
        a, w = params["a"], params["w"]
        p = jax.nn.sigmoid(a[1])
        mean = w[0] + 2 * a[0]
        return p * (mean - 1) ** 2 + (1 - p) * mean**2 + 2 * 0.3**2

    want = jax.value_and_grad(expected)(params())
    assert_unbiased(programs.estimates(loss, params(), 20_000), want)


def bytes_of_scan(draw):
    """Of temporaries of the gradient through a thousand checkpointed steps of a network."""

    def loss(w, key):
        @jax.checkpoint
        def step(x, key):
            x = jnp.tanh(jnp.tanh(x @ w) @ w) + draw(key, x)
            return x, jnp.sum(x)

        x, ys = jax.lax.scan(step, jnp.ones(64), split(key, 1000))
        return jnp.sum(x) + jnp.sum(ys)

    compiled = jax.jit(jax.grad(ge.expectation(loss))).lower(jnp.eye(64), keys(1)[0]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def bytes_of_scan_without_draws():
    return bytes_of_scan(lambda key, x: 0.0)


OF_THE_STATE = {
    "score_function": lambda x: score,
    "baseline": lambda x: ge.score_function(baseline=jnp.sum(x)),
    "relax": lambda x: ge.relax(lambda x, b: jnp.sum(jnp.sin(x * b)), x),
}


@pytest.mark.parametrize("sampler", OF_THE_STATE.values(), ids=OF_THE_STATE)
def test_memory_of_a_checkpointed_scan(sampler):
    """A step keeps its key and two sums more, beside its state of 64 numbers."""
    drawing = bytes_of_scan(lambda key, x: bit(sampler(x), key, x))
    assert drawing < 1.15 * bytes_of_scan_without_draws()


def test_memory_of_a_scan_of_categories():
    """A step keeps a number for each category, as by hand, and no mask besides."""
    steps, categories = 100, 2000

    def loss(w, key):
        def step(x, key):
            draw = score(key, dists.Categorical(w * x))
            return jnp.cos(x + draw.astype(float)), None

        return jax.lax.scan(step, 1.0, split(key, steps))[0]

    gradient = jax.jit(jax.grad(ge.expectation(loss)))
    compiled = gradient.lower(jnp.zeros(categories), keys(1)[0]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.15 * 4 * steps * categories


# ---- Functions that are called -------------------------------------------------------------


def called(function):
    """A function with a draw in it, called twice: its own draw, and what it returns."""

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1 = split(key)
        x = function(a[:2], k0)
        return cost(w, x, function(a[1:] * x, k1), w[1])

    return loss


def called_exactly(draw, params):
    a, w = params["a"], params["w"]
    f = lambda a: draw(a[0]) * a[1] + a[0]
    x = f(a[:2])
    return cost(w, x, f(a[1:] * x), w[1])


def draws(sampler):
    return lambda a, key: bit(sampler, key, a[0]) * a[1] + a[0]


def with_custom_vjp(function):
    """Whose own rule is as right as the one that JAX would find."""
    f = jax.custom_vjp(function)
    f.defvjp(lambda a, key: jax.vjp(function, a, key), lambda vjp, ct: vjp(ct))
    return f


def with_custom_jvp(function):
    f = jax.custom_jvp(function)
    f.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return f


CALLS = {
    "jit of jit": lambda f: jax.jit(jax.jit(f)),
    "checkpoint with a policy": lambda f: jax.checkpoint(
        f, policy=jax.checkpoint_policies.everything_saveable
    ),
    "named_call": jax.named_call,
    "custom_vjp": with_custom_vjp,
    "custom_jvp": with_custom_jvp,
    "scan of length 1": lambda f: (
        lambda a, key: jax.lax.scan(lambda _, key: (None, f(a, key)), None, key[None])[1][0]
    ),
}


def gradients_with_calls(call, samplers):
    """Of a loss that makes three of them: a draw in each, whose parameter the last one returned."""
    first, second, third = (call(draws(sampler)) for sampler in samplers)

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1, k2 = split(key, 3)
        x = first(a[:2], k0)
        y = second(a[1:] * x, k1)
        return cost(w, x, y, third(a[1:] * y, k2))

    return programs.estimates(loss, params(), 100)


@functools.cache
def gradients_without_calls(samplers):
    return gradients_with_calls(lambda f: f, samplers)


@pytest.mark.filterwarnings("ignore:.*a derivative rule of its own")
@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    """A call is as good as its body, by any estimator and to the last bit."""
    samplers = (score, score, score) if "scan" in name else (score, leave_one_out(), rebar)
    got, want = gradients_with_calls(CALLS[name], samplers), gradients_without_calls(samplers)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, want)


@pytest.mark.parametrize("sampler", [score, rebar], ids=["score", "rebar"])
@pytest.mark.parametrize("rule", [with_custom_vjp, with_custom_jvp])
def test_a_rule_around_a_draw_is_said_to_be_unused(rule, sampler):
    """Once for the draw, with its place; a rule around anything else is as it was."""
    harmless = with_custom_jvp(lambda a, key: a + jax.random.uniform(key))
    for function, number in {rule(draws(sampler)): 1, harmless: 0}.items():
        loss = lambda a, keys, f=function: jnp.sum(f(a, keys[0])) + bit(score, keys[1], a[0])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.make_jaxpr(ge.expectation(loss))(jnp.ones(2), keys(2))
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == number
        assert all(f"(at {programs.__file__}:" in m for m in messages)


def test_checkpoint_around_a_step_is_kept():
    """A scan whose steps are recomputed needs the memory of one, draws in it or not."""

    def memory(around):
        def loss(w, key):
            @around
            def step(x, key):
                for _ in range(8):
                    x = jnp.tanh(x @ w)
                return x + 0.1 * bit(score, key, x), None

            x, _ = jax.lax.scan(step, jnp.ones((16, 16)), split(key, 50))
            return jnp.sum(x**2)

        gradient = jax.jit(jax.grad(ge.expectation(loss))).lower(jnp.eye(16), keys(1)[0]).compile()
        return gradient.memory_analysis().temp_size_in_bytes, gradient(jnp.eye(16), keys(1)[0])

    (kept, want), (recomputed, got) = memory(lambda step: step), memory(jax.checkpoint)
    assert recomputed < kept / 4
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.max(np.abs(want)))


@pytest.mark.parametrize("num", [200, 400])
def test_too_many_draws_in_sequence(num):
    def loss(logit, key):
        draw = lambda key: bit(ge.muprop(), key, logit)
        return sum(map(draw, split(key, num)))

    with pytest.raises(RecursionError, match=f"expectation: {num} draws .*setrecursionlimit"):
        jax.eval_shape(ge.expectation(loss), 0.0, keys(1)[0])


@pytest.mark.statistical
def test_a_called_function_is_estimated():
    assert_exact_on_average(called(draws(rebar)), called_exactly, params(), 20_000)


def test_jitted_function_is_its_own_outside_of_the_expectation():
    """JAX caches what it traced: inside and outside must not see each other's."""
    traces = []

    @jax.jit
    def function(a, key):
        traces.append(None)
        return bit(score, key, a[0]) * a[1] + a[0]

    a, key = params()["a"][:2], keys(1)[0]
    loss = ge.expectation(called(function))
    before = function(a, key)
    first = jax.grad(loss)(params(), key)
    between = jax.vmap(function, in_axes=(None, 0))(a, key[None])[0]
    second = jax.grad(loss)(params(), key)
    assert before == between == function(a, key)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    with pytest.raises(ge.UnestimatedGradientError):
        jax.grad(function)(a, key)
    assert len(traces) <= 3


# ---- Lanes ---------------------------------------------------------------------------------


LANES = {
    "last axis": lambda draw, ks, l: jax.vmap(draw, in_axes=(0, -1), out_axes=-1)(ks[:, 0], l),
    "shared": lambda draw, ks, l: jax.vmap(draw, in_axes=(0, None))(ks[:, 0], l[0]),
    "swapped": lambda draw, ks, l: jax.vmap(jax.vmap(draw), in_axes=1, out_axes=1)(ks, l),
}
SAMPLERS = {"score": score, "rebar": rebar, "loo": leave_one_out(), "enumeration": enumeration}


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:.*credited with the whole loss:UserWarning")
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("lanes", LANES)
def test_vmap_of_a_draw(lanes, sampler):
    """The joint draw of all lanes, whichever axes they are on."""

    def logits(params):
        a, w = params["a"][:2], params["w"]
        return jnp.stack([a, a if lanes == "shared" else w])

    def loss(params, key):
        draw = lambda key, l: bit(sampler, key, l)
        x = LANES[lanes](draw, split(key, (2, 2)), logits(params))
        return cost(params["w"], x[0, 0], x[0, 1], x[1, 0] - 0.4 * x[1, 1])

    def program(draw, params):
        x = [[draw(l) for l in row] for row in logits(params)]
        return cost(params["w"], x[0][0], x[0][1], x[1][0] - 0.4 * x[1][1])

    if sampler is enumeration:
        got, want = programs.estimates(loss, params(), 1), programs.exact(program, params())
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g[0], w, rtol=1e-4), got, want)
    else:
        num = 400_000 if sampler is score else 100_000
        assert_exact_on_average(loss, program, params(), num)


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:.*credited with the whole loss:UserWarning")
def test_vmap_of_control_flow():
    """A vmapped cond is a select, a vmapped scan a scan of vmapped steps."""

    def loss(params, key):
        a, w = params["a"], params["w"]

        def step(x, key):
            k0, k1 = split(key)
            y = jax.lax.cond(
                x > 0.5, lambda: bit(score, k0, a[1]) - 0.5, lambda: bit(score, k1, a[2] * w[1])
            )
            return x * y + w[0], y

        def lane(key):
            k0, k1 = split(key)
            return jax.lax.scan(step, bit(score, k0, a[0]), split(k1, 1))[0]

        return jnp.prod(jax.vmap(lane)(split(key, 2)) - 0.3) ** 2

    def program(draw, params):
        a, w = params["a"], params["w"]

        def lane():
            x = draw(a[0])
            return x * (draw(a[1]) - 0.5 if x else draw(a[2] * w[1])) + w[0]

        return ((lane() - 0.3) * (lane() - 0.3)) ** 2

    assert_exact_on_average(loss, program, params(), 100_000)


# ---- Draws that nothing uses ---------------------------------------------------------------


def in_straight_line(draw, key):
    draw(key)
    return 1.0


def in_a_call(draw, key):
    return jax.jit(lambda key: (draw(key), jnp.float32(1.0)))(key)[1]


def in_a_branch(draw, key):
    branch = lambda key: (draw(key), jnp.float32(1.0))
    return jax.lax.cond(key is not None, branch, lambda _: (0.0, jnp.float32(2.0)), key)[1]


def in_a_scan(draw, key):
    step = lambda carry, key: ((carry[0] + draw(key), carry[1] * 1.5), draw(key))
    return jax.lax.scan(step, (0.0, 1.0), split(key, 2))[0][1]


def in_a_scan_in_a_scan(draw, key):
    step = lambda carry, key: (carry * in_a_scan(draw, key), draw(key))
    return jax.lax.scan(step, 1.0, split(key, 2))[0]


def in_a_while_loop(draw, key):
    def body(state):
        i, count, x, key = state
        key, now = split(key)
        return i + 1, count + draw(now), x * 1.5, key

    return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, 0.0, 1.0, key))[2]


UNUSED = (
    in_straight_line,
    in_a_call,
    in_a_branch,
    in_a_scan,
    in_a_scan_in_a_scan,
    in_a_while_loop,
)


@pytest.mark.parametrize("sampler", [score, rebar], ids=["score", "rebar"])
@pytest.mark.parametrize("place", UNUSED)
def test_unused_draw_costs_nothing(place, sampler):
    """Nor does it raise, wherever it is; no random bits are left in the program."""

    def loss(logit, key):
        return logit**2 * place(lambda key: bit(sampler, key, logit), key)

    grad = jax.value_and_grad(ge.expectation(loss))
    logit, key = jnp.float32(0.3), keys(1)[0]
    assert "random_unwrap" not in str(jax.make_jaxpr(grad)(logit, key))
    value, got = grad(logit, key)
    np.testing.assert_allclose(got, 2 * value / logit, rtol=1e-6)


def test_used_draw_does_cost():
    """What the test above looks for is there when it should be."""
    loss = ge.expectation(lambda logit, key: bit(score, key, logit))
    assert "random_unwrap" in str(jax.make_jaxpr(loss)(jnp.float32(0.3), keys(1)[0]))


def test_unused_draw_is_not_credited():
    """In a program with others, which are the only ones that the gradient knows of."""

    def loss(sampler, params, key):
        k0, k1 = split(key)
        step = lambda x, k: (x + bit(score, k, params["a"][0]), bit(sampler, k, params["a"][1]))
        x, _ = jax.lax.scan(step, 0.0, split(k0, 2))
        return (x - bit(rebar, k1, params["w"][0])) ** 2

    run = lambda sampler: programs.estimates(functools.partial(loss, sampler), params(), 50)
    dead, pathwise = run(rebar), run(ge.straight_through())
    jax.tree.map(np.testing.assert_array_equal, dead, pathwise)
    assert not np.any(dead[1]["a"][:, 1])


def test_aux_output_may_hold_any_draw():
    """Of a draw by an estimator that no loop supports, in a while_loop, for a metric only."""

    def loss(logit, key):
        k0, k1 = split(key)
        metric = jax.lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + bit(rebar, k0, logit)), (0, 0.0)
        )[1]
        ge.cost(logit)
        return (bit(score, k1, logit) - 0.3) ** 2, {"metric": metric, "key": k0}

    run = jax.jit(jax.value_and_grad(ge.expectation(loss, has_aux=True), has_aux=True))
    (value, aux), gradient = run(jnp.float32(0.3), keys(1)[0])
    assert float(aux["metric"]) in (0.0, 3.0)
    assert jnp.isfinite(value)
    assert gradient != 0


def test_effects_happen_once():
    """Beside auxiliary output too, which is that of another run."""
    seen = []

    def loss(logit, key):
        x = bit(score, key, logit)
        jax.debug.callback(seen.append, x)
        return (x - 0.3) ** 2, x

    run = jax.jit(jax.value_and_grad(ge.expectation(loss, has_aux=True), has_aux=True))
    (_, aux), _ = run(jnp.float32(0.3), keys(1)[0])
    jax.effects_barrier()
    assert seen == [aux]


# ---- Arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [0.3, jnp.float32(0.3)], ids=["float", "array"])
def test_numbers_that_are_no_arrays(logit):
    """As a parameter, of a draw that has constant ones, and among the auxiliary output."""

    def loss(logit, key):
        k0, k1 = split(key)
        x = bit(score, k0, logit) + bit(score, k1, 0.0)
        return x, {"logit": logit, "number": 3, "key": key, "draw": x}

    run = jax.value_and_grad(ge.expectation(loss, has_aux=True), has_aux=True)
    (_, aux), gradient = run(logit, keys(1)[0])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(aux))
    assert aux["number"] == 3
    assert jnp.isfinite(gradient)


class Network(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(jnp.tanh(x))


def test_arguments_that_are_not_arrays_are_static():
    """Strings, None, Python numbers, functions and flax modules, by position or by name."""

    def loss(network, variables, key, kind, power, *, activation, scale=None):
        assert kind == "bernoulli"
        assert scale is None
        assert isinstance(power, int)
        logits = activation(network.apply(variables, jnp.array([0.3, -0.5])))
        return jnp.sum(bit(score, key, logits) - 0.3) ** power

    network, key = Network(2), keys(1)[0]
    variables = network.init(key, jnp.zeros(2))
    rest = (variables, key, "bernoulli", 2)
    grad = jax.grad(ge.expectation(loss), argnums=1)
    eager = grad(network, *rest, activation=jnp.tanh)
    jitted = jax.jit(grad, static_argnums=(0, 3, 4), static_argnames="activation")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, jitted(network, *rest, activation=jnp.tanh), eager)
    assert jax.tree.structure(eager) == jax.tree.structure(variables)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(eager))


def test_closures_over_tracers():
    """What the loss closes over is differentiated, mapped and compiled like its arguments."""
    by_argument = ge.expectation(estimators_in_branches(score, score, rebar))

    def by_closure(params, key):
        loss = estimators_in_branches(score, score, rebar)
        return ge.expectation(lambda key: loss(params, key))(key)

    def by_closure_in_a_call(params, key):
        loss = estimators_in_branches(score, score, rebar)
        return ge.expectation(jax.jit(lambda key: loss(params, key)))(key)

    @jax.jit
    def gradients(params, keys):
        losses = (by_argument, by_closure, by_closure_in_a_call)
        return [jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, keys) for loss in losses]

    want, *others = gradients(params(), keys(50))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for got in others:
        jax.tree.map(close, got, want)


@pytest.mark.statistical
def test_expectation_in_an_expectation():
    """The inner one estimates its own draws; to the outer one it is a function like any other."""

    def inner(logit, key):
        ge.cost(0.5 * logit)
        return (bit(rebar, key, logit) - 0.4) ** 2

    def loss(params, key):
        k0, k1 = split(key)
        x = bit(score, k0, params["a"][0])
        ge.cost(x * params["w"][0])
        return x * ge.expectation(inner)(params["a"][1] + x, k1)

    def program(draw, params):
        x = draw(params["a"][0])
        logit = params["a"][1] + x
        return x * (0.5 * logit + (draw(logit) - 0.4) ** 2) + x * params["w"][0]

    assert_exact_on_average(loss, program, params(), 20_000)


# ---- JAX's own checks ----------------------------------------------------------------------


def everything(params, key):
    k0, k1, k2 = split(key, 3)
    x = estimators_in_branches(score, rebar, leave_one_out())(params, k0)
    ge.cost(x)
    return walk(params, k1) + x * bit(rebar, k2, params["a"][0])


def test_no_key_is_used_twice_by_accident():
    with jax.debug_key_reuse(True):
        jax.jit(jax.grad(ge.expectation(everything))).trace(params(), keys(1)[0])
        twice = ge.expectation(lambda a, key: bit(score, key, a) * bit(score, key, a))
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(twice).trace(jnp.float32(0.3), keys(1)[0])


def test_no_tracer_leaks():
    # Every trace ends with a search of the whole heap: what is there already is left out of it.
    gc.collect()
    gc.freeze()
    try:
        with jax.check_tracer_leaks():
            jax.jit(jax.grad(ge.expectation(everything))).trace(params(), keys(1)[0])
    finally:
        gc.unfreeze()


def test_no_needless_retracing():
    traces = []

    @jax.jit
    def step(params, key):
        traces.append(None)
        sampler = ge.rebar(jax.nn.softplus(params["w"][0]))
        loss = lambda params, key: (bit(sampler, key, params["a"][0]) - 0.4) ** 2
        return jax.grad(ge.expectation(loss))(params, key)

    for i, key in enumerate(keys(3)):
        step({**params(), "w": params()["w"] + i}, key)
    assert len(traces) == 1


def test_costs_of_lower_precision():
    """The loss's type is the result's, whatever that of costs and draws."""
    for make in (score, rebar):

        def loss(a, key, make=make):
            ge.cost(a)
            return (bit(make, key, a) ** 2).astype(jnp.bfloat16)

        value, gradient = jax.value_and_grad(ge.expectation(loss))(jnp.float32(0.3), keys(1)[0])
        assert value.dtype == jnp.bfloat16
        assert gradient.dtype == jnp.float32
