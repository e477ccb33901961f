"""A user's own distribution gets every estimator for which it has what that needs."""

import dataclasses
import functools
import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cases import assert_unbiased, keys

import gradest as ge
from gradest import records
from gradest.distributions import Categorical, OneHotCategorical
from gradest.distributions.base import Distribution

# ---- Six of them ---------------------------------------------------------------------------


class TruncatedGeometric(Distribution):
    """P(x) proportional to exp(-rate x), x from 0 to n - 1: a support, a mean, and a size."""

    parameters = ("rate",)
    static = ("n",)

    def __init__(self, rate, n):
        self.rate, self.n = jnp.asarray(rate), n

    @property
    def shape(self):
        return self.rate.shape

    def _over_support(self):
        values = self.enumerate_support()
        return Categorical(-self.rate[..., None] * values.reshape((1,) * self.rate.ndim + (-1,)))

    def sample(self, key, shape=()):
        return self._over_support().sample(key, shape).astype(self.rate.dtype)

    def log_prob(self, x):
        return self._over_support().log_prob(jnp.asarray(x, int))

    def enumerate_support(self):
        return jnp.arange(self.n, dtype=self.rate.dtype)

    def mean(self):
        return self._over_support().probs @ self.enumerate_support()


class VonMisesFisher(Distribution):
    """Directions x in space, p(x) proportional to exp(concentration mean . x): draws are smooth."""

    parameters = ("direction", "concentration")
    reparameterizable = True

    def __init__(self, direction, concentration):
        self.direction, self.concentration = jnp.asarray(direction), jnp.asarray(concentration)

    @property
    def shape(self):
        return self.direction.shape

    @property
    def unit(self):
        return self.direction / jnp.linalg.norm(self.direction)

    def sample(self, key, shape=()):
        keys, k, m = jax.random.split(key), self.concentration, self.unit
        u = jax.random.uniform(keys[0], (*shape, 1))
        height = 1 + jnp.log(u + (1 - u) * jnp.exp(-2 * k)) / k
        g = jax.random.normal(keys[1], (*shape, 3))
        m = jnp.broadcast_to(m, g.shape)
        side = g - m * jnp.sum(g * m, axis=-1, keepdims=True)
        side /= jnp.linalg.norm(side, axis=-1, keepdims=True)
        return height * m + jnp.sqrt(1 - height**2) * side

    def log_prob(self, x):
        k = self.concentration
        log_sinh = k + jnp.log(-jnp.expm1(-2 * k)) - jnp.log(2.0)
        return k * (x @ self.unit) + jnp.log(k) - log_sinh - jnp.log(4 * jnp.pi)


class SpanningTree(Distribution):
    """Spanning trees of a graph of four nodes, by the weights of its edges: a density, no more."""

    parameters = ("logits",)
    edges = np.array([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)])
    incidence = np.eye(4)[edges[:, 0]] - np.eye(4)[edges[:, 1]]
    subsets = np.array([s for s in itertools.product([0, 1], repeat=5) if sum(s) == 3], float)
    laplacians = np.einsum("se,ei,ej->sij", subsets, incidence[:, 1:], incidence[:, 1:])
    trees = subsets[np.linalg.det(laplacians) > 0.5]

    def __init__(self, logits):
        self.logits = jnp.asarray(logits)

    @property
    def shape(self):
        return self.logits.shape

    def sample(self, key, shape=()):
        trees = jnp.asarray(self.trees, self.logits.dtype)
        return trees[Categorical(trees @ self.logits).sample(key, shape)]

    def log_prob(self, x):
        # Of all trees together, by the matrix-tree theorem.
        incidence = jnp.asarray(self.incidence[:, 1:], self.logits.dtype)
        laplacian = jnp.einsum("e,ei,ej->ij", jnp.exp(self.logits), incidence, incidence)
        return x @ self.logits - jnp.linalg.slogdet(laplacian)[1]


