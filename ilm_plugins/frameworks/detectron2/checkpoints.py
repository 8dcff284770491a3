"""detectron2's checkpoints: read without running what is in them, written whole or not at all."""

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

    detectron2 takes only tensors and arrays of numbers in a state dict.

    Args:
        contents: of the checkpoint.
        path: the checkpoint.
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
    """detectron2's, for files that may be anyone's and runs that may be killed at any time.

    ``.pkl`` and ``.pth`` are read as :func:`ilm_plugins.checkpoints.read` reads them, and replaced
    when they are whole. ``last_checkpoint`` follows its checkpoint.

    Raises:
        CheckpointError: when loading, a file cannot be read, or has none of the model's tensors; a
            run that is resumed has another model or optimizer.
        RunError: when saving, a file cannot be written.
    """

    #: The setting that names a run's first weights.
    setting = "MODEL.WEIGHTS"
    _resuming = False

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.path_manager = WholeFiles(self.path_manager)

    def load(self, path: str, *args, **options) -> dict[str, Any]:
        self._path = path
        return super().load(path, *args, **options)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        # detectron2's would read it again, and believe it.
        contents = checkpoints.read(filename)
        if {"model", "__author__"} <= contents.keys():
            return contents
        # Of Caffe2, by other names, which detectron2 guesses.
        arrays = contents.get("blobs", contents)
        model = {name: value for name, value in arrays.items() if not name.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        return checkpoints.read(f)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self._resuming = resume and self.has_checkpoint()
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: dict[str, Any]):
        if self._resuming:
            self._check_resumes(checkpoint)
        found = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        misshapen = (name for name, *_ in incompatible.incorrect_shapes)
        absent = {*incompatible.missing_keys, *misshapen}
        checkpoints.check_fits(self._path, self.model, found, absent)
        return incompatible

    def _check_resumes(self, checkpoint: dict[str, Any]) -> None:
        optimizers = []
        if "trainer" in self.checkpointables and "trainer" in checkpoint:
            # DefaultTrainer's state has that of the trainer proper within it.
            state = checkpoint["trainer"].get("_trainer", checkpoint["trainer"])
            trainer = self.checkpointables["trainer"]
            trainer = getattr(trainer, "_trainer", trainer)
            optimizers.append((state.get("optimizer"), trainer.optimizer))
        checkpoints.check_resumes(
            self._path, checkpoint["model"], self.model, optimizers, self.setting
        )


@contextmanager
def reading_proposals() -> Iterator[None]:
    """Have detectron2 read files of proposals by :func:`ilm_plugins.checkpoints.read`."""
    theirs = build.pickle
    build.pickle = SimpleNamespace(load=_load_proposals)
    try:
        yield
    finally:
        build.pickle = theirs


def _load_proposals(file: IO[bytes], encoding: str) -> Any:
    """What detectron2 calls for ``pickle.load``.

    Raises:
        CheckpointError: the file is no .pkl, is damaged, or holds code.
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
    """A path manager of iopath's whose local files are replaced when they are whole."""

    def __init__(self, manager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options) -> AbstractContextManager[IO]:
        if "w" in mode and not urlparse(path).scheme:
            return checkpoints.replacing(path, mode, **options)
        return self._manager.open(path, mode, **options)
