"""Distributions of numpyro, TFP and distrax, which are gradest's own in another class."""

import importlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.libraries import EXAMPLES, LOGITS, MODULES, PAIR, PROBS, assert_unbiased, keys

import gradest as ge
from gradest import distributions as dists
from gradest.distributions import _foreign
from gradest.records import ESTIMATORS

# Their own code promotes types and ranks, and warns.
pytestmark = [pytest.mark.usefixtures("promotion"), pytest.mark.filterwarnings("ignore")]

KEY = jax.random.key(0)
CLASSES = [(package, name) for package, kinds in EXAMPLES.items() for name in kinds]


@pytest.fixture
def promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def imported(package):
    """Its module of distributions; the test is skipped where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(MODULES[package])
        except ImportError:
            pytest.skip(f"{package} is not installed")
    return getattr(module, "distributions", module)


def examples(package, name):
    makers = EXAMPLES[package][name]
    return [make(imported(package)) for make in (makers if isinstance(makers, list) else [makers])]


# ---- By parameters -------------------------------------------------------------------------


def test_every_class_that_is_known_has_an_example():
    assert set(CLASSES) == set(_foreign.TWINS)


@pytest.mark.parametrize(("package", "name"), CLASSES)
def test_law(package, name):
    """The same shape, and the same density at draws of gradest's."""
    for theirs in examples(package, name):
        assert type(theirs).__name__ == name
        ours = _foreign.own(theirs, always=True)
        assert type(ours).__module__.startswith("gradest.")
        kind = _foreign.TWINS[package, name].kind
        assert kind is None or type(ours) is kind
        assert ours.shape == tuple(theirs.batch_shape) + tuple(theirs.event_shape)

        @jax.jit
        def densities(key, ours=ours, theirs=theirs):
            x = ours.sample(key)
            return jnp.sum(ours.log_prob(x)), jnp.sum(theirs.log_prob(x))

        for seed in range(2):
            got, want = densities(jax.random.key(seed))
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("package", MODULES)
def test_conventions_that_differ_are_noticed(package):
    """The smallest count, and whose probability it is: a law off by one has another density."""
    d = imported(package)
    if package == "distrax":
        pytest.skip("it has no counts")
    theirs = d.Geometric(probs=PROBS)
    ours = _foreign.own(theirs)
    counts = jnp.array([2, 3])
    np.testing.assert_allclose(ours.log_prob(counts), theirs.log_prob(counts), rtol=1e-4)
    assert jnp.all(jnp.abs(ours.log_prob(counts) - theirs.log_prob(counts + 1)) > 0.1)
    swapped = dists.NegativeBinomial(2.5, probs=1 - PROBS).log_prob(counts)
    right = d.NegativeBinomial(2.5, probs=PROBS)
    assert jnp.all(jnp.abs(swapped - right.log_prob(counts)) > 0.1)
    np.testing.assert_allclose(
        _foreign.own(right).log_prob(counts), right.log_prob(counts), rtol=1e-4
    )


def test_a_mask_of_the_density_does_not_change_the_law():
    d = imported("numpyro")
    masked = d.Bernoulli(logits=PAIR).mask(jnp.array([True, False]))
    np.testing.assert_array_equal(_foreign.own(masked).logits, PAIR)
    half = d.HalfNormal(jnp.ones(2))
    assert _foreign.own(half.mask(False)) is half
    seen = d.LeftCensoredDistribution(d.Normal(PAIR, 1.3), jnp.ones(2))
    np.testing.assert_array_equal(_foreign.own(seen).log_prob(PAIR), d.Normal(0.0, 1.3).log_prob(0))


