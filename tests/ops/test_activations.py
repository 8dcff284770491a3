"""Layers that apply an activation, and add a residual before it, in the kernels' own passes."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import cases
from benchmarks.measure import saved_bytes
from cases import (
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
from close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops import coarsen
from ilm_plugins.ops.engine import backends, plain
from ilm_plugins.ops.engine.activation import Activation

RELU, SILU = Activation("relu"), Activation("silu")
of_each = pytest.mark.parametrize("activation", FUSED, ids=lambda a: a.name)
of_each_norm = pytest.mark.parametrize("name", NORMS)
adding = pytest.mark.parametrize("adds", [False, True], ids=["", "residual"])


def fused(layer, activation):
    """A copy of a layer that applies an activation."""
    twin = copy.deepcopy(layer)
    twin.fused_activation = activation
    return twin


class Composed(nn.Module):
    """A layer, the addition of a residual in place and an activation, one after the other."""

    def __init__(self, layer, activation):
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x, *residual):
        y = self.layer(x)
        for other in residual:
            y = y.clone().add_(other)
        return self.activation(y)


def assert_equal_to_the_composition(layer, activation, x, *residual, backend=None):
    """Compare all results and buffers in float64, for each instruction set."""
    dy = inputs(*x.shape, seed=5)
    composed = Composed(copy.deepcopy(layer), activation)
    expected = cases.results(composed, x, dy, "reference", *residual)
    for instructions in cases.INSTRUCTION_SETS:
        own = fused(layer, activation)
        with cases.compiled_for(instructions):
            assert_close(cases.results(own, x, dy, backend, *residual), expected, 10 * EQUAL)
        assert_close(dict(own.named_buffers()), dict(composed.layer.named_buffers()))


# ---- equal to the composition


@layouts
@adding
@of_each
@of_each_norm
def test_a_fused_activation_equals_the_composition(name, activation, adds, layout):
    """Maps of whole vectors and a rest, in one block and in several."""
    for shape in ((3, CHANNELS, 5, 7), (2, CHANNELS, 17, 31), (1, CHANNELS, 8200)):
        layer = randomized(CASES[name][0])
        residual = [layout(inputs(*shape, seed=3))] if adds else []
        assert_equal_to_the_composition(layer, activation, layout(inputs(*shape)), *residual)


@every_backend
@adding
@pytest.mark.parametrize("name", cases.WITH_RUNNING)
def test_with_running_statistics_it_does_too(name, adds, backend):
    layer, shape = randomized(CASES[name][0]).eval(), (3, CHANNELS, 5, 7)
    for activation in (RELU, SILU):
        residual = [inputs(*shape, seed=3)] if adds else []
        assert_equal_to_the_composition(
            layer, activation, inputs(*shape), *residual, backend=backend
        )


@pytest.mark.parametrize(
    "activation, adds",
    [*((a, False) for a in FUSED), *((a, True) for a in FUSED if a.takes_residual)],
    ids=lambda value: value.name if isinstance(value, Activation) else "residual" * value,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PATHS)
def test_fused_kernels_are_as_exact_as_their_dtype(name, dtype, activation, adds):
    layer, shape = (
        fused(randomized(CASES[name][0], torch.float32), activation),
        (2, CHANNELS, 17, 19),
    )
    x, dy, residual = (inputs(*shape, dtype=dtype, seed=seed) for seed in (1, 5, 3))
    for layout in (torch.Tensor.contiguous, cases.channels_last):
        maps = [layout(t) for t in ((x, residual) if adds else (x,))]
        clear = cases.without_jumps(layer, maps[0], dy, *maps[1:])
        cases.assert_exact(layer, maps[0], clear, cases.KERNELS, residual=maps[1:])


@adding
@of_each
@of_each_norm
def test_second_derivatives_are_those_of_the_first(name, activation, adds):
    layer = fused(randomized(CASES[name][0]), activation)
    shape = 2, CHANNELS, 2
    maps = [inputs(*shape, seed=s).requires_grad_() for s in (1, 3)[: 1 + adds]]
    variables = [*maps, *layer.parameters()]
    names, buffers = [n for n, _ in layer.named_parameters()], dict(layer.named_buffers())

    def function(*values):
        given, parameters = values[: len(maps)], values[len(maps) :]
        state = dict(zip(names, parameters, strict=True))
        copies = {n: b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(layer, (state, copies), given)

    assert torch.autograd.gradgradcheck(function, variables, fast_mode=True)


class OfItsOwn(NORMS["ILMGN"]):
    """Another equation, which kernels do not compute."""

    def rescale(self, mean, var, *tensors):
        scale, shift = super().rescale(mean, var, *tensors)
        return 2 * scale, shift + coarsen(mean, var, 1)[0]


@adding
@of_each
def test_layers_without_kernels_for_their_network_apply_it_too(activation, adds, monkeypatch):
    shape = 3, CHANNELS, 5, 7
    layer = randomized(lambda: OfItsOwn(CHANNELS, 4, key_group_size=3))
    residual = [inputs(*shape, seed=3)] if adds else []
    assert_equal_to_the_composition(layer, activation, inputs(*shape), *residual)
    monkeypatch.setattr(backends, "find_kernels", lambda x: plain)
    assert_equal_to_the_composition(layer, activation, inputs(*shape), *residual)


@every_backend
@pytest.mark.parametrize(
    "shape", [(3, CHANNELS), (0, CHANNELS, 3, 3), (3, CHANNELS, 1, 1)], ids=str
)
def test_maps_of_one_value_and_of_none_have_the_activation(shape, backend):
    layer = randomized(CASES["ILMGN"][0])
    for residual in ([], [inputs(*shape, seed=3)]):
        args = inputs(*shape), *residual
        assert_equal_to_the_composition(layer, RELU, *args, backend=backend)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.float(),
        lambda r: r[:, :, :1, :1],
        lambda r: r[:1].expand(3, -1, -1, -1),
        lambda r: r.transpose(2, 3).contiguous().transpose(2, 3),
        cases.channels_last,
    ],
    ids=["float32", "(N, C, 1, 1)", "expanded", "transposed", "channels last"],
)
def test_any_residual_is_added_as_torch_adds_it(change):
    x, residual = inputs(3, CHANNELS, 5, 7), change(inputs(3, CHANNELS, 5, 7, seed=3))
    assert_equal_to_the_composition(randomized(CASES["EN"][0]), RELU, x, residual)


@pytest.mark.parametrize("slope", [-0.5, 0.0])
def test_a_slope_that_is_not_positive_is_leaky_relus_too(slope):
    layer, x = randomized(CASES["EN"][0]), inputs(3, CHANNELS, 5, 7)
    assert_equal_to_the_composition(layer, Activation("leaky_relu", slope), x)


def test_a_residual_without_an_activation_is_added():
    layer, x = randomized(CASES["EN"][0]), inputs(3, CHANNELS, 5, 7)
    expected = copy.deepcopy(layer)(x) + x
    assert_equal(layer(x, x), expected)


@adding
def test_under_autocast_it_does_what_the_composition_does(adds):
    layer, x = randomized(CASES["ILMGN"][0], torch.float32), inputs(2, CHANNELS, 8, 8).bfloat16()
    maps = [x, inputs(2, CHANNELS, 8, 8, seed=3).float()][: 1 + adds]
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = (f(*maps) for f in (fused(layer, RELU), Composed(layer, RELU)))
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


def shifted_to(values, name):
    """A random layer that turns a map of zeros into a value for each channel."""
    layer = randomized(CASES[name][0])
    with torch.no_grad():
        rows = layer.bias
        if name == "AN":  # by pairs, with attentions of 1
            layer.attention.weight.zero_()
            layer.attention.bias.fill_(3)
            rows.zero_()
            rows = layer.pairs.bias
        rows.zero_().view(-1, CHANNELS)[0] = values
    return layer


@of_each
@of_each_norm
def test_at_its_corners_an_activation_has_torchs_value_and_slope(name, activation):
    """In whole vectors, and in the remaining values of a row."""
    layer = shifted_to(AT_CORNERS, name)
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
@pytest.mark.parametrize("name", PATHS)
def test_nothing_beside_x_is_saved_for_an_activation(name, layout):
    layer = randomized(CASES[name][0], torch.float32)
    x = inputs(2, CHANNELS, 64, 64).float().to(memory_format=layout).requires_grad_()
    alone = saved_bytes(layer, layer, x)
    for activation in FUSED:
        own = fused(layer, activation)
        assert saved_bytes(own, own, x) <= alone + 2 * 4 * 2 * CHANNELS


def test_with_a_residual_the_output_is_saved_which_the_next_layer_saves_too():
    layer = fused(randomized(CASES["ILMGN"][0], torch.float32), RELU)
    x, residual = (inputs(2, CHANNELS, 64, 64, seed=s).float().requires_grad_() for s in (1, 3))
    alone = saved_bytes(layer, lambda x: layer(x, residual), x)
    after = saved_bytes(layer, lambda x: layer(x, residual) * residual, x)
    assert alone < 2.1 * x.nbytes
    assert after == alone + residual.nbytes


@adding
@of_each
def test_no_input_is_changed(activation, adds):
    layer = fused(randomized(CASES["ILMGN"][0]), activation)
    maps = [inputs(2, CHANNELS, 5, 7, seed=s).requires_grad_() for s in (1, 3)[: 1 + adds]]
    before = [t.detach().clone() for t in maps]
    layer(*maps).sum().backward()
    assert_equal([t.detach() for t in maps], before)
    assert [t._version for t in maps] == [0] * len(maps)


def test_a_change_of_the_output_is_an_error_where_it_was_saved():
    """As with torch's ReLU; without a residual, nothing is read that could change."""
    layer, x = (
        fused(randomized(CASES["ILMGN"][0]), RELU),
        inputs(2, CHANNELS, 5, 7).requires_grad_(),
    )
    layer(x).mul_(2).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer(x, x).mul_(2).sum().backward()


