"""The demo: two models, their AP, and a picture of their predictions."""

import hashlib
import json
import re

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
        expected = round(one["box AP"], 1), round(one["mask AP"], 1), one["seconds"]
        assert table[one["norm"]] == expected
    drawn = tmp_path / "mask_rcnn_R_18_FPN_ilmgn" / "predictions.png"
    assert (tmp_path / "demo.png").read_bytes() == drawn.read_bytes()
    assert record["picture"] == hashlib.sha256(drawn.read_bytes()).hexdigest()
    picture = np.asarray(Image.open(drawn))
    # Of four images one row of three, each twice, at twice their size, with margins.
    assert picture.shape == (134, 786, 3) and picture.std() > 20
    # Different images, though there are fewer than a picture has at most.
    first, second, third = np.split(picture, 3, axis=1)
    assert (first != second).any() and (second != third).any()


@pytest.mark.long
def test_the_demo_learns(root, tmp_path, capfd):
    assert demo.main([str(root / f"{CONFIGS}ilmgn.yaml"), "--output", str(tmp_path)]) == 0
    box, mask, _seconds = table_of(capfd.readouterr().out)["ILMGN"]
    assert box >= 60 and mask >= 50
