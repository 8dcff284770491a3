"""The page docs/tutorial.md: its commands, shortened, on the data that it generates."""

import re
import shlex
import subprocess
import sys

import pytest

import fresh

pytestmark = pytest.mark.wide


def shell(page, heading):
    """The commands under a heading."""
    section = page.split(f"{heading}\n")[1]
    return re.search(r"```(?:ba)?sh\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """A folder with the page's configs, of two iterations, and its generated data set."""
    out = tmp_path_factory.mktemp("tutorial")
    for path in (root / "docs" / "tutorial").glob("*.py"):
        text = re.sub(r"iterations = \d+", "iterations = 2", path.read_text(encoding="utf-8"))
        (out / path.name).write_text(text, encoding="utf-8")
    page = (root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    text = shell(page, "# On your own images")
    text = text.replace("training 60", "training 4").replace("validation 20", "validation 2")
    text = f"set -e; python() {{ '{sys.executable}' \"$@\"; }}\n{text}"
    subprocess.run(["bash", "-c", text], cwd=out, check=True)
    return page, out


@pytest.mark.parametrize(
    "package, heading, measure",
    [
        ("mmdet", "## A detector from GN to ILM+GN", r"\((?:val|test)\) .*coco/bbox_mAP: ([\d.]+)"),
        ("mmseg", "## A segmenter from BN to EN", r"\((?:val|test)\) .*aAcc: ([\d.]+)"),
    ],
)
def test_the_commands_convert_train_and_draw(package, heading, measure, folder, monkeypatch):
    pytest.importorskip(package, reason="needs OpenMMLab: make install-openmmlab")
    page, out = folder
    commands = re.sub(r"iter_\d+", "iter_2", shell(page, heading))
    monkeypatch.chdir(out)
    printed = ""
    for command in commands.replace("\\\n", " ").splitlines():
        done = fresh.run([sys.executable, *shlex.split(command)[1:]], check=True)
        printed += done.stdout + done.stderr
    first, converted, *_ = re.findall(measure, printed)
    assert first == converted
    for done in re.findall(r"--eval-only.*?work_dir=(\S+)", commands, re.DOTALL):
        assert len(list((out / done).glob("*/vis_data/vis_image/test_*.png"))) == 2
