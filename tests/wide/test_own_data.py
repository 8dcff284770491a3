"""A user's own COCO json in detectron2: from the json to a comparison, by the pages' commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from helpers.trainings import LAZY
from ilm_plugins.frameworks.run.record import read_record

ROOT = Path(__file__).parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
#: Few images, of the size of the shipped config of BCCD.
IMAGES = 4
DATA = "--dataset my_train train.json images --dataset my_test test.json images"
pytestmark = pytest.mark.wide


def few_images(split, path):
    """Write a json of the first images of BCCD, with their annotations."""
    found = json.loads((BCCD / "annotations" / f"{split}.json").read_text())
    found["images"] = found["images"][:IMAGES]
    ids = {image["id"] for image in found["images"]}
    found["annotations"] = [one for one in found["annotations"] if one["image_id"] in ids]
    path.write_text(json.dumps(found))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current folder with jsons and images, and a yaml with the lines of the page."""
    if not BCCD.is_dir():
        pytest.skip(f"needs the images in {BCCD}")
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        few_images(split, Path(f"{split}.json"))
    Path("images").symlink_to(BCCD / "images")
    page = (ROOT / "docs" / "detectron2.md").read_text("utf-8")
    (lines,) = re.findall(r"^```yaml\n(MODEL: .*?my_test.*?)^```$", page, re.DOTALL | re.M)
    base = '_BASE_: "ilm_plugins://faster_rcnn_R_18_FPN_gn.yaml"\n'
    solver = "SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 0, BASE_LR: 0.01}\n"
    Path("my_detector.yaml").write_text(base + lines + solver)


def run(script):
    """Run lines of a page in bash, where python is this one."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    names = {"PATH": os.pathsep.join(folders), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-c", script], env=os.environ | names, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_a_json_is_trained_on_and_compared_by_three_lines(own):
    pages = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/detectron2.md")]
    (lines,) = {re.search(r"^data=\(--dataset .*?(?=^```$)", p, re.DOTALL | re.M)[0] for p in pages}
    assert len(lines.splitlines()) == 3
    run(lines.replace("--seeds 0 1 2 3 4", "--seeds 0"))
    folders = ["output/ilmgn", *(f"output/compare/my_detector/{n}/seed0" for n in ("GN", "ILMGN"))]
    for folder in folders:
        record = read_record(folder)
        assert (record["run"], record["images"], record["test images"]) == (2, IMAGES, IMAGES)
        assert {"bbox/AP", "bbox/AP-Platelets"} <= record["metrics"][""].keys()
        assert f"--dataset my_test {Path('test.json').absolute()}" in record["command"]
    assert "minus GN" in Path("output/compare/my_detector/compare.md").read_text()


def test_all_processes_of_a_lazy_config_know_datasets_and_imports(own):
    sets = 'dataloader.train.dataset.names, dataloader.test.dataset.names = "my_train", "my_test"'
    model = "model.roi_heads.num_classes = 3\nmodel.roi_heads.mask_in_features = None\n"
    model += "from my_norm import MINE\nmodel.backbone.norm = MINE\n"
    Path("lazy.py").write_text(f"{LAZY}\n{sets}\n{model}")
    Path("code").mkdir()
    Path("code/my_norm.py").write_text('MINE = "GN"\n')
    words = f"{DATA} --import code/my_norm.py --num-gpus 0 --num-processes 2"
    run(f"python -m ilm_plugins train --config-file lazy.py {words} train.output_dir=out")
    record = read_record("out")
    assert (record["processes"], record["run"]) == (2, 2)
    assert record["metrics"][""].keys() >= {"bbox/AP"}
