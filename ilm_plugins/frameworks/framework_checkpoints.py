"""Read a checkpoint file of either framework."""

from pathlib import Path
from typing import Any

from .. import checkpoints
from .framework_config import module_for


def read_checkpoint(path: Path) -> Any:
    """Read a file as :func:`checkpoints.read`; detectron2 renames the tensors of Caffe2's files."""
    contents = checkpoints.read(path)
    if checkpoints.format_of(path).as_zoo and checkpoints.is_caffe2(contents):
        return module_for("detectron2", "checkpoints", str(path)).rename_caffe2(contents)
    return contents
