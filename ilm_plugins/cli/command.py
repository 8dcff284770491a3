"""How mistakes end all commands."""

import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError


def command(run: Callable[[], int | None]) -> int:
    """Run a command; print a UserError as one line and return 2. Other exceptions pass."""
    try:
        return run() or 0
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 2
