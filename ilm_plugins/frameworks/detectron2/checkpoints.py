"""detectron2's checkpoints: reading runs no code from them, writing replaces files atomically."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import IO, Any
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build

from ... import checkpoints
from ...errors import CheckpointError
from ...layers.base import AdaptiveNorm
from ..output_folder import check_same_checkpoint


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, made safe for untrusted files and for runs that are killed.

    ``.pkl`` and ``.pth`` are read by :func:`ilm_plugins.checkpoints.read`, which runs no code. A
    file is replaced only when the new one is complete; ``last_checkpoint`` is written after the
    checkpoint that it names.

    Raises:
        CheckpointError: when loading, a file is missing, cannot be read, has no state dict of
            tensors or numeric arrays, or has none of the model's tensors; or when resuming, the
            model or the optimizer differs from the checkpoint's.
        RunError: when saving, a file cannot be written.
        FloatingPointError: when saving, a parameter is NaN or infinite.
    """

    #: Key of the setting with the initial weights, for messages.
    setting = "MODEL.WEIGHTS"
    _resuming = False

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.path_manager = AtomicFiles(self.path_manager)

    def load(self, path: str, *args, **options) -> dict[str, Any]:
        """Load a checkpoint into the model and the objects that are saved with it.

        Args:
            path: a file, a URL that is downloaded, or "" to load nothing. With
                "?matching_heuristics=True" behind it, detectron2 matches names of tensors loosely.
            args, options: as for detectron2's method.

        Returns:
            The entries of the checkpoint that were not loaded, such as "iteration".

        Raises:
            CheckpointError: see the class; or a URL cannot be downloaded.
        """
        self._path = path
        # A query behind the path holds detectron2's options for loading.
        plain = urlparse(path)._replace(query="").geturl()
        try:
            missing = path and not os.path.isfile(self.path_manager.get_local_path(plain))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path!r} cannot be fetched: {error}; set {self.setting}"
            ) from error
        if missing:
            raise CheckpointError(
                f"checkpoint {path!r} does not exist; set {self.setting} to a file, or to '' for "
                "none"
            )
        return super().load(path, *args, **options)

    def save(self, name: str, **entries: Any) -> None:
        """Save model, optimizer and further entries to NAME.pth in the output folder."""
        if not all(value.isfinite().all() for value in self.model.parameters()):
            raise FloatingPointError("weights became infinite or NaN")
        super().save(name, **entries)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a checkpoint; return it in detectron2's layout, weights under ``model``.

        A ``.pkl`` of Caffe2 gets ``matching_heuristics``, and loses its momentum. Other suffixes
        are left to detectron2's method, which reads all but ``.pyth`` by :meth:`_torch_load`.

        Raises:
            CheckpointError: the file cannot be read, could run code, or has no state dict.
        """
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        # detectron2's own method would unpickle the file, which may run code.
        contents = checkpoints.read(filename)
        from_zoo = isinstance(contents, Mapping) and {"model", "__author__"} <= contents.keys()
        checkpoints.check_state(contents, filename, ["model" if from_zoo else "blobs"])
        if from_zoo:
            return contents
        # A file of Caffe2; detectron2 matches its names with the model's by heuristics.
        arrays = contents.get("blobs", contents)
        model = {name: value for name, value in arrays.items() if not name.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        contents = checkpoints.read(f)
        checkpoints.check_state(contents, f, ["model"])
        return contents

    def get_checkpoint_file(self) -> str:
        """Return the path of the checkpoint that ``last_checkpoint`` names.

        Raises:
            CheckpointError: ``last_checkpoint`` is not text, or names a missing file.
            FileNotFoundError: there is no ``last_checkpoint``.
        """
        last = os.path.join(self.save_dir, "last_checkpoint")
        name = checkpoints.read_last_checkpoint(last)
        path = os.path.join(self.save_dir, name)
        if not os.path.isfile(path):
            raise CheckpointError(
                f"{last!r} names {name!r}, which does not exist; {checkpoints.FIX_LAST_CHECKPOINT}"
            )
        return path

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self._resuming = resume and self.has_checkpoint()
        if resume:
            last = self.get_checkpoint_file() if self._resuming else None
            check_same_checkpoint(last, self.save_dir)
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: dict[str, Any]):
        """Load the weights of a checkpoint into the model.

        If a run resumes, the state of its optimizer is loaded, too; see :meth:`_check_resumes`.

        Args:
            checkpoint: as :meth:`_load_file` returns it; arrays in it become tensors, in place.

        Returns:
            detectron2's lists of missing, unexpected and misshapen tensors.

        Raises:
            CheckpointError: a value is neither tensor nor numeric array, none of the model's
                tensors is in the checkpoint, or a run that resumes has another model or optimizer.
        """
        try:
            self._convert_ndarray_to_tensor(checkpoint["model"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {self._path!r} cannot be loaded: {error}; remove what is neither a "
                "tensor nor an array of numbers"
            ) from error
        if self._resuming:
            self._check_resumes(checkpoint)
        found = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        misshapen = (name for name, *_ in incompatible.incorrect_shapes)
        absent = {*incompatible.missing_keys, *misshapen}
        checkpoints.check_fits(self._path, self.model, found, absent)
        self._warn_of_other_norms({*incompatible.missing_keys})
        return incompatible

    def _warn_of_other_norms(self, missing: set[str]) -> None:
        """Log a warning if the checkpoint has only some of the tensors of our layers."""
        parts = {
            name: {f"{name}.{key}" for key in layer.state_dict() if key != "num_batches_tracked"}
            for name, layer in self.model.named_modules()
            if isinstance(layer, AdaptiveNorm)
        }
        other = [name for name, own in parts.items() if own & missing and own - missing]
        if other:
            self.logger.warning(
                f"{self._path} has another norm's weights for {len(other)} layers, such as "
                f"{other[0]}, which keep initial values: convert it by tools/convert.py with "
                f"--config-file, and set {self.setting} to the new file"
            )

    def _check_resumes(self, checkpoint: dict[str, Any]) -> None:
        """Raise CheckpointError unless model and optimizer fit a checkpoint to resume from.

        This loads the optimizer's state, if the checkpoint has one and there is a trainer; see
        :func:`ilm_plugins.checkpoints.check_resumes`. The model is not changed.
        """
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

    It replaces the name ``pickle`` in :mod:`detectron2.data.build`, and restores it on exit. A file
    that may run code raises CheckpointError, except within ``checkpoints.loading(unsafe=True)``.
    """
    theirs = build.pickle
    build.pickle = SimpleNamespace(load=_load_proposals)
    try:
        yield
    finally:
        build.pickle = theirs


def _load_proposals(file: IO[bytes], encoding: str) -> Any:
    """Replace ``pickle.load`` in detectron2: read the proposals of an open file.

    Args:
        file: only its name is used; the file is opened again.
        encoding: ignored.

    Raises:
        CheckpointError: the file's suffix is not .pkl, the file cannot be read, or it holds code.
    """
    if not file.name.endswith(".pkl"):
        raise CheckpointError(f"proposal file {file.name!r} is no .pkl; rename it, or give one")
    try:
        return checkpoints.read(file.name)
    except CheckpointError as error:
        reason = str(error).removeprefix("checkpoint ")
        raise CheckpointError(f"proposal file {reason}") from error


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
