"""The benchmarks compare equals, and their README shows what they measured. Nothing is timed."""

import dataclasses
import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import records

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

speed = importlib.import_module("benchmarks.speed")
transform = importlib.import_module("benchmarks.transform")
estimators = importlib.import_module("benchmarks.estimators")
subsets = importlib.import_module("benchmarks.subsets")
efficiency = importlib.import_module("benchmarks.efficiency")
accelerators = importlib.import_module("benchmarks.accelerators")
epidemic = importlib.import_module("benchmarks.epidemic")
programs = importlib.import_module("benchmarks.programs")
elbo = importlib.import_module("benchmarks.elbo")
vocabulary = importlib.import_module("benchmarks.vocabulary")
peers = importlib.import_module("benchmarks.peers.__main__")
peers_vae, peers_gradient, peers_policy, peers_memory, compared = (
    importlib.import_module(f"benchmarks.peers.{name}")
    for name in ("vae", "gradient", "policy", "memory", "_peers")
)
problems = importlib.import_module("benchmarks._problems")
measure = importlib.import_module("benchmarks._measure")
pictures = importlib.import_module("benchmarks.pictures")
several_bits = importlib.import_module("benchmarks.several_bits")
BENCHMARKS = {
    "speed": speed,
    "transform": transform,
    "estimators": estimators,
    "subsets": subsets,
    "efficiency": efficiency,
    "epidemic": epidemic,
    "programs": programs,
    "elbo": elbo,
    "vocabulary": vocabulary,
    "peers": peers,
}


