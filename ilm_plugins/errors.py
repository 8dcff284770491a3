"""Errors that a command prints as one line: what came in, what was expected, what to do.

Every part of the package may raise them; nothing here imports the package.
"""

import errno
import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


class UserError(Exception):
    """An error that the user can correct: in the command, its config or its files."""

    def __str__(self) -> str:
        return printable(super().__str__())


class OptionError(UserError, ValueError):
    """A layer or a conversion got an invalid option."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable or does not fit a model."""


#: errno values of a disk that is full, read-only or broken.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def writing_to(path: object) -> Iterator[None]:
    """Give an OSError in the block the name of the file or folder, if it has none."""
    earlier = sys.exc_info()[1]
    try:
        yield
    except (OSError, RuntimeError, SyntaxError) as error:
        # torch cannot end its archive after an error of the disk or a signal: its second error, a
        # RuntimeError, hides the first one, as MMEngine's SyntaxError hides a signal while a config
        # is formatted. An error that the caller is handling is no cause.
        is_second = not isinstance(error, OSError) and error.__context__ is not earlier
        cause = error.__context__ if is_second else error
        # One without a number would lose its text.
        if isinstance(cause, OSError) and cause.errno is not None and cause.filename is None:
            cause.filename = str(path)
        if isinstance(cause, OSError | KeyboardInterrupt | SystemExit):
            raise cause from None
        raise


#: Import name of a package that only some parts need -> the extra that installs it.
EXTRAS = {
    "PIL": "data",
    "matplotlib": "compare",
    "numpy": "data",
    "pandas": "compare",
    "safetensors": "safetensors",
    "scipy": "compare",
    "submitit": "cluster",
    "tensorboard": "pix2pix",
    "torchmetrics": "pix2pix",
    "tqdm": "data",
}
#: mmcv's compiled operators: its wheel has them, if it was built with torch beside it.
OPERATORS = "mmcv._ext"
_MAKE = "or run 'make install-openmmlab' in a checkout of ilm_plugins"
#: Packages that no extra can install -> what does.
FRAMEWORKS = {
    "cv2": "pip install opencv-python-headless",
    "detectron2": "install it, or run 'make install-detectron2' in a checkout of ilm_plugins",
    "fvcore": "pip install fvcore",
    "mmcv": f"MMCV_WITH_OPS=0 pip install onedl-mmcv, {_MAKE}",
    "mmdet": f"pip install onedl-mmdetection, {_MAKE}",
    "mmpretrain": f"pip install onedl-mmpretrain, {_MAKE}",
    "mmseg": f"pip install onedl-mmsegmentation, {_MAKE}",
    OPERATORS: "run 'make install-openmmlab' in a checkout of ilm_plugins",
    # Upstream's mmengine and detectron2 import pkg_resources, which setuptools 82 has no more.
    "mmengine": "pip install onedl-mmengine 'setuptools<82'",
    "pkg_resources": "pip install 'setuptools<82'",
    "torchvision": "pip install torch torchvision, both from the index of your torch",
}


def missing(what: str, package: str | ImportError, extra: str | None = None) -> UserError:
    """Return the error "WHAT needs PACKAGE: HOW TO INSTALL IT", by a module or its ImportError."""
    module = package if isinstance(package, str) else package.name or str(package)
    if module == OPERATORS:
        return UserError(f"{what} needs mmcv with its compiled operators: {FRAMEWORKS[OPERATORS]}")
    package = module.partition(".")[0]
    install = FRAMEWORKS.get(package, f"pip install {package}")
    if package in EXTRAS:
        install = f"pip install 'ilm_plugins[{extra or EXTRAS[package]}]'"
    return UserError(f"{what} needs {package}: {install}")


def broken_import(what: str, error: ImportError) -> UserError:
    """Return the error of a config or model with an import that fails."""
    first: BaseException = error
    while isinstance(before := first.__cause__ or first.__context__, ImportError):
        first = before  # frameworks raise another error from it
    reason = f"{type(first).__name__}: {one_line(first)}"
    return UserError(f"{what}: {reason}; install the package, or correct the import")


def one_line(error: object) -> str:
    """Return the text of an error, or a text, in one line."""
    return " ".join(str(error).split())


def printable(text: object) -> str:
    """Return a text in which escapes replace what moves a terminal's cursor or changes colors.

    Names in a file may have such characters.
    """
    characters = str(text)
    if characters.isprintable():
        return characters
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in characters)


def say(*texts: object, file: IO[str] | None = None) -> None:
    """Print texts, which may have strings of a config, a checkpoint or a script, in lines."""
    for text in texts:
        print(*map(printable, str(text).splitlines()), sep="\n", file=file, flush=True)


@functools.cache
def warn_once(message: str) -> None:
    warnings.warn(printable(message), stacklevel=3)
