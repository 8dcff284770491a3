"""The demo: two models, their AP, and a picture of what they predict."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

import numpy as np
from PIL import Image

from ilm_plugins.cli import demo

CONFIGS = "configs/detectron2/shapes/mask_rcnn_R_18_FPN_"


def table_of(printed):
    """The demo's table, {norm: (box AP, mask AP, seconds)}."""
    rows = printed.rsplit("box head norm", 1)[1].splitlines()[1:]
    split = (re.split(r"\s+", row, maxsplit=4) for row in rows)
    return {norm: tuple(map(float, figures)) for norm, *figures, _picture in split}


@pytest.mark.wide
def test_it_trains_evaluates_and_draws(root, datasets, tmp_path, capfd):
    opts = ["SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    configs = [str(root / f"{CONFIGS}{norm}.yaml") for norm in ("gn", "ilmgn")]
    folders = ["--output", str(tmp_path), "--record", str(tmp_path)]
    assert demo.main([*configs, *folders, "--opts", *opts]) == 0
    table = table_of(capfd.readouterr().out)
    assert list(table) == ["GN", "ILMGN"]
    record = json.loads((tmp_path / "demo.json").read_text())
    for one in record["results"]:
        box, mask, seconds = table[one["norm"]]
        assert one["box AP"] == pytest.approx(box, abs=0.06)
        assert one["mask AP"] == pytest.approx(mask, abs=0.06) and one["seconds"] == seconds
    drawn = tmp_path / "mask_rcnn_R_18_FPN_ilmgn" / "predictions.png"
    assert (tmp_path / "demo.png").read_bytes() == drawn.read_bytes()
    assert record["picture"] == hashlib.sha256(drawn.read_bytes()).hexdigest()
    for norm in ("gn", "ilmgn"):
        picture = Image.open(tmp_path / f"mask_rcnn_R_18_FPN_{norm}" / "predictions.png")
        assert picture.width > 1500 and picture.height > 500
        assert np.asarray(picture).std() > 20


def test_the_table_has_the_last_evaluation_of_its_folder(tmp_path):
    """Of a folder in which the demo has run before, or that is evaluated now and then."""
    entries = [{"bbox/AP": 1.0, "segm/AP": 2.0}, {"bbox/AP": 71.1, "segm/AP": 66.0}, {"loss": 1.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, entries)))
    assert demo._last_ap(tmp_path) == (71.1, 66.0)
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 3.0}')  # without masks
    assert str(demo._last_ap(tmp_path)) == "(3.0, nan)"


def test_a_mistake_ends_it(root, datasets, tmp_path, capsys):
    assert demo.main(["none.yaml", "--output", str(tmp_path)]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.long
def test_the_demo_learns(root, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            root / "tools" / "demo.py",
            root / f"{CONFIGS}ilmgn.yaml",
            "--output",
            tmp_path,
        ],
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    box, mask, _seconds = table_of(done.stdout)["ILMGN"]
    assert box >= 60 and mask >= 60
