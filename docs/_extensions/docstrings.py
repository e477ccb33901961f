"""Docstrings as they stand in the code, in reStructuredText.

They have names between single backticks, tables as in Markdown, and, of an estimator, lines that
begin with `Bias:` and the like. Equations are in reStructuredText, examples in doctest's.
"""

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

_LABELS = ("Assumptions", "Bias", "Bias and variance", "Variance", "Cost evaluations per gradient")
_DEFINITION = re.compile(rf"({'|'.join(_LABELS)}): (.*)")
_TABLE = re.compile(r"( *)\|(.*)\|")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    # Before napoleon, at 500, which reads the sections.
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True}


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def restructured(lines: list[str]) -> list[str]:
    return list(_definitions(list(_tables([_escaped(line) for line in _prose(lines)]))))


def _prose(lines: list[str]) -> Iterator[tuple[bool, str]]:
    """Each line, and whether it is prose: no equation, no example."""
    example = equation = False
    for line in lines:
        if re.match(r"\w+:$", line):
            example = line == "Example:"
        if line.lstrip().startswith(".. math::"):
            equation = True
        elif not line.strip():
            equation = False
        yield not (example or equation), line


def _escaped(line: tuple[bool, str]) -> str:
    """With double backticks, and other signs that mean something in reStructuredText escaped."""
    prose, text = line
    if not prose:
        return text
    parts = re.split(r"(?<!`)`([^`]+)`(?!`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            touches = i + 1 < len(parts) and re.match(r"\w", parts[i + 1])
            parts[i] = f"``{part}``" + ("\\ " if touches else "")
        elif not _TABLE.fullmatch(text):
            parts[i] = re.sub(r"([*|])", r"\\\1", part)
    return "".join(parts)


def _tables(lines: list[str]) -> Iterator[str]:
    """With Markdown's tables as directives."""
    inside = False
    for line in lines:
        row = _TABLE.fullmatch(line)
        if not row:
            inside = False
            yield line
            continue
        indent, cells = row[1], [cell.strip() for cell in row[2].split("|")]
        if not inside:
            inside = True
            yield from (f"{indent}.. list-table::", f"{indent}   :header-rows: 1", "")
        if set(cells) != {"---"}:
            for i, cell in enumerate(cells):
                yield f"{indent}   {' ' if i else '*'} - {cell}"


def _definitions(lines: list[str]) -> Iterator[str]:
    """With `Bias: none.` and the lines below it as a term and its definition."""
    inside = False
    for line in lines:
        found = _DEFINITION.fullmatch(line)
        if found:
            yield from ([] if inside else [""])
            # "1." is a number, and not the first item of a list.
            yield from (found[1], "    " + re.sub(r"^(\d+)\.", r"\1\\.", found[2]))
            inside = True
        elif inside and line and not line.startswith(" "):
            yield f"    {line}"
        else:
            inside = False
            yield line