def test_what_has_another_law_is_left_alone():
    d = imported("numpyro")

    class Mine(type(d.Normal(0.0, 1.0))):
        pass

    logits = LOGITS[0, :2]
    others = [
        Mine(0.0, 1.0),
        d.MixtureSameFamily(d.Categorical(logits=logits), d.Poisson(jnp.ones(2))),
        # Its vectors come from one component; gradest's mixes each element by itself.
        d.MixtureSameFamily(d.Categorical(logits=logits), d.Normal(jnp.eye(2), 1.0).to_event(1)),
        d.TransformedDistribution(d.Normal(PAIR, 1.0), d.transforms.ExpTransform()),
        d.Uniform(PAIR, 1.0),
    ]
    assert all(_foreign.own(other) is other for other in others)


def test_number_of_trials_that_is_a_traced_float():
    d = imported("tensorflow_probability")

    def f(n, logit):
        binomial = d.Binomial(n, logits=logit)
        return ge.score_function().expect(KEY, binomial, lambda x: x.astype(float) ** 2)

    want = lambda logit: ge.score_function().expect(
        KEY, dists.Binomial(5, logit), lambda x: x.astype(float) ** 2
    )
    np.testing.assert_allclose(jax.jit(jax.grad(f, 1))(5.0, 0.3), jax.grad(want)(0.3), rtol=1e-5)
    with pytest.raises(ge.UnestimatedGradientError, match="total_count: a Binomial has no deriv"):
        jax.grad(f)(5.0, 0.3)


# ---- Estimators ----------------------------------------------------------------------------


@pytest.mark.parametrize("package", MODULES)
@pytest.mark.parametrize("name", [name for name, r in ESTIMATORS.items() if r.estimates])
def test_estimator(package, name):
    """The gradient at a key is the one of gradest's own, bit for bit, and so are the draws."""
    d, record = imported(package), ESTIMATORS[name]
    sampler = record.sampler()
    makers = {
        "Bernoulli": (lambda p: d.Bernoulli(logits=p), dists.Bernoulli),
        "Normal": (lambda p: d.Normal(p, 1.3), lambda p: dists.Normal(p, 1.3)),
    }
    served = [kind for kind in makers if kind in record.distributions]
    assert served
    cost = lambda x: jnp.sum(jnp.sin(x)) ** 2
    for kind in served:
        theirs, ours = makers[kind]

        def of(make):
            loss = lambda p: sampler.expect(KEY, make(p), cost)
            draw = lambda p: sampler(KEY, make(p))
            return jax.jit(lambda p: (jax.value_and_grad(loss)(p), draw(p)))(PAIR)

        got, want = of(theirs), of(ours)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert got[1].dtype == want[1].dtype


@pytest.mark.parametrize("package", MODULES)
def test_expectation_and_lanes(package):
    """The draw in a loss, under vmap too, is gradest's: a float for Bernoulli."""
    d = imported(package)

    def loss(p, key, kind):
        z = jax.vmap(lambda k, p: ge.score_function()(k, kind(p)))(jax.random.split(key, 2), p)
        assert z.dtype == jnp.float32
        return jnp.sum(z * jnp.array([0.7, -0.4])) ** 2

    of = lambda kind: jax.grad(ge.expectation(lambda p, key: loss(p, key, kind)))(PAIR, KEY)
    np.testing.assert_array_equal(of(lambda p: d.Bernoulli(logits=p)), of(dists.Bernoulli))


