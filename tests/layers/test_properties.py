"""What holds for every shape, dtype, layout and option: generated cases, the same in each run."""

import copy
import itertools

import pytest
import torch
from torch import nn

from cases import BACKENDS, INDEPENDENT, KERNELS, every_backend, every_layer, inputs, results
from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops import moments

pytest.importorskip("hypothesis", reason="needs hypothesis")
from hypothesis import strategies as st

from generated import (
    AUTOENCODERS,
    KINDS,
    assert_finite,
    assert_same,
    channel_counts,
    extreme,
    extremes,
    for_any,
    gradients,
    layers,
    layers_and_maps,
    maps,
    options,
)

#: Examples of each property, every day and where time allows.
COUNTS = {"few": 15, "many": 500}

#: Not "triton", whose interpreter needs a process of its own: tests/ops/test_triton_properties.py.
backends = st.sampled_from(BACKENDS)

# ---- backends and layouts


@for_any(NORMS, **COUNTS)
def test_backends_and_layouts_agree(name, data):
    layer, x = data.draw(layers_and_maps(name))
    found = []
    dy = inputs(*x.shape, seed=3)
    for backend, laid_out in ((KERNELS, x), ("reference", x), ("reference", x.contiguous())):
        twin = copy.deepcopy(layer)
        found.append([*results(twin, laid_out, dy, backend), *twin.buffers()])
    for kernels, reference, contiguous in zip(*found, strict=True):
        assert_same(reference, contiguous, 1e-9)
        assert_same(kernels, contiguous, 1e-9)


# ---- extreme values


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@for_any(NORMS, **COUNTS)
def test_extreme_values_stay_finite(name, data):
    layer, x = data.draw(extremes(name, DTYPES))
    with use_backend(data.draw(backends)):
        assert_finite(layer, x)


@every_layer
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_defaults_stay_finite_until_squares_overflow(name, dtype, backend):
    computed = torch.promote_types(dtype, torch.float32)
    for kind in KINDS:
        x = extreme(kind, inputs(2, 32, 4, 4), dtype, torch.finfo(computed).max ** 0.5 / 2**12)
        with use_backend(backend):
            assert_finite(NORMS[name](32, dtype=computed), x)


@every_layer
@every_backend
@pytest.mark.parametrize("size", [8, 100])
def test_deviations_up_to_two_to_the_52_are_standardized(name, size, backend):
    """As the docstring of AdaptiveNorm promises; nn.GroupNorm's outputs are 0 from 1e19 on."""
    layer, x = NORMS[name](64), 2**52 * torch.randn(2, 64, size, size).clamp(-1, 1)
    with use_backend(backend):
        found = layer(x)
    with use_backend("reference"):
        exact = copy.deepcopy(layer).double()(x.double())
    assert_same(found.double(), exact, 256 * 2**-24)


@every_layer
@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squares_that_overflow_give_nan(name, dtype, backend):
    """nn.GroupNorm gives NaN on a map of 4x4, and silently zeros on one of 5x5."""
    for size, largest in itertools.product((4, 5), (torch.finfo(dtype).max * 0.9, 1e25)):
        x = extreme("huge", inputs(2, 64, size, size), dtype, largest)
        with use_backend(backend):
            assert NORMS[name](64)(x).isnan().all()


# ---- independence and equivariance


large_means = st.sampled_from([0.0, 10.0, 100.0, 1000.0])


@for_any(INDEPENDENT, **COUNTS)
def test_an_instance_does_not_depend_on_its_batch(name, data):
    """Bit for bit, with its gradient; in the reference, where instances do not lie interleaved in
    memory, and but for its gradient."""
    channels = data.draw(channel_counts)
    x = data.draw(maps(channels, torch.float32)) + data.draw(large_means)
    torch.manual_seed(data.draw(st.integers(0, 9)))
    layer = NORMS[name](channels, **data.draw(options(name, channels)))
    mean, var = moments(x, layer.moment_groups)
    ratio = (mean.abs() / (var + layer.eps).sqrt()).max().item()
    at_large_means = max(1e-6, 1e-7 * ratio)
    apart_in_memory = x.stride(0) == max(x.stride())
    x.requires_grad_()
    tolerances = {"cpu": 0, "reference": 0 if apart_in_memory else at_large_means}
    for backend, tolerance in tolerances.items():
        if backend not in BACKENDS:
            continue
        with use_backend(backend):
            together = layer(x)
            apart = torch.cat([layer(instance) for instance in x.split(1)])
        assert_same(together, apart, tolerance)
        found, expected = (gradients(y, [x])[0] for y in (together, apart))
        assert_same(found, expected, 0 if backend == "cpu" else 10 * max(1e-6, tolerance))


