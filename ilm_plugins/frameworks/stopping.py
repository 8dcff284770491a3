"""SIGINT and SIGTERM end a command and its loaders; the command then prints one line."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds to wait for a killed process.
PATIENCE = 5
#: The signal that is stopping the command of this process.
received: signal.Signals | None = None


class Stop(KeyboardInterrupt):
    """A signal stops the command; the argument is the signal."""


@contextmanager
def stoppable(signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Raise Stop at a signal, when no child is left, whatever else is raised on its way out.

    Frameworks and torch.save turn it into errors of their own. A signal that this process was
    started to ignore stays ignored; outside of the main thread nothing is done.
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

    # Skip handlers installed from C, which are None; they can't be restored.
    found = ((s, signal.getsignal(s)) for s in signals)
    before = {s: handler for s, handler in found if handler not in (None, signal.SIG_IGN)}
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
        came, received = received, None
        if came:
            _end_children()
        for s, handler in before.items():
            signal.signal(s, handler)
    if came:
        raise Stop(came)


def _end_children() -> None:
    """Kill the processes that multiprocessing has started here, such as a loader's."""
    # torch's handler would raise that a loader's process has ended.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join(PATIENCE)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
