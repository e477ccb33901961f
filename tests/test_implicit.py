"""Implicitly reparameterized draws: densities, draws and, above all, derivatives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from support.cases import DISTRIBUTIONS, assert_unbiased, oracles, wave, weights

import gradest as ge
from gradest.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Gamma,
    StudentT,
    VonMises,
    Weibull,
    _implicit,
    _log_gamma,
    _special,
    vonmises,
)

KINDS = {
    "Gamma": lambda *p: Gamma(*p),
    "Beta": lambda *p: Beta(*p),
    "Dirichlet": lambda *p: Dirichlet(*p),
    "StudentT": lambda *p: StudentT(*p),
    "VonMises": lambda *p: VonMises(*p),
    "Weibull": lambda *p: Weibull(*p),
}
# Two elements, or one vector of three.
PARAMETERS = {
    "Gamma": ([0.6, 2.5], [1.2, 2.0]),
    "Beta": ([0.7, 2.0], [1.5, 0.8]),
    "Dirichlet": ([0.8, 1.5, 0.6],),
    "StudentT": ([4.0, 3.0], [0.5, -0.3], [0.7, 1.2]),
    "VonMises": ([0.5, -1.0], [0.8, 3.0]),
    "Weibull": ([1.2, 0.7], [0.8, 2.0]),
}
SCIPY = {
    "Gamma": lambda a, rate: scipy.stats.gamma(a, scale=1 / rate),
    "Beta": scipy.stats.beta,
    "StudentT": scipy.stats.t,
    "VonMises": lambda loc, k: scipy.stats.vonmises(k, loc=loc),
    "Weibull": lambda scale, k: scipy.stats.weibull_min(k, scale=scale),
}
HALF = [jnp.float16, jnp.bfloat16]


def make(name, dtype=float):
    return KINDS[name](*(jnp.asarray(p, dtype) for p in PARAMETERS[name]))


# ---- Densities ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCIPY)
def test_log_density_is_scipys(name, x64):
    reference = SCIPY[name](*(np.asarray(p) for p in PARAMETERS[name]))
    x = reference.ppf(np.linspace(0.001, 0.999, 60)[:, None])
    got = jax.jit(lambda dist: dist.log_prob(x))(make(name))
    np.testing.assert_allclose(got, reference.logpdf(x), rtol=1e-10, atol=1e-10)


def test_scores_of_what_no_draw_is_near(x64):
    """Where the density falls as an exponential of 1e7, a score has its digits."""
    given = [30, 1e-3, 9], [2e4, 1e30, 1e-30], [6e4, 1e20, 2]
    a, rate, x = (jnp.array(v, jnp.float32) for v in given)
    of_a, of_rate = jax.grad(lambda *p: jnp.sum(Gamma(*p).log_prob(x)), (0, 1))(a, rate)
    digamma = scipy.special.digamma
    a, rate, x = (np.asarray(v, float) for v in (a, rate, x))
    np.testing.assert_allclose(of_a, np.log(x * rate) - digamma(a), rtol=1e-5)
    np.testing.assert_allclose(of_rate, a / rate - x, rtol=1e-5)
    a, b, x = (jnp.float32(v) for v in (1e-3, 6e4, 0.995))
    got = jax.grad(lambda a: Beta(a, b).log_prob(x))(a)
    a, b, x = map(float, (a, b, x))
    np.testing.assert_allclose(got, np.log(x) - digamma(a) + digamma(a + b), rtol=1e-5)


def test_log_density_of_dirichlet_is_scipys(x64):
    x = np.random.default_rng(0).dirichlet([1.0, 2.0, 0.5], size=40)
    reference = scipy.stats.dirichlet(PARAMETERS["Dirichlet"][0])
    np.testing.assert_allclose(make("Dirichlet").log_prob(x), reference.logpdf(x.T), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "x"),
    [("Gamma", [-1.0, 0.0]), ("Beta", [0.0, 1.0]), ("Weibull", [-1.0, 0.0]), ("Beta", [-1.0, 2.0])],
)
def test_outside_the_support(name, x):
    @jax.jit
    def value_and_gradient(dist):
        value, gradient = jax.vjp(lambda dist: dist.log_prob(jnp.array(x)), dist)
        return value, gradient(jnp.ones(2))

    value, gradient = value_and_gradient(make(name))
    np.testing.assert_array_equal(value, -np.inf)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.usefixtures("x64")
def test_log_density_of_von_mises_at_any_concentration():
    x, k = np.array([[-3.0], [0.4], [0.0], [1e-2]]), np.array([0.0, 1e-3, 1.0, 30.0, 1e4])
    expected = k * (np.cos(x) - 1) - np.log(2 * np.pi * scipy.special.i0e(k))
    log_prob = jax.jit(lambda k, x: VonMises(jnp.zeros_like(k), k).log_prob(x))
    np.testing.assert_allclose(log_prob(k, x), expected, rtol=1e-11)
    x, k32 = x.astype(np.float32), k.astype(np.float32)
    np.testing.assert_allclose(log_prob(k32, x), expected, rtol=2e-6, atol=2e-6)
    # cos(x) - E[cos], without a digit lost in single precision.
    x = jnp.full_like(k32, 1e-2)
    score = jax.jit(jax.grad(lambda k: jnp.sum(VonMises(jnp.zeros_like(k), k).log_prob(x))))
    mean = scipy.special.i1e(k) / scipy.special.i0e(k)
    off = np.abs(np.asarray(score(k32)) - (np.cos(1e-2) - mean))
    assert (off < 1e-5 * np.abs(np.cos(1e-2) - mean) + 1e-6 * (1 - mean)).all()


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_log_beta(dtype, rtol, x64):
    """By scipy, where it is right to the last digits itself, and its derivative."""
    v = np.array([1e-3, 0.4, 1.0, 7.9, 8.0, 8.1, 20.0, 300.0], dtype)
    a, b = (x.ravel() for x in np.meshgrid(v, v))
    expected = scipy.special.betaln(a.astype(float), b.astype(float))
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(_special.log_beta)))(a, b)
    np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol)
    a, b = a.astype(float), b.astype(float)
    expected = scipy.special.digamma(a) - scipy.special.digamma(a + b)
    np.testing.assert_allclose(slopes, expected, rtol=10 * rtol, atol=rtol)


# ---- Draws ----------------------------------------------------------------------------------


def assert_drawn_from(draws, cdf):
    """By Kolmogorov and Smirnov's test."""
    draws = np.asarray(draws, float)
    assert np.isfinite(draws).all()
    assert scipy.stats.kstest(draws, cdf).pvalue > 1e-4


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Gamma", "Beta", "StudentT", "Weibull"])
def test_draws_follow_the_density(name):
    x = make(name).sample(jax.random.key(1), (60_000,))
    assert x.shape == (60_000, 2)
    for i in range(2):
        cdf = SCIPY[name](*(p[i] for p in PARAMETERS[name])).cdf
        assert_drawn_from(x[:, i], cdf)
        with pytest.raises(AssertionError):
            assert_drawn_from(x[:, i] * 1.05 if name != "Beta" else x[:, i] ** 1.05, cdf)


