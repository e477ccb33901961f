"""Gradients of simulations of counts: every way that gradest has, beside finite differences.

    python -m benchmarks.epidemic                  # all of it, a few minutes on two cores
    python -m benchmarks.epidemic birth_death      # some of the programs, printed only
    python -m benchmarks.epidemic --list           # their names
    python -m benchmarks.epidemic --quick          # few draws, to see that it runs

Three programs whose gradients are known: an epidemic of binomial counts in a scan, a population
that is followed until it has died out or outgrown its bound, in a `while_loop`, and three
generations of a branching process, one after the other. Finite differences are central ones, with
the same uniform numbers on both sides, which every individual keeps.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammaln

import gradest as ge
from gradest import distributions as dist

from . import _command, _measure, pictures
from .estimators import panel_of, render_rows

Key = jax.Array
Params = jax.Array
#: (state) -> sampler, of the counts or of the bits that are drawn there.
SamplerOf = Callable[[Any], ge.Sampler]
#: (parameters, key, what is trained) -> an estimate of the expected cost.
Loss = Callable[[Params, Key, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to estimate the gradient.

    Attributes:
      loss: whose gradient is the estimate, or, of finite differences, whose differences are.
      evaluations: how often it runs the program for a gradient.
      start: of what is trained for its variance; None for nothing.
      step: of finite differences, half the distance of the points; 0 for a gradient.
    """

    loss: Loss
    evaluations: int = 1
    start: Any = None
    step: float = 0.0

    def gradient(self, trained: Any) -> Callable[[Key, Params], jax.Array]:
        if not self.step:
            return lambda key, params: jax.grad(self.loss)(params, key, trained)

        def differences(key: Key, params: Params) -> jax.Array:
            of = lambda params: self.loss(params, key, None)
            across = lambda e: (of(params + self.step * e) - of(params - self.step * e)) / 2
            return jax.vmap(across)(jnp.eye(params.size)) / self.step

        return differences


@dataclasses.dataclass(frozen=True)
class Program:
    """A simulation with a known expected cost.

    Attributes:
      title: the heading of its table.
      about: below that.
      params: at which the gradient is taken.
      exact: the expected cost.
      ways: by how one would write them.
    """

    title: str
    about: str
    params: Params
    exact: Callable[[Params], jax.Array]
    ways: Mapping[str, Way]


RUNS = 8
STEPS = (0.02, 0.2)


def every(sampler: ge.Sampler) -> SamplerOf:
    return lambda state: sampler


def runs(loss: Callable[[Params, Key], jax.Array]) -> Way:
    """Several runs that are baselines for each other."""
    several = ge.expectation(loss, num_samples=RUNS, baseline="leave_one_out")
    return Way(lambda params, key, trained: several(params, key), RUNS)


def one(loss: Callable[[Params, Key], jax.Array], evaluations: int = 1) -> Way:
    expected = ge.expectation(loss)
    return Way(lambda params, key, trained: expected(params, key), evaluations)


def trained(loss: Callable[[Params, Key, Any], jax.Array], start: Any) -> Way:
    return Way(ge.expectation(loss), 1, start)


def differences(loss: Callable[[Params, Key], jax.Array], params: int) -> dict[str, Way]:
    of = lambda params, key, trained: loss(params, key)
    return {f"common random numbers, h = {step}": Way(of, 2 * params, step=step) for step in STEPS}


# ---- An epidemic ---------------------------------------------------------------------------

PEOPLE, INFECTED, DAYS = 20, 2, 15


def odds(hazard: jax.Array) -> jax.Array:
    """Log-odds of an event of probability 1 - exp(-hazard)."""
    return jnp.log(jnp.expm1(hazard))


def of_day(infected: jax.Array) -> jax.Array:
    return (infected / PEOPLE) ** 2


def epidemic(
    params: Params, key: Key, sampler_of: SamplerOf, at_the_end: bool = False
) -> jax.Array:
    """The square of the share that is infected, every day, and the share that ever was."""
    log_contacts, log_recovery = params

    def day(carry: Any, inputs: Any) -> Any:
        susceptible, infected, total = carry
        t, key = inputs
        k0, k1 = jax.random.split(key)
        draw = sampler_of((t, susceptible, infected))
        # Where nobody is infected there is no hazard, and nothing to draw.
        hazard = jnp.exp(log_contacts) * jnp.maximum(infected, 1) / PEOPLE
        falling_ill = dist.Binomial(susceptible.astype(int), odds(hazard))
        recovering = dist.Binomial(infected.astype(int), odds(jnp.exp(log_recovery)))
        ill = draw(k0, falling_ill, where=infected > 0).astype(float)
        well = draw(k1, recovering, where=infected > 0).astype(float)
        susceptible, infected = susceptible - ill, infected + ill - well
        cost = of_day(infected)
        if not at_the_end:
            ge.cost(cost)
        return (susceptible, infected, total + cost), None

    start = jnp.float32(PEOPLE - INFECTED), jnp.float32(INFECTED), jnp.float32(0)
    inputs = jnp.linspace(0, 1, DAYS), jax.random.split(key, DAYS)
    (susceptible, _, total), _ = jax.lax.scan(day, start, inputs)
    return 1 - susceptible / PEOPLE + (total if at_the_end else 0)


