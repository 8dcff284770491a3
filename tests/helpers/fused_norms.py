"""What tests of fused activations compare."""

import copy

import torch
from torch.utils._pytree import tree_leaves

from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import randomized
from ilm_plugins import surgery
from ilm_plugins.layers.base import AdaptiveNorm


def trained(layer, seed=0):
    """A model of this package's layers with random tensors, so that no network computes a zero."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (m for m in randomized(layer).modules() if isinstance(m, AdaptiveNorm)):
        for child in norm.children():
            for parameter in child.parameters():
                parameter.data.normal_(generator=generator, std=0.5)
    return layer


def results(model, x):
    """Outputs, gradients, and buffers after a pass forward and back; x must stay as it is."""
    model, leaf = copy.deepcopy(model), x.clone().requires_grad_()
    given = leaf.clone()
    outputs = [t for t in tree_leaves(model(given)) if isinstance(t, torch.Tensor)]
    assert torch.equal(given, x), "the model changed its input"
    sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs, {"x": leaf.grad, **gradients}, dict(model.named_buffers())


def assert_fuses(model, x, number, match=None):
    """Assert that so many layers apply an activation, without a change of results, and back."""
    model = trained(model).double()
    fused = copy.deepcopy(model)
    report = surgery.fuse_activations(fused, match=match)
    assert len(report.converted) == number, report.names()
    assert sum("fused_activation" in repr(m) for m in layers(fused)) == number
    assert [*fused.state_dict()] == [*model.state_dict()]
    for training in (True, False):
        for one in (model, fused):
            one.train(training)
        assert_close(results(fused, x), results(model, x), EQUAL)
    fused.register_forward_pre_hook(print, with_kwargs=True)
    surgery.fusing.unfuse(fused)
    assert [*fused._forward_pre_hooks.values()] == [print]
    assert repr(fused) == repr(model)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    return report


def layers(model):
    return [m for m in model.modules() if isinstance(m, AdaptiveNorm)]
