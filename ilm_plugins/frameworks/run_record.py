"""``record.json`` in a run's folder: what was run, on what, and what came out.

The training process with rank 0 writes the record at its start, at each point of the training curve
and after each evaluation; on other ranks only :func:`diverged` writes. Nothing else in a run's
folder is read again, except checkpoints.
"""

import json
import math
import os
import shlex
import time
from pathlib import Path
from typing import Any

from ..checkpoints import replacing
from ..errors import UserError, one_line
from . import environment
from .run_options import RunOptions

FILE = "record.json"
#: Number of points of the curve of a training that counts iterations.
POINTS = 100
#: Key of the evaluations of other checkpoints than a training's last one, or by other tests.
OTHERS = "other evaluations"
#: Keys of the results of a training, and of the test that gave them.
RESULTS = "metrics", "test images", "evaluation", "test settings"
#: Key of a training's record while it evaluates.
EVALUATES = "evaluates"
#: Name of a plain evaluation, and of one with test-time augmentation, in the record's "metrics".
PLAIN, TTA = "", "tta"


def read(folder: str | Path) -> dict[str, Any] | None:
    return _read(folder) if Path(folder, FILE).is_file() else None


def start(
    folder: str | Path,
    options: RunOptions,
    *,
    framework: str,
    unit: str = "iterations",
    planned: int = 0,
    batch: int | None = None,
    images: int | None = None,
    seed: int | None = None,
    resumes: bool | None = None,
    test_settings: str | None = None,
) -> None:
    """Write a run's settings; a resumed run keeps the curve, an evaluation a training's record.

    A complete training that is resumed for no further step keeps its metrics, too.
    """
    # ``unit`` is "epochs" or "iterations", ``planned`` their number; ``batch`` counts the images of
    # a step over all processes, ``images`` the whole training set. An evaluation has the defaults.
    # ``resumes`` is whether there was a checkpoint to resume from; by default, as the options say.
    # ``test_settings`` is :func:`.variants.digest_of_test` of a training.
    earlier = read(folder) or {}
    if not is_rank_zero() or (options.eval_only and _is_kept(earlier, options)):
        return
    resumes = options.resume if resumes is None else resumes
    is_same = resumes and not options.eval_only and earlier.get("unit") == unit
    kept = earlier if is_same else {}
    processes = options.processes
    record = {
        "framework": framework,
        "config": options.config_file,
        "overrides": list(options.overrides),
        "command": command(options),
        "commit": _joined(", ", kept.get("commit"), environment.commit()),
        "versions": environment.versions(),
        "device": _joined(", then ", kept.get("device"), environment.device(processes.num_gpus)),
        "processes": processes.world_size,
        "amp": options.amp,
        "seed": seed,
        "batch": batch,
        "images": images,
        "unit": unit,
        "planned": planned,
        "run": kept.get("run", 0),
        "seconds": kept.get("seconds", 0.0),
        "curve": kept.get("curve", []),
        "metrics": {},
    }
    if OTHERS in kept:
        record[OTHERS] = kept[OTHERS]
    if is_complete(kept) and kept["run"] >= planned:
        record |= {key: kept[key] for key in RESULTS if key in kept}
    elif test_settings is not None:
        record["test settings"] = test_settings
    write(Path(folder, FILE), record)
    _last_point[str(folder)] = _clocks()


def _is_kept(earlier: dict[str, Any], options: RunOptions) -> bool:
    """Return whether an evaluation keeps a record: a training's, or its own of another test."""
    if not earlier:
        return False
    return earlier["planned"] > 0 or _without_tta(earlier["command"]) == _without_tta(
        command(options)
    )


def _without_tta(command: str) -> str:
    return command.replace(" --tta", "")


def point(folder: str | Path, run: int, /, **values: float) -> None:
    """Add the curve's point after ``run`` epochs or iterations, with the CPU time since the last.

    The new point replaces an earlier point of the same ``run``, and the points of a higher ``run``,
    which a training that was killed and resumed has left.
    """
    if not is_rank_zero():
        return
    record, now = _read(folder), _clocks()
    unit = record["unit"]
    wall, cpu = (a - b for a, b in zip(now, _last_point.get(str(folder), now), strict=True))
    record["seconds"] += wall
    _last_point[str(folder)] = now
    earlier = {entry[unit]: entry for entry in record["curve"] if entry[unit] <= run}
    cpu = earlier.pop(run, {}).get("cpu", round(cpu, 3))
    curve = [*earlier.values(), {unit: run, **values, "cpu": cpu}]
    # Earlier metrics are of a model that has been trained further.
    record |= {"run": run, "curve": curve, "metrics": {}}
    write(Path(folder, FILE), record)


