"""The fused primitive against the reference, on every backend that runs here; and the choice."""

import copy
import os
import sys
import types

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import fresh
from cases import (
    BACKENDS,
    CASES,
    CHANNELS,
    KERNELS,
    MAIN,
    MIXTURES,
    ROUNDINGS,
    channels_last,
    every_backend,
    every_layer,
    inputs,
    modes,
    needs_kernels,
    on_each,
    randomized,
    results,
    saved_bytes,
)
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SwitchNorm, use_backend
from ilm_plugins.ops import backends

#: One pixel, odd sizes, a map longer than the threshold between two kernels, any dimensions.
SHAPES = [
    (3, CHANNELS),
    (3, CHANNELS, 1, 1),
    (2, CHANNELS, 7),
    (3, CHANNELS, 5, 7),
    (2, CHANNELS, 17, 19),
    (1, CHANNELS, 2, 3, 5),
]


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "last": channels_last,
    "other": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
}
kernels_layouts = pytest.mark.parametrize("layout", ["contiguous", "last"])


def is_channels_last(x):
    return x.movedim(1, -1).is_contiguous()


def small():
    """An input of layers of CASES, of which second derivatives are quick."""
    return inputs(2, CHANNELS, 3, 2)


def changes(layer, x, seed):
    """For each of the results, its largest change per relative change of all operands.

    Each value of x, of the seed and of the layer is multiplied by 1 + h or 1 - h, at random. A sum
    of large terms that cancel has a small result, yet this changes by as much as its terms.
    """
    h, signs = 2**-20, torch.Generator().manual_seed(0)
    layer = copy.deepcopy(layer).double()
    operands = [x.double(), seed.double(), *layer.parameters(), *layer.buffers()]
    before = results(layer, *operands[:2], "reference")
    with torch.no_grad():
        for tensor in filter(torch.is_floating_point, operands):
            tensor *= 1 + h * (2 * torch.randint(2, tensor.shape, generator=signs) - 1)
    after = results(layer, *operands[:2], "reference")
    return [(b - a).abs().max().item() / h for a, b in zip(after, before, strict=True)]


def assert_agree(layer, x):
    seed = inputs(*x.shape, dtype=x.dtype, seed=5)
    untouched = copy.deepcopy(layer)  # by the running statistics of a call
    expected = results(layer, x, seed, "reference")
    actual = results(layer, x, seed, KERNELS)
    # Gradients of parameters are sums of such terms.
    terms = (seed.double() * expected[0].double()).abs().max().item()
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        unit = torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps / 2
        # Both are rounded once more where they are stored in 16 bits.
        rtol = torch.finfo(a.dtype).eps if a.dtype in (torch.float16, torch.bfloat16) else 0
        a, e = a.double(), e.double()
        size = max(e.abs().max().item(), terms)
        # Seldom needed, and it takes two more runs.
        if not torch.allclose(a, e, rtol, ROUNDINGS * unit * size):
            size = max(size, changes(untouched, x, seed)[i])
        torch.testing.assert_close(a, e, rtol=rtol, atol=ROUNDINGS * unit * size)
    for is_laid_out in (torch.Tensor.is_contiguous, is_channels_last):
        if is_laid_out(x):
            assert is_laid_out(actual[0]) and is_laid_out(actual[1])


@modes(CASES)
def test_every_switch_on_every_shape(name, training):
    layouts = list(LAYOUTS.values())
    for i, shape in enumerate(SHAPES):
        # Kernels see layouts, and shapes, before they see the switches of a layer.
        for change in layouts if name in NORMS else [layouts[i % len(layouts)]]:
            layer = randomized(CASES[name][0]).train(training)
            assert_agree(layer, change(inputs(*shape)))


@kernels_layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@every_layer
def test_every_dtype(name, dtype, layout):
    for shape in [(3, CHANNELS, 5, 7), (2, CHANNELS, 17, 19)]:
        layer = randomized(MAIN[name], torch.float32)
        x = LAYOUTS[layout](inputs(*shape, dtype=dtype))
        assert_agree(layer, x)


@kernels_layouts
@pytest.mark.parametrize("length", [511, 513, 3000, 8191, 8193, 2 * 8192 + 7])
@pytest.mark.parametrize("name", ["ILMGN", "SN"])
def test_no_position_of_a_large_map_is_left_out(name, length, layout):
    """Kernels take large maps in blocks: of 512 positions, of several channels, of 8192 values."""
    assert_agree(randomized(MAIN[name]), LAYOUTS[layout](inputs(2, CHANNELS, length)))


