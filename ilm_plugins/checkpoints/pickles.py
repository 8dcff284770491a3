"""Check the sizes in a pickle against its file before it is unpickled.

A few bytes of a pickle can make the unpickler allocate gigabytes: by the index of a memo, the
length of a string, the number of elements of a storage, or many copies of one string.
"""

import io
import mmap
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

#: The contents may take MIN_BUDGET bytes and this many times the size of their file. Decompressed
#: records, expanded tensors, and strings (once for each reference) count, each by itself.
MAX_EXPANSION = 100
#: Number of bytes that the contents of any file may take; see MAX_EXPANSION.
MIN_BUDGET = 2**26
#: Maximum depth of containers within containers.
MAX_DEPTH = 100

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
        SizeError: the contents would take much more memory than the file: more than
            MAX_EXPANSION * its size + MIN_BUDGET bytes.
        UnpicklingError, EOFError, ValueError: the file is not a valid pickle.
        OSError: the file is missing or unreadable.
    """
    _check_stream(path, 1)


def check_torch(path: Path) -> None:
    """Raise an error if a file of ``torch.save`` would take much more memory than its size.

    Raises:
        SizeError: the contents would take much more memory than the file, or two records of the
            archive have the same name.
        UnpicklingError, EOFError, ValueError: the file is invalid, is a TorchScript or tar archive,
            or calls a function that is not allowed.
        BadZipFile, IndexError, KeyError: the archive is damaged, empty, or lacks data.pkl.
        OSError: the file is missing or unreadable.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        # Older releases write a magic number, a version, the platform, the contents and a list of
        # storages.
        _check_stream(path, 5, _MAGIC)
        if tarfile.is_tarfile(path):  # from which some releases of torch run code
            raise pickle.UnpicklingError("it is a tar archive")
        return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        # torch ignores case in names of records.
        if len({name.lower() for name in records}) < len(archive.infolist()):
            raise SizeError("two records have the same name")
        if archive.start_dir != _directory_offset(path):
            raise pickle.UnpicklingError("the offset of the zip directory is wrong")
        _limit("its records", sum(info.file_size for info in records.values()), size)
        folder = archive.namelist()[0].partition("/")[0]
        if any(name.lower() == f"{folder}/constants.pkl".lower() for name in records):
            # Some releases of torch run the code in it.
            raise pickle.UnpicklingError("it is a TorchScript archive")
        contents = archive.read(records[f"{folder}/data.pkl"])
    before = f"{folder}/data/"
    storages = {name.removeprefix(before): info.file_size for name, info in records.items()}
    _Scan(io.BytesIO(contents), size, storages).run()


def _directory_offset(path: Path) -> int:
    """Return where the directory of a zip archive begins, according to the archive.

    zipfile finds the directory by its size, torch by this offset: where they differ, torch would
    load other records than were checked.

    Raises:
        UnpicklingError: something follows the archive's last record, such as a comment, or its
            last two records do not follow each other.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 98))
        last = file.read().rjust(98, b"\0")
    # The record of a directory beyond 4 GiB (56 bytes), its locator (20) and the last record (22).
    large, locator, end = last[:56], last[56:76], last[76:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise pickle.UnpicklingError("data follow the end of the zip archive")
    if locator[:4] != b"PK\x06\x07":
        return struct.unpack("<I", end[16:20])[0]
    if large[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != size - 98:
        raise pickle.UnpicklingError("the end of the zip archive is not in one piece")
    return struct.unpack("<Q", large[48:56])[0]


def is_pickle(path: Path) -> bool:
    """Return whether a file begins with a pickle that is not of ``torch.save``.

    False for a pickle that fails :func:`check_pickle`, and for a file that cannot be read.
    """
    try:
        return _check_stream(path, 1) != _MAGIC
    except Exception:  # a file may hold anything
        return False


def _check_stream(path: Path, pickles: int, first: int | None = None) -> Any:
    """Check the first pickles of a file, and return the last one's contents, with stand-ins.

    Args:
        path: the file.
        pickles: number of pickles to check; fewer if the file ends before.
        first: the number that the first pickle must contain; None for any contents.

    Raises:
        EOFError: the file is empty, or ends within a pickle.
        SizeError: something in a pickle is too large.
        UnpicklingError: the first pickle has other contents; see also :meth:`_Scan.run`.
    """
    if not path.stat().st_size:
        raise EOFError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        scan = _Scan(stream, len(stream))
        for _ in range(pickles):
            result = scan.run() if stream.tell() < len(stream) else first
            if first not in (None, result):
                raise pickle.UnpicklingError("it is not a file of torch.save")
            first = None
    return result


def _limit(what: str, found: int, size: int) -> None:
    """Raise SizeError if ``found`` bytes are too many for a file of ``size`` bytes."""
    if found > MAX_EXPANSION * size + MIN_BUDGET:
        raise SizeError(f"{what} take {found:,} bytes, the file {size:,}")


# Stand-ins for objects on the unpickler's stack; numbers, strings, lists, dicts and sets are real.


class _Immutable:
    """An object whose state a pickle may not set: the state of a tensor could give it any shape."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("Can only set the state of other objects")


