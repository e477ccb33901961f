"""How the site is built: `python -m sphinx -W -b html docs docs/_build`."""

import pathlib
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_address = _project["urls"]["Repository"]

project = _project["name"]
version = release = _project["version"]
author = copyright = _project["authors"][0]["name"]

extensions = [
    "_extensions.breaks",
    "_extensions.mathml",
    "_extensions.docstrings",
    "_extensions.examples",
    "_extensions.repository",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
# The fragments are included by pages.
exclude_patterns = ["_build", "_generated", "_extensions"]

# Pages are Markdown; notebooks are shown with the outputs that are stored in them.
nb_execution_mode = "off"
# Widgets would be loaded from elsewhere.
nb_ipywidgets_js = {}
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
# As GitHub makes them, where pages are read too.
myst_heading_anchors = 4
# Equations are MathML when the page is written: no script, nor a font of another place.
html_math_renderer = "mathml"
myst_update_mathjax = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Docstrings say what an attribute is; annotations name JAX's private modules.
napoleon_attr_annotations = False
napoleon_custom_sections = ["Reference"]

# Prompts and results are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "gradest"
html_static_path = ["_static"]
# Pages that are whole by themselves: the playground.
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_theme_options = {
    "repository_url": _address,
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "home_page_in_toc": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    # The sidebar has the search; the header would have it again.
    "navbar_persistent": [],
}
html_sourcelink_suffix = ""
html_show_sourcelink = False
html_copy_source = False

# For `-b linkcheck`, which the scheduled workflow runs. Headings of files on GitHub are made by
# its scripts.
linkcheck_anchors_ignore_for_url = ["https://github.com/"]
linkcheck_timeout = 30