@kernels_layouts
@every_layer
def test_groups_wider_than_key_groups(name, layout):
    layer = randomized(lambda: NORMS[name](2048))
    if name == "EN":  # 32 groups of normally distributed weights saturate the ratios
        layer.reset_parameters()
    assert_agree(layer, LAYOUTS[layout](inputs(2, 2048, 3, 3)))
    if name.startswith("ILM"):
        assert layer.moment_groups >= 2048 // 16


@kernels_layouts
@every_layer
def test_large_means(name, layout):
    """Forward and backward in float32 are as near to float64 as the reference's are."""
    torch.manual_seed(0)
    layer = NORMS[name](64)
    if name in MIXTURES:
        layer.running_mean.fill_(1000)
    x = LAYOUTS[layout](1000 + inputs(4, 64, 16, 16, dtype=torch.float32))
    seed = inputs(*x.shape, dtype=torch.float32, seed=5)
    exact = results(layer.double(), x.double(), seed.double(), "reference")
    layer.float()
    errors = {
        backend: [
            ((a.double() - e).norm() / e.norm()).item()
            # of y, x, weight and bias: a mean of 1000 saturates most networks
            for a, e in zip(results(layer, x, seed, backend)[:4], exact, strict=False)
        ]
        for backend in BACKENDS
    }
    rounding = 1000 * 2**-24  # of the mean, beside a deviation of 1
    for kernels, reference in zip(errors[KERNELS], errors["reference"], strict=True):
        assert kernels <= 10 * max(reference, rounding)


@every_backend
@pytest.mark.parametrize("name", ["ILMGN", "SN"])
def test_large_means_of_a_large_map_cost_no_more_in_channels_last(name, backend):
    """Sums of 60,800 values in float32, whose rounding grows with their number."""
    torch.manual_seed(0)
    layer, x = NORMS[name](64), 1e4 + torch.randn(1, 64, 200, 304)
    with torch.no_grad():
        with use_backend("reference"):
            exact = copy.deepcopy(layer).double()(x.double())
        with use_backend(backend):
            errors = [(layer(laid_out) - exact).abs().max() for laid_out in (x, channels_last(x))]
    assert errors[1] <= 4 * errors[0]


@every_layer
def test_some_parameters_frozen(name):
    layer = NORMS[name](64)
    trained = list(layer.parameters())[::2]
    for parameter in list(layer.parameters())[1::2]:
        parameter.requires_grad_(False)
    x = inputs(2, 64, 5, 5, dtype=torch.float32)
    found = on_each(lambda: torch.autograd.grad(layer(x).square().sum(), trained))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@every_backend
def test_variables_that_are_one_or_depend_on_each_other(backend):
    """create_graph=True takes another way, to the same gradients."""
    layer = randomized(MAIN["ILMGN"])
    layer.decode_var.weight = layer.decode_mean.weight
    x = small().requires_grad_()
    state = {**dict(layer.named_parameters()), "weight": x.mean((0, 2, 3))}
    found = []
    for create_graph in (False, True):
        with use_backend(backend):
            y = torch.func.functional_call(layer, state, (x,))
        variables = [x, layer.decode_mean.weight, layer.encode.weight]
        found.append(torch.autograd.grad(y.square().sum(), variables, create_graph=create_graph))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@every_layer
def test_many_backward_passes_at_once(name):
    layer, x = randomized(MAIN[name]), small().requires_grad_()
    y, dy = layer(x), inputs(4, *x.shape, seed=4)
    (together,) = torch.autograd.grad(y, x, dy, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in dy]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-9, atol=1e-9)


@every_layer
def test_parts_of_a_channels_last_map_stay_channels_last(name):
    layer, x = NORMS[name](64), channels_last(torch.randn(2, 128, 5, 6))
    for part in (x.chunk(2, 1)[0], x[:, :64, :4, :3]):
        y = layer(part)
        assert is_channels_last(y) and not y.is_contiguous()
        with use_backend("reference"):
            torch.testing.assert_close(y, layer(part), rtol=1e-4, atol=1e-4)


def test_a_single_channel_is_no_channels_last_map():
    """torch's kernel for that would compute E[x^2] - E[x]^2."""
    layer = SwitchNorm(1, normalizers=("IN",))
    x = 1000 + 0.1 * torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = layer(x.to(memory_format=torch.channels_last))
    exact = nn.functional.instance_norm(x.double(), eps=1e-5)
    assert (y - exact).abs().max() < 5e-3


@every_backend
@pytest.mark.parametrize("shape", [(3, 64), (3, 64, 1, 1), (3, 64, 1, 1, 1)], ids=str)
def test_a_single_value_standardized_by_itself_leaves_beta_alone(shape, backend):
    """Whatever its size: the rounding of 1000 / sqrt(eps) would be larger than most betas."""
    x = (1000 + inputs(*shape, dtype=torch.float32)).requires_grad_()
    layer = NORMS["ILMIN"](64)
    with use_backend(backend):
        assert torch.equal(layer(x).flatten(1), layer.rescaling(x)[1])
    with use_backend(backend):
        NORMS["ILMIN"](64, init="identity")(x).backward(inputs(*shape, dtype=torch.float32))
    assert not x.grad.any()


