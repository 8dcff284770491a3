"""Checkpoints with more than data: they reach neither code, nor memory, nor other files.

No file here can harm the reader of another package. Each breaks a rule in a way that would change
nothing, or that numpy or torch refuses as well; the rule refuses it as it refuses harmful files.
With numpy 2.2.6 and torch 2.11.0, such files ended the process by a signal: an array whose
dtype has fields of objects, and flags that deny them; a value with an ``__array_interface__``, from
whose address numpy reads; a quantized tensor that claims more than its storage.
"""

import copyreg
import pickle
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from helpers import processes
from helpers.workers import Built
from ilm_plugins.checkpoints import CheckpointError, read
from ilm_plugins.checkpoints.pickled import check_contents

RECONSTRUCT = np.zeros(1).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
SCALAR = np.float32(1).__reduce__()[0]
OBJECT, NUMBER = np.dtype("O"), np.dtype("f8")
#: What numpy asks a value for to read it as an array; without an address, it refuses the value.
INTERFACE = {"version": 3}


def save(contents, path, protocol=2):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(contents, protocol))
    else:
        torch.save(contents, path)
    return path


def dtype(name, fields=None, names=None, subarray=None):
    """A dtype with parts that numpy refuses, too: names without fields, or an empty subarray."""
    return Built(np.dtype, (name, False, True), (3, "|", subarray, names, fields, 16, 1, 0))


def array(kind, data=bytes(16), shape=(1,)):
    return Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, kind, False, data))


def plain(*shape):
    """An array of sixteen bytes that claims a shape."""
    return array(np.dtype("u1"), shape=shape)