def test_a_mixture_of_several_supports_has_to_name_its_own():
    """Else the density of each component is that of a value in its support, wherever it is."""
    d = imported("numpyro")

    def loss(logit, key, **support):
        weights = d.Categorical(logits=jnp.stack([logit, 0.0 * logit]))
        parts = [d.Uniform(0.0, 0.7), d.Uniform(1.0, 2.0)]
        mixture = d.MixtureGeneral(weights, parts, **support)
        cost = lambda x: jnp.where(x < 0.9, 3.0, 1.0)
        return ge.score_function(baseline=2.0).expect(key, mixture, cost)

    with pytest.raises(TypeError, match=r"of the same support, got numpyro\..*Use Mix"):
        loss(0.4, KEY)
    p = jax.nn.sigmoid(0.4)
    gradient = jax.grad(lambda logit, key: loss(logit, key, support=d.constraints.real))
    g, want = jax.jit(jax.vmap(gradient, (None, 0)))(0.4, keys(4_000)), 2 * p * (1 - p)
    assert_unbiased(g, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * g, want)
    vector = jnp.zeros(2)
    for same in (
        [d.Beta(2.0, 3.0), d.Beta(1.5, 1.5)],
        [d.Normal(vector, 1.0).to_event(1), d.Laplace(vector, 1.0).to_event(1)],
        [d.Uniform(0.0, 1.0), d.Uniform(0.0, 1.0)],
    ):
        mixture = d.MixtureGeneral(d.Categorical(logits=jnp.zeros(2)), same)
        assert _foreign.own(mixture) is mixture


@pytest.mark.parametrize("package", MODULES)
def test_an_error_names_the_class_with_its_module(package):
    d = imported(package)
    other = d.Dirichlet(jnp.ones(3)) if package == "distrax" else d.HalfNormal(1.0)
    name = "Dirichlet" if package == "distrax" else rf"{package}\..*\.HalfNormal"
    with pytest.raises(TypeError, match=rf"rebar: expected one of .* got {name}"):
        ge.rebar()(KEY, other)


def test_what_is_no_distribution_or_lacks_a_method():
    d = imported("numpyro")
    improper = d.ImproperUniform(d.constraints.positive, (), ())
    interval = d.IntervalCensoredDistribution(d.Normal(0.0, 1.0), jnp.zeros(()), jnp.zeros(()))
    for factor in (improper, d.Unit(0.3), interval):
        with pytest.raises(TypeError, match=r"^dist: expected a distribution, got numpyro\..*term"):
            ge.score_function()(KEY, factor)
    affine = d.TransformedDistribution(improper, d.transforms.AffineTransform(0.3, 1.0))
    message = r"^dist: expected a distribution with a method `sample`, got numpyro\..*Transformed"
    with pytest.raises(TypeError, match=message):
        ge.reparameterize()(KEY, affine)
    with pytest.raises(
        TypeError, match=r"^rebar: .*Wishart\. For that there are score_function, vimco\.(\n|$)"
    ):
        ge.rebar()(KEY, d.Wishart(4.0, jnp.eye(2)))


def test_what_its_library_says_is_not_pathwise_is_not_to_be_differentiated():
    d = imported("tensorflow_probability")
    discrete = [d.Multinomial(2.0, jnp.zeros(3)), d.BatchReshape(d.Bernoulli(jnp.zeros(2)), [2, 1])]
    for other in discrete:
        for sampler in (ge.enumeration(), ge.rebar()):
            with pytest.raises(
                TypeError, match=r"For that there are score_function, vimco\.(\n|$)"
            ):
                sampler.expect(KEY, other, lambda x: jnp.sum(x) ** 2)
    part = d.JointDistributionSequential([d.Normal(0.0, 1.0), d.Poisson(1.0)])
    for other in (d.BatchReshape(d.Normal(jnp.zeros(2), 1.0), [2, 1]), part):
        with pytest.raises(
            TypeError, match=r"are score_function, vimco, reparameterize, relax, dreg\."
        ):
            ge.rebar()(KEY, other)


def test_mirrored_draws_of_a_uniform():
    d = imported("numpyro")
    for sampler in (ge.antithetic(), ge.reparameterize()):
        mean = lambda t, s=sampler: s.expect(KEY, d.Uniform(0.0, t), lambda x: x)
        assert jax.grad(mean)(2.0) != 0
    np.testing.assert_allclose(
        jax.grad(lambda t: ge.antithetic().expect(KEY, d.Uniform(0.0, t), lambda x: x))(2.0), 0.5
    )