def individuals(params: Params, key: Key, draw: Callable[..., jax.Array]) -> jax.Array:
    """The same epidemic, with a bit for each of the people.

    Args:
      params: log-rates of contacts and of recovery.
      key: of all draws.
      draw: `draw(key, bernoulli, where, state)`, twice a day.
    """
    log_contacts, log_recovery = params

    def day(carry: Any, inputs: Any) -> Any:
        well, ill = carry
        t, key = inputs
        k0, k1 = jax.random.split(key)
        infected = jnp.sum(ill)
        hazard = jnp.exp(log_contacts) * jnp.maximum(infected, 0.5) / PEOPLE
        same = lambda l: dist.Bernoulli(jnp.broadcast_to(l, (PEOPLE,)))
        state = t, jnp.sum(well), infected
        meets = draw(k0, same(odds(hazard)), (well > 0.5) & (infected > 0.5), state)
        leaves = draw(k1, same(odds(jnp.exp(log_recovery))), ill > 0.5, state)
        # Also by those who draw without a mask, nobody is met where nobody is ill.
        anybody = jax.lax.stop_gradient(jnp.where(infected > 0.5, 1.0, 0.0))
        meets, leaves = anybody * meets * well, leaves * ill
        well, ill = well - meets, ill + meets - leaves
        ge.cost(of_day(jnp.sum(ill)))
        return (well, ill), None

    ill = jnp.asarray(np.arange(PEOPLE) < INFECTED, float)
    inputs = jnp.linspace(0, 1, DAYS), jax.random.split(key, DAYS)
    (well, _), _ = jax.lax.scan(day, (1 - ill, ill), inputs)
    return 1 - jnp.sum(well) / PEOPLE


def features(state: Any) -> jax.Array:
    """Of a day, for a critic that is linear in them."""
    t, susceptible, infected = state
    s, i = susceptible / PEOPLE, infected / PEOPLE
    left = 1 - t
    products = [jnp.ones_like(s), s, i, s * i, i * i, s * s, s * i * i, s * s * i]
    return jnp.concatenate([jnp.stack(products), left * jnp.stack(products)])


NUM_FEATURES = 16


def critic(weights: jax.Array, state: Any) -> jax.Array:
    return jnp.dot(weights, features(state))


def with_mask(sampler_of: SamplerOf) -> Callable[..., jax.Array]:
    """Draws by each one's own state: those that it does not have are left out."""
    return lambda key, bits, where, state: sampler_of(state)(key, bits, where=where)


def without_mask(sampler: ge.Sampler) -> Callable[..., jax.Array]:
    """Draws by everybody: what does not count is multiplied by zero."""
    return lambda key, bits, where, state: sampler(key, bits)


def by_relax(params: Params, key: Key, weights: Any) -> jax.Array:
    def sampler_of(state: Any) -> ge.Sampler:
        held = features(state)
        surrogate = lambda w, bits: (
            jnp.dot(w["at"], held) + jnp.dot(w["slope"], held) * (jnp.sum(bits) / PEOPLE)
        )
        return ge.relax(surrogate, weights)

    return individuals(params, key, with_mask(sampler_of))


def with_uniforms(params: Params, key: Key) -> jax.Array:
    """The epidemic as a function of each one's uniform numbers, which meet a probability."""

    def draw(key: Key, bits: Any, where: Any, state: Any) -> jax.Array:
        return (jax.random.uniform(key, bits.shape) < bits.probs).astype(float)

    return ge.expectation(functools.partial(individuals, draw=draw))(params, key)