@dataclass(eq=False)
class _Global(_Immutable):
    """A class or function, by its module and name joined with a dot."""

    name: str
    scan: "_Scan"

    def __call__(self, *arguments: Any) -> Any:
        return self.scan.call(self.name, arguments)


@dataclass(eq=False)
class _Storage(_Immutable):
    """A storage: the size in bytes of one element, and of all elements."""

    element: int
    size: int


class _Tensor(_Immutable):
    """A tensor or a parameter."""


class _Tuple(_Immutable, tuple):
    """A tuple or frozenset.

    Attributes:
        weight: number of characters and tuples in it, counted once for each reference.
        levels: depth of tuples within tuples.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self.weight = 1 + sum(map(_weight, self))
        self.levels = 1 + max((getattr(item, "levels", 0) for item in self), default=0)
        if self.levels > MAX_DEPTH:
            raise SizeError(f"more than {MAX_DEPTH} levels of tuples")


class _CallResult:
    """The result of a call; its weight and levels (see :class:`_Tuple`) are its arguments'."""

    def __init__(self, arguments: tuple) -> None:
        whole = _Tuple(arguments)
        self.weight, self.levels = whole.weight, whole.levels

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Iterable[Any]) -> None:
        pass


def _weight(value: Any) -> int:
    """Return the length of a string or of bytes, the weight of a tuple, or else 0."""
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    return getattr(value, "weight", 0)


def _have_tensors(items: Iterable[Any]) -> bool:
    """Return whether one of the items is a tensor or a storage."""
    return any(isinstance(item, _Tensor | _Storage) for item in items)