class NoSynchronization(TorchDispatchMode):
    """Raises where a result would have to be known on the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, func
        return func(*args, **(kwargs or {}))


@every_backend
@every_layer
def test_the_host_never_waits_for_a_result(name, backend):
    layer, x = NORMS[name](64), torch.randn(2, 64, 5, 5, requires_grad=True)
    with NoSynchronization(), use_backend(backend):
        layer(x).sum().backward()
    with NoSynchronization(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        x.sum().item()


@pytest.mark.parametrize("channels, size, instance_moments", [(256, 7, 1.08), (256, 56, 1.01)])
@kernels_layouts
@every_layer
def test_bytes_saved_for_the_backward_pass(name, layout, channels, size, instance_moments):
    x = LAYOUTS[layout](torch.randn(2, channels, size, size)).requires_grad_()
    plain = saved_bytes(nn.GroupNorm(32, channels), x)
    assert plain >= x.numel() * 4
    more = 1.01 if name in ("ILMGN", "ILMLN", "AssocNorm") else instance_moments
    assert saved_bytes(NORMS[name](channels), x) <= more * plain


def is_fused(layer, x):
    """Whether the autograd node that made the output is the primitive's."""
    return "AdaptiveNorm" in type(layer(x).grad_fn).__name__


def in_a_process(code, **variables):
    return fresh.run([sys.executable, "-c", code], env={**os.environ, **variables})


def test_a_backend_is_forced_in_a_block_or_from_the_call_on():
    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 3, 3)
    assert is_fused(layer, x)
    with use_backend("reference"):
        assert not is_fused(layer, x)
        for backend in ("auto", KERNELS):
            with use_backend(backend):
                assert is_fused(layer, x)
        assert not is_fused(layer, x)
    assert is_fused(layer, x)
    assert not is_fused(layer, x[:0])
    before = use_backend("reference")
    assert not is_fused(layer, x)
    before.close()
    assert is_fused(layer, x)


def test_the_choice_of_a_process():
    code = """
import torch, ilm_plugins
print(type(ilm_plugins.ILMGroupNorm(64)(torch.randn(1, 64, 3, 3)).grad_fn).__name__)
"""
    assert "AdaptiveNorm" in in_a_process(code, ILM_PLUGINS_BACKEND=KERNELS).stdout
    assert "AdaptiveNorm" not in in_a_process(code, ILM_PLUGINS_BACKEND="reference").stdout


def test_an_unknown_backend_is_refused_in_one_line():
    message = "='fast' is unknown; set it to one of 'auto', 'reference', 'cpu', 'triton'"
    with pytest.raises(ValueError, match=f"^backend{message}$"):
        use_backend("fast")
    process = in_a_process("import ilm_plugins", ILM_PLUGINS_BACKEND="fast")
    assert process.stderr.endswith(f"ValueError: ILM_PLUGINS_BACKEND{message}\n")
    assert process.returncode != 0


@pytest.mark.parametrize(
    "backend, installed, dtype, message",
    [
        ("triton", False, torch.float32, r"Triton 3\.6 or newer cannot be"),
        (
            "triton",
            True,
            torch.float32,
            "got a torch.float32 tensor of 9 positions on 'cpu'",
        ),
        pytest.param(
            "cpu", True, torch.float8_e5m2, r"got a torch.float8_e5m2 ", marks=needs_kernels
        ),
    ],
)
def test_a_forced_backend_that_cannot_run_says_why(backend, installed, dtype, message, monkeypatch):
    if installed and backend == "triton" and not backends.has_triton():
        pytest.skip("needs Triton 3.6 or newer")
    if not installed:
        monkeypatch.setattr(backends, "has_triton", lambda: False)
    message = f"^the backend '{backend}' is forced: {message}"
    with use_backend(backend), pytest.raises(RuntimeError, match=message):
        ILMGroupNorm(64)(torch.randn(1, 64, 3, 3).to(dtype))


def test_nothing_breaks_without_triton():
    code = """
import sys
sys.modules |= dict.fromkeys(["triton", *(n for n in sys.modules if n.startswith("triton."))])
import torch, ilm_plugins
for norm in ilm_plugins.NORMS.values():
    norm(64)(torch.randn(2, 64, 3, 3, requires_grad=True)).sum().backward()
"""
    fresh.run([sys.executable, "-c", code], check=True)


def test_concurrent_backends_do_not_mix():
    """A context manager in one thread leaves the others alone."""
    from concurrent.futures import ThreadPoolExecutor

    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 3, 3)
    with use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_fused, layer, x).result()


