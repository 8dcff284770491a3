"""Pickles of numpy's arrays, as of detectron2's model zoo and Caffe2."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from ..caffe2 import as_zoo
from ..pickled import DataUnpickler
from . import Format, cannot_hold, torch_files


def _read(path: Path, unsafe: bool) -> Any:
    if torch_files.is_of_torch(path):  # torch.save pickles, too
        return torch_files.read(path, unsafe)
    with path.open("rb") as file:
        unpickler = pickle.Unpickler if unsafe else DataUnpickler
        return unpickler(file, encoding="latin1").load()


class ArrayPickler(pickle.Pickler):
    """Pickles tensors as arrays; UserError if numpy lacks the dtype or layout."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        try:
            return value.numpy(force=True).__reduce__()
        except TypeError as error:
            raise cannot_hold(".pkl", value) from error


def _write(contents: Any, metadata: Mapping[str, str], file: IO) -> None:
    ArrayPickler(file).dump(contents)


def _arrange(state: dict[str, Any], entry: str | None, kept: Mapping[str, Any]) -> dict[str, Any]:
    # Without an author, detectron2 reads the file as one of Caffe2.
    return {"__author__": "ilm_plugins", **kept, "model": dict(state)}


FORMAT = Format((".pkl",), _read, _write, _arrange, as_zoo=as_zoo)
