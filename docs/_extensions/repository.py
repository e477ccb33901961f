"""Pages that are made of files elsewhere in the repository, and the links to them.

The pages of docs/ link to files of the repository as they stand there, `../CONTRIBUTING.md` say, so
that they can be read in it. Some of these files are pages of the site too, written into
docs/_repository when it is built: the change log, CONTRIBUTING, each part of the benchmarks'
tables, the notebooks. On the site a link to such a file leads to its page, and one to any other
file to the repository.
"""

import functools
import json
import pathlib
import posixpath
import re
from typing import Any

from sphinx.application import Sphinx

from scripts import write

ROOT = pathlib.Path(__file__).parents[2]
_BENCHMARKS = "benchmarks/README.md"
_FOLDER = "_repository"
#: Files that are a page, but for those whose parts are.
_PAGES = {
    "README.md": "index",
    "CHANGELOG.md": f"{_FOLDER}/changelog",
    "CONTRIBUTING.md": f"{_FOLDER}/contributing",
    _BENCHMARKS: "evidence",
}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", _write_pages)
    app.connect("source-read", lambda app, page, source: rewrite(app.config, page, source))
    return {"parallel_read_safe": True}


def _write_pages(app: Sphinx, config: Any) -> None:
    write_pages(pathlib.Path(app.srcdir), config.html_theme_options["repository_url"])


def write_pages(docs: pathlib.Path, address: str) -> None:
    """Files that did not change are left alone, and so are Sphinx's pages of them."""
    pages = docs / _FOLDER
    contents = {
        f"{pathlib.Path(name).stem.lower()}.md": (ROOT / name).read_text(encoding="utf-8")
        for name in ("CHANGELOG.md", "CONTRIBUTING.md")
    }
    contents |= {f"{name}.md": text for name, text in benchmarks().items()}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = f"{_FOLDER}/notebooks/{notebook.stem}"
        contents[f"notebooks/{notebook.name}"] = notebook_page(notebook, page, address)
    written = {path for path in pages.rglob("*") if path.is_file()}
    for path in written - {pages / name for name in contents}:
        path.unlink()
    for name, text in contents.items():
        path = pages / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def notebook_page(path: pathlib.Path, page: str, address: str) -> str:
    """A notebook, whose links to the repository are whole, since it is read in Colab too."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            # The badge's picture would come from elsewhere.
            text = re.sub(r"\[!\[(Open In Colab)\]\([^)]*\)\]", r"[\1]", text)
            text = text.replace(f"]({address}/blob/main/", "](")
            cell["source"] = on_site(text, page, "README.md", address)
    return json.dumps(notebook, ensure_ascii=False, indent=1)


@functools.cache
def benchmarks() -> dict[str, str]:
    """The parts of the benchmarks' tables: a page for each heading of the first level."""
    text = (ROOT / _BENCHMARKS).read_text(encoding="utf-8")
    parts = re.split(r"^(?=# )", text, flags=re.MULTILINE)[1:]
    pages = {}
    for part in parts:
        title = part.splitlines()[0].removeprefix("# ")
        # Where and when it was measured is a line of the page; headings of the third or, below such
        # a line, the fourth level stand right below those of the first.
        part, measured = re.subn(r"^### (\d+ cores of .*)$", r"*\1*", part, flags=re.MULTILINE)
        lifted = re.sub(rf"^#{{{1 + measured}}}(#+ )", r"\1", part, flags=re.MULTILINE)
        pages[f"benchmarks/{anchor(title)}"] = lifted
    return pages


@functools.cache
def headings() -> dict[str, str]:
    """The page of each heading of the benchmarks' tables."""
    return {
        anchor(heading): f"{_FOLDER}/{page}"
        for page, text in benchmarks().items()
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def rewrite(config: Any, page: str, source: list[str]) -> None:
    if page.startswith(f"{_FOLDER}/notebooks/"):
        return
    address = config.html_theme_options["repository_url"]
    # Where the links of the page start from, in the repository.
    place = f"docs/{page}"
    if page.startswith(_FOLDER):
        place = _BENCHMARKS if "/benchmarks/" in page else "README.md"
    source[0] = on_site(source[0], page, place, address)


def on_site(markdown: str, page: str, place: str, address: str) -> str:
    """The text of a page, with links as they are on the site."""

    def link(match: re.Match[str]) -> str:
        before, target = match.groups()
        path, _, heading = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), path)) if path else place
        inside = path.startswith("docs/")
        if before.startswith("!"):
            file = path.removeprefix("docs/") if inside else f"../{path}"
            return f"{before}({relative(file, page)})"
        if inside:
            if place.startswith("docs/"):
                return match[0]
            there = path.removeprefix("docs/")
        elif path == _BENCHMARKS and heading in headings():
            there = f"{headings()[heading]}.md"
        elif path in _PAGES:
            there = f"{_PAGES[path]}.md"
        elif path.startswith("notebooks/") and path.endswith(".ipynb"):
            there = f"{_FOLDER}/{path}"
        else:
            there = f"{path}#{heading}" if heading else path
            return write.absolute_links(f"{before}({there})", address)
        return f"{before}({relative(there, page)}{f'#{heading}' if heading else ''})"

    target = r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?!#|/|[a-z]+:)([^)\s]+)\)"
    return re.sub(target, link, markdown)


def relative(path: str, page: str) -> str:
    return posixpath.relpath(path, posixpath.dirname(page) or ".")
