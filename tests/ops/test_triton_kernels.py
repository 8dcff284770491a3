"""The Triton kernels against the transcribed equations and the composite.

On a GPU they run there. Elsewhere, Triton's interpreter runs them; and they are compiled for an
H200.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import transcription
from cases import CHANNELS, MAIN, inputs, randomized
from ilm_plugins import NORMS, ILMGroupNorm, use_backend
from ilm_plugins.ops import Autoencoder, Exemplar, Switch, reference
from interpreter import (
    DEVICE,
    compiles,
    run_interpreted,
    runs,
    skip_without_triton,
    without_gpu,
)

skip_without_triton()
import triton  # noqa: E402

from ilm_plugins.ops import triton as kernels  # noqa: E402

LAYOUTS = {"contiguous": False, "channels-last": True}
wide = pytest.mark.wide
layouts = pytest.mark.parametrize("last", LAYOUTS.values(), ids=LAYOUTS)
dtypes = pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(d, marks=wide) for d in (torch.float16, torch.bfloat16))],
    ids=["f32", "f16", "bf16"],
)

#: Of the largest value, what summing in another order may cost, and what rounding the output may.
SUMMING = 3e-5
ROUNDING = {torch.float32: SUMMING, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@without_gpu
@pytest.mark.parametrize(
    "selection", ["not wide and not long", pytest.param("wide", marks=pytest.mark.wide)]
)
def test_under_the_interpreter(selection):
    run_interpreted(__file__, selection)


# ---- numbers


def make_map(*shape, last=False, dtype=torch.float32, seed=1):
    """A random map, in float64 what it is in ``dtype``."""
    x = inputs(*shape, seed=seed).to(dtype)
    return lay_out(x, last).to(DEVICE)


def lay_out(x, last):
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


#: Gradients that are wanted: all.
NEEDS = (True,) * 9


class Network(NamedTuple):
    is_a: Autoencoder | Exemplar | Switch
    tensors: tuple[torch.Tensor | None, ...]


def make_network(
    channels,
    num_groups,
    num_key_groups,
    hidden=3,
    *,
    mean_drives="beta",
    activations=("tanh", "sigmoid"),
    combine="a(WE)+B",
    dtype=torch.float32,
):
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    description = Autoencoder(
        num_groups=num_groups,
        num_key_groups=num_key_groups,
        hidden=hidden,
        eps=1e-5,
        mean_drives=mean_drives,
        activations=activations,
        combine=combine,
    )
    tensors = (
        tensor(channels),
        tensor(channels),
        tensor(hidden, num_key_groups),
        tensor(num_key_groups, hidden),
        tensor(num_key_groups, hidden),
        torch.tensor(0.5, device=DEVICE, dtype=dtype),
    )
    return Network(description, tensors)


TRAINED = ("weight", "bias", "encode", "decode_mean", "decode_var")


def by_equations(x, dy, network):
    """y, dx and the parameters' gradients by the transcription, in float64 on the CPU."""
    network, (*trained, omega_offset) = network
    x = x.detach().cpu().double().requires_grad_()
    trained = (t.cpu().double().requires_grad_() for t in trained)
    tensors = dict(zip(TRAINED, trained, strict=True))
    options = {"num_groups": network.num_groups, "eps": network.eps}
    options["omega_offset"] = omega_offset.cpu().double()
    if network.mean_drives == "beta":
        options["key_group_size"] = x.shape[1] // network.num_key_groups
        y = transcription.ilm_norm(x, **tensors, **options, activations=network.activations)
    else:
        options["num_key_groups"] = network.num_key_groups
        y = transcription.assoc_norm(x, **tensors, **options, combine=network.combine)
    gradients = torch.autograd.grad(
        y, [x, *tensors.values()], dy.cpu().double(), materialize_grads=True
    )
    return y.detach(), *gradients


def by_kernels(x, dy, network, num_groups):
    y, mean, var = kernels.forward(x, num_groups, *network)
    dx, gradients = kernels.backward(dy, x, mean, var, *network, True, NEEDS)
    gradients = [d for d in gradients if d is not None]
    assert (y.dtype, y.stride()) == (dx.dtype, dx.stride()) == (x.dtype, x.stride())
    assert {t.dtype for t in (mean, var, *gradients)} == {torch.float32}
    return (y, dx, *gradients), (mean, var)


def check(name, actual, expected, tolerance):
    assert actual.shape == expected.shape, name
    error = (actual.detach().cpu().double() - expected.cpu()).abs().max()
    assert error <= tolerance * expected.abs().max().clamp_min(1e-3), (name, error)


