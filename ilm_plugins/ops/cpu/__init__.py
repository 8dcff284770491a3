"""The CPU backend of ``adaptive_norm``: kernels in C, compiled when the package is installed.

The library depends on neither torch nor Python: ctypes passes the addresses of tensors, and of the
function by which torch runs loops in its threads. So one library works with every version of torch
and Python.
"""

import ctypes
import errno
import functools
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import networks
from ..networks import Network, Tensors
from .sources import hash_sources

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "kernels.so"

#: Kinds of networks, and names in their descriptions, by their numbers in kernels.h.
KINDS = networks.Network.__args__
NAMES = (
    ("tanh", "sigmoid", "relu", "leaky_relu", "relu6", "identity"),
    ("a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B"),
    ("conv", "no_conv", "mlp"),
    ("omega", "beta"),
    ("IN", "LN", "BN", "GN"),
)
NUMBERS = {name: number for names in NAMES for number, name in enumerate(names)}
NO_FIELDS = array("d")

#: dtype of x -> dtype of its statistics, and x's number in kernels.h.
DTYPES = {
    torch.float32: (torch.float32, 0),
    torch.float64: (torch.float64, 0),
    torch.bfloat16: (torch.float32, 1),
    torch.float16: (torch.float32, 2),
}

#: The library's functions.
FUNCTIONS = ("moments", "affine", "sums", "dx", "forward", "backward")


@functools.cache
def load_problem() -> str | None:
    """Return why the C kernels cannot be loaded, with advice; None if they can."""
    if not LIBRARY.exists():
        problem, otherwise = "the package was installed without a C compiler", ""
        if _is_checkout():
            problem = "this checkout has no compiled C kernels"
            otherwise = ", or run from another folder"
        return f"{problem}; install a compiler, such as gcc, and {_how_to_compile()}{otherwise}"
    try:
        _library()
    except OSError as error:
        return f"the C kernels cannot be loaded ({error}); install the package again, here"


def is_built() -> bool:
    return load_problem() is None


@functools.cache
def instruction_set() -> str:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in ("avx512", "avx2") else "default"


@functools.cache
def _functions(dtype: torch.dtype, instructions: str) -> dict[str, Callable[..., int]]:
    """Return name -> C function; RuntimeError if the library was compiled from other sources."""
    kind = "double" if dtype == torch.float64 else "float"
    kernels = ctypes.c_uint64 * (1 + len(FUNCTIONS))  # as in kernels.h
    try:
        sources, *addresses = kernels.in_dll(_library(), f"ilm_plugins_{kind}_{instructions}")
    except ValueError:  # the library has no such table
        sources, addresses = None, []
    if sources != hash_sources(FOLDER):
        raise RuntimeError(
            f"{LIBRARY} was compiled from other sources than {FOLDER} has; {_how_to_compile()}"
        )
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    return {name: function(at) for name, at in zip(FUNCTIONS, addresses, strict=True)}


def check_sources() -> None:
    """Raise RuntimeError if the library was compiled from other sources than are here."""
    _functions(torch.float32, instruction_set())


def _is_checkout() -> bool:
    return Path(__file__).parents[3].joinpath("setup.py").exists()


def _how_to_compile() -> str:
    if _is_checkout():
        return "run 'pip install -e .' in the checkout"
    return "install the package again, by pip install --force-reinstall --no-deps --no-cache-dir"


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


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
    fields, kept, inputs = _describe(x, num_groups, network, (*tensors, *running))
    y, size = torch.empty_like(x), 2 * x.shape[0] * num_groups + kept
    statistics = x.new_empty(size, dtype=DTYPES[x.dtype][0])
    moved = inputs[len(tensors) :]
    _call("forward", x, num_groups, (x, y, statistics, *inputs, *moved, *[None] * 4), fields)
    networks.write_back(moved, running)
    return y, statistics


def backward(dy, x, num_groups, statistics, network: Network, tensors: Tensors, needs):
    parameters, buffers = tensors[: network.num_parameters], tensors[network.num_parameters :]
    fields, _, parameters = _describe(x, num_groups, network, parameters)
    inputs = *parameters, *(t if t is None else statistics for t in buffers)
    gradients = [
        torch.empty_like(t) if need else None for t, need in zip((x, *inputs), needs, strict=True)
    ]
    arguments = dy, x, statistics, gradients[0], *inputs, *gradients[1:]
    _call("backward", x, num_groups, arguments, fields)
    return gradients


# ---- calls of the library


def _pair(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    size, dtype = (x.shape[0], columns), DTYPES[x.dtype][0]
    return x.new_empty(size, dtype=dtype), x.new_empty(size, dtype=dtype)


def _describe(
    x: Tensor, num_groups: int, network: Network, tensors: Tensors
) -> tuple[array, int, Tensors]:
    """Return the network's fields, the number of values in its buffers, and tensors for C."""
    dtype = DTYPES[x.dtype][0]
    fields, kept, sizes = _fields(network, x.shape[1], num_groups)
    for t, size in zip(tensors, sizes, strict=False):
        if t is not None and (
            t.numel() != size
            or t.dtype is not dtype
            or not (t.is_cpu and t.is_contiguous())
            or t.is_neg()
        ):
            networks.check_tensors(x, sizes, tensors)
            tensors = [t if t is None else t.resolve_neg().to(dtype).contiguous() for t in tensors]
            break
    return fields, kept, tensors  # to be kept alive


@functools.lru_cache(maxsize=4096, typed=True)  # named tuples of two classes may be equal
def _fields(network: Network, channels: int, num_groups: int) -> tuple[array, int, list[int]]:
    """Return kind and fields for kernels.h, the buffers' total size and each tensor's size."""
    networks.check_groups(network, channels, num_groups)
    fields = array("d", [KINDS.index(type(network))])
    for value in network:
        if isinstance(value, tuple):
            fields.append(len(value))
        values = value if isinstance(value, tuple) else (value,)
        fields.extend(NUMBERS[v] if isinstance(v, str) else v for v in values)
    sizes = network.sizes(channels)
    return fields, sum(sizes[network.num_parameters :]), [*sizes, channels, channels]


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
    addresses = [0 if t is None else t.data_ptr() or _refuse(t) for t in tensors]
    call = array("q", (n, c, length, num_groups, *layout, *threads, *network, *addresses))
    error = _functions(statistics, instruction_set())[name](call.buffer_info()[0])
    if error == errno.ENOMEM:
        raise MemoryError(f"not enough memory for the statistics of a {tuple(x.shape)} tensor")
    if error:
        raise RuntimeError(
            f"{name} of a {tuple(x.shape)} tensor: torch's threads ended with error {error}"
        )


def _refuse(tensor: Tensor) -> int:
    raise RuntimeError(
        f"got a {tuple(tensor.shape)} tensor of type {type(tensor).__name__} that has no memory "
        "for kernels in C; run the layer under use_backend('reference')"
    )
