"""What holds for every shape, dtype, layout and option: cases that hypothesis generates."""

import copy
from functools import partial

import pytest
import torch

from cases import (
    BACKENDS,
    CASES,
    CHANNELS,
    INDEPENDENT,
    KERNELS,
    PATHS,
    SEED,
    channels_last,
    every_backend,
    inputs,
    modes,
    randomized,
    results,
)
from close import ROUNDINGS, assert_close, unit
from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers.assoc import COMBINE
from ilm_plugins.layers.mixture import NORMALIZERS
from ilm_plugins.layers.projection import ACTIVATIONS

pytest.importorskip("hypothesis", reason="needs hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: 1e-9 in float64, of the largest value, or of 1 if that is smaller.
EQUAL = 1e-9 * 2**53
#: Not "triton", whose interpreter needs a process of its own: tests/ops/test_triton.py.
backends = st.sampled_from(BACKENDS)
#: The same examples in every run, unless pytest's --seed asks for others.
usual = settings(
    derandomize=SEED == 0, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def for_any(names, few=15, many=500):
    """Decorate a property of a layer's name and hypothesis's data; ``many`` are for long tests."""

    def decorate(check):
        @pytest.mark.parametrize("name", names)
        @pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.long)])
        def test(name, number):
            def holds(data):
                check(name, data)

            holds.__name__ = check.__name__  # by which hypothesis seeds its examples
            settings(usual, max_examples=number)(given(st.data())(holds))()

        return test

    return decorate


def assert_same(actual, expected, roundings=EQUAL):
    assert_close(actual, expected, roundings, max(1, expected.detach().abs().max().item()))


# ---- layers and maps


def options(name, channels):
    """All options of a layer, and some of their values."""
    divisors = st.sampled_from([d for d in range(1, channels + 1) if channels % d == 0])
    activation = st.sampled_from(sorted(ACTIVATIONS))
    several = st.lists(st.sampled_from(NORMALIZERS), min_size=1, unique=True).map(tuple)
    found = {"eps": st.sampled_from([1e-5, 1e-3, 0.1]), "num_groups": divisors}
    if name in ("EN", "SN", "SSN"):
        found |= {"normalizers": several, "momentum": st.sampled_from([0.0, 0.1, 1.0])}
    elif name == "AN":
        found |= {"num_affine": st.integers(1, 16), "init": st.sampled_from(["default"])}
    else:
        found |= {"hidden": st.integers(1, 16), "init": st.sampled_from(["default", "normal"])}
        if name == "AssocNorm":
            found |= {"num_key_groups": divisors, "combine": st.sampled_from(sorted(COMBINE))}
        else:
            pairs = st.tuples(activation, activation)
            found |= {"key_group_size": divisors, "activations": pairs}
    if name == "EN":
        found |= {
            "reduction": divisors,
            "expansion": st.integers(1, 16),
            "ratio_net": st.sampled_from(["conv", "no_conv", "mlp"]),
            "activation": st.sampled_from(["tanh", "relu"]),
            "shared_affine": st.booleans(),
        }
    if name in ("ILMIN", "ILMLN"):
        del found["num_groups"]
    return st.fixed_dictionaries(found)


@st.composite
def layers(draw, name, channels, dtype=torch.float64, **fixed):
    """A layer with random options, parameters and running statistics, training or not."""
    make = partial(NORMS[name], channels, **{**draw(options(name, channels)), **fixed})
    return randomized(make, dtype, seed=draw(st.integers(0, 99))).train(draw(st.booleans()))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": channels_last,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a part": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
}
channel_counts = st.sampled_from([1, 4, 6, 12])
#: Up to three spatial dimensions, often of size 1; from several vectors to several blocks of a row.
short_sizes = st.lists(st.integers(1, 5), max_size=3)
all_sizes = st.one_of(short_sizes, st.tuples(st.integers(128, 700), st.integers(1, 2)))


@st.composite
def maps(draw, channels, dtype=torch.float64, batches=5, sizes=all_sizes):
    """A random map in a random layout."""
    shape = (draw(st.integers(1, batches)), channels, *draw(sizes))
    lay_out = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    return lay_out(inputs(*shape, dtype=dtype, seed=draw(st.integers(0, 99))))


@st.composite
def layers_and_maps(draw, name, **fixed):
    channels = draw(channel_counts)
    return draw(layers(name, channels, **fixed)), draw(maps(channels))


# ---- kernels equal the reference


@for_any(NORMS)
def test_kernels_equal_the_reference_in_any_layout(name, data):
    layer, x = data.draw(layers_and_maps(name))
    dy, found = inputs(*x.shape, seed=3), []
    for backend, laid_out in ((KERNELS, x), ("reference", x), ("reference", x.contiguous())):
        twin = copy.deepcopy(layer)
        found.append([*results(twin, laid_out, dy, backend), *twin.buffers()])
    for kernels, reference, contiguous in zip(*found, strict=True):
        assert_same(reference, contiguous)
        assert_same(kernels, contiguous)


