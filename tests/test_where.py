"""`where=`: elements of a draw that are fixed points, under every estimator."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import CASES, DISTRIBUTIONS, NoPower, assert_unbiased, value_and_grad

import gradest as ge
from gradest import distributions as dists
from gradest.distributions._masked import masked, stand_in

KEY = jax.random.key(3)

# ---- Half a draw, beside a masked half whose parameters are no numbers ----------------------

POINTS = {
    **dict.fromkeys(["LogNormal", "Gamma", "Weibull"], 1.0),
    **dict.fromkeys(["Beta", "RelaxedBernoulli", "RelaxedPermutation"], 0.5),
    **dict.fromkeys(["Dirichlet", "RelaxedOneHotCategorical"], 1 / 3),
    "ExpRelaxedOneHotCategorical": -math.log(3.0),
    "OneHotCategorical": np.array([1.0, 0.0, 0.0]),
    "Subset": np.array([1.0, 1.0, 1.0, 0.0, 0.0]),
    "PlackettLuce": np.eye(2, 3),
    "LinearChainCRF": np.array([1.0, 0.0]),
}
EVENTS = {
    **dict.fromkeys(["OneHotCategorical", "MultivariateNormal", "Dirichlet", "Subset"], 1),
    "LowRankMultivariateNormal": 1,
    **dict.fromkeys(["RelaxedOneHotCategorical", "ExpRelaxedOneHotCategorical"], 1),
    **dict.fromkeys(["PlackettLuce", "LinearChainCRF", "RelaxedPermutation"], 2),
}


def beside_masked(dist):
    """Two of the distribution along a new first axis: the first one is to be masked."""
    nothing = lambda x: jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else -7)
    return jax.tree.map(lambda x: jnp.stack([nothing(x), x]), dist)


def second_half(name, dist):
    """The mask of the first one."""
    elements = len(dist.shape) - EVENTS.get(name, 0)
    return jnp.array([False, True]).reshape(2, *(1,) * elements)


def point(name, x):
    """The value of the masked half, like the other half x."""
    return jnp.broadcast_to(jnp.asarray(POINTS.get(name, 0.0), x.dtype), x.shape)


def cost(w, x):
    x = x.astype(w.dtype)
    terms = w * x.reshape(-1)
    return jnp.tanh(jnp.sum(terms)) + (jnp.sum(jnp.sin(2.0 * terms)) - 0.7) ** 2


def weights(dist):
    n = 2 * math.prod(dist.shape)
    return jnp.asarray(np.cos(1.7 * np.arange(n)) * 0.8, jnp.float32)


def test_a_masked_element_is_a_fixed_point_whatever_its_parameters():
    """And its parameters have no gradient, for every distribution."""

    def run(halves, key):
        def of(name, dist):
            where = second_half(name, DISTRIBUTIONS[name]())
            scored = name in (*cases.FIXED_SUPPORT, *cases.STRUCTURED)
            sampler = ge.score_function() if scored else ge.reparameterize()

            @ge.expectation(has_aux=True)
            def loss(dist):
                draw = sampler(key, dist, where=where)
                return jnp.sum(draw.astype(float)) ** 2, draw

            gradient, draw = jax.grad(loss, has_aux=True, allow_int=True)(dist)
            floats = [g for g in jax.tree.leaves(gradient) if g.dtype != jax.dtypes.float0]
            log_p = DISTRIBUTIONS[name]().log_prob(point(name, draw[1])) if scored else 0.0
            return draw, floats, log_p

        return {name: of(name, dist) for name, dist in halves.items()}

    halves = {name: beside_masked(make()) for name, make in DISTRIBUTIONS.items()}
    for name, (x, gradient, log_p) in jax.jit(run)(halves, KEY).items():
        np.testing.assert_array_equal(x[0], point(name, x[1]), err_msg=name)
        # In the support, wherever that is.
        assert np.isfinite(log_p).all(), name
        may_agree = name in cases.STRUCTURED or not np.issubdtype(x.dtype, np.floating)
        assert may_agree or not np.array_equal(x[1], x[0]), name
        for g in gradient:
            np.testing.assert_array_equal(g[0], 0.0, err_msg=name)
            assert np.isfinite(g).all(), name


# ---- The matrix ----------------------------------------------------------------------------

KINDS = ("Bernoulli", "OneHotCategorical", "Normal")
MORE = {"enumeration": "Categorical", "score_function": "Categorical", "measure_valued": "Poisson"}
MORE |= {"stratified": "Categorical"}


def loss_of(sampler, name, where):
    return lambda params, key: sampler.expect(
        key, params[0], functools.partial(cost, params[1]), where=where
    )


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [name for name, row in CASES.items() if row.record.estimates])
def test_gradient_is_that_of_the_law_with_fixed_points(estimator):
    row = CASES[estimator]
    names = [name for name in (*KINDS, MORE.get(estimator)) if name in row.record.distributions]
    make, oracle = next(iter(row.variants.values()))

    @functools.partial(jax.jit, static_argnums=0)
    def exact(name, params):
        def expected(params):
            dist, w = params
            whole = lambda x: cost(w, jnp.stack([point(name, x), x]))
            return oracle(dist, whole)

        return value_and_grad(expected)(params)

    def run(params, key):
        samples = {}
        for name, (dist, w) in params.items():
            where = second_half(name, DISTRIBUTIONS[name]())
            value, (g, of_w) = value_and_grad(loss_of(make(), name, where))((dist, w), key)
            samples[name] = value, (g, of_w)
        return samples

    of_half = {name: (d := DISTRIBUTIONS[name](), weights(d)) for name in names}
    params = {name: (beside_masked(dist), w) for name, (dist, w) in of_half.items()}
    want = {name: exact(name, half) for name, half in of_half.items()}
    sample = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    num = 1 if estimator == "enumeration" else 50_000

    def drawn(seed):
        found = jax.tree.map(np.asarray, sample(params, cases.keys(num, seed)))
        for _, (g, _) in found.values():
            assert all((leaf[:, 0] == 0).all() for leaf in jax.tree.leaves(g))
        return {
            name: (value, (jax.tree.map(lambda leaf: leaf[:, 1], g), of_w))
            for name, (value, (g, of_w)) in found.items()
        }

    samples = drawn(0)
    if estimator == "enumeration":
        close = lambda got, want: np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, samples, want)
        return
    try:
        assert_unbiased(samples, want)
    except NoPower:
        more = [samples, *(drawn(seed) for seed in (1, 2, 3, 4, 5))]
        samples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *more)
        assert_unbiased(samples, want)


# ---- What is beside a masked element --------------------------------------------------------


def assert_alike(got, want):
    """Two samples have the same means, and there are enough of both to tell."""
    for path, a in jax.tree.leaves_with_path(got):
        name = jax.tree_util.keystr(path)
        b = functools.reduce(lambda tree, key: tree[key.key], path, want)
        a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
        off = np.abs(a.mean(axis=0) - b.mean(axis=0))
        assert (error <= 0.05 * np.linalg.norm(b.mean(axis=0)) + 1e-12).all(), f"{name}: no power"
        assert (off <= 4.5 * error + 1e-5).all(), f"{name}: {a.mean(axis=0)}, {b.mean(axis=0)}"


def surrogate(o, x):
    return o * (1 + 0.3 * jnp.tanh(jnp.sum(x * np.cos(np.arange(x.size)).reshape(x.shape))))


#: Of what affects the variance alone.
SAMPLERS = {
    "Bernoulli": {
        "score_function": lambda o, wrap: ge.score_function(baseline=o),
        "two samples": lambda o, wrap: ge.score_function(num_samples=2, baseline=o),
        "rebar": lambda o, wrap: ge.rebar(0.6, eta=o / 4),
        "independent": lambda o, wrap: ge.rebar(o, coupled=False),
        "muprop": lambda o, wrap: ge.muprop(baseline=o),
        "relax": lambda o, wrap: ge.relax(wrap(surrogate), o),
        "disarm": lambda o, wrap: ge.disarm(),
        "unordered_set": lambda o, wrap: ge.unordered_set(2),
        "sum_and_sample": lambda o, wrap: ge.sum_and_sample(),
    },
    "Normal": {
        "relax": lambda o, wrap: ge.relax(wrap(surrogate), o),
        "optimal": lambda o, wrap: ge.score_function(num_samples=3, baseline="optimal"),
    },
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_masked_element_is_as_good_as_a_constant(name):
    """For the variance of the gradient, and for what is trained on it."""
    half = DISTRIBUTIONS[name]()
    if name == "Bernoulli":
        half = dists.Bernoulli(half.logits[:2])
    whole, where, w = beside_masked(half), second_half(name, half), weights(half)
    insert = lambda x: jnp.stack([point(name, x), x])
    same = lambda f: f

    def run(key):
        of_masked, of_half = {}, {}
        for sampler, make in SAMPLERS[name].items():

            def masked(dist, o, key, make=make):
                cost_of = functools.partial(cost, w)
                return make(o, same).expect(key, dist, cost_of, where=where)

            def alone(dist, o, key, make=make):
                wrap = lambda f: lambda o, x: f(o, insert(x))
                return make(o, wrap).expect(key, dist, lambda x: cost(w, insert(x)))

            one, two = jax.random.split(key)
            g, o = jax.grad(masked, argnums=(0, 1))(whole, 0.7, one)
            g = [leaf[1] for leaf in jax.tree.leaves(g)]
            of_masked[sampler] = {"squares": jnp.concatenate(g) ** 2, "trained": o}
            g, o = jax.grad(alone, argnums=(0, 1))(half, 0.7, two)
            of_half[sampler] = {"squares": jnp.concatenate(jax.tree.leaves(g)) ** 2, "trained": o}
        return of_masked, of_half

    got, want = jax.jit(jax.vmap(run))(cases.keys(60_000))
    assert_alike(got, want)
    with pytest.raises(AssertionError):
        assert_alike(jax.tree.map(lambda x: 1.2 * x, got), want)


@pytest.mark.parametrize(
    "name", [n for n in (*cases.FINITE, *cases.STRUCTURED) if stand_in(DISTRIBUTIONS[n]()).certain]
)
def test_what_stands_in_for_a_certain_outcome_has_no_score(name):
    """So that a masked element adds nothing to the norm on which options are trained."""
    dist = jax.jit(lambda halves: masked(halves, second_half(name, DISTRIBUTIONS[name]())).safe)(
        beside_masked(DISTRIBUTIONS[name]())
    )
    drawn = jax.jit(lambda dist: dist.sample(KEY))(dist)
    x = point(name, drawn)
    np.testing.assert_array_equal(drawn[0], x[0])
    score = jax.jit(jax.grad(lambda dist: jnp.sum(dist.log_prob(x))))(dist)
    for g in jax.tree.leaves(score):
        np.testing.assert_array_equal(g[0], 0.0)
        assert np.any(g[1] != 0.0)


def test_nothing_is_trained_where_all_is_masked():
    makers = {
        "score_function": lambda o: ge.score_function(baseline=o),
        "two samples": lambda o: ge.score_function(num_samples=2, baseline=o),
        "rebar": lambda o: ge.rebar(0.6, eta=o / 4),
        "muprop": lambda o: ge.muprop(baseline=o),
        "relax": lambda o: ge.relax(surrogate, o),
    }

    def run(where):
        def of(make):
            logits = jnp.where(where, jnp.array([0.4, -0.6]), jnp.nan)
            total = lambda b: (jnp.sum(b) - 0.3) ** 2
            loss = lambda l, o: make(o).expect(KEY, dists.Bernoulli(l), total, where=where)
            in_loss = ge.expectation(
                lambda l, o: total(make(o)(KEY, dists.Bernoulli(l), where=where))
            )
            both = lambda l, o: (loss(l, o), in_loss(l, o))
            return both(logits, 0.7), jax.grad(lambda *args: sum(both(*args)), (0, 1))(logits, 0.7)

        return {name: of(make) for name, make in makers.items()}

    for name, (values, (g, o)) in jax.jit(jax.vmap(run))(jnp.array([False, True])).items():
        np.testing.assert_allclose([v[0] for v in values], 0.09, rtol=1e-6, err_msg=name)
        assert (g[0] == 0).all(), name
        assert o[0] == 0, name
        assert (g[1] != 0).any(), name
        assert o[1] != 0, name


def test_what_is_impossible_costs_nothing():
    """Not even where its cost, and that of its derivatives, is no number."""
    samplers = {
        "enumeration": ge.enumeration(),
        "measure_valued": ge.measure_valued(),
        "unordered_set": ge.unordered_set(4),
        "sum_and_sample": ge.sum_and_sample(num_summed=4),
        "disarm": ge.disarm(),
        "rebar": ge.rebar(),
    }
    where = jnp.array([False, True])

    def loss(params, sampler):
        l, w = params
        # Without a value, or a slope, where the masked element is 1.
        cost = lambda b: w * jnp.log1p(-2 * b[0]) + jnp.sin(w + b[1])
        return sampler.expect(KEY, dists.Bernoulli(l), cost, where=where)

    params = jnp.array([jnp.nan, 0.4]), jnp.float32(0.7)
    run = lambda p: {name: jax.value_and_grad(loss)(p, s) for name, s in samplers.items()}
    found = jax.jit(run)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    p = jax.nn.sigmoid(0.4)
    change = jnp.sin(1.7) - jnp.sin(0.7)
    for name in ("enumeration", "unordered_set", "sum_and_sample"):
        value, (of_l, of_w) = found[name]
        np.testing.assert_allclose(value, jnp.sin(0.7) + p * change, rtol=1e-5)
        assert of_l[0] == 0
        np.testing.assert_allclose(of_l[1], p * (1 - p) * change, rtol=1e-4)
        np.testing.assert_allclose(of_w, jnp.cos(0.7) * (1 - p) + jnp.cos(1.7) * p, rtol=1e-5)


def test_second_derivatives():
    half = dists.OneHotCategorical(jnp.array([[0.3, -0.5, 0.8]]))
    w = weights(half)

    def masked(l):
        where = second_half("OneHotCategorical", half)
        both = dists.OneHotCategorical(jnp.stack([jnp.full_like(l, jnp.nan), l]))
        return ge.enumeration().expect(KEY, both, functools.partial(cost, w), where=where)

    def alone(l):
        insert = lambda x: jnp.stack([point("OneHotCategorical", x), x])
        dist = dists.OneHotCategorical(l)
        return cases.oracles.expectation(dist, lambda x: cost(w, insert(x)))

    got, want = (jax.jit(jax.hessian(f))(half.logits) for f in (masked, alone))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    whole = beside_masked(half)
    where = second_half("OneHotCategorical", half)
    loss = lambda dist: ge.score_function().expect(
        KEY, dist, functools.partial(cost, w), where=where
    )
    second = jax.jit(jax.grad(lambda dist: jnp.sum(jax.grad(loss)(dist).logits ** 2)))(whole)
    np.testing.assert_array_equal(second.logits[0], 0)
    assert np.isfinite(second.logits).all()
    assert (second.logits[1] != 0).any()


# ---- Batches -------------------------------------------------------------------------------

LENGTHS = (2, 3, 1)


def test_a_ragged_batch_is_the_batch_without_padding():
    """Each example's expectation, exactly."""
    rows = [jnp.asarray(np.cos(1.3 * np.arange(n) + n), jnp.float32) for n in LENGTHS]
    padded = jnp.stack([jnp.pad(r, (0, 3 - len(r)), constant_values=jnp.nan) for r in rows])
    where = np.arange(3) < np.array(LENGTHS)[:, None]

    @ge.expectation
    def loss(logits, where, key):
        b = ge.enumeration()(key, dists.Bernoulli(logits), where=where)
        return (jnp.sum(b) - 0.4) ** 2 + jnp.sin(jnp.sum(b))

    total = lambda padded: jnp.sum(jax.vmap(loss, (0, 0, None))(padded, where, KEY))
    value, gradient = jax.jit(jax.value_and_grad(total))(padded)
    without = lambda rows: sum(loss(row, True, KEY) for row in rows)
    value_without, gradients = jax.jit(jax.value_and_grad(without))(rows)
    np.testing.assert_allclose(value, value_without, rtol=1e-6)
    assert (gradient[~where] == 0).all()
    np.testing.assert_allclose(gradient[where], jnp.concatenate(gradients), rtol=1e-5, atol=1e-6)


