"""Which k of the 30 features of scikit-learn's breast cancer data suffice to classify?

python -m benchmarks.subsets
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import gradest as ge
from gradest.distributions import Subset

from . import _command, _measure, pictures

SIZES, STEPS, SEEDS, DRAWS = (3, 10), 300, 3, 2000
#: After so many steps the variance is measured, at the same parameters for all.
MEASURED_AFTER = 100
FEATURES, TRAIN = 30, 380

SAMPLERS = {
    "enumeration()": ge.enumeration(),
    "straight_through() (SIMPLE)": ge.straight_through(),
    "gumbel_softmax(0.5) (relaxed top k)": ge.gumbel_softmax(0.5),
    "muprop()": ge.muprop(),
    "score_function()": ge.score_function(),
    'score_function(4, baseline="leave_one_out")': ge.score_function(
        num_samples=4, baseline="leave_one_out"
    ),
    "unordered_set(4)": ge.unordered_set(4),
}
#: Those that list all subsets: of 10 there are 30 millions.
LISTING = ("enumeration()", "unordered_set(4)")
REFERENCE = 'score_function(4, baseline="leave_one_out")'


class Data(NamedTuple):
    """Features, of mean 0 and variance 1 on the training half, and labels of 0 and 1."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load(seed: int) -> Data:
    """A split of its own for each seed."""
    x, y = load_breast_cancer(return_X_y=True)  # pyright: ignore[reportGeneralTypeIssues]
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.float32)
    x = (x - x[:TRAIN].mean(axis=0)) / x[:TRAIN].std(axis=0)
    return Data(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


# ---- What is trained -----------------------------------------------------------------------


def start() -> dict[str, jax.Array]:
    """The log-weights of the features, and a logistic regression on those that are chosen."""
    return {"choice": jnp.zeros(FEATURES), "w": jnp.zeros(FEATURES), "b": jnp.zeros(())}


def loss(sampler: ge.Sampler, k: int, params: Any, key: jax.Array, x: Any, y: Any) -> jax.Array:
    """The mean cross-entropy of all training examples, on one choice, with a little decay."""

    def cost(chosen: jax.Array) -> jax.Array:
        # The regression on x * chosen.
        logits = x @ (chosen * params["w"]) + params["b"]
        decay = 1e-3 * jnp.sum(params["w"] ** 2)
        return decay + jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y))

    return sampler.expect(key, Subset(params["choice"], k), cost)


def train(sampler: ge.Sampler, k: int, steps: int, key: jax.Array, x: Any, y: Any) -> Any:
    """The parameters after so many steps of Adam at 0.05."""
    optimizer = optax.adam(0.05)

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        params, moments = state
        gradient = jax.grad(lambda params: loss(sampler, k, params, key, x, y))(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), None

    state = (start(), optimizer.init(start()))
    return jax.lax.scan(step, state, jax.random.split(key, steps))[0][0]


def evaluate(data: Data, chosen: np.ndarray) -> tuple[float, float]:
    """Accuracy and cross-entropy on the other half, of a regression on these features alone."""
    regression = LogisticRegression(max_iter=2000).fit(data.x[:, chosen], data.y)
    probs = regression.predict_proba(data.test_x[:, chosen])
    accuracy = float(np.mean((probs[:, 1] > 0.5) == data.test_y))
    return accuracy, float(log_loss(data.test_y, probs))


# ---- What is measured ----------------------------------------------------------------------


def gradients(sampler: ge.Sampler, k: int, params: Any, data: Data, num: int) -> np.ndarray:
    """Of the log-weights, shape (num, 30)."""
    of = jax.grad(lambda choice, key: loss(sampler, k, params | {"choice": choice}, key, *data[:2]))
    draw = jax.jit(lambda keys: jax.lax.map(lambda key: of(params["choice"], key), keys))
    return np.asarray(draw(jax.random.split(jax.random.key(2), num)), float)