@pytest.mark.statistical
def test_draws_of_dirichlet_follow_the_density():
    a = np.array(PARAMETERS["Dirichlet"][0])
    x = np.asarray(make("Dirichlet").sample(jax.random.key(1), (20_000,)))
    np.testing.assert_allclose(x.sum(axis=1), 1, rtol=1e-5)
    for i in range(3):
        assert_drawn_from(x[:, i], scipy.stats.beta(a[i], a.sum() - a[i]).cdf)
    together = x[:, 0] + x[:, 1]
    assert_drawn_from(together, scipy.stats.beta(a[0] + a[1], a[2]).cdf)


@pytest.mark.statistical
def test_draws_of_von_mises_follow_the_density():
    concentrations = np.array([0.0, 1e-3, 0.4, 3.0, 60.0, 1e4])
    draws = VonMises(jnp.zeros(6), concentrations).sample(jax.random.key(2), (20_000,))
    assert (np.abs(draws) <= np.float32(np.pi)).all()
    for i, k in enumerate(concentrations):
        t = np.linspace(-1, 1, 4001) * min(np.pi, 9 / math.sqrt(max(k, 1e-9)))
        density = np.exp(-2 * k * np.sin(t / 2) ** 2)
        mass = scipy.integrate.cumulative_simpson(density, x=t, initial=0)
        cdf = lambda x, t=t, mass=mass: np.interp(x, t, mass / mass[-1])
        assert_drawn_from(draws[:, i], cdf)


