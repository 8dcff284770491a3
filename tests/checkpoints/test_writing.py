"""Writing files: what a failed or killed write leaves."""

import errno
import locale
import os
import signal
import stat
import sys
import threading
import time

import pytest
import torch

import fresh
from ilm_plugins.checkpoints import PARTIAL, read, remove_partial, replacing, write
from ilm_plugins.errors import RunError

np = pytest.importorskip("numpy", reason="checkpoints of arrays need numpy")


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


@pytest.mark.parametrize("name, why", [("file/c.pth", "Not a directory"), ("c" * 260, "too long")])
def test_a_place_where_nothing_can_be_written_is_told(tmp_path, name, why):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=rf"{name}' cannot be written: .*{why}"):
        write({}, tmp_path / name)


def test_text_is_utf8_whatever_the_locale(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        with replacing(tmp_path / "t", "w") as file:
            file.write("\u00b5")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (tmp_path / "t").read_bytes() == b"\xc2\xb5"


def test_a_file_is_on_the_disk_before_it_is_renamed_and_its_name_afterwards(tmp_path, monkeypatch):
    path, done, rename = tmp_path / "c.pth", [], os.replace

    def replace(*paths):
        done.append("renamed")
        rename(*paths)

    def fsync(handle):
        found = os.fstat(handle)
        if not stat.S_ISDIR(found.st_mode):
            assert found.st_size == 3
        done.append(found.st_ino)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path) as file:
        file.write(b"new")
    assert done == [path.stat().st_ino, "renamed", tmp_path.stat().st_ino]


def test_a_folder_that_is_gone_has_nothing_left(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for error in ("No such file", "No space"):
        with pytest.raises(RunError) as told, replacing(folder / "c.pth"):
            if error == "No space":
                raise OSError(errno.ENOSPC, "No space left on device")
            folder.rename(tmp_path / "gone")
        assert error in str(told.value)
        assert ("What was there before is still there" in str(told.value)) == (error == "No space")
        folder.mkdir(exist_ok=True)


def test_permissions_are_those_of_the_earlier_file(tmp_path):
    path = tmp_path / "a.pth"
    path.touch()
    for mode in (0o600, 0o664):
        path.chmod(mode)
        write({"a": 1}, path)
        assert path.stat().st_mode & 0o777 == mode


def test_a_pipe_and_a_link_stay_what_they_are(tmp_path):
    pipe, texts = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: texts.append(pipe.read_text()))
    reader.start()
    with replacing(pipe, "w") as file:
        file.write("through a pipe")
    reader.join(10)
    assert texts == ["through a pipe"] and pipe.is_fifo()
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for text in ("new", "newer"):
        with replacing(link, "w") as file:
            file.write(text)
        assert link.is_symlink() and target.read_text() == text


def test_two_processes_that_write_one_file_share_no_temporary_one(tmp_path):
    path, code = tmp_path / "c.txt", "import sys\n"
    code += "from ilm_plugins.checkpoints import replacing\n"
    code += "with replacing(sys.argv[1], 'w') as file:\n    file.write('theirs')\n"
    with replacing(path, "w") as file:
        file.write("ou")
        file.flush()
        fresh.run([sys.executable, "-c", code, path], check=True)
        assert path.read_text() == "theirs"
        file.write("rs")
    assert path.read_text() == "ours"


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
    command = [sys.executable, "-c", WRITER, path]
    with open(os.devnull, "w") as nowhere:
        writer = fresh.Process(command, stdout=nowhere, stderr=nowhere)
    partial = tmp_path / f"c.pth.{writer.pid}{PARTIAL}"
    while not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "old" and partial.stat().st_size > 0
    remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_only_temporary_files_of_killed_writes_are_removed(tmp_path):
    own = {"film.iso.partial", "film.iso.12.partial", f"film.iso{PARTIAL}"}
    for name in (*own, f"c.pth.12{PARTIAL}"):
        (tmp_path / name).touch()
    (tmp_path / f"folder.12{PARTIAL}").mkdir()
    remove_partial(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == own | {f"folder.12{PARTIAL}"}
