"""Shared by all command lines: an error ends the command with one line and an exit status."""

import argparse
import errno
import itertools
import logging
import os
import re
import select
import shlex
import signal
import sys
import time
import traceback
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from ..configs import resolve
from ..errors import (
    ERROR_FILE,
    EXTRAS,
    DivergedError,
    PeerError,
    RunError,
    UnexpectedError,
    UserError,
    missing,
    write_error,
)
from .stopping import SIGNALS, Stop, stoppable

Batch = TypeVar("Batch")

#: Last sentence of an error line, if the run can be resumed.
RESUME = "--resume continues from the last checkpoint"
#: Log file for tracebacks of unexpected exceptions, in the output folder.
ERROR_LOG = "error.log"
#: Maximum length of an unexpected exception's message in the line that is printed.
LONGEST = 300
#: Seconds that a process waits after another rank died, so that the other reports its error first.
WAIT_FOR_CAUSE = 10
#: errno values of disk and permission failures.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
#: Message for mmcv without compiled operators.
OPERATORS = (
    "mmcv is installed without its compiled operators, which this config needs; "
    "run 'make install-openmmlab' in a checkout of ilm_plugins"
)
#: Error messages of collective operations when another rank died.
LOST = r"(?i)connection (closed|reset) by peer|broken pipe|gloo.*(timed out|timeout)|NCCL.*remote"


def command(
    run: Callable[[], int | None],
    args: argparse.Namespace | None = None,
    resumes: bool = True,
    signals: tuple[signal.Signals, ...] = SIGNALS,
) -> int:
    """Run a command; on an error or a signal, print one line to stderr.

    Every Exception is turned into a UserError by :func:`one_line_errors`; SystemExit passes. After
    an error, the traceback is printed if ``args.traceback`` is set; that of an unexpected error is
    appended to ``error.log`` in ``args.log_folder``; and the error is written to the file that the
    environment variable :data:`ERROR_FILE` names, if any.

    Args:
        run: does the work of the command; it may return an exit status.
        args: the parsed command line. It has ``traceback`` if :func:`add_traceback` added that
            option, and ``log_folder``, the output folder, once a run has begun.
        resumes: whether the command has an option --resume; where it helps, the line then says so.
        signals: the signals that end the command with one line.

    Returns:
        The exit status. Without an error: what ``run`` returns, or 0 for None. After an error: its
        ``status``, or 2 if no run has begun or the command has no --resume. After a signal: 128 +
        its number. If the reader of stdout has ended, as in ``... | head``: 141, without a line.
    """
    try:
        with stoppable(signals), one_line_errors():
            status = run() or 0
            sys.stdout.flush()
            return status
    except UserError as error:
        if isinstance(error.__cause__, BrokenPipeError) and _is_stdout_closed():
            return 128 + signal.SIGPIPE
        if getattr(args, "traceback", False):
            print(_traceback(error), file=sys.stderr)
        printed = _with_log_hint(error, args) if isinstance(error, UnexpectedError) else error
        line, can_resume = str(printed), printed.can_resume
        begun = getattr(args, "log_folder", None) is not None
        can_resume &= begun
        status = printed.status if resumes and begun else 2
        if file := os.environ.get(ERROR_FILE):
            with suppress(OSError):
                write_error(printed, file)
    except Stop as stop:
        (received,) = stop.args
        line, status, can_resume = f"stopped by {received.name}", 128 + received, True
    if can_resume and resumes and not getattr(args, "eval_only", False):
        line = f"{line.rstrip('.')}. {RESUME}"
    print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    return status


