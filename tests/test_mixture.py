"""Mixtures: densities, draws, and the derivatives that keep a draw's quantile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax
from support.estimates import assert_unbiased, oracles

import gradest as ge
from gradest import distributions as dists
from gradest.distributions import (
    Beta,
    Categorical,
    Gamma,
    MixtureSameFamily,
    Normal,
    Weibull,
    mixture,
)

KINDS = {
    "Normal": lambda *p: Normal(*p),
    "LogNormal": lambda *p: dists.LogNormal(*p),
    "Laplace": lambda *p: dists.Laplace(*p),
    "Logistic": lambda *p: dists.Logistic(*p),
    "Gumbel": lambda *p: dists.Gumbel(*p),
    "Exponential": lambda *p: dists.Exponential(*p),
    "Gamma": lambda *p: Gamma(*p),
    "Weibull": lambda *p: Weibull(*p),
}
LOC_SCALE = ([-1.0, 2.0, 0.3], [0.5, 1.0, 0.8])
# Three components.
PARAMETERS = {
    "Normal": LOC_SCALE,
    "LogNormal": ([-1.0, 0.4, 0.0], [0.5, 0.3, 0.6]),
    "Laplace": LOC_SCALE,
    "Logistic": LOC_SCALE,
    "Gumbel": LOC_SCALE,
    "Exponential": ([0.5, 1.0, 4.0],),
    "Gamma": ([0.7, 3.0, 9.0], [1.0, 2.0, 1.5]),
    "Weibull": ([1.0, 2.0, 0.6], [0.8, 2.0, 1.3]),
}
SCIPY = {
    "Normal": scipy.stats.norm,
    "LogNormal": lambda loc, scale: scipy.stats.lognorm(s=scale, scale=np.exp(loc)),
    "Laplace": scipy.stats.laplace,
    "Logistic": scipy.stats.logistic,
    "Gumbel": scipy.stats.gumbel_r,
    "Exponential": lambda rate: scipy.stats.expon(scale=1 / rate),
    "Gamma": lambda a, rate: scipy.stats.gamma(a, scale=1 / rate),
    "Weibull": lambda scale, k: scipy.stats.weibull_min(k, scale=scale),
}
LOGITS = [0.3, -0.5, 0.1]


def make(name, dtype=float, logits=LOGITS):
    parameters = (jnp.asarray(p, dtype) for p in PARAMETERS[name])
    return MixtureSameFamily(Categorical(jnp.asarray(logits, dtype)), KINDS[name](*parameters))


class Reference:
    """The mixture by scipy, for leaves (logits, *parameters)."""

    def __init__(self, name, leaves):
        logits, *parameters = (np.asarray(leaf, float) for leaf in leaves)
        self.w, self.components = softmax(logits), SCIPY[name](*parameters)

    def cdf(self, x):
        return np.sum(self.w * self.components.cdf(np.asarray(x)[..., None]), axis=-1)

    def pdf(self, x):
        return np.sum(self.w * self.components.pdf(np.asarray(x)[..., None]), axis=-1)

    def ppf(self, q):
        """By bisection."""
        q = np.asarray(q)
        low = np.full(q.shape, self.components.ppf(1e-9).min())
        high = np.full(q.shape, self.components.ppf(1 - 1e-9).max())
        for _ in range(70):
            middle = (low + high) / 2
            below = self.cdf(middle) < q
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


def leaves_of(name):
    return [np.asarray(LOGITS), *map(np.asarray, PARAMETERS[name])]


@pytest.mark.parametrize("name", KINDS)
def test_log_density_is_the_components(name, x64):
    reference = Reference(name, leaves_of(name))
    x = reference.ppf(np.linspace(0.001, 0.999, 40))
    got = make(name).log_prob(x)
    np.testing.assert_allclose(got, np.log(reference.pdf(x)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_of_draws_are_those_of_the_quantile_function(name, x64):
    """In every weight and every component's every parameter."""
    dist, key = make(name), jax.random.key(3)
    draw = lambda dist: dist.sample(key, (40,))
    x = np.asarray(draw(dist))
    leaves, treedef = jax.tree.flatten(dist)
    quantile = Reference(name, leaves).cdf(x)
    jacobian = jax.jit(jax.jacfwd(draw))(dist)
    h = 1e-5
    for i, got in enumerate(jax.tree.leaves(jacobian)):
        assert got.shape == (40, 3)
        for k in range(3):
            moved = []
            for d in (-h, h):
                changed = [np.array(leaf) for leaf in leaves]
                changed[i][k] += d
                moved.append(Reference(name, changed).ppf(quantile))
            expected = (moved[1] - moved[0]) / (2 * h)
            np.testing.assert_allclose(got[:, k], expected, rtol=2e-5, atol=2e-7)
    assert jax.tree.structure(jacobian) == treedef


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Normal", "Gamma"])
def test_draws_follow_the_density(name):
    x = np.asarray(make(name).sample(jax.random.key(1), (20_000,)), float)
    cdf = Reference(name, leaves_of(name)).cdf
    assert scipy.stats.kstest(x, cdf).pvalue > 1e-4
    assert scipy.stats.kstest(1.05 * x, cdf).pvalue < 1e-4


