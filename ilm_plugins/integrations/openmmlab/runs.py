"""What :mod:`ilm_plugins.reproduction` asks of MMEngine's configs and of the folders of their runs.

Overrides are those of tools/train_net.py, KEY=VALUE.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.config import Config

from ...data.pairs import image_files
from ...evaluation import images
from .. import curves
from ..training import UserError
from .checkpoints import latest
from .translation import PairedImages

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
#: What of a config leaves a recipe as it is: where data and results are, and how they get there.
PLACES = re.compile(
    r"(work_dir|experiment_name|env_cfg|visualizer|vis_backends|log_\w+"
    r"|model_wrapper_cfg|randomness|train_cfg\.(max_epochs|max_iters|val_interval)"
    r"|(train|test)_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor)"
    r"|(train|test)_dataloader\.dataset\.(dataset\.)?data_root"
    r"|test_dataloader\.batch_size|test_evaluator\.(lpips_weights|ann_file|output_dir))(\..*)?"
    r"|default_hooks\.(timer|logger|checkpoint|visualization)\.(?!type$).*"
    r"|model\.head\.cal_acc"
)
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
    """Start a segmenter's backbone from a checkpoint."""
    return [f"{PRETRAINED}={checkpoint!r}"]


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


def tests(config: str) -> bool:
    """Whether a finished run is tested by a command of its own."""
    return True


def read(config: str, work_dir: Path) -> dict[str, Any]:
    """What a run was and what it came to.

    Returns:
        A dict of

        ``unit``, ``run``, ``planned``, ``recipe``: how far it came, how far it was to go, and how
        far the config goes, in epochs or iterations.
        ``changes``: what else of the recipe it changed; ``overrides``: all that it changed.
        ``seed``; ``packed``: whether its images come from archives of re-encoded ones.
        ``images``, ``recipe images``: of how many it was trained, where that can vary.
        ``batches``: the images of a batch of all its processes; ``recipe batch``: of the recipe's.
        ``curve``: by epoch, or by iteration in a hundred steps, the means of what was logged.
        ``seconds``: of its training.
        ``tested``: options of the tests made; ``metrics``: options of a test -> its metrics;
        ``checkpoint``: what was tested, where nothing was trained.
        ``references``: name -> metrics of an answer to compare with.
        ``log``: the text of its last log.

    Raises:
        UserError: the folder has no run.
    """
    dumped = sorted(Path(work_dir).glob("*/vis_data/config.py"))
    if not dumped:
        raise UserError(f"{work_dir} has no run of tools/train_net.py: no */vis_data/config.py")
    training = [p for p in dumped if (p.parent / "scalars.json").is_file()]
    cfg = load(str((training or dumped)[-1]))
    recipe = load(config)
    planned, unit = _length(cfg)
    total, checkpoint = _length(recipe)[0], None
    changed = _changed(recipe, cfg)
    tests_since = [p for p in dumped if not training or p > training[-1]]
    if not training and cfg.get("train_cfg") is None:
        # Nothing but tests; of the checkpoint that was tested last.
        total = planned = 0
        checkpoint = cfg.get("load_from")
        tests_since = [p for p in dumped if load(str(p)).get("load_from") == checkpoint]
        changed = {k: v for k, v in changed.items() if re.match("model|test_", k)}
    for start in (load(str(p)) for p in training):
        if start.get("load_from") and not start.resume:
            changed["load_from"] = start.load_from
    rows, seconds = curve([p.parent / "scalars.json" for p in training], unit, planned)
    metrics = made = tested(tests_since)
    for path in tests_since:
        changed |= _of_test(recipe, load(str(path)))
    run = min(progress(work_dir)[0], planned) if training else 0
    dataset = _dataset(cfg)
    validation = {k.replace("val", "test", 1): v for k, v in changed.items() if k[:4] == "val_"}
    if any(not _place(key, value) for key, value in validation.items()):
        # Of another set of images than the tests.
        rows = [
            {k: v for k, v in row.items() if k == unit or re.match(TRAINING, k)} for row in rows
        ]
    elif not metrics and run == planned and rows and "images" not in dataset:
        metrics = {(): {k: v for k, v in rows[-1].items() if k != unit}}
    schedule = shortened(config, planned) if planned else ()
    ours, theirs = _images(_dataset(recipe)), _images(dataset)
    changes = {
        k: v
        for k, v in changed.items()
        if not (k[:4] == "val_" or _place(k, v) or f"{k}={v!r}" in schedule)
    }
    if theirs and theirs.start == ours.start:
        # Their number tells which.
        changes.pop("train_dataloader.dataset.images", None)
    found = {
        "unit": unit,
        "run": run,
        "planned": planned,
        "recipe": total,
        "changes": changes,
        "overrides": [spelling(k, v) for k, v in sorted(changed.items())],
        "seed": cfg.get("randomness", {}).get("seed"),
        "images": theirs and len(theirs),
        "recipe images": ours and len(ours),
        "batches": sorted({n for n in map(_batch, training) if n}),
        "recipe batch": (recipe.get("auto_scale_lr") or {}).get("base_batch_size"),
        "packed": dataset.get("type") == "PackedImages",
        "curve": rows,
        "seconds": seconds,
        "tested": list(made),
        "checkpoint": checkpoint,
        "metrics": metrics,
        "references": {},
        "log": _log((training or dumped)[-1]),
    }
    if found["images"] is not None and metrics:
        reference = mean_training_image(cfg, Path(work_dir))
        found["references"] = {"mean training image": reference}
    return found


