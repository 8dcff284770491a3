"""The runs of a comparison: the norms at their places, each run's folder and command."""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import UserError
from ...files import check_folder, read_object, write_text
from ...frameworks import OpenConfig, framework_of, open_config
from ...frameworks.registrations import Registrations
from ...frameworks.run_record import read
from ...frameworks.variants import AS_IS, Variants, as_json, variants
from ...layers.registry import norm_key
from ..data.detectron2_datasets import register_datasets

#: The name of the config's own test in tables.
OWN_TEST = "test"
#: The file of a comparison's folder that has its settings.
SETTINGS = "compare.json"
#: The setting that tells if the file of --weights has changed.
DIGEST = "--weights, SHA-256"


class AnyPlan:
    """What all comparisons have: norms and seeds, a folder for each run, settings.

    ``training`` returns the arguments of a command of the package that trains a run, which writes
    the run's record.
    """

    norms: Sequence[str]
    seeds: Sequence[int]
    output: Path
    metric: str | None = None
    #: Points of the metric within which the report calls norms equivalent.
    margin: float | None = None
    higher_is_better: bool = True
    weights: Path | None = None
    tests: Mapping[str, str] = MappingProxyType({})
    overrides_of_norm: Mapping[str, Sequence[str]] = MappingProxyType({})
    unconverted: str | None = None

    def check_runs(self) -> None:
        """Raise UserError if two runs would have one folder."""
        names = [folder_name(norm) for norm in self.norms]
        for norm, name in zip(self.norms, names, strict=True):
            if names.count(name) > 1:
                raise UserError(f"norm {norm!r} is given twice; give each norm once")
        if len({*self.seeds}) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give each seed once")

    @property
    def folders(self) -> list[Path]:
        """The folders of all runs."""
        return [self.folder(norm, seed) for seed in self.seeds for norm in self.norms]

    def folder(self, norm: str, seed: int, test: str = "") -> Path:
        """Return the folder of a run, or of its evaluation by a further test."""
        return self.output / folder_name(norm) / f"seed{seed}" / test

    def best_metric(self) -> str | None:
        """Return the metric to compare where ``metric`` does not name one."""
        return None

    def point(self, metric: str) -> float | None:
        """Return a point of a metric, .01 of a fraction or a loss; None for an unknown unit."""
        return None if self.higher_is_better else 0.01

    def curve(self, folder: Path) -> list[float]:
        """Return the values of the metric that the user's own code wrote to the folder of a run."""
        return []

    def prepare(self) -> None:
        """Do what comes before the runs, in the locked folder."""

    def check_found(self) -> None:
        """Raise UserError if runs have ended, but none with a result that can be read."""

    def check_settings(self) -> None:
        """Save the settings in the locked folder of the comparison.

        UserError if the folder has other settings, or if a record is damaged.
        """
        for folder in self.folders:
            check_folder(folder)
            for test in ("", *self.tests):
                read(folder / test)
        settings = as_json(self._settings())
        path = self.output / SETTINGS
        if path.is_file():
            earlier = read_object(path)
            # A norm or a test, and its dataset, may be added, or left out this time.
            not_compared = {
                key
                for key in earlier.keys() ^ settings.keys()
                if key.startswith(("--for ", "--test ", "--dataset ", "--import "))
            }
            if found := _first_difference(earlier, settings, not_compared):
                key, before, now = found
                raise UserError(
                    f"{self.output} was begun with {key} = {before!r}, not {now!r}; give the "
                    "same, or another --output"
                )
            settings = earlier | settings
        write_text(path, json.dumps(settings, indent=1))


