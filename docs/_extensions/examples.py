"""Blocks of code without the blank line that doctest needs before the end of a fence."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", lambda app, doctree: strip(doctree))
    return {"parallel_read_safe": True}


def strip(doctree: nodes.document) -> None:
    for block in doctree.findall(nodes.literal_block):
        text = block.astext()
        # Of what was highlighted already, as results of notebooks, the parts are kept.
        if text != text.rstrip() and block.rawsource == text:
            block.rawsource = text.rstrip()
            block[:] = [nodes.Text(block.rawsource)]
