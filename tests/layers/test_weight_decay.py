"""Groups of an optimizer by ``parameter_groups``, beside the groups of other packages."""

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, parameter_groups, surgery

#: The decays of norms, of biases and of all else.
NORM, BIAS, ORDINARY = 0.0, 0.25, 0.5


def decays(groups):
    """The weight decay of each parameter, by identity; none is in two groups."""
    found = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


def by_name(model, groups):
    found = decays(groups)
    return {name: found.get(id(p)) for name, p in model.named_parameters()}


@pytest.mark.parametrize("key", NORMS)
def test_norms_have_their_own_decay_and_their_networks_the_ordinary_one(key):
    model = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), NORMS[key](64))
    own = {"1.weight", "1.bias", "1.mean_weight", "1.var_weight"}
    found = by_name(model, parameter_groups(model, ORDINARY, norm_weight_decay=NORM))
    assert found == {name: NORM if name in own else ORDINARY for name in found}


def test_biases_and_vectors_can_have_a_decay_of_their_own():
    """AN's pairs have a bias of two dimensions."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3), NORMS["AN"](64), nn.PReLU())
    found = by_name(model, parameter_groups(model, ORDINARY, bias_weight_decay=BIAS))
    assert {name for name, decay in found.items() if decay == BIAS} == {
        *("0.bias", "1.attention.bias", "1.pairs.bias", "2.weight")
    }


def test_the_norms_of_torch_have_the_decay_of_norms():
    kinds = nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm
    model = nn.Sequential(*(kind(8) for kind in kinds), nn.InstanceNorm2d(8, affine=True))
    assert set(by_name(model, parameter_groups(model, ORDINARY)).values()) == {NORM}


def test_frozen_parameters_are_in_no_group_and_shared_ones_in_one():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), NORMS["SN"](8))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    found = by_name(model, parameter_groups(model, ORDINARY))
    assert found.pop("2.weight") is None
    assert None not in found.values()


def test_plain_models_get_the_groups_of_torchvisions_detectors():
    utils = pytest.importorskip("torchvision.ops._utils", reason="needs torchvision")
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    model = models.mobilenet_v2()
    norms, others = utils.split_normalization_params(model)
    theirs = {id(p): NORM for p in norms} | {id(p): ORDINARY for p in others}
    assert decays(parameter_groups(model, ORDINARY)) == theirs


def test_timms_optimizers_take_the_groups_of_converted_models():
    timm = pytest.importorskip("timm", reason="needs timm")
    optim = pytest.importorskip("timm.optim", reason="needs timm")
    model = timm.create_model("resnet18", num_classes=2)

    def groups(model):
        return parameter_groups(model, ORDINARY, bias_weight_decay=0)

    plain = optim.create_optimizer_v2(model, "adamw", weight_decay=ORDINARY)
    assert decays(groups(model)) == decays(plain.param_groups)
    model, report = surgery.convert(model, "EN")
    optimizer = optim.create_optimizer_v2(model, "adamw", param_group_fn=groups)
    found = by_name(model, optimizer.param_groups)
    for name in report.converted:
        assert found[f"{name}.weight"] == 0
        assert found[f"{name}.bias"] == 0
        assert found[f"{name}.reduce.weight"] == ORDINARY
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
