"""No derivative is silently zero: every draw that is differentiated has a gradient, or raises."""

import contextlib
import functools
import inspect
import runpy
import typing
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import CASES, MAX_Z, keys

import gradest as ge
from gradest import distributions as dists

# ---- Every sampler, every distribution, no expectation -------------------------------------


def test_every_distribution_and_every_sampler_is_walked():
    assert {name for name, _ in inspect.getmembers(dists, inspect.isclass)} == {
        *cases.DISTRIBUTIONS
    }
    functions = inspect.getmembers(ge, inspect.isfunction)
    returns_a_sampler = lambda f: typing.get_type_hints(f).get("return") is ge.Sampler
    assert {name for name, f in functions if returns_a_sampler(f)} == {*CASES}


def draw_cost(estimator, w, dist, key):
    """A cost of a draw that is differentiated as it stands."""
    sampler = next(iter(CASES[estimator].variants.values())).sampler()
    return cases.wave(w, sampler(key, dist))


def is_pathwise(estimator, name):
    row = CASES[estimator]
    sampler = next(iter(row.variants.values())).sampler()
    return sampler.pathwise and row.record.estimates and name in row.record.distributions


PAIRS = [(estimator, name) for estimator in CASES for name in cases.DISTRIBUTIONS]
PATHWISE = [pair for pair in PAIRS if is_pathwise(*pair)]


@pytest.mark.parametrize("estimator", CASES)
def test_a_draw_that_has_no_derivative_raises(estimator):
    """Of every distribution, by a message that begins with the estimator's name.

    They are traced only, which is where they raise: no operation runs.
    """
    for name in [name for e, name in PAIRS if e == estimator and (e, name) not in PATHWISE]:
        dist = cases.DISTRIBUTIONS[name]()
        grad = cases.grad(functools.partial(draw_cost, estimator, cases.weights(dist)))
        with pytest.raises((ge.UnestimatedGradientError, TypeError), match=f"^{estimator}: "):
            jax.eval_shape(grad, dist, keys(1)[0])


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("estimator", "name"), [pair for pair in PATHWISE if pair[1] not in cases.STRUCTURED]
)
def test_a_draw_that_has_a_derivative_has_the_right_one(estimator, name):
    dist = cases.DISTRIBUTIONS[name]()
    variant = next(iter(CASES[estimator].variants.values()))
    w = cases.weights(dist)
    num = 50_000
    grad = cases.grad(functools.partial(draw_cost, estimator, w))
    got = jax.jit(jax.vmap(grad, in_axes=(None, 0)))(dist, keys(num))
    of_cost = lambda dist: variant.oracle(dist, functools.partial(cases.wave, w))
    want = jax.jit(cases.grad(of_cost))(dist)
    for g, exact in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, exact = np.asarray(g, np.float64), np.asarray(exact, np.float64)
        error = g.std(axis=0) / np.sqrt(num)
        assert np.any(exact)
        assert np.all(error <= 0.1 * np.linalg.norm(exact))
        assert np.all(np.abs(g.mean(axis=0) - exact) <= MAX_Z * error + 1e-3 * np.abs(exact))


# ---- Draws inside JAX's constructs, without expectation ------------------------------------


def in_scan(draw):
    step = lambda carry, key: (carry + draw(key), draw(key))
    return lambda key: jax.lax.scan(step, jnp.float32(0), jax.random.split(key, 2))[0]


def in_while(draw):
    """By forward mode, which is all that JAX has for it."""
    body = lambda state: (state[0] + 1, state[1] + draw(jax.random.fold_in(state[2], 1)), state[2])
    condition = lambda state: state[0] < 2
    return lambda key: jax.lax.while_loop(condition, body, (0, jnp.float32(0), key))[1]