def changes(layer, x, dy):
    """For each of the results, its largest change per relative change of all operands.

    Each operand is multiplied by 1 + h or 1 - h, at random. A sum of large terms that cancel has a
    small result, yet it changes by as much as its terms.
    """
    h, signs = 2**-20, torch.Generator().manual_seed(0)
    layer = copy.deepcopy(layer).double()
    operands = [x.double(), dy.double(), *layer.parameters(), *layer.buffers()]
    before = results(layer, *operands[:2], "reference")
    with torch.no_grad():
        for tensor in filter(torch.is_floating_point, operands):
            tensor *= 1 + h * (2 * torch.randint(2, tensor.shape, generator=signs) - 1)
    after = results(layer, *operands[:2], "reference")
    return [(b - a).abs().max().item() / h for a, b in zip(after, before, strict=True)]


@modes([*CASES])
def test_kernels_are_as_exact_as_their_dtype(name, training):
    """Against the reference in float64, within roundings of the terms of all sums."""
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        layer = randomized(CASES[name][0], torch.float32).train(training)
        for shape in ((3, CHANNELS), (3, CHANNELS, 5, 7), (2, CHANNELS, 17, 19)):
            lay_out = list(LAYOUTS.values())[i]
            x, dy = (lay_out(inputs(*shape, dtype=dtype, seed=seed)) for seed in (1, 5))
            twin = copy.deepcopy(layer).double()
            exact = results(twin, x.double(), dy.double(), "reference")
            # Gradients of parameters are sums of such terms.
            terms = (dy.double() * exact[0]).abs().max().item()
            largest = changes(layer, x, dy)
            found = results(copy.deepcopy(layer), x, dy, KERNELS)
            for a, e, change in zip(found, exact, largest, strict=True):
                assert_close(a, e, ROUNDINGS, max(e.abs().max().item(), terms, change))


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("length", [513, 1025, 8193, 16391])
@pytest.mark.parametrize("name", PATHS)
def test_no_position_of_a_large_map_is_left_out(name, length, layout):
    """Kernels take large maps in blocks: of 512 positions, of several channels, of 8192 values."""
    layer, dy = randomized(CASES[name][0]), inputs(2, CHANNELS, length, seed=5)
    x = layout(inputs(2, CHANNELS, length))
    for found, expected in zip(*(results(layer.eval(), x, dy, b) for b in BACKENDS), strict=True):
        assert_same(found, expected)


@every_backend
@pytest.mark.parametrize("name", ["ILMGN", "SN"])
def test_large_means_of_a_large_map_cost_no_more_in_channels_last(name, backend):
    """Sums of 60,800 values in float32, whose rounding grows with their number."""
    layer, x = NORMS[name](64), 1e4 + torch.randn(1, 64, 200, 304)
    with torch.no_grad(), use_backend("reference"):
        exact = copy.deepcopy(layer).double()(x.double())
    with torch.no_grad(), use_backend(backend):
        errors = [(layer(laid_out) - exact).abs().max() for laid_out in (x, channels_last(x))]
    assert errors[1] <= 4 * errors[0]


# ---- extreme values


def extreme(kind, x, dtype, largest):
    """x in another dtype, brought to the limits of what that can hold, or to ``largest``."""
    limits = torch.finfo(dtype)
    largest, unit = min(limits.max, largest), x / x.abs().max()
    return {
        "denormal": unit * limits.smallest_normal,
        "huge": unit * largest,
        "huge constant": torch.full_like(unit, largest),
        "huge mean": largest * (1 - 4 * limits.eps * unit.abs()),
        "zero": unit * 0,
        "one huge value": unit.where(unit == 1, 0) * largest,
    }[kind].to(dtype)


KINDS = ["denormal", "huge", "huge constant", "huge mean", "zero", "one huge value"]


@st.composite
def extremes(draw, name, dtypes, **of_maps):
    """A layer and an extreme map, where outputs and gradients are promised to be finite.

    Up to the fourth root of the largest number, 4e9 in float32, and in all of float16, unless that
    cannot hold what running statistics make of it. Where the activations are bounded: others
    multiply by the variance, out of the range of x.
    """
    dtype, channels = draw(st.sampled_from(dtypes)), draw(channel_counts)
    computed = torch.promote_types(dtype, torch.float32)
    bounded = st.tuples(*[st.sampled_from(["tanh", "sigmoid"])] * 2)
    fixed = {"activations": draw(bounded), "init": "default"} if name.startswith("ILM") else {}
    layer = draw(layers(name, channels, computed, **fixed))
    if dtype == torch.float16 and name not in INDEPENDENT:
        layer.train()
    kind, largest = draw(st.sampled_from(KINDS)), torch.finfo(computed).max ** 0.25
    return layer, extreme(kind, draw(maps(channels, **of_maps)), dtype, largest)


