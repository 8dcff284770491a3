"""detectron2's configs and run folders; functions as in :class:`..run_summary.RunFolders`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from ...errors import UserError
from .. import curves
from ..run_summary import RunSummary, Test
from .config_files import read_config

PRETRAINED = "MODEL.WEIGHTS"
HARMLESS = re.compile(
    r"OUTPUT_DIR|DATALOADER\.NUM_WORKERS|MODEL\.DEVICE|VIS_PERIOD"
    r"|SOLVER\.CHECKPOINT_PERIOD|TEST\.EVAL_PERIOD"
)
#: Number of images in COCO's splits.
WHOLE = {"train": 118_287, "val": 5_000}


def length(config: str) -> tuple[int, str]:
    return read_config(config).SOLVER.MAX_ITER, "iterations"


def batch(config: str, overrides: Sequence[str], processes: int) -> tuple[int, int]:
    # IMS_PER_BATCH is the batch over all processes; an override of it is shown in run labels.
    whole = read_config(config).SOLVER.IMS_PER_BATCH
    return whole, whole


def run_overrides(config: str, work_dir: Path, seed: int) -> list[str]:
    return ["OUTPUT_DIR", str(work_dir), "SEED", str(seed)]


def length_overrides(config: str, new: int) -> list[str]:
    solver = read_config(config).SOLVER
    steps = {max(1, round(step * new / solver.MAX_ITER)) for step in solver.STEPS}
    # detectron2 requires steps below MAX_ITER.
    steps = tuple(sorted(step for step in steps if step < new))
    return ["SOLVER.MAX_ITER", str(new), "SOLVER.STEPS", str(steps)]


def data_overrides(config: str, folder: str) -> list[str]:
    return []  # environment() does it


def augmentation_overrides(config: str) -> list[str]:
    raise UserError(f"--augment-batches is for recipes of CIFAR, unlike {config}; leave it out")


def environment(folder: str | Path) -> dict[str, str]:
    return {"DETECTRON2_DATASETS": str(Path(folder).absolute())}


def to_words(pairs: Sequence[str]) -> list[str]:
    return [word for pair in pairs for word in pair.split("=", 1)]


def start_overrides(checkpoint: str) -> list[str]:
    return [PRETRAINED, checkpoint]


test_overrides = start_overrides


def progress(work_dir: Path) -> tuple[int, str | None]:
    """Return the iterations trained at the last checkpoint, and its file; 0 and None without.

    ``last_checkpoint`` in the folder names it; that the file exists is not checked. A checkpoint
    without a number, model_final.pth, was saved after MAX_ITER iterations of the saved config.yaml.

    Raises:
        CheckpointError: ``last_checkpoint`` is not text.
        UserError: config.yaml is needed and cannot be read.
    """
    last = Path(work_dir, "last_checkpoint")
    if not last.is_file():
        return 0, None
    name = last.read_text(encoding="utf-8").strip()
    file = str(Path(work_dir, name))
    number = re.search(r"_(\d+)\.pth$", name)
    if number:
        return int(number[1]) + 1, file
    return read_config(str(Path(work_dir, "config.yaml"))).SOLVER.MAX_ITER, file


def is_complete(work_dir: Path, total: int) -> bool:
    file = Path(work_dir, "metrics.json")
    if progress(work_dir)[0] < total or not file.is_file():
        return False
    return bool(_final_tests(curves.entries(file), total))


def _final_tests(entries: list[dict], total: int) -> list[dict]:
    """Return the entries of metrics.json with the evaluation after ``total`` iterations."""
    return [e for e in entries if "bbox/AP" in e and e["iteration"] + 1 >= total]


def prediction_overrides(config: str, folder: Path) -> list[str]:
    return []


def tests(config: str, wanted: Iterable[Test]) -> list[Test]:
    return []  # a training ends with its test


def tests_made(work_dir: Path, checkpoint: str | None = None) -> set[Test]:
    return set()


def summary(config: str, work_dir: Path, total: int) -> RunSummary:
    """Read a run folder, as :meth:`..run_summary.RunFolders.summary`; ``config`` is not used.

    ``metrics`` has the evaluation after ``total`` iterations, under the key (), if it was made. The
    numbers of images come from log.txt; those of the recipe are COCO's.

    Raises:
        UserError: the folder has no metrics.json.
        CheckpointError: ``last_checkpoint`` is not text.
    """
    metrics = Path(work_dir, "metrics.json")
    if not metrics.is_file():
        raise UserError(f"{work_dir} has no run of the command train: no metrics.json")
    entries = curves.entries(metrics)
    rows, seconds = _curve(entries, total)
    results = _final_tests(entries, total)
    run = min(progress(work_dir)[0], total)
    log = Path(work_dir, "log.txt")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return RunSummary(
        run=run,
        curve=rows,
        seconds=seconds,
        metrics={(): results[-1]} if results and run == total else {},
        images=_count_images(text, "train"),
        recipe_images=WHOLE["train"],
        test_images=_count_images(text, "val"),
        recipe_test_images=WHOLE["val"],
    )


def _count_images(log: str, split: str) -> int | None:
    """Return the number of images of a COCO split ("train", "val") in a log; None if absent.

    ``log`` is the text of log.txt. If the split was loaded several times, the smallest number
    counts.
    """
    line = rf"Loaded (\d+) images in COCO format from \S*instances_{split}2017\.json"
    return min(map(int, re.findall(line, log)), default=None)


def _curve(entries: list[dict], total: int) -> tuple[list[dict], float]:
    """Return the points of the training curve (see curves.means), and the training's seconds.

    The curve has the total loss and all "/AP" metrics. The seconds are the mean time of an
    iteration times the last iteration; 0.0 if no time was logged.

    Args:
        entries: of metrics.json, in the order of the file, also of resumed sessions.
        total: number of iterations of the whole training.
    """
    step = curves.spacing(total)
    logged, times, last = [], [], 0
    for iteration, entry in curves.continued(_sessions(entries)):
        # The final test is logged one iteration after the last training iteration.
        done = min(iteration + 1, total)
        last = max(last, done)
        times += [entry["time"]] if "time" in entry else []
        names = [name for name in entry if name == "total_loss" or name.endswith("/AP")]
        logged += [(curves.point(done, step), name, entry[name]) for name in names]
    return curves.means("iterations", logged), fmean(times) * last if times else 0.0


def _sessions(entries: list[dict]) -> list[list[tuple[int, dict]]]:
    """Split the entries of metrics.json into the sessions of an interrupted training.

    A new session starts where the iteration of the losses does not rise: detectron2 may write other
    values behind losses of later iterations. Each session is a list of (iteration, entry); without
    entries there is one empty session.
    """
    found: list[list[tuple[int, dict]]] = [[]]
    last = -1
    for entry in entries:
        if "total_loss" in entry:
            if entry["iteration"] <= last:
                found.append([])
            last = entry["iteration"]
        found[-1].append((entry["iteration"], entry))
    return found