# ---- Gradients of expectations ------------------------------------------------------------------
#
# Those that are right on average are in test_estimators.py, with every other distribution's.


def two():
    """Two independent mixtures of two."""
    components = Normal(jnp.array([[-1.0, 0.8], [0.2, 1.5]]), jnp.array([[0.5, 0.7], [0.9, 0.4]]))
    return MixtureSameFamily(Categorical(jnp.array([[0.3, -0.4], [0.5, 0.2]])), components)


def cost(w, x):
    """Nonlinear, not separable, with parameters of its own."""
    return jnp.tanh(w[0] * x[0] * x[1] + w[1]) + jnp.cos(x[0] - 2 * x[1] + w[1])


def expected(params):
    return oracles.expectation(params[0], functools.partial(cost, params[1]))


def loss(params, key):
    return ge.reparameterize().expect(key, params[0], functools.partial(cost, params[1]))


def at_keys(function, params, num):
    keys = jax.random.split(jax.random.key(4), num)
    return jax.jit(jax.vmap(function, in_axes=(None, 0)))(params, keys)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_broken_variant_is_found_out(monkeypatch):
    """The derivative of the component drawn, held fixed: no gradient for the weights."""

    def chosen(x, m):
        one_hot = jax.nn.one_hot(jnp.argmax(mixture._joint(x, m), axis=-1), 2)
        component = m.component_distribution
        pick = lambda leaf: jnp.sum(one_hot * leaf, axis=-1)
        noise = (x - pick(component.loc)) / pick(component.scale)
        return pick(component.loc) + jax.lax.stop_gradient(noise) * pick(component.scale)

    params = (two(), jnp.array([0.9, -0.6]))
    want = jax.jit(jax.grad(expected))(params)[0]
    monkeypatch.setattr(mixture, "implicit", lambda _, x, m: chosen(x, m))
    got = at_keys(jax.grad(loss), params, 50_000)[0]
    for leaf in range(3):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(jax.tree.leaves(got)[leaf], jax.tree.leaves(want)[leaf])


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_second_derivatives_are_right():
    params = (two(), jnp.array([0.9, -0.6]))
    direction = jax.tree.map(lambda leaf: jnp.cos(3 * leaf), params)

    def curvature(function):
        gradient = lambda params, *key: jax.grad(function)(params, *key)
        return lambda params, *key: jax.jvp(
            lambda params: gradient(params, *key), (params,), (direction,)
        )[1]

    want = jax.jit(curvature(expected))(params)
    assert_unbiased(at_keys(curvature(loss), params, 400_000), want)


def test_second_derivatives_with_gamma_components_raise():
    total = lambda dist: jnp.sum(dist.sample(jax.random.key(0), (3,)) ** 2)
    twice = jax.grad(lambda d: sum(map(jnp.sum, jax.tree.leaves(jax.grad(total)(d)))))
    with pytest.raises(NotImplementedError, match="to first order only"):
        jax.eval_shape(twice, make("Gamma"))
    curvature = jax.jit(twice)(make("Weibull"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(curvature))


def test_under_the_transform_before_a_discrete_site():
    @ge.expectation
    def loss(dist, key):
        keys = jax.random.split(key)
        x = ge.reparameterize()(keys[0], dist)
        b = ge.score_function()(keys[1], dists.Bernoulli(x))
        return jnp.sum(b * x)

    gradient = jax.jit(jax.grad(loss))(two(), jax.random.key(0))
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(gradient))


