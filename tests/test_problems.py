"""The problems: their data, their losses against exact sums, and how they are trained."""

import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import records
from gradest.problems import (
    LATENTS,
    ProblemError,
    cases,
    compare,
    data,
    methods,
    properties,
    training,
)
from gradest.problems.toy import Toy, exact_gradient, expected_cost, score_function_variance
from gradest.problems.vae import VAE

SCORE = records.ESTIMATORS["score_function"]


def method_named(name):
    return next(method for method in methods.METHODS if method.name == name)


# ---- The table of methods ------------------------------------------------------------------


def test_every_estimator_that_draws_discrete_variables_trains():
    """But for those of a bound, and those that are left out by name."""
    names = [method.name for method in methods.METHODS]
    assert len(set(names)) == len(names)
    for latent, kind in (("bernoulli", "Bernoulli"), ("categorical", "OneHotCategorical")):
        trained = {method.record.name for method in methods.trainable(latent)}
        drawn = {r.name for r in records.ESTIMATORS.values() if kind in r.distributions}
        left_out = {"gumbel_max", "vimco", "sum_and_sample"}
        assert drawn - trained == left_out | ({"measure_valued"} - trained)
        assert trained <= drawn
    assert "measure_valued" in {method.name for method in methods.trainable("bernoulli")}


def test_methods_come_from_the_records():
    """As they are, with what their arguments are; or with a temperature that is annealed."""
    plain, annealed = method_named("unordered_set"), method_named("gumbel_rao")
    assert plain.about == "unordered_set(num_samples=4)"
    assert repr(plain.sampler()) == plain.about
    assert annealed.annealed == ("temperature",)
    assert annealed.initial_control(jax.random.key(0), ()) == {"temperature": 1.0}
    assert [m.name for m in methods.METHODS if m.enumerates] == ["enumeration"]


def test_methods_are_chosen_by_name():
    chosen = methods.choose(["rebar", "score_function", "rebar"], "bernoulli")
    assert [method.name for method in chosen] == ["rebar", "score_function"]
    everything = [method.name for method in methods.choose(None, "categorical")]
    assert "score_function_loo" in everything
    assert "reparameterize" not in everything
    with pytest.raises(ProblemError, match="Did you mean 'straight_through'"):
        methods.choose(["straight-trough"], "bernoulli")


def test_a_control_variate_may_depend_on_the_draws_shape():
    method = methods.Method(
        "name", SCORE, ge.gumbel_softmax, "", control=lambda key, shape: {"w": np.ones(shape, int)}
    )
    control = method.initial_control(jax.random.key(0), (2, 3))
    assert control["w"].shape == (2, 3)
    assert control["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "latent"), [(m.name, latent) for latent in LATENTS for m in methods.trainable(latent)]
)
def test_losses_are_strict_about_types(name, latent):
    """Under the strict promotion of these tests, which optax's training has to do without."""
    method = method_named(name)
    problem = VAE(few_images(), latent, 2)
    params = training.initial_params(problem, method, jax.random.key(0))
    gradient = jax.grad(training.minibatch_loss(problem, method))
    out = jax.eval_shape(gradient, params, jax.random.key(1), problem.examples[:3])
    assert jax.tree.map(lambda x: x.shape, out) == jax.tree.map(jnp.shape, params)


# ---- Data ----------------------------------------------------------------------------------


def few_images(num_pixels=6):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (40, num_pixels), dtype=np.uint8)
    return data.Images("few", rows[:30], rows[30:])


def test_digits():
    images = data.load_digits()
    assert images.train.shape == (1438, 64)
    assert images.test.shape == (359, 64)
    for rows in (images.train, images.test):
        assert rows.dtype == np.uint8
        assert set(np.unique(rows)) == {0, 1}
    assert np.array_equal(images.train, data.load_digits().train)
    # A fair split: both parts have the same mean image.
    assert abs(images.train.mean(axis=0) - images.test.mean(axis=0)).max() < 0.1


def write_mnist(directory, **arrays):
    np.savez_compressed(directory / data.MNIST_FILE, **arrays)


