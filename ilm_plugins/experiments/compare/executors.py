"""Where the runs of a comparison are executed: on this machine, in this process, on a cluster."""

import ast
import importlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...checkpoints import write_text
from ...errors import UserError, missing, one_line
from ...frameworks.parent import run_here
from ...frameworks.run_processes import available_gpus
from . import tasks
from .tasks import Run, Task, threads

if TYPE_CHECKING:
    from submitit import Executor, Job

#: Least number of seconds between two updates of the progress bar.
INTERVAL = 1.0 if sys.stderr.isatty() else 60.0
BAR = "{desc} {percentage:.0f}% of {total} runs |{bar}| {elapsed}, {remaining} left"
#: The number of tasks that the progress bar names.
NAMED = 3
#: The folder of a comparison with the files of a cluster's jobs, and the file with their names.
JOBS, IDS = "jobs", "jobs.json"
#: How often a job continues after its time is up.
TIMEOUTS = 20
#: CPU cores of a job for each GPU; of a job on the CPU.
CPUS = 4
#: Options of submitit that are lists.
LISTS = "setup", "teardown", "srun_args"
#: Options of submitit that would give a task several processes, or that another option gives.
NOT_PASSED = {
    *("nodes", "tasks_per_node", "ntasks_per_node", "num_gpus", "gpus_per_task", "cpus_per_gpu"),
    *("array_parallelism", "job_name", "time"),
}


@dataclass(frozen=True)
class Execution:
    """How a comparison executes its runs."""

    #: "local", "debug" or "slurm".
    executor: str = "local"
    #: The largest number of runs at a time.
    jobs: int = 1
    #: Options KEY=VALUE of submitit for Slurm.
    slurm: Sequence[str] = ()

    def check(self, num_gpus: int) -> None:
        """Raise UserError for options that contradict each other, this machine or submitit."""
        if self.slurm and self.executor != "slurm":
            raise UserError("--slurm is for --executor slurm; give both, or none")
        if self.executor == "debug" and self.jobs > 1:
            raise UserError(f"--executor debug has one run at a time; leave out --jobs {self.jobs}")
        if self.executor == "slurm":
            slurm_options(self.slurm, self.jobs, num_gpus)
            if shutil.which("sbatch") is None or shutil.which("srun") is None:
                raise UserError(
                    "--executor slurm: this machine has no sbatch or srun; give the command on a "
                    "machine of the cluster, or --executor local"
                )
        else:
            gpus_of_jobs(self.jobs, num_gpus)

    def run(
        self, todo: Sequence[Task], output: Path, num_gpus: int, check: Callable[[Task], None]
    ) -> None:
        """Run all tasks; call ``check``, whose error ends the others, with tasks that have begun.

        A task that fails does not end the others.
        """
        if self.executor == "slurm":
            with Progress(todo, check) as progress:
                run_on_cluster(todo, output, self, num_gpus, progress)
            return
        if (ids := output / JOBS / IDS).is_file():
            raise UserError(
                f"{output} has jobs on a cluster; give --executor slurm, or cancel them and remove "
                f"{ids}"
            )
        if self.executor == "debug":
            run_in_this_process(todo, check)
            return
        slots = [{**threads(self.jobs), **gpus} for gpus in gpus_of_jobs(self.jobs, num_gpus)]
        with Progress(todo, check) as progress:
            run_locally(todo, slots, progress)


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
        self._show(
            self._ended + sum(parts), "; ".join([*names[:NAMED], *more, *filter(None, [waiting])])
        )

    def _show(self, done: float, text: str) -> None:
        if self.bar.desc != (shown := f"{text}: "):
            self.bar.set_description_str(shown)
        self.bar.update(done - self.bar.n)


def run_locally(
    todo: Sequence[Task], slots: Sequence[Mapping[str, str]], progress: Progress
) -> None:
    """Run tasks in processes of this machine, as many at a time as there are slots.

    A slot is the environment variables of a task's processes. All processes start in this thread:
    Linux ends them when it ends, even if it is killed.
    """
    waiting, running, free = deque(todo), list[Run](), list(reversed(slots))
    try:
        while waiting or running:
            while waiting and free:
                running.append(Run(waiting.popleft(), free.pop()))
            ended = [run for run in running if run.has_ended()]
            for run in ended:
                running.remove(run)
                free.append(run.variables)
                progress.end(run.task)
            progress.show([run.task for run in running])
            if not ended:
                time.sleep(tasks.PAUSE)
    finally:
        for run in running:
            run.terminate()
        for run in running:
            run.wait()


def run_in_this_process(todo: Sequence[Task], check: Callable[[Task], None]) -> None:
    """Run tasks one after the other in this process, for a debugger, with their output."""
    for task in todo:
        print(f"{task.name}:")
        for step in task.missing():
            run_here(step.arguments)
            check(task)