# ---- Around it -----------------------------------------------------------------------------


def test_probabilities_of_zero_are_refused_where_they_are_drawn():
    def loss(probs, where):
        sampler = ge.score_function()
        return sampler.expect(KEY, dists.Bernoulli(probs=probs), jnp.sum, where=where)

    probs = jnp.array([0.0, 0.5])
    gradient = jax.grad(loss)(probs, jnp.array([False, True]))
    assert gradient[0] == 0
    assert np.isfinite(gradient[1])
    with pytest.raises(ge.UnestimatedGradientError, match="got a 0 or 1"):
        jax.grad(loss)(probs, True)


def test_a_mask_that_a_pathwise_draw_chooses_is_a_jump():
    @ge.expectation
    def loss(m):
        one, two = jax.random.split(KEY)
        x = ge.reparameterize()(one, dists.Normal(m, 1.0))
        b = ge.score_function()(two, dists.Bernoulli(0.3), where=x > 0)
        return x**2 + b

    with pytest.warns(ge.UnestimatedGradientWarning, match="jumps at a comparison"):
        jax.eval_shape(jax.grad(loss), 0.2)


def test_explain_names_the_law():
    def loss(l, key):
        x = ge.measure_valued()(key, dists.Bernoulli(l), where=l > 0)
        y = ge.reparameterize()(key, dists.Normal(l, 1.0), where=l > 0)
        return jnp.sum(x) + jnp.sum(y)

    found = ge.explain(loss)(jnp.zeros(2), KEY)
    assert [row.distribution for row in found.draws] == ["Bernoulli", "Normal"]
    assert found.draws[0].cost_evaluations == 3


