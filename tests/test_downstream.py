"""What becomes of a draw: jumps are warned of, and nothing else is."""

import functools
import inspect
import math
import re
import time
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from support.losses import BLIND, JUMPS, KEY, LONG, SILENT, STOPPED, Y

import gradest as ge
from gradest import distributions as dists
from gradest import records
from gradest._jumps import WITHOUT_SLOPE
from gradest._transform.downstream import complaints_of, follow

normal = lambda m: dists.Normal(m * jnp.ones(6), 1.0)
one_hot = lambda m: dists.OneHotCategorical(m * Y)
# One of each kind of draw that a cost is differentiated in.
DRAWS = {
    "reparameterize": (ge.reparameterize(), normal),
    "antithetic": (ge.antithetic(), normal),
    "gumbel_softmax": (ge.gumbel_softmax(0.5), one_hot),
    "st_gumbel_softmax": (ge.st_gumbel_softmax(0.5), one_hot),
    "rebar": (ge.rebar(), one_hot),
}


def fates(loss, draws=DRAWS):
    """What becomes of a draw of each kind in the sum of a loss of them."""

    def of_all(m, key):
        return sum(loss(s(key, law(m))) for s, law in draws.values()) * 1.0

    # As users write them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        followed = follow(jax.make_jaxpr(of_all)(0.3, KEY))
    return {draw.source.name: draw.fate.level for draw in followed}


@pytest.mark.parametrize("loss", SILENT.values(), ids=SILENT)
def test_no_false_alarm(loss):
    assert set(fates(loss).values()) <= {"smooth", "kinked"}


@pytest.mark.parametrize("loss", LONG.values(), ids=LONG)
def test_no_false_alarm_of_one_draw(loss):
    (fate,) = fates(loss, {"reparameterize": DRAWS["reparameterize"]}).values()
    assert fate in ("smooth", "kinked")


def complains_beside_noise(loss):
    """Whether there is something to complain of in the loss of a mean with noise by jax.random."""

    def of_mean(m, key):
        return loss(m * jnp.ones(6) + jax.random.normal(key, (6,))) * 1.0

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return bool(complaints_of(jax.make_jaxpr(of_mean)(0.3, KEY), str).of_inputs)


def test_no_false_alarm_of_noise():
    assert not [name for name, loss in (SILENT | LONG).items() if complains_beside_noise(loss)]


def test_no_jump_of_noise_is_missed():
    """But of draws that complain themselves, and one step in six of a scan, seen by chance."""
    missed = {name for name, loss in JUMPS.items() if not complains_beside_noise(loss)}
    assert missed <= {"bernoulli", "categorical", "last step of a scan"}


@pytest.mark.parametrize("loss", JUMPS.values(), ids=JUMPS)
def test_no_jump_is_missed(loss):
    assert set(fates(loss).values()) == {"jump"}


@pytest.mark.parametrize("loss", BLIND.values(), ids=BLIND)
def test_a_jump_that_is_not_seen_is_on_the_page_on_the_promise(loss):
    assert set(fates(loss).values()) <= {"smooth", "kinked"}


@pytest.mark.parametrize("loss", STOPPED.values(), ids=STOPPED)
def test_stop_gradient_is_obeyed_by_draws_and_not_at_relaxed_points(loss):
    found = fates(loss)
    assert found.pop("rebar") == "jump"
    assert "jump" not in found.values()


# ---- What is said --------------------------------------------------------------------------


def said(loss, *args, transform=jax.grad):
    """The warnings that tracing the gradient of a loss gives; any error passes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.make_jaxpr(transform(ge.expectation(loss)))(*(args or (0.3,)), KEY)
    assert all(w.category is ge.UnestimatedGradientWarning for w in caught)
    return caught


def line_of(function, words):
    """The number of the line of a function's source that holds `words`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if words in line)


def test_both_lines_and_the_remedies_are_named():
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, 1.0))  # draws
        above = x > 0.5  # compares
        return x**2 + jnp.where(above, 1.0, 0.0)

    (warning,) = said(loss)
    draws, compares = line_of(loss, "# draws"), line_of(loss, "# compares")
    assert (warning.filename, warning.lineno) == (__file__, draws)
    assert re.fullmatch(
        rf"reparameterize: what follows the draw \(at {__file__}:{draws}\) jumps at a comparison "
        rf"\(at {__file__}:{compares}\), .* Draw by measure_valued or score_function, .* "
        r"put jax\.lax\.stop_gradient around what is compared or indexed\.",
        str(warning.message),
    )


