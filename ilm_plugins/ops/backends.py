"""The choice of the backend that computes the primitive, for each input."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu, plain
from .networks import Kernels

BACKENDS = ("auto", "reference", "cpu", "triton")
VARIABLE = "ILM_PLUGINS_BACKEND"

#: The oldest version of Triton with which the kernels are tested.
TRITON = (3, 6)


def _checked(name: str, source: str) -> str:
    if name == "native":
        raise ValueError(
            f"{source}='native' has become 'cpu', kernels in C; "
            "set that, or leave the choice to 'auto'"
        )
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
        name: "reference", a composite of differentiable torch operations; "cpu", kernels in C;
            "triton", kernels for CUDA; or "auto": "cpu" on the CPU, "triton" on CUDA. Where "auto"
            finds these missing, and on other devices, plain torch operations run under the same
            backward pass: they save as little for it, but take longer.

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
    """The backend for x with G' = ``num_groups``; None for the reference.

    Raises:
        RuntimeError: "triton" is forced where it cannot run.
    """
    # The kernels' rounding of a value standardized by itself would be divided by sqrt(eps).
    single_values = x.numel() <= x.shape[0] * num_groups
    if is_traced(x) or single_values or x.is_meta:
        return None
    name = _backend.get(_default)
    if name == "reference":
        return None
    if name == "cpu" or (name == "auto" and x.is_cpu):
        return _choose(name, cpu if cpu.supports(x) else None, _why_not_cpu, x)
    if name == "triton" or x.is_cuda:
        return _choose(name, _triton(x), _why_not_triton, x)
    return plain


def _choose(
    name: str, kernels: Kernels | None, why_not: Callable[[Tensor], str], x: Tensor
) -> Kernels:
    """The kernels; if there are none, raise if they are forced, else warn and return ``plain``."""
    if kernels is not None:
        return kernels
    if name != "auto":
        raise RuntimeError(f"the backend {name!r} is forced: {why_not(x)}")
    _warn(why_not(x))
    return plain


@functools.cache
def _warn(problem: str) -> None:
    """Warn of a problem, once in each process."""
    warnings.warn(f"ilm_plugins: slower than it could be: {problem}", stacklevel=2)


def _why_not_cpu(x: Tensor) -> str:
    if not cpu.is_built():
        return (
            "the package was installed without a C compiler, so plain torch operations run on the "
            "CPU; install a compiler, such as gcc, and the package again"
        )
    return (
        f"got a {x.dtype} tensor on {x.device.type!r}, but the C kernels take float32, float64, "
        "bfloat16 and float16 on the CPU; force 'auto'"
    )


@functools.cache
def has_triton() -> bool:
    """Whether a new enough Triton is installed, and torch is not built for AMD's GPUs."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    if importlib.util.find_spec("triton") is None or torch.version.hip:
        return False
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= TRITON


def _triton(x: Tensor) -> Kernels | None:
    if not has_triton():
        return None
    from . import triton

    return triton if triton.supports(x) else None


def _why_not_triton(x: Tensor) -> str:
    if not has_triton():
        return (
            f"Triton {'.'.join(map(str, TRITON))} or newer is not installed; install it with "
            "pip install triton, or force 'auto'"
        )
    return (
        f"got a {x.dtype} tensor on {x.device.type!r}, but Triton's kernels take float32, float16 "
        "and bfloat16 on CUDA; force 'auto'"
    )


def is_traced(x: Tensor) -> bool:
    """Whether a compiler, an exporter or torch.func records or transforms operations on x."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(x)
        or forward_ad._current_level >= 0
    )