class Maxwell(Distribution):
    """Speeds x, p(x) proportional to x^2 exp(-x^2 / (2 scale^2)): a weak derivative."""

    parameters = ("scale",)

    def __init__(self, scale):
        self.scale = jnp.asarray(scale)

    @property
    def shape(self):
        return self.scale.shape

    def sample(self, key, shape=()):
        velocity = jax.random.normal(key, (*shape, *self.shape, 3), self.scale.dtype)
        return self.scale * jnp.linalg.norm(velocity, axis=-1)

    def log_prob(self, x):
        z = x / self.scale
        return 0.5 * jnp.log(2 / jnp.pi) + 2 * jnp.log(z) - 0.5 * z**2 - jnp.log(self.scale)

    def weak_derivative(self, key, x, coupled=True):
        # The derivative of p in the scale is 3 / scale times that in five dimensions less p.
        keys = jax.random.split(key)
        first = x if coupled else self.sample(keys[0])
        two_more = 2 * jax.random.exponential(keys[1], self.shape, self.scale.dtype)
        return [(3 / self.scale, jnp.sqrt(first**2 + self.scale**2 * two_more))]


class Kumaraswamy(Distribution):
    """P(x <= t) = 1 - (1 - t^a)^b, t from 0 to 1: a quantile function; draws have no slope."""

    parameters = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = jnp.asarray(a), jnp.asarray(b)

    @property
    def shape(self):
        return self.a.shape

    def quantile(self, u):
        return (1 - (1 - u) ** (1 / self.b)) ** (1 / self.a)

    def sample(self, key, shape=()):
        return jax.lax.stop_gradient(self.quantile(jax.random.uniform(key, shape + self.shape)))

    def log_prob(self, x):
        tail = jnp.log1p(-(x**self.a))
        return jnp.log(self.a * self.b) + (self.a - 1) * jnp.log(x) + (self.b - 1) * tail


class Spin(Distribution):
    """-1 or 1, the sign of field + temperature * logistic noise: a relaxation."""

    parameters = ("field", "temperature")

    def __init__(self, field, temperature):
        self.field, self.temperature = jnp.asarray(field), jnp.asarray(temperature)

    @property
    def shape(self):
        return self.field.shape

    def sample(self, key, shape=()):
        noise = jax.random.logistic(key, shape + self.shape)
        return jax.lax.stop_gradient(self.harden(self.field + self.temperature * noise))

    def log_prob(self, x):
        return jax.nn.log_sigmoid(x * self.field / self.temperature)

    def perturb(self, key):
        return self.field + self.temperature * jax.random.logistic(key, self.shape)

    def harden(self, z):
        return jnp.where(z > 0, 1.0, -1.0)

    def soften(self, z, temperature):
        return jnp.tanh(z / temperature)

    def _of_uniform(self, v, x):
        l, sign = self.field / self.temperature, x
        # |z| is that of noise beyond -sign * l, of which v is the part that is further out.
        far = v * jax.nn.sigmoid(sign * l)
        return self.temperature * sign * (jnp.log1p(-far) - jnp.log(far)) + self.field

    def conditional(self, key, x):
        return self._of_uniform(jax.random.uniform(key, self.shape, minval=1e-6), x)

    def pull_back_conditional(self, x, z, ct):
        l = self.field / self.temperature
        v = jax.nn.sigmoid(-x * (z / self.temperature - l)) / jax.nn.sigmoid(x * l)
        _, pull_back = jax.vjp(lambda spin: spin._of_uniform(v, x), self)
        return pull_back(ct)[0]


# ---- Which estimators they get, and that those are right ------------------------------------

