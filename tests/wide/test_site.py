"""The documentation site: it builds, and a reader finds each part of it at every width."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.wide
ROOT = Path(__file__).parents[2]


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


def test_the_notebook_is_shown_with_its_outputs(site):
    text = (site / "notebook.html").read_text()
    assert "converted, BatchNorm2d -&gt; ExemplarNorm (12)" in text
    assert 'src="data:image/' in text