def gpus_of_jobs(jobs: int, num_gpus: int) -> list[dict[str, str]]:
    """Return the environment variable by which each of several jobs sees GPUs of its own.

    UserError if this machine has too few.
    """
    if num_gpus == 0:
        return [{}] * jobs
    available = available_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if jobs * num_gpus > available:
        seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        most = f"give --jobs {available // num_gpus}" if available >= num_gpus else "give fewer"
        raise UserError(
            f"--jobs {jobs} with --num-gpus {num_gpus} needs {jobs * num_gpus} GPUs, this machine "
            f"has {available}{seen}; {most}"
        )
    if jobs == 1:
        return [{}]
    # Numbers, or names such as GPU-8f0c...; CUDA sees none behind an invalid one.
    names = [*map(str, range(available))]
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(names[i * num_gpus : (i + 1) * num_gpus])}
        for i in range(jobs)
    ]


def run_on_cluster(
    todo: Sequence[Task], output: Path, execution: Execution, num_gpus: int, progress: Progress
) -> None:
    """Run tasks as an array of Slurm jobs."""
    options = slurm_options(execution.slurm, execution.jobs, num_gpus)
    variables = {}
    if num_gpus == 0 and "OMP_NUM_THREADS" not in os.environ:
        variables = {"OMP_NUM_THREADS": str(options["cpus_per_task"])}
    executor = submitit().AutoExecutor(
        output / JOBS, cluster="slurm", slurm_max_num_timeout=TIMEOUTS
    )
    try:
        executor.update_parameters(**options)
    except (AssertionError, TypeError) as error:  # of a value
        raise UserError(f"--slurm {' '.join(execution.slurm)}: {one_line(error)}") from error
    todo = [replace(task, variables=variables) for task in todo]
    run_by(executor, todo, output / JOBS / IDS, progress)


def run_by(executor: "Executor", todo: Sequence[Task], ids: Path, progress: Progress) -> None:
    """Run tasks by an executor of submitit; if this process is stopped, cancel the jobs.

    The file ``ids`` has the jobs: if this process is killed, the same command finds them.
    """
    jobs = jobs_of(executor, ids)
    # Tasks with nothing to do need no job.
    new = [t for t in todo if t.name not in jobs and next(t.missing(), None) is not None]
    try:
        submitted = executor.submit_array(new) if new else []
    except Exception as error:  # of sbatch, in its words
        raise UserError(f"no jobs were submitted: {one_line(error)}; correct --slurm") from error
    jobs |= dict(zip([task.name for task in new], submitted, strict=True))
    running = [task for task in todo if task.name in jobs]
    for task in todo:
        if task not in running:
            progress.end(task)
    try:
        write_text(ids, json.dumps({name: job.job_id for name, job in jobs.items()}, indent=1))
        while running:
            for task in [task for task in running if jobs[task.name].done()]:
                running.remove(task)
                note_early_end(task, jobs[task.name])
                progress.end(task)
            begun = [task for task in running if tasks.log_of(task.training.folder).exists()]
            waiting = len(running) - len(begun)
            progress.show(begun, f"waiting jobs: {waiting}" if waiting else "")
            if running:
                time.sleep(tasks.PAUSE)
    finally:
        for task in running:
            jobs[task.name].cancel(check=False)
        if running:
            names = ", ".join(jobs[task.name].job_id for task in running)
            print(f"\nthese jobs are cancelled: {names}", file=sys.stderr)
        ids.unlink(missing_ok=True)


def jobs_of(executor: "Executor", ids: Path) -> dict[str, "Job"]:
    """Return the jobs of an earlier command that was killed, unless they have ended, by task."""
    if not ids.is_file():
        return {}
    job_class = getattr(executor, "_executor", executor).job_class
    earlier = json.loads(ids.read_text(encoding="utf-8"))
    jobs = {name: job_class(ids.parent, number) for name, number in earlier.items()}
    return {name: job for name, job in jobs.items() if not job.done(force_check=True)}


def note_early_end(task: Task, job: "Job") -> None:
    """Write to a task's log if its job ended before the task did."""
    if not job.paths.result_pickle.exists() or job.exception() is not None:
        with tasks.open_log(task.training.folder) as file:
            print(f"job {job.job_id} ended early: {job.state}; see {job.paths.stderr}", file=file)


def slurm_options(words: Sequence[str], jobs: int, num_gpus: int) -> dict[str, Any]:
    """Return submitit's parameters by options KEY=VALUE; UserError names unknown ones."""
    executors = submitit()
    shared = executors.AutoExecutor._valid_parameters() - NOT_PASSED
    known = (shared | executors.SlurmExecutor._valid_parameters()) - NOT_PASSED
    options = {
        "name": "ilm_plugins",
        "timeout_min": 240,
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": CPUS * max(1, num_gpus),
        "slurm_array_parallelism": jobs,
        **({"gpus_per_node": num_gpus} if num_gpus else {}),
    }
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            near = get_close_matches(name, sorted(known), 3, 0.5) or sorted(known)
            raise UserError(f"--slurm {name}: submitit does not know it; give {', '.join(near)}")
        value = plain(text)
        if name in LISTS and isinstance(value, str):
            value = [value]
        options[name if name in shared else f"slurm_{name}"] = value
    return options


def plain(text: str) -> Any:
    """Return the number, list or other plain value that a text is in Python, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def submitit() -> ModuleType:
    """Return the package; UserError if it is missing."""
    try:
        return importlib.import_module("submitit")
    except ModuleNotFoundError as error:
        raise missing("--executor slurm", error) from error
