"""The runs of the plans in results.md on corrupted images, and what each run's line does.

A line trains one model or a few, tests them and writes a CSV file to ``output/records``. All paths
are relative to the checkout in which it runs.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ilm_plugins.frameworks import is_complete_record, last_checkpoint, open_config, read_record
from ilm_plugins.parent_process import command_line

from . import evaluation, records
from .records import OWN_TEST

OUTPUT = Path("output/corruptions")
RECORDS = Path("output/records")
#: The committed rows; their runs are not repeated.
COMMITTED = Path("reproduction/records/corruptions.csv")
JPEG = ", on re-encoded JPEG"
RATE_SEED = 100
#: No rate beyond these is tried.
LIMITS = 1e-3, 10.0
WAIT = 60


@dataclass(frozen=True)
class Arm:
    """A norm and its config."""

    norm: str
    config: str


OWN = "reproduction/configs/corruptions"
FOLDER = "reproduction/configs/mmseg/camvid_folds"
CIFAR = {
    "BN": Arm("BN", f"{OWN}/cifar10.py"),
    "EN": Arm("EN(reduction=8)", f"{OWN}/cifar10.py"),
    "SN": Arm("SN", f"{OWN}/cifar10.py"),
    "BN-AugMix": Arm("BN", f"{OWN}/cifar10_augmix.py"),
    "EN-AugMix": Arm("EN(reduction=8)", f"{OWN}/cifar10_augmix.py"),
}
CAMVID = {"BN": "BN", "EN": "EN(reduction=16)", "SN": "SN"}
#: Arms of the models that start from a trained BN model -> norm; the last has other inputs.
FURTHER = {**CAMVID, "BN-standardized": "BN"}
FOLDS = "0016E5", "0006R0"
SEEDS = {"cifar": range(30, 36), "camvid": range(36, 42), "further": range(42, 50)}
#: First rates of a study's arms, and the factor between two rates.
GRIDS = {
    "cifar": ((0.1, 0.2, 0.4), 2.0),
    "camvid": ((0.1, 0.2, 0.4), 2.0),
    "further": ((0.01, 0.03, 0.1), 3.0),
}
METRICS = {"cifar": "top-1", "camvid": "mIoU", "further": "mIoU"}
#: BN's rate in the first part of "further", as in CamVid's earlier plans.
FIRST_RATE = 0.2
FIRST_CONFIG = "reproduction/configs/mmseg/camvid_daylight/fcn_r18-d8.py"
SHORT = ("train_cfg.max_iters=500", "train_cfg.val_interval=500", "param_scheduler.end=500")


def known(folder: Path = RECORDS) -> dict[tuple[str, ...], records.Row]:
    """Return the committed rows and the rows of a folder of records."""
    return records.read(sorted(folder.glob("*.csv"))) | committed()


def committed() -> dict[tuple[str, ...], records.Row]:
    return records.read([COMMITTED] if COMMITTED.is_file() else [])


def has(comparison: str, norm: str, seed: int) -> bool:
    """Return whether a run is complete: its rows are written at once."""
    return any(key[:3] == (comparison, norm, str(seed)) for key in known())


def write(comparison: str, found: list[records.Row]) -> None:
    one = found[0]
    records.write(RECORDS / f"{comparison}-{one['norm']}-{one['seed']}.csv", found)


def rates(study: str, arm: str) -> dict[float, float]:
    """Return rate -> metric on the held-out images, of the runs of an arm so far."""
    begin, found = f"{study}-rate", {}
    for (comparison, norm, _, test, metric), row in known().items():
        is_rate = comparison.startswith(begin) and (norm, test) == (arm, OWN_TEST)
        if is_rate and metric == METRICS[study]:
            found[float(comparison.removeprefix(begin))] = float(row["value"])
    return found


def next_rate(found: Mapping[float, float], grid: tuple[float, ...], factor: float) -> float | None:
    """Return the next rate to try; None if the best rate has a worse one on each side.

    First the grid's own rates in their order, then one step beyond the end that is best. The
    smaller of two equally good rates is the best one.
    """
    for rate in grid:
        if rate not in found:
            return rate
    tried = sorted(found)
    best = max(tried, key=lambda rate: (found[rate], -rate))
    beyond = {tried[0]: best / factor, tried[-1]: best * factor}.get(best)
    if beyond is None or not LIMITS[0] < beyond < LIMITS[1]:
        return None
    return float(f"{beyond:.2g}") if factor == 2 else float(f"{beyond:.1g}")


def chosen_rate(study: str, arm: str) -> float:
    """Return an arm's best rate; wait for its runs, which another line may still train."""
    for _ in range(6 * 3600 // WAIT):
        found = rates(study, arm)
        if next_rate(found, *GRIDS[study]) is None:
            return max(sorted(found), key=found.__getitem__)
        time.sleep(WAIT)
    raise TimeoutError(f"the learning rates of {study} {arm} are not complete: {found}")


def train(arm: Arm, folder: Path, seed: int, rate: float, *overrides: str) -> None:
    """Train a config with a norm, or go on with an interrupted training; then test it."""
    opened = open_config(arm.config)
    words = [f"optim_wrapper.optimizer.lr={rate:g}", *overrides, *opened.with_norm(arm.norm)]
    command = ["train", "--config-file", arm.config, "--num-gpus", "0"]
    run = opened.overrides(seed=seed, folder=folder)
    if not is_complete_record(read_record(folder)):
        subprocess.run(command_line([*command, "--resume", *words, *run]), check=True)
    if not read_record(folder)["metrics"]:
        weights = opened.overrides(folder=folder, weights=last_checkpoint(folder))
        subprocess.run(command_line([*command, "--eval-only", *words, *weights]), check=True)


def own_test(run: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of a training's own test; a run that diverged has 0."""
    record = read_record(run)
    if "diverged" in record:
        return {OWN_TEST: {"accuracy/top1": 0.0, "mIoU": 0.0}}
    return {OWN_TEST: record["metrics"][""]}


def choose(study: str, arm: str, run: Callable[[float], Path], trained: str = "") -> None:
    """Train an arm by one rate after the other, until the best one is not at an end."""
    while (rate := next_rate(rates(study, arm), *GRIDS[study])) is not None:
        folder = run(rate)
        record, tests = read_record(folder), own_test(folder)
        kept = [
            row
            for row in records.rows(f"{study}-rate{rate:g}", arm, record, tests, trained)
            if row["metric"] in ("top-1", "mIoU")
        ]
        write(f"{study}-rate{rate:g}", kept)


def cifar_rates(arm: str) -> None:
    evaluation.write_held_out()
    lists = [
        "train_dataloader.dataset.ann_file=fit.txt",
        *(
            f"{part}_dataloader.dataset.{key}"
            for part in ("val", "test")
            for key in ("ann_file=held_out.txt", "data_prefix=train")
        ),
    ]

    def run(rate: float) -> Path:
        folder = OUTPUT / f"cifar-rate{rate:g}-{arm}"
        _allowing_divergence(folder, CIFAR[arm], RATE_SEED, rate, *lists)
        return folder

    choose("cifar", arm, run, JPEG)


def cifar(seed: int, arm: str) -> None:
    if has("cifar", arm, seed):
        return
    folder = OUTPUT / f"cifar-seed{seed}-{arm}"
    train(CIFAR[arm], folder, seed, chosen_rate("cifar", arm))
    tests = evaluation.classifier_tests(folder)
    write("cifar", records.rows("cifar", arm, read_record(folder), tests, JPEG))


def camvid_rates(arm: str) -> None:
    def run(rate: float) -> Path:
        folder = OUTPUT / f"camvid-rate{rate:g}-{arm}"
        config = Arm(CAMVID[arm], f"{OWN}/camvid_rates.py")
        _allowing_divergence(folder, config, RATE_SEED, rate)
        return folder

    choose("camvid", arm, run)


def camvid(seed: int, fold: str, arm: str) -> None:
    comparison = f"camvid-{fold}"
    if has(comparison, arm, seed):
        return
    folder = OUTPUT / f"{comparison}-seed{seed}-{arm}"
    config = f"{FOLDER}/{fold}_standardized.py"
    train(Arm(CAMVID[arm], config), folder, seed, chosen_rate("camvid", arm))
    configs = {"": config, "dusk": f"{FOLDER}/standardized_dusk.py"}
    tests = evaluation.segmenter_tests(folder, configs, evaluation.CHANGES)
    write(comparison, records.rows(comparison, arm, read_record(folder), tests))


def go_on(start: Path, folder: Path, arms: Mapping[str, float], seed: int, config: str) -> None:
    """Train a BN model for 500 more iterations as each arm, converted by ``compare``."""
    words = ["compare", config, *arms, "--seeds", str(seed), "--num-gpus", "0"]
    for arm, rate in arms.items():
        words += ["--arm", arm, FURTHER[arm], f"optim_wrapper.optimizer.lr={rate:g}"]
    words += ["--weights", str(last_checkpoint(start)), "--output", str(folder), "--opts", *SHORT]
    subprocess.run(command_line(words), check=True)


def further_rates() -> None:
    """Choose the rates of all arms, from one BN model of the sequences that train there."""
    start = OUTPUT / "further-rates-start"
    train(Arm("BN", FIRST_CONFIG), start, RATE_SEED, FIRST_RATE)
    for arm in FURTHER:
        config = f"{OWN}/camvid_rates.py" if arm == "BN-standardized" else FIRST_CONFIG

        def run(rate: float, arm: str = arm, config: str = config) -> Path:
            folder = OUTPUT / f"further-rate{rate:g}-{arm}"
            go_on(start, folder, {arm: rate}, RATE_SEED, config)
            return folder / arm / f"seed{RATE_SEED}"

        choose("further", arm, run)


def further(seed: int, fold: str) -> None:
    """Train BN, and go on with it as each arm."""
    comparison = f"further-{fold}"
    missing = [arm for arm in FURTHER if not has(comparison, arm, seed)]
    if not missing:
        return
    first = OUTPUT / f"{comparison}-seed{seed}"
    start = first / "start"
    train(Arm("BN", f"{FOLDER}/{fold}.py"), start, seed, FIRST_RATE)
    plain = {arm: chosen_rate("further", arm) for arm in missing if arm != "BN-standardized"}
    changes = evaluation.CHANGES | {"contrast0.5": evaluation.HALF_CONTRAST}
    for arms, end, dusk in (
        (plain, "", "reproduction/configs/mmseg/camvid_daylight/dusk.py"),
        ({"BN-standardized": 0.0}, "_standardized", f"{FOLDER}/standardized_dusk.py"),
    ):
        todo = {arm: chosen_rate("further", arm) for arm in arms if arm in missing}
        if not todo:
            continue
        config = f"{FOLDER}/{fold}{end}.py"
        go_on(start, first / f"as{end}", todo, seed, config)
        for arm in todo:
            run = first / f"as{end}" / arm / f"seed{seed}"
            tests = evaluation.segmenter_tests(run, {"": config, "dusk": dusk}, changes)
            write(comparison, records.rows(comparison, arm, read_record(run), tests))


def _allowing_divergence(folder: Path, arm: Arm, seed: int, rate: float, *overrides: str) -> None:
    """Train; a loss of NaN ends a training, and its rate is no good one."""
    try:
        train(arm, folder, seed, rate, *overrides)
    except subprocess.CalledProcessError:
        if "diverged" not in (read_record(folder) or {}):
            raise


def lines() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name of each line and its function, in the order of the plans."""
    for arm in ("EN-AugMix", "BN-AugMix", "EN", "BN", "SN"):
        yield f"cifar-rates-{arm}", partial(cifar_rates, arm)
    for seed in SEEDS["cifar"]:
        for arm in CIFAR:
            yield f"cifar-{seed}-{arm}", partial(cifar, seed, arm)
    for arm in CAMVID:
        yield f"camvid-rates-{arm}", partial(camvid_rates, arm)
    for seed in SEEDS["camvid"]:
        for fold in FOLDS:
            for arm in CAMVID:
                yield f"camvid-{seed}-{fold}-{arm}", partial(camvid, seed, fold, arm)
    yield "further-rates", further_rates
    for seed in SEEDS["further"]:
        for fold in FOLDS:
            yield f"further-{seed}-{fold}", partial(further, seed, fold)