def finish(
    folder: str | Path,
    test: str,
    metrics: dict[str, float],
    images: int | None = None,
    options: RunOptions | None = None,
    is_last: bool = True,
    test_settings: str | None = None,
) -> None:
    """Write the metrics of an evaluation, :data:`PLAIN` or :data:`TTA`, of ``images`` images.

    Give ``options`` for an evaluation that is no part of a training. The metrics of a training are
    then replaced if the evaluation is of its last checkpoint, by its own test; others are written
    beside them.
    """
    if not is_rank_zero():
        return
    record = _read(folder)
    is_beside = options is not None and record["planned"] > 0
    # Records of older versions do not tell their test.
    is_own_test = record.get("test settings") in (None, test_settings)
    if is_beside and not (is_last and is_own_test):
        entry = {"command": command(options), "metrics": metrics, "test images": images}
        record[OTHERS] = [*record.get(OTHERS, []), entry]
    else:
        record["metrics"][test] = metrics
        record["test images"] = images
        if test_settings is not None:
            record["test settings"] = test_settings
        if is_beside:
            record["evaluation"] = command(options)
    write(Path(folder, FILE), record)


def evaluates(folder: str | Path, does: bool) -> None:
    """Write whether a training is evaluating its model at present."""
    if is_rank_zero():
        record = {key: value for key, value in _read(folder).items() if key != EVALUATES}
        write(Path(folder, FILE), record | ({EVALUATES: True} if does else {}))


def diverged(folder: str | Path, reason: str) -> None:
    # On any rank, after which the launcher ends the others. If rank 0 writes a point at the same
    # time, one of both gets lost.
    if record := read(folder):
        write(Path(folder, FILE), {**record, "diverged": one_line(reason)})


def is_complete(record: dict[str, Any] | None) -> bool:
    """Return whether a training ran to its planned length, or to the end that its settings wish."""
    if not record or "diverged" in record:
        return False
    return 0 < record.get("planned", 0) <= record["run"] or "stopped early" in record


def stopped_early(folder: str | Path) -> None:
    """Write that a training ended, as its settings wish, before the planned length."""
    if is_rank_zero():
        write(Path(folder, FILE), {**_read(folder), "stopped early": True})


def command(options: RunOptions) -> str:
    processes = options.processes
    arguments = ["--config-file", options.config_file, "--num-gpus", str(processes.num_gpus)]
    if processes.num_processes > 1:
        arguments += ["--num-processes", str(processes.num_processes)]
    if processes.num_machines > 1:
        arguments += ["--num-machines", str(processes.num_machines)]
    flags = ["eval_only", "resume", "tta", "amp", "unsafe"]
    if not options.eval_only:
        # A training's command starts it anew; an evaluation's says which checkpoint it used.
        flags.remove("resume")
    arguments += ["--" + name.replace("_", "-") for name in flags if getattr(options, name)]
    return shlex.join(["python", "-m", "ilm_plugins", "train", *arguments, *options.overrides])


#: Folder -> the clocks when the last point of its curve was written.
_last_point: dict[str, tuple[float, float]] = {}


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _joined(separator: str, earlier: str | None, new: str | None) -> str | None:
    texts = [*(earlier or "").split(separator), new]
    return separator.join(dict.fromkeys(filter(None, texts))) or None


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder, FILE)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no record of a run ({error}); move it away") from error


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, a line for each key and each point of the curve; null for NaN."""
    lines = []
    for key, value in record.items():
        text = json.dumps(_finite(value), allow_nan=False)
        if key == "curve" and value:
            text = "[\n  " + text[1:-1].replace("}, {", "},\n  {") + "\n ]"
        lines.append(f' "{key}": {text}')
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _finite(value: Any) -> Any:
    """Return a copy with None for floats that are infinite or NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
