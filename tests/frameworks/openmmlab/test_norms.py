"""The keys in mmcv's registries: of OneDL's and upstream's mmcv 2.x, and of mmcv 1.x."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv", reason="needs OpenMMLab: make install-openmmlab")

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import (
    BaseModule,
    convert_sync_batchnorm,
    initialize,
    revert_sync_batchnorm,
)
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, Registry
from torch import nn

import fresh
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SwitchNorm, surgery
from ilm_plugins.frameworks.openmmlab import norms
from ilm_plugins.layers.options import automatic

WITH_RUNNING_STATISTICS = "EN", "SN", "SSN"


@pytest.mark.parametrize("key", NORMS)
def test_a_norm_cfg_builds_the_layer(key):
    name, layer = build_norm_layer({"type": key}, 64, postfix=2)
    assert type(layer) is NORMS[key] and layer.num_channels == 64 and layer.eps == 1e-5
    assert name == "gn2", "weights of GroupNorm models keep their names"


def test_options_reach_the_layer():
    cfg = {"type": "EN", "reduction": 16, "eps": 1e-3, "requires_grad": False}
    _, layer = build_norm_layer(cfg, 64)
    assert layer.reduction == 16 and layer.eps == 1e-3
    assert not any(p.requires_grad for p in layer.parameters())


def test_a_conv_module_uses_it():
    module = ConvModule(3, 32, 3, norm_cfg={"type": "ILMGN", "key_group_size": 8})
    assert isinstance(module.norm, ILMGroupNorm) and module.conv.bias is None
    assert module(torch.randn(2, 3, 5, 5)).shape == (2, 32, 3, 3)


@pytest.mark.parametrize("key", ["ILMGN", "AN"])
def test_groupnorm_weights_load_by_name(key):
    plain = ConvModule(3, 32, 3, norm_cfg={"type": "GN", "num_groups": 4})
    ours = ConvModule(3, 32, 3, norm_cfg={"type": key, "num_groups": 4, "init": "identity"})
    ours.init_weights()  # it sets a norm's weight to 1 and its bias to 0
    nn.init.normal_(plain.norm.weight)
    missing, unexpected = ours.load_state_dict(plain.state_dict(), strict=False)
    own = ours.norm.state_dict().keys() - {"weight", "bias"}
    assert sorted(missing) == sorted(f"gn.{name}" for name in own) and not unexpected
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-6, atol=2e-6)


def test_a_converted_norm_is_not_fused_with_its_convolution():
    bn = {"type": "BN"}
    module = ConvModule(3, 32, 3, norm_cfg=bn, efficient_conv_bn_eval=True).eval()
    plain = copy.deepcopy(module.conv)
    for key in ("SN", "EN"):
        surgery.convert(model := copy.deepcopy(module), key)
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(x), model.norm(plain(x)).relu(), rtol=0, atol=0)


def test_registering_again_changes_nothing():
    before = dict(MODELS.module_dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms.install_import_hooks()
        norms.register(MODELS)
    assert MODELS.module_dict == before


def test_imported_anew_its_new_classes_are_built():
    code = """
    import sys
    import mmcv.cnn, mmengine.runner
    import ilm_plugins

    for name in [n for n in sys.modules if n.split(".")[0] == "ilm_plugins"]:
        del sys.modules[name]
    before = ilm_plugins.ExemplarNorm
    import ilm_plugins

    class Backbone(mmengine.model.BaseModule):
        norm_eval = True

        def __init__(self):
            super().__init__()
            self.norm = mmcv.cnn.build_norm_layer({"type": "EN"}, 64)[1]

    norm = Backbone().train().norm
    assert type(norm) is ilm_plugins.ExemplarNorm is not before and not norm.training
    """
    fresh.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_key_that_another_package_took_stays_theirs():
    registry, theirs = Registry("norms"), type("TheirSN", (nn.Module,), {})
    registry.register_module(name="SN", module=theirs)
    with pytest.warns(UserWarning, match=r"has SN \(.*TheirSN\) already, which stays"):
        norms.register(registry)
    assert registry.get("SN") is theirs and registry.get("EN") is ExemplarNorm


class Reloaded:
    """Stands for a layer's class before its module was reloaded."""


