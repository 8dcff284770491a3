"""The checkpoints of a training in either framework: read a file, find the last one."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import checkpoints
from ..errors import UserError
from ..foreign_norms import OTHER_NAMES, is_ignored_tensor
from ..layers.activated import NormWithActivation
from ..layers.base import AdaptiveNorm
from .config_files import module_for

#: What to do about weights of another norm in a file.
CONVERT_FILE = (
    "convert the file by the command convert with --config-file, and load the new file; for GN's "
    "weights, ILM layers, AssocNorm and AN may have init='identity' instead"
)


def read_checkpoint(path: Path) -> Any:
    """Read a file as :func:`checkpoints.read`; detectron2 renames the tensors of Caffe2's files."""
    contents, as_zoo = checkpoints.read(path), checkpoints.format_of(path).as_zoo
    zoo = as_zoo(contents) if as_zoo and isinstance(contents, Mapping) else {}
    if zoo.get("__author__") != "Caffe2":
        return contents
    return module_for("detectron2", "checkpoints", str(path)).rename_caffe2(zoo["model"])


def describe_other_norms(
    model: nn.Module, absent: set[str], rejected: Iterable[str], by_suffix: bool = False
) -> str | None:
    """Describe layers for which a file has another norm's tensors.

    ``absent`` are the model's tensors that were not loaded, ``rejected`` the file's. With
    ``by_suffix``, the file's names may be ends of the model's names.
    """
    owners = _owners(model, rejected)
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, AdaptiveNorm)
        and (_ends(name, by_suffix) & owners or _is_loaded_in_part(name, layer, absent))
    ]
    if not layers:
        return None
    return (
        f"another norm's weights for {len(layers)} layers, such as {layers[0]}, which keep initial "
        "values, in part or all, so that outputs change"
    )


def _owners(model: nn.Module, tensors: Iterable[str]) -> set[str]:
    """Return the names of the modules that have tensors, and the model's other names for them."""
    named = [name for name in tensors if not is_ignored_tensor(name)]
    owners = {name[: dot.start()] for name in named for dot in re.finditer(r"\.", name)}
    # timm's norms with an activation inside become a Sequential, whose first module is the layer.
    joined = (name for name, m in model.named_modules() if isinstance(m, NormWithActivation))
    owners |= {f"{name}.0" for name in joined if name in owners}
    return owners | {name for others in OTHER_NAMES for owner in owners for name in others(owner)}


def _ends(name: str, by_suffix: bool) -> set[str]:
    """Return a module's name, and with ``by_suffix`` the ends of it that tell it from others."""
    parts = name.split(".")
    # The last part alone, such as norm, ends the names of many layers.
    return {".".join(parts[i:]) for i in range(max(len(parts) - 1, 1) if by_suffix else 1)}


def _is_loaded_in_part(name: str, layer: AdaptiveNorm, absent: set[str]) -> bool:
    """Return whether a file lacks some of a layer's tensors, without which its outputs differ."""
    tensors = {f"{name}.{key}" for key in checkpoints.find_absent({}, layer)}
    starts_as_plain = getattr(layer, "init", None) == "identity"
    return bool(tensors & absent and tensors - absent) and not starts_as_plain


def base_rates(optimizers: Iterable[Any]) -> list[float]:
    """Return the learning rates of optimizers' parameters, before a schedule changes them."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return [group.get("initial_lr", group["lr"]) for group in groups]


def is_last_checkpoint(path: str | Path, folder: str | Path) -> bool:
    """Return whether a file is the last checkpoint of the training in a folder."""
    try:
        return os.path.samefile(path, last_checkpoint(Path(folder)))
    except (OSError, UserError):  # such as a URL, or a folder without a training
        return False


def last_checkpoint(folder: Path) -> Path:
    """Return the last checkpoint in a training's folder; UserError if it has written none."""
    named = folder / "last_checkpoint"
    if not named.is_file():
        raise UserError(
            f"{named} does not exist; have the training save a checkpoint at its end (as "
            "CheckpointHook's save_last does), and remove the folder to train the run again"
        )
    return folder / Path(named.read_text(encoding="utf-8").strip()).name
