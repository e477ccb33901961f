"""Diagnostics against closed forms, of the toy whose moments are all known."""

import json
import math
import subprocess
import sys
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cases import CASES

import gradest as ge
from gradest._diagnostics import diagnose as _diagnostics
from gradest._diagnostics.moments import Stream
from gradest.distributions import Bernoulli, Normal
from gradest.problems.toy import exact_gradient, score_function_variance

KEY = jax.random.key(0)
T, LOGIT = 0.45, 0.7
P = 1 / (1 + math.exp(-LOGIT))
EXACT = float(exact_gradient(LOGIT, T))
NORMAL = {"f": lambda key: jax.random.normal(key)}


def cost(b):
    return (b - T) ** 2


def of(sampler):
    """A gradient function, as a user writes one."""
    return lambda key, logit: jax.grad(lambda l: sampler.expect(key, Bernoulli(l), cost))(logit)


def diagnose(gradients, *args, **options):
    return ge.diagnose(gradients, KEY, *args, **{"num_draws": 20_000, **options})


@pytest.fixture(scope="module")
def toy():
    with jax.numpy_dtype_promotion("strict"):
        samplers = {
            "score_function": ge.score_function(),
            "straight_through": ge.straight_through(),
            "scaled": CASES["score_function"].broken["scaled"](pytest.MonkeyPatch()),
            "enumeration": ge.enumeration(),
        }
        dist = Bernoulli(jnp.float32(LOGIT))
        exact = Bernoulli(EXACT)
        return ge.diagnose(samplers, KEY, dist, cost=cost, exact=exact, num_draws=1_000_000)


# ---- Closed forms --------------------------------------------------------------------------


@pytest.mark.statistical
def test_an_unbiased_gradient_is_not_called_biased(toy):
    leaf = toy["score_function"].total
    assert leaf.mean - leaf.bias == pytest.approx(EXACT, rel=1e-6)
    assert leaf.bias_error < 0.01 * EXACT
    assert abs(leaf.z) < 4.5
    assert leaf.biased is False


@pytest.mark.statistical
def test_the_variance_of_the_score_function(toy):
    leaf, exact = toy["score_function"].total, float(score_function_variance(LOGIT, T))
    assert leaf.variance_error < 0.003 * exact
    assert abs(leaf.variance - exact) < 4.5 * leaf.variance_error
    assert leaf.snr == pytest.approx(EXACT / exact**0.5, rel=0.02)
    # The fourth moment, of two outcomes: f1 q with probability p, -f0 p else.
    values = np.array([(1 - T) ** 2 * (1 - P), -(T**2) * P])
    m4 = np.array([P, 1 - P]) @ (values - EXACT) ** 4
    error = math.sqrt((m4 - exact**2) / 1_000_000)
    assert float(leaf.variance_error) == pytest.approx(error, rel=0.01)


@pytest.mark.statistical
def test_the_bias_of_straight_through(toy):
    leaf = toy["straight_through"].total
    bias = P * (1 - P) * (2 * P - 1)
    assert leaf.bias_error < 0.01 * bias
    assert abs(leaf.bias - bias) < 4.5 * leaf.bias_error
    assert leaf.biased is True


@pytest.mark.statistical
def test_a_gradient_off_by_five_percent_is_called_biased(toy):
    leaf = toy["scaled"].total
    assert leaf.biased is True
    assert abs(leaf.bias - 0.05 * EXACT) < 4.5 * leaf.bias_error


def test_rounding_is_no_bias(toy):
    leaf = toy["enumeration"].total
    assert leaf.variance == leaf.bias_error == 0
    assert leaf.snr == math.inf
    assert leaf.biased is False


@pytest.mark.statistical
def test_z_is_calibrated():
    """Over many keys the z of an unbiased gradient is a standard normal."""
    report = diagnose({"normal": lambda key: jax.random.normal(key, (2_000,))}, exact=ZEROS)
    z = report["normal"].total.z
    assert abs(np.mean(z**2) - 1) < 4.5 * math.sqrt(2 / z.size)
    assert abs(np.mean(z)) < 4.5 / math.sqrt(z.size)  # pyright: ignore[reportArgumentType, reportCallIssue]
    # The largest of so many is above 3, and no sign of a bias.
    assert report["normal"].total.max_z > 3
    assert report["normal"].total.p_value > 1e-3
    assert report["normal"].total.total_bias == pytest.approx(np.sqrt(2_000 / 20_000), rel=0.1)
    assert report["normal"].total.total_bias_error == pytest.approx(np.sqrt(0.1), rel=0.01)


