"""`gradest.nnx.expectation`: losses of flax.nnx modules, whose state they change."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.statistical import assert_unbiased, keys

import gradest as ge
import gradest.nnx
from gradest.distributions import Bernoulli

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 3))


class Net(nnx.Module):
    """With every kind of state: statistics, counts of Rngs, a variable of its own."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.temperature = nnx.Param(jnp.float32(0.7))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return self.dropout(self.norm(self.linear(x)))


def loss_of(net, rngs, x):
    """A Param as an option, and an Rngs as the key."""
    bits = ge.rebar(temperature=net.temperature)(rngs.sample(), Bernoulli(net(x)))
    return jnp.mean((bits - 0.2) ** 2)


bits_loss = gradest.nnx.expectation(loss_of)


def functional(params, state, key, graph, x):
    """The same loss, with its state as auxiliary output."""
    net = nnx.merge(graph, params, state)
    bits = ge.rebar(temperature=net.temperature)(key, Bernoulli(net(x)))
    loss = jnp.mean((bits - 0.2) ** 2)
    return loss, nnx.state(net, nnx.Not(nnx.Param))


def assert_equal(got, want):
    got, want = nnx.to_pure_dict(got), nnx.to_pure_dict(want)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = (
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in (a, b)
        )
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_and_state_are_those_of_the_functional_form():
    net, rngs = Net(), nnx.Rngs(sample=3)
    graph, params, state = nnx.split(Net(), nnx.Param, ...)
    run = jax.value_and_grad(ge.expectation(functional, has_aux=True), has_aux=True)
    key = nnx.Rngs(sample=3).sample()
    (want, new), gradient = jax.jit(run, static_argnums=3)(params, state, key, graph, X)
    value, g = nnx.jit(nnx.value_and_grad(bits_loss))(net, rngs, X)
    assert value == pytest.approx(float(want), rel=1e-5)
    assert_equal(g, gradient)
    assert np.all(g["linear"]["kernel"][...] != 0)
    assert g["temperature"][...] != 0
    # What one evaluation leaves, once.
    assert_equal(nnx.state(net, nnx.Not(nnx.Param)), new)
    assert (net.calls[...], net.dropout.rngs.count[...], rngs.sample.count[...]) == (1, 1, 1)
    assert_equal(nnx.state(net, nnx.Param), params)


class Bits(nnx.Module):
    """A bit that another one depends on, and how often it was drawn as a variable."""

    def __init__(self):
        self.logits = nnx.Param(jnp.asarray([0.4, -0.7]))
        self.scale = nnx.Param(jnp.asarray(1.5))
        self.baseline = nnx.Param(jnp.asarray(0.9))
        self.ones = nnx.Variable(jnp.zeros(()))

    def cost(self, a, b):
        return (a - 0.3 + self.scale[...] * b) ** 2

    def __call__(self, key):
        first, second = jax.random.split(key)
        bit = ge.score_function(baseline=self.baseline[...])
        a = bit(first, Bernoulli(self.logits[0]))
        b = ge.enumeration()(second, Bernoulli(self.logits[1] + a))
        self.ones[...] = self.ones[...] + a
        return self.cost(a, b)


def enumerated(params):
    """The expectation, summed over both bits."""
    net = Bits()
    net.logits[...], net.scale[...] = params
    total = jnp.zeros(())
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        p = jax.nn.sigmoid((2 * a - 1) * net.logits[0])
        p *= jax.nn.sigmoid((2 * b - 1) * (net.logits[1] + a))
        total += p * net.cost(a, b)
    return total


@pytest.mark.statistical
def test_unbiased():
    loss = gradest.nnx.expectation(lambda net, key: net(key))

    def one(key):
        net = Bits()
        g = nnx.grad(loss)(net, key)
        return jnp.append(g["logits"][...], g["scale"][...]), net.ones[...]

    got, ones = jax.jit(jax.vmap(one))(keys(40_000))
    want = jax.grad(enumerated)((jnp.asarray([0.4, -0.7]), jnp.asarray(1.5)))
    want = jnp.append(*want)
    assert_unbiased(got, want)
    with pytest.raises(AssertionError):
        assert_unbiased(1.05 * got, want)
    assert_unbiased(ones, jax.nn.sigmoid(0.4))


def test_what_it_does_not_change_stays_differentiable():
    """The state is auxiliary output, but parameters that come after the loss are no such thing."""

    def total(net, rngs):
        value = bits_loss(net, rngs, X)
        return 0.0 * value + jnp.sum(net.linear.kernel[...] ** 2)

    net = Net()
    g = nnx.jit(nnx.grad(total))(net, nnx.Rngs(sample=3))
    np.testing.assert_allclose(g["linear"]["kernel"][...], 2 * net.linear.kernel[...], rtol=1e-6)


def test_under_vmap_of_a_closure_over_modules_that_do_not_change():
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    @gradest.nnx.expectation
    def loss(net, key):
        return jnp.mean((ge.rebar()(key, Bernoulli(net(X))) - 0.2) ** 2)

    mean = lambda net: jnp.mean(jax.vmap(lambda key: loss(net, key))(keys(3)))
    got = nnx.jit(nnx.grad(mean))(net)
    each = nnx.jit(nnx.grad(loss))
    want = jax.tree.map(lambda *g: sum(g) / 3, *(each(net, key) for key in keys(3)))
    assert_equal(got, want)
    monte_carlo = ge.monte_carlo(lambda key: loss(net, key), 3)
    assert jnp.isfinite(monte_carlo(keys(1)[0]))


