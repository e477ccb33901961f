"""Every estimator against exact results, by the table in cases.py."""

import dataclasses
import functools
import inspect
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import (
    CASES,
    COSTS,
    Cell,
    NoPower,
    assert_unbiased,
    assert_variance,
    oracles,
    value_and_grad,
)

import gradest as ge
from gradest import distributions as dists

NUM_KEYS = 400_000
CELLS = list(cases.cells())


def keys(num: int = NUM_KEYS, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


def gradients(loss: Any, params: Any, num: int = NUM_KEYS, seed: int = 0) -> Any:
    """Values and gradients of `loss(params, key)` at `num` keys."""
    return jax.jit(jax.vmap(value_and_grad(loss), in_axes=(None, 0)))(params, keys(num, seed))


def assert_exact_on_average(run: Any, params: Any, want: Any) -> None:
    """What `run(params, key)` returns, at as many keys as it takes, a quarter at a time."""
    sample = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    first, *others = jnp.split(keys(), 4)
    samples = sample(params, first)
    try:
        assert_unbiased(samples, want)
    except NoPower:
        parts = [samples, *(sample(params, part) for part in others)]
        samples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        assert_unbiased(samples, want)


def exact(loss: Any, params: Any) -> Any:
    return jax.jit(value_and_grad(loss))(params)


def expect(sampler: ge.Sampler, cost: Any) -> Any:
    """The loss in the first form: parameters are the distribution and the cost's own."""
    return lambda params, key: sampler.expect(key, params[0], functools.partial(cost, params[1]))


def direct(sampler: ge.Sampler, cost: Any) -> Any:
    """The loss in the second form."""
    return ge.expectation(lambda params, key: cost(params[1], sampler(key, params[0])))


# ---- The matrix ----------------------------------------------------------------------------


def test_every_estimator_has_a_row():
    def returns_a_sampler(function):
        return typing.get_type_hints(function).get("return") is ge.Sampler

    functions = inspect.getmembers(ge, inspect.isfunction)
    public = {name for name, f in functions if returns_a_sampler(f) and not name.startswith("_")}
    assert public == set(CASES)


def test_every_row_has_a_broken_variant():
    assert all(row.broken for row in CASES.values() if row.record.estimates)


def exact_of(cell: Cell, cost: str) -> Any:
    return _exact_of(cell.row.variants[cell.variant].oracle, cell.distribution, cost)


@functools.cache
def _exact_of(oracle: Any, distribution: str, cost: str) -> Any:
    dist = cases.DISTRIBUTIONS[distribution]()
    loss = lambda params: oracle(params[0], functools.partial(COSTS[cost], params[1]))
    return exact(loss, (dist, cases.weights(dist)))


@pytest.mark.statistical
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_gradient_is_exact_on_average(cell):
    dist = cell.dist()
    params = (dist, cases.weights(dist))
    want = {name: exact_of(cell, name) for name in COSTS}
    losses = {name: expect(cell.sampler(), cost) for name, cost in COSTS.items()}

    def run(params, key):
        return {name: value_and_grad(loss)(params, key) for name, loss in losses.items()}

    if cell.estimator == "enumeration":
        close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
        jax.tree.map(close, jax.jit(run)(params, jax.random.key(0)), want)
    else:
        assert_exact_on_average(run, params, want)


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (estimator, name)
        for estimator, row in CASES.items()
        for name in row.record.distributions
        if name not in row.sampled
    ],
)
def test_what_is_not_sampled_is_traced(estimator, name):
    cell = Cell(estimator, next(iter(CASES[estimator].variants)), name)
    params = (cell.dist(), cases.weights(cell.dist()))
    loss = expect(cell.sampler(), cases.wave)
    _, gradient = jax.eval_shape(value_and_grad(loss), params, jax.random.key(0))
    is_float = lambda p: jnp.issubdtype(p.dtype, jnp.floating)
    expected = [p.shape for p in jax.tree.leaves(params) if is_float(p)]
    assert [g.shape for g in jax.tree.leaves(gradient)] == expected


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("estimator", "broken"), [(name, b) for name, row in CASES.items() for b in row.broken]
)
def test_broken_variant_is_found_out(estimator, broken, monkeypatch):
    row = CASES[estimator]
    cell = Cell(estimator, next(iter(row.variants)), row.record.distributions[0])
    dist = cell.dist()
    params = (dist, cases.weights(dist))
    sampler = row.broken[broken](monkeypatch)
    loss = expect(sampler, COSTS["wave"])
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_exact_on_average(value_and_grad(loss), params, exact_of(cell, "wave"))


