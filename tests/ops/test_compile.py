"""torch.compile: compiled models run the kernels, as operators of torch."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import jvp, vmap

from equations.cases import (
    MIXTURES,
    channels_last,
    inputs,
    needs_kernels,
    randomized,
    results,
)
from helpers.close import assert_close, assert_equal
from ilm_plugins import NORMS, SwitchNorm, freeze, use_backend
from ilm_plugins.ops import adaptive_norm
from ilm_plugins.ops.engine import operators
from ilm_plugins.ops.engine.activation import Activation

C = 32
NCHW, NHWC = torch.Tensor.contiguous, channels_last
needs_operators = pytest.mark.skipif(not operators.HAS_OPERATORS, reason="needs torch 2.7")
pytestmark = [needs_kernels, needs_operators]


def build(name, training=True, dtype=torch.float32):
    torch.manual_seed(0)
    return NORMS[name](C, dtype=dtype).train(training)


def recorded(function, **options):
    """A function compiled without graph breaks, and its graphs' operators, which grow with use."""
    graphs = []

    def record(graph, _):
        names = [str(node.target).split(".") for node in graph.graph.nodes]
        graphs.append([name[1] for name in names if name[0] == "ilm_plugins"])
        return graph

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=record, **options), graphs


def after(module, x):
    """The output, all gradients, and the buffers, of a forward and a backward pass."""
    found = results(module, x, inputs(*x.shape, dtype=x.dtype, seed=3))
    return found, [b.clone() for b in module.buffers()]


@pytest.mark.parametrize(
    "name, training, layout",
    [("ILMGN", True, NCHW), ("EN", True, NHWC), ("SN", False, NHWC)],
)
def test_one_operator_computes_the_bits_of_the_layer_for_any_size_in_three_graphs(
    name, training, layout
):
    layer = build(name, training)
    module, graphs = recorded(copy.deepcopy(layer), dynamic=True)
    for n, h, w in ((4, 5, 6), (1, 4, 4), (3, 2, 3), (0, 5, 6), (7, 3, 5)):
        x = layout(inputs(n, C, h, w, dtype=torch.float32))
        (found, buffers), (expected, others) = after(module, x), after(layer, x)
        assert_equal(found + buffers, expected + others)
        assert found[0].stride() == expected[0].stride()
    assert sorted(graphs) == [[], ["layer"], ["layer"]]  # the first is that of an empty batch
    freeze(module)(x), freeze(layer)(x)
    assert_equal(list(module.buffers()), list(layer.buffers()))


def test_a_single_value_of_each_channel_moves_no_running_statistics():
    """It has no variance. A larger batch comes first, as in the last step of an epoch."""
    layer = build("EN")
    module, _ = recorded(copy.deepcopy(layer), dynamic=True)
    for shape in ((2, C, 3, 4), (1, C, 1, 1)):
        x, before = inputs(*shape, dtype=torch.float32), [b.clone() for b in layer.buffers()]
        (found, buffers), (expected, others) = after(module, x), after(layer, x)
        assert_close(found, expected)
        assert_equal(buffers, others)
    assert_equal(buffers, before)


def test_gradients_of_compiled_moments_are_torchs_of_any_size():
    """Which the passes that are compiled for CUDA take, without a mean of x in the backward one."""
    moments, _ = recorded(operators._Moments.apply, dynamic=True)
    for n, h, w in ((4, 5, 6), (3, 1, 1), (2, 7, 3)):
        x = inputs(n, C, h, w)
        leaf, other = (x.clone().requires_grad_() for _ in range(2))
        var, mean = torch.var_mean(other, (2, 3), correction=0)
        for result in (moments(leaf), (mean, var)):
            torch.autograd.backward(result, (x[:, :, 0, 0], x[:, :, -1, -1]))
        assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("name", ["ILMGN", "EN"])
