"""Running statistics that are measured anew."""

import copy
import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import double, small
from ilm_plugins import ExemplarNorm, SwitchNorm, freeze, surgery, use_backend
from ilm_plugins.layers import OptionError


@pytest.mark.parametrize("layer", [ExemplarNorm, SwitchNorm])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_they_are_those_of_the_batches(layer, backend):
    model = nn.Sequential(nn.Conv2d(3, 32, 1), layer(32), nn.Dropout(0.5), nn.BatchNorm2d(32))
    model.append(layer(32, momentum=0.3)).double()
    others = copy.deepcopy(model[3].state_dict())
    model[1].eval().running_mean.fill_(math.nan)
    counters = [t for name, t in model.named_buffers() if name[0] in "14" and "tracked" in name]
    for counter in counters:
        counter.fill_(7)
    modes = [m.training for m in model.modules()]
    batches, seen = [5 * double(4, 3, 6, 6) + 2 for _ in range(3)], []
    model[4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    with use_backend(backend):
        report = surgery.recalibrate(model, iter(batches))
    assert report.converted == dict.fromkeys("14", "running statistics of 3 batches")
    maps = [model[0](x).transpose(0, 1).flatten(1) for x in batches]
    expected = [sum(m.mean(1) for m in maps) / 3, sum(m.var(1) for m in maps) / 3, sum(seen) / 3]
    found = [model[1].running_mean, model[1].running_variance, model[4].running_mean]
    assert_close(found, expected, EQUAL)
    assert counters == [3] * (2 if layer is ExemplarNorm else 0)
    assert [m.training for m in model.modules()] == modes
    assert model[4].momentum == 0.3
    assert_equal(model[3].state_dict(), others)


def test_layers_without_new_statistics_keep_theirs():
    model = nn.Sequential(SwitchNorm(4), freeze(SwitchNorm(4)))
    model.add_module("unused", SwitchNorm(4))
    batches = [torch.randn(0, 4, 2, 2), torch.ones(1, 4), torch.full((2, 4, 2, 2), 3.0)]
    report = surgery.recalibrate(model, batches, lambda x: model[1](x=model[0](x=x)))
    assert report.converted == {"0": "running statistics of 1 batches"}
    assert "frozen" in report.left["1"]
    assert report.left["unused"] == "no batch reached it"
    # The first two batches have no variance, and count for nothing.
    assert torch.equal(model[0].running_mean, torch.full((4,), 3.0))
    assert torch.equal(model[1].running_variance, torch.ones(4))
    with pytest.raises(OptionError, match="got no batches"):
        surgery.recalibrate(model, [])
    with pytest.raises(OptionError, match="no layer that mixes BN"):
        surgery.recalibrate(small(), [torch.zeros(1)])
    assert model[0].training
    assert model[0].momentum == 0.1


class Fixed(nn.Module):
    """A model whose forward sets its backbone to evaluation mode."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = SwitchNorm(4), SwitchNorm(4)

    def forward(self, x):
        return self.head(self.backbone.eval()(x))


def test_a_layer_that_runs_in_evaluation_mode_keeps_its_statistics():
    model = Fixed()
    model.backbone.running_mean.fill_(0.3)
    report = surgery.recalibrate(model, [torch.randn(8, 4, 3, 3)])
    assert report.left == {"backbone": "it ran in evaluation mode"}
    assert torch.equal(model.backbone.running_mean, torch.full((4,), 0.3))


class Direct(nn.Module):
    """A model that calls its norm's forward, and thus no hook."""

    def __init__(self):
        super().__init__()
        self.norm = SwitchNorm(4)

    def forward(self, x):
        return self.norm.forward(x)


def test_a_layer_that_is_not_called_as_a_module_keeps_its_statistics():
    model = Direct()
    report = surgery.recalibrate(model, [torch.randn(8, 4, 3, 3) + 5])
    assert report.left == {"norm": "no batch reached it"}
    assert torch.equal(model.norm.running_mean, torch.zeros(4))


def test_an_interrupt_leaves_statistics_momenta_modes_and_hooks_as_before():
    model = nn.Sequential(SwitchNorm(4, momentum=0.3), nn.Dropout(), ExemplarNorm(4).eval())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    def batches():
        yield torch.randn(8, 4, 3, 3)
        yield torch.randn(8, 4, 3, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgery.recalibrate(model, batches())
    assert [module.training for module in model.modules()] == modes
    assert [model[0].momentum, model[2].momentum] == [0.3, 0.1]
    assert not any(module._forward_pre_hooks for module in model)
    assert_equal(dict(model.state_dict()), before)


@pytest.mark.parametrize("size, value", [(2, 0.0), (3, math.nan)])
def test_batches_that_change_nothing_are_not_counted(size, value):
    """After an error, and where a layer gets NaN."""
    model = nn.Sequential(ExemplarNorm(32), nn.Conv2d(32, 4, 3))
    with pytest.raises(RuntimeError) if size == 2 else nullcontext():
        surgery.recalibrate(model, [torch.full((2, 32, size, size), value)])
    assert model[0].num_batches_tracked == 0


def test_a_batch_with_nan_leaves_the_statistics():
    model = nn.Sequential(SwitchNorm(4))
    report = surgery.recalibrate(model, [torch.full((2, 4, 3, 3), math.nan)])
    assert report.left == {"0": "a batch gave it infinite or NaN values"}
    assert torch.equal(model[0].running_mean, torch.zeros(4))


def test_layers_without_running_statistics_are_skipped():
    model = nn.Sequential(SwitchNorm(4), SwitchNorm(4))
    model[0].running_mean = model[0].running_variance = None
    report = surgery.recalibrate(model, [torch.randn(2, 4, 3, 3)])
    assert report.converted.keys() == {"1"}


def mixtures():
    """A model of several mixtures, one of them in a part of its own."""
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Dropout(0.5), ExemplarNorm(32))
    return nn.Sequential(nn.Conv2d(3, 32, 3), SwitchNorm(32), nn.ReLU(), tail).double()


def in_place(model, **options):
    model.compile(**options)
    return model


def parts(model, **options):
    model[3] = torch.compile(model[3], **options)
    model[1].compile(**options)
    return model


COMPILED = {
    "whole": torch.compile,
    "in-place": in_place,
    "parts": parts,
    "parts-in-whole": lambda model, **options: torch.compile(parts(model, **options), **options),
}


@pytest.fixture(params=COMPILED)
def compiled(request):
    """A function that compiles a model, by an option to one graph."""
    torch._dynamo.reset()  # other tests may have used up how often torch compiles one function
    return partial(COMPILED[request.param], backend="eager")


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("is_warm", [False, True])
def test_those_of_a_compiled_model_are_the_same(compiled, fullgraph, is_warm):
    batches = [3 * double(4, 3, 8, 8) + 1 for _ in range(3)]
    plain, model = mixtures(), mixtures()
    surgery.recalibrate(plain, batches)
    run = compiled(model, fullgraph=fullgraph)
    if is_warm:
        run.eval()(batches[0])  # which leaves code without hooks behind
        run.train()
    report = surgery.recalibrate(run, batches)
    assert not report.left
    assert_equal([*model.buffers()], [*plain.buffers()])


def test_those_of_a_compiled_function_are_the_same():
    batches = [3 * double(4, 3, 8, 8) + 1 for _ in range(3)]
    plain, model = mixtures(), mixtures()
    surgery.recalibrate(plain, batches)
    forward = torch.compile(lambda x: model(x), backend="eager")
    model.eval()
    forward(batches[0])
    model.train()
    surgery.recalibrate(model, batches, forward)
    assert_equal([*model.buffers()], [*plain.buffers()])


def test_a_compiled_model_is_compiled_afterwards(compiled):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    run = compiled(mixtures(), backend=backend)
    surgery.recalibrate(run, [double(4, 3, 8, 8)])
    assert not graphs
    run(double(4, 3, 8, 8))
    assert graphs
