"""The choice of a backend, and what the kernels promise beside results: bits, threads, errors."""

import copy
import os
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from benchmarks.measure import saved_bytes
from equations import cases
from equations.cases import (
    BACKENDS,
    PATHS,
    every_backend,
    inputs,
    layouts,
    needs_kernels,
    results,
    wide,
)
from helpers import processes
from helpers.close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, ILMGroupNorm, SwitchNorm, use_backend
from ilm_plugins.ops import adaptive_norm, coarsen, cpu, over_batch
from ilm_plugins.ops.engine import backends, plain
from ilm_plugins.ops.engine.cpu import library
from ilm_plugins.ops.engine.reference import moments as reference_moments

HALVES = torch.bfloat16, torch.float16
of_each_kernel = pytest.mark.parametrize("name", PATHS)


def floats(*shape, seed=1):
    return inputs(*shape, dtype=torch.float32, seed=seed)


def outputs(layer, x):
    return results(layer, x, inputs(*x.shape, dtype=x.dtype, seed=5))


def on_each(compute):
    """What a function returns under each backend."""
    found = []
    for backend in BACKENDS:
        with use_backend(backend):
            found.append(compute())
    return found


@pytest.fixture(params=cases.INSTRUCTION_SETS)
def instructions(request):
    """Runs the C++ kernels for an instruction set."""
    with cases.compiled_for(request.param):
        yield


by_each_instruction_set = pytest.mark.usefixtures("instructions")


@pytest.fixture
def threads():
    """Sets the number of threads that run the kernels, and puts it back."""
    if not cpu.is_built():
        pytest.skip("needs the compiled kernels")
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- the reference


@pytest.mark.parametrize("count", [15, 30, 60])
def test_equal_means_pool_to_themselves(count):
    """To the last bit: 600,000 * (1 / 60) is not 10,000 in float32."""
    mean, var = torch.full((1, count), 1e4), torch.zeros(1, count)
    for pooled in (coarsen(mean, var, 1), over_batch(mean.T, var.T)):
        assert [moment.item() for moment in pooled] == [1e4, 0]


@every_backend
@pytest.mark.parametrize("shape", [(3, 64), (3, 64, 1, 1)], ids=str)
def test_a_single_value_standardized_by_itself_leaves_beta_alone(shape, backend):
    """Whatever its size: the rounding of 1000 / sqrt(eps) would be larger than most betas."""
    x, layer = 1000 + floats(*shape), NORMS["ILMIN"](64)
    with use_backend(backend):
        assert torch.equal(layer(x).flatten(1), layer.rescaling(x)[1])
    assert not results(NORMS["ILMIN"](64, init="identity"), x, x, backend)[1].any()


@every_backend
@pytest.mark.parametrize("name", ["EN", "SN"])
def test_equal_channels_have_the_gradients_of_exact_means(name, backend):
    """A rounded mean of them is off by what 1 / sqrt(eps) makes large: an error of some percent."""
    torch.manual_seed(0)
    layer = NORMS[name](256)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    x, dy = torch.full((1, 256, 7, 7), 1000.1), floats(1, 256, 7, 7)
    exact = results(copy.deepcopy(layer).double(), x.double(), dy.double(), "reference")[1]
    assert_close(results(layer, x, dy, backend)[1], exact, 2**16)


@every_backend
@pytest.mark.parametrize("name, options", [("ILMIN", {}), ("AssocNorm", {"num_groups": 64})])
def test_gradients_of_a_single_value_do_not_cancel(name, options, backend):
    """Two gradients of the value, by the mean and by itself, are 1 / sqrt(eps) times as large."""
    layer = cases.randomized(lambda: NORMS[name](64, eps=1e-10, **options), torch.float32)
    x, dy = floats(8, 64, 1, 1), floats(8, 64, 1, 1)
    exact = results(copy.deepcopy(layer).double(), x.double(), dy.double(), backend)[1]
    assert_close(results(layer, x, dy, backend)[1], exact.float(), 64)


