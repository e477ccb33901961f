"""The contract: what raises, what is attached to what, what is retraced."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import cases
from support.cases import CASES, assert_unbiased

import gradest as ge
from gradest._derivatives.variance import attach_variance_gradient
from gradest.distributions import Bernoulli, Categorical, Normal, OneHotCategorical

KEY = jax.random.key(3)
LOGITS = jnp.array([0.4, -0.7])

COST_BASED = {
    "score_function": ge.score_function(),
    "leave_one_out": ge.score_function(num_samples=3, baseline="leave_one_out"),
    "rebar": ge.rebar(0.5),
    "enumeration": ge.enumeration(),
    "gumbel_max": ge.gumbel_max(),
}


def cost(b, w=1.3):
    return jnp.prod(b - 0.3) + jnp.sin(w * jnp.sum(b))


def raw(sampler):
    return lambda logits: jnp.sum(sampler(KEY, Bernoulli(logits)))


@pytest.mark.parametrize("sampler", COST_BASED.values(), ids=COST_BASED)
@pytest.mark.parametrize(
    "differentiate",
    [
        lambda f: jax.grad(f),
        lambda f: jax.jit(jax.grad(f)),
        lambda f: jax.grad(jax.jit(f)),
        lambda f: lambda l: jax.vmap(jax.grad(f))(jnp.stack([l, l])),
        lambda f: jax.grad(lambda l: jax.vmap(f)(jnp.stack([l, l])).sum()),
    ],
    ids=["grad", "jit of grad", "grad of jit", "vmap of grad", "grad of vmap"],
)
def test_a_draw_differentiated_by_itself_raises(sampler, differentiate):
    with pytest.raises(ge.UnestimatedGradientError, match=f"{sampler.name}: its draw"):
        differentiate(raw(sampler))(LOGITS)


def test_the_error_names_the_line_and_both_remedies():
    with pytest.raises(ge.UnestimatedGradientError) as error:
        jax.grad(raw(ge.rebar(0.5)))(LOGITS)
    for part in ["rebar", "test_contract.py:", "gradest.expectation", "sampler.expect(key, dist"]:
        assert part in str(error.value)


def test_an_integer_draw_raises_while_its_parameters_are_differentiated():
    table = jnp.array([1.0, 2.0])
    loss = lambda l: table[ge.score_function()(KEY, Categorical(l))] * l[0]
    with pytest.raises(ge.UnestimatedGradientError, match="integer draw"):
        jax.grad(loss)(LOGITS)
    stopped = lambda l: (
        table[ge.score_function()(KEY, Categorical(jax.lax.stop_gradient(l)))] * l[0]
    )
    assert jax.grad(stopped)(LOGITS)[0] > 0


def test_metrics_do_not_raise():
    draw = lambda l: ge.rebar(0.5)(KEY, Bernoulli(l))

    def loss(l):
        b = draw(l)
        unused = draw(l) + 1
        del unused
        return jnp.sum(l) + jnp.sum(jax.lax.stop_gradient(b)) + jnp.mean(b > 0.5), b

    gradient, _ = jax.grad(loss, has_aux=True)(LOGITS)
    np.testing.assert_array_equal(gradient, 1.0)


def test_a_gradient_inside_the_loss_raises():
    @ge.expectation
    def loss(l):
        return jnp.sum(jax.grad(raw(ge.score_function()))(l))

    with pytest.raises(ge.UnestimatedGradientError, match="inside the loss"):
        loss(LOGITS)


class Threshold:
    """A distribution of another library: its draw is a pytree without a derivative."""

    def __init__(self, p):
        self.p = p

    def sample(self, key, shape=()):
        return {"draw": (jax.random.uniform(key, shape) < self.p).astype(float)}

    def log_prob(self, x):
        return jnp.where(x["draw"] > 0, jnp.log(self.p), jnp.log1p(-self.p))


jax.tree_util.register_pytree_node(Threshold, lambda d: ((d.p,), None), lambda _, c: Threshold(*c))


def test_reparameterizing_a_draw_without_a_derivative_raises():
    draw = lambda p: ge.reparameterize()(KEY, Threshold(p))["draw"]
    with pytest.raises(ge.UnestimatedGradientError, match=r"reparameterize: its draw.*Threshold"):
        jax.grad(draw)(0.3)


# ---- attach_gradient -----------------------------------------------------------------------


@pytest.mark.parametrize("attach", [ge.attach_gradient, attach_variance_gradient])
def test_a_constant_gets_the_cotangent_of_its_own_lane(attach):
    """And not the sum over lanes, though vmap need not tell the values apart."""

    def loss(inputs):
        one = lambda x, weight: weight * attach(jnp.array(7.0), x, 3.0 * x)
        return jnp.sum(jax.vmap(one)(inputs, jnp.ones(4)))

    inputs = jnp.arange(1.0, 5.0)
    np.testing.assert_array_equal(jax.grad(loss)(inputs), 3 * inputs)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(inputs), 3 * inputs)


def test_attach_gradient_scales_by_the_cotangent_and_leaves_the_value_alone():
    inputs = {"float": jnp.ones(2), "integer": jnp.arange(2)}

    def f(x, scale):
        gradient = {"float": jnp.array([2.0, 3.0]) * x, "integer": jnp.zeros(2, int)}
        return scale * ge.attach_gradient(x**2, {**inputs, "float": inputs["float"] * x}, gradient)

    value, gradient = jax.value_and_grad(f)(3.0, 10.0)
    assert value == 90.0
    assert gradient == 10 * (2 * 3.0 + 3.0 * (2.0 + 3.0))


def test_a_second_derivative_of_what_is_attached_raises():
    f = lambda x: ge.attach_gradient(x**2, x, x)
    with pytest.raises(NotImplementedError, match="attach_gradient: its gradient was"):
        jax.grad(jax.grad(f))(3.0)


@pytest.mark.parametrize(
    "sampler",
    [ge.rebar(0.5), ge.gumbel_softmax(0.5), ge.st_gumbel_softmax(0.5), ge.straight_through()],
    ids=lambda s: s.name,
)
def test_every_other_estimator_refuses_second_derivatives(sampler):
    loss = lambda l: sampler.expect(KEY, Bernoulli(l), cost)
    with pytest.raises(NotImplementedError, match=f"{sampler.name}: its gradient was"):
        jax.jit(jax.grad(lambda l: jnp.sum(jax.grad(loss)(l))))(LOGITS)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(jax.hessian(loss))(LOGITS)


# ---- What affects the variance only ----------------------------------------------------------


@pytest.mark.parametrize("coupled", [True, False])
def test_rebar_trains_its_control_variate_by_the_gradient_of_the_variance(x64, coupled):
    keys = jax.random.split(KEY, 64)
    hyper = {"temperature": jnp.asarray(0.6), "eta": jnp.asarray(0.8), "b": jnp.asarray(0.1)}
    logits = LOGITS.astype(float)
    scale = -0.25  # a maximised mean over four: the cotangents scale with its magnitude

    def loss(hyper, logits, key):
        h = hyper
        sampler = ge.rebar(h["temperature"], eta=h["eta"], baseline=h["b"], coupled=coupled)
        return scale * sampler.expect(key, Bernoulli(logits), cost)

    def squared_norm(hyper, key):
        return jnp.sum(jax.grad(loss, argnums=1)(hyper, logits, key) ** 2) / abs(scale)

    attached = jax.jit(jax.vmap(jax.grad(loss), (None, None, 0)))(hyper, logits, keys)
    direct = jax.jit(jax.vmap(jax.grad(squared_norm), (None, 0)))(hyper, keys)
    chex.assert_trees_all_close(attached, direct, rtol=1e-9, atol=1e-12)
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(direct))


@pytest.mark.parametrize("sign", [1.0, -2.0], ids=["minimised", "maximised"])
def test_a_step_of_sgd_on_a_baseline_is_the_running_mean(sign):
    def loss(b):
        sampler = ge.score_function(baseline=b)
        return sign * sampler.expect(KEY, Bernoulli(LOGITS), cost)

    b = jnp.float32(0.2)
    c = cost(ge.score_function()(KEY, Bernoulli(LOGITS)))
    updates, _ = optax.sgd(0.1).update(jax.grad(loss)(b), optax.sgd(0.1).init(b))
    expected = b + 0.1 * abs(sign) * (c - b)
    np.testing.assert_allclose(optax.apply_updates(b, updates), expected, rtol=1e-6)  # pyright: ignore[reportArgumentType, reportCallIssue]


# ---- Second derivatives --------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize(
    "sampler",
    [
        ge.score_function(),
        ge.score_function(baseline=0.4),
        ge.score_function(num_samples=3, baseline="leave_one_out"),
        ge.enumeration(),
    ],
    ids=str,
)
def test_hessians_with_cross_terms_are_unbiased(x64, sampler):
    point = jnp.array([0.4, -0.7, 1.3])

    def loss(x, key, sampler):
        return sampler.expect(key, Bernoulli(x[:2]), lambda b: cost(b, x[2]))

    exact = jax.jit(jax.hessian(lambda x: loss(x, KEY, ge.enumeration())))(point)
    keys = jax.random.split(KEY, 100_000)
    estimates = jax.jit(jax.vmap(jax.hessian(lambda x, k: loss(x, k, sampler)), (None, 0)))(
        point, keys
    )
    error = jnp.std(estimates, axis=0) / len(keys) ** 0.5
    z = (jnp.mean(estimates, axis=0) - exact) / jnp.maximum(error, 1e-12)
    assert jnp.max(jnp.abs(z)) < 4.5
    assert jnp.max(error) < 0.02 * jnp.max(jnp.abs(exact))
    # A Hessian that is 5% off is told from the exact one.
    if jnp.max(error) > 1e-9:
        broken = (1.05 * jnp.mean(estimates, axis=0) - exact) / jnp.maximum(error, 1e-12)
        assert jnp.max(jnp.abs(broken)) > 4.5


@pytest.mark.statistical
def test_mixed_second_derivatives_of_rebar_are_right_in_both_orders(x64):
    keys = jax.random.split(KEY, 200_000)
    logits, w = LOGITS.astype(float), jnp.asarray(1.3)
    loss = lambda l, w, key, s: s.expect(key, Bernoulli(l), lambda b: cost(b, w))
    exact = jax.jit(jax.grad(lambda l: jax.grad(loss, 1)(l, w, KEY, ge.enumeration())))(logits)
    sampler = ge.rebar(0.5)
    orders = {
        "logits of w": lambda key: jax.grad(lambda l: jax.grad(loss, 1)(l, w, key, sampler))(
            logits
        ),
        "w of logits": lambda key: jax.jacrev(lambda w: jax.grad(loss, 0)(logits, w, key, sampler))(
            w
        ),
    }
    for order in orders.values():
        estimates = jax.jit(jax.vmap(order))(keys)
        error = jnp.std(estimates, axis=0) / len(keys) ** 0.5
        assert jnp.max(jnp.abs(jnp.mean(estimates, axis=0) - exact) / error) < 4.5
        assert jnp.max(error) < 0.02 * jnp.max(jnp.abs(exact))


# ---- The transform's interface ---------------------------------------------------------------


def test_auxiliary_output_is_that_of_the_draw():
    sampler = ge.score_function()

    def loss(l, key):
        b = sampler(key, Bernoulli(l))
        return cost(b), {"draw": b, "cost": cost(b)}

    (value, aux), gradient = jax.value_and_grad(ge.expectation(loss, has_aux=True), has_aux=True)(
        LOGITS, KEY
    )
    np.testing.assert_array_equal(aux["draw"], sampler(KEY, Bernoulli(LOGITS)))
    np.testing.assert_allclose(value, aux["cost"], rtol=1e-6)
    same = jax.grad(lambda l: sampler.expect(KEY, Bernoulli(l), cost))(LOGITS)
    np.testing.assert_allclose(gradient, same, rtol=1e-6)


def test_losses_and_costs_must_be_scalars():
    with pytest.raises(ValueError, match=r"real scalar, got shape \(2,\).*jax.vmap"):
        ge.expectation(lambda l: ge.score_function()(KEY, Bernoulli(l)))(LOGITS)
    with pytest.raises(TypeError, match="has_aux=True"):
        ge.expectation(lambda l: (jnp.sum(l), l))(LOGITS)
    with pytest.raises(ValueError, match=r"score_function: expected the cost to be a real scalar"):
        ge.score_function().expect(KEY, Bernoulli(LOGITS), lambda b: b)


def test_samplers_made_inside_or_passed_in_are_not_retraced():
    @jax.jit
    @chex.assert_max_traces(1)
    def inside(hyper, key):
        sampler = ge.rebar(hyper["t"], eta=hyper["eta"])
        return jax.grad(lambda l: sampler.expect(key, Bernoulli(l), cost))(LOGITS)

    @jax.jit
    @chex.assert_max_traces(1)
    def passed(sampler, key):
        return jax.grad(lambda l: sampler.expect(key, Bernoulli(l), cost))(LOGITS)

    for i in range(3):
        key = jax.random.fold_in(KEY, i)
        inside({"t": jnp.float32(0.5 + i), "eta": jnp.float32(i)}, key)
        passed(ge.rebar(jnp.float32(0.5 + i)), key)
        # The same estimator made anew is the same to jax.jit.
        made = jax.tree.structure(ge.score_function(num_samples=3))
        assert made == jax.tree.structure(ge.score_function(num_samples=3))


def test_typed_and_legacy_keys_give_the_same_numbers():
    legacy = jax.random.key_data(KEY)
    for sampler in COST_BASED.values():
        np.testing.assert_array_equal(
            sampler(KEY, Bernoulli(LOGITS)), sampler(legacy, Bernoulli(LOGITS))
        )


def test_no_key_is_used_twice():
    bits, normal = ge.rebar(0.5, coupled=False), ge.reparameterize()
    loo = ge.score_function(num_samples=2, baseline="leave_one_out")

    @ge.expectation
    def loss(l, key):
        keys = jax.random.split(key, 4)
        first = bits(keys[0], Bernoulli(l))
        second = bits(keys[1], Bernoulli(l * first))
        third = loo(keys[2], OneHotCategorical(l + second))
        return cost(third) * jnp.sum(normal(keys[3], Normal(l, 1.0)))

    with jax.debug_key_reuse(True):
        jax.jit(jax.grad(loss)).trace(LOGITS, KEY)


def test_an_estimator_names_itself_in_the_program():
    lowered = jax.jit(lambda l: ge.rebar(0.5).expect(KEY, Bernoulli(l), cost)).lower(LOGITS)
    assert "gradest.rebar" in lowered.as_text(debug_info=True)


# ---- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ge.gumbel_softmax(0.0), ValueError, "temperature: expected a finite number great"),
        (lambda: ge.rebar(float("nan")), ValueError, "temperature: .* got nan"),
        (lambda: ge.rebar(eta=float("inf")), ValueError, "eta: expected a finite number, got inf"),
        (
            lambda: ge.rebar(relaxation="sharp"),  # pyright: ignore[reportArgumentType]
            ValueError,
            r"relaxation: expected one of .*'muprop",
        ),
        (lambda: ge.straight_through(slope=-1), ValueError, "slope: .* got -1.0"),
        (lambda: ge.score_function(num_samples=0), ValueError, "num_samples: expected an integer"),
        (
            lambda: ge.score_function(baseline="leave_one_out"),
            ValueError,
            'num_samples: .* at least 2 with baseline="leave_one_out", got 1',
        ),
        (lambda: ge.score_function(baseline="mean"), ValueError, "baseline: expected one of"),  # pyright: ignore[reportArgumentType]
        (
            lambda: ge.score_function(baseline=jnp.ones(2)),
            ValueError,
            "baseline: expected a scalar",
        ),
        (
            lambda: ge.Sampler("mine", score=lambda key, dist: (0.0, 0.0, 0.0)),  # pyright: ignore[reportArgumentType]
            ValueError,
            "mine: expected an estimate beside score or relaxed, got None",
        ),
        (lambda: Bernoulli(), TypeError, "exactly one of the two, got neither"),
        (lambda: Bernoulli(0.0, probs=0.5), TypeError, "exactly one of the two, got both"),
        (lambda: ge.rebar()(KEY, Normal()), TypeError, "rebar: expected one of .*got Normal"),
        (lambda: ge.rebar()(0, Bernoulli(0.0)), TypeError, "key: expected a PRNG key"),
        (lambda: ge.rebar()(Bernoulli(0.0), KEY), TypeError, "key: .*Keys come first"),  # pyright: ignore[reportArgumentType]
        (
            lambda: ge.reparameterize()(KEY, Bernoulli(0.0)),
            TypeError,
            "reparameterize: expected a distribution whose draws are differentiable",
        ),
        (
            lambda: ge.enumeration().expect(KEY, Bernoulli(jnp.zeros(17)), cost),
            ValueError,
            r"at most max_configurations=65536 joint configurations, got 2\^17 = 131,072",
        ),
    ],
)
def test_errors_name_the_argument_and_what_was_given(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Numbers in the place of arrays ----------------------------------------------------------

TRAINED = {
    "rebar": ge.rebar,
    "rebar, eta": lambda x: ge.rebar(eta=x),
    "rebar, baseline": lambda x: ge.rebar(baseline=x),
    "score_function": lambda x: ge.score_function(baseline=x),
    "muprop": lambda x: ge.muprop(baseline=x),
    "relax": lambda x: ge.relax(lambda w, z: w * jnp.tanh(z), x),
}


@pytest.mark.parametrize("make", TRAINED.values(), ids=TRAINED)
def test_what_is_trained_may_be_a_python_number(make):
    loss = lambda x: make(x).expect(KEY, Bernoulli(0.3), cost)
    got, want = jax.jit(lambda: (jax.grad(loss)(0.5), jax.grad(loss)(jnp.float32(0.5))))()
    assert want != 0
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("make", TRAINED.values(), ids=TRAINED)
def test_a_traced_integer_is_a_number_that_is_not_trained(make):
    loss = lambda logit, x: make(x).expect(KEY, Bernoulli(logit), cost)
    with jax.numpy_dtype_promotion("standard"):
        got, want = (jax.jit(jax.grad(loss))(0.3, x) for x in (1, 1.0))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seeded:
    """A Normal variable of a library that says `seed` and takes a raw key of JAX's default."""

    loc: jax.Array

    def sample(self, seed):
        return self.loc + jax.random.normal(jax.random.wrap_key_data(seed))

    def log_prob(self, x):
        return Normal(self.loc, 1.0).log_prob(x)


