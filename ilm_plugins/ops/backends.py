"""Which implementation of the primitive runs: chosen for each input, or forced."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import native_kernels
from .kernels import Kernels

BACKENDS = ("auto", "reference", "native", "triton")
VARIABLE = "ILM_PLUGINS_BACKEND"

#: The oldest Triton that the kernels were tried with.
TRITON = (3, 6)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(
            f"{source}={name!r} is unknown; set it to one of {', '.join(map(repr, BACKENDS))}"
        )
    return name


_backend: ContextVar[str] = ContextVar("backend")
_default = _checked(os.environ.get(VARIABLE) or "auto", VARIABLE)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one implementation of every layer, for the forward passes within, and their backward.

    Args:
        name: "reference", a composite of differentiable torch operations; "native", torch's own
            kernels under a hand-written backward pass; "triton", kernels for CUDA; or "auto", which
            is "triton" on CUDA where Triton is installed, "native" on the CPU and on CUDA without
            Triton, and "reference" elsewhere.

    Whatever is forced, the reference takes empty inputs, inputs whose finest groups have a single
    value, and all that records or transforms the computation: torch.compile, torch.export, ONNX,
    TorchScript, torch.func, forward-mode differentiation. Other threads, and what activation
    checkpointing computes again outside of the block, are not affected: the environment variable
    ILM_PLUGINS_BACKEND forces one in a whole process.

    Raises:
        ValueError: the name is unknown.
    """
    token = _backend.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _backend.reset(token)


def kernels_for(x: Tensor, num_groups: int) -> Kernels | None:
    """The module whose kernels take x with that many groups; None where the reference does.

    Raises:
        RuntimeError: "triton" is forced where it cannot run.
    """
    if is_traced(x):
        return None
    name = _backend.get(_default)
    # Of a value standardized by itself the kernels would leave rounding, times 1 / sqrt(eps).
    has_several = x.numel() > x.shape[0] * num_groups
    if name == "reference" or not has_several or x.is_meta:
        return None
    if name == "native":
        return native_kernels
    if name == "triton" or x.is_cuda:
        return _triton_kernels_for(x, name)
    return native_kernels if x.device.type == "cpu" else None


@functools.cache
def has_triton() -> bool:
    """Whether a Triton that the kernels are known to work with is installed, for Nvidia's GPUs."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    if importlib.util.find_spec("triton") is None or torch.version.hip:
        return False
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= TRITON


def _triton_kernels_for(x: Tensor, name: str) -> Kernels:
    if has_triton():
        from . import triton_kernels

        if triton_kernels.supports(x):
            return triton_kernels
        problem = (
            f"got a {x.dtype} tensor on {x.device.type!r}, but its kernels take float32, float16 "
            "and bfloat16 on CUDA; force 'native' or 'auto'"
        )
    else:
        problem = (
            f"Triton {'.'.join(map(str, TRITON))} or newer is not installed; install it with "
            "pip install triton, or force 'native'"
        )
    if name == "triton":
        raise RuntimeError(f"the backend 'triton' is forced: {problem}")
    return native_kernels


def is_traced(x: Tensor) -> bool:
    """Whether operations on x are recorded or transformed, and not only computed."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(x)
        or forward_ad._current_level >= 0
    )