# ---- Types, shapes, extremes -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", KINDS)
def test_types_and_masked_components(name, dtype):
    dist = make(name, dtype, logits=[0.3, -np.inf, 0.1])

    @jax.jit
    def evaluate(dist):
        x, pull = jax.vjp(lambda dist: dist.sample(jax.random.key(0), (200,)), dist)
        total = lambda dist: jnp.mean(dist.log_prob(jax.lax.stop_gradient(x)))
        return x, pull(jnp.ones_like(x) / x.size)[0], jax.value_and_grad(total)(dist)

    x, of_draws, (log_p, of_log_p) = evaluate(dist)
    assert x.dtype == log_p.dtype == dtype
    assert np.isfinite(log_p)
    for gradient in (of_draws, of_log_p):
        for leaf in jax.tree.leaves(gradient):
            assert leaf.dtype == dtype
            assert np.isfinite(np.asarray(leaf, float)).all()
            assert leaf[1] == 0
    without = make(name, jnp.float32)
    alone = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], without).log_prob(
        x.astype(jnp.float32)
    )
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(jnp.mean(alone), log_p, rtol=tolerance, atol=tolerance)


def extreme(name, dtype):
    """Components that are far apart, one of them a spike."""
    locs, scales = ([-1e4, 0.0, 1e4], [1e-3, 1e-2, 1e4]), ([0.01, 0.02, 1e4], [1e-3, 1.0, 1e3])
    parameters = {
        "LogNormal": ([-5.0, 0.0, 5.0], [1e-3, 1.0, 1.0]),
        "Exponential": scales[1:],
        "Gamma": (scales[0], [1.0, 1.0, 1.0]),
        "Weibull": (scales[1], scales[0]),
    }.get(name, locs)
    return KINDS[name](*(jnp.asarray(p, dtype) for p in parameters))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", KINDS)
def test_extreme_parameters(name, dtype, x64):
    logits = jnp.asarray([[-1e4, 0.0, 1e4], [0.0, 0.0, 0.0], [1e4, -1e4, 0.0]], dtype)
    dist = MixtureSameFamily(Categorical(logits), extreme(name, dtype))

    @jax.jit
    def evaluate(dist):
        x, pull = jax.vjp(lambda dist: dist.sample(jax.random.key(0), (30,)), dist)
        log_p, pull_log = jax.vjp(lambda dist: dist.log_prob(jax.lax.stop_gradient(x)), dist)
        return x, log_p, pull((jnp.abs(x) < 100).astype(dtype)), pull_log(jnp.ones_like(log_p))

    x, log_p, *gradients = evaluate(dist)
    assert x.dtype == log_p.dtype == dtype
    assert np.isfinite(np.asarray(x, float)).all()
    for leaf in jax.tree.leaves((log_p, gradients)):
        assert not np.isnan(np.asarray(leaf, float)).any()


@pytest.mark.usefixtures("x64")
def test_gamma_components_of_large_concentration_in_single_precision():
    """By double precision; derivatives in the weights have the digits of gammainc."""
    components = Gamma([100.0, 1e3, 1.01e3, 2e4], [0.1, 1.0, 1.0, 20.0])  # pyright: ignore[reportArgumentType]
    wide = MixtureSameFamily(Categorical(jnp.zeros(4)), components)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), wide)
    double = jax.tree.map(lambda leaf: leaf.astype(float), single)
    x = jax.jit(lambda dist: dist.sample(jax.random.key(0), (100,)))(single)

    @jax.jit
    def evaluate(dist, x):
        wide = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (100, 4)), dist)
        move = lambda moved: mixture._tangent(x, wide, moved)
        moves = jax.vmap(move)(unit_moves(wide))
        return dist.log_prob(x), moves

    (log_p, moves), (want_log_p, want) = evaluate(single, x), evaluate(double, x.astype(float))
    np.testing.assert_allclose(log_p, want_log_p, atol=2e-5)
    moves, want = np.asarray(moves, float), np.asarray(want)
    off = (np.abs(moves - want).max(axis=1) / np.abs(want).max(axis=1)).reshape(3, 4)
    assert (off[1:] < 1e-4).all()
    assert (off[0] < 1e-2).all()


