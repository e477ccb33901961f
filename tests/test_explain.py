"""`gradest.explain`: rows that are right, and shares that add up."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import gradest as ge
from gradest import distributions as dists
from gradest._downstream import probe

KEY = jax.random.key(0)
normal = lambda key, m: ge.reparameterize()(key, dists.Normal(m, 1.0))
bit = lambda sampler, key, l: sampler(key, dists.Bernoulli(l))


def of_everything(params, key):
    k = jax.random.split(key, 5)
    x = normal(k[0], params["m"])
    z = bit(ge.rebar(), k[1], params["l"] + x)
    w = bit(ge.score_function(), k[2], params["l"])

    def step(h, key):
        h = h + 0.1 * bit(ge.score_function(), key, params["l"] * h)
        return h, None

    h, _ = jax.lax.scan(step, 1.0, jax.random.split(k[3], 5))
    lanes = jax.vmap(lambda key, l: bit(ge.disarm(), key, l))(
        jax.random.split(k[4], 3), jnp.ones(3)
    )
    last = jax.lax.switch(
        (x > 100).astype(int), [lambda: 0.0, lambda: bit(ge.muprop(), k[1], x), lambda: 1.0]
    )
    return x**2 + z * jnp.where(w > 0.5, 1.0, 3.0) + jax.nn.relu(x) + h * z + jnp.sum(lanes) + last


def shares_of(found):
    """Those of the draws and, last, what is differentiated directly."""
    shares = [*(row.share for row in found.draws), found.direct]
    return np.array([share for share in shares if share is not None])


PARAMS = {"m": jnp.float32(0.3), "l": jnp.float32(0.2)}


@pytest.mark.filterwarnings("ignore")
def test_rows():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    rows = ge.explain(of_everything)(shapes, jax.eval_shape(lambda: KEY)).rows
    column = lambda name: [row[name] for row in rows]
    assert column("estimator") == [
        *("reparameterize", "rebar", "score_function", "score_function", "disarm", "muprop"),
    ]
    assert column("distribution") == ["Normal", *["Bernoulli"] * 5]
    assert column("where") == ["", "", "", "scan of 5", "vmapped 3", "branch 2 of 3"]
    assert column("later_draws") == [5, 4, 3, 2, 1, 0]
    assert column("cost_evaluations") == [1, 2, 1, 1, 2, 2]
    assert column("share") == [None] * 6
    assert rows[1]["follows"] == rows[3]["follows"] == rows[4]["follows"] == "smooth"
    assert rows[0]["follows"] == rows[2]["follows"] == "jump"
    lines = [int(re.fullmatch(rf"{re.escape(__file__)}:(\d+)", line)[1]) for line in column("line")]
    assert len(set(lines)) <= 2  # of `normal` and of `bit`
    assert all(re.search(rf"comparison \(at {re.escape(__file__)}", j) for j in rows[2]["jumps"])


def test_a_choice_that_nobody_could_look_at_is_said_to_be_unknown(monkeypatch):
    def loss(m, key):
        x = normal(key, m)
        return jnp.where(x > 0.5, x, 0.0)

    monkeypatch.setattr(probe, "_ALL_ELEMENTS", -1)
    found = ge.explain(loss)(0.3, KEY)
    (row,) = found.draws
    assert (row.follows, row.jumps) == ("unknown", ())
    (place,) = row.unknown
    assert re.fullmatch(rf"a comparison \(at {re.escape(__file__)}:\d+\)", place)
    assert f"is chosen by {place}; whether the cases meet there was not seen." in str(found)
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["unknown"] == [place]
    assert found.plot() is not None
    monkeypatch.undo()
    (row,) = ge.explain(loss)(0.3, KEY).draws
    assert (row.follows, row.unknown) == ("jump", ())


def test_others_are_right_there():
    def loss(l, key):
        a, b = jax.random.split(key)
        first = bit(ge.score_function(), a, l)
        steps = jax.lax.scan(
            lambda c, k: (c + bit(ge.score_function(), k, l), None), 0.0, jax.random.split(b, 2)
        )[0]
        return jnp.where(first > 0.5, 2.0, 1.0) * steps

    first, second = ge.explain(loss)(0.3, KEY).rows
    assert first["others"]["disarm"] == 2
    assert first["others"]["enumeration"] == 2
    assert "rebar" not in first["others"]  # it needs a slope
    assert "straight_through" not in first["others"]  # biased
    assert "vimco" not in first["others"]  # of a bound
    assert set(second["others"]) == {"relax"}  # no other estimator is in a scan


def test_shares_of_independent_draws():
    """Of 2x and 6y, with variances 4 and 36, and of what no draw is in."""

    def loss(m, key):
        a, b = jax.random.split(key)
        return normal(a, m) ** 2 + 3 * normal(b, m) ** 2 + m**2

    found = ge.explain(loss, num_draws=4000)(0.3, KEY)
    # The variance of x^2 - its - is 2: each share has a standard error of about 0.01.
    np.testing.assert_allclose(shares_of(found), [0.1, 0.9, 0], atol=0.03)


@pytest.mark.parametrize(
    "num_draws",
    [pytest.param(300, id="less than a chunk over"), pytest.param(512, id="chunks")],
)
def test_shares_add_up(num_draws):
    def loss(params, key):
        k = jax.random.split(key, 4)
        x = normal(k[0], params["m"])
        z = jax.jit(lambda l: bit(ge.rebar(), k[1], l + x))(params["l"])

        def step(h, key):
            return h + 0.1 * bit(ge.score_function(), key, params["l"] * h), None

        h, _ = jax.lax.scan(step, x, jax.random.split(k[2], 3))
        y = jax.lax.cond(z > 0.5, lambda: normal(k[3], h), lambda: jnp.sin(h))
        return (y + z) ** 2 + params["m"] * jax.lax.stop_gradient(y)

    found = ge.explain(loss, num_draws=num_draws)(PARAMS, KEY)
    assert [row.estimator for row in found.draws] == [
        *("reparameterize", "rebar", "score_function", "reparameterize"),
    ]
    assert np.sum(shares_of(found)) == pytest.approx(1, abs=1e-4)
    assert np.all(np.abs(shares_of(found)) > 1e-4)


def test_a_draw_keeps_its_control_variate_where_a_later_one_is_closed():
    """Of a draw that another follows, by REBAR both: its part is unbiased by itself."""

    def loss(l, key):
        a, b = jax.random.split(key)
        first = bit(ge.rebar(), a, l)
        return bit(ge.rebar(), b, 3 * first - 1.0) * 2.0 + 0.0 * l

    alone = ge.explain(loss, num_draws=512)(0.3, KEY)
    assert alone.draws[0].share == pytest.approx(1, abs=1e-5)  # the other one has no parameter of l


def test_legacy_keys_and_several_arguments():
    loss = lambda w, l, key: w * bit(ge.score_function(), key, l)
    key = jax.random.PRNGKey(0)
    found = ge.explain(loss, num_draws=256, argnums=(0, 1), key_argnum=2)(2.0, 0.3, key)
    assert np.all(shares_of(found) > 0)
    assert np.sum(shares_of(found)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(TypeError, match="key_argnum"):
        ge.explain(loss, num_draws=256)(2.0, 0.3, key)


def test_seeds():
    loss = lambda l, key: bit(ge.score_function(), key, l) + jnp.sin(l * normal(key, l))
    share = lambda seed: ge.explain(loss, num_draws=64, seed=seed)(0.3, KEY).draws[0].share
    assert share(0) == share(0) != share(1)


def test_what_it_prints():
    loss = lambda l, key: jnp.where(bit(ge.score_function(), key, l) > 0.5, 1.0, 3.0)
    found = ge.explain(loss, num_draws=64)(0.3, KEY)
    assert re.search(
        r"test_explain.py:\d+ +Bernoulli +score_function +- +jump +0 +1 +100%", str(found)
    )
    assert "what follows jumps at a comparison" in str(found)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found)
    assert "score_function" in console.export_text()
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["follows"] == "jump"
    assert str(ge.explain(lambda x, key: x)(0.3, KEY)).startswith("No draw")
    for picture in (found, ge.explain(loss)(0.3, KEY)):
        axes = picture.plot().axes[0]
        assert len(axes.patches) == len(picture.draws) + (picture.direct is not None)


def test_auxiliary_output_and_errors():
    loss = lambda l, key: (bit(ge.rebar(), key, l), 3)
    assert len(ge.explain(loss, has_aux=True)(0.3, KEY).rows) == 1
    with pytest.raises(TypeError, match="loss: expected a function"):
        ge.explain(3.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_draws"):
        ge.explain(loss, num_draws=1)
    with pytest.raises(TypeError, match="argnums"):
        ge.explain(loss, has_aux=True, argnums=1, num_draws=2)(0.3, KEY)