CONSTRUCTS = {
    "none": lambda draw: draw,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "cond": lambda draw: (
        lambda key: jax.lax.cond(
            jnp.sum(jax.random.normal(key)) < 100, draw, lambda _: jnp.float32(0), key
        )
    ),
    "scan": in_scan,
    "vmap": lambda draw: lambda key: jnp.sum(jax.vmap(draw)(jax.random.split(key, 2))),
    "vmap of scan": lambda draw: (
        lambda key: jnp.sum(jax.vmap(in_scan(draw))(jax.random.split(key, 2)))
    ),
}
KINDS = {
    "float": lambda p: dists.Bernoulli(p),
    "integer": lambda p: dists.Categorical(jnp.stack([p, -p])),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_draw_in_a_construct_without_expectation(construct, kind):
    """The error comes through all of them, for integer draws too, and not without derivative."""
    sampler = ge.score_function()

    def loss(p, key, q=0.2):
        draw = lambda key: sampler(key, KINDS[kind](p + q)).astype(jnp.float32)
        return p**2 + CONSTRUCTS[construct](draw)(key)

    p, key = jnp.float32(0.3), keys(1)[0]
    for grad in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.grad(jax.jit(loss))):
        with pytest.raises(ge.UnestimatedGradientError, match="score_function: "):
            grad(p, key)
    lanes = jax.vmap(jax.grad(loss), in_axes=(None, 0))
    with pytest.raises(ge.UnestimatedGradientError, match="score_function: "):
        lanes(p, keys(2))
    jvp = lambda p: jax.jvp(lambda p: loss(p, key), (p,), (p,))
    with pytest.raises(ge.UnestimatedGradientError, match="score_function: "):
        jax.jit(jvp)(p)
    # Run operation by operation, a draw may be a metric's, whose derivative is thrown away.
    with contextlib.suppress(ge.UnestimatedGradientError):
        assert np.isnan(jvp(p)[1])
    loss(p, key)
    stopped = lambda p: loss(jax.lax.stop_gradient(p), key) + p**2
    np.testing.assert_allclose(jax.jit(jax.grad(stopped))(p), 2 * p, rtol=1e-6)


def test_draw_in_a_while_loop_without_expectation():
    sampler = ge.score_function()
    draw = lambda p: in_while(lambda key: sampler(key, dists.Bernoulli(p)))(keys(1)[0])
    with pytest.raises((TypeError, ValueError), match=r"forward-mode|Reverse-mode"):
        jax.grad(draw)(jnp.float32(0.3))
    with pytest.raises(ge.UnestimatedGradientError, match="score_function: "):
        jax.jvp(draw, (jnp.float32(0.3),), (jnp.float32(1.0),))


# ---- Draws by jax.random in an expectation -------------------------------------------------

pair = lambda p: jnp.stack([p, 1 - p])
RAW = {
    "bernoulli": lambda key, p: jax.random.bernoulli(key, p),
    "categorical": lambda key, p: jax.random.categorical(key, pair(p)),
    "poisson": lambda key, p: jax.random.poisson(key, p),
    "binomial": lambda key, p: jax.random.binomial(key, 5.0, p),
    "geometric": lambda key, p: jax.random.geometric(key, p),
}
WITHOUT_REPLACEMENT = lambda key, p: jax.random.categorical(
    key, pair(p), shape=(1,), replace=False
)[0]

TRANSFORMS = {
    "grad": jax.grad,
    "jit of grad": lambda loss: jax.jit(jax.grad(loss)),
    "grad of jit": lambda loss: jax.grad(jax.jit(loss)),
    "vmap of grad": lambda loss: (
        lambda p, key: jax.vmap(jax.grad(loss), in_axes=(0, None))(p[None], key)
    ),
    "jvp": lambda loss: lambda p, key: jax.jvp(lambda p: loss(p, key), (p,), (p,)),
}


def in_while_loop(draw):
    """A count, whose derivative is zero as far as JAX can tell."""

    def run(key):
        body = lambda s: (s[0] + 1, s[1] + draw(jax.random.fold_in(key, s[0])).astype(int))
        return jax.lax.while_loop(lambda s: s[0] < 2, body, (0, 0))[1].astype(jnp.float32)  # pyright: ignore[reportAttributeAccessIssue]

    return run


def in_scan_with_a_site(draw):
    sampler = ge.score_function()

    def step(x, key):
        key, of_site = jax.random.split(key)
        return x + draw(key) * sampler(of_site, dists.Bernoulli(0.3)), None

    return lambda key: jax.lax.scan(step, jnp.float32(0), jax.random.split(key, 2))[0]


PLACES = {
    **CONSTRUCTS,
    "jit of jit": lambda draw: jax.jit(jax.jit(draw)),
    "while_loop": in_while_loop,
    "scan with a site": in_scan_with_a_site,
    "cond in scan": lambda draw: in_scan(CONSTRUCTS["cond"](draw)),
}


