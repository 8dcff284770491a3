"""Check the sizes in a pickle against its file before it is unpickled.

A few bytes of a pickle can make the unpickler allocate gigabytes: by the index of a memo, the
length of a string, the number of elements of a storage, or many copies of one string.
"""

import io
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch

#: The contents may take LEAST bytes and this many times the size of their file. Decompressed
#: records, expanded tensors, and strings (once for each reference) count, each by itself.
TIMES = 100
#: Number of bytes that the contents of any file may take; see TIMES.
LEAST = 2**26
#: Maximum depth of containers within containers.
LEVELS = 100

#: The first number in a file of ``torch.save`` that is not a zip archive.
_MAGIC = 0x1950A86A20F9469CFC6C
#: Functions of torch that build a tensor; the first argument is the storage, the third the shape.
_SHAPED = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_qtensor",
}
#: Other functions and classes of torch that a file may call, because they allocate no memory.
_OF_TORCH = {
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage",
}
#: Endings of classes that iterate over their arguments; for an expanded tensor that takes forever.
_ITERATING = (".OrderedDict", ".Counter", ".Size", ".set", ".frozenset")
#: Storage classes -> bytes per element; 1 for all others.
_ELEMENT_SIZES = {
    "ComplexDoubleStorage": 16,
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
}


class SizeError(pickle.UnpicklingError):
    """The contents of a pickle need too much memory, or are nested too deeply."""


def check_pickle(path: Path) -> None:
    """Raise an error unless the contents of a pickle are small enough for its file.

    Raises:
        SizeError: the contents would take much more memory than the file.
        UnpicklingError, EOFError, ValueError: the file is not a valid pickle.
    """
    _check_stream(path, 1)


def check_torch(path: Path) -> None:
    """Raise an error unless the contents of a file of ``torch.save`` are small enough for it.

    Raises:
        SizeError: the contents would take much more memory than the file.
        UnpicklingError, EOFError, ValueError: the file is invalid, or calls a function that is not
            allowed.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        # Older releases write a magic number, a version, the platform, the contents and a list of
        # storages.
        _check_stream(path, 5, _MAGIC)
        return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        # torch ignores case in names of records.
        records = {info.filename.lower(): info for info in archive.infolist()}
        if len(records) < len(archive.infolist()):
            raise SizeError("two records have the same name")
        _limit("its records", sum(info.file_size for info in records.values()), size)
        folder = archive.namelist()[0].partition("/")[0].lower()
        contents = archive.read(records[f"{folder}/data.pkl"])
    before = f"{folder}/data/"
    storages = {name.removeprefix(before): info.file_size for name, info in records.items()}
    _Scan(io.BytesIO(contents), size, storages).run()


def is_pickle(path: Path) -> bool:
    """Return whether a file begins with a pickle that is not of ``torch.save``."""
    try:
        return _check_stream(path, 1) != _MAGIC
    except Exception:  # a file may hold anything
        return False


def _check_stream(path: Path, pickles: int, first: int | None = None) -> Any:
    """Check the first pickles of a file, and return the last one's contents if they are a constant.

    Args:
        path: the file.
        pickles: number of pickles to check.
        first: the number that the first pickle must contain; None for any contents.

    Raises:
        EOFError: the file is empty.
        UnpicklingError: the first pickle has other contents; see also :meth:`_Scan.run`.
    """
    if not path.stat().st_size:
        raise EOFError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        scan = _Scan(stream, len(stream))
        for _ in range(pickles):
            result = scan.run() if stream.tell() < len(stream) else first
            if first not in (None, result):
                # It may be a tar archive, from which some releases of torch run code.
                raise pickle.UnpicklingError("it is not a file of torch.save")
            first = None
    return result


def _limit(what: str, found: int, size: int) -> None:
    """Raise SizeError if ``found`` bytes are too many for a file of ``size`` bytes."""
    if found > TIMES * size + LEAST:
        raise SizeError(f"{what} take {found:,} bytes, the file {size:,}")


# Classes that stand for objects on the unpickler's stack; numbers and strings stand for themselves.


@dataclass(eq=False, slots=True)
class _Global:
    """A class or function, by its module and name joined with a dot."""

    name: str


@dataclass(eq=False, slots=True)
class _Storage:
    """A storage: the size in bytes of one element, and of all elements."""

    element: int
    size: int


class _Tensor:
    """A tensor or a parameter."""


@dataclass(eq=False, slots=True)
class _Container:
    """A list, dict or set; ``tensors``: whether it directly contains a tensor or a storage."""

    tensors: bool = False


@dataclass(eq=False, slots=True)
class _Made:
    """The result of a call; ``weight`` and ``levels`` (see :class:`_Tuple`) are its arguments'."""

    weight: int
    levels: int
    tensors: bool = False