def check_network(x, network, num_groups, tolerance=SUMMING):
    dy = make_map(*x.shape, last=not x.is_contiguous(), dtype=x.dtype, seed=2)
    actual, (mean, var) = by_kernels(x, dy, network, num_groups)
    for name, a, e in zip(("y", "dx", *TRAINED), actual, by_equations(x, dy, network), strict=True):
        check(name, a, e, max(tolerance, ROUNDING[x.dtype]) if name in ("y", "dx") else tolerance)
    for name, a, e in zip(
        ("mean", "var"), (mean, var), reference.moments(x.double(), num_groups), strict=True
    ):
        check(name, a, e, tolerance)


@pytest.fixture
def streaming(monkeypatch):
    """No instance fits into registers."""
    monkeypatch.setattr(kernels.autoencoder, "ONE_READ", 0)


@pytest.fixture
def small_tiles(monkeypatch, streaming):
    """Several tiles and splits, of several tiles each, of maps that are small enough for a test."""
    monkeypatch.setattr(kernels.streaming, "TILE", 32)
    monkeypatch.setattr(kernels.streaming, "CHANNELS", 4)


@runs
@layouts
@dtypes
def test_box_head(dtype, last):
    x = make_map(2, 256, 7, 7, last=last, dtype=dtype)
    check_network(x, make_network(256, 32, 16, 2), 32)


@runs
@layouts
@pytest.mark.parametrize(
    "c, groups, keys, shape",
    [
        (16, 4, 8, (5, 7)),
        pytest.param(16, 8, 4, (3,), marks=wide),
        (16, 1, 16, (2, 3, 2)),
        pytest.param(16, 16, 1, (4, 4), marks=wide),
        pytest.param(8, 4, 8, (), marks=wide),
        (8, 2, 4, (1, 1)),
        (1, 1, 1, (9,)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "path", ["one-read", *(pytest.param(p, marks=wide) for p in ("streaming", "small-tiles"))]
)
def test_sizes(request, c, groups, keys, shape, last, path):
    if path != "one-read":
        request.getfixturevalue(path.replace("-", "_"))
    x = make_map(2, c, *shape, last=last)
    check_network(x, make_network(c, groups, keys), max(groups, keys))


@runs
@layouts
@dtypes
def test_splits(dtype, last, small_tiles):
    x = make_map(1, 4, 15, 15, last=last, dtype=dtype)
    assert kernels.streaming._Tiling.of(x).splits > 2
    check_network(x, make_network(4, 2, 1), 2)


@runs
@pytest.mark.parametrize(
    "mean, var",
    [
        pytest.param(mean, var, marks=() if i == j else wide)  # each of them once every day
        for i, mean in enumerate(("tanh", "relu", "leaky_relu"))
        for j, var in enumerate(("sigmoid", "relu6", "identity"))
    ],
)
def test_activations(mean, var):
    network = make_network(8, 4, 4, activations=(mean, var))
    check_network(make_map(4, 8, 3, 5), network, 4)


#: What drives which activation: of ILM Norm, and of AssocNorm.
ASSOCIATIONS = [("beta", ("tanh", "sigmoid")), ("omega", ("sigmoid", "tanh"))]


@runs
@pytest.mark.parametrize("combine", ["a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B"])
def test_combinations(combine):
    network = make_network(
        8, 2, 4, mean_drives="omega", activations=("sigmoid", "tanh"), combine=combine
    )
    check_network(make_map(4, 8, 3, 5), network, 4)


@runs
@dtypes
def test_parameters_in_any_dtype(dtype):
    check_network(make_map(2, 8, 3, 5), make_network(8, 4, 4, dtype=dtype), 4)


@runs
@pytest.mark.parametrize("path", ["one-read", "streaming"])
@pytest.mark.parametrize("mean_drives, activations", ASSOCIATIONS)
def test_identity_keeps_the_digits_of_tiny_weights(request, mean_drives, activations, path):
    if path != "one-read":
        request.getfixturevalue(path)
    network = make_network(8, 4, 4, mean_drives=mean_drives, activations=activations)
    for tensor, factor in zip(network.tensors, (1e-6, 1e-6, 1, 0, 0), strict=False):
        tensor.mul_(factor)
    x, dy = make_map(2, 8, 3, 5), 1e6 * make_map(2, 8, 3, 5, seed=2)
    (y, dx, *_), _ = by_kernels(x, dy, network, 4)
    expected_y, expected_dx, *_ = by_equations(x, dy, network)
    check("y", 1e6 * y, 1e6 * expected_y, SUMMING)
    check("dx", dx, expected_dx, SUMMING)


@runs
@layouts
@pytest.mark.parametrize("path", ["one-read", pytest.param("streaming", marks=wide), "small-tiles"])
def test_large_means(request, last, path):
    # E[x^2] - E[x]^2 would be off by more than the variance. What is left is x's own rounding.
    if path != "one-read":
        request.getfixturevalue(path.replace("-", "_"))
    x = lay_out(1000 + torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)), last)
    check_network(x.to(DEVICE), make_network(8, 2, 4), 4, tolerance=2e-3)


