"""What goes wrong around a run of tools/train_net.py, and what the user sees of it."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from ilm_plugins.cli import train_net

TOOL = Path(__file__).parents[1] / "tools" / "train_net.py"
#: What runs the tool such that its checkpoints reach the disk slowly.
SLOWLY = (sys.executable, Path(__file__).with_name("slowly.py"))
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}

#: Values of a state dict that nothing can be computed with, and what they are called.
NOT_DENSE = {
    "meta": (torch.ones(32, device="meta"), "meta tensor"),
    "sparse": (torch.ones(32).to_sparse(), "sparse tensor"),
    "compressed": (torch.ones(4, 8).to_sparse_csr(), "sparse tensor"),
    "quantized": (
        torch.quantize_per_tensor(torch.ones(32), 0.1, 0, torch.qint8),
        "quantized tensor",
    ),
    "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensor"),
    "string": ("one", "str"),
    "list": ([1.0] * 32, "list"),
}


def error_line(argv, capfd, status):
    """The one line that a run ends with."""
    assert train_net.main([str(word) for word in argv]) == status
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return last_line(printed.err)


def last_line(printed):
    line = printed.splitlines()[-1]
    assert ": error: " in line, printed[-2000:]
    return line


def start(argv, run=(sys.executable,), **options):
    """The tool in a process of its own, or several that ``run`` starts."""
    return subprocess.Popen(
        [*run, TOOL, *map(str, argv)],
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process, seconds=300):
    """The one line that it ends with."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "Traceback" not in out + err, (out + err)[-3000:]
    return last_line(err)


@contextmanager
def small_files(size):
    """Let no file of this process grow beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_for(there, process, seconds=180):
    """Wait until a condition holds while a process runs; end the process if that takes too long."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            process.kill()
            process.wait()
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)


def children(pid):
    """The processes that a process has started, but for Python's own resource tracker."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            arguments = (status.parent / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if int(fields["PPid"]) == pid and "resource_tracker" not in arguments:
            found.append(int(fields["Pid"]))
    return sorted(found)


def kill_one_of(process, rank):
    """Kill one of the processes that a process has started."""
    os.kill(children(process.pid)[rank], signal.SIGKILL)


def wait_until_gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; a zombie, which nobody may be there to reap, does not."""
    try:
        return "State:\tZ" not in Path("/proc", str(pid), "status").read_text()
    except OSError:
        return False
