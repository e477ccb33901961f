"""Several runs of a loss: what they average, what is common to them, baselines from each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from support import programs
from support.programs import assert_unbiased, assert_variance, bit, keys

import gradest as ge
from gradest import distributions as dists

score, rebar = ge.score_function(), ge.rebar()
split = jax.random.split
KEY = jax.random.key(0)


def runs(loss, num=2, **options):
    return ge.expectation(loss, num_samples=num, baseline="leave_one_out", **options)


# ---- Programs, against all their paths -----------------------------------------------------


def walk(params, key):
    """A draw decides at every step whether there are another draw and costs."""

    def step(h, key):
        k0, k1 = split(key)

        def up():
            ge.cost((h - 0.4) ** 2)
            y = bit(score, k1, params[1] + h * params[2])
            ge.cost(1.5 * y * h)
            return h + y

        def down():
            ge.cost(-0.3 * h)
            return params[2] * h

        return jax.lax.cond(bit(score, k0, params[0] * h) > 0.5, up, down), None

    h, _ = jax.lax.scan(step, 1.0, split(key, 2))
    return jnp.sin(h) + h**2


def walk_exactly(draw, params):
    h, total = 1.0, 0.0
    for _ in range(2):
        if draw(params[0] * h):
            total += (h - 0.4) ** 2
            y = draw(params[1] + h * params[2])
            total += 1.5 * y * h
            h = h + y
        else:
            total += -0.3 * h
            h = params[2] * h
    return total + jnp.sin(h) + h**2


def mixed(params, key):
    """REBAR before the scan, whose relaxed pass runs through it, and in one arm after it."""
    k = split(key, 4)
    z = bit(rebar, k[0], params[2])

    @jax.jit
    def step(carry, key):
        h, turn = carry

        def forward():
            x = bit(score, key, params[1] - h)
            return h + x * z, x

        carry = jax.lax.switch(turn.astype(int), [lambda: (h * z - 1, 1.0), forward])
        return carry, h

    (h, turn), hs = jax.lax.scan(step, (1.0, 1.0), split(k[1], 2))
    ge.cost(jnp.sum(hs) * params[0])

    def both():
        y = bit(score, k[2], params[0] + z)
        ge.cost(params[1] * y)
        return bit(rebar, k[3], params[2] * y) - y

    v = jax.lax.cond(turn > 0.5, both, lambda: 1.5 * bit(score, k[2], params[0] - z))
    return (v - params[2] * z + 0.4) ** 2 + h * v


def mixed_exactly(draw, params):
    z, h, turn, hs = draw(params[2]), 1.0, 1.0, []
    for _ in range(2):
        hs.append(h)
        if turn:
            turn = draw(params[1] - h)
            h = h + turn * z
        else:
            h, turn = h * z - 1, 1.0
    total = sum(hs) * params[0]
    if turn:
        y = draw(params[0] + z)
        total += params[1] * y
        v = draw(params[2] * y) - y
    else:
        v = 1.5 * draw(params[0] - z)
    return total + (v - params[2] * z + 0.4) ** 2 + h * v


def episode(params, key):
    """The reward comes at the end; a branch holds the scan, a draw has a baseline of its own."""
    k0, k1, k2 = split(key, 3)
    x = bit(ge.score_function(baseline=0.7), k0, params[0])

    def steps(h):
        step = lambda h, key: (h * params[2] + bit(score, key, params[1] * h), None)
        return jax.lax.scan(jax.checkpoint(step), h, split(k1, 2))[0]

    h = jax.lax.cond(x > 0.5, steps, lambda h: h - bit(score, k1, h), 1.0)
    return jnp.exp(0.5 * h) * (1 + bit(score, k2, h - params[0]))


def episode_exactly(draw, params):
    h = 1.0
    if draw(params[0]):
        for _ in range(2):
            h = h * params[2] + draw(params[1] * h)
    else:
        h = h - draw(h)
    return jnp.exp(0.5 * h) * (1 + draw(h - params[0]))


PARAMS = jnp.array([0.4, -0.6, 0.9])


def derivatives(function, hessian):
    """The value, the gradient, and the Hessian where it is known."""
    both = lambda params: (lambda v, g: (g, (v, g)))(*jax.value_and_grad(function)(params))
    if not hessian:
        return lambda params: both(params)[1]
    return lambda params: (lambda h, rest: (*rest, h))(*jax.jacfwd(both, has_aux=True)(params))


@functools.cache
def exactly(program, hessian):
    return jax.jit(derivatives(programs.enumerated(program), hessian))(PARAMS)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("loss", "program", "num", "hessian"),
    [
        pytest.param(walk, walk_exactly, 2, True, id="walk"),
        pytest.param(episode, episode_exactly, 3, True, id="episode"),
        pytest.param(mixed, mixed_exactly, 2, False, id="mixed"),
    ],
)
def test_program(loss, program, num, hessian):
    of = lambda key: derivatives(lambda params: runs(loss, num)(params, key), hessian)(PARAMS)
    got = jax.jit(jax.vmap(of))(keys(40_000))
    exact = exactly(program, hessian)
    assert_unbiased(got, exact)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, jax.tree.map(lambda g: 1.05 * g, exact))


@pytest.mark.statistical
def test_program_with_a_mean_of_all_runs(monkeypatch):
    programs.own_run_in_baseline(monkeypatch)
    of = lambda key: jax.grad(runs(walk))(PARAMS, key)
    got = jax.jit(jax.vmap(of))(keys(40_000))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, exactly(walk_exactly, True)[1])


# ---- Variance ------------------------------------------------------------------------------

LOGITS, REWARDS = np.array([0.3, -0.5, 0.8]), np.array([1.0, 0.0, 0.2])


def of_one_categorical(logits, key, sampler=score):
    return jnp.sum(REWARDS * sampler(key, dists.OneHotCategorical(logits)))


def exact_moments(num):
    """Of the gradient of `num` runs, by all their outcomes: its mean and variance."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    mean, variance = np.zeros(3), np.zeros(3)
    for outcomes in itertools.product(range(3), repeat=num):
        r = REWARDS[list(outcomes)]
        advantages = r - (r.sum() - r) / (num - 1)
        g = advantages @ (np.eye(3)[list(outcomes)] - p) / num
        probability = p[list(outcomes)].prod()
        mean, variance = mean + probability * g, variance + probability * g**2
    return mean, variance - mean**2


