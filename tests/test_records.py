"""The records of estimators and distributions are right, and all that is written from them is."""

import dataclasses
import doctest
import inspect
import json
import pathlib
import re
import sys
import tomllib
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradest as ge
from gradest import _version, records
from gradest import distributions as dists
from gradest._diagnostics.evaluations import count_evaluations, evaluation_p
from gradest.problems import properties

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import write  # noqa: E402

ESTIMATORS, DISTRIBUTIONS = records.ESTIMATORS, records.DISTRIBUTIONS
EACH_ESTIMATOR = pytest.mark.parametrize("name", ESTIMATORS)
EACH_DISTRIBUTION = pytest.mark.parametrize("name", DISTRIBUTIONS)


# ---- Records -------------------------------------------------------------------------------


def test_every_estimator_has_a_record():
    public = inspect.getmembers(ge, inspect.isfunction)
    returns = lambda f: typing.get_type_hints(f).get("return")
    assert {name for name, f in public if returns(f) is ge.Sampler} == set(ESTIMATORS)
    assert all(getattr(ge, name) is record.estimator for name, record in ESTIMATORS.items())


def test_every_distribution_has_a_record():
    public = inspect.getmembers(dists, inspect.isclass)
    assert dict(public) == {name: record.kind for name, record in DISTRIBUTIONS.items()}


def test_every_capability_is_had_and_needed():
    needed = {
        name
        for record in ESTIMATORS.values()
        for need in record.needs
        for name in ([need] if isinstance(need, str) else need)
    }
    had = {name for record in DISTRIBUTIONS.values() for name in record.capabilities}
    assert needed == had == set(records.CAPABILITIES)


@EACH_ESTIMATOR
def test_record_makes_a_sampler(name):
    record = ESTIMATORS[name]
    assert record.sampler().name == name
    required = [
        parameter.name
        for parameter in inspect.signature(record.estimator).parameters.values()
        if parameter.default is parameter.empty
    ]
    assert list(record.arguments) == required
    assert list(record.options) == list(inspect.signature(record.estimator).parameters)


@EACH_DISTRIBUTION
def test_example(name):
    """It has several elements; and discrete draws, of all its values, are whole numbers."""
    record = DISTRIBUTIONS[name]
    example = record.example()
    assert type(example) is record.kind
    assert len(example.sample(jax.random.key(0)).reshape(-1)) > 1
    draws = np.asarray(example.sample(jax.random.key(1), (1000,)), float)
    assert np.all(draws == np.round(draws)) == record.discrete


@pytest.mark.parametrize(
    ("values", "possible"),
    [
        ("0 or 1", lambda x: np.isin(x, [0, 1])),
        ("integers from 0 to K - 1", lambda x: np.isin(x, [0, 1, 2])),
        ("rows with one 1 among K - 1 zeros", lambda x: np.sum(x == 1, axis=-1) == 1),
        ("vectors of k ones among n - k zeros", lambda x: np.sum(x == 1, axis=-1) == 3),
        (
            "k rows with one 1 each, in columns of their own",
            lambda x: (np.sum(x, axis=-1) == 1).all(-1) & (np.sum(x, axis=-2) <= 1).all(-1),
        ),
        ("integers from 0", lambda x: x >= 0),
        ("integers from 0 to `total_count`", lambda x: (x >= 0) & (x <= 3)),
        ("positive reals", lambda x: x > 0),
        ("reals from 0", lambda x: x >= 0),
        (
            "reals from 0 to 1, both of which have mass",
            lambda x: (x >= 0) & (x <= 1) & np.any(x == 0) & np.any(x == 1),
        ),
        (
            "matrices whose columns add up to 1, and rows nearly",
            lambda x: (abs(x.sum(-2) - 1) < 1e-5).all(-1) & (abs(x.sum(-1) - 1) < 0.2).all(-1),
        ),
        ("reals from `low` to `high`", lambda x: (x >= -0.5) & (x <= 1.9)),
        ("reals between 0 and 1", lambda x: (x > 0) & (x < 1)),
        ("points of the simplex", lambda x: abs(np.sum(x, axis=-1) - 1) < 1e-5),
        ("logarithms of points of the simplex", lambda x: abs(np.exp(x).sum(-1) - 1) < 1e-5),
        ("angles from -pi to pi", lambda x: abs(x) <= np.pi),
    ],
)
def test_draws_are_the_values_that_a_record_tells(values, possible):
    """And no other record's: what is reals for short is not bounded."""
    key = jax.random.key(0)
    for record in DISTRIBUTIONS.values():
        draws = np.asarray(record.example().sample(key, (1000,)), float)
        if record.values == values:
            assert possible(draws).all(), record.name
        elif record.values == "reals":
            assert not possible(draws).all(), record.name