@every_backend
def test_means_of_switch_norm_do_not_cancel(backend):
    """Constant channels are the bias, to which neither weight nor ratios of means add anything."""
    layer = cases.randomized(lambda: NORMS["SN"](64), torch.float32)
    x = torch.full((2, 64, 4, 4), 1e4)
    y, _, weight, _, mean_weight, _ = results(layer, x, torch.ones_like(x), backend)
    assert_close(y, layer.bias.view(-1, 1, 1).expand_as(y), 4)
    assert_close(torch.cat((weight, mean_weight)), torch.zeros(67), 16, 1)


@every_backend
def test_variables_that_are_one_or_depend_on_each_other(backend):
    """create_graph=True takes another way, to the same gradients."""
    layer = cases.randomized(cases.CASES["ILMGN"][0])
    layer.decode_var.weight = layer.decode_mean.weight
    x = inputs(2, cases.CHANNELS, 3, 2).requires_grad_()
    state, found = {**dict(layer.named_parameters()), "weight": x.mean((0, 2, 3))}, []
    for create_graph in (False, True):
        with use_backend(backend):
            y = torch.func.functional_call(layer, state, (x,))
        variables = [x, layer.decode_mean.weight, layer.encode.weight]
        found.append(torch.autograd.grad(y.square().sum(), variables, create_graph=create_graph))
    assert_close(*found, EQUAL)


@every_backend
@pytest.mark.parametrize(
    "normalizer, far",
    [("LN", (slice(None), 1)), ("GN", (slice(None), 1)), ("BN", (0,))],
    ids=["LN", "GN", "BN"],
)
def test_squares_that_overflow_between_channels_or_images_give_zero_or_nan(
    normalizer, far, backend
):
    layer = SwitchNorm(8, normalizers=(normalizer,), num_groups=1)
    x = floats(2, 8, 5, 5)
    x[far] += 1e25
    with use_backend(backend):
        y = layer(x)
    assert ((y == 0) | y.isnan()).all()
    assert normalizer != "BN" or not layer.running_variance.isfinite().any()


# ---- the choice of a backend


def is_fused(layer, x):
    """Whether the autograd node that made the output is the primitive's."""
    return "AdaptiveNorm" in type(layer(x).grad_fn).__name__


@pytest.fixture
def fused():
    """A function without arguments: whether a layer's output is the primitive's."""
    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 3, 3)
    return lambda: is_fused(layer, x)


def test_an_empty_input_is_left_to_the_reference():
    assert not is_fused(ILMGroupNorm(64), torch.randn(0, 64, 3, 3))


def test_a_backend_is_forced_in_a_block(fused):
    with use_backend("reference"):
        assert not fused()
        with use_backend(cases.KERNELS):
            assert fused()
        assert not fused()
    assert fused()


def test_a_backend_is_forced_from_the_call_on(fused):
    before = use_backend("reference")
    assert not fused()
    before.close()
    assert fused()


def test_a_backend_is_forced_in_one_thread(fused):
    with use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fused).result()


def run_in_process(backend):
    """Run a layer in a process whose environment names a backend."""
    program = processes.PROGRAMS / "print_operation.py"
    return processes.run(
        [sys.executable, program], env={**os.environ, "ILM_PLUGINS_BACKEND": backend}
    )


@pytest.mark.parametrize(
    "backend, operation", [(cases.KERNELS, "AdaptiveNorm"), ("reference", "AddBackward")]
)
def test_the_environment_names_the_backend_of_a_process(backend, operation):
    assert operation in run_in_process(backend).stdout


UNKNOWN = "='fast' is unknown; set it to one of 'auto', 'reference', 'cpu', 'triton'"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=f"^backend{UNKNOWN}"):
        use_backend("fast")