def test_keys_of_another_implementation_reach_other_libraries():
    draw = lambda key: ge.score_function()(key, Seeded(jnp.float32(0.0)))
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2_000)
    x = jnp.stack([draw(key) for key in keys[:2]])
    assert x[0] != x[1]
    np.testing.assert_array_equal(draw(KEY), draw(jax.random.key_data(KEY)))


# ---- Per-lane credit -------------------------------------------------------------------------


@pytest.mark.statistical
def test_a_vmapped_expectation_has_the_variance_of_one_lane():
    loss = ge.expectation(lambda l, key: cost(ge.score_function()(key, Bernoulli(l))))
    one = jax.vmap(jax.grad(loss), (None, 0))

    def lanes(l, key):
        return jnp.sum(jax.vmap(loss)(l, jax.random.split(key, 32)))

    alone = jax.jit(one)(LOGITS, jax.random.split(KEY, 100_000))[:, 0]
    together = jax.jit(jax.vmap(jax.grad(lanes), (None, 0)))(
        jnp.tile(LOGITS, (32, 1)), jax.random.split(jax.random.fold_in(KEY, 1), 10_000)
    )[:, 7, 0]
    variance = lambda x: (jnp.var(x), jnp.sqrt(jnp.var((x - x.mean()) ** 2) / len(x)))
    (v1, e1), (v2, e2) = variance(alone), variance(together)
    assert abs(v1 - v2) < 4.5 * jnp.hypot(e1, e2)
    assert jnp.hypot(e1, e2) < 0.05 * v1


