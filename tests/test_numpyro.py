"""`gradest.numpyro.ELBO` in numpyro's SVI: exact bounds and gradients, and who is credited."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from numpyro import primitives
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import flax_module, nnx_module
from numpyro.handlers import mask, scale
from numpyro.infer import SVI
from numpyro.infer.util import log_density
from support.statistical import assert_unbiased, keys

import gradest as ge
from gradest.numpyro import ELBO

KEY = jax.random.key(0)

# A value of theirs may be a number to a checker of types, with which nobody would calculate.
dist: Any = numpyro.distributions
sample: Any = numpyro.sample
param: Any = numpyro.param
mutable: Any = primitives.mutable


@pytest.fixture(autouse=True)
def promotion():
    """numpyro relies on what the other tests do without."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def gradients(bound, model, guide, params, args, num):
    run = jax.value_and_grad(lambda p, key: bound.loss(key, p, model, guide, *args))
    return jax.jit(jax.vmap(run, in_axes=(None, 0)))(params, keys(num))


def log_prob(program, values, args):
    return log_density(program, args, {}, values)[0]


def enumerated(model, guide, params, args, grid):
    """The negative bound of a guide whose latents have the joint values of `grid` only."""

    def at(values):
        l = log_prob(guide, {**params, **values}, args)
        return jnp.exp(l) * (l - log_prob(model, {**params, **values}, args))

    return jnp.sum(jax.vmap(at)(grid))


def outcomes(**shapes):
    """All joint values of binary sites of these shapes."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    rows = np.array(list(itertools.product((0.0, 1.0), repeat=sum(sizes))), np.float32)
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    named = zip(shapes.items(), parts, strict=True)
    return {name: jnp.asarray(part.reshape(-1, *shape)) for (name, shape), part in named}


# ---- A mixture -----------------------------------------------------------------------------

X = jnp.asarray([-1.8, 0.3, 2.4])


def mixture(x):
    loc = sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("data", 3):
        z = sample("z", dist.Bernoulli(0.4))
        sample("x", dist.Normal(loc[0] + (loc[1] - loc[0]) * z, 1.0), obs=x)


def mixture_guide(x):
    """The bits depend on where the means are."""
    m = param("m", jnp.asarray([-1.0, 1.0]))
    s = param("s", jnp.asarray([0.5, 0.7]), constraint=dist.constraints.positive)
    loc = sample("loc", dist.Normal(m, s).to_event(1))
    l = param("l", jnp.zeros(3))
    with numpyro.plate("data", 3):
        sample("z", dist.Bernoulli(logits=l + 0.5 * loc[1]))


MIXTURE = {
    "m": jnp.asarray([-1.0, 1.2]),
    "s": jnp.asarray([0.3, 0.5]),
    "l": jnp.asarray([-1.0, 0.2, 0.7]),
}


def mixture_exact(params, x):
    """By quadrature over the means and enumeration of the bits."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    grid = outcomes(z=(3,))

    def at(node):
        loc = params["m"] + params["s"] * node
        known = {**params, "loc": loc}
        log_q = dist.Normal(params["m"], params["s"]).log_prob(loc).sum()

        def of_bits(z):
            l = log_prob(mixture_guide, {**known, "z": z}, (x,))
            return jnp.exp(l - log_q) * (l - log_prob(mixture, {**known, "z": z}, (x,)))

        return jnp.sum(jax.vmap(of_bits)(grid["z"]))

    pairs = jnp.asarray(list(itertools.product(nodes, repeat=2)), jnp.float32)
    weights = np.prod(list(itertools.product(weights / weights.sum(), repeat=2)), axis=1)
    return jnp.sum(jnp.asarray(weights, jnp.float32) * jax.vmap(at)(pairs))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ge.score_function(), {"num_particles": 3, "baseline": "leave_one_out"}),
        (ge.rebar(), {}),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_a_mixture_of_discrete_and_continuous_latents(sampler, options):
    bound = ELBO({"z": sampler}, default=ge.reparameterize(), **options)
    values, got = gradients(bound, mixture, mixture_guide, MIXTURE, (X,), 20_000)
    value, want = jax.jit(jax.value_and_grad(mixture_exact))(MIXTURE, X)
    assert_unbiased(values, value)
    got = jnp.concatenate(list(got.values()), axis=1)
    want = jnp.concatenate(list(want.values()))
    assert_unbiased(got, want)
    with pytest.raises(AssertionError):
        assert_unbiased(1.05 * got, want)


# ---- Structures, exact by enumeration ------------------------------------------------------


