"""What the transform does to a program: how it grows, what is drawn, what trains, what is said."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from support import programs
from support.programs import assert_unbiased, bit, keys

import gradest as ge
from gradest import distributions as dists
from gradest._transform import reading

split = jax.random.split
score, rebar = ge.score_function(), ge.rebar()


def num_equations(jaxpr):
    """At every depth."""
    inner = lambda eqn: [x for p in eqn.params.values() for x in _jaxprs(p)]
    return sum(1 + sum(map(num_equations, inner(eqn))) for eqn in jaxpr.eqns)


def _jaxprs(value):
    if isinstance(value, (tuple, list)):
        return [x for item in value for x in _jaxprs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def size_of_gradient(loss):
    return num_equations(jax.make_jaxpr(jax.grad(ge.expectation(loss)))(0.3, keys(1)[0]).jaxpr)


# ---- Growth --------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["draw", "cost"])
def test_nested_calls_are_read_once(mark, monkeypatch):
    count = []
    read = reading._Reader._read
    monkeypatch.setattr(
        reading._Reader, "_read", lambda *args: (count.append(None), read(*args))[1]
    )

    def loss(depth, logit, key):
        x = bit(score, key, logit) if mark == "draw" else ge.cost(logit) or logit
        return x if depth == 0 else jax.jit(functools.partial(loss, depth - 1))(logit, key)

    numbers = []
    for depth in (3, 12):
        count.clear()
        jax.make_jaxpr(ge.expectation(functools.partial(loss, depth)))(0.3, keys(1)[0])
        numbers.append(len(count))
    # One for the loss itself, and one for each call.
    assert numbers == [4, 13]


ONE_ELEMENT = {
    "bernoulli": (
        lambda z, l: dists.Bernoulli(l + z),
        [
            *(ge.measure_valued(), ge.measure_valued(coupled=False), ge.disarm(), ge.arm()),
            *(ge.rebar(), ge.muprop(), ge.enumeration(), ge.unordered_set(2)),
            *(
                ge.sum_and_sample(num_summed=1),
                ge.score_function(num_samples=3),
                ge.relax(jnp.multiply, 0.4),
                ge.stratified(2),
            ),
        ],
    ),
    "normal": (
        lambda z, l: dists.Normal(l + z, 0.5 + jax.nn.sigmoid(z)),
        [
            *(ge.measure_valued(), ge.delta_method(), ge.antithetic(), ge.stratified(2)),
            *(ge.gaussian_smoothing(2), ge.relax(jnp.multiply, 0.4)),
        ],
    ),
}


@pytest.mark.parametrize(
    ("make", "sampler"),
    [(make, sampler) for make, samplers in ONE_ELEMENT.values() for sampler in samplers],
    ids=[f"{kind}-{sampler.name}" for kind, (_, s) in ONE_ELEMENT.items() for sampler in s],
)
def test_program_does_not_double_with_every_draw(make, sampler):
    def loss(num, l, key):
        z = jnp.zeros(())
        for k in split(key, num):
            z = 0.5 * z + sampler(k, make(z, l))
        return jnp.sin(z)

    few, many = (size_of_gradient(functools.partial(loss, num)) for num in (3, 6))
    assert many < 4 * few


def test_branches_of_draws_that_need_their_cost_alone_do_not_double():
    """A cond whose draws need what follows them as a function has it in each branch."""

    def loss(sampler, num, l, key):
        x = jnp.zeros(())
        for k in split(key, num):
            draw = functools.partial(bit, sampler, k)
            x = x + jax.lax.cond(x > 0.5, draw, lambda l, d=draw: 0.3 * d(-l), l + x)
        return jnp.sin(x)

    def growth(sampler):
        a, b, c = (size_of_gradient(functools.partial(loss, sampler, num)) for num in (1, 2, 3))
        return (c - b) / (b - a)

    assert growth(score) <= 1.1
    assert growth(ge.relax(lambda w, z: w * z, 0.4)) <= 1.1
    assert growth(ge.disarm()) > 1.7


def test_recursion_that_a_draw_takes():
    """At Python's default limit there is room for 85 REBAR draws in sequence."""

    def loss(num, l, key):
        z = 0.0
        for i in range(num):
            z = 0.5 * z + bit(rebar, jax.random.fold_in(key, i), l + z)
        return z

    def depth(num):
        """The deepest that Python nests while the loss is evaluated."""
        deepest, limit = [0], sys.getrecursionlimit()

        def watch(frame, event, arg):
            if event == "call":
                at, up = 0, frame
                while up is not None:
                    at, up = at + 1, up.f_back
                deepest[0] = max(deepest[0], at)

        sys.setprofile(watch)
        try:
            ge.expectation(functools.partial(loss, num))(0.3, keys(1)[0])
        finally:
            sys.setprofile(None)
        assert deepest[0] < limit
        return deepest[0]

    few, more = depth(3), depth(7)
    assert (more - few) / 4 * 85 < 1000 - 60


