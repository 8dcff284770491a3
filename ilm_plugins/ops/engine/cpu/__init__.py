"""The CPU backend of ``adaptive_norm``: kernels in C++, compiled when the package is installed.

The library depends on neither torch nor Python: ctypes passes the addresses of tensors, and of the
function by which torch runs loops in its threads. So one library works with every version of torch
and Python.

A network is passed as its number, its options as numbers, and its tensors, in the order of
ops/networks/*/spec.py.
"""

import ctypes
import errno
import functools
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..activation import Activation
from ..layouts import becomes_contiguous
from ..network import BATCH, Needs, Network, Tensors
from ..plans import KernelPlan
from . import library

NO_FIELDS = array("d")
#: Tensors at lower addresses may have no memory. Others have, as no view of freed memory begins so
#: many bytes after it.
LOWEST = 2**40

#: dtype of x -> dtype of its moments, and x's number in Map, job.hpp.
DTYPES = {
    torch.float32: (torch.float32, 0),
    torch.float64: (torch.float64, 0),
    torch.bfloat16: (torch.float32, 1),
    torch.float16: (torch.float32, 2),
}


@functools.cache
def load_problem() -> str | None:
    """Return why the C++ kernels cannot be loaded, with advice; None if they can."""
    return library.load_problem()


def is_built() -> bool:
    return load_problem() is None


@functools.cache
def instruction_set() -> str:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in ("avx512", "avx2") else "default"


