"""What came out of the runs of a comparison."""

from collections.abc import Iterable, Sequence
from itertools import product

from ...frameworks.run.record import read_record
from ..plan import Plan
from ..results import OWN_TEST, Value, main_metric
from .folders import divergence, environment, is_complete, metrics, noted_failure

#: The reasons of a run that was not begun, and of one that did not end by itself.
NOT_RUN, STOPPED = "not run", "stopped"


def metrics_of(plan: Plan, norm: str, seed: int, test: str = "") -> dict[str, float | None]:
    """Return the metrics of a run by a test; empty unless its training is complete."""
    is_known = is_complete(plan.folder(norm, seed))
    return metrics(plan.folder(norm, seed, test)) if is_known else {}


def check_metric(plan: Plan, norm: str, seed: int) -> None:
    """Raise UserError if a run has metrics, but not the plan's."""
    metrics = metrics_of(plan, norm, seed).items()
    if plan.metric is not None:
        main_metric([Value(norm, seed, OWN_TEST, *metric) for metric in metrics], plan.metric)


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
            metrics = metrics_of(plan, norm, seed, test).items()
            values += [Value(*run, *metric, None, *made) for metric in metrics]
    return values


def confounded(plan: Plan) -> list[str]:
    """Return in which versions, device or settings runs are unlike the baseline's of their seed."""
    baseline, *norms = plan.norms
    seeds_of: dict[tuple[str, str], list[int]] = {}
    for norm, seed in product(norms, plan.seeds):
        plain, ours = (environment(plan.folder(name, seed)) for name in (baseline, norm))
        names = sorted(plain.keys() & ours.keys())
        if unlike := [name for name in names if plain[name] != ours[name]]:
            seeds_of.setdefault((norm, ", ".join(unlike)), []).append(seed)
    return [
        f"Runs with {norm} differ from those with {baseline} not only in the norm, but in {names}: "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."
        for (norm, names), seeds in seeds_of.items()
    ]