# ---- What the records claim ----------------------------------------------------------------


@EACH_ESTIMATOR
def test_serves_the_distributions_of_its_record_and_no_other(name):
    record = ESTIMATORS[name]
    assert properties.served_by(record) == set(record.distributions)


def test_a_distribution_too_many_or_too_few_is_noticed():
    record = ESTIMATORS["antithetic"]
    for changes in ({"only": (dists.Normal,)}, {"needs": ("pathwise",)}):
        wrong = dataclasses.replace(record, **changes)
        assert properties.served_by(wrong) != set(wrong.distributions)


@pytest.mark.parametrize(
    ("estimator", "distribution"),
    [("antithetic", "LogNormal"), ("delta_method", "LogNormal"), ("relax", "Uniform")],
)
def test_what_would_be_served_wrongly_is_refused(estimator, distribution):
    """LogNormal is a Normal to Python only; the bounds of Uniform move."""
    sampler = ESTIMATORS[estimator].sampler()
    dist = DISTRIBUTIONS[distribution].example()
    with pytest.raises(TypeError, match=rf"^{estimator}: .* got {distribution}"):
        sampler.expect(jax.random.key(0), dist, lambda x: jnp.sum(x**2))


def counted(record, dist):
    """The evaluations of the cost in the program of a gradient."""
    cost = lambda x: evaluation_p.bind(jnp.sum(jnp.asarray(x, float) ** 2))
    loss = lambda dist, key: record.sampler().expect(key, dist, cost)
    gradient = jax.grad(loss, allow_int=True)
    return count_evaluations(jax.make_jaxpr(gradient)(dist, jax.random.key(0)).jaxpr)


@pytest.mark.parametrize("name", [name for name, r in ESTIMATORS.items() if r.estimates])
def test_cost_evaluations(name):
    """With options other than the record's too, and distributions of every shape."""
    record = ESTIMATORS[name]
    options = [{}]
    if "num_samples" in record.options and not isinstance(record.evaluations, int):
        options.append({"num_samples": 3})
    kinds = [k for k in record.distributions if k in ("Bernoulli", "OneHotCategorical", "Normal")]
    if not isinstance(record.evaluations, int) and len(record.distributions) <= 10:
        kinds = record.distributions
    for arguments in options:
        other = dataclasses.replace(record, arguments={**record.arguments, **arguments})
        for kind in kinds:
            dist = DISTRIBUTIONS[kind].example()
            assert counted(other, dist) == other.count_evaluations(dist), kind


@EACH_ESTIMATOR
def test_docstring_tells_the_reference(name):
    """Authors and years, in the record as in the docstring."""
    record = ESTIMATORS[name]
    _, _, cited = inspect.getdoc(record.estimator).partition("Reference:\n")
    assert (record.reference == "-") == (not cited)
    for author, year in re.findall(r"(\w+) (\d{4})", record.reference):
        assert re.search(rf"\b{author}\b(et al\.|[^.;])*\b{year}\b", cited), f"{author} {year}"


@EACH_ESTIMATOR
def test_docstring_tells_the_cost_evaluations(name):
    record, doc = ESTIMATORS[name], " ".join(inspect.getdoc(ESTIMATORS[name].estimator).split())
    told = re.search(r"Cost evaluations per gradient: (.*?)(?:\. |\.$)", doc)[1]
    if not record.estimates:
        assert told == "none"
    elif isinstance(record.evaluations, int):
        assert re.match(rf"{record.evaluations}\b(?! and| exact)", told)
    elif record.evaluations.words == "all configurations":
        assert told.startswith("the number of configurations")
    else:
        numbers = lambda text: set(re.findall(r"\d+|`\w+`", text))
        assert numbers(record.evaluations.words) <= numbers(told)