def crossed(x):
    """A global bit, plates in a plate, and an event of two bits."""
    top = sample("top", dist.Bernoulli(0.3))
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 2, dim=-1):
        a = sample("a", dist.Bernoulli(logits=0.4 * top - 0.1))
        sample("x", dist.Normal(a - 0.5 * a * x, 1.0), obs=x)
    with numpyro.plate("pairs", 1):
        b = sample("b", dist.Bernoulli(jnp.asarray([0.3, 0.6])).to_event(1))
        numpyro.factor("f", (b[:, 0] - 1.3 * b[:, 1]) ** 2 - 0.2 * b.sum(-1))


def crossed_guide(x):
    p = param("p", jnp.zeros(6))
    sample("top", dist.Bernoulli(logits=p[0]))
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 2, dim=-1):
        sample("a", dist.Bernoulli(logits=p[1] + p[2:4][:, None] * x))
    with numpyro.plate("pairs", 1):
        sample("b", dist.Bernoulli(logits=p[4:6]).to_event(1))


def chain(x):
    """A bit that depends on another one in each lane, with a bit of its own beside.

    Some data are masked, and some terms scaled.
    """
    with numpyro.plate("lanes", 2):
        a = sample("a", dist.Bernoulli(0.3))
        b = sample("b", dist.Bernoulli(logits=a - 0.5))
        with mask(mask=x > 1):
            sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x)
    c = sample("c", dist.Bernoulli(0.6))
    with scale(scale=3.0):
        numpyro.factor("f", 0.7 * c)


def chain_guide(x):
    p = param("p", jnp.zeros(4))
    with numpyro.plate("lanes", 2):
        a = sample("a", dist.Bernoulli(logits=p[0] * x))
        sample("b", dist.Bernoulli(logits=p[1] + p[2] * a))
    sample("c", dist.Bernoulli(logits=p[3]))


@pytest.mark.parametrize(
    ("model", "guide", "x", "shapes", "size"),
    [
        (crossed, crossed_guide, jnp.asarray([[0.2, -1.0], [1.5, 0.4]]),
         {"top": (), "a": (2, 2), "b": (1, 2)}, 6),
        (chain, chain_guide, jnp.asarray([1.2, 0.5]), {"a": (2,), "b": (2,), "c": ()}, 4),
    ],
)  # fmt: skip
def test_enumeration_is_exact(model, guide, x, shapes, size):
    params = {"p": jnp.linspace(-0.8, 0.9, size)}
    exact = lambda p: enumerated(model, guide, p, (x,), outcomes(**shapes))
    bound = ELBO(default=ge.enumeration())
    run = lambda p: bound.loss(KEY, p, model, guide, x)
    twice = lambda f, p: (jax.hessian(f)(p)["p"]["p"], jax.jacrev(jax.grad(f))(p)["p"]["p"])
    all_of = lambda f: jax.jit(lambda p: (f(p), jax.grad(f)(p)["p"], *twice(f, p)))
    (value, *got), (exact_value, *want) = all_of(run)(params), all_of(exact)(params)
    assert value == pytest.approx(float(exact_value), rel=1e-5)
    for derivative, exact_derivative in zip(got, want, strict=True):
        np.testing.assert_allclose(derivative, exact_derivative, rtol=1e-4, atol=1e-5)


def test_memory_of_a_first_gradient():
    """The probabilities: the own term of a draw, which counts in second derivatives, is free."""
    x = jnp.linspace(-2.0, 2.0, 256)

    def model(x):
        with numpyro.plate("data", 256):
            z = sample("z", dist.Categorical(jnp.full(64, 1 / 64)))
            sample("x", dist.Normal(jnp.sin(z), 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 256):
            sample("z", dist.Categorical(logits=param("p", jnp.zeros((256, 64)))))

    bound = ELBO({"z": ge.score_function()}, default=ge.reparameterize())
    gradient = jax.jit(jax.grad(lambda p: bound.loss(KEY, p, model, guide, x)))
    compiled = gradient.lower({"p": jnp.zeros((256, 64))}).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * 256 * 64


def test_a_bound_under_shard_map():
    """The sum of the gradients at each device's key, of which no tracer leaks."""

    def model():
        z = sample("z", dist.Bernoulli(0.3))
        sample("x", dist.Normal(z, 1.0), obs=0.7)

    def guide():
        sample("z", dist.Bernoulli(logits=param("l", jnp.zeros(()))))

    bound = ELBO({"z": ge.score_function()}, default=ge.reparameterize())
    params, keys = {"l": jnp.float32(0.4)}, jax.random.split(KEY, 4)
    gradient = jax.grad(lambda params, key: bound.loss(key, params, model, guide))
    mapped = jax.shard_map(
        lambda params, keys: gradient(params, keys[0]),
        mesh=jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,)),
        in_specs=(P(), P("devices")),
        out_specs=P(),
    )
    with jax.checking_leaks():
        each = jax.vmap(gradient, (None, 0))(params, keys)
    np.testing.assert_allclose(jax.jit(mapped)(params, keys)["l"], each["l"].sum(), rtol=1e-5)


