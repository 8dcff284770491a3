"""Write checkpoints, new ones or a converted copy of another file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..files import check_regular, replacing
from .formats import FORMATS, format_of

#: Entries beside the state dict by which detectron2 reads a checkpoint; they are copied.
COPIED = ("__author__", "matching_heuristics")


def write(contents: Any, path: str | os.PathLike) -> None:
    """Write a checkpoint in the format of its name, torch's if unknown.

    For a ``.safetensors`` file, the contents must be a dict of tensors. In a ``.pkl``, tensors
    become arrays of numpy, as in detectron2's model zoo; UserError if numpy lacks their dtype.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        format_of(path).write(contents, file)


def check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise UserError unless OUTPUT can be written.

    It must not be INPUT, or exist without --overwrite; its ending must be known, and its folder
    exist.
    """
    exists, shown = os.path.exists(target), f"OUTPUT {str(target)!r}"
    if target.suffix.lower() not in FORMATS:
        raise UserError(f"{shown} must end with {', '.join(FORMATS)}")
    check_regular(target)
    if exists and source.exists() and target.samefile(source):
        raise UserError(f"{shown} is INPUT; give another file")
    if exists and not overwrite:
        raise UserError(f"{shown} exists; add --overwrite to replace it")
    # Of a link, the target is replaced.
    if not Path(os.path.realpath(target)).parent.is_dir():
        raise UserError(f"{shown} is not in a folder that exists; create it first")


def rewrite(contents: Any, entry: str | None, state: dict[str, Any], target: Path) -> list[str]:
    """Write a converted state dict to a new checkpoint; return the names of dropped entries."""
    row = format_of(target)
    others = {} if entry is None else {k: v for k, v in contents.items() if k != entry}
    kept = _entries_to_copy(others) if row.entries else {}
    if not row.entries:
        others |= {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        contents = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    elif row.as_zoo:  # without an author, detectron2 would read it as a file of Caffe2
        contents = {"__author__": "ilm_plugins", **kept, "model": dict(state)}
    else:
        contents = state if entry is None else {**kept, entry: state}
    with replacing(target) as file:
        row.write(contents, file)
    return [key for key in others if key not in kept]


def _entries_to_copy(others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries by which detectron2 and MMEngine read a state dict beside them."""
    kept = {key: others[key] for key in COPIED if key in others}
    meta = others.get("meta")
    if isinstance(meta, Mapping) and "dataset_meta" in meta:  # the names of classes
        kept["meta"] = {"dataset_meta": meta["dataset_meta"]}
    return kept