@pytest.mark.parametrize(
    "backend, installed, dtype, words",
    [
        ("triton", False, torch.float32, r"Triton 3\.6 or newer"),
        ("triton", True, torch.float32, "a torch.float32 tensor of 9 positions on 'cpu'"),
        pytest.param("cpu", True, torch.float8_e5m2, "a torch.float8", marks=needs_kernels),
    ],
)
def test_a_forced_backend_that_cannot_run_says_why(backend, installed, dtype, words, monkeypatch):
    if installed and backend == "triton" and not backends.has_triton():
        pytest.skip("needs Triton 3.6 or newer")
    if not installed:
        monkeypatch.setattr(backends, "has_triton", lambda: False)
    with use_backend(backend), pytest.raises(RuntimeError, match=f"is forced: .*{words}"):
        ILMGroupNorm(64)(torch.ones(1, 64, 3, 3).to(dtype))


@pytest.mark.parametrize(
    "version, hip, expected",
    [
        *(("3.10.0", None, True), ("3.6.0", None, True), ("3.5.1", None, False)),
        *((None, None, False), ("3.10.0", "7.0", False)),
    ],
)
def test_triton_must_be_installed_new_and_for_nvidia(monkeypatch, version, hip, expected):
    monkeypatch.setattr(torch.version, "hip", hip)
    triton = types.SimpleNamespace(__version__=version) if version else None
    monkeypatch.setitem(sys.modules, "triton", triton)
    assert backends.has_triton.__wrapped__() == expected


def compute_rescale():
    """A rescale without a description, whose matrix product autocast would compute in bfloat16."""
    x, weight, thirds = floats(2, 8, 4, 4), torch.ones(8), torch.full((8, 8), 1 / 3)
    return adaptive_norm(x, 8, 1e-5, lambda mean, var, w: (w + mean @ thirds, mean), weight)


def test_a_rescale_without_a_description_under_autocast():
    expected = on_each(compute_rescale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(on_each(compute_rescale), expected)


# ---- bits of the C++ kernels


@layouts
@pytest.mark.parametrize("name", ["ILMGN", "EN"])
def test_bits_depend_neither_on_threads_nor_on_the_batch(name, layout, threads):
    """Of few large instances, many small ones, and a number that threads share unequally."""
    for shape in [(9, 64), (1, 64, 60, 50), (24, 1536, 3), (3, 64, 40, 41)]:
        layer, x = NORMS[name](shape[1]), layout(floats(*shape))
        threads(1)
        expected, fixed = outputs(layer, x), copy.deepcopy(layer).eval()
        apart = [results(fixed, instance, instance)[:2] for instance in x.split(1)]
        for number in (2, 5):
            threads(number)
            assert_equal(outputs(layer, x), expected)
            together = results(fixed, x, x)[:2]
            assert_equal(together, list(map(torch.cat, zip(*apart, strict=True))))


@layouts
@by_each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, *map(wide, (*HALVES, torch.float64))], ids=str)
def test_outputs_that_bypass_the_cache_are_those_of_instances_that_do_not(dtype, layout, threads):
    """Outputs of 16 MiB or more, with rows that are no multiple of a register."""
    threads(2)
    layer = ILMGroupNorm(64, dtype=torch.promote_types(dtype, torch.float32))
    height = 96 if layout is cases.channels_last else 97
    shape = 2**24 // (64 * height * 101 * dtype.itemsize) + 1, 64, height, 101
    x, dy = (layout(torch.randn(shape, dtype=dtype)) for _ in range(2))
    assert x.nbytes >= 2**24 > x[:1].nbytes
    apart = [results(layer, *one)[:2] for one in zip(x.split(1), dy.split(1), strict=True)]
    assert_equal(results(layer, x, dy)[:2], list(map(torch.cat, zip(*apart, strict=True))))