def test_fixed_parameters_have_no_gradient_and_change_no_other(name):
    """Every second parameter, without a gradient of x; and all others, with one."""
    layer, x = build(name), inputs(2, C, 3, 4, dtype=torch.float32)
    names, expected = ["x", *dict(layer.named_parameters())], results(layer, x, x)[1:]
    for first in (0, 1):
        twin, leaf = copy.deepcopy(layer), x.clone()
        variables = [leaf, *twin.parameters()]
        for variable in variables[1 - first :: 2]:
            variable.requires_grad_(False)
        variables[first].requires_grad_()
        run, graphs = recorded(twin)
        run(leaf).backward(x)
        found = {name: v.grad for name, v in zip(names, variables, strict=True)}
        assert all(found[name] is None for name in names[1 - first :: 2])
        assert_equal([found[name] for name in names[first::2]], expected[first::2])
        assert graphs == [["layer"]]


@pytest.mark.parametrize(
    "name, dtype, layout, activation",
    [("ILMGN", torch.float32, NCHW, None), ("EN", torch.bfloat16, NHWC, "leaky_relu")],
)
def test_operators_are_what_torch_asks_of_them(name, layout, dtype, activation):
    layer, x = build(name, dtype=dtype), layout(inputs(3, C, 4, 5, dtype=dtype))
    tensors, groups = layer.rescale_tensors(), layer.moment_groups
    key, *_ = layer.find_operator(x.device, dtype)
    tensors = [t.detach().clone() for t in tensors if t is not None]
    needs = [True, *(t.is_floating_point() and t.dim() > 0 for t in tensors)]
    for t, need in zip((x, *tensors), needs, strict=True):
        t.requires_grad_(need)
    operator = torch.ops.ilm_plugins
    running = [layer.running_mean, layer.running_variance] if name in MIXTURES else []
    arguments = x, groups, key, activation, 0.1, running, tensors
    torch.library.opcheck(operator.layer.default, arguments)
    x, *fixed = (t.detach() for t in (x, *tensors))
    arguments = x, groups, key, activation, 0.1, running, fixed
    torch.library.opcheck(operator.forward.default, arguments)
    y, statistics, _ = operator.forward(*arguments)
    arguments = x, groups, key, activation, 0.1, torch.ones_like(y), statistics, needs, fixed
    torch.library.opcheck(operator.backward.default, arguments)


def test_a_function_describes_the_network_as_a_layers_method_does():
    layer, x = build("ILMGN"), inputs(2, C, 3, 4, dtype=torch.float32)

    def call(x):
        arguments = x, layer.moment_groups, layer.eps, layer.rescale, *layer.rescale_tensors()
        return adaptive_norm(*arguments, describe=lambda: layer.describe())

    run, _ = recorded(call)
    assert_close(results_of(run, x), results_of(call, x))


def results_of(function, x):
    """The output of a function, and the gradient of x."""
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, x)[0]


def test_what_transforms_or_exports_a_graph_sees_the_reference():
    layer, x = build("EN", training=False), inputs(2, C, 3, 4, dtype=torch.float32)
    for function in (
        lambda x: jvp(layer, (x,), (x + 1,))[1],
        lambda x: vmap(layer)(x.unsqueeze(1)),
    ):
        run, graphs = recorded(function)
        assert_close(run(x), function(x))
        assert graphs == [[]]
    with use_backend("reference"):
        run, graphs = recorded(layer)
        assert_close(run(x), layer(x), 64)
        assert graphs == [[]]
    for strict in (True, False):
        nodes = torch.export.export(layer, (x,), strict=strict).graph.nodes
        assert not any("ilm_plugins" in str(node.target) for node in nodes)


def test_gradients_by_compiled_autograd_are_those_of_eager_autograd():
    layer, x, dy = NORMS["EN"](64), *(torch.randn(2, 64, 3, 3) for _ in range(2))
    expected = results(layer, x, dy)
    x.requires_grad_()
    compiler = partial(torch.compile, backend="aot_eager")
    with torch._dynamo.compiled_autograd._enable(compiler):
        layer(x).backward(dy)
    assert_close([x.grad, *(p.grad for p in layer.parameters())], expected[1:], 64)