MAKE = {
    "TruncatedGeometric": lambda: TruncatedGeometric(jnp.array([0.4, -0.3]), 4),
    "VonMisesFisher": lambda: VonMisesFisher(jnp.array([0.3, -1.0, 0.5]), jnp.array(2.5)),
    "SpanningTree": lambda: SpanningTree(jnp.array([0.3, -0.5, 0.8, 0.1, -0.2])),
    "Maxwell": lambda: Maxwell(jnp.array([0.6, 0.9])),
    "Kumaraswamy": lambda: Kumaraswamy(jnp.array([2.0, 1.5]), jnp.array([3.5, 2.5])),
    "Spin": lambda: Spin(jnp.array([0.4, -0.9]), jnp.array([0.7, 1.6])),
}
SERVED = {
    "TruncatedGeometric": {
        *("score_function", "vimco", "enumeration", "sum_and_sample", "unordered_set"),
        *("muprop", "straight_through"),
    },
    "VonMisesFisher": {"score_function", "vimco", "reparameterize", "relax", "dreg"},
    "SpanningTree": {"score_function", "vimco"},
    "Maxwell": {"score_function", "vimco", "measure_valued"},
    "Kumaraswamy": {"score_function", "vimco", "stratified"},
    "Spin": {
        *("score_function", "vimco", "relax", "rebar"),
        *("gumbel_softmax", "st_gumbel_softmax"),
    },
}
BIASED = {"straight_through", "gumbel_softmax", "st_gumbel_softmax"}
BOUNDS = ("vimco", "dreg")


def cost(x):
    w = jnp.array([0.9, -0.6, 0.5, 0.7, -0.8])[: x.size]
    return (jnp.sum(w * x) - 0.8) ** 2 + w[0] * x[0] * x[1]


def sphere():
    """Points with the weights of their areas: by Gauss-Legendre in height, evenly around."""
    heights, weights = np.polynomial.legendre.leggauss(24)
    angles = 2 * np.pi * np.arange(24) / 24
    z, a = np.repeat(heights, 24), np.tile(angles, 24)
    ring = np.sqrt(1 - z**2)
    area = np.repeat(weights, 24) * 2 * np.pi / 24
    return np.stack([ring * np.cos(a), ring * np.sin(a), z], axis=1), area


def points(dist):
    """Values, and probabilities from the density."""
    if isinstance(dist, VonMisesFisher):
        values, area = sphere()
    elif isinstance(dist, Maxwell):
        nodes, weights = np.polynomial.legendre.leggauss(48)
        nodes, weights = 3 * (nodes + 1), 3 * weights
        values = np.array(list(itertools.product(nodes, repeat=2)))
        area = np.array([a * b for a, b in itertools.product(weights, repeat=2)])
    elif isinstance(dist, SpanningTree):
        values, area = dist.trees, np.ones(len(dist.trees))
    elif isinstance(dist, Kumaraswamy):
        nodes, weights = np.polynomial.legendre.leggauss(40)
        values = np.array(list(itertools.product((nodes + 1) / 2, repeat=2)))
        area = np.outer(weights, weights).reshape(-1) / 4
    elif isinstance(dist, Spin):
        values, area = np.array(list(itertools.product([-1, 1], repeat=2))), np.ones(4)
    else:
        values, area = np.array(list(itertools.product(range(4), repeat=2))), np.ones(16)
    values, area = jnp.asarray(values, jnp.float32), jnp.asarray(area, jnp.float32)
    return values, area * jnp.exp(jax.vmap(lambda x: jnp.sum(dist.log_prob(x)))(values))


def expected(name, dist):
    values, probs = points(dist)
    costs = jax.vmap(cost)(values)
    if name not in BOUNDS:
        return jnp.sum(probs * costs)
    pairs = jnp.logaddexp(costs[:, None], costs[None, :]) - jnp.log(2.0)
    return jnp.sum(probs[:, None] * probs[None, :] * pairs)


SAMPLERS = {
    "relax": lambda: ge.relax(lambda w, x: w * x[0] ** 2, 0.5),
    "score_function": lambda: ge.score_function(num_samples=4, baseline="leave_one_out"),
    **{
        name: functools.partial(getattr(ge, name), 2)
        for name in (*BOUNDS, "stratified", "unordered_set")
    },
}


