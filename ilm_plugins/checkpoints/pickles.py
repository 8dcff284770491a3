"""Check the sizes in a pickle against its file before it is unpickled.

A few bytes of a pickle can ask for gigabytes: the index of a memo, the length of a string, the
number of elements of a storage, many copies of one string.
"""

import io
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

#: Contents may take this many times the bytes of their file, by decompressed records, expanded
#: tensors, and strings, counted once for each reference.
TIMES = 100
#: Contents of any file may take this many bytes more.
LEAST = 2**26
#: Maximum depth of containers within containers.
LEVELS = 100

_OPERATIONS = {op.code.encode("latin1"): op for op in pickletools.opcodes}
#: The first number in a file of ``torch.save`` that is no zip archive.
_MAGIC = 0x1950A86A20F9469CFC6C
#: Functions of torch that build a tensor from a storage; their third argument is the shape.
_SHAPED = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_qtensor",
}
#: Other functions and classes of torch that a file may call; they allocate nothing.
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
#: Classes that iterate over their arguments, which would not end for an expanded tensor.
_READING = (".OrderedDict", ".Counter", ".Size", ".set", ".frozenset")
#: Storage classes -> bytes per element; 1 for all others.
_ELEMENTS = {
    "ComplexDoubleStorage": 16,
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
}


class SizeError(pickle.UnpicklingError):
    """Contents of a pickle are too large for its file."""


@dataclass(eq=False)
class _Value:
    """An object on the unpickler's stack.

    Attributes:
        constant: a number or string; the name of a global; the items of a tuple; the bytes per
            element of a storage, and of the whole storage.
        kind: "constant", "global", "tuple", "container", "storage", "tensor", or "made": the result
            of another call.
        weight: number of characters and tuples in it, counted once for each reference.
        levels: depth of tuples within tuples.
        tensors: whether a direct item is a tensor or a storage.
    """

    constant: Any = None
    kind: str = "constant"
    weight: int = 0
    levels: int = 0
    tensors: bool = False


def _tuple(items: list[_Value]) -> _Value:
    levels = 1 + max((item.levels for item in items), default=0)
    if levels > LEVELS:
        raise SizeError(f"more than {LEVELS} levels of tuples")
    weight = 1 + sum(item.weight for item in items)
    return _Value(items, "tuple", weight, levels, _have_tensors(items))


def _have_tensors(items: list[_Value]) -> bool:
    return any(item.kind in ("tensor", "storage") for item in items)


def check_pickle(path: Path) -> None:
    """Raise SizeError if the contents of a pickle are too large for its file."""
    _check(path, 1)