@pytest.mark.parametrize("draw", [name for name in DRAWS if name != "rebar"])
def test_a_draw_of_which_every_way_jumps_raises(draw):
    sampler, law = DRAWS[draw]
    with pytest.raises(ge.UnestimatedGradientError, match=f"^{draw}: .*silently be zero"):
        said(lambda m, key: jnp.sum(jnp.round(sampler(key, law(m)))))


def test_rebar_warns_and_names_a_rule_of_its_own():
    (warning,) = said(lambda m, key: jnp.sum(jnp.round(ge.rebar()(key, one_hot(m))) * Y))
    assert re.match("^rebar: .*enumeration, disarm.*jax.custom_jvp", str(warning.message))


def test_rebar_without_its_control_variate_is_silent():
    loss = lambda m, key: jnp.sum(jnp.round(ge.rebar(eta=0.0)(key, one_hot(m))) * Y)
    assert not said(loss)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_relax_warns_of_its_surrogate_alone(eta):
    step = lambda w, z: jnp.sum(jnp.where(z > 0.5, w, 0.0))
    loss = lambda m, key: jnp.sum(jnp.round(ge.relax(step, 1.0, eta=eta)(key, one_hot(m))))
    assert [str(w.message)[:28] for w in said(loss)] == ["relax: its surrogate jumps a"] * bool(eta)
    smooth = lambda w, z: jnp.sum(w * z)
    assert not said(lambda m, key: jnp.sum(jnp.round(ge.relax(smooth, 1.0)(key, one_hot(m)))))


@pytest.mark.parametrize("name", ["muprop", "score_function", "disarm", "measure_valued"])
def test_what_needs_no_slope_is_silent(name):
    sampler = getattr(ge, name)()
    assert not said(lambda m, key: jnp.sum(jnp.round(sampler(key, one_hot(m))) * Y))


def test_parameters_that_are_not_differentiated():
    def loss(m, key):
        return m * jnp.round(ge.reparameterize()(key, dists.Normal(0.0, 1.0)))

    assert not said(loss)
    whole = lambda m, key: jnp.round(ge.reparameterize()(key, dists.Normal(m, 1.0)))
    assert not said(whole, transform=lambda f: f)


def halved(s, x):
    """How often x is halved until it is small, and what the loop carries besides."""
    halve = lambda state: (state[0] + 1, 0.5 * state[1], state[2])
    return lax.while_loop(lambda state: state[1] > 0.1, halve, (0, x, s))


# Of the standard deviation 2 of noise x that is drawn by itself.
BESIDE = {
    "a comparison": lambda s, x: jnp.where(s * x > 1, 1.0, 0.0),
    "in a call": lambda s, x: jax.jit(lambda y: jnp.floor(y) * 1.0)(s * x),
    "in a scan": lambda s, x: jnp.sum(
        lax.scan(lambda c, _: (s * c + x, jnp.where(c > 1, 1.0, 0.0)), x, length=3)[1]
    ),
    "in a rule": lambda s, x: jnp.sign(jax.nn.relu(s) * x),
    "in a loop": lambda s, x: 1.0 * halved(s, s * x)[0],
}
FREE = {
    "a kink": lambda s, x: jnp.where(s * x > 0, s * x, 0.0),
    "not compared": lambda s, x: s * jnp.where(x > 1, 1.0, 0.0),
    "stopped": lambda s, x: s * jnp.where(lax.stop_gradient(s) * x > 1, 1.0, 0.0),
    "in a branch": lambda s, x: lax.cond(x > 0, lambda: s, lambda: -s),
    "rounded": lambda s, x: s * jnp.where(jnp.floor(s) * x > 1, 1.0, 0.0),
    "in a loop": lambda s, x: s * jnp.minimum(1.0 * halved(s, x)[0], 7.0),
}
NOISE = [ge.reparameterize(), ge.score_function()]


