"""The documentation site: ``make docs``."""

import ilm_plugins

project = "ilm_plugins"
release = version = ilm_plugins.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"ilm_plugins {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
# Frameworks that the documented modules may import, and a reader's environment may lack.
autodoc_mock_imports = ["mmengine", "mmcv"]


def escape_shapes(app, what, name, obj, options, lines):
    """The star of a shape such as (N, C, *) is no emphasis."""
    lines[:] = [line.replace("*)", r"\*)") for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_shapes)
