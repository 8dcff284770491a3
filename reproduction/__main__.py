"""Run ``python -m reproduction list | run | analyze`` in the root of a checkout."""

import sys
from collections.abc import Sequence
from functools import partial

from ilm_plugins.cli import ending_in_one_line, run_module
from ilm_plugins.parent_process import end_with_parent

from .parsers import parse

#: Command -> the module that runs it.
MODULES = {"list": "rows", "run": "rows", "analyze": "analyze"}


def main(argv: Sequence[str]) -> int:
    """Run a command; what the user can correct ends it in one line, with status 2."""
    args = parse(argv)
    run = partial(run_module, f"reproduction.{MODULES[args.action]}", args, args.action, "compare")
    continuing = "the same command continues" if args.action == "run" else None
    return ending_in_one_line(run, continuing)


if __name__ == "__main__":
    end_with_parent()
    arguments = sys.argv[1:]
    # The program's name in messages.
    sys.argv = [" ".join(["python -m reproduction", *arguments[:1]]), *arguments[1:]]
    sys.exit(main(arguments))
