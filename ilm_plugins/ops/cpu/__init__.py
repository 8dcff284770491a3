"""The CPU backend of ``adaptive_norm``: kernels in C++, compiled when the package is installed.

The library depends on neither torch nor Python: ctypes passes the addresses of tensors, and of the
function by which torch runs loops in its threads. So one library works with every version of torch
and Python.

Functions, networks and their options cross the border by name: the library tells its names, which
must be those in ops/networks.py.
"""

import ctypes
import errno
import functools
import sys
from array import array
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import networks
from ..networks import Network, Tensors
from . import library

NO_FIELDS = array("d")

#: dtype of x -> dtype of its statistics, and x's number in Map, job.hpp.
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


# ---- the functions of every backend, see ops/plain.py


def supports(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in DTYPES and is_built()


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    mean, var = _pair(x, num_groups)
    _call("moments", x, num_groups, (x, mean, var))
    return mean, var


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    tensors = x, mean, scale.contiguous(), shift.contiguous(), y
    _call("affine", x, mean.shape[1], tensors)
    return y


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    products, total = _pair(x, x.shape[1])
    _call("sums", x, mean.shape[1], (dy, x, mean, products, total))
    return products, total


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    result = torch.empty_like(x)
    values = [t.contiguous() for t in (scale, slope, offset)]
    _call("dx", x, mean.shape[1], (dy, x, mean, *values, result))
    return result


def runs(network: Network, x: Tensor, num_groups: int) -> bool:
    return True


# ---- a whole network in one call


def forward(x, num_groups, network: Network, tensors: Tensors, running: Tensors):
    description, inputs = _describe(x, num_groups, network, (*tensors, *running))
    y, size = torch.empty_like(x), 2 * x.shape[0] * num_groups + description.kept
    statistics = x.new_empty(size, dtype=DTYPES[x.dtype][0])
    inputs, updated = inputs[: len(tensors)], inputs[len(tensors) :]
    # Running statistics are updated in place. A mixture without them passes four times None.
    arguments = x, y, statistics, None, *description.sort(inputs), *updated, *updated, *[None] * 4
    _call("forward", x, num_groups, arguments, description.fields)
    networks.write_back(updated, running)
    return y, statistics


def backward(dy, x, num_groups, statistics, network: Network, tensors: Tensors, needs):
    parameters, buffers = tensors[: network.num_parameters], tensors[network.num_parameters :]
    description, parameters = _describe(x, num_groups, network, parameters)
    inputs = *parameters, *(t if t is None else statistics for t in buffers)
    gradients = [
        torch.empty_like(t) if need else None for t, need in zip((x, *inputs), needs, strict=True)
    ]
    sorted_inputs = *description.sort(inputs), *description.sort(gradients[1:])
    arguments = x, gradients[0], statistics, dy, *sorted_inputs
    _call("backward", x, num_groups, arguments, description.fields)
    return gradients


# ---- calls of the library


class Description(NamedTuple):
    """A network for the library, of a number of channels."""

    fields: array  #: its number and options, as Reader in options.hpp takes them
    kept: int  #: values in its buffers
    sizes: list[int]  #: of its tensors, and of BN's running statistics
    optional: list[bool]  #: for each size, whether the tensor may be None
    order: list[int] | None  #: see library.Layout

    def sort(self, tensors: Tensors) -> Tensors:
        """Return tensors of networks.py in the library's order."""
        return tensors if self.order is None else [tensors[i] for i in self.order]


def _pair(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    size, dtype = (x.shape[0], columns), DTYPES[x.dtype][0]
    return x.new_empty(size, dtype=dtype), x.new_empty(size, dtype=dtype)


def _describe(
    x: Tensor, num_groups: int, network: Network, tensors: Tensors
) -> tuple[Description, Tensors]:
    """Return the network's description, and tensors for the library."""
    dtype = DTYPES[x.dtype][0]
    description = _description(network, x.shape[1], num_groups)
    for t, size, is_optional in zip(tensors, description.sizes, description.optional, strict=False):
        if t is None:
            is_ready = is_optional
        else:
            fits = t.numel() == size and t.dtype is dtype
            is_ready = fits and t.is_cpu and t.is_contiguous() and not t.is_neg()
        if not is_ready:
            networks.check_tensors(x, network, tensors)
            tensors = [t if t is None else t.resolve_neg().to(dtype).contiguous() for t in tensors]
            break
    return description, tensors  # to be kept alive


@functools.lru_cache(maxsize=4096, typed=True)  # named tuples of two classes may be equal
def _description(network: Network, channels: int, num_groups: int) -> Description:
    networks.check_groups(network, channels, num_groups)
    sizes = network.sizes(channels)
    of_buffers = sizes[network.num_parameters :]
    names = network.tensors[network.num_parameters :]
    ends = accumulate(of_buffers)
    buffers = {n: (end - size, size) for n, size, end in zip(names, of_buffers, ends, strict=True)}
    number, members, order = library.layouts()[type(network)]
    fields = array("d", [number])
    for name, kind, choices in members:
        if kind == "option":
            fields.extend(_numbers(name, getattr(network, name), choices))
        elif kind == "buffer":
            fields.extend(buffers[name])  # its place among the kept statistics, its size
    optional = [name in network.optional for name in (*network.tensors, *networks.BATCH)]
    return Description(fields, sum(of_buffers), [*sizes, channels, channels], optional, order)


def _numbers(name: str, value: object, choices: dict[str, int]) -> list[float]:
    """Return an option as numbers, a tuple after its length."""
    if isinstance(value, tuple):
        return [len(value), *(n for v in value for n in _numbers(name, v, choices))]
    if choices and value not in choices:
        raise RuntimeError(f"the kernels know no {name}={value!r}, only {', '.join(choices)}")
    return [choices[value] if choices else value]


def _call(
    name: str, x: Tensor, num_groups: int, tensors: Tensors, fields: array = NO_FIELDS
) -> None:
    """Call a function of the library with a description of x, contiguous or channels last."""
    statistics, stored_as = DTYPES[x.dtype]
    n, c = x.shape[:2]
    length = x.numel() // (n * c)
    # A single position has both layouts; the kernels for channels last are faster.
    layout = stored_as, length == 1 or not x.is_contiguous()
    threads = torch.get_num_threads(), parallel_for() or 0
    network = len(fields), fields.buffer_info()[0]
    addresses = [0 if t is None else _address(t) for t in tensors]
    call = array("q", (n, c, length, num_groups, *layout, *threads, *network, *addresses))
    variant = "double" if statistics is torch.float64 else "float", instruction_set()
    error = library.functions(*variant)[name](call.buffer_info()[0])
    if not error:
        return
    shape = tuple(x.shape)
    if error == errno.ENOMEM:
        raise MemoryError(f"not enough memory for the statistics of a {shape} tensor")
    if error == errno.EINVAL:
        raise RuntimeError(
            f"{name} of a {shape} tensor: the kernels cannot read the options of its network; "
            "compare members() in ops/cpu/networks/ with ops/networks.py"
        )
    raise RuntimeError(f"{name} of a {shape} tensor: torch's threads ended with error {error}")


def _address(tensor: Tensor) -> int:
    """Return where a tensor's values are; RuntimeError if it has no memory."""
    # The address of a view of freed memory, as of FSDP's flat parameters, is the view's offset.
    is_freed = tensor.storage_offset() and not tensor.untyped_storage().nbytes()
    address = 0 if is_freed else tensor.data_ptr()
    if not address:
        raise RuntimeError(
            f"got a {tuple(tensor.shape)} tensor of type {type(tensor).__name__} that has no "
            "memory for kernels in C++; run the layer under use_backend('reference')"
        )
    return address