def test_angles_are_wrapped():
    turned = VonMises(3.0, 2.0).sample(jax.random.key(2), (2000,))
    straight = VonMises(0.0, 2.0).sample(jax.random.key(2), (2000,))
    np.testing.assert_allclose(np.cos(turned), np.cos(straight + 3.0), atol=1e-5)
    assert (np.abs(turned) < 3.1416).all()
    assert np.min(turned) < -2.5


def test_a_concentration_that_is_not_a_number_ends_the_rejection():
    x = jax.jit(lambda k: VonMises(0.0, k).sample(jax.random.key(0)))(jnp.array([np.nan, 1.0]))
    np.testing.assert_array_equal(np.isnan(x), [True, False])


# ---- Derivatives of draws ---------------------------------------------------------------------

QUANTILES = np.array([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999])
slope_of_gamma = jax.jit(_log_gamma.slope)
slope_of_von_mises = jax.jit(vonmises._slope)


@pytest.mark.usefixtures("x64")
def test_gamma_draws_keep_their_quantile():
    a = np.array([0.02, 0.1, 0.7, 1.0, 3.0, 29.0, 31.0, 390.0, 1e3])
    h, quantiles = 1e-4 * a, QUANTILES[:, None]
    low, high = (np.log(scipy.special.gammaincinv(a + d, quantiles)) for d in (-h, h))
    y = np.log(scipy.special.gammaincinv(a, quantiles))
    known = y > -690
    got = slope_of_gamma(y, np.broadcast_to(a, y.shape))
    np.testing.assert_allclose(got[known], ((high - low) / (2 * h))[known], rtol=3e-7)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 2e-6), (jnp.float64, 1e-9)])
def test_precision_of_the_derivative_of_gamma_draws(dtype, rtol, x64):
    """By JAX's series in double precision, which have the digits, on both sides of a = 30."""
    a = np.array([[1e-3, 0.01, 0.1, 0.7, 1.0, 3.0, 25.0, 29.99, 30.01, 40.0, 1e3, 1e5]], dtype)
    quantiles = np.array([1e-9, *QUANTILES, 1 - 1e-6, 1 - 1e-9])[:, None]
    x = scipy.special.gammaincinv(a.astype(float), quantiles)
    y = np.log(np.maximum(x, 1e-300)).astype(dtype)
    a = np.broadcast_to(a, y.shape)
    x = np.exp(y.astype(float))
    exact = jax.jit(jax.lax.random_gamma_grad)(a.astype(float), x) / x
    np.testing.assert_allclose(slope_of_gamma(y, a), exact, rtol=rtol)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_derivative_where_the_draw_underflows(dtype, x64):
    """As x goes to 0, log x = (log u + log Gamma(a + 1)) / a."""
    y, a = jnp.asarray([-100.0, -1000.0, -5e4, -1e30], dtype), jnp.full(4, 0.01, dtype)
    expected = (scipy.special.digamma(1.01) - np.asarray(y)) / 0.01
    np.testing.assert_allclose(slope_of_gamma(y, a), expected, rtol=1e-5)


def von_mises_slope(x, k):
    """-dF/dk / p, by an integral from the end where it does not cancel."""
    mean = scipy.special.i1e(k) / scipy.special.i0e(k)
    end = 0.0 if k * (1 - np.cos(x)) < 4 else math.copysign(np.pi, x)
    t, dt = oracles.gauss_legendre(x, end, 200, 16)
    return np.sum(dt * (np.cos(t) - mean) * np.exp(k * (np.cos(t) - np.cos(x))))


@pytest.mark.usefixtures("x64")
def test_von_mises_draws_keep_their_quantile():
    k = np.array([0.0, 0.05, 1.0, 6.0, 40.0, 1e3])
    x = np.array([[-1e-3], [0.3], [-1.0], [2.0], [3.1]]) * np.minimum(
        1, 2 / np.sqrt(np.maximum(k, 1e-9))
    )
    k = np.broadcast_to(k, x.shape)
    expected = np.vectorize(von_mises_slope)(x, k)
    np.testing.assert_allclose(slope_of_von_mises(x, k), expected, rtol=1e-9)
    single = slope_of_von_mises(x.astype(np.float32), k.astype(np.float32))
    np.testing.assert_allclose(single, expected, rtol=2e-5)