ZEROS = np.zeros(2_000)


# ---- A reference ---------------------------------------------------------------------------


def test_a_reference_gets_the_same_keys():
    """What two gradients have in common cancels: a tiny bias is seen within much noise."""

    def noisy(key):
        return 1 + jax.random.normal(key)

    gradients = {"a": noisy, "b": lambda key: 1e-3 + noisy(key), "same": noisy}
    report = diagnose(gradients, reference="a")
    assert report["a"].total.bias is None
    assert report["a"].total.biased is None
    assert report["b"].total.bias == pytest.approx(1e-3, rel=1e-3)
    assert report["b"].total.biased is True
    assert report["same"].total.bias == 0
    assert report["same"].total.biased is False
    assert np.sqrt(report["a"].total.variance / 20_000) > 5e-3


@pytest.mark.statistical
def test_the_reference_may_come_last_and_is_measured_with_its_error():
    gradients = {name: of(getattr(ge, name)()) for name in ("straight_through", "disarm", "arm")}
    report = diagnose(gradients, jnp.float32(LOGIT), reference="arm", num_draws=200_000)
    bias = P * (1 - P) * (2 * P - 1)
    leaf = report["straight_through"].total
    assert abs(leaf.bias - bias) < 4.5 * leaf.bias_error  # pyright: ignore[reportOperatorIssue]
    assert leaf.bias_error < 0.02 * bias
    assert report["disarm"].total.biased is False
    assert list(report.estimates) == list(gradients)


def test_without_either_there_is_no_bias():
    report = diagnose({"rebar": of(ge.rebar())}, LOGIT)
    assert report["rebar"].total.bias is None
    assert report.rows[0]["bias"] is None
    assert "unknown without" in str(report)


# ---- Streaming -----------------------------------------------------------------------------


