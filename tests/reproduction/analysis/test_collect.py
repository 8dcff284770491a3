"""What layers make of images, gathered from a model's passes, and their operations."""

import pytest
import torch
from torch import nn

from equations.cases import randomized
from helpers.close import assert_equal
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SwitchNorm
from ilm_plugins.errors import UserError
from ilm_plugins.layers import AssocNorm
from ilm_plugins.surgery import convert
from reproduction.analysis.collect import collect_ratios, collect_rescaling
from reproduction.analysis.complexity import flops, network_operations

C = 8


def en():
    return ExemplarNorm(C, reduction=4, expansion=3)


class Model(nn.Module):
    """Layers that are called in another order than they are registered in."""

    def __init__(self):
        super().__init__()
        self.late = randomized(en, torch.float32, seed=1)
        self.switch = randomized(lambda: SwitchNorm(C), torch.float32, seed=2)
        self.early = randomized(en, torch.float32, seed=3)
        self.unused = en()

    def forward(self, x):
        return self.late(x=self.switch(self.early(x)))


def batches(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, C, 5, 4, generator=generator) for n in sizes]


@pytest.fixture
def collected():
    """A model in training but for one layer, two batches, and the ratios that are collected."""
    model, images = Model(), batches(3, 2)
    model.early.eval()
    return model, images, collect_ratios(model, images)


def test_ratios_have_the_order_of_calls(collected):
    assert list(collected[2]) == ["early", "switch.mean", "switch.var", "late"]


def test_ratios_are_those_of_the_layers_inputs(collected):
    model, images, found = collected
    model.eval()
    x = torch.cat(images)
    after = model.switch(model.early(x))
    torch.testing.assert_close(found["early"].values, model.early.ratios(x))
    torch.testing.assert_close(found["late"].values, model.late.ratios(after))


def test_ratios_of_switch_norm_are_the_same_for_each_image(collected):
    model, _, found = collected
    for part, means in zip((".mean", ".var"), model.switch.ratios(), strict=True):
        assert_equal(found[f"switch{part}"].values, means.expand(5, -1))


def test_collecting_leaves_each_modules_mode(collected):
    model, *_ = collected
    assert model.training
    assert not model.early.training
    assert not model.early.reduce.training


def test_collecting_leaves_no_hook(collected):
    assert not any(module._forward_pre_hooks for module in collected[0].modules())


def test_ratios_of_a_compiled_model_are_the_same():
    model, images = Model().eval(), batches(3, 2)
    expected = collect_ratios(model, images)
    compiled = torch.compile(model, backend="eager")
    compiled(images[0])
    found = collect_ratios(compiled, images)
    assert list(found) == [f"_orig_mod.{name}" for name in expected]
    assert_equal(
        [ratios.values for ratios in found.values()], [r.values for r in expected.values()]
    )


def test_the_largest_ratio_times_deviation_has_the_share():
    """Only BN's gamma differ, as in a converted BatchNorm."""
    norm = nn.BatchNorm2d(C)
    norm.weight.data[::2] = -1
    converted, _ = convert(nn.Sequential(norm), "EN", reduction=4)
    found = collect_ratios(converted, batches(4))["0"]
    assert found.mean.tolist() == pytest.approx([1 / 3] * 3)
    assert found.shares.tolist() == [0, 0, 1]


@pytest.fixture
def head():
    """A layer, and a function that gives it six instances in three calls, one of them empty."""
    layer = randomized(en, torch.float32).eval()
    (x,) = batches(6)

    def call(images):
        for part in x[:4], x[4:], x[:0]:
            layer(part)

    return layer, x, call


def test_several_instances_of_one_image_have_their_mean(head):
    layer, x, call = head
    found = collect_ratios(layer, [["one image"]], call)[""].values
    torch.testing.assert_close(found, layer.ratios(x).mean(0, keepdim=True))


def test_instances_that_are_no_multiple_of_the_images_are_refused(head):
    layer, _, call = head
    with pytest.raises(UserError, match="4 instances for 2 images"):
        collect_ratios(layer, [["one", "another"]], call)


def test_images_of_which_nothing_reaches_a_layer_are_nan():
    layer = randomized(en, torch.float32).eval()
    found = collect_ratios(layer, batches(1, 2), lambda x: len(x) == 2 and layer(x))[""]
    assert found.values.isnan().all(1).tolist() == [True, False, False]
    assert found.mean.sum() == pytest.approx(1)


def test_a_model_whose_layers_get_no_input_is_refused():
    layer = randomized(en, torch.float32).eval()
    with pytest.raises(UserError, match="got an input"):
        collect_ratios(layer, batches(1), lambda x: layer(x[:0]))


@pytest.mark.parametrize("options", [{"key_group_size": 2}, {"num_key_groups": 4}])
def test_rescaling_is_the_distance_to_the_learned_scale_and_shift(options):
    norm = ILMGroupNorm if "key_group_size" in options else AssocNorm
    layer = randomized(lambda: norm(C, 2, **options), torch.float32)
    (x,) = batches(3)
    found = collect_rescaling(layer, [x])[""]
    omega, beta = layer.rescaling(x)
    torch.testing.assert_close(layer.weight + found.omega.repeat_interleave(C // 4, 1), omega)
    torch.testing.assert_close(layer.bias + found.beta.repeat_interleave(C // 4, 1), beta)


def test_layers_are_chosen_by_patterns():
    assert list(collect_ratios(Model(), batches(2), match=["ear*", "late"])) == ["early", "late"]


def test_a_model_without_ratios_is_refused_by_its_norms():
    with pytest.raises(UserError, match="no EN, SN or SSN layer, its norms are BatchNorm2d, ILMG"):
        collect_ratios(nn.Sequential(nn.BatchNorm2d(C), ILMGroupNorm(16, 2)), batches(1))


def test_a_layer_of_nan_is_named():
    model = Model()
    model.late.ratio.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="late has infinite or NaN values"):
        collect_ratios(model, batches(2))


@pytest.mark.parametrize("name", NORMS)
def test_operations_of_a_layer_are_those_of_group_norm_plus_its_networks(name):
    pytest.importorskip("fvcore", reason="needs fvcore")
    x, layer = torch.randn(3, 64, 5, 4), NORMS[name](64)
    assert flops(layer, x) == flops(nn.GroupNorm(32, 64), x) + 3 * network_operations(layer)


def test_without_a_convolution_en_correlates_all_channels():
    from reproduction.layers import WithoutConvolutionExemplarNorm  # registers keys

    layer = WithoutConvolutionExemplarNorm(64)
    weights = layer.expand.weight.numel() + layer.ratio.weight.numel()
    assert network_operations(layer) == weights + 3 * 3 * 64
