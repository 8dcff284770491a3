"""The formats of checkpoints: each module here is one, and defines its row, ``FORMAT``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import IO, Any

import torch
from torch import Tensor

from ...errors import UserError


@dataclass(frozen=True)
class Format:
    """A format of checkpoint files; all that differs between formats is asked of its row.

    Attributes:
        endings: of its files' names, in lower case.
        read: path and whether its code may run -> the file's contents; called in
            :func:`.trust.loading`, and checked by :func:`.pickled.rebuild`.
        write: writes contents, and texts as metadata if the format has them, to an open file.
        entries: whether a file can have other entries beside the state dict, and values in it that
            are no tensors.
        metadata: path -> the texts in a file; None if the format has none.
        shard: ending of the names of shards that an index lists; None if there are no such indexes.
        as_zoo: gives contents the entries of detectron2's model zoo, which has files of the format.
    """

    endings: tuple[str, ...]
    read: Callable[[Path, bool], Any]
    write: Callable[[Any, Mapping[str, str], IO], Any]
    entries: bool = False
    metadata: Callable[[Path], dict[str, str]] | None = None
    shard: str | None = None
    as_zoo: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def cannot_hold(ending: str, tensor: Tensor, name: str = "a tensor") -> UserError:
    """Return the error for a tensor whose dtype or layout a format lacks."""
    kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
    return UserError(
        f"{name} is {kind}, which a {ending} cannot hold; give the file the ending .pth"
    )


#: Ending of a checkpoint's name -> its format.
FORMATS: dict[str, Format] = {}
for _module in iter_modules(__path__):
    _row: Format = import_module(f"{__name__}.{_module.name}").FORMAT
    FORMATS |= dict.fromkeys(_row.endings, _row)


def format_of(path: Path) -> Format:
    """Return the format that a file's name ends with, in any case; torch's for other names."""
    return FORMATS.get(path.suffix.lower(), FORMATS[".pth"])
