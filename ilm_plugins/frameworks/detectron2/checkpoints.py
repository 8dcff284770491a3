"""detectron2's checkpoints: read without running the code in them, written whole or not at all."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

from ... import checkpoints, files
from ...checkpoints.state_dict_in_file import as_tensor
from ...errors import CheckpointError
from ..checkpoints import CONVERT_FILE, describe_other_norms
from ..run.processes import check_same_start


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer for untrusted files and for runs that may be killed."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.path_manager = AtomicFiles(self.path_manager)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As detectron2's method; UserError if processes would resume from different files."""
        resumes = resume and self.has_checkpoint()
        check_same_start(self.get_checkpoint_file() if resumes else None)
        try:
            return super().resume_or_load(path, resume=resume)
        except AssertionError as error:
            if "not found" not in str(error):
                raise
            raise CheckpointError(f"checkpoint {path!r} does not exist; give a file") from error

    def save(self, name: str, **entries: Any) -> None:
        """Save to NAME.pth; FloatingPointError if a parameter is NaN or infinite."""
        if not all(value.isfinite().all() for value in self.model.parameters()):
            raise FloatingPointError("weights became infinite or NaN; try a smaller learning rate")
        super().save(name, **entries)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As detectron2's method, which runs the code in files of two formats."""
        self._path = filename
        if filename.endswith(".pyth"):
            contents = checkpoints.read_named(filename, "model_state")
            model = contents.get("model_state", contents)
            model = {k: v for k, v in model.items() if not k.endswith("num_batches_tracked")}
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        as_zoo = checkpoints.format_of(Path(filename)).as_zoo
        return as_zoo(self._torch_load(filename)) if as_zoo else super()._load_file(filename)

    def _torch_load(self, f: str) -> Mapping[str, Any]:
        return checkpoints.read_named(f, "model")

    def _load_model(self, checkpoint: dict[str, Any]):
        """Load weights; warn of another norm's weights; CheckpointError if none fits the model."""
        by_suffix = checkpoint.get("matching_heuristics", False)
        _, state = checkpoints.find_state(checkpoint["model"], self._path)
        state = checkpoints.unwrap_state(state, self.model)
        checkpoint["model"] = checkpoints.name_variances(state, self.model.state_dict())
        incompatible = super()._load_model(checkpoint)
        other_shape = [name for name, *_ in incompatible.incorrect_shapes]
        absent = [*incompatible.missing_keys, *other_shape]
        checkpoints.check_fits(self._path, self.model, absent)
        rejected = [*incompatible.unexpected_keys, *other_shape]
        if told := describe_other_norms(self.model, {*absent}, rejected, by_suffix):
            self.logger.warning(f"{self._path} has {told}: {CONVERT_FILE}")
        return incompatible


def rename_caffe2(blobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return contents for Caffe2's weights, with detectron2's names and complete BatchNorms.

    Caffe2's backbones have a scale and a shift in place of a BatchNorm with statistics; detectron2
    loads them into a FrozenBatchNorm2d with a mean of 0 and a variance of 1.
    """
    named = ((name, as_tensor(blob)) for name, blob in blobs.items() if isinstance(name, str))
    tensors = {name: tensor for name, tensor in named if isinstance(tensor, torch.Tensor)}
    state, originals = convert_c2_detectron_names(tensors)
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
            return files.replacing(path, mode, **options)
        return self._manager.open(path, mode, **options)
