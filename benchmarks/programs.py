"""Programs that people write, beside the same mathematics by hand: time, memory, compilation.

    python -m benchmarks.programs                # all of it, a few minutes on two cores
    python -m benchmarks.programs vae elbo       # some of it, printed only
    python -m benchmarks.programs --list         # their names
    python -m benchmarks.programs --quick        # small, to see that it runs

By hand is a surrogate loss in plain JAX with the same draws from the same keys, so that value and
gradient are the same numbers; before anything is timed, that is checked. numpyro's bounds draw by
themselves: theirs are compared by their variance.
"""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gradest as ge
import gradest.nnx
from gradest import distributions as dist

from . import _command, _measure, pictures

#: (parameters, key) -> (value, gradient).
ValueAndGrad = Callable[[Any, jax.Array], tuple[jax.Array, Any]]

TIME_GOAL, MEMORY_GOAL, VARIANCE_GOAL = 1.05, 1.15, 1.02
HAND, GRADEST = "by hand", "gradest"


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compared.

    Attributes:
      title: of its row.
      params: at which the gradient is taken.
      makes: functions that make each program anew, so that nothing is cached by identity.
      same: whether they are to give the same numbers.
    """

    title: str
    params: Any
    makes: Mapping[str, Callable[[], ValueAndGrad]]
    same: bool = True


def of_surrogate(surrogate: Callable[..., tuple[jax.Array, jax.Array]]) -> ValueAndGrad:
    """Its second result, with the gradient of its first."""

    def value_and_grad(params: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        gradient, value = jax.grad(surrogate, has_aux=True)(params, key)
        return value, gradient

    return value_and_grad


def of_episodes(episode: Callable[..., jax.Array], num: int) -> ValueAndGrad:
    """Of the mean over so many episodes."""

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(episode, (None, 0))(params, jax.random.split(key, num)))

    return jax.value_and_grad(loss)


def keys_by_step(key: jax.Array, episodes: int, steps: int) -> jax.Array:
    keys = jax.random.split(key, episodes)
    return jax.vmap(lambda key: jax.random.split(key, steps), out_axes=1)(keys)


def to_go(costs: jax.Array) -> jax.Array:
    """Of each step, its cost and those after it, along the first axis."""
    return jnp.cumsum(costs[::-1], axis=0)[::-1]


def pick(keys: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A draw from each row, and its log-probability."""
    draw = lambda key, l: dist.Categorical(jax.lax.stop_gradient(l)).sample(key)
    x = jax.vmap(draw)(keys, logits)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), x[:, None], axis=1)
    return x, log_p[:, 0]


# ---- A policy over tokens ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sizes:
    tokens: int = 1_000
    steps: int = 64
    hidden: int = 64
    episodes: int = 16
    runs: int = 8


def gru_params(sizes: Sizes) -> dict[str, jax.Array]:
    names = {
        "embed": (sizes.tokens, sizes.hidden),
        "gates": (2 * sizes.hidden, 2 * sizes.hidden),
        "new": (2 * sizes.hidden, sizes.hidden),
        "out": (sizes.hidden, sizes.tokens),
        "value": (sizes.hidden,),
    }
    keys = jax.random.split(jax.random.key(0), len(names))
    return {
        name: jax.random.normal(key, shape) / sizes.hidden**0.5
        for key, (name, shape) in zip(keys, names.items(), strict=True)
    }


def gru(params: Any, h: jax.Array, token: jax.Array) -> jax.Array:
    """The next hidden state; of one sequence, or of many along the first axis."""
    x = params["embed"][token]
    join = lambda *parts: jnp.concatenate(parts, axis=-1)
    reset, keep = jnp.split(jax.nn.sigmoid(join(x, h) @ params["gates"]), 2, axis=-1)
    return keep * h + (1 - keep) * jnp.tanh(join(x, reset * h) @ params["new"])


def cost_of(before: jax.Array, token: jax.Array) -> jax.Array:
    """Some tokens are cheap, and none twice in a row."""
    return jnp.sin(token.astype(float)) + jnp.where(token == before, 1.0, 0.0)


