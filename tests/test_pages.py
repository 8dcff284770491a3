"""The pages as GitHub renders them: plain Markdown, links and equations."""

import html
import json
import os
import re
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = "*.md", "*/README.md", "reproduction/results.md", "docs/**/*.md"
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CODE = re.compile(r"<(pre|code)\b.*?</\1>", re.DOTALL)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
MATHJAX = CACHE / "ilm_plugins" / "node" / "node_modules" / "mathjax"
#: Prints the errors of the equations that it reads, as JSON, from its input.
CHECK = """
const packages = {'[-]': ['noerrors', 'noundefined']};
const tex = {packages, formatError: (jax, error) => { throw error; }};
require(process.argv[1]).init({loader: {load: ['input/tex']}, tex}).then(MathJax => {
  for (const equation of JSON.parse(require('fs').readFileSync(0, 'utf-8')))
    try { MathJax.tex2mml(equation); }
    catch (error) { console.log(error.message + ': ' + equation); }
});
"""


def rendered(page):
    """Return a page as HTML of GitHub's Markdown."""
    cmarkgfm = pytest.importorskip("cmarkgfm", reason="needs cmarkgfm: requirements/test.txt")
    text = page.read_text("utf-8")
    return cmarkgfm.github_flavored_markdown_to_html(text, cmarkgfm.Options.CMARK_OPT_UNSAFE)


def equations(page):
    """Return the equations of a page as they are left after Markdown's own rules."""
    found = rendered(page)
    blocks = re.findall(r'<pre lang="math"><code>(.*?)</code>', found, re.DOTALL)
    inline = re.findall(r"\$([^$]+)\$", CODE.sub("", found))
    return [html.unescape(text) for text in (*blocks, *inline)]


def directives(found):
    """Return what MyST would read as a directive or a role, and GitHub shows as it is."""
    blocks = re.findall(r'<pre lang="(\{[^"]*)"', found)
    blocks += re.findall(r'<code class="language-(\{[^"]*)"', found)
    blocks += re.findall(r"^(?:<p>)?(:::.*|\([\w-]+\)=)", found, re.MULTILINE)
    return blocks + re.findall(r"\{[\w:]+\}(?=<code>)", found)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_no_directive(name):
    assert not directives(rendered(ROOT / name))


def test_links_lead_to_headings():
    headings = {page: {slug(h) for h in headings_of(page)} for page in PAGES}
    for page in PAGES:
        for link, anchor in re.findall(r'<a href="([^":#]*)#([^"]+)"', rendered(page)):
            target = (page.parent / link).resolve() if link else page
            if target in headings:
                assert anchor in headings[target], (page.name, f"{link}#{anchor}")


def headings_of(page):
    return re.findall(r"<h\d>(.*?)</h\d>", rendered(page))


def slug(heading):
    """Return the anchor that GitHub gives a heading."""
    text = html.unescape(re.sub(r"<[^>]+>", "", heading)).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_equations_hold_no_markup(name):
    """An underscore or an asterisk in a sentence can begin an emphasis, $$ a paragraph."""
    for equation in equations(ROOT / name):
        assert not re.search(r"</?(em|strong|p|a|code)\b", equation), equation


@pytest.mark.parametrize("name", NAMES)
def test_no_column_of_a_table_is_empty(name):
    for table in re.findall(r"<table>.*?</table>", rendered(ROOT / name), re.DOTALL):
        lines = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        head, *body = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in lines)
        for what, *column in zip_longest(head, *body, fillvalue=""):
            assert any(text.strip(" -/") for text in column), (what, head)


@pytest.mark.wide
def test_mathjax_reads_every_equation():
    if not shutil.which("node"):
        pytest.skip("needs node")
    if not MATHJAX.is_dir():
        pytest.skip("needs MathJax: make install-mathjax")
    found = [equation for page in PAGES for equation in equations(page)]
    assert r"\mu" in found
    command = ["node", "-e", CHECK, str(MATHJAX)]
    done = subprocess.run(
        command, input=json.dumps([*found, r"a &= b"]), capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    # The last equation is one that GitHub refuses.
    assert done.stdout.splitlines() == ["Misplaced &: a &= b"]
