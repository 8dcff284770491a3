"""detectron2's checkpoints: read without running the code in them, written whole or not at all."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import IO, Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

from ... import checkpoints
from ...layers.base import AdaptiveNorm


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer for untrusted files and for runs that may be killed."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.path_manager = AtomicFiles(self.path_manager)

    def save(self, name: str, **entries: Any) -> None:
        """Save to NAME.pth; FloatingPointError if a parameter is NaN or infinite."""
        if not all(value.isfinite().all() for value in self.model.parameters()):
            raise FloatingPointError("weights became infinite or NaN")
        super().save(name, **entries)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As detectron2's own method, which runs the code in files of two formats."""
        self._path = filename
        if filename.endswith(".pyth"):
            model = checkpoints.read(filename)["model_state"]
            model = {k: v for k, v in model.items() if not k.endswith("num_batches_tracked")}
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        return checkpoints.as_zoo(checkpoints.read(filename))

    def _torch_load(self, f: str) -> Any:
        return checkpoints.read(f)

    def _load_model(self, checkpoint: dict[str, Any]):
        """Load weights; warn of another norm's weights; CheckpointError if none fits the model."""
        incompatible = super()._load_model(checkpoint)
        other_shape = (name for name, *_ in incompatible.incorrect_shapes)
        checkpoints.check_fits(self._path, self.model, [*incompatible.missing_keys, *other_shape])
        missing = {*incompatible.missing_keys}
        tensors = {
            name: {f"{name}.{key}" for key in layer.state_dict() if key != "num_batches_tracked"}
            for name, layer in self.model.named_modules()
            if isinstance(layer, AdaptiveNorm)
        }
        other = [name for name, own in tensors.items() if own & missing and own - missing]
        if other:
            self.logger.warning(
                f"{self._path} has another norm's weights for {len(other)} layers, such as "
                f"{other[0]}, which keep initial values: convert it by the command convert with "
                "--config-file, and load the new file"
            )
        return incompatible


def rename_caffe2(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a file of Caffe2 with detectron2's names and complete BatchNorms.

    Caffe2's backbones have a scale and a shift in place of a BatchNorm with statistics; detectron2
    loads them into a FrozenBatchNorm2d with a mean of 0 and a variance of 1.
    """
    blobs = checkpoints.as_zoo(contents)["model"]
    arrays = {name: torch.as_tensor(b) for name, b in blobs.items() if hasattr(b, "shape")}
    state, originals = convert_c2_detectron_names(arrays)
    for name, original in originals.items():
        if original.endswith("_bn_s"):
            norm, scale = name.removesuffix(".weight"), state[name]
            state.setdefault(f"{norm}.running_mean", torch.zeros_like(scale))
            state.setdefault(f"{norm}.running_var", torch.ones_like(scale))
    # The names are ends of a model's names.
    return {"model": state, "matching_heuristics": True}


class AtomicFiles:
    """Wraps an iopath PathManager; a local file is replaced only when the new one is complete."""

    def __init__(self, manager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options) -> AbstractContextManager[IO]:
        if "w" in mode and not urlparse(path).scheme:
            return checkpoints.replacing(path, mode, **options)
        return self._manager.open(path, mode, **options)
