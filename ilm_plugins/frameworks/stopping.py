"""Handle SIGINT and SIGTERM: kill child processes, and end the command with one line."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds to wait for a killed process.
WAIT_FOR_EXIT = 5
#: The first signal that arrived and is stopping the command; None before.
received: signal.Signals | None = None


class Stop(KeyboardInterrupt):
    """Raised when a signal stops the command; its argument is the signal."""


@contextmanager
def stoppable(signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Within this context, let signals raise Stop; on exit, restore their handlers.

    If a signal arrived, the exit also kills the processes of multiprocessing, and raises Stop
    again, in place of any other exception, because frameworks and torch.save turn Stop into others.
    Signals that this process ignores, or that a library in C handles, are left alone. Outside the
    main thread the context does nothing.

    Args:
        signals: the signals that raise Stop.

    Raises:
        Stop: one of the signals arrived; its argument is the first that did.
    """
    global received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame) -> None:
        """Handle a signal: raise Stop; in a forked DataLoader worker, exit at once."""
        global received
        if os.getpid() != owner:  # a forked DataLoader worker, which inherited this handler
            os._exit(128 + number)
        received = received or signal.Signals(number)
        # DataLoader workers get the signal, too; torch's SIGCHLD handler would raise in cleanup.
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
    """Kill the processes that multiprocessing has started here, such as DataLoader workers.

    Waits up to :data:`WAIT_FOR_EXIT` seconds for each to end.
    """
    # torch's handler would raise an error when a DataLoader worker ends.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join(WAIT_FOR_EXIT)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