@pytest.mark.slow
def test_bounds_are_compared(tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert elbo.main(["--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("elbo-*.json")
    rows = json.loads(path.read_text())["bounds"]
    assert [row["bound"] for row in rows] == list(elbo.bounds())
    assert elbo.product(rows, rows[0]) == 1
    twice = {**rows[0], "variance": 2 * rows[0]["variance"]}
    assert elbo.product(rows, twice) == 2


def test_the_laws_that_are_timed_are_one():
    """With chunks that do not divide the vocabulary: the same gradients of a log-probability."""
    hidden, weights, key = vocabulary.arguments(50)
    scored = vocabulary.OPERATIONS[1]
    plain, chunked = (
        vocabulary.operations(law)[scored](hidden, weights, key)
        for law in vocabulary.laws(16).values()
    )
    for a, b in zip(plain, chunked, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_quick_run_of_the_vocabularies(tmp_path, capsys):
    """What is only compiled has no times, and the memory of a chunk whatever the vocabulary."""
    assert vocabulary.main(["--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("vocabulary-*.json")
    results = json.loads(path.read_text())
    *_, timed, compiled = results["rows"]
    assert "time" in timed
    assert "time" not in compiled
    chunked, plain = vocabulary.CHUNKED, vocabulary.PLAIN
    assert compiled["MB"][chunked] < 1.1 * timed["MB"][chunked]
    assert compiled["MB"][plain] > 1.5 * timed["MB"][plain]
    assert capsys.readouterr().out.strip() == vocabulary.render(results)


@pytest.mark.parametrize("name", speed.CASES)
def test_hand_written_versions_equal_gradest(name, x64):
    """To the last digits, so that no term is missing on either side."""
    del x64
    speed.check_agreement(speed.CASES[name], (6, 5), tolerance=1e-9)


def test_agreement_is_not_taken_for_granted(x64):
    """One entry that is wrong by a hundredth is found, even by the loose tolerance."""
    del x64
    case = speed.CASES["gumbel_softmax"]

    def wrong(params, key, target):
        value, gradients = case.by_hand(params, key, target)
        return value, {**gradients, "logits": gradients["logits"].at[0, 0].multiply(1.01)}

    with pytest.raises(AssertionError, match=r"gumbel_softmax by expect.*logits"):
        speed.check_agreement(dataclasses.replace(case, by_hand=wrong), (2, 3))


def test_wrong_frequencies_are_found(monkeypatch):
    draws = speed.Draws(categories=5, rows=3, draws=4000)
    speed.check_frequencies(draws)
    uniform = lambda key, l: jax.random.randint(key, (4000, 3), 0, 5)
    monkeypatch.setattr(speed.Draws, "samplers", lambda self: {"uniform": uniform})
    with pytest.raises(AssertionError, match="uniform: frequencies of"):
        speed.check_frequencies(draws)


def test_readme_shows_the_committed_results():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for name, benchmark in BENCHMARKS.items():
        assert measure.result_files(name), f"run python -m benchmarks.{name}"
        tables = measure.render_all(name, benchmark.render)
        assert measure.replace_between_markers(text, name, tables) == text, name


@pytest.mark.parametrize("name", pictures.BENCHMARKS)
def test_every_row_that_is_shown_has_its_dot(name):
    """And a hollow one means in the picture what the tables say."""
    for path in measure.result_files(name):
        results = json.loads(path.read_text())
        shown = BENCHMARKS[name].picture(results)
        assert (measure.RESULTS / pictures.name_of(name, results["machine"])).is_file()
        figure = pictures.figure(shown)
        assert [axes.get_title("left") for axes in figure.axes] == [p.title for p in shown.panels]
        for panel, axes in zip(shown.panels, figure.axes, strict=True):
            assert [label.get_text() for label in axes.get_yticklabels()] == [
                dot.name for dot in panel.dots
            ]
            points = [line for line in axes.lines if line.get_marker() == "o"]
            drawn = [line.get_xdata()[0] for line in points]
            middle = lambda dot: dot.values[len(dot.values) // 2]
            assert drawn == list(map(middle, panel.dots))
            hollow = [line.get_markerfacecolor() == "white" for line in points]
            assert hollow == [dot.hollow for dot in panel.dots]


def test_goals_that_are_missed_are_hollow():
    results = json.loads(measure.result_files("programs")[0].read_text())
    times = results["programs"]["vae"]["time"]
    times["gradest"] = [0.9, 0.9, 0.9]
    missed = [name for row in results["programs"].values() for name in programs.goals_missed(row)]
    panels = programs.picture(results).panels
    assert sum(dot.hollow for panel in panels for dot in panel.dots) == len(missed)
    times["gradest"] = [2.0, 2.0, 2.0]
    panels = programs.picture(results).panels
    assert sum(dot.hollow for panel in panels for dot in panel.dots) == len(missed) + 1


def test_committed_results_are_complete():
    """Every estimator in both shapes, and the machine they were measured on."""
    for path in measure.result_files("speed"):
        results = json.loads(path.read_text())
        assert path.name == f"speed-{measure.slug(results['machine'])}.json"
        labels = [case.label for case in speed.CASES.values()]
        run = [(row["estimator"], tuple(row["shape"])) for row in results["run"]]
        assert run == [(label, shape) for label in labels for shape in speed.SHAPES]
        assert [row["estimator"] for row in results["compile"]] == labels
        assert len(results["draws"]) == len(speed.DRAWS)


@pytest.mark.slow
def test_quick_run_end_to_end(tmp_path, capsys):
    """On some of the names, through every question; the committed files stay as they are."""
    readme = measure.README.read_bytes()
    out = tmp_path / "new" / "folder"
    assert speed.main(["--quick", "--out", str(out), "gumbel_softmax", "draws"]) == 0
    (path,) = measure.result_files("speed", out)
    results = json.loads(path.read_text())
    assert results["machine"]["jax"] == jax.__version__
    lengths = {question: len(results[question]) for question in ("run", "compile", "draws")}
    assert lengths == {"run": len(speed.QUICK_SHAPES), "compile": 1, "draws": 2}
    assert capsys.readouterr().out.strip() == speed.render(results)
    assert measure.README.read_bytes() == readme


@pytest.mark.parametrize("form", transform.RUNS)
def test_hand_written_surrogates_equal_the_transform(form):
    transform.check_agreement(form, 3)


@pytest.mark.parametrize("form", transform.FORMS)
def test_rebar_in_sequence_evaluates_what_follows_as_often_as_stated(form):
    _, expected = transform.FORMS[form]
    for num_draws in (1, 2, 3):
        assert transform.evaluations(form, num_draws) == expected(num_draws)


def test_goal_of_tracing_can_be_missed():
    def met(per_draw, ratios):
        rows = [
            {"draws": n, "ms_per_draw": {"expectation": [t] * 3}, "ratio": [r] * 3}
            for n, t, r in zip((4, 16, 64), per_draw, ratios, strict=True)
        ]
        return transform.trace_goals_met(rows)

    assert met((1.0, 1.0, 1.4), (3.0, 1.9, 1.9)) == ["", "yes", "yes"]
    assert met((1.0, 1.0, 1.6), (3.0, 1.9, 1.9)) == ["", "yes", "no"]
    assert met((1.0, 1.0, 1.4), (3.0, 2.1, 1.9)) == ["", "no", "yes"]
    assert met((1.0, 1.0, 1.4), (3.0, 1.9, 2.1)) == ["", "yes", "no"]


def test_list_prints_the_names(capsys):
    assert speed.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(speed.NAMES)
    assert estimators.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(problems.PROBLEMS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rebarr"], r"unknown name 'rebarr'; expected some of gumbel_softmax, .*, draws"),
        (["--repeats", "0"], r"--repeats: expected at least 1, got 0"),
        (["--record", "rebar"], r"--record: expected a full run, .*"),
        (["--out", __file__], r"--out: cannot write to .*test_benchmarks.py: File exists"),
    ],
)
def test_wrong_arguments_are_one_clear_line(argv, message, capsys):
    assert speed.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert re.fullmatch(f"benchmarks.speed: {message}", line)


@pytest.mark.parametrize("benchmark", [speed, transform], ids=["speed", "transform"])
def test_ctrl_c_is_one_clear_line(benchmark, capsys, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", interrupted)
    assert benchmark.main(["--quick", "--out", str(tmp_path)]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": interrupted: nothing was written.")
    assert not list(tmp_path.iterdir())


# ---- Subsets -------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_run_of_the_subsets(tmp_path, capsys, monkeypatch):
    """The estimators that list all subsets are measured where these are few."""
    monkeypatch.setattr(subsets, "SIZES", (2, 10))
    readme = measure.README.read_bytes()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert subsets.main(["--quick", "--out", str(tmp_path)]) == 0
    (path,) = measure.result_files("subsets", tmp_path)
    results = json.loads(path.read_text())
    few, many = ([row["name"] for row in results["tables"][k]] for k in ("2", "10"))
    assert set(few) - set(many) == set(subsets.LISTING)
    assert len(few) == len(subsets.SAMPLERS) + 3
    assert capsys.readouterr().out.strip() == subsets.render(results)
    assert measure.README.read_bytes() == readme


def test_subsets_of_the_committed_run_are_all_there():
    for path in measure.result_files("subsets"):
        results = json.loads(path.read_text())
        assert list(results["tables"]) == list(map(str, subsets.SIZES))
        for row in results["tables"]["3"]:
            assert len(row["accuracy"]) == subsets.SEEDS
            if row["name"] in subsets.SAMPLERS and row["name"] not in BIASED:
                assert row["bias"] <= 4.5 * row["bias_error"], row["name"]


BIASED = ("straight_through() (SIMPLE)", "gumbel_softmax(0.5) (relaxed top k)")


# ---- The estimators, and the guide made of them ---------------------------------------------


@pytest.mark.slow
def test_quick_run_of_the_estimators(tmp_path, capsys):
    """Of one problem of each kind, a trained baseline among them."""
    readme, names = measure.README.read_bytes(), ["bits_jumps", "elbo", "loop"]
    with jax.numpy_dtype_promotion("standard"):  # Adam needs it.
        assert estimators.main(["--quick", "--out", str(tmp_path), *names]) == 0
    (path,) = measure.result_files("estimators", tmp_path)
    results = json.loads(path.read_text())
    assert list(results["problems"]) == names
    assert results["problems"]["loop"][0]["trained"]
    assert capsys.readouterr().out.strip() == estimators.render(results)
    assert measure.README.read_bytes() == readme


def test_unknown_problem_is_one_clear_line(capsys):
    assert estimators.main(["bit"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.estimators: unknown problem 'bit'; expected some of bits, ")


@pytest.fixture(scope="module")
def measured():
    """The rows of each problem that were committed, by how the estimator is written."""
    (first, *_) = measure.result_files("estimators")
    found = json.loads(first.read_text())["problems"]
    return {name: {row["estimator"]: row for row in rows} for name, rows in found.items()}


def test_every_estimator_is_measured(measured):
    assert {name: list(rows) for name, rows in measured.items()} == {
        name: list(problem.samplers) for name, problem in problems.PROBLEMS.items()
    }
    written = {re.match(r"\w+", name)[0] for rows in measured.values() for name in rows}
    assert written == {name for name, record in records.ESTIMATORS.items() if record.estimates}


def test_samplers_are_what_is_written():
    about = lambda s: (s.name, s.options, s.static, s.pathwise)
    for problem in problems.PROBLEMS.values():
        for name, sampler in problem.samplers.items():
            if isinstance(sampler, ge.Sampler):
                assert about(sampler) == about(eval(name, vars(ge))), name  # pyright: ignore[reportArgumentType]


def test_bias_is_seen_where_it_is_documented(measured):
    """And only there; a derivative that the cost does not have is one more bias."""
    for problem, rows in measured.items():
        for name, row in rows.items():
            told = records.ESTIMATORS[re.match(r"\w+", name)[0]]
            smooth = told.needs_slope(type(problems.PROBLEMS[problem].dist))
            right = told.is_unbiased and not (problem.endswith("_jumps") and smooth)
            assert row["biased"] != right, f"{problem}: {name}"


def test_page_on_several_draws_has_the_numbers_of_its_script():
    text = several_bits.PAGE.read_text(encoding="utf-8")
    assert several_bits.page(text) == text


def test_what_the_page_on_several_draws_says(x64):
    """That gradest's estimators have these variances; and what it leaves out is behind."""
    del x64
    rows = {name: numbers for name, (_, *numbers) in several_bits.several_bits().items()}
    double, muprop = (
        next(numbers for name, numbers in rows.items() if name.startswith(start))
        for start in ("double", "`muprop(baseline")
    )
    assert double[0] > muprop[0]
    assert double[1] > rows["`stratified(2)`"][1]
    for n in (2, 3, 4):
        arms, ours = rows[f"ARMS, {n} draws"], rows[f"`stratified({n})`"]
        assert all(a >= b * (1 - 1e-9) for a, b in zip(arms, ours, strict=True))
    for row in several_bits.one_bit().values():
        assert row["stratified"] <= min(row.values()) * (1 + 1e-9) + 1e-18
    bits = several_bits.coupled()
    np.testing.assert_allclose(bits.double_control_variates(-0.5), 0.376315179, rtol=1e-8)
    np.testing.assert_allclose(bits.leave_one_out(4, several_bits.arms), 0.14086858, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal_jumps", "bound", "loop"])
def test_exact_gradients_are_exact(name):
    """Next to an unbiased estimator that is not the one they were made by, and a wrong one."""
    problem = problems.PROBLEMS[name]
    sampler = problem.samplers.get("reparameterize()", ge.score_function())
    if name == "normal_jumps":
        sampler = ge.score_function(num_samples=8, baseline="leave_one_out")
    gradients = {name: problems.gradient(problem, sampler)}
    exact = problem.exact(problem)
    options = {"num_draws": 40_000, "chunk_size": 4_000}
    diagnose = lambda exact: ge.diagnose(
        gradients,
        jax.random.key(5),
        problem.dist,
        exact=exact,
        **options,  # pyright: ignore[reportArgumentType]
    )
    assert not diagnose(exact)[name].total.biased
    wrong = jax.tree.map(lambda g: 1.3 * g, exact)
    assert diagnose(wrong)[name].total.biased


def test_guide_links_to_headings_that_exist():
    """And every problem is linked to. Anchors are GitHub's: no capitals, hyphens for spaces."""
    anchor = lambda heading: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    headings = re.findall(r"^#+ (.*)$", measure.README.read_text(), re.MULTILINE)
    page = (ROOT / "docs" / "choose.md").read_text()
    guide = page.split("## The measured answers")[1].split("\n## ")[0]
    links = re.findall(r"\([^)]*/benchmarks/README\.md#([^)]+)\)", guide)
    assert set(links) <= {anchor(h) for h in headings}
    assert {anchor(problem.title) for problem in problems.PROBLEMS.values()} <= set(links)
    pictures = re.findall(r"!\[[^\]]*\]\([^)]*/(benchmarks/results/[^)]+)\)", guide)
    assert all((ROOT / picture).exists() for picture in pictures)
    assert guide.count("](") == len(links) + len(pictures), "an answer without a row"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["critic", "rloo", "a2c", "vae"])
def test_programs_by_hand_equal_gradest(name):
    """To the last digits; that two programs may differ is seen at others' parameters."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        program = programs.PROGRAMS[name](programs.QUICK)
        programs.check_agreement(program, tolerance=1e-4)
        (hand, own), other = program.makes.values(), 1.01
        scaled = lambda params, key: jax.tree.map(lambda x: other * x, own()(params, key))
        makes = {programs.HAND: hand, programs.GRADEST: lambda: scaled}
        with pytest.raises(AssertionError, match=re.escape(program.title)):
            programs.check_agreement(dataclasses.replace(program, makes=makes))


def test_goals_of_programs_can_be_missed():
    row = {
        "time": {"gradest": [1.0, 1.06, 1.1]},
        "bytes": {"by hand": 100, "gradest": 116},
        "variance": {"by hand": 1.0, "gradest": 1.01},
    }
    assert programs.goals_missed(row) == ["time", "memory"]


@pytest.mark.slow
def test_quick_run_of_the_simulations(tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"):  # Adam needs it.
        assert epidemic.main(["--quick", "--out", str(tmp_path), "generations"]) == 0
    (path,) = measure.result_files("epidemic", tmp_path)
    results = json.loads(path.read_text())
    assert capsys.readouterr().out.strip() == epidemic.render(results)


def test_ratios_are_taken_round_by_round():
    """A machine that slows down between rounds leaves the ratio alone."""
    slow = np.array([1.0, 3.0, 10.0])
    times = {"hand": slow, "expect": 1.1 * slow, "expectation": 2 * slow}
    row = speed.compare(speed.CASES["rebar"], (2, 3), times)
    assert row["ratio"] == {"expect": [1.1] * 3, "expectation": [2.0] * 3}


def test_programs_take_turns_in_a_changing_order():
    order = []
    record = lambda name: lambda: order.append(name) or len(order)
    results = measure.interleave({name: record(name) for name in "abc"}, 20)
    rounds = [tuple(order[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3
    assert sorted(i for turns in results.values() for i in turns) == list(range(1, 61))


def test_compile_stages_are_measured_from_fresh_functions():
    made = []

    def make():
        made.append(None)
        return lambda x: jnp.sin(x)

    times = measure.compile_times({"sin": make}, (jnp.ones(3),), rounds=2)
    assert times["sin"].shape == (2, len(measure.STAGES))
    assert len(made) == 3


def test_table_and_markers():
    assert measure.table(["a", "b"], [["x", "10"]]) == "| a |  b |\n| - | -: |\n| x | 10 |"
    text = "A\n<!-- begin t -->\nold\n<!-- end t -->\nB\n"
    new = measure.replace_between_markers(text, "t", "new")
    assert new == "A\n<!-- begin t -->\n\nnew\n\n<!-- end t -->\nB\n"
    assert measure.replace_between_markers(new, "t", "new") == new
    with pytest.raises(ValueError, match="begin u"):
        measure.replace_between_markers(text, "u", "new")


def test_machine_is_described():
    machine = measure.machine()
    assert all(value not in (None, "") for value in machine.values())
    assert measure.slug({**machine, "platform": "cpu", "cores": 2}) == "cpu-2cores"
    gpu = {**machine, "platform": "gpu", "device": "NVIDIA H200"}
    assert measure.slug(gpu) == "gpu-nvidia-h200"
    assert "NVIDIA H200" in measure.describe(gpu)


# ---- Efficiency ----------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_run_of_the_efficiency(tmp_path, capsys, monkeypatch):
    """One that averages and one that draws jointly: a row for each number of samples."""
    _, make = efficiency.JOINT["score_function_loo"]
    monkeypatch.setattr(efficiency, "JOINT", {"score_function_loo": ((2, 16), make)})
    monkeypatch.setattr(efficiency, "COUNTS", (1, 4))
    readme = measure.README.read_bytes()
    argv = ["--quick", "--out", str(tmp_path), "straight_through", "score_function_loo"]
    with jax.numpy_dtype_promotion("standard"):  # Adam needs it.
        assert efficiency.main(argv) == 0
    (path,) = measure.result_files("efficiency", tmp_path)
    results = json.loads(path.read_text())
    rows = results["latents"]["bernoulli"]
    counts = {(row["estimator"], row["samples"]) for row in rows}
    joint = {("score_function_loo", n) for n in (2, 16)}
    assert counts == joint | {("straight_through", n) for n in (1, 4)}
    assert capsys.readouterr().out.strip() == efficiency.render(results)
    slug = measure.slug(results["machine"])
    assert (tmp_path / efficiency.picture("bernoulli", slug)).stat().st_size > 10_000
    assert measure.README.read_bytes() == readme


def test_moments_of_gradients():
    """Of mean 3 and variance 4 in two coordinates: a bias of one is seen, none is not."""
    gradient = lambda shift, key, xs: shift + 3 + 2 * jax.random.normal(key, (2,))
    reference = efficiency.moments(gradient, 0.0, None, 4_000)
    np.testing.assert_allclose(reference.variance, 8, rtol=0.05)
    np.testing.assert_allclose(reference.mean, 3, atol=0.15)
    other = lambda shift, key, xs: gradient(shift, jax.random.fold_in(key, 1), xs)
    found = {shift: efficiency.moments(other, shift, None, 1_000) for shift in (0.0, 1.0)}
    relative = {shift: efficiency.relative_bias(m, reference) for shift, m in found.items()}
    assert relative[0.0] < 0.03
    np.testing.assert_allclose(relative[1.0], 1 / 3, rtol=0.1)


def test_unknown_estimator_is_one_clear_line(capsys):
    assert efficiency.main(["rebarr"]) == 2
    assert "unknown estimator 'rebarr'; expected some of" in capsys.readouterr().err


# ---- Peers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_run_of_the_peers(tmp_path, capsys, monkeypatch):
    """With whatever is installed: what is not is said to be missing."""
    monkeypatch.setattr(peers_vae, "ESTIMATORS", ("gumbel_softmax",))
    monkeypatch.setattr(peers_gradient, "BY_HAND", dict([*peers_gradient.BY_HAND.items()][:1]))
    readme, parts = measure.README.read_bytes(), ["gradient", "vae", "draws", "bandwidth"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert peers.main(["--quick", "--out", str(tmp_path), *parts]) == 0
    (path,) = measure.result_files("peers", tmp_path)
    results = json.loads(path.read_text())
    assert list(results["parts"]) == parts
    assert {row["peer"] for row in results["parts"]["gradient"]} >= {"by hand", "numpyro"}
    out = capsys.readouterr().out.strip()
    assert out == peers.render(results)
    missing = [name for name, version in results["versions"].items() if version is None]
    assert all(f"{name} not there" in out for name in missing)
    assert measure.README.read_bytes() == readme


@pytest.mark.slow
@pytest.mark.parametrize("estimator", peers_vae.ESTIMATORS)
def test_training_steps_by_hand_equal_gradest(estimator, x64):
    del x64
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peers_vae.check_agreement(estimator, 3)


def test_policy_by_hand_equals_gradest():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peers_policy.check_agreement(4, 3)


def test_goals_of_the_peers_can_be_missed():
    slow, fast = np.full(5, 2.0), np.full(5, 1.0)
    met = lambda ours, theirs: compared.compare("", {"gradest": ours, "x": theirs})[0]["met"]
    assert met(fast, slow)
    assert not met(slow, fast)
    with pytest.raises(AssertionError, match=r"vae: \['w'\]"):
        compared.check_same("vae", {"w": jnp.ones(2)}, {"w": jnp.array([1.0, 1.01])})
    with pytest.raises(AssertionError, match="the value by x"):
        compared.check_alike("vae", {"gradest": 1.0, "x": 1.1})


@pytest.mark.slow
def test_memory_of_a_chunk():
    """What is set aside on the way does not grow with the draws, but with the chunk."""
    few, many = (peers_memory.temporaries(draws, 10) for draws in (20, 200))
    assert many <= 1.1 * few
    assert peers_memory.temporaries(200, None) > 5 * few
    # Which is less than what this process has: a child's peak is its own.
    held = np.ones(1_000_000_000 // 8)
    run = peers_memory.in_process(20, 10)
    assert 50e6 < run["bytes"] < held.nbytes
    rows = [{"megabytes": [m, m, m], "temporaries": 1.0} for m in (10.0, 10.5, 20.0)]
    assert [peers_memory.goal_met(rows, row) for row in rows] == [True, True, False]


def test_what_has_no_draw_is_shown_beside():
    times = {"gradest": np.full(5, 2.0), "no draw": np.ones(5)}
    (row,) = compared.compare("", times)
    assert row["met"]
    assert not row["goal"]
    assert peers.render_comparison([row]).splitlines()[-1].endswith("|      |          |")


def test_unknown_part_is_one_clear_line(capsys):
    assert peers.main(["vea"]) == 2
    assert "unknown part 'vea'; expected some of gradient, vae" in capsys.readouterr().err


# ---- On paper ------------------------------------------------------------------------------


def test_random_bits_are_counted_in_loops_and_functions():

    def fn(key):
        draw = lambda total, key: (total + jnp.sum(jax.random.uniform(key, (5,))), None)
        total, _ = jax.lax.scan(draw, 0.0, jax.random.split(key, 3))
        return total, jax.jit(lambda key: jax.random.uniform(key, (7,), jnp.float16))(key)

    counted = accelerators.random_bits(jax.make_jaxpr(fn)(jax.random.key(0)).jaxpr)
    # Three keys, three times five numbers, and seven of half the bits.
    assert counted == 3 * 64 + 3 * 5 * 32 + 7 * 16


def test_collectives_are_read_from_a_program():
    text = """
  %add = f32[3]{0} add(f32[3] %a, f32[3] %b)
  %all-reduce.1 = (f32[64,128]{1,0}, f32[], bf16[3]{0}) all-reduce(%x, %y, %z), to_apply=%sum
  %all-reduce.2 = f32[2]{0} all-reduce(%w), to_apply=%sum
"""
    found = accelerators.collectives(text)
    assert found == {"kinds": {"all-reduce": 2}, "bytes": 4 * (64 * 128 + 1 + 2) + 2 * 3}
    assert accelerators.sent(8.0, 2) == 8
    assert accelerators.sent(8.0, 512) == pytest.approx(16, rel=0.01)


def test_an_estimator_is_counted():
    """What draws nothing takes no bits, and the least bytes are its arguments and results."""
    none = accelerators.count(None)
    assert none["bits"] == 0
    assert none["least_bytes"] == 8
    assert none["flops"] > 0
    row = {"estimator": "none", **none}
    assert "| none " in accelerators.render_estimators([row])
    assert "measured" not in accelerators.render_estimators([row])


def test_a_device_is_timed_where_that_is_asked_for(capsys):
    assert accelerators.main(["--quick", "--time"]) == 0
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head.split("|")[-2].strip() == "measured on cpu, 10⁹ elements/s"
    assert len(rows) == 3
    assert all(float(row.split("|")[-2]) > 0 for row in rows)


def test_the_page_on_paper_has_every_estimator():
    page = accelerators.PAGE.read_text(encoding="utf-8")
    table = page.partition("<!-- begin accelerators -->")[2].partition("<!-- end")[0]
    shown = re.findall(r"^\| `(.+?)` +\|", table, re.MULTILINE)
    assert shown == [method.about for method in accelerators.counted()]
