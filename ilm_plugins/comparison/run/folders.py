"""The folder of a run: the record of its training, and the log beside it."""

from pathlib import Path
from typing import IO, Any

from ...errors import one_line, say
from ...files import make_folder
from ...frameworks.run.environment import commit, device, versions
from ...frameworks.run.record import FILE, PLAIN, is_complete_record, read_record, write_record

#: The begin of a log's last line if the training or the evaluation has failed.
FAILED = "failed: "
#: Setting in a run's record -> its name in a report.
SETTINGS = {
    "device": "device",
    "processes": "processes",
    "commit": "commit",
    "amp": "mixed precision",
    "batch": "images of a step",
    "images": "training images",
    "test images": "test images",
    "planned": "length",
}


def is_complete(folder: Path) -> bool:
    return is_complete_record(read_record(folder))


def divergence(folder: Path) -> str | None:
    """Return why the training diverged; None if it did not."""
    return (read_record(folder) or {}).get("diverged")


def has_ended(folder: Path) -> bool:
    """Return whether a run is not to be trained."""
    return is_complete(folder) or divergence(folder) is not None


def metrics(folder: Path) -> dict[str, float | None]:
    """Return the metrics of a run or an evaluation, None for NaN; empty if there are none yet."""
    metrics = (read_record(folder) or {}).get("metrics", {}).get(PLAIN, {})
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | None)}


def environment(folder: Path) -> dict[str, str]:
    """Return the versions, the device and the settings of a run, by their names."""
    record = read_record(folder) or {}
    settings = record.get("versions", {}) | {SETTINGS[key]: record.get(key) for key in SETTINGS}
    return {name: str(value) for name, value in settings.items() if value is not None}


def new_record(
    command: str, framework: str, code: str, seed: int, num_gpus: int = 0
) -> dict[str, Any]:
    """Return the record of a run of the user's own code at its start: one training is planned."""
    return {
        "framework": framework,
        "command": command,
        "commit": commit(),
        "code": code,
        "versions": versions(),
        "device": device(num_gpus),
        "seed": seed,
        "unit": "trainings",
        "planned": 1,
        "run": 0,
        "metrics": {},
    }


def save(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run of the user's own code."""
    make_folder(folder)  # a script may have removed it
    write_record(folder / FILE, record)


def log_of(folder: Path) -> Path:
    """Return the file with the output of a training or an evaluation."""
    return folder.with_name(folder.name + ".log")


def open_to_add(path: Path, mode: str = "a", encoding: str | None = "utf-8") -> IO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():  # as of somebody else's folder
        path.unlink()
    return path.open(mode, encoding=encoding)


def note_failure(folder: Path, reason: object = None) -> None:
    """Add the reason of a failure to a folder's log, by default the last line; not of a stop."""
    with open_to_add(log_of(folder)) as file:
        text = one_line(reason or _last_line(folder)).removeprefix(FAILED)
        # The log of a run that was killed may end within a line.
        say("", f"{FAILED}{text[:200]}", file=file)


def noted_failure(folder: Path) -> str | None:
    """Return the failure that a folder's log ends with; None if there is none."""
    line = _last_line(folder)
    return f"{line}; see {log_of(folder)}" if line.startswith(FAILED) else None


def _last_line(folder: Path) -> str:
    log = log_of(folder)
    # A kill may cut a character.
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