def unestimated(trace):
    """The messages of the warnings that tracing gives; any other warning is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", ge.UnestimatedGradientWarning)
        trace()
    return [str(w.message) for w in caught]


def assert_warns(loss, draw, transform=jax.grad):
    trace = jax.make_jaxpr(transform(ge.expectation(loss)))
    (message,) = unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))
    assert message.startswith(f"expectation: jax.random.{draw} (at {__file__}:")
    assert "stop_gradient" in message


def raw_loss(draw, place=CONSTRUCTS["none"]):
    def loss(p, key):
        return p**2 + place(lambda key: draw(key, p).astype(jnp.float32))(key)

    return loss


# Of a draw, without a derivative in it.
CUTS = {
    "comparison": lambda x: jnp.where(x > 0.5, 1.0, 0.3),
    "branch": lambda x: jax.lax.cond(x > 0.5, lambda: 1.0, lambda: 0.3),
    "rounding": jnp.round,
}


@pytest.mark.parametrize("options", [{}, {"coupled": False}, {"nested": True}], ids=str)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_rebar_warns_of_a_cost_without_derivative(cut, options):
    """By itself its gradient would be zero, whatever the cost: a draw at another place."""
    loss = lambda logit, key: cut(ge.rebar(**options)(key, dists.Bernoulli(logit)))
    (message,) = unestimated(lambda: jax.grad(ge.expectation(loss))(0.3, keys(1)[0]))
    assert message.startswith(f"rebar: what follows the draw (at {__file__}:")
    assert "Draw by enumeration, disarm, measure_valued or score_function" in message


@pytest.mark.parametrize("name", ["part", "unused", "reinforce", "other"])
def test_rebar_does_not_warn_needlessly(name):
    eta = jnp.float32(name != "reinforce")

    def loss(logit, key):
        key, other = jax.random.split(key)
        x = ge.rebar(eta=eta)(key, dists.Bernoulli(logit))
        if name == "part":
            return jnp.where(x > 0.5, x - 0.35, 0.3 * x)
        if name == "unused":
            return jnp.where(jnp.zeros_like(x) > 1, 1.0, 2.0) + 0 * logit
        if name == "reinforce":
            return CUTS["comparison"](x)
        return CUTS["comparison"](ge.score_function()(other, dists.Bernoulli(x)))

    # A constant array is known under jax.jit too, where comparing it is not.
    assert not unestimated(lambda: jax.jit(jax.grad(ge.expectation(loss)))(0.3, keys(1)[0]))


@pytest.mark.parametrize("collective", [jax.lax.pmean, jax.lax.psum, jax.lax.all_gather])
@pytest.mark.parametrize("place", ["after", "in a call", "before", "metric"])
def test_mixing_lanes_warns(collective, place):
    """Of what depends on a draw, at any depth, and nothing else."""

    def loss(logit, key):
        mix = lambda x: jnp.sum(collective(x, "lanes"))
        if place == "before":
            logit = mix(logit)
        x = ge.score_function()(key, dists.Bernoulli(logit))
        mixed = {"after": mix, "in a call": jax.jit(mix)}.get(place, lambda x: x)(x)
        return (mixed - 0.3) ** 2, mix(x) if place == "metric" else None

    of_lane = jax.grad(ge.expectation(loss, has_aux=True), has_aux=True)
    run = lambda: jax.vmap(of_lane, axis_name="lanes")(jnp.zeros(3), keys(3))
    messages = unestimated(run)
    assert len(messages) == (place in ("after", "in a call"))
    assert all("mixes lanes of a named axis" in m and __file__ in m for m in messages)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", RAW)
def test_raw_draw_warns(name, transform):
    assert_warns(raw_loss(RAW[name]), name, transform)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", RAW)
def test_raw_draw_warns_wherever_it_is(name, place):
    assert_warns(raw_loss(RAW[name], place), name)


def test_raw_draw_without_replacement_warns():
    assert_warns(raw_loss(WITHOUT_REPLACEMENT), "categorical")


def test_raw_draw_of_counts_of_categories_warns():
    assert_warns(
        raw_loss(lambda key, p: jax.random.multinomial(key, 5.0, pair(p))[0]), "multinomial"
    )


def test_raw_draw_from_the_carry_warns():
    """Its parameter comes from the step before."""

    def loss(p, key):
        step = lambda q, key: (q * 0.5 + 0.1 * jax.random.bernoulli(key, q).astype(float), None)
        return jax.lax.scan(step, p, jax.random.split(key, 2))[0]

    assert_warns(loss, "bernoulli")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_raw_draw_of_what_is_not_differentiated_does_not_warn(place):
    for draw in RAW.values():
        stopped = lambda key, p, draw=draw: draw(key, jax.lax.stop_gradient(p))
        fixed = lambda key, p, draw=draw: draw(key, jnp.float32(0.4))
        for silent in (stopped, fixed):
            trace = jax.make_jaxpr(jax.grad(ge.expectation(raw_loss(silent, place))))
            assert not unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))  # noqa: B023
        trace = jax.make_jaxpr(ge.expectation(raw_loss(draw, place)))
        assert not unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))  # noqa: B023


@pytest.mark.parametrize("name", ["jit", "cond", "scan", "vmap", "while_loop"])
def test_raw_draw_that_is_stopped_elsewhere_does_not_warn(name):
    """Outside of the construct that draws, or in a function that takes the draw."""
    stop, place = jax.lax.stop_gradient, PLACES[name]

    def outside(p, key):
        return p * stop(place(lambda key: jax.random.poisson(key, p).astype(jnp.float32))(key))

    def inside(p, key):
        x = jax.random.poisson(key, p).astype(jnp.float32)
        return p * jax.jit(lambda x: stop(x) ** 2)(x)

    for loss in (outside, inside):
        trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
        assert not unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))  # noqa: B023


def test_raw_draw_with_a_derivative_of_its_own_does_not_warn():
    """A straight-through estimator that a user wrote, by stop_gradient or by a custom rule."""

    def by_stop_gradient(logits, key):
        z = logits + jax.random.gumbel(key, logits.shape)
        soft, hard = jax.nn.softmax(z), jax.nn.one_hot(jnp.argmax(z), 3)
        return jnp.sum((soft + jax.lax.stop_gradient(hard - soft)) * jnp.arange(3.0))

    @jax.custom_jvp
    def draw(logits, key):
        return jax.nn.one_hot(jax.random.categorical(key, logits), 3)

    @draw.defjvp
    def _(primals, tangents):
        return draw(*primals), tangents[0]

    by_rule = lambda logits, key: jnp.sum(draw(logits, key) * jnp.arange(3.0))
    for loss in (by_stop_gradient, by_rule):
        grad = jax.grad(ge.expectation(loss))
        assert not unestimated(lambda: grad(jnp.zeros(3), keys(1)[0]))  # noqa: B023


def test_raw_draw_for_a_metric_does_not_warn():
    def loss(p, key):
        return p**2, jax.random.bernoulli(key, p)

    grad = jax.grad(ge.expectation(loss, has_aux=True), has_aux=True)
    assert not unestimated(lambda: grad(jnp.float32(0.3), keys(1)[0]))


def test_continuous_draws_do_not_warn():
    """jax.random's differentiable ones are reparameterized as they stand."""

    def loss(p, key):
        keys = jax.random.split(key, 4)
        x = jax.random.gamma(keys[0], p) + jax.random.beta(keys[1], p, 2.0)
        return x + p * jax.random.normal(keys[2]) + p * jax.random.uniform(keys[3])

    grad = jax.grad(ge.expectation(loss))
    assert not unestimated(lambda: jax.make_jaxpr(grad)(jnp.float32(0.7), keys(1)[0]))


