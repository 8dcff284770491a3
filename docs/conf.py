"""The documentation site: ``make docs``.

Pages are plain Markdown, as GitHub shows it. The site has README, CHANGELOG.md and CONTRIBUTING.md
in place of the pages that link to them, and the executed notebook; the API (api.rst) is on the site
alone.
"""

import inspect
import json
import re
import subprocess
from pathlib import Path

from docutils import nodes
from latex2mathml import converter
from sphinx import addnodes
from sphinx.util.inspect import stringify_signature

import ilm_plugins

ROOT = Path(__file__).parents[1]
project = "ilm_plugins"
release = version = ilm_plugins.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown", ".ipynb": "markdown"}
exclude_patterns = ["output"]  # of the notebook, run in its folder
templates_path = ["_templates"]
html_theme = "furo"
html_sidebars = {
    "**": [
        *("sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html"),
        *("sidebar/navigation.html", "sidebar/project.html"),
        *("sidebar/scroll-end.html", "sidebar/variant-selector.html"),
    ]
}
#: The remote repository of this checkout, if a browser can open it.
REMOTE = subprocess.run(
    ["git", "config", "--get", "remote.origin.url"], capture_output=True, text=True, cwd=ROOT
).stdout.strip()
html_context = {"repository": re.match(r"https://[^@]*$", REMOTE) and REMOTE}
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
#: Kinds of a notebook's outputs; of one output, the first is shown.
SHOWN = ["image/png", "image/jpeg", "text/html", "text/plain"]


def fill_page(app, name, source):
    """Fill the pages that are lists or links on GitHub; let links stay on the site."""
    if name in FILES:
        source[0] = FILE.format(*FILES[name])
        return
    if Path(app.env.doc2path(name)).suffix == ".ipynb":
        source[0] = "\n\n".join(cells(json.loads(source[0])))
    parts = [readme(), source[0]] if name == "index" else [source[0]]
    for page, (file, _) in FILES.items():
        parts = [part.replace(f"](../{file}", f"]({page}.md") for part in parts]
    source[0] = parts[0] + "".join(text for index in parts[1:] for text in toctrees(index))


def readme():
    """Return README, with links as from docs/."""
    text = (ROOT / "README.md").read_text("utf-8")
    return re.sub(r"\]\((?!https?:|#)(docs/)?", lambda m: "](" if m[1] else "](../", text)


def cells(notebook):
    """Yield the notebook's text, code and outputs as Markdown."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text")})
            kind = next(kind for kind in sorted(data, key=SHOWN.index) if data[kind])
            content = "".join(data[kind])
            if kind == "text/plain":
                yield f"```text\n{content}\n```"
            elif kind == "text/html":
                yield f"```{{raw}} html\n{content}\n```"
            else:
                yield f'```{{raw}} html\n<img alt="" src="data:{kind};base64,{content}">\n```'


def toctrees(index):
    """Yield a directive for each section of the index, of the pages that the section links to."""
    for section in index.split("\n## ")[1:]:
        caption, links = section.split("\n", 1)
        names = re.findall(r"^- \[.*?\]\((.*?)\.(?:md|rst|ipynb)\)", links, re.MULTILINE)
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
