"""The plan of a comparison: norms, seeds, a folder for each run, and the source of the runs."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import UserError
from ..files import check_folder, read_object, write_text
from ..frameworks.config import as_json, differences
from ..frameworks.run.record import is_complete_record, read_record
from .unit import UNITS

#: The file of a comparison's folder that has its settings.
SETTINGS = "compare.json"
#: The files of a comparison's report, and its other files in the folder.
FILES = "compare.md", "compare.csv", "compare.png", "compare.html", "steps.json"
#: The setting that tells if the file of --weights has changed.
DIGEST = "--weights, SHA-256"
#: The entry of that file that has what earlier calls saw, beside the settings.
HISTORY = "history"
#: The types of its values, by :func:`.read_object`; "read" is of folders from before "looks".
KINDS = {
    HISTORY: {
        "failures": [(str, int, str, str)],
        "results": [(str, int, str, str, int | float)],
        "looks": [(int | float | None, [((str, str), str, str, [int], int)])],
        "read": [(str, str, str, str, [int])],
    }
}


class Source:
    """What a comparison trains: a config, a command, or a function of the user's own.

    A source has ``settings``, and ``training`` if each run is a process; what else it has replaces
    the methods below.
    """

    num_gpus: int = 0
    #: Name of a further test -> the config whose test set it uses.
    tests: Mapping[str, str] = MappingProxyType({})

    def check(self, plan: "Plan") -> None:
        """Raise UserError for norms or seeds of a new plan that contradict the source."""

    def check_models(self, plan: "Plan") -> None:
        """Print each norm's model, if it is known; UserError for mistakes that it shows."""

    def measure_steps(self, plan: "Plan", is_dry: bool = False) -> Any:
        """Print the time of all runs, if it is known."""

    def settings(self, plan: "Plan") -> dict[str, Any]:
        """Return the settings that all runs of a folder share."""
        raise NotImplementedError

    def prepare(self, plan: "Plan") -> dict[str, Any]:
        """Do what comes before the runs, in the locked folder; return further fields of Results."""
        return {}

    def training(self, norm: str, seed: int, folder: Path) -> list[str]:
        """Return the arguments of the package's command that trains a run, or continues it."""
        raise NotImplementedError

    def evaluation(
        self, norm: str, seed: int, test: str, folder: Path, checkpoint: Path
    ) -> list[str]:
        """Return the arguments that evaluate a checkpoint; the test "" is the source's own."""
        return self.training(norm, seed, folder)

    def shown(self, norm: str, seed: int, folder: Path) -> str:
        """Return the command line of a run for a shell."""
        return shown(self.training(norm, seed, folder))

    def code(self, norm: str, seed: int, folder: Path) -> str:
        """Return the digest that the record of a run has if it was made by the present code."""
        return ""

    def check_ended(self, folders: Sequence[Path]) -> None:
        """Raise UserError if runs have ended, but none with a result that can be read."""

    def best_metric(self) -> tuple[str | None, bool]:
        """Return the metric to compare where the plan names none; and if lower is better."""
        return None, False

    def unit(self, metric: str) -> str | None:
        """Return the name of a metric's unit; None if it is unknown."""
        return None


@dataclass(frozen=True)
class Plan:
    """A comparison of norms; the first norm is the baseline."""

    source: Source
    norms: Sequence[str]
    seeds: Sequence[int]
    output: Path
    metric: str | None = None
    #: Points of the metric within which the report calls norms equivalent.
    margin: float | None = None
    higher_is_better: bool = True
    #: Name of the metric's unit; None for the unit that the source or the values tell.
    unit: str | None = None

    def __post_init__(self) -> None:
        names = [folder_name(norm) for norm in self.norms]
        for norm, name in zip(self.norms, names, strict=True):
            if names.count(name) > 1:
                raise UserError(
                    f"norm {norm!r} is given twice; give each norm once, or name it by --arm"
                )
            if not re.search(r"\w", name):
                raise UserError(f"norm {norm!r}: give a name of letters and digits")
        if len({*self.seeds}) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give each seed once")
        if self.unit is not None and self.unit not in UNITS:
            raise UserError(f"unit {self.unit!r}: give one of {', '.join(UNITS)}")
        if self.margin is not None and not 0 < self.margin < inf:
            raise UserError(f"margin {self.margin:g}: give a number of points above 0")
        self.source.check(self)

    @property
    def tests(self) -> list[str]:
        """The names of all tests; the first, "", is the source's own."""
        return ["", *self.source.tests]

    @property
    def folders(self) -> list[Path]:
        """The folders of all runs."""
        return [self.folder(norm, seed) for seed in self.seeds for norm in self.norms]

    def folder(self, norm: str, seed: int, test: str = "") -> Path:
        """Return the folder of a run, or of its evaluation by a further test."""
        return self.output / folder_name(norm) / f"seed{seed}" / test

    def other_code(self) -> str | None:
        """Return which runs other code has made, and what to do; None if there are none."""
        made = []
        for norm in self.norms:
            for seed in self.seeds:
                folder = self.folder(norm, seed)
                code = (record := read_record(folder) or {}).get("code", "")
                if is_complete_record(record) and code != self.source.code(norm, seed, folder):
                    made.append(str(folder))
        if not made:
            return None
        return (
            "Some runs are of other code than the present one; to repeat what it changes, remove "
            f"{', '.join(made)}, or give another output."
        )

    def save_settings(self) -> None:
        """Save the settings in the locked folder of the comparison.

        UserError if the folder has other settings, or if a record is damaged.
        """
        for folder in self.folders:
            check_folder(folder)
            if self.output.resolve() not in folder.resolve().parents:
                raise UserError(f"{folder} leads out of {self.output} by a link; remove the link")
            for test in self.tests:
                read_record(folder / test)
        settings = as_json(self.source.settings(self))
        path = self.output / SETTINGS
        if path.is_file():
            earlier = read_object(path, KINDS)
            for key, before, now in differences(earlier, settings):
                # A norm or a test, and its dataset, may be added, or left out this time.
                is_free = key.startswith(("--arm ", "--test ", "--dataset ", "--import ", HISTORY))
                if is_free and not (key in earlier and key in settings):
                    continue
                if isinstance(before, dict) and isinstance(now, dict):
                    inner, before, now = next(differences(before, now))
                    key = f"{key}: {inner}"
                raise UserError(
                    f"{self.output} was begun with {key} = {before!r}, not {now!r}; give the "
                    "same, or another --output"
                )
            settings = earlier | settings
        elif files := [name for name in FILES if (self.output / name).exists()]:
            raise UserError(
                f"{self.output} has {', '.join(files)}, but no {SETTINGS}; move your own files, or "
                "give another --output"
            )
        write_text(path, json.dumps(settings, indent=1))


def folder_name(norm: str) -> str:
    """Return a norm as the name of a folder: "ILMGN(init='identity')" is "ILMGN-init=identity"."""
    return re.sub(r"[^\w.=,+]+", "-", norm.replace("'", "").replace('"', "")).strip("-")


def shown(arguments: Sequence[str]) -> str:
    """Return the command line of the package's command for a shell."""
    return shlex.join(["python", "-m", "ilm_plugins", *arguments])
