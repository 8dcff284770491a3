"""MMEngine's checkpoints: read without running what is in them, written whole or not at all."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ... import checkpoints


def guard() -> None:
    """Have MMEngine, in this process, read and write its checkpoints as this module has it."""
    register_backend("local", WholeFiles, force=True, prefixes="")
    CheckpointLoader.register_scheme(prefixes="", loader=_load, force=True)
    allow_history()
    _check_pretrained()
    # Some releases allow getattr itself for what they load from elsewhere, and with it any code.
    if hasattr(mmengine_checkpoint, "get_torch_safe_globals"):
        mmengine_checkpoint.get_torch_safe_globals = list


@functools.cache
def allow_history() -> None:
    """Have checkpoints hold MMEngine's history of logged values, which all of its own do."""
    checkpoints.allow(f"{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}", HistoryBuffer)
    checkpoints.allow("builtins.getattr", _statistic)


def _statistic(owner: type, name: str) -> Callable:
    """How pickle spells the functions of which a HistoryBuffer keeps a list."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise ValueError("Unsupported global builtins.getattr")
    return getattr(HistoryBuffer, name)


def check_fits(filename: str, model: nn.Module, checkpoint: dict, prefix: str = "") -> None:
    """Raise CheckpointError if a checkpoint has none of the model's tensors.

    Args:
        filename: the checkpoint.
        model: what it was loaded into.
        checkpoint: its contents, with or without a ``state_dict``.
        prefix: what the names in the checkpoint begin with, and the model's do not.
    """
    state = checkpoint.get("state_dict", checkpoint)
    before = re.compile(rf"^(module\.)?{re.escape(prefix)}")
    found = {before.sub("", name): value for name, value in state.items() if before.match(name)}
    absent = (
        name
        for name, value in model.state_dict().items()
        if getattr(found.get(name), "shape", None) != value.shape
    )
    checkpoints.check_fits(filename, model, found or state, absent)


@functools.cache
def _check_pretrained() -> None:
    """Have ``init_cfg=dict(type="Pretrained")`` refuse a checkpoint of which nothing fits."""
    original = PretrainedInit.__call__

    @functools.wraps(original)
    def call(self, module):
        original(self, module)
        prefix = f"{self.prefix.rstrip('.')}." if self.prefix else ""
        contents = CheckpointLoader.load_checkpoint(self.checkpoint, "cpu", logger=None)
        check_fits(self.checkpoint, module, contents, prefix)

    PretrainedInit.__call__ = call


def _load(filename: str, map_location: Any = None) -> Any:
    # Wherever it is to go, what takes it copies it there.
    return checkpoints.read(filename)


class WholeFiles(LocalBackend):
    """MMEngine's local files, replaced when they are whole.

    MMEngine removes an outdated checkpoint before it writes that which follows. Here it goes when
    that is there.
    """

    outdated: list[Path] = []  # noqa: RUF012 - that of all: MMEngine makes an instance for each file

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file; raises CheckpointError if it cannot be."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with checkpoints.replacing(path) as file:
            file.write(obj)
        # Another file that is written meanwhile is no successor.
        while path.suffix == ".pth" and self.outdated:
            old = self.outdated.pop()
            if old != path:
                old.unlink(missing_ok=True)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Remove a file; a checkpoint when the next one is there."""
        if Path(filepath).suffix == ".pth":
            self.outdated.append(Path(filepath))
        else:
            super().remove(filepath)


def latest(work_dir: str | os.PathLike) -> str | None:
    """The checkpoint that a run is to go on from, or None.

    It is what MMEngine's file ``last_checkpoint`` names; or, where a kill has left that behind, the
    newest of ``iter_N.pth`` and ``epoch_N.pth``.
    """
    folder = Path(work_dir)
    last = folder / "last_checkpoint"
    named = last.read_text().strip() if last.is_file() else ""
    if named and ("://" in named or os.path.isfile(named)):
        return named
    numbered = {p: re.fullmatch(r"(?:iter|epoch)_(\d+)\.pth", p.name) for p in folder.glob("*.pth")}
    found = [(int(match[1]), str(path)) for path, match in numbered.items() if match]
    return max(found)[1] if found else None