@pytest.mark.parametrize("package", ["tensorflow_probability", "distrax"])
def test_a_scale_is_dense_only_for_who_mirrors(package):
    d = imported(package)
    name = "scale_perturb_factor" if package == "tensorflow_probability" else "scale_u_matrix"
    low_rank = {name: jnp.array([[0.6], [-0.5]])}
    normals = [
        lambda loc: d.MultivariateNormalDiag(loc, jnp.ones(2)),
        lambda loc: d.MultivariateNormalDiagPlusLowRank(loc, scale_diag=jnp.ones(2), **low_rank),
        lambda loc: d.Independent(d.MultivariateNormalDiag(loc[None], jnp.ones((1, 2))), 1),
    ]
    for normal in normals:
        assert _foreign.own(normal(PAIR)).__class__.__module__.partition(".")[0] == package
        for sampler in (ge.antithetic(), ge.gaussian_smoothing(2)):
            of = lambda loc: sampler.expect(KEY, normal(loc), lambda x: jnp.sum(x**2))  # noqa: B023
            g = jax.jit(jax.grad(of))(PAIR)
            assert jnp.isfinite(g).all()
            if sampler.name == "antithetic":
                np.testing.assert_allclose(g, 2 * PAIR, rtol=1e-5)


@pytest.mark.parametrize("package", ["tensorflow_probability", "distrax"])
def test_what_is_beside_a_draw_that_is_not_converted(package):
    d = imported(package)

    def loss(strike):
        x = ge.score_function()(KEY, d.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))
        return jnp.sum(jnp.where(x > strike, 1.0, 0.0)) + strike

    with pytest.warns(ge.UnestimatedGradientWarning, match=r"and of args\[0\] jumps"):
        jax.grad(ge.expectation(loss))(1.0)


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("package", ["numpyro", "tensorflow_probability", "distrax"])
def test_a_draw_by_hand_that_is_compared(package):
    """The line is the user's, who asks the library for it."""
    d = imported(package)
    word = "key" if package == "numpyro" else "seed"

    def loss(mu, key):
        return mu + jnp.where(d.Normal(mu, 1.0).sample(**{word: key}) > 0, 1.0, 0.0)

    with pytest.warns(ge.UnestimatedGradientWarning, match=re.escape(__file__)) as of:
        jax.grad(ge.expectation(loss))(0.3, KEY)
    assert "made of the noise" in str(of[0].message)
    assert "args[0]" in str(of[0].message)


# ---- What is no leaf, what moves, joint draws ------------------------------------------------


@pytest.mark.parametrize("form", ["expectation", "expect"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "optimal"])
def test_a_network_in_a_closure_is_differentiated(form, baseline):
    """With two samples both baselines give the same estimate."""
    d = imported("numpyro")
    flows = importlib.import_module("numpyro.distributions.flows")

    def flow(w):
        network = lambda x, **_: (w * jnp.stack([1 + 0 * x[0], x[0]]), jnp.zeros(2))
        base = d.Normal(jnp.zeros(2), 1.0).to_event(1)
        return d.TransformedDistribution(base, [flows.InverseAutoregressiveTransform(network)])

    def gradient(baseline):
        s = ge.score_function(num_samples=2, baseline=baseline)
        cost = lambda x: jnp.sum(x**2)
        if form == "expect":
            return jax.jit(jax.grad(lambda w: s.expect(KEY, flow(w), cost)))(0.5)
        return jax.jit(jax.grad(ge.expectation(lambda w, key: cost(s(key, flow(w))))))(0.5, KEY)

    assert abs(gradient(baseline)) > 0.1
    np.testing.assert_allclose(gradient(baseline), gradient("leave_one_out"), rtol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda d, t: d.Uniform(0.0, t),
        lambda d, t: d.TruncatedNormal(0.0, 1.0, low=t),
        lambda d, t: d.Pareto(t, 3.0),
        lambda d, t: d.Delta(t),
        lambda d, t: d.Uniform(jnp.zeros(2), t).to_event(1),
        lambda d, t: d.FoldedDistribution(d.Uniform(-0.2, t)),
        lambda d, t: d.MixtureGeneral(
            d.Categorical(logits=PAIR),
            [d.Uniform(0.0, 1.0), d.Uniform(1.0, 1 + t)],
            support=d.constraints.real,
        ),
        # A Pareto variable.
        lambda d, t: d.TransformedDistribution(
            d.Exponential(6.0),
            [d.transforms.ExpTransform(), d.transforms.AffineTransform(0.0, t)],
        ),
    ],
)
def test_a_bound_that_is_differentiated_is_refused(make):
    d = imported("numpyro")
    loss = lambda t, s: s.expect(KEY, make(d, t), lambda x: jnp.sum(x**2))
    for s in (ge.score_function(), ge.score_function(num_samples=2, baseline="optimal")):
        with pytest.raises(ge.UnestimatedGradientError, match=r"support of numpyro\..* moves"):
            jax.eval_shape(jax.grad(lambda t, s=s: loss(t, s)), 1.5)
        # As data, it does no harm.
        jax.eval_shape(jax.grad(lambda w, t, s=s: w * loss(t, s)), 1.0, 1.5)