@EACH_ESTIMATOR
def test_docstring_tells_the_distributions(name):
    """By name, but for groups that have one of their own."""
    record, doc = ESTIMATORS[name], " ".join(inspect.getdoc(ESTIMATORS[name].estimator).split())
    told = re.search(r"Returns: A .*?sampler for (.*?)(?:[.;] |\.$)", doc)[1]
    words = write.distributions_in_words(record)
    if words.startswith(("any ", "those of")):
        assert told.startswith("any distribution" if words[0] == "a" else "the distributions of")
        return
    named = {kind for kind in DISTRIBUTIONS if re.search(rf"\b{kind}\b", told)}
    if "relaxed densities" in told:
        named |= {kind.name for kind in DISTRIBUTIONS.values() if kind.relaxed}
    if "reparameterizable" in told:
        named |= set(ESTIMATORS["dreg"].distributions)
    assert named == set(record.distributions)


@EACH_ESTIMATOR
def test_docstring_tells_that_second_derivatives_raise(name):
    record = ESTIMATORS[name]
    if record.estimates and not record.second_order:
        assert "when differentiated twice" in inspect.getdoc(record.estimator).replace(
            "when its draw is", "when"
        )


# ---- What is written from them -------------------------------------------------------------


def test_files_are_as_the_script_writes_them():
    outdated = [str(path.relative_to(ROOT)) for path in write.changes(ROOT)]
    assert not outdated, "run python -m scripts.write"


@pytest.fixture
def clone(tmp_path):
    """A copy of the files that something is written into."""
    for path in [ROOT / "pyproject.toml", *write.written(ROOT)]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert write.changes(tmp_path) == {}
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("README.md", "(https://github.com/gradest/gradest/blob/main/", "("),
        ("README.md", "badge.svg", "badge.png"),
        ("docs/_generated/methods.md", "relaxed", "exact"),
        ("docs/_generated/distributions.md", "angles", "reals"),
        ("docs/_generated/capabilities.md", "Normal", "Cauchy"),
        ("docs/_generated/libraries.md", "`Bernoulli`", "`Boltzmann`"),
        ("docs/_generated/references.md", "eq. 5", "eq. 6"),
        ("CITATION.cff", "Apache-2.0", "MIT"),
        ("notebooks/quickstart.ipynb", "github.com/gradest/", "github.com/somebody/"),
    ],
)
def test_a_file_that_says_something_else_is_noticed(clone, file, old, new):
    path = clone / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert list(write.changes(clone)) == [path]
    assert write.changes(clone)[path] == text


def test_another_address_is_written_everywhere(clone):
    project = clone / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    assert text.count("gradest/gradest") == 1, "the address stands once"
    address = "https://github.com/someone/gradients"
    project.write_text(text.replace("https://github.com/gradest/gradest", address))
    changes = write.changes(clone)
    names = {str(path.relative_to(clone)) for path in changes}
    assert {"README.md", "CITATION.cff", "notebooks/quickstart.ipynb"} <= names
    for path, written in changes.items():
        assert "gradest/gradest" not in written
        path.write_text(written, encoding="utf-8")
    assert write.changes(clone) == {}
    assert f"]({address}/blob/main/benchmarks/README.md#efficiency)" in changes[clone / "README.md"]
    # And back, though the name is another one now.
    project.write_text(text)
    restored = {path.relative_to(clone): text for path, text in write.written(clone).items()}
    assert restored == {p.relative_to(ROOT): text for p, text in write.written(ROOT).items()}


def test_links_that_are_not_the_repositorys_are_left_alone():
    issue = "[jax issue](https://github.com/jax-ml/jax/issues/39103), [here](#limits)"
    address = "https://github.com/someone/gradients"
    linked = write.absolute_links(issue, address)
    assert write.with_address(linked, address, ["gradest"]) == issue