def epidemic_exactly(params: Params) -> jax.Array:
    """By the expected cost to come from every (susceptible, infected), from the last day on."""
    contacts, recovery = jnp.exp(params)
    n = np.arange(PEOPLE + 1)
    s, i, x, y = np.ix_(n, n, n, n)

    def pmf(k: np.ndarray, n: np.ndarray, hazard: jax.Array) -> jax.Array:
        k, left = k.astype(np.float32), np.maximum(n - k, 0).astype(np.float32)
        choices = gammaln(k + left + 1) - gammaln(k + 1) - gammaln(left + 1)
        hits = jnp.where(k > 0, k * jnp.log(-jnp.expm1(-hazard)), 0.0)
        return jnp.where(k <= n, jnp.exp(choices + hits - left * hazard), 0.0)

    nobody = i == 0
    of_ill = pmf(x, s, contacts * np.maximum(i, 1).astype(np.float32) / PEOPLE)
    of_ill = jnp.where(nobody, (x == 0).astype(float), of_ill)
    of_well = pmf(y, i, recovery)
    next_s, next_i = np.maximum(s - x, 0), np.clip(i + x - y, 0, PEOPLE)
    value = jnp.broadcast_to(1 - n[:, None] / PEOPLE, (PEOPLE + 1, PEOPLE + 1))
    day_costs = of_day(jnp.asarray(n, float))[None]
    for _ in range(DAYS):
        to_come = (value + day_costs)[next_s, next_i]
        value = jnp.sum(of_ill * of_well * to_come, axis=(2, 3))
    return value[PEOPLE - INFECTED, INFECTED]


def _of_epidemic() -> dict[str, Way]:
    by = lambda sampler, **options: (
        lambda params, key: epidemic(params, key, every(sampler), **options)
    )
    return {
        "score_function()": one(by(ge.score_function())),
        "score_function(), costs at the end": one(by(ge.score_function(), at_the_end=True)),
        "score_function(baseline=b)": trained(
            lambda params, key, b: epidemic(params, key, every(ge.score_function(baseline=b))),
            jnp.float32(0),
        ),
        "score_function(baseline=critic(state))": trained(
            lambda params, key, w: epidemic(
                params, key, lambda state: ge.score_function(baseline=critic(w, state))
            ),
            jnp.zeros(NUM_FEATURES),
        ),
        f'num_samples={RUNS}, baseline="leave_one_out"': runs(by(ge.score_function())),
        "relax(surrogate(state)), bits": trained(
            by_relax, {name: jnp.zeros(NUM_FEATURES) for name in ("at", "slope")}
        ),
        "straight_through(), bits": one(
            lambda params, key: individuals(params, key, without_mask(ge.straight_through()))
        ),
        **differences(with_uniforms, 2),
    }


# ---- Birth and death, to a random time -----------------------------------------------------

FIRST, BOUND, MAX_STEPS = 3, 6, 150
OUTGROWN = 5.0


def birth_death(
    params: Params, key: Key, kind_of: SamplerOf, time_of: SamplerOf, max_steps: int = MAX_STEPS
) -> jax.Array:
    """The square of the size, for as long as it lasts, and a fine if the bound is reached.

    Args:
      params: log-rates of births and deaths, of one member.
      key: of all draws.
      kind_of: the sampler of what happens, a birth or a death, at a size.
      time_of: that of how long it takes.
      max_steps: after which it has ended for certain, nearly.
    """
    log_birth, log_death = params

    def event(state: Any) -> Any:
        size, key = state
        key, k0, k1 = jax.random.split(key, 3)
        wait = time_of(size)(k0, dist.Exponential(size * jnp.sum(jnp.exp(params))))
        ge.cost(size**2 * wait)
        born = kind_of(size)(k1, dist.Bernoulli(log_birth - log_death))
        return size + 2 * born - 1, key

    lasts = lambda state: (state[0] > 0) & (state[0] < BOUND)
    size, _ = ge.while_loop(lasts, event, (float(FIRST), key), max_steps=max_steps)
    return jnp.where(size == BOUND, OUTGROWN, 0.0)


def birth_death_exactly(params: Params) -> jax.Array:
    """By the linear equations between the expected costs to come from each size."""
    birth, death = jnp.exp(params)
    p, inner = birth / (birth + death), np.arange(1.0, BOUND)
    change = jnp.eye(BOUND - 1) - p * jnp.eye(BOUND - 1, k=1) - (1 - p) * jnp.eye(BOUND - 1, k=-1)
    known = inner / (birth + death) + p * OUTGROWN * np.eye(BOUND - 1)[-1]
    return jnp.linalg.solve(change, known)[FIRST - 1]


def table(values: jax.Array, size: jax.Array) -> jax.Array:
    """One of them for each size."""
    return jnp.dot(values, jnp.asarray(jnp.arange(float(BOUND + 1)) == size, float))


def by_relax_at_size(params: Params, key: Key, w: Any) -> jax.Array:
    """LAX for the waiting time, RELAX for what happens, with a line for each size."""

    def of(name: str) -> SamplerOf:
        def sampler_of(size: jax.Array) -> ge.Sampler:
            line = lambda w, x: table(w["at"], size) + table(w["slope"], size) * x
            return ge.relax(line, w[name])

        return sampler_of

    return birth_death(params, key, of("kind"), of("time"))


