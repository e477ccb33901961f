"""What a page of `docs/` defines, for a test of the page."""

import doctest
import functools
import pathlib
import types


@functools.cache
def definitions(page: pathlib.Path) -> types.SimpleNamespace:
    """The names that the page's code defines; what it prints is not run."""
    names = {}
    for example in doctest.DocTestParser().get_examples(page.read_text(encoding="utf-8")):
        if not example.want:
            exec(example.source, names)
    return types.SimpleNamespace(**names)
