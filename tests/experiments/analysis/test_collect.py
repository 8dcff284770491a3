"""What layers make of images, gathered from a model's passes, and their operations."""

import pytest
import torch
from torch import nn

from cases import randomized
from close import assert_equal
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SwitchNorm
from ilm_plugins.errors import UserError
from ilm_plugins.experiments.analysis.collect import collect_ratios, collect_rescaling
from ilm_plugins.experiments.analysis.complexity import flops
from ilm_plugins.layers import AssocNorm
from ilm_plugins.surgery import convert

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


def test_ratios_are_those_of_the_layers_inputs_in_the_order_of_calls():
    model, images = Model().eval(), batches(3, 2)
    x = torch.cat(images)
    after = model.switch(model.early(x))
    expected = {"early": model.early.ratios(x), "late": model.late.ratios(after)}
    model.train()
    model.early.eval()
    found = collect_ratios(model, images)
    assert list(found) == ["early", "switch.mean", "switch.var", "late"]
    for name, ratios in expected.items():
        torch.testing.assert_close(found[name].values, ratios)
    for part, means in zip((".mean", ".var"), model.switch.ratios(), strict=True):
        assert torch.equal(found[f"switch{part}"].values, means.expand(5, -1))
    assert model.training and not model.early.training and not model.early.reduce.training
    assert not any(module._forward_pre_hooks for module in model.modules())


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


def test_shares():
    norm = nn.BatchNorm2d(C)
    norm.weight.data[::2] = -1
    converted, _ = convert(nn.Sequential(norm), "EN", reduction=4)
    found = collect_ratios(converted, batches(4))["0"]
    assert found.mean.tolist() == pytest.approx([1 / 3] * 3) and found.shares.tolist() == [0, 0, 1]


def test_several_instances_of_one_image_have_their_mean():
    layer = randomized(en, torch.float32).eval()
    (x,) = batches(6)

    def head(images):
        for part in x[:4], x[4:], x[:0]:
            layer(part)

    found = collect_ratios(layer, [["one image"]], head)[""].values
    torch.testing.assert_close(found, layer.ratios(x).mean(0, keepdim=True))
    with pytest.raises(UserError, match="4 instances for 2 images"):
        collect_ratios(layer, [["one", "another"]], head)


def test_images_of_which_nothing_reaches_a_layer_are_nan():
    layer = randomized(en, torch.float32).eval()
    found = collect_ratios(layer, batches(1, 2), lambda x: len(x) == 2 and layer(x))[""]
    assert found.values.isnan().all(1).tolist() == [True, False, False]
    assert found.mean.sum() == pytest.approx(1)
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


def test_layers_are_chosen_and_mistakes_told():
    assert list(collect_ratios(Model(), batches(2), match=["ear*", "late"])) == ["early", "late"]
    with pytest.raises(UserError, match="no EN, SN or SSN layer, its norms are BatchNorm2d, ILMG"):
        collect_ratios(nn.Sequential(nn.BatchNorm2d(C), ILMGroupNorm(16, 2)), batches(1))
    model = Model()
    model.late.ratio.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="late has infinite or NaN values"):
        collect_ratios(model, batches(2))


@pytest.mark.parametrize("name", NORMS)
def test_a_layer_counts_as_a_group_norm_and_its_network(name):
    pytest.importorskip("fvcore", reason="needs fvcore")
    x, layer = torch.randn(3, 64, 5, 4), NORMS[name](64)
    assert flops(layer, x) == flops(nn.GroupNorm(32, 64), x) + 3 * layer.network_flops()


def test_without_a_convolution_en_correlates_all_channels():
    layer = ExemplarNorm(64, ratio_net="no_conv")
    weights = layer.expand.weight.numel() + layer.ratio.weight.numel()
    assert layer.network_flops() == weights + 3 * 3 * 64
