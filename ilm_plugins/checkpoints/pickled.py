"""Unpickle data alone: numbers, text, containers, arrays of numpy and MMEngine's logs.

numpy trusts the state of a pickled dtype: a dtype with fields of objects, and flags that deny
them, makes numpy follow an array's bytes as pointers. So each name of numpy in a file stands for a
function of this module, which checks the name of the dtype and the number of bytes.
"""

import math
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..errors import missing

try:
    import numpy
    from numpy import ndarray
except ImportError:  # only checkpoints with arrays need it
    numpy, ndarray = None, object  # type: ignore[assignment, misc]

#: Names of numbers and of text of a fixed length: dtypes without objects, fields or shape.
PLAIN_DTYPE = re.compile(r"b1|[iuf][1248]|f1[26]|c(8|16|24|32)|[SU][1-9]\d*")
#: The module of MMEngine's logs.
LOGS = "mmengine.logging.history_buffer"


def refused(what: str) -> pickle.UnpicklingError:
    """Return the error for anything but data; the message begins like torch's."""
    return pickle.UnpicklingError(f"Unsupported class {what}")


def check(condition: object, problem: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(problem)


class Dtype:
    """A dtype in a file, such as "f4", and its byte order."""

    def __init__(self, name: str, *flags: object) -> None:
        if not isinstance(name, str) or not PLAIN_DTYPE.fullmatch(name):
            raise refused(f"numpy.dtype({name!r:.30})".replace(" ", ""))
        self.name, self.order = name, cast(Any, "=")

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        is_plain = subarray is None and names is None and fields is None
        check(is_plain and order in ("<", ">", "=", "|"), f"a dtype {self.name!r} with parts")
        self.order = order


class Array(ndarray):
    """An array in a file, which first makes it without contents; elsewhere pickled as numpy's."""

    is_whole = False

    def __new__(cls, *given: object) -> "Array":
        check(not given, "an array that is not pickled as numpy does")
        if numpy is None:
            raise missing("a checkpoint with arrays", "numpy")
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        # Once: a tensor may share the array's memory by then, which numpy would free.
        check(not self.is_whole, "an array that gets its contents twice")
        *_, shape, dtype, fortran, data = state
        checked = _array(data, dtype, shape, "F" if fortran else "C")
        super().__setstate__(checked.__reduce__()[2])
        self.is_whole = True

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(numpy.ndarray).__reduce_ex__(protocol)


def _array(
    data: bytes | bytearray | str,
    dtype: Dtype,
    shape: tuple[int, ...],
    order: Any,
    axes: tuple[int, ...] | None = None,
) -> Any:
    """Return a new array, in the machine's byte order, from the bytes that numpy pickles."""
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    # Only an array of objects has a list of them in place of bytes.
    is_plain = isinstance(data, bytes | bytearray) and isinstance(dtype, Dtype)
    check(is_plain, "an array without bytes or a dtype")
    check(axes is None or isinstance(axes, tuple), "an array whose axes are no tuple")
    are_sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    check(are_sizes, "an array whose shape is no tuple of sizes")
    if numpy is None:
        raise missing("a checkpoint with arrays", "numpy")
    of_numpy = numpy.dtype(dtype.name).newbyteorder(dtype.order)
    is_whole = math.prod(shape) * of_numpy.itemsize == len(data)
    check(is_whole, f"an array of {len(data)} bytes that do not fit its shape")
    array = numpy.frombuffer(data, of_numpy).reshape(shape, order="C" if order == "K" else order)
    array = array if axes is None else array.transpose(axes)
    return array.astype(of_numpy.newbyteorder("="))  # a copy, which can be written to


def _reconstruct(*new: object) -> Array:
    """Replace numpy's function that makes an empty array; the array gets its contents later."""
    return Array()


def _scalar(dtype: Dtype, data: bytes | str) -> Any:
    return _array(data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that protocols before 3 write as text in latin1."""
    check(encoding == "latin1", "bytes that are text in another encoding than latin1")
    return str.encode(text, "latin1")


def _no_bytes() -> bytes:
    """Return empty bytes, which protocols before 3 write as a call; a size is refused."""
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
    """Unpickles numbers, text, containers and arrays; refuses all else.

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
        """Give an array or a dtype its state, and an OrderedDict torch's versions of modules."""
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


class HistoryBuffer:
    """MMEngine's log of values; it becomes one of MMEngine's class where MMEngine is imported."""

    __module__ = LOGS

    def __setstate__(self, state: dict[str, Any]) -> None:
        histories = {name: state[name] for name in ("_log_history", "_count_history")}
        are_whole = all(isinstance(h, Array) and h.is_whole for h in histories.values())
        check(are_whole and type(state["max_length"]) is int, "a log without arrays and a length")
        # Functions in the state are left out: MMEngine would give them to all logs.
        state = {"max_length": state["max_length"]}
        state |= {name: history.view(ndarray) for name, history in histories.items()}
        if LOGS in sys.modules:
            self.__class__ = sys.modules[LOGS].HistoryBuffer
            self.__setstate__(state)
        else:
            vars(self).update(state)


def _statistic(owner: type, name: str) -> None:
    """Replace a method that a pickled log names; getattr itself could reach any code."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError("Unsupported global builtins.getattr")


class LeftOut:
    """Stands for a class or function that is not data: a call of it returns an empty dict.

    torch fills no other class with the items and attributes of an object.
    """

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


#: (function, name in a pickle): what torch.load accepts beside torch's own names.
SAFE: list[tuple[Callable, str]] = [(function, name) for name, function in FUNCTIONS.items()]
SAFE += [(HistoryBuffer, f"{LOGS}.HistoryBuffer"), (_statistic, "builtins.getattr")]


def accept_data() -> None:
    """Have torch.load accept arrays and MMEngine's logs, also in place of numpy's own functions."""
    names = {name for _, name in SAFE}
    others = [g for g in torch.serialization.get_safe_globals() if _name_of(g) not in names]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *SAFE])


@contextmanager
def accepting_data() -> Iterator[None]:
    """Call :func:`accept_data` for a block; what was accepted before is accepted after it."""
    before = torch.serialization.get_safe_globals()
    accept_data()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _name_of(accepted: Any) -> str:
    """Return the name in a pickle that an entry of torch's list accepts."""
    if isinstance(accepted, tuple):
        return accepted[1]
    return f"{accepted.__module__}.{accepted.__qualname__}"


def check_contents(contents: Any) -> None:
    """Raise UnpicklingError for unsound arrays and tensors; remove attributes.

    An attribute such as __array_interface__ has an address that numpy would read from, and one of a
    dict could hide its method.
    """
    waiting, seen = [contents], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen or callable(value):
            continue
        seen.add(id(value))
        if isinstance(value, Array):
            check(value.is_whole, "an array without contents")
            continue
        attributes = getattr(value, "__dict__", {})
        for name in [*attributes]:
            is_harmless = type(value) is not OrderedDict and not name.startswith("__")
            if name != "_metadata" and not is_harmless:
                del attributes[name]
        waiting += attributes.values()
        if isinstance(value, Tensor):
            check_tensor(value)
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value


def check_tensor(tensor: Tensor) -> None:
    """Raise UnpicklingError if a tensor is larger than its storage; torch checks only some."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or not tensor.numel():
        return
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    check(end <= tensor.untyped_storage().nbytes(), "a tensor that is larger than its storage")