def test_a_class_of_the_same_name_is_one_that_was_reloaded():
    registry = Registry("norms")
    Reloaded.__module__, Reloaded.__qualname__ = SwitchNorm.__module__, SwitchNorm.__qualname__
    registry.register_module(name="SN", module=Reloaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms.register(registry)
    assert registry.get("SN") is SwitchNorm


@pytest.mark.parametrize("key", NORMS)
def test_initializers_of_group_norm_reach_the_layer(key):
    layer = NORMS[key](64)
    initialize(layer, {"type": "Constant", "layer": ["GroupNorm"], "val": 3, "bias": 2})
    assert (layer.weight == 3).all() and (layer.bias == 2).all()


@pytest.mark.parametrize("key", NORMS)
def test_initializers_of_other_layers_leave_the_networks_alone(key):
    layer = NORMS[key](64)
    before = copy.deepcopy(layer.state_dict())
    model = nn.Sequential(nn.Conv1d(64, 64, 1), nn.Linear(64, 64), layer)
    initialize(model, {"type": "Constant", "layer": ["Conv1d", "Linear"], "val": 3, "bias": 2})
    assert all((m.weight == 3).all() and (m.bias == 2).all() for m in model[:2])
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("package", ["mmseg", "mmdet"])
@pytest.mark.parametrize("key", NORMS)
def test_a_residual_that_starts_at_zero_leaves_the_networks_alone(key, package):
    """mmseg's and mmdet's ResNets, without init_cfg, set each block's last norm to 0."""
    pytest.importorskip(package, reason="needs OpenMMLab: make install-openmmlab")
    backbones = importlib.import_module(f"{package}.models.backbones")
    cfg = {"type": key, **automatic(NORMS[key])}
    one = {"num_stages": 1, "strides": (1,), "dilations": (1,), "out_indices": (0,)}
    model = backbones.ResNet(18, **one, norm_cfg=cfg)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for block in model.layer1:
        assert not block.norm2.weight.any() and block.norm1.weight.any()
        networks = {n: p for n, p in block.named_parameters() if n.startswith("gn")}
        networks = {n: p for n, p in networks.items() if n.count(".") == 2}
        assert bool(networks) == (key not in ("SN", "SSN"))
        for name, parameter in networks.items():
            full = f"layer1.{[*model.layer1].index(block)}.{name}"
            assert torch.equal(parameter, before[full]), name


@pytest.mark.parametrize("sync", [False, True])
def test_sync_bn_and_its_reversal_leave_the_layers(sync):
    """MMEngine's runner converts by `sync_bn="torch"`; without several processes it reverts."""
    model = nn.Sequential(*(NORMS[key](32, sync=sync) for key in WITH_RUNNING_STATISTICS))
    model.append(nn.BatchNorm2d(32))
    layers, state, x = [*model], copy.deepcopy(model.state_dict()), torch.randn(2, 32, 3, 3)
    expected = copy.deepcopy(model)(x)
    converted = convert_sync_batchnorm(model, "torch")
    assert type(converted[3]) is nn.SyncBatchNorm
    reverted = revert_sync_batchnorm(converted)
    assert isinstance(reverted[3], nn.modules.batchnorm._BatchNorm)
    for before, after in zip(layers[:3], reverted, strict=False):
        assert after is before and after.sync is sync
    torch.testing.assert_close(reverted.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(reverted(x), expected, rtol=0, atol=0)


# ---- freezing and weight decay


def backbone(**options):
    resnet = pytest.importorskip("mmdet.models.backbones", reason="needs mmdet").ResNet
    torch.manual_seed(0)
    return resnet(18, base_channels=16, stem_channels=16, **options)


def optimizer(model, **paramwise):
    cfg = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01}
    return build_optim_wrapper(model, {"optimizer": cfg, "paramwise_cfg": paramwise or None})


def train(model, steps=3):
    wrapper = optimizer(model)
    for _ in range(steps):
        wrapper.update_params(sum(y.square().mean() for y in model(torch.randn(2, 3, 32, 32))))


@pytest.mark.parametrize("key", WITH_RUNNING_STATISTICS)
@pytest.mark.parametrize("frozen_stages, norm_eval", [(1, True), (2, False)])
def test_frozen_stages_and_norm_eval_keep_what_they_should(key, frozen_stages, norm_eval):
    norm_cfg = {"type": key} | ({"reduction": 8} if key == "EN" else {})
    model = backbone(norm_cfg=norm_cfg, frozen_stages=frozen_stages, norm_eval=norm_eval)
    model.train()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NORMS[key])}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    weights = {n: m.weight.clone() for n, m in layers.items()}
    train(model)
    frozen = {"gn1", *(n for n in layers if n.startswith("layer") and int(n[5]) <= frozen_stages)}
    assert len(layers) == 20
    assert {n for n, m in layers.items() if torch.equal(m.weight, weights[n])} == frozen
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, buffers[n])}
    moving = set() if norm_eval else layers.keys() - frozen
    assert {name.rsplit(".", 1)[0] for name in moved} == moving


