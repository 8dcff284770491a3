"""Choose the backend that computes ``adaptive_norm``, for each input."""

import contextlib
import functools
import os
import re
import warnings
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from ...errors import OptionError
from . import cpu, plain

#: Names that :func:`use_backend` takes.
BACKENDS = ("auto", "reference", "cpu", "triton")
#: Environment variable that sets the backend of a whole process.
VARIABLE = "ILM_PLUGINS_BACKEND"

#: The oldest version of Triton with which the kernels are tested.
TRITON = (3, 6)


def _check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise OptionError(
            f"{source}={name!r} is unknown; set it to one of {', '.join(map(repr, BACKENDS))}"
        )
    return name


_of_process = _check_name(os.environ.get(VARIABLE) or "auto", VARIABLE)
#: The name that :func:`use_backend` has set.
CHOSEN: ContextVar[str] = ContextVar("backend", default=_of_process)


def use_backend(name: str) -> contextlib.ExitStack:
    """Force one backend for every layer, in forward passes and their backward passes.

    It holds from this call on, or in ``with use_backend(name):`` until the end of the block.

    Args:
        name: "reference", a composite of differentiable torch operations; "cpu", kernels in C++;
            "triton", kernels for CUDA; or "auto": "cpu" on the CPU, "triton" on CUDA. Where "auto"
            finds no kernels, and on other devices, plain torch operations run under the same
            backward pass: they store as little for it as the kernels, but take longer.

    The reference always computes empty inputs, groups of a single value, meta tensors, subclasses
    of Tensor, and what is recorded or transformed (torch.export, ONNX, TorchScript, torch.func). A
    compiled model keeps the backend of its compilation.

    Other threads keep their backend, also the thread in which activation checkpointing repeats a
    forward pass. The environment variable ILM_PLUGINS_BACKEND sets the default of a process.

    Returns:
        A context manager whose end restores the backend that was set before.

    Raises:
        ValueError: the name is unknown.
    """
    restoring = contextlib.ExitStack()
    restoring.callback(CHOSEN.reset, CHOSEN.set(_check_name(name, "backend")))
    return restoring


def backend_for(x: Tensor, num_groups: int) -> ModuleType | None:
    """Return the backend for an x that is not traced, of G' groups; None for the reference."""
    name = CHOSEN.get()
    if name == "reference" or x.is_meta or not has_variances(x, num_groups):
        return None
    if name == "cpu" or (name == "auto" and x.is_cpu):
        backend_or_problem = _find_cpu(x)
    elif name == "triton" or x.is_cuda:
        backend_or_problem = _find_triton(x)
    else:
        return plain
    if not isinstance(backend_or_problem, str):
        return backend_or_problem
    if name != "auto":
        raise RuntimeError(f"the backend {name!r} is forced: {backend_or_problem}; or force 'auto'")
    _warn(backend_or_problem)
    return plain


def has_variances(x: Tensor, num_groups: int) -> bool:
    # A single value minus its mean is 0; the kernels' rounding error would be divided by sqrt(eps).
    return x.numel() > x.shape[0] * num_groups


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"ilm_plugins: plain torch operations run, not kernels: {problem}", stacklevel=2)


def _find_cpu(x: Tensor) -> ModuleType | str:
    if cpu.supports(x):
        return cpu
    dtypes = "float32, float64, bfloat16 and float16 on the CPU"
    problem = f"got a {x.dtype} tensor on {x.device.type!r}, but the C++ kernels take {dtypes}"
    return cpu.load_problem() or problem


def _find_triton(x: Tensor) -> ModuleType | str:
    """Return the Triton backend; or why it cannot run x, with advice."""
    if torch.version.hip:
        return "the Triton kernels run only on NVIDIA's GPUs; leave the backend at 'auto'"
    if not has_triton():
        version = ".".join(map(str, TRITON))
        return f"Triton {version} or newer cannot be imported; upgrade torch, which brings it"
    from . import triton  # needs Triton

    if not triton.supports(x):
        dtypes = "float32, float16 and, from compute capability 8.0 on, bfloat16, on CUDA"
        given = f"a {x.dtype} tensor of {x.shape[2:].numel()} positions on {x.device.type!r}"
        return f"got {given}, but Triton's kernels take less than 2**30 of {dtypes}"
    if problem := triton.devices.launch_problem(x.device):
        return (
            f"Triton cannot run a kernel on {str(x.device)!r} ({problem}); it needs a C compiler, "
            "such as gcc, and Python's header files"
        )
    return triton


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is :data:`TRITON` or newer, and torch is not for AMD's GPUs."""
    if torch.version.hip:
        return False
    try:
        from triton import __version__
    except ImportError:
        return False
    return tuple(map(int, re.findall(r"\d+", __version__)[:2])) >= TRITON
