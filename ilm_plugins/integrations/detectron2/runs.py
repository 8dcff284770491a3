"""What :mod:`ilm_plugins.reproduction` asks of detectron2's configs and of their runs' folders.

Overrides are those of tools/train_net.py, KEY VALUE. See :mod:`..openmmlab.runs`, which answers the
same for MMEngine's.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from detectron2.config import CfgNode

from ... import checkpoints
from ...data import ensure_shapes
from ...errors import UserError
from .. import curves
from ..reading import Reading
from .config_files import read_config

#: What of a config leaves a recipe as it is.
PLACES = re.compile(
    r"OUTPUT_DIR|SEED|VERSION|DATALOADER\.NUM_WORKERS|MODEL\.DEVICE|VIS_PERIOD"
    r"|SOLVER\.(MAX_ITER|CHECKPOINT_PERIOD)|TEST\.EVAL_PERIOD"
)
#: Images of COCO's splits.
WHOLE = {"train": 118_287, "val": 5_000}
#: The checkpoint to start from.
PRETRAINED = "MODEL.WEIGHTS"


def length(config: str) -> tuple[int, str]:
    """How long a config trains, and in what."""
    return read_config(config).SOLVER.MAX_ITER, "iterations"


def settings(config: str, work_dir: Path, seed: int) -> list[str]:
    """Where a run is, and its seed."""
    return ["OUTPUT_DIR", str(work_dir), "SEED", str(seed)]


def shortened(config: str, new: int) -> list[str]:
    """Train for ``new`` iterations, the schedule's steps at the same shares; not the warm-up."""
    solver = read_config(config).SOLVER
    steps = {max(1, round(step * new / solver.MAX_ITER)) for step in solver.STEPS}
    # detectron2 wants them below the last iteration.
    steps = tuple(sorted(step for step in steps if step < new))
    return ["SOLVER.MAX_ITER", str(new), "SOLVER.STEPS", str(steps)]


def on_data(config: str, folder: str) -> list[str]:
    """Nothing: :func:`environment` tells where the data are."""
    return []


def environment(folder: Path) -> dict[str, str]:
    """Variables of the environment with which data are found."""
    return {"DETECTRON2_DATASETS": str(Path(folder).absolute())}


def miniature(config: str, folder: Path) -> list[str]:
    """Train on a few generated images of 64 x 64 for two iterations."""
    ensure_shapes(Path(folder, "shapes"), num_training=8, num_validation=4, size=64)
    sizes = [f"INPUT.{side}_SIZE_{split}" for side in ("MIN", "MAX") for split in ("TRAIN", "TEST")]
    values = {name: "(64,)" if name == "INPUT.MIN_SIZE_TRAIN" else "64" for name in sizes}
    values |= {"DATASETS.TRAIN": "('shapes_train',)", "DATASETS.TEST": "('shapes_val',)"}
    values |= {"MODEL.WEIGHTS": "", "MODEL.ROI_HEADS.NUM_CLASSES": "4"}
    values |= {"SOLVER.IMS_PER_BATCH": "2", "DATALOADER.NUM_WORKERS": "0"}
    return [*shortened(config, 2), *(word for pair in values.items() for word in pair)]


def spelled(pairs: Sequence[str]) -> list[str]:
    """Overrides KEY=VALUE as tools/train_net.py takes them for these configs."""
    return [word for pair in pairs for word in pair.split("=", 1)]


def progress(work_dir: Path) -> tuple[int, str | None]:
    """How far a run's last checkpoint is, in iterations, and its file."""
    last = Path(work_dir, "last_checkpoint")
    if not last.is_file():
        return 0, None
    name = checkpoints.named(last)
    number = re.search(r"_(\d+)\.pth$", name)
    if number:
        return int(number[1]) + 1, str(Path(work_dir, name))
    return read_config(str(Path(work_dir, "config.yaml"))).SOLVER.MAX_ITER, str(
        Path(work_dir, name)
    )