def test_chunks_are_one_batch(x64):
    """Against numpy on all draws at once, with a last chunk that is not full."""
    fn = lambda key: {"a": jax.random.uniform(key, (3,)) ** 2 + 1e4, "b": jax.random.uniform(key)}
    report = diagnose({"fn": fn}, num_draws=203, chunk_size=20)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(203, dtype=jnp.uint32))
    draws = jax.vmap(fn)(keys)
    for name, leaf in report["fn"].leaves.items():
        x = np.asarray(draws[name])
        m4 = np.mean((x - x.mean(axis=0)) ** 4, axis=0)
        variance = x.var(axis=0, ddof=1)
        np.testing.assert_allclose(leaf.mean, x.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(leaf.variance, variance, rtol=1e-9)
        np.testing.assert_allclose(leaf.variance_error, np.sqrt((m4 - variance**2) / 203))
    joined = np.concatenate([draws["a"], draws["b"][:, None]], axis=1)
    np.testing.assert_allclose(report["fn"].total.mean, joined.mean(axis=0))
    one_by_one = diagnose({"fn": fn}, num_draws=203, chunk_size=1)
    for name, leaf in one_by_one["fn"].leaves.items():
        np.testing.assert_allclose(leaf.variance, report["fn"].leaves[name].variance, rtol=1e-8)


def test_a_chunk_is_no_larger_than_what_is_drawn():
    assert diagnose(NORMAL, num_draws=7).chunk_size == 7


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_single_precision_loses_nothing(scale, shift):
    fn = lambda key: scale * (shift + jax.random.normal(key))
    leaf = diagnose({"fn": fn}, exact=scale * shift, num_draws=200_000)["fn"].total
    assert leaf.biased is False
    assert leaf.variance / scale**2 == pytest.approx(1, abs=0.02)
    assert leaf.variance_error / scale**2 == pytest.approx(math.sqrt(2 / 200_000), rel=0.05)


def test_memory_does_not_grow_with_the_number_of_draws(monkeypatch):
    """What is compiled, and held between chunks, is the same for a million draws as for few."""
    seen, compiled = set(), []

    def add(self, draws, count):
        seen.update(x.shape for x in jax.tree.leaves(draws))
        held = [m.nbytes for moments in self.leaves for m in moments[1:]]
        assert sum(held) <= 4 * 8 * 50
        keep(self, draws, count)

    keep = Stream.add
    monkeypatch.setattr(Stream, "add", add)
    original = _diagnostics._chunk_of
    monkeypatch.setattr(
        _diagnostics,
        "_chunk_of",
        lambda *a, **k: compiled.append(original(*a, **k)) or compiled[-1],
    )
    fn = lambda key: jax.random.uniform(key, (50,))
    for num_draws in (1_000, 30_000):
        diagnose({"fn": fn}, num_draws=num_draws, chunk_size=100)
    assert seen == {(100, 50)}
    sizes = [
        jax.jit(chunk).lower(KEY, np.uint32(0), ()).compile().memory_analysis().temp_size_in_bytes
        for chunk in compiled
    ]
    assert sizes[0] == sizes[1] < 10 * 100 * 50 * 4


def test_time_is_per_gradient(monkeypatch):
    now = iter(np.arange(1000.0))
    monkeypatch.setattr(_diagnostics.time, "perf_counter", lambda: next(now))
    report = diagnose({"a": lambda key: jax.random.normal(key)}, num_draws=50, chunk_size=20)
    assert report["a"].seconds == 1 / 20
    assert report.rows[0]["variance_x_time"] == pytest.approx(report["a"].total.variance / 20)
    # Two begin and end each of six: one to warm up, and five that count.
    assert next(now) == 12


# ---- Cost evaluations ----------------------------------------------------------------------

EVALUATIONS = {
    "score_function": (ge.score_function(), 1),
    "score_function_4": (ge.score_function(num_samples=4, baseline="leave_one_out"), 4),
    "optimal": (ge.score_function(num_samples=5, baseline="optimal"), 5),
    "straight_through": (ge.straight_through(), 1),
    "gumbel_rao": (ge.gumbel_rao(0.5, num_samples=7), 1),
    "arm": (ge.arm(), 2),
    "disarm": (ge.disarm(), 2),
    "muprop": (ge.muprop(), 2),
    "rebar": (ge.rebar(), 2),
    "rebar_independent": (ge.rebar(coupled=False), 3),
    "relax": (ge.relax(lambda w, x: w * jnp.sum(x), 0.5), 1),
    "enumeration": (ge.enumeration(), 2**3),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_cost_evaluations(name):
    sampler, expected = EVALUATIONS[name]
    args = (Bernoulli(jnp.zeros(3)),)
    counted = _diagnostics._count_evaluations(sampler, args, lambda b: jnp.sum(b) ** 2)
    assert counted == expected


def test_cost_evaluations_in_loops_and_branches():
    def sampler(estimate):
        return ge.Sampler("mine", estimate=lambda key, dist, cost: estimate(cost, dist.logits))

    def count(estimate):
        args = (Bernoulli(0.0),)
        return _diagnostics._count_evaluations(sampler(estimate), args, lambda b: b**2)

    def in_scan(cost, l):
        return jax.lax.scan(lambda c, _: (c + jnp.sum(jax.vmap(cost)(c + X)), None), l, length=5)[0]

    X = jnp.arange(3.0)
    assert count(in_scan) == 15
    assert count(lambda cost, l: jax.lax.cond(l > 0, cost, lambda l: cost(2 * l), l)) == 1
    assert count(lambda cost, l: jax.lax.cond(l > 0, cost, lambda l: l, l)) is None
    loop = lambda cost, l: jax.lax.while_loop(lambda c: c < 9.0, lambda c: cost(c) + 1, 2.0) + l
    assert count(loop) is None
    assert count(lambda cost, l: jax.jit(cost)(l) + jax.checkpoint(lambda l: l)(l)) == 1


def test_cost_evaluations_of_a_function_are_unknown():
    report = diagnose({"disarm": of(ge.disarm())}, 0.0, num_draws=10)
    assert report["disarm"].cost_evaluations is None


# ---- What is given -------------------------------------------------------------------------


def test_samplers_and_functions_together():
    dist = Normal(jnp.zeros(2), jnp.ones(2))
    handwritten = lambda key, dist: Normal(dist.loc * 0 + 2.0, dist.scale * 0 + 2.0)
    report = diagnose(
        {"reparameterize": ge.reparameterize(), "by_hand": handwritten},
        dist,
        cost=lambda x: jnp.sum((x + 1) ** 2),
        reference="by_hand",
    )
    estimate = report["reparameterize"]
    assert list(estimate.leaves) == ["loc", "scale"]
    assert estimate.total.biased is False
    assert estimate.cost_evaluations == 1
    assert report["by_hand"].cost_evaluations is None


class Bits(NamedTuple):
    """Equal bits, with an integer among the leaves."""

    logit: jax.Array
    num: jax.Array

    def sample(self, key, shape=()):
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logit), (*shape, 3)).astype(float)

    def log_prob(self, x):
        return jnp.where(jnp.arange(3) < self.num, Bernoulli(self.logit).log_prob(x), 0.0)