@pytest.mark.usefixtures("x64")
def test_where_the_integrals_for_von_mises_take_turns():
    """The tail's and the centre's, which are the same."""
    k = np.array([[5.0, 200.0, 1e4]])
    edge = 2 * np.arcsin(np.sqrt(2 / k)) * np.array([[1 - 1e-9], [1 + 1e-9]])
    below, above = slope_of_von_mises(edge, np.broadcast_to(k, edge.shape))
    np.testing.assert_allclose(below, above, rtol=1e-7)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float64, 1e-8)])
def test_von_mises_far_from_the_mode(dtype, rtol, x64):
    x = np.array([[np.pi / 2], [3.0], [np.pi]], dtype) * np.ones(3, dtype)
    k = np.array([5.0, 200.0, 1e4], dtype) * np.ones((3, 1), dtype)
    got = np.asarray(slope_of_von_mises(x, k))
    assert np.isfinite(got).all()
    expected = np.vectorize(von_mises_tail)(x[:2].astype(float), k[:2].astype(float))
    np.testing.assert_allclose(got[:2], expected, rtol=rtol)


def von_mises_tail(x, k):
    """-dF/dk / p, by an integral to pi that is split where the density falls."""
    mean = scipy.special.i1e(k) / scipy.special.i0e(k)
    tail = lambda t: (np.cos(t) - mean) * np.exp(k * (np.cos(t) - np.cos(x)))
    points = np.minimum(x + np.array([0, 1, 5, 30]) / (k * np.sin(x)), np.pi)
    pieces = zip(points, [*points[1:], np.pi], strict=True)
    return sum(scipy.integrate.quad(tail, *ends, epsabs=0)[0] for ends in pieces)


@pytest.mark.parametrize("name", ["Gamma", "VonMises", "Weibull"])
def test_derivatives_of_draws_are_those_of_the_quantile_function(name, x64):
    """End to end, with scipy's inverse distribution functions, in every parameter."""
    dist, key = make(name), jax.random.key(3)
    x = np.asarray(dist.sample(key, (20,)))
    parameters = [np.asarray(p, float) for p in PARAMETERS[name]]
    reference = SCIPY[name]
    if name == "VonMises":  # scipy's goes on beyond pi
        x = np.where(x < parameters[0] - np.pi, x + 2 * np.pi, x)
        x = np.where(x > parameters[0] + np.pi, x - 2 * np.pi, x)
    quantile = reference(*parameters).cdf(x)
    jacobian = jax.tree.leaves(jax.jit(jax.jacfwd(lambda d: d.sample(key, (20,))))(dist))
    for i, got in enumerate(jacobian):
        moved = [p.copy() for p in parameters], [p.copy() for p in parameters]
        h = 1e-5
        moved[0][i] -= h
        moved[1][i] += h
        low, high = (reference(*m).ppf(quantile) for m in moved)
        # An element depends on its own parameters only.
        assert not got[:, 0, 1].any()
        assert not got[:, 1, 0].any()
        got = np.stack([got[:, 0, 0], got[:, 1, 1]], axis=1)
        tolerance = 2e-5 if name == "VonMises" else 1e-7
        np.testing.assert_allclose(got, (high - low) / (2 * h), rtol=tolerance, atol=tolerance)


# ---- Gradients of expectations ------------------------------------------------------------------
#
# Those that are right on average are in test_estimators.py, with every other distribution's.


def problem(name):
    """A loss by `reparameterize`, its parameters, and its exact counterpart."""
    dist = DISTRIBUTIONS[name]()
    cost = lambda w: functools.partial(wave, w)
    loss = lambda params, key: ge.reparameterize().expect(key, params[0], cost(params[1]))
    exact = lambda params: oracles.expectation(params[0], cost(params[1]))
    return loss, (dist, weights(dist)), exact


