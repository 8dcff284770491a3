"""The checks that torch's test suite makes of every module, on nn.GroupNorm as the control as well.

By its names: test_forward, test_grad, test_gradgrad, test_non_contiguous_tensors,
test_memory_format, test_factory_kwargs, test_device_ctx_init, test_to, test_to_empty, test_repr,
test_pickle, test_save_load, test_if_train_and_eval_modes_differ, test_cpu_gpu_parity.
"""

import copy
import inspect
import io
import itertools
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cases import CASES, CHANNELS, inputs, randomized
from ilm_plugins import NORMS, ILMGroupNorm, ILMInstanceNorm

torchvision = pytest.importorskip("torchvision", reason="needs torchvision")


class ModuleInfo(NamedTuple):
    """How to build a module, and what it computes."""

    make: Callable[..., nn.Module]
    reference: Callable[[nn.Module, torch.Tensor], torch.Tensor]

    @property
    def cls(self):
        return self.make.func


def by_group_norm(layer, x):
    groups = x.reshape(x.shape[0], layer.num_groups, -1)
    var, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
    y = ((groups - mean) / (var + layer.eps).sqrt()).view_as(x)
    weight, bias = (t.view(-1, *(1,) * (x.dim() - 2)) for t in (layer.weight, layer.bias))
    return y * weight + bias


MODULES = {"GroupNorm": ModuleInfo(partial(nn.GroupNorm, 4, CHANNELS), by_group_norm)}
for name in NORMS:
    make, reference = CASES[name]
    MODULES[name] = ModuleInfo(make, reference)