def test_the_scale_of_a_half_line_does_not_move_it():
    d = imported("numpyro")
    affine = d.transforms.AffineTransform
    make = lambda loc, t: d.TransformedDistribution(d.HalfNormal(1.0), affine(loc, t))
    loss = lambda loc, t: ge.score_function().expect(KEY, make(loc, t), lambda x: x**2)
    assert jax.grad(loss, 1)(0.0, 1.5) != 0
    with pytest.raises(ge.UnestimatedGradientError, match="moves with a parameter"):
        jax.grad(loss)(0.5, 1.5)
    power = lambda t: d.TransformedDistribution(d.Exponential(1.0), d.transforms.PowerTransform(t))
    assert jax.grad(lambda t: ge.score_function().expect(KEY, power(t), lambda x: x**2))(0.7) != 0


MOVES = {
    "tensorflow_probability": {
        "Uniform": (True, lambda d, b, t: d.Uniform(0.0, t)),
        "a fixed value": (True, lambda d, b, t: d.Deterministic(t)),
        "samples": (True, lambda d, b, t: d.Empirical(t * PAIR)),
        "an event": (True, lambda d, b, t: d.Independent(d.Uniform(PAIR - 1, t), 1)),
        "a component": (
            True,
            lambda d, b, t: d.Mixture(
                d.Categorical(logits=PAIR), [d.Uniform(0.0, t), d.Normal(0.0, 1.0)]
            ),
        ),
        "a part given another": (
            True,
            lambda d, b, t: d.JointDistributionSequential(
                [d.Normal(0.0, 1.0), lambda x: d.Uniform(x, x + t)]
            ),
        ),
        "a part's draw": (
            False,
            lambda d, b, t: d.JointDistributionSequential(
                [d.Normal(t, 1.0), lambda x: d.Uniform(x, x + 1)]
            ),
        ),
        "shifted": (True, lambda d, b, t: b.Shift(t)(d.Gamma(2.0, 1.0))),
        "scaled": (False, lambda d, b, t: b.Scale(t)(d.Exponential(1.0))),
        "scaled interval": (True, lambda d, b, t: b.Scale(t)(d.Beta(2.0, 2.0))),
        "squashed": (True, lambda d, b, t: b.Sigmoid(-1.0, t)(d.Normal(0.0, 1.0))),
        "exponential of scaled": (
            False,
            lambda d, b, t: b.Chain([b.Exp(), b.Scale(t)])(d.Normal(0.0, 1.0)),
        ),
        "divided": (False, lambda d, b, t: b.Invert(b.Scale(t))(d.Exponential(1.0))),
        "quantiles": (False, lambda d, b, t: b.Invert(b.WeibullCDF(1.0, t))(d.Beta(2.0, 2.0))),
        "scaled quantiles": (
            False,
            lambda d, b, t: b.Chain([b.Scale(t), b.Invert(b.GumbelCDF(t, 1.0))])(d.Beta(2.0, 2.0)),
        ),
        "scaled probabilities": (True, lambda d, b, t: b.Scale(t)(b.NormalCDF()(d.Normal(t, 1.0)))),
    },
    "distrax": {
        "Uniform": (True, lambda d, b, t: d.Uniform(0.0, t)),
        "a fixed value": (True, lambda d, b, t: d.Deterministic(t)),
        "pieces": (True, lambda d, b, t: d.CategoricalUniform(low=0.0, high=t, logits=PAIR)),
        "a component": (
            True,
            lambda d, b, t: d.MixtureOfTwo(0.4, d.Uniform(0.0, t), d.Normal(0.0, 1.0)),
        ),
        "shifted": (
            True,
            lambda d, b, t: d.Transformed(d.Gamma(2.0, 1.0), d.ScalarAffine(t, 1.0)),
        ),
        "scaled": (
            False,
            lambda d, b, t: d.Transformed(d.Gamma(2.0, 1.0), d.ScalarAffine(0.0, t)),
        ),
        "a function": (
            True,
            lambda d, b, t: d.Transformed(
                d.Gamma(2.0, 1.0), d.Lambda(lambda x: x + t, lambda y: y - t)
            ),
        ),
        "TFP's": (
            True,
            lambda d, b, t: d.Independent(b.distributions.Uniform(PAIR - 1, t), 1),
        ),
    },
}


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, made in MOVES.items() for name in made]
)
def test_which_supports_move(package, name):
    d, (moves, make) = imported(package), MOVES[package][name]
    b = importlib.import_module("tensorflow_probability.substrates.jax")
    b = b if package == "distrax" else b.bijectors
    cost = lambda x: sum(jnp.sum(part**2) for part in jax.tree.leaves(x))
    gradient = jax.grad(lambda t: ge.score_function().expect(KEY, make(d, b, t), cost))
    if not moves:
        assert gradient(1.5) != 0
        return
    with pytest.raises(ge.UnestimatedGradientError, match=r"support of .* moves with a parameter"):
        gradient(1.5)


