"""Reading checkpoints: arrays, refused code and sizes, other formats, messages."""

import io
import json
import os
import pickle
import re
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict, deque
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import fresh
from ilm_plugins.checkpoints import CheckpointError, allow, loading, read, write
from ilm_plugins.checkpoints.pickles import check_torch
from workers import Harmful

np = pytest.importorskip("numpy", reason="checkpoints of arrays need numpy")


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "unpickled"


def save(contents, path):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_is_refused_and_named(tmp_path, trap, suffix):
    path = save({"model": Harmful(trap)}, tmp_path / f"c{suffix}")
    with pytest.raises(
        CheckpointError, match=r"holds os.makedirs, which may run code.*give --unsafe$"
    ) as told:
        read(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value) and not trap.exists()
    read(path, unsafe=True)
    assert trap.exists()


def test_a_collection_of_a_class_is_named(tmp_path):
    path = save({"x": deque([1.0, 2.0], maxlen=5)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"holds collections.deque, which .*give --unsafe$"):
        read(path)
    assert list(read(path, unsafe=True)["x"]) == [1.0, 2.0]


def test_no_load_within_a_run_is_unsafe_but_where_the_user_says_so(tmp_path, trap):
    path = save({"model": Harmful(trap)}, tmp_path / "c.pth")
    with loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    with loading():  # processes that are started meanwhile, too
        assert fresh.run([sys.executable, "-c", code]).returncode == 1
    assert not trap.exists()
    with loading(unsafe=True):
        read(path)
    assert trap.exists()
    assert not [name for name in os.environ if "WEIGHTS_ONLY" in name]


@pytest.fixture
def safe_globals():
    """Restore the classes that torch.load may build."""
    before = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_what_is_allowed_is_called_by_the_name_in_the_file(tmp_path, safe_globals):
    class Named:
        def __reduce__(self):
            return setattr, ("x", "upper", 0)

    path = save([Named()], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"holds (builtins\.)?setattr, which may run code"):
        read(path)
    allow("builtins.setattr", lambda *args: args)
    assert read(path) == [("x", "upper", 0)]


ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": np.float32(2),
    "c": np.array(["x"]),
    "n": [1, None],
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("code", ["?", "i1", "u8", ">i4", "f2", "<f4", ">f8", "c8", "S3", "U3"])
def test_arrays_are_data(tmp_path, suffix, code):
    values = np.arange(6).reshape(2, 3).astype(code)
    given = {"plain": values, "fortran": np.asfortranarray(values), "part": values[:, 1:], **ARRAYS}
    given |= {"none": values[:0], "one": values[1, 1], "whole": np.array(values[1, 1])}
    found = read(save(OrderedDict(given), tmp_path / f"c{suffix}"))
    assert found["n"] == given.pop("n")
    for name, array in pickle.loads(pickle.dumps(given)).items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array) and isinstance(found[name], type(array))
    assert found["fortran"].flags.f_contiguous and found["plain"].flags.c_contiguous
    found["plain"][0, 0] = values[1, 1]
    assert found["plain"][0, 0] == values[1, 1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_what_they_were_when_they_are_written_again(tmp_path, protocol):
    given = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    (tmp_path / "c.pkl").write_bytes(pickle.dumps([given, given.dtype], protocol))
    found, dtype = read(tmp_path / "c.pkl")
    assert np.array_equal(found, given) and np.dtype(dtype) == given.dtype
    again, dtype = pickle.loads(pickle.dumps([found, dtype], protocol))
    assert type(again) is np.ndarray and np.array_equal(again, given)
    assert isinstance(dtype, np.dtype) and dtype == given.dtype


@pytest.mark.parametrize("module", [b"numpy.core.", b"numpy._core."])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_arrays_of_every_numpy_are_data(tmp_path, module, suffix):
    ours = np.arange(3.0).__reduce__()[0].__module__.removesuffix("multiarray").encode()
    path = save({"a": np.arange(3.0), "b": np.float32(2)}, tmp_path / f"c{suffix}")
    content = path.read_bytes()
    assert ours in content
    if suffix == ".pkl":  # of protocol 2, whose names are lines
        content = pickle.dumps({"a": np.arange(3.0), "b": np.float32(2)}, protocol=2)
        path.write_bytes(content.replace(ours, module))
    else:
        rename(path, ours, module)
    found = read(path)
    assert found["a"].tolist() == [0, 1, 2] and found["b"] == 2


def rename(path, old, new):
    """Replace names in the pickle within a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(old, new) if "data.pkl" in name else content)


def test_arrays_of_python_2_are_data(tmp_path):
    """Their bytes are strings in latin1, and flags are numbers."""
    content = (
        b"(dp0\nS'a'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\n"
        b"S'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'i2'\np10\nI0\nI1\ntp11\nRp12\n"
        b"(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'\\xff\\x00\\x01\\x00'\np15\ntp16\nbs."
    )
    (tmp_path / "c.pkl").write_bytes(content)
    assert read(tmp_path / "c.pkl")["a"].tolist() == [255, 1]


class Built:
    """Pickles what a file says, and not what numpy would: a call, and a state."""

    def __init__(self, call, args, state=None):
        self.reduced = (call, args) if state is None else (call, args, state)

    def __reduce__(self):
        return self.reduced


RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64().__reduce__()[0]


def crafted(dtype, shape=(1,), data=b"A" * 8):
    return Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


def dtype_of(code, state=None):
    return Built(np.dtype, (code, False, True), state)


PLAIN = (3, "<", None, None, None, -1, -1, 0)
FLOAT, OBJECT = dtype_of("f4", PLAIN), dtype_of("O8")
CRAFTED = {
    # Without the flags by which numpy tells that the bytes of an array are pointers.
    "objects": crafted(dtype_of("O8", (3, "|", None, None, None, -1, -1, 0))),
    "fields": crafted(dtype_of("V8", (3, "|", None, ("f",), {"f": (OBJECT, 0)}, 8, 1, 0))),
    "fields of numbers": crafted(
        dtype_of("f8", (3, "<", None, ("f",), {"f": (FLOAT, 0)}, 8, 1, 0))
    ),
    "a subarray": crafted(dtype_of("f8", (3, "<", (FLOAT, (9,)), None, None, 36, 1, 0))),
    "dates": crafted(dtype_of("M8", PLAIN)),
    "a state of an object's": crafted(np.dtype("O")),
    "no dtype": crafted("f4"),
    "too few bytes": crafted(FLOAT, shape=(3,)),
    "too many bytes": crafted(FLOAT),
    "too large a shape": crafted(FLOAT, shape=(2**40, 2**40), data=b""),
    "no bytes": crafted(FLOAT, shape=(1,), data=[1.0]),
    "a scalar of objects": Built(SCALAR, (dtype_of("O8", PLAIN), b"A" * 8)),
    "a scalar that is short": Built(SCALAR, (FLOAT, b"A")),
    "another class": Built(RECONSTRUCT, (np.dtype, (0,), b"b")),
    "memory of nobody": Built(np.ndarray, ((4,), "f8")),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("kind", CRAFTED)
def test_no_array_is_what_numpy_would_crash_at(tmp_path, suffix, kind):
    path = save({"a": CRAFTED[kind]}, tmp_path / f"c{suffix}")
    with pytest.raises(CheckpointError, match=r"it holds more than data|it is truncated") as told:
        read(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_an_array_is_filled_once(tmp_path):
    """A tensor that was made of it shares its memory."""
    once = pickle.dumps(np.arange(3.0), protocol=2)
    state = pickle.dumps(np.arange(4.0).__reduce__()[2], protocol=2)
    (tmp_path / "c.pkl").write_bytes(once[:-1] + state[2:-1] + b"b.")
    with pytest.raises(CheckpointError, match="it holds more than data"):
        read(tmp_path / "c.pkl")


LONG = struct.pack("<Q", 2**33)
DEEP = 10**5
#: Pickles of few bytes that ask for much memory or time, or end the process.
BOMBS = {
    "an index of the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "an index of the memo as text": b"Np2147483647\n.",
    "a length of bytes": b"\x80\x04\x8e" + LONG + b".",
    "a length of a string": b"\x80\x04\x8d" + LONG + b".",
    "a length of an array of bytes": b"\x80\x05\x96" + LONG + b".",
    "a length of a frame": b"\x80\x04\x95" + LONG + b"N.",
    "a length of a number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a dict in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00dh\x00s.",
    "dicts that are twice in each other": b"\x80\x02}"
    + b"q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u" * 60
    + b".",
    "lists in lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "dicts in dicts": b"\x80\x02" + b"}K\x00" * DEEP + b"N" + b"s" * DEEP + b".",
    "a key of tuples in tuples": b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.",
    "a key of tuples that are twice in each other": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
}
NO_BYTES = dtype_of("S0", (3, "|", None, None, None, 0, 1, 0))
TEXT = "a" * 10**6
ARRAY_BOMBS = {
    "an array of elements of no bytes": [crafted(NO_BYTES, (2**33,), b"")],
    "an array without elements": [crafted(FLOAT, (0, 2**40), b"")],
    "an array of negative size": [crafted(FLOAT, (-1, -2))],
    "an array of a fraction": [crafted(FLOAT, (2.0,))],
    "an array of a product beyond 64 bits": [crafted(FLOAT, (2**32, 2**32, 2), b"")],
    "arrays of the same bytes": [
        crafted(dtype_of("i1", PLAIN), (len(TEXT),), TEXT) for _ in range(3000)
    ],
}
BOMBS |= {name: pickle.dumps(contents, protocol=2) for name, contents in ARRAY_BOMBS.items()}

#: Of torch's format alone; a storage of one float32 is there.
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ%stQ"
)
ONE = STORAGE % struct.pack("<i", 1)


def tensor(storage=ONE, shape=2**30, stride=0, function=b"_rebuild_tensor_v2"):
    strides = struct.pack("<i", shape), struct.pack("<i", stride)
    return b"ctorch._utils\n%s\n(%sK\x00J%s\x85J%s\x85\x89NtR" % (function, storage, *strides)


TENSOR = tensor(shape=1)
ENLARGE = b"(" + ONE + b"K\x00J\x00\x00\x00\x40\x85K\x00\x85tb."
TORCH_BOMBS = {
    "a length of a storage": b"\x80\x02" + tensor(STORAGE % struct.pack("<i", 2**30)) + b".",
    "an expanded tensor": b"\x80\x02}X\x03\x00\x00\x00key" + tensor() + b"s.",
    "an expanded tensor as a set": b"\x80\x02c__builtin__\nset\n" + tensor(shape=2**24) + b"\x85R.",
    "a tensor that is enlarged": b"\x80\x02" + TENSOR + ENLARGE,
    "a parameter that is enlarged": b"\x80\x02ctorch.nn.parameter\nParameter\n"
    + TENSOR
    + b"\x85\x81"
    + ENLARGE,
    "an array of bytes by its length": b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x70\x85R.",
    "an array of bytes as a tensor": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n"
    b"(c__builtin__\nbytearray\nctorch\nTensor\nJ\x00\x00\x00\x70\x85}tR.",
    "a tensor by its length": b"\x80\x02ctorch\nFloatTensor\nJ\x00\x00\x00\x70\x85R.",
    "a storage by its length": b"\x80\x02ctorch.storage\nUntypedStorage\nJ\x00\x00\x00\x70\x85R.",
}


def wrapped(content, kind):
    """A pickle as a file of ``torch.save``, of now or of old."""
    if kind == "old":
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        heads = b"".join(pickle.dumps(part, 2) for part in parts)
        # A storage has one more entry there, and follows.
        keys = pickle.dumps(["0"] if b"storage" in content else [], 2)
        return heads + content.replace(b"tQ", b"NtQ") + keys + struct.pack("<qf", 1, 1)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name, part in (("data.pkl", content), ("data/0", bytes(4)), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", part)
    return file.getvalue()


def compressed():
    content = b"\x80\x02" + tensor(STORAGE % struct.pack("<i", 2**26), 2**26, 1) + b"."
    deflated = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(file := io.BytesIO(), "w", **deflated) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
        with archive.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(256):
                record.write(bytes(2**20))
    return file.getvalue()


#: Reads files, each in a process of its own, with at most some memory more and for some seconds.
READER = """
import json, os, resource, signal, sys
from ilm_plugins.checkpoints import CheckpointError, read
from ilm_plugins.checkpoints.reading import allow_arrays
allow_arrays()
with open("/proc/self/status") as status:
    size = next(1024 * int(line.split()[1]) for line in status if "VmSize" in line)
messages = {}
for path in sys.argv[1:]:
    ends = os.pipe()
    if not os.fork():
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(30)
        try:
            read(path)
        except CheckpointError as error:
            os.write(ends[1], str(error).encode())
        os._exit(0)
    os.close(ends[1])
    with open(ends[0]) as pipe:
        messages[path] = pipe.read()
    os.wait()
print(json.dumps(messages))
"""


@pytest.fixture(scope="module")
def messages_on_bombs(tmp_path_factory):
    """Name and format of a bomb -> its file, and the error; "" if the process died of it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc, by which Linux tells the memory of a process")
    folder, files = tmp_path_factory.mktemp("bombs"), {("compressed", "torch"): compressed()}
    for name, content in (BOMBS | TORCH_BOMBS).items():
        files |= {(name, kind): wrapped(content, kind) for kind in ("torch", "old")}
        files |= {(name, "pickle"): content} if name in BOMBS else {}
    paths = {}
    for i, (key, content) in enumerate(files.items()):
        paths[key] = folder / f"{i}.{'pkl' if key[1] == 'pickle' else 'pth'}"
        paths[key].write_bytes(content)
    command = [sys.executable, "-c", READER, *map(str, paths.values())]
    done = fresh.run(command, check=True, timeout=900)
    found = json.loads(done.stdout)
    return {key: (str(path), found[str(path)]) for key, path in paths.items()}


@pytest.mark.parametrize(
    "name, kind",
    [
        *((name, kind) for name in BOMBS for kind in ("torch", "old", "pickle")),
        *((name, kind) for name in TORCH_BOMBS for kind in ("torch", "old")),
        ("compressed", "torch"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(messages_on_bombs, name, kind):
    path, message = messages_on_bombs[name, kind]
    assert f"'{path}' cannot be read: it " in message and "\n" not in message
    assert not re.search("not enough memory|MemoryError|alloc|Recursion|Assertion|unpack", message)


def test_an_expanded_tensor_that_is_refused_is_named(messages_on_bombs):
    _, message = messages_on_bombs["an expanded tensor", "torch"]
    assert "time: key of shape (1073741824,) takes 4,294,967,296 bytes, the file" in message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_many_names_of_one_tensor_are_read(tmp_path, zipped):
    weight = torch.zeros(1000, 1000)
    state = {f"{i}.weight": weight for i in range(130)} | {"part": weight[:500]}
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert read(tmp_path / "c.pth").keys() == state.keys()


def test_other_loaders_keep_their_classes(tmp_path):
    torch.save({"a": np.float64(1)}, tmp_path / "c.pth")
    before = {*torch.serialization.get_safe_globals()}
    assert read(tmp_path / "c.pth")["a"] == 1
    assert {*torch.serialization.get_safe_globals()} == before


def test_classes_that_the_user_allows_are_read(tmp_path, safe_globals):
    torch.save(nn.Identity(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"holds torch\.nn\.modules\.linear\.Identity, which"):
        read(tmp_path / "c.pth")
    torch.serialization.add_safe_globals([nn.Identity, set])
    assert isinstance(read(tmp_path / "c.pth"), nn.Identity)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_what_is_shared_and_what_torch_knows_is_read(tmp_path, zipped):
    tensor, shared = torch.randn(3, 4), {"lr": 0.1}
    contents = {
        **{"tensor": tensor, "same": tensor, "view": tensor.T[1:], "none": tensor[:0]},
        **{"expanded": tensor[:1].expand(5, 4), "bfloat16": tensor.bfloat16(), "mask": tensor > 0},
        **{"parameter": nn.Parameter(tensor), "complex": tensor.cfloat().conj()},
        **{"sparse": tensor.to_sparse(), "size": tensor.shape, "device": tensor.device},
        **{"bytes": b"ab", "no bytes": b"", "array": bytearray(b"ab"), "set": {1, 2}},
        **{"groups": [shared] * 1000, "ordered": OrderedDict(a=tensor), "tuple": ((1,), 2)},
    }
    path = tmp_path / "c.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    found = read(path)
    assert torch.equal(found.pop("sparse").to_dense(), contents.pop("sparse").to_dense())
    assert torch.equal(found.pop("ordered")["a"], contents.pop("ordered")["a"])
    for name, value in contents.items():
        same = torch.equal if isinstance(value, torch.Tensor) else type(value).__eq__
        assert same(found[name], value)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_truncated_foreign_and_missing_files_are_named(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    with pytest.raises(CheckpointError, match="does not exist"):
        read(path)
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    write({"weight": torch.ones(100)} if suffix != ".pkl" else ARRAYS, path)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-20], b"GIF89a" + bytes(100), b"\xff\xd8" * 50):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated, or not a checkpoint") as told:
            read(path)
        assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_must_be_a_pkl_and_code_in_it_is_named(tmp_path, trap, protocol):
    content = pickle.dumps({"a": np.ones(2), "model": Harmful(trap)}, protocol)
    expected = {
        "pth": "it is a plain pickle, not a file of torch.save; rename it to .pkl",
        "pkl": "it holds os.makedirs, which may run code; if you trust its source, give --unsafe",
    }
    for suffix, reason in expected.items():
        path = tmp_path / f"c.{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(reason)):
            read(path)
        assert not trap.exists()


def test_a_tar_archive_that_begins_as_a_file_of_torch_does_is_refused(tmp_path):
    path = tmp_path / "c.pth"
    # As the name of its first member: torch's magic number, and four pickles.
    name = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.N.N.N.N."
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin1") as archive:
        archive.addfile(tarfile.TarInfo(name.decode("latin1")))
    assert path.read_bytes().startswith(name) and tarfile.is_tarfile(path)
    with pytest.raises(pickle.UnpicklingError, match="it is a tar archive"):
        check_torch(path)


def rewritten(path, change):
    """A file of torch.save of a tensor, whose records {name: bytes} were changed."""
    torch.save({"a": torch.arange(4.0, dtype=torch.float64)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(records).items():
            archive.writestr(name, data)
    return path


def test_storages_that_torch_reads_otherwise_than_they_are_counted_are_refused(tmp_path):
    def as_tensor_class(records):
        return {name: v.replace(b"DoubleStorage", b"DoubleTensor") for name, v in records.items()}

    def in_capitals(records):
        # The key of the storage, a string of length 1.
        changed = {k: v.replace(b"X\1\0\0\0" + b"0", b"X\1\0\0\0A") for k, v in records.items()}
        return {name.replace("data/0", "data/a"): data for name, data in changed.items()}

    assert read(rewritten(tmp_path / "same.pth", dict))["a"].sum() == 6
    for change, reason in (
        (as_tensor_class, "Can only refer to storages"),
        (in_capitals, "storages take 32 bytes, and the file has 0"),
    ):
        with pytest.raises(pickle.UnpicklingError, match=reason):
            check_torch(rewritten(tmp_path / "c.pth", change))


def test_an_archive_that_torch_may_read_otherwise_is_refused(tmp_path):
    """zipfile skips what is before an archive; torch takes its offsets as they are."""
    path = rewritten(tmp_path / "c.pth", dict)
    torch.save({"a": torch.zeros(3)}, tmp_path / "large.pth")  # with records for 4 GiB and more
    for one, reason in (
        (path, "the offset of the zip directory is wrong"),
        (tmp_path / "large.pth", "the end of the zip archive is not in one piece"),
    ):
        check_torch(one)
        whole = one.read_bytes()
        one.write_bytes(b"PK\3\4".ljust(64, b"\0") + whole)
        with zipfile.ZipFile(one) as archive:
            assert archive.testzip() is None
        with pytest.raises(pickle.UnpicklingError, match=reason):
            check_torch(one)
    path.write_bytes(whole[:-2] + b"\5\0" + b"abcde")
    with pytest.raises(pickle.UnpicklingError, match="data follow the end of the zip archive"):
        check_torch(path)


def test_an_archive_whose_directory_is_broken_is_told(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\3", 1))
    with pytest.raises(CheckpointError, match="it is truncated, or not a checkpoint"):
        read(path)


def test_a_damaged_file_is_read_or_named(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"a.weight": torch.arange(4.0)}, path)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xF5]) + whole[place + 1 :])
        try:
            read(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


def test_torchscript_is_refused_before_it_is_loaded(tmp_path):
    """torch 2.5 and earlier run its code, whatever they are told."""
    as_script(tmp_path / "c.pth")
    with pytest.raises(pickle.UnpicklingError, match="it is a TorchScript archive"):
        check_torch(tmp_path / "c.pth")


def as_folder(path):
    path.mkdir()


def as_script(path):
    torch.jit.script(nn.Linear(2, 3)).save(str(path))


def as_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/file", "text")


@pytest.mark.parametrize(
    "name, make, reason",
    [
        ("c.pth", as_folder, "it is a folder; give a file in it"),
        ("c.pkl", as_folder, "it is a folder; give a file in it"),
        ("c.safetensors", as_folder, "it is a folder; give a file in it"),
        ("c.pth", as_script, "it is a TorchScript archive; save the state_dict() of its module"),
        ("c.pth", as_archive, "it is a zip archive that torch.save did not write"),
        ("c.pkl", partial(torch.save, {}), "it is a file of torch.save; rename it to .pth"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=re.escape(f"{name}' cannot be read: {reason}")):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize(
    "text",
    ["hello world", "epoch 1\nloss 2", '{"a": 1}', "cat\ndog\n", "é" * 2000, "Not found.\r\n"],
)
def test_a_file_of_text_is_named(tmp_path, suffix, text):
    path = tmp_path / f"c{suffix}"
    path.write_text(text, encoding="utf-8")
    begins = " ".join(text[:40].split())
    with pytest.raises(CheckpointError, match=f"it is text, not a checkpoint: {begins!r}"):
        read(path)