def of_every_form(cell: Cell) -> bool:
    """Each estimator by every kind of distribution, and with each of its options by one."""
    # These two do nothing but draw and take log-probabilities, of whatever it is.
    general = cell.estimator in ("score_function", "reparameterize")
    if cell.variant == next(iter(cell.row.variants)):
        other = general and cell.distribution not in cases.COMPOSED
        return cell.distribution in cases.KINDS or other
    return cell.distribution == next(kind for kind in cases.KINDS if kind in cell.row.sampled)


@pytest.mark.parametrize("cell", list(filter(of_every_form, CELLS)), ids=str)
def test_forms_and_transforms_agree(cell):
    sampler, dist = cell.sampler(), cell.dist()
    params = (dist, cases.weights(dist))
    forms = {form.__name__: form(sampler, cases.wave) for form in (expect, direct)}
    if sampler.pathwise:
        forms["draw"] = lambda params, key: cases.wave(params[1], sampler(key, params[0]))

    @jax.jit
    def run(params, keys):
        def transforms(loss):
            in_jit = jax.jit(value_and_grad(jax.jit(loss)))(params, keys[0])
            return {
                "vmap": jax.vmap(value_and_grad(loss), in_axes=(None, 0))(params, keys),
                "jit of grad of jit": jax.tree.map(lambda x: x[None], in_jit),
            }

        return {name: transforms(loss) for name, loss in forms.items()}

    results = run(params, keys(2))
    reference = results["expect"]["vmap"]
    for form, by_transform in results.items():
        for transform, result in by_transform.items():
            for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
                # The forms sum the same terms in another order: a digit less than single precision.
                rtol, atol = (1e-6, 1e-7) if transform == "vmap" else (2e-5, 1e-6)
                close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
                close(got, want[: len(got)], err_msg=f"{form}, {transform}")


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [name for name, row in CASES.items() if row.record.estimates])
def test_which_estimators_need_the_gradient_of_the_cost(estimator):
    """With a cost that is flat but for a jump, an estimator that needs its gradient says so."""
    row = CASES[estimator]
    name = next(name for name in cases.KINDS if name in row.record.distributions)
    cell = Cell(estimator, next(iter(row.variants)), name)
    dist = cell.dist()
    params = (dist, cases.weights(dist))
    # In closed form, where the quadrature of what some estimate has no digits for a jump.
    exactly = row.record.is_unbiased and name in cases.FINITE
    of_steps = lambda dist, w: cell.oracle(dist, functools.partial(cases.steps, w))
    want = exact(lambda p: (of_steps if exactly else cases.expected_steps)(*p), params)
    loss = expect(cell.sampler(), cases.steps)
    if not row.record.needs_slope(type(dist)):
        assert_exact_on_average(value_and_grad(loss), params, want)
    elif estimator == "rebar":  # has a score beside the slope
        with pytest.warns(ge.UnestimatedGradientWarning, match="jumps at a comparison"):
            got = gradients(loss, params)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(got, want)
    else:
        with pytest.raises(ge.UnestimatedGradientError, match="jumps at a comparison"):
            gradients(loss, params)


@pytest.mark.statistical
def test_score_function_takes_any_cost_of_a_continuous_draw():
    dist = cases.DISTRIBUTIONS["Normal"]()
    params = (dist, cases.weights(dist))
    want = exact(lambda p: cases.expected_steps(*p), params)
    loss = expect(ge.score_function(), cases.steps)
    assert_exact_on_average(value_and_grad(loss), params, want)