@pytest.mark.parametrize("sampler", NOISE, ids=lambda s: s.name)
@pytest.mark.parametrize("cost", BESIDE.values(), ids=BESIDE)
def test_a_parameter_beside_the_draw(cost, sampler):
    drawn = lambda s, key: cost(s["scale"], sampler(key, dists.Normal(0.0, 1.0)))
    with pytest.raises(ge.UnestimatedGradientError, match=r"args\[0\]\['scale'\].*be zero"):
        said(drawn, {"scale": 2.0})
    (warning,) = said(lambda s, key: drawn(s, key) + s["scale"] ** 2, {"scale": 2.0})
    assert "args[0]['scale'] enters by the parameters of its distr" in str(warning.message)
    (warning,) = said(lambda s, key: ge.cost(s["scale"]) or drawn(s, key), {"scale": 2.0})


@pytest.mark.parametrize("sampler", NOISE, ids=lambda s: s.name)
@pytest.mark.parametrize("cost", FREE.values(), ids=FREE)
def test_a_parameter_beside_the_draw_that_is_not_compared(cost, sampler):
    assert not said(lambda s, key: cost(s, sampler(key, dists.Normal(0.0, 1.0))), 2.0)


def test_a_parameter_beside_a_discrete_draw():
    """The mean over it is constant between its values, as the comparison is."""
    bit = lambda key: ge.score_function()(key, dists.Bernoulli(0.3))
    assert not said(lambda m, key: jnp.where(bit(key) > m, 1.0, 0.0))


def test_a_parameter_that_is_compared_with_its_own_draw():
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, 1.0))
        return jnp.where(x > 2 * m, x, x + 1)

    assert len(said(loss)) == 1  # and no error: the draw reaches the loss


@pytest.mark.parametrize("order", [(0.5, None), (None, 0.5)], ids=["constant first", "last"])
def test_a_function_that_was_called_with_a_constant(order):
    """Looked at once for calls that are alike, which these are not."""

    @jax.jit
    def above(x, threshold):
        for _ in range(70):
            x = x * 1.01
        return jnp.where(x > threshold, 1.0, 0.0)

    def loss(m, key):
        x = ge.score_function()(key, dists.Normal(0.0, 1.0))
        return sum(above(x, m if threshold is None else threshold) for threshold in order)

    with pytest.raises(ge.UnestimatedGradientError, match=r"args\[0\] jumps"):
        said(loss)


@pytest.mark.parametrize("order", [(0.5, None), (None, 0.5)], ids=["constant first", "last"])
def test_a_function_of_what_was_compared_with_a_constant_and_with_a_parameter(order):
    @jax.jit
    def far(x):
        for _ in range(70):
            x = x * 1.01
        return x

    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(0.0, 1.0))
        above = lambda t: jnp.where(x > (m if t is None else t), 1.0, 0.0)
        return sum(far(above(threshold)) for threshold in order)

    with pytest.raises(ge.UnestimatedGradientError, match=r"args\[0\] jumps"):
        said(loss)


def test_an_estimate_as_a_metric_is_not_complained_of():
    drawn = lambda m, key: jnp.where(ge.score_function()(key, dists.Normal(0.0, 1.0)) > m, 1.0, 0.0)
    estimate = ge.expectation(drawn)
    of_metric = jax.grad(lambda m: (m**2, estimate(m, KEY)), has_aux=True)
    assert of_metric(0.3)[0] == pytest.approx(0.6)
    with pytest.raises(ge.UnestimatedGradientError):
        jax.jacfwd(estimate)(0.3, KEY)


def test_what_is_closed_over_beside_a_draw():
    def outer(m, key):
        draw = lambda key: ge.reparameterize()(key, dists.Normal(0.0, 1.0))
        return ge.expectation(lambda key: jnp.where(draw(key) > m, 1.0, 0.0))(key)

    with pytest.raises(ge.UnestimatedGradientError, match="what the loss closes over"):
        jax.grad(outer)(0.3, KEY)
    assert jnp.shape(outer(0.3, KEY)) == ()


