"""Numbers that must not break: masks, huge logits, extreme temperatures, every precision.

Every estimator that gradest exports goes through all of it, whatever its parameters are called;
one that is added gets its row in `cases.CASES`, and in `OPTIONS` if it has options of note.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cases import CASES, DISTRIBUTIONS, FINITE, IMPLICIT, REPARAMETERIZABLE, surrogate

import gradest as ge
from gradest import distributions as dists

# ---- Every estimator, with every option that changes its formulas ----------------------------

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "score_function": [
        {"baseline": None},
        {},
        {"num_samples": 3},
        {"num_samples": 3, "baseline": "leave_one_out"},
        {"num_samples": 3, "baseline": "optimal"},
    ],
    "rebar": [
        {"relaxation": relaxation, "coupled": coupled}
        for relaxation in ("concrete", "muprop")
        for coupled in (True, False)
    ],
}

# What may be traced and trained, with a value that is nothing special.
HYPER = {"temperature": 0.5, "slope": 0.5, "eta": 0.8, "baseline": 0.3}

ESTIMATORS = {
    name: value
    for name, value in vars(ge).items()
    if getattr(value, "__module__", "").startswith("gradest.estimators")
}
# What cannot be made without arguments, with the arguments that it needs.
ESTIMATORS["relax"] = functools.partial(ge.relax, lambda _, x: surrogate(0.8, x), None)  # pyright: ignore[reportArgumentType]
for name in ("dreg", "stratified", "unordered_set", "vimco"):
    ESTIMATORS[name] = functools.partial(ESTIMATORS[name], 3)


def test_the_table_has_every_estimator():
    assert set(CASES) == set(ESTIMATORS)


class Cell(NamedTuple):
    """An estimator with options, and a distribution with a finite support."""

    name: str
    variant: int
    distribution: str

    @property
    def options(self):
        return OPTIONS.get(self.name, [{}])[self.variant]

    @property
    def hyper(self):
        """Names of the numbers that it takes and that its options leave open."""
        parameters = inspect.signature(ESTIMATORS[self.name]).parameters
        return [name for name in HYPER if name in parameters and name not in self.options]

    def sampler(self, **hyper):
        return ESTIMATORS[self.name](**self.options, **hyper)

    def __str__(self):
        options = ",".join(str(value) for value in self.options.values())
        return "-".join(part for part in (self.name, options, self.distribution) if part)


CELLS = [
    Cell(name, variant, distribution)
    for name, row in CASES.items()
    for variant in range(len(OPTIONS.get(name, [{}])))
    for distribution in row.record.distributions
    if distribution in FINITE
]
GRADIENT_CELLS = [cell for cell in CELLS if CASES[cell.name].record.estimates]

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
all_cells = functools.partial(pytest.mark.parametrize, "cell", ids=str)

INF = np.inf
EXTREME = {
    "Bernoulli": [-INF, INF, 1e4, -1e4, 0.5],
    "rows": [
        [0.3, -INF, 1.0, -INF],
        [-INF, 0.5, -INF, -INF],
        [1e4, -1e4, 1e4, -1e4],
        [-INF, -1e4, 1e4, 0.0],
    ],
}


def extreme_logits(distribution, dtype):
    return jnp.asarray(EXTREME.get(distribution, EXTREME["rows"]), dtype)


def cost(x, dtype):
    """Nonlinear, not separable, finite for an empty draw."""
    x = x.reshape(-1).astype(dtype)
    w = jnp.asarray(np.sin(1 + np.arange(x.size)), dtype)
    return (jnp.sum(w * x) - jnp.asarray(0.8, dtype)) ** 2 + jnp.sum(w * jnp.cos(x))


@functools.partial(jax.jit, static_argnums=0)
def evaluate(cell, key, logits, hyper):
    """Value and gradients of one estimate, and 100 draws."""
    kind = getattr(dists, cell.distribution)

    def loss(logits, hyper):
        of_draw = lambda x: cost(x, logits.dtype)
        return cell.sampler(**hyper).expect(key, kind(logits), of_draw)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(logits, hyper)
    draw = lambda key: cell.sampler(**hyper)(key, kind(jax.lax.stop_gradient(logits)))
    return value, gradients, jax.vmap(draw)(jax.random.split(key, 100))


def hyper_values(cell, **changed):
    return {name: jnp.float32(changed.get(name, HYPER[name])) for name in cell.hyper}


def extreme_hypers(cell):
    """Temperatures and slopes from 1e-3 to 1e3, with other numbers of either sign."""
    if not set(cell.hyper) & {"temperature", "slope"}:
        return [hyper_values(cell), hyper_values(cell, baseline=-1e3, eta=-2.0)]
    return [
        hyper_values(cell, temperature=t, slope=t, eta=eta, baseline=baseline)
        for t, eta, baseline in ((1e-3, 1.0, 0.3), (0.5, 0.0, -1e3), (1.0, -2.0, 0.0), (1e3, 1, 1))
    ]


def cells_and_dtypes():
    """Every cell in float32 and in half precision, one of each estimator in all types.

    With its first options every cell is in float16 too, in which alone a number of this size can
    overflow: bfloat16 and float64 have the range of float32, or a larger one.
    """
    seen = set()
    for cell in GRADIENT_CELLS:
        dtypes = [jnp.bfloat16, jnp.float32]
        if cell.variant == 0:
            dtypes = [jnp.float16, jnp.float32] if cell.name in seen else DTYPES
            seen.add(cell.name)
        for dtype in dtypes:
            yield pytest.param(cell, dtype, id=f"{cell}-{np.dtype(dtype).name}")


@pytest.mark.parametrize(("cell", "dtype"), list(cells_and_dtypes()))
def test_extreme_logits_and_temperatures(cell, dtype, x64):
    logits = extreme_logits(cell.distribution, dtype)
    certain = np.isinf(np.asarray(logits, np.float64))
    for seed, hyper in enumerate(extreme_hypers(cell)):
        value, (gradient, of_hyper), x = evaluate(cell, jax.random.key(seed), logits, hyper)
        assert np.isfinite(value)
        assert value.dtype == dtype
        assert np.isfinite(gradient).all()
        assert gradient.dtype == dtype
        assert (np.asarray(gradient)[certain] == 0).all()
        for name, g in of_hyper.items():
            assert np.isfinite(g), name
            assert g.dtype == jnp.float32
        assert_no_masked_category(cell.distribution, np.asarray(x, np.float64), certain)
        assert jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == dtype


def assert_no_masked_category(distribution, x, certain):
    if distribution == "Categorical":
        rows = np.broadcast_to(np.arange(x.shape[1]), x.shape)
        assert not certain[rows, x.astype(int)].any()
    elif distribution == "OneHotCategorical":
        assert (x[:, certain] == 0).all()
        np.testing.assert_allclose(x.sum(axis=-1), 1, atol=0.02)
    else:
        outcomes = (np.asarray(EXTREME["Bernoulli"]) > 0).astype(float)
        np.testing.assert_array_equal(x[:, certain], [outcomes[certain]] * len(x))


@all_cells([cell for cell in CELLS if not CASES[cell.name].record.estimates])
@all_dtypes
def test_extreme_logits_without_a_gradient(cell, dtype, x64):
    logits = extreme_logits(cell.distribution, dtype)
    dist = getattr(dists, cell.distribution)(logits)
    keys = jax.random.split(jax.random.key(0), 100)
    x = jax.jit(jax.vmap(lambda key: cell.sampler()(key, dist)))(keys)
    assert jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == dtype
    certain = np.isinf(np.asarray(logits, np.float64))
    assert_no_masked_category(cell.distribution, np.asarray(x, np.float64), certain)


@all_cells(GRADIENT_CELLS)
def test_the_same_inside_an_expectation(cell):
    kind, logits = getattr(dists, cell.distribution), extreme_logits(cell.distribution, jnp.float32)

    @ge.expectation
    def loss(logits, hyper, key):
        x = cell.sampler(**hyper)(key, kind(logits))
        return cost(x, jnp.float32)

    estimate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for seed, hyper in enumerate(extreme_hypers(cell)):
        value, (gradient, of_hyper) = estimate(logits, hyper, jax.random.key(seed))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[np.isinf(logits)] == 0).all()
        assert all(np.isfinite(g) for g in of_hyper.values())


def test_what_breaks_at_the_extremes_is_noticed():
    """Formulas written without care give NaN where the checks above look for it."""
    careless = lambda l, t: jnp.sum(jax.nn.softmax((l + 1.0) / t) * jnp.arange(3.0))
    masked = jnp.array([0.3, -INF, 1.0])
    assert np.isnan(jax.grad(careless, argnums=1)(masked, 0.5))
    score = lambda l: jnp.sum(jnp.array([1.0, 0.0, 0.0]) * jax.nn.log_softmax(l))
    assert np.isnan(score(masked))


@all_cells([cell for cell in GRADIENT_CELLS if cell.distribution != "Bernoulli"])
def test_one_category(cell):
    logits = jnp.array([[0.3], [-1e4], [1e4]])
    value, (gradient, of_hyper), x = evaluate(
        cell, jax.random.key(0), logits, hyper_values(cell, baseline=0.0)
    )
    certain = jnp.zeros(3, int) if cell.distribution == "Categorical" else jnp.ones((3, 1))
    np.testing.assert_array_equal(x, np.broadcast_to(certain, x.shape))
    np.testing.assert_allclose(value, cost(certain, jnp.float32), rtol=1e-6)
    # What has one outcome has no gradient.
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert all(np.isfinite(g) for g in of_hyper.values())


@all_cells(GRADIENT_CELLS)
def test_empty_batches(cell):
    logits = jnp.zeros((0, 3))
    value, (gradient, of_hyper), x = evaluate(
        cell, jax.random.key(0), logits, hyper_values(cell, baseline=0.0)
    )
    assert value == cost(x[0], jnp.float32)
    assert gradient.shape == (0, 3)
    assert x.shape == (100, *getattr(dists, cell.distribution)(logits).shape)
    for name, g in of_hyper.items():
        # A baseline is trained even so, towards a cost that does not vary.
        assert g == 0 or name == "baseline"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
@all_cells([cell for cell in GRADIENT_CELLS if cell.hyper and cell.distribution == "Bernoulli"])
def test_hyperparameters_of_half_precision(cell, dtype):
    """As they are in a tree of parameters that is all of one type."""
    logits = jnp.array([0.5, -0.3], dtype)
    hyper = {name: x.astype(dtype) for name, x in hyper_values(cell).items()}
    concrete = cell.sampler(**hyper)
    assert all(option.dtype == dtype for option in jax.tree.leaves(concrete))
    value, (gradient, of_hyper), x = evaluate(cell, jax.random.key(0), logits, hyper)
    assert value.dtype == gradient.dtype == x.dtype == dtype
    assert np.isfinite(gradient).all()
    for g in of_hyper.values():
        assert g.dtype == dtype
        assert np.isfinite(g)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, id=f"{name}-{np.dtype(dtype).name}")
        for name in REPARAMETERIZABLE
        for dtype in ([jnp.bfloat16] if name in IMPLICIT else DTYPES)
    ],
)
def test_reparameterized_draws_of_every_type(name, dtype, x64):
    dist = jax.tree.map(lambda leaf: leaf.astype(dtype), DISTRIBUTIONS[name]())

    def loss(dist):
        x = ge.reparameterize()(jax.random.key(0), dist)
        return cost(x, dtype), x

    (value, x), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(dist)
    assert value.dtype == x.dtype == dtype
    assert np.isfinite(value)
    for leaf, parameter in zip(jax.tree.leaves(gradient), jax.tree.leaves(dist), strict=True):
        assert leaf.dtype == dtype
        assert leaf.shape == parameter.shape
        assert np.isfinite(leaf).all()


# ---- Options out of range --------------------------------------------------------------------

POSITIVE = [
    (name, parameter)
    for name, function in ESTIMATORS.items()
    for parameter in inspect.signature(function).parameters
    if parameter in ("temperature", "slope")
]
FINITE_NUMBERS = [("rebar", "eta"), ("rebar", "baseline"), ("score_function", "baseline")]


def build(name, **changed):
    """The estimator with valid options but for those that are `changed`."""
    cell = Cell(name, 0, "")
    return ESTIMATORS[name](**{**cell.options, **hyper_values(cell), **changed})


@pytest.mark.parametrize("value", [0.0, -0.5, np.inf, np.nan, jnp.float32(-1.0), np.int64(0)])
@pytest.mark.parametrize(("name", "parameter"), POSITIVE)
def test_error_for_what_is_not_positive(name, parameter, value):
    given = repr(float(value))
    message = f"^{parameter}: expected a finite number greater than 0, got {given}\\.$"
    with pytest.raises(ValueError, match=message):
        build(name, **{parameter: value})


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, jnp.float32(np.nan)])
@pytest.mark.parametrize(("name", "parameter"), FINITE_NUMBERS)
def test_error_for_what_is_not_finite(name, parameter, value):
    message = f"^{parameter}: expected a finite number, got {float(value)!r}\\.$"
    with pytest.raises(ValueError, match=message):
        build(name, **{parameter: value})


@pytest.mark.parametrize("value", [np.ones(3), jnp.ones((2, 3)), [0.5, 0.5]])
@pytest.mark.parametrize(("name", "parameter"), [*POSITIVE, *FINITE_NUMBERS])
def test_error_for_an_array(name, parameter, value):
    shape = str(np.shape(value)).replace("(", r"\(").replace(")", r"\)")
    message = f"^{parameter}: expected a scalar, got an array of shape {shape}\\. .*vmap"
    with pytest.raises(ValueError, match=message):
        build(name, **{parameter: value})


@pytest.mark.parametrize("value", ["0.5", None, True, 1j, object, {}, jnp.array(True)])
@pytest.mark.parametrize(("name", "parameter"), POSITIVE)
def test_error_for_what_is_no_number(name, parameter, value):
    with pytest.raises(TypeError, match=f"^{parameter}: expected a real number, got "):
        build(name, **{parameter: value})


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(2), jnp.bfloat16(0.5)])
@pytest.mark.parametrize(("name", "parameter"), POSITIVE)
def test_numbers_of_every_type_are_accepted(name, parameter, value):
    build(name, **{parameter: value})


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (True, ValueError), (1.5, TypeError)]
)
def test_error_for_a_number_of_samples(value, error):
    message = rf"^num_samples: expected an integer of at least 1, got {value}\.$"
    with pytest.raises(error, match=message):
        ge.score_function(num_samples=value)


def test_error_for_leaving_one_out_of_one():
    message = (
        r'^num_samples: expected an integer of at least 2 with baseline="leave_one_out", got 1\.$'
    )
    with pytest.raises(ValueError, match=message):
        ge.score_function(baseline="leave_one_out")


def test_error_for_a_baseline_that_is_not_known():
    with pytest.raises(ValueError, match=r"^baseline: expected one of .*leave_one_out.*got 'mean'"):
        ge.score_function(num_samples=2, baseline="mean")  # pyright: ignore[reportArgumentType]


def test_error_for_a_relaxation_that_is_not_known():
    message = r"^relaxation: expected one of \['concrete', 'muprop'\], got 'gumbel'\.$"
    with pytest.raises(ValueError, match=message):
        ge.rebar(relaxation="gumbel")  # pyright: ignore[reportArgumentType]


def test_error_for_a_limit_of_no_configurations():
    message = r"^max_configurations: expected an integer of at least 1, got 0\.$"
    with pytest.raises(ValueError, match=message):
        ge.enumeration(max_configurations=0)


# ---- Traced options --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameter"), [*POSITIVE, *FINITE_NUMBERS])
def test_traced_values_are_not_looked_at(name, parameter):
    """Out of range or not, they are known when the program runs only."""

    @jax.jit
    def traced(x):
        return jax.tree.leaves(build(name, **{parameter: x}))

    assert any(np.isnan(np.asarray(leaf)) for leaf in traced(jnp.float32(np.nan)))


@pytest.mark.parametrize("value", [jnp.ones(3), jnp.array(True), jnp.array(1j)])
@pytest.mark.parametrize(("name", "parameter"), [*POSITIVE, *FINITE_NUMBERS])
def test_no_message_shows_a_tracer(name, parameter, value):
    with pytest.raises((TypeError, ValueError), match=f"^{parameter}: expected a ") as raised:
        jax.jit(lambda x: jax.tree.leaves(build(name, **{parameter: x})))(value)
    message = str(raised.value)
    assert "Trace" not in message
    assert "<" not in message


def test_no_message_about_a_traced_number_of_samples_shows_it():
    with pytest.raises(
        TypeError, match=r"^num_samples: expected a Python integer, got a traced"
    ) as e:
        jax.jit(lambda n: jax.tree.leaves(ge.score_function(num_samples=n)))(3)
    assert "Tracer" not in str(e.value)
    assert "<" not in str(e.value)


@pytest.mark.parametrize("sampler", [ge.enumeration(), ge.score_function()], ids=repr)
def test_logits_that_are_not_a_number_are_not_hidden(sampler):
    value = sampler.expect(jax.random.key(0), dists.Bernoulli(jnp.array([np.nan, 0.0])), jnp.sum)
    gradient = jax.grad(
        lambda l: sampler.expect(jax.random.key(0), dists.Bernoulli(l), lambda b: jnp.sum(b) ** 2)
    )(jnp.array([np.nan, 0.0]))
    assert np.isnan(gradient).any()
    assert np.isnan(value) or sampler.name == "score_function"
