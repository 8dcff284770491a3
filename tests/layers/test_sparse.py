"""Sparse Switchable Normalization: its ratios, their fixing, its radius over a training."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import transcription
from cases import CHANNELS, inputs, randomized
from ilm_plugins import SparseSwitchNorm, freeze, set_radius, surgery
from ilm_plugins.layers.sparse import sparsestmax

#: Enough for every number of logits to be one-hot.
ALL = 1.0
RADII = (0.0, 0.2, 0.45, 0.6, 0.75, 0.85, ALL)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def ratios_of(logits, radius):
    return sparsestmax(logits, double(radius))


def fixed_layer(mean="BN", var="BN", **options):
    """A layer whose ratios are fixed, with random parameters."""
    layer = randomized(lambda: SparseSwitchNorm(CHANNELS, **options))
    with torch.no_grad():
        for logits, chosen in ((layer.mean_weight, mean), (layer.var_weight, var)):
            logits.copy_(double(*(float(n == chosen) for n in layer.normalizers)) / 9)
    layer.set_radius(ALL)
    return layer


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_ratios_and_gradients_are_those_of_the_definition(k):
    generator = torch.Generator().manual_seed(k)
    sizes = set()
    for radius, scale, _ in itertools.product(RADII, (0.1, 0.3, 1.0), range(8)):
        logits = scale * torch.randn(2, k, generator=generator, dtype=torch.float64)
        logits.requires_grad_()
        found = ratios_of(logits, radius)
        expected = torch.stack([transcription.sparsestmax(row, radius) for row in logits])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        seed = torch.randn(2, k, generator=generator, dtype=torch.float64)
        grads = [torch.autograd.grad(y, logits, seed)[0] for y in (found, expected)]
        torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
        sizes |= {int(n) for n in (found > 0).sum(1)}
    assert sizes == set(range(1, k + 1))


@pytest.mark.parametrize(
    "logits, radius, size, moved",
    [
        ((0.5, 0.3, 0.2), 0.0, 3, False),
        ((0.5, 0.3, 0.2), 0.35, 3, True),  # away from the centre, within the triangle
        ((0.5, 0.3, 0.2), 0.6, 2, True),  # over an edge, and to a point of it
        ((0.9, 0.3, -0.5), 0.2, 2, False),
        ((0.9, 0.8, -0.5), 0.5, 2, True),  # on an edge from the start
        ((0.5, 0.3, 0.2), 0.8, 2, True),
        ((0.5, 0.3, 0.2), 0.82, 1, True),
        ((2.0, 0.3, 0.2), 0.0, 1, False),
    ],
)
def test_gradcheck_within_each_face(logits, radius, size, moved):
    logits = double(*logits).requires_grad_()
    ratios = ratios_of(logits, radius)
    assert (ratios > 0).sum() == size
    assert torch.allclose(ratios, ratios_of(logits, 0.0)) != moved
    assert torch.autograd.gradcheck(lambda v: ratios_of(v, radius), logits)


def test_from_the_radius_of_the_circumscribed_sphere_on_one_ratio_is_1():
    for k in (2, 3, 4):
        logits = 1e-3 * torch.randn(50, k, generator=torch.Generator().manual_seed(k)).double()
        found = ratios_of(logits, (1 - 1 / k) ** 0.5 + 1e-9)
        torch.testing.assert_close(
            found, nn.functional.one_hot(logits.argmax(1), k).double(), rtol=0, atol=0
        )


def test_equal_logits_stay_equal_with_finite_gradients_until_something_parts_them():
    for radius in RADII:
        logits = torch.ones(3, requires_grad=True)
        ratios = sparsestmax(logits, torch.tensor(radius))
        torch.testing.assert_close(ratios, torch.full((3,), 1 / 3))
        (grad,) = torch.autograd.grad(ratios[0], logits)
        assert grad.isfinite().all()
    value = 1.5000002384185791  # a third of three times as much is another float32
    for shape in ((3,), (2, 3)):
        logits = torch.full(shape, value, requires_grad=True)
        assert (logits.sum(-1) / 3 != value).all()
        for radius in RADII:
            ratios = sparsestmax(logits, torch.tensor(radius))
            torch.testing.assert_close(ratios, torch.full(shape, 1 / 3))
            (grad,) = torch.autograd.grad(ratios[..., 0].sum(), logits)
            assert grad.abs().max() <= 1
    parted = sparsestmax(torch.tensor([1.0, 1.0 + 1e-6, 1.0]), torch.tensor(ALL))
    assert parted.tolist() == [0, 1, 0]


def test_nan_logits_reach_the_ratios():
    assert ratios_of(double(1.0, torch.nan, 0.5), 0.5).isnan().any()
    layer = SparseSwitchNorm(CHANNELS)
    layer.mean_weight.data[1] = torch.nan
    assert layer(inputs(2, CHANNELS, 3, 3, dtype=torch.float32)).isnan().any()


def test_ratios_that_are_1_are_fixed_by_the_next_radius():
    layer = randomized(lambda: SparseSwitchNorm(CHANNELS))
    with torch.no_grad():
        layer.mean_weight.copy_(double(2, 0.5, 0))  # one-hot at every radius
        layer.var_weight.copy_(double(0.4, 0.35, 0.25))
    layer.set_radius(0.1)
    assert layer.mean_fixed.tolist() == [1, 0, 0] and not layer.var_fixed.any()
    with torch.no_grad():
        layer.mean_weight.copy_(double(0, 0.5, 2))
    layer.set_radius(0.0)
    assert layer.ratios()[0].tolist() == [1, 0, 0]
    torch.testing.assert_close(layer.ratios()[1], double(0.4, 0.35, 0.25))
    layer(inputs(3, CHANNELS, 4, 4)).square().sum().backward()
    # Zero instead of None: DistributedDataParallel waits for every parameter.
    assert layer.mean_weight.grad.tolist() == [0, 0, 0] and layer.var_weight.grad.any()
    layer.reset_parameters()
    assert not layer.mean_fixed.any() and not layer.radius.any()


def test_ratios_of_an_average_of_models_sum_to_1():
    """Of one before and one after its ratios are fixed, where buffers are averaged, too."""
    before, after = SparseSwitchNorm(CHANNELS), fixed_layer().float()
    average = torch.optim.swa_utils.AveragedModel(before, use_buffers=True)
    average.update_parameters(before)
    average.update_parameters(after)
    assert average.module.mean_fixed.tolist() == [0, 0, 0.5]
    torch.testing.assert_close(average.module.ratios().sum(1), torch.ones(2))
    assert torch.equal(after.ratios(), torch.tensor([[0.0, 0, 1]] * 2))


def test_forward_passes_and_checkpointing_leave_radius_and_fixed_ratios_alone():
    x, found = inputs(3, CHANNELS, 4, 4).requires_grad_(), []
    for recompute in (False, True):
        layer = randomized(lambda: SparseSwitchNorm(CHANNELS))
        with torch.no_grad():
            layer.radius.fill_(ALL)  # by which set_radius would fix the ratios
        y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
        assert layer.radius == ALL and not layer.mean_fixed.any() and not layer.var_fixed.any()
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_checkpoint_has_radius_and_fixed_ratios():
    layer, other = fixed_layer("LN", "BN"), SparseSwitchNorm(CHANNELS).double()
    other.load_state_dict(layer.state_dict())
    assert other.radius == ALL
    assert other.ratios().tolist() == layer.ratios().tolist() == [[0, 1, 0], [0, 0, 1]]


def test_set_radius_of_a_model_leaves_frozen_layers():
    model = nn.Sequential(SparseSwitchNorm(8), nn.Sequential(SparseSwitchNorm(8), nn.ReLU()))
    freeze(model[0])
    set_radius(model, 0.25)
    assert model[0].radius == 0 and model[1][0].radius == 0.25


@pytest.mark.parametrize("normalizers", [("IN", "LN", "BN"), ("GN", "BN")])
def test_the_one_hot_end_is_the_norm_that_is_chosen(normalizers):
    x = inputs(3, CHANNELS, 5, 4)
    plain = {"IN": nn.InstanceNorm2d, "BN": nn.BatchNorm2d, "LN": nn.GroupNorm, "GN": nn.GroupNorm}
    for chosen in normalizers:
        layer = fixed_layer(chosen, chosen, normalizers=normalizers, num_groups=4)
        expected = layer(x)
        layer.eval()
        expected_in_evaluation = layer(x)
        norm, report = surgery.revert(copy.deepcopy(layer))
        assert type(norm) is plain[chosen] and not report.left
        torch.testing.assert_close(norm(x), expected_in_evaluation, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(norm.train()(x), expected, rtol=1e-10, atol=1e-10)


def test_ratios_of_two_normalizers_or_not_fixed_do_not_lead_back():
    for layer in (fixed_layer("LN", "BN"), SparseSwitchNorm(CHANNELS)):
        same, report = surgery.revert(layer)
        assert same is layer and "not fixed on one normalizer for both" in report.left[""]
        _, report = surgery.revert_state(layer.state_dict())
        assert "not fixed on one normalizer for both" in report.left[""]
    for chosen, kept in (("BN", 5), ("LN", 2)):
        state, report = surgery.revert_state(fixed_layer(chosen, chosen).state_dict())
        assert len(state) == kept and not report.left
