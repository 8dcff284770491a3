"""What the C kernels promise beside results: bits, threads, processes; and life without them."""

import ctypes
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fresh
from cases import (
    CHANNELS,
    MAIN,
    every_layer,
    inputs,
    needs_kernels,
    on_each,
    randomized,
    results,
    saved_bytes,
)
from ilm_plugins import NORMS, ILMGroupNorm, use_backend
from ilm_plugins.ops import adaptive_norm, backends, cpu, plain, reference

ROOT = Path(__file__).parents[2]
OTHER_TYPES = (torch.float64, torch.bfloat16, torch.float16)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def outputs(layer, x, seed=5):
    """The output, and the gradients of x and of all parameters by a random one of the output."""
    return results(layer, x, inputs(*x.shape, dtype=x.dtype, seed=seed))


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.fixture
def threads():
    """Sets torch's number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- bits

of_each_kernel = pytest.mark.parametrize("name", ["ILMGN", "ILMLN", "EN", "SN", "AN"])


@needs_kernels
@layouts
@of_each_kernel
def test_bits_do_not_depend_on_threads(name, layout, threads):
    """Of few large instances, many small ones, and a number that threads share unequally."""
    for shape in [(1, 64, 60, 50), (24, 64, 7, 7), (3, 64, 40, 41)]:
        layer = NORMS[name](64)
        x = inputs(*shape, dtype=torch.float32).to(memory_format=layout)
        threads(1)
        expected = outputs(layer, x)
        for number in (2, 5):
            threads(number)
            assert_equal(outputs(layer, x), expected)


@needs_kernels
@of_each_kernel
def test_instances_of_large_maps_do_not_depend_on_their_batch(name, threads):
    threads(3)
    layer = NORMS[name](32).eval()
    x = inputs(5, 32, 100, 101, dtype=torch.float32)
    together = outputs(layer, x)[0]
    assert_equal(together.split(1), [layer(instance).detach() for instance in x.split(1)])


@needs_kernels
@layouts
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(t, marks=pytest.mark.wide) for t in OTHER_TYPES)],
    ids=str,
)
def test_outputs_that_bypass_the_cache_are_those_of_instances_that_do_not(dtype, layout, threads):
    """Outputs of 16 MiB or more, with rows that are no multiple of a register."""
    threads(2)
    layer = ILMGroupNorm(64, dtype=torch.promote_types(dtype, torch.float32))
    rows = 97 * 101 if layout is torch.contiguous_format else 96 * 101
    instances = 2**24 // (64 * rows * dtype.itemsize) + 1
    x = inputs(instances, 64, rows // 101, 101, dtype=dtype).to(memory_format=layout)
    dy = inputs(*x.shape, dtype=dtype, seed=5).to(memory_format=layout)
    assert x.nbytes >= 2**24 > x[:1].nbytes
    together = results(layer, x, dy)[:2]
    apart = [results(layer, *one)[:2] for one in zip(x.split(1), dy.split(1), strict=True)]
    assert_equal(together, map(torch.cat, zip(*apart, strict=True)))


@needs_kernels
def test_bits_do_not_depend_on_where_a_tensor_lies():
    """Vectors begin at an instance's first value, not at an aligned address."""
    layer, values = ILMGroupNorm(64), inputs(1, 2 * 64 * 49 + 16, dtype=torch.float32)[0]
    expected = outputs(layer, values[: 2 * 64 * 49].clone().view(2, 64, 7, 7))
    for offset in range(1, 16):
        memory = torch.empty_like(values)
        x = memory[offset : offset + 2 * 64 * 49].copy_(values[: 2 * 64 * 49]).view(2, 64, 7, 7)
        assert_equal(outputs(layer, x), expected)


@needs_kernels
@layouts
@pytest.mark.parametrize("step", [0, 1000.0, 1e6])
def test_variances_about_the_mean_of_what_comes_first(step, layout):
    """Where a block's first values are far from the others, as in an image with a black border."""
    layer = ILMGroupNorm(16, 1, key_group_size=4)
    x = inputs(2, 16, 64, 64, dtype=torch.float32)
    x[:, :, 4:] += step
    x = x.to(memory_format=layout)
    _, var = cpu.moments(x, 4)
    exact = reference.moments(x.double(), 4)[1]
    # A chain of 64 sums at most (of 1024 values in 16 lanes), of which the difference loses 4 bits.
    assert ((var - exact).abs() <= 64 * 16 * 2**-24 * exact).all()
    with torch.no_grad():
        y, wanted = layer(x), layer.double()(x.double())
    assert (y - wanted).abs().max() <= 64 * 16 * 2**-24 * wanted.abs().max()