def measured(k: int, steps: int, seeds: int, draws: int) -> list[dict[str, Any]]:
    """A row for each estimator that applies to subsets of k."""
    splits = [load(seed) for seed in range(seeds)]
    x, y = (jnp.stack([getattr(data, name) for data in splits]) for name in ("x", "y"))
    keys = jax.random.split(jax.random.key(0), seeds)
    run = lambda sampler, steps: jax.jit(
        jax.vmap(lambda key, x, y: train(sampler, k, steps, key, x, y))
    )(keys, x, y)
    at = jax.tree.map(lambda leaf: leaf[0], run(SAMPLERS[REFERENCE], min(steps, MEASURED_AFTER)))
    exact, rows = None, []
    for name, sampler in SAMPLERS.items():
        if name in LISTING and k > 3:
            continue
        if name == "enumeration()":
            exact = gradients(sampler, k, at, splits[0], 1)[0]
        found = gradients(sampler, k, at, splits[0], 1 if name == "enumeration()" else draws)
        row: dict[str, Any] = {"name": name, "variance": float(found.var(axis=0).sum())}
        if exact is not None:
            norm = np.linalg.norm(exact)
            row["variance"] /= float(norm**2)
            row["bias"] = float(np.linalg.norm(found.mean(axis=0) - exact) / norm)
            row["bias_error"] = float(np.sqrt(row["variance"] / len(found)))
        # The most probable subset.
        choices = np.argsort(-np.asarray(run(sampler, steps)["choice"]), axis=1)[:, :k]
        tests = [evaluate(*of) for of in zip(splits, choices, strict=True)]
        rows.append(row | {"accuracy": [a for a, _ in tests], "loss": [l for _, l in tests]})
    return rows + [{"name": name, **tests} for name, tests in beside(splits, k).items()]


def beside(splits: list[Data], k: int) -> dict[str, dict[str, list[float]]]:
    """What choices without a gradient are worth."""
    rng = np.random.default_rng(0)

    def largest(data: Data) -> np.ndarray:
        coefficients = LogisticRegression(max_iter=2000).fit(data.x, data.y).coef_[0]
        return np.argsort(-np.abs(coefficients))[:k]

    choices = {
        "all 30 features": [[np.arange(FEATURES)] for _ in splits],
        "the k largest coefficients of all": [[largest(data)] for data in splits],
        "k at random (mean of 20)": [
            [rng.permutation(FEATURES)[:k] for _ in range(20)] for _ in splits
        ],
    }
    return {
        name: {
            what: [
                float(np.mean([evaluate(data, chosen)[i] for chosen in of_split]))
                for data, of_split in zip(splits, of_splits, strict=True)
            ]
            for i, what in enumerate(("accuracy", "loss"))
        }
        for name, of_splits in choices.items()
    }


# ---- Tables --------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    def cells(row: dict[str, Any]) -> list[str]:
        bias = f"{row['bias']:.1%}" if _bias_seen(row) else "none seen" if "bias" in row else ""
        spread = lambda values: f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        variance = f"{row['variance']:.3g}" if "variance" in row else ""
        return [f"{row['name']}", bias, variance, spread(row["accuracy"]), spread(row["loss"])]

    columns = ["estimator", "bias", "variance", "test accuracy", "test cross-entropy"]
    parts = []
    for k, rows in results["tables"].items():
        parts.append(f"### Subsets: {k} of {FEATURES} features")
        parts.append(_measure.table(columns, map(cells, rows)))
    link = pictures.link("subsets", results, picture(results))
    return "\n\n".join([*parts, _measure.describe(results["machine"]), link])


def _bias_seen(row: dict[str, Any]) -> bool:
    return "bias" in row and row["bias"] > 2 * row["bias_error"]


def picture(results: dict[str, Any]) -> pictures.Picture:
    """Variances, and losses of the subsets that are learned."""
    panels = []
    for k, rows in results["tables"].items():
        title = f"{k} of {FEATURES} features"
        variances = [
            pictures.Dot(row["name"], [row["variance"]], _bias_seen(row))
            for row in rows
            if row.get("variance")
        ]
        losses = [
            pictures.Dot(row["name"], [min(row["loss"]), np.mean(row["loss"]), max(row["loss"])])
            for row in rows
        ]
        panels.append(pictures.Panel(title, "variance of the gradient", variances))
        panels.append(pictures.Panel(title, "test cross-entropy, mean and range", losses))
    return pictures.Picture(
        "The variance of each estimator's gradient, and the test cross-entropy of what it learned, "
        "a dot for each estimator and the range of the seeds, for each size of the subset",
        "a bias is seen",
        panels,
    )


def measure_all(names: Sequence[str], quick: bool) -> dict[str, Any]:
    del names
    steps, seeds, draws = (10, 2, 20) if quick else (STEPS, SEEDS, DRAWS)
    tables = {str(k): measured(k, steps, seeds, draws) for k in SIZES}
    return {"steps": steps, "seeds": seeds, "tables": tables}


def main(argv: Sequence[str] | None = None) -> int:
    return _command.run(
        "subsets",
        __doc__,
        measure_all,
        render,
        argv,
        quick="few steps and draws",
        draw=pictures.draw("subsets", picture),
    )


if __name__ == "__main__":
    sys.exit(main())
