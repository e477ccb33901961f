"""gaussian_smoothing: closed forms of its variances, and what pairs and blocks have in common."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import estimates
from support.estimates import assert_unbiased, assert_variance, of_dist, oracles

import gradest as ge
from gradest import distributions as dists
from gradest.distributions.base import Distribution
from gradest.estimators import gaussian_smoothing

B = np.array([1.0, -2.0, 0.5])
A = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, -0.5], [0.0, -0.5, 0.7]])
S = 0.5
SQUARE = float(B @ B)


def quadratic(x):
    return jnp.sum(jnp.asarray(B, x.dtype) * x) + 0.5 * jnp.sum(x * (jnp.asarray(A, x.dtype) @ x))


NORMAL = lambda: dists.Normal(jnp.zeros(3), S * jnp.ones(3))
#: The sum of the variances in the mean, of three dimensions.
TRACES = {
    "pair": (ge.gaussian_smoothing(1), 4 * SQUARE),
    "three": (ge.gaussian_smoothing(3), 4 * SQUARE / 3),
    "three orthogonal": (ge.gaussian_smoothing(3, orthogonal=True), 2 * SQUARE / 3),
    "six orthogonal": (ge.gaussian_smoothing(6, orthogonal=True), SQUARE / 3),
}


def total(samples):
    """Squared distances from the mean, of a mean that is known: their mean is the trace."""
    return np.sum((np.asarray(samples, float) - B) ** 2, axis=1)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_variances_of_a_quadratic_cost():
    def run(key):
        of = lambda sampler: jax.grad(lambda d: sampler.expect(key, d, quadratic))(NORMAL())
        return {name: of(sampler) for name, (sampler, _) in TRACES.items()}

    got = jax.jit(jax.vmap(run))(estimates.keys(100_000))
    means = {name: g.loc for name, g in got.items()}
    assert_unbiased(means, dict.fromkeys(TRACES, B))
    assert_unbiased(
        {name: g.scale for name, g in got.items()}, dict.fromkeys(TRACES, S * A.diagonal())
    )
    traces = {name: trace for name, (_, trace) in TRACES.items()}
    assert traces["pair"] == 21
    assert traces["three orthogonal"] == 3.5
    assert_unbiased({name: total(g) for name, g in means.items()}, traces)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased({name: 1.05 * total(g) for name, g in means.items()}, traces)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(total(means["three"]), traces["three orthogonal"])


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_one_variable():
    """A step; and the scale's variance for a parabola, with the other pair's baseline."""
    mu, s = 0.4, 1.5
    step = of_dist(
        ge.gaussian_smoothing(1), lambda x: (x > 1.0).astype(float), dists.Normal(mu, s), 200_000
    ).loc
    gradient = scipy.stats.norm.pdf(1.0, mu, s)
    np.testing.assert_allclose(gradient, 0.245513427, rtol=1e-8)
    assert_unbiased(step, gradient)
    assert_variance(step, 0.0490312271)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * step, 0.0490312271)

    # (F_1 - F_2) (e_1^2 - e_2^2) / (2 s) with F = s^2 e^2 is s (e_1^2 - e_2^2)^2 / 2, whose second
    # moment is s^2 / 4 E (e_1^2 - e_2^2)^4 = s^2 / 4 (2 * 60 + 6 * 2^2), by moments of e^2 - 1.
    pairs = of_dist(
        ge.gaussian_smoothing(2), lambda x: (x - 3.0) ** 2, dists.Normal(mu, s), 800_000
    ).scale
    assert_unbiased(pairs, 2 * s)
    assert_variance(pairs, s**2 / 4 * 144 - 4 * s**2)
    with pytest.raises(AssertionError, match="variance is"):
        assert_variance(1.05 * pairs, s**2 / 4 * 144 - 4 * s**2)


@pytest.mark.parametrize("num_pairs", [2, 3, 6, 7])
@pytest.mark.usefixtures("x64")
def test_orthogonal_directions(num_pairs):
    """Normal vectors up to their sign, those of a block orthogonal; and no offset matters."""
    draw = lambda key: gaussian_smoothing._directions(
        key, (3,), float, num_pairs, min(3, num_pairs)
    )
    e = jax.jit(jax.vmap(draw))(estimates.keys(20_000))
    assert e.shape[1:] == (num_pairs, 3)
    inner = np.abs(np.einsum("kin,kjn->ijk", e, e)).max(axis=-1)
    block = np.arange(num_pairs) // min(3, num_pairs)
    same = (block[:, None] == block[None, :]) & ~np.eye(num_pairs, dtype=bool)
    assert (inner[same] < 1e-12).all()
    assert (inner[~same] > 1).all()
    for one in (e[:, -1, 0], e[:, 0, 2]):
        assert scipy.stats.kstest(abs(np.asarray(one)), "halfnorm").pvalue > 1e-5
    assert scipy.stats.kstest(np.sum(e[:, -1] ** 2, axis=1), "chi2", (3,)).pvalue > 1e-5

    @jax.jit
    def shifted(c):
        sampler = ge.gaussian_smoothing(num_pairs, orthogonal=True)
        loss = lambda d: sampler.expect(jax.random.key(1), d, lambda x: quadratic(x) + c)
        return jax.grad(loss)(NORMAL())

    if num_pairs % 3 == 0 or num_pairs > 3:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), shifted(1e3), shifted(0.0)
        )


FACTOR = np.array([[0.8, 0.0, 0.0], [0.5, 0.9, 0.0], [0.2, -0.3, 0.6]])


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_a_vector_of_dependent_elements():
    loc = np.array([0.5, -0.3, 0.2])
    dist = dists.MultivariateNormal(loc, FACTOR)
    got = of_dist(ge.gaussian_smoothing(5, orthogonal=True), quadratic, dist, 200_000)
    assert_unbiased(got.loc, B + A @ loc)
    rows = np.tril_indices(3)
    want = (A @ FACTOR)[rows]
    assert_unbiased(got.scale_tril[:, *rows], want)
    assert not got.scale_tril[:, *np.triu_indices(3, 1)].any()
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got.scale_tril[:, *rows], want)


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_a_covariance_of_low_rank():
    loc, factor = np.array([0.5, -0.3, 0.2]), np.array([[0.6, 0.2], [-0.5, 0.1], [0.3, -0.7]])
    dist = dists.LowRankMultivariateNormal(loc, factor, np.array([0.5, 0.8, 0.3]))
    got = of_dist(ge.gaussian_smoothing(7, orthogonal=True), quadratic, dist, 100_000)
    want = [B + A @ loc, A @ factor, A.diagonal() / 2]
    assert_unbiased(jax.tree.leaves(got), want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased([1.05 * g for g in jax.tree.leaves(got)], want)


class Walk(Distribution):
    """A random walk from `start`, with steps of size `scale`: a distribution of one's own."""

    parameters = ("start", "scale")

    def __init__(self, start, scale):
        self.start, self.scale = jnp.asarray(start), jnp.asarray(scale)

    @property
    def shape(self):
        return (3,)

    noise_shape = shape

    def of_noise(self, e):
        return self.start + self.scale * jnp.cumsum(e)

    def sample(self, key, shape=()):
        raise NotImplementedError

    def log_prob(self, x):
        e = jnp.diff(x - self.start, prepend=0.0) / self.scale
        return jnp.sum(jax.scipy.stats.norm.logpdf(e) - jnp.log(self.scale))


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_a_distribution_of_ones_own():
    dist = Walk(0.4, 0.7)
    got = of_dist(ge.gaussian_smoothing(4, orthogonal=True), quadratic, dist, 100_000)
    steps = np.tril(np.ones((3, 3)))
    want = [B.sum() + 0.4 * A.sum(), 0.7 * np.trace(A @ steps @ steps.T)]
    assert_unbiased(jax.tree.leaves(got), want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased([1.05 * g for g in jax.tree.leaves(got)], want)


@pytest.mark.statistical
@pytest.mark.parametrize("orthogonal", [False, True], ids=["independent", "orthogonal"])
def test_in_sequence_with_other_draws(orthogonal):
    def after(x, expect):
        cost = lambda b: jnp.cos(x[0] + 2.0 * b[0]) * (1 + x[1] * b[0]) + (x[1] > 0.2).astype(float)
        return expect(dists.Bernoulli(jnp.sum(x)[None]), cost)

    @ge.expectation
    def loss(dist, key):
        one, two = jax.random.split(key)
        x = ge.gaussian_smoothing(4, orthogonal=orthogonal)(one, dist)
        return after(x, lambda d, cost: cost(ge.rebar(eta=0.0)(two, d)))

    dist = dists.Normal(jnp.array([0.3, -0.4]), jnp.array([0.7, 0.5]))
    got = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(dist, estimates.keys(200_000))
    # By quadrature, but for the step, which is known.
    smooth = lambda d: oracles.expectation(
        d,
        lambda x: (
            after(x, lambda d, cost: oracles.expectation(d, cost)) - (x[1] > 0.2).astype(float)
        ),
    )
    step = lambda d: jax.scipy.stats.norm.cdf((d.loc[1] - 0.2) / d.scale[1])
    want = jax.jit(jax.grad(lambda d: smooth(d) + step(d)))(dist)
    assert_unbiased(jax.tree.leaves(got), jax.tree.leaves(want))
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased([1.05 * g for g in jax.tree.leaves(got)], jax.tree.leaves(want))


def test_both_of_a_pair_have_the_same_draws_after_them():
    """So what does not depend on the pair cancels from the mean's gradient."""

    @ge.expectation
    def loss(m, key):
        one, two = jax.random.split(key)
        x = ge.gaussian_smoothing(3)(one, dists.Normal(m, 1.0))
        return 2.0 * x + 100 * ge.score_function()(two, dists.Normal(0.0, 1.0))

    g = estimates.gradients(loss, 0.3, 2_000)
    assert jnp.std(g) < 2 * math.sqrt(2 / 3) * 1.2


@pytest.mark.statistical
@pytest.mark.usefixtures("x64")
def test_beside_the_perturbations_of_optax():
    """The Jacobian of a perturbed argmax: variances summed over its entries."""
    perturbations = pytest.importorskip("optax.perturbations")
    logits = jnp.array([0.5, -0.2, 0.3])
    hard = lambda x: jax.nn.one_hot(jnp.argmax(x), 3, dtype=x.dtype)

    def there(noise):
        perturbed = perturbations.make_perturbed_fun(hard, 1, 1.0, noise, use_baseline=False)
        return lambda key: jax.jacrev(lambda l: perturbed(key, l))(logits)

    def here(sampler, law, of_draw):
        row = lambda key, i: jax.grad(
            lambda l: sampler.expect(key, law(l), lambda x: of_draw(x)[i])
        )(logits)
        return lambda key: jnp.stack([row(key, i) for i in range(3)])

    normal = lambda l: dists.Normal(l, jnp.ones(3))
    ways = {
        "Gumbel, optax": there(perturbations.Gumbel()),
        "Gumbel": here(ge.score_function(), dists.OneHotCategorical, lambda x: x),
        "Normal, optax": there(perturbations.Normal()),
        "Normal, pair": here(ge.gaussian_smoothing(1), normal, hard),
    }
    run = lambda key: {name: way(key) for name, way in ways.items()}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        got = jax.jit(jax.vmap(run))(estimates.keys(200_000))
    p = jax.nn.softmax(logits)
    of_gumbel = np.diag(p) - np.outer(p, p)
    diagonal, off = [0.304743076, 0.207135713, 0.286635224], [-0.112621783, -0.192121294]
    (a, b, c), (d, e), f = diagonal, off, -0.0945139304
    of_normal = np.array([[a, d, e], [d, b, f], [e, f, c]])
    want = {name: of_gumbel if "Gumbel" in name else of_normal for name in ways}
    assert_unbiased(got, want)
    squared = {
        name: np.sum((np.asarray(got[name]) - np.asarray(want[name])) ** 2, axis=(1, 2))
        for name in ways
    }
    traces = {"Gumbel, optax": 2.78384862, "Gumbel": 0.426260775, "Normal, optax": 2.66501242}
    assert_unbiased({name: squared[name] for name in traces}, traces)
    np.testing.assert_allclose(squared["Normal, pair"].mean(), 1.14, rtol=0.02)
    for name, trace in traces.items():
        with pytest.raises(AssertionError, match="mean is"):
            assert_unbiased(1.05 * squared[name], trace)


def test_masked_empty_and_half():
    loc, scale = jnp.array([0.5, jnp.nan, -1.0], jnp.float16), jnp.ones(3, jnp.float16)
    mask = jnp.array([True, False, True])
    none = dists.Normal(jnp.zeros(0), jnp.ones(0))

    @jax.jit
    def run(key, loc, scale):
        half = dists.Normal(loc, scale)
        sampler = ge.gaussian_smoothing(4, orthogonal=True)
        masked = lambda d: sampler.expect(key, d, lambda x: jnp.sum(x**2), where=mask)
        return jax.value_and_grad(masked)(half), jax.grad(
            lambda d: sampler.expect(key, d, lambda x: jnp.sum(x) + 1.0)
        )(none)

    (value, g), empty = run(jax.random.key(0), loc, scale)
    assert value.dtype == g.loc.dtype == g.scale.dtype == jnp.float16
    assert jnp.isfinite(g.loc).all()
    assert jnp.isfinite(g.scale).all()
    assert g.loc[1] == g.scale[1] == 0
    assert empty.loc.shape == (0,)


def test_errors():
    with pytest.raises(ValueError, match="num_pairs: expected an integer"):
        ge.gaussian_smoothing(0)
    message = r"gaussian_smoothing: expected one of .* Normal, .*, or another .*, got Laplace\. "
    with pytest.raises(TypeError, match=message + ".*score_function"):
        ge.gaussian_smoothing(2).expect(jax.random.key(0), dists.Laplace(), jnp.sum)


def test_loops_are_refused():
    @ge.expectation
    def loss(m, keys):
        step = lambda x, key: (ge.gaussian_smoothing(2)(key, dists.Normal(m + x, 1.0)), None)
        return jax.lax.scan(step, 0.0, keys)[0]

    with pytest.raises(NotImplementedError, match="gaussian_smoothing"):
        jax.eval_shape(jax.grad(loss), 0.3, estimates.keys(3))


def test_second_derivatives():
    estimates.assert_first_order(
        ge.gaussian_smoothing(2), dists.Normal(jnp.array([0.4, -0.7]), jnp.array([0.8, 0.5]))
    )