def sorted_images(count):
    """As many images, those of class c with the pixels from 78 c on, sorted by class."""
    labels = np.arange(count) * 10 // count
    pixels = np.arange(784) // 78
    return (pixels[None] == labels[:, None]).astype(np.uint8), labels


def test_mnist_is_unpacked_and_shuffled(tmp_path):
    splits = {name: sorted_images(count)[0] for name, count in [("train", 500), ("test", 200)]}
    splits["valid"] = splits["test"]
    write_mnist(tmp_path, **{name: np.packbits(x, axis=1) for name, x in splits.items()})
    images = data.load_binarized_mnist(tmp_path)
    assert images.name == "mnist"
    for name, rows in (("train", images.train), ("test", images.test)):
        assert rows.dtype == np.uint8
        # The same images ...
        assert np.array_equal(np.unique(rows, axis=0), np.unique(splits[name], axis=0))
        assert np.array_equal(rows.sum(axis=0), splits[name].sum(axis=0))
        # ... of which a first part has every class.
        assert len(np.unique(rows[:60], axis=0)) == 10
    assert np.array_equal(images.test, data.load_binarized_mnist(str(tmp_path)).test)


PACKED = np.zeros((5, 98), np.uint8)
WRONG_ARRAYS = {
    "missing": ({"train": PACKED}, "expected the arrays train, valid and test"),
    "shape": ({"train": PACKED, "test": PACKED[:, :50]}, r"expected test .* shape \(5, 50\)"),
    "rank": ({"train": PACKED[0], "test": PACKED}, "expected train"),
    "type": ({"train": PACKED.astype(float), "test": PACKED}, "got float64"),
    "empty": ({"train": PACKED, "test": PACKED[:0]}, "expected test"),
    "objects": ({"train": PACKED, "test": np.array([None])}, "damaged"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_mnist_of_other_arrays(name, tmp_path):
    arrays, message = WRONG_ARRAYS[name]
    write_mnist(tmp_path, **arrays)
    with pytest.raises(ProblemError, match=message):
        data.load_binarized_mnist(tmp_path)


def test_mnist_that_is_damaged(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (200, 98), dtype=np.uint8)
    write_mnist(tmp_path, train=rows, valid=rows, test=rows)
    path = tmp_path / data.MNIST_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProblemError, match="or a part of one"):
        data.load_binarized_mnist(tmp_path)
    path.write_bytes(whole[:1000] + bytes(2000) + whole[3000:])
    with pytest.raises(ProblemError, match="damaged"):
        data.load_binarized_mnist(tmp_path)


@pytest.mark.skipif("GRADEST_DATA" not in os.environ, reason="GRADEST_DATA is not set")
def test_mnist_itself():
    images = data.load_binarized_mnist(os.environ["GRADEST_DATA"])
    assert images.train.shape == (50_000, 784)
    assert images.test.shape == (10_000, 784)
    assert 0.1 < images.train.mean() < 0.16
    # Sorted by class in the file: halves of a shuffled split look alike.
    halves = images.test[:5000].mean(axis=0), images.test[5000:].mean(axis=0)
    assert abs(halves[0] - halves[1]).max() < 0.06


def test_only_feasible_enumerations_take_part():
    chosen = methods.choose(["enumeration", "rebar"], "bernoulli")
    kept, left_out = compare.feasible(VAE(few_images(), "bernoulli", 10), chosen)
    assert [method.name for method in kept] == ["enumeration", "rebar"]
    assert not left_out
    kept, left_out = compare.feasible(VAE(few_images(), "categorical", 20), chosen)
    assert [method.name for method in kept] == ["rebar"]
    assert "10^20 = 100,000,000,000,000,000,000 configurations" in left_out["enumeration"]


# ---- The autoencoder against exact sums ----------------------------------------------------


def support(problem):
    """Every draw, in rows."""
    if problem.latent == "bernoulli":
        return jnp.array(list(itertools.product([0.0, 1.0], repeat=problem.size)))
    picks = itertools.product(range(problem.num_values), repeat=problem.size)
    return jnp.stack([jnp.eye(problem.num_values)[jnp.array(pick)] for pick in picks])


def exact_negative_elbo(problem, params, x):
    """E_q[log q(z) - log p(z) - log p(x | z)], summed over all z."""
    draws, q = support(problem), problem.posterior(params, x)
    log_q = jax.vmap(lambda z: jnp.sum(q.log_prob(z)))(draws)
    log_p = -jnp.log(float(len(draws)))
    log_likelihood = jax.vmap(lambda z: problem.log_likelihood(params, x, z))(draws)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p - log_likelihood))


