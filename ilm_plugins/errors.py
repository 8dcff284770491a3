"""Errors that a command prints as one line: what came in, what was expected, what to do.

Every part of the package may raise them; nothing here imports the package.
"""

import json
import os
import traceback
from pathlib import Path

#: Environment variable with the path to which a command writes the error that ends it.
ERROR_FILE = "ILM_PLUGINS_ERROR_FILE"


class UserError(Exception):
    """An error that the user can correct: in the command, its config or its files.

    Attributes:
        status: exit status of the command.
        can_resume: whether ``--resume`` can continue the run; the printed line then says so.
        traceback: text of the traceback in the process that raised the error; "" if that is this
            process.
    """

    status = 2
    can_resume = False
    traceback = ""


class OptionError(UserError, ValueError):
    """A layer or a conversion got an invalid option."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable or does not fit a model."""


class RunError(UserError):
    """A failure that ended a started run, such as a full disk; its checkpoints remain."""

    status = 1
    can_resume = True


class DivergedError(RunError):
    """The loss of a training became infinite or NaN."""


class PeerError(RunError):
    """Another process of a distributed run died; only its own error has the cause."""


class UnexpectedError(UserError):
    """An exception that may be a bug in the program; the message has its type and text."""


#: Import name of a package that only some parts need -> the extra that installs it.
EXTRAS = {
    "PIL": "data",
    "fvcore": "reproduction",
    "matplotlib": "analysis",
    "numpy": "data",
    "safetensors": "safetensors",
    "sklearn": "analysis",
    "tensorboard": "pix2pix",
    "torchmetrics": "pix2pix",
}
#: Frameworks, which no extra can install -> what does.
FRAMEWORKS = {
    "detectron2": "install it, or run 'make install-detectron2' in a checkout of ilm_plugins",
    **dict.fromkeys(
        ("mmcv", "mmdet", "mmpretrain", "mmseg"),
        "install it, or run 'make install-openmmlab' in a checkout of ilm_plugins",
    ),
    # Upstream's mmengine imports pkg_resources, which setuptools 82 has no more.
    "mmengine": "pip install onedl-mmengine 'setuptools<82'",
}


def missing(what: str, package: str | ImportError, extra: str | None = None) -> UserError:
    """Return the error "WHAT needs PACKAGE: HOW TO INSTALL IT".

    Args:
        what: what cannot be done.
        package: the import name of a package that is not installed, or of a module in it, or the
            error of its import.
        extra: the extra of this package with all that ``what`` needs; default: by :data:`EXTRAS`.
            Not used for packages that are not in it.
    """
    module = package if isinstance(package, str) else package.name or str(package)
    package = module.partition(".")[0]
    install = FRAMEWORKS.get(package, f"pip install {package}")
    if package in EXTRAS:
        install = f"pip install 'ilm_plugins[{extra or EXTRAS[package]}]'"
    return UserError(f"{what} needs {package}: {install}")


def write_error(error: UserError, path: str | os.PathLike) -> None:
    """Write an error's class name, message and traceback to a JSON file; see :func:`read_error`."""
    text = error.traceback or "".join(traceback.format_exception(error))
    Path(path).write_text(json.dumps([type(error).__name__, str(error), text]), encoding="utf-8")


def read_error(path: str | os.PathLike) -> UserError | None:
    """Return the error that :func:`write_error` wrote to a file of another process.

    Returns:
        An error of the same class and message, with the traceback of the other process as
        ``traceback``; None if the file is missing, unreadable or not valid JSON.

    Raises:
        KeyError: the class of the error is not defined in this module.
    """
    try:
        kind, message, text = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    error = globals()[kind](message)
    error.traceback = text
    return error