# ---- Every estimator, by the table -------------------------------------------------------------

ESTIMATORS = [name for name, row in CASES.items() if row.record.estimates]
FORMS = ["expect", "expectation"]


def first_cell(estimator):
    row = CASES[estimator]
    return cases.Cell(estimator, next(iter(row.variants)), row.record.distributions[0])


def loss_of(cell, form):
    """A function of (distribution, key), in one of the two forms."""
    sampler, w = cell.sampler(), cases.weights(cell.dist())
    if form == "expect":
        return lambda dist, key: sampler.expect(key, dist, lambda x: cases.wave(w, x))
    return ge.expectation(lambda dist, key: cases.wave(w, sampler(key, dist)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_second_derivatives_are_right_or_raise(estimator, form):
    cell = first_cell(estimator)
    loss = loss_of(cell, form)

    @jax.jit
    def twice(dist):
        total = lambda dist: sum(map(jnp.sum, jax.tree.leaves(jax.grad(loss)(dist, KEY))))
        return jax.grad(total)(dist)

    if cell.row.record.second_order:
        assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(twice(cell.dist())))
    else:
        with pytest.raises(
            NotImplementedError, match=f"{estimator}: its gradient was differentiated"
        ):
            twice(cell.dist())


@pytest.mark.parametrize(
    ("estimator", "form"),
    [*((estimator, "expect") for estimator in ESTIMATORS), ("rebar", "expectation")],
)
def test_typed_and_legacy_keys_give_the_same_gradients(estimator, form):
    """A draw's key is made a typed one before any estimator has it, so one of them will do."""
    cell = first_cell(estimator)
    run = jax.jit(jax.value_and_grad(loss_of(cell, form)))
    typed, legacy = (run(cell.dist(), key) for key in (KEY, jax.random.key_data(KEY)))
    jax.tree.map(np.testing.assert_array_equal, typed, legacy)


CELLS = [cell for cell in cases.cells() if cell.distribution == cell.row.record.distributions[0]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_no_estimator_uses_a_key_twice(cell, form):
    with jax.debug_key_reuse(True):
        jax.jit(jax.grad(loss_of(cell, form))).trace(cell.dist(), jax.random.key(0))


@pytest.mark.parametrize("options", [{}, {"coupled": False}, {"nested": True}], ids=str)
def test_no_key_is_used_twice_by_sites_in_sequence(options):
    bits = ge.rebar(0.5, **options)

    @ge.expectation
    def loss(l, key):
        b = jnp.ones(2)
        for site_key in jax.random.split(key, 3):
            b = bits(site_key, Bernoulli(l * b))
        return cost(b)

    with jax.debug_key_reuse(True):
        jax.jit(jax.grad(loss)).trace(LOGITS, jax.random.key(0))


def test_a_key_that_is_used_twice_is_noticed():
    draw = lambda key: ge.rebar(0.5)(key, Bernoulli(LOGITS))
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: draw(key) + draw(key)).trace(jax.random.key(0))


@pytest.mark.parametrize("estimator", CASES)
def test_every_estimator_names_itself_in_the_program(estimator):
    cell = first_cell(estimator)
    draw = jax.jit(lambda dist: cell.sampler()(KEY, dist))
    assert f"gradest.{estimator}" in draw.lower(cell.dist()).as_text(debug_info=True)
    if cell.row.record.estimates:
        lowered = jax.jit(loss_of(cell, "expect")).lower(cell.dist(), KEY)
        assert f"gradest.{estimator}" in lowered.as_text(debug_info=True)


def test_gumbel_max_raises_in_an_expectation_too():
    sampler = ge.gumbel_max()
    for form in (
        ge.expectation(lambda l: cost(sampler(KEY, Bernoulli(l)))),
        lambda l: sampler.expect(KEY, Bernoulli(l), cost),
    ):
        with pytest.raises(ge.UnestimatedGradientError, match="gumbel_max: its draw"):
            jax.jit(jax.grad(form)).trace(LOGITS)
    with pytest.raises(ge.UnestimatedGradientError, match="gumbel_max: an integer draw"):
        jax.jit(jax.grad(lambda l: sampler(KEY, Categorical(l)).astype(float))).trace(LOGITS)


# ---- Training what affects the variance, in every combination ------------------------------------


@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "independent"])
@pytest.mark.parametrize("relaxation", ["concrete", "muprop"])
def test_rebar_of_one_hot_rows_trains_its_control_variate(x64, relaxation, coupled):
    """In both forms; the squared norm is that of the first, whose gradients are the other's."""
    logits = jnp.array([[0.3, -0.5, 0.8], [-0.9, 0.6, 0.1]])
    hyper = {"temperature": jnp.asarray(0.6), "eta": jnp.asarray(0.8), "baseline": jnp.asarray(0.1)}
    w = jnp.array([0.9, -0.6, 0.5, 0.7, -0.8, 0.4])

    def expected(hyper, logits, key):
        sampler = ge.rebar(**hyper, relaxation=relaxation, coupled=coupled)
        return -3.0 * sampler.expect(key, OneHotCategorical(logits), lambda x: cases.wave(w, x))

    def drawn(hyper, logits, key):
        sampler = ge.rebar(**hyper, relaxation=relaxation, coupled=coupled)
        draw = lambda key: sampler(key, OneHotCategorical(logits))
        return -3.0 * ge.expectation(lambda key: cases.wave(w, draw(key)))(key)

    def squared_norm(hyper, key):
        gradient = jax.grad(expected, argnums=1)(hyper, logits, key)
        return jnp.sum(gradient**2) / 3.0  # the cotangents scale with the magnitude

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def run(hyper, key):
        forms = [jax.grad(loss, argnums=(0, 1))(hyper, logits, key) for loss in (expected, drawn)]
        return forms, jax.grad(squared_norm)(hyper, key)

    (one, other), direct = run(hyper, jax.random.split(KEY, 16))
    chex.assert_trees_all_close(one, other, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(one[0], direct, rtol=1e-9, atol=1e-12)
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(direct))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_cotangent_of_a_baseline(form, num_samples, scale):
    """|ct| (b - cost), averaged over the samples; the value is their mean cost."""

    def loss(b, key):
        sampler = ge.score_function(num_samples=num_samples, baseline=b)
        if form == "expect":
            return scale * sampler.expect(key, Bernoulli(LOGITS), cost)
        return scale * ge.expectation(lambda k: cost(sampler(k, Bernoulli(LOGITS))))(key)

    b = jnp.float32(0.2)
    value, cotangent = jax.jit(jax.value_and_grad(loss))(b, KEY)
    np.testing.assert_allclose(cotangent, abs(scale) * (b - value / scale), rtol=1e-5)


