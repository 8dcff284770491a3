"""A metric in a file that a training script writes: JSON, JSON lines, CSV, or printed text."""

import csv
import difflib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from ...errors import UserError

#: Rule -> which of a metric's values over a training counts.
RULES = {"last": lambda values: values[-1], "max": max, "min": min}
EXAMPLE = "top1:results.json or loss:metrics.csv:min"


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

    def choose(self, values: list[float]) -> float:
        """Return the value that counts, by the rule."""
        finite = [value for value in values if not isnan(value)]
        return RULES[self.rule](finite if finite and self.rule != "last" else values)

    def values(self, folder: Path) -> list[float]:
        """Return all values of the metric of the run in a folder; UserError if it has none."""
        path: Path | str = folder
        try:
            path = self._find(folder)
            found = [*self._values(path)]
        except (ValueError, csv.Error, OSError, RecursionError) as error:
            raise self._error(f"{path} cannot be read ({error})") from error
        if bad := [value for value in found if _number(value) is None]:
            raise self._error(f"{path} has {repr(bad[0])[:80]}, which is not a number")
        if not found:
            raise self._error(f"{path} has no value of {self.name!r}")
        return [_number(value) for value in found]

    def _find(self, folder: Path) -> Path:
        """Return the newest file of the pattern: a script that resumes may write one each time."""
        found = [path for path in folder.glob(self.file) if path.is_file()]
        if found:
            return max(found, key=lambda path: path.stat().st_mtime_ns)
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        raise self._error(f"{folder} has no file {self.file!r}{_near(self.file, files)}")

    def _values(self, path: Path) -> Iterator[Any]:
        """Yield the values of the metric in a file, in its order."""
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, skipinitialspace=True)
                columns = [name.strip() for name in rows.fieldnames or ()]
                self._check(columns, path)
                rows.fieldnames = columns
                for row in rows:
                    if any(cell.strip() for cell in row.get(None, ())):  # as of a decimal comma
                        raise ValueError(f"line {rows.line_num} has more cells than the header")
                    if (row[self.name] or "").strip():
                        yield row[self.name]
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix in (".json", ".jsonl", ".ndjson"):
            leaves = [*_leaves(_json(text))]
            numbers = [n for n, one in leaves if n == self.name or _number(one) is not None]
            self._check(numbers, path)
            yield from (one for name, one in leaves if name == self.name)
            return
        name = r"[^\S\n]+".join(map(re.escape, self.name.split()))
        number = r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf))"
        # Digits behind a comma or another separator, which are not to be cut off.
        more = r"([,'_\u2019\u00a0\u202f]\d\S*)?"
        pattern = rf"(?<![\w@/.-]){name}['\"]?(?:[^\S\n]|[:=])+{number}{more}(?![\w.])"
        for match in re.finditer(pattern, text):
            if match[2]:
                line = 1 + text.count("\n", 0, match.start(1))
                raise ValueError(f"line {line}: {match[0]!r} has a number unlike 1234.5")
            yield match[1]

    def _check(self, names: list[str], path: Path) -> None:
        if self.name not in names:
            raise self._error(f"{path} has no {self.name!r}{_near(self.name, names)}")

    def _error(self, reason: str) -> UserError:
        return UserError(f"--metric {self}: {reason}")


def _json(text: str) -> Any:
    """Return the value of JSON, or a list of the lines' values."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each text, number or null with its keys, dots between them; lists have no keys."""
    if isinstance(value, list):
        for entry in value:
            yield from _leaves(entry, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _number(value: Any) -> float | None:
    """Return a number, or a text with one, as a float; None for anything else."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, dict.fromkeys(names), n=3, cutoff=0)
    return f"; it has {', '.join(near)}" if near else ""