def test_what_its_library_cannot_flatten_is_refused_by_name():
    d = imported("tensorflow_probability")
    make = lambda t: d.JointDistributionNamed({"a": d.Normal(t, 1.0), "b": d.Normal(0.0, 1.0)})
    loss = lambda t: ge.reparameterize().expect(KEY, make(t), lambda x: x["a"])
    try:
        jax.tree.leaves(make(0.3))
    except AttributeError:
        with pytest.raises(TypeError, match=r"got a tensorflow_probability\..*Named, which is reg"):
            jax.grad(loss)(0.3)
    else:
        assert jax.grad(loss)(0.3) == 1.0


def test_a_distribution_of_tfp_that_distrax_wraps():
    distrax, d = imported("distrax"), imported("tensorflow_probability")
    wrapped = lambda l: distrax.as_distribution(d.Bernoulli(logits=l))
    gradient = jax.grad(lambda l: ge.enumeration().expect(KEY, wrapped(l), lambda x: 3.0 * x))(0.3)
    np.testing.assert_allclose(gradient, 3 * jax.grad(jax.nn.sigmoid)(0.3), rtol=1e-6)
    logistic = lambda m: distrax.as_distribution(d.SinhArcsinh(m, 1.0))
    assert jax.grad(lambda m: ge.reparameterize().expect(KEY, logistic(m), jnp.sum))(0.3) == 1.0
    interval = lambda t: distrax.as_distribution(d.Triangular(0.0, t, t / 2))
    with pytest.raises(ge.UnestimatedGradientError, match="moves with a parameter"):
        jax.grad(lambda t: ge.score_function().expect(KEY, interval(t), jnp.sum))(1.5)