@for_any(NORMS, **COUNTS)
def test_the_order_of_the_batch_does_not_matter(name, data):
    layer, x = data.draw(layers_and_maps(name))
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    twin = copy.deepcopy(layer)
    with use_backend(data.draw(backends)):
        assert_same(twin(x[order]), layer(x)[order], 1e-9)
    for moved, kept in zip(twin.buffers(), layer.buffers(), strict=True):
        assert_same(moved, kept, 1e-9)


@for_any(NORMS, **COUNTS)
def test_pixels_may_be_permuted(name, data):
    layer, x = data.draw(layers_and_maps(name))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    order = torch.randperm(x.shape[2:].numel())

    def permuted(x):
        return x.reshape(*x.shape[:2], -1)[..., order].view(x.shape)

    twin = copy.deepcopy(layer)
    with use_backend(data.draw(backends)):
        assert_same(twin(permuted(x)), permuted(layer(x)), 1e-9)


@for_any([*INDEPENDENT, "SN"], **COUNTS)
def test_channels_of_a_group_may_be_permuted_with_their_parameters(name, data):
    layer, x = data.draw(layers_and_maps(name))
    groups = layer.num_groups if name in ("SN", "AN") else layer.moment_groups
    channels = x.shape[1]
    size = channels // groups
    orders = [data.draw(st.permutations(range(size))) for _ in range(groups)]
    order = (torch.tensor(orders) + size * torch.arange(groups).unsqueeze(1)).flatten()
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for key, tensor in twin.state_dict(keep_vars=True).items():
            of_channels = tensor.shape == (channels,) or name == "AN"
            if of_channels and not key.endswith(("_weight", "attention.bias")):  # SN's, AN's ratios
                tensor.copy_(tensor[..., order])
    with use_backend(data.draw(backends)):
        assert_same(twin(x[:, order]), layer(x)[:, order], 1e-9)


# ---- invariance


def moved(layer, factor, shift):
    """The layer to which factor * x + shift is what x is to this one."""
    layer = copy.deepcopy(layer)
    layer.eps *= factor**2
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean.mul_(factor).add_(shift)
        layer.running_var.mul_(factor**2)
    return layer


factors = st.sampled_from([-100.0, -1.0, -0.3, 0.01, 0.5, 3.0, 100.0])
shifts = st.floats(-10, 10)


@for_any(NORMS, **COUNTS)
def test_scale_and_shift_of_the_input(name, data):
    """y - beta takes the sign of the factor and nothing else, where nothing but the norm sees x.

    That is: ILM Norm and AssocNorm with decoders of zero, AN with an attention of zero, SN, SSN,
    and EN whose ratios come of normalized means, because v = z z^T does not see the sign either.
    """
    fixed = {"EN": {"ratio_net": "conv"}, "SN": {}, "SSN": {}}.get(name, {"init": "identity"})
    if name.startswith("ILM"):
        fixed["activations"] = ("tanh", "sigmoid")
    if name == "AssocNorm":
        fixed["combine"] = "a(WE)+B"
    channels = data.draw(channel_counts)
    layer = data.draw(layers(name, channels, **fixed))
    if name in INDEPENDENT:
        for child in layer.children():
            child.reset_parameters()
    x, factor, shift = data.draw(maps(channels)), data.draw(factors), data.draw(shifts)
    beta = layer.bias.view(-1, channels).sum(0).view(-1, *(1,) * (x.dim() - 2))
    with use_backend(data.draw(backends)):
        changed = moved(layer, factor, shift)(factor * x + shift) - beta
        expected = layer(x) - beta
    assert_same(changed * (1 if factor > 0 else -1), expected, 1e-6)


@for_any(AUTOENCODERS, **COUNTS)
def test_a_shift_is_seen_by_what_the_mean_drives_alone(name, data):
    layer, x = data.draw(layers_and_maps(name))
    nn.init.zeros_(layer.decode_mean.weight)
    with use_backend(data.draw(backends)):
        assert_same(layer(x + data.draw(shifts)), layer(x), 1e-6)
