"""Files of the package safetensors: tensors by name, and texts."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import IO

import torch
from torch import Tensor

from ...errors import missing
from . import Format, cannot_hold


def _package() -> ModuleType:
    """Return the module ``safetensors.torch``; UserError without one."""
    try:
        from safetensors import torch

        return torch
    except ImportError as error:  # numpy's, too
        raise missing("a .safetensors file", error, "safetensors") from error


def _read(path: Path, unsafe: bool) -> dict[str, Tensor]:
    return _package().load_file(path)


def _write(contents: Mapping[str, Tensor], file: IO) -> None:
    tensors = {}
    for name, tensor in contents.items():
        if tensor.layout != torch.strided:
            raise cannot_hold(".safetensors", tensor, name)
        # The format cannot store tensors that share memory.
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    file.write(_package().save(tensors, {"format": "pt"}))


FORMAT = Format((".safetensors",), _read, _write)
