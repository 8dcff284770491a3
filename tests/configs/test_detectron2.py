"""Every shipped detectron2 config: what it builds, and the numbers of its recipe."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from ilm_plugins import NORMS
from ilm_plugins.frameworks.detectron2.config import load_config
from ilm_plugins.reproduction import registry

FOLDER = Path(__file__).parents[2] / "configs" / "detectron2"
KEYS = {"gn": nn.GroupNorm} | {key.lower(): layer for key, layer in NORMS.items()}
COCO = sorted(FOLDER.glob("mask_rcnn_R_50_FPN_batch*.yaml"))
SHAPES = sorted(FOLDER.glob("shapes/mask_rcnn_*.yaml"))
every_coco = pytest.mark.parametrize("path", COCO, ids=lambda p: p.stem)
every_config = pytest.mark.parametrize("path", COCO + SHAPES, ids=lambda p: p.stem)


def load(path, *overrides):
    return load_config(str(path), ["MODEL.WEIGHTS", "", *overrides], "cpu")


def without_comments(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_each_norm_has_a_config_for_both_batch_sizes():
    names = {path.stem.removeprefix("mask_rcnn_R_50_FPN_") for path in COCO}
    assert names == {f"batch{b}_{key}" for b in (2, 16) for key in KEYS}
    assert {path.stem.rsplit("_", 1)[1] for path in SHAPES} >= {"gn", "ilmgn"}


# Of COCO's others, the test below says that they differ from GN's in the name of the norm.
@pytest.mark.parametrize(
    "path",
    [p for p in COCO + SHAPES if p in SHAPES or p.stem.endswith(("_gn", "batch2_ilmgn"))],
    ids=lambda p: p.stem,
)
def test_the_file_names_norm_is_in_the_box_head_and_nowhere_else(path):
    expected = KEYS[path.stem.rsplit("_", 1)[1]]
    model = build_model(load(path))
    found = {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
    box_head = {name: kind for name, kind in found.items() if ".box_head." in name}
    assert set(box_head.values()) == {expected} and len(box_head) == 4
    assert set(found.values()) - {expected} <= {nn.GroupNorm}
    others = {kind for name, kind in found.items() if name not in box_head}
    assert others == {nn.GroupNorm}
    for part in ("backbone.bottom_up.stem", "backbone.fpn_", "mask_head.mask_fcn"):
        assert any(part in name for name in found), part
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@every_coco
def test_the_recipe_is_the_papers(path):
    cfg = load(path)
    batch = 16 if "batch16" in path.stem else 2
    solver = cfg.SOLVER
    # "trained on the training set for 90,000 with batch size per GPU equal to 2 using 1 GPU and 8
    # GPUs"; the rest as R-50-FPN in Detectron: .02 at 16 images, by linear scaling .0025 at 2.
    assert (90_000, batch) == (solver.MAX_ITER, solver.IMS_PER_BATCH)
    assert pytest.approx(0.02 * batch / 16) == solver.BASE_LR
    assert (solver.STEPS, solver.GAMMA, solver.MOMENTUM) == ((60_000, 80_000), 0.1, 0.9)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (0.0001, 0.0)
    assert (500, pytest.approx(1 / 3)) == (solver.WARMUP_ITERS, solver.WARMUP_FACTOR)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((800,), 800)
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == 1333
    box = cfg.MODEL.ROI_BOX_HEAD
    assert (box.NAME, box.NUM_CONV, box.NUM_FC, box.CONV_DIM) == ("FastRCNNConvFCHead", 4, 1, 256)
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == (50, False)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.DATASETS.TEST == ("coco_2017_val",)


@pytest.mark.parametrize("batch", [2, 16])
def test_the_warm_up_is_that_of_the_mmdet_config(batch):
    pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")
    from detectron2.solver import build_lr_scheduler

    from mmengine_configs import load as load_mmdet
    from mmengine_configs import rates, schedule

    at = (0, 1, 100, 300, 499, 500)
    cfg = load(FOLDER / f"mask_rcnn_R_50_FPN_batch{batch}_gn.yaml")
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    mine = rates(optimizer, [scheduler], at)
    theirs = rates(*schedule(load_mmdet("mmdet", f"mask-rcnn_r50_fpn_gn_batch{batch}_gn.py")), at)
    # Detectron's reaches the full rate at iteration 500, MMEngine's at 499.
    assert mine == pytest.approx(theirs, rel=0.003)
    assert (mine[0], mine[-1]) == pytest.approx((cfg.SOLVER.BASE_LR / 3, cfg.SOLVER.BASE_LR))


def test_the_override_for_the_server_is_test_dev():
    text = (FOLDER / "Base-Mask-RCNN-R50-FPN-GN.yaml").read_text()
    (name,) = re.findall(r'DATASETS\.TEST "(.*)"', text)
    assert f'DATASETS.TEST "{name}"' in registry.tables()["ilm-5"].note
    (found,) = load(COCO[0], "DATASETS.TEST", name).DATASETS.TEST
    assert found in DatasetCatalog
    assert MetadataCatalog.get(found).json_file.endswith("/image_info_test-dev2017.json")


def test_weights_are_the_gn_pretrained_backbone():
    assert load_config(str(COCO[0])).MODEL.WEIGHTS == "catalog://ImageNetPretrained/FAIR/R-50-GN"


@every_coco
def test_variants_differ_from_gn_in_a_single_line(path):
    gn = path.with_name(path.name.rsplit("_", 1)[0] + "_gn.yaml")
    mine, theirs = without_comments(path), without_comments(gn)
    differing = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    if path != gn:
        key = path.stem.rsplit("_", 1)[1]
        ((line, _),) = differing
        assert line.strip().lower() == f'norm: "{key}"'
