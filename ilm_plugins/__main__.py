"""Run ``python -m ilm_plugins COMMAND``; without COMMAND, print versions and the commands."""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .cli import exit_on_sigterm, parsers
from .errors import DISK, EXTRAS, FRAMEWORKS, UserError, missing, say
from .parent_process import end_with_parent
from .trust import loading

#: Command -> the extra with the packages that it needs, and what it does.
COMMANDS = {
    "train": ("", "train or evaluate a config of detectron2 or OpenMMLab"),
    "compare": ("compare", "train with several norms, and say what differs"),
    "convert": ("data", "convert the norms of a checkpoint, and back"),
    "analyze": ("analysis", "tables of what layers have learned"),
    "reproduce": ("reproduction", "the papers' tables: list, run"),
    "translate": ("pix2pix", "translate images by a trained pix2pix"),
    "make-shapes": ("data", "write the generated dataset shapes"),
    "demo": ("data", "train small detectors on shapes, and show what they find"),
}

#: Commands that other commands start.
INTERNAL = {"run-script": ("compare", "a run of compare --command")}
#: Command -> how to continue after Ctrl-C.
CONTINUING = {
    "train": "the same command with --resume continues from the last checkpoint",
    "compare": "the same command continues",
    "reproduce": "the same command continues",
}


def main(argv: Sequence[str]) -> int:
    """Run a command, the first argument; without one, print versions, keys and commands.

    Ctrl-C and SIGTERM end it with one line, and status 130 and 143; a full or broken disk with one
    line, and status 2.
    """
    is_internal = bool(argv) and argv[0] in INTERNAL
    chosen = argv[0] if is_internal else parser().parse_args(argv[:1]).command
    exit_on_sigterm()  # so that partial files are removed
    try:
        return run(chosen, argv)
    except UserError as error:
        return fail(error)
    except (KeyboardInterrupt, SystemExit) as error:
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.code
        if status not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        words = filter(None, ["stopped", CONTINUING.get(chosen)])
        say(f"\n{Path(sys.argv[0]).name}: {'; '.join(words)}", file=sys.stderr)
        return status
    except OSError as error:
        if error.errno not in DISK:
            raise
        again = CONTINUING.get(chosen, "repeat the command")
        place = error.filename or "the output"
        return fail(f"{place} cannot be written to ({error.strerror}); free space, then {again}")


def run(chosen: str | None, argv: Sequence[str]) -> int:
    """Run the chosen command, and return its exit status."""
    if chosen is None:
        from .cli.environment import report

        say(report())
        say(f"commands     {', '.join(COMMANDS)}; --help says what each does")
        return 0
    # --help and mistakes in options end here, before torch is imported.
    extra, does = (COMMANDS | INTERNAL)[chosen]
    plain = parsers.new_parser(does, chosen).parse_args  # without options
    args = getattr(parsers, chosen.replace("-", "_"), plain)(argv[1:])
    try:
        # In one place for all commands, so that no command runs code from a file by mistake.
        with loading(unsafe=getattr(args, "unsafe", False)):
            return command_module(chosen).run(args) or 0
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS | FRAMEWORKS:
            raise
        raise missing(f"the command {chosen}", error, extra) from error


def fail(message: object) -> int:
    say(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return 2


def command_module(name: str) -> ModuleType:
    return import_module(f"ilm_plugins.cli.{name.replace('-', '_')}")


def parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    p = argparse.ArgumentParser(
        prog="python -m ilm_plugins",
        usage="%(prog)s [COMMAND ...]",
        description="Without a command: versions, and which norms each framework knows, for bug "
        "reports.\n\ncommands:\n"
        + "\n".join(f"  {name:{width}}  {does}" for name, (_, does) in COMMANDS.items())
        + "\n\n%(prog)s COMMAND --help has the options, and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return p


if __name__ == "__main__":
    end_with_parent()
    arguments = sys.argv[1:]
    # The program's name in messages.
    sys.argv = [" ".join(["python -m ilm_plugins", *arguments[:1]]), *arguments[1:]]
    sys.exit(main(arguments))