@pytest.mark.parametrize(
    "sampler", [ge.score_function(), ge.reparameterize(), ge.stratified(2)], ids=str
)
@pytest.mark.parametrize("of_loss", [lambda loss: loss, ge.expectation], ids=["plain", "in a loss"])
def test_what_a_cost_closes_over_beside_the_draw(sampler, of_loss):
    """A digital option's derivative in its strike."""

    def value(strike, key, *, smooth):
        pays = lambda x: jnp.where(x > strike, 1.0, 0.0)
        cost = (lambda x: pays(x) + (x - strike) ** 2) if smooth else pays
        return sampler.expect(key, dists.Normal(0.0, 1.0), cost)

    only, partly = (of_loss(functools.partial(value, smooth=s)) for s in (False, True))
    for gradient in (jax.grad(only), jax.grad(jax.jit(only))):
        with pytest.raises(ge.UnestimatedGradientError, match=r"what is made of the draw .* jumps"):
            gradient(0.3, KEY)
    with pytest.warns(ge.UnestimatedGradientWarning, match="what is made of the draw") as given:
        jax.jit(jax.grad(partly))(0.3, KEY)
    assert len(given) == 1
    assert jnp.shape(only(0.3, KEY)) == ()


def test_a_cost_is_staged_for_a_look_once_however_deep_it_stands():
    traced = []

    def nested(depth, m):
        if depth == 0:
            traced.append(m)
            return m**2
        inner = lambda x: nested(depth - 1, m + x)
        key = jax.random.fold_in(KEY, depth)
        return ge.score_function().expect(key, dists.Normal(m, 1.0), inner)

    jax.make_jaxpr(lambda m: nested(4, m))(0.3)
    assert len(traced) == 5


def test_a_cost_of_numbers_at_a_fixed_law():
    of_numbers = lambda t: lambda x: t * (1.0 if x > 0 else 2.0)
    loss = lambda t: ge.reparameterize().expect(KEY, dists.Normal(0.0, 1.0), of_numbers(t))
    assert jax.grad(loss)(1.0) in (1.0, 2.0)


def test_a_cost_that_is_no_program_for_jax_has_nothing_beside_its_draw():
    of_numbers = lambda x: math.sqrt(x) if x > 0 else 0.5
    loss = lambda m: ge.score_function().expect(KEY, dists.Normal(m, 1.0), of_numbers)
    assert jax.grad(loss)(2.0) != 0


def test_guards_of_what_is_not_drawn():
    """As numpyro's Bernoulli has it, with a draw compared where the logit is infinite."""

    def loss(l, data, key):
        z = ge.rebar()(key, dists.Bernoulli(l))
        kept = jnp.where(jnp.isfinite(data), z * data, jnp.where(z > 0.5, 1.0, 0.0))
        return kept + jnp.where(jnp.isnan(data), jnp.where(z == 1, 1.0, 0.0), z * data)

    assert said(loss, 0.3, 0.7) == []


def test_metrics_in_auxiliary_output():
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, 1.0))
        return x**2, {"above": x > 0, "rounded": jnp.round(x)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.value_and_grad(ge.expectation(loss, has_aux=True), has_aux=True)(0.3, KEY)


@pytest.mark.parametrize("sampler", [ge.reparameterize(), ge.dreg(1)], ids=str)
def test_expect_within_an_expectation_says_it_once(sampler):
    def loss(m, key):
        return sampler.expect(
            key, dists.Normal(m, 1.0), lambda x: x**2 + jnp.where(x > 0.5, 1.0, 0.0)
        )

    assert len(said(loss)) == 1


def test_each_pair_of_lines_is_given_once():
    def loss(m, key):
        total = 0.0
        for k in jax.random.split(key, 3):
            x = ge.reparameterize()(k, dists.Normal(m, 1.0))
            total = total + x**2 + jnp.where(x > 0.5, 1.0, 0.0)
        return total

    assert len(said(loss, transform=lambda f: jax.jit(jax.hessian(f)))) == 1


def test_a_draw_under_vmap_scan_and_cost():
    def loss(m, key):
        def step(c, key):
            x = jax.vmap(lambda k: ge.reparameterize()(k, dists.Normal(c, 1.0)))(split(key))
            ge.cost(jnp.sum(jnp.where(x > 1, 1.0, 0.0)))
            return 0.9 * c + 0.1 * jnp.mean(x), None

        return lax.scan(step, m, split(key))[0]

    split = functools.partial(jax.random.split, num=3)
    (warning,) = said(loss, jnp.float32(0.3))
    assert f"{line_of(loss, 'ge.cost')}" in str(warning.message)


def test_a_choice_after_a_scan_that_draws():
    def walk(m, key, barrier):
        step = lambda x, key: (x + ge.reparameterize()(key, dists.Normal(m, 1.0)), None)
        x, _ = lax.scan(step, 0.0, jax.random.split(key, 3))
        return jnp.where(x > barrier, x, 0.0)

    assert len(said(functools.partial(walk, barrier=1.0))) == 1
    assert not said(functools.partial(walk, barrier=0.0))


def test_a_relaxed_draw_is_not_at_its_ends():
    for name in ("gumbel_softmax", "rebar"):
        assert fates(SILENT["leaky by masks"], {name: DRAWS[name]}) == {name: "kinked"}


def test_a_cost_in_a_branch_that_the_draw_chooses():
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, 1.0))
        lax.cond(x > 0, lambda: ge.cost(1.0), lambda: None)
        return x**2

    assert len(said(loss, jnp.float32(0.3))) == 1