@pytest.mark.parametrize("needed", ["x", "residual", "parameters"])
def test_only_gradients_that_are_needed_are_computed(needed):
    layer = fused(randomized(CASES["ILMGN"][0]), RELU)
    x, residual = inputs(2, CHANNELS, 5, 7), inputs(2, CHANNELS, 5, 7, seed=3)
    dy, inner = inputs(2, CHANNELS, 5, 7, seed=5), [*layer.parameters()]
    expected = cases.results(layer, x, dy, None, residual)[1:]
    of = {"x": [x], "residual": [residual], "parameters": inner}
    layer.requires_grad_(needed == "parameters")
    for tensor in of[needed]:
        tensor.requires_grad_()
    found = torch.autograd.grad(layer(x, residual), of[needed], dy)
    wanted = {"x": expected[:1], "residual": expected[1:2], "parameters": expected[2:]}
    assert_equal([*found], [*wanted[needed]])


def test_a_layer_that_has_run_applies_what_is_set_later():
    layer, x = randomized(CASES["ILMGN"][0]), inputs(2, CHANNELS, 5, 7)
    plain_output = layer(x)
    for activation in (RELU, SILU, None):
        layer.fused_activation = activation
        expected = plain_output if activation is None else activation(plain_output)
        assert_close(layer(x), expected)


