"""Second derivatives of expectations of programs, cross terms with the cost included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs
from support.programs import assert_unbiased, bit, enumerated, keys, oracles

import gradest as ge
from gradest import distributions as dists

score, rebar, enumeration = ge.score_function(), ge.rebar(), ge.enumeration()
loo = ge.score_function(num_samples=4, baseline="leave_one_out")
split = jax.random.split


def params():
    return {"a": jnp.array([0.4, -0.6]), "w": jnp.array([0.9, -0.7])}


def cost(w, x, y):
    return (w[0] * x + 1.3 * w[1] * y + 0.6 * x * y) ** 2 + 0.5 * jnp.sin(2 * w[0] + y)


def two_draws(sampler, params, key):
    """The second one's parameter depends on the first draw."""
    a, w = params["a"], params["w"]
    k0, k1 = split(key)
    x = bit(sampler, k0, a[0])
    return cost(w, x, bit(sampler, k1, a[1] * (1 + 2 * x) + 0.3))


def two_draws_exactly(draw, params):
    a, w = params["a"], params["w"]
    x = draw(a[0])
    return cost(w, x, draw(a[1] * (1 + 2 * x) + 0.3))


def in_a_scan(sampler, params, key):
    """The same, with costs on the way."""
    a, w = params["a"], params["w"]

    def step(x, key):
        x = bit(sampler, key, a[0] + a[1] * x) * (w[0] + 0.5 * x)
        ge.cost(x * w[1])
        return x, None

    x, _ = jax.lax.scan(step, w[1], split(key, 2))
    return x**2


def in_a_scan_exactly(draw, params):
    a, w = params["a"], params["w"]
    x, total = w[1], 0.0
    for _ in range(2):
        x = draw(a[0] + a[1] * x) * (w[0] + 0.5 * x)
        total += x * w[1]
    return total + x**2


def forward_over_reverse(f):
    return jax.jacfwd(jax.grad(f))


def reverse_over_reverse(f):
    return jax.jacrev(jax.grad(f))


def forward_over_forward(f):
    return jax.jacfwd(jax.jacfwd(f))


MODES = {
    "jacfwd of grad": forward_over_reverse,
    "jacrev of grad": reverse_over_reverse,
    "jacfwd of jacfwd": forward_over_forward,
}


def hessian_of(loss, mode=jax.hessian):
    """Its estimates at many keys, as a function of (params, keys)."""
    loss = ge.expectation(loss)
    hessian = lambda params, key: mode(lambda params: loss(params, key))(params)
    return jax.vmap(hessian, in_axes=(None, 0))


def hessians(loss, num, mode=jax.hessian):
    return jax.jit(hessian_of(loss, mode))(params(), keys(num))


def hessians_by_mode(loss, num):
    """Of every mode, in one program."""
    modes = {name: hessian_of(loss, mode) for name, mode in MODES.items()}
    return jax.jit(lambda *args: {name: f(*args) for name, f in modes.items()})(params(), keys(num))


@functools.cache
def exact_hessian(program):
    return jax.jit(jax.hessian(enumerated(program)))(params())


CASES = {
    "score_function": (two_draws, two_draws_exactly, score),
    "baseline": (two_draws, two_draws_exactly, ge.score_function(baseline=0.5)),
    "leave_one_out": (two_draws, two_draws_exactly, loo),
    "scan": (in_a_scan, in_a_scan_exactly, score),
    "scan, baseline": (in_a_scan, in_a_scan_exactly, ge.score_function(baseline=0.5)),
}


@pytest.mark.statistical
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hessian_by_score_function(case):
    loss, program, sampler = case
    got = hessians(functools.partial(loss, sampler), 20_000 if sampler is loo else 100_000)
    assert_unbiased(got, exact_hessian(program))


@pytest.mark.statistical
def test_hessian_with_a_wrong_estimator():
    loss = functools.partial(two_draws, programs.wrong_score())
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(hessians(loss, 100_000), exact_hessian(two_draws_exactly))


