"""The annealed leaf is on its schedule, and nothing else notices that it is."""

import functools
import math
from typing import NamedTuple

import chex
import flax.linen as nn
import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradest import anneal, anneal_on_plateau, with_annealing


@pytest.fixture
def standard_promotion():
    """For those of optax's own transformations that mix integers and floats, as adam does."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def follow(optimizer, params, num_updates, grads=None, **extra_args):
    """The parameters after each of `num_updates` jitted updates, in a list; and the state."""
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads

    @jax.jit
    def step(params, state, extra_args):
        updates, state = optimizer.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state, path = optimizer.init(params), []
    for k in range(num_updates):
        params, state = step(params, state, {name: v[k] for name, v in extra_args.items()})
        path.append(params)
    return path, state


def run_plateau(optimizer, losses, leaf=None):
    leaf = jnp.float32(1.0) if leaf is None else leaf
    path, _ = follow(optimizer, leaf, len(losses), value=losses)
    return [float(x) for x in path]


# --- anneal -------------------------------------------------------------------------------


def jang(r, every):
    return optax.exponential_decay(
        1.0, transition_steps=every, decay_rate=math.exp(-r * every), staircase=True, end_value=0.5
    )


@pytest.mark.parametrize(("r", "every"), [(1e-4, 500), (1e-3, 100), (1e-4, 1000)])
def test_jang_schedule_over_a_scan_of_8000_updates(r, every):
    schedule = jang(r, every)
    optimizer = anneal(schedule)

    def step(carry, _):
        temperature, state, k = carry
        update, state = optimizer.update(jnp.zeros(()), state, temperature)
        temperature = optax.apply_updates(temperature, update)
        return (temperature, state, k + 1), (temperature, schedule(k + 1))

    start = jnp.asarray(schedule(0))
    carry = (start, optimizer.init(start), jnp.int32(0))
    _, (path, target) = jax.jit(lambda c: jax.lax.scan(step, c, length=8000))(carry)

    # To the last bit the schedule's own value, after 8000 moves.
    np.testing.assert_array_equal(path, target)
    # And the schedule is the formula. The float32 decay rate, half an ulp off, is raised to
    # a power of at most t / N = 80, with up to as many roundings: 80 ulp of 0.5..1 is 1e-5,
    # where one update's delay at a change of temperature would show as 1 - exp(-r N) >= 4.8e-2.
    t = np.arange(1, 8001)
    formula = np.maximum(0.5, np.exp(-r * every * (t // every)))
    np.testing.assert_allclose(path, formula, rtol=(1 + 8000 // every) * 2.0**-23)
    assert path[every - 2] == 1.0
    assert path[every - 1] < 1.0


def test_slope_grows():
    schedule = optax.linear_schedule(1.0, 5.0, transition_steps=8)
    path, _ = follow(anneal(schedule), jnp.float32(1.0), 10)
    assert [float(x) for x in path] == [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_exact_in_the_type_of_the_leaf(dtype):
    schedule = lambda k: 0.1 + 2.9 * jnp.exp(-0.01 * k.astype(jnp.float32))
    path, _ = follow(anneal(schedule), jnp.asarray(3.0, dtype), 400)
    assert all(x.dtype == dtype for x in path)
    expected = [jax.jit(schedule)(jnp.int32(k)).astype(dtype) for k in range(1, 401)]
    np.testing.assert_array_equal(jnp.stack(path), jnp.stack(expected))


def test_a_long_move_is_off_by_its_rounding_once():
    # From 1, no float32 can be added that gives 1e-3: sums are multiples of 2^-24.
    path, _ = follow(anneal(optax.constant_schedule(1e-3)), jnp.float32(1.0), 2)
    assert path[0] != jnp.float32(1e-3)
    assert abs(path[0] - 1e-3) <= 2.0**-25
    assert path[1] == jnp.float32(1e-3)


def test_float64(x64):
    schedule = lambda k: 0.9 ** (k.astype(jnp.float64) / 7)
    path, _ = follow(anneal(schedule), jnp.asarray(1.0, jnp.float64), 50)
    assert path[-1].dtype == jnp.float64
    np.testing.assert_allclose(path[-1], 0.9 ** (50 / 7), rtol=1e-14)


@pytest.mark.parametrize(
    "schedule",
    [
        optax.cosine_decay_schedule(1.0, 10),
        optax.piecewise_constant_schedule(1.0, {3: 0.5}),
        optax.piecewise_interpolate_schedule("linear", 1.0, {3: 0.5}),
        optax.polynomial_schedule(1.0, 0.5, 2, 10),
        optax.join_schedules(
            [optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.5, 5)], [3]
        ),
        optax.constant_schedule(0.75),
    ],
)
def test_schedules_of_optax_serve_under_strict_promotion(schedule):
    path, _ = follow(anneal(schedule), jnp.float32(1.0), 6)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(path[-1], schedule(jnp.int32(6)), rtol=1e-6)


def test_every_leaf_of_a_tree_whatever_its_shape_and_gradient():
    params = {"a": jnp.ones(()), "b": [jnp.full((2, 3), 7.0), jnp.zeros(4, jnp.bfloat16)]}
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    path, _ = follow(anneal(optax.linear_schedule(1.0, 0.0, 4)), params, 2, grads)
    expected = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    chex.assert_trees_all_equal(path[-1], expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(path[-1], params)


def test_a_python_float_leaf():
    path, _ = follow(anneal(optax.constant_schedule(0.25)), {"temperature": 1.0}, 1)
    assert path[0]["temperature"] == 0.25


def test_a_schedule_of_one_value_per_element():
    schedule = lambda k: jnp.array([1.0, 2.0]) / k
    path, _ = follow(anneal(schedule), jnp.array([1.0, 2.0]), 2)
    np.testing.assert_array_equal(path[-1], [0.5, 1.0])
    path, _ = follow(anneal(schedule), jnp.ones((3, 2)), 1)
    np.testing.assert_array_equal(path[-1], [[1.0, 2.0]] * 3)
    with pytest.raises(ValueError, match="broadcast"):
        follow(anneal(schedule), jnp.ones(()), 1)


def test_the_count_saturates():
    optimizer = anneal(lambda k: k / 2.0**31)
    leaf = jnp.float32(1.0)
    last = jnp.iinfo(jnp.int32).max
    state = optimizer.init(leaf)._replace(step=jnp.int32(last - 1))  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(3):
        update, state = jax.jit(optimizer.update)(leaf, state, leaf)
        leaf = optax.apply_updates(leaf, update)
        assert int(state.step) == last
        assert leaf > 0  # pyright: ignore[reportOperatorIssue]


# --- with_annealing -----------------------------------------------------------------------


def model():
    return {
        "w": jnp.array([1.0, -2.0, 3.0]),
        "encoder": {"kernel": 0.3 * jnp.ones((2, 2)), "slope": jnp.float32(1.0)},
        "temperature": jnp.float32(1.0),
    }


def model_loss(params, x):
    hidden = jnp.tanh(params["encoder"]["slope"] * (params["encoder"]["kernel"] @ x[:2]))
    return jnp.sum((params["w"] * x - jnp.sum(hidden)) ** 2) / params["temperature"]


SCHEDULES = {
    "temperature": jang(1e-2, 5),
    "encoder.slope": optax.linear_schedule(1.0, 5.0, transition_steps=20),
}

OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "clip and adam": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)),
    "sgd with momentum": optax.sgd(1e-2, momentum=0.9),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
}


def train(optimizer, params, state, steps):
    @jax.jit
    def step(params, state, x):
        grads = jax.grad(model_loss)(params, x)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in steps:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (3,))
        params, state = step(params, state, x)
    return params, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_leaves_get_the_inner_optimizer_alone(name, standard_promotion):
    inner = OPTIMIZERS[name]
    optimizer = with_annealing(inner, SCHEDULES)
    params = model()
    state = optimizer.init(params)
    others = lambda tree: {"w": tree["w"], "kernel": tree["encoder"]["kernel"]}
    alone_state = inner.init(others(params))
    update, alone_update = jax.jit(optimizer.update), jax.jit(inner.update)
    for k in range(1, 21):
        grads = jax.grad(model_loss)(params, jnp.array([0.5, -1.0, 2.0]))
        # Gradients that would swamp a global norm, and then poison it.
        grads["temperature"] = jnp.float32(jnp.nan if k % 2 else 1e30)
        updates, state = update(grads, state, params)
        alone, alone_state = alone_update(others(grads), alone_state, others(params))
        chex.assert_trees_all_equal(others(updates), alone)
        params = optax.apply_updates(params, updates)
        # Another program rounds a schedule in another way.
        close = functools.partial(np.testing.assert_allclose, rtol=3e-7)
        close(params["temperature"], SCHEDULES["temperature"](k))  # pyright: ignore
        close(params["encoder"]["slope"], SCHEDULES["encoder.slope"](k))  # pyright: ignore


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_from_a_checkpoint_is_bitwise_the_uninterrupted_run(name, standard_promotion):
    optimizer = with_annealing(OPTIMIZERS[name], SCHEDULES)
    params, state = model(), optimizer.init(model())
    whole = train(optimizer, params, state, range(20))
    half = train(optimizer, params, state, range(10))
    saved = flax.serialization.to_bytes(half)
    blank = jax.tree.map(jnp.zeros_like, (params, state))
    restored = flax.serialization.from_bytes(blank, saved)
    chex.assert_trees_all_equal(train(optimizer, *restored, range(10, 20)), whole)  # pyright: ignore[reportCallIssue]
    # Without the state the schedules would begin again, and with them the run.
    begun_again, _ = train(optimizer, restored[0], optimizer.init(params), range(10, 20))  # pyright: ignore[reportArgumentType]
    assert begun_again["temperature"] != whole[0]["temperature"]


def test_no_retrace(standard_promotion):
    optimizer = with_annealing(
        optax.adam(1e-2),
        {"temperature": SCHEDULES["temperature"], "encoder": anneal_on_plateau(2.0, patience=1)},
    )

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, loss):
        updates, state = optimizer.update(params, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params, state = model(), optimizer.init(model())
    for _ in range(12):
        params, state = step(params, state, jnp.float32(1.0))
    assert params["temperature"] < 1.0
    assert params["encoder"]["slope"] < 1.0


class Layer(NamedTuple):
    logits: jax.Array
    temperature: jax.Array


@flax.struct.dataclass
class Tree:
    layers: list
    head: Layer


def test_paths_through_lists_namedtuples_and_dataclasses():
    layer = lambda: Layer(logits=jnp.ones(2), temperature=jnp.float32(1.0))
    params = Tree(layers=[layer(), layer()], head=layer())
    schedules = {
        "layers.1.temperature": optax.constant_schedule(0.5),
        "head.temperature": optax.constant_schedule(2.0),
    }
    path, _ = follow(with_annealing(optax.sgd(0.25), schedules), params, 1)
    stepped = Layer(logits=jnp.full(2, 0.75), temperature=jnp.asarray(0.75))
    expected = Tree(
        layers=[stepped, stepped._replace(temperature=jnp.asarray(0.5))],
        head=stepped._replace(temperature=jnp.asarray(2.0)),
    )
    chex.assert_trees_all_equal(path[0], expected)


def test_parameters_of_a_flax_module():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            temperature = self.param("temperature", nn.initializers.ones, ())
            return nn.Dense(2, name="dense")(x) / temperature

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Encoder(name="encoder")(x)

    params = Model().init(jax.random.key(0), jnp.ones((1, 3)))
    schedules = {"params.encoder.temperature": optax.constant_schedule(0.5)}
    path, _ = follow(with_annealing(optax.sgd(1.0), schedules), params, 1)
    before, after = params["params"]["encoder"], path[0]["params"]["encoder"]
    assert after["temperature"] == 0.5
    np.testing.assert_array_equal(after["dense"]["kernel"], before["dense"]["kernel"] - 1)  # pyright: ignore[reportOperatorIssue]


def test_a_path_to_a_subtree_anneals_all_of_it_and_only_it():
    params = {"tau": {"a": jnp.ones(()), "b": jnp.ones(2)}, "tau_logits": jnp.ones(2)}
    optimizer = with_annealing(optax.sgd(0.25), {"tau": optax.constant_schedule(0.5)})
    path, _ = follow(optimizer, params, 1)
    half = {"a": jnp.asarray(0.5), "b": jnp.full(2, 0.5)}
    expected = {"tau": half, "tau_logits": jnp.full(2, 0.75)}
    chex.assert_trees_all_equal(path[0], expected)


def test_a_leaf_may_be_called_like_the_optimizer():
    params = {"optimizer": jnp.ones(()), "w": jnp.ones(())}
    optimizer = with_annealing(optax.sgd(0.25), {"optimizer": optax.constant_schedule(0.5)})
    path, _ = follow(optimizer, params, 1)
    assert path[0] == {"optimizer": 0.5, "w": 0.75}


def test_extra_arguments_reach_the_inner_optimizer(standard_promotion):
    inner = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    optimizer = with_annealing(inner, {"temperature": optax.constant_schedule(0.5)})
    params = {"w": jnp.zeros(()), "temperature": jnp.ones(())}
    path, _ = follow(optimizer, params, 3, value=[1.0, 1.0, 1.0])
    assert [float(p["w"]) for p in path] == [-1.0, -1.5, -1.75]
    assert path[-1]["temperature"] == 0.5


def test_an_optimizer_without_extra_arguments_is_not_given_them():
    optimizer = with_annealing(optax.scale(-1.0), {"temperature": anneal_on_plateau(1.0)})
    params = {"w": jnp.zeros(()), "temperature": jnp.ones(())}
    path, _ = follow(optimizer, params, 1, value=[1.0])
    assert path[0] == {"w": -1.0, "temperature": 1.0}


def test_no_schedules_is_the_optimizer():
    path, _ = follow(with_annealing(optax.sgd(0.25), {}), {"w": jnp.ones(())}, 1)
    assert path[0] == {"w": 0.75}


# --- anneal_on_plateau --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "losses", "expected"),
    [
        # Best 3, 2; then two values that do not beat 2: a plateau at the fourth update. The
        # count begins anew: 2 twice more is the next one. 1 is an improvement.
        (
            {"patience": 2},
            [3.0, 2.0, 2.0, 2.5, 2.0, 2.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125],
        ),
        # 0.95 improves on 1 by less than 10%, 0.89 by more; then 0.85 does not improve on it.
        ({"patience": 1, "rtol": 0.1}, [1.0, 0.95, 0.89, 0.85], [1.0, 0.5, 0.5, 0.25]),
        # By default one part in 10,000 is an improvement, and half of that is not.
        ({"patience": 1}, [1.0, 0.9998, 0.99975], [1.0, 1.0, 0.5]),
        # -1.4 and -1.5 are not 0.5 below -1; -1.6 is.
        (
            {"patience": 1, "rtol": 0.0, "atol": 0.5},
            [-1.0, -1.4, -1.5, -1.6],
            [1.0, 0.5, 0.25, 0.25],
        ),
        # After a plateau the next two values are not counted.
        (
            {"patience": 1, "cooldown": 2},
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [1.0, 0.5, 0.5, 0.5, 0.25],
        ),
        # Means 1, 1 and 0.5 of pairs: the second is a plateau, the third improves.
        (
            {"patience": 1, "accumulation_size": 2},
            [0.0, 2.0, 2.0, 0.0, 0.0, 1.0],
            [1.0, 1.0, 1.0, 0.5, 0.5, 0.5],
        ),
        (
            {"patience": 1, "factor": 0.25, "min_value": 0.125},
            [1.0, 1.0, 1.0, 1.0],
            [1.0, 0.25, 0.125, 0.125],
        ),
        # A loss that is not a number is no improvement.
        ({"patience": 1}, [1.0, math.nan, 0.5], [1.0, 0.5, 0.5]),
    ],
)
def test_plateaus_worked_by_hand(options, losses, expected):
    assert run_plateau(anneal_on_plateau(1.0, **options), losses) == expected


def test_plateau_puts_the_leaf_on_its_initial_value():
    losses = [1.0, 1.0, 1.0]
    assert run_plateau(anneal_on_plateau(4.0, patience=1), losses) == [4.0, 2.0, 1.0]


def test_plateau_factors_do_not_drift_in_bfloat16():
    leaf = jnp.asarray(1.0, jnp.bfloat16)
    optimizer = anneal_on_plateau(1.0, factor=0.9, patience=1)
    path = run_plateau(optimizer, [1.0] * 21, leaf)
    # A bfloat16 has 8 bits; the product of twenty rounded factors would be off by several.
    expected = [float(jnp.asarray(0.9**n, jnp.bfloat16)) for n in range(21)]
    assert path == expected


@pytest.mark.parametrize("loss", [1, 1.0, np.float64(1.0), jnp.bfloat16(1.0)])
def test_plateau_takes_a_loss_of_any_real_type(loss):
    optimizer, leaf = anneal_on_plateau(1.0, patience=1), jnp.float32(1.0)
    state = optimizer.init(leaf)
    for _ in range(2):
        update, state = optimizer.update(leaf, state, leaf, value=loss)
        leaf = optax.apply_updates(leaf, update)
    assert leaf == 0.5


def test_plateau_and_schedule_side_by_side_under_scan(standard_promotion):
    optimizer = with_annealing(
        optax.adam(1e-2),
        {
            "temperature": anneal_on_plateau(1.0, patience=2, min_value=0.1),
            "encoder.slope": SCHEDULES["encoder.slope"],
        },
    )

    def step(carry, loss):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["temperature"], params["encoder"]["slope"])  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]

    losses = jnp.array([1.0] * 9)
    _, (temperature, slope) = jax.lax.scan(step, (model(), optimizer.init(model())), losses)
    halved = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.1]
    np.testing.assert_array_equal(temperature, np.float32(halved))  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(slope, 1.0 + 0.2 * np.arange(1, 10), rtol=1e-6)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_plateau_resumes_from_a_checkpoint():
    optimizer = anneal_on_plateau(1.0, factor=0.7, patience=2, cooldown=1, accumulation_size=2)
    losses = [float(x) for x in jax.random.uniform(jax.random.key(1), (40,)) + 1.0]
    leaf = jnp.float32(1.0)
    whole, whole_state = follow(optimizer, leaf, 40, value=losses)
    half, state = follow(optimizer, leaf, 17, value=losses)
    blank = jax.tree.map(jnp.zeros_like, (leaf, state))
    leaf, state = flax.serialization.from_bytes(
        blank, flax.serialization.to_bytes((half[-1], state))
    )
    update_fn = jax.jit(optimizer.update)
    for loss in losses[17:]:
        update, state = update_fn(leaf, state, leaf, value=loss)
        leaf = optax.apply_updates(leaf, update)  # pyright: ignore[reportArgumentType]
    chex.assert_trees_all_equal((leaf, state), (whole[-1], whole_state))
    assert leaf < half[-1] < 1.0


# --- errors -------------------------------------------------------------------------------


def test_anneal_needs_a_function():
    with pytest.raises(TypeError, match=r"^schedule: .*got 0\.5\. .*optax\.constant_schedule"):
        anneal(0.5)  # pyright: ignore[reportArgumentType]


def test_anneal_is_not_for_a_transformation():
    with pytest.raises(TypeError, match=r"^schedule: expected a function"):
        anneal(optax.sgd(0.1))  # pyright: ignore[reportArgumentType]


BOTH = [anneal(optax.constant_schedule(1.0)), anneal_on_plateau(1.0)]


@pytest.mark.parametrize("optimizer", BOTH)
def test_params_are_needed(optimizer):
    leaf = jnp.float32(1.0)
    with pytest.raises(ValueError, match=r"^params: .*got None.*update\(grads, state, params\)"):
        optimizer.update(leaf, optimizer.init(leaf), value=1.0)


def test_params_are_needed_inside_with_annealing():
    optimizer = with_annealing(optax.sgd(0.1), {"a": optax.constant_schedule(1.0)})
    params = {"a": jnp.float32(1.0)}
    with pytest.raises(ValueError, match=r"^params: .*got None"):
        optimizer.update(params, optimizer.init(params))


@pytest.mark.parametrize("leaf", [1, jnp.int32(1), True, 1j])
@pytest.mark.parametrize("optimizer", BOTH)
def test_a_leaf_that_is_no_float(optimizer, leaf):
    expected = r"^params: expected .*floating.*at 'a\.b'.*Make it a float"
    with pytest.raises(TypeError, match=expected):
        optimizer.init({"a": {"b": leaf}})


def test_with_annealing_needs_schedules():
    expected = r"^schedules\['temperature'\]: .*got 0\.5\. .*optax\.constant_schedule"
    with pytest.raises(TypeError, match=expected):
        with_annealing(optax.sgd(0.1), {"temperature": 0.5})  # pyright: ignore[reportArgumentType]


def test_a_wrong_path():
    optimizer = with_annealing(optax.sgd(0.1), {"encoder.slop": optax.constant_schedule(1.0)})
    with pytest.raises(ValueError, match=r"^schedules: ") as error:
        optimizer.init(model())
    assert str(error.value) == (
        "schedules: expected the path of a parameter, got 'encoder.slop', where there is none. "
        "Did you mean 'encoder.slope'? "
        "The parameters are: encoder.kernel, encoder.slope, temperature, w."
    )


def test_a_wrong_path_is_matched_with_subtrees_too():
    optimizer = with_annealing(optax.sgd(0.1), {"encodr": optax.constant_schedule(1.0)})
    with pytest.raises(ValueError, match=r"got 'encodr'.*Did you mean 'encoder'\?"):
        optimizer.init(model())


def test_a_wrong_path_like_no_other_gets_the_list_alone():
    optimizer = with_annealing(optax.sgd(0.1), {"zzz": optax.constant_schedule(1.0)})
    with pytest.raises(ValueError, match=r"got 'zzz', where there is none\. The parameters are"):
        optimizer.init(model())


def test_half_a_key_is_not_a_path():
    optimizer = with_annealing(optax.sgd(0.1), {"temp": optax.constant_schedule(1.0)})
    with pytest.raises(ValueError, match=r"got 'temp'"):
        optimizer.init(model())


def test_a_leaf_renamed_after_init():
    optimizer = with_annealing(optax.sgd(0.1), {"tau": optax.constant_schedule(1.0)})
    state = optimizer.init({"tau": jnp.float32(1.0), "w": jnp.float32(1.0)})
    renamed = {"temperature": jnp.float32(1.0), "w": jnp.float32(1.0)}
    with pytest.raises(ValueError, match=r"got 'tau', where there is none\..*temperature, w"):
        jax.jit(optimizer.update)(renamed, state, renamed)


def test_two_paths_to_one_leaf():
    constant = optax.constant_schedule(1.0)
    optimizer = with_annealing(optax.sgd(0.1), {"encoder": constant, "encoder.slope": constant})
    expected = r"one path to lead to 'encoder\.slope', got \['encoder', 'encoder\.slope'\]"
    with pytest.raises(ValueError, match=expected):
        optimizer.init(model())


def test_plateau_needs_the_loss():
    optimizer = with_annealing(optax.sgd(0.1), {"temperature": anneal_on_plateau(1.0)})
    params = model()
    with pytest.raises(ValueError, match=r"^value: .*got None.*state, params, value=loss\)"):
        optimizer.update(params, optimizer.init(params), params)


def test_plateau_needs_one_loss():
    optimizer, leaf = anneal_on_plateau(1.0), jnp.float32(1.0)
    with pytest.raises(ValueError, match=r"^value: expected one loss.*\(3,\)\. Pass its mean"):
        optimizer.update(leaf, optimizer.init(leaf), leaf, value=jnp.ones(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("init_value", 0.0),
        ("init_value", -1.0),
        ("init_value", math.inf),
        ("factor", 0.0),
        ("factor", 1.0),
        ("factor", math.nan),
        ("patience", 0),
        ("patience", 2.5),
        ("rtol", -0.1),
        ("rtol", 1.0),
        ("atol", -1.0),
        ("atol", math.inf),
        ("cooldown", -1),
        ("accumulation_size", 0),
        ("min_value", -0.5),
        ("min_value", 1.5),
    ],
)
def test_plateau_hyperparameters_out_of_range(name, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected .* got {value}\.$"):
        anneal_on_plateau(**{"init_value": 1.0, name: value})


def test_plateau_needs_a_tolerance():
    with pytest.raises(ValueError, match=r"^rtol, atol: .*got \(0\.0, 0\.0\)\.$"):
        anneal_on_plateau(1.0, rtol=0.0, atol=0.0)
