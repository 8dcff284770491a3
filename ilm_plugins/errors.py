"""Errors that a command prints as one line: what came in, what was expected, what to do.

Every part of the package may raise them; nothing here imports the package.
"""

import json
import os
import traceback
from pathlib import Path

#: Variable of the environment: the file to which a command writes the error that ends it.
ERROR_FILE = "ILM_PLUGINS_ERROR_FILE"


class UserError(Exception):
    """A mistake in the command, its config or its files, which would fail again.

    Attributes:
        status: exit status of the command.
        can_resume: whether ``--resume`` can continue the run; its line then says so.
        traceback: that of the process in which it was raised, if it was another.
    """

    status = 2
    can_resume = False
    traceback = ""


class OptionError(UserError, ValueError):
    """An invalid option of a layer or a conversion."""


class CheckpointError(UserError):
    """A checkpoint that is missing, unreadable or does not fit: which file, why, what to do."""


class RunError(UserError):
    """What ended a run that had begun, such as a full disk; the last checkpoint is still there."""

    status = 1
    can_resume = True


class PeerError(RunError):
    """Another process of the run died; only its own error has the cause."""


class UnexpectedError(UserError):
    """An exception that may be a defect of the program: its type and message."""


def write_error(error: UserError, path: str | os.PathLike) -> None:
    """Write an error, with its traceback, to a file for another process."""
    text = error.traceback or "".join(traceback.format_exception(error))
    Path(path).write_text(json.dumps([type(error).__name__, str(error), text]), encoding="utf-8")


def read_error(path: str | os.PathLike) -> UserError | None:
    """Return the error that another process wrote to a file, or None if it wrote none."""
    try:
        kind, message, text = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    error = globals()[kind](message)
    error.traceback = text
    return error
