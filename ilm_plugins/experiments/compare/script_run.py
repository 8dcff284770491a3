"""A run of a training script of the user's own, with the record that all runs of ``compare`` have.

The record says that the script ``ended`` well before it has the metric, which can be read again by
another ``--metric``, without another training.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import make_folder
from ...frameworks import run_environment, run_record
from ...frameworks.parent import end_with_parent
from ...frameworks.run_record import PLAIN
from .script_metric import ScriptMetric

#: What the script printed, in the run's folder.
PRINTED = "log.txt"
#: Key of the record of a script that has ended with status 0.
ENDED = "script ended"
#: Seconds that a script has to end after SIGTERM.
PATIENCE = 30


def run(
    words: Sequence[str], folder: Path, metric: ScriptMetric, seed: int, num_gpus: int = 0
) -> int:
    """Run a script, unless it has ended well before, and record its metric; return its status.

    UserError if the script ends well without the metric.
    """
    if not (run_record.read(folder) or {}).get(ENDED):
        begun, command = time.monotonic(), shlex.join(words)
        record = new_record(command, "script", seed, num_gpus)
        save(folder, record)
        print(command, flush=True)
        if status := call(words, folder / PRINTED):
            return status
        save(folder, record | {ENDED: True, "seconds": time.monotonic() - begun})
    measure(folder, metric)
    return 0


def measure(folder: Path, metric: ScriptMetric) -> None:
    """Read the metric of a script that has ended, and complete its record; UserError without it.

    A record that is complete by another metric then stays as it is.
    """
    record = run_record.read(folder) or {}
    asked = {"metric": str(metric)}
    try:
        value = metric.read(folder)
    except UserError:
        if not run_record.is_complete(record):
            save(folder, record | asked)
        raise
    save(folder, record | asked | {"run": 1, "metrics": {PLAIN: {metric.name: value}}})


def new_record(command: str, framework: str, seed: int, num_gpus: int = 0) -> dict[str, Any]:
    """Return the record of a run of the user's own code at its start: one training is planned."""
    return {
        "framework": framework,
        "command": command,
        "commit": run_environment.commit(),
        "versions": run_environment.versions(),
        "device": run_environment.device(num_gpus),
        "seed": seed,
        "unit": "trainings",
        "planned": 1,
        "run": 0,
        "seconds": 0.0,
        "curve": [],
        "metrics": {},
    }


def save(folder: Path, record: dict[str, Any]) -> None:
    make_folder(folder)  # a script may have removed it
    run_record.write(folder / run_record.FILE, record)


def call(words: Sequence[str], printed: Path) -> int:
    """Run a command to its end, or end it with this process; print and keep what it prints."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PYTHONUNBUFFERED": "1", **os.environ},  # what it printed before a kill, too
            start_new_session=True,  # its own processes end with it
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
    except OSError as error:
        raise UserError(f"--command: {words[0]!r} cannot be run ({error.strerror})") from error
    # In a thread: a process that a script leaves behind may hold the pipe open.
    errors: list[OSError] = []
    arguments = process.stdout, printed, errors
    copying = threading.Thread(target=_copy, args=arguments, daemon=True)
    copying.start()
    try:
        status = process.wait()
    finally:
        _end(process)
    copying.join(timeout=PATIENCE)
    if errors:
        raise errors[0]
    if status < 0:
        print(f"ended by {signal.Signals(-status).name}")
        return 128 - status
    return status


def _copy(source: Any, printed: Path, errors: list[OSError]) -> None:
    try:
        # Closed also on a full disk, so that the script does not wait for ever.
        with source, printed.open("wb") as file:
            while part := source.read1(2**16):
                file.write(part)
                file.flush()
                sys.stdout.buffer.write(part)
                sys.stdout.flush()
    except OSError as error:
        errors.append(error)


def _end(process: subprocess.Popen) -> None:
    """End all processes of a script that is still running."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
