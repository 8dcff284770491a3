"""Rows of CSV files as those in ``records/``, whose columns ``pages/results.py`` explains."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ilm_plugins.files import write_text

COLUMNS = (
    *("comparison", "norm", "seed", "test", "metric", "value"),
    *("run", "trained", "seconds", "commit", "processor"),
)
#: What names a row; a repeated run does not replace an earlier value.
KEY = COLUMNS[:5]
#: A test by the config's own test images.
OWN_TEST = "test"
#: Name of a metric in a run's record -> in the tables, and its decimals.
METRICS = {
    "accuracy/top1": ("top-1", 2),
    "mIoU": ("mIoU", 2),
    "mAcc": ("mAcc", 2),
    "aAcc": ("aAcc", 2),
}
Row = dict[str, str]


def rows(
    comparison: str,
    norm: str,
    record: Mapping[str, Any],
    tests: Mapping[str, Mapping[str, float]],
    trained: str = "",
) -> list[Row]:
    """Return the rows of a run from its record and its metrics by test."""
    length = f"{record['run']} of {record['planned']} {record['unit']}{trained}"
    run = {
        "comparison": comparison,
        "norm": norm,
        "seed": str(record["seed"]),
        "trained": length,
        "commit": record["commit"],
        "processor": record["device"],
    }
    found = []
    for test, metrics in tests.items():
        for name, value in metrics.items():
            metric, decimals = METRICS.get(name, (name, 6))
            row = run | {"test": test, "metric": metric, "value": str(round(value, decimals))}
            row["seconds"] = str(round(record["seconds"], 1)) if test == OWN_TEST else ""
            found.append(dict.fromkeys(COLUMNS, "") | row)
    return found


def read(paths: Iterable[Path]) -> dict[tuple[str, ...], Row]:
    """Return the rows of CSV files by their key, the first of several with one key."""
    found: dict[tuple[str, ...], Row] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(tuple(row[name] for name in KEY), row)
    return found


def write(path: Path, found: Iterable[Row]) -> None:
    """Write rows to a CSV file, sorted; the file is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = sorted(found, key=lambda row: [row[name] for name in KEY])
    text = [",".join(COLUMNS)]
    for row in lines:
        cells = [row[name] for name in COLUMNS]
        text.append(",".join(f'"{cell}"' if "," in cell else cell for cell in cells))
    write_text(path, "\n".join(text) + "\n")
