"""The keys in mmcv's registries: of OneDL's and upstream's mmcv 2.x, and of mmcv 1.x."""

import copy
import itertools
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmcv", reason="needs OpenMMLab: make install-openmmlab")

from mmcv.cnn import ConvModule
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, initialize
from mmengine.optim import build_optim_wrapper
from mmengine.registry import Registry
from torch import nn

from equations.cases import MIXTURES, PATHS
from helpers import processes, workers
from helpers.close import assert_equal
from helpers.processes import spawn
from helpers.workers import free_port
from ilm_plugins import NORMS, ExemplarNorm, SwitchNorm, surgery
from ilm_plugins.frameworks.openmmlab import norms as norms


@pytest.mark.parametrize("order", ["ours first", "theirs first", "ours between"])
def test_everything_is_registered_in_any_import_order(order, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("_base_ = 'ilm_plugins::mmseg/_base_/norms/en.py'\nnorm_cfg = _base_.norm")
    processes.run_program("openmmlab_registrations.py", order, config)


@pytest.mark.parametrize("key", MIXTURES)
def test_a_converted_norm_is_not_fused_with_its_convolution(key):
    bn = {"type": "BN"}
    module = ConvModule(3, 32, 3, norm_cfg=bn, efficient_conv_bn_eval=True).eval()
    plain = copy.deepcopy(module.conv)
    surgery.convert(module, key)
    x = torch.randn(2, 3, 5, 5)
    assert_equal(module(x), module.norm(plain(x)).relu())


def test_a_class_that_was_reloaded_is_replaced():
    registry = Registry("norms")
    before = type("ExemplarNorm", (), {"__module__": ExemplarNorm.__module__})
    registry.register_module(name="EN", module=before)
    norms.register(registry)
    assert registry.get("EN") is ExemplarNorm


@pytest.mark.parametrize("key", PATHS)
def test_initializers_of_group_norm_reach_the_affine_parameters(key):
    layer = NORMS[key](64)
    initialize(layer, {"type": "Constant", "layer": ["GroupNorm"], "val": 3, "bias": 2})
    assert (layer.weight == 3).all()
    assert (layer.bias == 2).all()


@pytest.mark.parametrize("key", PATHS)
def test_a_residual_that_starts_at_zero_leaves_the_networks_alone(key):
    """mmseg's and mmdet's ResNets, without init_cfg, set each block's last norm to 0."""
    backbones = pytest.importorskip("mmdet.models.backbones", reason="needs OpenMMLab")
    cfg = {"type": key}
    one = {"num_stages": 1, "strides": (1,), "dilations": (1,), "out_indices": (0,)}
    model = backbones.ResNet(18, **one, norm_cfg=cfg)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for block in model.layer1:
        assert block.norm1.weight.any()
        assert not block.norm2.weight.any()
    networks = [n for n, _ in model.layer1.named_parameters(prefix="layer1") if n.count(".") == 4]
    assert bool(networks) == any(True for _ in NORMS[key](64).children())
    assert_equal({n: model.state_dict()[n] for n in networks}, {n: before[n] for n in networks})


def resnet(key, **options):
    backbones = pytest.importorskip("mmdet.models.backbones", reason="needs mmdet")
    one = {"num_stages": 1, "strides": (1,), "dilations": (1,), "out_indices": (0,)}
    return backbones.ResNet(18, **one, norm_cfg=dict(_NORMS.get(key, {}), type=key), **options)


_NORMS = {"GN": {"num_groups": 32}, "ILMGN": {"init": "identity"}}


@pytest.fixture
def told(tmp_path):
    """The function (source, target, prefix) -> what ``init_cfg`` with a file tells of norms."""
    log = tmp_path / "log"
    MMLogger.get_instance(str(tmp_path), log_file=str(log))

    def load(source, target, prefix=None):
        names = {f"{prefix}.{n}" if prefix else n: t for n, t in source.state_dict().items()}
        torch.save({"state_dict": names}, tmp_path / "c.pth")
        target.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "c.pth")}
        target.init_cfg |= {"prefix": prefix} if prefix else {}
        target.init_weights()
        return re.findall(r"the checkpoint for ResNet has (.*), which keep", log.read_text())

    return load


@pytest.mark.parametrize("prefix", [None, "backbone"])
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_a_backbone_that_starts_from_weights_of_another_norm_gives_one_warning(told, norm, prefix):
    """BatchNorm has other names, GroupNorm the same names and other shapes."""
    found = told(resnet(norm), resnet("EN"), prefix)
    assert found == ["another norm's weights for 5 layers, such as gn1"]


@pytest.mark.parametrize("norm, ours", [("EN", "EN"), ("GN", "ILMGN")])
def test_a_backbone_that_starts_from_weights_of_its_norm_gives_no_warning(told, norm, ours):
    assert told(resnet(norm), resnet(ours)) == []


def test_another_head_that_begins_with_a_norm_gives_no_warning(told):
    source, target = resnet("EN"), resnet("EN")
    source.head = nn.Linear(32, 2)
    target.head = nn.Sequential(SwitchNorm(32), nn.Linear(32, 2))
    assert told(source, target) == []


def test_batchnorms_name_of_the_variance_gives_no_warning(told):
    source = resnet("EN")
    for layer in source.modules():
        if isinstance(layer, ExemplarNorm):
            layer._buffers["running_var"] = layer._buffers.pop("running_variance")
    assert told(source, resnet("EN")) == []


def test_a_trained_model_keeps_its_weights_by_is_init_as_the_page_says():
    model, _ = surgery.convert(resnet("BN"), "EN")
    model.is_init, before = True, copy.deepcopy(dict(model.state_dict()))
    model.init_weights()  # as Runner.train does
    assert_equal(dict(model.state_dict()), before)