def test_other_libraries():
    numpyro = pytest.importorskip("numpyro.distributions")
    draw = lambda dist: ge.reparameterize()(KEY, dist, where=jnp.array([True, False]))
    loc = jnp.array([0.3, jnp.nan])
    got = jax.jit(lambda loc: draw(numpyro.Normal(loc, 1.0)))(loc)
    np.testing.assert_array_equal(got, jax.jit(lambda loc: draw(dists.Normal(loc, 1.0)))(loc))
    assert got[1] == 0
    with pytest.raises(TypeError, match=r"where: expected one of .* got numpyro.*\.HalfNormal"):
        draw(numpyro.HalfNormal(1.0))


class Mine(dists.Normal):
    """One's own, of which nobody knows what would stand in for an element."""

    parameters = ("loc", "scale")


BITS = dists.Bernoulli(jnp.zeros(2))
ROWS_OF_THREE = dists.OneHotCategorical(jnp.zeros((2, 3)))
PAIR = ge.Sampler("pair", draw=lambda key, dist: (dist.sample(key), 0.0))


@pytest.mark.parametrize(
    ("sampler", "dist", "where", "error", "message"),
    [
        (
            *(ge.rebar(), BITS, jnp.ones(2), TypeError),
            "where: expected a mask of booleans, True where an element is drawn, got an array of "
            "type float32. Compare it: where=mask > 0.",
        ),
        (ge.rebar(), BITS, 1, TypeError, "where: expected a mask of booleans"),
        (
            *(ge.rebar(), BITS, np.ones(3, bool), ValueError),
            "where: expected a shape that broadcasts to (2,), that of a draw by Bernoulli, got "
            "(3,). Give one value for each element, or one for all.",
        ),
        (ge.rebar(), BITS, np.ones((4, 2), bool), ValueError, "got (4, 2)"),
        (
            *(ge.rebar(), ROWS_OF_THREE, np.ones((2, 3), bool), ValueError),
            "that of a draw by OneHotCategorical less the last 1, of one element, got (2, 3)",
        ),
        (ge.score_function(), Mine(), True, TypeError, "where: expected one of gradest.distr"),
        (PAIR, BITS, True, TypeError, "pair: where: expected draws of the distribution's shape"),
    ],
)
def test_errors(sampler, dist, where, error, message):
    with pytest.raises(error, match=re.escape(message)):
        sampler(KEY, dist, where=where)
    with pytest.raises(error, match=re.escape(message)):
        sampler.expect(KEY, dist, lambda x: jnp.sum(jax.tree.leaves(x)[0]), where=where)


