"""The CPU backend of ``adaptive_norm``: kernels in C, compiled when the package is installed.

The library depends on neither torch nor Python: ctypes passes the addresses of tensors, and of the
function by which torch runs loops in its threads. So one library works with every version of torch
and Python.
"""

import ctypes
import errno
import functools
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from .. import networks
from ..layouts import dense, laid_out
from ..networks import Network, Tensors

LIBRARY = Path(__file__).with_name("kernels.so")

#: Kinds of networks, and names in their descriptions, by their numbers in kernels.h.
KINDS = (networks.Autoencoder, networks.Exemplar, networks.Switch, networks.Attentive)
NAMES = (networks.ACTIVATIONS, networks.COMBINE, ("conv", "no_conv", "mlp"), ("omega", "beta"))
NUMBERS = {name: number for names in NAMES for number, name in enumerate(names)}
MAX_NORMALIZERS, MAX_TENSORS = 4, 9

#: dtype of x -> dtype of its statistics, and x's number in kernels.h.
DTYPES = {
    torch.float32: (torch.float32, 0),
    torch.float64: (torch.float64, 0),
    torch.bfloat16: (torch.float32, 1),
    torch.float16: (torch.float32, 2),
}


class _Map(ctypes.Structure):
    """kernels.h's Map, which describes x."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("instances", "channels", "length", "groups")),
        *((name, ctypes.c_int32) for name in ("stored_as", "channels_last", "threads")),
        ("parallel_for", ctypes.c_void_p),
    )


class _Network(ctypes.Structure):
    """kernels.h's Network: the fields of all descriptions in networks.py, tensors' addresses."""

    __slots__ = ()  # so that a field which the struct lacks is an AttributeError
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("eps", ctypes.c_double),
        ("tensors", ctypes.c_void_p * MAX_TENSORS),
        ("hidden", ctypes.c_int64),
        ("num_groups", ctypes.c_int64),
        ("num_key_groups", ctypes.c_int64),
        ("mean_drives", ctypes.c_int32),
        ("activations", ctypes.c_int32 * 2),
        ("combine", ctypes.c_int32),
        ("normalizers", ctypes.c_int64 * MAX_NORMALIZERS),
        ("num_normalizers", ctypes.c_int32),
        ("ratio_net", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("shared_affine", ctypes.c_int32),
        ("reduction", ctypes.c_int64),
        ("num_affine", ctypes.c_int64),
        ("feature_eps", ctypes.c_double),
    )


#: The library's functions, and the number of their arguments after the map's description.
FUNCTIONS = {"moments": 3, "affine": 5, "sums": 5, "dx": 7, "forward": 5, "backward": 7}


class _Table(ctypes.Structure):
    """kernels.h's Kernels: a hash of the interface, and the functions' addresses."""

    _fields_ = (("interface", ctypes.c_uint64), *((name, ctypes.c_void_p) for name in FUNCTIONS))


@functools.cache
def load_problem() -> str | None:
    """Return why the C kernels cannot be loaded, with advice; None if they can."""
    if not LIBRARY.exists() and Path(__file__).parents[3].joinpath("setup.py").exists():
        return (
            "this checkout has no compiled C kernels; install a compiler, such as gcc, and run "
            "'pip install -e .' in the checkout, or run from another folder than the checkout"
        )
    if not LIBRARY.exists():
        return (
            "the package was installed without a C compiler; install a compiler, such as gcc, and "
            "the package again, by pip install --force-reinstall --no-deps --no-cache-dir"
        )
    try:
        _library()
    except OSError as error:
        return f"the C kernels cannot be loaded ({error}); install the package again, here"
    return None


def is_built() -> bool:
    return load_problem() is None


@functools.cache
def instruction_set() -> str:
    """Return the instruction set that torch uses here: "avx512", "avx2" or "default"."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in ("avx512", "avx2") else "default"


@functools.cache
def _functions(dtype: torch.dtype, instructions: str) -> dict[str, Callable[..., int]]:
    """Return name -> C function; RuntimeError if the library has another interface."""
    kind = "double" if dtype == torch.float64 else "float"
    table = _Table.in_dll(_library(), f"ilm_plugins_{kind}_{instructions}")
    if table.interface != _interface():
        raise RuntimeError(
            f"{LIBRARY} was compiled from other sources; install ilm_plugins again, in a checkout "
            "by make install"
        )
    return {
        name: ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * (count + 1))(getattr(table, name))
        for name, count in FUNCTIONS.items()
    }


