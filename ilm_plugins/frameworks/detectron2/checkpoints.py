"""detectron2's checkpoints: read without running the code in them, written whole or not at all."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import IO, Any
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer

from ... import checkpoints
from ...layers.base import AdaptiveNorm
from ...layers.mixture import BN_VARIANCE, VARIANCE


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
        self._path = filename
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        # detectron2's own method would unpickle the file, which may run code.
        contents = checkpoints.read(filename)
        if "model" in contents and "__author__" in contents:
            return contents
        # A file of Caffe2; detectron2 matches its names with the model's by heuristics.
        arrays = contents.get("blobs", contents)
        model = {name: value for name, value in arrays.items() if not name.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        return checkpoints.read(f)

    def _load_model(self, checkpoint: dict[str, Any]):
        """Load weights; warn of another norm's weights; CheckpointError if none fits the model."""
        if checkpoint.get("matching_heuristics"):
            checkpoint["model"] = name_variances(checkpoint["model"], self.model.state_dict())
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


def name_variances(state: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Give running variances the names of a model's mixtures; detectron2's heuristics match them.

    Args:
        state: names -> tensors; a name may be the end of the model's name, as for detectron2.
        wanted: the names in the model.
    """
    older = [name.replace(VARIANCE, BN_VARIANCE) for name in wanted if name.endswith(VARIANCE)]

    def rename(name: str) -> str:
        is_older = any(f".{own}".endswith(f".{name}") for own in older)
        return name.replace(BN_VARIANCE, VARIANCE) if is_older else name

    return {rename(name): tensor for name, tensor in state.items()}


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