# ---- Noise by jax.random that a parameter is compared with ---------------------------------

indicator = lambda x: (x > 0.1).astype(jnp.float32)
# What has no name in a jaxpr: arithmetic, whose mean has a slope where the draw has none.
COMPARED = {
    "uniform": lambda key, p: jax.random.uniform(key) < p,
    "uniform as a logit": lambda key, p: p > jax.scipy.special.logit(jax.random.uniform(key)),
    "range": lambda key, p: indicator(jax.random.uniform(key, minval=-1.0, maxval=p)),
    "choice": lambda key, p: jax.random.choice(key, 2, p=pair(p)),
    "normal": lambda key, p: indicator(p + 0.5 * jax.random.normal(key)),
    "scale": lambda key, p: indicator(p * jax.random.laplace(key)),
    "truncated": lambda key, p: indicator(jax.random.truncated_normal(key, -p, 1.0)),
    "gamma": lambda key, p: indicator(jax.random.gamma(key, p)),
    "chi-squared": lambda key, p: jax.random.chisquare(key, 3.0) > p,
    "rounding": lambda key, p: jnp.floor(2 * p + jax.random.uniform(key)),
    "order": lambda key, p: jnp.argsort(p * jnp.arange(3.0) + jax.random.normal(key, (3,)))[0],
    "branch": lambda key, p: jax.lax.cond(jax.random.uniform(key) < p, lambda: 1.0, lambda: 0.3),
    "Normal.sample": lambda key, p: indicator(dists.Normal(p, 1.0).sample(key)),
    "Gamma.sample": lambda key, p: indicator(dists.Gamma(p, 1.0).sample(key)),
    "StudentT.sample": lambda key, p: indicator(dists.StudentT(3.0, p, 1.0).sample(key)),
}