def test_norm_eval_is_left_again_by_evaluation_and_by_others():
    class Backbone(BaseModule):
        def __init__(self, norm_eval):
            super().__init__()
            self.norm_eval, self.norm = norm_eval, SwitchNorm(8)

    model = BaseModule()
    model.one, model.other = Backbone(True), Backbone(False)
    assert model.train() is model
    assert not model.one.norm.training and model.other.norm.training and model.one.training
    model.eval()
    assert not model.other.norm.training
    model.one.norm_eval = False
    assert model.train().one.norm.training


@pytest.mark.parametrize("key", NORMS)
def test_norm_decay_mult_is_that_of_the_affine_parameters(key):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), NORMS[key](64))
    groups = optimizer(model, norm_decay_mult=0.0).optimizer.param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    free = {n for n, p in model.named_parameters() if decay[id(p)] == 0}
    own = {"1.mean_weight", "1.var_weight"} if key in ("SN", "SSN") else set()
    assert free == {"1.weight", "1.bias"} | own


# ---- other distributions of mmcv

DISTRIBUTIONS = {
    "mmcv 1.x": ["mmcv==1.7.2"],
    "upstream": ["mmcv-lite==2.1.0", "mmengine==0.10.7"],
}


@pytest.fixture(scope="session", params=DISTRIBUTIONS)
def distribution(request):
    """A folder with another distribution of mmcv, kept in the cache between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ilm_plugins"
    packages = DISTRIBUTIONS[request.param]
    if request.param == "mmcv 1.x" and sys.version_info >= (3, 13):
        pytest.skip("the setup.py of mmcv 1.7.2 does not run on Python 3.13 and newer")
    folder = cache / "mmcv" / "-".join(packages)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"),
                *("--no-deps", "--target", str(new), *packages),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            shutil.rmtree(new)
            pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr[-200:]}")
        try:
            new.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(new)
    return folder


def run_with(distribution, code):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:ilm_plugins", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(distribution), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("order", ["import ilm_plugins, mmcv.cnn", "import mmcv.cnn, ilm_plugins"])
@pytest.mark.wide
def test_other_distributions_of_mmcv(distribution, order):
    code = f"""
    {order}
    import importlib, sys
    import torch
    from mmcv.cnn import ConvModule, build_norm_layer
    try:
        from mmcv.runner import BaseModule
    except ImportError:
        from mmengine.model import BaseModule

    assert mmcv.__file__.startswith({str(distribution)!r}), mmcv.__file__
    for key, layer in ilm_plugins.NORMS.items():
        name, built = build_norm_layer(dict(type=key), 64, postfix=1)
        assert (name, type(built)) == ("gn1", layer)
        module = ConvModule(3, 64, 1, norm_cfg=dict(type=key))
        assert type(module.norm) is layer and module(torch.randn(2, 3, 4, 4)).isfinite().all()
    importlib.reload(ilm_plugins)

    class Backbone(BaseModule):
        norm_eval = True

    backbone = Backbone()
    backbone.norm = ilm_plugins.SwitchNorm(8)
    assert not backbone.train().norm.training and backbone.training
    print(mmcv.__version__)
    """
    assert run_with(distribution, code).strip() in ("1.7.2", "2.1.0")