def complete(work_dir: Path, total: int) -> bool:
    """Whether a run has trained to its end, and made the test that is there."""
    file = Path(work_dir, "metrics.json")
    if progress(work_dir)[0] < total or not file.is_file():
        return False
    return any("bbox/AP" in e and e["iteration"] + 1 >= total for e in curves.entries(file))


def check_processes(config: str, number: int, overrides: Sequence[str]) -> None:
    """Nothing: SOLVER.IMS_PER_BATCH is that of all processes."""


def tests(config: str, wanted: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """No test is a command of its own: a training of detectron2's ends with its test."""
    return []


def read(config: str, work_dir: Path) -> Reading:
    """What a run was and what it came to.

    Raises:
        UserError: the folder has no run.
    """
    file, metrics = Path(work_dir, "config.yaml"), Path(work_dir, "metrics.json")
    if not (file.is_file() and metrics.is_file()):
        raise UserError(f"{work_dir} has no run of tools/train_net.py: no metrics.json")
    cfg, recipe = read_config(str(file)), read_config(config)
    ours, theirs = _flat(recipe), _flat(cfg)
    changed = {k: v for k, v in sorted(theirs.items()) if ours.get(k) != v}
    planned = cfg.SOLVER.MAX_ITER
    places = {k for k in changed if PLACES.fullmatch(k)}
    if str(cfg.SOLVER.STEPS) in shortened(config, planned):
        places.add("SOLVER.STEPS")
    entries = curves.entries(metrics)
    rows, seconds = _curve(entries, planned)
    results = [entry for entry in entries if "bbox/AP" in entry]
    run = min(progress(work_dir)[0], planned)
    log = Path(work_dir, "log.txt")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return Reading(
        unit="iterations",
        run=run,
        planned=planned,
        recipe=recipe.SOLVER.MAX_ITER,
        changes={k: v for k, v in changed.items() if k not in places},
        overrides=[word for k, v in changed.items() for word in (k, str(v))],
        log=text,
        curve=rows,
        seconds=seconds,
        metrics={(): results[-1]} if results and run == planned else {},
        seed=cfg.SEED if cfg.SEED >= 0 else None,
        images=_images(text, "train"),
        recipe_images=WHOLE["train"],
        test_images=_images(text, "val"),
        recipe_test_images=WHOLE["val"],
    )


def _images(log: str, split: str) -> int | None:
    """How many images of a split of COCO were found, as a log tells."""
    line = rf"Loaded (\d+) images in COCO format from \S*instances_{split}2017\.json"
    return min(map(int, re.findall(line, log)), default=None)


def _flat(node: CfgNode, key: str = "") -> dict[str, Any]:
    found = {}
    for name, value in node.items():
        full = f"{key}.{name}" if key else name
        found |= _flat(value, full) if isinstance(value, CfgNode) else {full: value}
    # A file has lists where the defaults have tuples.
    return json.loads(json.dumps(found))


def _curve(entries: list[dict], total: int) -> tuple[list[dict], float]:
    step = curves.spacing(total)
    logged, times, last = [], [], 0
    for iteration, entry in curves.continued(_sessions(entries)):
        # The test at the end comes an iteration after the last.
        done = min(iteration + 1, total)
        last = max(last, done)
        times += [entry["time"]] if "time" in entry else []
        names = [name for name in entry if name == "total_loss" or name.endswith("/AP")]
        logged += [(curves.point(done, step), name, entry[name]) for name in names]
    return curves.means("iterations", logged), fmean(times) * last if times else 0.0


def _sessions(entries: list[dict]) -> list[list[tuple[int, dict]]]:
    """Entries by sessions of a training; within one, iterations rise."""
    found: list[list[tuple[int, dict]]] = [[]]
    for entry in entries:
        if found[-1] and entry["iteration"] <= found[-1][-1][0]:
            found.append([])
        found[-1].append((entry["iteration"], entry))
    return found