WHERE = [(name, "none") for name in COMPARED] + [("branch", place) for place in PLACES]


@pytest.mark.parametrize(("name", "place"), WHERE)
def test_comparison_with_noise_warns(name, place):
    loss = raw_loss(COMPARED[name], PLACES[place])
    trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
    messages = unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))
    assert messages
    for message in messages:
        assert message.startswith(f"jax.random: what is made of the noise (at {__file__}:")
        assert "and of args[0] jumps at" in message
        assert "That part of the gradient is missing. Draw by a sampler" in message


@pytest.mark.parametrize("installed", ["site-packages", "dist-packages"])
def test_noise_of_a_library_is_at_the_line_that_calls_it(installed, tmp_path):
    file = tmp_path / installed / "wiener.py"
    file.parent.mkdir()
    file.write_text(
        "import jax\n\n\n@jax.jit\ndef step(key, x):\n    return x + jax.random.normal(key)\n"
    )
    step = runpy.run_path(str(file))["step"]
    loss = raw_loss(lambda key, p: indicator(step(key, p)))
    trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
    (message,) = unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))
    assert f"the noise (at {__file__}:" in message


@pytest.mark.parametrize("name", COMPARED)
def test_comparison_with_noise_raises_where_nothing_else_reaches_the_loss(name):
    loss = lambda p, key: COMPARED[name](key, p).astype(jnp.float32)
    with pytest.raises(ge.UnestimatedGradientError, match="would silently be zero"):
        jax.grad(ge.expectation(loss))(jnp.float32(0.3), keys(1)[0])


@pytest.mark.parametrize("name", COMPARED)
def test_comparison_with_noise_is_silent_where_nothing_is_missing(name):
    draw = COMPARED[name]
    silent = {
        "the parameter is stopped": raw_loss(lambda key, p: draw(key, jax.lax.stop_gradient(p))),
        "the parameter is known": raw_loss(lambda key, p: draw(key, jnp.float32(0.4))),
        "the draw is stopped": raw_loss(
            lambda key, p: p * jax.lax.stop_gradient(draw(key, p).astype(jnp.float32))
        ),
        "another parameter": lambda p, key, q=0.2: p**2 * draw(key, q).astype(jnp.float32),
    }
    for loss in silent.values():
        trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
        assert not unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))  # noqa: B023
    of_metric = ge.expectation(lambda p, key: (p**2, draw(key, p)), has_aux=True)
    trace = jax.make_jaxpr(jax.grad(of_metric, has_aux=True))
    assert not unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))


