"""Normal vectors by covariance, by precision and of low rank, against dense ones and SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support.cases import assert_unbiased, keys

import gradest as ge
from gradest.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# A batch of three vectors of five elements, and of rank two.
LOC, FACTOR = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5, 2))
DIAG = RNG.uniform(0.3, 2.0, size=(3, 5))


def dense(factor, diag):
    eye = jnp.eye(diag.shape[-1], dtype=diag.dtype)
    return jnp.einsum("...ij,...kj->...ik", factor, factor) + diag[..., None] * eye[None]


def by_covariance(loc, factor, diag):
    return MultivariateNormal(loc, covariance_matrix=dense(factor, diag))


def by_precision(loc, factor, diag):
    return MultivariateNormal(loc, precision_matrix=jnp.linalg.inv(dense(factor, diag)))


def by_factor(loc, factor, diag):
    return MultivariateNormal(loc, jnp.linalg.cholesky(dense(factor, diag)))


FORMS = {
    "covariance": by_covariance,
    "precision": by_precision,
    "low rank": LowRankMultivariateNormal,
}


# ---- Densities -----------------------------------------------------------------------------


def arrays(dtype):
    return [jnp.asarray(x, dtype) for x in (LOC, FACTOR, DIAG)]


@jax.jit
def told(params, x):
    """By each form: log-densities, entropies and divergences, with the slopes of their sum."""

    def of(make):
        def values(params):
            loc, factor, diag = params
            dist, other = make(*params), make(loc + 0.3, 0.7 * factor[::-1], 1.3 * diag)
            return dist.log_prob(x), dist.entropy(), kl_divergence(dist, other), dist.mean()

        total = lambda params: sum(jnp.sum(jnp.sin(v)) for v in values(params))
        return values(params), jax.grad(total)(params)

    return {name: of(make) for name, make in {**FORMS, "factor": by_factor}.items()}


def test_every_form_is_the_same_law(x64):
    """In values and in derivatives with respect to what it was made from."""
    params = arrays(jnp.float64)
    x = LOC + RNG.normal(size=(7, 3, 5))
    got = told(params, x)
    for row in range(3):
        covariance = np.asarray(dense(FACTOR, DIAG))[row]
        reference = scipy.stats.multivariate_normal(LOC[row], covariance)  # pyright: ignore[reportArgumentType]
        want = reference.logpdf(x[:, row])
        for values, _ in got.values():
            np.testing.assert_allclose(values[0][:, row], want, rtol=1e-10)
            np.testing.assert_allclose(values[1][row], reference.entropy(), rtol=1e-10)
    for name in FORMS:
        close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
        jax.tree.map(close, got[name], got["factor"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_rank_in_half_precision(dtype):
    """Computed in single precision, and rounded once."""
    narrow = LowRankMultivariateNormal(*arrays(dtype))
    wide = LowRankMultivariateNormal(*(x.astype(jnp.float32) for x in arrays(dtype)))
    x = narrow.sample(KEY)
    assert x.dtype == dtype
    got, want = narrow.log_prob(x), wide.log_prob(x.astype(jnp.float32))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want.astype(dtype))
    np.testing.assert_array_equal(narrow.entropy(), wide.entropy().astype(dtype))
    np.testing.assert_array_equal(x, wide.sample(KEY).astype(dtype))


def test_ill_conditioned():
    """Factors a hundred thousand times the rest, two of them nearly the same.

    Woodbury's identity as a difference would have lost all digits.
    """
    factor = RNG.normal(size=(200, 3)) * 1e3
    factor[:, 2] = factor[:, 0] + 1e-3 * factor[:, 2]
    factor, diag = np.float32(factor), np.full(200, 1e-4, np.float32)
    low = LowRankMultivariateNormal(jnp.zeros(200), factor, diag)
    x = np.asarray(low.sample(KEY), float)
    covariance = factor.astype(float) @ factor.T.astype(float) + np.diag(diag.astype(float))
    _, log_det = np.linalg.slogdet(covariance)
    want = -0.5 * (x @ np.linalg.solve(covariance, x) + log_det + 200 * np.log(2 * np.pi))
    np.testing.assert_allclose(low.log_prob(jnp.asarray(x, jnp.float32)), want, rtol=3e-3)
    np.testing.assert_allclose(
        low.entropy(), 0.5 * (log_det + 200 * np.log(2 * np.pi * np.e)), rtol=1e-4
    )
    slopes = jax.grad(lambda d: d.log_prob(jnp.zeros(200)) + d.entropy())(low)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_no_matrix_of_the_whole_size_is_made():
    """Of 20,000 elements it would be 1.6 GB."""
    n = 20_000

    def run(loc, factor, diag):
        dist = LowRankMultivariateNormal(loc, factor, diag)
        apart = kl_divergence(dist, LowRankMultivariateNormal(0 * loc, 0.5 * factor, diag))
        return dist.log_prob(dist.sample(KEY)) + dist.entropy() + apart

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n,), (n, 3), (n,))]
    compiled = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3e7


# ---- Draws and gradients -------------------------------------------------------------------


@pytest.mark.statistical
def test_draws_have_the_mean_and_the_covariance():
    x = LowRankMultivariateNormal(*arrays(jnp.float32)).sample(KEY, (200_000,))
    from_mean = x - LOC[None]
    products = jnp.einsum("nbi,nbj->nbij", from_mean, from_mean)
    _, factor, diag = arrays(jnp.float32)
    exact = LOC * 0.0, np.asarray(dense(factor, diag))
    pull = lambda got, want: np.abs(got.mean(0) - want) / got.std(0) * np.sqrt(len(got))
    z = [pull(np.asarray(g), w) for g, w in zip((from_mean, products), exact, strict=True)]
    assert max(part.max() for part in z) <= 4.5
    # Not those of a diagonal that is 5% larger.
    broken = np.asarray(dense(factor, 1.05 * diag))
    assert pull(np.asarray(products), broken).max() > 4.5


@pytest.mark.statistical
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_moments(form):
    """Of a quadratic cost: E = (loc - k)^T B (loc - k) + trace(B covariance)."""
    loc, factor, diag = (x[0] for x in arrays(jnp.float32))
    b = jnp.asarray(RNG.normal(size=(5, 5)), jnp.float32)
    b = b @ b.T / 5 + jnp.eye(5)
    k = jnp.linspace(-1.0, 2.0, 5)
    cost = lambda x: (x - k) @ b @ (x - k)
    samplers = {
        "reparameterize": ge.reparameterize(),
        "antithetic": ge.antithetic(),
        "leave_one_out": ge.score_function(num_samples=8, baseline="leave_one_out"),
    }

    def exact(params):
        loc, factor, diag = params
        return cost(loc) + jnp.sum(b * dense(factor[None], diag[None])[0])

    def run(params, key):
        make = lambda params: FORMS[form](*(p[None] for p in params))
        loss = lambda params, s: s.expect(key, make(params), lambda x: cost(x[0]))
        return {name: jax.grad(loss)(params, s) for name, s in samplers.items()}

    params = (loc, factor, diag)
    want = jax.grad(exact)(params)
    samples = jax.jit(jax.vmap(run, in_axes=(None, 0)))(params, keys(60_000))
    # Along the exact gradient, which is not small for any parameter.
    of_one = lambda g, w: jnp.sum(g * w[None], tuple(range(1, g.ndim)))
    along = lambda g: jax.tree.map(of_one, g, want)
    exactly = jax.tree.map(lambda w: jnp.sum(w * w), want)
    for name in samplers:
        got = along(samples[name])
        assert_unbiased(got, exactly)
        with pytest.raises(AssertionError):
            assert_unbiased(jax.tree.map(lambda g: 1.05 * g, got), exactly)


# ---- What is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"covariance_matrix": [[1.0, 0.2], [0.1, 1.0]]},
            "covariance_matrix: expected a symmetric",
        ),
        ({"precision_matrix": [[1.0, 0.2], [0.1, 1.0]]}, "precision_matrix: expected a symmetric"),
        ({"covariance_matrix": [[1.0, 2.0], [2.0, 1.0]]}, "covariance_matrix: .*eigenvalue of -1"),
        ({"precision_matrix": [[1.0, 1.0], [1.0, 1.0]]}, "precision_matrix: expected a positive d"),
        ({"covariance_matrix": np.full((2, 2), np.nan)}, "covariance_matrix: expected finite"),
        ({"scale_tril": [[1.0, np.nan], [np.inf, 1.0]]}, "scale_tril: expected finite .* got inf"),
        ({"covariance_matrix": np.ones((2, 3))}, r"loc, covariance_matrix: .*\(2,\) and \(2, 3\)"),
    ],
)
def test_matrices_that_are_no_covariance(given, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        MultivariateNormal(np.zeros(2), **given)
    # What is traced is not known.
    if "loc, " not in told:
        traced = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
        jax.eval_shape(lambda given: MultivariateNormal(jnp.zeros(2), **given), traced)


def test_a_centre_that_is_known_is_finite():
    with pytest.raises(ValueError, match=r"^loc: expected finite numbers, got nan"):
        MultivariateNormal(np.array([0.0, np.nan]), np.eye(2))
    # What stands above the diagonal is ignored.
    MultivariateNormal(np.zeros(2), np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_a_covariance_of_rounded_products_is_symmetric():
    for dtype in (jnp.float16, jnp.float32):
        factor = jnp.asarray(RNG.normal(size=(30, 30)), dtype)
        covariance = factor @ factor.T + jnp.eye(30, dtype=dtype)
        # One rounding apart, as on other machines.
        covariance = covariance * (1 + jnp.finfo(dtype).eps * jnp.triu(jnp.ones((30, 30), dtype)))
        assert np.isfinite(
            MultivariateNormal(jnp.zeros(30, dtype), covariance_matrix=covariance).entropy()
        )


def test_exactly_one_matrix():
    for given in ({}, {"scale_tril": np.eye(2), "covariance_matrix": np.eye(2)}):
        with pytest.raises(
            TypeError, match=r"^scale_tril, cov.*: expected exactly one of the three"
        ):
            MultivariateNormal(np.zeros(2), **given)


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [
        (((3,), (3, 2), ()), (3,)),
        (((1,), (3, 2), (3,)), (3,)),
        (((4, 1, 3), (2, 3, 1), (3,)), (4, 2, 3)),
        (((3,), (3, 0), (3,)), (3,)),
    ],
)
def test_low_rank_parameters_broadcast(shapes, shape):
    dist = LowRankMultivariateNormal(*map(jnp.ones, shapes))
    assert dist.shape == shape
    assert all(leaf.shape[: len(shape)] == shape for leaf in jax.tree.leaves(dist))
    x = jax.eval_shape(lambda: dist.sample(KEY, (7,)))
    assert x.shape == (7, *shape)
    assert jax.eval_shape(dist.log_prob, x).shape == (7, *shape[:-1])


@pytest.mark.parametrize("shapes", [((), (3, 2), (3,)), ((3,), (3,), (3,)), ((3,), (4, 2), (3,))])
def test_low_rank_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"^loc, cov_factor, cov_diag: expected arrays of shapes"):
        LowRankMultivariateNormal(*map(jnp.ones, shapes))


def test_low_rank_diagonal_out_of_range():
    with pytest.raises(ValueError, match=r"^cov_diag: expected finite numbers greater than 0"):
        LowRankMultivariateNormal(jnp.zeros(3), jnp.ones((3, 1)), 0.0)
