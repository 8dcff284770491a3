"""A tensor of a layer that somebody has set to None is an error that names it, on every backend."""

import pytest
import torch

from equations.cases import BACKENDS, DESCRIBED, inputs, needs_kernels
from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers.mixture import RUNNING
from ilm_plugins.ops import adaptive_norm

C = 64
#: Tensors that a mixture does not need, as BatchNorm does not.
OPTIONAL = {*RUNNING, "num_batches_tracked"}
MISSING = [
    (key, name) for key, norm in NORMS.items() for name in {*norm(C).state_dict()} - OPTIONAL
]
every_missing_tensor = pytest.mark.parametrize("key, name", sorted(MISSING))


def make_without(key, name):
    layer = NORMS[key](C)
    module, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(module), attribute, None)
    return layer


def error_for(key, name):
    return rf"\A{NORMS[key].__name__}: {name} is None, expected a tensor; [^\n]*\Z"


@every_missing_tensor
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_a_missing_tensor_is_named(key, name, backend):
    layer = make_without(key, name)
    with use_backend(backend), pytest.raises(RuntimeError, match=error_for(key, name)):
        layer(inputs(2, C, 4, 5))


@pytest.mark.parametrize("key, name", [("ILMGN", "bias"), ("EN", "ratio.bias"), ("SN", "weight")])
def test_a_missing_tensor_is_named_by_a_compiled_layer(key, name):
    layer = torch.compile(make_without(key, name), backend="eager")
    with pytest.raises(RuntimeError, match=f"{name} is None, expected a tensor"):
        layer(inputs(2, C, 4, 5))


@needs_kernels
@pytest.mark.parametrize("key", DESCRIBED)
def test_kernels_refuse_a_missing_tensor(key):
    """Whoever calls them, they would read from the address 0."""
    layer, x = NORMS[key](C), inputs(2, C, 4, 5)
    network, tensors = layer.describe(), [*layer.rescale_tensors()]
    for i, name in enumerate(network.tensors):
        if tensors[i] is not None:  # BN's statistics in training
            given = [None if place == i else t for place, t in enumerate(tensors)]
            with pytest.raises(RuntimeError, match=rf"\A'{name}' of .* is None"):
                adaptive_norm(
                    x, layer.moment_groups, 1e-5, layer.rescale, *given, describe=layer.describe
                )
