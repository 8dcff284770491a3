"""The checkpoints of a training in either framework: read a file, find the last one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import checkpoints
from ..errors import UserError
from .config_files import module_for


def read_checkpoint(path: Path) -> Any:
    """Read a file as :func:`checkpoints.read`; detectron2 renames the tensors of Caffe2's files."""
    contents, as_zoo = checkpoints.read(path), checkpoints.format_of(path).as_zoo
    zoo = as_zoo(contents) if as_zoo and isinstance(contents, Mapping) else {}
    if zoo.get("__author__") != "Caffe2":
        return contents
    return module_for("detectron2", "checkpoints", str(path)).rename_caffe2(zoo["model"])


def is_last_checkpoint(path: str | Path, folder: str | Path) -> bool:
    """Return whether a file is the last checkpoint of the training in a folder."""
    try:
        return os.path.samefile(path, last_checkpoint(Path(folder)))
    except (OSError, UserError):  # such as a URL, or a folder without a training
        return False


def last_checkpoint(folder: Path) -> Path:
    """Return the last checkpoint of a training, in its folder, which may have been moved.

    UserError if the training has written no checkpoint.
    """
    named = folder / "last_checkpoint"
    if not named.is_file():
        raise UserError(
            f"{named} does not exist; have the training save a checkpoint at its end (as "
            "CheckpointHook's save_last does), and remove the folder to train the run again"
        )
    return folder / Path(named.read_text(encoding="utf-8").strip()).name
