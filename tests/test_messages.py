"""What the transform says when it cannot: who, where, why, and what to do instead.

Each message names the estimator, the construct and the remedy, and the line of the loss, which is
marked here by a comment that the tests look for.
"""

import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, PartitionSpec
from support.programs import bit, keys

import gradest as ge
from gradest import distributions as dists

score, rebar = ge.score_function(), ge.rebar()
split = jax.random.split
LINES = pathlib.Path(__file__).read_text().splitlines()


def at(mark):
    """How a message names the line with this comment."""
    (number,) = (i for i, line in enumerate(LINES, 1) if line.endswith(f"# {mark}"))
    return re.escape(f"(at {__file__}:{number})")


def differentiate(loss, logit=0.3):
    return jax.make_jaxpr(jax.grad(ge.expectation(loss)))(jnp.float32(logit), keys(1)[0])


def assert_raises(error, loss, *parts):
    """The parts are in the message, in this order."""
    with pytest.raises(error, match="(?s)^" + ".*".join(parts)) as raised:
        differentiate(loss)
    assert "gradest/" not in str(raised.value).replace(__file__, "")


# ---- Constructs that may not hold a draw or a cost -----------------------------------------


def test_while_loop():
    def loss(logit, key):
        body = lambda x: x + rebar(key, dists.Bernoulli(logit))  # while
        return jax.lax.while_loop(lambda x: x < 2, body, logit)

    assert_raises(
        NotImplementedError,
        loss,
        f"expectation: a draw by rebar {at('while')} is inside a `while`",
        r"Use gradest\.while_loop, which has a bound on the number of steps",
        r"sampler\.expect",
    )


def test_condition_of_a_while_loop():
    def loss(logit, key):
        condition = lambda x: x < score(key, dists.Bernoulli(logit))  # condition
        return jax.lax.while_loop(condition, lambda x: x + 1, logit)

    start = f"expectation: a draw by score_function {at('condition')} is inside a `while`"
    assert_raises(NotImplementedError, loss, start, r"jax\.lax\.scan")


def test_cost_in_a_while_loop():
    def loss(logit, key):
        def body(x):
            ge.cost(x)  # cost in while
            return x + 1

        return jax.lax.while_loop(lambda x: x < 2, body, logit) + bit(score, key, logit)

    start = f"expectation: a cost {at('cost in while')} is inside a `while`"
    assert_raises(NotImplementedError, loss, start, r"jax\.lax\.scan")


def test_shard_map():
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    spec = PartitionSpec("i")

    def loss(logit, key):
        draw = lambda key: rebar(key[0], dists.Bernoulli(logit))[None]  # shard_map
        return jnp.sum(jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec)(split(key)))

    assert_raises(
        NotImplementedError,
        loss,
        f"expectation: a draw by rebar {at('shard_map')} is inside a `shard_map`",
        r"jax\.shard_map\(gradest\.expectation\(loss\), \.\.\.\)",
    )


def test_a_cost_beside_a_draw_that_is_not_used():
    """In what is not understood, where the one mark may be left out and the other may not."""

    @custom_vmap
    def step(logit, key):
        unused = rebar(key, dists.Bernoulli(logit))
        ge.cost(3 * logit**2)  # custom_vmap
        return unused

    step.def_vmap(lambda size, batched, *args: (None, False))

    def loss(logit, key):
        step(logit, key)
        return logit

    start = f"expectation: a cost {at('custom_vmap')} is inside a `custom_vmap_call`"
    assert_raises(NotImplementedError, loss, start)


@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
def test_pmap():
    def loss(logit, key):
        draw = lambda key: rebar(key, dists.Bernoulli(logit))  # pmap
        return jnp.sum(jax.pmap(draw, devices=jax.devices()[:1])(key[None]))

    assert_raises(
        NotImplementedError,
        loss,
        f"expectation: a draw by rebar {at('pmap')} is inside a `(xla_pmap|shard_map)`",
        "Put the expectation inside",
    )


def test_any_other_construct():
    def loss(logit, key):
        matvec = lambda x: x * (2 + rebar(key, dists.Bernoulli(0.3)))  # solve
        solve = lambda matvec, b: b / matvec(jnp.float32(1))
        return jax.lax.custom_linear_solve(matvec, logit, solve, symmetric=True)

    start = f"expectation: a draw by rebar {at('solve')} is inside a `custom_linear_solve`"
    assert_raises(NotImplementedError, loss, start, "Move it out", r"sampler\.expect")


