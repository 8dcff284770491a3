"""What configs of OpenMMLab are compared with, and how their models take a step."""

from collections import Counter
from fnmatch import fnmatch

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from helpers.mmengine_configs import described, norms, skeleton
from ilm_plugins import NORMS, ExemplarNorm
from ilm_plugins.frameworks.openmmlab.config import OpenMMEngineConfig

#: The last word of a config's name, or the norm of a row -> the class of its norms.
CLASSES = {key.lower(): layer for key, layer in NORMS.items()} | {
    **{"bn": nn.BatchNorm2d, "syncbn": SyncBatchNorm, "in": nn.InstanceNorm2d},
    **{"gn": nn.GroupNorm, "ln": nn.GroupNorm},  # with one group, which the recipe tells
}


def check(config, cfg, kind, expected, places):
    """Compare norms and settings of a config with those that are expected.

    ``places`` are names of files -> how many norms the parts of the model have.
    """
    kind, model = CLASSES[kind], skeleton(cfg)
    # EN's variants are among what is compared below.
    found = {
        part: ExemplarNorm if isinstance(layer, ExemplarNorm) else type(layer)
        for part, layer in norms(model).items()
    }
    # In mmdet the box head varies, and all other norms are GN.
    box = {n: found.pop(n) for n in [*found] if n.startswith("roi_head.bbox_head.")}
    if cfg.default_scope == "mmdet":
        assert set(box.values()) == {kind}
        assert len(box) == 4
        kind = nn.GroupNorm
    assert set(found.values()) == {kind}
    (counts,) = (count for files, count in places.items() if fnmatch(config, files))
    assert Counter(part.split(".")[0] for part in norms(model)) == counts
    assert all(layer.affine for layer in norms(model).values())
    built = described(cfg)
    assert {word: built.get(word) for word in expected} == expected
    # Where iterations are counted, MMEngine would log all validations at the epoch 0.
    by_epoch = cfg.get("log_processor", {}).get("by_epoch", True)
    assert cfg.default_hooks.logger.get("log_metric_by_epoch", True) == by_epoch
    assert cfg.default_hooks.checkpoint.get("by_epoch", True) == by_epoch


def check_step(cfg):
    """Take a training step, which changes most parameters."""
    cfg.model.backbone.init_cfg = None
    if cfg.model.backbone.get("depth") == 101:
        cfg.model.backbone.depth = 50  # of the same blocks
    if "roi_head" in cfg.model:
        cfg.model.train_cfg.rcnn.sampler.num = 8
    model = revert_sync_batchnorm(OpenMMEngineConfig("", cfg, "cpu").build_model()).train()
    if cfg.default_scope == "mmdet":
        shapes = [(3, 64, 96), (3, 96, 64)]
        items = {"num_items": [2, 1], "num_classes": 4, "with_mask": True}
        batch = demo_mm_inputs(image_shapes=shapes, **items)
    else:
        sample = DataSample().set_gt_label(1)
        if cfg.default_scope == "mmseg":
            labels = PixelData(data=torch.randint(model.num_classes, (1, 32, 32)))
            sample = SegDataSample(gt_sem_seg=labels, metainfo={"img_shape": (32, 32)})
        images = list(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
        batch = {"inputs": images, "data_samples": [sample, sample.clone()]}
    before = [p.detach().clone() for p in model.parameters()]
    log = model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4)))
    assert all(torch.as_tensor(value).isfinite() for value in log.values()), log
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
