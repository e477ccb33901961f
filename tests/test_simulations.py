"""Simulations of counts: the benchmark's programs, whose expected costs are known."""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from support.programs import assert_unbiased, keys

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

epidemic = importlib.import_module("benchmarks.epidemic")
OTHERS = 'num_samples=8, baseline="leave_one_out"'


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("program", "way", "num", "trained"),
    [
        ("epidemic", OTHERS, 4_000, {}),
        ("epidemic", "relax(surrogate(state)), bits", 30_000, {"at": 0.1, "slope": 0.1}),
        ("birth_death", f"{OTHERS}, times by reparameterize()", 4_000, {}),
        ("birth_death", "relax(line[size])", 60_000, {"at": 15.0, "slope": 3.0}),
        ("generations", "measure_valued()", 20_000, {}),
    ],
)
def test_expected_cost_and_its_gradient(program, way, num, trained):
    """With control variates that are not the best, too."""
    program = epidemic.PROGRAMS[program]
    way = program.ways[way]
    fill = lambda path, x: jnp.full_like(x, trained[path[-1].key])
    start = jax.tree_util.tree_map_with_path(fill, way.start)
    of = lambda key: jax.value_and_grad(way.loss)(program.params, key, start)
    got = jax.jit(jax.vmap(of))(keys(num))
    value, gradient = jax.jit(jax.value_and_grad(program.exact))(program.params)
    assert_unbiased(got, (value, gradient))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, (value, 1.05 * gradient))


@pytest.mark.slow
@pytest.mark.parametrize("program", epidemic.PROGRAMS)
def test_finite_differences_come_to_the_gradient(program):
    """With a bias that can be seen no more."""
    program = epidemic.PROGRAMS[program]
    gradient = program.ways["common random numbers, h = 0.2"].gradient(None)
    got = jax.jit(jax.vmap(lambda key: gradient(key, program.params)))(keys(40_000))
    exact = jax.jit(jax.grad(program.exact))(program.params)
    difference = jnp.abs(jnp.mean(got, axis=0) - exact)
    assert (difference < 0.03 * jnp.linalg.norm(exact)).all()