@pytest.mark.statistical
@pytest.mark.parametrize("num", [2, 4, 8])
def test_variance_of_one_categorical(num):
    mean, variance = exact_moments(num)
    if num == 4:
        np.testing.assert_allclose(variance.sum(), 0.02902816, rtol=1e-6)
    grad = jax.grad(runs(of_one_categorical, num))
    got = jax.jit(jax.vmap(grad, in_axes=(None, 0)))(jnp.asarray(LOGITS), keys(40_000))
    assert_unbiased(got, mean)
    assert_variance(got, variance)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_variance(got, 1.1 * variance)


@pytest.mark.statistical
def test_samples_of_a_site_take_a_baseline_each():
    mean, variance = exact_moments(2)
    loss = lambda logits, key: of_one_categorical(logits, key, ge.score_function(num_samples=2))
    got = jax.jit(jax.vmap(jax.grad(runs(loss)), in_axes=(None, 0)))(
        jnp.asarray(LOGITS), keys(40_000)
    )
    assert_unbiased(got, mean)
    assert_variance(got, variance / 2)


# ---- The formula, by hand ------------------------------------------------------------------


def test_each_draw_takes_what_others_spend_after_the_same_point():
    num, length = 3, 4

    def loss(logit, key):
        def step(h, key):
            k0, k1 = split(key)
            first = bit(score, k0, logit)
            # Where h is 0, what is not taken costs infinity, in the lanes of other runs.
            cost = lambda: jnp.log(h) + 1.3

            def up():
                ge.cost(cost())
                second = bit(score, k1, 2 * logit)
                ge.cost(2.0 + second)
                return h + 1 + second, (first, second, cost(), 2.0 + second)

            def down():
                ge.cost(0.5)
                return h, (first, -1.0, 0.5, 0.0)

            return jax.lax.cond((first > 0.5) & (h > 0), up, down)

        end, trace = jax.lax.scan(step, bit(score, key, logit), split(key, length))
        return end**2, (end, *trace)

    logit = 0.3
    (value, aux), got = jax.value_and_grad(runs(loss, num, has_aux=True), has_aux=True)(logit, KEY)
    end, first, second, before, after = (np.asarray(x, np.float64) for x in aux)
    assert len({tuple(row) for row in first}) > 1
    assert (second >= 0).any(), "a run that took the branch"

    costs = np.stack([before, after], axis=-1)
    total = costs.sum(axis=(1, 2)) + end**2
    np.testing.assert_allclose(value, total.mean(), rtol=1e-5)
    others = lambda x: (x.sum() - x) / (num - 1)
    p1, p2 = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-2 * logit))
    opening = end - np.where(second >= 0, 1 + second, 0).sum(axis=1)
    gradient = (total - others(total)) * (opening - p1)
    spent = np.zeros(num)
    for t in range(length):
        left = total - spent - others(total - spent)
        gradient += left * (first[:, t] - p1)
        # A run in the other branch is where it was when it came to it.
        taken = second[:, t] >= 0
        spent_here = spent + np.where(taken, costs[:, t, 0], 0)
        left = total - spent_here - others(total - spent_here)
        gradient += np.where(taken, left * 2 * (second[:, t] - p2), 0)
        spent = spent + costs[:, t].sum(axis=1)
    np.testing.assert_allclose(got, gradient.mean(), rtol=1e-4)


