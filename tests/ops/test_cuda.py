"""On a GPU: the backends agree, nothing waits for the host, and CUDA graphs can be captured."""

import pytest
import torch

from cases import inputs, layouts, results
from close import assert_close
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
@pytest.mark.parametrize("name", NORMS)
def test_the_host_never_waits_also_in_cuda_graphs(name, backend):
    layer, x = NORMS[name](64, device="cuda"), torch.randn(2, 64, 9, 9, device="cuda")
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