@pytest.mark.statistical
def test_a_subsampled_plate_is_unbiased():
    """With a continuous latent in each lane that depends on the lane's bit."""
    x = jnp.asarray([-1.0, 0.4, 2.0, 0.9])

    def model(x):
        with numpyro.plate("data", 4, subsample_size=2) as i:
            z = sample("z", dist.Bernoulli(0.4))
            w = sample("w", dist.Normal(z, 1.0))
            sample("x", dist.Normal(w, 1.0), obs=x[i])

    def guide(x):
        p = param("p", jnp.zeros(4))
        with numpyro.plate("data", 4, subsample_size=2) as i:
            z = sample("z", dist.Bernoulli(logits=p[i]))
            sample("w", dist.Normal(param("m", 0.0) + 0.8 * z, 0.6))

    def whole(params):
        q = jax.nn.sigmoid(params["p"])
        total = jnp.zeros(4)
        for z, mass, prior in ((0.0, 1 - q, 0.6), (1.0, q, 0.4)):
            m = params["m"] + 0.8 * z
            of_w = -0.5 * ((m - z) ** 2 + (x - m) ** 2) - 0.36 - jnp.log(2 * jnp.pi)
            entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e * 0.36) - jnp.log(mass)
            total += mass * (jnp.log(prior) + of_w + entropy)
        return -jnp.sum(total)

    params = {"p": jnp.asarray([-0.5, 0.3, 1.0, 0.1]), "m": jnp.asarray(0.3)}
    bound = ELBO({"z": ge.rebar()}, default=ge.reparameterize())
    values, got = gradients(bound, model, guide, params, (x,), 40_000)
    value, want = jax.value_and_grad(whole)(params)
    assert_unbiased(values, value)
    got, want = jnp.c_[got["m"], got["p"]], jnp.append(want["m"], want["p"])
    assert_unbiased(got, want)
    with pytest.raises(AssertionError):
        assert_unbiased(1.05 * got, want)


def walk(x):
    start = sample("start", dist.Bernoulli(0.4))

    def step(z, x):
        z = sample("z", dist.Bernoulli(logits=z - 0.5))
        sample("x", dist.Normal(z, 1.0), obs=x)
        return 1.0 * z, None

    scan(step, 1.0 * start, x)


def walk_guide(x):
    p = param("p", jnp.zeros(4))
    start = sample("start", dist.Bernoulli(logits=p[3]))

    def step(z, logit):
        z = sample("z", dist.Bernoulli(logits=logit + p[3] * z))
        return 1.0 * z, None

    scan(step, 1.0 * start, p[:3])


@pytest.mark.statistical
def test_sites_in_a_scan():
    params = {"p": jnp.asarray([0.3, -0.2, 0.5, 0.6])}
    options: Any = {"num_particles": 4, "baseline": "leave_one_out"}
    bound = ELBO({"z": ge.score_function()}, default=ge.rebar(), **options)
    values, got = gradients(bound, walk, walk_guide, params, (X,), 20_000)
    exact = lambda p: enumerated(walk, walk_guide, p, (X,), outcomes(start=(), z=(3,)))
    value, want = jax.jit(jax.value_and_grad(exact))(params)
    assert_unbiased(values, value)
    assert_unbiased(got["p"], want["p"])
    with pytest.raises(AssertionError):
        assert_unbiased(1.05 * got["p"], want["p"])
    with pytest.raises(NotImplementedError, match="inside a `scan`"):
        gradient_at(walk, walk_guide, params, X, ge.enumeration())


# ---- Who is credited -----------------------------------------------------------------------


def gradient_at(model, guide, params, x, sampler):
    bound = ELBO(default=sampler)
    return jax.jit(jax.grad(lambda p: bound.loss(KEY, p, model, guide, x)))(params)


def test_a_lane_is_credited_with_its_own_terms():
    """Other data of other lanes change nothing of its gradient."""

    def model(x):
        with numpyro.plate("data", 3):
            z = sample("z", dist.Bernoulli(0.4).expand([3, 2]).to_event(1))
            sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            sample("z", dist.Bernoulli(logits=param("l", None)).to_event(1))

    params = {"l": jnp.asarray([[0.1, -0.4], [0.3, 0.9], [-1.0, 0.2]])}
    x = jnp.asarray([0.3, 1.0, -0.2])
    for sampler in (ge.score_function(), ge.rebar()):
        a, b = (gradient_at(model, guide, params, x, sampler)["l"] for x in (x, x.at[1].set(5.0)))
        np.testing.assert_allclose(a[jnp.asarray([0, 2])], b[jnp.asarray([0, 2])], rtol=1e-6)
        assert np.all(a[1] != b[1])


