"""The demo: two models, their AP, and a picture of their predictions."""

import hashlib
import json

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

import numpy as np
from PIL import Image

from ilm_plugins.cli import demo

CONFIGS = "configs/detectron2/shapes/mask_rcnn_R_18_FPN_"


@pytest.mark.wide
def test_it_trains_evaluates_and_draws(root, datasets, tmp_path, capfd):
    opts = ["SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    configs = [str(root / f"{CONFIGS}{norm}.yaml") for norm in ("gn", "ilmgn")]
    folders = ["--output", str(tmp_path), "--record", str(tmp_path)]
    assert demo.main([*configs, *folders, "--opts", *opts]) == 0
    rows = capfd.readouterr().out.rsplit("box head norm", 1)[1].splitlines()[1:]
    record = json.loads((tmp_path / "demo.json").read_text())
    assert [one["norm"] for one in record["results"]] == ["GN", "ILMGN"]
    for row, one in zip(rows, record["results"], strict=True):
        figures = f"{one['box AP']:.1f}", f"{one['mask AP']:.1f}", f"{one['seconds']}"
        assert row.split()[:4] == [one["norm"], *figures]
    drawn = tmp_path / "mask_rcnn_R_18_FPN_ilmgn" / "predictions.png"
    assert (tmp_path / "demo.png").read_bytes() == drawn.read_bytes()
    assert record["picture"] == hashlib.sha256(drawn.read_bytes()).hexdigest()
    picture = np.asarray(Image.open(drawn))
    # Of four images one row of three, each twice, at twice their size, with margins and heads.
    assert picture.shape == (158, 786, 3) and picture.std() > 20
    # Different images, though there are fewer than a picture has at most.
    first, second, third = np.split(picture, 3, axis=1)
    assert (first != second).any() and (second != third).any()