def gradients(loss, params, num):
    keys = jax.random.split(jax.random.key(4), num)
    return jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(params, keys)


def no_derivative(name, patch):
    zero = lambda y, parameter: jnp.zeros_like(y)
    if name == "VonMises":
        patch.setattr(vonmises, "_slope", zero)
    else:
        patch.setattr(_log_gamma, "slope", zero)


def naive(name, patch):
    """Formulas for small draws, and for large concentrations, used everywhere."""
    if name == "VonMises":
        patch.setattr(vonmises, "_slope", lambda x, k: -x / (2 * k))
    else:
        small = lambda y, a: (jax.scipy.special.digamma(a + 1) - y) / a
        patch.setattr(_log_gamma, "slope", small)


@pytest.mark.statistical
@pytest.mark.parametrize("broken", [no_derivative, naive])
@pytest.mark.parametrize("name", ["Gamma", "VonMises"])
def test_broken_variant_is_found_out(name, broken, monkeypatch):
    loss, params, exact = problem(name)
    want = jax.jit(jax.grad(exact))(params)[0]
    broken(name, monkeypatch)
    _, (got, _) = gradients(loss, params, 50_000)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got.concentration, want.concentration)


@pytest.mark.statistical
def test_small_concentrations_in_single_precision():
    """Where both Gamma variables underflow, and their ratio does not."""
    a, b = 0.01, 0.02
    keys = jax.random.split(jax.random.key(5), 20)

    def gradients(draw):
        mean = lambda parameters, key: jnp.mean(draw(key, *parameters))
        return np.stack(jax.jit(jax.vmap(jax.grad(mean), in_axes=(None, 0)))((a, b), keys), axis=1)

    got = gradients(lambda key, a, b: Beta(a, b).sample(key, (20_000,)))
    exact = np.array([b, -a]) / (a + b) ** 2
    error = got.std(axis=0, ddof=1) / math.sqrt(len(keys))
    assert (error < 0.02 * np.linalg.norm(exact)).all()
    assert (np.abs(got.mean(axis=0) - exact) < 4.5 * error).all()
    # With the derivative at the smallest number instead, the gradient is another.
    clamped = gradients(lambda key, a, b: jax.random.beta(key, a, b, (5_000,))).mean(axis=0)
    assert (np.abs(clamped - exact) > 4.5 * error).any()


@pytest.mark.statistical
def test_before_a_discrete_site():
    """A Bernoulli draw that depends on a Gamma one, under the transform."""
    gammas, bits = ge.reparameterize(), ge.score_function()

    @ge.expectation
    def loss(params, key):
        dist, w = params
        keys = jax.random.split(key)
        x = gammas(keys[0], dist)
        b = bits(keys[1], Bernoulli(jnp.sum(w * x)))
        return wave(w, x) + b * jnp.sin(x[0] * x[1])

    def inner(w, x):
        return wave(w, x) + jax.nn.sigmoid(jnp.sum(w * x)) * jnp.sin(x[0] * x[1])

    _, params, _ = problem("Gamma")
    exact = lambda params: oracles.expectation(params[0], functools.partial(inner, params[1]))
    want = jax.jit(jax.value_and_grad(exact))(params)
    assert_unbiased(gradients(loss, params, 100_000), want)


# ---- Second derivatives -------------------------------------------------------------------------


@pytest.mark.statistical
def test_second_derivatives_of_von_mises_are_right():
    loss, params, exact = problem("VonMises")
    direction = (VonMises(jnp.array([1.0, -0.5]), jnp.array([0.7, 1.0])), jnp.array([0.5, 0.3]))

    def curvature(loss):
        gradient = lambda params, *key: jax.grad(loss)(params, *key)
        return lambda params, *key: jax.jvp(
            lambda params: gradient(params, *key), (params,), (direction,)
        )[1]

    want = jax.jit(curvature(exact))(params)
    keys = jax.random.split(jax.random.key(4), 200_000)
    got = jax.jit(jax.vmap(curvature(loss), in_axes=(None, 0)))(params, keys)
    assert_unbiased(got, want)


