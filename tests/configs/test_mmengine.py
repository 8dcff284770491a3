"""Every shipped config of mmdet and mmseg: what is built equals the papers' words."""

from collections import defaultdict

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from equations.cases import wide
from helpers.config_checks import check, check_step
from helpers.mmengine_configs import configs, load
from helpers.recipes import recipe

ALL = [f"{framework}/{config}" for framework in ("mmdet", "mmseg") for config in configs(framework)]
#: Names of files -> how many norms the parts of the model have.
PLACES = {
    "mmseg/fcn*": {"backbone": 53, "decode_head": 1, "auxiliary_head": 1},
    "mmseg/deeplabv3*": {"backbone": 53, "decode_head": 6, "auxiliary_head": 1},
    "mmseg/shapes/*": {"backbone": 20, "decode_head": 1, "auxiliary_head": 1},
    "mmdet/mask*": {"backbone": 53, "neck": 8, "roi_head": 8},
    "mmdet/shapes/*": {"backbone": 20, "neck": 8, "roi_head": 6},
}


def by_base():
    """The configs with one and the same base, by its name: variants of the norm."""
    found = defaultdict(list)
    for config in ALL:
        found[config.rsplit("_", 1)[0]].append(config)
    return [pytest.param(variants, id=base) for base, variants in found.items()]


@pytest.mark.parametrize("variants", by_base())
def test_variants_of_a_base_are_the_papers(variants):
    for config in variants:
        expected = {} if "/shapes/" in config else recipe(*config.split("/", 1))
        assert len(expected) >= 14 or "/shapes/" in config
        check(config, load(config), config.removesuffix(".py").rsplit("_", 1)[1], expected, PLACES)


@pytest.mark.parametrize(
    "config",
    [
        "mmseg/fcn_r50-d8_ade20k_en.py",
        wide("mmdet/mask-rcnn_r50_fpn_gn_batch2_ilmgn.py"),
        wide("mmseg/deeplabv3_r50-d8_cityscapes_sn.py"),
    ],
)
def test_it_takes_a_training_step(config):
    check_step(load(config))


def test_ade20k_has_255_for_no_label_and_sizes_of_multiples_of_8(datasets):
    cfg = load("mmseg/fcn_r50-d8_ade20k_en.py")
    init_default_scope("mmseg")
    root = datasets / "shapes"  # lies in ADE20K's folders, 0 being no class there
    mask = np.array(Image.open(root / "annotations/training/000000.png")).astype(int)
    dataset = {**cfg.train_dataloader.dataset, "data_root": str(root)}
    one = DATASETS.build({**dataset, "pipeline": cfg.test_dataloader.dataset.pipeline})[0]
    labels = one["data_samples"].gt_sem_seg.data[0]
    assert np.array_equal(labels, np.where(mask, mask - 1, 255))
    many = DATASETS.build({**dataset, "pipeline": cfg.tta_pipeline})[0]
    found = [image.shape[1] for image in (one["inputs"], *many["inputs"])]
    assert found == [456, 304, 400, 504, 600]
