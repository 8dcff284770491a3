"""Run ``python -m ilm_plugins COMMAND``; without COMMAND, print versions and the commands."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from .cli import ending_in_one_line, parsers, run_module
from .errors import say
from .parent_process import end_with_parent

#: Command -> the extra with the packages that it needs, and what it does.
COMMANDS = {
    "train": ("", "train or evaluate a config of detectron2 or OpenMMLab"),
    "compare": ("compare", "train with several norms, and say what differs"),
    "convert": ("data", "convert the norms of a checkpoint, and back"),
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
}


def main(argv: Sequence[str]) -> int:
    """Run a command, the first argument; without one, print versions, keys and commands."""
    is_internal = bool(argv) and argv[0] in INTERNAL
    chosen = argv[0] if is_internal else parser().parse_args(argv[:1]).command
    return ending_in_one_line(partial(run, chosen, argv), CONTINUING.get(chosen))


def run(chosen: str | None, argv: Sequence[str]) -> int:
    """Run the chosen command, and return its exit status."""
    if chosen is None:
        from .cli.environment import report

        say(report())
        say(f"commands     {', '.join(COMMANDS)}; --help says what each does")
        return 0
    # --help and mistakes in options end here, before torch is imported.
    extra, does = (COMMANDS | INTERNAL)[chosen]
    name = chosen.replace("-", "_")
    plain = parsers.new_parser(does, chosen).parse_args  # without options
    args = getattr(parsers, name, plain)(argv[1:])
    return run_module(f"ilm_plugins.cli.{name}", args, chosen, extra)


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
