"""Losses on several devices: what `jax.shard_map` and sharded arrays make of them."""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from support import cases
from support.cases import keys

import gradest as ge
from gradest import distributions as dists

split = jax.random.split
score, rebar, enumeration = ge.score_function(), ge.rebar(), ge.enumeration()
ESTIMATORS = [name for name, case in cases.CASES.items() if case.record.estimates]
BERNOULLI = dists.Bernoulli
GAUSSIANS = ("MultivariateNormal", "LowRankMultivariateNormal")


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("devices",), axis_types=(kind,))


# ---- shard_map -----------------------------------------------------------------------------


def test_a_cost_that_only_jumps_is_refused_under_shard_map():
    def loss(m, key):
        cost = lambda x: jnp.where(x > 0.5, 1.0, 0.0)
        return ge.reparameterize().expect(key[0], dists.Normal(m[0], 1.0), cost)[None]

    specs = P("devices")
    mapped = jax.shard_map(loss, mesh=mesh(), in_specs=(specs, specs), out_specs=specs)
    assert mapped(jnp.full(4, 0.3), keys(4)).shape == (4,)
    with pytest.raises(ge.UnestimatedGradientError, match="jumps at a comparison"):
        jax.jit(jax.grad(lambda m: jnp.sum(mapped(m, keys(4)))))(jnp.full(4, 0.3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_types_under_shard_map(estimator):
    """With JAX's check of what differs from device to device: keys do, and parameters do not."""

    def gradient(sampler, dist, key):
        loss = ge.expectation(lambda dist, w: cases.bowl(w, sampler(key, dist)))
        return cases.grad(loss)(dist, cases.weights(dist))

    def of_each_device(laws, keys):
        return [
            gradient(cell.sampler(), dist, keys[0]) for cell, dist in zip(cells, laws, strict=True)
        ]

    # JAX's own binomial draws fail in a shard_map.
    cells = [c for c in cases.cells() if c.estimator == estimator and c.distribution != "Binomial"]
    laws = [cell.dist() for cell in cells]
    run = jax.shard_map(of_each_device, mesh=mesh(), in_specs=(P(), P("devices")), out_specs=P())
    got = jax.eval_shape(run, laws, keys(4))
    floats = lambda tree: [x.shape for x in jax.tree.leaves(tree) if x.dtype == float]
    assert floats(got) == floats(laws)


# ---- Explicit axes -------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters_along_an_explicit_axis(estimator):
    """Every distribution's, down to the compiler, with gradients that are spread as they are."""

    def gradient(cell, dist):
        def loss(dist):
            x = cell.sampler()(jax.random.key(0), dist)
            scale = jax.jit(lambda x: 1.0 + 0.0 * jnp.sum(x.astype(float)))(x)
            return scale * jnp.sum(jnp.sin(x.astype(float))) ** 2

        return cases.grad(ge.expectation(loss))(dist)

    cells = [cell for cell in cases.cells() if cell.estimator == estimator]
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        spread = jax.NamedSharding(devices, P("devices"))
        four = lambda x: jax.device_put(jnp.broadcast_to(x, (4, *x.shape)), spread)
        laws = [jax.tree.map(four, cell.dist()) for cell in cells]
        run = jax.jit(lambda laws: list(map(gradient, cells, laws)))
        run.lower(laws)
        for leaf in jax.tree.leaves(jax.eval_shape(run, laws)):
            assert leaf.sharding.spec[0] == "devices"


@pytest.mark.parametrize("name", ["Subset", "PlackettLuce", "LinearChainCRF", *GAUSSIANS])
def test_entropy_along_an_explicit_axis(name):
    """And what else is known of distributions whose draws are no single elements."""

    def known(dist):
        x = score(jax.random.key(0), dist)
        of_laws = [dist.mean(), dist.entropy(), dists.kl_divergence(dist, dist)]
        return sum(jnp.sum(part) for part in [x, dist.log_prob(x), *of_laws])

    gradient = jax.jit(cases.grad(ge.expectation(known)))
    dist = cases.DISTRIBUTIONS[name]()
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        spread = jax.NamedSharding(devices, P("devices"))
        four = lambda x: jax.device_put(jnp.broadcast_to(x, (4, *x.shape)), spread)
        law = jax.tree.map(four, dist)
        gradient.lower(law)
        for leaf in jax.tree.leaves(jax.eval_shape(gradient, law)):
            assert leaf.sharding.spec[0] == "devices"


def test_words_along_an_explicit_axis():
    """Each device has words to draw of its own, and the vocabulary's weights like the others."""
    law = cases.DISTRIBUTIONS["VocabularyCategorical"]()

    @cases.grad
    @ge.expectation
    def gradient(law):
        return jnp.sum(jnp.sin(ge.vimco(2)(jax.random.key(0), law).astype(float))) ** 2

    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        spread = jax.NamedSharding(devices, P("devices"))
        law.hidden = jax.device_put(jnp.broadcast_to(law.hidden, (4, *law.hidden.shape)), spread)
        g = jax.eval_shape(gradient, law)
    assert g.hidden.sharding.spec[0] == "devices"
    assert g.weights.sharding.spec == P(None, None)


@pytest.mark.parametrize("name", ["score_function", "enumeration", "unordered_set", "disarm"])
def test_program_on_an_explicit_mesh(name):
    """A scan and a call of what was drawn, and draws after it: as without a mesh."""
    sampler = next(iter(cases.CASES[name].variants.values())).sampler()

    def loss(logits, key):
        k0, k1, k2 = split(key, 3)
        x = sampler(k0, BERNOULLI(logits))
        y = jax.jit(lambda x: 2.0 * x + logits)(x)
        x, seen = jax.lax.scan(lambda c, t: (c * t + y, jnp.sum(c)), x, jnp.arange(3.0))
        z = score(k1, dists.Poisson(jnp.exp(0.1 * x)))
        noise = ge.reparameterize()(k2, dists.Gamma(jnp.exp(logits), 1.0))
        return jnp.sum(jnp.sin(z.astype(float)) * x) + jnp.sum(seen) + jnp.sum(noise)

    gradient = jax.jit(jax.value_and_grad(ge.expectation(loss)))
    logits = jnp.linspace(-1.0, 1.0, 4).reshape(4, 1)
    want = gradient(logits, jax.random.key(0))
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        spread = jax.device_put(logits, jax.NamedSharding(devices, P("devices")))
        got = gradient(spread, jax.random.key(0))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)


needs_lanes = pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="JAX's own vmap over an explicit axis"
)