def test_what_is_as_it_was_is_not_written():
    """Under vmap, in which flax refuses to write to what is closed over, of which Rngs are not."""
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    @gradest.nnx.expectation
    def loss(net, rngs):
        return jnp.mean((ge.score_function()(rngs.sample(), Bernoulli(net(X))) - 0.2) ** 2)

    each = jax.vmap(lambda key: loss(net, nnx.Rngs(sample=key)))(keys(3))
    np.testing.assert_allclose(each[1], loss(net, nnx.Rngs(sample=keys(3)[1])), rtol=1e-6)


@pytest.mark.parametrize("changed", ["net", "holder"])
def test_a_module_that_another_argument_holds(changed):
    class Holder(nnx.Module):
        def __init__(self, net):
            self.net, self.calls = net, nnx.Variable(jnp.int32(0))

    net: Any = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    net.calls = nnx.Variable(jnp.int32(0))
    of = {"net": net, "holder": Holder(net)}

    @gradest.nnx.expectation
    def loss(net, holder):
        of = {"net": net, "holder": holder}
        of[changed].calls[...] = of[changed].calls[...] + 1
        return jnp.sum(holder.net(X))

    loss(**of)
    assert {name: int(of[name].calls[...]) for name in of} == {"net": 0, "holder": 0, changed: 1}
    assert of["holder"].net is net


def test_trains_in_a_scan():
    net, rngs = Net(), nnx.Rngs(sample=3)
    optimizer = nnx.Optimizer(net, optax.sgd(1.0), wrt=nnx.Param)
    carried = nnx.StateAxes({...: nnx.Carry})

    @nnx.jit
    @nnx.scan(in_axes=(carried, carried, carried, 0), out_axes=0)
    def steps(net, optimizer, rngs, x):
        value, g = nnx.value_and_grad(bits_loss)(net, rngs, x)
        optimizer.update(net, g)
        return value

    values = steps(net, optimizer, rngs, jnp.broadcast_to(X, (200, *X.shape)))
    assert values[-50:].mean() < 0.75 * values[:20].mean()
    assert (net.calls[...], net.dropout.rngs.count[...], rngs.sample.count[...]) == (200,) * 3


def test_is_a_decorator_with_auxiliary_output():
    @gradest.nnx.expectation(has_aux=True)
    def loss(net, *, other, x):
        """A sum."""
        net.seen = nnx.Variable(jnp.sum(x))
        net.number = 3
        return jnp.sum(net(x)) + jnp.sum(other(x)), {"calls": net.calls[...]}

    net: Any = Net()
    value, aux = loss(net, other=net, x=X)
    assert value.shape == ()
    # The same module twice is one module.
    assert (aux["calls"], net.calls[...]) == (2, 2)
    # A variable that is new, and what is static.
    np.testing.assert_allclose(net.seen[...], jnp.sum(X), rtol=1e-6)
    assert net.number == 3
    assert (loss.__name__, loss.__doc__) == ("loss", "A sum.")


def test_other_arguments_must_not_change():
    def appends(net, seen):
        seen.append(net.calls[...])
        return jnp.sum(net.linear.kernel[...])

    with pytest.raises(ValueError, match=r"loss changed its argument args\[1\]\[0\]") as raised:
        gradest.nnx.expectation(appends)(Net(), [])
    assert "gradest.nnx" not in str(raised.value)

    def replaces(nets):
        nets["net"] = Net()
        return jnp.sum(nets["net"].linear.kernel[...])

    with pytest.raises(ValueError, match=r"loss changed its argument args\[0\]\['net'\]"):
        gradest.nnx.expectation(replaces)({"net": Net()})


def test_complains_as_expectation_does():
    with pytest.raises(TypeError, match=r"has_aux=True expects the loss to return a pair"):
        gradest.nnx.expectation(loss_of, has_aux=True)(Net(), nnx.Rngs(sample=3), X)
    with pytest.raises(ValueError, match=r"to be a real scalar, got shape \(5, 2"):
        gradest.nnx.expectation(lambda net, x: net(x))(Net(), X)
    with pytest.raises(TypeError, match="expected a function, got int"):
        gradest.nnx.expectation(3)  # pyright: ignore


def test_state_of_several_runs_is_that_of_the_first():
    def loss(net, rngs):
        a = ge.score_function()(rngs.sample(), Bernoulli(jnp.zeros(8)))
        net.drawn = nnx.Variable(a)
        return jnp.sum((a - 0.3) ** 2), a

    net: Any = Net()
    rngs = nnx.Rngs(sample=3)
    _, drawn = gradest.nnx.expectation(loss, has_aux=True, num_samples=3)(net, rngs)
    assert drawn.shape == (3, 8)
    np.testing.assert_array_equal(net.drawn[...], drawn[0])
    assert rngs.sample.count[...] == 1
