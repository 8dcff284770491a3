"""Tables of what was found, as CSV, and summaries in words."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import replacing


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, whole or not at all; numbers to six digits, NaN as nothing."""
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def write_summary(folder: Path, lines: Iterable[str]) -> str:
    """Write ``summary.txt``; returns its text."""
    text = "\n".join(lines)
    with replacing(folder / "summary.txt", "w") as file:
        file.write(f"{text}\n")
    return text


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