@needs_kernels
@pytest.mark.parametrize("dtype, far", [(torch.float32, 1000.0), (torch.bfloat16, 1024.0)], ids=str)
def test_variances_of_short_rows_about_four_values_that_are_far(dtype, far):
    """About the mean of these, the variance of all 511 would lose seven bits."""
    x = inputs(4, 16, 511, dtype=dtype)
    x[:, ::2, [0, 511 // 4, 511 // 2, 3 * 511 // 4]] = far
    mean, var = cpu.moments(x, 16)
    exact_mean, exact = reference.moments(x.double(), 16)
    assert ((var - exact).abs() <= 32 * 2**-24 * exact).all()
    assert ((mean - exact_mean).abs() <= 32 * 2**-24 * exact.sqrt()).all()


# ---- gradients and values that are rare


@needs_kernels
def test_gradients_of_buffers_are_those_of_the_reference():
    switch, ilm = NORMS["SN"](64).eval().double(), ILMGroupNorm(64).double()
    ilm.omega_offset.requires_grad_()
    x = inputs(2, 64, 5, 5)
    running = {name: b.clone().requires_grad_() for name, b in switch.named_buffers()}

    def gradients():
        y = torch.func.functional_call(switch, running, x)
        loss = y.square().sum() + ilm(x).square().sum()
        return torch.autograd.grad(loss, [*running.values(), ilm.omega_offset])

    torch.testing.assert_close(*on_each(gradients))


@needs_kernels
def test_ratios_of_variances_far_below_eps_have_gradients():
    """The mixed variance is kept: 1 / rstd^2 - eps would be all rounding."""
    layer = NORMS["SN"](64, eps=0.1, normalizers=("LN", "BN"))
    x = 1e-3 * inputs(8, 64, 14, 14, dtype=torch.float32)
    dy = inputs(*x.shape, dtype=torch.float32, seed=2)
    found = results(layer, x, dy, "cpu")[-1]
    expected = results(layer.double(), x.double(), dy.double(), "reference")[-1]
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


@needs_kernels
def test_a_nan_reaches_every_gradient_that_it_reaches_in_the_reference():
    layer = ILMGroupNorm(12, 4, key_group_size=3, hidden=3)
    x = inputs(2, 12, 4, 4, dtype=torch.float32)
    x[0, 0, 0, 0] = torch.nan
    gradients = on_each(lambda: torch.autograd.grad(layer(x).sum(), list(layer.parameters())))
    assert_equal(*([g.isnan() for g in found] for found in gradients))


@needs_kernels
@layouts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_values_of_16_bits_are_read_and_rounded_as_torch_does(dtype, layout):
    """All of them, and values between and beyond them, by an affine map that changes nothing."""
    stored = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = stored.view(1, 256, 16, 16).to(memory_format=layout)
    mean, one = torch.zeros(1, 256), torch.ones(1, 256)
    y = cpu.affine(x, mean, one, mean)
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
    for factor in (1 + 2**-9, 1 - 2**-9, 3.1, 1e-3):
        y = cpu.affine(x, mean, one * factor, mean)
        expected = (x.float() * torch.tensor(factor)).to(dtype)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@needs_kernels
def test_denormals_of_float16_are_read_where_arithmetic_flushes_them():
    x = torch.arange(1, 1025).to(torch.int16).view(torch.float16).view(1, 1, 1024)
    expected = x.double().mean().item()
    if not torch.set_flush_denormal(True):
        pytest.skip("needs a processor that can flush denormals")
    try:
        mean, _ = cpu.moments(x, 1)
    finally:
        torch.set_flush_denormal(False)
    assert mean.item() == pytest.approx(expected, rel=1e-6)


# ---- threads and processes


@needs_kernels
def test_two_threads_of_python_at_once():
    work = [(NORMS[name](64), inputs(4, 64, 30, 31, dtype=torch.float32)) for name in NORMS] * 4
    expected = [outputs(layer.eval(), x) for layer, x in work]
    with ThreadPoolExecutor(4) as pool:
        for actual, e in zip(pool.map(lambda case: outputs(*case), work), expected, strict=True):
            assert_equal(actual, e)


class Normalized(torch.utils.data.Dataset):
    """Images that a layer has normalized, in the process that reads them."""

    def __init__(self):
        self.layer = ILMGroupNorm(32).eval().requires_grad_(False)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.layer(inputs(1, 32, 20, 20, dtype=torch.float32, seed=index))[0]


@needs_kernels
def test_workers_of_a_data_loader(threads):
    threads(2)
    dataset = Normalized()
    expected = [dataset[i] for i in range(4)]  # the parent's threads have run before it forks
    found = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert_equal(list(found), expected)


@needs_kernels
def test_before_torch_2_10_a_single_thread_runs_the_loops(monkeypatch, threads):
    threads(2)
    layer, x = ILMGroupNorm(64), inputs(4, 64, 60, 61, dtype=torch.float32)
    expected = outputs(layer, x)
    monkeypatch.setattr(cpu, "parallel_for", lambda: None)
    assert_equal(outputs(layer, x), expected)


@needs_kernels
def test_an_error_of_the_threads_is_raised(monkeypatch, threads):
    threads(2)
    arguments = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 2
    failing = ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)(lambda *_: 7)
    address = ctypes.cast(failing, ctypes.c_void_p).value
    monkeypatch.setattr(cpu, "parallel_for", lambda: address)
    with pytest.raises(RuntimeError, match="torch's threads ended with error 7"):
        ILMGroupNorm(64)(torch.randn(4, 64, 60, 61))


# ---- what it cannot take, and where it is missing


@every_layer
def test_parameters_of_other_shapes_or_devices_are_refused(name):
    layer = NORMS[name](64)
    layer.bias = torch.nn.Parameter(torch.ones(63))
    with pytest.raises(RuntimeError):
        layer(torch.randn(2, 64, 5, 5))
    with pytest.raises(RuntimeError):
        NORMS[name](64, device="meta")(torch.randn(2, 64, 5, 5))


@needs_kernels
def test_what_a_rescale_returns_may_have_another_dtype_and_broadcast():
    x = inputs(3, 8, 5, 5).requires_grad_()
    weight = torch.nn.Parameter(torch.arange(8.0))

    def outputs_and_gradients():
        y, _, _ = adaptive_norm(x, 4, 1e-5, lambda mean, var, w: (w[None].float(),) * 2, weight)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight))

    torch.testing.assert_close(*on_each(outputs_and_gradients))
    with use_backend("cpu"), pytest.raises(RuntimeError):
        adaptive_norm(x, 4, 1e-5, lambda mean, var: (weight[None], mean))