def test_what_a_later_draw_is_made_of_is_estimated_there():
    def loss(m, key):
        p = jax.nn.sigmoid(ge.reparameterize()(jax.random.fold_in(key, 1), dists.Normal(m, 1.0)))
        return jnp.round(ge.score_function()(key, dists.Bernoulli(probs=p)))

    assert not said(loss)
    jumps = lambda m, key: ge.score_function()(
        key,
        dists.Bernoulli(
            jnp.round(ge.reparameterize()(jax.random.fold_in(key, 1), dists.Normal(m, 1.0)))
        ),
    )
    with pytest.raises(ge.UnestimatedGradientError, match="round"):
        said(jumps)


def test_expect_of_a_cost_that_jumps():
    cost = lambda b: jnp.where(b > 0.5, 1.0, 0.3 * b)
    gradient = jax.grad(lambda l: ge.rebar().expect(KEY, dists.Bernoulli(l), cost))
    with pytest.warns(ge.UnestimatedGradientWarning, match="rebar: the cost of the draw .* jumps"):
        gradient(0.3)


MASKS = {
    "masked logits": lambda z: jax.nn.log_softmax(jnp.zeros(6) - 1e9 * z)[0],
    "quotient": lambda z: jax.nn.log_softmax(jnp.zeros(6) - z / 1e-9)[0],
    "infinite": lambda z: jax.nn.log_softmax(jnp.where(z > 0.5, -jnp.inf, z))[0],
}


_of_lanes = lambda loss: lambda m: jnp.sum(jax.vmap(loss)(m * jnp.ones(2)))


@pytest.mark.parametrize("sampler", [ge.reparameterize(), ge.antithetic()], ids=str)
@pytest.mark.parametrize(
    "derivative",
    [
        jax.grad,
        lambda loss: jax.jit(jax.grad(loss)),
        lambda loss: jax.grad(jax.jit(loss)),
        lambda loss: jax.grad(jax.checkpoint(loss)),
        lambda loss: jax.grad(_of_lanes(loss)),
        lambda loss: jax.grad(
            lambda m: lax.scan(lambda c, _: (c + loss(m), None), 0.0, None, 2)[0]
        ),
        lambda loss: lambda m: jax.jvp(loss, (m,), (1.0,)),
        lambda loss: lambda m: jax.jit(functools.partial(jax.jvp, loss))((m,), (1.0,)),
        jax.hessian,
    ],
    ids=["grad", "jit", "of jit", "checkpoint", "vmap", "scan", "jvp", "jit of jvp", "hessian"],
)
def test_every_derivative_of_the_expectation_of_a_cost_that_only_jumps_raises(sampler, derivative):
    cost = lambda x: jnp.where(x > 0.5, 1.0, 0.0)
    loss = lambda m: sampler.expect(KEY, dists.Normal(m, 1.0), cost)
    with pytest.raises(
        ge.UnestimatedGradientError, match=r"the cost of the draw .* jumps at a comp"
    ):
        derivative(lambda m: loss(m) + m**2)(0.3)
    assert loss(0.3) in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("sampler", [ge.reparameterize(), ge.antithetic(), ge.dreg(1)], ids=str)
