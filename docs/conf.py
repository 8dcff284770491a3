"""The documentation site: ``make docs``.

Pages are plain Markdown, as GitHub shows it. The site has README, CHANGELOG.md and CONTRIBUTING.md
in place of the pages that link to them; the API (api.rst) is on the site alone.
"""

import inspect
import re
from pathlib import Path

from docutils import nodes
from latex2mathml import converter
from sphinx import addnodes
from sphinx.util.inspect import stringify_signature

import ilm_plugins

project = "ilm_plugins"
release = version = ilm_plugins.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["output"]  # of the notebook, run in its folder
html_theme = "furo"
html_title = f"ilm_plugins {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_copyright = False
maximum_signature_line_length = 80
napoleon_use_rtype = False  # "scale, shift: (N, C) each" gives names, no type
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as GitHub
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Frameworks that the documented modules may import, and a reader's environment may lack.
autodoc_mock_imports = ["mmengine", "mmcv"]

FILE = """```{{include}} ../{}
:relative-images:
:relative-docs: {}
```
"""
#: Page of the site -> the file elsewhere that it shows, and how the links in it to docs/ begin.
FILES = {
    "changelog": ("CHANGELOG.md", "docs/"),
    "contributing": ("CONTRIBUTING.md", "docs/"),
    "results": ("reproduction/results.md", "../docs/"),
    "measuring": ("benchmarks/README.md", "../docs/"),
    "configs": ("configs/README.md", "../docs/"),
}


def fill_page(app, name, source):
    """Fill the pages that are lists or links on GitHub; let links stay on the site."""
    if name in FILES:
        source[0] = FILE.format(*FILES[name])
        return
    for page, (file, _) in FILES.items():
        source[0] = source[0].replace(f"](../{file}", f"]({page}.md")
    if name == "index":
        source[0] = readme() + "".join(toctrees(source[0]))


def readme():
    """Return the part of README that the site shows, with links to the site's pages."""
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8").split("<!-- site -->")[1]
    text = text.split("## Demo and tests")[0].replace("](docs/", "](")
    for page, (file, _) in FILES.items():
        text = text.replace(f"]({file}", f"]({page}.md")
    return f"# ilm_plugins\n{text}"


def toctrees(index):
    """Yield a directive for each section of the index, of the pages that the section links to."""
    for section in index.split("\n## ")[1:]:
        caption, links = section.split("\n", 1)
        names = re.findall(r"^- \[.*?\]\((.*?)\.(?:md|rst)\)", links, re.MULTILINE)
        yield "\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", *names, "```", ""])


def escape_shapes(app, what, name, obj, options, lines):
    """The star of a shape such as (N, C, *) is no emphasis, but in code."""
    lines[:] = [line if line.startswith("    ") else line.replace("*)", r"\*)") for line in lines]


def show_options(app, what, name, obj, options, signature, returns):
    """Show the options of a layer's constructor; autodoc would show its ``__new__``."""
    if what == "class" and signature == "(*args, **options)":
        shown = inspect.signature(obj)
        text = stringify_signature(shown, show_return_annotation=False, unqualified_typehints=True)
        return text, None
    if signature and "<factory>" in signature:  # a dataclass of results, which no reader makes
        return "", None


def add_targets(app, doctree):
    """Add the targets of "[docs]" on source pages, which take all of a file to be of one module."""
    for signature in doctree.findall(addnodes.desc_signature):
        target = f"ilm_plugins.{signature.get('fullname')}"
        if target not in signature["ids"]:
            signature["ids"].append(target)


def write_mathml(self, node):
    """Write an equation as MathML, which browsers draw without a script."""
    is_block = isinstance(node, nodes.math_block)
    # latex2mathml knows the same environment by another name.
    text = node.astext().replace("{aligned}", "{split}")
    if r"\\" in text and "{split}" not in text:  # of a docstring
        text = rf"\begin{{split}}{text}\end{{split}}"
    formula = converter.convert(text, display="block" if is_block else "inline")
    self.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def let_code_break(app, page, template, context, doctree):
    """Let long names and paths break behind "_", "/" and the like, and nowhere else."""

    def divide(name):
        return re.sub(r"(?<=[_/.,=({:])(?=[^\W_]|[&'])", '</span><wbr><span class="pre">', name[0])

    long_name = '(?<=<span class="pre">)[^<]{25,}(?=</span>)'
    context["body"] = re.sub(long_name, divide, context.get("body", ""))


def setup(app):
    app.connect("source-read", fill_page)
    app.connect("autodoc-process-docstring", escape_shapes)
    app.connect("autodoc-process-signature", show_options)
    app.connect("doctree-read", add_targets)
    app.connect("html-page-context", let_code_break)
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
