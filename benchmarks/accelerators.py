"""Where the time goes on GPUs and TPUs, on paper: what the compiled programs move and compute.

    python -m benchmarks.accelerators            # prints the tables
    python -m benchmarks.accelerators --record   # and writes them into docs/accelerators.md
    python -m benchmarks.accelerators --time     # with what this machine's device reaches

Without `--time` nothing is timed, so that it runs anywhere. For every estimator, one gradient of an
expected cost is compiled for many draws, and XLA is asked for its operations and bytes; random bits
are counted in the program before it is compiled. What is sent between devices is read from programs
compiled for two, four and eight devices of this machine's CPU, which a process of its own has by
`--xla_force_host_platform_device_count`; for more devices it is computed.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

import gradest as ge
from gradest import distributions as dist
from gradest.problems import data, methods, training
from gradest.problems.vae import VAE

from . import _command, _measure

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "accelerators.md"

#: Elements of one draw, and how many draws: together what one program is compiled for.
SIZE, DRAWS = 64, 1024
#: How often a program is timed.
ROUNDS = 21
#: Bytes per second between a chip and its memory, as the makers publish them; the page has where.
BANDWIDTHS = {"TPU v5e": 819e9, "H200": 4800e9}
#: Bytes per second that a chip sends, half of those in both directions: of the ICI, and of NVLink.
LINKS = {"TPU v5e": 200e9, "H200": 450e9}
COUNTED, DERIVED = (2, 4, 8), (8, 64, 512)


# ---- One device ----------------------------------------------------------------------------


def cost(x: jax.Array) -> jax.Array:
    """A cheap one, not separable: what is counted is the estimator rather than the model."""
    return jnp.sum((x - 0.45) ** 2) + 0.1 * jnp.sum(x) ** 2


def program(method: methods.Method | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradient of the mean cost of many draws, and its arguments.

    Without a method, of the cost at the probabilities: a program that draws nothing.
    """
    logits = jnp.zeros((DRAWS, SIZE))
    if method is None:
        return jax.grad(lambda l: jnp.mean(jax.vmap(cost)(jax.nn.sigmoid(l)))), (logits,)
    control = method.initial_control(jax.random.key(0), (SIZE,))
    if method.learns_baseline:
        control["baseline"] = jnp.zeros(())

    def mean(params: Any, key: jax.Array) -> jax.Array:
        logits, control = params
        sampler = method.sampler(**control)
        each = lambda key, l: sampler.expect(key, dist.Bernoulli(l), cost)
        return jnp.mean(jax.vmap(each)(jax.random.split(key, DRAWS), logits))

    return jax.grad(mean), ((logits, control), jax.random.key(0))


#: Of a threefry key. gradest's discrete draws take the bits of keys that are split off as they are.
_KEY_BITS = 64


def random_bits(jaxpr: Any) -> int:
    """How many bits the generator makes, as numbers and as keys, each time in a loop."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        size = math.prod(getattr(eqn.outvars[0].aval, "shape", ())) if eqn.outvars else 0
        if eqn.primitive.name == "random_bits":
            total += eqn.params["bit_width"] * size
        elif eqn.primitive.name in ("random_split", "random_fold_in"):
            total += _KEY_BITS * size
        total += times * sum(map(random_bits, _inner(eqn)))
    return total


def _inner(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def count(method: methods.Method | None, timed: bool = False) -> dict[str, float]:
    """Per element of a draw: bits, operations and bytes; elements in a second, if it is timed."""
    fn, arguments = program(method)
    traced = jax.jit(fn).trace(*arguments)
    compiled = traced.lower().compile()
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    if analysis is None or memory is None:
        raise RuntimeError(f"{jax.default_backend()}: XLA does not say what its programs move.")
    elements = SIZE * DRAWS
    counts = {
        "bits": random_bits(traced.jaxpr.jaxpr) / elements,
        "flops": analysis["flops"] / elements,
        "transcendentals": analysis.get("transcendentals", 0.0) / elements,
        "bytes": analysis["bytes accessed"] / elements,
        # What a program reads and writes at least, however much of it becomes one kernel.
        "least_bytes": (memory.argument_size_in_bytes + memory.output_size_in_bytes) / elements,
    }
    if timed:
        times = _measure.run_times({"": lambda: compiled(*arguments)}, ROUNDS)[""]
        counts["per_second"] = elements / float(np.median(times))
    return counts


# ---- Many devices --------------------------------------------------------------------------

_COLLECTIVE = re.compile(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")
_WIDTHS = {"f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "pred": 1}


def collectives(text: str) -> dict[str, Any]:
    """Of a compiled program: how many there are of each kind, and the bytes that they reduce."""
    kinds: dict[str, int] = {}
    size = 0
    for shapes, kind in _COLLECTIVE.findall(text):
        kinds[kind] = kinds.get(kind, 0) + 1
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size += _WIDTHS[dtype] * math.prod(int(n) for n in dims.split(",") if n)
    return {"kinds": kinds, "bytes": size}


def sharded_programs(num_devices: int) -> dict[str, Any]:
    """What is sent in one step of data-parallel training, and in one gradient of Monte Carlo."""
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    copied, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    key = jax.random.key(0)

    problem = VAE(data.load_digits(), "bernoulli")
    method = next(method for method in methods.METHODS if method.name == "rebar")
    params = training.initial_params(problem, method, key)
    loss = training.minibatch_loss(problem, method)
    xs = problem.examples[:512]
    step = jax.jit(jax.value_and_grad(loss), in_shardings=(copied, copied, split))
    found = {"training": collectives(_text(step.lower(params, key, xs)))}

    bits = ge.rebar(0.5)
    one = ge.expectation(lambda key, logits: cost(bits(key, dist.Bernoulli(logits))))
    mean = ge.monte_carlo(one, 4096, 512)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(mean, argnums=1))
        found["monte_carlo"] = collectives(_text(gradient.lower(key, jnp.zeros(SIZE))))
    num_params = sum(x.size for x in jax.tree.leaves(params))
    return {**found, "parameters": num_params}


def _text(lowered: Any) -> str:
    return lowered.compile().as_text() or ""


def in_a_process(num_devices: int) -> dict[str, Any]:
    """`sharded_programs` where JAX sees so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} "
    flags += f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", __spec__.name, "--devices", str(num_devices)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def sent(size: float, num_devices: int) -> float:
    """Bytes that each device sends for one all-reduce, in a ring: 2 (n - 1) / n of the size."""
    return 2 * (num_devices - 1) / num_devices * size


