"""A task of a comparison: the commands of one norm and seed, and their processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from ...errors import UserError
from ...frameworks.checkpoints import last_checkpoint
from ...frameworks.run.record import is_complete_record, read_record
from ...parent_process import command_line, ending_with_us
from .folders import has_ended, is_complete, log_of, metrics, note_failure, open_to_add

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

#: Seconds between two looks at a process.
PAUSE = 1.0
#: Seconds in which a cluster ends a job after its processes got a signal.
GRACE = 60.0
#: Least number of seconds between two updates of the progress bar.
INTERVAL = 1.0 if sys.stderr.isatty() else 60.0
BAR = "{desc} {percentage:.0f}% of {total} runs |{bar}| {elapsed}, {remaining} left"
#: The number of tasks that the progress bar names.
NAMED = 3
#: The name of a run's last checkpoint in the arguments of its evaluations.
CHECKPOINT = "LAST_CHECKPOINT"


class Step(NamedTuple):
    """A command of the package, and the folder of its record."""

    arguments: Sequence[str]
    folder: Path


@dataclass(frozen=True, eq=False)
class Task:
    """The training of one norm and seed and its evaluations; submitit can send it to a cluster."""

    norm: str
    seed: int
    training: Step
    #: They start when the training is complete, unless there are metrics in their folders.
    evaluations: Sequence[Step] = ()
    #: Environment variables of the processes.
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.norm}, seed {self.seed}"

    def missing(self) -> Iterator[Step]:
        """Yield each step that the records call for; ask for the next when a step has ended."""
        folder = self.training.folder
        if not has_ended(folder):
            yield self.training
        if not is_complete(folder):
            return
        for step in self.evaluations:
            if metrics(step.folder):
                continue
            try:
                name = last_checkpoint(folder).name
            except UserError as error:  # a reason for this run; the others go on
                note_failure(step.folder, error)
                continue
            yield step._replace(arguments=[a.replace(CHECKPOINT, name) for a in step.arguments])

    def progress(self) -> tuple[float, str]:
        """Return the part of the training that is done, and the task's name and state."""
        record = read_record(self.training.folder) or {}
        part = min(1.0, record.get("run", 0) / max(1, record.get("planned", 1)))
        return part, f"{self.name}, evaluates" if is_complete_record(record) else self.name

    def __call__(self) -> None:
        """Run the missing steps, as a job of a cluster."""
        running = RunningTask(self, self.variables)
        try:
            while running.advance():
                time.sleep(PAUSE)
        finally:
            running.terminate()
            running.wait()
        if running.was_stopped:
            # Slurm signals all processes of a job; submitit's handler, in this process, requeues.
            time.sleep(GRACE)

    def checkpoint(self) -> "DelayedSubmission":
        """Return the task for submitit, which starts it again; the training resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class RunningTask:
    """A task's steps in processes, which start in the thread that advances it.

    A process ends with that thread, see :func:`.parent_process.end_with_parent`.
    """

    def __init__(self, task: Task, variables: Mapping[str, str]) -> None:
        self.task, self.variables = task, variables
        self._steps = task.missing()
        self._step: Step | None = None
        self._process: subprocess.Popen | None = None

    def advance(self) -> bool:
        """Start the next step where none is running; return whether one is running then."""
        if self._process is not None and self._process.poll() is None:
            return True
        if (step := self._step) is not None:
            is_done = has_ended if step is self.task.training else metrics
            if not (is_done(step.folder) or self.was_stopped):
                note_failure(step.folder)
        self._step = step = next(self._steps, None)
        if step is not None:
            with open_to_add(log_of(step.folder)) as file:
                self._process = start(step.arguments, file, self.variables)
        return step is not None

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended the last process."""
        stops = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2
        status = None if self._process is None else self._process.poll()
        return status in {*(-number for number in stops), *(128 + number for number in stops)}

    def terminate(self) -> None:
        """Ask the process to end, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()


class Progress:
    """One bar over all tasks: the sum of their parts, and which are running."""

    def __init__(self, todo: Sequence[Task], check: Callable[[Task], None]) -> None:
        self.bar = tqdm(total=len(todo), bar_format=BAR, mininterval=INTERVAL)
        self._check = check
        self._ended = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._show(self.bar.total, "all runs")
        self.bar.close()

    def end(self, task: Task) -> None:
        """Count a task as done, also if it failed."""
        self._ended += 1
        self._check(task)

    def show(self, running: Sequence[Task], waiting: str = "") -> None:
        """Show the tasks that are running, and what else waits."""
        parts, names = [], []
        for task in running:
            self._check(task)
            part, name = task.progress()
            parts.append(part)
            names.append(name)
        more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        texts = [*names[:NAMED], *more, *filter(None, [waiting])]
        self._show(self._ended + sum(parts), "; ".join(texts))

    def _show(self, done: float, text: str) -> None:
        if self.bar.desc != (shown := f"{text}: "):
            self.bar.set_description_str(shown)
        self.bar.update(done - self.bar.n)


def start(arguments: Sequence[str], file: IO, variables: Mapping[str, str]) -> subprocess.Popen:
    """Start a command of the package, its output in a file."""
    env = {**ending_with_us(), **variables}
    return subprocess.Popen(command_line(arguments), env=env, stdout=file, stderr=subprocess.STDOUT)