def test_an_integer_parameter_has_no_gradient():
    expected = lambda bits: bits.num * jax.nn.sigmoid(bits.logit)
    bits = Bits(jnp.float32(0.3), jnp.int32(3))
    with jax.numpy_dtype_promotion("standard"):
        exact = jax.grad(expected, allow_int=True)(bits)
    report = diagnose({"sf": ge.score_function()}, bits, cost=jnp.sum, exact=exact)
    assert list(report["sf"].leaves) == ["logit"]
    assert report["sf"].total.biased is False


def test_an_empty_leaf_is_not_biased():
    empty = Bernoulli(jnp.zeros((0,)))
    gradients = {"rebar": ge.rebar(), "exact": ge.enumeration()}
    report = diagnose(gradients, empty, cost=jnp.sum, reference="exact", num_draws=100)
    assert report["rebar"].total.biased is False


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    fn = lambda key: jax.random.normal(key).astype(dtype)
    leaf = diagnose({"fn": fn}, exact=0.0)["fn"].total
    assert leaf.biased is False
    assert leaf.variance == pytest.approx(1, abs=0.05)


def test_legacy_keys_reach_the_functions():
    def fn(key):
        assert key.dtype == jnp.uint32
        return jax.random.normal(key)

    leaf = ge.diagnose({"fn": fn}, jax.random.PRNGKey(0), num_draws=100)["fn"].total
    typed = ge.diagnose({"fn": lambda key: jax.random.normal(key)}, KEY, num_draws=100)["fn"].total
    assert leaf.mean == typed.mean


def test_gradients_that_are_not_finite_are_told():
    fn = lambda key, x: {"x": x / jnp.floor(10 * jax.random.uniform(key)), "y": x}
    report = diagnose({"fn": fn}, 1.0, num_draws=5_000, exact={"x": 1.0, "y": 1.0})
    number = report["fn"].num_nonfinite
    assert 350 < number < 650
    assert f"! fn: {number} of 5,000 gradients are not finite." in str(report)
    assert math.isnan(report["fn"].leaves["x"].variance)
    assert report["fn"].leaves["x"].biased is True
    assert report["fn"].leaves["y"].biased is False
    assert report.as_dict()["rows"][0]["variance"] is None


# ---- The report ----------------------------------------------------------------------------


def test_the_table(toy):
    lines = str(toy).splitlines()
    assert repr(toy) == str(toy)
    assert lines[0].split("  ")[0] == "estimator"
    rows = {line.split()[0]: line for line in lines[2:6]}
    assert list(rows) == list(toy.estimates)
    assert " ! " in rows["scaled"]
    assert "!" not in rows["score_function"]
    assert rows["enumeration"].split()[-1] == "0"
    assert "1,000,000 draws in chunks of 1,000" in str(toy)
    assert "! straight_through: biased" in str(toy)
    assert max(map(len, lines)) <= 100


def test_rows_for_each_leaf_and_all():
    fn = lambda key, w: {"w": w + jax.random.normal(key, (2,)), "b": jax.random.normal(key)}
    report = diagnose({"fn": fn}, jnp.ones(2), exact={"w": jnp.ones(2), "b": jnp.zeros(())})
    assert [row["leaf"] for row in report.rows] == ["b", "w", "(all)"]
    b, w, every = report.rows
    assert every["variance"] == pytest.approx(b["variance"] + w["variance"])
    assert every["bias"] == pytest.approx(math.hypot(b["bias"], w["bias"]))
    assert b["bias"] == float(report["fn"].leaves["b"].bias)  # pyright: ignore[reportArgumentType]
    assert w["snr"] == pytest.approx(1, rel=0.05)
    assert "(all)" in str(report)


