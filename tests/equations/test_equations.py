"""Each layer against the transcription of its paper's equations, in float64."""

import copy
import itertools

import pytest
import torch
from torch import nn

from equations import transcription
from equations.cases import (
    BACKENDS,
    CASES,
    CHANNELS,
    MIXTURES,
    every_backend,
    exemplar_with_ratios,
    inputs,
    modes,
    randomized,
    results,
)
from helpers.close import EQUAL, assert_close, assert_equal
from ilm_plugins import (
    NORMS,
    AttentiveNorm,
    SparseSwitchNorm,
    freeze,
    set_radius,
    surgery,
    use_backend,
)
from ilm_plugins.layers.mixture import RUNNING
from ilm_plugins.layers.sparse import sparsestmax

SHAPES = [(3, CHANNELS), (3, CHANNELS, 5), (2, CHANNELS, 4, 3), (2, CHANNELS, 2, 3, 2)]


@modes(CASES)
def test_a_layer_equals_its_transcription(name, training):
    make, transcribed = CASES[name]
    for shape in SHAPES:
        layer = randomized(make).train(training)
        x = inputs(*shape).requires_grad_()
        expected, actual = transcribed(layer, x), layer(x)
        assert_close(actual, expected, EQUAL)
        seed, variables = inputs(*shape, seed=2), [x, *layer.parameters()]
        found = torch.autograd.grad(actual, variables, seed)
        wanted = torch.autograd.grad(expected, variables, seed, materialize_grads=True)
        assert_close(found, wanted, 10 * EQUAL, 1)  # activations and ratios multiply roundings


def of_small_variances():
    """Maps in which channels and an image are constant, of zeros, and of variances below eps."""
    x = inputs(2, CHANNELS, 3)
    tiny = 1e-3 * x
    x[:, :6] = x[0] = 2
    return x, torch.zeros_like(x), tiny


@modes(CASES)
def test_where_variances_are_0_or_tiny_a_layer_equals_its_transcription(name, training):
    make, transcribed = CASES[name]
    for x in of_small_variances():
        layer, dy = randomized(make).train(training), inputs(*x.shape, seed=2)
        variables = [x.requires_grad_(), *layer.parameters()]
        expected = transcribed(layer, x)
        wanted = torch.autograd.grad(expected, variables, dy, materialize_grads=True)
        for backend in BACKENDS:
            y, *found = results(copy.deepcopy(layer), x, dy, backend)
            assert_close(y, expected, EQUAL, name=backend)
            assert_close(found, wanted, 10 * EQUAL, 1, backend)


