"""Equations as MathML, which browsers render by themselves, in a font that the site brings.

Without a font that has a table of mathematics, brackets do not grow, and primes and indices stand
in the wrong place; most systems have none.
"""

import importlib.resources
import pathlib
import re
from typing import Any

import latex2mathml.converter
from docutils import nodes
from fontTools import subset
from sphinx.application import Sphinx

#: What equations are written in: letters, accents, Greek, punctuation, letterlike symbols, arrows
#: and operators, brackets, and the alphabets of mathematics.
_CHARACTERS = [(0x20, 0x17F), (0x2C0, 0x2E0), (0x370, 0x400), (0x2000, 0x2070), (0x2100, 0x2150)]
_CHARACTERS += [(0x2190, 0x2400), (0x27E6, 0x27F0), (0x1D400, 0x1D800)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", _write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write_font(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        write_font(pathlib.Path(app.outdir) / "_static" / "math.woff")


def write_font(path: pathlib.Path) -> None:
    """STIX Two Math, as far as equations need it: all of it takes six times as long to load."""
    features = ["ssty", "dtls", "flac"]
    options = subset.Options(flavor="woff", layout_features=features, name_IDs=["*"], hinting=False)
    whole = importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    with importlib.resources.as_file(whole) as file:
        font = subset.load_font(str(file), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[c for first, end in _CHARACTERS for c in range(first, end)])
    subsetter.subset(font)
    subset.save_font(font, str(path), options)


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
    # a parenthesis follows, and one before it if something is multiplied by it; neither where it is
    # the base of an index.
    named = re.sub(r"<mo>([a-zA-Z]{2,})</mo>", r"<mi>\1</mi>", written)
    base = "".join(rf"(?<!<m{of}>)" for of in ("sub", "sup", "subsup", "under", "over"))
    name, space = rf"{base}<mi>[a-zA-Z]{{2,}}</mi>", '<mspace width="0.17em" />'
    before = re.sub(rf"(</(?:mi|msub|msup|msubsup)>)(?={name})", rf"\1{space}", named)
    return re.sub(rf"({name})(?=<mi|<ms)", rf"\1{space}", before)
