"""The commands: a module for each, whose ``run`` takes the arguments parsed by ``parsers``."""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..errors import DISK, EXTRAS, FRAMEWORKS, UserError, missing, say
from ..trust import loading


def exit_on_sigterm() -> None:
    """Have SIGTERM raise SystemExit, by which a command ends the run in progress, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def ending_in_one_line(command: Callable[[], int], continuing: str | None = None) -> int:
    """Run a command, and return its exit status; ``continuing`` says how to continue it.

    Ctrl-C and SIGTERM end it with one line, and status 130 and 143; an error that the user can
    correct, and a full or broken disk, with one line, and status 2.
    """
    exit_on_sigterm()  # so that partial files are removed
    try:
        return command()
    except UserError as error:
        return fail(error)
    except (KeyboardInterrupt, SystemExit) as error:
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.code
        if status not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        stopped = f"stopped; {continuing}" if continuing else "stopped"
        say(f"\n{Path(sys.argv[0]).name}: {stopped}", file=sys.stderr)
        return status
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename or "the output"
        again = continuing or "repeat the command"
        return fail(f"{place} cannot be written to ({error.strerror}); free space, then {again}")


def run_module(module: str, args: Namespace, name: str, extra: str = "") -> int:
    """Run the module of a command, and return its exit status; an extra has what it needs."""
    try:
        # In one place for all commands, so that no command runs code from a file by mistake.
        with loading(unsafe=getattr(args, "unsafe", False)):
            return import_module(module).run(args) or 0
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS | FRAMEWORKS:
            raise
        raise missing(f"the command {name}", error, extra) from error


def fail(message: object) -> int:
    say(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return 2
