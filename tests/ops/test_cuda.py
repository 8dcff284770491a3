"""On a GPU: the backends agree, nothing waits for the host, and CUDA graphs can be captured."""

import pytest
import torch

from cases import inputs
from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops import backends as choice

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

backends = pytest.mark.parametrize("backend", ["triton", "auto"])
layers = pytest.mark.parametrize("name", NORMS)
SHAPES = [(64, 256, 7, 7), (2, 256, 50, 76), (2, 96, 9, 9), (1, 64, 1, 1)]


@pytest.fixture(autouse=True)
def without_triton_unless_forced(request, monkeypatch):
    """Has "auto" take what it takes where Triton is missing: plain torch operations."""
    if request.node.callspec.params.get("backend") == "auto":
        monkeypatch.setattr(choice, "has_triton", lambda: False)
        request.applymarker(pytest.mark.filterwarnings("ignore:ilm_plugins. slower"))


def run(backend, layer, x, dy):
    x = x.detach().requires_grad_()
    with use_backend(backend):
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


@backends
@layers
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_backends_agree(name, dtype, layout, backend):
    for shape in SHAPES:
        layer = NORMS[name](shape[1], device="cuda")
        x, dy = (inputs(*shape, dtype=dtype, seed=s).cuda() for s in (1, 2))
        x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)
        actual = run(backend, layer, x, dy)
        expected = run("reference", layer, x.float(), dy.float())
        for a, e in zip(actual, expected, strict=True):
            tolerance = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
            assert (a.float() - e).abs().max() <= tolerance * e.abs().max().clamp_min(1e-2)


@backends
@layers
def test_the_host_never_waits(name, backend):
    layer, x = NORMS[name](64, device="cuda"), torch.randn(2, 64, 9, 9, device="cuda")
    run(backend, layer, x, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(backend, layer, x, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@backends
@layers
def test_cuda_graphs(name, backend):
    layer, x = NORMS[name](64, device="cuda"), torch.randn(2, 64, 9, 9, device="cuda")
    layer.eval()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(backend, layer, x, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(backend, layer, x, x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(captured, run(backend, layer, x, x))
