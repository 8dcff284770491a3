"""The source of a comparison whose runs are commands ``train`` of one config; its checks."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError, say
from ..frameworks import OpenConfig, open_config
from ..frameworks.config import AS_IS, differences
from ..frameworks.length import Length
from ..frameworks.run.processes import available_gpus
from ..layers.registry import norm_key
from . import compared_models, start_weights
from .answers import warning_of_unconverted
from .compared_config import ComparedConfig, call_on_device
from .plan import DIGEST, Plan, Source, folder_name
from .results import OWN_TEST


@dataclass(frozen=True)
class ConfigSource(ComparedConfig, Source):
    """A config whose norms are compared."""

    #: A checkpoint from which all runs start, each converted to its norm.
    weights: Path | None = None
    #: Name of a further test -> the config whose test set it uses.
    tests: dict[str, str] = field(default_factory=dict)

    def check(self, plan: Plan) -> None:
        for name in self.tests:
            is_word = folder_name(name) == name and re.search(r"\w", name)
            if not is_word or name == OWN_TEST:
                raise UserError(f"--test {name!r}: give a name of letters and digits, not 'test'")

    def check_models(self, plan: Plan) -> None:
        """Print the keys and the norms of all models; UserError for mistakes in the config."""
        self.registrations.register(self.config)
        for opened in (self.opened, *map(self.open, self.arms)):
            opened.check_training(self.registrations.names)
        self.opened.check_test()
        kept = self.kept_norms(self.own_norms)
        for what, norms in (("get the norm", self.own_norms), ("keep their norm", kept)):
            if norms:
                say(f"keys that {what}:")
                say(*(f"  {key}  {norm}" for key, norm in norms.items()))
        if file := self.unconverted(plan.norms):
            say(warning_of_unconverted(file))
        models = compared_models.build_models(self, plan.norms)
        if self.start_state is not None:
            model = self.open(plan.norms[0], "cpu").build_model()
            start_weights.check_fits(self.weights, self.start_state, model)
        say("norms of the models:")
        say(*(f"  {norm}: {norms}" for norm, norms in models.items()))
        if folder := self.opened.settings.get(key := self.opened.shared_folder):
            raise UserError(f"{key} = {folder!r}: all runs would write to it; remove it")
        self.check_tests(plan.norms)
        lengths = [f"  {length}" for norm in plan.norms if (length := self.length(norm))]
        if lengths:
            say("length of each run:", *dict.fromkeys(lengths))

    def settings(self, plan: Plan) -> dict[str, Any]:
        """Return the options and the settings of the config."""
        options = {
            "--at": sorted(self.own_norms),
            "--weights": self.weights,
            "--gpus": self.num_gpus,
        }
        if self.weights is not None:
            options[DIGEST] = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        options |= self.registrations.settings()
        options |= self.arms.settings(plan.norms)
        keys_of_run = {*self.opened.keys.values()} - {self.opened.keys["weights"]}
        config = self.opened.settings
        options |= {k: v for k, v in config.items() if k not in keys_of_run}
        for name, other in self.opened_tests.items():
            options[f"--test {name}"] = other.settings_of_test()
        return options

    @cached_property
    def start_state(self) -> Mapping[str, Any] | None:
        """The state dict of the file of --weights."""
        return None if self.weights is None else start_weights.read_weights(self.weights)

    def prepare(self, plan: Plan) -> dict[str, Any]:
        """Write each norm's start, and measure its training step."""
        # A machine that submits jobs may have no GPU.
        here = self if available_gpus() else replace(self, num_gpus=0)
        if self.start_state is not None:
            args = plan.norms, plan.output, self.start_state
            call_on_device(start_weights.write_starts, here, *args)
        return {"steps": self.measure_steps(plan), "unconverted": self.unconverted(plan.norms)}

    def measure_steps(self, plan: Plan, is_dry: bool = False) -> dict[str, dict[str, float]]:
        """Measure each norm's training step, and print the time of all runs."""
        file = plan.output / compared_models.FILE
        steps = compared_models.measured_steps(self, plan.norms, file, is_dry)
        lengths = {norm: self.length(norm) for norm in steps}
        times = {
            norm: steps[norm]["seconds"] * length.iterations
            for norm, length in lengths.items()
            if length and length.iterations
        }
        if times:
            texts = [f"{timedelta(seconds=round(s))} with {norm}" for norm, s in times.items()]
            total = timedelta(seconds=round(sum(times.values()) * len(plan.seeds)))
            texts.append(f"of all {len(times) * len(plan.seeds)} runs {total}")
            say(f"all steps of a run take about {', '.join(texts)}; loading and tests add to it")
        return steps

    @cached_property
    def _lengths(self) -> dict[tuple[str, ...], Length | None]:
        return {}

    def length(self, norm: str) -> Length | None:
        """Return the length of a norm's runs; the training set is read once for all norms."""
        own = (*self.arms[norm].overrides,)
        if own not in self._lengths:
            self._lengths[own] = self.open(norm).length(max(1, self.num_gpus))
        return self._lengths[own]

    def unconverted(self, norms: Sequence[str]) -> str | None:
        """Return the file that the config loads into norms of ours without --weights, or None."""
        if self.weights is not None or not any(norm_key(self.arms[norm].norm) for norm in norms):
            return None
        return self.opened.pretrained(self.own_norms)

    def code(self, norm: str, seed: int, folder: Path) -> str:
        return self.registrations.code

    def training(self, norm: str, seed: int, folder: Path) -> list[str]:
        values = {"seed": seed, "folder": folder}
        if self.weights is not None:
            values["weights"] = folder.parent / start_weights.START
        return self._train(self.config, norm, ["--resume"], values)

    def evaluation(
        self, norm: str, seed: int, test: str, folder: Path, checkpoint: Path
    ) -> list[str]:
        values = {"folder": folder, "weights": checkpoint}
        return self._train(self.tests.get(test, self.config), norm, ["--eval-only"], values)

    def _train(
        self, config: str, norm: str, flags: Sequence[str], values: dict[str, Any]
    ) -> list[str]:
        options = ["--config-file", config, "--num-gpus", str(self.num_gpus), *flags]
        options += self.registrations.arguments()
        if self.unsafe:
            options.append("--unsafe")
        overrides = self.overrides
        if config != self.config:
            overrides = self.opened.without_test_set(overrides)
        values = self.opened.overrides(**values)
        return ["train", *options, *overrides, *self.norm_overrides(norm), *values]

    @cached_property
    def opened_tests(self) -> dict[str, OpenConfig]:
        """Name of each further test -> its config, opened."""
        overrides = self.opened.without_test_set(self.overrides)
        return {
            name: open_config(config, overrides, self.device) for name, config in self.tests.items()
        }

    def check_tests(self, norms: Sequence[str]) -> None:
        """Raise UserError unless the configs of further tests have the same model."""
        # Each norm is given to the keys of a test's config, too, but as-is is given to none.
        replaced = [] if AS_IS in [self.arms[norm].norm for norm in norms] else [*self.own_norms]
        for name, other in self.opened_tests.items():
            self.opened.check_same_model(other, name, replaced)
            other.check_test()
            self._check_same_classes(other, name)

    def _check_same_classes(self, other: OpenConfig, name: str) -> None:
        """Raise UserError if both test sets are known to have other classes, or another order."""
        both = [opened.classes_of_test() for opened in (self.opened, other)]
        if None in both:
            return
        for i, expected, other_name in differences(*(dict(enumerate(classes)) for classes in both)):
            raise UserError(
                f"--test {name}: class {i} of its test set is {other_name!r}, expected "
                f"{expected!r}; "
                "give a config whose metainfo or dataset has the same classes in the same order"
            )

    def best_metric(self) -> tuple[str | None, bool]:
        return self.opened.main_metric()

    def unit(self, metric: str) -> str | None:
        return self.opened.unit(metric)
