"""The history of a comparison's folder, which its settings file keeps beside the settings.

All runs that the folder has are told, whichever call made them: a seed, a norm or a test that is
left out, or a run that is repeated, may have been chosen by its result.
"""

import json
import re
from collections.abc import Sequence

from ..files import read_object, write_text
from ..frameworks.run.record import FILE
from . import runs
from .plan import HISTORY, KINDS, SETTINGS, Plan, folder_name
from .results import History, Reading, complete

#: Norm, seed, test and reason of a run without a result.
Failure = tuple[str, int, str, str]


def of_folder(plan: Plan, metric: str) -> History:
    """Return what the folder has of all calls, with the values of a metric."""
    failures, read = _noted(plan)
    norms = [
        *plan.norms,
        *(norm for one in read for norm in one[:2]),
        *(one[0] for one in failures),
    ]
    names = {folder_name(norm): norm for norm in reversed(norms)}
    of_plan = {(norm, seed) for norm in plan.norms for seed in plan.seeds}
    everything = {*of_plan}
    for folder in plan.output.glob("*/seed*"):
        if folder.is_dir() and (seed := re.fullmatch(r"seed(-?\d+)", folder.name)):
            name = folder.parent.name
            everything.add((names.get(name, name), int(seed[1])))
    norms += sorted(norm for norm, _ in everything)
    found = plan.output.glob(f"*/seed*/*/{FILE}")
    tests = dict.fromkeys([*plan.tests, *sorted(path.parent.name for path in found)])
    ordered = sorted(everything, key=lambda run: (norms.index(run[0]), run[1]))
    values = runs.collect(plan, ordered, [*tests])
    kept = [v for v in values if v.failure != runs.NOT_RUN or v[:2] in of_plan]
    return History(complete(kept, metric), failures, read)


def note(plan: Plan, read: Sequence[Reading] = ()) -> None:
    """Note in the locked folder which runs have failed, and which tests are read."""
    failures, earlier = _noted(plan)
    for value in runs.collect(plan):
        if value.failure not in (None, runs.NOT_RUN, runs.STOPPED):
            failures.append((value.norm, value.seed, value.test, value.failure))
    noted = {"failures": [*dict.fromkeys(failures)], "read": [*dict.fromkeys([*earlier, *read])]}
    if any(noted.values()):
        path = plan.output / SETTINGS
        write_text(path, json.dumps(read_object(path, KINDS) | {HISTORY: noted}, indent=1))


def _noted(plan: Plan) -> tuple[list[Failure], list[Reading]]:
    noted = read_object(plan.output / SETTINGS, KINDS).get(HISTORY, {})
    failures = [(*one,) for one in noted.get("failures", ())]
    return failures, [Reading(*one[:-1], (*one[-1],)) for one in noted.get("read", ())]