def test_relaxed_passes_take_baselines_from_relaxed_passes():
    point = lambda key: jax.random.uniform(key)
    sampler = ge.Sampler(
        "at_a_point",
        draw=lambda key, dist: point(key),
        estimate=lambda key, dist, cost: cost.relaxed(point(key)),
    )

    def loss(logit, key):
        k0, k1 = split(key)
        x = sampler(k0, dists.Bernoulli(0.0))
        y = bit(score, k1, logit)
        return 10 * x + y, (x, y)

    got, (x, y) = jax.grad(runs(loss, 3, has_aux=True), has_aux=True)(0.3, KEY)
    c = np.asarray(10 * x + y, np.float64)
    advantages = c - (c.sum() - c) / 2
    np.testing.assert_allclose(got, np.mean(advantages * (y - 1 / (1 + np.exp(-0.3)))), rtol=1e-4)


def test_other_draws_take_none():
    def loss(params, key):
        k0, k1, k2 = split(key, 3)
        own = bit(ge.score_function(baseline=params["b"]), k0, params["own"])
        lax = ge.relax(lambda w, x: w * x, params["w"])
        x = lax(k1, dists.Normal(params["lax"], 1.0))
        return (own + x + bit(score, k2, params["score"])) ** 2

    params = dict.fromkeys(["own", "b", "lax", "w", "score"], jnp.float32(0.4))
    without = jax.grad(ge.expectation(loss, num_samples=3))(params, KEY)
    got = jax.grad(runs(loss, 3))(params, KEY)
    changed = {name for name in params if abs(got[name] - without[name]) > 1e-5}
    assert changed == {"score"}


# ---- What is drawn anew --------------------------------------------------------------------


