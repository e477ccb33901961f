"""The recipes of the page on reinforcement learning, against the exact policy gradient."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import assert_unbiased, assert_variance, definitions, keys

import gradest as ge
from gradest import distributions as dists

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "how-to" / "reinforcement-learning.md"
page = functools.partial(definitions, PAGE)
BONUS = 0.05


# ---- The chain, exactly --------------------------------------------------------------------


def outcomes():
    """The chance of every next state and the expected reward, by (state, action)."""
    chances, rewards = np.zeros((6, 2, 6)), np.zeros((6, 2))
    for state, action, slips in itertools.product(range(5), (0, 1), (False, True)):
        p = 0.1 if slips else 0.9
        to = min(max(state + (1 if (action == 1) != slips else -1), 0), 5)
        chances[state, action, to] += p
        rewards[state, action] += p * (1.0 if to == 5 else 0.02 if state == to == 0 else 0.0)
    return chances, rewards


def expected_cost(logits, bonus):
    """By the distribution over states at every step; in the last one an episode has ended."""
    chances, rewards = outcomes()
    policy, log_policy = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    gain = jnp.sum(policy * (rewards - bonus * log_policy), axis=-1)
    step = jnp.einsum("sa,sat->st", policy, chances)
    gain = jnp.where(np.arange(6) < 5, gain, 0.0)
    at, total = jnp.eye(6)[2], 0.0
    for t in range(20):
        total += 0.9**t * at @ gain
        at = at @ step
    return -total


def params():
    """A policy that is not symmetric, and critics that are not good."""
    k0, k1, k2 = jax.random.split(jax.random.key(2), 3)
    return {
        "policy": 0.5 * jax.random.normal(k0, (6, 2)) + jnp.array([-0.2, 0.2])[None],
        "critic": jnp.array([0.1, 0.15, 0.25, 0.4, 0.7, 0.0]),
        "trunk": jax.random.normal(k1, (6, 4)),
        "out": 0.5 * jax.random.normal(k2, (4, 2)),
        "value": jnp.full(4, 0.1),
    }


def logits_of(params, shared):
    return jnp.tanh(params["trunk"]) @ params["out"] if shared else params["policy"]


@functools.cache
def exactly(shared):
    cost = lambda params: expected_cost(logits_of(params, shared), BONUS)
    value, gradient = jax.jit(jax.value_and_grad(cost))(params())
    return value, {name: gradient[name] for name in OF_POLICY[shared]}


OF_POLICY = {False: ["policy"], True: ["trunk", "out"]}


def estimates(loss, names, num):
    def of(key):
        value, gradient = jax.value_and_grad(loss)(params(), key)
        return value, {name: gradient[name] for name in names}

    return jax.jit(jax.vmap(of))(keys(num))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "num"), [("reinforce", 40_000), ("critic", 20_000), ("shared", 30_000)]
)
def test_policy_gradient(name, num):
    shared = name == "shared"
    loss = ge.expectation(functools.partial(getattr(page(), name), bonus=BONUS))
    got, exact = estimates(loss, OF_POLICY[shared], num), exactly(shared)
    assert_unbiased(got, exact)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, jax.tree.map(lambda g: 1.05 * g, exact))


@pytest.mark.statistical
def test_policy_gradient_of_episodes_that_give_each_other_baselines():
    loss = functools.partial(page().reinforce, bonus=BONUS)
    loss = ge.expectation(loss, num_samples=8, baseline="leave_one_out")
    got, exact = estimates(loss, OF_POLICY[False], 4_000), exactly(False)
    assert_unbiased(got, exact)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(got, jax.tree.map(lambda g: 1.05 * g, exact))


def test_optimum_is_that_of_value_iteration():
    """The page's best value, and its expected reward, by the other recursion."""
    chances, rewards = outcomes()
    value = np.zeros(6)
    for _ in range(20):
        value = (rewards + 0.9 * chances @ value).max(axis=1)
    np.testing.assert_allclose(page().best, value[2], rtol=1e-5)
    logits = params()["policy"]
    np.testing.assert_allclose(
        page().expected_reward(logits), -expected_cost(logits, 0.0), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reinforce", "critic", "shared", "rloo", "grpo"])
def test_training_comes_to_the_optimum(name):
    loss = getattr(page(), name)
    if name in ("reinforce", "critic", "shared"):
        loss = ge.expectation(loss)
    start = params()
    trained = page().train(loss, start, jax.random.key(1))
    reached = page().expected_reward(logits_of(trained, name == "shared"))
    assert page().expected_reward(logits_of(start, name == "shared")) < 0.6 * page().best
    assert 0.98 * page().best < reached <= page().best
    if name == "critic":
        np.testing.assert_allclose(trained["critic"][4], 0.97, atol=0.05)


# ---- Group baselines, over all groups ------------------------------------------------------

LOGITS, REWARDS = np.array([0.3, -0.5, 0.8]), np.array([1.0, 0.0, 0.2])
CHANCES = np.exp(LOGITS) / np.exp(LOGITS).sum()


def moments(advantages_of):
    """Mean and variance of the gradient of four choices, whose advantages are those given."""
    mean, square = np.zeros(3), np.zeros(3)
    for group in itertools.product(range(3), repeat=4):
        advantages = advantages_of(REWARDS[list(group)])
        g = advantages @ (np.eye(3)[list(group)] - CHANCES) / 4
        mean, square = (m + CHANCES[list(group)].prod() * x for m, x in ((mean, g), (square, g**2)))
    return mean, square - mean**2


ADVANTAGES = {
    "rloo": lambda r: r - (r.sum() - r) / 3,
    "mean": lambda r: r - r.mean(),
    "grpo": lambda r: (r - r.mean()) / (r.std() + 1e-8),
    "grpo, by n - 1": lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-8),
}
TRUE = [0.184238549, -0.062252332, -0.121986217]