@needs_lanes
@pytest.mark.parametrize(
    "sampler", [score, rebar, ge.unordered_set(num_samples=2), ge.sum_and_sample()]
)
def test_a_batch_along_an_explicit_axis(sampler):
    """Each example has a lane of a vmap, and draws of its own."""

    @ge.expectation
    def loss(logits, key):
        z = sampler(key, BERNOULLI(logits))
        return jnp.sum(jnp.sin(z + logits)) ** 2

    mean = lambda *args: jnp.mean(jax.vmap(loss, (None, 0))(*args))
    same_on_an_explicit_mesh(jax.grad(mean), jnp.array([0.3, -0.2]), keys(4))


@needs_lanes
def test_gradients_of_examples_along_an_explicit_axis():
    """Of what all of them share, an option of the sampler too."""

    @ge.expectation
    def loss(params, key):
        z = ge.score_function(baseline=params["baseline"])(key, BERNOULLI(params["logits"]))
        return jnp.sum(jnp.sin(z + 1.0)) ** 2

    params = {"logits": jnp.array([0.3, -0.2]), "baseline": jnp.float32(0.4)}
    same_on_an_explicit_mesh(jax.vmap(jax.grad(loss), (None, 0)), params, keys(4))


def same_on_an_explicit_mesh(function, params, batch):
    """What `function` makes of them, the batch being spread along an axis."""
    function = jax.jit(function)
    want = function(params, batch)
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        whole = jax.device_put(params, jax.NamedSharding(devices, P()))
        spread = jax.device_put(batch, jax.NamedSharding(devices, P("devices")))
        got = function(whole, spread)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, want)


# ---- Programs ------------------------------------------------------------------------------