@runs
@pytest.mark.parametrize("path", ["one-read", pytest.param("small-tiles", marks=wide)])
def test_the_same_again(request, path):
    if path != "one-read":
        request.getfixturevalue(path.replace("-", "_"))
    x, network = make_map(2, 4, 9, 9), make_network(4, 1, 2)
    first, again = (by_kernels(x, x, network, 2) for _ in range(2))
    for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(a, b)


@runs
@pytest.mark.parametrize("path", ["one-read", "streaming"])
def test_x_that_needs_no_gradient(request, path):
    if path != "one-read":
        request.getfixturevalue(path)
    x, network = make_map(2, 4, 3, 3), make_network(4, 1, 2)
    _, *moments = kernels.forward(x, 2, *network)
    _, wanted = kernels.backward(x, x, *moments, *network, True, NEEDS)
    dx, gradients = kernels.backward(x, x, *moments, *network, False, NEEDS)
    assert dx is None
    for a, b in zip(gradients[:-1], wanted[:-1], strict=True):
        assert torch.equal(a, b)


# ---- mixtures of normalizers

mixtures = pytest.mark.parametrize("name", ["EN", "SN"])


def make_mixture(name, channels, *, training=True, dtype=torch.float32, **options):
    """A layer whose tensors are random, but for EN's ratios not to be all or nothing."""
    if name == "EN":
        options = {"reduction": 4, "expansion": 3, **options}
    layer = randomized(lambda: NORMS[name](channels, **options), dtype)
    if name == "EN":
        layer.expand.weight.detach().mul_(0.02)
    return layer.to(DEVICE).train(training)


def network_of(layer):
    tensors = (t if t is None else t.detach() for t in layer.rescale_tensors())
    return Network(layer.network(), tuple(tensors))


def by_composite(x, dy, layer):
    """y, dx and the parameters' gradients by the reference, in float64 on the CPU."""
    *trained, mean, var = (
        t if t is None else t.detach().cpu().double() for t in layer.rescale_tensors()
    )
    x, *trained = (t.cpu().double().requires_grad_() for t in (x, *trained))
    y, _, _ = reference.adaptive_norm(
        x, layer.moment_groups, layer.eps, layer.rescale, *trained, mean, var
    )
    return y.detach(), *torch.autograd.grad(y, [x, *trained], dy.cpu().double())


def check_mixture(layer, x, tolerance=SUMMING):
    dy = make_map(*x.shape, seed=2)
    network = network_of(layer)
    assert kernels.runs(network.is_a, x, layer.moment_groups)
    actual, _ = by_kernels(x, dy, network, layer.moment_groups)
    for i, (a, e) in enumerate(zip(actual, by_composite(x, dy, layer), strict=True)):
        check(i, a, e, tolerance)


@runs
@mixtures
@pytest.mark.parametrize(
    "normalizers, training",
    [
        # Without BN, evaluation is as training.
        pytest.param(n, training, marks=() if training or "BN" in n else wide)
        for n in (("IN", "LN", "BN"), ("BN", "LN"), ("IN", "LN"), ("LN",))
        for training in (True, False)
    ],
    ids=str,
)
def test_mixture_of(name, normalizers, training):
    layer = make_mixture(name, 24, training=training, normalizers=normalizers)
    check_mixture(layer, make_map(2, 24, 3, 5))


@runs
@mixtures
@pytest.mark.parametrize("shape", [(1, 4, 7), (1, 16, 1, 1), (3, 24), (2, 96, 2, 2)], ids=str)
def test_mixture_of_sizes(name, shape, monkeypatch):
    monkeypatch.setattr(kernels.mixture, "BATCH_TILE", (2, 32))
    # A single value's dx is what is left of terms of 1 / sqrt(eps) that cancel.
    tolerance = 0.05 if shape == (1, 16, 1, 1) else SUMMING
    check_mixture(make_mixture(name, shape[1]), make_map(*shape), tolerance)