def test_hessian_of_a_count():
    """Its draw is a loop of JAX's own, which not every JAX differentiates twice."""
    count = lambda log_rate, key: score(key, dists.Poisson(jnp.exp(log_rate))).astype(float)
    loss = ge.expectation(lambda log_rate, key: log_rate * count(log_rate, key))
    jax.eval_shape(jax.hessian(loss), 0.3, jax.random.key(0))


def test_hessian_by_enumeration():
    want = exact_hessian(two_draws_exactly)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for got in hessians_by_mode(functools.partial(two_draws, enumeration), 1).values():
        jax.tree.map(lambda g, w: close(g[0], w), got, want)


@pytest.mark.parametrize("loss", [two_draws, in_a_scan])
def test_modes_agree(loss):
    """Forward, reverse and both differentiate the same estimate."""
    loss = functools.partial(loss, ge.score_function(baseline=0.5))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    want, *others = hessians_by_mode(loss, 20).values()
    assert any(np.any(leaf) for leaf in jax.tree.leaves(want))
    for got in others:
        jax.tree.map(close, got, want)


def test_baseline_lowers_the_variance_of_second_derivatives():
    """In a loop as in straight-line code, where it multiplies earlier draws' scores too."""

    @jax.jit
    def variances(baseline):
        sampler, w = ge.score_function(baseline=baseline), params()["w"]

        def of(loss):
            far = lambda a, key: loss(sampler, {"a": a, "w": w}, key) + 1.0
            hessians = hessian_of(far)(params()["a"], keys(20_000))
            return jnp.sum(jnp.var(hessians, axis=0))

        return jnp.stack([of(two_draws), of(in_a_scan)])

    assert np.all(variances(1.0) < 0.7 * variances(0.0))


@pytest.mark.statistical
def test_hessian_by_reparameterize():
    normal = ge.reparameterize()

    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1 = split(key)
        x = normal(k0, dists.Normal(a[0], jnp.exp(a[1])))
        return cost(w, x, normal(k1, dists.Normal(a[1] * x, jnp.exp(a[0]))))

    def exactly(params):
        a, w = params["a"], params["w"]
        second = lambda x: dists.Normal(a[1] * x, jnp.exp(a[0]))
        given = lambda x: oracles.expectation(second(x), lambda y: cost(w, x, y))
        return oracles.expectation(dists.Normal(a[0], jnp.exp(a[1])), given)

    assert_unbiased(hessians(loss, 100_000), jax.jit(jax.hessian(exactly))(params()))


@pytest.mark.statistical
@pytest.mark.parametrize("first", [score, rebar, loo], ids=["score", "rebar", "loo"])
@pytest.mark.parametrize("second", [score, rebar], ids=["score", "rebar"])
def test_mixed_derivatives(first, second):
    """Once in the cost's parameters and once in the draws', by estimators of first order too."""

    def mixed(value):
        by_w = lambda a, w: jax.grad(lambda w: value({"a": a, "w": w}))(w)
        return jax.jacrev(by_w)(params()["a"], params()["w"])

    @ge.expectation
    def loss(params, key):
        a, w = params["a"], params["w"]
        k0, k1 = split(key)
        x = bit(first, k0, a[0])
        return cost(w, x, bit(second, k1, a[1] * (1 + 2 * x) + 0.3))

    run = lambda key: mixed(lambda params: loss(params, key))
    got = jax.jit(jax.vmap(run))(keys(50_000))
    assert_unbiased(got, jax.jit(lambda: mixed(enumerated(two_draws_exactly)))())


def test_second_derivative_through_rebar_raises():
    loss = functools.partial(two_draws, rebar)
    with pytest.raises(NotImplementedError, match=r"rebar: its gradient was differentiated again"):
        hessians(loss, 1, reverse_over_reverse)
    # Forward over reverse meets JAX's own refusal to push forward through a custom_vjp.
    with pytest.raises(TypeError, match="forward-mode"):
        hessians(loss, 1, forward_over_reverse)


