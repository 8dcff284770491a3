"""How a row's config is read and changed before a run, for each framework.

A recipe is a config as published, opened with the overrides of its row. Its attributes are the
published ones; its methods change the config that :meth:`Recipe.save` writes for the command train.
"""

import ast
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...frameworks import framework_of, open_config
from ...frameworks.variants import variants
from .registry import ROOT, Cell, images


class Recipe:
    """A config of a row, here of detectron2; :class:`MMEngineRecipe` overrides what differs."""

    unit, suffix = "iterations", ".yaml"
    #: Whether the images of CIFAR were re-encoded as JPEG.
    jpeg = False

    def __init__(self, cfg: Any) -> None:
        cfg.defrost()
        #: ``batch`` is over all processes.
        self.cfg, self.length, self.batch = cfg, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH
        self.images, self.test_images = images()[cfg.DATASETS.TRAIN[0]]

    @staticmethod
    def arguments(overrides: Sequence[str]) -> list[str]:
        """Return overrides KEY=VALUE as arguments of the framework's command line."""
        return [argument for pair in overrides for argument in pair.split("=", 1)]

    def changes(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return key -> parsed value of the overrides."""
        return {key: _parsed(text) for key, text in (pair.split("=", 1) for pair in overrides)}

    def place(self, folder: Path, seed: int) -> None:
        self.cfg.OUTPUT_DIR, self.cfg.SEED = str(folder), seed

    def shorten(self, new: int) -> None:
        """Train for ``new`` epochs or iterations, with the schedule scaled; the warm-up stays."""
        solver = self.cfg.SOLVER
        steps = {max(1, round(step * new / self.length)) for step in solver.STEPS}
        # detectron2 requires steps below MAX_ITER.
        solver.STEPS = tuple(sorted(step for step in steps if step < new))
        solver.MAX_ITER = new

    def read_from(self, data: Path) -> None:
        """Read the images from a folder; detectron2 has DETECTRON2_DATASETS for this."""

    def test(self, checkpoint: str) -> None:
        self.cfg.MODEL.WEIGHTS = checkpoint

    start_from = test

    def save(self, folder: Path) -> Path:
        """Write the config to a file beside a run's folder, and return its path."""
        path = folder.with_name(folder.name + self.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.cfg.dump(), encoding="utf-8")
        return path


class MMEngineRecipe(Recipe):
    """A config of a row in OpenMMLab."""

    suffix = ".py"

    def __init__(self, cfg: Any) -> None:
        self.cfg, train = cfg, cfg.get("train_cfg") or {}
        self.unit = "epochs" if "max_epochs" in train else "iterations"
        self.length = train.get("max_epochs", train.get("max_iters", 0))
        self.batch = cfg.get("auto_scale_lr", {}).get("base_batch_size")
        self.images = self._count("train_dataloader", 0)
        for_server = "test" in str(cfg.test_dataloader.dataset.get("data_prefix"))
        self.test_images = self._count("test_dataloader", 2 if for_server else 1)

    def _count(self, loader: str, split: int) -> int | None:
        """Return the number of images of a loader's published dataset; None if unknown."""
        dataset = self.cfg[loader].dataset if self.cfg.get(loader) else {"type": None}
        if dataset.get("images"):  # the dataset's range of a folder's images
            return len(range(*dataset["images"]))
        counts = images().get(dataset["type"], ())
        return counts[split] if split < len(counts) else None

    @staticmethod
    def arguments(overrides: Sequence[str]) -> list[str]:
        return list(overrides)

    def place(self, folder: Path, seed: int) -> None:
        self.cfg.work_dir = str(folder)
        self.cfg.merge_from_dict({"randomness.seed": seed})
        if self.unit == "epochs":
            self.cfg.default_hooks.checkpoint.interval = 1

    def shorten(self, new: int) -> None:
        train = self.cfg.train_cfg
        train["max_epochs" if self.unit == "epochs" else "max_iters"] = new
        train.val_interval = min(new, train.get("val_interval", 1))
        schedulers = self.cfg.get("param_scheduler") or []
        if isinstance(schedulers, dict):
            schedulers = [schedulers]
        for scheduler in schedulers:
            if scheduler["type"] != "LinearLR":
                keys = {"end", "T_max", "milestones"}
            else:  # a warm-up, which stays, begins at 0
                keys = {"begin", "end"} if scheduler.get("begin") else set()
            for key in keys & set(scheduler):
                scheduler[key] = self._scaled(scheduler[key], new)

    def _scaled(self, step: Any, new: int) -> Any:
        """Return the step, or steps, at the same fraction of a training of length ``new``."""
        if isinstance(step, list | tuple):
            return [self._scaled(one, new) for one in step]
        if step >= self.length:
            return step - self.length + new
        return max(1, round(step * new / self.length))

    def read_from(self, data: Path) -> None:
        if not data.is_dir():
            raise UserError(f"--data {data}: no such folder; give the folder of the images")
        for loader, evaluator in loaders(self.cfg).values():
            # ClassBalancedDataset wraps the dataset that reads.
            dataset = loader.dataset.get("dataset", loader.dataset)
            if "ann_file" in evaluator:
                file = evaluator["ann_file"].removeprefix(dataset.data_root).lstrip("/")
                evaluator["ann_file"] = str(data / file)
            dataset.data_root = str(data)
            if dataset.type.startswith("CIFAR") and (data / dataset.split).is_dir():
                folder = data / dataset.pop("split")
                dataset.update(type="CustomDataset", data_prefix=folder.name)
                dataset.pipeline = [{"type": "LoadImageFromFile"}, *dataset.pipeline]
                # CIFAR's own reader gives RGB, mmcv's BGR.
                self.cfg.data_preprocessor.to_rgb = True
                self.jpeg = any(folder.glob("*/*.jpg"))

    def start_from(self, checkpoint: str) -> None:
        # The checkpoint is of a whole classifier; a segmenter takes only its backbone.
        self.cfg.model.backbone.init_cfg.update(checkpoint=checkpoint, prefix="backbone.")

    def test(self, checkpoint: str) -> None:
        self.cfg.load_from = checkpoint


def loaders(cfg: Any) -> dict[str, tuple[Any, Any]]:
    """Return "train", "val" and "test" -> the loader and the evaluator of MMEngine's config."""
    return {
        split: (cfg[f"{split}_dataloader"], cfg.get(f"{split}_evaluator") or {})
        for split in ("train", "val", "test")
        if cfg.get(f"{split}_dataloader")
    }


def open_recipe(cell: Cell) -> Recipe:
    """Open the config of a row; UserError if its framework is not installed."""
    path = str(ROOT / cell.config)
    kind = {"detectron2": Recipe, "openmmlab": MMEngineRecipe}[framework_of(path)]
    overrides = kind.arguments(cell.overrides)
    if cell.norm:
        overrides += variants(open_config(path, overrides)).with_norm(cell.norm, cell.at)
    return kind(open_config(path, overrides).config)


def _parsed(text: str) -> Any:
    """Parse an override's value as a Python literal, tuples as lists; other text stays a str."""
    with suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) else value
    return text
