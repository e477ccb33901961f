"""`python -m gradest` as its users meet it: what it prints, writes and returns."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import distributions as dists
from gradest import records
from gradest.__main__ import main
from gradest.problems import compare, methods, properties, training

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def standard_promotion(monkeypatch):
    """Optax mixes integers and floats; and the environment names no data."""
    monkeypatch.delenv("GRADEST_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    with jax.numpy_dtype_promotion("standard"):
        yield


def python(*args, **options):
    """A process of its own, which sees gradest from any directory."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes, **options)


# ---- What goes wrong -----------------------------------------------------------------------

ERRORS = {
    "command": (["compere"], "Did you mean 'compare'?"),
    "problem": (["compare", "--problem", "digit"], "Did you mean 'digits'?"),
    "latent": (["compare", "--latent", "categoric"], "Did you mean 'categorical'?"),
    "estimator": (["compare", "--estimators", "rebaar"], "Did you mean 'rebar'?"),
    "estimator-in-a-list": (
        ["compare", "--estimators", "rebar,gumbel-softmax"],
        "Did you mean 'gumbel_softmax'?",
    ),
    "estimator-that-does-not-train": (
        ["compare", "--estimators", "reparameterize"],
        "expected estimators that train bernoulli variables, got 'reparameterize'",
    ),
    "no-estimators": (["compare", "--estimators", ","], "--estimators: expected"),
    "only-infeasible-estimators": (
        ["compare", "--estimators", "enumeration"],
        "2^20 = 1,048,576 configurations",
    ),
    "option": (["compare", "--stepz", "3"], "arguments: --stepz 3. Did you mean --steps?"),
    "option-seeds": (["compare", "--sedes", "3"], "Did you mean --seeds?"),
    "option-cut-short": (["compare", "--est", "rebar"], "unrecognized arguments: --est"),
    "option-with-a-value": (["compare", "--ou=there"], "Did you mean --out?"),
    "option-of-the-command": (["compare", "--sedes", "3"], "(See gradest compare --help.)"),
    "option-of-no-command": (["--vresion"], "Did you mean --version?"),
    "seeds": (["compare", "--seeds", "0"], "--seeds: expected an integer from 1"),
    "steps-zero": (["compare", "--steps", "0"], "--steps: expected an integer from 1"),
    "steps-negative": (["compare", "--steps", "-3"], "got '-3'"),
    "steps-text": (["compare", "--steps", "many"], "got 'many'"),
    "steps-missing": (["compare", "--steps"], "--steps"),
    "seed": (["compare", "--seed", "-1"], "--seed: expected an integer from 0"),
    "latent-size": (["compare", "--latent-size", "1.5"], "--latent-size: expected an integer"),
    "toy-latent": (["compare", "--problem", "toy", "--latent", "categorical"], "--latent"),
    "toy-latent-size": (["compare", "--problem", "toy", "--latent-size", "3"], "--latent-size"),
    "data-of-digits": (["compare", "--data", "somewhere"], "--problem mnist only"),
    "no-data": (["compare", "--problem", "mnist"], "GRADEST_DATA"),
    "missing-data": (["compare", "--problem", "mnist", "--data", "nowhere"], "got 'nowhere'"),
    "where-data-is-from": (["compare", "--problem", "mnist"], "~/.keras/datasets"),
    # It has none that is like it.
    "table-option": (["table", "--quick"], "arguments: --quick. (See gradest table --help.)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_line_and_status_2(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv, part = ERRORS[name]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert part in err
    assert err.startswith("gradest: ")
    assert err.count("\n") == 1
    assert not out
    assert not list(tmp_path.iterdir())


def test_an_unwritable_directory(capsys, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["compare", "--problem", "toy", "--quick", "--out", str(out)]) == 2
        err = capsys.readouterr().err
        assert "--out: expected a directory to write into" in err
        assert err.count("\n") == 1


def test_a_directory_without_permission(capsys, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    assert main(["compare", "--problem", "toy", "--quick", "--out", str(tmp_path / "out")]) == 2
    assert "(Permission denied)" in capsys.readouterr().err


def test_a_damaged_data_file(capsys, tmp_path):
    (tmp_path / "binarized_mnist.npz").write_bytes(b"not an archive")
    assert main(["compare", "--problem", "mnist", "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "expected a file written by numpy.savez" in err
    assert err.count("\n") == 1


def test_data_goes_before_the_environment(capsys, tmp_path, monkeypatch):
    argv = ["compare", "--problem", "mnist"]
    monkeypatch.setenv("GRADEST_DATA", str(tmp_path / "environment"))
    assert main(argv) == 2
    assert "environment'" in capsys.readouterr().err
    assert main([*argv, "--data", str(tmp_path / "option")]) == 2
    assert "option'" in capsys.readouterr().err


def test_an_error_in_a_process_of_its_own(tmp_path):
    process = python("-m", "gradest", "compare", "--estimators", "nothing", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 2
    assert not out
    assert err.startswith("gradest: --estimators: expected one of score_function, ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("module", ["flax", "matplotlib", "rich", "sklearn"])
def test_a_missing_extra(module, tmp_path):
    argv = ["table"] if module == "rich" else ["compare", "--quick"]
    program = (
        f"import sys; sys.modules[{module!r}] = None; from gradest.__main__ import main; "
        f"sys.exit(main({argv!r}))"
    )
    process = python("-c", program, cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == f'gradest: {module} is not installed: pip install "gradest[examples]"\n'


def test_importing_gradest_needs_no_extra():
    program = "import sys, gradest; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    out, _ = python("-c", program).communicate()
    assert "'jax'" in out
    for module in ("flax", "matplotlib", "rich", "sklearn"):
        assert f"'{module}'" not in out


def test_help_and_version(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "compare" in out
    assert "table" in out
    for argv, part in (
        (["--version"], f"gradest {ge.__version__}"),
        (["compare", "--help"], "--estimators"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 0
        assert part in capsys.readouterr().out


def test_the_command_is_the_module():
    """`gradest` is what `python -m gradest` is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = importlib.metadata.EntryPoint(
        "gradest", project["scripts"]["gradest"], "console_scripts"
    )
    assert entry.load() is main
    assert list(project["scripts"]) == ["gradest"]


# ---- compare -------------------------------------------------------------------------------


def check_results(out, directory, stem, names, metric):
    """The table, the JSON and the pictures of a comparison; returns the JSON's estimators."""
    labels = {method.name: method.label for method in methods.METHODS}
    for name in names:
        assert f"\n{labels[name]} " in out
    # Paths may be longer.
    assert max(map(len, out.partition("Written to")[0].splitlines())) <= 80
    document = json.loads((directory / stem / "compare.json").read_text())
    assert sorted(entry["name"] for entry in document["estimators"]) == sorted(names)
    values = [entry[metric] for entry in document["estimators"]]
    assert values == sorted(values, reverse=metric != "cost")
    for entry in document["estimators"]:
        assert entry["status"] == "finished"
        assert entry["draws"] == ("relaxed" if entry["name"] == "gumbel_softmax" else "exact")
        history = entry["history"]
        assert history["step"][0] == 0
        assert history["step"][-1] == entry["steps"]
        assert entry["seeds"]["seed"] == list(range(document["seeds"]))
        assert entry[metric] == pytest.approx(np.mean(entry["seeds"][metric]))
        numbers = [entry[key] for key in (metric, "gradient_variance", "ms_per_step")]
        numbers += [history[metric], history["gradient_variance"]]
        assert all(np.isfinite(np.array(number, float)).all() for number in numbers)
        assert entry["ms_per_step"] > 0
    for name in ("steps", "seconds", "variance"):
        check_picture(directory / stem / f"{name}.png")
    return {entry["name"]: entry for entry in document["estimators"]}


def check_picture(path):
    from matplotlib import image

    pixels = image.imread(path)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 600
    # White paper alone would have one colour.
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


@pytest.mark.slow
def test_compare_digits(capsys, tmp_path):
    assert main(["compare", "--quick", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    names = [m.name for m in methods.trainable("bernoulli") if m.name != "enumeration"]
    entries = check_results(out, tmp_path, "digits-bernoulli", names, "test_elbo")
    assert "enumeration was left out: 2^20 = 1,048,576 configurations" in out
    assert "exact draws" in out
    assert "Highest test ELBO: a tie of " in out
    assert err.count("steps") == len(names)
    for entry in entries.values():
        assert entry["test_elbo"] > np.mean(entry["history"]["test_elbo"][0])
        # The seeds differ, and by less than what they learned.
        assert 0 < entry["deviation"]["test_elbo"] < 1
        assert len(entry["seeds"]["test_elbo"]) == 3
        assert entry["variance_x_ms"] == pytest.approx(
            entry["gradient_variance"] * entry["ms_per_step"]
        )
    # Trained by their own cotangents.
    assert entries["rebar"]["control"]["eta"] != 1.0


@pytest.mark.slow
def test_compare_digits_with_categorical_variables(capsys, tmp_path):
    names = ["gumbel_softmax", "rebar"]
    argv = ["compare", "--quick", "--latent", "categorical", "--out", str(tmp_path)]
    assert main([*argv, "--estimators", "gumbel_softmax,rebar"]) == 0
    out = capsys.readouterr().out
    entries = check_results(out, tmp_path, "digits-categorical", names, "test_elbo")
    assert "20 categorical variables of 10 classes" in out
    # Annealed, not trained: at its floor in the end.
    assert entries["gumbel_softmax"]["control"]["temperature"] == 0.5


@pytest.mark.slow
def test_compare_with_few_variables_enumerates(capsys, tmp_path):
    argv = ["compare", "--quick", "--latent-size", "3", "--out", str(tmp_path)]
    assert main([*argv, "--estimators", "enumeration", "--steps", "5"]) == 0
    out = capsys.readouterr().out
    entry = check_results(out, tmp_path, "digits-bernoulli", ["enumeration"], "test_elbo")
    assert entry["enumeration"]["steps"] == 5
    # Rounding alone.
    assert entry["enumeration"]["gradient_variance"] < 1e-6


def test_compare_toy(capsys, tmp_path):
    names = ["score_function", "straight_through", "gumbel_softmax", "enumeration"]
    argv = ["compare", "--problem", "toy", "--quick", "--out", str(tmp_path)]
    assert main([*argv, "--estimators", *names]) == 0
    out = capsys.readouterr().out
    entries = check_results(out, tmp_path, "toy", names, "cost")
    z = {name: abs(e["bias"]) / (e["bias_se"] + 1e-6) for name, e in entries.items()}
    assert z["score_function"] < 4.5
    assert z["enumeration"] < 4.5
    assert z["straight_through"] > 10
    assert z["gumbel_softmax"] > 10
    # Exactly, not but for rounding.
    assert entries["enumeration"]["gradient_variance"] == 0
    assert not np.any(entries["enumeration"]["history"]["gradient_variance"])


SHORT = ["compare", "--problem", "toy", "--steps", "8", "--quick", "--estimators", "score_function"]


def test_the_same_seed_gives_the_same_numbers(capsys, tmp_path):
    costs = []
    for options in (["--seed", "0"], ["--seed", "0"], ["--seed", "1", "--seeds", "2"]):
        assert main([*SHORT, *options, "--out", str(tmp_path)]) == 0
        # Each run has a directory of its own.
        name = f"toy-{len(costs) + 1}" if costs else "toy"
        document = json.loads((tmp_path / name / "compare.json").read_text())
        costs.append(np.array(document["estimators"][0]["history"]["cost"]))
        assert f"Written to {tmp_path / name}: compare.json" in capsys.readouterr().out
    assert np.array_equal(costs[0], costs[1])
    # One seed's numbers do not depend on how many are trained.
    np.testing.assert_allclose(costs[2], costs[0][:, 1:], rtol=1e-6)
    assert not np.allclose(costs[2][:, 0], costs[2][:, 1])


def test_results_of_other_runs_are_kept(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "compare.json").write_text("mine")
    (tmp_path / "toy-2").touch()
    assert compare.new_directory(str(tmp_path), "toy") == tmp_path / "toy-3"
    assert (tmp_path / "toy" / "compare.json").read_text() == "mine"


def test_one_seed_is_no_verdict(capsys, tmp_path):
    argv = [*SHORT, "enumeration", "--seeds", "1", "--out", str(tmp_path)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "One seed is no verdict" in out
    assert "±" not in out.partition("Expected cost")[0].partition("bias")[0]
    assert "Lowest" not in out


def test_what_is_piped_has_no_escapes_and_fits(tmp_path):
    for columns in ("44", "200"):
        environment = {**os.environ, "COLUMNS": columns, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "gradest", *SHORT, "--out", str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr
        text = done.stdout.partition("Written to")[0]
        assert max(map(len, text.splitlines())) <= int(columns)
        assert ("In the JSON, not in these 44 columns:" in " ".join(text.split())) == (
            columns == "44"
        )


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_finished(tmp_path):
    names = ["enumeration", "score_function", "straight_through"]
    argv = ["compare", "--problem", "toy", "--steps", "20000", "--out", str(tmp_path)]
    process = python("-m", "gradest", *argv, "--estimators", ",".join(names))
    path = tmp_path / "toy" / "compare.json"
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.count("Interrupted: ") == 1
    document = json.loads(path.read_text())
    first, second = document["estimators"]
    assert first["name"] == "enumeration"
    assert first["status"] == "finished"
    assert second["name"] == "score_function"
    assert second["status"] == "interrupted"
    assert second["steps"] < 20_000
    assert document["left_out"] == {"straight_through": "the run was interrupted before"}
    assert "score_function *" in out
    assert "* score_function: interrupted after" in " ".join(out.split())
    check_picture(path.parent / "steps.png")


def test_ctrl_c_before_anything_is_known(monkeypatch, capsys, tmp_path):
    """While the first method compiles: a line, and nothing is left behind."""

    def train(problem, method, **options):
        yield training.Run(method, 3)
        raise AssertionError("it went on")

    show = lambda self, run: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(compare.Bars, "show", show)
    assert main(["compare", "--problem", "toy", "--out", str(tmp_path)]) == 130
    out, err = capsys.readouterr()
    assert not out
    assert "Interrupted: " in err
    assert not list(tmp_path.iterdir())


def test_the_second_ctrl_c_does_not_wait():
    press = lambda: os.kill(os.getpid(), signal.SIGINT)
    before, said = signal.getsignal(signal.SIGINT), []
    with compare.interruptible(said.append) as interrupted:
        assert not interrupted.is_set()
        press()
        assert interrupted.is_set()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_elsewhere_is_status_130(monkeypatch, capsys):
    monkeypatch.setattr(compare, "run", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["compare"]) == 130
    assert capsys.readouterr().err == "gradest: interrupted.\n"


# ---- table ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_table_measures_what_is_documented(capsys):
    assert main(["table"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert set(properties.estimators()) <= rows
    assert max(map(len, out.splitlines())) <= 80
    assert "Every cell agrees" in out


def test_table_says_how_long_it_takes_and_goes_on(capsys, monkeypatch):
    only(monkeypatch, records.ESTIMATORS["gumbel_max"], 1000)
    for columns in (80, 44):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["table"]) == 0
        out, err = capsys.readouterr()
        assert "minutes" in err
        assert "1/1 gumbel_max, " in err
        assert max(map(len, out.splitlines())) <= columns
        assert "raises" in out


def only(monkeypatch, record, num_keys):
    """Leaves one record in the table, and measures it from fewer keys."""
    monkeypatch.setattr(records, "ESTIMATORS", {record.name: record})
    monkeypatch.setattr(properties, "missing", lambda: [])
    monkeypatch.setattr(properties, "_NUM_KEYS", num_keys)


WRONG = {
    "gumbel_max": (
        {"unbiased": "yes"},
        ["unbiased", "differentiable_cost", "evaluations"],
    ),
    "gumbel_softmax": ({"draws": "exact"}, ["draws"]),
    "straight_through": (
        {
            **{"draws": "relaxed", "differentiable_cost": False, "unbiased": "to second order"},
            **{"evaluations": 2, "second_order": True, "only": (dists.Bernoulli,)},
        },
        [*properties._HEADERS],
    ),
    "reinmax": ({"unbiased": "no"}, ["unbiased"]),
    "vimco": ({"unbiased": "yes"}, ["unbiased"]),
    "enumeration": ({"unbiased": "yes", "second_order": False}, ["unbiased", "second_order"]),
    "antithetic": ({"only": None, "needs": ("pathwise",)}, ["distributions"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_table_marks_a_wrong_record(name, capsys, monkeypatch):
    changes, columns = WRONG[name]
    # It takes many to tell the gradient of a bound.
    num_keys = 100_000 if name == "vimco" else 20_000
    only(monkeypatch, dataclasses.replace(records.ESTIMATORS[name], **changes), num_keys)
    assert main(["table"]) == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert row.count("!") == len(columns)
    assert max(map(len, out.splitlines())) <= 80
    for column in columns:
        assert f"! {name}, {column}: measured " in out
    assert "Every cell agrees" not in out


def test_table_names_the_distributions_that_differ(capsys, monkeypatch):
    record = records.ESTIMATORS["arm"]
    only(monkeypatch, dataclasses.replace(record, only=(dists.Bernoulli, dists.Categorical)), 1000)
    assert main(["table"]) == 1
    assert "measured 1, documented 2. They differ in Categorical." in capsys.readouterr().out


def zero():
    """An estimator whose gradient is zero, in silence."""
    return ge.Sampler("zero", draw=lambda key, dist: jax.lax.stop_gradient(dist.sample(key)))


def wrong_twice():
    """An estimator whose gradient is right, and whose second derivatives are zero."""

    def estimate(key, dist, cost):
        constant = jax.lax.stop_gradient
        gradient = constant(jax.grad(lambda d: exact.expect(key, d, cost))(dist))
        linear = jax.tree.map(lambda g, l: jnp.sum(g * (l - constant(l))), gradient, dist)
        return constant(exact.expect(key, dist, cost)) + sum(jax.tree.leaves(linear))

    exact = ge.enumeration()
    return ge.Sampler("wrong_twice", estimate=estimate)


@pytest.mark.parametrize(
    ("make", "column", "complaint"),
    [(zero, "unbiased", "measured zero"), (wrong_twice, "second_order", "measured wrong")],
)
def test_table_sees_what_is_silently_wrong(make, column, complaint, capsys, monkeypatch):
    record = dataclasses.replace(records.ESTIMATORS["enumeration"], estimator=make)
    only(monkeypatch, record, 1000)
    assert main(["table"]) == 1
    assert f"! {make.__name__}, {column}: {complaint}" in capsys.readouterr().out


def test_table_notices_an_estimator_without_a_record(capsys, monkeypatch):
    record = records.ESTIMATORS["gumbel_max"]
    monkeypatch.setattr(records, "ESTIMATORS", {record.name: record})
    monkeypatch.setattr(properties, "_NUM_KEYS", 20_000)
    assert main(["table"]) == 1
    assert "! rebar: gradest has it, but no record of it." in capsys.readouterr().out


def test_table_does_not_trust_a_measurement_without_power(capsys, monkeypatch):
    only(monkeypatch, records.ESTIMATORS["reparameterize"], num_keys=100)
    assert main(["table"]) == 1
    assert "! reparameterize, unbiased: measured -" in capsys.readouterr().out