@pytest.mark.parametrize("name", ["Gamma", "Beta", "Dirichlet", "StudentT"])
def test_second_derivatives_in_the_concentration_raise(name):
    dist = make(name)
    total = lambda dist: jnp.sum(dist.sample(jax.random.key(0)) ** 2)
    twice = jax.grad(lambda d: sum(map(jnp.sum, jax.tree.leaves(jax.grad(total)(d)))))
    with pytest.raises(NotImplementedError, match=r"to first order only\. Use score_function"):
        jax.eval_shape(twice, dist)


def in_scan(draw):
    """The draws' parameter is the carry, whose derivative a scan finds in several passes."""

    def run(p):
        step = lambda p, key: (0.5 * p + 0.1 * jnp.sin(draw(p, key)) + 0.4, None)
        return jax.lax.scan(step, p, jax.random.split(jax.random.key(0), 3))[0]

    return run


def in_a_loop(draw):
    def run(p):
        for key in jax.random.split(jax.random.key(0), 3):
            p = 0.5 * p + 0.1 * jnp.sin(draw(p, key)) + 0.4
        return p

    return run


TWICE = {
    "hessian": jax.hessian,
    "reverse": lambda f: jax.grad(jax.grad(f)),
    "forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "reverse of jit": lambda f: jax.grad(jax.jit(jax.grad(f))),
}


@pytest.mark.parametrize("twice", TWICE)
def test_second_derivatives_in_a_scan_raise(twice):
    loss = in_scan(lambda a, key: Gamma(a, 1.0).sample(key))
    with pytest.raises(NotImplementedError, match="to first order only"):
        jax.eval_shape(TWICE[twice](loss), 2.0)


@pytest.mark.usefixtures("x64")
def test_second_derivatives_of_von_mises_in_a_scan():
    draw = lambda k, key: VonMises(0.2, k).sample(key)
    got = jax.jit(lambda k: [twice(in_scan(draw))(k) for twice in TWICE.values()])(2.0)
    want = jax.jit(TWICE["forward"](in_a_loop(draw)))(2.0)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_second_derivatives_in_the_rate_pass():
    draw = lambda a, rate: Gamma(a, rate).sample(jax.random.key(0))

    @jax.jit
    def derivatives(a, rate):
        (x, of_a), (mixed, twice) = (
            (draw(a, rate), jax.grad(draw, 0)(a, rate)),
            (jax.grad(jax.grad(draw, i), 1)(a, rate) for i in (0, 1)),
        )
        return x, of_a, mixed, twice

    x, of_a, mixed, twice = derivatives(2.0, 3.0)
    np.testing.assert_allclose(twice, 2 * x / 9, rtol=1e-5)
    np.testing.assert_allclose(mixed, -of_a / 3, rtol=1e-5)


# ---- Types, shapes, extremes -----------------------------------------------------------------