def test_samplers_passed_to_jit_give_the_numbers_of_those_closed_over():
    @jax.jit
    @chex.assert_max_traces(1)
    def passed(sampler, key):
        return jax.grad(lambda l: sampler.expect(key, Bernoulli(l), cost))(LOGITS)

    for b in (0.1, 0.7):
        sampler = ge.score_function(baseline=jnp.float32(b))
        closed = jax.jit(jax.grad(lambda l, s=sampler: s.expect(KEY, Bernoulli(l), cost)))(LOGITS)
        np.testing.assert_allclose(passed(sampler, KEY), closed, rtol=1e-6)


# ---- Second derivatives, with what breaks them ---------------------------------------------------


@pytest.mark.statistical
def test_hessian_with_a_trained_baseline_is_unbiased(x64):
    point, b = jnp.array([0.4, -0.7, 1.3]), jnp.asarray(0.4)

    def loss(sampler, x, key):
        return sampler.expect(key, Bernoulli(x[:2]), lambda draw: cost(draw, x[2]))

    def hessian(b, key):
        sampler = ge.score_function(baseline=b)
        return jax.jacrev(jax.grad(lambda x: loss(sampler, x, key)))(point)

    def estimates(b):
        return jax.jit(jax.vmap(hessian, (None, 0)))(b, jax.random.split(KEY, 200_000))

    exact = jax.jit(jax.hessian(lambda x: loss(ge.enumeration(), x, KEY)))(point)
    assert_unbiased(estimates(b), exact)


