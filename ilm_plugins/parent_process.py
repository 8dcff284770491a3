"""Runs that end with the command that started them, even if it is killed."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

#: Environment variable with the process whose end also ends the run.
PARENT = "ILM_PLUGINS_PARENT"


def command_line(arguments: Sequence[str]) -> list[str]:
    """Return a command of the package, for this Python."""
    return [sys.executable, "-m", "ilm_plugins", *arguments]


def ending_with_us() -> dict[str, str]:
    """Return the environment of a command that ends when this process ends."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent(parent: int | None = None) -> None:
    """Have Linux send SIGTERM to this process when its parent ends.

    By default, the parent is the process in PARENT, if it is set.
    """
    asked = os.environ.pop(PARENT, None)  # not for the children of this process
    if parent is None and asked is not None:
        parent = int(asked)
    if parent is None or sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before
        sys.exit(128 + signal.SIGTERM)
