"""MMEngine's checkpoints: read without running the code in them, written whole or not at all."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from ... import checkpoints, files


def use_safe_checkpoints() -> None:
    """Have MMEngine read files by :func:`.checkpoints.read`, and replace files whole."""
    register_backend("local", AtomicFiles, force=True, prefixes="")
    CheckpointLoader.register_scheme(prefixes="", loader=_load, force=True)
    mmengine_checkpoint.load_url = _load_url
    # For other places of files, MMEngine calls torch.load.
    checkpoints.accept_data()
    # Some releases allow getattr when they load checkpoints, and getattr can reach any code.
    if hasattr(mmengine_checkpoint, "get_torch_safe_globals"):
        mmengine_checkpoint.get_torch_safe_globals = list


def _load(filename: str, map_location: Any = None) -> Any:
    # To the CPU; the model copies it to its device.
    return checkpoints.read_named(filename, "state_dict")


def _load_url(
    url, model_dir=None, map_location=None, progress=True, check_hash=False, file_name=None, **_
) -> Any:
    """Read a file of a URL, which is downloaded once, to the folder that torch.hub uses."""
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    path = folder / (file_name or Path(urlparse(url).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(path.name) if check_hash else None
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=progress)
    return checkpoints.read_named(path, "state_dict")


class DropConfig(Hook):
    """Drops ``meta.config`` of MMCV's checkpoints, code that MMEngine would run to resume."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if isinstance(checkpoint.get("meta"), dict):
            checkpoint["meta"].pop("config", None)


class AtomicFiles(LocalBackend):
    """MMEngine's backend for local files; a file is replaced only when the new one is complete.

    MMEngine removes an outdated checkpoint before it writes the next one; here it stays till then.
    """

    outdated: list[Path] = []  # noqa: RUF012 - shared: MMEngine makes an instance for each file

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(obj)
        # Only a checkpoint replaces a checkpoint; other files may be written meanwhile.
        while path.suffix == ".pth" and self.outdated:
            old = self.outdated.pop()
            if old != path:
                old.unlink(missing_ok=True)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Remove a file; a checkpoint is removed later, when the next one is written."""
        if Path(filepath).suffix == ".pth":
            self.outdated.append(Path(filepath))
        else:
            super().remove(filepath)


def latest(work_dir: str | os.PathLike) -> str | None:
    """Return the checkpoint in ``last_checkpoint``, else the one of the largest number, or None."""
    folder = Path(work_dir)
    last = folder / "last_checkpoint"
    # A kill may leave the file empty. Its path is absolute; in a copied folder only its name holds.
    named = last.read_text(encoding="utf-8").strip() if last.is_file() else ""
    beside = folder / os.path.basename(named)
    if named and "://" not in named and beside.is_file():
        return str(beside)
    if "://" in named or os.path.isfile(named):
        return named
    numbered = [p for p in folder.glob("*.pth") if re.fullmatch(r"(iter|epoch)_\d+", p.stem)]
    return str(max(numbered, key=lambda p: int(p.stem.split("_")[1]))) if numbered else None
