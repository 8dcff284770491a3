"""What the hooks of both frameworks do, which set SSN's radius and clip its logits' gradients."""

import torch
from torch import nn

from close import assert_close
from ilm_plugins import SparseSwitchNorm, freeze
from ilm_plugins.frameworks.radius import RadiusSchedule

LEARNING_RATE = 0.1


def schedule(norm=SparseSwitchNorm, **options):
    """A norm and a frozen one, an optimizer of the first, and their schedule."""
    torch.manual_seed(0)
    model = nn.Sequential(norm(4), freeze(norm(4)))
    optimizer = torch.optim.SGD(model[0].parameters(), LEARNING_RATE, **options)
    return model, optimizer, RadiusSchedule(model, [optimizer])


def steep(model):
    """A loss whose gradients are far above the limit."""
    x = torch.arange(8.0).view(2, 4, 1, 1) + torch.randn(2, 4, 3, 3)
    return 1e4 * (model(x) * torch.randn(2, 4, 3, 3)).square().sum()


def test_the_radius_is_the_part_of_the_iterations_that_are_done_but_in_frozen_layers():
    model, _, radius = schedule()
    for iteration in range(5):
        radius.set(iteration, 5)
        assert_close(model[0].radius, torch.tensor([iteration / 5]), 1)
    assert model[1].radius == 0


def test_each_set_of_logits_moves_by_gradients_of_norm_1_even_if_a_fused_step_unscales_them():
    for scale, fused in ((1.0, False), (1.0, True), (2.0**16, True)):
        model, optimizer, _ = schedule(fused=fused)
        before = {name: p.detach().clone() for name, p in model[0].named_parameters()}
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(steep(model)).backward()
        scaler.step(optimizer)
        for name, parameter in model[0].named_parameters():
            moved = (parameter - before[name]).norm().item() / LEARNING_RATE
            if name in ("mean_weight", "var_weight"):
                assert abs(moved - 1) < 1e-3, (name, scale, fused, moved)
            else:
                assert moved > 10, f"{name} is clipped to {moved}"


def test_models_without_the_layer_are_trained_as_they_are():
    model, optimizer, radius = schedule(nn.BatchNorm2d)
    radius.set(1, 5)
    steep(model).backward()
    optimizer.step()
    assert (model[0].weight - 1).norm() > LEARNING_RATE
