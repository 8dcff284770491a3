"""A training script of the user's own: its command line for each run, its process, its record.

The record says that the script ``ended`` well before it has the metric, which can be read again by
another ``--metric``, without another training.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, say
from ..frameworks.code_digest import digest_of_files
from ..frameworks.run.record import PLAIN, is_complete_record, read_record
from ..parent_process import end_with_parent
from .arms import Arms
from .plan import Plan, Source
from .run.folders import new_record, note_failure, open_to_add, save
from .script_metric import ScriptMetric

#: The file of the script's output, in the run's folder, by a name that scripts do not use.
PRINTED = "printed-by-script.txt"
#: Key of the record of a script that has ended with status 0.
ENDED = "script ended"
#: Bytes of a file that a command names for its data.
LARGE = 10**6
#: Seconds that a script has to end after SIGTERM.
PATIENCE = 30
#: Placeholders of a command; one seed needs none.
PLACEHOLDERS = "norm", "seed", "output"


@dataclass(frozen=True)
class CommandSource(Source):
    """A script, by the command line of ``--command``."""

    command: str
    metric: ScriptMetric
    num_gpus: int = 0
    arms: Arms = field(default_factory=Arms)

    def check(self, plan: Plan) -> None:
        self.words(plan.norms[0], 0, plan.output)  # UserError for a mistake
        for name in PLACEHOLDERS:
            if f"{{{name}}}" not in self.command and (name != "seed" or len(plan.seeds) > 1):
                raise UserError(f"--command lacks {{{name}}}; give {{norm}}, {{seed}}, {{output}}")

    def words(self, norm: str, seed: int, folder: Path) -> list[str]:
        """Return the words of a run's command."""
        arm = self.arms[norm]
        values = {"norm": arm.norm, "seed": seed, "output": folder.absolute()}
        try:
            words = shlex.split(self.command)
            if not words:
                raise ValueError("it is empty")
            return [*(word.format_map(values) for word in words), *arm.overrides]
        except KeyError as error:
            raise UserError(
                f"--command: unknown placeholder {{{error.args[0]}}}; give {{norm}}, {{seed}} and "
                "{output}, and {{ and }} for braces"
            ) from error
        except (AttributeError, LookupError, ValueError) as error:
            raise UserError(f"--command {self.command!r}: {error}; correct it") from error

    def settings(self, plan: Plan) -> dict[str, Any]:
        options = {"--command": self.command, "--gpus": self.num_gpus}
        return options | self.arms.settings(plan.norms)

    def training(self, norm: str, seed: int, folder: Path) -> list[str]:
        """Return the arguments that run the script, or read its metric if it has ended."""
        options = ["--metric", str(self.metric), "--seed", seed, "--num-gpus", self.num_gpus]
        words = self.words(norm, seed, folder)
        return ["run-script", *map(str, options), str(folder), "--", *words]

    def code(self, norm: str, seed: int, folder: Path) -> str:
        return code_of(self.words(norm, seed, folder), folder)

    def shown(self, norm: str, seed: int, folder: Path) -> str:
        return shlex.join(self.words(norm, seed, folder))

    def prepare(self, plan: Plan) -> dict[str, Any]:
        """Read the metric of ended runs whose record lacks it, or has another.

        UserError if a run that has another lacks this one.
        """
        for folder in plan.folders:
            record = read_record(folder) or {}
            is_complete = is_complete_record(record)
            if record.get(ENDED) and not (is_complete and record.get("metric") == str(self.metric)):
                try:
                    measure(folder, self.metric)
                except UserError as error:  # a reason for this run
                    if is_complete:
                        raise
                    note_failure(folder, error)
        self.check_ended(plan.folders)
        return {"measure": self.metric.measure}

    def best_metric(self) -> tuple[str | None, bool]:
        return self.metric.name, self.metric.rule == "min"

    def check_ended(self, folders: Sequence[Path]) -> None:
        """Raise UserError if scripts have ended well, but none with the metric."""
        ended = None
        for folder in folders:
            record = read_record(folder) or {}
            if is_complete_record(record):
                return
            if record.get(ENDED) and record.get("metric") == str(self.metric):
                ended = ended or folder
        if ended:
            self.metric.values(ended)  # raises the reason


def run_script(
    words: Sequence[str], folder: Path, metric: ScriptMetric, seed: int, num_gpus: int = 0
) -> int:
    """Run a script, unless it has ended well before, and record its metric; return its status.

    UserError if the script ends well without the metric.
    """
    if not (read_record(folder) or {}).get(ENDED):
        begun, command = time.monotonic(), shlex.join(words)
        record = new_record(command, "script", code_of(words, folder), seed, num_gpus)
        save(folder, record)
        say(command)
        if status := call(words, folder / PRINTED):
            return status
        save(folder, record | {ENDED: True, "seconds": time.monotonic() - begun})
    measure(folder, metric)
    return 0


def code_of(words: Sequence[str], folder: Path) -> str:
    """Return the digest of the files of code and settings that a command names, itself or by -m.

    Large files, as of data, do not count, nor those of the run's own folder.
    """
    named = [part for word in words for part in (word, *re.split(r"[\s=;]+", word)) if part]
    modules = [word.replace(".", "/") for word in named]
    named += [f"{name}{end}" for name in modules for end in (".py", "/__main__.py")]
    files = [Path(name) for name in named if os.path.isfile(name)]
    own = folder.absolute()
    return digest_of_files(
        file for file in files if own not in file.absolute().parents and file.stat().st_size < LARGE
    )


def measure(folder: Path, metric: ScriptMetric) -> None:
    """Read the metric of a script that has ended, and complete its record; UserError without it.

    A record that is complete by another metric then stays as it is.
    """
    record = read_record(folder) or {}
    asked = {"metric": str(metric)}
    try:
        values = metric.values(folder)
    except UserError:
        if not is_complete_record(record):
            save(folder, record | asked)
        raise
    metrics = {PLAIN: {metric.name: metric.choose(values)}}
    save(folder, record | asked | {"run": 1, "metrics": metrics})


def call(words: Sequence[str], printed: Path) -> int:
    """Run a command to its end, or end it with this process; keep what it prints, then print it.

    A script that was stopped may continue: the output of each start is added to the earlier ones.
    """
    with open_to_add(printed, "a+b", None) as file:
        begin = file.tell()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={"PYTHONUNBUFFERED": "1", **os.environ},  # what it printed before a kill, too
                start_new_session=True,  # its own processes end with it
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        except OSError as error:
            raise UserError(f"--command: {words[0]!r} cannot be run ({error.strerror})") from error
        try:
            status = process.wait()
        finally:
            _end(process)
            file.seek(begin)
            shutil.copyfileobj(file, sys.stdout.buffer)
    if status < 0:
        say(f"ended by {signal.Signals(-status).name}")
        return 128 - status
    return status


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