SHAPES = [(2, CHANNELS), (2, CHANNELS, 5), (2, CHANNELS, 3, 4), (1, CHANNELS, 2, 3, 2)]
every_module = pytest.mark.parametrize("info", MODULES.values(), ids=MODULES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}-D")
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
DEVICES = ["cpu", "meta"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def build(info, dtype=torch.float64, training=True):
    return randomized(info.make, dtype).train(training)


def run(module, x, seed=5):
    """The output, and the gradients of x and of the parameters."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = module(x)
    dy = inputs(*x.shape, seed=seed).to(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]


@every_module
@every_shape
@modes
def test_forward(info, shape, training):
    module, x = build(info, training=training), inputs(*shape)
    torch.testing.assert_close(module(x), info.reference(module, x), rtol=1e-9, atol=1e-9)


@every_module
@modes
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_grad_and_gradgrad(info, training, check):
    module = build(info, training=training)
    buffers = {n: b.clone() for n, b in module.named_buffers()}
    names = [n for n, _ in module.named_parameters()]

    def function(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        state |= {n: b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(module, state, (x,))

    parameters = (p.detach().requires_grad_() for p in module.parameters())
    assert check(function, (inputs(2, CHANNELS, 2).requires_grad_(), *parameters))


def noncontiguous(x):
    """The same values, with a stride of two or more everywhere."""
    return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]


@every_module
@every_shape
@modes
def test_non_contiguous_tensors(info, shape, training):
    module, x = build(info, training=training), inputs(*shape)
    dy, found = inputs(*shape, seed=3), []
    strided = copy.deepcopy(module)
    for parameter in strided.parameters():
        parameter.data = noncontiguous(parameter.data)
    for target, of_x, of_dy in itertools.product(
        (module, strided), (x, noncontiguous(x)), (dy, noncontiguous(dy))
    ):
        of_x = of_x.detach().requires_grad_()
        twin = copy.deepcopy(target)
        y = twin(of_x)
        found.append([y, *torch.autograd.grad(y, [of_x, *twin.parameters()], of_dy)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


@every_module
@modes
@pytest.mark.parametrize(
    "layout, shape",
    [(torch.channels_last, (2, CHANNELS, 3, 4)), (torch.channels_last_3d, (2, CHANNELS, 2, 3, 4))],
    ids=["2-D", "3-D"],
)
def test_memory_format(info, training, layout, shape):
    """Of the input, of the parameters (``module.to(memory_format=...)``) and of the gradient."""
    module, x = build(info, training=training), inputs(*shape)
    expected = run(copy.deepcopy(module), x)
    converted = copy.deepcopy(module).to(memory_format=layout)
    y, *gradients = run(converted, x.to(memory_format=layout))
    torch.testing.assert_close([y, *gradients], expected, rtol=1e-9, atol=1e-9)
    assert y.is_contiguous(memory_format=layout)


@every_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_factory_kwargs(info, dtype):
    assert {"device", "dtype"} <= set(inspect.signature(info.cls.__init__).parameters)
    for device in DEVICES:
        module = info.make(device=device, dtype=dtype)
        tensors = [*module.parameters(), *module.buffers()]
        assert {t.device.type for t in tensors} == {device}
        assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}


@every_module
def test_device_ctx_init(info):
    with torch.device("meta"):
        module = info.make()
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    assert not any(t.is_meta for t in info.make().state_dict().values())


@every_module
@pytest.mark.parametrize("swap", [False, True], ids=["data", "swap"])
def test_to(info, swap):
    """Moves of dtype and device keep which parameters are trained, and the gradients."""
    module = build(info)
    module.bias.requires_grad_(False)
    module(inputs(2, CHANNELS, 3)).sum().backward()
    gradient = module.weight.grad.clone()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert module.to(dtype) is module
            assert {p.dtype for p in module.parameters()} == {dtype}
            assert module.weight.grad.dtype == dtype
            x = inputs(2, CHANNELS, 3).to(dtype)
            assert module(x).dtype == dtype
        torch.testing.assert_close(module.weight.grad, gradient, rtol=1e-2, atol=1e-2)
        assert not module.bias.requires_grad and module.weight.requires_grad
        assert {p.device.type for p in copy.deepcopy(module).to("meta").parameters()} == {"meta"}
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@every_module
def test_to_empty(info):
    state = build(info).state_dict()
    module = info.make(device="meta", dtype=torch.float64).to_empty(device="cpu")
    module.load_state_dict(state)
    x = inputs(2, CHANNELS, 3)
    torch.testing.assert_close(module(x), build(info)(x), rtol=0, atol=0)
    assigned = info.make(device="meta", dtype=torch.float64)
    assigned.load_state_dict(state, assign=True)
    torch.testing.assert_close(assigned(x), build(info)(x), rtol=0, atol=0)


@every_module
def test_repr(info):
    module = info.make()
    assert str(CHANNELS) in repr(module) and repr(module).startswith(info.cls.__name__)
    assert repr(module) == module.__repr__() == str(copy.deepcopy(module))


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_state(info, module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = info.make().double()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@every_module
@modes
@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch, by_state])
def test_pickle_and_save_load(info, training, copied):
    module, x = build(info, training=training), inputs(2, CHANNELS, 3)
    other = (copied(info, module) if copied is by_state else copied(module)).train(training)
    torch.testing.assert_close(run(other, x), run(module, x), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)


@every_module
def test_if_train_and_eval_modes_differ(info):
    """Where there are running statistics, and only there."""
    module, x = build(info), inputs(2, CHANNELS, 3)
    same = torch.equal(copy.deepcopy(module).train()(x), copy.deepcopy(module).eval()(x))
    assert same == (getattr(module, "running_mean", None) is None)


@every_module
@needs_gpu
@modes
def test_cpu_gpu_parity(info, training):
    module, x = build(info, torch.float32, training), inputs(2, CHANNELS, 3, 4).float()
    moved = copy.deepcopy(module).cuda()
    found = [t.cpu() for t in run(moved, x.cuda())]
    torch.testing.assert_close(found, run(module, x), rtol=1e-3, atol=1e-3)
    back = [t for t in moved.cpu().state_dict().values()]
    torch.testing.assert_close(back, list(module.state_dict().values()), rtol=1e-4, atol=1e-4)


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
    return ILMGroupNorm(channels, math.gcd(32, channels), key_group_size=math.gcd(16, channels))


TORCHVISION = {
    "resnet18": lambda models, norm: models.resnet18(norm_layer=norm),
    "resnext50": lambda models, norm: models.resnext50_32x4d(norm_layer=norm),
    "mobilenet_v2": lambda models, norm: models.mobilenet_v2(norm_layer=norm),
    "mobilenet_v3": lambda models, norm: models.mobilenet_v3_small(norm_layer=norm),
    "efficientnet_b0": lambda models, norm: models.efficientnet_b0(norm_layer=norm),
    "regnet": lambda models, norm: models.regnet_y_400mf(norm_layer=norm),
    "fpn": lambda models, norm: models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=norm
    ),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    plain = TORCHVISION[name](torchvision.models, nn.BatchNorm2d)
    model = TORCHVISION[name](torchvision.models, fitting)
    assert trains(model) == count(plain) and count(model) == 0


@pytest.mark.parametrize("name", NORMS)
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
EVERYDAY = ("resnet18", "convnext_atto", "efficientnet_b0", "regnetx_002")


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