def test_negated_views_are_read_as_what_they_are():
    x = torch.randn(2, 64, 5, 5, dtype=torch.complex64)
    negated, layer = x.conj().imag, ILMGroupNorm(64)
    assert negated.is_neg()
    assert torch.equal(layer(negated), layer(-x.imag))


@pytest.fixture
def warns_anew():
    """As in a process that has not warned of a backend yet."""
    backends._warn.cache_clear()
    yield
    backends._warn.cache_clear()


@pytest.fixture
def without_library(monkeypatch, tmp_path, warns_anew):
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "kernels.so")
    cpu.load_problem.cache_clear()
    yield
    cpu.load_problem.cache_clear()


def test_the_warning_under_auto_does_not_advise_auto(monkeypatch, warns_anew):
    monkeypatch.setattr(cpu, "load_problem", lambda: None)
    x = torch.empty(2, 64, 3, 3, dtype=torch.float8_e5m2)
    with pytest.warns(UserWarning, match=r"got a torch\.float8") as caught:
        assert backends.kernels_for(x, 4) is plain
    assert "force" not in str(caught[0].message)


@needs_kernels
def test_a_library_of_older_sources_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_interface", lambda: 0)
    load = cpu._functions.__wrapped__
    with pytest.raises(RuntimeError, match="other sources; install ilm_plugins again"):
        load(torch.float32, "default")


def test_a_description_with_a_field_that_the_struct_lacks_is_refused(monkeypatch):
    class Wider(cpu.Switch):
        def _asdict(self):
            return {**super()._asdict(), "width": 3}

    monkeypatch.setattr(cpu, "KINDS", (Wider,))
    with pytest.raises(AttributeError, match="width"):
        cpu._template.__wrapped__(Wider(("IN",), 1, 1e-5), 8, 8)


def test_without_the_library_one_warning_says_so(without_library):
    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 3, 3)
    with pytest.warns(UserWarning, match=r"this checkout has no .*, or run from another folder"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="'cpu' is forced: this checkout"):
        layer(x)


def test_an_installed_package_without_the_library_says_how_to_install(
    without_library, monkeypatch, tmp_path
):
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "ilm_plugins/ops/cpu/__init__.py"))
    assert "installed without a C compiler; install a compiler" in cpu.load_problem()


def test_a_library_of_another_system_gives_a_warning(without_library, monkeypatch):
    cpu.LIBRARY.write_bytes(b"of another machine")
    monkeypatch.setattr(cpu, "_library", cpu._library.__wrapped__)
    with pytest.warns(UserWarning, match=r"C kernels cannot be loaded \(.*; install the package"):
        ILMGroupNorm(64)(torch.randn(2, 64, 3, 3))


