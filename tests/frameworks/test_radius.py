"""The hooks of both frameworks that set SSN's radius and clip its logits' gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.close import assert_close
from ilm_plugins import SparseSwitchNorm, freeze
from ilm_plugins.frameworks.radius import RadiusSchedule
from ilm_plugins.layers import set_radius

#: The rate at which logits learn.
LEARNING_RATE = 0.1


class Small(nn.Module):
    """A norm whose loss is steep, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = SparseSwitchNorm(4), freeze(SparseSwitchNorm(4))
        self.frozen.requires_grad_(False)

    def loss(self):
        generator = torch.Generator().manual_seed(1)
        images, weights = torch.randn(2, 2, 4, 3, 3, generator=generator)
        shifts = torch.arange(8.0).view(2, 4, 1, 1)
        return 1e4 * (self.frozen(self.norm(shifts + images)) * weights).square().sum()


def test_without_ssn_nothing_is_gathered(monkeypatch):
    """Under FSDP, a radius needs all parameters of the model on each GPU."""

    def refuse(model):
        raise AssertionError("the parameters were gathered")

    monkeypatch.setattr("ilm_plugins.layers.sparse._whole_parameters", refuse)
    set_radius(nn.Sequential(freeze(SparseSwitchNorm(4)), nn.BatchNorm2d(4)), 0.5)


def begin_in_mmengine(model, optimizers, iteration):
    """Do what MMEngine's hook does before an iteration of five."""
    optim = pytest.importorskip("mmengine.optim", reason="needs MMEngine")
    from ilm_plugins.frameworks.openmmlab.radius import RadiusHook

    wrapper, *others = map(optim.OptimWrapper, optimizers)
    if others:
        wrapper = optim.OptimWrapperDict(one=wrapper, other=others[0])
    hook = RadiusHook()
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=iteration, max_iters=5)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)


def begin_in_detectron2(model, optimizers, iteration):
    pytest.importorskip("detectron2", reason="needs detectron2")
    from ilm_plugins.frameworks.detectron2.radius import RadiusHook

    hook, (optimizer,) = RadiusHook(), optimizers
    hook.trainer = SimpleNamespace(model=model, optimizer=optimizer, iter=iteration, max_iter=5)
    hook.before_train()
    hook.before_step()


@pytest.mark.parametrize(
    "begin, count", [(begin_in_mmengine, 1), (begin_in_mmengine, 2), (begin_in_detectron2, 1)]
)
def test_the_radius_is_the_part_of_the_iterations_that_are_done(begin, count):
    model = Small()
    norm, optimizers = model.norm, []
    for names in (("mean_weight", "weight"), ("var_weight",))[:count]:
        parameters = [getattr(norm, name) for name in names]
        optimizers.append(torch.optim.SGD(parameters, lr=LEARNING_RATE))
    for iteration in (3, 0):
        begin(model, optimizers, iteration)
        assert abs(norm.radius.item() - iteration / 5) < 1e-6
        assert model.frozen.radius == 0
    old = {name: p.detach().clone() for name, p in norm.named_parameters()}
    model.loss().backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = {n: (p - old[n]).norm().item() / LEARNING_RATE for n, p in norm.named_parameters()}
    for name in ("mean_weight", "var_weight")[:count]:
        assert abs(moved[name] - 1) < 1e-3, f"{name}'s gradient is clipped to {moved[name]}, not 1"
    assert moved["weight"] > 100, "the weight's is not clipped"


def test_gradients_that_a_closure_computes_are_clipped():
    """As Lightning's automatic optimization passes them."""
    model = Small()
    optimizer = torch.optim.SGD(model.norm.parameters(), lr=LEARNING_RATE)
    RadiusSchedule(model, [optimizer])
    before = model.norm.mean_weight.detach().clone()

    def closure():
        loss = model.loss()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    step = (model.norm.mean_weight.detach() - before).norm().item() / LEARNING_RATE
    assert abs(step - 1) < 1e-3


def test_a_fused_optimizers_scaled_gradients_are_clipped_to_the_scaled_norm():
    moved = []
    for scale in (1.0, 2.0**16):
        model = Small()
        optimizer = torch.optim.SGD(model.norm.parameters(), lr=LEARNING_RATE, fused=True)
        RadiusSchedule(model, [optimizer])
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = model.norm.mean_weight.detach().clone()
        scaler.scale(model.loss()).backward()
        scaler.step(optimizer)
        moved.append(model.norm.mean_weight.detach() - before)
    assert_close(moved[1], moved[0])
    assert abs(moved[0].norm().item() / LEARNING_RATE - 1) < 1e-3
