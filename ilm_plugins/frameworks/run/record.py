"""``record.json`` in a run's folder: what was run, on what, and what came out.

The training process with rank 0 writes the record at its start, at each point of the training curve
and after each evaluation; other ranks only write a divergence. Nothing else in a run's folder is
read again, except checkpoints.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError, one_line
from ...files import read_object, write_text
from ..checkpoints import is_last_checkpoint
from ..config import differences
from ..length import Length
from . import environment
from .options import RunOptions

FILE = "record.json"
#: Number of points of the curve of a training that counts iterations.
POINTS = 100
#: Key of the evaluations of other checkpoints than a training's last one, or after its test.
OTHERS = "other evaluations"
#: Keys of the results of a training.
RESULTS = "metrics", "test images", "evaluation"
#: Keys of a training's progress, with the values at its start.
PROGRESS: dict[str, Any] = {"run": 0, "seconds": 0.0, "curve": []}
#: Key -> the type of its value, see :func:`.read_object`.
KINDS: dict[str, Any] = {
    "command": str,
    "commit": str | None,
    "device": str | None,
    "planned": int,
    "run": int,
    "seconds": int | float | None,
    "metrics": {"": {"": object}},
    "curve": [{"": int | float | str | None}],
    "versions": {"": object},
    "code": str,
    "norms": dict | None,
    OTHERS: list,
}
OF_EVALUATION = Length()
#: Name of a plain evaluation, and of one with test-time augmentation, in the record's "metrics".
PLAIN, TTA = "", "tta"


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """Return the record in a folder, None without one."""
    return _read(folder) if Path(folder, FILE).is_file() else None


@dataclass
class RunRecord:
    """The record of a run in its folder, which rank 0 writes."""

    folder: str | Path
    options: RunOptions
    #: :attr:`.OpenConfig.framework` of the config.
    framework: str
    #: :meth:`.OpenConfig.settings_of_norms` of the config.
    norms: dict[str, Any] | None = None
    #: Whether a training is in mixed precision.
    amp: bool = False
    #: :attr:`.OpenConfig.packages` of the config.
    packages: Sequence[str] = ()
    #: The time when the last point of the curve was written.
    last_point: float | None = None

    def check_norms(self) -> None:
        """Raise UserError if the training that a run resumes, if there is one, has other norms."""
        if not Path(self.folder, "last_checkpoint").is_file():
            return
        now = self.norms or {}
        before = (read_record(self.folder) or {}).get("norms") or now
        changes = [f"{key} was {a!r} and is {b!r}" for key, a, b in differences(before, now)]
        if changes:
            raise UserError(
                f"--resume: the norms of {self.folder} are others: {', '.join(changes[:3])}; give "
                "the norms of its training, or another folder"
            )

    def start(
        self,
        length: Length = OF_EVALUATION,
        *,
        seed: int | None = None,
        resumes: bool | None = None,
        rate: float | None = None,
    ) -> None:
        """Write a run's settings; a resumed run keeps the curve, an evaluation a training's record.

        A complete training that is resumed for no further step keeps its metrics, too.

        ``resumes`` is whether there was a checkpoint to resume from; by default, as the options
        say. ``rate`` is the learning rate before the schedule, a resumed checkpoint's.
        """
        options, earlier = self.options, read_record(self.folder) or {}
        if not is_rank_zero() or (options.eval_only and _is_kept(earlier, options)):
            return
        resumes = options.resume if resumes is None else resumes
        is_continued = resumes and not options.eval_only and earlier.get("unit") == length.unit
        kept = earlier if is_continued else {}
        record = {**self._settings(kept), "seed": seed, "learning rate": rate, **vars(length)}
        record.update((key, kept.get(key, default)) for key, default in PROGRESS.items())
        record.update({"metrics": {}, **self._results(kept, length)})
        if length.planned:
            record["norms"] = self.norms
        self._write(record)
        self.last_point = time.monotonic()

    def _settings(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Return command, code, versions and devices, after the ones of an earlier record."""
        options = self.options
        device = environment.device(options.num_gpus)
        return {
            "framework": self.framework,
            "config": options.config_file,
            "overrides": list(options.overrides),
            "command": options.command(),
            "commit": _joined(", ", kept.get("commit"), environment.commit()),
            "code": _joined(", ", kept.get("code"), options.registrations.code) or "",
            "versions": environment.versions(self.packages),
            "device": _joined(", then ", kept.get("device"), device),
            "processes": options.world_size,
            "amp": self.amp,
        }

    def _results(self, kept: dict[str, Any], length: Length) -> dict[str, Any]:
        """Return the results that a record keeps from an earlier one."""
        is_over = is_complete_record(kept) and kept.get("run", 0) >= length.planned
        keys = (*RESULTS, OTHERS) if is_over else (OTHERS,)
        return {key: kept[key] for key in keys if key in kept}

    def lacks(self, run: int) -> bool:
        """Return, on rank 0, if the record ends before ``run`` epochs or iterations; else False."""
        return is_rank_zero() and _read(self.folder)["run"] < run

    def point(self, run: int, /, **values: float) -> None:
        """Add the curve's point after ``run`` epochs or iterations.

        The new point replaces an earlier point of the same ``run``, and the points of a higher
        ``run``, which a training that was killed and resumed has left.
        """
        if not is_rank_zero():
            return
        record, now = _read(self.folder), time.monotonic()
        unit = record["unit"]
        record["seconds"] += now - (self.last_point or now)
        self.last_point = now
        earlier = [entry for entry in record["curve"] if entry[unit] < run]
        curve = [*earlier, {unit: run, **values}]
        # Earlier metrics are of a model that has been trained further.
        self._write(record | {"run": run, "curve": curve, "metrics": {}})

    def finish(
        self, metrics: dict[str, float], images: int | None = None, weights: str | None = None
    ) -> None:
        """Write the metrics of an evaluation of ``images`` images, a training's last one or not.

        An evaluation of its own (``eval_only``) of the file ``weights`` gives a training's metrics
        if it is of the training's last checkpoint, and the training has none; others are written
        beside them.
        """
        if not is_rank_zero():
            return
        record, options = _read(self.folder), self.options
        is_later_test = options.eval_only and record["planned"] > 0
        is_last = options.resume or is_last_checkpoint(weights or "", self.folder)
        kind = TTA if options.tta else PLAIN
        if is_later_test and (record["metrics"].get(kind) or not is_last):
            entry = {"command": options.command(), "metrics": metrics, "test images": images}
            record[OTHERS] = [*record.get(OTHERS, []), entry]
        else:
            record["metrics"][kind] = metrics
            record["test images"] = images
            if is_later_test:
                record["evaluation"] = options.command()
        self._write(record)

    def stopped_early(self) -> None:
        """Write that a training ended, as its settings wish, before the planned length."""
        if is_rank_zero():
            self._write({**_read(self.folder), "stopped early": True})

    def _write(self, record: dict[str, Any]) -> None:
        write_record(Path(self.folder, FILE), record)