def test_draws_are_anew_and_other_randomness_is_common():
    normal = lambda key: ge.reparameterize()(key, dists.Normal(0.0, 1.0))
    jitted = jax.jit(normal)
    jitted(KEY)  # It is traced before there are runs.

    def loss(logit, key):
        inner = ge.expectation(lambda k: normal(jax.random.clone(k)) + bit(score, k, logit))
        drawn = {
            "pathwise": jitted(key),
            "cost-based": score(jax.random.clone(key), dists.Normal(logit, 1.0)),
            "for aux": ge.gumbel_max()(key, dists.Categorical(jnp.zeros(1000))),
            "expect": score.expect(key, dists.Normal(0.0, 1.0), lambda x: x),
            "in a scan": jax.lax.scan(lambda c, k: (c, normal(k)), 0, split(key, 2))[1],
            "nested": inner(key),
            "nested runs": ge.expectation(inner, num_samples=2)(key),
            "monte_carlo": ge.monte_carlo(normal, 2)(key),
        }
        common = {"argument": logit, "jax.random": jax.random.normal(key)}
        return drawn["pathwise"] * drawn["cost-based"], (drawn, common)

    value, (drawn, common) = ge.expectation(loss, has_aux=True, num_samples=3)(0.2, KEY)
    for name, x in drawn.items():
        assert x.shape[0] == 3, name
        assert len(np.unique(np.asarray(x).reshape(3, -1), axis=0)) == 3, name
    for name, x in common.items():
        assert x.shape == (3,), name
        assert len(np.unique(x)) == 1, name
    # Each row of auxiliary output is that of its run.
    np.testing.assert_allclose(value, np.mean(drawn["pathwise"] * drawn["cost-based"]), rtol=1e-5)
    assert len(np.unique(jax.vmap(jitted)(jnp.stack([KEY, KEY])))) == 1, "as before, without runs"


def test_pathwise_draws_are_shared_by_the_samples_of_a_site():
    def loss(m, key):
        k0, k1 = split(key)
        x = ge.reparameterize()(k1, dists.Normal(m, 1.0))
        bit(ge.score_function(num_samples=4), k0, 0.3)
        return ge.score_function(num_samples=4)(k0, dists.Normal(0.0, 1e-3)) + x, x

    value, x = ge.expectation(loss, has_aux=True, num_samples=2)(0.0, KEY)
    assert abs(x[0] - x[1]) > 1e-2
    np.testing.assert_allclose(value, x.mean(), atol=5e-3)


def test_runs_of_runs_are_independent():
    one = lambda key: ge.reparameterize()(key, dists.Normal(0.0, 1.0))
    inner = ge.expectation(lambda key: (one(key), one(key)), has_aux=True, num_samples=3)
    _, drawn = ge.expectation(inner, has_aux=True, num_samples=2)(KEY)
    assert len(np.unique(drawn)) == 6


def test_an_effect_is_each_runs_own():
    seen = []

    def loss(logit, key):
        x = bit(score, key, logit)
        jax.debug.callback(lambda x: seen.append(float(x)), x)
        return x

    value = jax.jit(ge.expectation(loss, num_samples=5))(0.0, KEY)
    jax.effects_barrier()
    assert len(seen) == 5
    np.testing.assert_allclose(value, np.mean(seen), rtol=1e-6)


def test_half_precision_is_averaged_in_single():
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, jnp.float16(1))) + 2000
        return x, x

    value, rows = ge.expectation(loss, has_aux=True, num_samples=64)(jnp.float16(0), KEY)
    assert value.dtype == jnp.float16
    assert value == np.float16(np.asarray(rows, np.float64).mean())


# ---- Beside other things -------------------------------------------------------------------


def test_one_run_is_what_it_was():
    loss = lambda params, key: walk(params, key)
    one, same = ge.expectation(loss, num_samples=1), ge.expectation(loss)
    np.testing.assert_array_equal(one(PARAMS, KEY), same(PARAMS, KEY))


def test_under_transformations():
    estimate = runs(of_one_categorical, 4)
    one = jax.value_and_grad(lambda logits, key: estimate(logits, key))
    logits, many = jnp.asarray(LOGITS, jnp.float32), keys(2)
    alone = [one(logits, key) for key in many]
    want = jax.tree.map(lambda *x: np.stack(x), *alone)
    per_key = jax.vmap(one, in_axes=(None, 0))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    d, nothing = PartitionSpec("d"), PartitionSpec()
    scanned = lambda logits, keys: jax.lax.scan(lambda c, k: (c, one(logits, k)), 0, keys)[1]
    ways = {
        "vmap": per_key,
        "jit": jax.jit(per_key),
        "scan": scanned,
        "shard_map": jax.jit(
            jax.shard_map(
                per_key, mesh=mesh, in_specs=(nothing, d), out_specs=(d, d), check_vma=False
            )
        ),
    }
    for name, way in ways.items():
        got = way(logits, many)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_decorator_with_options():
    @ge.expectation(num_samples=4, baseline="leave_one_out")
    def decorated(logits, key):
        return of_one_categorical(logits, key)

    np.testing.assert_array_equal(decorated(LOGITS, KEY), runs(of_one_categorical, 4)(LOGITS, KEY))


