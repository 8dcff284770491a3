"""How a row's config is read and changed before a run, for each framework.

A recipe is a config as published, opened with the overrides of its row. Its methods change the
config in memory; ``save`` writes the config that the command train is given. The attributes are
the published ones: ``length`` and ``unit``, ``batch`` over all processes, ``images``,
``test_images``.
"""

import ast
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..frameworks import framework_of, open_config
from .registry import Cell

#: Data set -> number of images in training and validation, and for a benchmark's server.
IMAGES = {
    "CIFAR10": (50_000, 10_000),
    "CIFAR100": (50_000, 10_000),
    "ImageNet": (1_281_167, 50_000),
    # Of 118,287 training images 1,021 are without objects, which both frameworks leave out.
    "CocoDataset": (117_266, 5_000, 20_288),
    "ADE20KDataset": (20_210, 2_000),
    "CityscapesDataset": (2_975, 500, 1_525),
}
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
#: Settings of a scheduler behind the warm-up that scale with the length.
STEPS = {"end", "T_max", "milestones"}
#: Folders of CIFAR as image files, by classes -> the split of mmpretrain's data set.
SPLITS = {"train": "train", "val": "test", "test": "test"}


class Detectron2:
    """A recipe of detectron2."""

    #: The setting with the checkpoint that a training starts from.
    pretrained = "MODEL.WEIGHTS"
    #: Settings that don't change the experiment: paths, loader workers, logging, checkpoints.
    harmless = re.compile(
        r"OUTPUT_DIR|DATALOADER\.NUM_WORKERS|MODEL\.DEVICE|VIS_PERIOD"
        r"|SOLVER\.CHECKPOINT_PERIOD|TEST\.EVAL_PERIOD"
    )
    unit = "iterations"
    jpeg = False
    images, test_images, _ = IMAGES["CocoDataset"]

    def __init__(self, cfg: Any) -> None:
        self.cfg, self.length, self.batch = cfg, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH

    @staticmethod
    def words(overrides: Sequence[str]) -> list[str]:
        """Return overrides KEY=VALUE as the command line of the framework has them."""
        return [word for pair in overrides for word in pair.split("=", 1)]

    def pairs(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Return key and value of overrides on the command line."""
        return list(zip(words[::2], words[1::2], strict=True))

    def place(self, folder: Path, seed: int) -> None:
        """Set the output folder and the seed."""
        self.cfg.OUTPUT_DIR, self.cfg.SEED = str(folder), seed

    def shorten(self, new: int) -> None:
        """Train for ``new`` epochs or iterations, with the schedule scaled; the warm-up stays."""
        solver = self.cfg.SOLVER
        steps = {max(1, round(step * new / solver.MAX_ITER)) for step in solver.STEPS}
        # detectron2 requires steps below MAX_ITER.
        solver.STEPS = tuple(sorted(step for step in steps if step < new))
        solver.MAX_ITER = new

    def read_from(self, data: Path) -> None:
        """Take the images from a folder."""
        # The environment variable DETECTRON2_DATASETS does it.

    def start_from(self, checkpoint: str) -> None:
        """Start the training from another row's checkpoint; ``test`` loads it to be tested."""
        self.cfg.MODEL.WEIGHTS = checkpoint

    test = start_from

    def predict_to(self, folder: Path) -> None:
        """Write predictions for a benchmark's server, if any, to a folder."""
        # OUTPUT_DIR/inference has them.

    def has_test(self, test: str) -> bool:
        return test == ""

    def save(self, folder: Path) -> Path:
        """Write the config to a file beside a run's folder, and return its path."""
        path = folder.with_name(f"{folder.name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.cfg.dump(), encoding="utf-8")
        return path


class MMEngine:
    """A recipe of OpenMMLab; its methods are those of :class:`Detectron2`."""

    pretrained = "model.backbone.init_cfg.checkpoint"
    harmless = re.compile(
        r"(work_dir|experiment_name|env_cfg|visualizer|vis_backends|log_\w+|model_wrapper_cfg"
        r"|channels_last|optim_wrapper(\.\w+)?\.optimizer\.fused"
        r"|\w+_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor)"
        r"|\w+_dataloader\.dataset\.(dataset\.)?data_root"
        r"|test_dataloader\.batch_size"
        r"|test_evaluator\.(\d+\.)?(lpips_weights|ann_file|output_dir|outfile_prefix))(\..*)?"
        r"|default_hooks\.(timer|logger|checkpoint|visualization)\.(?!type$).*"
    )

    #: Whether the images of CIFAR were re-encoded as JPEG.
    jpeg = False

    def __init__(self, cfg: Any) -> None:
        self.cfg, train = cfg, cfg.get("train_cfg") or {}
        self.unit = "epochs" if "max_epochs" in train else "iterations"
        self.length = train.get("max_epochs", train.get("max_iters", 0))
        self.batch = cfg.get("auto_scale_lr", {}).get("base_batch_size")
        self.images = self._count("train_dataloader", 0)
        for_server = "test" in str(cfg.test_dataloader.dataset.get("data_prefix"))
        self.test_images = self._count("test_dataloader", 2 if for_server else 1)

    def _count(self, loader: str, split: int) -> int | None:
        """Return the number of images of a loader's published data set; None if unknown."""
        if not self.cfg.get(loader):
            return None
        dataset = self.cfg[loader].dataset
        if dataset.get("images"):  # the range that it takes of a folder
            return len(range(*dataset.images))
        return (IMAGES.get(dataset.type, ()) + (None,) * 3)[split]

    @property
    def datasets(self) -> list[tuple[str, Any]]:
        """The name of each loader, without "_dataloader", and its data set that reads images."""
        found = [(name.partition("_")[0], self.cfg[name].dataset) for name in LOADERS
                 if self.cfg.get(name)]  # fmt: skip
        # ClassBalancedDataset wraps the data set that reads images.
        return [(name, dataset.get("dataset", dataset)) for name, dataset in found]

    @staticmethod
    def words(overrides: Sequence[str]) -> list[str]:
        return list(overrides)

    def pairs(self, words: Sequence[str]) -> list[tuple[str, str]]:
        return [tuple(word.split("=", 1)) for word in words]

    def place(self, folder: Path, seed: int) -> None:
        self.cfg.work_dir = str(folder)
        self.cfg.merge_from_dict({"randomness.seed": seed})
        if self.unit == "epochs":
            self.cfg.default_hooks.checkpoint.interval = 1

    def shorten(self, new: int) -> None:
        cfg = self.cfg
        cfg.train_cfg["max_epochs" if self.unit == "epochs" else "max_iters"] = new
        cfg.train_cfg.val_interval = min(new, cfg.train_cfg.get("val_interval", 1))
        schedulers = cfg.get("param_scheduler") or []
        for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
            if scheduler["type"] == "LinearLR" and scheduler.get("begin", 0) == 0:
                continue  # the warm-up
            keys = {"begin", "end"} if scheduler["type"] == "LinearLR" else STEPS
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
            raise UserError(f"--data {data}: no such folder")
        for name, dataset in self.datasets:
            evaluator = self.cfg.get(f"{name}_evaluator") or {}
            if "ann_file" in evaluator:
                file = evaluator["ann_file"].removeprefix(dataset.data_root).lstrip("/")
                evaluator["ann_file"] = str(data / file)
            dataset.data_root = str(data)
            if dataset.type.startswith("CIFAR") and (data / SPLITS[name]).is_dir():
                self._read_folders(dataset, SPLITS[name])
                self.jpeg = any((data / SPLITS[name]).glob("*/*.jpg"))

    def _read_folders(self, dataset: Any, split: str) -> None:
        """Turn a data set of CIFAR into one of image files, SPLIT/CLASS/NAME."""
        del dataset["split"]
        dataset.update(type="CustomDataset", data_prefix=split)
        dataset.pipeline = [{"type": "LoadImageFromFile"}, *dataset.pipeline]
        # CIFAR's own reader gives RGB, mmcv's BGR.
        self.cfg.data_preprocessor.to_rgb = True

    def start_from(self, checkpoint: str) -> None:
        # The checkpoint is of a whole classifier; a segmenter takes only its backbone.
        self.cfg.model.backbone.init_cfg.update(checkpoint=checkpoint, prefix="backbone.")

    def test(self, checkpoint: str) -> None:
        self.cfg.load_from = checkpoint

    def predict_to(self, folder: Path) -> None:
        paths = {"output_dir": str(folder), "outfile_prefix": str(folder / "results")}
        evaluators = self.cfg.test_evaluator
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            evaluator.update({key: path for key, path in paths.items() if key in evaluator})

    def has_test(self, test: str) -> bool:
        return test == "" or bool(self.cfg.get("tta_model") and self.cfg.get("tta_pipeline"))

    def save(self, folder: Path) -> Path:
        path = folder.with_name(f"{folder.name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(path)
        return path


Recipe = Detectron2 | MMEngine


def open_recipe(cell: Cell) -> Recipe:
    """Open the config of a row; UserError if its framework is not installed."""
    kind = {"detectron2": Detectron2, "openmmlab": MMEngine}[framework_of(cell.file)]
    return kind(open_config(cell.file, kind.words(cell.overrides)).config)


def changes(recipe: Recipe, words: Sequence[str]) -> dict[str, Any]:
    """Return key -> parsed value of the overrides that change the experiment."""
    pairs = recipe.pairs(words)
    return {key: _parsed(text) for key, text in pairs if not recipe.harmless.fullmatch(key)}


def _parsed(text: str) -> Any:
    """Parse an override's value as a Python literal, tuples as lists; other text stays a str."""
    with suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) else value
    return text
