"""Every shipped mmdet config: what it builds, the numbers of its recipe, and a step of training."""

import json
from collections import Counter
from functools import partial

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

import numpy as np
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from ilm_plugins import ILMGroupNorm
from ilm_plugins.cli import train_net
from ilm_plugins.data import SHAPES, shapes
from ilm_plugins.reproduction import miniature
from mmengine_configs import (
    build_model,
    claimed,
    load,
    norms,
    run,
    sizes,
    skeleton,
    step,
    training,
)
from recipes import ROOT, configs, recipe

ALL = configs("mmdet")
PAPERS = [config for config in ALL if "shapes" not in config]
SERVER = [config for config in ALL if "test-dev" in config]
every_config = pytest.mark.parametrize("config", ALL)
every_paper = pytest.mark.parametrize("config", PAPERS)

#: Of each kind one, for a training step in the everyday suite.
KINDS = (
    "mask-rcnn_r50_fpn_gn_batch2_ilmgn.py",
    "shapes/mask-rcnn_r18_fpn_gn_shapes_gn.py",
    "shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py",
)


@every_config
def test_the_file_names_norm_is_in_the_box_head_and_nowhere_else(config):
    model = skeleton(load("mmdet", config))
    layers = norms(model)
    box_head = {n: type(m) for n, m in layers.items() if n.startswith("roi_head.bbox_head.")}
    assert set(box_head.values()) == {claimed(config)} and len(box_head) == 4
    assert {type(m) for n, m in layers.items() if n not in box_head} == {nn.GroupNorm}
    places = Counter(name.split(".")[0] for name in layers if name not in box_head)
    backbone, masks = (20, 2) if "shapes" in config else (53, 4)
    assert places == {"backbone": backbone, "neck": 8, "roi_head": masks}


