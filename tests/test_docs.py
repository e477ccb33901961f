"""What the documents say of the code: files, links, nodes and rooms that are there."""

import dataclasses
import doctest
import inspect
import pathlib
import re
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import pytest

import gradest as ge
from gradest import records
from gradest._transform import program
from scripts import rooms, tree

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tests/support/README.md")),
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if not {"_build", "_generated", "_repository", "jupyter_execute"} & set(page.parts)
    ),
]
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: pathlib.Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pages
def test_files_that_are_named_exist(page):
    """Those of this repository, named from its root, but for those that a page has one write."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:gradest|tests|benchmarks|docs|scripts|\.ci|\.github)/[\w./-]*)`", text
    )
    written = [pathlib.Path(module).stem for module in re.findall("<!-- module: (.*) -->", text)]
    told = [path for path in named if not any(name in path for name in written)]
    assert [path for path in told if not (ROOT / path).exists()] == []


NEEDS = {
    page: needed
    for page in PAGES
    for needed in re.findall("<!-- needs: (.*) -->", page.read_text(encoding="utf-8"))
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", NEEDS, ids=lambda page: page.stem)
def test_programs_of_a_library_run(page):
    """As a user runs them, without the tests' strictness."""
    pytest.importorskip(NEEDS[page])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted > 5
    assert found.failed == 0


def test_the_design_tells_every_node():
    nodes = {
        name
        for name, kind in inspect.getmembers(program, inspect.isclass)
        if issubclass(kind, (program.Run, program.Node)) and kind is not program.Node
    }
    section = DESIGN.split("\n## Nodes\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == nodes


def test_the_glossary_is_in_order():
    terms = re.findall(r"^\*\*(\w+)\*\*: ", DESIGN.split("\n## Glossary\n")[1], re.MULTILINE)
    assert {"site", "node", "lane", "run", "ledger", "mode", "mark"} <= set(terms)
    assert terms == sorted(terms)


@pytest.mark.parametrize("drawn", [rooms, tree], ids=["rooms", "tree"])
def test_the_picture_is_up_to_date(drawn):
    assert drawn.PATH.read_text(encoding="utf-8") == drawn.picture()
    xml.etree.ElementTree.fromstring(drawn.picture())


def wrong(answer: tree.Answer) -> dict[str, object]:
    """What the estimator's record, or its code, says against the way that leads to the answer."""
    record = records.ESTIMATORS[answer.name]
    found = {name: getattr(record, name) for name in answer.facts}
    found = {name: fact for name, fact in found.items() if fact != answer.facts[name]}
    if unserved := set(answer.serves) - set(record.distributions):
        found["serves"] = unserved
    sampler = eval("".join(answer.code), {"ge": ge, "b": jnp.zeros(())})
    if sampler.name != answer.name:
        found["name"] = sampler.name
    return found


def test_the_tree_says_what_the_records_say():
    assert [wrong(answer) for answer in tree.ANSWERS] == [{}] * 6
    unlike = dataclasses.replace(tree.ELSE, name="reinmax", code=["ge.reinmax()"])
    assert set(wrong(unlike)) == {"unbiased", "differentiable_cost", "serves"}


def test_the_page_asks_as_the_tree_does():
    page = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
    asked = page.split("## Five questions")[1].split("\n## ")[0]
    numbered = re.findall(r"^\*\*(\d)\. ", asked, re.MULTILINE)
    assert numbered == [question.text[0][0] for question in tree.QUESTIONS]
    code = "".join(asked.split())
    places = [code.index(f"={''.join(''.join(a.code).split())}") for a in tree.ANSWERS]
    # In the tree's order, but for the last, which is the call of the second once more.
    assert sorted(places[:5]) == places[:5]
    assert code.count("=ge.score_function(baseline=b)") == 2
    (said,) = re.findall(r"!\[(.*?)\]\(_static/choose\.svg\)", asked)
    assert re.findall(r"score_function|reparameterize|enumeration|reinmax", said) == [
        answer.name for answer in tree.ANSWERS
    ]