@modes(NORMS)
def test_second_derivatives_are_those_of_the_first(name, training):
    layer = randomized(CASES[name][0]).train(training)
    variables = [inputs(2, CHANNELS, 2).requires_grad_(), *layer.parameters()]
    names, buffers = [n for n, _ in layer.named_parameters()], dict(layer.named_buffers())

    def function(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        copies = {n: b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(layer, (state, copies), (x,))

    assert torch.autograd.gradgradcheck(function, variables, fast_mode=True)


exemplars = modes([n for n in CASES if n.startswith("EN")])


@exemplars
def test_ratios_equal_the_transcription(name, training):
    layer, x = randomized(CASES[name][0]).train(training), inputs(3, CHANNELS, 4, 3)
    expected = exemplar_with_ratios(copy.deepcopy(layer), x)[1]
    assert_close(layer.ratios(x), expected, 10 * EQUAL)


@exemplars
def test_ratios_leave_the_layer_alone(name, training):
    layer, x = randomized(CASES[name][0]).train(training), inputs(3, CHANNELS, 4, 3)
    before = copy.deepcopy(layer.state_dict())
    layer.ratios(x)
    assert_equal(layer.state_dict(), before)


@pytest.mark.parametrize("name", ["ILMGN", "ILMGN-key-groups-across-groups", "AssocNorm"])
def test_rescaling_is_what_the_transcription_rescales_by(name):
    make, transcribed = CASES[name]
    for shape in SHAPES[1:]:  # two positions or more of a channel determine its omega and beta
        layer, x = randomized(make), inputs(*shape)
        standardized = nn.functional.group_norm(x, layer.num_groups, eps=layer.eps).flatten(2)
        omega, beta = (vector.unsqueeze(2) for vector in layer.rescaling(x))
        assert_close(omega * standardized + beta, transcribed(layer, x).flatten(2), 10 * EQUAL)
    omega, beta = layer.half().rescaling(inputs(2, CHANNELS, 3, dtype=torch.float16))
    assert omega.dtype == beta.dtype == torch.float32
    assert omega.shape == (2, CHANNELS)


@every_backend
@pytest.mark.parametrize("name", MIXTURES)
def test_running_statistics_are_those_of_batch_norm(name, backend):
    """Of batches that have two values of a channel, too."""
    layer = CASES[name][0](momentum=0.3).double()
    reference = nn.BatchNorm2d(CHANNELS, momentum=0.3).double()
    transcribed = layer.running_mean.clone(), layer.running_variance.clone()
    for seed, (n, h, w) in enumerate(((4, 3, 5), (1, 2, 1), (2, 1, 1))):
        x = inputs(n, CHANNELS, h, w, seed=seed)
        with use_backend(backend):
            layer(x)
        reference(x)
        transcribed = transcription.running_update(*transcribed, x, 0.3)
        for expected in (transcribed, [reference.running_mean, reference.running_var]):
            assert_close((layer.running_mean, layer.running_variance), expected)


@every_backend
@pytest.mark.parametrize("name", MIXTURES)
def test_each_update_of_running_statistics_is_a_version(name, backend):
    """By which autograd refuses graphs of older values."""
    layer = CASES[name][0]().double()
    moving = [t for name, t in layer.named_buffers() if name in (*RUNNING, "num_batches_tracked")]
    before = [t._version for t in moving]
    results(layer, *[inputs(4, CHANNELS, 3, 5)] * 2, backend)
    assert all(t._version > version for t, version in zip(moving, before, strict=True))


@every_backend
def test_exemplar_norm_counts_batches(backend):
    layer = CASES["EN"][0]().double()
    for _ in range(3):
        with use_backend(backend):
            layer(inputs(4, CHANNELS, 3, 5))
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("name", MIXTURES)
def test_running_statistics_of_half_precision_are_rounded_where_stored_alone(name):
    half, single = CASES[name][0]().bfloat16(), CASES[name][0]()
    x = inputs(4, CHANNELS, 3, 5).bfloat16()
    half(x), single(x.float())
    assert_close([*half.buffers()][:2], [*single.buffers()][:2])


# ---- initial values


@pytest.mark.parametrize(
    "name, size",
    [("AN", 1.0), *itertools.product(("ILMGN", "ILMIN", "ILMLN", "AssocNorm"), (1e-6, 1.0))],
)
def test_identity_is_exact_whatever_the_size_of_the_weights(name, size):
    """No digit of the weights may go into sigmoid(0), which is taken off again."""
    layer = CASES[name][0](init="identity")
    x = inputs(2, CHANNELS, 4, 4, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        layer.weight.normal_().mul_(size)
        layer.bias.normal_().mul_(size)
    if name != "AN":
        affine = layer.weight.expand(2, -1), layer.bias.expand(2, -1)
        assert_equal(layer.rescaling(x), affine)
    exact = x.detach().double().requires_grad_()
    affine = layer.weight.double(), layer.bias.double()
    plain = nn.functional.group_norm(exact, layer.num_groups, *affine, layer.eps)
    y = layer(x)
    assert_close(y, plain, 64)
    for output in (y, plain):
        output.sum().backward()
    assert_close(x.grad, exact.grad, 256, scale=size)


@every_backend
@pytest.mark.parametrize("name", MIXTURES)
def test_statistics_of_the_batch_replace_running_ones_that_are_none(name, backend):
    """In both modes, as in BatchNorm; for test-time adaptation."""
    layer, x, dy = randomized(CASES[name][0]), *(inputs(4, CHANNELS, 3, seed=s) for s in (1, 2))
    expected = results(layer, x, dy, backend)
    layer.running_mean = layer.running_variance = None
    if name == "EN":
        layer.num_batches_tracked = None
    for training in (True, False):
        assert_equal(results(layer.train(training), x, dy, backend), expected)


@every_backend
def test_attentions_that_reach_0_or_1_have_no_gradient(backend):
    """As at the corners of torch's ReLU6."""
    layer, x, dy = randomized(CASES["AN"][0]), *(inputs(2, CHANNELS, 3, seed=s) for s in (1, 2))
    layer.attention.weight.data.zero_()
    layer.attention.bias.data.copy_(double(-3, 3, 0))
    names = ["y", "x", *dict(layer.named_parameters())]
    found = dict(zip(names, results(layer, x, dy, backend), strict=True))
    for name in ("attention.weight", "attention.bias"):
        assert not found[name][:2].any()
        assert found[name][2].all()


@pytest.mark.parametrize("num_affine", [1, 2, 10, 20])
def test_no_two_pairs_of_attentive_norm_stay_equal(num_affine):
    layer = AttentiveNorm(64, init="identity", num_affine=num_affine)
    layer(inputs(2, 64, 4, 4, dtype=torch.float32)).square().sum().backward()
    gradient = layer.attention.weight.grad
    assert gradient.abs().amax(1).min() > 0
    assert len(gradient.unique(dim=0)) == num_affine


# ---- SSN's ratios

#: The last is enough for every number of logits to be one-hot.
RADII = (0.0, 0.2, 0.45, 0.6, 0.75, 0.85, 1.0)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_sparsestmax_equals_its_definition(k):
    generator, sizes = torch.Generator().manual_seed(k), set()
    for radius, scale, _ in itertools.product(RADII, (0.1, 0.3, 1.0), range(8)):
        logits = scale * torch.randn(2, k, generator=generator, dtype=torch.float64)
        logits.requires_grad_()
        found = sparsestmax(logits, double(radius))
        expected = torch.stack([transcription.sparsestmax(row, radius) for row in logits])
        assert_close(found, expected, 10 * EQUAL)
        seed = torch.randn(2, k, generator=generator, dtype=torch.float64)
        grads = [torch.autograd.grad(y, logits, seed)[0] for y in (found, expected)]
        assert_close(*grads, 1000 * EQUAL, 1)
        sizes |= {int(n) for n in (found > 0).sum(1)}
    assert sizes == set(range(1, k + 1))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_equal_logits_stay_equal_with_finite_gradients_until_something_parts_them(shape):
    value = 1.5000002384185791  # a third of three times as much is another float32
    for radius, logit in itertools.product(RADII, (1.0, value)):
        logits = torch.full(shape, logit, requires_grad=True)
        ratios = sparsestmax(logits, torch.tensor(radius))
        assert_close(ratios, torch.full(shape, 1 / 3), 16)
        assert torch.autograd.grad(ratios[..., 0].sum(), logits)[0].abs().max() <= 1
    found = sparsestmax(torch.tensor([1.0, 1.0 + 1e-6, 1.0]), torch.tensor(1.0))
    assert found.tolist() == [0, 1, 0]


def test_ratios_that_are_1_are_fixed_by_the_next_radius_for_good():
    layer = randomized(lambda: SparseSwitchNorm(CHANNELS))
    layer.mean_weight.data = double(2, 0.5, 0)  # one-hot at every radius
    layer.var_weight.data = double(0.4, 0.35, 0.25)
    layer.set_radius(0.1)
    assert layer.mean_fixed.tolist() == [1, 0, 0]
    assert not layer.var_fixed.any()
    layer.mean_weight.data = double(0, 0.5, 2)
    layer.set_radius(0.0)
    assert layer.ratios()[0].tolist() == [1, 0, 0]
    assert_close(layer.ratios()[1], double(0.4, 0.35, 0.25), 16)
    layer(inputs(3, CHANNELS, 4, 4)).square().sum().backward()
    # Zero instead of None: DistributedDataParallel waits for every parameter.
    assert layer.mean_weight.grad.tolist() == [0, 0, 0]
    assert layer.var_weight.grad.any()
    average = torch.optim.swa_utils.AveragedModel(SparseSwitchNorm(CHANNELS), use_buffers=True)
    for model in (SparseSwitchNorm(CHANNELS), layer.float()):
        average.update_parameters(model)
    assert average.module.mean_fixed[0] == 0.5
    assert_close(average.module.ratios().sum(1), torch.ones(2), 16)
    layer.mean_weight.data[1] = torch.nan
    layer.reset_parameters()
    assert not layer.mean_fixed.any()
    assert not layer.radius.any()
    layer.mean_weight.data[1] = torch.nan
    assert layer(inputs(2, CHANNELS, 3, 3, dtype=torch.float32)).isnan().any()


def test_set_radius_of_a_model_leaves_frozen_layers():
    model = nn.Sequential(SparseSwitchNorm(8), nn.Sequential(SparseSwitchNorm(8), nn.ReLU()))
    freeze(model[0])
    set_radius(model, 0.25)
    assert model[0].radius == 0
    assert model[1][0].radius == 0.25
    with pytest.raises(ValueError, match=r"radius=1\.5 is no number between 0 and 1"):
        set_radius(model, 1.5)


@pytest.mark.parametrize("normalizers", [("IN", "LN", "BN"), ("GN", "BN")])
def test_the_one_hot_end_is_the_norm_that_is_chosen(normalizers):
    x = inputs(3, CHANNELS, 5, 4)
    plain = {"IN": nn.InstanceNorm2d, "BN": nn.BatchNorm2d, "LN": nn.GroupNorm, "GN": nn.GroupNorm}
    for chosen in normalizers:
        options = {"normalizers": normalizers, "num_groups": 4}
        layer = randomized(lambda options=options: SparseSwitchNorm(CHANNELS, **options))
        for logits in (layer.mean_weight, layer.var_weight):
            logits.data = double(*(float(n == chosen) for n in normalizers))
        layer.set_radius(1.0)
        expected = layer(x), layer.eval()(x)
        norm, report = surgery.revert(layer)
        assert type(norm) is plain[chosen]
        assert not report.left
        assert_close((norm.eval()(x), norm.train()(x)), expected[::-1], 2**14)