# ---- Auxiliary output and effects ----------------------------------------------------------


@pytest.mark.parametrize("sampler", [score, ge.score_function(baseline=0.2), ge.straight_through()])
def test_auxiliary_output_is_of_the_run_that_is_evaluated(sampler):
    def loss(l, key):
        x = bit(sampler, key, l)
        noise = io_callback(lambda: np.float32(next(numbers)), jax.ShapeDtypeStruct((), "float32"))
        return x + noise, {"x": x, "noise": noise}

    numbers = iter(range(10, 20))
    value, aux = ge.expectation(loss, has_aux=True)(0.3, keys(1)[0])
    assert value == aux["x"] + aux["noise"]
    assert next(numbers) == 11


@pytest.mark.parametrize("sampler", [score, rebar, ge.disarm()])
@pytest.mark.parametrize("place", [lambda f: f(), lambda f: jax.jit(f)()], ids=["plain", "jit"])
def test_an_effect_for_auxiliary_output_happens_once(sampler, place):
    count = []

    def loss(l, key):
        x = bit(sampler, key, l)
        number = lambda: io_callback(
            lambda: count.append(None) or np.float32(len(count)),
            jax.ShapeDtypeStruct((), "float32"),
        )
        return (x - 0.3) ** 2, place(number)

    _, aux = ge.expectation(loss, has_aux=True)(0.3, keys(1)[0])
    assert (len(count), float(aux)) == (1, 1.0)


def test_a_draw_for_auxiliary_output_alone_is_not_credited():
    """It would be noise in the gradient of the parameters that it shares with the loss."""

    def loss(l, key, metric):
        k0, k1 = split(key)
        x = bit(score, k0, l)
        aux = bit(score, k1, l) if metric else None
        ge.cost((x - 0.3) ** 2)
        return x, aux

    grad = jax.grad(ge.expectation(loss, has_aux=True), has_aux=True)
    run = lambda metric: jax.jit(jax.vmap(lambda k: grad(0.3, k, metric)[0]))(keys(50))
    np.testing.assert_array_equal(run(True), run(False))


def test_a_draw_that_is_printed_alone_is_not_credited():
    def loss(l, key, printed):
        k0, k1 = split(key)
        if printed:
            jax.debug.callback(lambda x: None, bit(score, k1, l))
        return (bit(score, k0, l) - 0.3) ** 2

    grad = jax.grad(ge.expectation(loss))
    run = lambda printed: jax.jit(jax.vmap(lambda k: grad(0.3, k, printed)))(keys(50))
    np.testing.assert_array_equal(run(True), run(False))


CALLS = {
    "plain": lambda draw: draw(),
    "jit": lambda draw: jax.jit(draw)(),
    "cond": lambda draw: jax.lax.cond(True, draw, lambda: jnp.int32(0)),
    "scan": lambda draw: jax.lax.scan(lambda c, _: (c, draw()), 0, length=2)[1],
}


@pytest.mark.parametrize("place", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("sampler", [score, rebar], ids=["one run", "two runs"])
def test_an_integer_draw_may_be_for_auxiliary_output(place, sampler):
    def loss(l, key):
        k0, k1 = split(key)
        count = place(lambda: score(k1, dists.Categorical(jnp.stack([l, -l]))))
        return (bit(sampler, k0, l) - 0.3) ** 2, count

    grad, count = jax.grad(ge.expectation(loss, has_aux=True), has_aux=True)(0.3, keys(1)[0])
    assert grad != 0
    assert count.dtype == jnp.int32


@pytest.mark.parametrize("before", ["draw", "cost", "nothing"])
def test_a_draw_in_a_loop_that_needs_what_follows_says_so(before):
    def loss(l, key):
        def step(x, k):
            k0, k1 = split(k)
            if before == "draw":
                x = x + bit(score, k0, l)
            if before == "cost":
                ge.cost(x)
            return x + bit(ge.enumeration(), k1, l), None

        return jax.lax.scan(step, 0.0, split(key, 2))[0]

    with pytest.raises(NotImplementedError, match=r"enumeration: a draw .* is inside a `scan`"):
        ge.expectation(loss)(0.3, keys(1)[0])


def test_a_function_that_is_named_as_one_of_jax_random_is_another():
    @jax.jit
    def _bernoulli(x):
        return x**2

    def binomial(x):
        return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, 0.5 * s[1]), (0, x))[1]

    for function in (_bernoulli, binomial):
        loss = ge.expectation(lambda l, f=function: f(l) + 0 * bit(score, keys(1)[0], 0.3))
        # Warnings are errors here.
        jax.make_jaxpr(lambda l, loss=loss: jax.jvp(loss, (l,), (1.0,)))(0.3)


