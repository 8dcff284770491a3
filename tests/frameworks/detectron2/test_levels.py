"""Conversions of RetinaNet, whose head has running statistics for each level, and back."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.layers.batch_norm import CycleBatchNormList
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

from cases import INDEPENDENT, MIXTURES
from close import EQUAL, assert_close, assert_equal
from ilm_plugins import ExemplarNorm, SparseSwitchNorm, freeze, surgery
from ilm_plugins.__main__ import main
from ilm_plugins.checkpoints import read, write
from swaps import randomized

NORMS = ["cls_subnet.1", "cls_subnet.4", "bbox_subnet.1", "bbox_subnet.4"]
#: Roundings of K * weight / K.
THERE_AND_BACK = 16


def randomized_levels(model):
    """The model, with random norms; detectron2's BatchNorms of levels have one weight and bias."""
    for module in randomized(model).modules():
        if isinstance(module, CycleBatchNormList):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def head(norm, levels=3):
    shapes = [ShapeSpec(channels=64)] * levels
    options = {"num_classes": 4, "num_anchors": 3, "conv_dims": [64, 64]}
    made = RetinaNetHead(input_shape=shapes, norm=norm, **options).double().eval()
    return randomized_levels(made)


def features():
    torch.manual_seed(1)
    return [i + (1 + i) * torch.randn(2, 64, 8 >> i, 8 >> i).double() for i in range(3)]


def outputs(model):
    logits, boxes = model(features())
    return logits + boxes


def strictly(model, state):
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def plain():
    return head("BN")


@pytest.fixture(scope="module")
def en(plain):
    return surgery.convert(copy.deepcopy(plain), "EN")[0]


def fixed(normalizer):
    """A head of SSN whose ratios choose a normalizer."""
    made = head("SSN")
    for layer in made.modules():
        if isinstance(layer, SparseSwitchNorm):
            for name in ("mean_fixed", "var_fixed"):
                chosen = torch.eye(3)[layer.normalizers.index(normalizer)]
                getattr(layer, name).copy_(chosen)
    return made


# ---- state dicts


def test_a_state_dict_of_en_leads_back_to_the_names_of_bn(plain, en):
    state, report = surgery.revert_state(en.state_dict())
    assert [*report.converted] == NORMS
    assert not report.left
    assert_close(dict(state), dict(plain.state_dict()), THERE_AND_BACK)


def test_a_state_dict_of_bn_becomes_one_of_en(plain):
    state, report = surgery.convert_state(plain.state_dict(), "EN")
    assert [*report.converted] == NORMS
    assert_close(outputs(strictly(head("EN"), state)), outputs(plain), EQUAL)


def test_a_converted_state_dict_leads_back(plain):
    state, _ = surgery.convert_state(plain.state_dict(), "EN")
    back, _ = surgery.revert_state(state)
    assert_close(dict(back), dict(plain.state_dict()), THERE_AND_BACK)


def test_a_converted_state_dict_has_the_same_parameters_in_each_level(plain):
    state, _ = surgery.convert_state(plain.state_dict(), "EN")
    for name in ("weight", "reduce.weight", "expand.weight", "ratio.bias"):
        assert state[f"cls_subnet.1.0.{name}"] is state[f"cls_subnet.1.2.{name}"]


def test_a_level_that_older_versions_gave_random_maps_of_its_own_leads_back(plain, en):
    state = en.state_dict()
    for name in NORMS:
        state[f"{name}.2.expand.weight"] = 2 * state[f"{name}.2.expand.weight"]
    back, _ = surgery.revert_state(state)
    assert_close(dict(back), dict(plain.state_dict()), THERE_AND_BACK)


def test_a_prefix_of_names_does_not_matter(plain, en):
    prefixed = {f"module.head.{name}": t for name, t in en.state_dict().items()}
    back, _ = surgery.revert_state(prefixed)
    expected = {f"module.head.{name}": t for name, t in plain.state_dict().items()}
    assert_close(dict(back), expected, THERE_AND_BACK)


def test_one_level_leads_back():
    plain = head("BN", levels=1)
    state, _ = surgery.convert_state(plain.state_dict(), "EN")
    assert state.keys() == head("EN", levels=1).state_dict().keys()
    back, _ = surgery.revert_state(state)
    assert_close(dict(back), dict(plain.state_dict()), THERE_AND_BACK)


