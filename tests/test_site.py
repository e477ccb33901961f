"""The site builds without a warning, and is whole: nothing of it is missing, nor elsewhere."""

import html.parser
import importlib.util
import inspect
import itertools
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest
from support import browser

import gradest
import gradest.distributions

ROOT = pathlib.Path(__file__).parents[1]
MODULES = (gradest, gradest.distributions)


def public_names() -> list[str]:
    return [
        f"{module.__name__}.{name}"
        for module in MODULES
        for name, thing in inspect.getmembers(module)
        if not name.startswith("_") and not inspect.ismodule(thing)
    ]


def test_every_public_name_is_on_an_api_page():
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    told = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", pages, re.MULTILINE))
    assert set(public_names()) - told == set()


# ---- Built ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of its pages."""
    for module in (
        "sphinx",
        "myst_nb",
        "sphinx_book_theme",
        "sphinx_design",
        "sphinx_copybutton",
        "numpyro",
        "ziamath",
    ):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs gradest[docs]: there is no {module}")
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    subprocess.run(
        [*command, "docs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=600,
    )
    return folder


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and what can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", text)
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value for name, value in attrs if value}
        targets = [given[name] for name in ("src", "href") if name in given]
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links += targets
        elif tag != "link" or given.get("rel") not in ("canonical", "search", "next", "prev"):
            self.loads += targets


def pages(site) -> dict[pathlib.Path, Page]:
    # The theme has a template among its files.
    paths = (path for path in site.rglob("*.html") if "_static" not in path.parts)
    return {path: Page(path.read_text("utf-8")) for path in paths}


def elsewhere(page: Page) -> list[str]:
    return [target for target in page.loads if re.match(r"(https?:)?//", target)]


def dead_links(pages: dict[pathlib.Path, Page]) -> list[str]:
    """Those within the site to a file that is not there, or to a place that a page has not."""
    dead = []
    for path, page in pages.items():
        for target in [*page.links, *page.loads]:
            url = urllib.parse.urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = path
            if url.path:
                file = (path.parent / urllib.parse.unquote(url.path)).resolve()
            anchor = urllib.parse.unquote(url.fragment)
            there = pages.get(file)
            if not file.exists() or (anchor and there and anchor not in there.ids):
                dead.append(f"{path.name}: {target}")
    return dead


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site):
    for path, page in pages(site).items():
        assert elsewhere(page) == [], path
    for path in site.rglob("*.css"):
        assert elsewhere(Page(f"<style>{path.read_text('utf-8')}</style>")) == [], path


@pytest.mark.slow
def test_every_link_leads_somewhere(site):
    found = pages(site)
    assert sum(len(page.links) for page in found.values()) > 1000
    assert dead_links(found) == []


@pytest.mark.slow
def test_every_public_name_has_an_entry(site):
    entries = set().union(*(page.ids for page in pages(site / "api").values()))
    assert set(public_names()) - entries == set()


@pytest.mark.slow
def test_equations_are_mathml(site):
    text = (site / "background.html").read_text("utf-8")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') > 8
    assert text.count('class="eqno"') > 8
    assert not re.search(r"\\(frac|nabla|mathbb)", text)
    assert "<mi>diag</mi>" in (site / "several-draws.html").read_text("utf-8")
    # A name is apart from what it is applied to, and from what is multiplied by it.
    space = '<mspace width="0.17em" />'
    assert f"</msub>{space}<mi>log</mi>{space}<msub>" in text
    # In the font that the site brings, which has the table that lets brackets grow.
    assert b"MATH" in (site / "_static" / "math.woff").read_bytes()[:1000]


@pytest.mark.slow
def test_names_in_tables_may_break(site):
    table = re.search(r"<table.*?</table>", (site / "choose.html").read_text("utf-8"), re.DOTALL)
    assert "score_<wbr>function" in table[0]


def out_of_order(text: str) -> list[str]:
    """The headings of a page, if it has not one title, or skips a level."""
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", text)]
    steps = [lower - upper for upper, lower in itertools.pairwise(levels)]
    in_order = levels.count(1) == 1 and levels[0] == 1 and max(steps, default=0) <= 1
    return [] if in_order else re.findall(r"<h[1-6][ >].*?</h", text)


@pytest.mark.slow
def test_headings_are_in_order(site):
    for path in pages(site):
        assert out_of_order(path.read_text("utf-8").partition("<article")[2]) == [], path
    measured = (site / "_repository" / "benchmarks" / "the-estimators.html").read_text("utf-8")
    assert re.search(r"<p><em>\d+ cores of ", measured)


needs_chromium = pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium")


@pytest.mark.slow
@needs_chromium
def test_pages_fit_a_phone(site):
    """Nothing has to be scrolled sideways but code, tables and equations, which can be."""
    root = "document.documentElement"
    wider = f"{root}.scrollWidth - {root}.clientWidth"
    too_wide = {}
    with browser.page() as page:
        page.resize(390, 800)
        for path in pages(site):
            page.open(path.as_uri())
            too_wide[path.name] = page.evaluate(wider)
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<hr style=width:600px>')")
        assert page.evaluate(wider) > 0
        assert page.complaints == []
    assert {name: by for name, by in too_wide.items() if by > 0} == {}


@pytest.mark.slow
@needs_chromium
def test_search_works_without_a_server(site):
    address = f"{(site / 'search.html').as_uri()}?q=plateau"
    command = [browser.CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    out = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    results = Page(out.stdout.partition('id="search-results"')[2]).links
    assert any("annealing.html" in link for link in results)


# ---- The tests find what they look for -----------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/mathjax.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/font.css">',
        "<style>@import 'https://fonts.example/font.css';</style>",
        '<div style="background: url(https://example.org/a.png)"></div>',
        '<img src="http://example.org/a.png">',
    ],
)
def test_what_comes_from_elsewhere_is_seen(text):
    assert elsewhere(Page(f"<html><body>{text}</body></html>"))


def test_headings_out_of_order_are_seen():
    assert out_of_order("<h1>a</h1><h2>b</h2><h3 id='c'>c</h3><h2>d</h2>") == []
    for text in ("<h2>a</h2>", "<h1>a</h1><h3>b</h3>", "<h1>a</h1><h1>b</h1>"):
        assert out_of_order(text)


def test_dead_links_are_seen(tmp_path):
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    one.write_text('<a href="two.html#here"></a><a href="https://example.org">out</a>')
    two.write_text('<p id="here"></p>')
    assert dead_links(pages(tmp_path)) == []
    one.write_text('<a href="two.html#there"></a><a href="three.html"></a>')
    assert dead_links(pages(tmp_path)) == ["one.html: two.html#there", "one.html: three.html"]
