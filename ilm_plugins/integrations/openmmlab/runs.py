"""What :mod:`ilm_plugins.reproduction` asks of MMEngine's configs and of the folders of their runs.

Overrides are those of tools/train_net.py, KEY=VALUE.
"""

import json
import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.config import Config

from ...errors import UserError
from ...pix2pix import metrics as images
from ...pix2pix.pairs import image_files
from ...pix2pix.training import PairedImages
from .. import curves
from ..reading import Reading
from .checkpoints import latest

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
#: What of a config leaves a recipe as it is: where data and results are, and how they get there.
PLACES = re.compile(
    r"(work_dir|experiment_name|env_cfg|visualizer|vis_backends|log_\w+"
    r"|model_wrapper_cfg|randomness|train_cfg\.(max_epochs|max_iters|val_interval)"
    r"|(train|test)_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor)"
    r"|(train|test)_dataloader\.dataset\.(dataset\.)?data_root"
    r"|test_dataloader\.batch_size|test_evaluator\.(lpips_weights|ann_file|output_dir))(\..*)?"
    r"|default_hooks\.(timer|logger|checkpoint|visualization)\.(?!type$).*"
    r"|model\.head\.cal_acc|model\.backbone\.init_cfg\.prefix"
)
#: Images of the data sets of the recipes, in training and in validation.
WHOLE = {
    "CIFAR10": (50_000, 10_000),
    "CIFAR100": (50_000, 10_000),
    "ImageNet": (1_281_167, 50_000),
    "CocoDataset": (118_287, 5_000),
    "ADE20KDataset": (20_210, 2_000),
    "CityscapesDataset": (2_975, 500),
}
#: What of a training is drawn: losses, and the accuracy on its batches.
TRAINING = ".*loss|accuracy_top-"
#: What tools/train_net.py and MMEngine write into a config.
WRITTEN = re.compile(
    r"(launcher|resume|load_from|default_hooks\.runtime_info)(\.|$)|.*\.(verify|_scope_)$"
)


def length(config: str) -> tuple[int, str]:
    """How long a config trains, and in what: "epochs" or "iterations"."""
    return _length(load(config))


# Base files of another package have MMEngine read that package's whole model zoo.
@cache
def load(config: str) -> Config:
    """A config's file, read once."""
    return Config.fromfile(config)


def _length(cfg: Config) -> tuple[int, str]:
    if "max_epochs" in (cfg.get("train_cfg") or {}):
        return cfg.train_cfg.max_epochs, "epochs"
    return (cfg.get("train_cfg") or {}).get("max_iters", 0), "iterations"


def settings(config: str, work_dir: Path, seed: int) -> list[str]:
    """Where a run is, and its seed; it keeps a checkpoint of each epoch."""
    options = [f"work_dir={str(work_dir)!r}", f"randomness.seed={seed}"]
    by_epoch = length(config)[1] == "epochs"
    return options + ["default_hooks.checkpoint.interval=1"] * by_epoch


def shortened(config: str, new: int) -> list[str]:
    """Train for ``new`` epochs or iterations, with the schedule's steps at the same shares.

    A warm-up, which is a LinearLR, stays as it is.
    """
    cfg = load(config)
    old, unit = _length(cfg)
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
            scaled = [_share(v, old, new) for v in value] if isinstance(value, list) else None
            options.append(f"{key}.{option}={scaled or _share(value, old, new)}")
    if cfg.train_cfg.get("val_interval", 1) > new:
        options.append(f"train_cfg.val_interval={new}")
    return sorted(options)


def _share(step: int, old: int, new: int) -> int:
    return max(1, round(step * new / old))