def program(params, shift, key):
    """A branch, a scan, a loop of random length, costs, and draws that are given the rest."""
    k0, k1, k2, k3 = split(key, 4)
    x = score(k0, BERNOULLI(params["a"] + shift))
    x = jax.lax.cond(
        x > shift,
        lambda: 1.5 * score(k1, BERNOULLI(params["b"])),
        lambda: rebar(k1, BERNOULLI(params["b"] * shift)),
    )
    ge.cost(shift * x)

    def step(total, key):
        total = total + score(key, BERNOULLI(params["a"] - total))
        ge.cost(0.1 * total)
        return total, None

    total, _ = jax.lax.scan(step, 0.0 * shift, split(k2, 3))

    def flip(state):
        tails, key = state
        key, now = split(key)
        return tails - score(now, BERNOULLI(params["b"])), key

    left, (key, _) = jax.lax.stop_gradient(total), split(k3)
    left, key = ge.while_loop(lambda state: state[0] > 0, flip, (left, key), max_steps=50)
    noise = ge.reparameterize()(split(k3)[1], dists.Normal(params["b"], 1.0))
    y = enumeration(key, BERNOULLI(params["a"] * noise))
    return (x + y * noise - total + left) ** 2


def test_program_under_shard_map():
    """Each device draws for itself; the gradient in what they share is the sum of theirs."""
    params = {"a": jnp.float32(0.3), "b": jnp.float32(-0.4)}
    shifts = jnp.array([0.2, -0.5, 0.7, 0.1])
    grad = jax.value_and_grad(ge.expectation(program), argnums=(0, 1))

    def of_each_device(params, shifts, keys):
        value, (in_params, in_shift) = grad(params, shifts[0], keys[0])
        return jax.lax.psum(value, "devices"), in_params, in_shift[None]

    each = P("devices")
    run = jax.shard_map(
        of_each_device, mesh=mesh(), in_specs=(P(), each, each), out_specs=(P(), P(), each)
    )
    got = jax.jit(run)(params, shifts, keys(4))
    values, (in_params, in_shift) = jax.jit(jax.vmap(grad, (None, 0, 0)))(params, shifts, keys(4))
    want = jnp.sum(values), jax.tree.map(jnp.sum, in_params), in_shift
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), got, want)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("sampler", [enumeration, ge.unordered_set(num_samples=2)])
def test_a_branch_after_several_samples_under_shard_map(sampler):
    """In which each of them has keys of its own, that differ from device to device."""

    def loss(a, shift, key):
        k0, k1 = split(key)
        x = sampler(k0, BERNOULLI(a))
        return jax.lax.cond(
            x > shift, lambda: score(k1, BERNOULLI(a)), lambda: rebar(k1, BERNOULLI(x))
        )

    def of_each_device(a, shifts, keys):
        return cases.grad(ge.expectation(loss))(a, shifts[0], keys[0])

    each = P("devices")
    run = jax.shard_map(of_each_device, mesh=mesh(), in_specs=(P(), each, each), out_specs=P())
    assert jax.eval_shape(run, 0.3, jnp.linspace(0.2, 0.6, 4), keys(4)).shape == ()


# ---- Processes -----------------------------------------------------------------------------

TRAINING = pathlib.Path(__file__).parent / "support" / "trains_together.py"


def trained(num_processes, devices_each):
    """The number of devices and the parameters at the end, as each process prints them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices_each}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    commands = [
        [sys.executable, str(TRAINING), address, str(num_processes), str(rank)]
        for rank in range(num_processes)
    ]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * num_processes
    # The last line: the library that sends the numbers says that it is there.
    return [[float(number) for number in lines.splitlines()[-1].split()] for lines in printed]


@pytest.mark.slow
def test_two_processes_train_to_the_parameters_of_one():
    """With donated parameters; each process has two devices of its own."""
    (alone,) = trained(1, 1)
    first, second = trained(2, 2)
    assert first == second
    assert (alone[0], first[0]) == (1, 4)
    np.testing.assert_allclose(first[1:], alone[1:], rtol=1e-5)
    assert abs(alone[1] - 0.3) > 0.01
