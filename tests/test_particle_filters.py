"""The page on particle filters, against all 1,024 outcomes of its filter."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import assert_unbiased, assert_variance, definitions, keys

import gradest as ge

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "how-to" / "particle-filters.md"
page = functools.partial(definitions, PAGE)


# ---- All outcomes --------------------------------------------------------------------------


def run(params, outcome, stopped=False):
    """The terms of log Z, and the log-probabilities of the draws: moves, ancestors.

    `outcome` has the states of both particles, then twice their ancestors and their states.
    """
    init, trans, emit = (jax.nn.log_softmax(params[name]) for name in ("init", "trans", "emit"))
    change = lambda l: l - jax.lax.stop_gradient(l) if stopped else jnp.zeros_like(l)
    x, nothing = outcome[:2], jnp.zeros(())
    moves, ancestors = [init[x].sum()], [nothing]
    log_w = emit[x, 0] + change(init[x])
    terms = [jax.nn.logsumexp(log_w) - np.log(2)]
    for at, symbol in ((2, 2), (6, 1)):
        a = outcome[at : at + 2]
        l_a = jax.nn.log_softmax(log_w)[a]
        before, x = x[a], outcome[at + 2 : at + 4]
        l_x = trans[before, x]
        moves.append(l_x.sum())
        ancestors.append(l_a.sum())
        log_w = emit[x, symbol] + change(l_a) + change(l_x)
        terms.append(jax.nn.logsumexp(log_w) - np.log(2))
    return jnp.stack(terms), jnp.stack(moves), jnp.stack(ancestors)


@functools.cache
def enumerated():
    """By outcome: probability, terms (3), and the derivatives of terms, moves and ancestors."""
    outcomes = jnp.asarray(list(itertools.product((0, 1), repeat=10)))
    parameters, names = page().params, ("init", "trans", "emit")

    def derivatives(stopped):
        of = jax.jit(jax.vmap(lambda o: jax.jacrev(run)(parameters, o, stopped)))
        flat = lambda d: np.concatenate([np.reshape(d[n], (1024, 3, -1)) for n in names], -1)
        return [flat(d).astype(np.float64) for d in of(outcomes)]

    terms, moves, ancestors = (
        np.asarray(x, np.float64)
        for x in jax.jit(jax.vmap(functools.partial(run, parameters)))(outcomes)
    )
    probability = np.exp((moves + ancestors).sum(axis=1))
    return probability, terms, derivatives(False), derivatives(True)[0]


def moments(gradients):
    """Mean and variance of a gradient that is known for every outcome."""
    probability = enumerated()[0]
    mean = probability @ gradients
    return mean, probability @ (gradients - mean) ** 2


def estimators():
    """For each row of the page's table, the gradient by outcome."""
    probability, terms, (of_terms, of_moves, of_ancestors), stopped = enumerated()
    scores, direct, total = of_moves + of_ancestors, of_terms.sum(axis=1), terms.sum(axis=1)
    to_come = terms[:, ::-1].cumsum(axis=1)[:, ::-1]
    return {
        "at once": direct + total[:, None] * scores.sum(axis=1),
        "baseline": direct + (total - probability @ total)[:, None] * scores.sum(axis=1),
        "stepwise": direct + np.einsum("ot,otd->od", to_come, scores),
        "stopped": stopped.sum(axis=1),
        "no resampling": direct + total[:, None] * of_moves.sum(axis=1),
    }