@pytest.mark.parametrize("cell", [c for c in CELLS if not c.row.record.is_unbiased], ids=str)
def test_the_biased_are_biased(cell):
    """Their oracles are not the expectation, or the checks above would say little."""
    dist = cell.dist()
    params = (dist, cases.weights(dist))

    def gap(name):
        cost = cases.COSTS[name]
        loss = lambda p: oracles.expectation(p[0], functools.partial(cost, p[1]))
        _, (of_dist, _) = exact(loss, params)
        _, (own, _) = exact_of(cell, name)
        return np.linalg.norm(own.logits - of_dist.logits) / np.linalg.norm(of_dist.logits)

    assert max(map(gap, cases.COSTS)) > 0.05


# ---- Several sites -------------------------------------------------------------------------


def chain_params(num_sites: int) -> Any:
    links = [jnp.array([[0.9, -0.5], [0.3, 0.8]]), jnp.array([[-0.7, 0.6], [0.5, 0.4]])]
    return {
        "logits": jnp.array([0.4, -0.6]),
        "links": links[: num_sites - 1],
        "w": jnp.array([0.8, -0.6, 0.9, 0.5, -0.7, 0.6])[: 2 * num_sites],
    }


def chain(params: Any, sites: Any, step: Any, done: tuple[jax.Array, ...] = ()) -> jax.Array:
    """A program of dependent draws, each `step(site, logits, what follows)`."""
    if len(done) == len(sites):
        x = jnp.concatenate(done)
        return cases.wave(params["w"], x) + jnp.sum(done[0] ** 2) * x[-1]
    logits = params["links"][len(done) - 1] @ done[-1] - 0.4 if done else params["logits"]
    then = lambda x: chain(params, sites, step, (*done, x))
    return step(sites[len(done)], logits, then)


bernoulli = dists.Bernoulli
normal = functools.partial(dists.Normal, scale=0.7)
rebar, score = ge.rebar, ge.score_function
stratified = functools.partial(ge.stratified, 3)
leave_one_out = functools.partial(ge.score_function, num_samples=2, baseline="leave_one_out")
CHAINS = {
    "rebar, score_function": [(rebar, bernoulli), (score, bernoulli)],
    "score_function, rebar": [(score, bernoulli), (rebar, bernoulli)],
    "three rebar": [(rebar, bernoulli)] * 3,
    "three rebar, nested": [(functools.partial(rebar, nested=True), bernoulli)] * 3,
    "rebar independent, rebar": [
        (functools.partial(rebar, coupled=False), bernoulli),
        (rebar, bernoulli),
    ],
    "leave_one_out, rebar": [(leave_one_out, bernoulli), (rebar, bernoulli)],
    "rebar, leave_one_out": [(rebar, bernoulli), (leave_one_out, bernoulli)],
    "enumeration, score_function": [(ge.enumeration, bernoulli), (score, bernoulli)],
    "reparameterize, rebar": [(ge.reparameterize, normal), (rebar, bernoulli)],
    "reparameterize, score_function": [(ge.reparameterize, normal), (score, bernoulli)],
    "score_function of a normal, rebar": [(score, normal), (rebar, bernoulli)],
    "stratified, rebar": [(stratified, bernoulli), (rebar, bernoulli)],
    "score_function, stratified": [(score, bernoulli), (stratified, bernoulli)],
    "stratified of a normal, stratified": [(stratified, normal), (stratified, bernoulli)],
}


def sampled_chain(sites: Any) -> Any:
    """The chain as a loss of (params, key) under the transform."""

    @ge.expectation
    def loss(params, key):
        site_keys = iter(jax.random.split(key, len(sites)))
        draw = lambda site, logits: site[0](next(site_keys), site[1](logits))
        sampled = [(make(), kind) for make, kind in sites]
        return chain(params, sampled, lambda site, logits, then: then(draw(site, logits)))

    return loss