@pytest.mark.filterwarnings("ignore:ilm_plugins. plain")
@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@every_layer
def test_plain_operations_agree_with_the_reference(name, dtype, layout, without_library):
    layer = randomized(MAIN[name], torch.float64 if dtype == torch.float64 else torch.float32)
    x = inputs(3, CHANNELS, 5, 7, dtype=dtype).to(memory_format=layout)
    assert backends.kernels_for(x, layer.moment_groups) is plain
    found, expected = on_each(lambda: outputs(layer, x), ("auto", "reference"))
    for y_or_dx in found[:2]:
        assert y_or_dx.is_contiguous(memory_format=layout)
    for actual, e in zip(found, expected, strict=True):
        if actual.dtype == torch.bfloat16:
            torch.testing.assert_close(actual, e)
        else:
            rounding = 1024 * torch.finfo(actual.dtype).eps / 2
            assert (actual - e).abs().max() <= rounding * e.abs().max().clamp_min(1e-6)


@pytest.mark.filterwarnings("ignore:ilm_plugins. plain")
@every_layer
def test_plain_operations_keep_no_more_for_the_backward_pass(name, without_library):
    layer, x = NORMS[name](64), torch.randn(4, 64, 20, 20, requires_grad=True)
    assert x.nbytes <= saved_bytes(layer, x) < 1.2 * x.nbytes


# ---- sizes and sanitizers


@pytest.mark.long
@needs_kernels
def test_more_than_two_to_the_31_values():
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 10 << 30:
        pytest.skip(f"needs 10 GiB of free memory, has {free >> 30}")
    layer = ILMGroupNorm(64)
    x = torch.empty(2**31 // (64 * 4096) + 2, 64, 64, 64, dtype=torch.bfloat16)
    x[-2:] = inputs(2, 64, 64, 64, dtype=torch.bfloat16)
    x[:-2] = x[-1]
    with torch.no_grad():
        assert_equal(layer(x)[-2:], layer(x[-2:].clone()))


SANITIZED = """
import ctypes, sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops import cpu
cpu.LIBRARY = Path(sys.argv[1])
cpu.instruction_set = lambda: sys.argv[2]
from cases import CASES, channels_last, inputs, randomized
torch.set_num_threads(2)
with use_backend("cpu"):
    for make, _ in CASES.values():
        for shape in [(3, 12), (2, 12, 1, 1), (2, 12, 5, 7), (2, 12, 700), (1, 12, 8200)]:
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                for last in (False, True):
                    layer = randomized(make, torch.promote_types(dtype, torch.float32))
                    x = (channels_last if last else torch.clone)(inputs(*shape, dtype=dtype))
                    layer(x.requires_grad_()).float().square().sum().backward()
print("clean")
"""


@pytest.mark.long
@pytest.mark.parametrize("register", [16, 32, 64])
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_sanitizers_find_nothing(tmp_path, sanitizer, register):
    """Each size of a register, by plain C where the processor lacks it."""
    library = tmp_path / "kernels.so"
    runtime = {"address": "libasan.so", "undefined": "libubsan.so"}[sanitizer]
    compiler = os.environ.get("CC", "gcc")
    flags = f"-O1 -g -std=c11 -fPIC -fsanitize={sanitizer} -fno-sanitize-recover=all"
    sources = ROOT / "ilm_plugins/ops/cpu/kernels.c"
    objects = []
    for kind in ("", "-DDOUBLE"):
        objects.append(tmp_path / f"kernels{kind}.o")
        command = [compiler, *flags.split(), f"-DREGISTER={register}", "-DINSTRUCTIONS=default"]
        command.append(f"-DINTERFACE={cpu._interface():#x}")
        command += [*kind.split(), "-Wno-psabi", "-c", str(sources), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    link = [compiler, "-shared", f"-fsanitize={sanitizer}", "-o", str(library), *map(str, objects)]
    subprocess.run([*link, "-lm"], check=True)
    found = subprocess.run(
        [compiler, f"-print-file-name={runtime}"], capture_output=True, text=True, check=True
    )
    env = {**os.environ, "LD_PRELOAD": found.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(library), "default"],
        env=env, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.endswith("clean\n"), done.stderr[-3000:]


# ---- import and first use


@needs_kernels
def test_nothing_is_compiled_when_a_layer_runs():
    code = """
import subprocess, torch
def refuse(*args, **options):
    raise AssertionError(args)
subprocess.Popen.__init__ = refuse
import ilm_plugins
ilm_plugins.ILMGroupNorm(64)(torch.randn(2, 64, 3, 3, requires_grad=True)).sum().backward()
"""
    fresh.run([sys.executable, "-c", code], check=True, env={**os.environ, "PATH": ""})
