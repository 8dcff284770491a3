"""The documentation: it builds, its figures are up to date, its examples and commands run."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


#: Entry point -> the tests that run it, by the words with which they do.
RUN_BY = {
    "tools/train_net.py": ("tests/faults.py", "training.main("),
    "tools/make_shapes.py": ("tests/data/test_shapes.py", "make_shapes"),
    "tools/convert.py": ("tests/test_convert.py", "convert.main("),
    "tools/translate.py": ("tests/integrations/openmmlab/test_translation.py", "translate.main("),
    "tools/evaluate_images.py": ("tests/evaluation/test_images.py", "images.main("),
    "tools/analyze.py": ("tests/integrations/test_analyze.py", "main("),
    "tools/reproduce.py": ("tests/reproduction/test_running.py", 'main(["run"'),
    "-m ilm_plugins": ("tests/integrations/test_report.py", '"-m", "ilm_plugins"'),
    "pip install": ("tests/test_packaging.py", "wheel"),
    "make": ("Makefile", ""),
}


def commands():
    """(page, command) for each in a block of shell, its continued lines joined."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                if command:
                    yield str(page.relative_to(ROOT)), command


@pytest.mark.parametrize("page, command", list(commands()))
def test_commands_name_what_there_is(page, command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+)(?: [\w-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in [*targets, "install-openmmlab"], command
    for word in words:
        if re.match(r"(configs|tools)/", word):
            assert list(ROOT.glob(word)), f"{page}: {word} is not there"
    entry = next((name for name in RUN_BY if name in command), None)
    assert entry, f"{page}: no test is known to run {command!r}"
    test, call = RUN_BY[entry]
    assert call in (ROOT / test).read_text("utf-8"), f"{test} does not run {entry}"