# Noise in what has no jump, or none that a parameter moves.
CONTINUOUS = {
    "dropout": lambda key, p: jnp.where(jax.random.bernoulli(key, 0.5), p, 0.0),
    "dropout by hand": lambda key, p: jnp.where(jax.random.uniform(key) < 0.5, p, 0.0),
    "dropout before a kink": lambda key, p: jnp.sum(
        jax.nn.leaky_relu(
            jnp.where(
                jax.random.uniform(key, (4,)) < 0.9,
                p + jax.random.normal(jax.random.fold_in(key, 1), (4,)),
                0.0,
            )
        )
    ),
    "dropped path before a kink": lambda key, p: jax.nn.leaky_relu(
        jnp.floor(0.8 + jax.random.uniform(key))
        * (p + jax.random.normal(jax.random.fold_in(key, 1)))
    ),
    "relu": lambda key, p: jax.nn.relu(p + jax.random.normal(key)),
    "relu by where": lambda key, p: (lambda x: jnp.where(x > 0, x, 0.0))(
        p + jax.random.normal(key)
    ),
    "call": lambda key, p: jnp.maximum(jnp.exp(p * jax.random.normal(key)) - 1.1, 0.0),
    "triangular": lambda key, p: jax.random.triangular(key, 0.0, p, 1.0),
    "shuffle": lambda key, p: jnp.sum(jax.random.permutation(key, p * jnp.arange(3.0)) > 0.2),
    "random crop": lambda key, p: jax.lax.dynamic_slice(
        p * jnp.arange(4.0), (jax.random.randint(key, (), 0, 3),), (1,)
    )[0],
    "rotation": lambda key, p: jnp.sum(jax.random.orthogonal(key, 3) @ (p * jnp.arange(3.0))),
    "straight-through": lambda key, p: (lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x))(
        p + jax.random.normal(key)
    ),
    "a law of noise": lambda key, p: ge.score_function().expect(
        key, dists.Bernoulli(p * jax.random.normal(key)), lambda x: (x - 0.3) ** 2
    ),
    "integers": lambda key, p: jnp.where(
        jax.random.randint(key, (), 0, 9).astype(float) < 10 * p, 1.0, 0.0
    ),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_noise_without_a_jump_is_silent(name):
    trace = jax.make_jaxpr(jax.grad(ge.expectation(raw_loss(CONTINUOUS[name]))))
    assert not unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))


def test_a_raw_draw_is_complained_of_once():
    """Not of the noise that it is made of, too."""
    loss = lambda logits, key: jnp.sum(
        jnp.array([1.0, 2.0, 4.0])[jnp.argmax(logits + jax.random.gumbel(key, (3,)))]
    )
    trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
    (message,) = unestimated(lambda: trace(jnp.zeros(3), keys(1)[0]))
    assert message.startswith("expectation: jax.random.categorical")


def arm_by_hand(key, bernoulli, cost):
    u = jax.random.uniform(key, bernoulli.shape)
    p = jax.nn.sigmoid(bernoulli.logits)
    first, second = cost((u > 1 - p).astype(float)), cost((u < p).astype(float))
    gradient = dists.Bernoulli((first - second) * (u - 0.5))
    return ge.attach_gradient((first + second) / 2, bernoulli, gradient)


class Coin(dists.base.Distribution):
    """With a draw of a user's making."""

    parameters = ("logits",)

    def __init__(self, logits):
        self.logits = logits

    @property
    def shape(self):
        return self.logits.shape

    def sample(self, key, shape=()):
        u = jax.random.uniform(key, (*shape, *self.shape))
        return (u < jax.nn.sigmoid(self.logits)).astype(float)

    def log_prob(self, x):
        return jax.nn.log_sigmoid(jnp.where(x > 0.5, self.logits, -self.logits))


MADE_OF_NOISE = {
    "score_function": (ge.score_function(), dists.Bernoulli),
    "disarm": (ge.disarm(), dists.Bernoulli),
    "straight_through": (ge.straight_through(), dists.Bernoulli),
    "own estimator": (ge.Sampler("arm", estimate=arm_by_hand), dists.Bernoulli),
    "own distribution": (ge.score_function(num_samples=2), Coin),
}


@pytest.mark.parametrize("noisy_cost", [False, True])
@pytest.mark.parametrize(("sampler", "law"), MADE_OF_NOISE.values(), ids=MADE_OF_NOISE)
def test_noise_in_a_draw_of_an_estimator_is_its_own(sampler, law, noisy_cost):
    """Its draw is compared with probabilities, and the gradient is there; not so in the cost."""

    def loss(p, key):
        key, of_cost = jax.random.split(key)
        coin = lambda: (jax.random.uniform(of_cost) < p).astype(float)
        cost = lambda x: x**2 * (coin() if noisy_cost else 1.0)
        return p**2 + sampler.expect(key, law(p), cost)

    trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
    messages = unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))
    assert any("made of the noise" in message for message in messages) == noisy_cost


