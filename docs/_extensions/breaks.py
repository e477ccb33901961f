"""Long names in tables break where their words do, so that tables are as narrow as they can be."""

import re
from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", _break_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _break_page(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if "body" in context:
        context["body"] = in_tables(context["body"])


def in_tables(body: str) -> str:
    """The HTML with places to break in the code of its tables' cells."""
    of_table = lambda table: re.sub(r'(?<=<span class="pre">)[^<]+', _broken, table[0])
    return re.sub(r"<table.*?</table>", of_table, body, flags=re.DOTALL)


def _broken(name: re.Match[str]) -> str:
    # After an underscore, a dot or a parenthesis within a name, and before a capital.
    return re.sub(r"(?<=\w)[_.(=](?=\w)|(?<=[a-z])(?=[A-Z])", r"\g<0><wbr>", name[0])
