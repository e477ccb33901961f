"""jax.lax.stop_gradient of a draw: transparent where the cost is differentiated in a relaxed draw.

The gradient is that of the expectation, in which a draw counts whether or not a derivative flows
through it. What a loss with a stop_gradient has, key by key, is what it has without.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import distributions as dists

stop = jax.lax.stop_gradient
identity = lambda x: x


@jax.custom_jvp
def with_rule(x):
    return stop(x)


with_rule.defjvp(lambda x, dx: (stop(x[0]), 0.5 * dx[0]))


#: Ways of a vector through a function.
WAYS = {
    "alone": lambda f: f,
    "jit": lambda f: jax.jit(lambda x: f(2 * x) / 2),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] * x[1] > 3, jnp.sin, f, x),
    "switch": lambda f: lambda x: jax.lax.switch(1, [jnp.sin, jax.jit(f), jnp.cos], x),
    "scan": lambda f: (
        lambda x: jax.lax.scan(lambda c, _: (f(c) * 0.9, f(c)), x, None, length=3)[1].sum(0)
    ),
    "constant of a scan": lambda f: (
        lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), 0 * x, None, length=3)[0]
    ),
    "checkpoint": lambda f: jax.checkpoint(lambda x: f(x) * x),
    "vmap": lambda f: jax.vmap(f),
    "twice": lambda f: lambda x: jax.jit(f)(jax.jit(f)(x)),
}
SAMPLERS = {
    "rebar": lambda stop: ge.rebar(),
    "rebar nested": lambda stop: ge.rebar(nested=True),
    "muprop": lambda stop: ge.muprop(),
    "relax": lambda stop: ge.relax(lambda p, x: p * jnp.sum(stop(x) ** 2), 0.8),
}
LOGITS = jnp.array([0.3, -0.5])


def cost(way, function):
    return lambda z: jnp.sum(z * jnp.array([1.0, 2.0])) ** 2 * jnp.sum(WAYS[way](function)(z))


def in_expectation(sampler, cost):
    return ge.expectation(lambda l, key: cost(sampler(key, dists.Bernoulli(l))))


def by_expect(sampler, cost):
    return lambda l, key: sampler.expect(key, dists.Bernoulli(l), cost)


def gradients(loss, num=64):
    keys = jax.random.split(jax.random.key(0), num)
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(LOGITS, keys)


@pytest.mark.parametrize("form", [in_expectation, by_expect])
@pytest.mark.parametrize("way", WAYS)
def test_is_transparent(way, form):
    samplers = SAMPLERS if way == "alone" else {"rebar": SAMPLERS["rebar"]}
    for make in samplers.values():
        stopped = gradients(form(make(stop), cost(way, stop)))
        plain = gradients(form(make(identity), cost(way, identity)))
        assert np.any(plain != 0)
        np.testing.assert_allclose(stopped, plain, rtol=2e-5, atol=1e-6)


def test_delta_method():
    def loss(function):
        f = lambda x: jnp.sum(x * function(x)) + jnp.prod(function(x))
        return ge.expectation(lambda m, key: f(ge.delta_method()(key, dists.Normal(m, 1.0))))

    np.testing.assert_allclose(gradients(loss(stop)), gradients(loss(identity)), rtol=1e-5)


def test_a_later_draw_depends_on_it():
    def loss(function):
        def program(l, key):
            first, second = jax.random.split(key)
            a = ge.rebar()(first, dists.Bernoulli(l))
            b = ge.rebar()(second, dists.Bernoulli(l + 2 * function(a)))
            return jnp.sum(a * b + b) ** 2

        return ge.expectation(program)

    np.testing.assert_allclose(gradients(loss(stop)), gradients(loss(identity)), rtol=2e-5)


def test_a_rule_of_its_own_is_obeyed():
    rebar = ge.rebar(eta=1.0)
    other = gradients(in_expectation(rebar, lambda z: jnp.sum(with_rule(z) ** 2)))
    plain = gradients(in_expectation(rebar, lambda z: jnp.sum(z**2)))
    assert np.max(np.abs(other - plain)) > 0.01


def test_parameters_stay_stopped():
    """What does not depend on the draw is differentiated, or not, as the loss says."""

    @ge.expectation
    def loss(params, key):
        z = ge.rebar()(key, dists.Bernoulli(params["l"]))
        return jnp.sum(z * stop(params["w"]) + params["v"] * z)

    params = {"l": LOGITS, "w": jnp.ones(2), "v": jnp.ones(2)}
    g = jax.jit(jax.grad(loss))(params, jax.random.key(1))
    assert np.all(g["w"] == 0)
    assert set(np.ravel(g["v"]).tolist()) <= {0.0, 1.0}
    assert np.any(g["l"] != 0)


def test_a_stopped_parameter_of_a_surrogate_is_not_trained():
    def loss(p, key):
        sampler = ge.relax(lambda p, x: jnp.sum(stop(p["a"]) * x + p["b"] * stop(x)), p)
        return sampler.expect(key, dists.Bernoulli(LOGITS), lambda b: jnp.sum(b) ** 2)

    g = jax.jit(jax.grad(loss))({"a": jnp.float32(0.5), "b": jnp.float32(0.5)}, jax.random.key(0))
    assert g["a"] == 0
    assert g["b"] != 0


@pytest.mark.parametrize("function", [jax.nn.log_softmax, jax.nn.logsumexp, jax.nn.softmax])
def test_masked_logits_stay_finite(function):
    """Softmax and logsumexp subtract a stopped maximum, which cancels."""
    mask = jnp.array([0.0, -jnp.inf, 0.0])
    finite = lambda y: jnp.sum(jnp.where(jnp.isfinite(y), y, 0) * jnp.array([1.0, 2.0, 4.0]))
    f = lambda z: finite(function(mask + 3 * jnp.stack([z[0], z[1], z[0] * z[1]])))
    inside = gradients(in_expectation(ge.rebar(), f))
    assert np.all(np.isfinite(inside))
    outside = jax.custom_jvp(f)  # whose rule says the same, and is not looked into
    outside.defjvp(lambda x, dx: jax.jvp(f, x, dx))
    np.testing.assert_allclose(
        inside, gradients(in_expectation(ge.rebar(), outside)), rtol=1e-4, atol=1e-5
    )


def test_pathwise_draws_obey():
    @ge.expectation
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, 1.0))
        return jnp.sum(x * stop(x))

    key = jax.random.key(3)
    x = ge.reparameterize()(key, dists.Normal(LOGITS, 1.0))
    np.testing.assert_allclose(jax.grad(loss)(LOGITS, key), x, rtol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Logistic:
    """A user's own, drawn by a search, whose derivative is that of the distribution function."""

    loc: jax.Array

    def sample(self, key, shape=()):
        u = jax.random.uniform(key, shape + self.loc.shape)
        below = lambda x, loc: jax.nn.sigmoid(x - loc)

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            right = below(middle, self.loc) < u
            return jnp.where(right, middle, low), jnp.where(right, high, middle)

        ends = jnp.full(u.shape, -30.0), jnp.full(u.shape, 30.0)
        x = stop(jax.lax.fori_loop(0, 40, halve, ends)[0])
        p = below(x, stop(self.loc))
        return x - (below(x, self.loc) - p) / (p * (1 - p))

    def log_prob(self, x):
        return jax.nn.log_sigmoid(x - self.loc) + jax.nn.log_sigmoid(self.loc - x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Explicit(Logistic):
    def sample(self, key, shape=()):
        u = jax.random.uniform(key, shape + self.loc.shape)
        return self.loc + jnp.log(u) - jnp.log1p(-u)


def test_distributions_are_obeyed_in_their_draws():
    """Of a relaxed draw of rebar, too: the search is not differentiated, nor has it a jump."""

    def gradient(kind):
        def loss(l, key):
            first, second = jax.random.split(key)
            b = ge.rebar()(first, dists.Bernoulli(l))
            return jnp.sum(ge.reparameterize()(second, kind(2 * b)) ** 2)

        gradient = jax.vmap(jax.grad(ge.expectation(loss)), (None, 0))
        return jax.jit(gradient)(LOGITS, jax.random.split(jax.random.key(0), 20))

    np.testing.assert_allclose(gradient(Logistic), gradient(Explicit), rtol=1e-3, atol=1e-3)