@pytest.mark.parametrize("key", [key for key in MIXTURES if key != "EN"])
def test_mixtures_of_statistics_get_the_names_of_their_models(plain, key):
    state, report = surgery.convert_state(plain.state_dict(), key)
    assert [*report.converted] == NORMS
    expected, _ = surgery.convert(copy.deepcopy(plain), key)
    assert_equal(dict(state), dict(expected.state_dict()))
    strictly(head(key), state)


@pytest.mark.parametrize("key", INDEPENDENT)
def test_layers_without_running_statistics_are_one_for_all_levels(plain, key):
    state, report = surgery.convert_state(plain.state_dict(), key, replacing="BN")
    assert [*report.converted] == NORMS
    assert state.keys() == head(key).state_dict().keys()
    back, _ = surgery.revert_state(state)
    assert back.keys() == head("GN").state_dict().keys()


@pytest.mark.parametrize("key", ["ILMGN", "AN"])
def test_a_state_dict_of_gn_gets_the_layers_names(key):
    state, _ = surgery.convert_state(head("GN").state_dict(), key, match="*_subnet.*")
    assert state.keys() == head(key).state_dict().keys()


@pytest.mark.parametrize("key", ["ILMGN", "AN"])
def test_a_converted_state_dict_of_gn_leads_back(key):
    plain = head("GN")
    state, _ = surgery.convert_state(plain.state_dict(), key, match="*_subnet.*")
    assert_close(dict(surgery.revert_state(state)[0]), dict(plain.state_dict()), THERE_AND_BACK)


def test_sn_becomes_ssn_under_the_same_names():
    plain = head("SN")
    state, report = surgery.convert_state(plain.state_dict(), "SSN")
    assert [*report.converted] == NORMS
    assert_close(outputs(strictly(head("SSN"), state)), outputs(plain), EQUAL)


@pytest.mark.parametrize("normalizer, norm", [("BN", "BN"), ("LN", "GN"), ("IN", "GN")])
def test_fixed_ratios_lead_back_to_the_names_of_the_norm_that_they_choose(normalizer, norm):
    state, report = surgery.revert_state(fixed(normalizer).state_dict())
    assert [*report.converted] == NORMS
    assert state.keys() == head(norm).state_dict().keys()


def test_norms_of_a_list_that_share_nothing_stay_apart():
    plain = nn.ModuleDict({"norms": nn.ModuleList(nn.BatchNorm2d(64) for _ in range(3))})
    state, report = surgery.convert_state(plain.state_dict(), "EN")
    assert [*report.converted] == ["norms.0", "norms.1", "norms.2"]
    back, _ = surgery.revert_state(state)
    assert back.keys() == plain.state_dict().keys()


# ---- state dicts and a model


def test_a_state_dict_of_en_fits_a_model_of_bn(plain, en):
    state, report = surgery.fit_state(en.state_dict(), head("BN"))
    assert [*report.converted] == NORMS
    assert not report.left
    assert not report.missing
    assert_close(dict(state), dict(plain.state_dict()), THERE_AND_BACK)


@pytest.mark.parametrize("key", [*MIXTURES, *INDEPENDENT])
def test_a_state_dict_of_bn_fits_a_model_of_each_layer(plain, key):
    state, report = surgery.fit_state(plain.state_dict(), head(key))
    assert [*report.converted] == NORMS
    assert not report.left
    assert not report.missing
    strictly(head(key), state)


@pytest.mark.parametrize("normalizer, make", [("BN", "BN"), ("LN", lambda c: nn.GroupNorm(1, c))])
def test_fixed_ratios_fit_a_model_of_the_norm_that_they_choose(normalizer, make):
    layers, model = fixed(normalizer), head(make)
    state, report = surgery.fit_state(layers.state_dict(), model)
    assert [*report.converted] == NORMS
    assert_close(outputs(strictly(model, state)), outputs(layers), EQUAL)


def test_one_norm_for_all_levels_gives_each_level_its_statistics():
    plain, model = head("naiveSyncBN"), head("EN")
    state, report = surgery.fit_state(plain.state_dict(), model)
    assert [*report.converted] == NORMS
    assert_close(outputs(strictly(model, state)), outputs(plain), EQUAL)


def test_a_model_of_fewer_levels_is_told(en):
    _, report = surgery.fit_state(en.state_dict(), head("BN", levels=2))
    assert report.left["cls_subnet.1"] == "it is of 3 levels, the model's norm of 2"
    _, report = surgery.fit_state(en.state_dict(), head("naiveSyncBN"))
    assert "statistics of 3 levels, the model's norm of one" in report.left["cls_subnet.1"]


