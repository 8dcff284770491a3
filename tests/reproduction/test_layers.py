"""The variants of the papers' tables against the transcriptions of their equations."""

import copy

import pytest
import torch

from equations import transcription
from equations.cases import (
    BACKENDS,
    CHANNELS,
    attributes_of,
    inputs,
    parameters_of,
    randomized,
    results,
)
from helpers.close import EQUAL, assert_close
from ilm_plugins import NORMS

# ``reproduction.layers`` registers keys, so tests import it when they run.

#: Key -> options of the layer, and what its transcription takes for them.
VARIANTS = {
    "ENReLU": ({"reduction": 4, "expansion": 3}, {"activation": "relu"}),
    "ENSingleAffine": ({"reduction": 4, "expansion": 3}, {}),
    "ENWithoutConvolution": ({"expansion": 3}, {"ratio_net": "no_conv"}),
    "ENMLP": ({"reduction": 4}, {"ratio_net": "mlp"}),
    "ENMLP-relu": (
        {"reduction": 4, "activation": "relu"},
        {"ratio_net": "mlp", "activation": "relu"},
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_en_equals_its_transcription(name, training):
    from reproduction import layers

    options, named = VARIANTS[name]
    variant = layers.VARIANTS[name.partition("-")[0]]
    layer = randomized(lambda: variant(CHANNELS, **options)).train(training)
    x, dy = inputs(2, CHANNELS, 4, 3).requires_grad_(), inputs(2, CHANNELS, 4, 3, seed=2)
    taken = attributes_of(layer, "normalizers", "reduction") | named
    parameters = {"reduce": None} | parameters_of(layer)
    expected, ratios = transcription.exemplar_norm(x, **parameters, **taken)
    assert_close(layer.ratios(x), ratios, 10 * EQUAL)
    gradients = torch.autograd.grad(expected, [x, *layer.parameters()], dy)
    for backend in BACKENDS:
        y, *found = results(copy.deepcopy(layer), x, dy, backend)
        assert_close(y, expected, EQUAL)
        assert_close(found, gradients, 10 * EQUAL, 1)


@pytest.mark.parametrize("key", ["ILMGN", "ILMIN", "ILMLN", "AssocNorm"])
def test_maps_of_a_normal_start_are_normal_and_the_kernels_stay(key):
    from reproduction import layers

    layer, plain = layers.VARIANTS[f"{key}Normal"](2048, hidden=64), NORMS[key](2048, hidden=64)
    for projection in layer.children():
        assert abs(projection.weight.std() - 1) < 0.1
        assert abs(projection.weight.mean()) < 0.1
    assert layer.describe() == plain.describe()


def test_every_variant_has_its_key():
    from reproduction import layers

    assert layers.VARIANTS.items() <= NORMS.items()
