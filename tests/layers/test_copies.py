"""Copies of layers: they share nothing with the layers that they were made of."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch.nn.utils import parametrize

from ilm_plugins import NORMS, ExemplarNorm

X = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NORMS)
def test_a_copy_of_a_compiled_layer_computes_with_its_own_weights(name):
    layer = NORMS[name](64).eval()
    layer.compile(backend="eager")
    twin = copy.deepcopy(layer)
    torch.nn.init.zeros_(twin.weight)
    assert not torch.equal(twin(X), layer(X))


@pytest.mark.parametrize("name", NORMS)
def test_a_parametrized_layer_is_copied(name):
    layer = NORMS[name](64).eval()
    parametrize.register_parametrization(layer, "bias", torch.nn.Identity())
    twin = copy.deepcopy(layer)
    torch.nn.init.ones_(twin.parametrizations.bias.original)
    assert not torch.equal(twin(X), layer(X))


class WithLock(ExemplarNorm):
    """A layer with something that cannot be copied, which its state leaves out."""

    def __init__(self, channels):
        super().__init__(channels)
        self.lock = threading.Lock()

    def __getstate__(self):
        return {key: value for key, value in super().__getstate__().items() if key != "lock"}


def test_a_copy_has_the_state_that_a_subclass_gives():
    assert not hasattr(copy.deepcopy(WithLock(64)), "lock")


# ---- the plans that a layer keeps from call to call

#: Of a network that kernels compute, and of one that torch computes.
each_plan = pytest.mark.parametrize(
    "name, options",
    [*((name, {}) for name in NORMS), ("ILMGN", {"activations": ("tanh", "relu")})],
    ids=str,
)


@each_plan
def test_a_layer_is_freed_with_its_last_reference(name, options):
    """So its plans, and the autograd graphs of results that are gone, do not hold it."""
    layer = NORMS[name](64, **options)
    layer(X)
    reference = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert reference() is None
    finally:
        gc.enable()


@each_plan
def test_a_changed_option_counts_in_the_next_call(name, options):
    layer, other = NORMS[name](64, **options), NORMS[name](64, eps=0.5, **options)
    other.load_state_dict(layer.state_dict())
    layer(X)
    layer.eps = 0.5
    assert torch.equal(layer(X), other(X))


@pytest.mark.parametrize("name", NORMS)
def test_a_shallow_copy_with_another_option_changes_neither(name):
    layer = NORMS[name](64).eval()
    before = layer(X)
    twin = copy.copy(layer)
    twin.eps = 0.5
    assert not torch.equal(twin(X), before)
    assert torch.equal(layer(X), before)


class WithState(ExemplarNorm):
    """A layer whose state is all of its attributes."""

    def __getstate__(self):
        return self.__dict__.copy()


@pytest.mark.parametrize("make", [ExemplarNorm, WithState])
def test_a_pickled_layer_makes_its_plans_again(make):
    layer = make(64).eval()
    expected = layer(X)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(X), expected)
