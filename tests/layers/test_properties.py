"""What holds for every shape, dtype, layout and option: generated cases, the same in each run."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from cases import inputs, randomized
from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers.assoc import COMBINE
from ilm_plugins.layers.base import ACTIVATIONS
from ilm_plugins.layers.statistics import NORMALIZERS

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

usual = settings(
    derandomize=True,
    deadline=None,
    max_examples=15,
    suppress_health_check=list(hypothesis.HealthCheck),
)
#: A settings object decorates a property: a few cases every day, and many where time allows.
thoroughness = pytest.mark.parametrize(
    "examples",
    [usual, pytest.param(settings(usual, max_examples=500), marks=pytest.mark.long)],
    ids=["few", "many"],
)
every_layer = pytest.mark.parametrize("name", NORMS)
INDEPENDENT = ("ILMGN", "ILMIN", "ILMLN", "AssocNorm")
every_independent_layer = pytest.mark.parametrize("name", INDEPENDENT)

# ---- what is generated


def divisors(n):
    return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])


def options(name, channels):
    """All options of a layer, and some of their values."""
    activation = st.sampled_from(sorted(ACTIVATIONS))
    hidden, eps = st.integers(1, 3), st.sampled_from([1e-5, 1e-3, 0.1])
    if name == "AssocNorm":
        keys = {"num_key_groups": divisors(channels), "hidden": hidden, "num_groups": None}
        found = {**keys, "combine": st.sampled_from(sorted(COMBINE))}
    elif name in INDEPENDENT:
        keys = {"key_group_size": divisors(channels), "hidden": hidden, "num_groups": None}
        found = {**keys, "activations": st.tuples(activation, activation)}
        if name != "ILMGN":
            del found["num_groups"]
    else:
        several = st.lists(st.sampled_from(NORMALIZERS), min_size=1, unique=True)
        found = {"normalizers": several.map(tuple), "num_groups": None}
        if name == "EN":
            found |= {
                "reduction": divisors(channels),
                "expansion": hidden,
                "ratio_net": st.sampled_from(["conv", "no_conv", "mlp"]),
                "activation": st.sampled_from(["tanh", "relu"]),
                "shared_affine": st.booleans(),
            }
    if "num_groups" in found:
        found["num_groups"] = divisors(channels)
    return st.fixed_dictionaries({"eps": eps, **found})


@st.composite
def layers(draw, name, channels, dtype=torch.float64, **fixed):
    """A layer with random options, parameters and running statistics, training or not."""
    chosen = {**draw(options(name, channels)), **fixed}
    make = partial(NORMS[name], channels, **chosen)
    return randomized(make, dtype, seed=draw(st.integers(0, 99))).train(draw(st.booleans()))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a part": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
}
#: Not "triton": its interpreter, which needs a process of its own, takes seconds for an example, so
#: tests/ops/test_triton_kernels.py compares these kernels with the reference on chosen cases.
backends = st.sampled_from(["native", "reference"])
channel_counts = st.sampled_from([1, 4, 6, 12])
layouts = st.sampled_from(sorted(LAYOUTS)).map(LAYOUTS.get)


@st.composite
def maps(draw, channels, dtype=torch.float64, min_spatial=0):
    """A random map in a random layout, of up to three spatial dimensions, often of size 1."""
    spatial = draw(st.lists(st.integers(1, 5), min_size=min_spatial, max_size=3))
    shape = (draw(st.integers(1, 5)), channels, *spatial)
    return draw(layouts)(inputs(*shape, dtype=dtype, seed=draw(st.integers(0, 99))))


def gradients(y, variables, seed=3):
    return torch.autograd.grad(y, variables, inputs(*y.shape, seed=seed).to(y.dtype))


def assert_same(actual, expected, tolerance):
    """Equal within a fraction of the largest value."""
    bound = tolerance * max(1, expected.abs().max().item())
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= bound


# ---- backends and layouts


@every_layer
@thoroughness
def test_backends_and_layouts_agree(name, examples):
    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        layer, x = data.draw(layers(name, channels)), data.draw(maps(channels))
        found = []
        for backend, laid_out in (
            ("native", x),
            ("reference", x),
            ("reference", x.contiguous()),
        ):
            twin, leaf = copy.deepcopy(layer), laid_out.detach().requires_grad_()
            with use_backend(backend):
                y = twin(leaf)
            found.append([y, *gradients(y, [leaf, *twin.parameters()]), *twin.buffers()])
        for native, reference, contiguous in zip(*found, strict=True):
            assert_same(reference, contiguous, 1e-9)
            assert_same(native, contiguous, 1e-9)

    holds()


# ---- extreme values


def extreme(kind, x, dtype, largest):
    """x in another dtype, brought to the limits of what that can hold, or to ``largest``."""
    limits = torch.finfo(dtype)
    largest = min(limits.max, largest)
    unit = x / x.abs().max()
    return {
        "denormal": unit * limits.smallest_normal,
        "huge": unit * largest,
        "huge constant": torch.full_like(unit, largest),
        "huge mean": largest * (1 - 4 * limits.eps * unit.abs()),
        "zero": unit * 0,
        "one huge value": unit.where(unit == 1, 0) * largest,
    }[kind].to(dtype)


KINDS = ["denormal", "huge", "huge constant", "huge mean", "zero", "one huge value"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def assert_finite(layer, x):
    x.requires_grad_()
    y = layer(x)
    assert y.dtype == x.dtype and y.shape == x.shape
    for tensor in (y, *gradients(y, [x, *layer.parameters()]), *layer.buffers()):
        assert tensor.isfinite().all()


@every_layer
@thoroughness
def test_extreme_values_stay_finite(name, examples):
    """Up to the fourth root of the largest number, 4e9 in float32, and in all of float16.

    Where the activations are bounded: others multiply by the variance, out of the range of x.
    """
    bounded = st.tuples(*[st.sampled_from(["tanh", "sigmoid"])] * 2)

    @examples
    @given(st.data())
    def holds(data):
        dtype, channels = data.draw(st.sampled_from(DTYPES)), data.draw(channel_counts)
        computed = torch.promote_types(dtype, torch.float32)
        kind, largest = data.draw(st.sampled_from(KINDS)), torch.finfo(computed).max ** 0.25
        x = data.draw(layouts)(extreme(kind, data.draw(maps(channels)), dtype, largest))
        torch.manual_seed(data.draw(st.integers(0, 9)))
        chosen = data.draw(options(name, channels))
        if "activations" in chosen:
            chosen["activations"] = data.draw(bounded)
        layer = NORMS[name](channels, **chosen, dtype=computed)
        with use_backend(data.draw(backends)):
            assert_finite(layer, x)

    holds()


every_backend = pytest.mark.parametrize("backend", ["native", "reference"])


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squares_that_overflow_give_nan(name, dtype, backend):
    """nn.GroupNorm gives NaN on a map of 4x4, and silently zeros on one of 5x5."""
    for size in (4, 5):
        x = extreme("huge", inputs(2, 64, size, size), dtype, torch.finfo(dtype).max * 0.9)
        with use_backend(backend):
            assert NORMS[name](64)(x).isnan().all()


# ---- independence and equivariance


@every_independent_layer
@thoroughness
def test_an_instance_does_not_depend_on_its_batch(name, examples):
    """Bit for bit in the reference, where instances do not lie interleaved in memory."""

    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        x = data.draw(maps(channels, torch.float32))
        torch.manual_seed(data.draw(st.integers(0, 9)))
        layer = NORMS[name](channels, **data.draw(options(name, channels)))
        apart_in_memory = x.stride(0) == max(x.stride())
        for backend, tolerance in (
            ("native", 1e-6),
            ("reference", 0 if apart_in_memory else 1e-6),
        ):
            with use_backend(backend):
                together = layer(x)
                apart = torch.cat([layer(instance) for instance in x.split(1)])
            assert_same(together, apart, tolerance)

    holds()


@every_layer
@thoroughness
def test_the_order_of_the_batch_does_not_matter(name, examples):
    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        layer, x = data.draw(layers(name, channels)), data.draw(maps(channels))
        order = torch.tensor(data.draw(st.permutations(range(len(x)))))
        twin = copy.deepcopy(layer)
        with use_backend(data.draw(backends)):
            assert_same(twin(x[order]), layer(x)[order], 1e-9)
        for moved, kept in zip(twin.buffers(), layer.buffers(), strict=True):
            assert_same(moved, kept, 1e-9)

    holds()


@every_layer
@thoroughness
def test_pixels_may_be_permuted(name, examples):
    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        layer, x = data.draw(layers(name, channels)), data.draw(maps(channels, min_spatial=1))
        order = torch.tensor(data.draw(st.permutations(range(x.shape[2:].numel()))))

        def permuted(x):
            return x.flatten(2)[..., order].view(x.shape)

        twin = copy.deepcopy(layer)
        with use_backend(data.draw(backends)):
            assert_same(twin(permuted(x)), permuted(layer(x)), 1e-9)

    holds()


@pytest.mark.parametrize("name", [*INDEPENDENT, "SN"])
@thoroughness
def test_channels_of_a_group_may_be_permuted_with_their_parameters(name, examples):
    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        layer, x = data.draw(layers(name, channels)), data.draw(maps(channels))
        groups = layer.num_groups if name == "SN" else layer.moment_groups
        size = channels // groups
        order = torch.cat(
            [
                group * size + torch.tensor(data.draw(st.permutations(range(size))))
                for group in range(groups)
            ]
        )
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            for key, tensor in twin.state_dict(keep_vars=True).items():
                if tensor.shape == (channels,) and not key.endswith("_weight"):  # SN's ratios
                    tensor.copy_(tensor[order])
        with use_backend(data.draw(backends)):
            assert_same(twin(x[:, order]), layer(x)[:, order], 1e-9)

    holds()


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


@every_layer
@thoroughness
def test_scale_and_shift_of_the_input(name, examples):
    """y - beta takes the sign of the factor and nothing else, where nothing but the norm sees x.

    That is: ILM Norm and AssocNorm with decoders of zero, SN, and EN whose ratios come of
    normalized means, because v = z z^T does not see the sign either.
    """
    fixed = {"EN": {"ratio_net": "conv"}, "SN": {}}.get(name, {"init": "identity"})
    if name.startswith("ILM"):
        fixed["activations"] = ("tanh", "sigmoid")
    if name == "AssocNorm":
        fixed["combine"] = "a(WE)+B"

    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        layer = data.draw(layers(name, channels, **fixed))
        if name in INDEPENDENT:
            for decoder in (layer.decode_mean, layer.decode_var):
                decoder.reset_parameters()
        x, factor, shift = data.draw(maps(channels)), data.draw(factors), data.draw(shifts)
        beta = layer.bias.view(-1, channels).sum(0).view(-1, *(1,) * (x.dim() - 2))
        with use_backend(data.draw(backends)):
            changed = moved(layer, factor, shift)(factor * x + shift) - beta
            expected = layer(x) - beta
        assert_same(changed * (1 if factor > 0 else -1), expected, 1e-6)

    holds()


@every_independent_layer
@thoroughness
def test_a_shift_is_seen_by_what_the_mean_drives_alone(name, examples):
    @examples
    @given(st.data())
    def holds(data):
        channels = data.draw(channel_counts)
        layer, x = data.draw(layers(name, channels)), data.draw(maps(channels))
        nn.init.zeros_(layer.decode_mean.weight)
        with use_backend(data.draw(backends)):
            assert_same(layer(x + data.draw(shifts)), layer(x), 1e-6)

    holds()