def _is_stdout_closed() -> bool:
    """Return whether stdout is a pipe without a reader; if so, discard what is left to print."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are always reported
    closed = any(events & select.POLLERR for _, events in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def add_traceback(p: argparse.ArgumentParser) -> None:
    """Add the option --traceback to the parser of a command that :func:`command` runs."""
    p.add_argument("--traceback", action="store_true", help="print the traceback of an error")


def progress(
    batches: Iterable[Batch], total: int, size: Callable[[Batch], int] = len
) -> Iterator[Batch]:
    """Yield batches of images; print to stderr how many images are done, and the time left.

    The first line is printed 2 seconds after the start, or later, another at most every 10 seconds.

    Args:
        batches: the batches.
        total: number of images in all batches.
        size: returns the number of images in a batch.
    """
    start, done = time.monotonic(), 0
    due = start + 2
    for batch in batches:
        yield batch
        done += size(batch)
        now = time.monotonic()
        if now >= due and done < total:
            left = (now - start) * (total - done) / done
            print(f"{done:,} of {total:,} images, {left:.0f} s left", file=sys.stderr, flush=True)
            due = now + 10


def example(*lines: str) -> str:
    """Return the end of a command's help: a heading and commands, without "python -m ilm_plugins".

    The parser's ``formatter_class`` must keep lines as they are.
    """
    return "\n".join(["example:", *(f"  python -m ilm_plugins {line}" for line in lines)])


def config_file(word: str) -> str:
    """Return the path of a config from the command line, ``ilm_plugins://NAME`` or a path.

    Raises:
        argparse.ArgumentTypeError: this package has no config NAME.
    """
    try:
        return resolve(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def user_path(word: str) -> Path:
    """Return a path from the command line; shells leave the "~" of ``--output=~/runs`` to it."""
    return Path(os.path.expanduser(word))


def positive(word: str) -> int:
    """Parse an integer from the command line; raise ArgumentTypeError unless it is at least 1."""
    if not re.fullmatch(r"0*[1-9]\d*", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a positive integer; give 1 or more")
    return int(word)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Within this context, convert every exception to a UserError by :func:`explain`.

    UserErrors of one line pass unchanged, and so does what does not derive from Exception, such as
    Stop and SystemExit. If another rank died (PeerError), wait :data:`WAIT_FOR_CAUSE` seconds
    before raising: meanwhile the launcher reports that rank's error, which is the cause, and ends
    all ranks. An error that was read from another process is raised at once.
    """
    try:
        yield
    except Exception as error:
        user_error = explain(error)
        # An error with a traceback was read from another process, which has waited already.
        if isinstance(user_error, PeerError) and not user_error.traceback:
            time.sleep(WAIT_FOR_CAUSE)
        if user_error is error:
            raise
        raise user_error from error


def explain(error: Exception) -> UserError:
    """Convert an exception to a UserError whose message is one line for the user.

    Returns:
        A UserError of one line is returned unchanged. One of several lines comes from a DataLoader
        worker, where torch adds the traceback to the message; it is raised again without. Known
        causes get advice: UserError for mmcv without operators, or for a missing package of an
        extra; DivergedError for NaN (that is, FloatingPointError); RunError for a missing file, a
        wrong address, a full disk or an unusable file, GPU memory, or a dead DataLoader worker;
        PeerError for the loss of another rank. Any other exception becomes an UnexpectedError with
        its type and message.
    """
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        if "\n" not in str(error):
            return error
        # Raised in a DataLoader worker: torch raises the same type with the traceback as message.
        return type(error)(_reason(error).partition(": ")[2])
    if _lacks_operators(error):
        return UserError(OPERATORS)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRAS:
        return missing("this command", error)
    if isinstance(error, FloatingPointError):
        return DivergedError(f"{text}; lower the learning rate, or look at the data")
    if isinstance(error, urllib.error.HTTPError):
        return RunError(f"{error.filename}: {text}; correct the address")
    if isinstance(error, FileNotFoundError) and error.filename:
        return RunError(f"{error.filename} does not exist; correct its path, or put it there")
    if isinstance(error, OSError) and (error.errno in DISK or error.filename):
        file = error.filename or "a file of the run"
        return RunError(f"{file}: {error.strerror}; free space, or fix the file or its permissions")
    if _is_out_of_gpu_memory(error):
        return RunError(f"{text}. Make batches or images smaller, or take more GPUs")
    if isinstance(error, RuntimeError) and re.search("DataLoader worker.*(exited|killed)", text):
        return RunError(f"{text}; the cause may be lack of memory")
    if isinstance(error, RuntimeError) and re.search(LOST, text):
        return PeerError(f"another process ended, so this one stops: {text}")
    return UnexpectedError(_reason(error))


def _is_out_of_gpu_memory(error: Exception) -> bool:
    """Whether the memory of a GPU is full: torch's own error, or one of CUDA, cuBLAS or Triton."""
    full = r"(?i)\b(CUDA|CUBLAS).*(out of memory|ALLOC_FAILED)"
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and re.search(full, str(error)) is not None
    )


