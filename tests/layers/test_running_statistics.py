"""Running statistics and their momentum, as somebody may set them after a layer is built."""

import copy

import pytest
import torch
from torch import nn

from equations.cases import MIXTURES, every_backend, inputs, randomized
from helpers.close import assert_close, assert_equal
from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers import OptionError
from ilm_plugins.layers.mixture import RUNNING

C = 64
every_mixture = pytest.mark.parametrize("key", MIXTURES)


@every_mixture
@every_backend
@pytest.mark.parametrize("training", [True, False])
def test_statistics_may_be_parameters(key, backend, training):
    """As in BatchNorm, where they must not require a gradient."""
    layer, x = randomized(lambda: NORMS[key](C)).train(training), inputs(2, C, 4, 5)
    expected = copy.deepcopy(layer)
    for name in RUNNING:
        setattr(layer, name, nn.Parameter(getattr(layer, name), requires_grad=False))
    with use_backend(backend):
        assert_equal(layer(x), expected(x))
    assert_equal({**layer.state_dict()}, {**expected.state_dict()})


@every_mixture
@every_backend
@pytest.mark.parametrize("training", [True, False])
def test_a_momentum_of_none_is_refused_when_the_layer_runs(key, backend, training):
    """Frameworks set it in every norm that has one, for BatchNorm's average over all batches."""
    layer = NORMS[key](C).train(training)
    layer.momentum = None
    with use_backend(backend), pytest.raises(OptionError, match=r"call surgery\.recalibrate"):
        layer(inputs(2, C, 4, 5))


@every_mixture
@every_backend
def test_a_momentum_of_0_keeps_the_statistics_whatever_the_batch(key, backend):
    layer, x = NORMS[key](C, momentum=0.0), inputs(2, C, 4, 5)
    before = copy.deepcopy(dict(layer.named_buffers()))
    x[0] = torch.inf
    with use_backend(backend):
        layer(x)
    assert_equal(dict(layer.named_buffers()), before)


@every_mixture
@every_backend
def test_a_momentum_of_1_replaces_the_statistics_however_large_they_were(key, backend):
    layer, x = NORMS[key](C, momentum=1.0), inputs(2, C, 4, 5, dtype=torch.float32)
    layer.running_mean.fill_(1e8)
    layer.running_variance.fill_(1e8)
    with use_backend(backend):
        layer(x)
    positions = 0, 2, 3
    found = layer.running_mean, layer.running_variance
    assert_close(found, (x.double().mean(positions), x.double().var(positions)), 64)


@every_mixture
def test_batch_norms_variance_comes_with_its_mean(key):
    plain = randomized(lambda: nn.BatchNorm2d(C)).train()
    plain(inputs(2, C, 4, 5))
    layer = NORMS[key](C).double()
    running = {name: t for name, t in plain.state_dict().items() if name.startswith("running")}
    layer.load_state_dict(running, strict=False)
    assert_equal([getattr(layer, name) for name in RUNNING], [*running.values()])
