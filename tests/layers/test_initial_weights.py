"""Layers draw their weights from torch's generator, as nn.Linear does."""

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, surgery

#: Keys whose networks do not start with constants alone.
DRAWING = [key for key in NORMS if key not in ("SN", "SSN")]


def drawn(layer):
    """The weights of a layer's networks that are not zero."""
    return [child.weight for child in layer.children() if child.weight.any()]


def test_an_auto_encoder_has_the_numbers_of_three_linear_maps():
    torch.manual_seed(5)
    layer = NORMS["ILMGN"](512)
    torch.manual_seed(5)
    maps = [nn.Linear(*sizes, bias=False) for sizes in ((32, 2), (2, 32), (2, 32))]
    for ours, linear in zip(layer.children(), maps, strict=True):
        torch.testing.assert_close(ours.weight, linear.weight)


@pytest.mark.parametrize("key", DRAWING)
def test_a_seed_repeats_the_layers_of_a_model_which_differ(key):
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append([drawn(NORMS[key](64)) for _ in range(2)])
    (first, second), (again, _), (other, _) = models
    for weights in zip(first, second, again, other, strict=True):
        assert torch.equal(weights[0], weights[2])
        assert not torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[3])


@pytest.mark.parametrize("key", DRAWING)
def test_reset_parameters_draws_again_in_the_order_of_the_constructor(key):
    torch.manual_seed(5)
    layer = NORMS[key](64)
    before = [weight.clone() for weight in drawn(layer)]
    layer.reset_parameters()
    assert not any(map(torch.equal, drawn(layer), before))
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(map(torch.equal, drawn(layer), before))


@pytest.mark.parametrize("key", NORMS)
def test_a_layer_on_the_meta_device_draws_nothing(key):
    state = torch.get_rng_state()
    NORMS[key](64, device="meta").reset_parameters()
    with torch.device("meta"):
        NORMS[key](64)
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_that_a_conversion_builds_differ():
    model = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(64))
    stored, _ = surgery.convert_state(dict(model.state_dict()), "EN")
    surgery.convert(model, "EN")
    assert not torch.equal(model[0].expand.weight, model[1].expand.weight)
    assert not torch.equal(stored["0.expand.weight"], stored["1.expand.weight"])