# ---- models


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_a_model_comes_back_as_detectron2_builds_it(norm):
    plain = head(norm)
    model, _ = surgery.convert(copy.deepcopy(plain), "EN")
    model, report = surgery.revert(model)
    assert [*report.converted] == NORMS
    assert {"ExemplarNorm of each level -> BatchNorm2d of each level"} == {
        *report.converted.values()
    }
    assert type(model.cls_subnet[1]) is CycleBatchNormList
    assert_close(dict(model.state_dict()), dict(plain.state_dict()), THERE_AND_BACK)
    assert len([*model.parameters()]) == len([*plain.parameters()])
    assert not model._forward_pre_hooks
    strictly(head(norm), model.state_dict())


def test_a_model_that_came_back_computes_the_same(plain, en):
    model, _ = surgery.revert(copy.deepcopy(en))
    assert_close(outputs(model), outputs(plain), EQUAL)


def test_a_model_that_came_back_can_be_converted_again(plain, en):
    model, _ = surgery.convert(surgery.revert(copy.deepcopy(en))[0], "EN")
    assert_close(outputs(model), outputs(plain), EQUAL)


@pytest.mark.parametrize("normalizer, kind", [("BN", CycleBatchNormList), ("LN", nn.GroupNorm)])
def test_a_model_with_fixed_ratios_leads_back(normalizer, kind):
    layers = fixed(normalizer)
    model, report = surgery.revert(copy.deepcopy(layers))
    assert [*report.converted] == NORMS
    assert type(model.cls_subnet[1]) is kind
    assert_close(outputs(model), outputs(layers), EQUAL)


@pytest.fixture(scope="module")
def there_and_back():
    """A head whose norms are in part fixed and in evaluation mode, and the same from EN back."""
    plain = head("BN").train()
    plain.cls_subnet[1].bias.requires_grad_(False)
    plain.bbox_subnet[4].requires_grad_(False).eval()
    return plain, surgery.revert(surgery.convert(copy.deepcopy(plain), "EN")[0])[0]


def test_fixed_parameters_come_back(there_and_back):
    expected, trained = (
        {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for model in there_and_back
    )
    assert trained == expected


def test_modes_come_back(there_and_back):
    expected, modes = (
        [(name, module.training) for name, module in model.named_modules()]
        for model in there_and_back
    )
    assert modes == expected


def test_the_way_back_of_frozen_levels_is_noted(en):
    _, report = surgery.revert(freeze(copy.deepcopy(en)))
    assert "no longer frozen" in str(report)


def test_a_level_in_which_something_moved_keeps_its_layer(en):
    model = copy.deepcopy(en)
    model.cls_subnet[1][0].ratio.bias.data[0] = 1e-3
    model, report = surgery.revert(model)
    assert "cls_subnet.1" in report.left
    assert isinstance(model.cls_subnet[1][0], ExemplarNorm)


# ---- the command, and a whole model


def retinanet(norm):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = cfg.MODEL.RETINANET.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return randomized_levels(build_model(cfg).eval())


@pytest.fixture(scope="module")
def detector():
    return retinanet("BN")


@pytest.mark.parametrize("ending", [".pth", pytest.param(".pkl", marks=pytest.mark.wide)])
def test_the_command_leads_back_to_a_checkpoint_of_bn(tmp_path, detector, ending):
    there, back = tmp_path / f"en{ending}", tmp_path / f"bn{ending}"
    write({"model": detector.state_dict()}, tmp_path / "model.pth")
    assert main(["convert", str(tmp_path / "model.pth"), str(there), "--to", "EN"]) == 0
    assert main(["convert", str(there), str(back), "--revert"]) == 0
    found = {name: torch.as_tensor(value) for name, value in read(back)["model"].items()}
    assert_close(found, dict(detector.state_dict()), THERE_AND_BACK)


def test_a_converted_checkpoint_has_the_names_of_a_model_of_en(tmp_path, detector):
    write({"model": detector.state_dict()}, tmp_path / "model.pth")
    paths = [str(tmp_path / name) for name in ("model.pth", "en.pth")]
    assert main(["convert", *paths, "--to", "EN"]) == 0
    assert read(paths[1])["model"].keys() == retinanet("EN").state_dict().keys()


def test_a_whole_model_comes_back_with_its_names(detector):
    model, _ = surgery.convert(copy.deepcopy(detector), "EN")
    model, _ = surgery.revert(model)
    assert_close(dict(model.state_dict()), dict(detector.state_dict()), THERE_AND_BACK)
