"""Simulations of counts: the benchmark's programs, whose expected costs are known."""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from support.programs import assert_unbiased, keys, optimized

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

epidemic = importlib.import_module("benchmarks.epidemic")


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("program", "way", "num"),
    [
        ("epidemic", "score_function(baseline=b)", 50_000),
        ("birth_death", "score_function(), times by reparameterize()", 50_000),
        ("generations", "measure_valued()", 20_000),
    ],
    ids=["epidemic", "birth_death", "generations"],
)
def test_expected_cost_and_its_gradient(program, way, num):
    program = epidemic.PROGRAMS[program]
    way = program.ways[way]
    # A baseline that is not the best, too.
    start = jax.tree.map(lambda x: jnp.full_like(x, 0.7), way.start)
    of = lambda key: jax.value_and_grad(way.loss)(program.params, key, start)
    got = optimized(jax.vmap(of))(keys(num))
    value, gradient = jax.jit(jax.value_and_grad(program.exact))(program.params)
    assert_unbiased(got, (value, gradient))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, (value, 1.05 * gradient))