# ---- Costs ---------------------------------------------------------------------------------


def test_cost_in_a_jitted_function_raises_whatever_ran_before():
    @jax.jit
    def spend(x):
        ge.cost(x**2)
        return x

    def raises():
        with pytest.raises(RuntimeError, match=r"outside of a loss under gradest\.expectation"):
            spend(1.5)

    raises()
    assert ge.expectation(lambda x: spend(x))(1.5) == 1.5**2 + 1.5
    raises()
    with pytest.raises(RuntimeError, match=r"outside of a loss under gradest\.expectation"):
        jax.jit(lambda x: (jax.jit(spend)(x), 0.0)[1])(1.5)
    # Traced anew, and not for the first time.
    assert ge.expectation(lambda x: jax.jit(spend)(x))(2.0) == 6.0


@pytest.mark.parametrize("times", [1, 3])
def test_cost_in_a_scan_of_flax(times):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, carry, key):
            w = self.param("w", nn.initializers.constant(0.7), ())
            ge.cost(w * w)
            ge.cost(0.25 * jnp.ones(2))
            return carry + bit(score, key, 0.3), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ks):
            scan = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False})
            return scan()(0.0, ks)[0]

    ks = keys(times)
    params = {"params": {"ScanStep_0": {"w": jnp.float32(0.7)}}}
    loss = ge.expectation(lambda params: 0.0 * Net().apply(params, ks))  # pyright: ignore[reportOperatorIssue]
    value, grad = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, times * (0.49 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(jax.tree.leaves(grad)[0], times * 1.4, rtol=1e-6)


def test_cost_in_a_method_that_flax_calls_to_initialise():
    class Net(nn.Module):
        guarded: bool

        @nn.compact
        def __call__(self):
            w = self.param("w", nn.initializers.constant(0.7), ())
            if not (self.guarded and self.is_initializing()):
                ge.cost(w * w)
            return 2 * w

    with pytest.raises(RuntimeError, match=r"if not self\.is_initializing\(\): gradest\.cost"):
        Net(guarded=False).init(keys(1)[0])
    net = Net(guarded=True)
    params = net.init(keys(1)[0])
    loss = ge.expectation(lambda params: 1.0 * net.apply(params))  # pyright: ignore[reportOperatorIssue]
    np.testing.assert_allclose(loss(params), 0.49 + 1.4, rtol=1e-6)


# ---- Second derivatives --------------------------------------------------------------------


def test_second_derivatives_do_not_depend_on_what_was_called_before():
    """A jitted sub-loss, in the variance gradient of another estimator and by itself."""
    inner = jax.jit(lambda l: ge.disarm().expect(keys(1)[0], dists.Bernoulli(l), lambda b: b**2))

    def outer(temperature, l):
        cost = lambda b: inner(l + jnp.sum(b))
        return ge.rebar(temperature).expect(keys(1)[0], dists.Bernoulli(l), cost)

    second = jax.grad(lambda l: jax.grad(inner)(l) ** 2)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="disarm: its gradient was differentiated"):
            second(0.1)
        jax.grad(outer, argnums=(0, 1))(jnp.float32(0.5), 0.1)


def test_the_estimator_that_is_differentiated_twice_is_named():
    """Two that share a jitted function, which JAX traces once for each."""
    attach = jax.jit(lambda x: ge.attach_gradient(x**2, x, x))
    estimate = lambda key, dist, cost: attach(dist.logits) + 0 * cost(0.0)
    for name in ("first_of_two", "second_of_two"):
        sampler = ge.Sampler(name, estimate=estimate)
        loss = lambda l, s=sampler: s.expect(keys(1)[0], dists.Bernoulli(l), lambda x: x * 1.0)
        jax.grad(loss)(0.3)
        with pytest.raises(NotImplementedError, match=name):
            jax.grad(jax.grad(loss))(0.3)


# ---- What is trained -----------------------------------------------------------------------


