"""Curves of a training, from what a framework has logged."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

#: Points of a curve over iterations.
STEPS = 100


def entries(path: Path) -> list[dict[str, Any]]:
    """What a file has logged, an object a line; one that a full disk cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def continued(sessions: Iterable[list[tuple[int, dict]]]) -> list[tuple[int, dict]]:
    """The entries of a training, from those of its sessions: (epoch or iteration, entry), in order.

    Where one went on from a checkpoint, what it logged anew takes the place of what was there.
    """
    kept: list[tuple[int, dict]] = []
    for new in sessions:
        first = min((at for at, _ in new), default=math.inf)
        kept = [(at, entry) for at, entry in kept if at < first] + new
    return kept


def spacing(total: int) -> int:
    """Iterations from a point to the next."""
    return max(1, total // STEPS)


def point(iteration: int, step: int) -> int:
    """The point, a multiple of ``step``, that an iteration belongs to; counted from 1."""
    return -(-iteration // step) * step


def means(unit: str, logged: Iterable[tuple[int, str, float]]) -> list[dict[str, Any]]:
    """The means of each quantity at each point, from (point, quantity, value), in order."""
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for at, name, value in logged:
        values[at][name].append(value)
    return [
        {unit: at, **{name: round(fmean(v), 4) for name, v in sorted(row.items())}}
        for at, row in sorted(values.items())
    ]
