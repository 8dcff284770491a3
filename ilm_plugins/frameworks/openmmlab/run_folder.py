"""MMEngine's configs and run folders; functions as in :class:`..run_summary.RunFolders`.

For each training or test, MMEngine writes a subfolder with a log and with the config that was used,
``vis_data/config.py``. Below, each training or test is a session, a path of such a config file.
"""

import json
import math
import mmap
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from ...errors import UserError
from .. import curves
from ..run_summary import RunSummary, Test
from .checkpoints import latest
from .checks import LOADERS

PRETRAINED = "model.backbone.init_cfg.checkpoint"
HARMLESS = re.compile(
    r"(work_dir|experiment_name|env_cfg|visualizer|vis_backends|log_\w+|model_wrapper_cfg"
    r"|channels_last|optim_wrapper(\.\w+)?\.optimizer\.fused"
    r"|\w+_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor)"
    r"|\w+_dataloader\.dataset\.(dataset\.)?data_root"
    r"|test_dataloader\.batch_size"
    r"|test_evaluator\.(\d+\.)?(lpips_weights|ann_file|output_dir|outfile_prefix))(\..*)?"
    r"|default_hooks\.(timer|logger|checkpoint|visualization)\.(?!type$).*"
)
#: Data set type -> number of images in training and in validation, and for a benchmark's server.
WHOLE = {
    "CIFAR10": (50_000, 10_000),
    "CIFAR100": (50_000, 10_000),
    "ImageNet": (1_281_167, 50_000),
    "CocoDataset": (118_287, 5_000, 20_288),
    "ADE20KDataset": (20_210, 2_000),
    "CityscapesDataset": (2_975, 500, 1_525),
}
#: The pipeline of CIFAR's recipes, whose work CropFlipPreprocessor can do.
CROP_FLIP = [
    {"type": "RandomCrop", "crop_size": 32, "padding": 4},
    {"type": "RandomFlip", "prob": 0.5, "direction": "horizontal"},
    {"type": "PackInputs"},
]
#: Names of values from training batches that curves show: losses and accuracies.
TRAINING = ".*loss|accuracy_top-"
TIMES = ("time", "data_time")


def length(config: str) -> tuple[int, str]:
    train = load(config).get("train_cfg") or {}
    if "max_epochs" in train:
        return train.max_epochs, "epochs"
    return train.get("max_iters", 0), "iterations"


# Cached, since a base file of another package makes MMEngine read that package's whole model zoo.
@cache
def load(config: str) -> Config:
    """Read a config file; the result is cached and shared, so don't change it."""
    return Config.fromfile(config)


def batch(config: str, overrides: Sequence[str], processes: int) -> tuple[int, int]:
    cfg, given = load(config), dict(word.split("=", 1) for word in overrides)
    each = given.get("train_dataloader.batch_size", cfg.train_dataloader.batch_size)
    whole = given.get("auto_scale_lr.base_batch_size", cfg.auto_scale_lr.base_batch_size)
    return processes * int(each), int(whole)


def run_overrides(config: str, work_dir: Path, seed: int) -> list[str]:
    options = [f"work_dir={str(work_dir)!r}", f"randomness.seed={seed}"]
    # Save a checkpoint after each epoch.
    by_epoch = length(config)[1] == "epochs"
    return options + ["default_hooks.checkpoint.interval=1"] * by_epoch


def length_overrides(config: str, new: int) -> list[str]:
    """Return overrides that train for ``new`` epochs or iterations, with a scaled schedule.

    The ends, milestones and ``T_max`` of schedulers move to the same fractions of the training;
    LinearLR, the warm-up, stays. A validation interval above ``new`` becomes ``new``.

    Args:
        config: path of the config file.
        new: length in the config's own unit; see :func:`length`.
    """
    cfg, (old, unit) = load(config), length(config)
    name = {"epochs": "epochs", "iterations": "iters"}[unit]
    options = [f"train_cfg.max_{name}={new}"]
    schedulers = cfg.get("param_scheduler") or []
    single = isinstance(schedulers, dict)
    for i, scheduler in enumerate([schedulers] if single else schedulers):
        if scheduler["type"] == "LinearLR":
            continue
        key = "param_scheduler" if single else f"param_scheduler.{i}"
        for option in {"milestones", "end", "T_max"} & set(scheduler):
            value = scheduler[option]
            scaled = [_scale_step(v, old, new) for v in value] if isinstance(value, list) else None
            options.append(f"{key}.{option}={scaled or _scale_step(value, old, new)}")
    if cfg.train_cfg.get("val_interval", 1) > new:
        options.append(f"train_cfg.val_interval={new}")
    return sorted(options)


