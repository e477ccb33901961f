"""The mean over many samples: the same however it is cut up, in the memory of one chunk."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.estimates import assert_unbiased, oracles

import gradest as ge
from gradest.distributions import Bernoulli

W = jnp.array([0.4, -0.7, 1.2])


def noisy(key, w):
    """A nonlinear function of the parameters and of the noise."""
    return jnp.sum(jnp.sin(w * jax.random.normal(key, w.shape))) ** 2 + w[0]


def by_hand(fn, key, num, *args):
    """The mean over the same keys, one after the other."""
    results = [fn(jax.random.fold_in(key, i), *args) for i in range(num)]
    return jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *results)


# ---- The mean --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 5, 7, 20, 100, None])
def test_value_and_gradient_are_the_means_over_the_keys(chunk_size):
    key, num = jax.random.key(0), 20
    one = jax.jit(jax.value_and_grad(noisy, argnums=1))
    value, gradient = by_hand(one, key, num, W)
    mean = ge.monte_carlo(noisy, num, chunk_size)
    got_value, got_gradient = jax.jit(jax.value_and_grad(mean, argnums=1))(key, W)
    np.testing.assert_allclose(got_value, value, rtol=1e-5)
    np.testing.assert_allclose(got_gradient, gradient, rtol=1e-5)


def test_another_key_gives_other_samples():
    mean = ge.monte_carlo(noisy, 20)
    assert mean(jax.random.key(0), W) != mean(jax.random.key(1), W)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_tree_of_results_keeps_its_structure_and_types(chunk_size):
    def fn(key, scale):
        x = jax.random.normal(key, (4,))
        return {"x": scale * x, "half": (x[0].astype(jnp.bfloat16), jnp.float16(2.0)), "none": None}

    key = jax.random.key(0)
    got = ge.monte_carlo(fn, 10, chunk_size)(key, 3.0)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == {
        "x": ((4,), jnp.float32),
        "half": (((), jnp.bfloat16), ((), jnp.float16)),
        "none": None,
    }
    np.testing.assert_allclose(got["x"], by_hand(fn, key, 10, 3.0)["x"], rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 64])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_means_are_summed_in_single_precision(dtype, chunk_size):
    """As are the gradients: in half precision a sum of ones stops growing at 256 or 2048."""
    mean = ge.monte_carlo(lambda key, x: x, 4096, chunk_size)
    value, gradient = jax.value_and_grad(mean, argnums=1)(jax.random.key(0), dtype(1.0))
    assert (value, gradient) == (1, 1)
    assert value.dtype == gradient.dtype == dtype


def test_double_precision(x64):
    mean = ge.monte_carlo(noisy, 20, 7)
    w = jnp.asarray(W, jnp.float64)
    value = mean(jax.random.key(0), w)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, by_hand(noisy, jax.random.key(0), 20, w), rtol=1e-13)


def test_legacy_keys_reach_the_function_as_they_came():
    def fn(key, w):
        assert (jnp.shape(key) == (2,)) == legacy
        return noisy(key, w)

    results = []
    for legacy, make in ((False, jax.random.key), (True, jax.random.PRNGKey)):  # noqa: B007
        results.append(ge.monte_carlo(fn, 8, 3)(make(3), W))
    assert results[0] == results[1]


def test_keyword_arguments_and_names():
    def fn(key, *, w):
        """Docs."""
        return noisy(key, w)

    mean = ge.monte_carlo(fn, 4)
    assert (mean.__name__, mean.__doc__) == ("fn", "Docs.")
    assert mean(jax.random.key(0), w=W) == ge.monte_carlo(noisy, 4)(jax.random.key(0), W)


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        mean = ge.monte_carlo(noisy, 7, 2)
        jax.jit(jax.value_and_grad(mean, argnums=1))(jax.random.key(0), W)


# ---- With the rest of gradest and of JAX -----------------------------------------------------


def bernoulli_loss(key, logits):
    bits = ge.score_function(num_samples=2, baseline="leave_one_out")
    draw = bits(key, Bernoulli(logits))
    return (jnp.sum(draw * jnp.array([1.0, -2.0, 0.5])) - 0.3) ** 2


@pytest.mark.statistical
@pytest.mark.parametrize("chunk_size", [None, 1000])
def test_of_an_expectation(chunk_size):
    """Of 12 means over 40,000 estimates each, the mean is the exact gradient."""
    mean = ge.monte_carlo(ge.expectation(bernoulli_loss), 40_000, chunk_size)
    gradient = jax.jit(jax.grad(mean, argnums=1))
    cost = lambda x: (jnp.sum(x * jnp.array([1.0, -2.0, 0.5])) - 0.3) ** 2
    exact = jax.grad(lambda l: oracles.expectation(Bernoulli(l), cost))(W)
    estimates = np.stack([gradient(jax.random.key(seed), W) for seed in range(12)])
    assert_unbiased(estimates, exact)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * estimates, exact)


def test_inside_an_expectation_is_one_draw_for_all_samples():
    """A loss may average over noise of its own, at its draw."""

    @ge.expectation
    def loss(logits, key):
        draw_key, noise_key = jax.random.split(key)
        draw = ge.score_function()(draw_key, Bernoulli(logits))
        return ge.monte_carlo(lambda k, x: jnp.sum(x + 0 * jax.random.normal(k)), 6, 2)(
            noise_key, draw
        )

    value, gradient = jax.value_and_grad(loss)(W, jax.random.key(0))
    assert value == round(float(value))
    assert np.isfinite(gradient).all()


def test_under_vmap():
    mean = ge.monte_carlo(noisy, 12, 5)
    keys, ws = jax.random.split(jax.random.key(0), 3), jnp.stack([W, 2 * W, -W])
    gradient = jax.grad(mean, argnums=1)
    got, alone = jax.jit(jax.vmap(gradient))(keys, ws), jax.jit(gradient)
    expected = [alone(key, w) for key, w in zip(keys, ws, strict=True)]
    np.testing.assert_allclose(got, np.stack(expected), rtol=1e-4, atol=1e-6)


def test_nested():
    inner = jax.jit(ge.monte_carlo(noisy, 4, 2))
    got = ge.monte_carlo(inner, 3)(jax.random.key(0), W)
    np.testing.assert_allclose(got, by_hand(inner, jax.random.key(0), 3, W), rtol=1e-6)


def test_second_derivatives():
    mean = ge.monte_carlo(noisy, 10, 4)
    whole = ge.monte_carlo(noisy, 10)
    got, expected = (
        jax.jit(jax.hessian(f, argnums=1))(jax.random.key(0), W) for f in (mean, whole)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_traces_the_function_a_fixed_number_of_times():
    calls = []

    def counted(key, w):
        calls.append(1)
        return noisy(key, w)

    jax.jit(jax.grad(ge.monte_carlo(counted, 10_000, 10), argnums=1))(jax.random.key(0), W)
    assert len(calls) < 10


# ---- Memory ----------------------------------------------------------------------------------


def wide(key, w):
    """Keeps a thousand numbers for its backward pass."""
    return jnp.sum(jnp.sin(w * jax.random.normal(key, (1000,))) ** 3)


@functools.cache
def temporary_bytes(num_samples, chunk_size):
    mean = jax.jit(jax.value_and_grad(ge.monte_carlo(wide, num_samples, chunk_size), argnums=1))
    analysis = mean.lower(jax.random.key(0), jnp.float32(2.0)).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_is_that_of_one_chunk():
    small, large = temporary_bytes(10**4, 100), temporary_bytes(10**6, 100)
    # 8 bytes for each chunk, of which there are 10,000: no sample is kept.
    assert large < small + 8 * 10**4 + 1000
    assert small < 3 * temporary_bytes(200, 100)
    # Where the chunks do not divide the samples, the rest is no larger than a chunk.
    assert temporary_bytes(10**6 - 1, 100) < 3 * small + 8 * 10**4


def test_without_chunks_memory_grows_with_the_samples():
    small, large = temporary_bytes(10**4, None), temporary_bytes(10**6, None)
    assert large > 50 * small
    assert small > 10 * temporary_bytes(10**4, 100)


# ---- Meshes ----------------------------------------------------------------------------------

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def mesh(*types):
    shape = {1: (4,), 2: (2, 2)}[len(types)]
    return jax.make_mesh(shape, ("a", "b")[: len(types)], axis_types=types)


@functools.cache
def reference():
    return jax.jit(jax.value_and_grad(ge.monte_carlo(noisy, 48, 16), argnums=1))(
        jax.random.key(0), W
    )


def assert_is_reference(result):
    for got, expected in zip(result, reference(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def compiled(fn):
    return jax.jit(jax.value_and_grad(fn, argnums=1)).lower(jax.random.key(0), W).compile()


def samples_at_once(text):
    """On one device: of the group of samples that is its own, or of all of them."""
    return {int(number) for number in re.findall(r"f32\[(?:1,)?(\d+),3\]", text)}


@pytest.mark.parametrize(
    ("types", "per_device"),
    [
        ((AUTO,), 4),
        ((AUTO, AUTO), 4),
        ((AUTO, EXPLICIT), 8),
        ((EXPLICIT, AUTO), 8),
        ((EXPLICIT,), 16),
        ((EXPLICIT, EXPLICIT), 16),
    ],
    ids=lambda x: "-".join(t.name for t in x) if isinstance(x, tuple) else str(x),
)
@pytest.mark.parametrize("chunk_size", [16, None])
def test_samples_are_spread_over_the_automatic_axes(types, per_device, chunk_size):
    mean = ge.monte_carlo(noisy, 48 if chunk_size else 16, chunk_size)
    with jax.set_mesh(mesh(*types)):
        program = compiled(mean)
        if chunk_size:
            assert_is_reference(program(jax.random.key(0), W))
    text = program.as_text()
    assert samples_at_once(text) & {4, 8, 16} == {per_device}
    assert ("all-reduce" in text) == (AUTO in types)  # pyright: ignore[reportOperatorIssue]


_COLLECTIVE = r"= .* (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\("


@pytest.mark.parametrize("chunk_size", [16, None])
def test_devices_meet_once_at_the_end(chunk_size):
    """Value and gradient are reduced together, after the last chunk, and nothing else is sent."""
    with jax.set_mesh(mesh(AUTO)):
        text = compiled(ge.monte_carlo(noisy, 48, chunk_size)).as_text()
    in_loops, at_the_end = text.split("ENTRY")  # pyright: ignore[reportOptionalMemberAccess]
    assert re.findall(_COLLECTIVE, in_loops) == []
    assert re.findall(_COLLECTIVE, at_the_end) == ["all-reduce"]


def test_without_jit():
    with jax.set_mesh(mesh(AUTO)):
        result = jax.value_and_grad(ge.monte_carlo(noisy, 48, 16), argnums=1)(jax.random.key(0), W)
    assert_is_reference(result)


def test_samples_that_do_not_divide_stay_on_every_device():
    """Chunks of 18 and a rest of 12, of which four devices can share the rest."""
    mean = ge.monte_carlo(noisy, 48, 18)
    with jax.set_mesh(mesh(AUTO)):
        program = compiled(mean)
        assert_is_reference(program(jax.random.key(0), W))
    assert samples_at_once(program.as_text()) >= {18, 3}


@pytest.mark.parametrize("types", [(EXPLICIT,), (EXPLICIT, EXPLICIT)])
def test_explicit_axes_can_be_made_automatic(types):
    mean = ge.monte_carlo(noisy, 48, 16)
    spread = lambda key, w: jax.sharding.auto_axes(mean, out_sharding=PartitionSpec())(key, w)  # pyright: ignore[reportCallIssue]
    with jax.set_mesh(mesh(*types)):
        program = compiled(spread)
        assert_is_reference(program(jax.random.key(0), W))
    assert 4 in samples_at_once(program.as_text())
    assert "all-reduce" in program.as_text()  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_arguments_may_be_sharded_along_the_axes_of_the_samples(kind):
    devices = mesh(kind)

    def fn(key, w, data):
        return jnp.sum(jnp.tanh(data * jnp.sum(w * jax.random.normal(key, w.shape))) ** 2)

    mean = jax.value_and_grad(ge.monte_carlo(fn, 24, 8), argnums=1)
    data = jnp.linspace(-1, 1, 8)
    expected = jax.jit(mean)(jax.random.key(0), W, data)
    with jax.set_mesh(devices):
        data = jax.device_put(data, NamedSharding(devices, PartitionSpec("a")))
        got = jax.jit(mean)(jax.random.key(0), W, data)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [8, 5, None])
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_results_may_be_sharded(kind, chunk_size):
    devices = mesh(kind)
    mean = ge.monte_carlo(lambda key, data: data * jax.random.normal(key), 24, chunk_size)
    data = jnp.arange(8.0)
    expected = jax.jit(mean)(jax.random.key(0), data)
    with jax.set_mesh(devices):
        data = jax.device_put(data, NamedSharding(devices, PartitionSpec("a")))
        np.testing.assert_allclose(jax.jit(mean)(jax.random.key(0), data), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["score_function", "straight_through", "gumbel_rao", "reinmax"])
def test_categorical_draws_of_logits_on_an_explicit_mesh(name):
    sampler = {"gumbel_rao": lambda: ge.gumbel_rao(0.5)}.get(name, getattr(ge, name))()

    def loss(logits, key):
        return jnp.sum(sampler(key, ge.distributions.OneHotCategorical(logits)) * W[None]) ** 2

    gradient = jax.jit(jax.grad(ge.expectation(loss)))
    logits = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    want = gradient(logits, jax.random.key(0))
    with jax.set_mesh(mesh(EXPLICIT)):
        got = gradient(jax.device_put(logits, PartitionSpec("a")), jax.random.key(0))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_expectation_inside_shard_map():
    """As its error for a draw in a shard_map recommends."""

    def per_device(logit, keys):
        loss = lambda logit, key: (ge.rebar()(key, ge.distributions.Bernoulli(logit)) - 0.3) ** 2
        return jax.grad(ge.expectation(loss))(logit, keys[0])

    keys = jax.random.split(jax.random.key(0), 4)
    with jax.set_mesh(mesh(AUTO)):
        specs = {"in_specs": (PartitionSpec(), PartitionSpec("a")), "out_specs": PartitionSpec()}
        got = jax.jit(jax.shard_map(per_device, **specs))(jnp.float32(0.2), keys)
    alone = jax.vmap(per_device, (None, 0))(jnp.float32(0.2), keys[:, None])
    np.testing.assert_allclose(got, jnp.sum(alone), rtol=1e-5)
    assert got != 0


def test_inside_shard_map_every_device_draws_for_itself():
    mean = ge.monte_carlo(noisy, 12, 4)

    def per_device(key, w):
        key = jax.random.fold_in(key, jax.lax.axis_index("a"))
        return jax.lax.pmean(mean(key, w), "a")

    with jax.set_mesh(mesh(AUTO)):
        spread = jax.shard_map(per_device, in_specs=PartitionSpec(), out_specs=PartitionSpec())
        got = jax.jit(spread)(jax.random.key(0), W)
    expected = by_hand(mean, jax.random.key(0), 4, W)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# ---- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, True])
def test_error_for_a_number_of_samples_below_one(value):
    message = rf"num_samples: expected an integer of at least 1, got {value}\."
    with pytest.raises(ValueError, match=message):
        ge.monte_carlo(noisy, value)


@pytest.mark.parametrize("value", [1e4, "7", None])
def test_error_for_a_number_of_samples_that_is_no_integer(value):
    message = r"num_samples: expected an integer of at least 1, got "
    with pytest.raises(TypeError, match=message):
        ge.monte_carlo(noisy, value)


def test_error_for_a_chunk_size_below_one():
    with pytest.raises(ValueError, match=r"chunk_size: expected an integer of at least 1, got 0\."):
        ge.monte_carlo(noisy, 10, 0)


def test_error_for_a_traced_number_of_samples():
    with pytest.raises(
        TypeError, match="num_samples: expected a Python integer, got a traced array"
    ):
        jax.jit(lambda n: ge.monte_carlo(noisy, n)(jax.random.key(0), W))(3)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("result", [1, True, jnp.arange(3), 1j])
def test_error_for_results_that_have_no_mean(result, chunk_size):
    message = "fn: expected floating-point results to average, got one of type"
    with pytest.raises(TypeError, match=message):
        ge.monte_carlo(lambda key: jnp.asarray(result), 4, chunk_size)(jax.random.key(0))


def test_error_for_what_is_no_key():
    with pytest.raises(TypeError, match="key: expected a PRNG key"):
        ge.monte_carlo(noisy, 4)(W, jax.random.key(0))


def test_a_python_float_is_a_result():
    assert ge.monte_carlo(lambda key: 1.5, 4, 2)(jax.random.key(0)) == 1.5
