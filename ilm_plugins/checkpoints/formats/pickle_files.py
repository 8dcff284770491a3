"""Pickles of arrays: files of detectron2's model zoo, and of Caffe2.

Caffe2's weights have names such as res2_0_branch2a_bn_s, which only detectron2 can convert.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

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


def _write(contents: Any, file: IO) -> None:
    ArrayPickler(file).dump(contents)


def as_zoo(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return contents with the entries of detectron2's model zoo.

    A detector's file of Caffe2 has the weights under "blobs", a backbone's file at the top; both
    may have a momentum for each weight. Other contents without these entries are a state dict.
    """
    if "model" in contents and ("__author__" in contents or isinstance(contents["model"], Mapping)):
        return contents
    has_tensors = any(isinstance(value, Tensor) for value in contents.values())
    are_arrays = not has_tensors and all(hasattr(value, "shape") for value in contents.values())
    is_backbone = are_arrays and not any("." in str(name) for name in contents)
    blobs = contents if is_backbone else contents.get("blobs")
    if not isinstance(blobs, Mapping) or not blobs:
        # In detectron2, the names in a pickle may be ends of the model's names.
        return {"model": contents, "matching_heuristics": not has_tensors}
    model = {name: blob for name, blob in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


FORMAT = Format((".pkl",), _read, _write, entries=True, as_zoo=as_zoo)