def variance_with_others(num):
    """Of the gradient of `num` filters whose baselines are the means of the others, stepwise.

    With means c of the costs to come C and their scores s, the gradient of one filter and the
    deviations r = -(C - c)' s of another's from it are uncorrelated, so the variance is
    Var(g + (C - c) s) / n + (E[r_ij^2] + E[r_ij r_ji]) / (n (n - 1)).
    """
    probability, terms, (of_terms, of_moves, of_ancestors), _ = enumerated()
    scores = of_moves + of_ancestors
    to_come = terms[:, ::-1].cumsum(axis=1)[:, ::-1]
    off = to_come - probability @ to_come
    alone = moments(of_terms.sum(axis=1) + np.einsum("ot,otd->od", off, scores))[1]
    covariance = np.einsum("o,ot,ou->tu", probability, off, off)
    of_scores = np.einsum("o,otd,oud->tud", probability, scores, scores)
    crossed = np.einsum("o,ot,oud->tud", probability, off, scores)
    pairs = np.einsum("tu,tud->d", covariance, of_scores)
    pairs += np.einsum("tud,utd->d", crossed, crossed)
    return alone / num + pairs / (num * (num - 1))


def test_exact_values():
    probability, terms, _, stopped = enumerated()
    z = np.exp(terms.sum(axis=1))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
    close(probability @ z, 0.0274707222)
    close(probability @ terms.sum(axis=1), -3.86774035)
    found = {name: moments(gradients) for name, gradients in estimators().items()}
    close(found["at once"][1].sum(), 35.1561413)
    close(found["baseline"][1].sum(), 1.88397892)
    close(found["stopped"][1].sum(), 1.44715238)
    close(found["no resampling"][1].sum(), 31.3813608)
    first = [0, 2, 4, 6]  # init 0, trans 00 and 10, and the first of emit.
    close(found["at once"][0][first], [0.102387172, -0.316982072, -0.062634677, -0.508496581])
    close(found["stopped"][0][first], [0.117876267, -0.099747658, -0.026451486, -0.491022435])
    close(found["no resampling"][0][6:8], [-0.483583809, 0.071512205])
    # The stop-gradient filter times Z, on average, is the gradient of Z: of log Z, times Z.
    of_log_z = (probability * z) @ stopped.sum(axis=1) / 0.0274707222
    close(of_log_z[first], [0.115983869, -0.356329973, -0.052513622, -0.194332292])


def test_numbers_of_the_page():
    text, found = PAGE.read_text(encoding="utf-8"), estimators()
    of_filters = 8 * variance_with_others(8).sum()
    traces = [moments(gradients)[1].sum() for gradients in found.values()]
    for trace in (*traces, of_filters):
        assert f"| {trace:.4g} |" in text, trace
    for name in ("at once", "stopped", "no resampling"):
        numbers = [f"{x:.4f}".replace("0.", ".") for x in moments(found[name])[0][[0, 2, 6]]]
        assert f"| {' | '.join(numbers)} |" in text, name


# ---- The page's programs -------------------------------------------------------------------


def gradients(loss, num):
    def of(key):
        g = jax.grad(loss)(page().params, key)
        return jnp.concatenate([jnp.ravel(g[name]) for name in ("init", "trans", "emit")])

    return jax.jit(jax.vmap(of))(keys(num))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "baseline", "num"), [("at once", None, 200_000), ("baseline", -3.86774035, 60_000)]
)
def test_filter_with_its_cost_at_the_end(name, baseline, num):
    got = gradients(ge.expectation(functools.partial(page().at_once, baseline=baseline)), num)
    mean, variance = moments(estimators()[name])
    assert_unbiased(got, mean)
    assert_variance(got, variance)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(1.05 * got, mean)


@pytest.mark.statistical
def test_filters_that_give_each_other_baselines():
    filters = ge.expectation(page().stepwise, num_samples=4, baseline="leave_one_out")
    got = gradients(filters, 40_000)
    mean, _ = moments(estimators()["stepwise"])
    assert_unbiased(got, mean)
    assert_variance(got, variance_with_others(4))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_variance(got, moments(estimators()["stepwise"])[1] / 4)


@pytest.mark.statistical
def test_stop_gradient_filter():
    got = gradients(page().through_weights, 40_000)
    mean, variance = moments(estimators()["stopped"])
    assert_unbiased(got, mean)
    assert_variance(got, variance)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, moments(estimators()["at once"])[0])