def test_a_draw_is_credited_with_what_depends_on_it():
    """Not with the terms of a site beside it, nor with those of one before it."""

    def model(x):
        a = sample("a", dist.Bernoulli(0.4))
        numpyro.factor("of_a", x[0] * a)
        b = sample("b", dist.Bernoulli(logits=a))
        numpyro.factor("of_b", x[1] * b)
        c = sample("c", dist.Bernoulli(0.7))
        numpyro.factor("of_c", x[2] * c)

    def guide(x):
        p = param("p", None)
        a = sample("a", dist.Bernoulli(logits=p[0]))
        sample("b", dist.Bernoulli(logits=p[1] + a))
        sample("c", dist.Bernoulli(logits=p[2]))

    params = {"p": jnp.asarray([4.0, 4.0, 4.0])}  # so that all bits are one
    moved = np.zeros((3, 3), bool)
    at = lambda x: gradient_at(model, guide, params, x, ge.score_function())["p"]
    for i, x in enumerate(2.0 * jnp.eye(3)):
        moved[i] = at(x) != at(jnp.zeros(3))
    np.testing.assert_array_equal(
        moved, [[True, False, False], [True, True, False], [False, False, True]]
    )


# ---- In SVI --------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_discrete_vae_trains(library):
    x = (jax.random.uniform(jax.random.key(1), (8, 1)) < 0.5).astype(float) * jnp.ones((8, 6))

    def network(name, inputs, outputs):
        if library == "nnx":
            return nnx_module(name, nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0)))
        import flax.linen as nn

        return flax_module(name, nn.Dense(outputs), input_shape=(inputs,))

    def model(x):
        decoder = network("decoder", 2, 6)
        with numpyro.plate("data", 64, subsample_size=8, dim=-1):
            z = sample("z", dist.Bernoulli(0.5 * jnp.ones(2)).to_event(1))
            sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        encoder = network("encoder", 6, 2)
        with numpyro.plate("data", 64, subsample_size=8, dim=-1):
            sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    svi = SVI(model, guide, optax.sgd(0.01), ELBO({"z": ge.rebar()}, default=ge.reparameterize()))
    result = svi.run(jax.random.PRNGKey(0), 150, x, progress_bar=False)
    assert result.losses[-20:].mean() < 0.6 * result.losses[:5].mean()


def test_mutable_state():
    def model(x):
        count = mutable("count", {"value": jnp.zeros(())})
        count["value"] = count["value"] + 1
        sample("z", dist.Bernoulli(0.5))

    def guide(x):
        sample("z", dist.Bernoulli(logits=param("l", jnp.zeros(()))))

    svi = SVI(model, guide, optax.sgd(0.1), ELBO(default=ge.rebar()))
    state = svi.init(KEY, 0.0)
    before = state.mutable_state["count"]["value"]
    state, _ = svi.update(state, 0.0)
    assert state.mutable_state["count"]["value"] == before + 1


# ---- What it complains of ------------------------------------------------------------------


def test_complains():
    run = lambda **options: ELBO(**options).loss(KEY, MIXTURE, mixture, mixture_guide, X)
    samplers = {"z": ge.rebar()}
    with pytest.raises(ValueError, match="names of the guide's latent sites, loc, z, got y"):
        run(samplers={**samplers, "y": ge.rebar()}, default=ge.reparameterize())
    with pytest.raises(TypeError, match="differentiable in its parameters, got Bern") as raised:
        run(samplers={"y": ge.rebar()}, default=ge.reparameterize())
    assert "site 'z' of the guide, which is drawn by `default`" in raised.value.__notes__[0]
    with pytest.raises(TypeError, match="samplers: expected a sampler for default, got str"):
        ELBO(default="rebar")  # pyright: ignore
    with pytest.raises(ValueError, match="num_particles: expected an integer of at least 1"):
        ELBO(default=ge.rebar(), num_particles=0)
    options = {"num_particles": 2, "baseline": "leave_one_out"}
    with pytest.raises(ValueError, match="baseline: expected a loss with a draw by score_function"):
        run(samplers=samplers, default=ge.reparameterize(), **options)


def test_jumps_are_seen_through_a_plate():
    def model(x):
        with numpyro.plate("data", 3):
            z = sample("z", dist.Bernoulli(0.4))
            sample("x", dist.Normal(jnp.asarray([0.0, 1.0])[z.astype(int)], 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            sample("z", dist.Bernoulli(logits=param("l", None)))

    params = {"l": MIXTURE["l"]}
    with pytest.warns(ge.UnestimatedGradientWarning, match="rebar.*jump"):
        gradient_at(model, guide, params, X, ge.rebar())
    assert np.all(np.isfinite(gradient_at(model, guide, params, X, ge.score_function())["l"]))