@runs
@pytest.mark.parametrize(
    "activation, shared_affine, reduction",
    [("tanh", False, 1), ("tanh", True, 4), ("relu", False, 8), ("relu", True, 2)],
    ids=str,
)
def test_mixture_options(activation, shared_affine, reduction):
    layer = make_mixture(
        "EN", 24, activation=activation, shared_affine=shared_affine, reduction=reduction
    )
    check_mixture(layer, make_map(1, 24, 3, 5))


@runs
@mixtures
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_mixture_at_large_means(name, training):
    # E[x^2] - E[x]^2 would be off by more than the variance. What is left is x's own rounding.
    x = 1000 + torch.randn(2, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = make_mixture(name, 12, training=training)
    if not training:
        layer.running_mean += 1000
    check_mixture(layer, x.to(DEVICE), tolerance=2e-3)


@runs
@mixtures
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_mixture_with_parameters_in_half_precision(name, dtype):
    layer = make_mixture(name, 12, training=dtype == torch.float16, dtype=dtype)
    check_mixture(layer, make_map(2, 12, 3, 5))


@runs
@mixtures
def test_mixture_the_same_again(name):
    x, network = make_map(2, 12, 3, 3), network_of(make_mixture(name, 12))
    first, again = (by_kernels(x, x, network, 12) for _ in range(2))
    for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(a, b)


@runs
@mixtures
def test_mixture_of_x_that_needs_no_gradient(name):
    x, network = make_map(1, 12, 3, 3), network_of(make_mixture(name, 12))
    _, *moments = kernels.forward(x, 12, *network)
    _, wanted = kernels.backward(x, x, *moments, *network, True, NEEDS)
    dx, gradients = kernels.backward(x, x, *moments, *network, False, NEEDS)
    assert dx is None and gradients[-2:] == wanted[-2:] == (None, None)
    for a, b in zip(gradients[:-2], wanted[:-2], strict=True):
        assert torch.equal(a, b)


# ---- layers

#: One of the layers whose network is not in the kernels, and all of those whose is, by layout.
EVERYDAY = (("ILMGN", True), ("EN", False), ("SN", True))


@runs
@dtypes
@pytest.mark.parametrize("path", [pytest.param("large-tiles", marks=wide), "small-tiles"])
@pytest.mark.parametrize(
    "name, last",
    [
        pytest.param(name, last, marks=() if (name, last) in EVERYDAY else wide)
        for name in NORMS
        for last in (False, True)
    ],
)
def test_layers(request, name, dtype, last, path):
    """Whole layers, those without a network in the kernels too, against the reference."""
    if path == "small-tiles":
        request.getfixturevalue("small_tiles")
    layer = randomized(MAIN[name], torch.float32).to(DEVICE)
    x = make_map(2, CHANNELS, 5, 7, last=last, dtype=dtype)
    dy = make_map(2, CHANNELS, 5, 7, dtype=dtype, seed=2)  # of another layout, half of the time
    in_kernels = kernels.runs(layer.network(), x, layer.moment_groups)
    assert in_kernels == (name in ("EN", "SN"))
    found = {}
    for backend, precision in (("triton", dtype), ("reference", torch.float64)):
        layer.to(torch.float32 if backend == "triton" else precision)
        into = x.to(precision).requires_grad_()
        with use_backend(backend):
            y = layer(into)
        gradients = torch.autograd.grad(y, [into, *layer.parameters()], dy.to(precision))
        found[backend] = [y, *gradients]
        if backend == "triton":
            assert "AdaptiveNorm" in type(y.grad_fn).__name__
            assert (y.dtype, y.stride()) == (x.dtype, x.stride())
            assert (gradients[0].dtype, gradients[0].stride()) == (x.dtype, x.stride())
    pairs = zip(found["triton"], found["reference"], strict=True)
    for i, (actual, expected) in enumerate(pairs):
        # The random ratios of EN are steep.
        check(i, actual, expected.detach(), max(3e-4, ROUNDING[dtype] if i < 2 else 0))


@runs
def test_layouts_that_are_neither():
    layer = ILMGroupNorm(64, 8).to(DEVICE)
    x = make_map(2, 64, 6, 4).transpose(2, 3)
    with use_backend("triton"):
        y = layer(x)
    torch.testing.assert_close(y.cpu(), layer.cpu()(x.cpu()), rtol=1e-4, atol=1e-4)


# ---- what needs no kernel


@runs
def test_what_is_supported():
    x = torch.zeros(2, 6, 4, 4, device=DEVICE)
    assert kernels.supports(x) and kernels.supports(x.bfloat16()) and kernels.supports(x[0])
    assert not kernels.supports(x.double())


@pytest.mark.parametrize(
    "c, groups, keys, hidden, eligible",
    [
        (256, 32, 16, 2, True),
        (512, 512, 512, 32, True),
        (1024, 1024, 1024, 64, False),  # matrices of 64 K elements
        (8192, 32, 32, 2, False),
        (12, 4, 4, 2, False),
        (24, 3, 8, 2, False),
    ],
    ids=str,
)
def test_which_networks_run_in_kernels(c, groups, keys, hidden, eligible):
    network = make_network(c, groups, keys, hidden)
    x = torch.empty(1, c, 2, 2, device=DEVICE)
    assert kernels.runs(network.is_a, x, max(groups, keys)) == eligible


@pytest.mark.parametrize(
    "name, channels, options, eligible",
    [
        ("EN", 96, {}, True),
        ("EN", 608, {"reduction": 16}, True),
        ("EN", 24, {"reduction": 8, "normalizers": ("IN", "BN"), "expansion": 100}, True),
        ("EN", 24, {"reduction": 3}, False),
        ("EN", 64, {"normalizers": ("IN", "GN")}, False),
        ("EN", 64, {"ratio_net": "mlp"}, False),
        ("EN", 64, {"ratio_net": "no_conv"}, False),
        ("EN", 64, {"expansion": 400}, False),
        ("EN", 8192, {}, False),
        ("SN", 100, {}, True),
        ("SN", 64, {"normalizers": ("LN", "GN")}, False),
        ("SN", 8192, {}, False),
    ],
    ids=str,
)
def test_which_mixtures_run_in_kernels(name, channels, options, eligible):
    layer = NORMS[name](channels, **options)
    x = torch.empty(1, channels, 2, 2, device=DEVICE)
    assert kernels.runs(layer.network(), x, channels) == eligible


# ---- compilation for an H200


class Driver:
    """Instead of a GPU's driver, all that compiling ahead asks of one."""

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return -1  # so that nothing is launched by what is compiled here

    def get_current_stream(self, device):
        return -1  # so that nothing is launched by what is compiled here


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())


