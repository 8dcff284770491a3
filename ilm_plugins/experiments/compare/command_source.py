"""A training script of the user's own: its command line for each run, its process, its record.

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
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from string import Formatter
from typing import Any

from ...errors import UserError
from ...frameworks import run_record
from ...frameworks.run_record import PLAIN
from ...parent_process import end_with_parent
from .comparison_plan import Plan, Source
from .script_metric import ScriptMetric
from .tasks import new_record, open_log, save

#: The file of the script's output, in the run's folder.
PRINTED = "log.txt"
#: Key of the record of a script that has ended with status 0.
ENDED = "script ended"
#: Most values of a metric in a record's curve.
POINTS = 200
#: Seconds that a script has to end after SIGTERM.
PATIENCE = 30
#: Placeholder -> what it stands for.
PLACEHOLDERS = {
    "norm": "the norm",
    "seed": "the seed, as several --seeds are given",
    "output": "the folder to which the run writes",
}
#: A text, and the placeholder behind it.
Part = tuple[str, str | None]


@dataclass(frozen=True)
class CommandSource(Source):
    """A script, by the command line of ``--command``."""

    command: str
    metric: ScriptMetric
    num_gpus: int = 0

    def check(self, plan: Plan) -> None:
        used = {name for parts in self._template for _, name in parts if name is not None}
        if unknown := sorted(used.difference(PLACEHOLDERS)):
            raise UserError(
                f"--command: unknown placeholder {{{unknown[0]}}}; give {{norm}}, {{seed}} and "
                "{output}, and {{ and }} for braces"
            )
        for name, what in PLACEHOLDERS.items():
            if name not in used and (name != "seed" or len(plan.seeds) > 1):
                raise UserError(f"--command lacks {{{name}}}; write it for {what}")

    @cached_property
    def _template(self) -> list[list[Part]]:
        """For each word of the command, its parts: a text and the placeholder behind it."""
        try:
            words = shlex.split(self.command)
            if not words:
                raise ValueError("it is empty")
            return [[_part(*part) for part in Formatter().parse(word)] for word in words]
        except ValueError as error:
            raise UserError(f"--command {self.command!r}: {error}; correct it") from error

    def words(self, norm: str, seed: int, folder: Path) -> list[str]:
        """Return the words of a run's command."""
        values = {"norm": norm, "seed": str(seed), "output": str(folder.absolute())}
        return [
            "".join(text + (values[name] if name is not None else "") for text, name in parts)
            for parts in self._template
        ]

    def settings(self, plan: Plan) -> dict[str, Any]:
        return {"--command": self.command, "--gpus": self.num_gpus}

    def training(self, norm: str, seed: int, folder: Path) -> list[str]:
        """Return the arguments that run the script, or read its metric if it has ended."""
        options = ["--metric", str(self.metric), "--seed", seed, "--num-gpus", self.num_gpus]
        words = self.words(norm, seed, folder)
        return ["run-script", *map(str, options), str(folder), "--", *words]

    def shown(self, norm: str, seed: int, folder: Path) -> str:
        return shlex.join(self.words(norm, seed, folder))

    def prepare(self, plan: Plan) -> dict[str, Any]:
        """Read the metric of ended runs whose record lacks it, or has another.

        UserError if a run that has another lacks this one.
        """
        for folder in plan.folders:
            record = run_record.read(folder) or {}
            is_complete = run_record.is_complete(record)
            if record.get(ENDED) and not (is_complete and record["metric"] == str(self.metric)):
                try:
                    measure(folder, self.metric)
                except UserError as error:  # a reason for this run
                    if is_complete:
                        raise
                    with open_log(folder) as file:
                        print(error, file=file)
        self.check_ended(plan.folders)
        return {}

    def check_ended(self, folders: Sequence[Path]) -> None:
        """Raise UserError if scripts have ended well, but none with the metric."""
        ended = None
        for folder in folders:
            record = run_record.read(folder) or {}
            if run_record.is_complete(record):
                return
            if record.get(ENDED) and record.get("metric") == str(self.metric):
                ended = ended or folder
        if ended:
            self.metric.values(ended)  # raises the reason


def _part(text: str, name: str | None, form: str | None, conversion: str | None) -> Part:
    """Return a text and the placeholder behind it, with its format, which none may have."""
    return text, name and name + (f"!{conversion}" if conversion else "") + (form and f":{form}")


def run_script(
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
        values = metric.values(folder)
    except UserError:
        if not run_record.is_complete(record):
            save(folder, record | asked)
        raise
    kept = range(0, len(values), -(-len(values) // POINTS)) if len(values) > 1 else ()
    curve = [{"values": 1 + i, metric.name: values[i]} for i in kept]
    metrics = {PLAIN: {metric.name: metric.choose(values)}}
    save(folder, record | asked | {"run": 1, "curve": curve, "metrics": metrics})


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
