"""The problems: their data, their losses against exact sums, and how they are trained."""

import gzip
import io
import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

import gradest as ge
from gradest import records
from gradest.problems import (
    LATENTS,
    ProblemError,
    cases,
    compare,
    data,
    methods,
    pictures,
    properties,
    ranking,
    report,
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
    "missing": ({"train": PACKED}, "expected the arrays train and test, got train"),
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


def grey_images(count):
    """Pixels that are dark, half lit and lit, in every image."""
    grey = np.repeat(np.array([[0, 128, 255]], np.uint8), count, axis=0)
    return np.repeat(grey, [300, 184, 300], axis=1).reshape(count, 28, 28)


def write_idx(path, images):
    header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
    data = header + images.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


IDX = {"plain": "-idx3-ubyte", "gz": "-idx3-ubyte.gz", "dot": ".idx3-ubyte"}


@pytest.mark.parametrize("form", ["keras", "plain", "gz", "dot", "torchvision", "file"])
def test_grey_mnist_is_read_in_the_common_formats(form, tmp_path):
    train, test = grey_images(200), grey_images(100)
    where = tmp_path
    if form in ("keras", "file"):
        np.savez_compressed(tmp_path / "mnist.npz", x_train=train, x_test=test, y_train=0)
        where = tmp_path / "mnist.npz" if form == "file" else tmp_path
    else:
        directory = tmp_path / "MNIST" / "raw" if form == "torchvision" else tmp_path
        for stem, images in (("train-images", train), ("t10k-images", test)):
            write_idx(directory / (stem + IDX.get(form, "-idx3-ubyte")), images)
    images = data.load_mnist(where)
    assert images.train.shape == (200, 784)
    assert images.test.shape == (100, 784)
    assert images.train.dtype == np.uint8
    # A pixel is lit with its grey level as the probability: 128 / 255.
    assert not images.train[:, :300].any()
    assert images.train[:, -300:].all()
    half = images.train[:, 300:-300].mean()
    assert abs(half - 128 / 255) < 4.5 * 0.5 / (200 * 184) ** 0.5
    assert "probability" in images.source
    assert np.array_equal(images.train, data.load_mnist(where).train)


def test_binarized_mnist_goes_before_grey(tmp_path):
    splits = {"train": PACKED, "valid": PACKED, "test": PACKED}
    write_mnist(tmp_path, **splits)
    np.savez(tmp_path / "mnist.npz", x_train=grey_images(3), x_test=grey_images(2))
    assert data.load_mnist(tmp_path).train.shape == (5, 784)
    assert data.load_mnist(tmp_path / data.MNIST_FILE).train.shape == (5, 784)
    assert data.load_mnist(tmp_path / "mnist.npz").train.shape == (3, 784)


def damage_idx(name, tmp_path):
    """Files that are not what they are called."""
    images = grey_images(2)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    test = tmp_path / "t10k-images-idx3-ubyte.gz"
    write_idx(test, images)
    whole = test.read_bytes()
    match name:
        case "alone":
            test.unlink()
        case "no-gzip":
            test.write_bytes(b"text")
        case "cut":
            test.write_bytes(whole[: len(whole) // 2])
        case "short":
            test.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
        case "labels":
            test.write_bytes(gzip.compress(b"\0\0\x08\x01" + b"\0\0\0\x02" + bytes(40)))
        case "size":
            write_idx(test, images[:, :20])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alone", "t10k-images-idx3-ubyte.gz beside"),
        ("no-gzip", "damaged"),
        ("cut", "damaged"),
        ("short", "an idx file of images"),
        ("labels", "an idx file of images"),
        ("size", r"the test images to be uint8 .* shape \(2, 20, 28\)"),
    ],
)
def test_idx_files_that_are_wrong(name, message, tmp_path):
    damage_idx(name, tmp_path)
    with pytest.raises(ProblemError, match=message):
        data.load_mnist(tmp_path)


@pytest.mark.skipif(
    not os.environ.get("GRADEST_DATA"), reason="GRADEST_DATA names no directory of images"
)
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


def test_training_is_followed(standard_promotion):
    method, seen = method_named("gumbel_softmax"), []
    options = {"steps": 25, "seed": 4, "num_seeds": 2, "log_points": 5}
    for run in training.train(Toy(num_measured=100), method, **options):
        seen.append((run.done, run.status))
    # The first step compiles; then by tens, and to what is logged.
    between = [0, 1, 5, 10, 15, 20]
    assert seen == [(done, "interrupted") for done in between] + [(25, "finished")]
    assert run.seeds == (4, 5)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.history["step"] == [0, 5, 10, 15, 20, 25]  # pyright: ignore[reportPossiblyUnboundVariable]
    for name in ("cost", "gradient_variance"):
        assert np.shape(run.history[name]) == (6, 2)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert len(run.step_seconds) == 5  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.ms_per_step == 1e3 * np.median(run.step_seconds) / 2  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.params["control"]["temperature"].tolist() == [0.5, 0.5]  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.last("gradient_variance") == run.measured["gradient_variance"]  # pyright: ignore[reportPossiblyUnboundVariable]
    costs = run.history["cost"][-1]  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.last("cost") == pytest.approx(np.mean(costs))  # pyright: ignore[reportPossiblyUnboundVariable]
    assert run.deviation("cost") == pytest.approx(np.std(costs, ddof=1))  # pyright: ignore[reportPossiblyUnboundVariable]


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
    """Of each of two seeds."""
    rng = np.random.default_rng(0)
    gradients = [{"a": rng.normal(size=(2, 2, 3)), "b": rng.normal(size=2)} for _ in range(20)]
    flat = np.array([[[*g["a"][s].ravel(), g["b"][s]] for g in gradients] for s in range(2)])
    expected = flat.var(axis=1, ddof=1).sum(axis=-1)
    np.testing.assert_allclose(training.summed_variance(gradients), expected)


def test_a_variance_of_rounding_is_none():
    ulp = np.finfo(np.float32).eps
    gradient = np.array([[3.0, -2.0]], np.float32)
    rounded = [gradient * np.float32(1 + i * ulp) for i in range(3)]
    assert training.summed_variance(rounded) == 0
    assert training.summed_variance([gradient, 1.0001 * gradient]) > 0


# ---- What the seeds tell -------------------------------------------------------------------


def finished(name, elbos, variances=(1.0, 1.0, 1.0), seconds=(0.003,) * 8):
    """A run of three seeds that reached these test ELBOs."""
    run = training.Run(method_named(name), 9, (0, 1, 2)[: len(elbos)], done=9, status="finished")
    run.step_seconds = list(seconds)
    for step, factor in ((0, 2.0), (4, 1.5), (9, 1.0)):
        test = factor * np.array(elbos)
        run.log(step=step, gradient_variance=np.array(variances), test_elbo=test)
    run.measured = {"train_elbo": np.array(elbos), "test_elbo": np.array(elbos)}
    return run


def vae():
    return VAE(few_images(), "bernoulli", 2)


def test_the_best_is_told_apart_seed_by_seed():
    # The seeds differ more than the methods do, but alike.
    low = finished("rebar", [-21.1, -20.1, -19.2])
    high = finished("straight_through", [-21.0, -20.0, -19.1])
    noisy = finished("arm", [-20.9, -20.5, -19.3])
    assert ranking.ranked(vae(), [low, high]) == [high, low]
    assert ranking.best_by_metric(vae(), [low, high]) == [high]
    assert ranking.best_by_metric(vae(), [low, high, noisy]) == [high, noisy]
    high.status = "interrupted"
    assert ranking.ranked(vae(), [low, high]) == [low, high]
    assert ranking.best_by_metric(vae(), [low, high]) == [low]
    assert ranking.best_by_metric(vae(), []) == []


def test_what_the_interval_of_student_says():
    # Mean 1, standard error 0.1: 4.303 of them are the half width of 95% with three values.
    at = lambda mean: mean + 0.1 * np.array([-1, 0, 1]) * 3**0.5
    assert not ranking.differ(at(0.42))
    assert ranking.differ(at(0.44))
    assert not ranking.differ(at(0.44), error=0.1)
    assert not ranking.differ(np.array([5.0]))
    assert ranking.differ(np.array([0.2]), error=0.1)
    assert not ranking.differ(np.array([0.19]), error=0.1)


def test_the_cheapest_is_told_apart_by_variance_and_time():
    one = finished("rebar", [0.0, 0, 0], [1.0, 1.1, 0.9])
    twice = finished("arm", [0.0, 0, 0], [2.0, 2.2, 1.8])
    biased = finished("straight_through", [0.0, 0, 0], [0.1, 0.1, 0.1])
    assert ranking.cheapest([twice, one, biased]) == [one]
    # Not where a step takes now half, now twice the time.
    unsteady = finished("arm", [0.0, 0, 0], [2.0, 2.2, 1.8], [0.002, 0.003, 0.006] * 3)
    assert ranking.cheapest([unsteady, one]) == [one, unsteady]
    exact = [finished(name, [0.0] * 3, [0.0] * 3) for name in ("enumeration", "measure_valued")]
    assert ranking.cheapest([one, *exact]) == exact


@pytest.mark.parametrize("ties", [False, True])
def test_verdicts_say_ties(ties):
    high = finished("straight_through", [-21.0, -20.0, -19.1])
    low = finished("rebar", [-20.9, -20.5, -19.3] if ties else [-21.1, -20.1, -19.2])
    first, second, _ = report.verdicts(vae(), [low, high])
    tie = "a tie of 2, which 3 seeds do not tell apart: straight_through; rebar."
    assert first == "Highest test ELBO: " + (tie if ties else "straight_through.")
    assert second == "Least variance x ms of the unbiased: rebar."
    (line,) = report.verdicts(vae(), [finished("rebar", [-20.0]), finished("arm", [-21.0])])
    assert line.startswith("One seed is no verdict")


@pytest.mark.parametrize("columns", [44, 80])
def test_a_bar_is_one_line(columns, monkeypatch):
    """Whatever the name of the method and however narrow the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    runs = [finished("score_function_loo", [-123.4] * 3), finished("rebar", [-99.0] * 3)]
    bars = compare.Bars(vae(), [run.method for run in runs], 2000)
    for run in runs:
        bars.show(training.Run(run.method, 9))
    bars.show(runs[0])
    with bars._console.capture() as shown:
        bars._console.print(bars._progress)
    lines = [Text.from_ansi(line).plain for line in shown.get().splitlines()]
    assert len(lines) == len(runs)
    assert max(map(len, lines)) <= columns
    assert "-123.40" in lines[0]
    assert "compiling" in lines[1]


def test_narrow_columns_keep_the_metric():
    runs = [finished("score_function_loo", [-21.1, -20.1, -19.2]), finished("arm", [-19.0] * 3)]
    for width, missing in ((44, True), (200, False)):
        console = Console(file=io.StringIO(), width=width)
        report.print_table(console, vae(), runs, {})
        text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert max(map(len, text.splitlines())) <= width
        assert "-20.13±0.95" in text
        assert ("In the JSON" in text) == missing


# ---- Pictures ------------------------------------------------------------------------------


def test_every_method_has_a_look_of_its_own():
    looks = [pictures.look(method) for method in methods.METHODS]
    assert len({look["color"] for look in looks}) == len(looks)
    assert len({str(look["marker"]) for look in looks}) == len(looks)
    for method, look in zip(methods.METHODS, looks, strict=True):
        assert (look["linestyle"] == "-") == method.record.is_unbiased


@pytest.mark.parametrize("seed", range(5))
def test_labels_keep_their_distance_and_order(seed):
    rng = np.random.default_rng(seed)
    wanted = np.sort(np.concatenate([rng.uniform(0, 1, 8), np.full(5, 0.97)]))[::-1]
    places = np.array(pictures.spread_out(wanted.tolist(), 0.05))
    assert np.all(places[:-1] - places[1:] >= 0.05 - 1e-9)
    assert places.max() <= 1 + 1e-9
    assert places.min() >= -1e-9
    # Whom nobody is near stays.
    assert pictures.spread_out([0.9, 0.5], 0.05) == [0.9, 0.5]


def test_names_are_at_the_ends_and_do_not_overlap():
    names = [method.name for method in methods.trainable("bernoulli")]
    rng = np.random.default_rng(0)
    runs = [finished(name, -20 - 0.3 * rng.uniform(size=3)) for name in names]
    # One is far away, and one has no variance.
    runs[0].history["test_elbo"][-1] -= 5
    runs[1].history["gradient_variance"] = [np.zeros(3)] * 3
    for picture in pictures.pictures(vae()):
        figure = pictures.draw(picture, vae(), runs)
        figure.draw_without_rendering()
        panel = figure.axes[1]
        boxes = [text.get_window_extent() for text in panel.texts]
        assert {text.get_text().partition(" (")[0] for text in panel.texts} == {
            run.method.label for run in runs
        }
        boxes.sort(key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert any("(none)" in text.get_text() for text in panel.texts) == picture.log


def test_rounding_does_not_stretch_an_axis():
    cost = 0.2025
    runs = [finished(name, [cost * (1 + i * 1e-7)] * 3) for i, name in enumerate(["arm", "rebar"])]
    for run in runs:
        run.history["test_elbo"] = [run.measured["test_elbo"]] * 3
    low, high = pictures.draw(pictures.pictures(vae())[0], vae(), runs).axes[0].get_ylim()
    assert high - low > 1e-4 * cost
