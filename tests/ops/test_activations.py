"""Layers that apply an activation in the kernels' own passes."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from benchmarks.measure import saved_bytes
from equations import cases
from equations.cases import (
    CASES,
    CHANNELS,
    FUSED,
    PATHS,
    channels_last,
    every_backend,
    inputs,
    layouts,
    randomized,
)
from helpers.close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops import coarsen
from ilm_plugins.ops.engine import backends, plain
from ilm_plugins.ops.engine.activation import Activation

RELU, SILU = Activation("relu"), Activation("silu")
of_each = pytest.mark.parametrize("activation", FUSED, ids=lambda a: a.name)
of_each_path = pytest.mark.parametrize("name", PATHS)


def fused(layer, activation):
    """A copy of a layer that applies an activation."""
    twin = copy.deepcopy(layer)
    twin.fused_activation = activation
    return twin


class Composed(nn.Module):
    """A layer and an activation, one after the other."""

    def __init__(self, layer, activation):
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x):
        return self.activation(self.layer(x))


def assert_equal_to_the_composition(layer, activation, x, backend=None):
    """Compare all results and buffers in float64, for each instruction set."""
    dy = inputs(*x.shape, seed=5)
    composed = Composed(copy.deepcopy(layer), activation)
    expected = cases.results(composed, x, dy, "reference")
    for instructions in cases.INSTRUCTION_SETS:
        own = fused(layer, activation)
        with cases.compiled_for(instructions):
            assert_close(cases.results(own, x, dy, backend), expected, 10 * EQUAL)
        assert_close(dict(own.named_buffers()), dict(composed.layer.named_buffers()))


# ---- equal to the composition


@layouts
@of_each
@of_each_path
def test_a_fused_activation_equals_the_composition(name, activation, layout):
    """Maps of whole vectors and a rest, in one block and in several."""
    for shape in ((3, CHANNELS, 5, 7), (2, CHANNELS, 17, 31), (1, CHANNELS, 8200)):
        layer = randomized(CASES[name][0])
        assert_equal_to_the_composition(layer, activation, layout(inputs(*shape)))


@every_backend
@pytest.mark.parametrize("name", cases.WITH_RUNNING)
def test_with_running_statistics_it_does_too(name, backend):
    layer, shape = randomized(CASES[name][0]).eval(), (3, CHANNELS, 5, 7)
    for activation in (RELU, SILU):
        assert_equal_to_the_composition(layer, activation, inputs(*shape), backend)


@of_each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fused_kernels_are_as_exact_as_their_dtype(dtype, activation):
    layer = fused(randomized(CASES["ILMGN"][0], torch.float32), activation)
    x, dy = (inputs(2, CHANNELS, 17, 19, dtype=dtype, seed=seed) for seed in (1, 5))
    for layout in (torch.Tensor.contiguous, cases.channels_last):
        clear = cases.without_jumps(layer, layout(x), dy)
        cases.assert_exact(layer, layout(x), clear, cases.KERNELS)


@of_each_path
def test_second_derivatives_are_those_of_the_first(name):
    layer = fused(randomized(CASES[name][0]), SILU)
    variables = [inputs(2, CHANNELS, 2).requires_grad_(), *layer.parameters()]
    names, buffers = [n for n, _ in layer.named_parameters()], dict(layer.named_buffers())

    def function(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        copies = {n: b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(layer, (state, copies), x)

    assert torch.autograd.gradgradcheck(function, variables, fast_mode=True)


class OfItsOwn(NORMS["ILMGN"]):
    """Another equation, which kernels do not compute."""

    def rescale(self, mean, var, *tensors):
        scale, shift = super().rescale(mean, var, *tensors)
        return 2 * scale, shift + coarsen(mean, var, 1)[0]


@of_each
def test_layers_without_kernels_for_their_network_apply_it_too(activation, monkeypatch):
    layer = randomized(lambda: OfItsOwn(CHANNELS, 4, key_group_size=3))
    assert_equal_to_the_composition(layer, activation, inputs(3, CHANNELS, 5, 7))
    monkeypatch.setattr(backends, "_find_cpu", lambda x: plain)
    assert_equal_to_the_composition(layer, activation, inputs(3, CHANNELS, 5, 7))


@every_backend
@pytest.mark.parametrize(
    "shape", [(3, CHANNELS), (0, CHANNELS, 3, 3), (3, CHANNELS, 1, 1)], ids=str
)
def test_maps_of_one_value_and_of_none_have_the_activation(shape, backend):
    layer = randomized(CASES["ILMGN"][0])
    assert_equal_to_the_composition(layer, RELU, inputs(*shape), backend)


def test_under_autocast_it_does_what_the_composition_does():
    layer, x = randomized(CASES["ILMGN"][0], torch.float32), inputs(2, CHANNELS, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = (f(x) for f in (fused(layer, RELU), Composed(layer, RELU)))
    assert actual.dtype == expected.dtype
    assert_close(actual.float(), expected.float(), 2**16)


# ---- values


@cases.needs_kernels
@of_each
@pytest.mark.parametrize("length", [3, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_zeros_infinite_values_and_nan_are_what_torch_makes_of_them(dtype, length, activation):
    values = torch.tensor(
        [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 6, -3, 3, 100, -100, -1e-30, 1e-30]
    )
    layer, x = (
        randomized(CASES["ILMGN"][0], dtype=torch.promote_types(dtype, torch.float32)),
        inputs(2, CHANNELS, length),
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias.copy_(values)
    for instructions in cases.INSTRUCTION_SETS:
        for layout in (torch.Tensor.contiguous, cases.channels_last):
            given = layout(x.to(dtype))
            with cases.compiled_for(instructions):
                actual, expected = (
                    f(given) for f in (fused(layer, activation), Composed(layer, activation))
                )
            assert torch.equal(actual.isnan(), expected.isnan())
            known = ~expected.isnan()
            assert torch.equal(actual[known].signbit(), expected[known].signbit())
            # bfloat16's composition rounds twice.
            rounding = 16 * torch.finfo(dtype).eps
            assert torch.allclose(actual, expected, rounding, rounding, equal_nan=True)


CORNERS = torch.tensor([-3.0, 0.0, 3.0, 6.0], dtype=torch.float64)
#: Each corner, and the nearest numbers below and above it: a value for each channel.
AT_CORNERS = torch.cat([CORNERS, *(CORNERS.nextafter(CORNERS + d) for d in (-1, 1))])


@of_each
def test_at_its_corners_an_activation_has_torchs_value_and_slope(activation):
    """In whole vectors, and in the remaining values of a row."""
    layer = randomized(CASES["ILMGN"][0])
    layer.bias.data = AT_CORNERS  # which is what the layer makes of a map of zeros
    for length, layout in itertools.product((3, 19), (torch.Tensor.contiguous, channels_last)):
        x = layout(torch.zeros(2, CHANNELS, length, dtype=torch.float64))
        assert_equal(copy.deepcopy(layer)(x), AT_CORNERS.view(-1, 1).expand_as(x))
        assert_equal_to_the_composition(layer, activation, x)


@cases.needs_kernels
@pytest.mark.parametrize("name", ["relu", "relu6", "hardswish"])
@pytest.mark.parametrize("dy", [torch.inf, torch.nan])
def test_where_the_slope_is_0_no_gradient_passes(dy, name):
    layer = fused(randomized(CASES["ILMGN"][0]), Activation(name))
    x = inputs(2, CHANNELS, 67)
    gradient = torch.zeros_like(x).masked_fill(layer(x) == 0, dy)
    assert gradient.isnan().any() or gradient.isinf().any()
    assert not any(t.any() for t in cases.results(layer, x, gradient)[1:])


# ---- what is kept, changed and copied


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@of_each_path
def test_nothing_beside_x_is_saved_for_an_activation(name, layout):
    layer = randomized(CASES[name][0], torch.float32)
    x = inputs(2, CHANNELS, 64, 64).float().to(memory_format=layout).requires_grad_()
    alone = saved_bytes(layer, layer, x)
    for activation in FUSED:
        own = fused(layer, activation)
        assert saved_bytes(own, own, x) <= alone + 2 * 4 * 2 * CHANNELS


def test_a_change_of_the_output_is_allowed():
    """Unlike torch's ReLU, the backward pass reads nothing that could change."""
    layer = fused(randomized(CASES["ILMGN"][0]), RELU)
    layer(inputs(2, CHANNELS, 5, 7).requires_grad_()).mul_(2).sum().backward()


