"""The documentation: it builds, its figures are up to date, its examples and commands run."""

import importlib.util
import re
import subprocess
import sys

import pytest

from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


def test_the_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=f"needs {package}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "layers" / "en.html").read_text("utf-8")
    assert "en.svg" in page and "lambda_{nk}" in page


def test_drawings_are_as_drawn():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    for name, figure in draw.DRAWN.items():
        committed = (draw.FIGURES / f"{name}.svg").read_text("utf-8")
        assert committed == draw.draw(figure), f"{name}: run python docs/draw.py"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


WORKED_EXAMPLE = ROOT / "docs" / "adding-a-normalizer.md"
IN_FRAMEWORKS = """
from ilm_plugins.integrations import installed

if installed("detectron2"):
    from detectron2.layers import get_norm

    found = get_norm("ILN(eps=1e-3)", 8)
    assert type(found) is InstanceLayerNorm and found.eps == 1e-3
if installed("mmcv"):
    from mmcv.cnn import build_norm_layer

    assert type(build_norm_layer(norm_cfg, 8)[1]) is InstanceLayerNorm
print("ran to the end")
"""


def test_the_worked_example_runs():
    code = "\n".join((*blocks(WORKED_EXAMPLE, "python"), IN_FRAMEWORKS))
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True)
    assert done.stdout.endswith("ran to the end\n"), done.stderr


def test_the_worked_example_can_fail():
    code = "\n".join(blocks(WORKED_EXAMPLE, "python"))
    broken = code.replace("(1 - rho) * (mean - layer_mean)", "rho * (mean - layer_mean)")
    assert broken != code
    done = subprocess.run([sys.executable, "-"], input=broken, capture_output=True, text=True)
    assert "AssertionError" in done.stderr
