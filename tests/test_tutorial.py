"""The page docs/tutorial.md: its commands, shortened, on generated data in the same layout."""

import json
import re
import subprocess
import sys

import pytest

from ilm_plugins.data.shapes import write_shapes

pytestmark = pytest.mark.wide
CELLS = "RBC", "WBC", "Platelets"


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """A folder with the page's configs, of two iterations, and small data sets for these."""
    out = tmp_path_factory.mktemp("tutorial")
    for path in (root / "docs" / "tutorial").glob("*.py"):
        text = re.sub(r"iterations = \d+", "iterations = 2", path.read_text(encoding="utf-8"))
        (out / path.name).write_text(text, encoding="utf-8")
    write_shapes(out, num_training=4, num_validation=2, seed=5)
    bccd, camvid = out / "data" / "bccd", out / "data" / "camvid"
    for kind in ("images", "annotations"):
        (camvid / kind).mkdir(parents=True)
    (bccd / "annotations").mkdir(parents=True)
    (bccd / "images").symlink_to(out / "shapes" / "images")
    for split, name in (("training", "train"), ("validation", "val"), ("validation", "test")):
        annotations = json.loads(
            (out / "shapes" / f"annotations/instances_{split}.json").read_text()
        )
        for image in annotations["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        for category, cell in zip(annotations["categories"], CELLS, strict=False):
            category["name"] = cell
        (bccd / "annotations" / f"{name}.json").write_text(json.dumps(annotations))
        for kind in ("images", "annotations"):
            (camvid / kind / name).symlink_to(out / "shapes" / kind / split)
    return out


def run(commands, folder):
    """Run shell commands with this Python; return what they print, up to the first failure."""
    text = f"set -e; python() {{ '{sys.executable}' \"$@\"; }}\n{commands}"
    done = subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "package, heading, measure",
    [
        ("mmdet", "## A detector from GN to ILM+GN", r"\((?:val|test)\) .*coco/bbox_mAP: ([\d.]+)"),
        ("mmseg", "## A segmenter from BN to EN", r"\((?:val|test)\) .*aAcc: ([\d.]+)"),
    ],
)
def test_the_commands_convert_train_and_draw(package, heading, measure, folder, root):
    pytest.importorskip(package, reason="needs OpenMMLab: make install-openmmlab")
    page = (root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = re.search(r"```sh\n(.*?)```", page.split(f"{heading}\n")[1], re.DOTALL)[1]
    commands = re.sub(r"iter_\d+", "iter_2", commands)
    first, converted, *_ = re.findall(measure, run(commands, folder))
    assert first == converted
    for done in re.findall(r"--eval-only.*?work_dir=(\S+)", commands, re.DOTALL):
        assert len(list((folder / done).glob("*/vis_data/vis_image/test_*.png"))) == 2
