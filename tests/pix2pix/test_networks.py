"""pix2pix: the paper's architecture and sizes, its losses, and a training step."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")

from mmengine.optim import OptimWrapper, OptimWrapperDict

from helpers.close import assert_close, assert_equal
from ilm_plugins import ILMInstanceNorm
from ilm_plugins.layers import OptionError
from ilm_plugins.pix2pix import translation_networks as networks

IN = {"type": "IN", "affine": True}
ILM = {"type": "ILMIN", "key_group_size": 1}
EN = {"type": "EN", "reduction": 8}
#: Roundings in float64 of what comes from losses in float32, which norms of few pixels enlarge.
SINGLE = 2**37


def build(norm_g=IN, norm_d=IN):
    torch.manual_seed(0)
    return networks.Pix2Pix(
        {"type": "UNetGenerator", "width": 4, "size": 16, "norm_cfg": norm_g},
        {"type": "PatchDiscriminator", "width": 4, "layers": 1, "norm_cfg": norm_d},
    )


@pytest.fixture(scope="module")
def papers():
    """The generator and the discriminator with their defaults."""
    with torch.device("meta"):
        return networks.UNetGenerator(), networks.PatchDiscriminator()


def test_the_generators_convolutions_have_the_papers_widths(papers):
    down, up = ([block[1] for block in blocks] for blocks in (papers[0].down, papers[0].up))
    assert [c.out_channels for c in down] == [64, 128, 256, 512, 512, 512, 512, 512]
    assert [c.in_channels for c in up] == [512, 1024, 1024, 1024, 1024, 512, 256, 128]
    assert [c.out_channels for c in up] == [512, 512, 512, 512, 256, 128, 64, 3]


def test_the_generators_convolutions_have_biases_where_no_norm_follows(papers):
    down, up = ([block[1] for block in blocks] for blocks in (papers[0].down, papers[0].up))
    assert [c.bias is not None for c in down] == [True, *[False] * 6, True]
    assert [c.bias is not None for c in up] == [*[False] * 7, True]


def test_the_generators_first_three_blocks_upwards_have_dropout(papers):
    blocks = enumerate(papers[0].up)
    assert [i for i, block in blocks if isinstance(block[3], nn.Dropout)] == [0, 1, 2]


def test_the_discriminator_has_the_papers_layers(papers):
    convs = [m for m in papers[1].modules() if isinstance(m, nn.Conv2d)]
    expected = [(64, True), (128, False), (256, False), (512, False), (1, True)]
    assert [(c.out_channels, c.bias is not None) for c in convs] == expected
    kinds = [type(layer).__name__ for layer in papers[1].layers]
    block = ["Conv2d", "InstanceNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "Identity", "LeakyReLU", *3 * block, "Conv2d"]


@pytest.mark.parametrize("which, count", [(0, 7), (1, 4)], ids=["generator", "discriminator"])
def test_leaky_rectifiers_have_a_slope_of_a_fifth(papers, which, count):
    leaks = [m.negative_slope for m in papers[which].modules() if isinstance(m, nn.LeakyReLU)]
    assert leaks == [0.2] * count


def test_the_discriminator_sees_70_pixels():
    discriminator = networks.PatchDiscriminator(width=2, norm_cfg=None)
    image = torch.zeros(1, 3, 256, 256, requires_grad=True)
    logits = discriminator(torch.zeros(1, 3, 256, 256), image)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    seen = image.grad.abs().sum((0, 1))
    assert (seen.sum(0) != 0).sum() == (seen.sum(1) != 0).sum() == 70


def test_convolutions_start_from_the_papers_distribution():
    for layer in networks.UNetGenerator(width=16, size=64, norm_cfg=ILM).modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = layer.weight.detach()
            assert abs(weight.mean()) < 2e-3
            assert 0.018 < weight.std() < 0.022
            assert layer.bias is None or not layer.bias.any()


def small_generator():
    return networks.UNetGenerator(1, 2, width=2, size=8, norm_cfg=IN)


def test_the_generator_keeps_the_size_of_images():
    assert small_generator()(torch.randn(2, 1, 16, 24)).shape == (2, 2, 16, 24)


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: small_generator()(torch.randn(2, 1, 16, 20)),
            "16 x 20 pixels, but size=8 takes",
        ),
        (lambda: networks.UNetGenerator(size=-4), "give a power of 2"),
        (lambda: networks.UNetGenerator(size=2), "at least 4"),
        (lambda: networks.UNetGenerator(size=250), "give a power of 2"),
    ],
    ids=["image", "negative", "small", "no power"],
)
def test_a_size_that_does_not_fit_is_refused(make, words):
    with pytest.raises(OptionError, match=words):
        make()


@pytest.mark.parametrize(
    "norm_cfg, kind",
    [
        ({"type": "BN"}, nn.BatchNorm2d),
        ({"type": "GN", "num_groups": 2}, nn.GroupNorm),
        ({"type": ILMInstanceNorm, "key_group_size": 1}, ILMInstanceNorm),
        (None, nn.Identity),
    ],
    ids=["BN", "GN", "class", "none"],
)
def test_a_norm_is_built_by_its_config(norm_cfg, kind):
    assert type(networks.build_norm(norm_cfg, 8)) is kind


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"input": list(images[:2]), "target": list(images[2:])}


def scaled(images):
    """Images as the networks get them, but in float64."""
    return torch.stack(images).double() / 127.5 - 1


def optimizers(model, wrapper=OptimWrapper):
    found = {"generator": model.generator, "discriminator": model.discriminator}
    steps = {name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in found.items()}
    return OptimWrapperDict(**{name: wrapper(optimizer=step) for name, step in steps.items()})


@pytest.fixture
def models(monkeypatch):
    """A function from a discriminator's norm to two equal models in float64, without dropout."""
    monkeypatch.setattr(networks, "to_signed", scaled)
    monkeypatch.setattr(networks.SteadyDropout, "forward", lambda self, x: x)
    return lambda norm_d: [build(ILM, norm_d).double().train() for _ in range(2)]


