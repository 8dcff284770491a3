"""Recognize files of Caffe2, whose weights have names such as res2_0_branch2a_bn_s."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: Author of files whose names detectron2 converts from Caffe2's.
CAFFE2 = "Caffe2"


def is_caffe2(contents: Any) -> bool:
    """Return whether the contents of a ``.pkl`` have Caffe2's names."""
    if not isinstance(contents, Mapping):
        return False
    if "__author__" in contents:
        return contents["__author__"] == CAFFE2
    if "blobs" in contents:
        return isinstance(contents["blobs"], Mapping)
    return bool(contents) and all(
        hasattr(blob, "shape") and not isinstance(blob, Tensor) and "." not in str(name)
        for name, blob in contents.items()
    )


def as_zoo(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the contents of a ``.pkl`` with the entries of detectron2's model zoo.

    A detector's file of Caffe2 has the weights under "blobs", a backbone's file at the top; both
    may have a momentum for each weight. A file by torch.save is as any other of detectron2.
    """
    if "model" in contents and ("__author__" in contents or isinstance(contents["model"], Mapping)):
        return contents
    if any(isinstance(value, Tensor) for value in contents.values()):
        return {"model": contents}
    blobs = contents.get("blobs", contents)
    model = {name: blob for name, blob in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": CAFFE2, "matching_heuristics": True}
