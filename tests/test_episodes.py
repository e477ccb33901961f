"""Episodes that end in the middle of a loop: draws that are masked by what was drawn before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs
from support.programs import assert_unbiased

import gradest as ge
from gradest import distributions as dists

STEPS = 4
GOAL = 2


def params():
    return {
        "a": jnp.array([0.4, -0.6, 0.8]),
        "w": jnp.array([0.9, -0.7]),
        "critic": jnp.array([4.0, -1.5]),
    }


def spent(w, s):
    return w[0] * (s - 0.4) ** 2 + 0.2


def ending(w, s):
    return jnp.tanh(w[1] * s)


def walk(make):
    """A walk until it is at the goal; what would follow has parameters that are no numbers."""

    def loss(params, key):
        a, w, critic = params["a"], params["w"], params["critic"]

        def step(state, key):
            s, alive = state
            sampler = make(critic[0] + critic[1] * s)
            draw = lambda l: sampler(
                key, dists.Bernoulli(jnp.where(alive, l, jnp.nan)), where=alive
            )
            x = jax.lax.cond(s > 0, lambda: draw(a[0] + a[1] * s), lambda: draw(a[2] * (s + 1.5)))
            s = jnp.where(alive, s + 2 * x - 1, s)
            ge.cost(jnp.where(alive, spent(w, s), 0.0))
            return (s, alive & (s < GOAL)), None

        (s, _), _ = jax.lax.scan(step, (jnp.zeros(()), True), jax.random.split(key, STEPS))
        return ending(w, s)

    return loss


def walk_exactly(draw, params):
    """The cost, and what the critic's predictions are off, squared."""
    a, w, critic = params["a"], params["w"], params["critic"]
    s, visited, costs = 0.0, [], []
    for _ in range(STEPS):
        visited.append(s)
        s += 2 * draw(a[0] + a[1] * s if s > 0 else a[2] * (s + 1.5)) - 1
        costs.append(spent(w, s))
        if s >= GOAL:
            break
    costs.append(ending(w, s))
    off = jnp.zeros(())
    for i, at in enumerate(visited):
        to_come = jax.lax.stop_gradient(sum(costs[i:]))
        off += (critic[0] + critic[1] * at - to_come) ** 2 / 2
    return sum(costs), off


def exactly():
    """The value and its gradient; that of the critic is of its own loss, on paths as drawn."""
    value, gradient = programs.exact(lambda draw, p: walk_exactly(draw, p)[0], params())
    fixed = params()

    def of_critic(critic):
        return programs.enumerated(lambda draw, c: walk_exactly(draw, {**fixed, "critic": c})[1])(
            critic
        )

    return value, gradient, jax.grad(of_critic)(fixed["critic"])


MAKERS = {
    "score_function": lambda b: ge.score_function(),
    "critic": lambda b: ge.score_function(baseline=b),
    "relax": lambda b: ge.relax(lambda w, x: w * (1 + 0.2 * x), b),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", MAKERS)
def test_the_end_of_an_episode_in_a_scan(name):
    value, gradient, of_critic = exactly()
    got_value, got = programs.estimates(walk(MAKERS[name]), params(), 100_000)
    critic = got.pop("critic")
    gradient.pop("critic")
    assert_unbiased((got_value, got), (value, gradient))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * got["a"], gradient["a"])
    if name == "critic":
        assert_unbiased(critic, of_critic)


@pytest.mark.statistical
def test_episodes_that_give_each_other_baselines():
    """Each of its own length."""
    runs = ge.expectation(walk(MAKERS["score_function"]), num_samples=3, baseline="leave_one_out")
    sample = jax.jit(jax.vmap(jax.grad(runs), in_axes=(None, 0)))
    want = exactly()[1]["a"]
    got = sample(params(), programs.keys(40_000))["a"]
    assert_unbiased(got, want)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * got, want)


def test_the_end_of_an_episode_in_python():
    """By estimators that need what follows."""

    def loss(sampler):
        def unrolled(params, key):
            a, w = params["a"], params["w"]
            s, alive, total = jnp.zeros(()), True, jnp.zeros(())
            for of_step in jax.random.split(key, STEPS):
                l = jnp.where(s > 0, a[0] + a[1] * s, a[2] * (s + 1.5))
                dist = dists.Bernoulli(jnp.where(alive, l, jnp.nan))
                x = sampler(of_step, dist, where=alive)
                s = jnp.where(alive, s + 2 * x - 1, s)
                total += jnp.where(alive, spent(w, s), 0.0)
                alive = alive & (s < GOAL)
            return total + ending(w, s)

        return ge.expectation(unrolled)

    value, gradient, _ = exactly()
    for sampler in (ge.enumeration(), ge.unordered_set(2)):
        got = jax.jit(jax.value_and_grad(loss(sampler)))(params(), jax.random.key(0))
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, got, (value, gradient))


@pytest.mark.statistical
def test_lanes_of_a_vmap_inside_the_loss():
    """The baseline is that of the joint draw, and trained."""
    where = jnp.array([True, False, True])
    at = lambda x, y: (0.9 * x - 0.7 * y + 0.6) ** 2

    def loss(params, key):
        sampler = ge.score_function(baseline=params["b"])
        draw = lambda key, l, where: sampler(key, dists.Bernoulli(l), where=where)
        x = jax.vmap(draw)(jax.random.split(key, 3), params["l"], where)
        return at(x[0], x[2]) + x[1]

    start = {"l": jnp.array([0.4, jnp.nan, -0.6]), "b": jnp.float32(0.3)}
    with pytest.warns(UserWarning, match="credited with the whole loss in every lane"):
        value, got = programs.estimates(loss, start, 100_000)
    program = lambda draw, p: at(draw(p["l"][0]), draw(p["l"][2]))
    known = {**start, "l": jnp.where(where, start["l"], 0.0)}
    want_value, want = programs.exact(program, known)
    assert (got["l"][:, 1] == 0).all()
    assert_unbiased((value, got["l"]), (want_value, want["l"]))
    assert_unbiased(got["b"], start["b"] - want_value)
