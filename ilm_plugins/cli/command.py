"""Shared by all commands: how mistakes end them, and the types of their options."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ..configs import resolve
from ..errors import UserError


def command(run: Callable[[], int | None]) -> int:
    """Run a command; print a UserError as one line and return 2. Other exceptions pass."""
    try:
        return run() or 0
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 2


def new_parser(description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, commands without "python -m ilm_plugins"."""
    return argparse.ArgumentParser(
        description=description,
        epilog="\n".join(["example:", *(f"  python -m ilm_plugins {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_file(word: str) -> str:
    """The path of a config from the command line, ``ilm_plugins://NAME`` or a path."""
    try:
        return resolve(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def user_path(word: str) -> Path:
    """A path from the command line; shells leave the "~" of ``--output=~/runs`` as it is."""
    return Path(os.path.expanduser(word))


def positive(word: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a positive integer; give 1 or more")
    return int(word)