@pytest.mark.parametrize("place", ["none", "jit", "checkpoint", "cond", "scan", "while_loop"])
def test_noise_in_a_function_that_an_estimator_calls_is_its_own(place):
    """Wherever it is staged, and whoever called it first."""
    staged = jax.jit(lambda key, p: (jax.random.uniform(key) < p).astype(jnp.float32))
    coin = lambda key, p: PLACES[place](lambda key: staged(key, p))(key)

    def score_by_hand(key, bernoulli, cost):
        p = jax.nn.sigmoid(bernoulli.logits)
        x = coin(key, p)
        value = cost(x)
        return ge.attach_gradient(value, bernoulli, dists.Bernoulli(value * (x - p)))

    bit = ge.Sampler("score by hand", estimate=score_by_hand)
    by_estimator = lambda p, key: p**2 + bit.expect(key, dists.Bernoulli(p), jnp.square)
    for loss in (raw_loss(coin), by_estimator, raw_loss(coin)):
        trace = jax.make_jaxpr(jax.grad(ge.expectation(loss)))
        messages = unestimated(lambda: trace(jnp.float32(0.3), keys(1)[0]))  # noqa: B023
        assert bool(messages) == (loss is not by_estimator)


# ---- Draws of gradest's distributions without an estimator ----------------------------------

TABLE = jnp.array([1.0, 2.0, 5.0])
INTEGERS = {
    "Categorical": lambda p: dists.Categorical(p * jnp.arange(3.0)),
    "Poisson": dists.Poisson,
    "Geometric": lambda p: dists.Geometric(probs=p / 3),
    "Binomial": lambda p: dists.Binomial(3, p),
    "NegativeBinomial": lambda p: dists.NegativeBinomial(2.0, p - 3),
}


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("make", [dists.Bernoulli, lambda l: dists.OneHotCategorical(l)])
def test_floating_draw_without_an_estimator_refuses_its_derivative(make, expected):
    def loss(l, key):
        return jnp.sum(make(l).sample(key) * jnp.arange(3.0))

    loss = ge.expectation(loss) if expected else loss
    message = r"\.sample: its draw \(at .*test_silent_zeros.*stop_gradient\(draw\)"
    for wrap in (lambda f: f, jax.jit):
        with pytest.raises(ge.UnestimatedGradientError, match=message):
            wrap(jax.grad(loss))(jnp.zeros(3), jax.random.key(0))
    assert jnp.isfinite(jax.jit(loss)(jnp.zeros(3), jax.random.key(0)))


def test_score_function_by_hand():
    def by_hand(l, key):
        bits = dists.Bernoulli(l)
        x = jax.lax.stop_gradient(bits.sample(key))
        return jnp.sum(x) ** 2 * jnp.sum(bits.log_prob(x))

    l, key = jnp.array([0.3, -0.6]), jax.random.key(1)
    x = dists.Bernoulli(l).sample(key)
    want = jnp.sum(x) ** 2 * (x - jax.nn.sigmoid(l))
    for f in (by_hand, ge.expectation(by_hand)):
        np.testing.assert_allclose(jax.grad(f)(l, key), want, rtol=1e-5)


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_draw_without_an_estimator(name):
    """It is told of in a loss, where its value is used, and not where its score is; not outside."""
    make, key, p = INTEGERS[name], jax.random.key(0), jnp.float32(1.2)
    used = lambda p, key: make(p).sample(key).astype(float) ** 2

    def scored(p, key):
        d = make(p)
        x = d.sample(key)
        return jax.lax.stop_gradient(x.astype(float) ** 2) * d.log_prob(x)

    def of_lanes(p, key):
        return jnp.sum(jax.vmap(scored, in_axes=(None, 0))(p, jax.random.split(key, 2)))

    def of_another(p, key):
        return make(2 * p).log_prob(make(p).sample(key))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.grad(used)(p, key)
        for loss in (scored, of_lanes):
            jax.grad(ge.expectation(loss))(p, key)
        jax.grad(ge.expectation(lambda p, key: p * used(jax.lax.stop_gradient(p), key)))(p, key)
    for loss in (used, of_another):
        with pytest.warns(ge.UnestimatedGradientWarning, match=rf"{name}\.sample \(at .*draws in"):
            jax.grad(ge.expectation(loss))(p, key)


def test_integer_draw_and_its_score_by_a_distribution_that_is_made_anew():
    """Of equal parameters, whose derivative the score has, and of others."""
    make = lambda p: dists.Categorical(p * jnp.arange(3.0))

    def loss(p, key, q):
        return make(p * q).log_prob(make(p * 2.0).sample(key))

    messages = lambda q: unestimated(
        lambda: jax.grad(ge.expectation(lambda p, key: loss(p, key, q)))(0.3, keys(1)[0])
    )
    assert not messages(2.0)
    (message,) = messages(3.0)
    assert message.startswith("expectation: Categorical.sample (at ")
