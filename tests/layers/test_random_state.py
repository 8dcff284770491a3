"""The layers draw their initial weights beside torch's random generators."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, surgery

#: Keys whose networks do not start with constants alone.
DRAWING = [key for key in NORMS if key not in ("SN", "SSN")]


def built(norm, seed=5):
    """The convolutions of a small model, its norms, and the state of the generator behind it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), norm(64), nn.Conv2d(64, 64, 1), norm(64))
    convolutions = [module.weight for module in model if isinstance(module, nn.Conv2d)]
    return convolutions, [model[1], model[3]], torch.get_rng_state()


def networks(layer):
    """The weights of a layer's networks that are drawn."""
    found = [child.weight for child in layer.children()]
    return [weight for weight in found if weight.any()]


@pytest.mark.parametrize("key", NORMS)
def test_the_rest_of_a_model_starts_as_with_a_plain_norm(key):
    plain, _, state = built(nn.BatchNorm2d)
    ours, _, our_state = built(NORMS[key])
    assert all(map(torch.equal, ours, plain))
    assert torch.equal(our_state, state)


@pytest.mark.parametrize("key", DRAWING)
def test_a_seed_determines_the_layers_and_each_seed_gives_others(key):
    layers, again, others = (built(NORMS[key], seed)[1] for seed in (5, 5, 6))
    for weight, same, other in zip(*map(networks, (layers[0], again[0], others[0])), strict=True):
        assert torch.equal(weight, same)
        assert not torch.equal(weight, other)


@pytest.mark.parametrize("key", DRAWING)
def test_layers_start_with_other_networks_behind_other_draws_and_in_a_row(key):
    layers = [*built(NORMS[key])[1], NORMS[key](64), NORMS[key](64)]
    for first, second in itertools.combinations(map(networks, layers), 2):
        assert not any(map(torch.equal, first, second))


def test_a_state_that_is_set_again_gives_the_same_layers():
    state = torch.get_rng_state()
    first = networks(NORMS["EN"](64))
    torch.set_rng_state(state)
    assert all(map(torch.equal, networks(NORMS["EN"](64)), first))


def test_the_networks_of_one_layer_differ():
    layer = NORMS["ILMGN"](512)
    assert not torch.equal(layer.decode_mean.weight, layer.decode_var.weight)


def test_a_network_has_other_numbers_than_the_module_behind_the_layer():
    torch.manual_seed(0)
    attention = NORMS["AN"](64).attention.weight
    behind = nn.Linear(64, 10).weight  # of the same shape and distribution
    assert torch.corrcoef(torch.stack((attention, behind)).flatten(1))[0, 1].abs() < 0.2


def test_layers_that_a_conversion_builds_differ():
    """Between them nothing else draws."""
    model, state = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(64)), torch.get_rng_state()
    stored, _ = surgery.convert_state(copy.deepcopy(model.state_dict()), "EN")
    surgery.convert(model, "EN")
    assert not torch.equal(model[0].expand.weight, model[1].expand.weight)
    assert not torch.equal(stored["0.expand.weight"], stored["1.expand.weight"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("key", DRAWING)
def test_to_initialize_a_layer_or_its_network_again_leaves_the_generator(key):
    layer, state = NORMS[key](64), torch.get_rng_state()
    before = [weight.clone() for weight in networks(layer)]
    layer.reset_parameters()
    assert not any(map(torch.equal, networks(layer), before))
    before = [weight.clone() for weight in networks(layer)]
    for child in layer.children():  # as fully_shard's users do on what was on the meta device
        child.reset_parameters()
    assert not any(map(torch.equal, networks(layer), before))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("key", NORMS)
def test_a_layer_on_the_meta_device_leaves_the_generator(key):
    state = torch.get_rng_state()
    NORMS[key](64, device="meta").reset_parameters()
    with torch.device("meta"):
        NORMS[key](64)
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_built_in_four_threads_leave_the_generator_and_differ():
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        layers = [*threads.map(NORMS["EN"], [64] * 100)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(layer.expand.weight.flatten().tolist()) for layer in layers}) == 100
