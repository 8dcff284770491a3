"""Weight decay and frozen stages of a real detectron2 ResNet."""

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.solver import build_optimizer

from ilm_plugins import NORMS


def resnet(norm, freeze_at=2):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.RESNETS.NORM = norm
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    torch.manual_seed(0)
    return cfg, build_backbone(cfg).train()


@pytest.mark.parametrize("norm", ["EN", "SN", "SSN"])
def test_frozen_stages_keep_and_use_their_running_statistics(norm):
    cfg, model = resnet(norm)
    optimizer = build_optimizer(cfg, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        model(torch.randn(2, 3, 64, 64))["res3"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    for name, value in before.items():
        frozen = name.startswith(("stem", "res2"))
        moved = not torch.equal(after[name], value)
        if frozen:
            assert not moved, name
        elif "running" in name or name.endswith("norm.weight"):
            assert moved, name
    # The frozen stem computes in training what it computes in evaluation.
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.stem(x), model.eval().stem(x), rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_affine_parameters_get_the_decay_of_norms(norm):
    cfg, model = resnet(norm, 0)
    names = ["weight", "bias"] + ["mean_weight", "var_weight"] * (norm in ("SN", "SSN"))
    decay = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }
    own = {
        id(parameter)
        for module in model.modules()
        if type(module) is NORMS[norm]
        for parameter in (getattr(module, name) for name in names)
    }
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in own else 0.01), name