@needs_kernels
@by_each_instruction_set
def test_bits_do_not_depend_on_where_a_tensor_lies():
    """Vectors begin at an instance's first value, not at an aligned address."""
    layer, values = ILMGroupNorm(64), floats(1, 2 * 64 * 49 + 16)[0]
    expected = outputs(layer, values[: 2 * 64 * 49].clone().view(2, 64, 7, 7))
    for offset in range(1, 16):
        memory = torch.empty_like(values)
        x = memory[offset : offset + 2 * 64 * 49].copy_(values[: 2 * 64 * 49]).view(2, 64, 7, 7)
        assert_equal(outputs(layer, x), expected)


@needs_kernels
@layouts
@by_each_instruction_set
@pytest.mark.parametrize("step", [1000.0, 1e6])
def test_variances_about_the_mean_of_what_comes_first(step, layout):
    """Where a block's first values are far from the others, as in an image with a black border."""
    x = floats(2, 16, 64, 64)
    x[:, :, 4:] += step
    x = layout(x)
    # A chain of 64 sums at most (of 1024 values in 16 lanes), of which the difference loses 4 bits.
    assert_close(cpu.moments(x, 4)[1], reference_moments(x.double(), 4)[1], 64 * 16)


@needs_kernels
@by_each_instruction_set
def test_small_squares_count_behind_large_ones():
    """Which they would be rounded away beside, if a whole row was summed in float32."""
    x = 0.6 * floats(1, 2, 8192).sign()
    x[:, :, 512:640] *= 5000
    _, var = cpu.moments(x, 2)
    assert_close(var, reference_moments(x.double(), 2)[1], 16)