@pytest.fixture(params=[("bernoulli", 4), ("categorical", 2)], ids=lambda param: param[0])
def small(request):
    """A small autoencoder, its parameters away from their initial values, and an image."""
    problem = VAE(few_images(), *request.param)
    params = problem.init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return problem, jax.tree.unflatten(treedef, noisy), jnp.asarray(problem.examples[3])


def test_the_loss_is_the_negative_elbo(small):
    problem, params, x = small

    @jax.jit
    @jax.value_and_grad
    @ge.expectation
    def loss(params, key, x):
        return problem.loss(params, key, x, ge.enumeration())

    exact = jax.jit(jax.value_and_grad(lambda params, x: exact_negative_elbo(problem, params, x)))
    expected, expected_grad = exact(params, x)
    value, grad = loss(params, jax.random.key(2), x)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for g, e in zip(jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-5)


@pytest.mark.statistical
def test_the_elbo_is_evaluated_with_exact_draws(small):
    problem, params, _ = small
    each = jax.jit(jax.vmap(lambda x: exact_negative_elbo(problem, params, x)))
    splits = {"train_elbo": problem.images.train, "test_elbo": problem.images.test}
    expected = {name: -np.mean(each(images)) for name, images in splits.items()}
    keys = jax.random.split(jax.random.key(2), 60)
    evaluated = [problem.evaluate(params, key) for key in keys]
    for name, value in expected.items():
        draws = np.array([metrics[name] for metrics in evaluated])
        error = draws.std(ddof=1) / math.sqrt(len(draws))
        assert abs(draws.mean() - value) < 4.5 * error
        assert error < 0.01 * abs(value)
        # It would be noticed if the ELBO was off by a little.
        assert abs(draws.mean() * 1.06 - value) > 4.5 * error


# ---- The toy: closed forms -----------------------------------------------------------------


def test_the_closed_forms_are_those_of_the_two_outcomes():
    logit, target = jnp.float32(0.7), 0.3
    p = jax.nn.sigmoid(logit)
    f1, f0 = (1 - target) ** 2, target**2
    gradient = jax.grad(lambda l: expected_cost(l, target))(logit)
    assert float(expected_cost(logit, target)) == pytest.approx(float(p * f1 + (1 - p) * f0))
    assert float(exact_gradient(logit, target)) == pytest.approx(float(gradient))
    second_moment = p * (f1 * (1 - p)) ** 2 + (1 - p) * (f0 * p) ** 2
    variance = second_moment - gradient**2
    assert float(score_function_variance(logit, target)) == pytest.approx(float(variance))


def measure(sampler, toy):
    """Bias and variance in standard errors, and the latter's relative standard error."""
    method = methods.Method("name", SCORE, sampler, "")
    loss = training.minibatch_loss(toy, method)
    params = {**toy.init(jax.random.key(0)), "control": {}}
    found = toy.measure(loss, params, jax.random.key(1))
    expected = score_function_variance(toy.start, toy.target)
    return (
        abs(found["bias"]) / found["bias_se"],
        abs(found["gradient_variance"] - expected) / found["gradient_variance_se"],
        found["bias_se"] / found["exact_gradient"],
        found["gradient_variance_se"] / expected,
    )


@pytest.mark.statistical
def test_measured_bias_and_variance_are_those_of_the_closed_form():
    toy = Toy(target=0.3, start=0.5)
    bias, variance, bias_power, variance_power = measure(ge.score_function, toy)
    assert bias < 4.5
    assert variance < 4.5
    assert bias_power < 0.02
    assert variance_power < 0.02


@pytest.mark.statistical
def test_a_gradient_that_is_too_large_is_noticed():
    def scaled():
        sampler = ge.score_function()
        scale = lambda x: 1.1 * x - 0.1 * jax.lax.stop_gradient(x)
        estimate = lambda key, dist, cost: scale(sampler.expect(key, dist, cost))
        return ge.Sampler("scaled", estimate=estimate)

    bias, variance, *_ = measure(scaled, Toy(target=0.3, start=0.5))
    assert bias > 4.5
    assert variance > 4.5