def unit_moves(wide):
    """A tangent in each component of each leaf, stacked."""
    leaves, treedef = jax.tree.flatten(wide)
    num = len(leaves)
    units = np.eye(4)[:, None, :] * np.ones((100, 1))
    zeros = np.zeros_like(units)
    moves = (np.concatenate([units if i == j else zeros for j in range(num)]) for i in range(num))
    return treedef.unflatten(m.astype(leaf.dtype) for m, leaf in zip(moves, leaves, strict=True))


@pytest.mark.statistical
def test_outside_the_support_and_far_out():
    x = jnp.array([-1.0, 0.0])
    for name in ("LogNormal", "Gamma", "Weibull", "Exponential"):
        log_p = lambda dist: dist.log_prob(x)[0]
        value, gradient = jax.jit(jax.value_and_grad(log_p))(make(name))
        assert value == -np.inf
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # The digits of both tails: the derivative in a common loc is 1.
    tails = Normal(jnp.array([0.0, 1.0]), 1.0)
    dist = MixtureSameFamily(Categorical(jnp.zeros(2)), tails)
    moved = jax.tree.map(jnp.zeros_like, dist)
    moved.component_distribution.loc = jnp.ones(2)
    far = jnp.array([-6.0, 7.0, -4.0, 4.5])
    wide = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (4, 2)), (dist, moved))
    slope = jax.jit(mixture._tangent)(far, *wide)
    np.testing.assert_allclose(slope, 1, rtol=1e-4)


def test_empty_batches_lanes_and_transforms():
    stack = lambda leaf: jnp.stack([leaf, 1.3 * leaf, 0.7 * leaf])
    dist, keys = jax.tree.map(stack, two()), jax.random.split(jax.random.key(6), 3)
    alone = jax.jit(jax.vmap(lambda dist, key: dist.sample(key)))(dist, keys)
    np.testing.assert_allclose(dist.sample(keys), alone, rtol=1e-5)
    empty = jax.tree.map(lambda leaf: leaf[:0], dist)
    total = lambda dist: jnp.sum(dist.sample(jax.random.key(0), (2,)))
    assert jax.tree.leaves(jax.jit(jax.grad(total))(empty))[0].shape == (0, 2, 2)
    with jax.debug_key_reuse(True):
        assert two().sample(jax.random.key(0), (5,)).shape == (5, 2)
    stacked = jax.vmap(lambda l: MixtureSameFamily(Categorical(l), Normal([0.0, 1.0], 1.0)))  # pyright: ignore[reportArgumentType]
    assert stacked(jnp.zeros((4, 2))).shape == (4,)


def test_parameters_broadcast_and_are_checked():
    dist = MixtureSameFamily(Categorical(jnp.zeros((4, 2))), Normal([0.0, 1.0], 1.0))  # pyright: ignore[reportArgumentType]
    assert dist.shape == (4,)
    assert dist.component_distribution.shape == (4, 2)
    assert repr(dist) == (
        "MixtureSameFamily(mixing_distribution=Categorical(logits=float32[4, 2]), "
        "component_distribution=Normal(loc=float32[4, 2], scale=float32[4, 2]))"
    )
    weights = Categorical(jnp.zeros(2))
    with pytest.raises(TypeError, match=r"mixing_distribution: expected .* got Normal. It holds"):
        MixtureSameFamily(Normal(0.0, 1.0), Normal([0.0, 1.0], 1.0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"component_distribution: expected .* got Beta"):
        MixtureSameFamily(weights, Beta([0.4, 1.0], 1.0))  # pyright: ignore[reportArgumentType]
    for components in (Normal(0.0, 1.0), Normal(jnp.zeros(3), 1.0), Normal(jnp.zeros((2, 1)), 1.0)):
        with pytest.raises(ValueError, match="as many components as logits"):
            MixtureSameFamily(weights, components)