class Boxes(nn.Module):
    """A norm of as many maps as a mask selects, as in a detector's box head."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, mask):
        return self.norm(x[mask])


@pytest.mark.parametrize("strict", [True, False])
def test_a_graph_takes_any_number_of_boxes(strict):
    model, x = Boxes(NORMS["ILMGN"](64)).eval(), torch.randn(5, 64, 3, 3)
    masks = [torch.tensor(mask).bool() for mask in ([1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5)]
    graph = torch.export.export(model, (x, masks[0]), strict=strict).module()
    for mask in masks:
        assert_close(graph(x, mask), model(x, mask), 64)


def test_second_derivatives_are_refused():
    layer, x = build("SN", training=False), inputs(2, C, 3, 4, dtype=torch.float32)
    run, _ = recorded(layer)
    (dx,) = torch.autograd.grad(run(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_gradients_of_buffers_are_the_references():
    layer, x = build("SN", training=False), inputs(2, C, 3, 4, dtype=torch.float32)
    layer.running_mean.requires_grad_()
    run, graphs = recorded(layer)
    found, expected = (torch.autograd.grad(m(x).sum(), layer.running_mean) for m in (run, layer))
    assert_close(found, expected)
    assert graphs == [[]]


@pytest.mark.parametrize(
    "name, options",
    [
        ("ILMGN", {"key_group_size": np.int64(8), "hidden": np.int64(4)}),
        ("SN", {"normalizers": ("LN", "IN", "BN")}),
    ],
)
def test_layers_of_different_or_changed_options_share_no_graph(name, options):
    run, graphs = recorded(lambda layer, x: layer(x))
    layers = [randomized(partial(NORMS[name], C, **o), torch.float32) for o in ({}, options)]
    x = inputs(2, C, 3, 4, dtype=torch.float32)
    for i, change in ((0, {}), (1, {}), (0, {"eps": 0.25}), (0, {"momentum": 0.25})):
        vars(layers[i]).update(change)
        twin = copy.deepcopy(layers[i])
        assert_equal([run(layers[i], x), *layers[i].buffers()], [twin(x), *twin.buffers()])
    assert graphs == [["layer"]] * (4 if name in MIXTURES else 3)


@pytest.mark.parametrize(
    "change",
    [{"activations": ("tanh", "relu")}, {"fused_activation": Activation("silu")}],
    ids=lambda change: "".join(change),
)
def test_an_option_beside_the_networks_counts_from_the_next_call_on(change):
    """Such as one that only the reference computes."""
    layer, x = build("ILMGN"), inputs(2, C, 3, 4, dtype=torch.float32)
    run, _ = recorded(layer)
    before = run(x)
    ((name, value),) = change.items()
    setattr(layer, name, value)
    assert (run(x) - before).abs().max() > 0.01
    assert_close(run(x), layer(x), 64)


def test_an_option_that_no_other_code_reads_counts_from_the_next_call_on():
    """Dynamo guards on it because ``adaptive_norm`` of operators.py compares it."""
    layer, x = SwitchNorm(C, normalizers=("IN", "GN"), num_groups=8), inputs(2, C, 3, 4)
    x = x.float()
    run, graphs = recorded(layer)
    assert_close(run(x), layer(x), 64)
    layer.num_groups = 2
    assert_close(run(x), layer(x), 64)
    assert graphs == [["layer"]] * 2


# ---- whole models


@pytest.mark.wide
@pytest.mark.parametrize("name", ["ILMGN", "EN"])
def test_a_model_compiles_into_three_graphs_for_any_batch(name):
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(norm_layer=NORMS[name], num_classes=8)
    for training in (True, False):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        module = torch.compile(copy.deepcopy(model), fullgraph=True, backend=counter)
        for n in (4, 1, 3, 6):
            x, found = inputs(n, 3, 64, 64, dtype=torch.float32).requires_grad_(), []
            for m in (module.train(training), model.train(training)):
                loss = m(x).square().sum()
                found.append([loss, *torch.autograd.grad(loss, [x, *m.parameters()])])
            assert_equal(*found)
        assert counter.frame_count <= 3
