"""Compiles Triton kernels for a GPU, without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from torch import nn

from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.ops.engine import triton as kernels
from ilm_plugins.ops.engine.triton import devices, streaming

from . import layers, steps


def compile_kernels(name: str, images: int, capability: int, multiprocessors: int) -> None:
    """Compile the kernels of a map in benchmarks.layers, or of a norm in a step of images."""
    cases = of_map(name) if name in layers.SHAPES else of_step(name, images)
    with compiling(capability, multiprocessors):
        for layer, x in cases:
            y = layer(x.requires_grad_())
            torch.autograd.grad(y, [x, *layer.parameters()], torch.empty_like(y))


def of_map(name: str) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    for setting in map(layers.SETTINGS.get, layers.SETTINGS_OF_CUDA):
        for layer in layers.LAYERS_OF_CUDA:
            x = torch.empty(layers.SHAPES[name], dtype=setting.dtype)
            yield NORMS[layer](x.shape[1], dtype=setting.dtype), x.to(memory_format=setting.layout)


def of_step(name: str, images: int) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    """Yield each kind of layer in a model once, and its map."""
    found = {}

    def note(layer: nn.Module, args: tuple) -> None:
        found[layer.fused_activation, args[0].shape] = layer

    with torch.device("meta"):
        model = steps.make_model(name)
        norms = [layer for layer in model.modules() if isinstance(layer, AdaptiveNorm)]
        hooks = [layer.register_forward_pre_hook(note) for layer in norms]
        model(torch.empty(images, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    for (_, shape), layer in found.items():
        options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
        yield layer.to_empty(device="cpu"), torch.empty(shape, **options)


def driver(capability: int) -> SimpleNamespace:
    """Return the functions of a GPU's driver that Triton calls to compile a kernel."""
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: capability,  # Triton keeps compiled kernels by device
        get_current_stream=lambda device: -1,
    )


@contextmanager
def compiling(capability: int, multiprocessors: int) -> Iterator[None]:
    """Let launches only compile, for a GPU with these numbers, and kernels take the CPU's maps."""
    compile_or_launch = triton.JITFunction.run

    def run(kernel, *args, warmup: bool, **options) -> None:
        compile_or_launch(kernel, *args, warmup=True, **options)

    patch = mock.patch.object
    with (
        use_backend("triton"),
        patch(triton.runtime.driver, "_active", driver(capability)),
        patch(kernels, "supports", lambda x: True),
        patch(devices, "launch_problem", lambda device: None),
        patch(streaming, "multiprocessors", lambda device: multiprocessors),
        patch(triton.JITFunction, "run", run),
    ):
        yield