def critic(sizes: Sizes) -> Program:
    """Costs at every step, and a critic that looks at the state."""

    def with_gradest() -> ValueAndGrad:
        @ge.expectation
        def episode(params: Any, key: jax.Array) -> jax.Array:
            def step(carry: Any, key: jax.Array) -> Any:
                h, before = carry
                h = gru(params, h, before)
                value = jax.lax.stop_gradient(h) @ params["value"]
                sampler = ge.score_function(baseline=value)
                token = sampler(key, dist.Categorical(h @ params["out"]))
                ge.cost(cost_of(before, token))
                return (h, token), None

            jax.lax.scan(step, (jnp.zeros(sizes.hidden), 0), jax.random.split(key, sizes.steps))
            return jnp.zeros(())

        return of_episodes(episode, sizes.episodes)

    def by_hand() -> ValueAndGrad:
        def surrogate(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            def step(carry: Any, keys: jax.Array) -> Any:
                h, before = carry
                h = gru(params, h, before)
                value = jax.lax.stop_gradient(h) @ params["value"]
                token, log_p = pick(keys, h @ params["out"])
                return (h, token), (log_p, value, cost_of(before, token))

            start = jnp.zeros((sizes.episodes, sizes.hidden)), jnp.zeros(sizes.episodes, int)
            keys = keys_by_step(key, sizes.episodes, sizes.steps)
            _, (log_ps, values, costs) = jax.lax.scan(step, start, keys)
            left = to_go(costs)
            of_policy = log_ps * jax.lax.stop_gradient(left - values)
            of_critic = (values - left) ** 2 / 2
            total = jnp.sum(of_policy + of_critic, axis=0)
            return jnp.mean(total), jnp.mean(jnp.sum(costs, axis=0))

        return of_surrogate(surrogate)

    title = f"GRU policy, {sizes.tokens} tokens, {sizes.steps} steps, a critic"
    return Program(title, gru_params(sizes), {HAND: by_hand, GRADEST: with_gradest})


def rloo(sizes: Sizes) -> Program:
    """One cost, at the end, and no critic."""
    prompts = max(1, sizes.episodes // sizes.runs)
    params = {name: p for name, p in gru_params(sizes).items() if name != "value"}

    def with_gradest() -> ValueAndGrad:
        @ge.expectation(num_samples=sizes.runs, baseline="leave_one_out")
        def episode(params: Any, key: jax.Array) -> jax.Array:
            def step(carry: Any, key: jax.Array) -> Any:
                h, before, total = carry
                h = gru(params, h, before)
                token = ge.score_function()(key, dist.Categorical(h @ params["out"]))
                return (h, token, total + cost_of(before, token)), None

            keys = jax.random.split(key, sizes.steps)
            start = jnp.zeros(sizes.hidden), 0, jnp.zeros(())
            return jax.lax.scan(step, start, keys)[0][2]

        return of_episodes(episode, prompts)

    def by_hand() -> ValueAndGrad:
        def surrogate(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            numbers = jnp.tile(jnp.arange(sizes.runs), prompts)

            def step(carry: Any, keys: jax.Array) -> Any:
                h, before, total, log_p = carry
                h = gru(params, h, before)
                own = jax.vmap(jax.random.fold_in)(jnp.repeat(keys, sizes.runs), numbers)
                token, l = pick(own, h @ params["out"])
                return (h, token, total + cost_of(before, token), log_p + l), None

            runs = prompts * sizes.runs
            start = jnp.zeros((runs, sizes.hidden)), jnp.zeros(runs, int), *jnp.zeros((2, runs))
            keys = keys_by_step(key, prompts, sizes.steps)
            _, _, total, log_p = jax.lax.scan(step, start, keys)[0]
            groups = total.reshape(prompts, sizes.runs)
            others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (sizes.runs - 1)
            advantages = jax.lax.stop_gradient(groups - others).ravel()
            return jnp.mean(log_p * advantages), jnp.mean(total)

        return of_surrogate(surrogate)

    title = f"RLOO of {sizes.runs} on it, one cost at the end"
    return Program(title, params, {HAND: by_hand, GRADEST: with_gradest})


# ---- Actor and critic ----------------------------------------------------------------------

STATE, ACTIONS, DISCOUNT, BONUS = 8, 4, 0.99, 0.01


def a2c(sizes: Sizes) -> Program:
    """A shared trunk, an entropy bonus, and episodes that end."""
    episodes = 4 * sizes.episodes
    k = jax.random.split(jax.random.key(0), 6)
    params = {
        "trunk": jax.random.normal(k[0], (STATE, sizes.hidden)) / STATE**0.5,
        "out": jax.random.normal(k[1], (sizes.hidden, ACTIONS)) / sizes.hidden**0.5,
        "value": jax.random.normal(k[2], (sizes.hidden,)) / sizes.hidden**0.5,
    }
    drift = jax.random.normal(k[3], (STATE, STATE)) / STATE**0.5
    push = jax.random.normal(k[4], (ACTIONS, STATE))
    start = jax.random.normal(k[5], (STATE,))
    weights = DISCOUNT ** jnp.arange(float(sizes.steps))
    move = lambda state, action: jnp.tanh(state @ drift + push[action])
    cost = lambda state: jnp.mean(state**2, axis=-1)
    over = lambda state: state[..., 0] > 0.98

    def with_gradest() -> ValueAndGrad:
        @ge.expectation
        def episode(params: Any, key: jax.Array) -> jax.Array:
            def step(carry: Any, inputs: Any) -> Any:
                state, alive = carry
                weight, key = inputs
                features = jnp.tanh(state @ params["trunk"])
                policy = dist.Categorical(features @ params["out"])
                ge.cost(jnp.where(alive, -BONUS * weight * policy.entropy(), 0.0))
                value = weight * (jax.lax.stop_gradient(features) @ params["value"])
                action = ge.score_function(baseline=value)(key, policy, where=alive)
                state = jnp.where(alive, move(state, action), state)
                ge.cost(jnp.where(alive, weight * cost(state), 0.0))
                return (state, alive & ~over(state)), None

            inputs = weights, jax.random.split(key, sizes.steps)
            jax.lax.scan(step, (start, True), inputs)
            return jnp.zeros(())

        return of_episodes(episode, episodes)

    def by_hand() -> ValueAndGrad:
        def surrogate(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            def step(carry: Any, inputs: Any) -> Any:
                states, alive = carry
                weight, keys = inputs
                features = jnp.tanh(states @ params["trunk"])
                logits = features @ params["out"]
                log_p = jax.nn.log_softmax(logits)
                bonus = BONUS * weight * jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
                values = weight * (jax.lax.stop_gradient(features) @ params["value"])
                actions, log_p = pick(keys, logits)
                states = jnp.where(alive[:, None], move(states, actions), states)
                masked = lambda x: jnp.where(alive, x, 0.0)
                costs = masked(weight * cost(states))
                out = alive, masked(log_p), values, masked(bonus), costs
                return (states, alive & ~over(states)), out

            first = jnp.tile(start, (episodes, 1)), jnp.ones(episodes, bool)
            keys = keys_by_step(key, episodes, sizes.steps)
            _, out = jax.lax.scan(step, first, (weights, keys))
            alive, log_ps, values, bonuses, costs = out
            # The bonus of a step is paid before its action.
            left = jax.lax.stop_gradient(to_go(costs + bonuses) - bonuses)
            of_policy = log_ps * jax.lax.stop_gradient(left - values) + bonuses
            of_critic = jnp.where(alive, (values - left) ** 2 / 2, 0.0)
            total = jnp.sum(of_policy + of_critic, axis=0)
            return jnp.mean(total), jnp.mean(jnp.sum(costs + bonuses, axis=0))

        return of_surrogate(surrogate)

    title = f"A2C, {sizes.steps} steps, {episodes} episodes"
    return Program(title, params, {HAND: by_hand, GRADEST: with_gradest})


# ---- A discrete autoencoder in flax.nnx ----------------------------------------------------

PIXELS, BITS, SAMPLES = 64, 16, 4


class Autoencoder(nnx.Module):
    def __init__(self, hidden: int, rngs: nnx.Rngs):
        self.encoder = nnx.Sequential(
            nnx.Linear(PIXELS, hidden, rngs=rngs), nnx.relu, nnx.Linear(hidden, BITS, rngs=rngs)
        )
        self.decoder = nnx.Sequential(
            nnx.Linear(BITS, hidden, rngs=rngs), nnx.relu, nnx.Linear(hidden, PIXELS, rngs=rngs)
        )


def divergence(logits: jax.Array) -> jax.Array:
    """From even bits."""
    p = jax.nn.sigmoid(logits)
    entropy = p * jax.nn.softplus(-logits) + (1 - p) * jax.nn.softplus(logits)
    return jnp.sum(np.log(2) - entropy, axis=-1)


def misfit(logits: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.softplus(logits) - x * logits, axis=-1)


def vae(sizes: Sizes) -> Program:
    """Leave-one-out of four samples, an image at a time."""
    images = 8 * sizes.episodes
    x = jax.random.bernoulli(jax.random.key(5), 0.4, (images, PIXELS)).astype(float)
    graph, params = nnx.split(Autoencoder(2 * sizes.hidden, nnx.Rngs(0)))

    def with_gradest() -> ValueAndGrad:
        bits = ge.score_function(num_samples=SAMPLES, baseline="leave_one_out")

        @gradest.nnx.expectation
        def bound(model: Autoencoder, x: jax.Array, key: jax.Array) -> jax.Array:
            logits = model.encoder(x)
            z = bits(key, dist.Bernoulli(logits))
            return misfit(model.decoder(z), x) + divergence(logits)

        def loss(model: Autoencoder, key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, images)
            return jnp.mean(nnx.vmap(bound, in_axes=(None, 0, 0))(model, x, keys))

        return lambda params, key: nnx.value_and_grad(loss)(nnx.merge(graph, params), key)

    def by_hand() -> ValueAndGrad:
        def surrogate(model: Autoencoder, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model.encoder(x)
            fixed = dist.Bernoulli(jax.lax.stop_gradient(logits))
            own = lambda l, key: jax.vmap(dist.Bernoulli(l).sample)(jax.random.split(key, SAMPLES))
            z = jax.vmap(own)(fixed.logits, jax.random.split(key, images))
            log_p = jnp.sum(z * logits[:, None] - jax.nn.softplus(logits)[:, None], axis=-1)
            costs = misfit(model.decoder(z), x[:, None])
            others = (jnp.sum(costs, axis=1, keepdims=True) - costs) / (SAMPLES - 1)
            advantages = jax.lax.stop_gradient(costs - others)
            known = jnp.mean(divergence(logits))
            value = jnp.mean(costs) + known
            return jnp.mean(costs + advantages * log_p) + known, value

        def value_and_grad(params: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params)
            gradient, value = nnx.grad(surrogate, has_aux=True)(model, key)
            return value, gradient

        return value_and_grad

    title = f"Autoencoder of {BITS} bits in nnx, {images} images, leave-one-out of {SAMPLES}"
    return Program(title, params, {HAND: by_hand, GRADEST: with_gradest})


# ---- A bound in numpyro --------------------------------------------------------------------

COMPONENTS = 6


def elbo(sizes: Sizes) -> Program:
    """A mixture, whose labels the guide has; beside it the exact bounds.

    That of this guide is the sum over its labels. numpyro's TraceEnum_ELBO, which needs funsor,
    sums up the model's: its bound is that of the best guide.
    """
    import numpyro
    from numpyro.infer import TraceEnum_ELBO, TraceGraph_ELBO

    from gradest.numpyro import ELBO

    sample: Any = numpyro.sample
    param: Any = numpyro.param
    laws: Any = numpyro.distributions
    num = 16 * sizes.episodes
    k = jax.random.split(jax.random.key(7), 4)
    labels = jax.random.randint(k[0], (num,), 0, COMPONENTS)
    data = 2 * jax.random.normal(k[1], (COMPONENTS,))[labels] + jax.random.normal(k[2], (num,))
    params = {
        "locs": jnp.linspace(-2.0, 2.0, COMPONENTS),
        "weights": jnp.zeros(COMPONENTS),
        "labels": 0.5 * jax.random.normal(k[3], (num, COMPONENTS)),
    }

    def model(x: jax.Array, enumerated: bool = False) -> None:
        locs, weights = param("locs", params["locs"]), param("weights", params["weights"])
        with numpyro.plate("data", num):
            how = {"enumerate": "parallel"} if enumerated else {}
            z = sample("z", laws.Categorical(logits=weights), infer=how)
            sample("x", laws.Normal(locs[z], 1.0), obs=x)

    def guide(x: jax.Array) -> None:
        with numpyro.plate("data", num):
            sample("z", laws.Categorical(logits=param("labels", params["labels"])))

    def of(bound: Any, model: Any = model, guide: Any = guide) -> Callable[[], ValueAndGrad]:
        loss = lambda params, key: bound.loss(key, params, model, guide, data)
        return lambda: jax.value_and_grad(loss)

    by = lambda sampler: of(ELBO({"z": sampler}, default=ge.reparameterize()))
    makes = {
        HAND: of(TraceGraph_ELBO()),
        GRADEST: by(ge.score_function()),
        "enumeration": by(ge.enumeration()),
    }
    if importlib.util.find_spec("funsor"):
        enumerated = functools.partial(model, enumerated=True)
        makes["TraceEnum_ELBO"] = of(TraceEnum_ELBO(), enumerated, lambda x: None)
        left_out = ""
    else:
        left_out = " (TraceEnum_ELBO left out: it needs funsor)"
    title = f"Bound of a mixture in numpyro, {num} points; by hand: TraceGraph_ELBO{left_out}"
    return Program(title, params, makes, same=False)


PROGRAMS = {"critic": critic, "rloo": rloo, "a2c": a2c, "vae": vae, "elbo": elbo}
QUICK = Sizes(tokens=10, steps=3, hidden=4, episodes=4, runs=2)


# ---- Measurements --------------------------------------------------------------------------


def check_agreement(program: Program, tolerance: float = 1e-3) -> None:
    """Raises AssertionError unless both give the same value and gradient."""
    key = jax.random.key(1)
    want, got = (jax.jit(program.makes[name]())(program.params, key) for name in (HAND, GRADEST))

    def check(path: Any, got: jax.Array, want: jax.Array) -> None:
        at_most = tolerance * float(jnp.max(jnp.abs(want)))
        where = f"{program.title}: {jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(got, want, tolerance, at_most, err_msg=where)

    jax.tree_util.tree_map_with_path(check, got, want)


def variance(compiled: Callable[..., Any], params: Any, num: int) -> float:
    """The trace of the covariance of a gradient."""
    found = [compiled(params, key)[1] for key in jax.random.split(jax.random.key(2), num)]
    columns = zip(*(jax.tree.leaves(gradient) for gradient in found), strict=True)
    return float(sum(np.var(np.stack(leaves), axis=0, ddof=1).sum() for leaves in columns))


def measure(program: Program, rounds: int, num: int) -> dict[str, Any]:
    if program.same:
        check_agreement(program)
    compiled: dict[str, Any] = {
        name: jax.jit(make()).lower(program.params, jax.random.key(0)).compile()
        for name, make in program.makes.items()
    }
    key = jax.random.key(3)
    run = {
        name: functools.partial(function, program.params, key)
        for name, function in compiled.items()
    }
    times = _measure.run_times(run, rounds, at_least=2e-2)
    # Of the same numbers a few are enough.
    num = num // 10 if program.same and num >= 20 else num
    variances = {name: variance(f, program.params, num) for name, f in compiled.items()}
    memory = {
        name: int(function.memory_analysis().temp_size_in_bytes)
        for name, function in compiled.items()
    }
    stages = _measure.compile_times(
        program.makes, (program.params, jax.random.key(0)), max(1, rounds // 7)
    )
    made = {name: ts.sum(axis=1) for name, ts in stages.items()}
    ratios = lambda ts: {name: _measure.quartiles(t / ts[HAND]) for name, t in ts.items()}
    return {
        "title": program.title,
        "ms": {name: _measure.quartiles(ts * 1e3) for name, ts in times.items()},
        "time": ratios(times),
        "compile_ms": {name: _measure.quartiles(ts * 1e3) for name, ts in made.items()},
        "compile": ratios(made),
        "bytes": memory,
        "variance": {name: float(f"{v:.4g}") for name, v in variances.items()},
        "draws": num,
    }


def goals_missed(row: Mapping[str, Any]) -> list[str]:
    """The names of the goals that are missed."""
    of = lambda numbers: numbers[GRADEST] / numbers[HAND]
    missed = {
        "time": row["time"][GRADEST][1] > TIME_GOAL,
        "memory": of(row["bytes"]) > MEMORY_GOAL,
        "variance": of(row["variance"]) > VARIANCE_GOAL,
    }
    return [name for name, is_missed in missed.items() if is_missed]


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    rows = []
    for row in results["programs"].values():
        for name in row["ms"]:
            if name == HAND:
                continue
            missed = ", ".join(goals_missed(row)) or "-"
            # What XLA keeps in registers and results has no size to compare with.
            of_memory = row["bytes"][name] / max(row["bytes"][HAND], 1)
            of_variance = row["variance"][name] / row["variance"][HAND]
            rows.append(
                [
                    row["title"] if name == GRADEST else f"the same by {name}, exact",
                    _measure.spread(row["ms"][HAND]),
                    _measure.spread(row["time"][name]),
                    f"{of_memory:.3g}",
                    _measure.spread(row["compile"][name]),
                    f"{of_variance:.3g}",
                    missed if name == GRADEST else "",
                ]
            )
    columns = ["program", "by hand, ms", "time", "memory", "compilation", "variance"]
    goals = (
        f"Ratios of gradest to what is written by hand. Goals: time at most {TIME_GOAL}, memory "
        f"{MEMORY_GOAL}, variance {VARIANCE_GOAL}."
    )
    heading = f"### {_measure.describe(results['machine'])}"
    table = _measure.table([*columns, "goals missed"], rows)
    return "\n\n".join(
        [heading, goals, table, pictures.link("programs", results, picture(results))]
    )


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The ratios that have goals."""
    rows = results["programs"].values()
    dots: dict[str, list[pictures.Dot]] = {"time": [], "memory": [], "variance": []}
    for row in rows:
        of = lambda numbers: [numbers[GRADEST] / max(numbers[HAND], 1e-30)]
        values = {"time": row["time"][GRADEST], "variance": of(row["variance"])}
        if row["bytes"][HAND]:
            values["memory"] = of(row["bytes"])
        for name, ratio in values.items():
            dots[name].append(pictures.Dot(row["title"], ratio, hollow=name in goals_missed(row)))
    goals = {"time": TIME_GOAL, "memory": MEMORY_GOAL, "variance": VARIANCE_GOAL}
    return pictures.Picture(
        "Ratios of gradest to the same program by hand in time, temporary memory and the variance "
        "of the gradient, a dot for each program beside the goals as dashed lines",
        "the goal is missed",
        [
            pictures.Panel(name.capitalize(), "as a multiple of by hand", dots[name], goal)
            for name, goal in goals.items()
        ],
    )


# ---- The command ---------------------------------------------------------------------------


def measure_all(names: Sequence[str], quick: bool) -> dict[str, Any]:
    sizes, rounds = (QUICK, (2, 4)) if quick else (Sizes(), (14, 200))
    rows = {}
    for name in names or PROGRAMS:
        _command.progress("programs", name)
        rows[name] = measure(PROGRAMS[name](sizes), *rounds)
    return {"programs": rows}


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "programs",
        __doc__,
        measure_all,
        render,
        argv,
        what="program",
        names=PROGRAMS,
        quick="small sizes and two rounds",
        draw=pictures.draw("programs", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