@needs_kernels
@by_each_instruction_set
@pytest.mark.parametrize("dtype, far", [(torch.float32, 1000.0), (torch.bfloat16, 1024.0)], ids=str)
def test_variances_of_short_rows_about_four_values_that_are_far(dtype, far):
    """About the mean of these, the variance of all 511 would lose seven bits."""
    x = inputs(4, 16, 511, dtype=dtype)
    x[:, ::2, [0, 511 // 4, 511 // 2, 3 * 511 // 4]] = far
    mean, var = cpu.moments(x, 16)
    exact_mean, exact = reference_moments(x.double(), 16)
    assert_close(var, exact, 32)
    assert_close((mean - exact_mean) / exact.sqrt() + 1, torch.ones(4, 16), 32)


@needs_kernels
@by_each_instruction_set
def test_sums_of_large_maps_cost_no_more_in_channels_last():
    """Of 60,800 values one after the other in float32, rounding would be many times the mean's."""
    for name in ("ILMGN", "SN"):
        layer, x = NORMS[name](64), 1e4 + torch.randn(1, 64, 200, 304)
        with torch.no_grad():
            exact = copy.deepcopy(layer).double()(x.double())
            for y in on_each(lambda layer=layer, x=x: layer(cases.channels_last(x))):
                assert_close(y, exact, 4 * 1e4)  # that of the mean, in deviations of 1


@needs_kernels
def test_more_rows_than_an_encoder_takes_at_once():
    """More columns than 256, and instances than 16."""
    x = floats(18, 512, 3, 3)
    cases.assert_exact(NORMS["ILMIN"](512, key_group_size=1), x, torch.rand_like(x), "cpu")


@needs_kernels
@layouts
def test_more_groups_than_a_block_takes_at_once(layout):
    """More than 64."""
    x = layout(floats(1, 66, 8200))
    cases.assert_exact(NORMS["SN"](66), x, torch.rand_like(x), "cpu")


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

    assert_close(*on_each(gradients), EQUAL)


@needs_kernels
@by_each_instruction_set
def test_ratios_of_variances_far_below_eps_have_gradients():
    """The mixed variance is kept: 1 / rstd^2 - eps would be all rounding."""
    layer, x = NORMS["SN"](64, eps=0.1, normalizers=("LN", "BN")), 1e-3 * floats(8, 64, 14, 14)
    dy = floats(*x.shape, seed=2)
    found = results(copy.deepcopy(layer), x, dy, "cpu")[-1]
    assert_close(found, results(layer.double(), x.double(), dy.double(), "reference")[-1], 2**14)


@needs_kernels
@layouts
@by_each_instruction_set
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_values_of_16_bits_are_those_of_torch(dtype, layout):
    """All of them, and values between and beyond them, by an affine map that changes nothing."""
    stored = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = layout(stored.view(1, 256, 16, 16))
    mean, one = torch.zeros(1, 256), torch.ones(1, 256)
    for factor in (1, 1 + 2**-9, 1 - 2**-9, 3.1, 1e-3):
        expected = (x.float() * torch.tensor(factor)).to(dtype)
        assert_equal(cpu.affine(x, mean, one * factor, mean), expected)
    nan = torch.full((1, 256), -1, dtype=torch.int32).view(torch.float32)  # whose bits are all set
    written = torch.stack((cpu.affine(x, mean, nan, mean), cpu.dx(x, x, mean, nan, one, one)))
    assert written.isnan().all()


@needs_kernels
def test_decoders_have_exact_gradients_where_their_activation_saturates():
    """tanh's 1 - y * y and sigmoid's y * (1 - y) are mostly rounding error there."""
    layer = NORMS["ILMGN"](64)
    keys = torch.linspace(-3, 3, 4).unsqueeze(1)
    for name, values in (("encode", 0.25), ("decode_mean", keys), ("decode_var", keys)):
        getattr(layer, name).weight.detach()[:] = values
    x, dy = floats(1, 64, 6, 6) + 1, floats(1, 64, 6, 6, seed=2)
    found = results(copy.deepcopy(layer), x, dy, "cpu")[-2:]
    expected = results(layer.double(), x.double(), dy.double(), "reference")[-2:]
    for actual, exact in zip(found, expected, strict=True):
        assert exact.abs().min() < 1e-3 * exact.abs().max()
        assert_close((actual / exact).float(), torch.ones_like(actual))


# ---- threads, processes, errors


@pytest.fixture
def work(threads):
    """Layers with inputs, and the results of one thread of Python, computed by two of ours."""
    threads(2)
    calls = [(NORMS[n](64).eval(), floats(4, 64, 30, 31)) for n in PATHS]
    return calls, [outputs(layer, x) for layer, x in calls]


def test_threads_of_python_at_once(work):
    calls, expected = work
    with ThreadPoolExecutor(4) as pool:
        assert_equal(list(pool.map(lambda call: outputs(*call), calls * 4)), expected * 4)


def test_a_forked_process(work):
    """As a worker of a data loader, after the parent's threads have run."""
    calls, expected = work
    # Without a backward pass, which torch refuses in a fork where fake tensors came before the
    # process's first one.
    loader = torch.utils.data.DataLoader(
        calls[:4], batch_size=None, num_workers=1, collate_fn=lambda call: call[0](call[1]).detach()
    )
    assert_equal(list(loader), [y for y, *_ in expected[:4]])


@every_backend
@pytest.mark.parametrize("name", NORMS)
def test_inference_mode_records_nothing_even_with_enable_grad(name, backend):
    layer, x = NORMS[name](64), torch.randn(2, 64, 5, 5)
    expected = copy.deepcopy(layer)(x)
    with use_backend(backend), torch.inference_mode(), torch.enable_grad():
        y = layer(x)
    assert not y.requires_grad
    assert_close(y.clone(), expected.detach())


@every_backend
def test_what_a_layer_cannot_compute_is_refused(backend):
    layer = ILMGroupNorm(64)
    with use_backend(backend), pytest.raises(RuntimeError):
        NORMS["EN"](64, device="meta")(torch.ones(2, 64, 5, 5))
    if backend == "cpu":
        with use_backend("cpu"), pytest.raises(RuntimeError, match=r"\(2, 64, 3, 3\).* no memory"):
            layer(torch._efficientzerotensor(2, 64, 3, 3))
    layer.num_groups = 48
    with use_backend(backend), pytest.raises(RuntimeError):
        layer(torch.ones(2, 64, 3, 3))


def test_groups_that_do_not_divide_the_channels_are_refused():
    def rescale(mean, var):
        return mean[:, :1], var[:, :1]

    with pytest.raises(RuntimeError, match="64 channels do not consist of 48 groups"):
        adaptive_norm(torch.ones(2, 64, 3, 3), 48, 1e-5, rescale)


@needs_kernels
def test_a_view_of_freed_memory_is_refused():
    """As of a flat parameter of FSDP; its address is its place in the freed memory."""
    layer, flat = ILMGroupNorm(64), torch.randn(256)
    layer.weight.data = flat[64:128]
    flat.untyped_storage().resize_(0)
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"\(64,\) tensor .* no memory"):
        layer(torch.ones(2, 64, 3, 3))


# ---- without the library


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "kernels.so")
    for cached in (cpu.load_problem, backends._warn):
        cached.cache_clear()
    yield
    for cached in (cpu.load_problem, backends._warn):
        cached.cache_clear()