@pytest.mark.parametrize("needed", ["x", "parameters"])
def test_only_gradients_that_are_needed_are_computed(needed):
    layer = fused(randomized(CASES["ILMGN"][0]), RELU)
    x, dy = inputs(2, CHANNELS, 5, 7), inputs(2, CHANNELS, 5, 7, seed=5)
    _, *expected = cases.results(layer, x, dy)
    of = {"x": [x], "parameters": [*layer.parameters()]}
    layer.requires_grad_(needed == "parameters")
    for tensor in of[needed]:
        tensor.requires_grad_()
    found = torch.autograd.grad(layer(x), of[needed], dy)
    wanted = {"x": expected[:1], "parameters": expected[1:]}
    assert_equal([*found], [*wanted[needed]])


def test_a_layer_that_has_run_applies_what_is_set_later():
    layer, x = randomized(CASES["ILMGN"][0]), inputs(2, CHANNELS, 5, 7)
    plain_output = layer(x)
    for activation in (RELU, SILU, None):
        layer.fused_activation = activation
        expected = plain_output if activation is None else activation(plain_output)
        assert_close(layer(x), expected)


# ---- torch's transformations


def test_a_compiled_layer_applies_it():
    torch.compiler.reset()
    layer, activation = randomized(CASES["EN"][0]), Activation("leaky_relu", 0.1)
    x = inputs(2, CHANNELS, 5, 7).requires_grad_()
    dy, own = inputs(2, CHANNELS, 5, 7, seed=5), fused(layer, activation)
    y = torch.compile(own, backend="aot_eager", fullgraph=True)(x)
    found = [y.detach(), *torch.autograd.grad(y, [x, *own.parameters()], dy)]
    expected = cases.results(Composed(layer, activation), x, dy)
    assert_close(found, expected, 10 * EQUAL)