@pytest.mark.parametrize(
    "dist", [dists.Uniform(jnp.zeros(2), 1.0), dists.HardConcrete(jnp.zeros(2))]
)
def test_what_has_no_score_is_named_as_without_a_mask(dist):
    with pytest.raises(TypeError, match=rf"^score_function: .*, got {type(dist).__name__}: "):
        ge.score_function().expect(KEY, dist, jnp.sum, where=True)


def test_a_sampler_of_ones_own():
    """It need not know of masks, whether it takes scores of the distribution or writes them out."""

    def log_prob(dist, x):
        return -jnp.sum((x - dist.loc) ** 2 / (2 * dist.scale**2))

    def estimate(key, dist, cost):
        x = jax.lax.stop_gradient(dist.sample(key))
        gradient = jax.tree.map(lambda s: cost(x) * s, jax.grad(log_prob)(dist, x))
        return ge.attach_gradient(cost(x), dist, gradient)

    def score(key, dist):
        x = jax.lax.stop_gradient(dist.sample(key))
        return x, log_prob(dist, x), 0.0

    def scored(key, dist, cost):
        x, l, _ = score(key, dist)
        return cost(x) * jnp.exp(l - jax.lax.stop_gradient(l))

    samplers = (
        ge.Sampler("estimated", estimate=estimate),
        ge.Sampler("scored", estimate=scored, score=score),
        ge.score_function(),
    )
    where = jnp.array([True, False])
    total = lambda x: jnp.sum(x**3) + 1.0

    def run(l):
        dist = lambda l: dists.Normal(l, 1.0)
        forms = lambda s: (
            lambda l: s.expect(KEY, dist(l), total, where=where),
            ge.expectation(lambda l: total(s(KEY, dist(l), where=where))),
        )
        return [[jax.value_and_grad(form)(l) for form in forms(s)] for s in samplers]

    found = jax.tree.map(np.asarray, jax.jit(run)(jnp.array([0.3, jnp.nan])))
    for value, gradient in (form for forms in found for form in forms):
        np.testing.assert_allclose(value, found[-1][0][0], rtol=1e-6)
        np.testing.assert_allclose(gradient, found[-1][0][1], rtol=1e-6)
        assert gradient[1] == 0


def test_gumbel_max_has_no_gradient_and_fixed_points():
    dist = dists.Categorical(jnp.array([[0.0, 1.0, 2.0], [jnp.nan] * 3]))
    x = ge.gumbel_max()(KEY, dist, where=jnp.array([True, False]))
    assert x[1] == 0
    assert 0 <= x[0] < 3