SAMPLERS = {
    "rebar": rebar,
    "enumeration": ge.enumeration(),
    "score_function": ge.score_function(num_samples=2, baseline="leave_one_out"),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("body", [lambda f: f, jax.jit], ids=["scan", "jit in scan"])
def test_estimators_that_no_loop_supports(name, body):
    def loss(logit, key):
        draw = body(lambda key: SAMPLERS[name](key, dists.Bernoulli(logit)))  # scan
        return jax.lax.scan(lambda x, key: (x + draw(key), None), 0.0, split(key, 3))[0]

    assert_raises(
        NotImplementedError,
        loss,
        rf"{name}: a draw {at('scan')} is inside a `scan`",
        "score_function with one sample",
        "reparameterize or gumbel_softmax",
        "unroll the loop",
    )


# ---- Derivatives inside the loss -----------------------------------------------------------


def test_grad_inside_the_loss():
    def loss(logit, key):
        inner = lambda l: rebar(key, dists.Bernoulli(l)) ** 2  # inner grad
        return jax.grad(inner)(logit)

    assert_raises(
        ge.UnestimatedGradientError,
        loss,
        f"rebar: its draw {at('inner grad')} was differentiated where nothing estimates",
        r"gradest\.expectation .* sampler\.expect",
        r"A jax\.grad inside the loss",
    )


def test_grad_inside_the_loss_around_an_integer_draw():
    def loss(logit, key):
        inner = lambda l: l * score(key, dists.Categorical(jnp.stack([l, -l])))  # integer
        return jax.grad(inner)(logit)

    assert_raises(
        ge.UnestimatedGradientError,
        loss,
        f"score_function: an integer draw was made {at('integer')} while",
        r"sampler\.expect",
        r"stop_gradient\(dist\)",
    )


def test_cost_in_a_grad_inside_the_loss():
    def loss(logit, key):
        def inner(l):
            ge.cost(l)  # inner cost
            return l**2

        return jax.grad(inner)(logit) + bit(score, key, logit)

    start = rf"gradest\.cost: a cost {at('inner cost')} is inside a function that the loss itself"
    assert_raises(NotImplementedError, loss, start, r"outside of that jax\.grad", "has_aux=True")


def test_second_derivative():
    loss = ge.expectation(lambda logit, key: (bit(rebar, key, logit) - 0.3) ** 2)
    with pytest.raises(NotImplementedError, match=r"^rebar: .*again.*Use score_function"):
        jax.grad(jax.grad(loss))(jnp.float32(0.3), keys(1)[0])


# ---- Lanes ---------------------------------------------------------------------------------


def test_vmap_of_a_draw_with_one_key():
    def loss(logit, key):
        logits = jnp.stack([logit, -logit])
        return jnp.sum(jax.vmap(lambda l: rebar(key, dists.Bernoulli(l)))(logits))  # same key

    start = "rebar: a draw under jax.vmap inside a loss got the same key in every lane"
    assert_raises(ValueError, loss, start, at("same key"), "Split the key and vmap over the keys")


def test_vmap_of_a_draw_with_options_per_lane():
    def loss(logit, key):
        def lane(key, temperature):
            return ge.rebar(temperature)(key, dists.Bernoulli(logit))  # option

        return jnp.sum(jax.vmap(lane)(split(key), jnp.array([0.3, 0.5])))

    start = "rebar: a draw under jax.vmap inside a loss has options that differ from lane to lane"
    assert_raises(NotImplementedError, loss, start, at("option"), "Vmap the expectation")


def test_cost_under_vmap():
    """A vmapped cond runs both of its branches: a cost in one must not count for both."""

    def loss(logit, key):
        def lane(x):
            ge.cost(x * logit)  # lane cost
            return x

        lanes = jax.vmap(lambda x: jax.lax.cond(x > 0, lane, lambda x: 2 * x, x))
        return jnp.sum(lanes(jnp.array([-1.0, 1.0]))) * bit(score, key, logit)

    start = rf"gradest\.cost: a cost {at('lane cost')} is under jax\.vmap inside a loss"
    remedy = r"jax\.vmap\(gradest\.expectation\(per_lane_loss\)\)"
    assert_raises(NotImplementedError, loss, start, remedy, "the whole array")


def lane_warnings(transform, repeats):
    """The warnings of a loss that draws under vmap on two lines, seen by Python's usual filter."""

    def loss(logit, key):
        k0, k1, k2 = split(key, 3)
        first = lambda key: rebar(key, dists.Bernoulli(logit))  # first lanes
        again = lambda key: score(key, dists.Bernoulli(logit))  # second lanes
        call = jax.jit(lambda keys: jnp.sum(jax.vmap(again)(keys)))
        x = bit(rebar, k0, logit) + jnp.sum(jax.vmap(first)(split(k1, 2)))
        return (x + call(split(k2, 2)) + call(split(k0, 2))) ** 2

    run = transform(ge.expectation(loss))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for key in keys(repeats):
            run(jnp.float32(0.3), key)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def test_vmap_of_a_draw_warns_once_for_each_line():
    """However often estimators evaluate the rest of the program, and however often it is run."""
    messages = lane_warnings(lambda loss: jax.jit(jax.grad(loss)), repeats=2)
    assert len(messages) == 2
    for message, name, mark in zip(
        messages, ["rebar", "score_function"], ["first lanes", "second lanes"], strict=True
    ):
        remedy = r"jax\.vmap\(gradest\.expectation\(per_lane_loss\)\)"
        start = f"^{name}: a draw under jax.vmap inside a loss {at(mark)} is credited with"
        assert re.search(f"{start}.*{remedy}", message)


def test_vmap_of_an_unused_draw_does_not_warn():
    def loss(logit, key):
        metric = jax.vmap(lambda key: rebar(key, dists.Bernoulli(logit)))(split(key))
        return logit**2, metric

    jax.grad(ge.expectation(loss, has_aux=True), has_aux=True)(jnp.float32(0.3), keys(1)[0])


# ---- Draws by jax.random -------------------------------------------------------------------


def test_raw_draw():
    def loss(logit, key):
        return jax.random.bernoulli(key, logit).astype(float) * 2.0  # raw

    with pytest.warns(ge.UnestimatedGradientWarning) as caught:
        differentiate(loss)
    (warning,) = caught
    assert re.match(
        rf"expectation: jax\.random\.bernoulli {at('raw')} draws in a loss from parameters that "
        r"are being differentiated\. .*by a gradest sampler.*jax\.lax\.stop_gradient",
        str(warning.message),
    )


# ---- The loss itself -----------------------------------------------------------------------


def test_loss_that_is_no_scalar():
    start = r"expectation: expected the loss to be a real scalar, got shape \(2,\) and type float32"
    remedy = r"jax\.vmap\(gradest\.expectation\(per_example_loss\)\).*has_aux=True"
    assert_raises(ValueError, lambda logit, key: jnp.stack([logit, logit]), start, remedy)
    start = r"expectation: expected the loss to be a real scalar, got shape \(\) and type int32"
    remedy = "Convert it to floating point; return 0.0 where all of it goes to gradest.cost"
    assert_raises(ValueError, lambda logit, key: 3 + jnp.zeros((), int), start, remedy)


def test_loss_that_is_a_pair_without_has_aux():
    start = r"expectation: expected the loss to be a scalar, got PyTreeDef"
    assert_raises(TypeError, lambda logit, key: (logit, key), start, "has_aux=True")


def test_loss_that_is_no_pair_with_has_aux():
    loss = ge.expectation(lambda logit: logit, has_aux=True)
    with pytest.raises(TypeError, match=r"has_aux=True expects .* a pair \(loss, aux\), got"):
        loss(jnp.float32(0.3))


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((keys(1)[0],), {}),
        ((dists.Bernoulli(0.3),), {}),
        ((), {"key": keys(1)[0]}),
        ((), {"params": 0.3}),
        ((0.3, keys(1)[0]), {}),
        ((False, 0.3), {}),
    ],
    ids=["key", "distribution", "key=", "params=", "both", "a number too many"],
)
def test_arguments_of_the_loss_beside_it(args, options):
    remedy = r"those of what it returns: gradest\.expectation\(loss\)\(\*args\)"
    with pytest.raises(TypeError, match=rf"^expectation: .*{remedy}"):
        ge.expectation(lambda *args: jnp.float32(0), *args, **options)


# ---- Costs outside -------------------------------------------------------------------------

outside = pytest.raises(RuntimeError, match=r"gradest\.cost: .*under gradest\.expectation.*Wrap")


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.grad, jax.vmap, lambda f: jax.grad(jax.jit(f))]
)
def test_cost_outside_of_an_expectation(transform):
    """Under jax.jit too, which would drop it without a word."""

    def loss(x):
        ge.cost(1.0)
        return x**2

    x = jnp.ones(2) if transform is jax.vmap else jnp.float32(0.3)
    with outside:
        transform(loss)(x)


def test_cost_that_is_no_float():
    def loss(logit, key):
        ge.cost(3)
        return logit

    assert_raises(TypeError, loss, "c: expected a real floating-point array, got one of type int")
