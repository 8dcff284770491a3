"""A metric in a file that a training script writes: JSON, JSON lines, CSV, or printed text.

A name is whole: "best acc" is another metric than "acc". In JSON, the keys and indices that lead to
a number are its name, "test.bbox.0"; objects in a list are records, and have no index.
"""

import csv
import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from ..errors import UserError

#: Rule -> which of a metric's values over a training counts.
RULES = {"last": lambda values: values[-1], "max": max, "min": min}
EXAMPLE = "top1:results.json or loss:metrics.csv:min"
NUMBER = r"[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|(?i:nan|inf(?:inity)?)\b)"
#: The end of a longer text that only begins as a number: 71,5 and 45/60 and 1.2.3 and 3s.
MORE = r"(?:(?:\w|[^\w\s(]\d|[\u00a0\u202f]\d)\S*)?"
#: What is read as its number alone: np.float64(0.9) and tensor(0.9, device='cuda:0').
SCALAR = re.compile(r"\b(?:np\.\w+|tensor)\(([^()\[\],]+)(?:,[^()]*)?\)")
#: Codes of a terminal's colors.
COLOR = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class ScriptMetric:
    """A metric of a script, and the pattern of its file in a run's folder."""

    name: str
    file: str
    rule: str = "last"

    @classmethod
    def of(cls, text: str) -> "ScriptMetric":
        """Return the metric NAME:FILE or NAME:FILE:RULE; a name may have colons."""
        rest, _, rule = text.rpartition(":")
        if rule not in RULES:
            rest, rule = text, "last"
        name, _, file = rest.rpartition(":")
        if not (name and file):
            raise UserError(f"--metric {text!r}: expected NAME:FILE[:RULE], such as {EXAMPLE}")
        try:
            [*Path(os.devnull).glob(file)]  # only whether pathlib takes the pattern
            is_below = ".." not in Path(file).parts
        except (ValueError, NotImplementedError, IndexError):
            is_below = False
        if not is_below:
            raise UserError(
                f"--metric {text!r}: FILE is {file!r}; give the name or the pattern of a file in "
                "{output}, such as results.json or **/metrics.csv"
            )
        return cls(name, file, rule)

    def __str__(self) -> str:
        return f"{self.name}:{self.file}:{self.rule}"

    @property
    def measure(self) -> str:
        """All that chooses the metric's numbers, in words."""
        rule = "" if self.rule == "last" else f", the {self.rule} of each run"
        return f"{self.name} of {self.file}{rule}"

    def choose(self, values: list[float]) -> float:
        """Return the value that counts, by the rule."""
        finite = [value for value in values if not isnan(value)]
        return RULES[self.rule](finite if finite and self.rule != "last" else values)

    def values(self, folder: Path) -> list[float]:
        """Return all values of the metric of the run in a folder; UserError if it has none."""
        path: Path | str = folder
        try:
            path = self._find(folder)
            named = [*_named(path, self.name)]
        except (ValueError, csv.Error, OSError, RecursionError) as error:
            raise self._error(f"{path} cannot be read ({error})") from error
        values = [value for name, value in named if name == self.name]
        if not values:
            names = [name for name, value in named if _number(value) is not None]
            raise self._error(f"{path} has no value of {self.name!r}{_near(self.name, names)}")
        if bad := [value for value in values if _number(value) is None]:
            raise self._error(f"{path} has {repr(bad[0])[:80]}, not a number such as 1234.5")
        return [_number(value) for value in values]

    def _find(self, folder: Path) -> Path:
        """Return the newest file of the pattern: a script that resumes may write one each time."""
        paths = [path for path in folder.glob(self.file) if path.is_file()]
        if paths:
            return max(paths, key=lambda path: path.stat().st_mtime_ns)
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        raise self._error(f"{folder} has no file {self.file!r}{_near(self.file, files)}")

    def _error(self, reason: str) -> UserError:
        return UserError(f"--metric {self}: {reason}")


def _named(path: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and the values of a file in its order; of a printed text, the wanted ones."""
    text = COLOR.sub("", path.read_text(encoding="utf-8-sig", errors="replace"))
    text = SCALAR.sub(r"\1", text)
    if path.suffix == ".csv":
        return _cells(text)
    lines = [line for line in text.splitlines() if line.strip()]
    for content in (text, f"[{','.join(lines)}]"):
        with suppress(ValueError):
            return _leaves(json.loads(content))
    if path.suffix in (".json", ".jsonl", ".ndjson"):
        raise ValueError("it is neither JSON nor JSON lines")
    return _printed(text, wanted)


def _cells(text: str) -> Iterator[tuple[str, Any]]:
    rows = csv.reader(text.splitlines(keepends=True), skipinitialspace=True)
    names = [name.strip() for name in next(rows, ())]
    for row in rows:
        cells = [cell.strip() for cell in row]
        if any(cells[len(names) :]):  # as of a decimal comma
            raise ValueError(f"line {rows.line_num} has more cells than the header")
        yield from ((name, cell) for name, cell in zip(names, cells, strict=False) if cell)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each text, number or null with its keys and indices, dots between them."""
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for record in value:
            yield from _leaves(record, name)
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _printed(text: str, wanted: str) -> Iterator[tuple[str, str]]:
    """Yield each number behind the wanted name, and behind one that has another word before it."""
    name = r"[^\S\n]+".join(map(re.escape, wanted.split()))
    word = r"(?<!\w)(?!(?:nan|inf)\b)[^\W\d]\w*[^\S\n]+"
    pattern = rf"({word})?(?<![\w@/.-]){name}['\"]?(?:[^\S\n]|[:=])+({NUMBER}{MORE})"
    for match in re.finditer(pattern, text):
        yield (match[1] or "") + wanted, match[2]


def _number(value: Any) -> float | None:
    """Return a number, or a text with one, as a float; None for anything else."""
    match = re.fullmatch(rf"({NUMBER})\s*%?", str(value).strip())
    return float(match[1]) if match else None


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, dict.fromkeys(names), n=3, cutoff=0)
    return f"; it has {', '.join(text[:80] for text in near)}" if near else ""
