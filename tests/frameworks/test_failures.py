"""Every exception is told in one line, with its status; one that nobody foresaw is logged, too."""

import errno
import importlib
import logging
import os
import re
import runpy
import sys
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
import torch
from launched import options
from torch._utils import ExceptionWrapper

from ilm_plugins.cli.train_net import parser
from ilm_plugins.errors import (
    CheckpointError,
    OptionError,
    PeerError,
    RunError,
    UnexpectedError,
    UserError,
    read_error,
    write_error,
)
from ilm_plugins.frameworks import command as command_line
from ilm_plugins.frameworks.command import (
    RESUME,
    WithoutTracebacks,
    building,
    command,
    explain,
    one_line_errors,
)
from ilm_plugins.frameworks.launch import launch, leave_group
from ilm_plugins.frameworks.output_folder import check_output, lock_run_folder

WIDE = pytest.mark.wide


def of_worker(error):
    """How torch's loader hands on what a worker has raised."""
    try:
        raise error
    except Exception:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as raised:
        wrapper.reraise()
    return raised.value


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """How long a process has waited for the line of another."""
    waited = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waited.append})
    monkeypatch.setattr(command_line, "time", clock)
    return waited


@pytest.mark.parametrize(
    "error, status, words",
    [
        (UserError("a"), 2, "a"),
        (OptionError("a: b"), 2, "a: b"),
        (CheckpointError("a"), 2, "a"),
        (RunError("a"), 1, "a"),
        (of_worker(RunError("image b: c")), 1, "image b: c"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "a file of the run: No space left"),
        (OSError(errno.EIO, "I/O error", "/a/b"), 1, "/a/b: I/O error"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.jpg"), 1, "a.jpg does not exist"),
        (HTTPError("http://a", 404, "Not Found", None, None), 1, "http://a: HTTP Error 404: Not"),
        (FloatingPointError("NaN at iteration 3"), 1, "NaN at iteration 3; lower the learning"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 1, "Make batches or images smaller"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), 1, "Make batches or images smaller"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 1, "Make batches"),
        (RuntimeError("DataLoader worker (pid 3) exited unexpectedly"), 1, "pid 3"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), 1, "of memory"),
        (RuntimeError("[gloo/pair.cc:8] Connection closed by peer [::1]"), 1, "process ended"),
        (RuntimeError("Socket: Connection reset by peer"), 1, "another process ended"),
        (ModuleNotFoundError("x", name="mmcv._ext"), 2, "without its compiled operators"),
    ],
)
def test_what_is_told_in_one_line(error, status, words, patience):
    line = explain(error)
    assert words in str(line) and line.status == status and "Traceback" not in str(line)
    with pytest.raises(UserError, match=re.escape(str(line))), one_line_errors():
        raise error
    assert patience == ([command_line.WAIT_FOR_CAUSE] if "process ended" in words else [])


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("size\nmismatch"), "RuntimeError: size mismatch"),
        (OSError("?"), "OSError: ?"),
        (KeyError("a"), "KeyError: 'a'"),
        (of_worker(ValueError("b")), "ValueError: b"),
        (MemoryError(), "MemoryError"),
        (ValueError("long" * 1000), "ValueError: longlong"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_what_nobody_foresaw_is_told_in_one_line(tmp_path, capsys, error, words, begun, wanted):
    """Its traceback is logged or printed, and says where it came from."""
    args = parser().parse_args(["--config-file", "c.py", *["--traceback"] * wanted])

    def run():
        with lock_run_folder(str(tmp_path), "OUT", args) if begun else nullcontext():
            raise error

    assert isinstance(explain(error), UnexpectedError)
    assert command(run, args) == (1 if begun else 2)
    *printed, line = capsys.readouterr().err.splitlines()
    assert f": error: unexpected {words}" in line and len(line) < 700
    assert "report it with the output of 'python -m ilm_plugins'" in line
    assert ("--resume continues" in line) == begun
    log, text = tmp_path / "error.log", "\n".join(printed)
    assert ("in run\n    raise error\n" in text) == wanted
    assert log.is_file() == begun and (str(log) in line) == begun
    assert ("give --traceback" in line) == (not begun and not wanted)
    if begun:
        assert "in run\n    raise error\n" in log.read_text()


def test_a_folder_that_takes_no_log_hides_no_error(tmp_path, capsys):
    args = parser().parse_args(["--config-file", "c.py"])

    def run():
        with lock_run_folder(str(tmp_path), "OUT", args):
            (tmp_path / "error.log").mkdir()
            raise KeyError("a")

    assert command(run, args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "unexpected KeyError: 'a'; give --traceback" in line


def test_a_traceback_is_printed_of_any_error(capsys):
    args = parser().parse_args(["--config-file", "c.py", "--traceback"])

    def run():
        with building("the model"):
            raise ZeroDivisionError("b")

    assert command(run, args) == 2
    printed = capsys.readouterr().err
    assert 'raise ZeroDivisionError("b")\n' in printed
    assert printed.endswith(
        "the model cannot be built: ZeroDivisionError: b; fix the config or the overrides\n"
    )


def test_full_memory_of_a_gpu_is_no_mistake_of_a_config():
    with pytest.raises(RuntimeError, match=r"Triton Error \[CUDA\]"), building("the model"):
        raise RuntimeError("Triton Error [CUDA]: out of memory")


@pytest.mark.parametrize(
    "kind, rank, status",
    [
        ("UserError", 1, 2),
        pytest.param("RunError", 0, 1, marks=pytest.mark.wide),
        pytest.param("PeerError", 0, 1, marks=pytest.mark.wide),
        pytest.param("CheckpointError", 0, 2, marks=pytest.mark.wide),
    ],
)
def test_what_another_process_has_raised(kind, rank, status):
    with pytest.raises(UserError) as raised:
        launch("launched", options(kind, rank + 1, of=rank), None)
    assert type(raised.value).__name__ == kind and raised.value.status == status
    assert str(raised.value) == "what came in; what to do"


@pytest.mark.parametrize(
    "what, words", [("kill", "by SIGKILL"), pytest.param("exit", "with status 7", marks=WIDE)]
)
def test_a_process_that_says_nothing(what, words):
    with pytest.raises(RunError, match=f"process 1 ended {words}, so the others were stopped; "):
        launch("launched", options(what, 2, of=1), None)


def test_a_process_that_exits_refers_to_its_log():
    """As detectron2's does if metrics differ from TEST.EXPECTED_RESULTS."""
    with pytest.raises(RunError, match="process 0 ended the run with status 1; see its log"):
        launch("launched", options("sys.exit"), None)


def test_errors_pass_from_process_to_process(tmp_path, patience):
    for kind in (UserError, OptionError, CheckpointError, RunError, PeerError, UnexpectedError):
        try:
            raise kind("a: b\u00b5")
        except UserError as error:
            write_error(error, tmp_path / "error")
        read = read_error(tmp_path / "error")
        assert type(read) is kind and str(read) == "a: b\u00b5"
        assert "in test_errors_pass_from_process_to_process" in read.traceback
        with pytest.raises(kind), one_line_errors():
            raise read
    # Another process has waited already.
    assert patience == []
    (tmp_path / "error").write_text("[")
    assert read_error(tmp_path / "error") is read_error(tmp_path / "none") is None


def test_a_defect_in_another_process_is_told_with_its_traceback(tmp_path, capsys):
    args = options("defect")

    def run():
        with lock_run_folder(str(tmp_path), "OUT", args):
            launch("launched", args, None)

    assert command(run, args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: unexpected ZeroDivisionError: of a worker; see" in line
    assert "in main\n" in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize(
    "error, status, line",
    [
        (CheckpointError("a"), 2, "tool.py: error: a\n"),
        (RunError("a"), 1, f"tool.py: error: a. {RESUME}\n"),
        (
            OSError(errno.EIO, "b", "c"),
            1,
            f"tool.py: error: c: b; free space, or fix the file or its permissions. {RESUME}\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, "b", "c"),
            1,
            f"tool.py: error: c does not exist; correct its path, or put it there. {RESUME}\n",
        ),
        (None, 0, ""),
    ],
)
def test_a_command_prints_one_line(error, status, line, capsys, monkeypatch):
    def run():
        if error:
            raise error

    monkeypatch.setattr(sys, "argv", ["/tools/tool.py"])
    args = SimpleNamespace(log_folder="of a run that has begun")
    assert command(run, args) == status
    assert capsys.readouterr().err == line
    # Where nothing can be resumed, it is not said.
    for given, resumes in ((args, False), (None, True)):
        assert command(run, given, resumes) == (2 if status else 0)
        assert capsys.readouterr().err == line.replace(f". {RESUME}", "")


#: Tool -> its module, the function that does its work, and a command line.
TOOLS = {
    "train_net.py": ("cli.train_net", "start", ["--config-file", "c.py"]),
    "convert.py": ("cli.convert", "change_of", ["a.pth", "b.pth", "--to", "EN"]),
    "analyze.py": (
        "cli.analyze",
        "run_images",
        ["omega", "a", "--model", "timm:b", "--checkpoint", "c", "--output", "d"],
    ),
    "reproduce.py": ("reproduction.main", "list_", ["list"]),
    "translate.py": ("pix2pix.translate", "translate", ["a.pth", "b", "c"]),
    "demo.py": ("cli.demo", "run", ["c.yaml"]),
    "make_shapes.py": ("cli.make_shapes", "write_shapes", []),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_tells_what_nobody_foresaw(tool, root, capsys, monkeypatch):
    name, function, argv = TOOLS[tool]
    path = root / "tools" / tool
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env python\n")
    needed = {"translate.py": "mmengine", "make_shapes.py": "PIL", "analyze.py": "matplotlib"}
    pytest.importorskip(needed.get(tool, "torch"), reason=f"{tool} needs {needed.get(tool)}")

    def defect(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(importlib.import_module(f"ilm_plugins.{name}"), function, defect)
    for more in ([], ["--traceback"]):
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}", *argv, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        *printed, line = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        assert line.startswith(f"{tool}: error: unexpected ZeroDivisionError: a defect; ")
        assert any("in defect" in words for words in printed) == bool(more)


def test_a_folder_where_nobody_may_write(tmp_path):
    """Root may write to any other that is read-only."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc, in which not even root can make a file")
    with pytest.raises(UserError, match=r"output folder '/proc' cannot be written: .*; set OUT"):
        check_output("/proc", "OUT")
    check_output(str(tmp_path / "new"), "OUT")
    assert (tmp_path / "new").is_dir()


def test_a_log_keeps_no_traceback(caplog):
    logger = logging.getLogger("of a framework")
    logger.addFilter(WithoutTracebacks())
    for error in (RunError("a"), ZeroDivisionError("b")):
        try:
            raise error
        except Exception:
            logger.exception("Exception during training:")
    assert [record.exc_info for record in caplog.records] == [None, None]


def test_what_holds_a_group_goes_before_it(tmp_path):
    """As the wrapped model of a run does, which only a collection finds."""

    class Model:
        def __init__(self):
            self.itself, self.group = self, torch.distributed.group.WORLD

    file = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    in_group = []
    weakref.finalize(Model(), lambda: in_group.append(torch.distributed.is_initialized()))
    assert not in_group
    for _ in range(2):  # without a group there is nothing to leave
        leave_group()
        assert in_group == [True] and not torch.distributed.is_initialized()