@every_layer
def test_autocast_around_the_backward_pass_changes_nothing(name):
    layer, x = NORMS[name](64), torch.randn(2, 64, 5, 5)
    found = []
    for enabled in (False, True):
        layer.zero_grad()
        loss = layer(x).square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss.backward()
        found.append([p.grad for p in layer.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@every_layer
def test_transforms_meet_the_reference(name):
    layer, x = NORMS[name](64).eval(), torch.randn(2, 64, 5, 5)
    each = torch.func.vmap(lambda one: layer(one.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(each, layer(x))
    layer, x, step = layer.double(), x.double(), torch.randn(2, 64, 5, 5).double()
    _, tangent = torch.func.jvp(layer, (x,), (step,))
    with torch.no_grad():
        difference = (layer(x + 1e-6 * step) - layer(x - 1e-6 * step)) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("name", ["ILMGN", "EN"])
def test_recorded_graphs_have_all_operations(name, pre_dispatch):
    layer, x = randomized(lambda: NORMS[name](64), torch.float32).eval(), torch.randn(2, 64, 5, 5)
    graph = make_fx(layer, pre_dispatch=pre_dispatch)(x)
    torch.testing.assert_close(graph(x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_mode_without_values_gives_no_address_to_kernels():
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = ILMGroupNorm(64)(torch.randn(2, 64, 3, 3))
    assert isinstance(y, FakeTensor) and y.shape == (2, 64, 3, 3)


@every_layer
def test_parameters_that_are_subclasses_of_tensor_are_the_references(name):
    layer, x = randomized(lambda: NORMS[name](64), torch.float32).eval(), torch.randn(2, 64, 3, 3)
    expected = layer(x)
    for module in layer.modules():
        for key, p in module._parameters.items():
            if p is not None:
                module._parameters[key] = nn.Parameter(TwoTensor(p.detach(), p.detach()))
    torch.testing.assert_close(layer(x).a, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_a_tensor_without_memory_is_refused():
    x = torch._efficientzerotensor(2, 64, 3, 3)
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"\(2, 64, 3, 3\) .* has no memory"):
        ILMGroupNorm(64)(x)


@pytest.mark.parametrize(
    "version, found", [("3.6.0+git1", True), ("3.10.0", True), ("3.5.1", False), (None, False)]
)
def test_triton_must_be_new_and_can_be_imported(version, found, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    triton = types.SimpleNamespace(__version__=version) if version else None
    monkeypatch.setitem(sys.modules, "triton", triton)
    assert backends.has_triton.__wrapped__() is found


class Sevenfold(ILMGroupNorm, nn.GroupNorm):
    """A layer whose equations differ from those that its base describes to the kernels."""

    def predict(self, *arguments):
        omega, beta = super().predict(*arguments)
        return 7 * omega, beta


class Renamed(Sevenfold, nn.GroupNorm):
    """A subclass of it without equations of its own."""


class Reversed(ExemplarNorm, nn.GroupNorm):
    """EN with its ratios in the opposite order."""

    def _ratios(self, *arguments):
        return super()._ratios(*arguments).flip(1)


def test_a_subclass_with_equations_of_its_own_computes_these():
    x = torch.randn(2, 64, 3, 3)
    for kind in (Sevenfold, Renamed, Reversed):
        layer = randomized(lambda kind=kind: kind(64), torch.float32)
        with use_backend("reference"):
            expected = layer(x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_layers_and_subclasses_without_equations_are_computed_by_kernels():
    class Subclass(ILMGroupNorm, nn.GroupNorm):
        pass

    assert Subclass(64).network() and all(NORMS[name](64).network() for name in NORMS)


@pytest.mark.parametrize("frozen", [False, True])
@every_layer
def test_buffers_may_be_written_before_the_backward_pass(name, frozen):
    """DistributedDataParallel broadcasts them at each forward pass."""
    layer = randomized(lambda: NORMS[name](64), torch.float32).requires_grad_(not frozen)
    x, found = torch.randn(2, 64, 3, 3), []
    for written in (False, True):
        twin, leaf = copy.deepcopy(layer), x.clone().requires_grad_()
        loss = twin(leaf).square().sum()
        for buffer in twin.buffers() if written else ():
            buffer.add_(1)
        trained = [p for p in twin.parameters() if p.requires_grad]
        found.append(torch.autograd.grad(loss, [leaf, *trained]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("num_groups", [64, 48, 20])
@every_backend
def test_groups_that_were_set_later_are_refused(backend, num_groups):
    layer = ILMGroupNorm(64)
    layer.num_groups = num_groups
    with use_backend(backend), pytest.raises(RuntimeError):
        layer(torch.randn(2, 64, 3, 3))
