"""What is said to who writes a call as another library would have it, or what beginners write."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradest
from gradest import records

# Calls that a checker of types would refuse.
ge: Any = gradest
dists: Any = gradest.distributions

KEY = jax.random.key(0)
BITS = dists.Bernoulli(jnp.zeros(2))


@pytest.mark.parametrize("name", records.ESTIMATORS)
def test_an_estimator_is_no_sampler(name):
    make = getattr(ge, name)
    for arguments in ((KEY, BITS), (BITS,), (jax.random.PRNGKey(0), BITS)):
        with pytest.raises(TypeError, match=rf"{name}: .*sampler = ge\.{name}\(\)"):
            make(*arguments)
    with pytest.raises(TypeError, match=rf"{name}: got an unexpected option colour="):
        make(colour=1)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda: ge.gumbel_softmax(tau=0.5), r"unexpected option tau=\. Use temperature="),
        (lambda: ge.rebar(temperatur=0.5), r"unexpected option temperatur=\. Use temperature="),
        (lambda: ge.vimco(n_samples=4), r"Use num_samples="),
        (lambda: ge.score_function(num_sample=4), r"Use num_samples="),
        (lambda: ge.gumbel_softmax(0.5, hard=True), r"st_gumbel_softmax\(temperature\)"),
        (lambda: ge.rebar(logits=jnp.zeros(2)), r"gradest\.rebar\(\), then"),
        (lambda: ge.arm(tau=0.5), r"Its options: none"),
        (lambda: BITS.sample(KEY, 3), r"Bernoulli\.sample: shape: expected a tuple.*\(3,\)"),
        (
            lambda: BITS.sample(KEY, np.int64(3)),
            r"Bernoulli\.sample: shape: expected a tuple.*\(3,\)",
        ),
        (lambda: BITS.sample(KEY, shape=3), r"shape: expected a tuple.*\(3,\)"),
        (lambda: BITS.sample(seed=KEY), r"unexpected argument seed=\. Use key="),
        (lambda: BITS.sample(KEY, sample_shape=(3,)), r"sample_shape=\. Use shape="),
        (lambda: BITS.sample((3,), KEY), r"key: .* got a tuple\. Keys come first: sample\(key,"),
        (lambda: BITS.sample(0), r"got int\. Of a seed make one: jax\.random\.key\(0\)"),
        (lambda: BITS.sample_and_log_prob(seed=KEY), r"_log_prob: .* argument seed=\. Use key="),
        (lambda: BITS.sample(KEY, KEY), r"shape: .* got a key"),
        (lambda: ge.rebar()(BITS, seed=KEY), r"rebar: .* seed=\. The key is the first argument"),
        (lambda: ge.rebar()(KEY, BITS, (3,)), r"expected sampler\(key, dist\), got 3 .*jax\.vmap"),
        (lambda: ge.arm()(KEY, BITS, sample_shape=(3,)), r"arm: .*sample_shape=\. .*jax\.vmap"),
        (lambda: ge.gumbel_softmax(), r"gumbel_softmax: expected temperature, got none"),
        (lambda: ge.gumbel_softmax(1.0)(KEY, BITS, tau=1.0), r"tau=\. Options are the estimator's"),
        (lambda: ge.rebar()(7, BITS), r"got int\. Of a seed make one: jax\.random\.key\(7\)"),
        (lambda: ge.rebar().expect(KEY, BITS), r"sampler\.expect\(key, dist, cost\), got no cost"),
        (lambda: ge.rebar().expect(KEY, BITS, 1.0), r"cost: expected a function .* got float"),
        (lambda: ge.rebar()(KEY, jnp.zeros(2)), r"gradest\.distributions\.Bernoulli\(logits\)"),
        (lambda: ge.rebar()(nnx.Rngs(0), BITS), r"got Rngs\. Take a key of it: rngs\(\)"),
        (lambda: dists.OneHotCategorical(jnp.zeros(3)).log_prob(1), r"jax\.nn\.one_hot\(x, 3\)"),
        (lambda: BITS.sample(), r"Bernoulli\.sample: expected sample\(key, shape\), got no key"),
        (lambda: ge.score_function(4), r"expected its options by name, got 4 .*num_samples"),
        (lambda: ge.expectation(jnp.sum, n_samples=2), r"n_samples=\. Use num_samples="),
        (lambda: ge.expectation(jnp.sum, (KEY,)), r"has_aux: .* got tuple.*expectation\(loss\)\("),
        (lambda: dists.Normal(mu=0.0, sigma=1.0), r"Normal: .* parameter mu=\. Use loc="),
        (lambda: dists.Bernoulli(p=0.3), r"parameter p=\. Use probs="),
        (lambda: dists.Gamma(alpha=1.0, beta=1.0), r"alpha=\. Use concentration="),
        (lambda: dists.Normal(0.0, scal=1.0), r"scal=\. Use scale="),
        (lambda: dists.Poisson(colour=1.0), r"colour=\. Its parameters: rate"),
        (lambda: ge.expectation(lambda l: None)(0.0), "got None"),
        (lambda: ge.expectation(lambda l: (l, 1))(0.0), r"expectation\(loss, has_aux=True\)"),
        (lambda: ge.rebar().expect(KEY, BITS, lambda z: (z[0], z)), "real scalar, got a tuple"),
        (lambda: ge.rebar().expect(KEY, BITS, lambda z: None), "real scalar, got None"),
    ],
)
def test_answers(call, answer):
    with pytest.raises((TypeError, ValueError), match=answer):
        call()


def test_what_elsewhere_is_an_attribute():
    with pytest.raises(AttributeError, match=r"Normal has no attribute rsample.*reparameterize"):
        dists.Normal(0.0, 1.0).rsample  # noqa: B018  # pyright: ignore
    assert not hasattr(BITS, "colour")
    with pytest.raises(AttributeError, match=r"Sampler has no attribute sample\. Call it: sampler"):
        ge.rebar().sample(KEY, BITS)
    with pytest.raises(AttributeError, match=r"no attribute batch_shape\. Use shape"):
        BITS.batch_shape  # noqa: B018


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("reinforce", "Use score_function"),
        ("Bernoulli", r"Use gradest\.distributions\.Bernoulli"),
        ("gumbel_sofmax", r"Did you mean gumbel_softmax\?"),
        ("nothing_like_it", "nothing_like_it.$"),
        ("distributions.Gaussian", "Use Normal"),
        ("distributions.BernoulliLogits", r"Did you mean Bernoulli\?"),
        ("distributions.HalfCauchy", "numpyro, distrax and TFP may be given"),
    ],
)
def test_names_that_others_have(name, answer):
    *of, name = name.split(".")
    with pytest.raises(AttributeError, match=answer):
        getattr(dists if of else ge, name)


def test_a_python_if_on_a_draw():
    def my_loss(l, key):
        if ge.rebar()(key, dists.Bernoulli(l)) > 0.5:
            return l
        return -l

    with pytest.raises(jax.errors.TracerBoolConversionError) as raised:
        ge.expectation(my_loss)(0.3, KEY)
    assert "my_loss" in str(raised.value)
    assert "jax.lax.cond" in str(raised.value)
    assert "flat" not in str(raised.value)


def my_function(z):
    return z if z > 0.5 else 2 * z


@pytest.mark.parametrize(
    "loss",
    [
        lambda l, key: ge.rebar().expect(key, dists.Bernoulli(l), my_function),
        lambda l, key: ge.reparameterize().expect(key, dists.Normal(l, 1.0), my_function),
        ge.expectation(
            lambda l, key: ge.enumeration().expect(key, dists.Bernoulli(l), my_function)
        ),
        ge.expectation(lambda l, key: ge.while_loop(lambda x: x < 3, my_function, l, max_steps=4)),
        lambda l, key: ge.relax(lambda w, z: my_function(w * z), 0.3).expect(
            key, dists.Bernoulli(l), jnp.exp
        ),
    ],
    ids=["relaxed cost", "pathwise cost", "cost in a loss", "body of a loop", "surrogate"],
)
def test_a_branch_on_a_draw_in_a_function_of_the_users(loss):
    with pytest.raises(jax.errors.TracerBoolConversionError) as raised:
        jax.grad(loss)(0.3, KEY)
    message = str(raised.value)
    assert message.count("a draw has no value yet") == 1
    assert "jax.lax.cond" in message
    assert f"{__file__}:" in message
    assert os.path.dirname(gradest.__file__) not in message.partition("\n\n")[0]


@pytest.mark.parametrize(
    ("use", "error", "way_out"),
    [
        (lambda x: [1.0, 2.0][x], jax.errors.TracerIntegerConversionError, r"asarray\(values\)"),
        (lambda x: 1.0 * int(x), jax.errors.ConcretizationTypeError, r"draw\.astype\(int\)"),
        (lambda x: 1.0 * np.asarray(x), jax.errors.TracerArrayConversionError, "jax.numpy instead"),
        (
            lambda x: jnp.sum(jnp.arange(3.0)[jnp.arange(3) < x]),
            jax.errors.NonConcreteBooleanIndexError,
            r"jax\.numpy\.where\(mask, x, 0\)",
        ),
    ],
    ids=["list", "int", "numpy", "mask"],
)
def test_python_that_needs_to_know_a_draw(use, error, way_out):
    loss = lambda l, key: use(ge.score_function()(key, dists.Categorical(l)))
    with pytest.raises(error, match=f"(?s)a draw has no value yet.*{way_out}"):
        ge.expectation(loss)(jnp.zeros(2), KEY)


def test_a_flax_parameter_is_an_option():
    def loss(temperature, key):
        return ge.rebar(temperature=temperature).expect(key, BITS, lambda z: jnp.sum(z) ** 2)

    assert jnp.isfinite(loss(nnx.Param(jnp.float32(0.5)), KEY))
    with pytest.raises(ValueError, match="temperature: expected a finite number greater than 0"):
        ge.rebar(temperature=nnx.Param(jnp.float32(-0.5)))
