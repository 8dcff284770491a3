"""The runs of a comparison: what each has to do, and what came out."""

from collections.abc import Iterable, Sequence
from itertools import product

from ..frameworks.run.record import read_record
from .executors import Execution
from .plan import Plan
from .results import OWN_TEST, Value, main_metric
from .run_folders import SETTINGS, divergence, environment, is_complete, metrics, noted_failure
from .tasks import CHECKPOINT, Step, Task

#: The reasons of a run that was not begun, and of one that did not end by itself.
NOT_RUN, STOPPED = "not run", "stopped"


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


def metrics_of(plan: Plan, norm: str, seed: int, test: str = "") -> dict[str, float | None]:
    """Return the metrics of a run by a test; empty unless its training is complete."""
    is_known = is_complete(plan.folder(norm, seed))
    return metrics(plan.folder(norm, seed, test)) if is_known else {}


def check_metric(plan: Plan, norm: str, seed: int) -> None:
    """Raise UserError if a run has metrics, but not the plan's."""
    found = metrics_of(plan, norm, seed).items()
    if plan.metric is not None:
        main_metric([Value(norm, seed, OWN_TEST, *one) for one in found], plan.metric)


def failure(plan: Plan, norm: str, seed: int, test: str = "") -> str | None:
    """Return why a run has no result by a test; None if it has one.

    A further test of a run that is not complete has no reason of its own.
    """
    folder = plan.folder(norm, seed)
    if test and not is_complete(folder):
        return None
    if (reason := divergence(folder)) is not None:
        return f"diverged: {reason}"
    if metrics_of(plan, norm, seed, test):
        return None
    noted = noted_failure(plan.folder(norm, seed, test))
    return noted or (STOPPED if folder.exists() else NOT_RUN)


def collect(
    plan: Plan, chosen: Iterable[tuple[str, int]] = (), tests: Sequence[str] = ()
) -> list[Value]:
    """Return all metrics of runs, norms and seeds, and the failures; by default of the plan's."""
    values = []
    for norm, seed in chosen or product(plan.norms, plan.seeds):
        record = read_record(plan.folder(norm, seed)) or {}
        made = record.get("seconds"), record.get("commit"), record.get("device")
        for test in tests or plan.tests:
            run = norm, seed, test or OWN_TEST
            if (reason := failure(plan, norm, seed, test)) is not None:
                values.append(Value(*run, "", None, reason, *made))
            found = metrics_of(plan, norm, seed, test).items()
            values += [Value(*run, *one, None, *made) for one in found]
    return values


def confounded(plan: Plan) -> list[str]:
    """Return in which versions, device or settings runs are unlike the baseline's of their seed."""
    baseline, *norms = plan.norms
    seeds_of: dict[tuple[str, str], list[int]] = {}
    for norm, seed in product(norms, plan.seeds):
        plain, ours = (environment(plan.folder(one, seed)) for one in (baseline, norm))
        names = plain.keys() & ours.keys() - {SETTINGS["code"]}
        if unlike := sorted(name for name in names if plain[name] != ours[name]):
            seeds_of.setdefault((norm, ", ".join(unlike)), []).append(seed)
    return [
        f"Runs with {norm} differ from those with {baseline} not only in the norm, but in {names}: "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."
        for (norm, names), seeds in seeds_of.items()
    ]
