"""Each layer against the transcription of its paper's equations, in float64."""

import pytest
import torch
from torch import nn

import transcription
from cases import (
    CASES,
    CHANNELS,
    MAIN,
    MIXTURES,
    every_backend,
    exemplar_with_ratios,
    inputs,
    modes,
    randomized,
)
from ilm_plugins import AttentiveNorm, ExemplarNorm, freeze, use_backend

SHAPES = [(3, CHANNELS), (3, CHANNELS, 5), (2, CHANNELS, 4, 3), (2, CHANNELS, 2, 3, 2)]


@modes(CASES)
def test_output_and_gradients_equal_the_transcription(name, training):
    make, transcribed = CASES[name]
    for shape in SHAPES:
        layer = randomized(make).train(training)
        x = inputs(*shape).requires_grad_()
        expected = transcribed(layer, x)
        actual = layer(x)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

        seed = inputs(*shape, seed=2)
        variables = [x, *layer.parameters()]
        grads = torch.autograd.grad(actual, variables, seed)
        expected_grads = torch.autograd.grad(expected, variables, seed, allow_unused=True)
        for grad, want in zip(grads, expected_grads, strict=True):
            want = torch.zeros_like(grad) if want is None else want
            torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-9)


@modes(MAIN, evaluation=pytest.mark.wide)
def test_gradcheck(name, training):
    layer = randomized(MAIN[name]).train(training)
    x = inputs(2, CHANNELS, 2).requires_grad_()
    names = [n for n, _ in layer.named_parameters()]
    buffers = {n: b.clone() for n, b in layer.named_buffers()}

    def function(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        state |= {n: b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(layer, state, (x,))

    variables = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(function, variables, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, variables, fast_mode=True)


@modes([n for n in CASES if n.startswith("EN")])
def test_ratios_equal_the_transcription_and_leave_the_layer_alone(name, training):
    make, _ = CASES[name]
    layer = randomized(make).train(training)
    x = inputs(3, CHANNELS, 4, 3)
    before = {n: b.clone() for n, b in layer.state_dict().items()}
    actual = layer.ratios(x)
    _, expected = exemplar_with_ratios(layer, x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(actual.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ILMGN", "ILMGN-key-groups-across-groups", "AssocNorm"])
def test_rescaling_is_what_the_transcription_rescales_by(name):
    make, transcribed = CASES[name]
    for shape in SHAPES[1:]:
        layer = randomized(make)
        x = inputs(*shape)
        # Two positions or more of a channel determine its omega and beta.
        rescaled = [
            transcription.rescale(
                transcription.standardize(instance, layer.num_groups, layer.eps), omega, beta
            )
            for instance, omega, beta in zip(x.flatten(2), *layer.rescaling(x), strict=True)
        ]
        expected = transcribed(layer, x).flatten(2)
        torch.testing.assert_close(torch.stack(rescaled), expected, rtol=1e-10, atol=1e-10)


def test_rescaling_in_half_precision_of_nothing_and_of_another_width():
    layer = MAIN["ILMGN"]()
    omega, beta = layer.half().rescaling(inputs(2, CHANNELS, 3, dtype=torch.float16))
    assert omega.dtype == beta.dtype == torch.float32 and omega.shape == (2, CHANNELS)
    assert [t.shape for t in layer.rescaling(torch.empty(0, CHANNELS, 3))] == [(0, CHANNELS)] * 2
    with pytest.raises(ValueError, match=r"shape \(2, 5, 3\), expected \(N, 12, \*\)"):
        layer.rescaling(torch.empty(2, 5, 3))


def test_ratios_that_start_all_zero_learn_nothing_of_the_sample():
    layer = ExemplarNorm(CHANNELS, reduction=4)
    for part in (layer.reduce, layer.expand, layer.ratio):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for seed in range(3):
        x = inputs(4, CHANNELS, 3, 3, seed=seed).float()
        optimizer.zero_grad()
        (layer(x) * inputs(4, CHANNELS, 3, 3, seed=9).float()).sum().backward()
        optimizer.step()
    moved = {name for name, p in layer.named_parameters() if "." in name and p.any()}
    assert moved == {"ratio.bias"}
    ratios = layer.ratios(x)
    assert ratios.allclose(ratios[:1].expand(4, 3)) and not ratios[0].allclose(ratios[0, :1])


def test_ins_row_and_column_of_the_correlations_are_zero():
    layer = ExemplarNorm(CHANNELS, reduction=4)
    nn.init.normal_(layer.ratio.weight)
    layer(inputs(4, CHANNELS, 3, 3).float()).square().sum().backward()
    used = layer.expand.weight.grad.any(0).view(3, 3)
    assert layer.normalizers[0] == "IN"
    assert used.tolist() == [[False] * 3, [False, True, True], [False, True, True]]


@pytest.mark.parametrize("name", MIXTURES)
def test_running_statistics_are_those_of_batch_norm(name):
    layer = MAIN[name]().double()
    reference = nn.BatchNorm2d(CHANNELS).double()
    transcribed = layer.running_mean.clone(), layer.running_var.clone()
    for seed in range(3):
        x = inputs(4, CHANNELS, 3, 5, seed=seed)
        layer(x)
        reference(x)
        transcribed = transcription.running_update(*transcribed, x, 0.1)
    torch.testing.assert_close((layer.running_mean, layer.running_var), transcribed)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)
    if name == "EN":
        assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("name", MIXTURES)
def test_fixed_parameters_alone_freeze_no_statistics(name):
    """As in BatchNorm; frozen are layers of :func:`ilm_plugins.freeze`."""
    layer, trained = (randomized(MAIN[name]) for _ in range(2))
    x = inputs(4, CHANNELS, 3, 3)
    torch.testing.assert_close(layer.requires_grad_(False)(x), trained(x), rtol=0, atol=0)
    torch.testing.assert_close(layer.running_mean, trained.running_mean, rtol=0, atol=0)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_frozen_layer_keeps_and_uses_its_running_statistics(name):
    layer = randomized(MAIN[name])
    x = inputs(4, CHANNELS, 3, 3)
    expected = layer.eval()(x)
    state = {n: b.clone() for n, b in layer.state_dict().items()}
    freeze(layer.train())
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)
    freeze(layer, False)(x)
    assert not torch.equal(layer.running_mean, state["running_mean"])


@every_backend
@pytest.mark.parametrize("size", [1e-6, 1.0])
@pytest.mark.parametrize("name", ["ILMGN", "ILMIN", "ILMLN", "AssocNorm"])
def test_identity_is_exact_whatever_the_size_of_the_weights(name, size, backend):
    """No digit of the weights may go into sigmoid(0), which is taken off again."""
    layer = MAIN[name](init="identity")
    x = inputs(2, CHANNELS, 4, 4, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        layer.weight.normal_().mul_(size)
        layer.bias.normal_().mul_(size)
    omega, beta = layer.rescaling(x)
    assert torch.equal(omega, layer.weight.expand(2, -1))
    assert torch.equal(beta, layer.bias.expand(2, -1))
    with use_backend(backend):
        y = layer(x)
    y.sum().backward()
    exact = x.detach().double().requires_grad_()
    affine = layer.weight.double(), layer.bias.double()
    plain = nn.functional.group_norm(exact, layer.num_groups, *affine, layer.eps)
    plain.sum().backward()
    torch.testing.assert_close(y.double() / size, plain / size, rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad.double() / size, exact.grad / size, rtol=0, atol=1e-5)


@every_backend
@pytest.mark.parametrize("num_affine", [1, 2, 10, 20])
def test_identity_of_attentive_norm(num_affine, backend):
    """The outputs of GN, whatever its weights, and gradients with which no two pairs stay equal."""
    layer = AttentiveNorm(64, init="identity", num_affine=num_affine)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = inputs(2, 64, 4, 4, dtype=torch.float32)
    with use_backend(backend):
        y = layer(x)
    plain = nn.functional.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
    torch.testing.assert_close(y, plain, rtol=0, atol=2e-6 * plain.abs().max().item())
    y.square().sum().backward()
    gradient = layer.attention.weight.grad
    assert gradient.abs().amax(1).min() > 0 and len(gradient.unique(dim=0)) == num_affine


def test_attentive_norms_box_head():
    # The authors' Mask R-CNN has 45.91 M parameters without norms in FPN and heads, and 45.96 M
    # with GN in FPN and mask head, and AN in the box head, whose GN has no weights there;
    # convolutions before a norm have no bias.
    pairs, plain = (10, 10, 20, 20), 8 + 4
    counts = [sum(p.numel() for p in AttentiveNorm(256, num_affine=k).parameters()) for k in pairs]
    assert counts == [k * (3 * 256 + 1) + 2 * 256 for k in pairs]
    added = sum(counts) - len(pairs) * 2 * 256 + plain * 2 * 256 - (len(pairs) + plain) * 256
    assert round(added / 1e6, 2) == round(45.96 - 45.91, 2)
