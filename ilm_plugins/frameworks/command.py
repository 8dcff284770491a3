"""What every command line shares: an error ends it with one line and a status."""

import argparse
import errno
import itertools
import logging
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from ..errors import ERROR_FILE, PeerError, RunError, UnexpectedError, UserError, write_error
from .stopping import SIGNALS, Stop, stoppable

#: What a line ends with where the run can continue.
RESUME = "--resume goes on from the last checkpoint"
#: Log file for tracebacks of unexpected exceptions, in the output folder.
ERROR_LOG = "error.log"
#: Maximum length of an unexpected exception's message in the line that is printed.
LONGEST = 300
#: Seconds in which a process that fails by its own mistake has ended, on a busy machine as well.
PATIENCE = 10
#: errno values of disk and permission failures.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
#: Message for mmcv without compiled operators.
OPERATORS = (
    "mmcv is installed without its compiled operators, which this config needs; "
    "run 'make install-openmmlab'"
)
#: Error messages of collective operations when another rank died.
LOST = r"(?i)connection (closed|reset) by peer|broken pipe|gloo.*(timed out|timeout)|NCCL.*remote"


def command(
    run: Callable[[], int | None],
    args: argparse.Namespace | None = None,
    resumes: bool = True,
    signals: tuple[signal.Signals, ...] = SIGNALS,
) -> int:
    """Run a command; on an error, print one line to stderr.

    Args:
        run: may return an exit status of its own.
        args: the command line, with ``traceback`` of :func:`add_traceback`; and, once a run has
            begun, its output folder as ``log_folder``.
        resumes: whether the command has an option --resume.
        signals: end the command with one line, too.

    Returns:
        The exit status: that of ``run``, by default 0; that of the error, 2 for a command without
        --resume; or 128 and the number of the signal.
    """
    try:
        with stoppable(signals), one_line_errors():
            return run() or 0
    except UserError as error:
        if getattr(args, "traceback", False):
            print(_traceback(error), file=sys.stderr)
        told = _report(error, args) if isinstance(error, UnexpectedError) else error
        line, status, can_resume = str(told), told.status if resumes else 2, told.can_resume
        if file := os.environ.get(ERROR_FILE):
            write_error(told, file)
    except Stop as stop:
        (came,) = stop.args
        line, status, can_resume = f"stopped by {came.name}", 128 + came, True
    if can_resume and resumes and not getattr(args, "eval_only", False):
        line = f"{line.rstrip('.')}. {RESUME}"
    print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    return status


def add_traceback(p: argparse.ArgumentParser) -> None:
    """Add --traceback to a command line that :func:`command` runs."""
    p.add_argument("--traceback", action="store_true", help="print the traceback of an error")


def positive(word: str) -> int:
    """Parse a number on the command line; it must be at least 1."""
    number = int(word)
    if number < 1:
        raise ValueError
    return number


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise every exception as the UserError that :func:`explain` makes of it.

    If another rank died, wait first: the launcher ends all ranks with that rank's line.
    """
    try:
        yield
    except Exception as error:
        told = explain(error)
        # One of another process has waited there.
        if isinstance(told, PeerError) and not told.traceback:
            time.sleep(PATIENCE)
        if told is error:
            raise
        raise told from error


def explain(error: Exception) -> UserError:
    """Return the UserError that says in one line what an exception means to the user."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        if "\n" not in str(error):
            return error
        # A loader's worker raised it: torch hands on its type, and the traceback as its message.
        return type(error)(_reason(error).partition(": ")[2])
    if _lacks_operators(error):
        return UserError(OPERATORS)
    if isinstance(error, FloatingPointError):
        return RunError(f"{text}; lower the learning rate, or look at the data")
    if isinstance(error, OSError) and (error.errno in DISK or error.filename):
        file = error.filename or "a file of the run"
        return RunError(f"{file}: {error.strerror}; free space, or fix the file or its permissions")
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return RunError(f"{text}. Make batches or images smaller, or take more GPUs")
    if isinstance(error, RuntimeError) and "DataLoader worker" in text and "exited" in text:
        return RunError(f"{text}; a process out of memory ends so")
    if isinstance(error, RuntimeError) and re.search(LOST, text):
        return PeerError(f"another process is gone, and this one ends with it: {text}")
    return UnexpectedError(_reason(error))


def _lacks_operators(error: BaseException | None) -> bool:
    """Whether an exception comes from mmcv without its compiled operators."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == "mmcv._ext":
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    """Type and message of an exception; of one from a loader's worker, those it had there."""
    text = f"{type(error).__name__}: {error}"
    # Frames are indented; the exception comes behind them.
    *_, last = text.split("Traceback (most recent call last):\n")
    lines = itertools.dropwhile(lambda line: line.startswith(" "), last.splitlines())
    return " ".join(" ".join(lines).split()).removesuffix(":")


def _report(error: UnexpectedError, args: argparse.Namespace | None) -> UserError:
    """Log the traceback of an unexpected error if a run has begun, and say where it is."""
    folder = getattr(args, "log_folder", None)
    log = folder and _log(error, folder)
    if log:
        where = f"see {log} for the traceback"
    elif getattr(args, "traceback", False):
        where = "the traceback is above"
    else:
        where = "give --traceback for the traceback"
    return (RunError if folder else UserError)(
        f"unexpected {str(error)[:LONGEST].rstrip('.')}; {where}. If it is no mistake of the "
        "config or the data, report it with the output of 'python -m ilm_plugins'"
    )


def _log(error: UserError, folder: str) -> Path | None:
    """Append a traceback to a folder's log; return None if that cannot be written."""
    path = Path(folder, ERROR_LOG)
    heading = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(sys.argv)}\n"
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(heading + _traceback(error))
    except OSError:
        return None
    return path


def _traceback(error: UserError) -> str:
    return error.traceback or "".join(traceback.format_exception(error))


class WithoutTracebacks(logging.Filter):
    """Leaves the traceback out of a log's record of an error, which :func:`command` prints."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True


@contextmanager
def refusing(what: str, advice: str) -> Iterator[None]:
    """Raise UserError, "WHAT: REASON; ADVICE", for exceptions that are not for the user yet."""
    try:
        yield
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # configs and models are programs, and raise what they like
        if _lacks_operators(error):
            raise UserError(OPERATORS) from error
        raise UserError(
            f"{what}: {type(error).__name__}: {' '.join(str(error).split())}; {advice}"
        ) from error


def building(what: str) -> AbstractContextManager[None]:
    """Raise UserError for what building ``what`` of a config raises."""
    return refusing(f"{what} cannot be built", "mend the config, or the overrides")


def reading_config(path: str) -> AbstractContextManager[None]:
    """Raise UserError for what reading a config file raises."""
    return refusing(f"{path} cannot be read", "mend the file")


def overriding(path: str, word: str, form: str) -> AbstractContextManager[None]:
    """Raise UserError for what one override of a config raises.

    Args:
        path: the config file.
        word: the override.
        form: of an override, such as KEY=VALUE.
    """
    return refusing(
        f"override {word[:100]} does not fit {path}", f"give {form} with a key that it has"
    )


def describe_path(path: str) -> str:
    """The path, marked "(empty)" for a zero-byte file."""
    return f"{path} (empty)" if os.path.isfile(path) and not os.path.getsize(path) else path