EXTREMES = [1e-3, 0.01, 1.0, 100.0, 1e4]
EXTREME = {
    "Gamma": lambda v: (v[:, None], v[None, :]),
    "Beta": lambda v: (v[:, None], v[None, :]),
    "Dirichlet": lambda v: (jnp.stack(jnp.meshgrid(v, v), -1),),
    "StudentT": lambda v: (v[:, None], jnp.zeros((1, 5), v.dtype), v[None, :]),
    "VonMises": lambda v: (jnp.asarray([[0.0, 3.0, -3.0]], v.dtype), v[:, None]),
    "Weibull": lambda v: (v[:, None], v[None, :]),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_parameters_give_finite_draws_and_gradients(name, dtype, x64):
    dist = KINDS[name](*EXTREME[name](jnp.asarray(EXTREMES, dtype)))

    @jax.jit
    def evaluate(dist):
        x, pull = jax.vjp(lambda dist: dist.sample(jax.random.key(0), (50,)), dist)
        # Of a draw of the order of 1e7, in half precision nothing is finite.
        gradient = () if dtype == jnp.float16 else pull((jnp.abs(x) < 1e3).astype(dtype))
        return x, dist.log_prob(jax.lax.stop_gradient(x)), gradient

    x, log_p, gradient = evaluate(dist)
    assert x.dtype == log_p.dtype == dtype
    assert x.shape == (50, *dist.shape)
    assert np.isfinite(np.asarray(x, float)).all()
    assert not np.isnan(np.asarray(log_p, float)).any()
    if name in ("Gamma", "Dirichlet", "Weibull", "Beta"):
        assert (x > 0).all()
    if name == "Beta":
        assert (x < 1).all()
    for leaf in jax.tree.leaves(gradient):
        assert leaf.dtype == dtype
        assert np.isfinite(np.asarray(leaf)).all()
    if dtype in (jnp.float32, jnp.float64):
        assert np.isfinite(np.asarray(log_p)).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_half_precision_is_single_precision_rounded(name):
    draw = jax.jit(lambda dist: dist.sample(jax.random.key(0), (200,)))
    log_prob = jax.jit(lambda dist, x: dist.log_prob(x))
    for dtype in HALF:
        dist = make(name, dtype)
        x = draw(dist)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), dist)
        np.testing.assert_allclose(np.asarray(x, float), draw(wide), rtol=1e-2, atol=1e-3)
        got = np.asarray(log_prob(dist, x), float)
        expected = log_prob(wide, x.astype(jnp.float32))
        np.testing.assert_allclose(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", PARAMETERS)
def test_empty_batches(name):
    shape = (0, 3)
    dist = KINDS[name](*(jnp.ones(shape) for _ in PARAMETERS[name]))

    def total(dist):
        x = dist.sample(jax.random.key(0), (2,))
        return jnp.sum(x) + jnp.sum(dist.log_prob(x)), x

    gradient, x = jax.jit(jax.grad(total, has_aux=True))(dist)
    assert x.shape == (2, *shape)
    assert all(leaf.shape == shape for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", PARAMETERS)
def test_lanes_draw_what_each_would_alone(name):
    dist = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.3 * leaf, 0.7 * leaf]), make(name))
    keys = jax.random.split(jax.random.key(6), 3)

    @jax.jit
    def evaluate(dist):
        together, pull = jax.vjp(lambda dist: dist.sample(keys), dist)
        each = lambda dist, key: jax.vjp(lambda dist: dist.sample(key), dist)
        one = jnp.ones_like(together)
        alone = jax.vmap(lambda dist, key, ct: (each(dist, key)[0], each(dist, key)[1](ct)))
        return (together, pull(one)), alone(dist, keys, one)

    got, want = map(jax.tree.leaves, evaluate(dist))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for gradient, expected in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=2e-4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_transforms_and_keys(name):
    dist = make(name)
    draw = lambda key: dist.sample(key, (3,))
    expected = draw(jax.random.key(0))
    np.testing.assert_allclose(jax.jit(draw)(jax.random.key(0)), expected, rtol=1e-5)
    np.testing.assert_array_equal(draw(jax.random.PRNGKey(0)), expected)
    with jax.debug_key_reuse(True):
        draw(jax.random.key(0))
    rbg = draw(jax.random.key(0, impl="rbg"))
    assert np.isfinite(rbg).all()


def test_parameters_broadcast_and_are_checked():
    assert Gamma(2.0, jnp.ones(3)).concentration.shape == (3,)
    assert StudentT(jnp.ones((2, 1)), 0, jnp.ones(3)).shape == (2, 3)
    assert (
        repr(Beta(jnp.ones(2), 1)) == "Beta(concentration1=float32[2], concentration0=float32[2])"
    )
    for wrong in (1.0, np.zeros((2, 0))):
        with pytest.raises(ValueError, match="concentration: expected the categories along"):
            Dirichlet(wrong)
    with pytest.raises(ValueError, match="shapes that broadcast, got loc:"):
        VonMises(jnp.zeros(2), jnp.ones(3))


def test_zero_and_one_category():
    x = Dirichlet(jnp.full((4, 1), 0.01)).sample(jax.random.key(0))
    np.testing.assert_array_equal(x, 1.0)


@pytest.mark.parametrize("dtype", [*HALF, jnp.float32])
def test_rounding_does_not_leave_an_open_interval(dtype):
    x = jnp.array([0.0, 1e-45, 0.5, 1.0, 1e30])
    got = np.asarray(_implicit.inside(x, dtype, 1.0), float)
    assert (got > 0).all()
    assert (got < 1).all()
    assert np.isfinite(np.asarray(_implicit.inside(x * 1e9, dtype), float)).all()