def _scale_step(step: int, old: int, new: int) -> int:
    """Return the step at the same fraction of a training of ``new`` as of ``old``, at least 1."""
    return max(1, round(step * new / old))


def data_overrides(config: str, folder: str) -> list[str]:
    """Return overrides that take images, and the annotations of evaluators, from a folder.

    If it has a file ``train.npz``, data sets become PackedImages, loaded without other processes.

    Args:
        config: path of the config file.
        folder: ``data_root`` of all data sets; files in it are not checked.

    Raises:
        UserError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--data {folder}: no such folder; give that of the images")
    # A folder of archives instead of image files.
    packed = Path(folder, "train.npz").is_file()
    cfg, options = load(config), []
    for loader in (name for name in LOADERS if cfg.get(name) is not None):
        # ClassBalancedDataset wraps the data set that reads images.
        data = f"{loader}.dataset" + ".dataset" * ("dataset" in cfg[loader].dataset)
        options.append(f"{data}.data_root={folder!r}")
        if packed:
            # Transfer of such small images between processes costs more than loading them.
            options += [f"{data}.type=PackedImages", f"{loader}.num_workers=0"]
            options.append(f"{loader}.persistent_workers=False")
        evaluator = cfg.get(loader.replace("dataloader", "evaluator")) or {}
        if "ann_file" in evaluator:
            root = cfg[loader].dataset.data_root
            file = Path(folder, evaluator.ann_file.removeprefix(root).lstrip("/"))
            options.append(f"{loader.replace('dataloader', 'evaluator')}.ann_file={str(file)!r}")
    return options


def augmentation_overrides(config: str) -> list[str]:
    cfg = load(config)
    if cfg.get("train_dataloader", {}).get("dataset", {}).get("pipeline") != CROP_FLIP:
        raise UserError(
            f"--augment-batches crops and flips as the recipes of CIFAR do, unlike {config}; "
            "leave it out"
        )
    return [
        "train_dataloader.dataset.pipeline=[]",
        "train_dataloader.collate_fn.type=stack_images",
        "data_preprocessor.type=CropFlipPreprocessor",
    ]


def start_overrides(checkpoint: str) -> list[str]:
    # The checkpoint is of a whole classifier; a segmenter takes only its backbone.
    prefix = PRETRAINED.replace("checkpoint", "prefix")
    return [f"{PRETRAINED}={checkpoint!r}", f"{prefix}='backbone.'"]


def test_overrides(checkpoint: str) -> list[str]:
    return [f"load_from={checkpoint!r}"]


def environment(folder: str | Path) -> dict[str, str]:
    return {}  # data_overrides() does it


def to_words(pairs: Sequence[str]) -> list[str]:
    return list(pairs)


def prediction_overrides(config: str, folder: Path) -> list[str]:
    paths = {"output_dir": str(folder), "outfile_prefix": str(folder / "results")}
    evaluators = load(config).test_evaluator
    if isinstance(evaluators, dict):
        evaluators = {"test_evaluator": evaluators}
    else:
        evaluators = {f"test_evaluator.{i}": evaluator for i, evaluator in enumerate(evaluators)}
    return [
        f"{key}.{option}={path!r}"
        for key, evaluator in evaluators.items()
        for option, path in paths.items()
        if option in evaluator
    ]


def progress(work_dir: Path) -> tuple[int, str | None]:
    checkpoint = latest(work_dir)
    number = re.search(r"_(\d+)\.pth$", checkpoint or "")
    return (int(number[1]) if number else 0), checkpoint


def is_complete(work_dir: Path, total: int) -> bool:
    return progress(work_dir)[0] >= total


def tests(config: str, wanted: Iterable[Test]) -> list[Test]:
    cfg = load(config)
    augments = cfg.get("tta_model") and cfg.get("tta_pipeline")
    return [options for options in wanted if augments or "--tta" not in options]


def tests_made(work_dir: Path, checkpoint: str | None = None) -> set[Test]:
    return set(_tests(_after_training(_config_files(work_dir)), checkpoint))


def summary(config: str, work_dir: Path, total: int) -> RunSummary:
    """Read a run folder; see :meth:`..run_summary.RunFolders.summary`.

    For a training on a range of image pairs that has a test, it also scores the mean training
    image, for which it decodes all training images; errors of that pass unchanged.

    Args:
        config: path of the recipe's config file.
        work_dir: the run's output folder.
        total: epochs or iterations that the run trains for; 0 if it only tests.

    Raises:
        UserError: the folder holds no training and no test.
    """
    sessions = _config_files(work_dir)
    if not sessions:
        raise UserError(f"{work_dir} has no run of the command train: no */vis_data/config.py")
    recipe, unit = load(config), length(config)[1]
    trained = list(filter(_scalars_file, sessions)) if total else []
    last = (trained or sessions)[-1]
    cfg = load(str(last))
    checkpoint = None if trained else cfg.get("load_from")
    made = _tests(_after_training(sessions) if total else sessions, None if total else checkpoint)
    metrics = {test: values for test, (_, values) in made.items()}
    rows, seconds = curve(list(map(_scalars_file, trained)), unit, total)
    # A run may have been resumed on other images than it was begun on.
    counts = [_training_images(recipe, load(str(s)), s) for s in (trained or [last]) if total]
    trained_on = min((found for found, _ in counts if found), default=None)
    recipe_images = counts[0][1] if counts else None
    tested_on, recipe_tests = _test_images(recipe, [path for path, _ in made.values()])
    references = {}
    if trained and metrics and _selected_pairs(cfg.train_dataloader.dataset):
        dataset = DATASETS.get(cfg.train_dataloader.dataset.type)  # pairs of images
        references["mean training image"] = dataset.score_mean_image(cfg, work_dir)
    return RunSummary(
        run=min(progress(work_dir)[0], total) if trained else 0,
        curve=rows,
        seconds=seconds,
        metrics=metrics,
        references=references,
        images=trained_on,
        recipe_images=recipe_images,
        test_images=tested_on,
        recipe_test_images=recipe_tests,
    )


def _config_files(work_dir: Path) -> list[Path]:
    """Return the config files of a folder's trainings and tests, from the oldest."""
    return sorted(Path(work_dir).glob("*/vis_data/config.py"))


