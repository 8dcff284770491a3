"""Training curves: means of logged values by epoch or over ranges of iterations."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

#: Number of points of a curve over iterations.
STEPS = 100


def entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log file with one JSON object a line, in the order of the file.

    Lines that are not valid JSON, as after a crash, are skipped. OSError passes if the file is
    missing or unreadable.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def continued(sessions: Iterable[list[tuple[int, dict]]]) -> list[tuple[int, dict]]:
    """Join the logs of a training that was interrupted and resumed.

    Args:
        sessions: the log of each session, from the first to the last; a list of pairs of an epoch
            or iteration and the entry logged there.

    Returns:
        One such list. The entries of each session replace all earlier ones from its first epoch or
        iteration on, even those that it has not reached again.
    """
    kept: list[tuple[int, dict]] = []
    for new in sessions:
        first = min((at for at, _ in new), default=math.inf)
        kept = [(at, entry) for at, entry in kept if at < first] + new
    return kept


def spacing(total: int) -> int:
    """Return the number of iterations between two points of a curve of ``total`` iterations."""
    return max(1, total // STEPS)


def point(iteration: int, step: int) -> int:
    """Return the point of an iteration, counted from 1: the next multiple of ``step``."""
    return -(-iteration // step) * step


def means(unit: str, logged: Iterable[tuple[int, str, float]]) -> list[dict[str, Any]]:
    """Average the values of each quantity at each point of a curve.

    Args:
        unit: "epochs" or "iterations", the key of the point in the result.
        logged: triples of point, name of the quantity and value, in any order; infinite values
            and NaN are left out.

    Returns:
        A dict for each point, in rising order: {unit: point, name: mean rounded to 4 decimals}.
    """
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for at, name, value in logged:
        if not math.isfinite(value):
            continue
        values[at][name].append(value)
    return [
        {unit: at, **{name: round(fmean(v), 4) for name, v in sorted(row.items())}}
        for at, row in sorted(values.items())
    ]