def test_one_warning_says_that_kernels_are_missing(without_library, monkeypatch, tmp_path):
    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 3, 3)
    with pytest.warns(UserWarning, match=r"this checkout has no compiled C\+\+ kernels"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="'cpu' is forced: this checkout"):
        layer(x)
    cpu.load_problem.cache_clear()
    monkeypatch.setattr(
        library, "__file__", str(tmp_path / "ilm_plugins/ops/engine/cpu/library.py")
    )
    assert "installed without a C++ compiler" in cpu.load_problem()
    cpu.load_problem.cache_clear()
    library.LIBRARY.write_bytes(b"of another machine")
    monkeypatch.setattr(library, "_load", library._load.__wrapped__)
    with pytest.warns(UserWarning, match="kernels cannot be loaded"):
        ILMGroupNorm(64)(x)


@pytest.mark.filterwarnings("ignore:ilm_plugins. plain")
@pytest.mark.usefixtures("without_library")
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@of_each_kernel
def test_plain_operations_are_as_exact(name, dtype, layout):
    layer = cases.randomized(cases.CASES[name][0], torch.float32)
    x, dy = (layout(inputs(3, cases.CHANNELS, 5, 7, dtype=dtype, seed=seed)) for seed in (1, 5))
    assert backends.backend_for(x, layer.moment_groups) is plain
    cases.assert_exact(layer, x, dy, "auto")
    cases.assert_exact(layer, x[..., 0, 0], dy[..., 0, 0], "auto")  # without positions


@pytest.mark.filterwarnings("ignore:ilm_plugins. plain")
@pytest.mark.usefixtures("without_library")
@of_each_kernel
def test_plain_operations_save_no_more(name):
    layer, x = NORMS[name](64), torch.randn(4, 64, 20, 20, requires_grad=True)
    assert backends.backend_for(x, layer.moment_groups) is plain
    assert x.nbytes <= saved_bytes(layer, layer, x) < 1.2 * x.nbytes


@needs_kernels
def test_layers_run_without_triton_or_a_compiler():
    processes.run_program("layers_without_compiler.py", env={**os.environ, "PATH": ""})


# ---- sizes and layouts


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


@pytest.mark.parametrize("name", NORMS)
def test_hooks_of_saved_tensors_may_change_the_layout_of_x(name):
    """As save_on_cpu(pin_memory=True) does: a contiguous copy of a map in channels last."""
    layer = NORMS[name](64)
    x, dy = (
        cases.channels_last(cases.inputs(2, 64, 3, 5, dtype=torch.float32, seed=s)) for s in (1, 2)
    )
    expected = cases.results(layer, x, dy)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        assert_equal(cases.results(layer, x, dy), expected)