@functools.cache
def exact_chain(kinds: Any) -> Any:
    step = lambda kind, logits, then: oracles.expectation(kind(logits), then)
    return exact(lambda params: chain(params, kinds, step), chain_params(len(kinds)))


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHAINS)
def test_dependent_sites(name):
    sites = CHAINS[name]
    want = exact_chain(tuple(kind for _, kind in sites))
    assert_exact_on_average(value_and_grad(sampled_chain(sites)), chain_params(len(sites)), want)


@pytest.mark.statistical
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", ["rebar, score_function", "score_function, rebar"])
def test_dependent_sites_with_a_broken_one(name, position, monkeypatch):
    sites = list(CHAINS[name])
    make, kind = sites[position]
    sites[position] = (lambda: cases.broken.scaled(make)(monkeypatch), kind)
    want = exact_chain((bernoulli, bernoulli))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_exact_on_average(value_and_grad(sampled_chain(sites)), chain_params(2), want)


@pytest.mark.statistical
def test_samples_have_randomness_of_their_own_downstream():
    """The variance of the mean over the first site's samples is that of independent runs."""
    one, three = (
        jax.vmap(sampled_chain([(make, bernoulli), (score, bernoulli)]), in_axes=(None, 0))(
            chain_params(2), keys(50_000)
        )
        for make in (score, functools.partial(score, num_samples=3))
    )
    assert_variance(three, float(one.var()) / 3)


@pytest.mark.parametrize("make", [score, leave_one_out, rebar], ids=["score", "loo", "rebar"])
def test_site_inside_an_inner_jit(make):
    params = chain_params(2)
    plain = sampled_chain([(make, bernoulli)] * 2)

    def loss(params, key):
        sampler = make()

        @jax.jit
        def draw(key, logits):
            return sampler(key, bernoulli(jax.jit(lambda x: x + 0.0)(logits)))

        site_keys = iter(jax.random.split(key, 2))
        step = lambda site, logits, then: then(draw(next(site_keys), logits))
        return chain(params, [None] * 2, step)

    inside = gradients(ge.expectation(loss), params, 20)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, inside, gradients(plain, params, 20))


# ---- A site under vmap ---------------------------------------------------------------------

LANES = (
    jnp.array([[0.4, -0.6], [0.2, 0.9], [-0.3, -0.8]]),
    jnp.array([0.9, -0.6, 0.5, 0.7, -0.8, 0.4]),
)


def lanes_loss(make: Any, kind: Any, num_keys: int = 3) -> Any:
    def loss(params, key):
        logits, w = params
        draw = lambda key, logits: make()(key, kind(logits))
        site_keys = jax.random.split(key, num_keys) if num_keys > 1 else key
        x = jax.vmap(draw, in_axes=(0 if num_keys > 1 else None, 0))(site_keys, logits)
        return cases.wave(w, x)

    return ge.expectation(loss)


JOINT = "credited with the whole loss in every lane"


@functools.cache
def exact_lanes() -> Any:
    joint = lambda params: oracles.expectation(bernoulli(params[0]), partial_wave(params[1]))
    return exact(joint, LANES)


def partial_wave(w: jax.Array) -> Any:
    return lambda x: cases.wave(w, x)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "make", [score, leave_one_out, rebar, ge.enumeration], ids=["score", "loo", "rebar", "sum"]
)
def test_vmapped_site_is_one_joint_draw(make):
    with pytest.warns(UserWarning, match=JOINT):
        got = gradients(lanes_loss(make, bernoulli), LANES)
    if make is ge.enumeration:
        first = jax.tree.map(lambda x: x[0], got)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, first, exact_lanes())
    else:
        assert_unbiased(got, exact_lanes())


@pytest.mark.statistical
def test_vmapped_site_finds_out_a_broken_one(monkeypatch):
    broken = cases.broken.scaled(leave_one_out)(monkeypatch)
    with (
        pytest.warns(UserWarning, match=JOINT),
        pytest.raises(AssertionError, match="standard errors off"),
    ):
        assert_unbiased(gradients(lanes_loss(lambda: broken, bernoulli), LANES), exact_lanes())


