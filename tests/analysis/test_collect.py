"""What layers make of images, gathered from a model's passes."""

import pytest
import torch
from torch import nn

from cases import randomized
from ilm_plugins import ExemplarNorm, ILMGroupNorm, SwitchNorm
from ilm_plugins.analysis.collect import MeansOfRatios, collect_ratios, collect_rescaling
from ilm_plugins.errors import UserError
from ilm_plugins.layers import AssocNorm, OptionError

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
    state = {name: value.clone() for name, value in model.state_dict().items()}

    model.train()
    model.early.eval()
    found = collect_ratios(model, images)
    assert list(found) == ["early", "switch.mean", "switch.var", "late"]
    for name, ratios in expected.items():
        torch.testing.assert_close(found[name].values, ratios)
        assert found[name].normalizers == ("IN", "LN", "BN")
    means, variances = model.switch.ratios()
    torch.testing.assert_close(found["switch.mean"].values, means.expand(5, -1))
    torch.testing.assert_close(found["switch.var"].values, variances.expand(5, -1))
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes.pop("early") is modes.pop("early.reduce") is False
    assert not modes.pop("early.expand") and not modes.pop("early.ratio")
    assert all(modes.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_distance_from_uniform():
    found = collect_ratios(nn.Sequential(en()), batches(4))["0"]
    assert found.distance == pytest.approx(0, abs=1e-7)
    layer = SwitchNorm(C, normalizers=("LN", "GN"), num_groups=2)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([0.75, 0.25]).log())
    found = collect_ratios(nn.Sequential(layer), batches(4))
    assert found["0.mean"].distance == pytest.approx(0.25)
    assert found["0.var"].distance == pytest.approx(0)


def test_several_instances_of_one_image_have_their_mean():
    layer = randomized(en, torch.float32).eval()
    (x,) = batches(6)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = layer

        def forward(self, images):
            for part in x[:4], x[4:], x[:0]:
                self.norm(part)

    found = collect_ratios(Head(), [["one image"]])["norm"].values
    torch.testing.assert_close(found, layer.ratios(x).mean(0, keepdim=True))
    with pytest.raises(UserError, match=r"norm got 4 instances for 2 images.*--batch-size 1"):
        collect_ratios(Head(), [["one", "another"]])


def test_a_layer_that_is_called_twice_an_image_has_the_mean_of_its_calls():
    layer = randomized(en, torch.float32).eval()
    (x,) = batches(3)

    def pyramid(images):
        return layer(images), layer(images[..., ::2, ::2])

    found = collect_ratios(layer, [x], pyramid)[""].values
    expected = (layer.ratios(x) + layer.ratios(x[..., ::2, ::2])) / 2
    torch.testing.assert_close(found, expected)


def test_images_of_which_nothing_reaches_a_layer_are_nan():
    layer = randomized(en, torch.float32).eval()

    def forward(images):
        if len(images) == 2:
            layer(images)

    found = collect_ratios(layer, batches(1, 2, 1), forward)[""]
    assert found.values.isnan().all(1).tolist() == [True, False, False, True]
    assert found.mean.sum() == pytest.approx(1) and found.distance > 0
    assert collect_ratios(layer, batches(0, 1))[""].values.shape == (1, 3)
    with pytest.raises(UserError, match="got an input"):
        collect_ratios(layer, batches(1), lambda images: layer(images[:0]))


def test_the_mean_of_equal_rows_is_the_row():
    """A box head sees another number of instances of each image; SN's ratios stay the same."""
    layer = randomized(lambda: SwitchNorm(C), torch.float32, seed=2)
    x = torch.zeros(1, C, 1, 1)

    def forward(images):
        layer(x.expand(images[0], -1, -1, -1))

    found = collect_ratios(layer, [[n] for n in (3, 837, 1000)], forward)
    for mean, part in zip(layer.ratios(), (".mean", ".var"), strict=True):
        assert torch.equal(found[part].values, mean.expand(3, -1))