def _scalars_file(session: Path) -> Path | None:
    """Return the file with a training's logged values; None if the config is of a test."""
    file = session.with_name("scalars.json")
    return file if file.is_file() else None


def _after_training(sessions: list[Path]) -> list[Path]:
    """Return the config files after the last training; all if there is no training."""
    trained = [i for i, path in enumerate(sessions) if _scalars_file(path)]
    return sessions[trained[-1] + 1 :] if trained else sessions


def _log(session: Path) -> str:
    """Return the text of the log of a training or test; "" if there is none."""
    files = sorted(session.parents[1].glob("*.log"))
    return files[-1].read_text(encoding="utf-8", errors="replace") if files else ""


def _training_images(recipe: Config, cfg: Config, session: Path) -> tuple[int | None, int | None]:
    """Return the number of training images of a run, and of its recipe; None if unknown.

    Args:
        recipe: the config in the repository.
        cfg, session: the config that the run used, and its file. Images are counted by the log
            beside it, or else in the data set's files.
    """
    recipe_images = _recipe_images(recipe.train_dataloader.dataset, 0)
    if recipe_images is None:
        return None, None
    dataset = cfg.train_dataloader.dataset
    selected = _selected_pairs(dataset)
    numbers = [
        _count_by_log(session, "train", recipe_images) or _count_by_files(dataset),
        selected and len(selected),
    ]
    return min(filter(None, numbers), default=None), recipe_images


def _test_images(recipe: Config, tests: list[Path]) -> tuple[int | None, int | None]:
    """Return the number of images of the smallest test, and of the recipe's; None if unknown."""
    dataset = recipe.test_dataloader.dataset
    for_server = "test" in str(dataset.get("data_prefix"))
    recipe_images = _recipe_images(dataset, 2 if for_server else 1)
    if recipe_images is None:
        return None, None
    numbers = [_count_by_log(path, "test", recipe_images) for path in tests]
    return min(filter(None, numbers), default=None), recipe_images


def _recipe_images(dataset: Mapping[str, Any], split: int) -> int | None:
    """Return a recipe's number of images of a split, an index of :data:`WHOLE`'s values."""
    selected = _selected_pairs(dataset)
    return len(selected) if selected else WHOLE.get(dataset.type, (None,) * 3)[split]