@functools.cache
def parallel_for() -> int | None:
    """Return the address of ``torch_parallel_for``; None before torch 2.10: a single thread."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}"))
        return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


# ---- the functions of every backend, see engine/plain.py


def supports(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in DTYPES and is_built()


def moments(x: Tensor, num_groups: int) -> Tensor:
    mean_and_var = _pair(x, num_groups)
    _call("moments", x, num_groups, (x, *mean_and_var.unbind()))
    return mean_and_var


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    tensors = x, mean, scale.contiguous(), shift.contiguous(), y
    _call("affine", x, mean.shape[1], tensors)
    return y


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    products, total = _pair(x, x.shape[1]).unbind()
    _call("sums", x, mean.shape[1], (dy, x, mean, products, total))
    return products, total


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    result = torch.empty_like(x)
    values = [t.contiguous() for t in (scale, slope, offset)]
    _call("dx", x, mean.shape[1], (dy, x, mean, *values, result))
    return result


# ---- a whole network in one call


def find_plan(
    x: Tensor,
    num_groups: int,
    network: Network,
    tensors: Tensors,
    activation: Activation | None = None,
) -> "CpuPlan | None":
    """Return the plan for x; see engine/plain.py."""
    if not network.has_kernels():
        return None
    uses_batch = network.mixes_batch and tensors[-1] is None
    map = x.shape, x.dtype, becomes_contiguous(x)
    return _plan(network, num_groups, *map, uses_batch, activation)


class CpuPlan(KernelPlan):
    """The passes of a layer for maps of one shape, dtype and layout."""

    def __init__(
        self,
        network: Network,
        num_groups: int,
        shape: torch.Size,
        dtype: torch.dtype,
        is_contiguous: bool,
        uses_batch: bool,
        activation: Activation | None,
    ) -> None:
        self.saved_dtype = DTYPES[dtype][0]
        super().__init__(network, num_groups, shape[1], self.saved_dtype, -1, 1, is_contiguous)
        self.activation = activation
        self.description = _description(network, shape[1], num_groups)
        self.first_kept = 2 * shape[0] * (num_groups + (shape[1] if activation else 0))
        self.num_saved = self.first_kept + self.description.kept
        self.head = _head(shape, num_groups, dtype, is_contiguous, activation)
        self.num_channels = shape[1]
        self.functions = _functions(dtype)
        #: Whether BN takes the batch's moments, so that the tensors of its own are None.
        self.uses_batch = uses_batch
        #: Whether a channel has an unbiased variance, by which running statistics are updated.
        self.updates = shape.numel() > shape[1]

    def forward(self, x: Tensor, tensors: Tensors, running: tuple, *_) -> tuple[Tensor, Tensor]:
        updated = running[:2]
        y = torch.empty_like(x)
        saved = x.new_empty(self.num_saved, dtype=self.saved_dtype)
        # Running statistics are updated in place. A mixture without them passes four times None.
        given = *tensors, *updated, *updated, *[None] * 4
        self.call("forward", x, (x, y, saved, None, *given))
        if running:
            increment_version(updated)
            if self.updates:
                for tracked in running[3:]:
                    tracked.add_(1)
        return y, saved

    def backward(
        self, dy: Tensor, x: Tensor, saved: Tensor, parameters: Tensors, needs: Needs, *_
    ) -> list[Tensor | None]:
        gradients = [
            torch.empty_like(t) if need else None
            for t, need in zip((x, *parameters), needs, strict=True)
        ]
        # Kernels read the copies of buffers in ``saved``; here it only matters if there
        # are buffers.
        names = self.network.buffers
        buffers = [None if self.uses_batch and n in BATCH else saved for n in names]
        nowhere = [None] * len(buffers)
        given = *parameters, *buffers, *gradients[1:], *nowhere
        self.call("backward", x, (x, gradients[0], saved, dy, *given))
        return gradients

    def buffers(self, saved: Tensor) -> list[Tensor]:
        sizes = self.network.sizes(self.num_channels)
        of_buffers = [sizes[name] for name in self.network.buffers]
        return list(saved[self.first_kept :].split(of_buffers))

    def call(self, name: str, x: Tensor, tensors: Tensors) -> None:
        _run(name, self.functions, x, self.head, self.description.fields, tensors)


@functools.lru_cache(maxsize=4096, typed=True)  # named tuples of two classes may be equal
def _plan(*options) -> CpuPlan:
    return CpuPlan(*options)


# ---- calls of the library


class Description(NamedTuple):
    """A network for the library, of a number of channels."""

    fields: array  #: its number, its tensors', and options, as Reader in options.hpp takes them
    kept: int  #: values in its buffers


def _pair(x: Tensor, columns: int) -> Tensor:
    return x.new_empty((2, x.shape[0], columns), dtype=DTYPES[x.dtype][0])


@functools.lru_cache(maxsize=4096, typed=True)  # named tuples of two classes may be equal
def _description(network: Network, channels: int, num_groups: int) -> Description:
    network.check(channels, num_groups)
    number = [*Network.by_name].index(type(network).__name__)
    fields, kept = array("d", (number, len(network.tensors))), 0
    for option in network._fields:  # type: ignore[attr-defined]
        choices = network.choices.get(option, ())
        fields.extend(_numbers(option, getattr(network, option), choices))
    sizes = network.sizes(channels)
    for name in network.buffers:
        fields.extend((kept, sizes[name]))  # its place among the kept values, its size
        kept += sizes[name]
    return Description(fields, kept)


def _numbers(option: str, value: Any, choices: Sequence[str]) -> list[float]:
    """Return an option as numbers, a tuple after its length, a name by its place in choices."""
    if isinstance(value, tuple):
        return [len(value), *(n for v in value for n in _numbers(option, v, choices))]
    if choices and value not in choices:
        raise RuntimeError(f"the kernels know no {option}={value!r}, only {', '.join(choices)}")
    return [choices.index(value) if choices else value]


def _call(name: str, x: Tensor, num_groups: int, tensors: Tensors) -> None:
    """Call a function of the library that computes no network, for a dense x."""
    head = _head(x.shape, num_groups, x.dtype, x.is_contiguous())
    _run(name, _functions(x.dtype), x, head, NO_FIELDS, tensors)


def _head(
    shape: torch.Size,
    num_groups: int,
    dtype: torch.dtype,
    is_contiguous: bool,
    activation: Activation | None = None,
) -> tuple[int, ...]:
    """Return how a call describes x."""
    n, c = shape[:2]
    length = shape[2:].numel()
    # A single position has both layouts; the kernels for channels last are faster.
    layout = DTYPES[dtype][1], length == 1 or not is_contiguous
    if activation is None:
        return n, c, length, num_groups, *layout, 0, 0
    (slope,) = struct.unpack("q", struct.pack("d", activation.negative_slope))
    return n, c, length, num_groups, *layout, activation.number, slope


Functions = dict[str, Callable[..., int]]


def _functions(dtype: torch.dtype) -> Functions:
    variant = "double" if DTYPES[dtype][0] is torch.float64 else "float"
    return library.functions(variant, instruction_set())


def _run(
    name: str, functions: Functions, x: Tensor, head: tuple, fields: array, tensors: Tensors
) -> None:
    """Call a function of the library; raise its error, if there is one."""
    threads, (address, length) = torch.get_num_threads(), fields.buffer_info()
    values = threads, parallel_for() or 0, length, address, *_addresses(tensors)
    call = array("q", (*head, *values))
    error = functions[name](call.buffer_info()[0])
    if not error:
        return
    shape = tuple(x.shape)
    if error == errno.ENOMEM:
        raise MemoryError(f"not enough memory for the moments of a {shape} tensor")
    if error == errno.EINVAL:
        raise RuntimeError(
            f"{name} of a {shape} tensor: the kernels cannot read the options of its network; "
            "compare members() in ops/networks/*/cpu.hpp with spec.py"
        )
    raise RuntimeError(f"{name} of a {shape} tensor: torch's threads ended with error {error}")


def _addresses(tensors: Tensors) -> list[int]:
    """Return where the tensors' values are, 0 for None; RuntimeError if one has no memory."""
    addresses = []
    for t in tensors:
        address = 0 if t is None else t.data_ptr()
        if address < LOWEST and t is not None:
            _check_memory(t)
        addresses.append(address)
    return addresses


def _check_memory(tensor: Tensor) -> None:
    # The address of a view of freed memory, as of FSDP's flat parameters, is the view's offset.
    if not tensor.data_ptr() or not tensor.untyped_storage().nbytes():
        raise RuntimeError(
            f"got a {tuple(tensor.shape)} tensor of type {type(tensor).__name__} that has no "
            "memory for kernels in C++; run the layer under use_backend('reference')"
        )
