"""Checks that torch's test suite makes of every module, and models of torchvision and timm.

Under torch's names: test_non_contiguous_tensors, test_factory_kwargs, test_device_ctx_init,
test_to, test_if_train_and_eval_modes_differ, test_cpu_gpu_parity. Its others are
what test_equations.py and test_behaviour.py check.
"""

import copy
import inspect
import itertools
from functools import partial

import pytest
import torch
from torch import nn

from cases import CHANNELS, MAIN, every_layer, inputs, modes, randomized, results
from ilm_plugins import NORMS, ILMGroupNorm, ILMInstanceNorm

torchvision = pytest.importorskip("torchvision", reason="needs torchvision")

SHAPES = [(2, CHANNELS), (2, CHANNELS, 3, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}-D")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def build(name, dtype=torch.float64, training=True):
    return randomized(MAIN[name], dtype).train(training)


def noncontiguous(x):
    """The same values, with a stride of two or more everywhere."""
    return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]


@modes(MAIN)
@every_shape
def test_non_contiguous_tensors(name, shape, training):
    module, x = build(name, training=training), inputs(*shape)
    dy, found = inputs(*shape, seed=3), []
    strided = copy.deepcopy(module)
    for parameter in strided.parameters():
        parameter.data = noncontiguous(parameter.data)
    for target, of_x, of_dy in itertools.product(
        (module, strided), (x, noncontiguous(x)), (dy, noncontiguous(dy))
    ):
        found.append(results(copy.deepcopy(target), of_x, of_dy))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_factory_kwargs(name, dtype):
    assert {"device", "dtype"} <= set(inspect.signature(NORMS[name].__init__).parameters)
    for device in ("cpu", "meta"):
        module = MAIN[name](device=device, dtype=dtype)
        x = torch.zeros(2, CHANNELS, 3, device=device, dtype=dtype)
        assert module(x).shape == x.shape
        tensors = [*module.parameters(), *module.buffers()]
        assert {t.device.type for t in tensors} == {device}
        assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}


@every_layer
def test_device_ctx_init(name):
    with torch.device("meta"):
        module = MAIN[name]()
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    assert not any(t.is_meta for t in MAIN[name]().state_dict().values())


@every_layer
def test_to(name):
    """Moves of dtype and device keep which parameters are trained, and the gradients."""
    module = build(name)
    module.bias.requires_grad_(False)
    module(inputs(2, CHANNELS, 3)).sum().backward()
    gradient = module.weight.grad.clone()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert module.to(dtype) is module
        assert {p.dtype for p in module.parameters()} == {dtype}
        assert module.weight.grad.dtype == dtype
        x = inputs(2, CHANNELS, 3).to(dtype)
        assert module(x).dtype == dtype
    torch.testing.assert_close(module.weight.grad, gradient, rtol=1e-2, atol=1e-2)
    assert not module.bias.requires_grad and module.weight.requires_grad
    assert {p.device.type for p in copy.deepcopy(module).to("meta").parameters()} == {"meta"}


@every_layer
def test_if_train_and_eval_modes_differ(name):
    """Where there are running statistics, and only there."""
    module, x = build(name), inputs(2, CHANNELS, 3)
    same = torch.equal(copy.deepcopy(module).train()(x), copy.deepcopy(module).eval()(x))
    assert same == (getattr(module, "running_mean", None) is None)


@modes(MAIN)
@needs_gpu
def test_cpu_gpu_parity(name, training):
    module = build(name, torch.float32, training)
    x, dy = (inputs(2, CHANNELS, 3, 4, dtype=torch.float32, seed=seed) for seed in (1, 5))
    moved = copy.deepcopy(module).cuda()
    found = [t.cpu() for t in results(moved, x.cuda(), dy.cuda())]
    torch.testing.assert_close(found, results(module, x, dy), rtol=1e-3, atol=1e-3)
    states = (dict(m.state_dict()) for m in (moved.cpu(), module))
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


# ---- models of other packages


def trains(model, size=64):
    """One step on a tiny batch; the number of our layers in it."""
    found = model(torch.randn(2, 3, size, size))
    outputs = found.values() if isinstance(found, dict) else [found]
    sum(y.square().mean() for y in outputs).backward()
    ours = [m for m in model.modules() if isinstance(m, tuple(NORMS.values()))]
    for layer in ours:
        if layer.weight.requires_grad:  # a backbone's first stages may be frozen
            assert layer.weight.grad.isfinite().all()
    assert any(layer.weight.grad is not None for layer in ours)
    return len(ours)


def count(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def fitting(channels):
    """ILM+GN for any number of channels, as in docs/interoperability.md."""
    return ILMGroupNorm(channels, "auto", key_group_size="auto")


EVERYDAY = "mobilenet_v3", "fpn", "seresnet18", "convnext_atto", "efficientnet_b0", "regnetx_002"
models = torchvision.models
TORCHVISION = {
    "resnet18": models.resnet18,
    "resnext50": models.resnext50_32x4d,
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3": models.mobilenet_v3_small,
    "efficientnet_b0": models.efficientnet_b0,
    "regnet": models.regnet_y_400mf,
    "fpn": partial(
        models.detection.backbone_utils.resnet_fpn_backbone, backbone_name="resnet18", weights=None
    ),
}


@pytest.mark.parametrize(
    "name",
    [n if n in EVERYDAY else pytest.param(n, marks=pytest.mark.long) for n in TORCHVISION],
)
def test_torchvision(name):
    plain, model = (TORCHVISION[name](norm_layer=norm) for norm in (nn.BatchNorm2d, fitting))
    assert trains(model) == count(plain) and count(model) == 0


@pytest.mark.parametrize("name", ["ILMGN", "EN", "AN"])
def test_torchvision_by_the_class_alone(name):
    assert trains(torchvision.models.resnet18(norm_layer=NORMS[name])) == 20


def norm_act(channels, apply_act=True, act_layer=nn.ReLU, **_):
    """What timm's families of a joined norm and activation take, as in docs/interoperability.md."""
    norm = fitting(channels)
    return nn.Sequential(norm, act_layer()) if apply_act and act_layer else norm


TIMM = {
    "resnet18": ILMGroupNorm,
    "seresnet18": ILMInstanceNorm,
    "resnest14d": ILMGroupNorm,
    "convnext_atto": lambda channels, **_: fitting(channels),
    "efficientnet_b0": norm_act,
    "mobilenetv2_100": norm_act,
    "regnetx_002": norm_act,
    "densenet121": norm_act,
    "resnetv2_50": norm_act,
    "mixnet_s": norm_act,
    "gernet_s": norm_act,
}


@pytest.mark.parametrize(
    "name", [n if n in EVERYDAY else pytest.param(n, marks=pytest.mark.long) for n in TIMM]
)
def test_timm(name):
    timm = pytest.importorskip("timm", reason="needs timm")
    model = timm.create_model(name, norm_layer=TIMM[name], num_classes=3)
    assert trains(model) > 0 and count(model) == 0


def test_torchvisions_feature_extractor_with_the_layers_as_leaves():
    from torchvision.models.feature_extraction import create_feature_extractor

    model = torchvision.models.resnet18(norm_layer=NORMS["ILMGN"]).eval()
    leaves = {"leaf_modules": [*NORMS.values()]}
    extract = create_feature_extractor(model, ["layer1"], tracer_kwargs=leaves)
    x = torch.randn(2, 3, 32, 32)
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
    torch.testing.assert_close(extract(x)["layer1"], stem(x))