def _interface() -> int:
    header = Path(__file__).with_name("kernels.h").read_bytes()
    return int(sha256(header).hexdigest()[:16], 16)


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
    """Return whether the kernels are compiled and take x's device and dtype."""
    return x.is_cpu and x.dtype in DTYPES and is_built()


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    x = dense(x)
    mean, var = _pair(x, num_groups)
    _call("moments", x, num_groups, x, mean, var)
    return mean, var


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x = dense(x)
    y = torch.empty_like(x)
    _call("affine", x, mean.shape[1], x, mean, scale.contiguous(), shift.contiguous(), y)
    return y


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    x = dense(x)
    products, total = _pair(x, x.shape[1])
    _call("sums", x, mean.shape[1], laid_out(dy, x), x, mean, products, total)
    return products, total


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    x = dense(x)
    result = torch.empty_like(x)
    values = (t.contiguous() for t in (scale, slope, offset))
    _call("dx", x, mean.shape[1], laid_out(dy, x), x, mean, *values, result)
    return result


def runs(network: Network, x: Tensor, num_groups: int) -> bool:
    return True


def forward(
    x: Tensor, num_groups: int, network: Network, tensors: Tensors
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    described, tensors = _describe(x, num_groups, network, tensors)
    y = torch.empty_like(x)
    mean, var = _pair(x, num_groups)
    _call("forward", x, num_groups, described, x, y, mean, var)
    return y, mean, var


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Network,
    tensors: Tensors,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    x = dense(x)
    dy = laid_out(dy, x)
    described, tensors = _describe(x, mean.shape[1], network, tensors)
    dx, *gradients = (
        torch.empty_like(t) if need else None for t, need in zip((x, *tensors), needs, strict=True)
    )
    pointers = _addresses(gradients)
    _call("backward", x, mean.shape[1], described, dy, x, mean, var, dx, pointers)
    return dx, *gradients


# ---- calls of the library


def _pair(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    size, dtype = (x.shape[0], columns), DTYPES[x.dtype][0]
    return x.new_empty(size, dtype=dtype), x.new_empty(size, dtype=dtype)


def _describe(
    x: Tensor, num_groups: int, network: Network, tensors: Tensors
) -> tuple[_Network, Tensors]:
    """Return the network as a C struct, and its tensors as C reads them: keep these alive."""
    dtype = DTYPES[x.dtype][0]
    template, sizes = _template(network, x.shape[1], num_groups)
    for t, size in zip(tensors, sizes, strict=True):
        if t is not None and (
            (t.numel(), t.dtype) != (size, dtype)
            or not (t.is_cpu and t.is_contiguous())
            or t.is_neg()
        ):
            networks.check_tensors(x, network, tensors)
            tensors = [t if t is None else t.resolve_neg().to(dtype).contiguous() for t in tensors]
            break
    described = _Network.from_buffer_copy(template)  # threads share the template
    described.tensors = _addresses(tensors)
    return described, tensors


def _addresses(tensors: Tensors) -> ctypes.Array:
    return (ctypes.c_void_p * MAX_TENSORS)(*map(_pointer, tensors))


@functools.lru_cache(maxsize=None, typed=True)  # named tuples of two classes may be equal
def _template(network: Network, channels: int, num_groups: int) -> tuple[_Network, tuple[int, ...]]:
    """Return the network as a C struct without tensors, to be copied, and its tensors' sizes."""
    networks.check_groups(network, channels, num_groups)
    numbers = {**NUMBERS, "IN": channels, "LN": 1, "BN": 0, "GN": network.num_groups}

    def number(value):
        if isinstance(value, tuple):
            return tuple(map(number, value))
        return numbers[value] if isinstance(value, str) else value

    struct = _Network(kind=KINDS.index(type(network)))
    for name, value in network._asdict().items():
        setattr(struct, name, number(value))
    struct.num_normalizers = len(getattr(network, "normalizers", ()))
    return struct, network.sizes(channels)


def _call(name: str, x: Tensor, num_groups: int, *arguments) -> None:
    """Call a function of the library with a description of x, and the arguments' addresses.

    x must be contiguous or channels last. Errors: RuntimeError of torch's threads, MemoryError.
    """
    statistics, stored_as = DTYPES[x.dtype]
    n, c = x.shape[:2]
    length = x.numel() // (n * c)
    # A single position has both layouts; the kernels for channels last are faster.
    channels_last = length == 1 or not x.is_contiguous()
    described = _Map(
        n, c, length, num_groups, stored_as, channels_last, torch.get_num_threads(), parallel_for()
    )
    function = _functions(statistics, instruction_set())[name]
    error = function(ctypes.addressof(described), *[_pointer(argument) for argument in arguments])
    if error == errno.ENOMEM:
        raise MemoryError(f"not enough memory for the statistics of a {tuple(x.shape)} tensor")
    if error:
        raise RuntimeError(
            f"{name} of a {tuple(x.shape)} tensor: torch's threads ended with error {error}"
        )


def _pointer(argument) -> int | None:
    """Return the address of a tensor or a C object, or None; RuntimeError without memory."""
    if argument is None:
        return None
    if not isinstance(argument, Tensor):
        return ctypes.addressof(argument)
    address = argument.data_ptr()
    if not address:
        raise RuntimeError(
            f"got a {tuple(argument.shape)} tensor of type {type(argument).__name__} that has no "
            "memory for kernels in C; run the layer under use_backend('reference')"
        )
    return address