def _count_by_log(session: Path, mode: str, recipe_images: int) -> int | None:
    """Return the number of images of a loader, computed from the batches in its log.

    Args:
        session: the config file of the training or test.
        mode: "train" or "test".
        recipe_images: the recipe's number of images.

    Returns:
        ``recipe_images`` if it gives this number of batches, otherwise batches * batch size. None
        if the log does not tell, as for trainings whose length is in iterations.
    """
    unit = "Epoch" if mode == "train" else "Epoch|Iter"
    line = rf"(?:{unit})\({mode}\)\s*(?:\[\s*\d+\]\s*)?\[\s*\d+/(\d+)\]"
    log = _log(session)
    found, processes = re.search(line, log), re.search(r"GPU number: (\d+)", log)
    if not (found and processes):
        return None
    batch = load(str(session))[f"{mode}_dataloader"].batch_size * int(processes[1])
    batches = int(found[1])
    return recipe_images if batches == math.ceil(recipe_images / batch) else batches * batch


def _count_by_files(dataset: dict) -> int | None:
    """Count the image files of a data set; None if they are missing or slow to count.

    Args:
        dataset: its config. Counted are the images in the annotation file of a CocoDataset, else
            the .jpg and .png files at any depth of the folder ``data_prefix.img_path``.
    """
    root = Path(dataset.get("data_root") or "").expanduser()
    listed, folder = dataset.get("ann_file"), (dataset.get("data_prefix") or {}).get("img_path")
    if dataset.get("type") == "CocoDataset" and Path(root, listed).is_file():
        # Only images have a file name; parsing all annotations would take gigabytes.
        with (
            Path(root, listed).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            return sum(1 for _ in re.finditer(rb'"file_name"', text))
    if folder and Path(root, folder).is_dir():
        files = (name for *_, names in os.walk(Path(root, folder)) for name in names)
        return sum(name.endswith((".jpg", ".png")) for name in files)
    return None


def _selected_pairs(dataset: Mapping[str, Any]) -> range | None:
    """Return the range of image pairs that a data set uses; None if it uses all."""
    first, last = dataset.get("images") or (None, None)
    return None if last is None else range(first or 0, last)


def curve(files: list[Path], unit: str, total: int) -> tuple[list[dict], float]:
    """Average the logged values of a training by epoch, or over ranges of iterations.

    Args:
        files: the logs of the sessions of the training, from the first; may be empty.
        unit: "epochs" or "iterations".
        total: the training's length.

    Returns:
        The points of the curve (see :func:`.curves.means`), and the training's seconds, estimated
        as the mean time of the logged iterations times their number; 0.0 without any.
    """
    # Entries of iterations and of validations have their iteration or epoch as "step".
    key = "epoch" if unit == "epochs" else "step"
    sessions = [
        [
            (e.get(key, e["step"]), e)
            for e in curves.entries(file)
            if not any(name.startswith("ratios/") for name in e)  # of RatiosHook
        ]
        for file in files
    ]
    logs = [entry for session in sessions for _, entry in session if "iter" in entry]
    step = 1 if unit == "epochs" else curves.spacing(total)
    logged = (
        (curves.point(at, step), name, value)
        for at, entry in curves.continued(sessions)
        for name, value in entry.items()
        if re.match(TRAINING, name) or ("iter" not in entry and name not in ("step", *TIMES))
    )
    seconds = fmean(e["time"] for e in logs) * max(e["iter"] for e in logs) if logs else 0.0
    return curves.means(unit, logged), seconds


def _tests(
    sessions: list[Path], checkpoint: str | None = None
) -> dict[Test, tuple[Path, dict[str, float]]]:
    """Read the metrics of tests.

    Args:
        sessions: config files of trainings and tests, from the oldest.
        checkpoint: the checkpoint whose tests are read; None for all.

    Returns:
        Test -> the config file and the metrics of the last such test, without times. Sessions
        without a .json file of metrics, such as trainings, are left out.
    """
    found = {}
    for path in sessions:
        cfg = load(str(path))
        if checkpoint is not None and cfg.get("load_from") != checkpoint:
            continue
        for file in path.parents[1].glob("*.json"):
            values = json.loads(file.read_text(encoding="utf-8"))
            values = {k: v for k, v in values.items() if k not in TIMES and v is not None}
            # The model of test-time augmentation wraps the model as ``module``.
            found[("--tta",) if "module" in cfg.model else ()] = path, values
    return found