def test_a_call_may_leave_it_out():
    layer, x = fused(randomized(CASES["EN"][0]).eval(), RELU), inputs(2, CHANNELS, 5, 7)
    for activate in (True, False, True):
        z = fused(layer, None)(x)
        assert_equal(layer(x, activate=activate), RELU(z) if activate else z)


def test_copies_and_pickles_apply_it_and_state_dicts_do_not_tell_it():
    layer, x = fused(randomized(CASES["ILMGN"][0]), RELU), inputs(2, CHANNELS, 5, 7)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_equal(twin(x), layer(x))
    assert layer.state_dict().keys() == CASES["ILMGN"][0]().state_dict().keys()
    assert "fused_activation='relu'" in repr(layer)


# ---- torch's transformations


@adding
@of_each
def test_a_compiled_layer_applies_it(activation, adds):
    torch.compiler.reset()
    layer = randomized(CASES["EN"][0])
    maps = [inputs(2, CHANNELS, 5, 7, seed=s) for s in (1, 3)[: 1 + adds]]
    dy, own = inputs(2, CHANNELS, 5, 7, seed=5), fused(layer, activation)
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
    x, *residual = (t.requires_grad_() for t in maps)
    y = compiled(x, *residual)
    found = [y.detach(), *torch.autograd.grad(y, [*maps, *own.parameters()], dy)]
    expected = cases.results(Composed(layer, activation), maps[0], dy, None, *maps[1:])
    assert_close(found, expected, 10 * EQUAL)


def test_forward_mode_and_per_sample_gradients_go_through_it():
    layer, x = randomized(CASES["ILMGN"][0]), inputs(2, CHANNELS, 5, 7)
    own, composed = fused(layer, SILU), Composed(layer, SILU)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, inputs(*x.shape, seed=3))
        tangents = [forward_ad.unpack_dual(f(dual, x)).tangent for f in (own, composed)]
    assert_close(*tangents)

    def loss(x, function):
        return function(x[None]).square().sum()

    found = [
        torch.func.vmap(torch.func.grad(lambda x, f=f: loss(x, f)))(x) for f in (own, composed)
    ]
    assert_close(*found)


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(input=self.layer(x, x), residual=x)


def test_a_traced_graph_keeps_the_residual():
    block, x = Block(fused(randomized(CASES["ILMGN"][0]), RELU)), inputs(2, CHANNELS, 5, 7)
    assert_equal(torch.fx.symbolic_trace(block)(x), block(x))


def test_an_exported_program_applies_it():
    own, x = fused(randomized(CASES["ILMGN"][0]), SILU).eval(), inputs(2, CHANNELS, 5, 7)
    program = torch.export.export(own, (x, x)).module()
    assert_close(program(x, x), own(x, x))


def test_threads_do_not_change_its_bits():
    own, x = (
        fused(randomized(CASES["ILMGN"][0], torch.float32), SILU),
        inputs(9, CHANNELS, 64, 66).float(),
    )
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(cases.results(own, x, inputs(*x.shape, seed=5).float()))
    torch.set_num_threads(before)
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def test_a_forced_reference_applies_it_in_float32():
    """So that a half precision output is rounded once, as by kernels."""
    own, x = (
        fused(randomized(CASES["ILMGN"][0], torch.float32), SILU),
        inputs(2, CHANNELS, 8, 8).bfloat16(),
    )
    with use_backend("reference"):
        expected = own(x.float()).bfloat16()
        assert_equal(own(x), expected)
