"""Writes what is told in several places from the one place where it is known.

    python -m scripts.write            # writes
    python -m scripts.write --check    # says what would change, with exit status 1

The facts of estimators and distributions are in their records (`gradest.records`), and the papers
that they follow in their docstrings: from these come the fragments in docs/_generated. The
repository's address is in
`project.urls` of pyproject.toml: from it come the links to the repository, wherever they stand, and
README's, which are absolute since they are read on a package index's page too. CITATION.cff is
written from pyproject.toml as a whole.
"""

import argparse
import inspect
import json
import pathlib
import re
import sys
import tomllib
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

import gradest
from benchmarks._measure import replace_between_markers
from gradest import records

ROOT = pathlib.Path(__file__).parents[1]
_COLAB = "https://colab.research.google.com"
#: Where links to the repository may stand.
_LINKED = (
    *("*.md", "mkdocs.yml", "docs/**/*.md", "docs/conf.py", "notebooks/*.ipynb"),
    *(".github/*.md", ".github/**/*.yml"),
)
#: Folders in which the site is built.
_BUILT = {"_build", "_repository"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.write", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    outdated = changes(ROOT)
    for path, text in outdated.items():
        print(f"{'outdated' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and outdated else 0


def changes(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """The files that are not what they should be, and what they should be."""
    current = lambda path: path.read_text(encoding="utf-8") if path.exists() else None
    return {path: text for path, text in written(root).items() if text != current(path)}


def written(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """All the files in which something is written, and what they should be."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"]["Repository"]
    found = {path for pattern in _LINKED for path in root.glob(pattern)}
    paths = sorted(path for path in found if not _BUILT & set(path.relative_to(root).parts))
    files = {path: path.read_text(encoding="utf-8") for path in paths}
    readme = root / "README.md"
    with_badges = replace_between_markers(files[readme], "badges", badges(root, address))
    files[readme] = absolute_links(with_badges, address)
    cited = root / "CITATION.cff"
    last = cited.read_text(encoding="utf-8") if cited.exists() else ""
    names = {project["name"], *re.findall(r'^repository-code: ".*/(.*)"', last, re.MULTILINE)}
    files = {path: with_address(text, address, names) for path, text in files.items()}
    generated = root / "docs" / "_generated"
    return files | {
        cited: citation(project, address),
        generated / "methods.md": fragment(methods_table()),
        generated / "capabilities.md": fragment(capabilities_table()),
        generated / "distributions.md": fragment(distributions_table()),
        generated / "libraries.md": fragment(libraries_table()),
        generated / "references.md": fragment(references_table(), "docstrings"),
    }


# ---- Tables --------------------------------------------------------------------------------


_ESTIMATORS = records.ESTIMATORS.values()
_DISTRIBUTIONS = records.DISTRIBUTIONS.values()
_METHODS = (
    *("estimator", "distributions", "draws", "unbiased", "cost must be differentiable"),
    *("cost evaluations", "reference", "needs", "second derivatives"),
)


def methods_table() -> str:
    """A row for each estimator."""
    return table(
        _METHODS, ([row[header] for header in _METHODS] for row in map(cells, _ESTIMATORS))
    )


def cells(record: records.Record) -> dict[str, str]:
    """What tables say of an estimator, by their headers."""
    smooth = "yes" if record.differentiable_cost else "no"
    if record.cost_note:
        smooth += f" ({record.cost_note})"
    count = record.evaluations
    needs = (need if isinstance(need, str) else " or ".join(need) for need in record.needs)
    return {
        "estimator": f"`{record.name}`",
        "distributions": distributions_in_words(record),
        "draws": record.draws,
        "unbiased": record.unbiased,
        "cost must be differentiable": smooth if record.estimates else "-",
        "cost evaluations": (str(count) if isinstance(count, int) else count.words)
        if record.estimates
        else "-",
        "reference": record.reference,
        "needs": ", ".join(needs),
        "second derivatives": "right" if record.second_order else "raise",
    }


def distributions_in_words(record: records.Record) -> str:
    """Their names, but for groups that have a name of their own."""
    pathwise = {kind.name for kind in _DISTRIBUTIONS if kind.reparameterizable}
    fixed = {kind.name for kind in _DISTRIBUTIONS if kind.scored}
    groups = {
        "any with `log_prob` and a fixed support": fixed,
        "those of `reparameterize` with a fixed support": pathwise & fixed,
        "the relaxed densities": {kind.name for kind in _DISTRIBUTIONS if kind.relaxed},
    }
    rest, words = list(record.distributions), []
    for name, group in groups.items():
        if group <= set(rest) and f"`{record.name}`" not in name:
            rest = [kind for kind in rest if kind not in group]
            words.append(name)
    return ", ".join([*rest, *words])


def capabilities_table() -> str:
    """What estimators need, which distributions have it and which estimators need it."""
    rows = []
    for name, capability in records.CAPABILITIES.items():
        have = [kind.name for kind in _DISTRIBUTIONS if name in kind.capabilities]
        lack = [kind.name for kind in _DISTRIBUTIONS if name not in kind.capabilities]
        needed_by = [
            f"`{record.name}`"
            for record in _ESTIMATORS
            if any(name == need or name in need for need in map(_alternatives, record.needs))
        ]
        who = f"all but {', '.join(lack)}" if len(lack) < 4 else ", ".join(have)
        rows.append([name, capability.meaning, who, ", ".join(needed_by)])
    return table(["capability", "what it is", "distributions", "needed by"], rows)


def _alternatives(need: str | tuple[str, ...]) -> tuple[str, ...]:
    return (need,) if isinstance(need, str) else need


def distributions_table() -> str:
    """A row for each distribution, with the estimators that serve it."""
    yes = lambda fact: "yes" if fact else "no"
    rows = []
    for kind in _DISTRIBUTIONS:
        serving = [f"`{r.name}`" for r in _ESTIMATORS if kind.name in r.distributions]
        parameters = ", ".join(f"`{name}`" for name in kind.parameters)
        facts = [yes(kind.reparameterizable), yes(kind.fixed_support)]
        rows.append([f"`{kind.name}`", parameters, kind.values, *facts, ", ".join(serving)])
    headers = ["distribution", "parameters", "values", "reparameterizable", "fixed support"]
    return table([*headers, "estimators"], rows)


def libraries_table() -> str:
    """A row for each estimator, with the classes of each library that it takes as gradest's own."""
    packages = dict.fromkeys(package for package, _ in records.TWINS)
    rows = []
    for record in _ESTIMATORS:
        cells = []
        for package in packages:
            served = [
                # numpyro has a class for each of two parameters, made by one function.
                re.sub("(Logits|Probs)$", "", name)
                for (owner, name), twin in records.TWINS.items()
                if owner == package and twin.kind and twin.kind.__name__ in record.distributions
            ]
            cells.append(", ".join(f"`{name}`" for name in dict.fromkeys(served)) or "-")
        rows.append([f"`{record.name}`", *cells])
    return table(["estimator", *(_LIBRARIES[package] for package in packages)], rows)


def references_table() -> str:
    """A row for each public name whose docstring has references."""
    public = {name: getattr(gradest, name) for name in dir(gradest) if name[0] != "_"}
    public |= {record.name: record.kind for record in _DISTRIBUTIONS}
    rows = []
    for name, thing in public.items():
        _, _, cited = (inspect.getdoc(thing) or "").partition("Reference:\n")
        if cited:
            rows.append([f"`{name}`", " ".join(cited.split())])
    return table(["name", "sources"], rows)


_LIBRARIES = {"numpyro": "numpyro", "tensorflow_probability": "TFP", "distrax": "distrax"}


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    line = lambda cells: f"| {' | '.join(cells)} |"
    headers = list(headers)
    return "\n".join([line(headers), "|---" * len(headers) + "|", *map(line, rows)])


def fragment(text: str, source: str = "records") -> str:
    """A file of its own, to be included by a page."""
    return f"<!-- Written by scripts/write.py: change the {source} instead. -->\n\n{text}\n"


# ---- The repository's address --------------------------------------------------------------


def badges(root: pathlib.Path, address: str) -> str:
    """Under README's title: of the checks, once they run there, and of the notebook."""
    notebook = f"{_COLAB}/github{urllib.parse.urlsplit(address).path}/blob/main/notebooks"
    found = [
        badge("Open In Colab", f"{_COLAB}/assets/colab-badge.svg", f"{notebook}/quickstart.ipynb")
    ]
    if (root / ".github" / "workflows" / "ci.yml").exists():
        checks = f"{address}/actions/workflows/ci.yml"
        found.insert(0, badge("CI", f"{checks}/badge.svg", checks))
    return "\n".join(found)


def badge(text: str, picture: str, target: str) -> str:
    return f"[![{text}]({picture})]({target})"


def absolute_links(markdown: str, address: str) -> str:
    """With links to files of the repository that a reader elsewhere can follow too."""
    relative = r"(?!#|/|[a-z]+:)([^)\s]+)"
    markdown = re.sub(rf"(!\[[^\]]*\])\({relative}\)", rf"\1({address}/raw/main/\2)", markdown)
    return re.sub(rf"(?<!!)(\[[^\]]*\])\({relative}\)", rf"\1({address}/blob/main/\2)", markdown)


def with_address(text: str, address: str, names: Iterable[str]) -> str:
    """With this address in the place of any other of a repository of one of these names."""
    path = urllib.parse.urlsplit(address).path
    name = "|".join(map(re.escape, {*names, path.rpartition("/")[2]}))
    ends = r"(?=[/#?\s)>\"'\\]|\.git\b|$)"
    text = re.sub(rf"{_COLAB}/github/[\w.-]+/(?:{name}){ends}", f"{_COLAB}/github{path}", text)
    return re.sub(rf"https://(?!colab\.)[\w.-]+/[\w-]+/(?:{name}){ends}", address, text)


def citation(project: dict[str, Any], address: str) -> str:
    """CITATION.cff. JSON's strings and lists are YAML's too."""
    fields = {
        "cff-version": "1.2.0",
        "message": f"If {project['name']} is of use to your work, please cite it.",
        "type": "software",
        "title": project["name"],
        "abstract": project["description"],
        "authors": [{"name": author["name"]} for author in project["authors"]],
        "version": project["version"],
        "license": project["license"],
        "repository-code": address,
        "keywords": project["keywords"],
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["# Written by scripts/write.py from pyproject.toml.", *lines]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