def uniform_events(params: Params, key: Key) -> jax.Array:
    """Birth and death as a function of two uniform numbers for each event."""
    birth = jax.nn.sigmoid(params[0] - params[1])

    def event(state: Any) -> Any:
        size, total, key = state
        key, k0, k1 = jax.random.split(key, 3)
        wait = jax.random.exponential(k0) / (size * jnp.sum(jnp.exp(params)))
        born = jax.random.uniform(k1) < birth
        return size + jnp.where(born, 1, -1), total + size**2 * wait, key

    lasts = lambda state: (state[0] > 0) & (state[0] < BOUND)
    size, total, _ = jax.lax.while_loop(lasts, event, (float(FIRST), 0.0, key))
    return total + jnp.where(size == BOUND, OUTGROWN, 0.0)


def _of_birth_death() -> dict[str, Way]:
    score, pathwise = every(ge.score_function()), every(ge.reparameterize())
    of_size = lambda values: lambda size: ge.score_function(baseline=table(values, size))
    line = lambda: {name: jnp.zeros(BOUND + 1) for name in ("at", "slope")}
    return {
        "score_function()": one(lambda params, key: birth_death(params, key, score, score)),
        "score_function(), times by reparameterize()": one(
            lambda params, key: birth_death(params, key, score, pathwise)
        ),
        "score_function(baseline=critic[size]), times by reparameterize()": trained(
            lambda params, key, v: birth_death(params, key, of_size(v), pathwise),
            jnp.zeros(BOUND + 1),
        ),
        f'num_samples={RUNS}, baseline="leave_one_out"': runs(
            lambda params, key: birth_death(params, key, score, score)
        ),
        f'num_samples={RUNS}, baseline="leave_one_out", times by reparameterize()': runs(
            lambda params, key: birth_death(params, key, score, pathwise)
        ),
        "relax(line[size])": trained(by_relax_at_size, {"kind": line(), "time": line()}),
        **differences(uniform_events, 2),
    }


# ---- Three generations ---------------------------------------------------------------------

ANCESTORS, GENERATIONS = 2.0, 3


def generations(params: Params, key: Key, draw: ge.Sampler) -> jax.Array:
    """What each generation costs, and the square of the last one."""
    size = jnp.float32(ANCESTORS)
    for of_generation in jax.random.split(key, GENERATIONS):
        size = draw(of_generation, dist.Poisson(jnp.exp(params[0]) * size)).astype(float)
        ge.cost(size)
    return 0.1 * size**2


def generations_exactly(params: Params) -> jax.Array:
    """By the mean and the variance of a branching process with Poisson offspring."""
    r = jnp.exp(params[0])
    mean = lambda n: ANCESTORS * r**n
    variance = ANCESTORS * sum(r ** (GENERATIONS + k) for k in range(GENERATIONS))
    costs = sum(mean(n) for n in range(1, GENERATIONS + 1))
    return costs + 0.1 * (variance + mean(GENERATIONS) ** 2)


def uniform_generations(params: Params, key: Key) -> jax.Array:
    """The sizes as quantiles of one uniform number for each generation."""
    size, total = jnp.float32(ANCESTORS), 0.0
    for of_generation in jax.random.split(key, GENERATIONS):
        rate, n = jnp.exp(params[0]) * size, jnp.arange(100.0)
        pmf = jnp.exp(n * jnp.log(jnp.maximum(rate, 1e-30)) - rate - gammaln(n + 1))
        size = jnp.sum(jax.random.uniform(of_generation) > jnp.cumsum(pmf)).astype(float)
        total += size
    return total + 0.1 * size**2


def _of_generations() -> dict[str, Way]:
    by = lambda sampler: lambda params, key: generations(params, key, sampler)
    several = ge.score_function(num_samples=2, baseline="leave_one_out")
    return {
        "score_function()": one(by(ge.score_function())),
        "score_function(baseline=b)": trained(
            lambda params, key, b: generations(params, key, ge.score_function(baseline=b)),
            jnp.float32(0),
        ),
        'score_function(num_samples=2, baseline="leave_one_out")': one(by(several), 2**GENERATIONS),
        f'num_samples={RUNS}, baseline="leave_one_out"': runs(by(ge.score_function())),
        "measure_valued()": one(by(ge.measure_valued()), 2**GENERATIONS),
        **differences(uniform_generations, 1),
    }