@pytest.mark.parametrize("name", MAKE)
def test_gets_the_estimators_that_it_has_enough_for(name):
    dist = MAKE[name]()
    served = {n for n, record in records.ESTIMATORS.items() if record.serves(type(dist))}
    assert served == SERVED[name]
    np.testing.assert_allclose(points(dist)[1].sum(), 1, rtol=1e-5)
    for other in set(records.ESTIMATORS) - served:
        sampler = records.ESTIMATORS[other].sampler()
        with pytest.raises(TypeError, match=f"^{other}: .*{name}") as error:
            jax.eval_shape(lambda dist: sampler.expect(keys(1)[0], dist, cost), dist)  # noqa: B023
        remedy = set(re.findall(r"\w+", str(error.value).rsplit(name, 1)[1]))
        # Of what is named instead, all serves it.
        assert "score_function" in remedy
        assert remedy & set(records.ESTIMATORS) <= served


@pytest.mark.statistical
@pytest.mark.parametrize("name", MAKE)
def test_what_it_gets_is_right(name):
    """Those that are unbiased."""
    dist = MAKE[name]()
    names = sorted(SERVED[name] - BIASED)
    samplers = {n: SAMPLERS.get(n, getattr(ge, n))() for n in names}

    def run(dist, key):
        of = lambda sampler: jax.grad(lambda dist: sampler.expect(key, dist, cost))(dist)
        return {n: jax.tree.leaves(of(sampler)) for n, sampler in samplers.items()}

    num = 200_000 if name == "SpanningTree" else 50_000
    got = jax.jit(jax.vmap(run, (None, 0)))(dist, keys(num))
    for n in samplers:
        want = jax.tree.leaves(jax.jit(jax.grad(functools.partial(expected, n)))(dist))
        if n == "enumeration":
            np.testing.assert_allclose(got[n][0][0], want[0], rtol=1e-4)
            continue
        assert_unbiased(got[n], want)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased([1.05 * g for g in got[n]], want)


def test_straight_through_has_the_derivative_of_the_mean():
    dist = MAKE["TruncatedGeometric"]()
    gradient = jax.grad(lambda dist: jnp.sum(ge.straight_through()(keys(1)[0], dist)))(dist)
    want = jax.grad(lambda dist: jnp.sum(dist.mean()))(dist)
    np.testing.assert_allclose(gradient.rate, want.rate, rtol=1e-6)


def test_relaxed_draws_move_with_every_parameter():
    spin, sampler = MAKE["Spin"](), ge.gumbel_softmax(2.0)
    x = sampler(keys(1)[0], spin)
    noise = (2.0 * jnp.arctanh(x) - spin.field) / spin.temperature
    g = jax.grad(lambda spin: jnp.sum(sampler(keys(1)[0], spin)))(spin)
    assert (g.field > 0).all()
    np.testing.assert_allclose(g.temperature, g.field * noise, rtol=1e-4)


def test_what_a_relaxation_of_ones_own_lacks_is_named():
    class Wrong(Spin):  # with the parameters of its base
        def pull_back_conditional(self, x, z, ct):
            return ct

    spin = Wrong(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"Wrong\.pull_back_conditional .*\[\(2,\), \(2,\)\], got"):
        ge.rebar().expect(keys(1)[0], spin, cost)
    # It would need the noise of a z that was drawn given the draw.
    with pytest.raises(TypeError, match=r"gumbel_rao: .*PlackettLuce, or .*Wrong"):
        ge.gumbel_rao(0.5)(keys(1)[0], spin)
    with pytest.raises(TypeError, match=r'rebar\(relaxation="muprop"\): .* Leave it out'):
        ge.rebar(relaxation="muprop").expect(keys(1)[0], MAKE["Spin"](), cost)


