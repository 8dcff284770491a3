"""Hooks and wrappers of a layer's child modules run where they fetch or compute its weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from equations.cases import inputs, randomized
from helpers.close import assert_close, assert_equal
from ilm_plugins import NORMS
from ilm_plugins.layers.children import Child

C = 64
WITH_CHILDREN = [key for key, norm in NORMS.items() if any(True for _ in norm(C).children())]
every_layer = pytest.mark.parametrize("key", WITH_CHILDREN)


def make(key):
    layer = randomized(lambda: NORMS[key](C)).eval()
    children = [child for child in layer.modules() if isinstance(child, Child)]
    return layer, children, inputs(2, C, 4, 5)


@every_layer
def test_weights_that_lie_elsewhere_between_calls_are_fetched(key):
    """As accelerate's offloading fetches them: on the meta device, until the child is called."""
    layer, children, x = make(key)
    expected, stored = layer(x), {child: dict(child._parameters) for child in children}

    def put_away(child, *_):
        for name, values in stored[child].items():
            child._parameters[name] = None if values is None else values.to("meta")

    def call(child, forward=Child.forward):
        child._parameters.update(stored[child])
        result = forward(child)
        put_away(child)
        return result

    for child in children:
        put_away(child)
        child.forward = lambda child=child: call(child)
    with torch.no_grad():
        assert_equal(layer(x), expected)


class Wrapper(nn.Module):
    """A wrapper whose parameters are those of the module within."""

    def __init__(self, within):
        super().__init__()
        self.within = within

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "within" else getattr(self.within, name)

    def forward(self):
        return self.within()


@every_layer
def test_wrapped_children_compute_the_same(key):
    layer, _, x = make(key)
    expected = layer(x)
    for name, child in list(layer.named_children()):
        setattr(layer, name, Wrapper(child))
    assert_equal(layer(x), expected)


@every_layer
def test_pruned_weights_follow_their_training(key):
    """A hook multiplies them by the mask before each call of the child."""
    layer, children, x = make(key)
    for child in children:
        prune.random_unstructured(child, "weight", 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    trained = layer(x)
    for child in children:
        prune.remove(child, "weight")
    assert_close(layer(x), trained, 16)


@every_layer
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parametrized_weights_are_computed(key, name):
    layer, children, x = make(key)
    children = [child for child in children if getattr(child, name) is not None]
    halved = copy.deepcopy(layer)
    for child in children:
        parametrize.register_parametrization(child, name, Half())
    for child in halved.modules():
        if isinstance(child, Child) and getattr(child, name) is not None:
            getattr(child, name).data.div_(2)
    assert_equal(layer(x), halved(x))


class Half(nn.Module):
    def forward(self, values):
        return values / 2
