"""Rebuild numpy's arrays from pickles, without running numpy's own unpickling.

numpy trusts the state of a pickled dtype: a dtype with fields of objects, and flags that deny
them, makes numpy follow an array's bytes as pointers. So each name of numpy in a file stands for a
function of this module. A dtype and an array become plain descriptions; :func:`rebuild` replaces
these by arrays, whose sizes are checked and whose dtype is one of a few.
"""

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import missing

#: Names of numbers and of text of a fixed length: dtypes without objects, fields or shape.
PLAIN_DTYPE = re.compile(r"b1|[iuf][1248]|f1[26]|c(8|16|24|32)|[SU][1-9]\d*")
#: Values that :func:`rebuild` leaves as they are.
ATOMS = (int, float, complex, str, bytes, type(None))


def refused(what: str) -> pickle.UnpicklingError:
    """Return the error for anything but data; the message begins like torch's."""
    return pickle.UnpicklingError(f"Unsupported class {what}")


def check(condition: object, problem: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(problem)


def _numpy() -> ModuleType:
    try:
        import numpy
    except ImportError as error:
        raise missing("a checkpoint with arrays", error) from error
    return numpy


class Dtype:
    """A pickled dtype, such as 'f4', and its byte order."""

    # Keys of dicts are not rebuilt.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str, *flags: object) -> None:
        if not isinstance(name, str) or not PLAIN_DTYPE.fullmatch(name):
            raise refused(f"numpy.dtype({name!r:.30})".replace(" ", ""))
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        plain = subarray is None and names is None and fields is None
        check(plain and order in ("<", ">", "=", "|"), f"a dtype {self.name!r} with parts")
        self.order = order

    def build(self) -> Any:
        return _numpy().dtype(self.name).newbyteorder(self.order)


class Array:
    """A pickled array; a file first names it, and later gives its shape, dtype and bytes."""

    __hash__ = None  # type: ignore[assignment]
    value = None

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")

    def build(self) -> Any:
        check(self.value is not None, "an array without contents")
        return self.value


def _array(
    data: bytes | bytearray | str,
    dtype: Dtype,
    shape: tuple[int, ...],
    order: str,
    axes: tuple[int, ...] | None = None,
) -> Any:
    """Return a new array, in the machine's byte order, from the bytes that numpy pickles."""
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    # Only an array of objects has a list of them in place of bytes.
    known = isinstance(data, bytes | bytearray) and isinstance(dtype, Dtype)
    check(known, "an array without bytes or a dtype")
    check(axes is None or isinstance(axes, tuple), "an array whose axes are no tuple")
    sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    check(sizes, "an array whose shape is no tuple of sizes")
    plain = dtype.build()
    fits = math.prod(shape) * plain.itemsize == len(data)
    check(fits, f"an array of {len(data)} bytes that do not fit its shape")
    array = _numpy().frombuffer(data, plain).reshape(shape, order="C" if order == "K" else order)
    array = array if axes is None else array.transpose(axes)
    return array.astype(plain.newbyteorder("="))  # a copy, which can be written to


def _reconstruct(*new: object) -> Array:
    """Replace numpy's function that makes an empty array; the array gets its contents later."""
    return Array()


def _scalar(dtype: Dtype, data: bytes | str) -> Any:
    return _array(data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that an older protocol wrote as text in latin1."""
    check(encoding == "latin1", "bytes that are text in another encoding than latin1")
    return str.encode(text, "latin1")


def _no_bytes() -> bytes:
    """Return empty bytes, which older protocols write as a call; a size as argument is refused."""
    return b""


#: Name in a pickle -> the function that replaces it, and must bear any arguments.
FUNCTIONS: dict[str, Callable] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    FUNCTIONS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    FUNCTIONS[f"{_core}.multiarray.scalar"] = _scalar
    FUNCTIONS[f"{_core}.numeric._frombuffer"] = _array


class DataUnpickler(pickle._Unpickler):
    """Unpickles numbers, strings, containers and descriptions of arrays; refuses all else.

    It is Python's own unpickler written in Python. The unpickler written in C sets attributes of
    any object, a class included, and allocates a memo of the size that a file gives.
    """

    dispatch: ClassVar[dict[int, Callable]] = pickle._Unpickler.dispatch.copy()
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Callable:
        function = FUNCTIONS.get(f"{module}.{name}")
        if function is None:
            raise refused(f"{module}.{name}")
        return function

    def get_extension(self, code: int) -> None:
        # Python's cache may have an object under this number from another unpickler.
        raise refused(f"copyreg.extension({code})")

    def load_build(self) -> None:
        """Give a description its state, and an OrderedDict torch's versions of modules."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Array | Dtype):
            target.__setstate__(state)
        elif type(target) is OrderedDict:
            # As __array_interface__, an attribute would be an address that numpy reads from.
            vars(target).update({k: v for k, v in state.items() if k == "_metadata"})
        else:
            raise refused(type(target).__name__)

    dispatch[pickle.BUILD[0]] = load_build


def rebuild(contents: Any, seen: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """Return a file's contents with arrays in place of descriptions; UnpicklingError if unsound.

    Containers are changed in place; their keys stay. ``seen`` maps the id of a visited value to the
    value and its result.
    """
    if isinstance(contents, ATOMS) or callable(contents):
        return contents
    seen = {} if seen is None else seen
    if id(contents) in seen:
        return seen[id(contents)][1]
    result = contents.build() if isinstance(contents, Array | Dtype) else contents
    seen[id(contents)] = contents, result  # before its items, which may contain it
    if type(contents) is tuple:
        result = tuple(rebuild(item, seen) for item in contents)
        seen[id(contents)] = contents, result
    elif isinstance(contents, list):
        contents[:] = [rebuild(item, seen) for item in contents]
    elif isinstance(contents, dict):
        rebuild([*contents], seen)
        for key, item in contents.items():
            contents[key] = rebuild(item, seen)  # not update, by which a Counter counts
    elif isinstance(contents, set):
        rebuild([*contents], seen)
    elif isinstance(contents, Tensor):
        check_tensor(contents)
    if not isinstance(contents, Array | Dtype):
        attributes = getattr(contents, "__dict__", {})
        for name in [name for name in attributes if name.startswith("__")]:
            del attributes[name]  # such as __array_interface__, see load_build
        if "_metadata" in attributes and not _are_versions(attributes["_metadata"]):
            del attributes["_metadata"]
        attributes.update([(name, rebuild(item, seen)) for name, item in attributes.items()])
    return result


def _are_versions(metadata: Any) -> bool:
    """Return whether a state dict's ``_metadata`` has a version for modules, as torch expects."""
    return isinstance(metadata, dict) and all(
        isinstance(name, str)
        and isinstance(of, dict)
        and isinstance(of.get("version", 1), int | None)
        for name, of in metadata.items()
    )


def check_tensor(tensor: Tensor) -> None:
    """Raise UnpicklingError if a tensor is larger than its storage; torch checks only some."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or not tensor.numel():
        return
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    check(end <= tensor.untyped_storage().nbytes(), "a tensor that is larger than its storage")