def on_data(config: str, folder: str) -> list[str]:
    """Take the images from a folder; where it holds ``train.npz``, those of the archives.

    Raises:
        UserError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--data {folder}: no such folder; give that of the images")
    packed = Path(folder, "train.npz").is_file()
    cfg, options = load(config), []
    for loader in (name for name in LOADERS if cfg.get(name) is not None):
        # ClassBalancedDataset has the one that reads images within.
        data = f"{loader}.dataset" + ".dataset" * ("dataset" in cfg[loader].dataset)
        options.append(f"{data}.data_root={folder!r}")
        if packed:
            # To hand on the tensors of so small images costs more than to make them.
            options += [f"{data}.type=PackedImages", f"{loader}.num_workers=0"]
            options.append(f"{loader}.persistent_workers=False")
        evaluator = cfg.get(loader.replace("dataloader", "evaluator")) or {}
        if "ann_file" in evaluator:
            root = cfg[loader].dataset.data_root
            file = Path(folder, evaluator.ann_file.removeprefix(root).lstrip("/"))
            options.append(f"{loader.replace('dataloader', 'evaluator')}.ann_file={str(file)!r}")
    return options


def miniature(config: str, folder: Path) -> list[str]:
    """Train for two epochs or iterations on generated images; see :mod:`.miniature`."""
    from . import miniature as generated

    return generated.miniature(config, folder)


#: Where a segmenter's backbone starts from.
PRETRAINED = "model.backbone.init_cfg.checkpoint"


def check_processes(config: str, number: int, overrides: Sequence[str]) -> None:
    """Raise UserError unless the batches of so many processes are those of the recipe together."""
    cfg, given = load(config), dict(word.split("=", 1) for word in overrides)
    whole = cfg.auto_scale_lr.base_batch_size
    each = int(given.get("train_dataloader.batch_size", cfg.train_dataloader.batch_size))
    if number * each != whole and given.get("auto_scale_lr.enable") != "True":
        raise UserError(
            f"{config} is for batches of {whole} images; {number} x {each} are {number * each}; "
            f"give --num-gpus {max(1, whole // each)}, or train_dataloader.batch_size="
            f"{max(1, whole // number)}, or auto_scale_lr.enable=True for another learning rate"
        )


def pretrained(checkpoint: str) -> list[str]:
    """Start a segmenter's backbone from a checkpoint of a whole classifier."""
    prefix = PRETRAINED.replace("checkpoint", "prefix")
    return [f"{PRETRAINED}={checkpoint!r}", f"{prefix}='backbone.'"]


def trained(checkpoint: str) -> list[str]:
    """Test a checkpoint."""
    return [f"load_from={checkpoint!r}"]


def environment(folder: Path) -> dict[str, str]:
    """Variables of the environment with which data are found; here overrides find them."""
    return {}


def spelled(pairs: Sequence[str]) -> list[str]:
    """Overrides KEY=VALUE as tools/train_net.py takes them for these configs."""
    return list(pairs)


def progress(work_dir: Path) -> tuple[int, str | None]:
    """How far a run's last checkpoint is, in epochs or iterations, and its file."""
    checkpoint = latest(work_dir)
    number = re.search(r"_(\d+)\.pth$", checkpoint or "")
    return (int(number[1]) if number else 0), checkpoint


def complete(work_dir: Path, total: int) -> bool:
    """Whether a run has trained to its end."""
    return progress(work_dir)[0] >= total


