"""Output folders, each for one training at a time."""

import multiprocessing
import os
import re
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from faults import error_line
from ilm_plugins.checkpoints import PARTIAL
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import output_folder
from ilm_plugins.frameworks.output_folder import LOCK, lock_run_folder
from runs import detectron2_command, mmengine_command, write_mmengine_config


def options(eval_only=False, launcher="none", machine_rank=0):
    return SimpleNamespace(eval_only=eval_only, launcher=launcher, machine_rank=machine_rank)


def own(folder, children):
    with lock_run_folder(str(folder), "OUT", options()):
        child = os.fork()
        if child:
            children.put(child)
        time.sleep(600)


@contextmanager
def held(folder):
    """A process that has a folder, and its child, as a loader has them."""
    context = multiprocessing.get_context("fork")
    children = context.Queue()
    owner = context.Process(target=own, args=(folder, children))
    owner.start()
    child = children.get(timeout=60)
    try:
        yield owner
    finally:
        os.kill(child, signal.SIGKILL)
        owner.kill()
        owner.join()


def test_a_folder_is_for_one_training(tmp_path, monkeypatch):
    with held(tmp_path) as owner:
        live = tmp_path / f"c.pth.1{PARTIAL}"
        live.touch()
        words = rf"output folder '{tmp_path}' is in use by process {owner.pid} on \S+; .*set OUT"
        with (
            pytest.raises(UserError, match=words),
            lock_run_folder(str(tmp_path), "OUT", options()),
        ):
            pass
        # Those that write nothing there share it.
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("SLURM_PROCID", "1")
        for other in (
            {"eval_only": True},
            {"launcher": "pytorch"},
            {"launcher": "slurm"},
            {"machine_rank": 1},
        ):
            with lock_run_folder(str(tmp_path), "OUT", options(**other)):
                assert live.exists()
        monkeypatch.setenv("RANK", "0")
        with (
            pytest.raises(UserError),
            lock_run_folder(str(tmp_path), "", options(launcher="pytorch")),
        ):
            pass


def test_a_lock_ends_with_its_process(tmp_path):
    """Although a child, such as a loader's, lives on."""
    with held(tmp_path) as owner:
        (tmp_path / f"c.pth.1{PARTIAL}").touch()
        owner.kill()
        owner.join()
        for _ in range(2):
            with lock_run_folder(str(tmp_path), "OUT", options()):
                assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_file_system_without_locks_is_shared(tmp_path, monkeypatch):
    def lockf(*args):
        raise OSError("no locks available")

    monkeypatch.setattr(output_folder.fcntl, "lockf", lockf)
    (tmp_path / f"c.pth.1{PARTIAL}").touch()
    with lock_run_folder(str(tmp_path), "OUT", options()):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("framework, made", [("detectron2", "detectron2"), ("mmseg", "openmmlab")])
def test_a_second_training_in_a_folder_is_refused(framework, made, datasets, tmp_path, capfd):
    pytest.importorskip(framework, reason=f"needs {framework}: make install-{made}")
    out = tmp_path / "out"
    out.mkdir()
    if framework == "detectron2":
        argv, setting = detectron2_command(out=out), "OUTPUT_DIR"
    else:
        config = write_mmengine_config(tmp_path / "fcn.py", datasets)
        argv, setting = mmengine_command(config, out=out), "work_dir"
    with held(out) as owner:
        line = error_line(argv, capfd, status=2)
    assert re.search(rf"'{out}' is in use by process {owner.pid} on .*set {setting}$", line)
    assert [path.name for path in out.iterdir()] == [LOCK]
