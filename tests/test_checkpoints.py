"""Files of checkpoints: what is refused, and what a failed or killed write leaves."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections import OrderedDict

import pytest
import torch

from ilm_plugins.checkpoints import (
    PARTIAL,
    CheckpointError,
    CheckpointWriteError,
    allow,
    check_fits,
    loading,
    read,
    remove_partial,
    replacing,
    write,
)
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
        CheckpointError, match=r"holds os.makedirs, which may run code.*--unsafe-ch"
    ) as told:
        read(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value) and not trap.exists()
    read(path, unsafe=True)
    assert trap.exists()


def test_no_load_within_a_run_is_unsafe_but_where_the_user_says_so(tmp_path, trap):
    path = save({"model": Harmful(trap)}, tmp_path / "c.pth")
    with loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    with loading():  # processes that are started meanwhile, too
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 1
    assert not trap.exists()
    with loading(unsafe=True):
        read(path)
    assert trap.exists()
    assert not [name for name in os.environ if "WEIGHTS_ONLY" in name]


def test_what_is_allowed_is_called_by_the_name_in_the_file(tmp_path):
    class Named:
        def __reduce__(self):
            return setattr, ("x", "upper", 0)

    path = save([Named()], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"holds (builtins\.)?setattr, which may run code"):
        read(path)
    before = torch.serialization.get_safe_globals()
    allow("builtins.setattr", lambda *args: args)
    try:
        assert read(path) == [("x", "upper", 0)]
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": np.float32(2),
    "c": np.array(["x"]),
    "n": [1, None],
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_arrays_are_data(tmp_path, suffix):
    found = read(save(OrderedDict(ARRAYS), tmp_path / f"c{suffix}"))
    assert (
        found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        and found["b"] == 2
        and found["n"] == [1, None]
    )


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_every_numpy_are_data(tmp_path, module):
    path = tmp_path / "c.pkl"
    content = pickle.dumps(np.arange(3.0), protocol=2)
    ours = np.arange(3.0).__reduce__()[0].__module__.encode()
    assert ours in content
    path.write_bytes(content.replace(ours, module))
    assert read(path).tolist() == [0, 1, 2]


def test_arrays_of_objects_are_not(tmp_path):
    path = save({"a": np.array([{}], object)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="more than data"):
        read(path)


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
        with pytest.raises(CheckpointError, match="truncated, or no checkpoint") as told:
            read(path)
        assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_written_and_read(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    value = np.ones(3) if suffix == ".pkl" else torch.eye(3).T
    write({"weight": value}, tmp_path / f"c{suffix}")
    assert torch.equal(
        torch.as_tensor(read(tmp_path / f"c{suffix}")["weight"]), torch.as_tensor(value)
    )
    assert [p.name for p in tmp_path.iterdir()] == [f"c{suffix}"]


def test_a_disk_without_room_leaves_what_was_there(tmp_path):
    path = tmp_path / "c.pth"
    write({"a": torch.zeros(10)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            CheckpointWriteError, match=r"c\.pth' cannot be written: File too large"
        ):
            write({"a": torch.randn(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(read(path)["a"]) == 10 and [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_a_defect_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "c.pth"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["c.pth"]


WRITER = """
import sys
from ilm_plugins.checkpoints import replacing
with replacing(sys.argv[1]) as file:
    for _ in range(10**9):
        file.write(b"new" * 10000)
"""


def test_killed_while_writing_the_old_file_is_there_and_the_partial_one_can_be_removed(tmp_path):
    path = tmp_path / "c.pth"
    path.write_text("old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path])
    partial = tmp_path / f"c.pth{PARTIAL}"
    while not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
        assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "old" and partial.stat().st_size > 0
    remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_a_checkpoint_of_another_model_is_told_from_one_of_a_part():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    names = list(model.state_dict())
    check_fits("c.pth", model, names[:1], names[1:])
    with pytest.raises(
        CheckpointError, match=r"'c.pth' is of another model.* 4 tensors.*fc.weight"
    ):
        check_fits("c.pth", model, ["fc.weight"], names)
    check_fits("c.pth", torch.nn.ReLU(), [], [])