def launches(shape, num_groups, network, dtype, last):
    """What both passes launch on a map of that shape."""
    x = lay_out(torch.empty(shape, dtype=dtype, device="meta"), last)
    moments = torch.empty(2, shape[0], num_groups, device="meta")
    with kernels.launching.recorded() as recorded:
        kernels.forward(x, num_groups, *network)
        kernels.backward(x, x, *moments, *network, True, NEEDS)
    return recorded


def compile_ahead(launch):
    compiled = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    assert compiled.asm["cubin"]
    return compiled


def spilled_bytes(compiled):
    """Of each thread's stack, on which there is nothing but registers that were spilled."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [folder / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return int(re.search(r"STACK:(\d+)", usage)[1])


def on_meta(network):
    return Network(network.is_a, tuple(t if t is None else t.to("meta") for t in network.tensors))


@compiles
@pytest.mark.parametrize("last", [False, pytest.param(True, marks=wide)], ids=LAYOUTS)
@dtypes
def test_streaming_kernels_compile(driver, dtype, last):
    network = on_meta(make_network(256, 32, 16, 2))
    names = set()
    for launch in launches((2, 256, 200, 304), 32, network, dtype, last):
        compiled = compile_ahead(launch)
        name = compiled.metadata.name
        names.add(name)
        assert spilled_bytes(compiled) == 0, name
        if "pool" not in name and "network" not in name:
            assert "ld.global.v4.b32" in compiled.asm["ptx"], "loads of 16 bytes"
    assert len(names) == 7


@compiles
@layouts
@dtypes
def test_one_read_kernels_compile(driver, dtype, last):
    network = on_meta(make_network(256, 32, 16, 2))
    forward, backward = launches((512, 256, 7, 7), 32, network, dtype, last)
    assert forward.kernel is kernels.autoencoder._one_read_kernel
    assert backward.kernel is kernels.autoencoder._one_read_vjp_kernel
    for launch in (forward, backward):
        assert spilled_bytes(compile_ahead(launch)) <= 16


@compiles
@mixtures
@pytest.mark.parametrize("channels", [pytest.param(256, marks=wide), 2048])
def test_mixture_kernels_compile(driver, name, channels):
    network = on_meta(network_of(NORMS[name](channels)))
    names = set()
    for launch in launches((2, channels, 14, 14), channels, network, torch.float32, False):
        if launch.kernel.__module__.endswith("mixture"):
            compiled = compile_ahead(launch)
            names.add(compiled.metadata.name)
            assert spilled_bytes(compiled) == 0, compiled.metadata.name
    assert len(names) == 4
