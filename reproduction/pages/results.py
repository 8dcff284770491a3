"""The committed results: CSV files of ``records/``, a line for each value of a run by a test.

comparison   as the pages call it, such as daylight or the papers' table en-5
norm         the norm, or the row of a paper's table
seed         empty if nothing was trained
test         "test" is the config's own
metric       a metric of the framework, or a measure of papers.json
value        the metric's value
run          how a run differs from its recipe, such as "shortened: 4 of 165 epochs"
trained      length of the training, and "on re-encoded JPEG" if that is so
seconds      of the training, with its pauses
commit, processor
"""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reproduction" / "records"
#: A test by the config's own test images.
OWN_TEST = "test"
#: A run that may stand beside the paper's figure.
FULL = "full recipe", "computed"


@dataclass
class Run:
    """A run of a row: its values by test, and where and how it was trained."""

    seed: int | None
    run: str = FULL[0]
    trained: str = ""
    seconds: float = 0.0
    commit: str = ""
    processor: str = ""
    #: Test -> metric -> value.
    values: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def figures(self) -> Mapping[str, float]:
        return self.values.get(OWN_TEST, {})

    @property
    def is_full(self) -> bool:
        return self.run in FULL


#: Comparison -> norm -> runs, in the order of the files.
Results = dict[str, dict[str, list[Run]]]


def load(folder: Path = FOLDER) -> Results:
    """Return all results of a folder of CSV files."""
    results: Results = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                runs = results.setdefault(line["comparison"], {}).setdefault(line["norm"], [])
                seed = int(line["seed"]) if line["seed"] else None
                label, trained = line.get("run") or FULL[0], line.get("trained") or ""
                same = (
                    run
                    for run in runs
                    if (run.seed, run.run, run.trained) == (seed, label, trained)
                )
                if (run := next(same, None)) is None:
                    run = Run(seed, label, trained)
                    runs.append(run)
                if line["test"] == OWN_TEST:
                    run.commit, run.processor = line["commit"], line.get("processor") or ""
                    run.seconds = float(line["seconds"] or 0)
                if line["value"]:
                    run.values[line["test"]][line["metric"]] = float(line["value"])
    return results


def by_seed(
    results: Results, comparison: str, norm: str, test: str = OWN_TEST, metric: str = "mIoU"
) -> dict[int | None, float]:
    """Return seed -> metric by a test of a norm's runs; the seed is None if nothing was trained."""
    runs = results.get(comparison, {}).get(norm, ())
    found = {run.seed: run.values[test].get(metric) for run in runs if test in run.values}
    return {seed: value for seed, value in found.items() if value is not None}


def by_setting(results: Results, begin: str) -> dict[float, str]:
    """Return number -> comparison, of the comparisons named ``begin`` and a number, sorted."""
    named = [name for name in results if name.startswith(begin)]
    return dict(sorted((float(name.removeprefix(begin)), name) for name in named))


def curves(comparison: str) -> dict[str, list[dict[str, float]]]:
    """Return norm -> the points of its trainings' curves."""
    found: dict[str, list] = {}
    for line in (FOLDER / "curves.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["comparison"] == comparison:
            found.setdefault(row["norm"], []).extend(row["curve"])
    return found
