"""The documentation site: it builds, and a reader finds each part of it at every width."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.wide
ROOT = Path(__file__).parents[2]
WIDTHS = 360, 480, 768, 800, 1024, 1280, 1600
#: Shows each page in frames of all widths; lists the pages that are wider than their frame.
FRAMES = """<body><script>
const sizes = PAGES.flatMap(page => WIDTHS.map(width => new Promise(done => {
  const frame = document.createElement('iframe');
  Object.assign(frame.style, {width: width + 'px', height: '800px', border: 0});
  frame.src = page;
  frame.onload = () => setTimeout(() => {
    const found = frame.contentDocument.documentElement.scrollWidth;
    done(found > width ? `${page} at ${width}: ${found}` : '');
  }, 200);
  document.body.append(frame);
})));
Promise.all(sizes).then(found => document.title = 'WIDE ' + JSON.stringify(found.filter(Boolean)));
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "furo", "latex2mathml", "myst_parser"):
        pytest.importorskip(package, reason=f"needs {package}")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*command, ROOT / "docs", out], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


def test_the_sources_lead_back_to_the_api(site):
    documented = (site / "api.html").read_text()
    sources = "".join(page.read_text() for page in site.glob("_modules/**/*.html"))
    targets = re.findall(r'"viewcode-back" href="[^"]*/api.html#([^"]+)"', sources)
    assert targets
    assert [name for name in targets if f'id="{name}"' not in documented] == []


@pytest.mark.parametrize("place", ["help", "cite", "licence"])
def test_each_page_leads_to_help_citation_and_licence(place, site):
    assert f'id="{place}"' in (site / "index.html").read_text()
    for page in site.glob("**/*.html"):
        links = re.findall(r'href="([^"#]*)#' + place, page.read_text())
        assert any((page.parent / (link or page.name)).exists() for link in links), page.name


def test_each_page_leads_to_the_changelog(site):
    for page in site.glob("*.html"):
        own = "#" if page.name == "changelog.html" else "changelog.html"
        assert re.search(rf'class="reference internal" href="{own}"', page.read_text()), page.name


def test_the_notebook_is_shown_with_its_outputs(site):
    text = (site / "notebook.html").read_text()
    assert "converted, BatchNorm2d -&gt; ExemplarNorm (12)" in text
    assert 'src="data:image/' in text


def test_no_page_scrolls_sideways(site, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs chromium")
    pages = [path.as_uri() for path in site.glob("*.html")]
    frames = FRAMES.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))
    (tmp_path / "frames.html").write_text(frames)
    command = [browser, "--headless", "--no-sandbox", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True
    )
    (wide,) = re.findall(r"<title>WIDE (.*)</title>", done.stdout)
    assert json.loads(wide) == []