def test_draws_of_another_shape_than_the_distribution_are_refused():
    class One(Kumaraswamy):
        def sample(self, key, shape=()):
            return super().sample(key, shape)[..., 0]

    one = One(jnp.ones(2), jnp.ones(2))
    for form in (ge.score_function().expect, ge.vimco(2).expect):
        with pytest.raises(
            ValueError, match=r"One\.sample\(key, \(\)\) draws of shape \(2,\), .* got \(\)"
        ):
            form(keys(1)[0], one, jnp.sum)
    with pytest.raises(ValueError, match="draws of shape"):
        ge.expectation(lambda key: jnp.sum(ge.score_function()(key, one)))(keys(1)[0])


def test_a_class_of_lanes_keeps_what_is_no_array():
    class Steps(OneHotCategorical):
        def weak_derivative(self, key, x, *, coupled=True):
            return super().weak_derivative(key, x, coupled=coupled)

    def gradient(kind):
        def loss(logits, key):
            draw = lambda l, key: ge.measure_valued()(key, kind(l))
            x = jax.vmap(draw)(logits, jax.random.split(key, 2))
            return jnp.sum(jnp.sin(x[0] + 2 * x[1]) * jnp.arange(3.0))

        logits = jnp.array([[0.3, -0.2, 0.1], [0.5, 0.4, -0.6]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return jax.jit(jax.grad(ge.expectation(loss)))(logits, keys(1)[0])

    np.testing.assert_allclose(gradient(Steps), gradient(OneHotCategorical), rtol=1e-5)


OF_ONE_LANE = {
    "rebar": (ge.rebar, lambda p: Spin(p, 1.0)),
    "enumeration": (ge.enumeration, lambda p: TruncatedGeometric(p, 4)),
    "measure_valued": (ge.measure_valued, lambda p: Maxwell(0.7 * jnp.exp(p))),
    "stratified": (
        lambda: ge.stratified(2),
        lambda p: Kumaraswamy(3 * jnp.exp(p), 4 * jnp.exp(-p)),
    ),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", OF_ONE_LANE)
def test_draws_of_one_lane_each(name):
    """A class that knows nothing of lanes: gradients of a sum are those of its terms."""
    make, law = OF_ONE_LANE[name]
    sampler, p = make(), jnp.array([0.3, -0.4])

    @ge.expectation
    def loss(p, key):
        x = jax.vmap(lambda p, key: sampler(key, law(p)))(p, jax.random.split(key))
        return jnp.sum((x - 0.6) ** 2)

    def exact(p):
        values, probs = points(law(p))
        return jnp.sum(probs[:, None] * (values - 0.6) ** 2)

    with warnings.catch_warnings():
        # Each lane is credited with the others' costs: that is looser, and said.
        warnings.simplefilter("ignore", ge.UnestimatedGradientWarning)
        warnings.simplefilter("ignore", UserWarning)
        got = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(p, keys(100_000))
    want = jax.grad(exact)(p)
    np.testing.assert_allclose(points(law(p))[1].sum(), 1, rtol=1e-5)
    assert_unbiased(got, want)
    with pytest.raises(AssertionError, match="mean is"):
        assert_unbiased(1.05 * got, want)


WRONG_SHAPES = {
    "mean()": (ge.muprop, "TruncatedGeometric", "mean", lambda self: self.rate[:1]),
    "quantile(u)": (lambda: ge.stratified(2), "Kumaraswamy", "quantile", lambda self, u: u[:1]),
}


@pytest.mark.parametrize("call", WRONG_SHAPES)
def test_what_is_made_in_another_shape_than_a_draw_is_refused(call):
    """It would broadcast, and the gradient would be another."""
    make, name, method, wrong = WRONG_SHAPES[call]
    right = MAKE[name]()
    of = lambda dist: jax.grad(lambda dist: make().expect(keys(1)[0], dist, cost))(dist)
    jax.eval_shape(of, right)
    sample = lambda self, key, shape=(): right.sample(key, shape)
    methods = {method: wrong, "sample": sample, "__module__": __name__}
    kind = type(name, (type(right),), methods)
    dist = kind._unflatten(*reversed(right._flatten()))
    with pytest.raises(
        ValueError, match=rf"expected of {name}.{re.escape(call)} .*\(2,\), got \(1,"
    ):
        jax.eval_shape(of, dist)


def test_outcomes_that_miss_one_are_refused_where_that_is_known():
    """And give no number where it is not: the sum over the others is another expectation."""

    class Missing(TruncatedGeometric):
        def enumerate_support(self):
            return jnp.arange(self.n - 1, dtype=self.rate.dtype)

        def log_prob(self, x):
            return TruncatedGeometric(self.rate, self.n).log_prob(x)

    of = lambda rate, kind: ge.enumeration().expect(keys(1)[0], kind(rate, 4), cost)
    rate = jnp.array([0.4, -0.3])
    with pytest.raises(ValueError, match=r"Missing.enumerate_support\(\) all outcomes.*got 0\."):
        of(rate, Missing)
    for kind, finite in ((TruncatedGeometric, True), (Missing, False)):
        gradient = jax.jit(jax.grad(functools.partial(of, kind=kind)))(rate)
        assert np.all(np.isfinite(gradient)) == finite


def test_what_is_lacking_is_named():
    with pytest.raises(
        TypeError, match=r"another with finitely many values.*SpanningTree"
    ) as error:
        ge.enumeration().expect(keys(1)[0], MAKE["SpanningTree"](), cost)
    assert "score_function, vimco" in str(error.value)


def test_a_class_of_another_kind_is_told_what_to_derive_from():
    """Its methods of those names are not looked at, as those of other libraries are not."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Plain:
        logits: jax.Array

        def sample(self, key):
            return Categorical(self.logits).sample(key)

        def log_prob(self, x):
            return Categorical(self.logits).log_prob(x)

        def enumerate_support(self):
            return jnp.arange(3)

    of = lambda sampler: sampler.expect(keys(1)[0], Plain(jnp.zeros(3)), lambda x: x.astype(float))
    with pytest.raises(
        TypeError, match=r"another class derived from .*Distribution with finitely many values"
    ) as error:
        of(ge.enumeration())
    certain, perhaps = str(error.value).split("For that there are ")[1].split(";")
    assert certain == "score_function, vimco"
    assert np.isfinite([of(ge.score_function()), of(ge.vimco(2))]).all()
    assert perhaps == " if its draws are differentiable, reparameterize, relax, dreg too."


def test_a_class_of_ours_with_one_more_parameter():
    class Tempered(Categorical):
        parameters = ("logits", "temperature")

        def __init__(self, logits, temperature):
            super().__init__(logits / temperature)
            self.temperature = jnp.asarray(temperature)

    of = lambda make: jax.grad(
        lambda l: ge.score_function().expect(keys(1)[0], make(l), lambda x: x.astype(float))
    )(jnp.array([0.3, -0.2, 0.5]))
    want = of(lambda l: Categorical(l / 2.0))
    np.testing.assert_array_equal(of(lambda l: Tempered(l, 2.0)), want)
    np.testing.assert_allclose(Tempered(jnp.zeros(3), 2.0).entropy(), np.log(3), rtol=1e-6)


def test_pairs_that_do_not_match_the_parameters():
    class Wrong(Maxwell):  # with the parameters of its base
        def weak_derivative(self, key, x, coupled=True):
            return [*super().weak_derivative(key, x, coupled)] * 2

    with pytest.raises(ValueError, match=r"Wrong\.weak_derivative a .*shapes \[\(2,\)\] .* got "):
        ge.measure_valued().expect(keys(1)[0], Wrong(jnp.ones(2)), cost)