PROGRAMS = {
    "epidemic": Program(
        "An epidemic",
        f"{PEOPLE} people, {INFECTED} of whom are infected; numbers of newly infected and of "
        f"recovered people, both binomial, on each of {DAYS} days in a scan. Derivatives in the "
        'logarithms of both rates. In rows with "bits" everybody draws for himself.',
        jnp.log(jnp.array([0.8, 0.4])),
        epidemic_exactly,
        _of_epidemic(),
    ),
    "birth_death": Program(
        "Birth and death, to a random time",
        f"A population of {FIRST} that ends at 0 or at {BOUND}, in a `while_loop`: waiting times, "
        "exponential, and births or deaths. Derivatives in the logarithms of both rates.",
        jnp.log(jnp.array([1.1, 0.9])),
        birth_death_exactly,
        _of_birth_death(),
    ),
    "generations": Program(
        "Three generations",
        f"A branching process with Poisson offspring, {GENERATIONS} draws in sequence, without a "
        "loop, where estimators serve that need what follows. The derivative in the logarithm of "
        "the mean number of children.",
        jnp.log(jnp.array([1.3])),
        generations_exactly,
        _of_generations(),
    ),
}


# ---- Measurements --------------------------------------------------------------------------


def train(way: Way, params: Params, steps: int, batch: int = 32) -> Any:
    """What only the variance depends on, after steps along its gradient."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(trained: Any, key: Key) -> jax.Array:
        of = lambda key: way.loss(params, key, trained)
        return jnp.mean(jax.vmap(of)(jax.random.split(key, batch)))

    @jax.jit
    def run(start: Any) -> Any:
        def step(carry: Any, key: Key) -> Any:
            trained, state = carry
            updates, state = optimizer.update(jax.grad(loss)(trained, key), state)
            return (optax.apply_updates(trained, updates), state), None

        keys = jax.random.split(jax.random.key(3), steps)
        return jax.lax.scan(step, (start, optimizer.init(start)), keys)[0][0]

    return run(way.start)


def measure(program: Program, steps: int, **options: Any) -> list[dict[str, Any]]:
    """A row for each way. Variances and biases are relative to the gradient."""
    gradients = {
        name: way.gradient(None if way.start is None else train(way, program.params, steps))
        for name, way in program.ways.items()
    }
    exact = jax.jit(jax.grad(program.exact))(program.params)
    report = ge.diagnose(gradients, jax.random.key(4), program.params, exact=exact, **options)
    norm = float(jnp.linalg.norm(exact))
    rows = []
    for name, found in report.estimates.items():
        if found.num_nonfinite:
            raise AssertionError(f"{name}: {found.num_nonfinite} gradients are not finite")
        total, way = found.total, program.ways[name]
        numbers = {
            "bias": total.total_bias / norm,  # pyright: ignore
            "bias_error": total.total_bias_error / norm,  # pyright: ignore
            "variance": total.total_variance / norm**2,
            "variance_error": total.total_variance_error / norm**2,
        }
        rows.append(
            {"estimator": name, "trained": way.start is not None, "biased": bool(total.biased)}
            | {name: float(f"{number:.4g}") for name, number in numbers.items()}
            | {"evaluations": way.evaluations}
        )
    return rows


def render(results: dict[str, Any]) -> str:
    """The tables of one machine, in Markdown."""
    parts = [f"### {_measure.describe(results['machine'])}"]
    for name, rows in results["programs"].items():
        program = PROGRAMS[name]
        parts += [f"#### {program.title}", program.about, render_rows(rows, timed=False)]
    return "\n\n".join([*parts, pictures.link("epidemic", results, picture(results))])


def picture(results: dict[str, Any]) -> pictures.Picture:
    """The column by which a table is ordered."""
    return pictures.Picture(
        "Variance times cost evaluations of the gradient, a dot for each way to estimate it, in "
        "each of the simulations above",
        "the estimator has a bias, which does not average out",
        [panel_of(PROGRAMS[name].title, rows) for name, rows in results["programs"].items()],
    )


# ---- The command ---------------------------------------------------------------------------


def measure_all(names: Sequence[str], quick: bool) -> dict[str, Any]:
    steps, num_draws, chunk_size = (2, 40, 20) if quick else (400, 10_000, 2_000)
    rows = {}
    for name in names or PROGRAMS:
        _command.progress("epidemic", name)
        rows[name] = measure(PROGRAMS[name], steps, num_draws=num_draws, chunk_size=chunk_size)
    return {"programs": rows}


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "epidemic",
        __doc__,
        measure_all,
        render,
        argv,
        what="program",
        names=PROGRAMS,
        quick="few draws",
        draw=pictures.draw("epidemic", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