def check_torch(path: Path) -> None:
    """Raise SizeError if the contents of a file of ``torch.save`` are too large for it."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        # Older releases write a magic number, a version, the platform, the contents and a list of
        # storages.
        _check(path, 5, _MAGIC)
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


def _check(path: Path, pickles: int, first: int | None = None) -> None:
    """Check the pickles that a file begins with; the first must be this number, if one is given."""
    if not path.stat().st_size:
        raise EOFError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        scan = _Scan(stream, len(stream))
        for _ in range(pickles):
            if stream.tell() < len(stream):
                scan.run()
            if first not in (None, scan.result):
                # A tar archive, among others, which some releases of torch run code of.
                raise pickle.UnpicklingError("the file is not of torch.save")
            first = None


def _limit(what: str, found: int, size: int) -> None:
    if found > TIMES * size + LEAST:
        raise SizeError(f"{what} take {found:,} bytes, the file {size:,}")


class _Scan:
    """Walks through the operations of a pickle without running them.

    Args:
        stream: the pickle; reading beyond its end must not allocate.
        size: bytes of the file.
        storages: key of a storage -> its bytes in the file; None if storages follow the pickle.
    """

    def __init__(self, stream: Any, size: int, storages: Mapping[str, int] | None = None) -> None:
        self.stream, self.size, self.storages = stream, size, storages
        self.referred = self.expanded = 0
        self.following: dict[Any, int] = {}

    def run(self) -> None:
        """Check one pickle of the stream.

        Raises:
            SizeError: something in it is too large.
            UnpicklingError, EOFError, ValueError: it is invalid, or calls a function that is not
                allowed.
        """
        self.stack: list[_Value] = []
        self.marked: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}
        try:
            for count, (op, argument) in enumerate(self._operations()):
                self._follow(op, argument, count)
            self.result = self.stack[-1].constant
        except (IndexError, KeyError, TypeError, AttributeError):
            raise pickle.UnpicklingError("the file is no pickle") from None

    def _operations(self) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
        while code := self.stream.read(1):
            op = _OPERATIONS[code]
            if op.name == "STOP":
                return
            if op.name == "STRING":
                # Python 2 writes any bytes here; pickletools expects ASCII.
                yield op, self.stream.readline()
            else:
                yield op, op.arg.reader(self.stream) if op.arg else None
        raise EOFError("the pickle has no end")

    def _follow(self, op: pickletools.OpcodeInfo, argument: Any, count: int) -> None:
        """Apply the ``count``-th operation of the pickle to the stack."""
        taken, items = len(op.stack_before), []
        if pickletools.markobject in op.stack_before:
            items, self.stack = self.stack, self.marked.pop()
            taken = op.stack_before.index(pickletools.markobject)
        elif op.name == "POP" and not self.stack:
            self.stack = self.marked.pop()
            return
        taken = [self.stack.pop() for _ in range(taken)][::-1]
        push = self.stack.append
        match op.name:
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "FRAME" if argument > self.size - self.stream.tell():
                raise EOFError(f"a frame of {argument:,} bytes in a file of {self.size:,}")
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                # The unpickler allocates its memo up to this index.
                if argument > count + 2**16:
                    raise SizeError(f"index {argument:,} of the memo after {count:,} operations")
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = taken[0]
                push(taken[0])
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self._refer(self.memo[argument]))
            case "DUP":
                self.stack += [taken[0], self._refer(taken[0])]
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "FROZENSET" | "EMPTY_TUPLE":
                push(_tuple(taken + items))
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" | "ADDITEMS":
                taken[0].tensors |= _have_tensors(taken[1:] + items)
                push(taken[0])
            case "LIST" | "DICT" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                push(_Value(kind="container", tensors=_have_tensors(items)))
            case "GLOBAL":
                push(_Value(argument.replace(" ", "."), "global"))
            case "STACK_GLOBAL":
                push(_Value(".".join(str(part.constant) for part in taken), "global"))
            case "INST":
                push(self._call(_Value(argument.replace(" ", "."), "global"), _tuple(items)))
            case "OBJ":
                push(self._call(items[0], _tuple(items[1:])))
            case "REDUCE" | "NEWOBJ":
                push(self._call(*taken))
            case "NEWOBJ_EX":
                raise pickle.UnpicklingError("Can only call without keywords")
            case "BUILD":
                # The state of a tensor could give it any shape.
                if taken[0].kind in ("global", "tensor"):
                    raise pickle.UnpicklingError("Can only set the state of other objects")
                push(taken[0])
            case "BINPERSID":
                push(self._storage(*taken[0].constant))
            case _ if op.stack_after:
                long = isinstance(argument, str | bytes | bytearray)
                push(_Value(argument, weight=len(argument) if long else 0))

    def _refer(self, value: _Value) -> _Value:
        """The value, after counting one more reference to it."""
        self.referred += value.weight
        _limit("strings and tuples that are referred to", self.referred, self.size)
        return value

    def _call(self, function: _Value, arguments: _Value) -> _Value:
        """The result of a call, after checking its arguments."""
        if function.kind != "global" or arguments.kind != "tuple":
            raise pickle.UnpicklingError("Can only call globals")
        name, given = function.constant, arguments.constant
        if name == "torch._tensor._rebuild_from_type_v2":
            return self._call(given[0], given[2])
        tensor = name.startswith("torch._utils.") or name.endswith(".Parameter")
        kind, constant = "tensor" if tensor else "made", None
        if name in _SHAPED:
            self._shape(given[0], given[2])
        elif name.startswith("torch.") and name not in {*_OF_TORCH, *_allowed_by_user()}:
            raise pickle.UnpicklingError(f"Unsupported class {name}")
        elif name.endswith((".bytearray", ".encode")):
            # Given a number, bytearray allocates this many bytes.
            if given and not isinstance(given[0].constant, str | bytes | bytearray):
                raise pickle.UnpicklingError("Can only call encode with a string")
            if any(value.constant not in ("latin1", "latin-1") for value in given[1:]):
                raise pickle.UnpicklingError("Can only call encode for latin1")
            constant = b""
        elif name.endswith(_READING) and (
            _have_tensors(given) or any(value.tensors for value in given)
        ):
            raise pickle.UnpicklingError("Can only make containers of other objects")
        return _Value(constant, kind, arguments.weight, arguments.levels)

    def _shape(self, storage: _Value, shape: _Value) -> None:
        """Check the shape of a tensor that shares the memory of a storage."""
        sizes = [size.constant for size in shape.constant]
        known = (storage.kind, shape.kind) == ("storage", "tuple")
        if not known or not all(type(n) is int and n >= 0 for n in sizes):
            raise pickle.UnpicklingError("Can only have tensors of a storage")
        # A tensor without elements becomes large if it is summed over an empty dimension.
        element, held = storage.constant
        expanded = element * prod(max(size, 1) for size in sizes)
        # Views that are not larger than their storage, such as tied parameters, take no memory.
        self.expanded += max(0, expanded - held)
        if self.expanded > TIMES * self.size + LEAST:
            below = [value for stack in [*self.marked, self.stack] for value in stack]
            keys = (v.constant for v in reversed(below) if v.kind == "constant")
            key = next((key for key in keys if isinstance(key, str)), "a tensor")
            raise SizeError(
                f"{key} of shape {(*sizes,)} takes {expanded:,} bytes, the file {self.size:,}"
            )

    def _storage(self, of: _Value, kind: _Value, key: _Value, place: _Value, length: _Value, *_):
        """Check a reference to a storage: its class, its key, its device and its length."""
        name, count = str(kind.constant).rpartition(".")[2], length.constant
        if of.constant not in ("storage", b"storage") or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("Can only refer to storages")
        element = _ELEMENTS.get(name, 1)
        held = element * count
        if self.storages is not None:
            available = self.storages.get(str(key.constant).lower(), 0)
        else:
            self.following[key.constant] = max(held, self.following.get(key.constant, 0))
            held, available = sum(self.following.values()), self.size
        if held > available:
            raise SizeError(f"storages take {held:,} bytes, and the file has {available:,}")
        return _Value((element, element * count), "storage")


def _allowed_by_user() -> set[str]:
    """Names that ``torch.serialization.add_safe_globals`` has been given."""
    known = torch.serialization.get_safe_globals()
    # From torch 2.6 on, an entry may also be a pair of an object and its name.
    return {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in known
    }


def check_nesting(contents: Any) -> None:
    """Raise SizeError unless a recursive function can walk through contents.

    It recurses as deep as containers are nested, without end if one holds itself, and visits a
    container once for each reference.

    Args:
        contents: of an unpickled file.
    """
    entries: dict[int, int] = {}
    levels: dict[int, int] = {}
    entered: set[int] = set()
    single, stack = 0, [contents]
    while stack:
        value = stack[-1]
        own, inner = id(value), _inside(value)
        containers = [v for v in inner if isinstance(v, _CONTAINERS) or hasattr(v, "__dict__")]
        if own in entries:
            stack.pop()
        elif own in entered:
            stack.pop()
            entered.remove(own)
            single += len(inner)
            entries[own] = len(inner) + sum(entries[id(v)] for v in containers)
            levels[own] = 1 + max((levels[id(v)] for v in containers), default=0)
            if levels[own] > LEVELS:
                raise SizeError(f"more than {LEVELS} levels of containers")
        else:
            entered.add(own)
            if any(id(v) in entered for v in containers):
                raise SizeError("a container holds itself")
            stack += containers
    if (all_entries := entries[id(contents)]) > TIMES * single + 2**16:
        raise SizeError(f"{single:,} entries, which by references become {all_entries:,}")


_CONTAINERS = dict | list | tuple | set | frozenset


def _inside(value: Any) -> list[Any]:
    """The objects that an object holds."""
    if isinstance(value, type) or callable(value):
        return []
    inner = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, dict):
        return [*inner, *value.keys(), *value.values()]
    return [*inner, *value] if isinstance(value, _CONTAINERS) else inner
