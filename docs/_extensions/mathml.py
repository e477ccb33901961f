"""Equations as MathML, which browsers render by themselves."""

import re
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mathml(node.astext(), "block"))
    if node["number"]:
        number = f'<span class="eqno">({node["number"]})'
        self.body.append(number)
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def mathml(latex: str, display: str) -> str:
    written = latex2mathml.converter.convert(latex.strip(), display=display)
    # The name of a function is no operator, with a space on both sides: it has one after it, unless
    # a parenthesis follows or it is the base of an index.
    named = re.sub(r"<mo>([a-zA-Z]{2,})</mo>", r"<mi>\1</mi>", written)
    base = r"(?<!sub>)(?<!sup>)(?<!under>)(?<!over>)"
    name = rf"{base}(<mi>[a-zA-Z]{{2,}}</mi>)(?=<mi|<ms)"
    return re.sub(name, r'\1<mspace width="0.17em" />', named)