def reinforce(surrogate):
    """The score function of first order, attached with or without a log-probability, or plain."""

    def estimate(key, dist, cost):
        b = jax.lax.stop_gradient(dist.sample(key))
        log_prob = lambda dist: jnp.sum(dist.log_prob(b))
        c = cost(b)
        if surrogate == "stopped cost":
            l = log_prob(dist)
            return c + jax.lax.stop_gradient(c) * (l - jax.lax.stop_gradient(l))
        gradient = jax.tree.map(lambda s: c * s, jax.grad(log_prob)(dist))
        l = log_prob(dist) if surrogate == "log_prob" else None
        return ge.attach_gradient(c, dist, gradient, log_prob=l)

    return ge.Sampler("reinforce", estimate=estimate)


def mixed(sampler, key):
    """d/dlogits d/dw."""
    loss = lambda l, w: sampler.expect(key, Bernoulli(l), lambda b: cost(b, w))
    logits, w = LOGITS.astype(float), jnp.asarray(1.3)
    return jax.jacrev(lambda l: jax.grad(loss, argnums=1)(l, w))(logits)


@pytest.mark.statistical
@pytest.mark.parametrize("surrogate", ["log_prob", "no log_prob", "stopped cost"])
def test_mixed_derivatives_of_an_attached_gradient(x64, surrogate):
    """Unbiased with the draw's log-probability; not without it, nor by the usual surrogate loss."""
    sampler, keys = reinforce(surrogate), jax.random.split(KEY, 200_000)
    got = jax.jit(jax.vmap(lambda key: mixed(sampler, key)))(keys)
    want = mixed(ge.enumeration(), KEY)
    if surrogate == "log_prob":
        assert_unbiased(got, want)
    else:
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(got, want)


def test_auxiliary_output_needs_a_pair():
    with pytest.raises(TypeError, match=r"has_aux=True expects the loss to return a pair"):
        ge.expectation(jnp.sum, has_aux=True)(LOGITS)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (Bernoulli(jnp.zeros(3)), r"expected an array of shape \(2,\).* got shape \(3,\)"),
        (Normal(jnp.zeros(2), jnp.ones(2)), "expected a leaf for each of the 1 of inputs"),
    ],
)
def test_attached_gradient_of_another_shape(gradient, message):
    with pytest.raises(ValueError, match=f"^gradient: {message}"):
        ge.attach_gradient(jnp.float32(1.0), Bernoulli(jnp.zeros(2)), gradient)