# ---- Tables --------------------------------------------------------------------------------


def render_estimators(rows: Sequence[dict[str, Any]]) -> str:
    columns = ["estimator", "random bits", "operations", "of them exp, log, ...", "bytes"]
    columns += ["bytes, at least", "operations per byte"]
    columns += [f"{chip}, 10⁹ elements/s" for chip in BANDWIDTHS]
    timed = "per_second" in rows[0]
    if timed:
        columns.append(f"measured on {jax.devices()[0].device_kind}, 10⁹ elements/s")

    def cells(row: dict[str, Any]) -> list[str]:
        per_second = lambda at, size: f"{at / size / 1e9:.3g}"
        speeds = (
            f"{per_second(at, row['bytes'])} to {per_second(at, row['least_bytes'])}"
            for at in BANDWIDTHS.values()
        )
        numbers = (row[name] for name in ("bits", "flops", "transcendentals", "bytes"))
        more = row["least_bytes"], row["flops"] / row["bytes"]
        measured = [f"{row['per_second'] / 1e9:.3g}"] if timed else []
        return [row["estimator"], *(f"{x:.3g}" for x in (*numbers, *more)), *speeds, *measured]

    return _measure.table(columns, map(cells, rows))


def render_devices(found: dict[str, dict[str, Any]]) -> str:
    names = {
        "training": "a step of data-parallel training, REBAR",
        "monte_carlo": "a gradient by `ge.monte_carlo`, REBAR",
    }
    counted = [
        [
            words,
            devices,
            ", ".join(f"{n} {kind}" for kind, n in of[name]["kinds"].items()) or "none",
            f"{of[name]['bytes']:,}",
        ]
        for name, words in names.items()
        for devices, of in found.items()
    ]
    largest = found[str(max(COUNTED))]
    derived = [
        [
            words,
            str(devices),
            f"{sent(largest[name]['bytes'], devices):,.0f}",
            *(f"{1e6 * sent(largest[name]['bytes'], devices) / at:.3g}" for at in LINKS.values()),
        ]
        for name, words in names.items()
        for devices in DERIVED
    ]
    return "\n\n".join(
        [
            _measure.table(["program", "devices", "collectives", "bytes reduced"], counted),
            _measure.table(
                ["program", "devices", "bytes sent by each", *(f"{chip}, μs" for chip in LINKS)],
                derived,
            ),
        ]
    )


# ---- The command ---------------------------------------------------------------------------


def counted() -> list[methods.Method]:
    """The estimators of the table: a few outcomes only can be enumerated, and 2^64 are not."""
    return [m for m in methods.trainable("bernoulli") if not m.enumerates]


def main(argv: Sequence[str] | None = None) -> int:
    parser = _command.parser("accelerators", __doc__)
    parser.add_argument("--record", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--time", action="store_true", help="time the gradients on this device")
    parser.add_argument("--quick", action="store_true", help="two estimators, and no devices")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.record and args.quick:
        parser.error("--record: expected a full run, not --quick")
    if args.devices:
        print(json.dumps(sharded_programs(args.devices)))
        return 0
    chosen = counted()
    rows = [{"estimator": "no draw: the cost at the mean", **count(None, args.time)}]
    for method in chosen[:2] if args.quick else chosen:
        print(method.label, file=sys.stderr)
        rows.append({"estimator": f"`{method.about}`", **count(method, args.time)})
    tables = {"accelerators": render_estimators(rows)}
    if not args.quick:
        found = {str(devices): in_a_process(devices) for devices in COUNTED}
        tables["devices"] = render_devices(found)
    platforms = {"accelerators": jax.default_backend().upper(), "devices": "CPU"}
    for name, text in tables.items():
        made = f"*Counted in the programs of jax {jax.__version__} for {platforms[name]}.*"
        print(f"{text}\n")
        if args.record:
            page = PAGE.read_text(encoding="utf-8")
            page = _measure.replace_between_markers(page, name, f"{text}\n\n{made}")
            PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
