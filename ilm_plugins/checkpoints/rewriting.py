"""Write a converted state dict to a new checkpoint: one file of any format, or shards."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from .formats import FORMATS, format_of
from .reading import read_metadata
from .shards import INDEX, is_index, paths_of_shards, without_index, write_shards
from .writing import check_regular, create, write

#: Entries beside the state dict by which detectron2 reads a checkpoint; they are copied.
COPIED = ("__author__", "matching_heuristics")


def check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise UserError unless OUTPUT can be written.

    It must not be INPUT, or exist without --overwrite; its ending must be known, and its folder
    exist.
    """
    exists, shown = os.path.exists(target), f"OUTPUT {str(target)!r}"
    row = FORMATS.get(without_index(target).suffix.lower())
    if row is None or (is_index(target) and not row.shard):
        shards = dict.fromkeys(row.shard + INDEX for row in FORMATS.values() if row.shard)
        endings = " or ".join(shards) if is_index(target) else ", ".join(FORMATS)
        raise UserError(f"{shown} must end with {endings}")
    check_regular(target)
    if exists and source.exists() and target.samefile(source):
        raise UserError(f"{shown} is INPUT; give another file")
    if exists and not overwrite and not is_index(target):
        raise UserError(f"{shown} exists; add --overwrite to replace it")
    # Of a link, the target is replaced.
    if not Path(os.path.realpath(target)).parent.is_dir():
        raise UserError(f"{shown} is not in a folder that exists; create it first")
    if is_index(target):
        if not is_index(source):
            raise UserError(f"{shown} is an index, INPUT is none; give a file as OUTPUT")
        paths = [target, *paths_of_shards(source, target).values()]
        if existing := [path for path in paths if os.path.lexists(path)]:
            raise UserError(
                f"{str(existing[0])!r} exists, and indexes and shards are never replaced; give "
                "another name or folder"
            )


def rewrite(
    source: Path,
    contents: Any,
    entry: str | None,
    state: dict[str, Any],
    target: Path,
    overwrite: bool = False,
) -> list[str]:
    """Write a converted state dict to a new checkpoint; return the names of dropped entries.

    Args:
        source: the file, or the index of several, from which ``contents`` were read.
        entry: key of the state dict in ``contents``; None if ``contents`` is the state dict.
        target: the new file or index, as :func:`check_target` allows it.
    """
    row, metadata = format_of(without_index(target)), read_metadata(source)
    beside = {} if entry is None else {k: v for k, v in contents.items() if k != entry}
    kept = {}
    if row.entries and not is_index(target):
        kept = {key: beside[key] for key in COPIED if key in beside}
        meta = beside.get("meta")
        if isinstance(meta, Mapping) and "dataset_meta" in meta:  # MMEngine's names of classes
            kept["meta"] = {"dataset_meta": meta["dataset_meta"]}
        if row.as_zoo:  # without an author, detectron2 would read it as a file of Caffe2
            contents = {"__author__": "ilm_plugins", **kept, "model": dict(state)}
        else:
            contents = state if entry is None else {**kept, entry: state}
    else:
        beside |= {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        contents = {str(name): v for name, v in state.items() if isinstance(v, Tensor)}
    if row.metadata is None:
        beside |= metadata
    if is_index(target):
        write_shards(contents, source, target, metadata)
    elif overwrite:
        write(contents, target, metadata)
    else:
        create({target: partial(row.write, contents, metadata)})
    return [key for key in beside if key not in kept]