HOSTILE = {
    "names of fields in text": array(dtype("S16", names=("a", "b"))),
    "an element of several": array(dtype("S16", subarray=())),
    "names of fields": array(dtype("V16", names=("a", "b"))),
    "objects": np.array([1, None], object),
    "objects in no bytes": array(OBJECT, b"", (0,)),
    "bytes of a size": Built(bytes, (16,)),
    "a structure": np.zeros(2, "f4, i4"),
    "more than there is": plain(17),
    "more than there is, in two sizes": plain(17, 4),
    "a negative size": plain(-16),
    "text of no length": array(Built(np.dtype, ("S0", False, True)), b"", (1,)),
    "a buffer of another size": Built(FROM_BUFFER, (bytes(8), NUMBER, (2,), "C")),
    "a number of another size": Built(SCALAR, (NUMBER, b"1234")),
    "an array made in place": Built(np.ndarray, ((1,), NUMBER, bytes(8))),
    "objects made in place": Built(np.ndarray, ((1,), OBJECT, bytes(8))),
    "an array without contents": Built(RECONSTRUCT, (np.ndarray, (0,), b"b")),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("contents", HOSTILE.values(), ids=HOSTILE)
def test_arrays_that_are_not_numbers_of_their_size_are_refused(tmp_path, contents, suffix):
    path = save({"state_dict": {"x": contents}}, tmp_path / f"c{suffix}")
    with pytest.raises(CheckpointError, match=r"which may run code|not a checkpoint") as told:
        read(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_an_array_of_objects_is_named_with_the_way_to_read_it(tmp_path, suffix):
    path = save({"x": np.array([None])}, tmp_path / f"c{suffix}")
    with pytest.raises(CheckpointError, match=r"it holds numpy\.dtype\('O8'\), .*give --unsafe$"):
        read(path)
    assert read(path, unsafe=True)["x"].tolist() == [None]


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_file_gives_nothing_that_numpy_would_read_an_address_from(tmp_path, suffix):
    contents = OrderedDict(x=1)
    contents.__array_interface__ = INTERFACE
    contents._metadata = {"": {"version": 2}}
    found = read(save([contents], tmp_path / f"c{suffix}"))[0]
    assert found == {"x": 1}
    assert vars(found) == {"_metadata": {"": {"version": 2}}}


def test_numpy_reads_no_address_while_a_file_is_unpickled(tmp_path):
    """An array's element is set to an object that numpy could take for an array."""
    address = OrderedDict()
    address.__array_interface__ = INTERFACE
    array = pickle.dumps(Built(FROM_BUFFER, (bytes(8), NUMBER, (1,), "C")), 3)[:-1]
    item = pickle.dumps(address, 3)[2:-1]  # without the protocol and the end
    (tmp_path / "c.pkl").write_bytes(array + b"N" + item + b"s.")
    with pytest.raises(CheckpointError, match=r"TypeError: float\(\) argument must be"):
        read(tmp_path / "c.pkl")


def test_a_tensor_gets_no_attribute_that_numpy_would_read_an_address_from(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.__array_interface__ = INTERFACE
    found = read(save({"x": parameter}, tmp_path / "c.pth"))["x"]
    assert not vars(found)
    assert found.tolist() == [1, 1]


def rebuilt(function, *args):
    return Built(getattr(torch._utils, f"_rebuild_{function}"), args)


def sparse(index):
    parts = torch.tensor([[index]]), torch.ones(1), (4,), None
    return rebuilt("sparse_tensor", torch.sparse_coo, parts)


@pytest.mark.filterwarnings("ignore:Sparse")  # torch's own advice
def test_indices_of_sparse_tensors_are_checked(tmp_path):
    """A repeated index reaches no memory beyond the tensor; the same check refuses one that would.

    Unless it is asked to, torch 2.11.0 follows an index beyond the size where the tensor is used.
    """
    index = torch.tensor([0, 2]), torch.tensor([1, 1])
    twice = torch.sparse_csr_tensor(*index, torch.ones(2), size=(1, 4), check_invariants=False)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read(save({"x": twice}, tmp_path / "c.pth"))


def larger_than_its_storage():
    """A tensor whose memory is freed, as FSDP frees it; torch.load refuses to make one."""
    tensor = torch.zeros(4)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    "around",
    [
        lambda tensor: tensor,
        lambda tensor: {tensor: 1},
        lambda tensor: {tensor},
        lambda tensor: (tensor,),
        lambda tensor: {"a": [tensor]},
    ],
    ids=["alone", "a key", "in a set", "in a tuple", "in a list"],
)
def test_tensors_beyond_their_memory_are_refused(around):
    with pytest.raises(pickle.UnpicklingError, match="larger than its storage"):
        check_contents({"x": around(larger_than_its_storage())})


def test_a_tensor_may_fill_its_storage_and_have_no_value_more():
    """Of steps, and at an offset, as a view of a larger tensor has them."""
    base = torch.zeros(12)
    view = base.as_strided((2, 3), (6, 2), 1)  # its last value is the last of the storage
    check_contents({"x": view})
    base.untyped_storage().resize_(11 * base.element_size())
    with pytest.raises(pickle.UnpicklingError, match="larger than its storage"):
        check_contents({"x": view})


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own code uses it
@pytest.mark.parametrize("zipped", [True, False])
def test_quantized_tensors_are_refused(tmp_path, zipped):
    path = tmp_path / "c.pth"
    tensor = torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8)
    torch.save({"x": tensor}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds torch\._utils\._rebuild_qtensor"):
        read(path)
    assert read(path, unsafe=True)["x"].is_quantized


def test_a_quantized_tensor_in_a_compressed_file_is_refused(tmp_path):
    path, other = tmp_path / "c.pth", tmp_path / "compressed.pth"
    torch.save({"x": torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name.replace("data.pkl", "DATA.pkl"), old.read(name))
    with pytest.raises(CheckpointError, match=r"holds torch\._utils\._rebuild_qtensor"):
        read(other)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own code uses it
def test_a_quantized_tensor_before_an_appended_zip_is_refused(tmp_path):
    """torch reads the older format at the file's beginning, zipfile the archive at its end."""
    path = tmp_path / "c.pth"
    tensor = torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8)
    torch.save({"x": tensor}, path, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other", b"")
    with pytest.raises(CheckpointError, match=r"holds torch\._utils\._rebuild_qtensor"):
        read(path)


UNREAD = {
    "a structure": (OrderedDict, np.zeros(2, "f4, i4")),
    "a quantized tensor": (
        complex,
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8),
    ),
    "a number": (complex, 1.0),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own code uses it
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("contents", UNREAD.values(), ids=UNREAD)
def test_a_command_refuses_an_argument_before_a_function_gets_it(tmp_path, contents, suffix):
    """In a process of its own: a harmful argument would end it while the file is unpickled."""
    function, given = contents
    path = save(Built(function, (given,)), tmp_path / f"c{suffix}")
    words = "convert", path, tmp_path / "out.pth", "--to", "EN"
    done = processes.run([sys.executable, "-m", "ilm_plugins", *words])
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_tensors_at_the_end_of_their_memory_are_read(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    given = {"part": whole[1:, 1:], "turned": whole.t(), "spread": whole[:1].expand(5, 3)}
    given |= {"none": whole[:0], "sparse": sparse(3)}
    found = read(save(given, tmp_path / "c.pth"))
    assert all(torch.equal(found[name], given[name]) for name in ("part", "turned", "spread"))
    assert found["sparse"].to_dense().tolist() == [0, 0, 0, 1]


def test_a_pickle_of_tensors_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds torch\._utils\._rebuild_tensor_v2"):
        read(save({"x": torch.ones(2)}, tmp_path / "c.pkl"))


def test_classes_keep_their_attributes(tmp_path):
    """A state that is built on a class would change it for all files that are read later."""
    (tmp_path / "c.pkl").write_bytes(b"cnumpy\ndtype\n(N(dS'build'\nNstb.")
    with pytest.raises(CheckpointError, match="may run code"):
        read(tmp_path / "c.pkl")
    path = save(np.ones(2), tmp_path / "good.pkl")
    assert read(path).tolist() == [1, 1]


def test_an_array_that_gets_its_contents_twice_is_refused(tmp_path):
    """numpy would free memory that a tensor of the file may share by then."""
    whole, state = plain(16), (1, (16,), np.dtype("u1"), False, bytes(16))
    content = pickle.dumps(whole, 2)[:-1] + pickle.dumps(state, 2)[2:-1] + pickle.BUILD + b"."
    (tmp_path / "c.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match="contents twice"):
        read(tmp_path / "c.pkl")


def test_what_another_unpickler_has_found_is_refused(tmp_path):
    """Python keeps in one place for all what a number of copyreg's registry stands for."""
    copyreg.add_extension("builtins", "print", 240)
    try:
        path = save([print], tmp_path / "c.pkl")
        pickle.loads(path.read_bytes())  # it is kept from now on
        with pytest.raises(CheckpointError, match="may run code"):
            read(path)
    finally:
        copyreg.remove_extension("builtins", "print", 240)


def test_a_number_in_a_pickle_claims_no_memory(tmp_path):
    """Python's unpickler in C makes a list of as many places as the largest number of a memo."""
    count = 10**5
    (tmp_path / "c.pkl").write_bytes(b"\x80\x02K\x07r" + count.to_bytes(4, "little") + b".")
    tracemalloc.start()
    try:
        assert read(tmp_path / "c.pkl") == 7
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * count


def test_a_persistent_id_is_refused(tmp_path):
    (tmp_path / "c.pkl").write_bytes(b"Pstorage\n.")
    with pytest.raises(CheckpointError, match="persistent"):
        read(tmp_path / "c.pkl")


@pytest.fixture
def log():
    logging = pytest.importorskip("mmengine.logging", reason="needs mmengine")
    return logging.HistoryBuffer([1.0, 2.0], [1, 1])


def test_logs_take_only_histories_of_a_file(tmp_path, log):
    methods = {**type(log)._statistics_methods}
    vars(log).update(_statistics_methods={"mean": type(log).max}, __array_interface__=INTERFACE)
    found = read(save([log], tmp_path / "c.pth"))[0]
    assert vars(found).keys() == {"max_length", "_log_history", "_count_history"}
    assert type(log)._statistics_methods == methods
    assert found.statistics("mean") == 1.5


@pytest.mark.parametrize("part", ["_log_history", "_count_history", "max_length"])
def test_a_log_without_arrays_and_a_length_is_refused(tmp_path, log, part):
    vars(log)[part] = [1.0]
    with pytest.raises(CheckpointError, match="a log without arrays and a length"):
        read(save([log], tmp_path / "c.pth"))
