"""Count the kernels and operators in the code that Inductor writes for a layer on a GPU.

``python -m benchmarks.inductor`` needs no GPU: Inductor writes Triton code for the CPU's tensors,
and nothing of it is compiled or launched. A layer stands before an addition and a ReLU.
"""

import re
from contextlib import nullcontext
from unittest import mock

import torch
from torch import Tensor, nn

from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops.engine import operators

#: Way -> the backend that is forced, and whether the compiler writes the passes over the map.
WAYS = {
    "all by the compiler": ("reference", False),
    "passes by the compiler": (None, True),
    "whole layer an operator": (None, False),
}
LAYERS = ("ILMGN", "EN", "SN", "SSN", "AN")
PLAIN = {"BatchNorm": nn.BatchNorm2d, "GroupNorm": lambda channels: nn.GroupNorm(32, channels)}
SHAPE = (16, 64, 14, 14)


class Block(nn.Module):
    """A norm, an addition and a ReLU."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return torch.relu(self.norm(x) + shortcut)


class Target:
    """A stand-in for the GPU driver, with the methods that Inductor calls."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Nothing:
    """A compiled kernel that does nothing."""

    def run(self, *args, **options) -> None:
        pass


def main() -> None:
    import triton

    triton.runtime.driver._active = Target()
    for name, make in PLAIN.items():
        print(name, *count(make(SHAPE[1])))
    for name in LAYERS:
        for way, (backend, leaves) in WAYS.items():
            print(name, way, *count(NORMS[name](SHAPE[1]), backend, leaves))


def count(norm: nn.Module, backend: str | None = None, leaves: bool = False) -> list[tuple]:
    """Return (kernels, operators) of the forward and of the backward pass."""
    from torch._inductor import async_compile, config
    from torch._inductor.graph import GraphLowering

    written, codegen = [], GraphLowering.codegen

    def record(graph):
        code = codegen(graph)
        written.append(code[0].value)
        return code

    torch._dynamo.reset()
    x, shortcut = (torch.randn(SHAPE).to(memory_format=torch.channels_last) for _ in range(2))
    changes = {"cpu_backend": "triton", "fx_graph_cache": False, "compile_threads": 1}
    with (
        config.patch(**changes),
        torch._functorch.config.patch(enable_autograd_cache=False),
        mock.patch.object(GraphLowering, "codegen", record),
        mock.patch.object(async_compile.AsyncCompile, "triton", lambda *_, **options: Nothing()),
        mock.patch.object(operators, "leaves_passes", lambda x: leaves),
        without_kernels(),
        use_backend(backend) if backend else nullcontext(),
    ):
        y = torch.compile(Block(norm), dynamic=False)(x.requires_grad_(), shortcut)
        y.sum().backward()
    calls = [code[code.index("def call(") :] for code in written]
    return [(len(re.findall(r"\.run\(", c)), len(re.findall(OPERATOR, c))) for c in calls]


OPERATOR = r"torch\.ops\.ilm_plugins\.\w+\.default\("


def without_kernels():
    """Replace the kernel of the network by allocations of its results, within a context."""
    from ilm_plugins.ops.engine.triton import network_alone

    def forward(mean, var, channels, network, tensors):
        return mean.new_empty((len(mean), channels)), mean.new_empty((len(mean), channels))

    def backward(d_scale, d_shift, mean, var, network, tensors):
        row = sum(operators._row(network, d_scale.shape[1]).values())
        return torch.empty_like(mean), torch.empty_like(var), mean.new_empty((len(mean), row))

    return mock.patch.multiple(network_alone, forward=forward, backward=backward)


if __name__ == "__main__":
    main()
