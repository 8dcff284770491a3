"""The recipe of a config, a shorter one, and one that reads its images from the user's folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ilm_plugins.errors import UserError
from ilm_plugins.files import write_text
from ilm_plugins.frameworks import OpenConfig


@dataclass
class Recipe:
    """The numbers of a config's training as published; None for an unknown one."""

    #: "epochs" or "iterations", and their number.
    unit: str
    length: int
    #: Images of a step, over all processes.
    batch: int | None
    images: int | None
    test_images: int | None
    #: Whether the images are CIFAR's, re-encoded as JPEG.
    jpeg: bool = False


def as_words(path: str, overrides: Iterable[str]) -> list[str]:
    """Return overrides KEY=VALUE as words of the command line for a config."""
    if path.endswith(".py"):
        return [*overrides]
    return [word for override in overrides for word in override.split("=", 1)]


def recipe_of(row: OpenConfig, images: Mapping[str, Sequence[int]]) -> Recipe:
    """Return the numbers of a config's training, by each dataset's numbers of images."""
    return KINDS[row.framework].recipe_of(row.config, images)


def shorten(row: OpenConfig, length: int) -> None:
    """Train for ``length`` epochs or iterations, the schedule scaled; the warm-up stays."""
    KINDS[row.framework].shorten(row.config, length)


def read_from(row: OpenConfig, data: Path) -> bool:
    """Read the images from a folder; return whether they are CIFAR's, re-encoded as JPEG."""
    return KINDS[row.framework].read_from(row.config, data)


# ---- yaml configs of detectron2


def _recipe_of_yaml(cfg: Any, images: Mapping[str, Sequence[int]]) -> Recipe:
    counts = images[cfg.DATASETS.TRAIN[0]]
    return Recipe("iterations", cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, *counts)


def _shorten_yaml(cfg: Any, length: int) -> None:
    solver = cfg.SOLVER
    steps = {max(1, round(step * length / solver.MAX_ITER)) for step in solver.STEPS}
    # detectron2 requires steps below MAX_ITER.
    solver.STEPS = tuple(sorted(step for step in steps if step < length))
    solver.MAX_ITER = length


def _read_yaml_from(cfg: Any, data: Path) -> bool:
    return False  # detectron2 has the variable DETECTRON2_DATASETS for the folder


# ---- configs of MMEngine


def _recipe_of_mmengine(cfg: Any, images: Mapping[str, Sequence[int]]) -> Recipe:
    def count(loader: str, split: int) -> int | None:
        dataset = cfg[loader].dataset if cfg.get(loader) else {"type": None}
        if kept := dataset.get("images"):  # the range of the images of a folder of a name
            (ends,) = kept.values()
            return len(range(*ends))
        counts = images.get(dataset["type"], ())
        return counts[split] if split < len(counts) else None

    batch = cfg.get("auto_scale_lr", {}).get("base_batch_size")
    for_server = "test" in str(cfg.test_dataloader.dataset.get("data_prefix"))
    tested = count("test_dataloader", 2 if for_server else 1)
    return Recipe(*_length(cfg), batch, count("train_dataloader", 0), tested)


def _length(cfg: Any) -> tuple[str, int]:
    train = cfg.get("train_cfg") or {}
    if "max_epochs" in train:
        return "epochs", train["max_epochs"]
    return "iterations", train.get("max_iters", 0)


def _shorten_mmengine(cfg: Any, length: int) -> None:
    (unit, whole), train = _length(cfg), cfg.train_cfg

    def scaled(step: Any) -> Any:
        """Return a step, or steps, at the same fraction of the new length."""
        if isinstance(step, list | tuple):
            return [scaled(part) for part in step]
        return step - whole + length if step >= whole else max(1, round(step * length / whole))

    train["max_epochs" if unit == "epochs" else "max_iters"] = length
    train.val_interval = min(length, train.get("val_interval", 1))
    schedulers = cfg.get("param_scheduler") or []
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        if scheduler["type"] != "LinearLR":
            keys = {"end", "T_max", "milestones"}
        else:  # a warm-up, which stays, begins at 0
            keys = {"begin", "end"} if scheduler.get("begin") else set()
        for key in keys & set(scheduler):
            scheduler[key] = scaled(scheduler[key])


def _read_mmengine_from(cfg: Any, data: Path) -> bool:
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give the folder of the images")
    jpeg = False
    for split in ("train", "val", "test"):
        if not (loader := cfg.get(f"{split}_dataloader")):
            continue
        # ClassBalancedDataset wraps the dataset that reads.
        dataset = loader.dataset.get("dataset", loader.dataset)
        evaluator = cfg.get(f"{split}_evaluator") or {}
        if "ann_file" in evaluator:
            file = evaluator["ann_file"].removeprefix(dataset.data_root).lstrip("/")
            evaluator["ann_file"] = str(data / file)
        dataset.data_root = str(data)
        if dataset.type.startswith("CIFAR") and (data / dataset.split).is_dir():
            folder = data / dataset.pop("split")
            dataset.update(type="CustomDataset", data_prefix=folder.name)
            dataset.pipeline = [{"type": "LoadImageFromFile"}, *dataset.pipeline]
            # CIFAR's own reader gives RGB, mmcv's BGR.
            cfg.data_preprocessor.to_rgb = True
            jpeg = any(folder.glob("*/*.jpg"))
    return jpeg


class _Kind(NamedTuple):
    """What a kind of config does in the functions of the same names."""

    recipe_of: Callable[[Any, Mapping[str, Sequence[int]]], Recipe]
    shorten: Callable[[Any, int], None]
    read_from: Callable[[Any, Path], bool]


#: :attr:`.OpenConfig.framework` -> its kind of config.
KINDS = {
    "detectron2": _Kind(_recipe_of_yaml, _shorten_yaml, _read_yaml_from),
    "openmmlab": _Kind(_recipe_of_mmengine, _shorten_mmengine, _read_mmengine_from),
}


def save(row: OpenConfig, folder: Path) -> Path:
    """Write the config to a file beside a run's folder; UserError if it has another one."""
    path, text = folder.with_name(folder.name + Path(row.path).suffix), row.config.dump()
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path} was begun with other settings; give the same, or another folder")
    write_text(path, text)
    return path