def _is_kept(earlier: dict[str, Any], options: RunOptions) -> bool:
    """Return whether an evaluation keeps a record: a training's, or its own of another test."""
    if not earlier:
        return False
    texts = earlier.get("command", ""), options.command()
    return earlier.get("planned", 0) > 0 or len({text.replace(" --tta", "") for text in texts}) == 1


def write_divergence(folder: str | Path, reason: str) -> None:
    # On any rank, after which the launcher ends the others. If rank 0 writes a point at the same
    # time, one of both gets lost.
    if record := read_record(folder):
        write_record(Path(folder, FILE), {**record, "diverged": one_line(reason)})


def is_complete_record(record: dict[str, Any] | None) -> bool:
    """Return whether a training ran to its planned length, or to the end that its settings wish."""
    if not record or "diverged" in record:
        return False
    return 0 < record.get("planned", 0) <= record.get("run", 0) or "stopped early" in record


def is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _joined(separator: str, earlier: str | None, new: str | None) -> str | None:
    texts = [*(earlier or "").split(separator), new]
    return separator.join(dict.fromkeys(filter(None, texts))) or None


def _read(folder: str | Path) -> dict[str, Any]:
    return read_object(Path(folder, FILE), KINDS)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, a line for each key and each point of the curve; null for NaN.

    UserError if the file is the user's own.
    """
    if (earlier := read_record(path.parent)) and not {"planned", "run"} <= earlier.keys():
        raise UserError(f"{path} is no record of a run; give your own file another name")
    lines = []
    for key, value in record.items():
        text = json.dumps(_finite(value), allow_nan=False)
        if key == "curve" and value:
            text = "[\n  " + text[1:-1].replace("}, {", "},\n  {") + "\n ]"
        lines.append(f' "{key}": {text}')
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _finite(value: Any) -> Any:
    """Return a copy with None for floats that are infinite or NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