def _lacks_operators(error: BaseException | None) -> bool:
    """Whether an exception, or a cause of it, is an mmcv without its compiled operators."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == "mmcv._ext":
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    """Return "TYPE: MESSAGE" of an exception in one line.

    torch puts the traceback of a DataLoader worker into the message; it is removed, and TYPE and
    MESSAGE are those of the worker's exception.
    """
    text = f"{type(error).__name__}: {error}"
    # The lines of the stack are indented; those of the exception follow them.
    *_, last = text.split("Traceback (most recent call last):\n")
    lines = itertools.dropwhile(lambda line: line.startswith(" "), last.splitlines())
    return " ".join(" ".join(lines).split()).removesuffix(":")


def _with_log_hint(error: UnexpectedError, args: argparse.Namespace | None) -> UserError:
    """Return an unexpected error as the error to print, which says where its traceback is.

    If a run has begun, the traceback is appended to ``error.log`` in its output folder.

    Args:
        error: its message is cut to :data:`LONGEST` characters.
        args: the parsed command line; see :func:`command`.

    Returns:
        A RunError if a run has begun, which ``args.log_folder`` tells; otherwise a UserError.
    """
    folder = getattr(args, "log_folder", None)
    log = folder and _append_to_log(error, folder)
    if log:
        where = f"see {log} for the traceback"
    elif getattr(args, "traceback", False):
        where = "the traceback is above"
    else:
        where = "give --traceback for the traceback"
    return (RunError if folder else UserError)(
        f"unexpected {str(error)[:LONGEST].rstrip('.')}; {where}. If the config and "
        "the data are right, report it with the output of 'python -m ilm_plugins'"
    )


def _append_to_log(error: UserError, folder: str) -> Path | None:
    """Append an error's traceback to a folder's error.log, under the time and the command line.

    Returns:
        The path of the log, or None if writing fails, also because the folder is missing.
    """
    path = Path(folder, ERROR_LOG)
    heading = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sys.argv[0]} {shlex.join(sys.argv[1:])}\n"
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(heading + _traceback(error))
    except OSError:
        return None
    return path


def _traceback(error: UserError) -> str:
    """Return the traceback of an error, of the process that raised it first."""
    return error.traceback or "".join(traceback.format_exception(error))


class WithoutTracebacks(logging.Filter):
    """A logging filter that removes tracebacks from a log; :func:`command` prints the error."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True


@contextmanager
def as_user_error(what: str, advice: str) -> Iterator[None]:
    """Within this context, convert exceptions to UserError("WHAT: TYPE: MESSAGE; ADVICE").

    UserErrors and CUDA's out-of-memory errors pass unchanged. An mmcv without compiled operators
    gets a message of its own.

    Args:
        what: what cannot be done, such as "FILE cannot be read".
        advice: what the user can do about it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # configs and models are programs, and raise what they like
        if _is_out_of_gpu_memory(error):
            raise
        if _lacks_operators(error):
            raise UserError(OPERATORS) from error
        raise UserError(
            f"{what}: {type(error).__name__}: {' '.join(str(error).split())}; {advice}"
        ) from error


def building(what: str) -> AbstractContextManager[None]:
    """Within this context, convert exceptions to UserError("WHAT cannot be built: ...")."""
    return as_user_error(f"{what} cannot be built", "fix the config or the overrides")


def reading_config(path: str) -> AbstractContextManager[None]:
    """Within this context, convert exceptions to UserError("PATH cannot be read: ...")."""
    return as_user_error(f"{path} cannot be read", "fix the file")


def overriding(path: str, word: str, form: str) -> AbstractContextManager[None]:
    """Within this context, convert exceptions to a UserError about one override of a config.

    Args:
        path: the config file.
        word: the override from the command line.
        form: the expected syntax, such as "KEY=VALUE".
    """
    return as_user_error(
        f"override {word[:100]} does not fit {path}", f"give {form} with a key that it has"
    )


def describe_path(path: str) -> str:
    """Return the path, marked "(empty)" for a zero-byte file."""
    return f"{path} (empty)" if os.path.isfile(path) and not os.path.getsize(path) else path
