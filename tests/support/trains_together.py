"""A training over all devices of all processes: `python trains_together.py ADDRESS NUM RANK`.

Prints the parameters at its end. Run by test_meshes.
"""

import functools
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradest as ge
from gradest import distributions as dists

NUM_KEYS, NUM_STEPS = 64, 3


def loss(params, key):
    def step(x, key):
        x = x + ge.score_function()(key, dists.Bernoulli(params["logit"] - x))
        ge.cost((x - 0.4) ** 2)
        return x, None

    k0, k1 = jax.random.split(key)
    x, _ = jax.lax.scan(step, 0.0, jax.random.split(k0, 3))
    return (x - params["scale"] * ge.rebar()(k1, dists.Bernoulli(params["logit"]))) ** 2


def main(address, num_processes, rank):
    if num_processes > 1:
        jax.distributed.initialize(address, num_processes, rank)
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    spread, same = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())

    # The old parameters are given up, and the new ones are the same on every device.
    @functools.partial(jax.jit, donate_argnums=0, out_shardings=same)
    def train(params, seed):
        key = jax.random.fold_in(jax.random.key(0), seed)
        keys = jax.lax.with_sharding_constraint(jax.random.split(key, NUM_KEYS), spread)
        gradient = jax.grad(lambda p: jnp.mean(jax.vmap(ge.expectation(loss), (None, 0))(p, keys)))
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))

    params = jax.device_put({"logit": jnp.float32(0.3), "scale": jnp.float32(0.7)}, same)
    for seed in range(NUM_STEPS):
        old, params = params, train(params, seed)
        assert old["logit"].is_deleted()
    print(jax.device_count(), *(float(params[name]) for name in ("logit", "scale")))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