def test_the_dict_is_json(toy):
    text = json.dumps(toy.as_dict(), allow_nan=False)
    read = json.loads(text)
    row = read["rows"][0]
    assert row["estimator"] == "score_function"
    assert row["coordinates"]["variance"] == row["variance"]
    assert row["cost_evaluations"] == 1
    assert read["against"] == "exact"
    assert read["rows"][3]["snr"] is None


@pytest.mark.parametrize("against", ["exact", "reference", "neither"])
def test_the_plot(against, toy, tmp_path):
    report = toy
    if against != "exact":
        fn = lambda key: {"a": jax.random.uniform(key, (3,)), "b": jnp.zeros(())}
        options = {"reference": "x"} if against == "reference" else {}
        report = diagnose({"x": fn, "y": fn}, num_draws=100, **options)
    figure = report.plot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
    assert len(figure.axes) == (2 if against == "neither" else 3)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(report.estimates)


def test_neither_matplotlib_nor_rich_is_needed_but_to_plot():
    program = """
import sys
sys.modules["matplotlib"] = sys.modules["rich"] = None
import gradest as ge, jax
report = ge.diagnose({"f": lambda key: jax.random.normal(key)}, jax.random.key(0), num_draws=9)
print(report)
try:
    report.plot()
except ModuleNotFoundError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'pip install "gradest[examples]"' in run.stdout


# ---- Errors --------------------------------------------------------------------------------

SAMPLER = {"rebar": ge.rebar()}
BIT = Bernoulli(0.0)


@pytest.mark.parametrize(
    ("gradients", "args", "options", "error", "message"),
    [
        ({}, (), {}, ValueError, "gradients: expected a dict with at least one"),
        (ge.rebar(), (), {}, ValueError, "gradients: expected a dict with at least one"),
        ({"f": 3}, (), {}, TypeError, "a function of a key or a Sampler for 'f', got int"),
        (NORMAL, (), {"num_draws": 1}, ValueError, "num_draws: expected an integer of at least 2"),
        (NORMAL, (), {"num_draws": 1e3}, TypeError, "num_draws: expected an integer"),
        (NORMAL, (), {"chunk_size": 0}, ValueError, "chunk_size: expected an integer of at least"),
        (NORMAL, (), {"chunk_size": "all"}, TypeError, "chunk_size: expected an integer"),
        (SAMPLER, (BIT,), {}, TypeError, "'rebar' is a sampler, .* got 1 arguments and no cost"),
        (SAMPLER, (BIT, 3), {"cost": cost}, TypeError, "got 2 arguments and a cost"),
        (NORMAL, (), {"cost": cost}, TypeError, "cost: expected none, since no gradient is a"),
        (NORMAL, (), {"exact": [0.0]}, ValueError, "exact: expected the structure and shapes of"),
        (NORMAL, (), {"exact": np.zeros(2)}, ValueError, r"exact: .* got \{'gradient': \(2,\)\}"),
        (NORMAL, (), {"reference": "g"}, ValueError, r"reference: expected one of \['f'\], got"),
        (NORMAL, (), {"reference": "f", "exact": 0.0}, ValueError, "exact, reference: expected"),
        (
            {**NORMAL, "g": lambda key: jax.random.normal(key, (2,))},
            (),
            {},
            ValueError,
            "the gradient 'g': expected the structure and shapes of the gradient 'f'",
        ),
        ({"f": lambda key: 3}, (), {}, TypeError, "expected 'f' to return a pytree of floating"),
        ({"f": lambda key: ()}, (), {}, TypeError, "expected 'f' .* got no array"),
    ],
)
def test_error(gradients, args, options, error, message):
    with pytest.raises(error, match=message):
        diagnose(gradients, *args, **options)


def test_error_for_what_is_no_key():
    with pytest.raises(TypeError, match="key: expected a PRNG key"):
        ge.diagnose(NORMAL, 0)


def test_error_under_a_transformation():
    with pytest.raises(TypeError, match="diagnose: expected concrete arguments, got a traced"):
        jax.jit(lambda key: ge.diagnose(NORMAL, key))(KEY)


def test_an_error_in_a_gradient_names_it():
    draw = lambda key, l: jax.grad(lambda l: ge.rebar()(key, Bernoulli(l)))(l)
    with pytest.raises(ge.UnestimatedGradientError) as info:
        diagnose({"wrong": draw}, 0.0)
    assert "(Raised while diagnosing the gradient 'wrong'.)" in info.value.__notes__