class _Memo(dict):
    """The memo of an unpickler, index -> value; raises SizeError if it would take too much memory.

    Args:
        size: size of the file in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size, self.referred = size, 0

    def __setitem__(self, index: int, value: Any) -> None:
        # The unpickler in C allocates its memo up to this index.
        if index > len(self) + 2**16:
            raise SizeError(f"index {index:,} of a memo of {len(self):,} values")
        super().__setitem__(index, value)

    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        self.referred += _weight(value)
        _limit("strings and tuples that are referred to", self.referred, self.size)
        return value


def _to_tuple(load: Callable) -> Callable:
    """Wrap an operation of the unpickler that pushes a tuple or frozenset, to push a _Tuple."""

    def operation(scan: "_Scan") -> None:
        load(scan)
        scan.stack[-1] = _Tuple(scan.stack[-1])

    return operation


class _Scan(pickle._Unpickler):
    """Unpickles stand-ins for all classes and functions, to check what those would allocate.

    It is the standard library's unpickler in Python: the one in C cannot be followed.

    Args:
        stream: the pickle; reading beyond its end must not allocate memory.
        size: size of the file in bytes.
        storages: key of a storage -> its bytes in the file; None if storages follow the pickle.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.DUP[0]]  # no pickler writes it
    dispatch[pickle.NEWOBJ[0]] = dispatch[pickle.REDUCE[0]]
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]
    for _code in pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET:
        dispatch[_code[0]] = _to_tuple(dispatch[_code[0]])

    def __init__(self, stream: Any, size: int, storages: Mapping[str, int] | None = None) -> None:
        def read(length: int) -> bytes:
            data = stream.read(length)
            if len(data) < length:
                raise EOFError("the pickle has no end")
            return data

        super().__init__(SimpleNamespace(read=read, readline=stream.readline), encoding="latin1")
        self.memo = _Memo(size)
        self.size, self.storages = size, storages
        self.expanded = 0
        self.following: dict[Any, int] = {}

    def run(self) -> Any:
        """Check one pickle of the stream, and return its contents, with stand-ins.

        Raises:
            SizeError: something in it is too large.
            UnpicklingError, EOFError, ValueError: the pickle is invalid, or calls a function that
                is not allowed.
        """
        try:
            return self.load()
        except (AttributeError, IndexError, KeyError, TypeError, struct.error):
            raise pickle.UnpicklingError("the file is no pickle") from None

    def find_class(self, module: str, name: str) -> _Global:
        return _Global(f"{module}.{name}", self)

    def call(self, name: str, given: tuple) -> Any:
        """Return the stand-in for the result of a call, after checking its arguments.

        Args:
            name: module and name of the function or class, joined by a dot.
            given: the arguments.

        Raises:
            UnpicklingError: a function of torch is not allowed, or arguments are invalid. Others
                are refused when the file is loaded.
            SizeError: it would build a tensor that is too large.
        """
        if name == "torch._tensor._rebuild_from_type_v2":
            return given[0](*given[2])
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
        elif name.endswith(_ITERATING):
            containers = (value for value in given if isinstance(value, list | set | tuple))
            if any(map(_have_tensors, (given, *containers))):
                raise pickle.UnpicklingError("Can only make containers of other objects")
        if name.startswith("torch._utils.") or name.endswith(".Parameter"):
            return _Tensor()
        return _CallResult(given)

    def _check_shape(self, storage: Any, shape: Any) -> None:
        """Add the bytes by which a tensor of this shape would exceed its storage to the file's sum.

        Raises:
            UnpicklingError: ``storage`` is no storage, or ``shape`` no tuple of integers >= 0.
            SizeError: the sum over the file exceeds MAX_EXPANSION * its size + MIN_BUDGET. An empty
                dimension counts as 1.
        """
        valid = isinstance(storage, _Storage) and isinstance(shape, tuple)
        if not valid or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("Can only have tensors of a storage")
        # A sum over an empty dimension makes a large tensor of one without elements.
        expanded = storage.element * prod(max(n, 1) for n in shape)
        # Views that are not larger than their storage, such as tied parameters, take no memory.
        self.expanded += max(0, expanded - storage.size)
        if self.expanded > MAX_EXPANSION * self.size + MIN_BUDGET:
            below = [value for stack in [*self.metastack, self.stack] for value in stack]
            key = next((value for value in reversed(below) if isinstance(value, str)), "a tensor")
            raise SizeError(
                f"{key} of shape {(*shape,)} takes {expanded:,} bytes, the file {self.size:,}"
            )

    def persistent_load(self, pid: tuple) -> _Storage:
        """Return the storage of a persistent id, after checking its length against the file.

        Args:
            pid: "storage"; the storage's class, which has the size of an element; its key in the
                file; its device; its number of elements; anything else.

        Raises:
            UnpicklingError: the persistent id is invalid.
            SizeError: the storage is longer than its data in the file.
        """
        if len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError("Can only refer to storages")
        _, kind, key, _, count = pid[:5]
        if type(count) is not int or count < 0:
            raise pickle.UnpicklingError("Can only have storages of a length")
        if not (isinstance(kind, _Global) and kind.name.endswith("Storage")):
            raise pickle.UnpicklingError("Can only refer to storages")
        element = _ELEMENT_SIZES.get(kind.name.rpartition(".")[2], 1)
        held = element * count
        if self.storages is not None:
            available = self.storages.get(key, 0)
        else:
            self.following[key] = max(held, self.following.get(key, 0))
            held, available = sum(self.following.values()), self.size
        if held > available:
            raise SizeError(f"storages take {held:,} bytes, and the file has {available:,}")
        return _Storage(element, element * count)


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

    The contents must not have more than :data:`MAX_DEPTH` levels of containers, contain themselves,
    or become far larger if a container is counted once for each reference to it.
    """
    # id of a container -> its entries without and with those of nested containers, and its levels.
    measured: dict[int, tuple[int, int, int]] = {}

    def measure(value: Any, level: int) -> tuple[int, int, int]:
        if id(value) not in measured and level <= MAX_DEPTH:
            held = _contained(value)
            inner = [measure(v, level + 1) for v in held if type(v) not in _CONSTANTS]
            entries = len(held) + sum(below for _, below, _ in inner)
            levels = 1 + max((levels for *_, levels in inner), default=0)
            measured[id(value)] = len(held), entries, levels
        if level > MAX_DEPTH or measured[id(value)][2] > MAX_DEPTH:
            raise SizeError(f"a container holds itself, or {MAX_DEPTH} levels of other containers")
        return measured[id(value)]

    _, entries, _ = measure(contents, 1)
    single = sum(own for own, *_ in measured.values())
    if entries > MAX_EXPANSION * single + 2**16:
        raise SizeError(f"{single:,} entries, which by references become {entries:,}")


_CONSTANTS = {bool, bytearray, bytes, complex, float, int, str, type(None)}


def _contained(value: Any) -> list[Any]:
    """Return the items and attributes of an object; none of a class or function."""
    if isinstance(value, type) or callable(value):
        return []
    attributes = getattr(value, "__dict__", {}).values()
    if isinstance(value, dict):
        return [*attributes, *value.keys(), *value.values()]
    return [*attributes, *(value if isinstance(value, list | tuple | set | frozenset) else ())]