def test_moments_of_group_baselines():
    """The numbers of the page, and more of their digits."""
    found = {name: moments(of) for name, of in ADVANTAGES.items()}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(found["rloo"][0], TRUE)
    close(found["rloo"][1].sum(), 0.02902816)
    close(found["mean"][0], 0.75 * np.array(TRUE))
    close(found["mean"][1].sum(), 0.01632834)
    close(found["grpo"][0], [0.353908482, -0.156430492, -0.19747799])
    close(found["grpo"][1].sum(), 0.160512006)
    close(found["grpo, by n - 1"][0], [0.306493736, -0.13547278, -0.171020956])
    close(found["grpo, by n - 1"][1].sum(), 0.120384005)
    text = PAGE.read_text(encoding="utf-8")
    for name in ("rloo", "mean", "grpo"):
        mean, variance = found[name]
        numbers = f"| {variance.sum():.4g} | {mean @ mean / variance.sum():.3g} |"
        assert numbers.replace("| 0.", "| .") in text
    assert "(.3539, -.1564, -.1975)" in text


@pytest.mark.statistical
def test_groups_under_expectation():
    @functools.partial(ge.expectation, num_samples=4, baseline="leave_one_out", has_aux=True)
    def choices(logits, key):
        reward = jnp.sum(REWARDS * ge.score_function()(key, dists.OneHotCategorical(logits)))
        return reward, reward

    def grpo(logits, key):
        value, rewards = choices(logits, key)
        return 0.75 * value / (jnp.std(jax.lax.stop_gradient(rewards)) + 1e-4), value

    @jax.jit
    @jax.vmap
    def gradients(key):
        of = lambda loss: jax.grad(lambda logits: loss(logits, key)[0])(jnp.asarray(LOGITS))
        return {"grpo": of(grpo), "rloo": of(choices)}

    # Beside a deviation of exactly zero it is rounding that is divided by the addend.
    advantages = ADVANTAGES | {"grpo": lambda r: (r - r.mean()) / (r.std() + 1e-4)}
    for name, got in gradients(keys(100_000)).items():
        mean, variance = moments(advantages[name])
        assert_unbiased(got, mean)
        assert_variance(got, variance)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(1.05 * got, mean)