def test_forward_mode():
    """Right where the estimator is an expression that JAX differentiates, else JAX's own error."""
    key = keys(1)[0]
    tangents = {"a": jnp.array([0.3, -0.8]), "w": jnp.array([1.1, 0.5])}

    def push(loss, sampler):
        expected = ge.expectation(functools.partial(loss, sampler))
        f = lambda params: expected(params, key)
        both = lambda params: (jax.grad(f)(params), jax.jvp(f, (params,), (tangents,))[1])
        gradient, pushed = jax.jit(both)(params())
        want = sum(jnp.vdot(gradient[name], tangents[name]) for name in tangents)
        np.testing.assert_allclose(pushed, want, rtol=1e-5)

    push(two_draws, score)
    push(two_draws, loo)
    push(two_draws, enumeration)
    push(in_a_scan, score)
    with pytest.raises(TypeError, match="forward-mode"):
        push(two_draws, rebar)
    draw = lambda logit: bit(score, key, logit)
    with pytest.raises(ge.UnestimatedGradientError, match="score_function: its draw"):
        jax.jit(lambda logit: jax.jvp(draw, (logit,), (1.0,)))(0.3)


EVEN = {
    "Bernoulli": lambda l: dists.Bernoulli(l).log_prob(1.0),
    "Geometric": lambda l: dists.Geometric(l).log_prob(2),
    "Binomial": lambda l: dists.Binomial(jnp.array(3), l).log_prob(1),
    "NegativeBinomial": lambda l: dists.NegativeBinomial(2.0, l).log_prob(1),
    "entropy": lambda l: dists.Bernoulli(l).entropy(),
    "Subset": lambda l: dists.Subset(jnp.stack([l, 0 * l, l]), 1).log_prob(jnp.eye(3)[0]),
}


@pytest.mark.parametrize("name", EVEN)
def test_of_even_odds_in_a_scan(name):
    """Logits of exactly 0, of which a scan forgets the rule of `jax.nn.log_sigmoid`."""

    def scanned(p):
        # What is known before the loop is not in it.
        step = lambda c, _: (0.5 + 0 * c, EVEN[name](p - c))
        return jnp.sum(jax.lax.scan(step, jnp.full((), 0.5), None, length=3)[1])

    twice = jax.jit(lambda p: (jax.grad(jax.grad(scanned))(p), jax.hessian(scanned)(p)))
    exact = 3 * jax.grad(jax.grad(EVEN[name]))(0.0)
    if name == "Subset":
        # Its own sum is a scan: here the probability by itself, e^l / (2 e^l + 1).
        exact = 3 * -2 / 9
    np.testing.assert_allclose(twice(jnp.float32(0.5)), exact, rtol=1e-5)


def test_of_equal_logits_of_a_subset():
    """Against those of an array of all subsets."""
    l = jnp.zeros(4)
    dist = dists.Subset(l, 2)
    x = dist.enumerate_support()

    def by_sums(l):
        log_p = jax.nn.log_softmax(x @ l)
        p = jnp.exp(log_p)
        return log_p[0], -jnp.sum(p * log_p), (p @ x)[0]

    def of(l):
        law = dists.Subset(l, 2)
        return law.log_prob(x[0]), law.entropy(), law.mean()[0]

    for got, want in zip(jax.jit(jax.hessian(of))(l), jax.hessian(by_sums)(l), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("law", [lambda: dists.Poisson(2.0), lambda: dists.Binomial(3, 0.4)])
def test_a_law_of_constants_in_a_scan_under_vmap(law):
    """Its parameters are literals of the program, which are no arrays."""

    @ge.expectation
    def loss(w, key):
        draw = lambda c, key: (c + w * ge.score_function()(key, law()).astype(float), None)
        return jax.lax.scan(draw, 0.0, jax.random.split(key, 2))[0]

    keys = jax.random.split(jax.random.key(0), 3)
    one_by_one = [jax.grad(loss)(1.0, key) for key in keys]
    got = jax.vmap(jax.grad(loss), (None, 0))(1.0, keys)
    np.testing.assert_allclose(got, jnp.stack(one_by_one), rtol=1e-6)