def test_the_expectation_of_a_cost_that_jumps_as_a_metric_is_silent(sampler):
    def loss(m):
        accuracy = sampler.expect(KEY, dists.Normal(m, 1.0), lambda x: jnp.mean(x > 0.5))
        return m**2 + lax.stop_gradient(accuracy), accuracy

    for gradient in (jax.grad(loss, has_aux=True), jax.jit(jax.grad(loss, has_aux=True))):
        slope, _ = gradient(0.3)
        assert slope == pytest.approx(0.6)
    inner = lambda m, key: loss(m)
    slope, _ = jax.grad(ge.expectation(inner, has_aux=True), has_aux=True)(0.3, KEY)
    assert slope == pytest.approx(0.6)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_by_a_large_constant_is_a_jump_of_relaxed_draws(mask):
    found = fates(mask)
    relaxed = ("gumbel_softmax", "st_gumbel_softmax", "rebar")
    assert {found[name] for name in relaxed} == {"jump"}


def test_estimators_without_slope_are_those_of_the_records():
    for name, needs in WITHOUT_SLOPE.items():
        record = records.ESTIMATORS[name]
        assert record.needs == needs
        assert record.is_unbiased
        assert not record.differentiable_cost


def test_slope_in_agrees_with_the_records():
    for record in records.ESTIMATORS.values():
        # It takes a function.
        if record.name != "relax":
            assert bool(record.sampler().slope_in) == record.differentiable_cost, record.name


def test_nested_functions_take_a_time_that_is_linear_in_their_number():
    def twice(f):
        return jax.jit(lambda x: f(f(x) * 0.5 + 1))

    f = lambda x: jnp.where(x > 0, jnp.sin(x) * 2, jnp.exp(x) - 1.0) + jnp.cos(x) * x
    for _ in range(12):
        f = twice(f)
    loss = lambda m, key: f(ge.reparameterize()(key, dists.Normal(m, 1.0)))
    staged = jax.make_jaxpr(loss)(0.3, KEY)
    start = time.perf_counter()
    (draw,) = follow(staged)
    assert time.perf_counter() - start < 2  # 4096 times the innermost one otherwise
    assert draw.fate.level == "kinked"


def test_how_a_draw_is_made_is_not_looked_into():
    """Of Gamma by rejection, of a mixture by a choice of a component."""

    def loss(m, key):
        first, second = jax.random.split(key)
        x = ge.reparameterize()(first, dists.Normal(m, 1.0))
        return ge.reparameterize()(second, dists.Gamma(jnp.exp(x), 1.0)) ** 2

    assert not said(loss)


@pytest.mark.parametrize(
    "compared",
    [
        lambda z: jnp.where(z > 0, Y, z),
        lambda z: jnp.where(z >= 1, Y, z),
        lambda z: jnp.where(z == 1, Y, 0.0),
    ],
)
def test_a_discrete_draw_is_compared_with_its_own_values(compared):
    assert fates(lambda z: jnp.sum(compared(z)))["st_gumbel_softmax"] == "jump"


@pytest.mark.parametrize("draw", ["gumbel_softmax", "st_gumbel_softmax", "rebar"])
def test_an_equality_of_a_discrete_draw_is_one_of_its_relaxed_draw_too(draw):
    equal = lambda z: jnp.sum(jnp.where(z == 1, Y, 0.0))
    of_booleans = lambda z: jnp.sum(z.astype(bool) * Y)
    guarded = lambda z: jnp.sum(Y / jnp.where(z == 0, 1.0, 1.0 + z))
    assert fates(equal)[draw] == fates(of_booleans)[draw] == "jump"
    assert fates(guarded)[draw] == "kinked"


@pytest.mark.parametrize(
    "mask",
    [lambda z: z > 0.5, lambda z: z == 1, lambda z: jnp.cumsum(z) > 0.5],
    ids=["comparison", "equality", "sum"],
)
def test_a_mask_by_an_infinite_constant(mask):
    found = fates(lambda z: jax.nn.softmax(jnp.where(mask(z), -jnp.inf, Y))[0])
    del found["reparameterize"], found["antithetic"]
    assert set(found.values()) == {"jump"}