@dataclass(frozen=True)
class Plan(AnyPlan):
    """A comparison of norms in a config; the first norm is the baseline."""

    config: str
    norms: Sequence[str]
    seeds: Sequence[int]
    output: Path
    #: Keys where the norms stand; empty for every place where the config has a norm.
    at: Sequence[str] = ()
    #: A checkpoint from which all runs start, each converted to its norm.
    weights: Path | None = None
    #: Name of a further test -> the config whose test set it uses.
    tests: dict[str, str] = field(default_factory=dict)
    #: Norm -> overrides that only its runs have.
    overrides_of_norm: dict[str, Sequence[str]] = field(default_factory=dict)
    metric: str | None = None
    margin: float | None = None
    higher_is_better: bool = True
    num_gpus: int = 0
    overrides: Sequence[str] = ()
    registrations: Registrations = field(default_factory=Registrations)
    #: Whether checkpoints and yaml configs may run code.
    unsafe: bool = False

    def __post_init__(self) -> None:
        self.check_runs()
        if unknown := [norm for norm in self.overrides_of_norm if norm not in self.norms]:
            raise UserError(f"--for {unknown[0]!r}: give one of {', '.join(self.norms)}")
        for name in self.tests:
            if folder_name(name) != name or not re.search(r"\w", name):
                raise UserError(f"--test {name!r}: give a name of letters and digits")
            if name == OWN_TEST:
                raise UserError(f"--test {name!r} is the config's own test; give another name")

    def register(self) -> None:
        """Have this process know all datasets and imports."""
        if framework_of(self.config) == "detectron2":
            register_datasets()
        self.registrations.register(self.config)

    @cached_property
    def variants(self) -> Variants:
        return variants(open_config(self.config, self.overrides, self.device))

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @cached_property
    def places(self) -> dict[str, str]:
        """Key -> the config's own norm; UserError if there is no place."""
        places = self.variants.places()
        if self.at:
            norms = self.variants.norms()
            places = {key: norms.get(key, "none") for key in self.at}
        if not places:
            example = self.variants.example
            raise UserError(f"{self.config} names no norm; give a place, such as --at {example}")
        return places

    @cached_property
    def unconverted(self) -> str | None:
        """The file that the config loads into norms of ours without --weights, or None."""
        has_ours = any(norm_key(norm) for norm in self.norms)
        if not has_ours or self.weights is not None:
            return None
        return self.variants.pretrained(self.places)

    def norm_overrides(self, norm: str) -> list[str]:
        """Return the overrides that put a norm at all places, and its own overrides."""
        placing = self.variants.with_norm(norm, self.places)
        return [*placing, *self.overrides_of_norm.get(norm, ())]

    def open(self, norm: str, device: str | None = None) -> OpenConfig:
        """Open the config with a norm, by default for the device of the runs."""
        overrides = [*self.overrides, *self.norm_overrides(norm)]
        return open_config(self.config, overrides, device or self.device)

    def start(self, norm: str) -> Path:
        """Return the checkpoint from which the runs of a norm start."""
        return self.output / folder_name(norm) / "weights.pth"

    def training(self, norm: str, seed: int) -> list[str]:
        """Return the arguments that train a run; the same arguments continue it."""
        places = {"seed": seed, "folder": self.folder(norm, seed)}
        if self.weights is not None:
            places["weights"] = self.start(norm)
        return self._train(self.config, norm, ["--resume"], places)

    def shown(self, norm: str, seed: int) -> str:
        """Return the command line of a run for a shell."""
        return shown(self.training(norm, seed))

    def evaluation(self, norm: str, seed: int, test: str, checkpoint: Path) -> list[str]:
        """Return the arguments that evaluate a checkpoint; the test "" is the config's own."""
        places = {"folder": self.folder(norm, seed, test), "weights": checkpoint}
        return self._train(self.tests.get(test, self.config), norm, ["--eval-only"], places)

    def _train(
        self, config: str, norm: str, flags: Sequence[str], values: dict[str, Any]
    ) -> list[str]:
        options = ["--config-file", config, "--num-gpus", str(self.num_gpus), *flags]
        options += self.registrations.words()
        if self.unsafe:
            options.append("--unsafe")
        overrides = self.overrides if config == self.config else self.overrides_of_tests
        values = self.variants.overrides(**values)
        return ["train", *options, *overrides, *self.norm_overrides(norm), *values]

    @property
    def overrides_of_tests(self) -> list[str]:
        """The overrides for further tests, without the overrides of the config's own test set."""
        return self.variants.without_test_set(self.overrides)

    def check_folders(self) -> None:
        """Raise UserError if the config would have all runs write to one folder."""
        key = self.variants.shared_folder
        if folder := self.variants.settings().get(key):
            raise UserError(f"{key} = {folder!r}: all runs would write to it; remove it")

    @cached_property
    def variants_of_tests(self) -> dict[str, Variants]:
        """Name of each further test -> the variants of its config."""
        overrides = self.overrides_of_tests
        return {
            name: variants(open_config(config, overrides, self.device))
            for name, config in self.tests.items()
        }

    def check_tests(self) -> None:
        """Raise UserError unless the configs of further tests have the same model."""
        # Each norm is put at the places of a test's config, too, but as-is puts none there.
        replaced = [] if AS_IS in self.norms else [*self.places]
        for name, other in self.variants_of_tests.items():
            self.variants.check_same_model(other, name, replaced)
            other.check_test()
            self._check_same_classes(other, name)

    def _check_same_classes(self, other: Variants, name: str) -> None:
        """Raise UserError if both test sets are known to have other classes, or another order."""
        ours, theirs = (one.opened.classes_of_test() for one in (self.variants, other))
        if ours is None or theirs is None or ours == theirs:
            return
        pairs = enumerate(zip_longest(ours, theirs))
        i, (expected, found) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise UserError(
            f"--test {name}: class {i} of its test set is {found!r}, expected {expected!r}; give a "
            "config whose metainfo or dataset has the same classes in the same order"
        )

    def check_metric(self) -> None:
        """Raise UserError if the config tells that its test does not have the wanted metric."""
        names = self.variants.opened.metric_names()
        if self.metric is None or names is None:
            return
        endings = names
        # MMEngine's prefixes are free, detectron2's are tasks.
        if "/" not in self.metric or self.variants.opened.framework != "detectron2":
            endings = [name.rpartition("/")[2] for name in names]
        if not any(fnmatchcase(f"/{self.metric}", f"*/{ending}") for ending in endings):
            raise UserError(f"--metric {self.metric!r}: the test has {', '.join(names)}; give one")

    def best_metric(self) -> str | None:
        return self.variants.main_metric()

    def point(self, metric: str) -> float | None:
        return self.variants.opened.point(metric)

    def _settings(self) -> dict[str, Any]:
        """Return the settings that all runs of a folder share: the options and the config."""
        options = {"--at": sorted(self.places), "--weights": self.weights, "--gpus": self.num_gpus}
        if self.weights is not None:
            options[DIGEST] = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        options |= self.registrations.settings()
        for norm in self.norms:
            options[f"--for {norm}"] = list(self.overrides_of_norm.get(norm, ()))
        keys_of_run = {*self.variants.keys.values()} - {self.variants.keys["weights"]}
        config = self.variants.settings()
        options |= {k: v for k, v in config.items() if k not in keys_of_run}
        for name, other in self.variants_of_tests.items():
            options[f"--test {name}"] = other.settings_of_test()
        return options


def _first_difference(
    earlier: dict[str, Any], settings: dict[str, Any], not_compared: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return a key with two values, and both; None for a missing one. None if all are equal."""
    for key in dict.fromkeys([*earlier, *settings]):
        before, now = earlier.get(key), settings.get(key)
        if key in not_compared or before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            if inner := _first_difference(before, now):
                return f"{key}: {inner[0]}", *inner[1:]
            continue
        return key, before, now
    return None


def folder_name(norm: str) -> str:
    """Return a norm as the name of a folder: "ILMGN(init='identity')" is "ILMGN-init=identity"."""
    return re.sub(r"[^\w.=,+]+", "-", norm.replace("'", "").replace('"', "")).strip("-")


def shown(arguments: Sequence[str]) -> str:
    """Return the command line of the package's command for a shell."""
    return shlex.join(["python", "-m", "ilm_plugins", *arguments])