def test_values_that_are_not_finite_are_told():
    model = Model()
    model.late.ratio.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="late has infinite or NaN values; its parameters or its"):
        collect_ratios(model, batches(2))
    layer = ILMGroupNorm(C, 2, key_group_size=4)
    with pytest.raises(UserError, match="infinite or NaN"):
        collect_rescaling(nn.Sequential(layer), [torch.full((1, C, 2, 2), torch.inf)])


def test_rescaling_is_the_distance_to_the_learned_scale_and_shift():
    layers = [
        randomized(lambda: ILMGroupNorm(C, 2, key_group_size=4), torch.float32, seed=1),
        randomized(lambda: AssocNorm(C, 2, num_key_groups=4), torch.float32, seed=2),
    ]
    (x,) = batches(3)
    found = collect_rescaling(nn.Sequential(*layers), [x])
    for name, layer in zip(("0", "1"), layers, strict=True):
        omega, beta = layer.rescaling(x)
        moved = found[name]
        assert moved.omega.shape == moved.beta.shape == (3, layer.num_key_groups)
        of_channels = moved.omega.repeat_interleave(C // layer.num_key_groups, 1)
        torch.testing.assert_close(layer.weight + of_channels, omega)
        of_channels = moved.beta.repeat_interleave(C // layer.num_key_groups, 1)
        torch.testing.assert_close(layer.bias + of_channels, beta)
        x = layer(x)


def test_rescaling_of_images_of_which_nothing_reaches_a_layer_is_nan():
    """As in a mask head, where a detector found nothing."""
    layer = ILMGroupNorm(C, 2, key_group_size=4)

    def forward(images):
        layer(images[:0] if len(images) == 1 else images)

    found = collect_rescaling(layer, batches(1, 2), forward)[""]
    assert found.omega.isnan().all(1).tolist() == [True, False, False]


def test_layers_are_chosen_by_name():
    found = collect_ratios(Model(), batches(2), match=["ear*", "late"])
    assert list(found) == ["early", "late"]
    with pytest.raises(OptionError, match=r"'conv\*' fits none of the 4 norms, such as 'late'"):
        collect_ratios(Model(), batches(2), match="conv*")


def test_models_without_such_layers_say_what_they_have():
    model = nn.Sequential(nn.BatchNorm2d(C), ILMGroupNorm(16, 2))
    with pytest.raises(UserError, match="no EN, SN or SSN layer, its norms are BatchNorm2d, ILMG"):
        collect_ratios(model, batches(1))
    with pytest.raises(UserError, match="no ILM or AssocNorm layer, its norms are none"):
        collect_rescaling(nn.Conv2d(C, C, 1), batches(1))
    with pytest.raises(UserError, match="none of the 1 layers got an input, such as unused"):
        collect_ratios(Model(), batches(1), match="unused", forward=len)


def test_means_while_training_are_those_of_the_passes_between_start_and_stop():
    model = Model().train()
    means = MeansOfRatios(model)
    first, second, third = batches(2, 4, 3)
    assert means.stop() == {}
    model(first)
    means.start()
    model(second)
    expected = torch.cat([model.early.ratios(second)])
    scalars = means.stop()
    model(third)
    assert means.stop() == {}
    of_early = [scalars[f"ratios/early/{n}"] for n in ("IN", "LN", "BN")]
    torch.testing.assert_close(torch.tensor(of_early), expected.mean(0))
    assert scalars["ratios/switch.var/BN"] == pytest.approx(model.switch.ratios()[1, 2].item())
    assert len(scalars) == 4 * 3 and not any("unused" in name for name in scalars)


def test_means_while_training_are_over_all_calls_and_none_of_nothing():
    layer = randomized(en, torch.float32).eval()
    means = MeansOfRatios(nn.Sequential(layer))
    (x,) = batches(5)
    means.start()
    layer(x[:1])
    layer(x[1:])
    scalars = means.stop()
    torch.testing.assert_close(torch.tensor([*scalars.values()]), layer.ratios(x).mean(0))
    means.start()
    layer(x[:0])
    assert means.stop() == {}
    with pytest.raises(UserError, match=r"no EN, SN or SSN layer.*leave --ratios-interval"):
        MeansOfRatios(nn.Sequential(nn.BatchNorm2d(C)))
