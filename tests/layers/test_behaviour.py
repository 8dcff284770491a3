"""What users rely on in any norm layer: dtypes, layouts, shapes, empty batches, copies."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import ilm_plugins
from cases import (
    CASES,
    CHANNELS,
    INDEPENDENT,
    MIXTURES,
    every_backend,
    every_layer,
    inputs,
    modes,
    needs_kernels,
    randomized,
)
from ilm_plugins import NORMS, ILMGroupNorm, use_backend
from ilm_plugins.layers.autoencoder import AutoencoderNorm
from ilm_plugins.layers.base import AdaptiveNorm

C = 64
half_precisions = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def build(name, channels=C, **options):
    return NORMS[name](channels, **options)


@every_layer
def test_freezing_holds_every_tensor_of_the_layers_and_no_other(name):
    model = nn.Sequential(nn.Conv2d(3, C, 1), randomized(lambda: build(name), torch.float32))
    layer = model[1]
    x = inputs(2, 3, 4, 4, dtype=torch.float32)
    expected = model.eval()(x)
    state = copy.deepcopy(layer.state_dict())
    assert ilm_plugins.freeze(model) is model
    y = model.train()(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert all(p.grad is None for p in layer.parameters()) and model[0].weight.grad is not None
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)
    ilm_plugins.freeze(layer, False)
    model(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert name not in MIXTURES or not torch.equal(layer.running_mean, state["running_mean"])


@every_layer
def test_autocast_changes_no_gradient(name):
    grads = []
    for enabled in (False, True):
        layer = randomized(lambda: build(name), torch.float32)
        x = inputs(2, C, 4, 4, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = layer(x).square().sum()
        loss.backward()
        grads.append([x.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@every_layer
@half_precisions
def test_half_precision_computes_statistics_in_float32(name, dtype):
    layer, x = build(name), 300 * inputs(2, C, 16, 16, dtype=torch.float32)
    x = x.to(dtype)  # squares overflow float16
    if isinstance(layer, AutoencoderNorm):
        # What is decoded of variances of 300^2 would be as large, and so would its rounding.
        layer.encode.weight.data /= 300**2
    half, full = layer(x), layer(x.float())
    assert half.dtype == dtype
    # Statistics summed in another order may round otherwise, by some bits of float32.
    rounding = 16 * 2**-24 * full.abs().max().item()
    torch.testing.assert_close(half.float(), full, rtol=torch.finfo(dtype).eps / 2, atol=rounding)
    converted = copy.deepcopy(layer).to(dtype)
    assert converted(x).isfinite().all()
    x.requires_grad_()
    converted(x).sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


@every_layer
@half_precisions
def test_autocast_changes_nothing_but_what_comes_in(name, dtype):
    layer, x = build(name).eval(), inputs(2, C, 4, 4, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        actual = layer(x)
        half = layer(x.to(dtype))
        convolved = layer(nn.functional.conv2d(x, torch.ones(C, 1, 1, 1), groups=C))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert half.dtype == dtype and convolved.dtype == dtype


class ByMatrix(AdaptiveNorm, nn.GroupNorm):
    """A layer whose rescale takes a matrix product, which autocast would compute in bfloat16."""

    def __init__(self, num_channels):
        super().__init__(1, num_channels)
        self.moment_groups = num_channels

    def rescale_tensors(self):
        return self.weight, self.bias

    def rescale(self, mean, var, weight, bias):
        mixed = mean @ torch.full((len(weight), len(weight)), 1 / 3)
        return weight + mixed, bias + mixed


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("size", [4, 1])
def test_autocast_changes_nothing_in_layers_of_others(size, backend):
    layer, x = ByMatrix(C), inputs(2, C, size, size, dtype=torch.float32)
    with use_backend(backend):
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_a_device_that_autocast_does_not_know(monkeypatch):
    def unknown(device_type):
        raise RuntimeError(f"unknown device type for autocast {device_type}")

    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device_type: False)
    monkeypatch.setattr(torch, "is_autocast_enabled", unknown)
    x = inputs(2, C, 4, 4, dtype=torch.float32).requires_grad_()
    ByMatrix(C)(x).sum().backward()
    assert x.grad.isfinite().all()


@every_layer
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_output_may_be_changed_in_place(name, dtype, layout):
    layer, x = build(name), inputs(2, C, 4, 4, dtype=dtype).to(memory_format=layout)
    found = []
    for relu in (torch.relu, torch.relu_):
        layer.zero_grad()
        relu(layer(x)).sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@modes(NORMS)
@pytest.mark.parametrize("shape", [(0, C), (0, C, 7, 7), (2, C, 0, 3)], ids=str)
def test_empty_input_gives_zero_gradients_to_every_parameter(name, shape, training):
    layer = build(name).train(training)
    state = {n: b.clone() for n, b in layer.state_dict().items()}
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    for parameter in layer.parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all()
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)


@modes(NORMS)
def test_one_pixel_and_constant_maps_stay_finite(name, training):
    layer = build(name).train(training)
    for x in (torch.randn(1, C, 1, 1), torch.full((2, C, 4, 4), 1e4), torch.zeros(1, C)):
        x.requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()


@modes(NORMS)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "trained"])
def test_large_means_cost_no_more_accuracy_than_in_group_norm(name, fresh, training):
    x = 1000 + torch.randn(4, C, 16, 16, generator=torch.Generator().manual_seed(0))
    layer = build(name) if fresh else randomized(lambda: build(name), torch.float32)
    if name in MIXTURES:
        layer.running_mean.fill_(1000)
    if name == "EN" and not fresh:
        # Normally distributed weights would multiply the rounding of x itself by hundreds.
        for module in (layer.reduce, layer.expand):
            module.reset_parameters()
        for parameter in layer.ratio.parameters():
            torch.nn.init.uniform_(parameter, -1 / 150**0.5, 1 / 150**0.5)
    layer.train(training)
    error = (layer(x) - copy.deepcopy(layer).double()(x.double())).abs().max()
    groups = {"ILMIN": C, "ILMLN": 1}.get(name, 32)
    plain = nn.functional.group_norm(x, groups)
    plain_error = (plain - nn.functional.group_norm(x.double(), groups)).abs().max()
    assert error <= 10 * plain_error


@pytest.mark.parametrize("channels", [64, 2048])
@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_kernels), "reference"])
def test_instances_do_not_depend_on_their_batch(name, channels, backend, layout):
    layer, x = build(name, channels), 1000 + inputs(21, channels, 7, 7, dtype=torch.float32)
    x = x.to(memory_format=layout)
    with use_backend(backend):
        together = layer(x)
        apart = torch.cat([layer(instance) for instance in x.split(1)])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("instances", [2, 3, 5, 7])
@pytest.mark.parametrize("channels, hidden", [(6, 5), (12, 16), (100, None)])
def test_instances_do_not_depend_on_their_batch_whatever_is_hidden(channels, hidden, instances):
    layer = ILMGroupNorm(channels, 2, key_group_size=1, hidden=hidden)
    x = inputs(instances, channels, 3, 3, dtype=torch.float32)
    with use_backend("reference"):
        assert torch.equal(layer(x), torch.cat([layer(instance) for instance in x.split(1)]))


@pytest.mark.parametrize("name", [*NORMS, "EN-without-BN", "EN-mlp"])
def test_copies_and_state_dicts(name):
    make = CASES[name][0]
    layer = randomized(make).eval()
    x = inputs(2, CHANNELS, 3, 3)
    expected = layer(x)
    loaded = make().double().eval()
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        assert repr(other) == repr(layer)


@every_backend
@pytest.mark.parametrize("name", ["EN", "SN"])
def test_a_pass_in_evaluation_keeps_its_statistics_for_its_gradients(name, backend):
    """Training between the two changes the running statistics, not the gradients."""
    x, found = inputs(2, C, 4, 4, dtype=torch.float32).requires_grad_(), []
    for trains_between in (False, True):
        layer = randomized(lambda: build(name), torch.float32)
        with use_backend(backend):
            y = layer.eval()(x)
            if trains_between:
                layer.train()(x + 1)
            found.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@every_backend
def test_means_of_switch_norm_do_not_cancel(backend):
    """Constant channels are the bias, to which neither weight nor ratios of means add anything."""
    for seed in range(4):
        layer = randomized(lambda: build("SN"), torch.float32, seed)
        with use_backend(backend):
            y = layer(torch.full((2, C, 4, 4), 1e4))
        torch.testing.assert_close(y, layer.bias.view(-1, 1, 1).expand_as(y), rtol=0, atol=1e-6)
        y.sum().backward()
        for parameter in (layer.weight, layer.mean_weight):
            assert parameter.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["EN", "SN"])
def test_a_single_value_leaves_the_running_statistics_alone(name):
    layer = build(name)
    before = {n: b.clone() for n, b in layer.named_buffers()}
    assert layer(torch.randn(1, C, 1, 1)).isfinite().all()
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


@modes(NORMS)
@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_only_statistics_of_the_batch_spread_a_nan(name, backend, training, value):
    layer, x = build(name).train(training), torch.randn(3, C, 4, 4)
    x[1, 0, 0, 0] = value
    x.requires_grad_()
    with use_backend(backend):
        y = layer(x)
        y[0].sum().backward()
    spreads = training and name in MIXTURES
    expected = [False] * 3 if spreads else [True, False, True]
    assert [bool(instance.isfinite().all()) for instance in y] == expected
    assert [bool(instance.isfinite().all()) for instance in x.grad] == expected
    for key, buffer in layer.named_buffers():
        assert bool(buffer.isfinite().all()) != (spreads and key.startswith("running"))


@every_layer
@pytest.mark.parametrize("mode", ["default", "identity"])
def test_layers_made_on_the_meta_device_can_be_initialized_later(name, mode):
    options = {} if name in MIXTURES else {"init": mode}
    layer = NORMS[name](512, device="meta", **options).to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(123)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    expected = NORMS[name](512, **options).state_dict()
    for (key, value), fresh in zip(layer.state_dict().items(), expected.values(), strict=True):
        if (fresh == fresh.flatten()[0]).all():  # a constant; the others are random
            torch.testing.assert_close(value, fresh, msg=key)
        else:
            assert value.std().item() == pytest.approx(fresh.std().item(), rel=0.5), key


@every_layer
def test_is_a_group_norm_whose_extra_parameters_sit_in_child_modules(name):
    layer = build(name)
    assert isinstance(layer, nn.GroupNorm) and layer.num_channels == C
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in layer.modules())
    # MMEngine's initializers look at the names of direct bases alone.
    assert nn.GroupNorm in NORMS[name].__bases__
    own = {n for n, _ in layer.named_parameters(recurse=False)}
    assert own == {"weight", "bias"} | (
        {"mean_weight", "var_weight"} if name in ("SN", "SSN") else set()
    )
