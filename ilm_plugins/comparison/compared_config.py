"""A config in which each compared norm takes the place of the config's own norms."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import UserError
from ..frameworks import OpenConfig, open_config
from ..frameworks.registrations import Registrations
from ..layers.registry import norm_key
from ..parent_process import end_with_parent
from ..trust import loading
from .arms import Arms


@dataclass(frozen=True)
class ComparedConfig:
    """A config, and how it is opened with a norm."""

    config: str
    #: Keys that get the norm; empty for each key where the config names a norm.
    at: Sequence[str] = ()
    overrides: Sequence[str] = ()
    arms: Arms = field(default_factory=Arms)
    num_gpus: int = 0
    registrations: Registrations = field(default_factory=Registrations)
    #: Whether checkpoints and yaml configs may run code.
    unsafe: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @cached_property
    def opened(self) -> OpenConfig:
        return open_config(self.config, self.overrides, self.device)

    @cached_property
    def own_norms(self) -> dict[str, str]:
        """Each key that gets the norm -> the config's own norm; UserError if there is no key.

        By default the places of this package's layers, if the config has any, else all that are
        trained.
        """
        norm_of_key = self.opened.places()
        norm_of_key = {
            key: norm for key, norm in norm_of_key.items() if norm_key(norm)
        } or norm_of_key
        if self.at:
            norms = self.opened.norms()
            norm_of_key = {key: norms.get(key, "none") for key in self.at}
            self.opened.with_norm("BN", self.at)
        if not norm_of_key:
            kept = "".join(f"; {key} keeps {norm}" for key, norm in self.kept_norms(()).items())
            advice = f"give a place, such as --at {self.opened.example}"
            raise UserError(f"{self.config} names no norm to replace{kept}; {advice}")
        return norm_of_key

    def kept_norms(self, replaced: Collection[str]) -> dict[str, str]:
        """Return each key that is not replaced -> the config's norm, and why it stays, in words."""
        others = "--at names others" if self.at else "layers of ilm_plugins alone are replaced"
        return {
            key: f"{norm}: {self.opened.why_kept(key, norm) or others}"
            for key, norm in self.opened.norms().items()
            if key not in replaced
        }

    def norm_overrides(self, norm: str) -> list[str]:
        """Return the overrides that give a norm to all keys, and its own overrides."""
        arm = self.arms[norm]
        return [*self.opened.with_norm(arm.norm, self.own_norms), *arm.overrides]

    def open(self, norm: str, device: str | None = None) -> OpenConfig:
        """Open the config with a norm, by default for the device of the runs."""
        overrides = [*self.overrides, *self.norm_overrides(norm)]
        return open_config(self.config, overrides, device or self.device)


def call_on_device(function: Callable[..., Any], config: ComparedConfig, *args: Any) -> Any:
    """Call a function of a config, for a GPU in a new process, whose end frees its memory there."""
    if config.num_gpus:
        return in_own_process(function, config, *args)
    return function(config, *args)


def in_own_process(function: Callable[..., Any], config: ComparedConfig, *args: Any) -> Any:
    """Call a function of a config, and what it takes, in a new process."""
    fresh = replace(config)  # without the open configs, which cannot be sent
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with_parent, (os.getpid(),)) as pool:
        try:
            return pool.submit(_call, function, fresh, *args).result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that builds the models was killed, perhaps for want of memory; give a "
                "smaller batch, or free memory"
            ) from error


def _call(function: Callable[..., Any], config: ComparedConfig, *args: Any) -> Any:
    """Call a function in a new process, which knows neither datasets, imports nor --unsafe."""
    with loading(config.unsafe):
        config.registrations.register(config.config)
        return function(config, *args)
