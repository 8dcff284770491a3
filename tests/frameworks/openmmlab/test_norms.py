"""The keys in mmcv's registries: of OneDL's and upstream's mmcv 2.x, and of mmcv 1.x."""

import copy
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmcv", reason="needs OpenMMLab: make install-openmmlab")

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, initialize
from mmengine.optim import build_optim_wrapper
from mmengine.registry import Registry
from torch import nn

import fresh
from cases import PATHS
from close import assert_equal
from ilm_plugins import NORMS, ExemplarNorm, SwitchNorm, surgery
from ilm_plugins.frameworks.openmmlab import norms
from ilm_plugins.layers.options import automatic

KNOWN = """
import sys
import ilm_plugins
from mmcv.cnn import build_norm_layer
from mmengine.config import Config
from mmengine.registry import HOOKS
import mmengine.runner

for key, layer in ilm_plugins.NORMS.items():
    name, built = build_norm_layer({"type": key}, 64, postfix=2)
    assert type(built) is layer and built.num_channels == 64, key
    assert name == "gn2", "weights of GroupNorm models keep their names"
assert HOOKS.get("RadiusHook").__module__.startswith("ilm_plugins.")
assert Config.fromfile(sys.argv[1]).norm_cfg.type == "EN"
"""


@pytest.mark.parametrize(
    "first",
    [
        "import ilm_plugins, mmcv.cnn",
        "import mmcv.cnn, mmengine.config, mmengine.runner, ilm_plugins",
        "import mmengine.runner, ilm_plugins, mmcv.cnn",
    ],
    ids=["ours first", "theirs first", "ours between"],
)
def test_norms_hooks_and_bases_are_known_in_any_import_order(first, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("_base_ = 'ilm_plugins::mmseg/_base_/norms/en.py'\nnorm_cfg = _base_.norm")
    fresh.run([sys.executable, "-c", f"{first}\n{KNOWN}", config], check=True)


def test_a_converted_norm_is_not_fused_with_its_convolution():
    bn = {"type": "BN"}
    module = ConvModule(3, 32, 3, norm_cfg=bn, efficient_conv_bn_eval=True).eval()
    plain = copy.deepcopy(module.conv)
    for key in ("SN", "EN"):
        surgery.convert(model := copy.deepcopy(module), key)
        x = torch.randn(2, 3, 5, 5)
        assert_equal(model(x), model.norm(plain(x)).relu())


def test_a_class_that_was_reloaded_is_replaced():
    registry = Registry("norms")
    before = type("ExemplarNorm", (), {"__module__": ExemplarNorm.__module__})
    registry.register_module(name="EN", module=before)
    norms.register(registry)
    assert registry.get("EN") is ExemplarNorm


@pytest.mark.parametrize("key", PATHS)
def test_initializers_reach_the_affine_parameters_and_no_network(key):
    layer = NORMS[key](64)
    model, before = nn.Sequential(nn.Linear(64, 64), layer), copy.deepcopy(layer.state_dict())
    initialize(model, {"type": "Constant", "layer": ["Conv1d", "Linear"], "val": 3, "bias": 2})
    assert (model[0].weight == 3).all()
    assert_equal(layer.state_dict(), before)
    initialize(layer, {"type": "Constant", "layer": ["GroupNorm"], "val": 3, "bias": 2})
    assert (layer.weight == 3).all() and (layer.bias == 2).all()


@pytest.mark.parametrize("key", PATHS)
def test_a_residual_that_starts_at_zero_leaves_the_networks_alone(key):
    """mmseg's and mmdet's ResNets, without init_cfg, set each block's last norm to 0."""
    backbones = pytest.importorskip("mmdet.models.backbones", reason="needs OpenMMLab")
    cfg = {"type": key, **automatic(NORMS[key])}
    one = {"num_stages": 1, "strides": (1,), "dilations": (1,), "out_indices": (0,)}
    model = backbones.ResNet(18, **one, norm_cfg=cfg)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(b.norm1.weight.any() and not b.norm2.weight.any() for b in model.layer1)
    networks = [n for n, _ in model.layer1.named_parameters(prefix="layer1") if n.count(".") == 4]
    assert bool(networks) == (key != "SN")
    assert_equal({n: model.state_dict()[n] for n in networks}, {n: before[n] for n in networks})


@pytest.mark.parametrize("key", ["EN", "SN"])
@pytest.mark.parametrize("frozen_stages, norm_eval", [(1, True), (2, False)])
def test_frozen_stages_norm_eval_and_norm_decay_mult_apply(key, frozen_stages, norm_eval):
    resnet = pytest.importorskip("mmdet.models.backbones", reason="needs mmdet").ResNet
    options = {"frozen_stages": frozen_stages, "norm_eval": norm_eval}
    model = resnet(18, norm_cfg={"type": key, **automatic(NORMS[key])}, **options)
    model.train()
    sgd, decay = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01}, {"norm_decay_mult": 0.0}
    wrapper = build_optim_wrapper(model, {"optimizer": sgd, "paramwise_cfg": decay})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NORMS[key])}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    weights = {n: m.weight.clone() for n, m in layers.items()}
    wrapper.update_params(sum(y.square().mean() for y in model(torch.randn(2, 3, 32, 32))))
    frozen = {"gn1", *(n for n in layers if n.startswith("layer") and int(n[5]) <= frozen_stages)}
    assert len(layers) == 20
    assert {n for n, m in layers.items() if torch.equal(m.weight, weights[n])} == frozen
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, buffers[n])}
    moving = set() if norm_eval else layers.keys() - frozen
    assert {name.rsplit(".", 1)[0] for name in moved} == moving
    groups = wrapper.optimizer.param_groups
    free = {p for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    own = {p for layer in layers.values() for p in layer.parameters(recurse=False)}
    assert free == {p for p in own if p.requires_grad}, "norm_decay_mult is of affine parameters"


def test_norm_eval_is_left_again_by_evaluation():
    model = BaseModule()
    model.norm_eval, model.norm = True, SwitchNorm(8)
    assert model.train() is model and model.training and not model.norm.training
    model.norm_eval = False
    assert model.train().norm.training and not model.eval().norm.training


# ---- other distributions of mmcv

BUILD = """
import warnings
warnings.filterwarnings("error", module="ilm_plugins")
import {order}
import torch
from mmcv.cnn import ConvModule
try:
    from mmcv.runner import BaseModule
except ImportError:
    from mmengine.model import BaseModule

for key, layer in ilm_plugins.NORMS.items():
    module = ConvModule(3, 64, 1, norm_cfg=dict(type=key))
    assert type(module.gn) is layer and module(torch.randn(2, 3, 4, 4)).isfinite().all()

class Backbone(BaseModule):
    norm_eval = True

backbone = Backbone()
backbone.norm = ilm_plugins.SwitchNorm(8)
assert not backbone.train().norm.training and backbone.training
print(mmcv.__file__)
"""


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
    for order in ("ilm_plugins, mmcv.cnn", "mmcv.cnn, ilm_plugins"):
        code = BUILD.format(order=order)
        done = fresh.run([sys.executable, "-c", code], env=environment, check=True)
        assert done.stdout.startswith(str(tmp_path))