@dataclass(eq=False, slots=True)
class _Tuple:
    """A tuple or frozenset.

    Attributes:
        items: its items.
        weight: number of characters and tuples in it, counted once for each reference.
        levels: depth of tuples within tuples.
    """

    items: list[Any]
    weight: int = field(init=False)
    levels: int = field(init=False)

    def __post_init__(self) -> None:
        self.weight = 1 + sum(map(_weight, self.items))
        self.levels = 1 + max((getattr(item, "levels", 0) for item in self.items), default=0)
        if self.levels > LEVELS:
            raise SizeError(f"more than {LEVELS} levels of tuples")

    @property
    def tensors(self) -> bool:
        return _have_tensors(self.items)


def _weight(value: Any) -> int:
    """Return the length of a string or of bytes, the weight of a tuple, or else 0."""
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    return getattr(value, "weight", 0)


def _have_tensors(items: Iterable[Any]) -> bool:
    """Return whether one of the items is a tensor or a storage."""
    return any(isinstance(item, _Tensor | _Storage) for item in items)


class _Scan:
    """Follows the operations of a pickle without running them, to check what they would allocate.

    A method in capitals follows the operation of :mod:`pickletools` with its name, and takes the
    operation's argument. An operation without a method pushes its argument on the stack.

    Args:
        stream: the pickle; reading beyond its end must not allocate memory.
        size: size of the file in bytes.
        storages: key of a storage -> its bytes in the file; None if storages follow the pickle.
    """

    def __init__(self, stream: Any, size: int, storages: Mapping[str, int] | None = None) -> None:
        self.stream, self.size, self.storages = stream, size, storages
        self.referred = self.expanded = 0
        self.following: dict[Any, int] = {}

    def run(self) -> Any:
        """Check one pickle of the stream, and return its contents if they are one constant.

        Raises:
            SizeError: something in it is too large.
            UnpicklingError, EOFError, ValueError: the pickle is invalid, or calls a function that
                is not allowed.
        """
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.count = 0
        read, stream = self.stream.read, self.stream
        try:
            while code := read(1):
                self.count += 1
                reader, follow = _OPERATIONS[code]
                argument = reader(stream) if reader else None
                if follow:
                    follow(self, argument)
                elif code == b".":
                    return self.stack[-1]
                else:
                    self.stack.append(argument)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise pickle.UnpicklingError("the file is no pickle") from None
        raise EOFError("the pickle has no end")

    def MARK(self, _: None) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _items(self) -> list[Any]:
        """Remove and return the values that were pushed after the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def PROTO(self, _: int) -> None:
        pass

    def FRAME(self, length: int) -> None:
        if length > self.size - self.stream.tell():
            raise EOFError(f"a frame of {length:,} bytes in a file of {self.size:,}")

    def POP(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._items()

    def POP_MARK(self, _: None) -> None:
        self._items()

    def PUT(self, index: int) -> None:
        # The unpickler allocates its memo up to this index.
        if index > self.count + 2**16:
            raise SizeError(f"index {index:,} of the memo after {self.count:,} operations")
        self.memo[index] = self.stack[-1]

    BINPUT = LONG_BINPUT = PUT

    def MEMOIZE(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def GET(self, index: int) -> None:
        self._refer(self.memo[index])

    BINGET = LONG_BINGET = GET

    def DUP(self, _: None) -> None:
        self._refer(self.stack[-1])

    def _refer(self, value: Any) -> None:
        """Push another reference to a value, and count its weight against the limit."""
        self.referred += _weight(value)
        _limit("strings and tuples that are referred to", self.referred, self.size)
        self.stack.append(value)

    def EMPTY_TUPLE(self, _: None) -> None:
        self.stack.append(_Tuple([]))

    def TUPLE(self, _: None) -> None:
        items = self._items()
        self.stack.append(_Tuple(items))

    FROZENSET = TUPLE

    def TUPLE1(self, _: None) -> None:
        self.stack.append(_Tuple([self.stack.pop()]))

    def TUPLE2(self, _: None) -> None:
        self.stack[-2:] = [_Tuple(self.stack[-2:])]

    def TUPLE3(self, _: None) -> None:
        self.stack[-3:] = [_Tuple(self.stack[-3:])]

    def EMPTY_LIST(self, _: None) -> None:
        self.stack.append(_Container())

    EMPTY_DICT = EMPTY_SET = EMPTY_LIST

    def LIST(self, _: None) -> None:
        items = self._items()
        self.stack.append(_Container(_have_tensors(items)))

    DICT = LIST

    def APPEND(self, _: None) -> None:
        self._fill([self.stack.pop()])

    def SETITEM(self, _: None) -> None:
        self._fill([self.stack.pop(), self.stack.pop()])

    def APPENDS(self, _: None) -> None:
        self._fill(self._items())

    SETITEMS = ADDITEMS = APPENDS

    def _fill(self, items: list[Any]) -> None:
        """Put items into the container on top of the stack."""
        self.stack[-1].tensors |= _have_tensors(items)

    def GLOBAL(self, name: str) -> None:
        self.stack.append(_Global(name.replace(" ", ".")))

    def STACK_GLOBAL(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_Global(f"{module}.{name}"))

    def INST(self, name: str) -> None:
        items = self._items()
        self.stack.append(self._call(_Global(name.replace(" ", ".")), _Tuple(items)))

    def OBJ(self, _: None) -> None:
        function, *arguments = self._items()
        self.stack.append(self._call(function, _Tuple(arguments)))

    def REDUCE(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    NEWOBJ = REDUCE

    def NEWOBJ_EX(self, _: None) -> None:
        raise pickle.UnpicklingError("Can only call without keywords")

    def BUILD(self, _: None) -> None:
        self.stack.pop()
        # The state of a tensor could give it any shape.
        if isinstance(self.stack[-1], _Global | _Tensor):
            raise pickle.UnpicklingError("Can only set the state of other objects")

    def BINPERSID(self, _: None) -> None:
        self.stack.append(self._storage(*self.stack.pop().items))

    def _call(self, function: Any, arguments: Any) -> Any:
        """Return what stands for the result of a call, after checking its arguments.

        Raises:
            UnpicklingError: the function is not allowed, or its arguments are invalid.
            SizeError: it would build a tensor that is too large.
        """
        if not (isinstance(function, _Global) and isinstance(arguments, _Tuple)):
            raise pickle.UnpicklingError("Can only call globals")
        name, given = function.name, arguments.items
        if name == "torch._tensor._rebuild_from_type_v2":
            return self._call(given[0], given[2])
        if name in _SHAPED:
            self._check_shape(given[0], given[2])
        elif name.startswith("torch.") and name not in _OF_TORCH and name not in _allowed_by_user():
            raise pickle.UnpicklingError(f"Unsupported class {name}")
        elif name.endswith((".bytearray", ".encode")):
            # Given a number, bytearray allocates this many bytes.
            if given and not isinstance(given[0], str | bytes | bytearray):
                raise pickle.UnpicklingError("Can only call encode with a string")
            if any(value not in ("latin1", "latin-1") for value in given[1:]):
                raise pickle.UnpicklingError("Can only call encode for latin1")
            return given[0] if given else b""
        elif name.endswith(_ITERATING) and (
            _have_tensors(given) or any(getattr(value, "tensors", False) for value in given)
        ):
            raise pickle.UnpicklingError("Can only make containers of other objects")
        if name.startswith("torch._utils.") or name.endswith(".Parameter"):
            return _Tensor()
        return _Made(arguments.weight, arguments.levels)

    def _check_shape(self, storage: Any, shape: Any) -> None:
        """Count the bytes by which a tensor of this shape would exceed its storage.

        Raises:
            UnpicklingError: there is no storage, or no shape of integers >= 0.
            SizeError: the sum over the file exceeds TIMES * its size + LEAST.
        """
        known = isinstance(storage, _Storage) and isinstance(shape, _Tuple)
        if not known or not all(type(n) is int and n >= 0 for n in shape.items):
            raise pickle.UnpicklingError("Can only have tensors of a storage")
        # A sum over an empty dimension makes a large tensor of one without elements.
        expanded = storage.element * prod(max(n, 1) for n in shape.items)
        # Views that are not larger than their storage, such as tied parameters, take no memory.
        self.expanded += max(0, expanded - storage.size)
        if self.expanded > TIMES * self.size + LEAST:
            below = [value for stack in [*self.marked, self.stack] for value in stack]
            key = next((value for value in reversed(below) if isinstance(value, str)), "a tensor")
            raise SizeError(
                f"{key} of shape {(*shape.items,)} takes {expanded:,} bytes, the file {self.size:,}"
            )

    def _storage(self, of: Any, kind: Any, key: Any, place: Any, count: Any, *_: Any) -> _Storage:
        """Return the storage of a persistent id, after checking its length against the file.

        Args:
            of: must be "storage".
            kind: the storage's class, which has the size of an element.
            key: its key in the file.
            place: its device.
            count: its number of elements.

        Raises:
            UnpicklingError: the persistent id is invalid.
            SizeError: the storage is longer than its data in the file.
        """
        if of not in ("storage", b"storage") or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("Can only refer to storages")
        element = _ELEMENT_SIZES.get(kind.name.rpartition(".")[2], 1)
        held = element * count
        if self.storages is not None:
            available = self.storages.get(str(key).lower(), 0)
        else:
            self.following[key] = max(held, self.following.get(key, 0))
            held, available = sum(self.following.values()), self.size
        if held > available:
            raise SizeError(f"storages take {held:,} bytes, and the file has {available:,}")
        return _Storage(element, element * count)


def _operation(op: pickletools.OpcodeInfo) -> tuple[Callable | None, Callable | None]:
    """Return the reader of an operation's argument, and the method of _Scan that follows it.

    The reader is None for operations without an argument; the method is None if _Scan has none.
    """
    reader = op.arg.reader if op.arg else None
    if op.name == "STRING":
        # Python 2 writes any bytes here; pickletools expects ASCII.
        reader = methodcaller("readline")
    return reader, getattr(_Scan, op.name, None)


_OPERATIONS = {op.code.encode("latin1"): _operation(op) for op in pickletools.opcodes}


def _allowed_by_user() -> set[str]:
    """Return the names that ``torch.serialization.add_safe_globals`` allows."""
    known = torch.serialization.get_safe_globals()
    # From torch 2.6 on, an entry may also be a pair of an object and its name.
    return {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in known
    }


def check_nesting(contents: Any) -> None:
    """Raise SizeError if recursive functions, such as a deep copy, may fail on a pickle's contents.

    The contents must not have more than :data:`LEVELS` levels of containers, contain themselves, or
    become far larger if a container is counted once for each reference to it.
    """
    # id of a visited container -> number of entries, nested ones included, and levels below it.
    visited: dict[int, tuple[int, int]] = {}
    entered: set[int] = set()
    single, stack = 0, [(contents, None, 0)]
    while stack:
        value, inner, count = stack.pop()
        own = id(value)
        if inner is not None:
            entries, levels = zip((count, 0), *(visited[id(v)] for v in inner), strict=True)
            visited[own] = sum(entries), 1 + max(levels)
            entered.remove(own)
            single += count
            if visited[own][1] > LEVELS:
                raise SizeError(f"more than {LEVELS} levels of containers")
        elif own in entered:
            raise SizeError("a container holds itself")
        elif own not in visited:
            entered.add(own)
            held = _contained(value)
            inner = [v for v in held if type(v) not in _CONSTANTS]
            stack.append((value, inner, len(held)))
            stack += [(v, None, 0) for v in inner]
    if (entries := visited[id(contents)][0]) > TIMES * single + 2**16:
        raise SizeError(f"{single:,} entries, which by references become {entries:,}")


_CONSTANTS = {bool, bytearray, bytes, complex, float, int, str, type(None)}


def _contained(value: Any) -> list[Any]:
    """Return the items and attributes of an object; none of a class or function."""
    if type(value) in (list, tuple):
        return [*value]
    if isinstance(value, type) or callable(value):
        return []
    attributes = getattr(value, "__dict__", {}).values()
    if isinstance(value, dict):
        return [*attributes, *value.keys(), *value.values()]
    return [*attributes, *(value if isinstance(value, list | tuple | set | frozenset) else ())]