@pytest.mark.parametrize("make", [score, leave_one_out, rebar], ids=["score", "loo", "rebar"])
def test_vmapped_site_with_one_key_for_all_lanes(make):
    with pytest.raises(ValueError, match=r"same key in every lane .*Split the key"):
        jax.grad(lanes_loss(make, bernoulli, num_keys=1))(LANES, jax.random.key(0))


def test_vmapped_site_with_options_per_lane():
    @ge.expectation
    def loss(temperatures, key):
        draw = lambda key, t: ge.rebar(t)(key, bernoulli(jnp.zeros(2)))
        return jnp.sum(jax.vmap(draw)(jax.random.split(key, 3), temperatures))

    with pytest.raises(NotImplementedError, match=r"rebar: .* options that differ from lane to"):
        loss(jnp.array([0.3, 0.4, 0.5]), jax.random.key(0))


# ---- Distributions from elsewhere ----------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Spins:
    """The least that a distribution can be: -1 or 1 in a field."""

    field: jax.Array

    def sample(self, key, shape=()):
        up = jax.random.uniform(key, shape + self.field.shape) < jax.nn.sigmoid(2 * self.field)
        return jnp.where(up, 1.0, -1.0)

    def log_prob(self, x):
        return jax.nn.log_sigmoid(2 * self.field * x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Shifted:
    """Differentiable draws in a class of the user's own."""

    loc: jax.Array
    scale: jax.Array

    def sample(self, key, shape=()):
        return self.loc + self.scale * jax.random.normal(key, shape + self.loc.shape)

    def log_prob(self, x):
        return jax.scipy.stats.norm.logpdf(x, self.loc, self.scale)


def numpyro_kind(name: str) -> Any:
    return getattr(pytest.importorskip("numpyro.distributions"), name)


@pytest.fixture
def promotion():
    """JAX's usual promotion, which the code of other libraries relies on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Foreign(NamedTuple):
    """A distribution of another library, made from parameters, and the same one as points."""

    make: Any
    params: tuple[Any, ...]
    points: Any
    differentiable: bool = False


LOGITS = jnp.array([0.4, -0.7, 0.9])
LOC_SCALE = (jnp.array([0.5, -0.3]), jnp.array([0.7, 1.1]))
FOREIGN = {
    "user's spins": Foreign(
        Spins,
        (jnp.array([0.3, -0.4, 0.6]),),
        lambda field: oracles.map_points(lambda x: 2 * x - 1, oracles.points(bernoulli(2 * field))),
    ),
    "user's normal": Foreign(
        Shifted, LOC_SCALE, lambda *p: oracles.points(dists.Normal(*p)), differentiable=True
    ),
    "numpyro Bernoulli": Foreign(
        lambda logits: numpyro_kind("Bernoulli")(logits=logits),
        (LOGITS,),
        lambda logits: oracles.points(bernoulli(logits)),
    ),
    "numpyro Categorical": Foreign(
        lambda logits: numpyro_kind("Categorical")(logits=logits),
        (jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]]),),
        lambda logits: oracles.points(dists.Categorical(logits)),
    ),
    "numpyro Normal": Foreign(
        lambda *p: numpyro_kind("Normal")(*p),
        LOC_SCALE,
        lambda *p: oracles.points(dists.Normal(*p)),
        differentiable=True,
    ),
    "numpyro Poisson": Foreign(
        lambda rate: numpyro_kind("Poisson")(rate), (jnp.array([0.8, 1.7]),), oracles.poisson
    ),
    "numpyro Gamma": Foreign(
        lambda *p: numpyro_kind("Gamma")(*p),
        (jnp.array([1.8, 2.6]), jnp.array([2.0, 1.7])),
        oracles.gamma,
        differentiable=True,
    ),
}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "sampler"),
    [(name, ge.score_function()) for name in FOREIGN]
    + [(name, ge.reparameterize()) for name, f in FOREIGN.items() if f.differentiable],
    ids=str,
)
@pytest.mark.usefixtures("promotion")
def test_foreign_distribution(name, sampler):
    foreign = FOREIGN[name]
    w = jnp.array([0.9, -0.6, 0.5])[: foreign.points(*foreign.params).values[0].size]
    params = (foreign.params, w)
    of = lambda params, key: sampler.expect(key, foreign.make(*params[0]), partial_wave(params[1]))
    want = exact(lambda p: oracles.expectation(foreign.points(*p[0]), partial_wave(p[1])), params)
    assert_exact_on_average(value_and_grad(of), params, want)
    direct = ge.expectation(
        lambda params, key: cases.wave(params[1], sampler(key, foreign.make(*params[0])))
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, gradients(direct, params, 3), gradients(of, params, 3))


@pytest.mark.statistical
def test_foreign_distribution_finds_out_a_broken_estimator(monkeypatch):
    foreign = FOREIGN["user's spins"]
    sampler = cases.broken.scaled(ge.score_function)(monkeypatch)
    params = (foreign.params, jnp.array([0.9, -0.6, 0.5]))
    of = lambda params, key: sampler.expect(key, foreign.make(*params[0]), partial_wave(params[1]))
    want = exact(lambda p: oracles.expectation(foreign.points(*p[0]), partial_wave(p[1])), params)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_exact_on_average(value_and_grad(of), params, want)


@pytest.mark.statistical
@pytest.mark.usefixtures("promotion")
def test_foreign_distribution_under_vmap():
    kind = lambda logits: numpyro_kind("Bernoulli")(logits=logits)
    with pytest.warns(UserWarning, match=JOINT):
        got = gradients(lanes_loss(score, kind), LANES)
    assert_unbiased(got, exact_lanes())


@pytest.mark.statistical
@pytest.mark.usefixtures("promotion")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["distrax", "tensorflow_probability.substrates.jax"])
def test_distribution_with_a_seed(library):
    module = pytest.importorskip(library, exc_type=ImportError)
    kinds = getattr(module, "distributions", module)
    params = (LOGITS, jnp.array([0.9, -0.6, 0.5]))
    sampler = ge.score_function()
    of = lambda params, key: sampler.expect(
        key, kinds.Bernoulli(logits=params[0]), partial_wave(params[1])
    )
    want = exact(lambda p: oracles.expectation(bernoulli(p[0]), partial_wave(p[1])), params)
    assert_exact_on_average(value_and_grad(of), params, want)


def test_distribution_with_a_seed_of_the_users_own():
    """The signature of distrax and TFP, whether they are installed or not."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Seeded:
        field: jax.Array

        def sample(self, *, seed, sample_shape=()):
            assert seed.dtype == jnp.uint32
            return Spins(self.field).sample(jax.random.wrap_key_data(seed), sample_shape)

        def log_prob(self, value):
            return Spins(self.field).log_prob(value)

    params = (jnp.array([0.3, -0.4, 0.6]), jnp.array([0.9, -0.6, 0.5]))
    of = lambda kind: (
        lambda params, key: score().expect(key, kind(params[0]), partial_wave(params[1]))
    )
    same = functools.partial(np.testing.assert_array_equal)
    jax.tree.map(same, gradients(of(Seeded), params, 10), gradients(of(Spins), params, 10))


def test_reparameterize_refuses_foreign_draws_that_are_not_differentiable():
    x = lambda field: jnp.sum(ge.reparameterize()(jax.random.key(0), Spins(field)))
    with pytest.raises(ge.UnestimatedGradientError, match=r"Spins .* Use score_function"):
        jax.grad(x)(jnp.zeros(2))
    bernoulli = numpyro_kind("Bernoulli")
    with pytest.raises(TypeError, match="expected a distribution whose draws are differentiable"):
        ge.reparameterize()(jax.random.key(0), bernoulli(logits=jnp.zeros(2)))
