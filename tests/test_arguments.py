"""A loss that changes its arguments: they are copies, so what it does would be lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradest as ge
from gradest import distributions as dists

KEY = jax.random.key(0)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


def of_module(module, key):
    return jnp.sum(ge.score_function()(key, dists.Bernoulli(module(jnp.ones((4, 3))))))


def of_rngs(logits, rngs):
    return jnp.sum(ge.rebar()(rngs(), dists.Bernoulli(logits)))


def appends(x, seen):
    seen.append(x)
    return x


def replaces(x, seen):
    seen["x"] = x + 1
    return x


@pytest.mark.parametrize(
    ("loss", "make", "name"),
    [
        (of_module, lambda: (Net(), KEY), r"args\[0\]\.dropout\.rngs\.count"),
        (of_rngs, lambda: (jnp.zeros(2), nnx.Rngs(0)), r"args\[1\]\.default\.count"),
        (appends, lambda: (1.0, []), r"args\[1\]\[0\]"),
        (appends, lambda: (1.0, [jnp.ones(2)]), r"args\[1\]\[1\]"),
        (replaces, lambda: (1.0, {"x": jnp.zeros(())}), r"args\[1\]\['x'\]"),
        (replaces, lambda: (1.0, {"x": 3}), r"args\[1\]\['x'\]"),
        (lambda x, seen: (seen.pop("x"), x)[1], lambda: (1.0, {"x": jnp.ones(2)}), ""),
    ],
)
def test_raises(loss, make, name):
    message = rf"expectation: the loss changed its argument.*{name}.*auxiliary output"
    with pytest.raises(ValueError, match=message) as raised:
        ge.expectation(loss)(*make())
    of_nnx = loss in (of_module, of_rngs)
    assert ("Use gradest.nnx.expectation(loss)" in str(raised.value)) == of_nnx
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: ge.expectation(loss)(*make()))


def test_by_keyword():
    with pytest.raises(ValueError, match=r"argument kwargs\['seen'\]\['x'\]"):
        ge.expectation(replaces)(1.0, seen={"x": jnp.zeros(())})


class MakesLeaves:
    """A pytree whose leaf is made whenever it is asked for."""

    def __init__(self, x):
        self.x = x


jax.tree_util.register_pytree_node(
    MakesLeaves, lambda m: ((m.x + 0,), None), lambda _, x: MakesLeaves(*x)
)


def test_what_stays_the_same_is_no_change():
    net = Net()
    net.eval()
    g = nnx.grad(ge.expectation(of_module))(net, KEY)
    assert np.any(g["linear"]["kernel"][...] != 0)
    same = {"x": jnp.ones(2), "none": None, "name": "a"}

    def loss(x, made, same):
        same["x"] = same["x"]
        return x * jnp.sum(made.x) * jnp.sum(same["x"])

    assert ge.expectation(loss)(1.0, MakesLeaves(jnp.ones(2)), same) == 4


def test_the_way_out():
    """The new state is auxiliary output."""
    graph, params, state = nnx.split(Net(), nnx.Param, ...)

    def loss(params, state, key):
        module = nnx.merge(graph, params, state)
        return of_module(module, key), nnx.state(module, nnx.Not(nnx.Param))

    loss = ge.expectation(loss, has_aux=True)
    g, new = jax.jit(jax.grad(loss, has_aux=True))(params, state, KEY)
    assert np.any(g["linear"]["kernel"][...] != 0)
    assert np.any(new["norm"]["mean"][...] != 0)
    assert new["dropout"]["rngs"]["count"][...] == 1
