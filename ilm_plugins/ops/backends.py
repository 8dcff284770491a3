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
from torch.autograd import forward_ad

from . import cpu, plain
from .networks import Tensors

#: Names that :func:`use_backend` takes.
BACKENDS = ("auto", "reference", "cpu", "triton")
#: Environment variable that sets the backend of a whole process.
VARIABLE = "ILM_PLUGINS_BACKEND"

#: Types of tensors whose memory kernels may use; None is a tensor that a layer lacks.
PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))
#: Modes in which torch records operations, or replaces tensors by descriptions of them.
RECORDING = tuple(
    getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")
)

#: The oldest version of Triton with which the kernels are tested.
TRITON = (3, 6)


def _check_name(name: str, source: str) -> str:
    """Return the name of a backend; ValueError names ``source``, the setting that it is from."""
    if name not in BACKENDS:
        raise ValueError(
            f"{source}={name!r} is unknown; set it to one of {', '.join(map(repr, BACKENDS))}"
        )
    return name


_backend: ContextVar[str] = ContextVar("backend")
_default = _check_name(os.environ.get(VARIABLE) or "auto", VARIABLE)


def use_backend(name: str) -> contextlib.ExitStack:
    """Force one backend for every layer, in forward passes and their backward passes.

    It holds from this call on, or in ``with use_backend(name):`` until the end of the block.

    Args:
        name: "reference", a composite of differentiable torch operations; "cpu", kernels in C;
            "triton", kernels for CUDA; or "auto": "cpu" on the CPU, "triton" on CUDA. Where "auto"
            finds no kernels, and on other devices, plain torch operations run under the same
            backward pass: they store as little for it as the kernels, but take longer.

    The reference computes some inputs whatever is forced: empty inputs, inputs whose finest groups
    have a single value, meta tensors and subclasses of Tensor, and inputs of a computation that is
    recorded or transformed, by torch.compile, torch.export, ONNX, TorchScript, torch.func or
    forward-mode differentiation.

    Other threads are not affected. So activation checkpointing, which repeats a forward pass during
    the backward pass, repeats it with the backend then set in its thread: not with the forced one
    if the block has ended, and never with it on CUDA. The environment variable ILM_PLUGINS_BACKEND
    forces a backend in a whole process.

    Returns:
        A context manager whose end restores the backend that was set before.

    Raises:
        ValueError: the name is unknown.
    """
    restoring = contextlib.ExitStack()
    restoring.callback(_backend.reset, _backend.set(_check_name(name, "backend")))
    return restoring


def kernels_for(x: Tensor, num_groups: int, tensors: Tensors = ()) -> ModuleType | None:
    """Return the backend for an input x with G' = ``num_groups``; None stands for the reference.

    ``tensors`` are what else the layer passes; see :func:`use_backend` for the choice and errors.
    """
    # A single value minus its mean is 0; the kernels' rounding error would be divided by sqrt(eps).
    single_values = x.numel() <= x.shape[0] * num_groups
    if is_traced(x, *tensors) or single_values or x.is_meta:
        return None
    name = _backend.get(_default)
    if name == "reference":
        return None
    if name == "cpu" or (name == "auto" and x.is_cpu):
        kernels_or_problem = _find_cpu(x)
    elif name == "triton" or x.is_cuda:
        kernels_or_problem = _find_triton(x)
    else:
        return plain
    if not isinstance(kernels_or_problem, str):
        return kernels_or_problem
    if name != "auto":
        raise RuntimeError(f"the backend {name!r} is forced: {kernels_or_problem}; or force 'auto'")
    _warn(kernels_or_problem)
    return plain


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"ilm_plugins: plain torch operations run, not kernels: {problem}", stacklevel=2)


def _find_cpu(x: Tensor) -> ModuleType | str:
    """Return the backend of C kernels; or why it cannot run x, with advice."""
    if cpu.supports(x):
        return cpu
    if problem := cpu.load_problem():
        return problem
    return (
        f"got a {x.dtype} tensor on {x.device.type!r}, but the C kernels take float32, float64, "
        "bfloat16 and float16 on the CPU"
    )


def _find_triton(x: Tensor) -> ModuleType | str:
    """Return the Triton backend; or why it cannot run x, with advice."""
    if torch.version.hip:
        return "the Triton kernels are for NVIDIA's GPUs alone; leave the backend at 'auto'"
    if not has_triton():
        return (
            f"Triton {'.'.join(map(str, TRITON))} or newer cannot be imported; upgrade torch to "
            "2.11 or newer, which brings it"
        )
    from . import triton
    from .triton.devices import launch_problem

    if not triton.supports(x):
        return (
            f"got a {x.dtype} tensor of {x.shape[2:].numel()} positions on {x.device.type!r}, but "
            "Triton's kernels take float32, float16 and, from compute capability 8.0 on, bfloat16, "
            "of less than 2**30, on CUDA"
        )
    if problem := launch_problem(x.device):
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


def is_traced(x: Tensor, *tensors: Tensor | None) -> bool:
    """Return whether a compiler, an exporter or torch.func records or transforms operations on x.

    Also for subclasses of Tensor, such as DTensor, and within forward-mode differentiation.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or not PLAIN.issuperset(map(type, (x, *tensors)))
        or _mode_records()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(x)
        or forward_ad._current_level >= 0
    )


def _mode_records() -> bool:
    """Return whether one of the modes RECORDING is on, as in ``make_fx``, where x is a Tensor."""
    if torch._ops._len_torch_dispatch_stack_pre_dispatch():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(key) is not None for key in RECORDING
    )
