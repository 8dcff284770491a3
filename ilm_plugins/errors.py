"""Errors that a command prints as one line: what came in, what was expected, what to do.

Every part of the package may raise them; nothing here imports the package.
"""


class UserError(Exception):
    """A mistake in the command, its config or its files, which would fail again.

    Attributes:
        status: exit status of the command.
        can_resume: whether ``--resume`` can continue the run; its line then says so.
    """

    status = 2
    can_resume = False


class OptionError(UserError, ValueError):
    """An invalid option of a layer or a conversion."""


class CheckpointError(UserError):
    """A checkpoint that is missing, unreadable or does not fit: which file, why, what to do."""


class RunError(UserError):
    """What ended a run that had begun, such as a full disk; the last checkpoint is still there."""

    status = 1
    can_resume = True


class PeerError(RunError):
    """Another process of the run died; only its own error has the cause."""