@pytest.mark.statistical
def test_the_cases_of_the_table_are_exact():
    """Against many draws of numpy's."""
    rng = np.random.default_rng(0)
    *discrete, normal = cases.all_cases()
    loc, scale = np.asarray(normal.params)
    draws = [(loc + scale * rng.standard_normal((200_000, 2))).astype(np.float32)]
    for case in discrete:
        probs = np.asarray(case.probs(case.params), float)  # pyright: ignore[reportAttributeAccessIssue]
        assert probs.sum() == pytest.approx(1, abs=1e-6)
        index = rng.choice(len(probs), 200_000, p=probs / probs.sum())
        draws.insert(len(draws) - 1, np.asarray(case.support)[index])  # pyright: ignore[reportAttributeAccessIssue]
    for case, xs in zip([*discrete, normal], draws, strict=True):
        for name, exact in case.expected_costs(case.params).items():
            values = np.asarray(jax.jit(jax.vmap(cases.COSTS[name]))(xs), float)
            assert abs(values.mean() - exact) < 4.5 * values.std() / len(xs) ** 0.5
        assert case.hard(xs).all()
        counts, masses = case.bins(xs)
        assert counts.sum() == len(xs)
        assert masses.sum() == pytest.approx(1, abs=1e-6)
        assert properties._chi_squared(counts, masses) > 1e-4
        # A bin that gets a tenth of another's draws is noticed.
        moved = counts[0] // 10
        counts[0], counts[1] = counts[0] - moved, counts[1] + moved
        assert properties._chi_squared(counts, masses) < 1e-4


# ---- Training ------------------------------------------------------------------------------


@pytest.fixture
def standard_promotion():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_jang_schedule():
    steps = 2000
    schedule, rate = training.jang_schedule(steps), 2 * math.log(2) / steps
    for k in range(0, steps + 1, 50):
        held = k // 100 * 100
        expected = max(0.5, math.exp(-rate * held))
        assert float(schedule(jnp.int32(k))) == pytest.approx(expected, rel=1e-5)  # pyright: ignore[reportArgumentType]


def test_training_is_followed_step_by_step(standard_promotion):
    method, seen = method_named("gumbel_softmax"), []
    for run in training.train(Toy(num_measured=100), method, steps=6, seed=0, log_points=3):
        seen.append((run.done, run.status))
    assert seen == [(i, "interrupted") for i in range(6)] + [(6, "finished")]
    assert run.history["step"] == [0, 2, 4, 6]  # pyright: ignore[reportPossiblyUnboundVariable]
    assert all(len(values) == 4 for values in run.history.values())  # pyright: ignore[reportPossiblyUnboundVariable]
    # The first step compiles.
    assert len(run.step_seconds) == 5  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.ms_per_step == 1e3 * np.median(run.step_seconds)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.params["control"]["temperature"] == 0.5  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.last("gradient_variance") == run.measured["gradient_variance"]  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.last("cost") == run.history["cost"][-1]  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_run_that_has_not_begun():
    run = next(training.train(Toy(), method_named("rebar"), steps=3, seed=0))
    assert run.done == 0
    assert run.status == "interrupted"
    assert math.isnan(run.ms_per_step)
    assert math.isnan(run.last("cost"))


@pytest.mark.parametrize("latent", LATENTS)
def test_every_method_starts_from_the_same_model(latent):
    problem = VAE(few_images(), latent, 2)
    starts = []
    for method in methods.trainable(latent):
        params = training.initial_params(problem, method, jax.random.key(0))
        del params["control"]
        starts.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]))
    assert all(np.array_equal(start, starts[0]) for start in starts)


def test_summed_variance():
    rng = np.random.default_rng(0)
    gradients = [{"a": rng.normal(size=(2, 3)), "b": rng.normal()} for _ in range(20)]
    flat = np.array([[*g["a"].ravel(), g["b"]] for g in gradients])
    expected = flat.var(axis=0, ddof=1).sum()
    assert training.summed_variance(gradients) == pytest.approx(expected)
