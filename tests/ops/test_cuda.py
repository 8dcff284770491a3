"""On a GPU: the backends agree, nothing waits for the host, and CUDA graphs can be captured."""

import copy

import pytest
import torch

from equations.cases import inputs, layouts, results
from helpers.blocks import Block, apart_from_corners
from helpers.close import assert_close, assert_equal
from ilm_plugins import NORMS
from ilm_plugins.ops.engine import backends
from ilm_plugins.ops.engine.activation import FUNCTIONS, Activation

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

every_backend = pytest.mark.parametrize("backend", ["triton", "auto"])
SHAPES = [(64, 256, 7, 7), (2, 256, 50, 76), (2, 96, 9, 9), (1, 64, 1, 1)]


@pytest.fixture(autouse=True)
def without_triton_unless_forced(request, monkeypatch):
    """Make "auto" choose what it does without Triton: plain torch operations."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("backend") == "auto":
        monkeypatch.setattr(backends, "has_triton", lambda: False)
        request.applymarker(pytest.mark.filterwarnings("ignore:ilm_plugins. plain"))


@every_backend
@pytest.mark.parametrize("name", NORMS)
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_backends_agree(name, dtype, layout, backend):
    for shape in SHAPES:
        layer = NORMS[name](shape[1], device="cuda")
        x, dy = (layout(inputs(*shape, dtype=dtype, seed=s).cuda()) for s in (1, 2))
        found = results(layer, x, dy, backend)
        expected = results(layer, x.float(), dy.float(), "reference")
        for i, (a, e) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, e, 2**14, max(e.abs().max().item(), 1e-2), f"result {i} of {shape}")


@every_backend
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("name", ["ILMGN", "EN"])
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_backends_agree_on_an_activation(name, activation, dtype, layout, backend):
    """Gradients apart from its corners, from which the rounding of z moves some values."""
    for shape in SHAPES:
        x, dy = (layout(inputs(*shape, dtype=dtype, seed=s).cuda()) for s in (1, 2))
        layer = NORMS[name](shape[1], device="cuda")
        block = Block(layer, Activation(activation, 0.1))
        dy = apart_from_corners(block, x, dy, radius=0.02)
        found = results(block, x, dy, backend)
        exact = copy.deepcopy(block).double()
        expected = results(exact, x.double(), dy.double(), "reference")
        for i, (a, e) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, e, 2**14, max(e.abs().max().item(), 1e-2), f"result {i} of {shape}")


@every_backend
@pytest.mark.parametrize("activation", [None, Activation("silu")], ids=["plain", "silu"])
@pytest.mark.parametrize("name", NORMS)
def test_the_host_never_waits_also_in_cuda_graphs(name, activation, backend):
    layer, x = NORMS[name](64, device="cuda"), torch.randn(2, 64, 9, 9, device="cuda")
    layer.fused_activation = activation
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(layer, x, x, backend)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(layer, x, x, backend)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        layer.eval()
        results(layer, x, x, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(layer, x, x, backend)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_close(captured, results(layer, x, x, backend))


compiled = pytest.mark.parametrize("mode", ["default", "reduce-overhead"])


@compiled
@pytest.mark.parametrize("name", NORMS)
def test_a_compiled_layer_agrees_in_training_and_moves_its_statistics(name, mode):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = NORMS[name](64, device="cuda")
    twin = copy.deepcopy(layer)
    function = torch.compile(twin, fullgraph=True, mode=mode)
    for seed in range(4):  # in reduce-overhead, the third call is the first replay
        x, dy = (inputs(20, 64, 9, 9, dtype=torch.float32, seed=seed + s).cuda() for s in (1, 9))
        torch.compiler.cudagraph_mark_step_begin()
        found = [t.clone() for t in results(function, x, dy)]
        expected = results(layer, x, dy, "reference")
        pairs = zip([*found, *twin.buffers()], [*expected, *layer.buffers()], strict=True)
        for i, (a, e) in enumerate(pairs):
            assert_close(a, e, 2**14, max(e.abs().max().item(), 1e-2), f"result {i}")


def test_layers_on_two_streams_do_not_share_counters():
    """The last of many programs sums what all have stored, by counters of its stream."""
    layer = NORMS["EN"](64, device="cuda")
    maps = [torch.randn(64, 64, 9, 9, device="cuda") for _ in range(2)]
    expected = [results(copy.deepcopy(layer), x, x) for x in maps]
    streams = [torch.cuda.Stream() for _ in maps]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for x, stream in zip(maps, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(copy.deepcopy(layer), x, x))
        torch.cuda.synchronize()
        assert_equal(found, expected)


@pytest.mark.parametrize("name", ["ILMGN", "EN", "SN"])
@pytest.mark.parametrize("shape", [(512, 64, 7, 7), (40, 256, 28, 28), (2, 64, 200, 304)], ids=str)
def test_the_order_in_which_programs_end_changes_no_bit(name, shape):
    layer, x = NORMS[name](shape[1], device="cuda"), torch.randn(shape, device="cuda")
    expected = results(copy.deepcopy(layer), x, x)
    for _ in range(10):
        assert_equal(results(copy.deepcopy(layer), x, x), expected)
