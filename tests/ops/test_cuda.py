"""On a GPU: the backends agree, nothing waits for the host, and CUDA graphs can be captured."""

import pytest
import torch

from cases import every_layer, inputs, results
from ilm_plugins import NORMS
from ilm_plugins.ops import backends

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

every_backend = pytest.mark.parametrize("backend", ["triton", "auto"])
SHAPES = [(64, 256, 7, 7), (2, 256, 50, 76), (2, 96, 9, 9), (1, 64, 1, 1)]


@pytest.fixture(autouse=True)
def without_triton_unless_forced(request, monkeypatch):
    """Make "auto" choose what it does without Triton: plain torch operations."""
    if request.node.callspec.params.get("backend") == "auto":
        monkeypatch.setattr(backends, "has_triton", lambda: False)
        request.applymarker(pytest.mark.filterwarnings("ignore:ilm_plugins. plain"))


@every_backend
@every_layer
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_backends_agree(name, dtype, layout, backend):
    for shape in SHAPES:
        layer = NORMS[name](shape[1], device="cuda")
        x, dy = (inputs(*shape, dtype=dtype, seed=s).cuda() for s in (1, 2))
        x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)
        actual = results(layer, x, dy, backend)
        expected = results(layer, x.float(), dy.float(), "reference")
        for a, e in zip(actual, expected, strict=True):
            tolerance = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
            assert (a.float() - e).abs().max() <= tolerance * e.abs().max().clamp_min(1e-2)


@every_backend
@every_layer
def test_the_host_never_waits(name, backend):
    layer, x = NORMS[name](64, device="cuda"), torch.randn(2, 64, 9, 9, device="cuda")
    results(layer, x, x, backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(layer, x, x, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_backend
@every_layer
def test_cuda_graphs(name, backend):
    layer, x = NORMS[name](64, device="cuda"), torch.randn(2, 64, 9, 9, device="cuda")
    layer.eval()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(layer, x, x, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(layer, x, x, backend)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(captured, results(layer, x, x, backend))