def loss(logits, real):
    return F.softplus(-logits.float() if real else logits.float()).mean()


@pytest.mark.parametrize("norm_d", [IN, EN], ids=["IN", "EN"])
def test_a_step_is_the_papers(norm_d, models):
    """The discriminator at half its loss, then the generator against the new discriminator."""
    model, other = models(norm_d)
    inputs, targets = (scaled(batch()[kind]) for kind in ("input", "target"))
    losses = model.train_step(batch(), optimizers(model))

    def step(network, total):
        grads = torch.autograd.grad(total, network.parameters())
        for p, grad in zip(network.parameters(), grads, strict=True):
            p.data -= 0.1 * grad

    g, d = other.generator, other.discriminator
    outputs = g(inputs)
    real, fake = loss(d(inputs, targets), True), loss(d(inputs, outputs.detach()), False)
    step(d, (real + fake) / 2)
    gan, l1 = loss(d(inputs, outputs), True), (outputs - targets).abs().mean()
    step(g, gan + 100 * l1)

    found = [losses[f"loss_{name}"] for name in ("D_real", "D_fake", "G_GAN", "G_L1")]
    assert_close(found, [real, fake, gan, l1], SINGLE)
    # A bias may move by a difference of float32 values of this size: of real and generated images.
    assert_close(model.state_dict(), other.state_dict(), SINGLE, scale=0.01)
    assert all(p.requires_grad for p in model.parameters())


def test_the_generators_step_leaves_no_gradient_in_the_discriminator(models):
    model, other = models(EN)
    model.train_step(batch(), optimizers(model, partial(OptimWrapper, accumulative_counts=2)))
    inputs, targets = (scaled(batch()[kind]) for kind in ("input", "target"))
    outputs, d = other.generator(inputs).detach(), other.discriminator
    ((loss(d(inputs, targets), True) + loss(d(inputs, outputs), False)) / 4).backward()
    found, expected = ([p.grad for p in m.discriminator.parameters()] for m in (model, other))
    assert_close(found, expected, SINGLE)


class Bfloat16(OptimWrapper):
    """As AmpOptimWrapper, which needs a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


def test_mixed_precision():
    model, dtypes = build(ILM, ILM).train(), []
    model.discriminator.register_forward_hook(lambda _, x, y: dtypes.append(y.dtype))
    losses = model.train_step(batch(), optimizers(model, Bfloat16))
    assert dtypes == [torch.bfloat16] * 3
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name


def test_dropout_in_evaluation_is_the_same_for_each_image():
    x = torch.randn(4, 3, 16, 16)
    generator = networks.UNetGenerator(width=4, size=16).eval()
    y = generator(x)
    assert_equal(generator(x), y)
    assert_close(generator(x[2:3]), y[2:3])


def test_dropout_in_evaluation_keeps_the_mean():
    ones = networks.SteadyDropout(0.25).eval()(torch.ones(2, 64, 8, 8))
    assert_equal(ones.unique(), torch.tensor([0, 4 / 3]))
    assert abs(ones.mean() - 1) <= 0.05
    assert_equal(ones[0], ones[1])


def test_images_of_any_size_are_padded_and_cropped_back():
    model = build().eval()
    x = torch.rand(1, 3, 21, 30) * 2 - 1
    padded = F.pad(x, (0, 2, 0, 11), mode="replicate")
    assert torch.equal(model.translate(x), model.generator(padded)[:, :, :21, :30])