@pytest.mark.parametrize("key", PATHS)
def test_an_initializer_of_mmcv_1_leaves_the_networks_alone(key):
    """It stands in another module than MMEngine's."""

    def init(module):
        for values in module.parameters(recurse=False):
            nn.init.zeros_(values)

    init.__module__ = "mmcv.cnn.utils.weight_init"
    layer = NORMS[key](64)
    before = {n: p.detach().clone() for n, p in layer.named_parameters() if "." in n}
    layer.apply(init)
    assert not layer.weight.any()
    assert_equal({name: layer.state_dict()[name] for name in before}, before)


def stepped(key, frozen_stages, norm_eval):
    """A ResNet after a step; its layers by name, and its tensors from before the step."""
    resnet = pytest.importorskip("mmdet.models.backbones", reason="needs mmdet").ResNet
    options = {"frozen_stages": frozen_stages, "norm_eval": norm_eval}
    model = resnet(18, norm_cfg={"type": key}, **options)
    model.train()
    sgd = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01}
    wrapper = build_optim_wrapper(model, {"optimizer": sgd})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NORMS[key])}
    assert len(layers) == 20
    before = copy.deepcopy(model.state_dict())
    wrapper.update_params(sum(y.square().mean() for y in model(torch.randn(2, 3, 32, 32))))
    return model, layers, before


def norms_with_updated_statistics(model, before):
    """The names of the norms whose buffers a step changed."""
    updated = (n for n, b in model.named_buffers() if not torch.equal(b, before[n]))
    return {name.rsplit(".", 1)[0] for name in updated}


#: Frozen stages -> the first names of the modules that they have.
FROZEN = {1: ("gn1", "layer1"), 2: ("gn1", "layer1", "layer2")}


@pytest.fixture(scope="module", params=itertools.product(("EN", "SN"), FROZEN), ids=str)
def frozen(request):
    """A ResNet with frozen stages as :func:`stepped` has it, and its norms that are not frozen."""
    key, stages = request.param
    model, layers, before = stepped(key, stages, norm_eval=False)
    others = {name for name in layers if name.partition(".")[0] not in FROZEN[stages]}
    return model, layers, before, others


def test_frozen_stages_train_no_weight_of_a_norm(frozen):
    _, layers, before, others = frozen
    trained = {n for n, m in layers.items() if not torch.equal(m.weight, before[f"{n}.weight"])}
    assert trained == others


def test_frozen_stages_update_no_running_statistics(frozen):
    model, _, before, others = frozen
    assert norms_with_updated_statistics(model, before) == others


@pytest.mark.parametrize("key", ["EN", "SN"])
def test_norm_eval_updates_no_running_statistics(key):
    model, _, before = stepped(key, frozen_stages=1, norm_eval=True)
    assert not norms_with_updated_statistics(model, before)


@pytest.mark.parametrize("key", NORMS)
def test_norm_decay_mult_is_of_a_conv_modules_affine_parameters(key):
    """The module names its norm gn, as weights of GroupNorm models do."""
    model = ConvModule(3, 64, 1, norm_cfg={"type": key})
    sgd, decay = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01}, {"norm_decay_mult": 0.5}
    wrapper = build_optim_wrapper(model, {"optimizer": sgd, "paramwise_cfg": decay})
    groups = wrapper.optimizer.param_groups
    found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    own = {id(p) for p in model.gn.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == (0.005 if id(parameter) in own else 0.01), name


def test_norm_eval_is_left_again_by_evaluation():
    model = BaseModule()
    model.norm_eval, model.norm = True, SwitchNorm(8)
    assert model.train() is model
    assert model.training
    assert not model.norm.training
    model.norm_eval = False
    assert model.train().norm.training
    assert not model.eval().norm.training


@pytest.mark.wide
def test_mmdets_hook_averages_running_statistics_over_processes():
    pytest.importorskip("mmdet.engine.hooks", reason="needs mmdet")
    spawn(
        workers.in_one_group,
        (2, free_port(), [workers.averaged_by_mmdets_hook]),
        nprocs=2,
    )


# ---- other distributions of mmcv


@pytest.mark.wide
@pytest.mark.parametrize(
    "packages", [["mmcv==1.7.2"], ["mmcv-lite==2.1.0", "mmengine==0.10.7"]], ids=["1.x", "upstream"]
)
def test_other_distributions_of_mmcv(packages, tmp_path):
    if packages == ["mmcv==1.7.2"] and sys.version_info >= (3, 13):
        pytest.skip("the setup.py of mmcv 1.7.2 does not run on Python 3.13 and newer")
    words = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--target"]
    command = [sys.executable, *words, str(tmp_path), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{packages} cannot be installed: {done.stderr[-200:]}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for first in ("ilm_plugins", "mmcv.cnn"):
        done = processes.run_program("mmcv_models.py", first, env=environment)
        assert done.stdout.startswith(str(tmp_path))


def test_syncnormhook_gets_only_statistics_that_there_are():
    """Layers without BN have none; test-time adaptation sets them to None."""
    hooks = pytest.importorskip("mmdet.engine.hooks.sync_norm_hook", reason="needs mmdet")
    names = {"whole": {}, "without_bn": {"normalizers": ("IN", "LN")}, "set_to_none": {}}
    model = nn.ModuleDict({name: SwitchNorm(8, **options) for name, options in names.items()})
    model["set_to_none"].running_mean = model["set_to_none"].running_variance = None
    states = hooks.get_norm_states(model)
    assert states.keys() == {"whole.running_mean", "whole.running_variance"}
