"""The history of a comparison's folder, which its settings file keeps beside the settings.

All runs that the folder has are told, whichever call made them: a seed, a norm or a test that is
left out, or a run that is repeated, may have been chosen by its result.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from ..files import read_object, write_text
from ..frameworks.run.record import FILE
from .plan import HISTORY, KINDS, SETTINGS, Plan, folder_name
from .results import History, Look, Reading, Results, complete
from .run.outcomes import NOT_RUN, STOPPED, collect


def of_folder(plan: Plan, metric: str) -> History:
    """Return what the folder has of all calls, with the values of a metric."""
    noted = _noted(plan)
    others = [norm for look in noted.looks for reading in look.readings for norm in reading.norms]
    norms = [*plan.norms, *others, *(failure[0] for failure in noted.failures)]
    names = {folder_name(norm): norm for norm in reversed(norms)}
    of_plan = {(norm, seed) for norm in plan.norms for seed in plan.seeds}
    everything = {*of_plan}
    for folder in plan.output.glob("*/seed*"):
        if folder.is_dir() and (seed := re.fullmatch(r"seed(-?\d+)", folder.name)):
            name = folder.parent.name
            everything.add((names.get(name, name), int(seed[1])))
    norms += sorted(norm for norm, _ in everything)
    records = plan.output.glob(f"*/seed*/*/{FILE}")
    tests = dict.fromkeys([*plan.tests, *sorted(path.parent.name for path in records)])
    ordered = sorted(everything, key=lambda run: (norms.index(run[0]), run[1]))
    values = collect(plan, ordered, [*tests])
    kept = [v for v in values if v.failure != NOT_RUN or v[:2] in of_plan]
    return replace(noted, values=complete(kept, metric))


def note(plan: Plan, results: Results | None = None) -> None:
    """Write the failed runs, and the numbers of a report, into the locked folder's history."""
    noted = _noted(plan)
    failures = [
        (value.norm, value.seed, value.test, value.failure)
        for value in collect(plan)
        if value.failure not in (None, NOT_RUN, STOPPED)
    ]
    reported = [] if results is None else [(*run, value) for run, value in results.reported.items()]
    entries = {
        "failures": [*dict.fromkeys([*noted.failures, *failures])],
        "results": [*dict.fromkeys([*noted.results, *reported])],
        "looks": noted.looks if results is None else results.looks,
    }
    if any(entries.values()):
        path = plan.output / SETTINGS
        write_text(path, json.dumps(read_object(path, KINDS) | {HISTORY: entries}, indent=1))


def _noted(plan: Plan) -> History:
    noted = read_object(plan.output / SETTINGS, KINDS).get(HISTORY, {})
    looks = [
        Look(margin, tuple(_reading(*reading) for reading in readings))
        for margin, readings in noted.get("looks", ())
    ]
    if old := noted.get("read"):
        looks.insert(0, Look(None, tuple(_reading(sorted(entry[:2]), *entry[2:]) for entry in old)))
    failures, results = (
        [(*entry,) for entry in noted.get(key, ())] for key in ("failures", "results")
    )
    return History((), failures, results, looks)


def _reading(
    norms: Sequence[str], test: str, measure: str, seeds: Sequence[int], repeats: int = 0
) -> Reading:
    return Reading((*norms,), test, measure, (*seeds,), repeats)
