"""Hard concrete gates: their masses and means, their gradients, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cases import assert_unbiased, keys, oracles

import gradest as ge
from gradest.distributions import HardConcrete

#: By quadrature elsewhere: P(0), P(1), E z, its derivative in log_alpha, E z^2, and its derivative.
KNOWN = {
    0.0: (0.168177816, 0.168177816, 0.5, 0.2187287396, 0.3980178888, 0.2187287396),
    1.5: (0.04316517068, 0.4753707371, 0.7911979016, 0.1506369169, 0.7236494183, 0.1863513339),
}


def test_masses_and_mean(x64):
    log_alpha = jnp.array([*KNOWN])

    def told(log_alpha):
        gates = HardConcrete(log_alpha)
        return gates.prob_zero(), gates.prob_one(), gates.mean()

    with_slopes = jax.jit(lambda l: jax.jvp(told, (l,), (jnp.ones(2),)))
    (zero, one, mean), moves = with_slopes(log_alpha)
    np.testing.assert_allclose(
        np.stack([zero, one, mean, moves[2]], axis=1), np.array([*KNOWN.values()])[:, :4], rtol=1e-8
    )
    np.testing.assert_allclose(HardConcrete(log_alpha).prob_nonzero(), 1 - zero, rtol=1e-12)

    def second_moment(l):
        return oracles.expectation(HardConcrete(l[None]), lambda z: jnp.sum(z**2))

    got = jax.jit(jax.vmap(jax.value_and_grad(second_moment)))(log_alpha)
    np.testing.assert_allclose(np.transpose(got), np.array([*KNOWN.values()])[:, 4:], rtol=1e-8)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("ends", [(-1e-3, 1.001), (-0.1, 1.1), (-3.0, 1.5)])
def test_mean_is_an_integral(temperature, ends, x64):
    """Of P(z > t), here by a rule of many panels that get narrow where it is steep."""
    log_alpha = np.array([-4.0, 0.3, 2.0])
    t, weights = oracles.gauss_legendre(-18.0, 18.0, 200, 8)
    z, weights = 1 / (1 + np.exp(-t)), weights / (2 + 2 * np.cosh(t))
    odds = log_alpha[:, None] - temperature * np.log((z - ends[0]) / (ends[1] - z))
    want = np.sum(weights / (1 + np.exp(-odds)), axis=1)
    got = HardConcrete(log_alpha, temperature, *ends).mean()
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.statistical
def test_draws_and_their_derivatives():
    log_alpha, num = jnp.array([*KNOWN]), 100_000

    def run(log_alpha, key):
        z, moves = jax.jvp(
            lambda l: ge.reparameterize()(key, HardConcrete(l)), (log_alpha,), (jnp.ones(2),)
        )
        return (z == 0).astype(float), (z == 1).astype(float), z, moves, z**2, 2 * z * moves

    got = jax.jit(jax.vmap(run, in_axes=(None, 0)))(log_alpha, keys(num))
    want = [np.array(column) for column in zip(*KNOWN.values(), strict=True)]
    assert_unbiased(got, want)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased([1.05 * g for g in got], want)


def test_the_cut_is_a_kink_and_to_count_gates_a_jump():
    key, log_alpha = jax.random.key(0), jnp.array([-0.4, 1.5, 0.0])

    def loss(of_draw):
        @ge.expectation
        def of(log_alpha):
            return of_draw(ge.reparameterize()(key, HardConcrete(log_alpha)))

        return of

    # Warnings are errors here.
    for smooth in (lambda z: jnp.sum(z) ** 2, lambda z: jnp.sum(jnp.where(z != 0, z, 0) ** 2)):
        jax.grad(loss(smooth))(log_alpha)
    for count in (lambda z: z != 0, lambda z: z > 0, lambda z: z == 1):
        with pytest.raises(ge.UnestimatedGradientError, match="silently be zero"):
            jax.grad(loss(lambda z: jnp.sum(count(z)).astype(float)))(log_alpha)  # noqa: B023
    penalty = jax.grad(lambda l: jnp.sum(HardConcrete(l).prob_nonzero()))(log_alpha)
    assert (penalty > 0).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_every_type_has_gates_that_are_shut_and_open(dtype):
    dist = HardConcrete(jnp.array([-60.0, -1.0, 1.0, 60.0], dtype))
    z = jax.jit(lambda dist, key: dist.sample(key, (500,)))(dist, jax.random.key(0))
    assert z.dtype == dist.mean().dtype == dist.prob_nonzero().dtype == dtype
    np.testing.assert_array_equal(z[:, 0], 0)
    np.testing.assert_array_equal(z[:, 3], 1)
    assert set(np.unique(np.asarray(z, float))) > {0.0, 1.0}
    np.testing.assert_allclose(dist.prob_nonzero()[::3], [0, 1], atol=1e-20)


@pytest.mark.parametrize(
    "sampler", [ge.score_function(), ge.vimco(2), ge.dreg(2), ge.relax(lambda w, x: x[0], 0.0)]
)
def test_a_score_is_refused_with_the_reason(sampler):
    with pytest.raises(TypeError, match=f"^{sampler.name}: .* mass at 0 and at 1.*reparameterize"):
        sampler.expect(jax.random.key(0), HardConcrete(jnp.zeros(2)), jnp.sum)


def test_what_is_wrong_is_said():
    with pytest.raises(NotImplementedError, match=r"HardConcrete\.log_prob: .*prob_nonzero"):
        HardConcrete(0.0).log_prob(0.5)
    make = functools.partial(HardConcrete, 0.0)
    for options, message in (
        ({"temperature": 0.0}, "temperature: expected finite numbers greater than 0"),
        ({"low": 0.0}, "low: expected finite numbers less than 0"),
        ({"high": 1.0}, "high: expected finite numbers greater than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
