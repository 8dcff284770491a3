"""Every row of the study: the norms of the model, and the settings that its pilots chose."""

import pytest
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

from detectron2.modeling import build_model

from helpers.mmengine_configs import described, described_translation, norms, skeleton
from helpers.recipes import recipe
from ilm_plugins import NORMS
from ilm_plugins.frameworks.config import AS_IS
from reproduction.data import bccd as bccd  # registers it
from reproduction.papers import published
from reproduction.papers.paper_runs import open_row

ROWS = [cell for cell in published.cells() if published.tables()[cell.table].paper == "study"]
#: Norm in a row's name -> its class.
CLASSES = NORMS | {
    **{"BN": nn.BatchNorm2d, "GN": nn.GroupNorm},
    **{"IN": nn.InstanceNorm2d, "ILM+IN": NORMS["ILMIN"]},
}
#: Table -> number of norms by part of the model; of parts beside these, GN.
PLACES = {
    "study-box": {"roi_heads": 4},
    "study-all": {"backbone": 28, "roi_heads": 4},
    "study-tune": {"backbone": 28, "roi_heads": 4},
    "study-seg": {"backbone": 20, "decode_head": 1, "auxiliary_head": 1},
    "study-128": {"backbone": 19},
    "study-4": {"backbone": 19},
    "study-pix": {"generator": 11, "discriminator": 3},
}


def opened(cell):
    return open_row(cell).config


def is_detectron2(cell):
    return cell.config.endswith(".yaml")


def model_of(cell):
    return build_model(opened(cell)) if is_detectron2(cell) else skeleton(opened(cell))


def description(cell):
    """The settings of a row in the words of recipes."""
    cfg = opened(cell)
    if cell.table == "study-pix":
        return described_translation(cfg)
    if not is_detectron2(cell):
        return described(cfg)
    solver, model = cfg.SOLVER, cfg.MODEL
    return {
        "learning rate": solver.BASE_LR,
        "iterations": solver.MAX_ITER,
        "batch": solver.IMS_PER_BATCH,
        "training sizes": [list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN],
        "test sizes": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
        "depth": model.RESNETS.DEPTH,
        "classes": model.ROI_HEADS.NUM_CLASSES,
        "channels": [model.FPN.OUT_CHANNELS, model.ROI_BOX_HEAD.CONV_DIM],
        "ROIs": model.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
    }


@pytest.mark.parametrize("cell", ROWS, ids=lambda cell: cell.id)
def test_a_row_has_the_norms_of_its_name_at_the_places_of_its_table(cell):
    by_part = {}
    for name, layer in norms(model_of(cell)).items():
        by_part.setdefault(name.split(".")[0], []).append(type(layer))
    kinds = cell.name.partition("/")[2].split(" / ")
    places = PLACES[cell.table]
    for part, kind in zip(places, kinds * (len(places) // len(kinds)), strict=True):
        assert by_part.pop(part) == [CLASSES[kind]] * places[part]
    assert {kind for kinds in by_part.values() for kind in kinds} <= {nn.GroupNorm}


@pytest.mark.parametrize("cell", ROWS, ids=lambda cell: cell.id)
def test_a_row_has_the_settings_that_the_pilots_chose(cell):
    *_, framework, config = cell.config.removeprefix("reproduction/").split("/", 2)
    expected = recipe(framework, f"{config} {cell.name.partition('/')[2]}")
    assert len(expected) >= 9
    found = description(cell)
    # As YAML has them.
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
    assert {name: lists.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "cell", [cell for cell in ROWS if cell.norm != AS_IS], ids=lambda cell: cell.id
)
def test_a_row_differs_from_its_config_in_the_models_norms_alone(cell):
    cfg = opened(cell)
    base = opened(published.Cell(cell.table, "base", [], cell.config, AS_IS))
    for one in (cfg, base):
        if is_detectron2(cell):
            for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD"):
                one.MODEL[part].NORM = ""
        else:
            for part in PLACES[cell.table]:
                del one.model[part]["norm_cfg"]
    assert {**cfg} == {**base}