def _changed(recipe: Config, cfg: Config) -> dict[str, Any]:
    """In what a run's config differs from its recipe, but for what is always written into it."""
    found = differences(recipe._cfg_dict.to_dict(), cfg._cfg_dict.to_dict())
    return {key: value for key, value in found if not WRITTEN.match(key)}


def _log(dumped: Path) -> str:
    """The log beside a dumped config; "" where there is none."""
    files = sorted(dumped.parents[1].glob("*.log"))
    return files[-1].read_text(encoding="utf-8", errors="replace") if files else ""


def _batch(dumped: Path) -> int | None:
    """The images of a batch of all processes of a training, as its log has them."""
    processes = re.search(r"GPU number: (\d+)", _log(dumped))
    each = load(str(dumped)).train_dataloader.batch_size
    return each * int(processes[1]) if processes else None


def _dataset(cfg: Config) -> dict:
    """That which a config trains on; where it only tests, that."""
    return (cfg.get("train_dataloader") or cfg.test_dataloader).dataset


def _place(key: str, value: Any) -> bool:
    """Whether a setting leaves a recipe as it is."""
    packed = value == "PackedImages" and key.endswith("_dataloader.dataset.type")
    return packed or PLACES.fullmatch(key) is not None


def _images(dataset: dict) -> range | None:
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
    entries: list[tuple[int, dict]] = []
    times, last = [], 0
    step = 1 if unit == "epochs" else curves.spacing(total)
    for path in files:
        new = [(_when(entry, unit, step), entry) for entry in curves.entries(path)]
        first = min((at for at, _ in new), default=math.inf)
        entries = [(at, entry) for at, entry in entries if at < first] + new
        times += [entry["time"] for _, entry in new if "iter" in entry]
        last = max([last, *(entry["iter"] for _, entry in new if "iter" in entry)])
    logged = (
        (at, name, value)
        for at, entry in entries
        for name, value in entry.items()
        if re.match(TRAINING, name) or ("iter" not in entry and name not in ("step", *_TIMES))
    )
    return curves.means(unit, logged), fmean(times) * last if times else 0.0


_TIMES = ("time", "data_time")


def _when(entry: dict, unit: str, step: int) -> int:
    at = entry["epoch"] if unit == "epochs" and "epoch" in entry else entry["step"]
    return curves.point(at, step)


def _of_test(recipe: Config, cfg: Config) -> dict[str, Any]:
    """What a test's images differ in; a multi-scale one has a pipeline of its own."""
    ours, theirs = (c.test_dataloader.to_dict() for c in (recipe, cfg))
    if _multi_scale(cfg):
        ours["dataset"].pop("pipeline", None)
        theirs["dataset"].pop("pipeline", None)
    found = differences(ours, theirs, "test_dataloader")
    return {key: value for key, value in found if not WRITTEN.match(key)}


def _multi_scale(cfg: Config) -> bool:
    return "module" in cfg.model


def tested(dumped: list[Path]) -> dict[tuple[str, ...], dict[str, float]]:
    """Options of a test -> the metrics of the last test with them."""
    found = {}
    for path in dumped:
        (folder,) = path.parents[1:2]
        for file in folder.glob("*.json"):
            values = json.loads(file.read_text(encoding="utf-8"))
            found[("--tta",) if _multi_scale(load(str(path))) else ()] = {
                k: v for k, v in values.items() if k not in _TIMES and v is not None
            }
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
