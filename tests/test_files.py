"""Files: a write that fails or is killed, folders and their lock, files that are damaged."""

import io
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from helpers import processes
from ilm_plugins.checkpoints import write
from ilm_plugins.errors import UserError
from ilm_plugins.files import (
    LOCK,
    PARTIAL,
    lock,
    make_folder,
    read_object,
    remove_partial,
    replacing,
    write_text,
)


def test_a_file_keeps_its_mode(old):
    old.chmod(0o600)
    write({}, old)
    assert old.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def old(tmp_path):
    """A file that says old, alone in its folder."""
    path = tmp_path / "c.pth"
    path.write_text("old")
    return path


def test_a_failed_write_leaves_what_was_there(old):
    with pytest.raises(ZeroDivisionError), replacing(old) as file:
        file.write(bytes(1 // 0))
    assert old.read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["c.pth"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143), OSError(28, "full")])
def test_torch_hides_no_interrupt_and_no_error_of_the_disk(old, error):
    """Whoever calls torch.save, as detectron2's checkpointer; its own error is of its archive."""

    class Failing(io.RawIOBase):
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.tell() > 1000:
                raise error
            return self.file.write(data)

    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind) as raised, replacing(old) as file:
        torch.save({str(i): torch.eye(9) for i in range(9)}, Failing(file))
    assert getattr(raised.value, "filename", str(old)) == str(old)
    assert [*old.parent.iterdir()] == [old]


def test_the_disk_has_a_file_before_it_gets_its_name(old, monkeypatch):
    """Else a power cut may leave an empty file in place of the old one."""
    calls = []

    def record(name):
        call = getattr(os, name)

        def recorded(*args):
            state = os.fstat(args[0]) if name == "fsync" else os.stat(args[0])
            calls.append((name, state.st_ino, state.st_size))
            return call(*args)

        monkeypatch.setattr(os, name, recorded)

    record("fsync"), record("replace")
    with replacing(old) as file:
        file.write(b"new contents")
    (_, first, _), _ = calls
    assert calls == [("fsync", first, 12), ("replace", first, 12)]


def test_a_link_is_replaced_and_what_it_leads_to_stays(old, tmp_path):
    before = old.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(old)
    with replacing(link, "w") as file:
        file.write("new")
    assert (link.read_text(), link.is_symlink()) == ("new", False)
    assert old.read_bytes() == before


@pytest.fixture
def partial(old):
    """The partial file of a process that was killed while it replaced the old one."""
    with open(os.devnull, "w") as nowhere:
        command = [sys.executable, processes.PROGRAMS / "endless_write.py", old]
        writer = processes.Process(command, stdout=nowhere, stderr=nowhere)
    path = old.parent / f"c.pth.{writer.pid}{PARTIAL}"
    while not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    return path


def test_a_kill_while_a_file_is_written_leaves_the_old_one(old, partial):
    assert partial.stat().st_size > 0
    assert old.read_text() == "old"


def test_the_partial_file_of_a_killed_process_is_removed(old, partial):
    remove_partial(old.parent)
    assert not partial.exists()
    assert old.exists()


def test_the_partial_file_of_a_name_is_removed_and_no_other(old, partial):
    remove_partial(old.parent, "b.pth")
    assert partial.exists()
    remove_partial(old.parent, old.name)
    assert [*old.parent.iterdir()] == [old]


def test_two_threads_write_one_file_at_a_time_each_as_a_whole(old):
    with replacing(old, "w") as file:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write, {}, old).result()
        file.write("last")
    assert old.read_text() == "last"
    assert [*old.parent.iterdir()] == [old]


@pytest.mark.parametrize("name", ["film.iso.partial", "film.iso.12.partial", f"film.iso{PARTIAL}"])
def test_files_of_others_are_not_removed(tmp_path, name):
    (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert (tmp_path / name).exists()


def test_the_longest_name_is_written_and_its_partial_file_removed(tmp_path):
    path = tmp_path / ("a" * 255)
    with replacing(path) as file:
        partial = Path(file.name)
    partial.touch()  # as after a kill
    remove_partial(tmp_path, path.name)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "make, kind", [(Path.mkdir, "a folder"), (os.mkfifo, "a device or a pipe")]
)
def test_only_a_file_is_replaced(tmp_path, make, kind):
    make(tmp_path / "c.pth")
    words = rf"/c\.pth' is {kind}; give a file"
    with pytest.raises(UserError, match=words), replacing(tmp_path / "c.pth"):
        pass


def test_a_text_is_written_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    for text in ("old", "ö"):
        write_text(path, text)
    assert path.read_bytes() == "ö".encode()


def test_one_training_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("ilm_plugins.files.PATIENCE", 0.1)
    folder = tmp_path / "runs" / "new"
    with lock(folder), pytest.raises(UserError, match="in use"), lock(folder):
        pass
    (folder / f"c.pth.12{PARTIAL}").touch()
    with lock(folder):
        assert not [*folder.glob(f"*{PARTIAL}")], "files of a killed run are removed"
    other = FileLock(folder / LOCK)  # the one file of all processes
    with other, pytest.raises(UserError, match="in use"), lock(folder):
        pass


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/out"):
        words = (
            rf"'{folder}' cannot be written to \({tmp_path}/file is a file\); set another folder"
        )
        with pytest.raises(UserError, match=words):
            make_folder(folder)


def test_a_read_only_output_folder_is_named(tmp_path, monkeypatch):
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK | os.X_OK)
    with pytest.raises(UserError, match=rf"\({tmp_path} is read-only\)"):
        make_folder(tmp_path / "new")


KINDS = {"count": int, "many": [float], "two": (str, int), "named": {"": bool, "any": object}}


def test_an_object_of_the_kinds_asked_for_is_read(tmp_path):
    contents = {"count": -(2**1000), "many": [0.5, 1.5], "two": ["é", 2], "another": None}
    contents["named"] = {"a": True, "any": 1}
    write_text(tmp_path / "a.json", json.dumps(contents, ensure_ascii=False))
    assert read_object(tmp_path / "a.json", KINDS) == contents
    assert read_object(tmp_path / "a.json") == contents


@pytest.mark.parametrize(
    "text, damage",
    [
        *(("", "Expecting value"), ("{", "Expecting"), ("[" * 10**5, "recursion")),
        *(("[]", r"it is \[\]"), ('{"count": null}', "count is None")),
        (f'{{"count": {-(2**1000) - 1}}}', "count is -10715"),
        *(('{"many": 1.5}', "many is 1.5"), ('{"many": [0.5, 1]}', "many is 1")),
        *(('{"two": ["a"]}', r"two is \['a'\]"), ('{"two": ["a", "b"]}', "two is 'b'")),
        *(('{"named": {"any": 1, "b": 2}}', "b is 2"), ('{"named": 1}', "named is 1")),
    ],
)
def test_a_damaged_file_is_named_with_the_damage(tmp_path, text, damage):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json is damaged \(.*{damage}.*\); move it away"):
        read_object(tmp_path / "a.json", KINDS)
