"""Run ``python -m ilm_plugins COMMAND``; without COMMAND, print versions for a bug report."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .errors import missing

#: Command -> the module whose ``main`` runs it, the extra with what that imports, and what it does.
COMMANDS = {
    "train": ("cli.train_net", "", "train or evaluate a config of detectron2 or OpenMMLab"),
    "convert": ("cli.convert", "data", "convert the norms of a checkpoint, and back"),
    "analyze": ("cli.analyze", "analysis", "tables and pictures of what layers have learned"),
    "reproduce": ("reproduction.main", "reproduction", "the papers' tables: list, run, report"),
    "translate": ("cli.translate", "pix2pix", "translate images by a trained pix2pix"),
    "make-shapes": ("cli.make_shapes", "data", "write the generated dataset shapes"),
    "demo": ("cli.demo", "data", "train small detectors on shapes, and show what they find"),
}


def main(argv: Sequence[str]) -> int:
    """Run a command; without one, print versions and the keys that each framework knows.

    Args:
        argv: the command and its words.

    Returns:
        The exit status: 0, that of the command, or 2 if a package that it needs is not installed,
        which is printed as one line.

    Raises:
        SystemExit: a command line is invalid, or asks for help.
    """
    chosen = parser().parse_args(argv[:1]).command
    if chosen is None:
        from .cli.environment import report

        print(report())
        return 0
    module, extra, _ = COMMANDS[chosen]
    try:
        run = import_module(f"ilm_plugins.{module}").main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ilm_plugins"):
            raise
        line = missing(f"the command {chosen}", error, extra)
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        return 2
    return run(argv[1:])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the first word, ``command``, which may be missing."""
    width = max(map(len, COMMANDS))
    p = argparse.ArgumentParser(
        prog="python -m ilm_plugins",
        usage="%(prog)s [COMMAND ...]",
        description="Without a command: versions, and which norms each framework knows, for bug "
        "reports.\n\ncommands:\n"
        + "\n".join(f"  {name:{width}}  {does}" for name, (_, _, does) in COMMANDS.items())
        + "\n\n%(prog)s COMMAND --help has the options, and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return p


if __name__ == "__main__":
    words = sys.argv[1:]
    # The program's name in messages.
    sys.argv = [" ".join(["python -m ilm_plugins", *words[:1]]), *words[1:]]
    sys.exit(main(words))
