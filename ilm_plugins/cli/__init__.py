"""The commands: a module for each, whose ``run`` takes the arguments parsed by ``parsers``."""

import signal
import sys


def exit_on_sigterm() -> None:
    """Have SIGTERM raise SystemExit, by which a command ends the run in progress, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