OPTIONS = {
    "rebar temperature": lambda b: ge.rebar(b),
    "rebar eta": lambda b: ge.rebar(eta=b),
    "rebar baseline": lambda b: ge.rebar(baseline=b),
    "muprop baseline": lambda b: ge.muprop(baseline=b),
    "score_function baseline": lambda b: ge.score_function(baseline=b),
    "score_function of several": lambda b: ge.score_function(num_samples=2, baseline=b),
    "relax params": lambda b: ge.relax(lambda w, z: w * jnp.sum(z), b),
    "relax eta": lambda b: ge.relax(lambda w, z: w * jnp.sum(z), 0.4, eta=b),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.filterwarnings("ignore:.*credited with the whole loss")
def test_trained_options_on_draws_under_vmap(name):
    """The loss is a scalar, and its draws and gradients those of a constant option."""
    logits = jnp.array([[0.3, -0.4], [-0.5, 0.2], [0.1, 0.6]])

    def loss(option, logits, key):
        sampler = OPTIONS[name](option)
        z = jax.vmap(lambda k, l: sampler(k, dists.Bernoulli(l)))(split(key, 3), logits)
        return jnp.sum(z * jnp.arange(1.0, 3.0)[None]) ** 2

    estimate, b = ge.expectation(loss), jnp.float32(0.6)
    of_option = jax.value_and_grad(estimate, argnums=(0, 1))
    value, (trained, got) = jax.jit(jax.vmap(of_option, (None, None, 0)))(b, logits, keys(20))
    of_logits = lambda k: jax.value_and_grad(lambda l: estimate(0.6, l, k))(logits)
    constant, want = jax.jit(jax.vmap(of_logits))(keys(20))
    np.testing.assert_allclose(value, constant, rtol=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.any(trained != 0)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_learned_does_not_depend_on_how_a_batch_is_split(name):
    def loss(params, key):
        z = OPTIONS[name](params["option"])(key, dists.Bernoulli(params["logits"]))
        return jnp.sum((z - 0.3) ** 2 * jnp.arange(1.0, 3.0))

    params = {"logits": jnp.array([0.3, -0.5]), "option": jnp.float32(0.6)}
    mean = lambda p, ks: jnp.mean(jax.vmap(ge.expectation(loss), (None, 0))(p, ks))
    ks = keys(8)
    gradient = jax.jit(jax.grad(mean))
    whole = gradient(params, ks)
    parts = [gradient(params, part) for part in ks.reshape(4, 2)]
    average = jax.tree.map(lambda *g: sum(g) / 4, *parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), average, whole)
    assert whole["option"] != 0


# ---- RELAX in loops and branches -----------------------------------------------------------


def walk(params, key, body=lambda step: step):
    """A step of a walk, or none; the surrogate sees the state and the time."""
    a, w = params["a"], params["w"]

    @body
    def step(x, inputs):
        t, k = inputs
        surrogate = lambda w, z: w * z * (1.0 + x) + 0.1 * t.astype(float)
        sampler = ge.relax(surrogate, w, temperature=0.7)
        draw = lambda: bit(sampler, k, a[t] + 0.3 * x)
        up = jax.lax.cond(x < 1.5, lambda: draw(), lambda: 0.2)
        ge.cost(0.1 * (up - x) ** 2)
        return x + up, None

    x, _ = jax.lax.scan(step, 0.0, (jnp.arange(3), split(key, 3)))
    return jnp.sin(x) + x**2


def walk_exactly(draw, params):
    x, total = 0.0, 0.0
    for t in range(3):
        up = draw(params["a"][t] + 0.3 * x) if x < 1.5 else 0.2
        total += 0.1 * (up - x) ** 2
        x = x + up
    return total + jnp.sin(x) + x**2


START = {"a": jnp.array([0.4, -0.6, 0.8]), "w": jnp.float32(0.8)}


@pytest.mark.statistical
@pytest.mark.parametrize("body", [lambda step: step, jax.checkpoint], ids=["scan", "checkpoint"])
def test_relax_in_a_loop(body):
    value, grad = programs.estimates(functools.partial(walk, body=body), START, 100_000)
    want_value, want = programs.exact(walk_exactly, START)
    assert_unbiased((value, grad["a"]), (want_value, want["a"]))


@pytest.mark.statistical
def test_relax_in_a_loop_with_a_wrong_factor(monkeypatch):
    right = ge.relax

    def wrong(*args, **options):
        sampler = right(*args, **options)
        scaled = lambda x, log_prob, control: (x, 1.05 * log_prob, control)
        score = lambda *args, **options: scaled(*sampler.score(*args, **options))
        return ge.Sampler(
            "wrong",
            draw=sampler.draw,
            estimate=sampler.estimate,
            score=score,
            hoist=sampler.hoist,
            options=sampler.options,
            static=sampler.static,
        )

    monkeypatch.setattr(ge, "relax", wrong)
    value, grad = programs.estimates(walk, START, 100_000)
    want_value, want = programs.exact(walk_exactly, START)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased((value, grad["a"]), (want_value, want["a"]))


LOGITS = jnp.array([0.4, -0.3, 0.2, -0.9, 0.6])


@pytest.mark.parametrize(
    ("law", "of_steps"),
    [
        pytest.param(dists.Bernoulli, [LOGITS], id="bernoulli"),
        pytest.param(dists.Normal, [LOGITS, jnp.exp(LOGITS)], id="normal"),
    ],
)
def test_relax_in_a_loop_trains_its_surrogate_by_the_variance(law, of_steps, x64):
    """By the gradient of the squared gradients of the draws' parameters, those of each step."""

    def loss(w, of_steps, key):
        def step(x, inputs):
            k, of_step = inputs
            sampler = ge.relax(lambda w, z: jnp.sin(w * z + x), w, temperature=0.7)
            x = 0.5 * x + sampler(k, law(*of_step))
            ge.cost(0.3 * x**2)
            return x, None

        x, _ = jax.lax.scan(step, jnp.zeros(()), (split(key, 5), of_steps))
        return -2.0 * jnp.sin(x)

    estimate = ge.expectation(loss)
    w, of_steps = jnp.asarray(0.8), [x.astype(float) for x in of_steps]

    def norm(w, key):
        return sum(jnp.sum(g**2) for g in jax.grad(estimate, argnums=1)(w, of_steps, key))

    trained = jax.jit(jax.vmap(jax.grad(estimate), (None, None, 0)))(w, of_steps, keys(20))
    differences = jax.jit(jax.vmap(lambda k: (norm(w + 1e-5, k) - norm(w - 1e-5, k)) / 2e-5))(
        keys(20)
    )
    np.testing.assert_allclose(trained, differences, rtol=1e-5, atol=1e-7)
    assert np.all(trained != 0)


def lax_in_a_switch(params, key):
    """Normal draws in every other step, with a surrogate of the state that is far from the cost."""

    def step(h, inputs):
        t, k = inputs
        sampler = ge.relax(lambda w, x: w * x * (h + t), params["w"])

        def move():
            x = sampler(k, dists.Normal(params["m"] * 0.5**t, 1.0))
            ge.cost(0.4 * x * h)
            return h + x

        return jax.lax.switch((t % 2).astype(int), [move, lambda: 0.5 * h]), None

    h, _ = jax.lax.scan(step, 0.5, (jnp.arange(4.0), split(key, 4)))
    return (h + 1) ** 2


def lax_in_a_switch_exactly(m):
    mean, variance, total = 0.5, 0.0, 0.0
    for t in range(4):
        if t % 2:
            mean, variance = 0.5 * mean, 0.25 * variance
        else:
            total += 0.4 * m * 0.5**t * mean
            mean, variance = mean + m * 0.5**t, variance + 1
    return total + (mean + 1) ** 2 + variance


@pytest.mark.statistical
def test_lax_in_a_loop():
    start = {"m": jnp.float32(0.9), "w": jnp.float32(0.3)}
    value, grad = programs.estimates(lax_in_a_switch, start, 150_000)
    exact = jax.value_and_grad(lax_in_a_switch_exactly)(0.9)
    assert_unbiased((value, grad["m"]), exact)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * grad["m"], exact[1])


def test_relax_in_a_loop_raises_when_it_is_differentiated_twice():
    loss = lambda a: ge.expectation(walk)({**START, "a": a}, keys(1)[0])
    with pytest.raises(NotImplementedError, match="relax: its gradient was differentiated again"):
        jax.jacrev(jax.grad(loss))(START["a"])


def test_a_surrogate_may_close_over_anything_that_a_loss_has():
    """Floats, integers, keys and what is differentiated; only its parameters are trained."""

    def loss(params, key):
        k0, k1 = split(key)
        x = bit(score, k0, params["l"])
        index = x.astype(int)
        table = params["table"] * 2.0

        def surrogate(w, z):
            return w * z * table[index] + x + jax.random.normal(k1)

        return (x + bit(ge.relax(surrogate, params["w"]), k1, params["l"] + x) - 0.6) ** 2

    params = {"l": jnp.float32(0.2), "w": jnp.float32(0.5), "table": jnp.array([0.3, 0.9])}
    grad = jax.jit(jax.grad(ge.expectation(loss)))(params, keys(1)[0])
    assert grad["w"] != 0
    np.testing.assert_array_equal(grad["table"], 0)
