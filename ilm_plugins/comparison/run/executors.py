"""Where the runs of a comparison are executed: on this machine, or on a cluster."""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError, say
from ...frameworks.run.processes import available_gpus
from ..plan import Plan
from . import slurm_jobs, tasks
from .outcomes import check_metric
from .tasks import CHECKPOINT, Progress, RunningTask, Step, Task


@dataclass(frozen=True)
class Execution:
    """How a comparison executes its runs."""

    #: "local" or "slurm".
    executor: str = "local"
    #: The largest number of runs at a time.
    jobs: int = 1
    #: Options KEY=VALUE of submitit for Slurm.
    slurm: Sequence[str] = ()

    def check(self, num_gpus: int, is_dry: bool = False) -> None:
        """Raise UserError for options that contradict each other, submitit or this machine.

        A dry run prints the options of a job instead, and may be on another machine.
        """
        if self.slurm and self.executor != "slurm":
            raise UserError("--slurm is for --executor slurm; give both, or none")
        if self.executor == "slurm":
            shown = slurm_jobs.check(self.slurm, self.jobs, num_gpus)
            say(f"each job: {shown}") if is_dry else slurm_jobs.check_commands()
        elif not is_dry:
            gpus_of_jobs(self.jobs, num_gpus)

    def run(
        self, todo: Sequence[Task], output: Path, num_gpus: int, check: Callable[[Task], None]
    ) -> None:
        """Run all tasks; call ``check``, whose error ends the others, with tasks that have begun.

        A task that fails does not end the others.
        """
        if self.executor != "slurm" and (ids := slurm_jobs.ids_of(output)).is_file():
            raise UserError(
                f"{output} has jobs on a cluster; give --executor slurm, or cancel them and remove "
                f"{ids}"
            )
        with Progress(todo, check) as progress:
            if self.executor == "slurm":
                slurm_jobs.run(todo, output, self.slurm, self.jobs, num_gpus, progress)
            else:
                gpus = gpus_of_jobs(self.jobs, num_gpus)
                run_locally(todo, [threads(self.jobs) | variables for variables in gpus], progress)


def run_all(plan: Plan, execution: Execution | None = None) -> None:
    """Train and test all unfinished runs; a run that fails does not end the others.

    By default they run on this machine, one at a time. UserError if the first run that is tested
    lacks the metric to compare.
    """

    def check(task: Task) -> None:
        plan.source.check_ended(plan.folders)
        check_metric(plan, task.norm, task.seed)

    tasks = [task_of(plan, norm, seed) for seed in plan.seeds for norm in plan.norms]
    (execution or Execution()).run(tasks, plan.output, plan.source.num_gpus, check)


def task_of(plan: Plan, norm: str, seed: int) -> Task:
    """Return the training of a run and its evaluations, by the config's own test and others."""
    source, folder = plan.source, plan.folder(norm, seed)
    evaluations = []
    for test in plan.tests:
        of_test = plan.folder(norm, seed, test)
        words = source.evaluation(norm, seed, test, of_test, folder / CHECKPOINT)
        evaluations.append(Step(words, of_test))
    return Task(norm, seed, Step(source.training(norm, seed, folder), folder), evaluations)


def run_locally(
    todo: Sequence[Task], slots: Sequence[Mapping[str, str]], progress: Progress
) -> None:
    """Run tasks in processes of this machine, as many at a time as there are slots.

    A slot is the environment variables of a task's processes. All processes start in this thread:
    Linux ends them when it ends, even if it is killed.
    """
    waiting, running, free = deque(todo), list[RunningTask](), list(reversed(slots))
    try:
        while waiting or running:
            while waiting and free:
                running.append(RunningTask(waiting.popleft(), free.pop()))
            ended = [run for run in running if not run.advance()]
            for run in ended:
                running.remove(run)
                free.append(run.variables)
                progress.end(run.task)
            if running and not ended:
                progress.show([run.task for run in running])
                time.sleep(tasks.PAUSE)
    finally:
        for run in running:
            run.terminate()
        for run in running:
            run.wait()


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
        raise UserError(
            f"--jobs {jobs} with --num-gpus {num_gpus} needs {jobs * num_gpus} GPUs, this machine "
            f"has {available}{seen}; give fewer"
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


def threads(jobs: int) -> dict[str, str]:
    """Return the variable that gives each of several jobs its part of this machine's cores.

    Empty if the user has set it, or if there is one job.
    """
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
