"""A backbone that mmpretrain has trained, in mmseg's dilated ResNet."""

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.runner import save_checkpoint
from mmseg.models import ResNet

from mmengine_configs import build_model, load


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "en"])
def test_a_pretrained_resnet_50_loads_by_init_cfg(norm, tmp_path):
    torch.manual_seed(0)
    cfg = load("mmpretrain", f"en/resnet50_imagenet_8xb32_{norm}.py")
    trained = build_model(cfg)
    for tensor in trained.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_()
    path = tmp_path / "epoch_100.pth"
    save_checkpoint({"state_dict": trained.state_dict()}, str(path))
    dilated = ResNet(
        depth=50,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=dict(cfg.model.backbone.norm_cfg),
        init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone."},
    )
    dilated.init_weights()
    expected = trained.backbone.state_dict()
    found = dilated.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
