"""Writing files: what a failed or killed write leaves."""

import os
import signal
import sys
import time

import numpy as np
import pytest
import torch

import fresh
from ilm_plugins.checkpoints import PARTIAL, read, remove_partial, replacing, write


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ""])
def test_written_and_read(tmp_path, suffix, monkeypatch):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    path, value = f"~/c{suffix}", torch.eye(3)[:, 1:]
    for scale in (1, 2):
        state = {"weight": scale * value, "tied": scale * value[:1].expand(4, 2)}
        if suffix == ".pkl":
            state = {name: tensor.numpy() for name, tensor in state.items()}
        write(state, path)
        for name, tensor in read(path).items():
            assert np.array_equal(tensor, state[name])
    assert [p.name for p in tmp_path.iterdir()] == [f"c{suffix}"]


def test_a_failed_write_leaves_what_was_there_and_what_a_link_leads_to_is_written(tmp_path):
    path = tmp_path / "c.pth"
    with replacing(path, "w") as file:
        file.write("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["c.pth"]
    (tmp_path / "link").symlink_to(path)
    with replacing(tmp_path / "link", "w") as file:
        file.write("new")
    assert path.read_text() == "new" and (tmp_path / "link").is_symlink()


WRITER = """
import sys
from ilm_plugins.checkpoints import replacing
with replacing(sys.argv[1]) as file:
    for _ in range(10**9):
        file.write(b"new" * 10000)
"""


def test_killed_while_writing_the_old_file_is_there_and_only_the_partial_one_is_removed(tmp_path):
    path = tmp_path / "c.pth"
    path.write_text("old")
    with open(os.devnull, "w") as nowhere:
        writer = fresh.Process([sys.executable, "-c", WRITER, path], stdout=nowhere, stderr=nowhere)
    partial = tmp_path / f"c.pth.{writer.pid}{PARTIAL}"
    while not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "old" and partial.stat().st_size > 0
    others = {"film.iso.partial", "film.iso.12.partial", f"film.iso{PARTIAL}"}
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f"folder.12{PARTIAL}").mkdir()
    remove_partial(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == others | {"c.pth", f"folder.12{PARTIAL}"}
