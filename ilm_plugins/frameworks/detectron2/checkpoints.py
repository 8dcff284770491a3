"""detectron2's checkpoints: reading runs no code from them, writing replaces files atomically."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import IO, Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build
from torch import Tensor

from ... import checkpoints


def check_state(contents: Any, path: str) -> None:
    """Raise CheckpointError unless a checkpoint holds a state dict where detectron2 looks for it.

    The values of the state dict must be tensors or numeric arrays, as detectron2 requires.

    Args:
        contents: the contents of the checkpoint.
        path: the checkpoint's file; its suffix determines the expected key of the state dict.
    """
    entries = ["model_state"] if path.endswith(".pyth") else ["model"]
    if path.endswith(".pkl") and isinstance(contents, Mapping) and "__author__" not in contents:
        entries = ["blobs"]
    checkpoints.check_state(contents, path, entries)
    for key, value in contents.get(entries[0], contents).items():
        if entries == ["blobs"] and key.endswith("_momentum"):
            continue
        try:
            if not isinstance(value, Tensor):
                torch.from_numpy(value)
        except (TypeError, ValueError):
            kind = getattr(value, "dtype", type(value).__name__)
            raise checkpoints.CheckpointError(
                f"checkpoint {path!r}: {key} is a {kind}, expected a tensor or an array of "
                "numbers; remove it from the checkpoint"
            ) from None


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, made safe for untrusted files and for runs that are killed.

    ``.pkl`` and ``.pth`` are read by :func:`ilm_plugins.checkpoints.read`, which runs no code. A
    file is replaced only when the new one is complete; ``last_checkpoint`` is written after the
    checkpoint that it names.

    Raises:
        CheckpointError: when loading, a file cannot be read, or has none of the model's tensors; or
            when resuming, the model or the optimizer differs from the checkpoint's.
        RunError: when saving, a file cannot be written.
    """

    #: Key of the setting with the initial weights, for messages.
    setting = "MODEL.WEIGHTS"
    _resuming = False

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.path_manager = WholeFiles(self.path_manager)

    def load(self, path: str, *args, **options) -> dict[str, Any]:
        self._path = path
        return super().load(path, *args, **options)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a checkpoint; return it in detectron2's layout, weights under ``model``."""
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        # detectron2's own method would unpickle the file, which may run code.
        contents = checkpoints.read(filename)
        if {"model", "__author__"} <= contents.keys():
            return contents
        # A file of Caffe2; detectron2 matches its names with the model's by heuristics.
        arrays = contents.get("blobs", contents)
        model = {name: value for name, value in arrays.items() if not name.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        return checkpoints.read(f)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self._resuming = resume and self.has_checkpoint()
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: dict[str, Any]):
        """Load the weights; raise CheckpointError if none fits, or a resumed run differs."""
        if self._resuming:
            self._check_resumes(checkpoint)
        found = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        misshapen = (name for name, *_ in incompatible.incorrect_shapes)
        absent = {*incompatible.missing_keys, *misshapen}
        checkpoints.check_fits(self._path, self.model, found, absent)
        return incompatible

    def _check_resumes(self, checkpoint: dict[str, Any]) -> None:
        """Raise CheckpointError unless model and optimizer are those that the checkpoint is of."""
        optimizers = []
        if "trainer" in self.checkpointables and "trainer" in checkpoint:
            # DefaultTrainer keeps the state of its inner trainer, with the optimizer, in _trainer.
            state = checkpoint["trainer"].get("_trainer", checkpoint["trainer"])
            trainer = self.checkpointables["trainer"]
            trainer = getattr(trainer, "_trainer", trainer)
            optimizers.append((state.get("optimizer"), trainer.optimizer))
        checkpoints.check_resumes(
            self._path, checkpoint["model"], self.model, optimizers, self.setting
        )


@contextmanager
def reading_proposals() -> Iterator[None]:
    """Within this context, detectron2 reads proposal files without running code in them.

    Only within ``checkpoints.loading(unsafe=True)`` may such code run.
    """
    theirs = build.pickle
    build.pickle = SimpleNamespace(load=_load_proposals)
    try:
        yield
    finally:
        build.pickle = theirs


def _load_proposals(file: IO[bytes], encoding: str) -> Any:
    """Replace ``pickle.load`` in detectron2: read the proposals of an open file.

    Raises:
        CheckpointError: the file's suffix is not .pkl, the file is damaged, or it holds code.
    """
    if not file.name.endswith(".pkl"):
        raise checkpoints.CheckpointError(
            f"proposal file {file.name!r} is no .pkl; rename it, or give one"
        )
    try:
        return checkpoints.read(file.name)
    except checkpoints.CheckpointError as error:
        reason = str(error).removeprefix("checkpoint ")
        raise checkpoints.CheckpointError(f"proposal file {reason}") from error


class WholeFiles:
    """Wraps an iopath PathManager; a local file is replaced only when the new one is complete."""

    def __init__(self, manager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options) -> AbstractContextManager[IO]:
        if "w" in mode and not urlparse(path).scheme:
            return checkpoints.replacing(path, mode, **options)
        return self._manager.open(path, mode, **options)