def test_forward_mode_and_per_sample_gradients_go_through_it():
    layer, x = randomized(CASES["ILMGN"][0]), inputs(2, CHANNELS, 5, 7)
    own, composed = fused(layer, SILU), Composed(layer, SILU)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, inputs(*x.shape, seed=3))
        tangents = [forward_ad.unpack_dual(f(dual)).tangent for f in (own, composed)]
    assert_close(*tangents)

    def loss(x, function):
        return function(x[None]).square().sum()

    found = [
        torch.func.vmap(torch.func.grad(lambda x, f=f: loss(x, f)))(x) for f in (own, composed)
    ]
    assert_close(*found)


def test_an_exported_program_applies_it():
    own, x = fused(randomized(CASES["ILMGN"][0]), SILU).eval(), inputs(2, CHANNELS, 5, 7)
    program = torch.export.export(own, (x,)).module()
    assert_close(program(x), own(x))


def test_a_forced_reference_applies_it_in_float32():
    """So that a half precision output is rounded once, as by kernels."""
    own, x = (
        fused(randomized(CASES["ILMGN"][0], torch.float32), SILU),
        inputs(2, CHANNELS, 8, 8).bfloat16(),
    )
    with use_backend("reference"):
        expected = own(x.float()).bfloat16()
        assert_equal(own(x), expected)
