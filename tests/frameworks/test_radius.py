"""What the hooks of both frameworks do, which set SSN's radius and clip its logits' gradients."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from close import assert_close
from ilm_plugins import SparseSwitchNorm, freeze
from ilm_plugins.frameworks.radius import RadiusSchedule

LEARNING_RATE = 0.1


def by_detectron2(model, optimizer):
    pytest.importorskip("detectron2", reason="needs detectron2")
    from ilm_plugins.frameworks.detectron2.radius import RadiusHook

    hook = RadiusHook()
    hook.trainer = SimpleNamespace(model=model, optimizer=optimizer, max_iter=5)
    hook.before_train()

    def set_radius(iteration):
        hook.trainer.iter = iteration
        hook.before_step()

    return set_radius


def by_mmengine(model, optimizer):
    optim = pytest.importorskip("mmengine.optim", reason="needs MMEngine")
    from ilm_plugins.frameworks.openmmlab.radius import RadiusHook

    wrapper = optim.OptimWrapperDict(generator=optim.OptimWrapper(optimizer))
    hook, runner = RadiusHook(), SimpleNamespace(model=model, optim_wrapper=wrapper, max_iters=5)
    hook.before_train(runner)

    def set_radius(iteration):
        runner.iter = iteration
        hook.before_train_iter(runner, 0)

    return set_radius


def by_hand(model, optimizer):
    return partial(RadiusSchedule(model, [optimizer]).set, iterations=5)


hooks = pytest.mark.parametrize("hook", [by_hand, by_detectron2, by_mmengine])


def norms(hook=by_hand, norm=SparseSwitchNorm, **options):
    """A norm and a frozen one, an optimizer of the first, and what sets their radius."""
    torch.manual_seed(0)
    model = nn.Sequential(norm(4), freeze(norm(4)))
    optimizer = torch.optim.SGD(model[0].parameters(), LEARNING_RATE, **options)
    return model, optimizer, hook(model, optimizer)


def steep(model):
    """A loss whose gradients are far above the limit."""
    x = torch.arange(8.0).view(2, 4, 1, 1) + torch.randn(2, 4, 3, 3)
    return 1e4 * (model(x) * torch.randn(2, 4, 3, 3)).square().sum()


@hooks
def test_the_radius_is_the_part_of_the_iterations_that_are_done_but_in_frozen_layers(hook):
    model, _, set_radius = norms(hook)
    for iteration in range(5):
        set_radius(iteration)
        assert_close(model[0].radius, torch.tensor([iteration / 5]), 1)
    assert model[1].radius == 0


def check_clipping(model, optimizer, scale=1.0):
    """Each set of logits moves by a gradient of norm 1, other parameters by their gradients."""
    before = {name: p.detach().clone() for name, p in model[0].named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(steep(model)).backward()
    scaler.step(optimizer)
    for name, parameter in model[0].named_parameters():
        moved = (parameter - before[name]).norm().item() / LEARNING_RATE
        if name in ("mean_weight", "var_weight"):
            assert abs(moved - 1) < 1e-3, (name, moved)
        else:
            assert moved > 10, f"{name} is clipped to {moved}"


@hooks
def test_gradients_of_logits_are_clipped_to_norm_1(hook):
    model, optimizer, _ = norms(hook)
    check_clipping(model, optimizer)


def test_a_fused_optimizers_scaled_gradients_are_clipped_to_the_scaled_norm():
    model, optimizer, _ = norms(fused=True)
    check_clipping(model, optimizer, 2.0**16)


def test_models_without_the_layer_are_trained_as_they_are():
    model, optimizer, set_radius = norms(norm=nn.BatchNorm2d)
    set_radius(1)
    steep(model).backward()
    optimizer.step()
    assert (model[0].weight - 1).norm() > LEARNING_RATE
