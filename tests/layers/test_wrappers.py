"""What wraps a model to train it: torch.func and checkpointed activations."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from cases import every_layer, inputs, modes, randomized
from ilm_plugins import NORMS
from workers import own_gradients

C = 64


def build(norm, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, C, 3), norm(C), nn.ReLU(), nn.Conv2d(C, 4, 3))


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


# ---- torch.func


@modes(NORMS)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_an_ensemble_by_vmap_is_its_members(name, training):
    """Training included: each member moves its own running statistics."""
    members = [NORMS[name](C).train(training) for _ in range(3)]
    for member in members:
        nn.init.normal_(member.weight)
    parameters, buffers = stack_module_state(members)
    buffers = {n: b.clone() for n, b in buffers.items()}
    x = inputs(4, C, 3, 3, dtype=torch.float32)

    def run(parameters, buffers):
        return functional_call(members[0], (parameters, buffers), (x,))

    together = vmap(run)(parameters, buffers)
    assert_same(together, torch.stack([member(x) for member in members]))
    assert_same(buffers, stack_module_state(members)[1])


@every_layer
def test_gradients_of_each_sample(name):
    layer, x = NORMS[name](C).eval(), inputs(3, C, 3, 3, dtype=torch.float32)
    state = dict(layer.named_parameters())

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample.unsqueeze(0),)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(state, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample.unsqueeze(0)).square().sum().backward()
        assert_same({n: g[i] for n, g in together.items()}, own_gradients(layer))


@pytest.mark.parametrize("name", ["EN", "SN", "SSN"])
def test_forward_mode_over_parameters_uses_the_batch(name):
    layer = randomized(lambda: NORMS[name](64), torch.float64)
    x = torch.randn(3, 64, 4, 4, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    step = {key: torch.randn_like(p) for key, p in parameters.items()}

    def run(parameters):
        # Training updates the buffers, and transforms refuse to do that in place.
        buffers = {key: b.clone() for key, b in layer.named_buffers()}
        return functional_call(layer, (parameters, buffers), (x,))

    def moved(size):
        return run({key: p + size * step[key] for key, p in parameters.items()})

    y, tangent = torch.func.jvp(run, (parameters,), (step,))
    torch.testing.assert_close(y, run(parameters))
    difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-6)


# ---- checkpointed activations


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("name", [*NORMS, "BN"])
def test_checkpointed_activations(name, reentrant):
    """Gradients stay; running statistics see the batch twice, as BatchNorm's do."""
    plain = build({**NORMS, "BN": nn.BatchNorm2d}[name])
    checkpointed, twice = copy.deepcopy(plain), copy.deepcopy(plain)
    x = inputs(4, 3, 8, 8, dtype=torch.float32).requires_grad_()
    expected, actual = plain(x), checkpoint(checkpointed, x, use_reentrant=reentrant)
    assert_same(actual, expected)
    for y in (expected, actual):
        y.square().sum().backward()
    assert_same(own_gradients(checkpointed), own_gradients(plain))
    for _ in range(2):
        twice(x)
    assert_same(dict(checkpointed.named_buffers()), dict(twice.named_buffers()))


@pytest.mark.parametrize("name", ["EN", "SN", "SSN"])
def test_torchs_fusion_with_a_convolution_is_refused(name):
    """It takes any module with BatchNorm's attributes, and would forget all other normalizers."""
    options = {"shared_affine": True} if name == "EN" else {}  # else weight has another shape
    convolution, layer = nn.Conv2d(3, C, 3), NORMS[name](C, **options)
    with pytest.raises(TypeError, match="cannot be fused into a convolution"):
        nn.utils.fuse_conv_bn_eval(convolution.eval(), layer.eval())
    assert torch.equal(layer.running_var, layer.state_dict()["running_var"])
