"""The reproductions of published results: what they train, and how they report."""

import importlib
import json
import math
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from methods import compiled

import gradest as ge
from gradest import distributions as dists

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

main = importlib.import_module("benchmarks.published.__main__")
suite, relax_toy, polynomial, blr, sbn = (
    importlib.import_module(f"benchmarks.published.{name}")
    for name in ("_suite", "relax_toy", "polynomial", "blr", "rebar_sbn")
)
measure = importlib.import_module("benchmarks._measure")


@pytest.fixture(autouse=True)
def standard_promotion():
    """As users have it, optax among them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# ---- The RELAX toy -------------------------------------------------------------------------


def test_toy_with_targets_close_to_one_half():
    """At t = 0.499 a gradient of 2.5e-4 is found, with a variance of 1e-6."""
    log_variances, losses = relax_toy.train("RELAX", 0.499, num_steps=6000, num_seeds=8)
    assert (np.median(log_variances, axis=0) < -8).all()
    assert 0.2490 <= np.median(losses) <= 0.2493


def test_toy_is_solved_sooner_by_relax():
    _, losses = relax_toy.train("RELAX", 0.45, num_steps=3000, num_seeds=8)
    _, losses_of_rebar = relax_toy.train("REBAR", 0.45, num_steps=3000, num_seeds=20)
    np.testing.assert_allclose(np.median(losses), 0.2032, atol=4e-4)
    np.testing.assert_allclose(np.median(losses_of_rebar), 0.2073, atol=1e-3)


# ---- Polynomial programming ----------------------------------------------------------------


@pytest.mark.parametrize("power", polynomial.PUBLISHED)
def test_polynomial_is_expected_exactly(power):
    logits = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2) ** 2
    cost = lambda z: polynomial.cost(power, z)
    want = oracles.expectation(dists.OneHotCategorical(logits), cost)
    np.testing.assert_allclose(polynomial.expected(power, logits), want, rtol=1e-5)


def test_polynomial_is_minimised():
    """From 0.2525, in a hundred steps."""
    exact, reinmax, reinforce = (
        polynomial.train(name, 2.0, 100, 1) for name in ("exact", "ReinMax", "REINFORCE")
    )
    assert exact < reinmax < reinforce < 0.2525
    assert exact < 0.2525 - 2e-3


# ---- Bayesian logistic regression ----------------------------------------------------------


def test_exact_elbo():
    x, y = (jnp.asarray(a, jnp.float32) for a in blr.load())
    params = blr.start(x.shape[1])
    np.testing.assert_allclose(blr.exact_elbo(params, x, y), blr.START, atol=blr.TOLERANCE)
    params = {"loc": 0.1 * jnp.cos(jnp.arange(31.0)), "log_scale": jnp.full(31, -1.5)}

    def elbo(key):
        w = blr.posterior(params).sample(key)
        return jnp.sum(jax.nn.log_sigmoid(x @ w * y)) - blr.divergence(params)

    draws = compiled(jax.vmap(elbo))(jax.random.split(jax.random.key(0), 20_000))
    error = draws.std() / math.sqrt(len(draws))
    assert error < 0.005 * abs(draws.mean())
    assert abs(draws.mean() - blr.exact_elbo(params, x, y)) < 4.5 * error


def test_regression_is_trained():
    ours, _ = blr.train("pathwise", 200, 1)
    assert ours > -120


# ---- The sigmoid belief net ----------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("GRADEST_DATA"), reason="GRADEST_DATA names no images")
def test_belief_net_is_trained():
    epochs = list(sbn.train(sbn.rebar, seed=0, num_steps=40))
    elbos = [elbo for elbo, _, _ in epochs]
    assert elbos[0] > -500
    assert elbos[-1] > elbos[0] + 15
    assert all(math.isfinite(log_variance) for _, log_variance, _ in epochs)


def test_belief_net_has_the_gradient_of_its_elbo(monkeypatch):
    """Two dependent layers of three units, against the sum over all 64 configurations."""
    monkeypatch.setattr(sbn, "PIXELS", 4)
    monkeypatch.setattr(sbn, "UNITS", 3)
    params = sbn.initial(jax.random.key(1))
    mean = jnp.array([0.3, 0.6, 0.5, 0.2])
    image = jnp.array([1.0, 0.0, 1.0, 1.0])

    def loss(make):
        def of_model(model, key):
            of = {**params, "model": model}
            return ge.expectation(lambda key: sbn.negative_elbo(make, mean, of, key, image))(key)

        return of_model

    exact = jax.grad(loss(lambda control, x: ge.enumeration()))(params["model"], jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 20_000)
    gradients = compiled(jax.vmap(jax.grad(loss(sbn.rebar)), in_axes=(None, 0)))
    for g, want in zip(
        jax.tree.leaves(gradients(params["model"], keys)), jax.tree.leaves(exact), strict=True
    ):
        error = np.std(g, axis=0) / math.sqrt(len(keys))
        assert (np.abs(np.mean(g, axis=0) - want) < 4.5 * error + 1e-5).all()


# ---- The command ---------------------------------------------------------------------------


def test_lists_its_names(capsys):
    assert main.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in main.ALL)


def test_unknown_name(capsys):
    assert main.main(["rebar_snb"]) == main.UNUSABLE
    assert "expected names of rebar_sbn, polynomial" in capsys.readouterr().err


def test_too_few_seeds(capsys):
    assert main.main(["--seeds", "0"]) == main.UNUSABLE
    assert "--seeds: expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("ours", "status"), [(1.04, 0), (1.2, main.FAILED)])
def test_status_tells_a_failure(ours, status, monkeypatch, capsys):
    rows = [suite.Row("loss", suite.Target.within(1.0, 0.05), [ours])]
    what = suite.Reproduction("toy", "nobody", lambda seeds, quick: rows, seeds=1)
    monkeypatch.setattr(main, "ALL", {"toy": what})
    assert main.main(["--quick"]) == status
    assert ("NO" in capsys.readouterr().out) == bool(status)


def test_data_that_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.delenv("GRADEST_DATA", raising=False)
    assert main.main(["rebar_sbn"]) == 0
    assert "rebar_sbn: skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "inside", "outside"),
    [
        (suite.Target.within(1.0, 0.1), 1.09, 1.11),
        (suite.Target(-13.0, high=-8.0), -20.0, -7.9),
        (suite.Target(3.0, low=2.0), 5.0, 1.9),
    ],
)
def test_targets(target, inside, outside):
    assert suite.Row("", target, [inside]).passed
    assert not suite.Row("", target, [outside]).passed
    assert not suite.Row("", target, [math.nan]).passed


def test_readme_shows_the_committed_results():
    text = main.README.read_text()
    assert measure.replace_between_markers(text, "published", main.render_all()) == text
    for path in main.RESULTS.glob("published-*.json"):
        result = json.loads(path.read_text())
        assert all(row["passed"] for row in result["rows"]), path.name
