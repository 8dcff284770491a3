"""The demo: two models, their AP, and a picture of their predictions."""

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

import numpy as np
from PIL import Image

from ilm_plugins.__main__ import main
from ilm_plugins.frameworks.run.record import PLAIN, read_record

CONFIGS = "configs/detectron2/shapes/mask_rcnn_R_18_FPN_"


@pytest.mark.wide
def test_it_trains_evaluates_and_draws(root, datasets, tmp_path, capfd):
    opts = ["SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    configs = [str(root / f"{CONFIGS}{norm}.yaml") for norm in ("gn", "ilmgn")]
    assert main(["demo", *configs, "--output", str(tmp_path), "--opts", *opts]) == 0
    rows = capfd.readouterr().out.rsplit("box head norm", 1)[1].splitlines()[1:]
    for row, norm in zip(rows, ("GN", "ILMGN"), strict=True):
        drawn = tmp_path / f"mask_rcnn_R_18_FPN_{norm.lower()}" / "predictions.png"
        found = read_record(drawn.parent)
        box, mask = (found["metrics"][PLAIN][f"{kind}/AP"] for kind in ("bbox", "segm"))
        figures = f"{box:.1f}", f"{mask:.1f}", f"{found['seconds']:.0f}"
        assert row.split() == [norm, *figures, str(drawn)]
    picture = np.asarray(Image.open(drawn))
    # Of four images one row of three, each twice, at twice their size, with margins and heads.
    assert picture.shape == (158, 786, 3)
    assert picture.std() > 20
    # Different images, though there are fewer than a picture has at most.
    first, second, third = np.split(picture, 3, axis=1)
    assert (first != second).any()
    assert (second != third).any()