def assert_finite(layer, x):
    dy = inputs(*x.shape, seed=3).to(x)
    y, *gradients = results(layer, x, dy)
    assert y.dtype == x.dtype and y.shape == x.shape
    assert all(tensor.isfinite().all() for tensor in (y, *gradients, *layer.buffers()))


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@for_any(NORMS)
def test_extreme_values_stay_finite(name, data):
    layer, x = data.draw(extremes(name, DTYPES))
    with use_backend(data.draw(backends)):
        assert_finite(layer, x)


@pytest.mark.parametrize("name", NORMS)
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_defaults_stay_finite_until_squares_overflow(name, dtype, backend):
    computed = torch.promote_types(dtype, torch.float32)
    for kind in KINDS:
        x = extreme(kind, inputs(2, 32, 4, 4), dtype, torch.finfo(computed).max ** 0.5 / 2**12)
        with use_backend(backend):
            assert_finite(NORMS[name](32, dtype=computed), x)


# ---- independence and invariance


@for_any(INDEPENDENT)
def test_an_instance_does_not_depend_on_its_batch(name, data):
    """Bit for bit, with its gradient, where instances do not lie interleaved in memory."""
    channels = data.draw(channel_counts)
    x = data.draw(maps(channels, torch.float32)) + data.draw(st.sampled_from([0.0, 100.0, 1000.0]))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    layer = NORMS[name](channels, **data.draw(options(name, channels)))
    x = x.clone(memory_format=torch.contiguous_format)
    with use_backend(KERNELS):
        together = results(layer, x, x)[:2]
        apart = zip(*(results(layer, one, one)[:2] for one in x.split(1)), strict=True)
    for whole, parts in zip(together, apart, strict=True):
        assert torch.equal(whole, torch.cat(parts))


@for_any(NORMS)
def test_instances_pixels_and_channels_may_be_permuted(name, data):
    """Channels within a group, together with their parameters."""
    layer, x = data.draw(layers_and_maps(name))
    instances = torch.tensor(data.draw(st.permutations(range(len(x)))))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    pixels = torch.randperm(x.shape[2:].numel())

    def permuted(x):
        return x[instances].flatten(2)[..., pixels].view(x.shape) if x.dim() > 2 else x[instances]

    with use_backend(data.draw(backends)):
        twin = copy.deepcopy(layer)
        found, expected = twin(permuted(x)), permuted(copy.deepcopy(layer)(x))
        assert_same(found, expected)
        if name == "EN":  # its convolution and correlations see the order of channels
            return
        channels = x.shape[1]
        groups = layer.num_groups if name in ("SN", "SSN", "AN") else layer.moment_groups
        order = torch.arange(channels).view(groups, -1)[:, torch.randperm(channels // groups)]
        order, twin = order.flatten(), copy.deepcopy(layer)
        for key, tensor in twin.state_dict().items():
            of_channels = tensor.shape == (channels,) or name == "AN"
            if of_channels and not key.endswith(("_weight", "attention.bias", "fixed")):
                tensor.copy_(tensor[..., order])
        assert_same(twin(x[:, order]), copy.deepcopy(layer)(x)[:, order])


@for_any(NORMS)
def test_scale_and_shift_of_the_input(name, data):
    """y - beta takes the sign of the factor and nothing else, where nothing but the norm sees x.

    That is: ILM Norm and AssocNorm with decoders of zero, AN with an attention of zero, SN, SSN,
    and EN whose ratios come of normalized means, because v = z z^T does not see the sign either.
    """
    fixed = {"EN": {"ratio_net": "conv"}, "SN": {}, "SSN": {}}.get(name, {"init": "identity"})
    fixed |= {"activations": ("tanh", "sigmoid")} if name.startswith("ILM") else {}
    fixed |= {"combine": "a(WE)+B"} if name == "AssocNorm" else {}
    channels = data.draw(channel_counts)
    layer, x = data.draw(layers(name, channels, **fixed)), data.draw(maps(channels))
    if name in INDEPENDENT:
        for child in layer.children():
            child.reset_parameters()
    factor, shift = (
        data.draw(st.sampled_from([-100.0, -0.3, 0.01, 3.0])),
        data.draw(st.floats(-10, 10)),
    )
    moved = copy.deepcopy(layer)
    moved.eps *= factor**2
    if getattr(layer, "running_mean", None) is not None:
        moved.running_mean.mul_(factor).add_(shift)
        moved.running_var.mul_(factor**2)
    beta = layer.bias.view(-1, channels).sum(0).view(-1, *(1,) * (x.dim() - 2))
    with use_backend(data.draw(backends)):
        changed, expected = moved(factor * x + shift) - beta, layer(x) - beta
    assert_same(changed * (1 if factor > 0 else -1), expected, 1e-6 * 2**53)


def test_the_unit_of_a_dtype_is_that_of_its_statistics():
    assert unit(torch.float16) == unit(torch.float32) == 2**-24 and unit(torch.float64) == 2**-53
