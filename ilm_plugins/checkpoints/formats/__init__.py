"""The formats of checkpoints: each other module here is one, and defines its row, ``FORMAT``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ...errors import UserError


@dataclass(frozen=True)
class Format:
    """A format of checkpoint files; all that differs between formats is asked of its row.

    Attributes:
        endings: endings of file names, in lower case.
        read: path and whether its code may run -> the file's contents; called in
            :func:`.trust.loading`, and checked by :func:`.pickled.check_contents`.
        write: writes contents to an open file.
        entries: whether a file can hold more than a dict of tensors.
        as_zoo: contents -> contents as detectron2's model zoo stores them; None if the zoo does not
            use this format.
    """

    endings: tuple[str, ...]
    read: Callable[[Path, bool], Any]
    write: Callable[[Any, IO], Any]
    entries: bool = False
    as_zoo: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def cannot_hold(ending: str, tensor: Tensor, name: str = "a tensor") -> UserError:
    """Return the error for a tensor whose dtype or layout a format lacks."""
    kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
    return UserError(
        f"{name} is {kind}, which a {ending} cannot hold; give the file the ending .pth"
    )


def format_of(path: Path) -> Format:
    """Return the format that a file's name ends with, in any case; torch's for other names."""
    return FORMATS.get(path.suffix.lower(), torch_files.FORMAT)


# They import Format from here.
from . import pickle_files, safetensors_files, torch_files  # noqa: E402

#: Ending of a checkpoint's name -> its format.
FORMATS: dict[str, Format] = {
    ending: module.FORMAT
    for module in (torch_files, safetensors_files, pickle_files)
    for ending in module.FORMAT.endings
}