@every_paper
def test_the_recipe_is_the_papers(config):
    cfg = load("mmdet", config)
    model = skeleton(cfg)
    found = {**training(cfg, model), **sizes(cfg)}
    layers = norms(model).values()
    found["groups"] = sorted({m.num_groups for m in layers})
    found["key group size"] = sorted(
        {m.num_channels // m.num_key_groups for m in layers if type(m) is ILMGroupNorm}
    )
    expected = recipe("mmdet", config)
    assert len(expected) >= 14
    assert {name: found[name] for name in expected} == expected
    box = model.roi_head.bbox_head
    assert (type(box).__name__, len(box.shared_convs), len(box.shared_fcs)) == (
        "Shared4Conv1FCBBoxHead",
        4,
        1,
    )
    assert cfg.model.backbone.init_cfg.checkpoint == "open-mmlab://detectron/resnet50_gn"


@pytest.mark.parametrize("config", [c for c in ALL if not c.endswith("_gn.py")])
def test_variants_differ_from_gn_in_the_box_head_alone(config):
    stem, key = config.removesuffix(".py").rsplit("_", 1)
    theirs, mine = load("mmdet", f"{stem}_gn.py"), load("mmdet", config)
    assert mine.model.roi_head.bbox_head.norm_cfg.type == key.upper()
    mine.model.roi_head.bbox_head.norm_cfg.type = "GN"
    for cfg in (mine, theirs):
        cfg.test_evaluator.pop("outfile_prefix", None)  # the file's own name
    assert mine.to_dict() == theirs.to_dict()


@pytest.mark.parametrize("config", SERVER)
def test_server_configs_differ_from_their_bases_in_the_test_alone(config):
    cfg, base = load("mmdet", config), load("mmdet", config.replace("_test-dev", ""))
    assert {key for key in base if cfg[key] != base[key]} == {"test_dataloader", "test_evaluator"}
    file = "annotations/image_info_test-dev2017.json"
    data, metric = cfg.test_dataloader.dataset, cfg.test_evaluator
    assert (data.ann_file, data.data_prefix.img) == (file, "test2017/")
    assert metric.format_only and metric.ann_file == data.data_root + file
    assert metric.outfile_prefix == f"output/{config.removesuffix('.py')}"


def test_test_dev_in_the_servers_format(datasets, tmp_path):
    """On images whose annotations are not public: the file has none."""
    root = datasets / "shapes"
    listed = json.loads((root / "annotations/instances_validation.json").read_text())
    del listed["annotations"]
    file = tmp_path / "image_info.json"
    file.write_text(json.dumps(listed))
    config = "configs/mmdet/mask-rcnn_r50_fpn_gn_batch2_test-dev_ilmgn.py"
    small = miniature.overrides(str(ROOT / config), tmp_path / "small")
    weight = {"roi_head.bbox_head.fc_cls.bias": torch.zeros(5)}
    torch.save({"state_dict": weight}, tmp_path / "model.pth")
    argv = ["--config-file", str(ROOT / config), "--num-gpus", "0", "--eval-only", *small]
    argv += [f"load_from={tmp_path / 'model.pth'}", f"work_dir={tmp_path / 'out'}"]
    argv += [f"test_dataloader.dataset.ann_file={file}", f"test_evaluator.ann_file={file}"]
    argv += ["model.test_cfg.rcnn.score_thr=0", "model.test_cfg.rcnn.max_per_img=2"]
    argv += ["model.test_cfg.rpn.max_per_img=20"]
    argv += [f"test_evaluator.outfile_prefix={tmp_path / 'results'}"]
    assert train_net.main(argv) == 0
    images = {image["id"] for image in listed["images"]}
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        found = json.loads((tmp_path / f"results.{kind}.json").read_text())
        assert found and {one["image_id"] for one in found} <= images
        assert all(one[key] for one in found)


@pytest.mark.parametrize(
    "config", [*KINDS, *(pytest.param(c, marks=pytest.mark.long) for c in ALL if c not in KINDS)]
)
def test_it_trains(config):
    cfg = load("mmdet", config)
    cfg.model.backbone.init_cfg = None
    cfg.model.train_cfg.rcnn.sampler.num = 16
    model = build_model(cfg)
    batch = demo_mm_inputs(
        image_shapes=[(3, 96, 128), (3, 128, 96)], num_items=[2, 1], num_classes=4, with_mask=True
    )
    losses = step(model, batch)
    assert {"loss_rpn_cls", "loss_cls", "loss_bbox", "loss_mask"} <= set(losses)
    assert all(np.isfinite(value) for value in losses.values())
    for layer in norms(model.roi_head.bbox_head).values():
        assert layer.weight.grad.any() and all(p.grad is not None for p in layer.parameters())


@pytest.mark.wide
@pytest.mark.parametrize("norm", ["gn", "ilmgn"])
def test_shapes_in_a_few_steps(norm, datasets, tmp_path):
    config = f"mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_{norm}.py"
    (figures,) = run(config, datasets / "shapes", tmp_path)
    assert "coco/segm_mAP" in figures


def test_shapes_are_generated_on_first_use(tmp_path, monkeypatch):
    few = partial(shapes.write_shapes, num_training=2, num_validation=1, size=64)
    monkeypatch.setattr(shapes, "write_shapes", few)
    cfg = load("mmdet", "shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py")
    init_default_scope("mmdet")
    for loader, count in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 1)):
        data = DATASETS.build({**loader.dataset, "data_root": str(tmp_path / "shapes")})
        assert len(data) == count and data.metainfo["classes"] == tuple(SHAPES)


@pytest.mark.long
def test_ilmgn_learns_shapes(tmp_path):
    shapes.write_shapes(tmp_path)
    config = "mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py"
    (figures,) = run(config, tmp_path / "shapes", tmp_path / "out", iterations=780)
    assert figures["coco/bbox_mAP"] >= 0.6
    assert figures["coco/segm_mAP"] >= 0.55


@pytest.mark.long
def test_on_real_images(real_coco, tmp_path):
    opts = [
        "model.backbone.init_cfg=None",
        # After two steps nothing is certain yet.
        "model.test_cfg.rcnn.score_thr=0",
        "train_dataloader.dataset.pipeline.2.scale=(213,128)",
    ]
    for loader in ("val_dataloader", "test_dataloader"):
        opts += [f"{loader}.dataset.indices=2", f"{loader}.dataset.pipeline.1.scale=(213,128)"]
    config = "mmdet/mask-rcnn_r50_fpn_gn_batch2_ilmgn.py"
    (figures,) = run(config, real_coco / "coco", tmp_path, *opts)
    assert 0 <= figures["coco/bbox_mAP"] <= 1