def test_what_is_warned_of_one_run_is_warned_of_several():
    def loss(m, key):
        x = ge.reparameterize()(key, dists.Normal(m, 1.0))
        return bit(score, key, m) + bit(score, key, m) * jnp.where(x > 0, 1.0, 2.0) + x

    with pytest.warns(ge.UnestimatedGradientWarning) as caught:
        jax.grad(runs(loss))(0.3, KEY)
    messages = [str(warning.message) for warning in caught]
    assert any("get the same key" in message for message in messages)
    assert any("jump" in message or "comparison" in message for message in messages)


def test_diagnose_and_explain():
    loss = runs(of_one_categorical, 4)
    gradients = {"runs": lambda key, logits: jax.grad(loss)(logits, key)}
    mean, _ = exact_moments(4)
    report = ge.diagnose(
        gradients, KEY, jnp.asarray(LOGITS, jnp.float32), num_draws=2_000, exact=jnp.asarray(mean)
    )
    assert not report["runs"].total.biased
    one, several = (ge.explain(f)(LOGITS, KEY).rows for f in (of_one_categorical, loss))
    assert one == several
    assert [row["estimator"] for row in one] == ["score_function"]


# ---- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer of at least 1, got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples: expected an integer of at least 1"),
        ({"baseline": "leave_one_out"}, ValueError, "num_samples: expected an integer of at le"),
        ({"num_samples": 2, "baseline": "optimal"}, ValueError, "baseline: expected one of"),
        ({"num_samples": 2, "baseline": 0.5}, TypeError, 'baseline: expected "leave_one_out"'),
    ],
)
def test_options(options, error, message):
    for make in (lambda: ge.expectation(walk, **options), lambda: ge.expectation(**options)):
        with pytest.raises(error, match=message):
            make()


OWN = ge.score_function(baseline=0.5)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda l, key: bit(rebar, key, l), "draws by rebar"),
        (lambda l, key: bit(OWN, key, l) + bit(rebar, split(key)[0], l), "score_function, rebar"),
        (lambda l, key: ge.reparameterize()(key, dists.Normal(l, 1.0)), "no cost-based draw"),
    ],
    ids=["rebar", "own baseline", "pathwise"],
)
def test_a_baseline_that_no_draw_takes(loss, got):
    with pytest.raises(ValueError, match=f"baseline: expected a loss with a draw .*{got}"):
        runs(loss)(0.3, KEY)


def test_ordered_effects():
    def loss(l, key):
        def step(c, k):
            jax.debug.print("{}", c, ordered=True)
            return c + bit(score, k, l), None

        return jax.lax.scan(step, 0.0, split(key, 2))[0]

    with pytest.raises(NotImplementedError, match=r"an ordered `debug_\w+` \(at .*test_several"):
        ge.expectation(loss, num_samples=2)(0.3, KEY)


def test_samples_in_a_scan_name_the_runs():
    sampler = ge.score_function(num_samples=2, baseline="leave_one_out")
    loss = lambda l, key: jax.lax.scan(
        lambda c, k: (c + bit(sampler, k, l), None), 0.0, split(key, 2)
    )[0]
    with pytest.raises(NotImplementedError, match=r"score_function: .* inside a `scan`") as error:
        ge.expectation(loss)(0.3, KEY)
    assert "gradest.expectation(loss, num_samples=8)" in str(error.value)
    assert 'baseline="leave_one_out"' in str(error.value)
