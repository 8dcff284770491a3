"""SIGINT and SIGTERM end a command with one line, and the processes that it has started with it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds in which a process is gone that has been killed.
PATIENCE = 5
#: The signal that is stopping the command of this process.
received: signal.Signals | None = None


class Stop(KeyboardInterrupt):
    """A signal has come, which is its argument."""


@contextmanager
def stoppable(signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Raise Stop at a signal, whatever becomes of it on its way out, when no child is left.

    Frameworks and torch.save turn it into errors of their own. Processes that are spawned meanwhile
    leave Ctrl-C to this one. A signal that this process has been started to ignore, it ignores;
    nothing is done outside of the main thread.
    """
    global received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame) -> None:
        global received
        if os.getpid() != owner:  # a loader's process, which has inherited this
            os._exit(128 + number)
        received = received or signal.Signals(number)
        # A loader's processes end by the signal, too: torch would raise that in whatever cleans up.
        before.setdefault(signal.SIGCHLD, signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        raise Stop(received)

    # None is of a library in C, which could not be put back.
    found = ((s, signal.getsignal(s)) for s in signals)
    before = {s: handler for s, handler in found if handler not in (None, signal.SIG_IGN)}
    start, SpawnProcess.start = SpawnProcess.start, _start
    try:
        for s in before:
            signal.signal(s, stop)
        yield
    except BaseException:
        if received is None:
            raise
    finally:
        for s in before:
            signal.signal(s, lambda *_: None)
        SpawnProcess.start = start
        came, received = received, None
        if came:
            _end_children()
        for s, handler in before.items():
            signal.signal(s, handler)
    if came:
        raise Stop(came)


def _start(process: SpawnProcess) -> None:
    """Start a process in which SIGINT is blocked."""
    with _quiet_tracker():
        # It would unblock the signal, were it started along with the first process.
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        BaseProcess.start(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Have multiprocessing's tracker remove without a word what killed processes have left."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker")))
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _end_children() -> None:
    """Kill the processes that this one has started, and those that they have."""
    # torch raises there what has become of a loader's processes.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = multiprocessing.active_children()
    for child in children:
        # Nobody shall complain of having lost another: hence it stands still, and theirs go first.
        with suppress(OSError):
            os.kill(child.pid, signal.SIGSTOP)
            for pid in _started_by(child.pid):
                os.kill(pid, signal.SIGKILL)
        child.kill()
    for child in children:
        child.join(PATIENCE)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _started_by(pid: int) -> list[int]:
    """The processes that another has started, where the system tells."""
    files = Path("/proc", str(pid), "task").glob("*/children")
    return [int(word) for file in files for word in file.read_text().split()]


def end_with_parent() -> None:
    """Have this process, if another has spawned it, be killed with that one, where that is Linux.

    torch sends SIGINT then, which a script's background jobs ignore.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it was gone before
        os._exit(1)