def dead_links(markdown):
    """The links to files of the repository, or to their headings, that lead nowhere."""
    anchor = lambda heading: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    dead = []
    for path, heading in re.findall(r"/gradest/(?:blob|raw)/main/([^)#]*)#?([^)]*)\)", markdown):
        file = ROOT / path
        headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.M) if heading else []
        if not file.is_file() or (heading and heading not in map(anchor, headings)):
            dead.append(f"{path}#{heading}")
    return dead


def test_links_of_the_readme_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not dead_links(readme)
    assert dead_links(readme.replace("#efficiency", "#deficiency"))
    assert dead_links(readme.replace("main/docs/faq.md", "main/faq.md"))
    # None that would lead nowhere from a package index's page.
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert all(re.match(r"https://|#", target) for target in targets)


def test_readme_keeps_what_is_not_written():
    """Nothing but the parts between markers, and links, is the script's."""
    text = "# gradest\n\nSee [the page](docs/page.md) and ![a picture](a/b.png).\n"
    address = "https://host.example/o/gradest"
    linked = write.absolute_links(text, address)
    assert linked == (
        f"# gradest\n\nSee [the page]({address}/blob/main/docs/page.md) and "
        f"![a picture]({address}/raw/main/a/b.png).\n"
    )
    assert write.absolute_links(linked, address) == linked


def test_check_tells_and_writes_nothing(clone, monkeypatch, capsys):
    monkeypatch.setattr(write, "ROOT", clone)
    assert write.main(["--check"]) == 0
    citation = clone / "CITATION.cff"
    right = citation.read_text(encoding="utf-8")
    citation.write_text("something else", encoding="utf-8")
    assert write.main(["--check"]) == 1
    assert capsys.readouterr().out == "outdated: CITATION.cff\n"
    assert citation.read_text(encoding="utf-8") == "something else"
    assert write.main([]) == 0
    assert citation.read_text(encoding="utf-8") == right


# ---- The page for who adds an estimator ----------------------------------------------------


def module_of_the_page():
    """The module that docs/add-an-estimator.md shows, as if it stood among the estimators."""
    page = (ROOT / "docs" / "add-an-estimator.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- module: mirrored -->\n```python\n(.*?)```", page, re.DOTALL)
    module = types.ModuleType("gradest.estimators.mirrored")
    module.__package__ = "gradest.estimators"
    exec(compile(code, "docs/add-an-estimator.md", "exec"), vars(module))
    return module


def test_the_estimator_of_the_page_is_what_its_record_claims(monkeypatch):
    """Followed as far as the measurement, it agrees; with a gradient 5% too large it does not."""
    module = module_of_the_page()
    (record,) = module.RECORDS
    monkeypatch.setattr(properties, "_NUM_KEYS", 200_000)
    measured = {name: cell.value for name, cell in properties.measure(record).items()}
    assert measured == properties.claims(record)
    scale = lambda x: 1.05 * x - 0.05 * jax.lax.stop_gradient(x)
    estimate = lambda key, dist, cost: scale(module._estimate(key, dist, cost))
    make = lambda: ge.Sampler("scaled", estimate=estimate)
    broken = properties.measure(dataclasses.replace(record, estimator=make))
    assert broken["unbiased"].value == "no"


def test_the_docstring_of_the_page_runs(monkeypatch):
    module = module_of_the_page()
    function = module.mirrored_score_function
    monkeypatch.setattr(ge, "mirrored_score_function", function, raising=False)
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(function, "mirrored", module=False):
        runner.run(example)
    assert runner.summarize(verbose=False) == (0, 6)


# ---- Metadata ------------------------------------------------------------------------------


def test_citation():
    """Its fields are those of the metadata, in YAML that is JSON too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    comment, *lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert comment.startswith("#")
    fields = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in lines)}
    # What the format demands.
    assert {"cff-version", "message", "title", "authors"} <= set(fields)
    assert fields["version"] == project["version"]
    assert fields["repository-code"] == project["urls"]["Repository"]
    assert fields["license"] == project["license"]


def test_version_is_that_of_the_installation(monkeypatch):
    assert ge.__version__ == _version._version()

    def missing(name):
        raise _version.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_version.importlib.metadata, "version", missing)
    assert _version._version() == "0+unknown"
