"""Checkpoints in several files, the shards, with an index that names the file of each tensor.

transformers writes such an index: ``model.safetensors.index.json`` of
``model-00001-of-00002.safetensors`` and its like, or ``pytorch_model.bin.index.json``.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from ..errors import CheckpointError
from .formats import format_of
from .writing import create

#: Ending of an index's name, after the ending of its shards' names.
INDEX = ".index.json"
#: The name of one of several shards, without its ending.
_SHARD = re.compile(r".+-\d{3,}-of-(?!0*1$)\d{3,}", re.DOTALL)


def is_index(path: Path) -> bool:
    """Return whether a file is an index by its name."""
    return path.name.lower().endswith(INDEX)


def without_index(path: Path) -> Path:
    """Return an index without its last ending, as ``model.safetensors``; another path as it is."""
    return path.with_name(path.name[: -len(INDEX)]) if is_index(path) else path


def read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return an index's weight map, name of a tensor -> name of its shard, and its metadata.

    CheckpointError if the index is damaged, or names files elsewhere than beside it.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:120]}"
        raise CheckpointError(
            f"index {str(path)!r} cannot be read ({reason}); get the file again"
        ) from error
    contents = contents if isinstance(contents, dict) else {}
    shards, metadata = contents.get("weight_map"), contents.get("metadata") or {}
    if not isinstance(shards, dict) or not shards or not isinstance(metadata, dict):
        raise CheckpointError(
            f"index {str(path)!r} has no weight_map of tensors and their files; give the index of "
            "a checkpoint in shards"
        )
    for shard in shards.values():
        is_name = isinstance(shard, str) and shard and Path(shard).name == shard
        if not is_name or is_index(Path(shard)):
            raise CheckpointError(
                f"index {str(path)!r} names {shard!r}; its shards must be files beside it"
            )
    return shards, metadata


def paths_of_shards(source: Path, target: Path) -> dict[str, Path]:
    """Return shard name -> path of the converted shard.

    Of ``model-00001-of-00002.safetensors``, "model" becomes the beginning of the other index, and
    the ending follows, too.
    """
    old, new = without_index(source).stem, without_index(target)
    paths = {}
    for shard in dict.fromkeys(read_index(source)[0].values()):
        stem = Path(shard).stem
        stem = new.stem + stem.removeprefix(old) if stem.startswith(old) else stem
        paths[shard] = target.with_name(stem + new.suffix)
    return paths


def write_shards(
    tensors: Mapping[str, Tensor], source: Path, target: Path, metadata: Mapping[str, str]
) -> None:
    """Write tensors to new shards, and their index last; each tensor stays in its old shard."""
    shards, older = read_index(source)
    paths, parts = paths_of_shards(source, target), defaultdict[Path, dict[str, Tensor]](dict)
    for name, shard in _place(tensors, shards).items():
        parts[paths[shard]][name] = tensors[name]
    # The tensors do not tell which are parameters.
    kept = {key: value for key, value in older.items() if key != "total_parameters"}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    contents = {
        "metadata": {**kept, "total_size": size},
        "weight_map": {name: path.name for path, part in parts.items() for name in part},
    }
    text, row = json.dumps(contents, indent=2) + "\n", format_of(without_index(target))
    writers: dict[Path, Callable[[IO], Any]] = {
        path: partial(row.write, part, metadata) for path, part in parts.items()
    }
    create({**writers, target: lambda file: file.write(text.encode())})


def _place(names: Iterable[str], weight_map: Mapping[str, str]) -> dict[str, str]:
    """Return name -> shard; a new name gets the shard of the nearest enclosing module."""
    shards, placed = {**weight_map}, {}
    for name, shard in weight_map.items():
        while name:
            name = name.rpartition(".")[0]
            shards.setdefault(name, shard)
    for name in names:
        near = name
        while near not in shards:
            near = near.rpartition(".")[0]
        placed[name] = shards[near]
    return placed


def names_around(path: Path) -> set[str] | None:
    """Return the names of all tensors of a shard's checkpoint, by an index beside the shard.

    The set is empty if the name says that the file is a shard, but no index lists it; None if the
    file is no shard.
    """
    for beside in sorted(path.parent.glob(f"*{INDEX}")):
        try:
            shards, _ = read_index(beside)
        except CheckpointError:
            continue
        if path.name in shards.values() and len({*shards.values()}) > 1:
            return {*shards}
    return set() if _SHARD.fullmatch(path.stem) else None
