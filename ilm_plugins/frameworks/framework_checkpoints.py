"""Read a checkpoint file of either framework."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import checkpoints
from .framework_config import module_for


def read_checkpoint(path: Path) -> Any:
    """Read a file as :func:`checkpoints.read`; detectron2 renames the tensors of Caffe2's files."""
    contents, as_zoo = checkpoints.read(path), checkpoints.format_of(path).as_zoo
    zoo = as_zoo(contents) if as_zoo and isinstance(contents, Mapping) else {}
    if zoo.get("__author__") != "Caffe2":
        return contents
    return module_for("detectron2", "checkpoints", str(path)).rename_caffe2(zoo["model"])
