"""Runs of a comparison as jobs of Slurm, by submitit."""

import ast
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...errors import UserError, missing, one_line, say
from ...files import read_object, write_text
from . import tasks
from .folders import log_of, note_failure
from .tasks import Progress, Task

if TYPE_CHECKING:
    from submitit import Executor, Job

#: The folder of a comparison with the files of its jobs.
JOBS = "jobs"
#: How often a job continues after its time is up.
TIMEOUTS = 20
#: CPU cores of a job for each GPU; of a job on the CPU.
CPUS = 4
#: Options that submitit has for all kinds of clusters; the others are Slurm's.
SHARED = "name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout"
#: Options of submitit that are lists.
LISTS = "setup", "teardown", "srun_args"
#: Options of submitit that would give a task several processes, or that another option gives.
NOT_PASSED = {
    *("nodes", "tasks_per_node", "ntasks_per_node", "num_gpus", "gpus_per_task", "cpus_per_gpu"),
    *("array_parallelism", "job_name", "time"),
}


def check(words: Sequence[str], jobs: int, num_gpus: int) -> str:
    """Return a job's options in words; UserError for options that submitit lacks."""
    options = slurm_options(words, jobs, num_gpus)
    try:
        submitit().AutoExecutor(JOBS, cluster="debug").update_parameters(**options)
    except (AssertionError, NameError) as error:  # of a value's type, or of a name
        reason = str(error).partition("\n")[0]
        raise UserError(f"--slurm {' '.join(words)}: {reason}; correct it") from error
    shown = {"partition": "by Slurm's default"}
    shown |= {name.removeprefix("slurm_"): value for name, value in options.items()}
    return ", ".join(f"{n} {shown[n]}" for n in sorted(shown) if n not in NOT_PASSED)


def check_commands() -> None:
    """Raise UserError for a machine without Slurm's commands."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "--executor slurm: this machine has no sbatch or srun; give the command on a machine "
            "of the cluster, or --executor local"
        )


def run(
    todo: Sequence[Task],
    output: Path,
    words: Sequence[str],
    jobs: int,
    num_gpus: int,
    progress: Progress,
) -> None:
    """Run tasks as an array of Slurm jobs, with options of submitit."""
    options = slurm_options(words, jobs, num_gpus)
    variables = {}
    if num_gpus == 0 and "OMP_NUM_THREADS" not in os.environ:
        variables = {"OMP_NUM_THREADS": str(options["cpus_per_task"])}
    executor = submitit().AutoExecutor(
        output / JOBS, cluster="slurm", slurm_max_num_timeout=TIMEOUTS
    )
    executor.update_parameters(**options)
    todo = [replace(task, variables=variables) for task in todo]
    run_by(executor, todo, ids_of(output), progress)


def ids_of(output: Path) -> Path:
    """Return the file of a comparison's folder with the numbers of the jobs that have not ended."""
    return output / JOBS / "jobs.json"


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
    try:
        write_text(ids, json.dumps({name: job.job_id for name, job in jobs.items()}, indent=1))
        for task in todo:
            if task not in running:
                progress.end(task)
        while running:
            for task in [task for task in running if jobs[task.name].done()]:
                running.remove(task)
                note_early_end(task, jobs[task.name])
                progress.end(task)
            begun = [task for task in running if log_of(task.training.folder).exists()]
            waiting = len(running) - len(begun)
            progress.show(begun, f"waiting jobs: {waiting}" if waiting else "")
            if running:
                time.sleep(tasks.PAUSE)
    finally:
        for task in running:
            jobs[task.name].cancel(check=False)
        if running:
            names = ", ".join(jobs[task.name].job_id for task in running)
            say(f"\nthese jobs are cancelled: {names}", file=sys.stderr)
        ids.unlink(missing_ok=True)


def jobs_of(executor: "Executor", ids: Path) -> dict[str, "Job"]:
    """Return the jobs of an earlier command that was killed, unless they have ended, by task."""
    if not ids.is_file():
        return {}
    job_class = getattr(executor, "_executor", executor).job_class
    earlier = read_object(ids, {"": str})
    jobs = {name: job_class(ids.parent, number) for name, number in earlier.items()}
    return {name: job for name, job in jobs.items() if not job.done(force_check=True)}


def note_early_end(task: Task, job: "Job") -> None:
    """Write to a task's log if its job ended before the task did."""
    if not job.paths.result_pickle.exists() or job.exception() is not None:
        reason = f"job {job.job_id} ended early: {job.state}; see {job.paths.stderr}"
        note_failure(task.training.folder, reason)


def slurm_options(words: Sequence[str], jobs: int, num_gpus: int) -> dict[str, Any]:
    """Return submitit's parameters by options KEY=VALUE; UserError for those of the comparison."""
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
        if name in NOT_PASSED:
            others = "name, timeout_min, --num-gpus or --jobs"
            raise UserError(f"--slurm {name}: these jobs have no such option; give {others}")
        value = [text] if name in LISTS and not text.startswith("[") else plain(text)
        options[name if name in SHARED else f"slurm_{name}"] = value
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