def tests(config: str, wanted: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The wanted tests, each by its options, that a config supports."""
    cfg = load(config)
    augments = cfg.get("tta_model") and cfg.get("tta_pipeline")
    return [options for options in wanted if augments or "--tta" not in options]


def tests_made(work_dir: Path, checkpoint: str | None = None) -> set[tuple[str, ...]]:
    """Options of the tests made since the last training; of a checkpoint, where one is given."""
    return set(_tests(_since_training(_dumped(work_dir)), checkpoint))


def read(config: str, work_dir: Path) -> Reading:
    """What a run was and what it came to.

    Raises:
        UserError: the folder has no run, or a training where the config only tests.
    """
    dumped = _dumped(work_dir)
    if not dumped:
        raise UserError(f"{work_dir} has no run of tools/train_net.py: no */vis_data/config.py")
    if not any(map(_scalars, dumped)) and load(str(dumped[-1])).get("train_cfg") is None:
        return _read_tests(config, dumped)
    if load(config).get("train_cfg") is None:
        raise UserError(f"{work_dir} has a training, and {config} only tests; give that of a test")
    return _read_training(config, Path(work_dir), dumped)


def _read_tests(config: str, dumped: list[Path]) -> Reading:
    """Where nothing was trained: of the tests of the checkpoint that was tested last."""
    recipe, last = load(config), load(str(dumped[-1]))
    made = _tests(dumped, last.get("load_from"))
    changed: dict[str, Any] = {}
    for path in [path for path, _ in made.values()] or dumped[-1:]:
        changed |= _of_test(recipe, load(str(path)))
    images, whole = _tested_on(recipe, [(path, "test") for path, _ in made.values()])
    return Reading(
        unit=_length(recipe)[1],
        run=0,
        planned=0,
        recipe=0,
        changes=_changes(changed),
        overrides=[spelling(k, v) for k, v in sorted(changed.items())],
        log=_log(dumped[-1]),
        metrics={options: metrics for options, (_, metrics) in made.items()},
        tested=list(made),
        checkpoint=last.get("load_from"),
        seed=last.get("randomness", {}).get("seed"),
        packed=last.test_dataloader.dataset.get("type") == "PackedImages",
        test_images=images,
        recipe_test_images=whole,
    )


def _read_training(config: str, work_dir: Path, dumped: list[Path]) -> Reading:
    """A training, and the tests since."""
    trained = list(filter(_scalars, dumped))
    recipe, cfg = load(config), load(str((trained or dumped)[-1]))
    planned, unit = _length(cfg)
    run = min(progress(work_dir)[0], planned) if trained else 0
    made = _tests(_since_training(dumped))
    changed = _changed(recipe, cfg)
    for start in (load(str(path)) for path in trained):
        if start.get("load_from") and not start.resume:
            changed["load_from"] = start.load_from
    for path, _ in made.values():
        changed |= _of_test(recipe, load(str(path)))
    rows, seconds = curve(list(map(_scalars, trained)), unit, planned)
    metrics = {options: metrics for options, (_, metrics) in made.items()}
    tests = [(path, "test") for path, _ in made.values()]
    dataset = cfg.train_dataloader.dataset
    validation = {k.replace("val", "test", 1): v for k, v in changed.items() if k[:4] == "val_"}
    if any(not _place(key, value) for key, value in validation.items()):
        # Of another set of images than the tests.
        rows = [
            {k: v for k, v in row.items() if k == unit or re.match(TRAINING, k)} for row in rows
        ]
    elif not metrics and run == planned and rows and "images" not in dataset:
        metrics = {(): {k: v for k, v in rows[-1].items() if k != unit}}
        tests = [(trained[-1], "val")]
    images, whole = _trained_on(recipe, cfg, (trained or dumped)[-1])
    test_images, whole_test = _tested_on(recipe, tests)
    references = {}
    if _chosen(dataset) and metrics:
        references["mean training image"] = mean_training_image(cfg, work_dir)
    return Reading(
        unit=unit,
        run=run,
        planned=planned,
        recipe=_length(recipe)[0],
        changes=_changes(
            changed, shortened(config, planned), _chosen(recipe.train_dataloader.dataset)
        ),
        overrides=[spelling(k, v) for k, v in sorted(changed.items())],
        log=_log((trained or dumped)[-1]),
        curve=rows,
        seconds=seconds,
        metrics=metrics,
        tested=list(made),
        references=references,
        seed=cfg.get("randomness", {}).get("seed"),
        packed=dataset.get("type") == "PackedImages",
        images=images,
        recipe_images=whole,
        test_images=test_images,
        recipe_test_images=whole_test,
        batches=sorted({n for n in map(_batch, trained) if n}),
        recipe_batch=(recipe.get("auto_scale_lr") or {}).get("base_batch_size"),
    )


def _dumped(work_dir: Path) -> list[Path]:
    """The configs of a folder's trainings and tests, as MMEngine wrote them, in order of time."""
    return sorted(Path(work_dir).glob("*/vis_data/config.py"))


def _scalars(dumped: Path) -> Path | None:
    """What the training of a dumped config has logged; None of a test."""
    file = dumped.with_name("scalars.json")
    return file if file.is_file() else None


def _since_training(dumped: list[Path]) -> list[Path]:
    trained = [i for i, path in enumerate(dumped) if _scalars(path)]
    return dumped[trained[-1] + 1 :] if trained else dumped


def _changed(recipe: Config, cfg: Config) -> dict[str, Any]:
    """In what a run's config differs from its recipe, but for what is always written into it."""
    found = differences(recipe._cfg_dict.to_dict(), cfg._cfg_dict.to_dict())
    return {key: value for key, value in found if not WRITTEN.match(key)}


def _log(dumped: Path) -> str:
    """The log beside a dumped config; "" where there is none."""
    files = sorted(dumped.parents[1].glob("*.log"))
    return files[-1].read_text(encoding="utf-8", errors="replace") if files else ""


def _batch(dumped: Path, loader: str = "train_dataloader") -> int | None:
    """The images of a batch of all processes, as a log has them."""
    processes = re.search(r"GPU number: (\d+)", _log(dumped))
    each = load(str(dumped))[loader].batch_size
    return each * int(processes[1]) if processes else None


def _trained_on(recipe: Config, cfg: Config, dumped: Path) -> tuple[int | None, int | None]:
    """Of how many images a run was trained and its recipe is; None where that is not known."""
    ours, theirs = (c.train_dataloader.dataset for c in (recipe, cfg))
    chosen, some = _chosen(ours), _chosen(theirs)
    whole = len(chosen) if chosen else WHOLE.get(ours.type, (None,))[0]
    if whole is None:
        return None, None
    numbers = [_by_log(dumped, "train", whole) or _by_files(theirs), some and len(some)]
    return min(filter(None, numbers), default=None), whole


def _tested_on(recipe: Config, tests: list[tuple[Path, str]]) -> tuple[int | None, int | None]:
    """On how many images tests were made, and on how many the recipe's are.

    Args:
        tests: their dumped configs, and "test"; or "val", where a figure is the validation's.
    """
    dataset = recipe.test_dataloader.dataset
    chosen = _chosen(dataset)
    whole = len(chosen) if chosen else WHOLE.get(dataset.type, (None, None))[1]
    if whole is None:
        return None, None
    numbers = [_by_log(path, mode, whole) for path, mode in tests]
    return min(filter(None, numbers), default=None), whole


def _by_log(dumped: Path, mode: str, whole: int) -> int | None:
    """How many images a loader has, in whole batches, as a log tells; ``whole`` if that fits.

    None where a training is counted in iterations, whose log has no length of its data.
    """
    unit = "Epoch" if mode == "train" else "Epoch|Iter"
    line = rf"(?:{unit})\({mode}\)\s*(?:\[\s*\d+\]\s*)?\[\s*\d+/(\d+)\]"
    found, batch = re.search(line, _log(dumped)), _batch(dumped, f"{mode}_dataloader")
    if not (found and batch):
        return None
    batches = int(found[1])
    return whole if batches == math.ceil(whole / batch) else batches * batch


def _by_files(dataset: dict) -> int | None:
    """How many images a data set's files are, where to count them is cheap."""
    root = Path(dataset.get("data_root") or "").expanduser()
    listed, folder = dataset.get("ann_file"), (dataset.get("data_prefix") or {}).get("img_path")
    if dataset.get("type") == "CocoDataset" and Path(root, listed).is_file():
        # Only images have one; to parse the annotations would take gigabytes.
        with (
            Path(root, listed).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            return sum(1 for _ in re.finditer(rb'"file_name"', text))
    if folder and Path(root, folder).is_dir():
        files = (name for *_, names in os.walk(Path(root, folder)) for name in names)
        return sum(name.endswith((".jpg", ".png")) for name in files)
    return None


def _changes(
    changed: Mapping[str, Any], schedule: Sequence[str] = (), chosen: range | None = None
) -> dict[str, Any]:
    """What of all settings that differ from a recipe's does not leave it as it is.

    Args:
        schedule: settings of a run of its length.
        chosen: the images of the recipe. Where others begin with the same, their number tells.
    """
    found = {
        k: v
        for k, v in changed.items()
        if not (k[:4] == "val_" or _place(k, v) or f"{k}={v!r}" in schedule)
    }
    images = _chosen({"images": found.get("train_dataloader.dataset.images")})
    if images and chosen and images.start == chosen.start:
        del found["train_dataloader.dataset.images"]
    return found


def _place(key: str, value: Any) -> bool:
    """Whether a setting leaves a recipe as it is."""
    packed = value == "PackedImages" and key.endswith("_dataloader.dataset.type")
    return packed or PLACES.fullmatch(key) is not None


def _chosen(dataset: Mapping[str, Any]) -> range | None:
    """The pairs of images that a data set takes; None of one that takes all."""
    first, last = dataset.get("images") or (None, None)
    return None if last is None else range(first or 0, last)


def differences(ours: Any, theirs: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys at which a config differs from a recipe, and its values; None for what it lacks.

    Lists of dicts are compared one by one where they are as long.
    """
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        alike = len(ours) == len(theirs) and all(isinstance(v, dict) for v in (*ours, *theirs))
        if not alike and list(ours) != list(theirs):
            yield key, list(theirs)
        if alike:
            ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(ours.get(name), theirs.get(name), inner)
    elif not isinstance(ours, list | tuple) and ours != theirs:
        yield key, theirs


def spelling(key: str, value: Any) -> str:
    """An override as one types it."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w./+-]*", value)
    return f"{key}={value if plain else repr(value)}"


def curve(files: list[Path], unit: str, total: int) -> tuple[list[dict], float]:
    """Means of what was logged, by epoch or in a hundred steps; and the seconds of the training.

    Where a run went on from a checkpoint, what it logged anew takes the place of what it had.
    """
    sessions = [[(_when(entry, unit), entry) for entry in curves.entries(f)] for f in files]
    logs = [entry for session in sessions for _, entry in session if "iter" in entry]
    step = 1 if unit == "epochs" else curves.spacing(total)
    logged = (
        (curves.point(at, step), name, value)
        for at, entry in curves.continued(sessions)
        for name, value in entry.items()
        if re.match(TRAINING, name) or ("iter" not in entry and name not in ("step", *_TIMES))
    )
    seconds = fmean(e["time"] for e in logs) * max(e["iter"] for e in logs) if logs else 0.0
    return curves.means(unit, logged), seconds


_TIMES = ("time", "data_time")


def _when(entry: dict, unit: str) -> int:
    return entry["epoch"] if unit == "epochs" and "epoch" in entry else entry["step"]


def _of_test(recipe: Config, cfg: Config) -> dict[str, Any]:
    """What a test differs in; a multi-scale one has a model and a pipeline of its own."""
    found = {k: v for k, v in _changed(recipe, cfg).items() if re.match("model|test_|tta_", k)}
    if _multi_scale(cfg):
        own = re.compile(r"model(\.|$)|test_dataloader\.dataset\.pipeline")
        found = {k: v for k, v in found.items() if not own.match(k)}
    return found


def _multi_scale(cfg: Config) -> bool:
    return "module" in cfg.model


def _tests(
    dumped: list[Path], checkpoint: str | None = None
) -> dict[tuple[str, ...], tuple[Path, dict[str, float]]]:
    """Options of a test -> the dumped config and the metrics of the last with them.

    Args:
        checkpoint: whose tests; None for all.
    """
    found = {}
    for path in dumped:
        cfg = load(str(path))
        if checkpoint is not None and cfg.get("load_from") != checkpoint:
            continue
        for file in path.parents[1].glob("*.json"):
            values = json.loads(file.read_text(encoding="utf-8"))
            found[("--tta",) if _multi_scale(cfg) else ()] = (
                path,
                {k: v for k, v in values.items() if k not in _TIMES and v is not None},
            )
    return found


def mean_training_image(cfg: Config, work_dir: Path) -> dict[str, float]:
    """What the mean of the images that a translator was trained on would reach."""
    options = {k: v for k, v in cfg.train_dataloader.dataset.items() if k != "type"}
    trained = PairedImages(**{**options, "load_size": None, "verify": False})
    mean = images.mean_image(sample["target"] for sample in trained)
    targets = map(images.read, image_files(work_dir / "test" / "target"))
    weights = (cfg.get("test_evaluator") or {}).get("lpips_weights")
    chosen = images.measures(lpips_weights=weights)
    return images.compare(((mean, target) for target in targets), chosen)
