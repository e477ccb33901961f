"""What the tests share does what it says: assertions have power, oracles are of what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cases
from support.cases import assert_unbiased, assert_variance, compiled, oracles


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    """Means 3 and -4, standard deviations 2 and 1."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(100_000, 2)) * [2.0, 1.0] + [3.0, -4.0]


def test_assert_unbiased(normals):
    assert_unbiased(normals, np.array([3.0, -4.0]))
    assert_unbiased({"a": normals[:, 0], "b": normals}, {"a": 3.0, "b": np.array([3.0, -4.0])})


@pytest.mark.parametrize("wrong", [[3.15, -4.0], [3.0, -4.2], [3.15, -4.2], [2.85, -3.8]])
def test_assert_unbiased_sees_five_percent(normals, wrong):
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(normals, np.array(wrong))


def test_assert_unbiased_sees_a_wrong_constant():
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(np.zeros(100), np.array(1.0))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(np.full(100, 1.05), np.array(1.0))


def test_assert_unbiased_demands_power(normals):
    with pytest.raises(AssertionError, match=r"no power: .* it takes 3\d\d samples instead of 100"):
        assert_unbiased(normals[:100], np.array([3.0, -4.0]))
    with pytest.raises(AssertionError, match="exact result is zero"):
        assert_unbiased(normals, np.zeros(2))


def test_assert_unbiased_rejects_what_is_not_a_sample(normals):
    with pytest.raises(AssertionError, match="not finite"):
        assert_unbiased(np.where(normals > 9, np.nan, normals), np.array([3.0, -4.0]))
    with pytest.raises(AssertionError, match="shape"):
        assert_unbiased(normals, np.array(3.0))


def test_assert_variance(normals):
    assert_variance(normals, np.array([4.0, 1.0]))


@pytest.mark.parametrize("wrong", [[4.2, 1.0], [4.0, 1.05], [4.0, 0.95]])
def test_assert_variance_sees_five_percent(normals, wrong):
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_variance(normals, np.array(wrong))


def test_assert_variance_demands_power(normals):
    with pytest.raises(AssertionError, match="no power"):
        assert_variance(normals[:1000], np.array([4.0, 1.0]))


@pytest.mark.parametrize("name", cases.DISTRIBUTIONS)
@pytest.mark.usefixtures("x64")
def test_oracles_sum_over_what_is_drawn(name):
    """The score of the distribution's own log-probability has mean zero under the oracle."""
    dist = cases.DISTRIBUTIONS[name]()
    np.testing.assert_allclose(oracles.points(dist).weights.sum(), 1.0, rtol=1e-9)
    if name not in cases.FIXED_SUPPORT:
        return

    def log_prob(dist):
        fixed = jax.lax.stop_gradient(oracles.points(dist))
        return oracles.expectation(fixed, lambda x: jnp.sum(dist.log_prob(x)))

    for leaf in jax.tree.leaves(compiled(cases.grad(log_prob))(dist)):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-4)
