"""Open a config of either framework: the config itself, its model and its preprocessing."""

import difflib
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import configs
from ..errors import UserError, missing

if TYPE_CHECKING:
    from torch import nn

#: Code by which a config in Python is one of detectron2.
DETECTRON2 = re.compile(
    r"^\s*(from\s+detectron2[\w.]*\s+import|import\s+detectron2)\b", re.MULTILINE
)
#: Code that only configs of MMEngine have, such as ``model = dict(type="ResNet")``.
MMENGINE = re.compile(
    r"^\s*(from|import)\s+mm|\b(_base_|custom_imports|default_scope|read_base)\b"
    r"|\bdict\([^()]*\btype=|[\"']type[\"']\s*:",
    re.MULTILINE,
)
#: Framework of a config, a package of ilm_plugins.frameworks -> the package that it needs.
PACKAGES = {"detectron2": "detectron2", "openmmlab": "mmengine"}


@dataclass(frozen=True)
class Inference:
    """A model, and a function that runs it on images as the model's evaluation does."""

    #: For titles.
    name: str
    model: "nn.Module"
    #: Takes arrays (H, W, 3), RGB, uint8, of any size.
    forward: Callable[[Sequence[Any]], Any]
    #: The default number of images in a call of ``forward``.
    batch_size: int
    #: In words.
    preprocessing: str


@dataclass(frozen=True)
class OpenConfig:
    """A config and its framework: "detectron2", or "openmmlab" for all of MMEngine's."""

    framework: str
    path: str
    config: Any
    device: str

    def build_model(self) -> "nn.Module":
        """The model, with random weights, on the device."""
        return self._module.build_model(self.config).to(self.device)

    def inference(self) -> Inference:
        """The model together with the preprocessing of the config's evaluation."""
        return self._module.inference(self.config, Path(self.path).stem, self.device)

    def training_batches(self, processes: int = 1) -> Iterator[Any]:
        """Batches of the training set, each as one of several processes gets it."""
        return self._steps.training_batches(self.config, processes)

    def outputs(self, model: "nn.Module", batch: Any) -> Any:
        """Return a model's raw outputs, or predictions, for a batch of the training set."""
        return self._steps.outputs(model, batch)

    def training_step(self, processes: int = 1) -> Callable[[], None]:
        """Return a function that trains a new model for one iteration, on the same batch."""
        return self._steps.training_step(self.config, processes)

    def classes_of_test(self) -> tuple[str, ...] | None:
        """Names of the test set's classes, in order; None if the config does not tell."""
        return self._evaluation.classes_of_test(self.config)

    def metric_names(self) -> list[str] | None:
        """Patterns of the test's metrics, * for any characters; None if one is unknown."""
        return self._evaluation.metric_names(self.config)

    def point(self, metric: str) -> float | None:
        """A point of a metric: 1 of a percentage, .01 of a fraction, None if it is unknown."""
        return self._evaluation.point(self.config, metric)

    @property
    def _module(self):
        return _our_module(self.framework, "config")

    @property
    def _evaluation(self):
        return _our_module(self.framework, "evaluation")

    @property
    def _steps(self):
        return _our_module(self.framework, "steps")


def open_config(path: str, overrides: Sequence[str] = (), device: str | None = "cpu") -> OpenConfig:
    """Read a config, a file or ``ilm_plugins://NAME``, with overrides as of the command ``train``.

    ``device=None`` is "cuda" if there is a GPU, else "cpu".

    Raises:
        UserError: there is no such file, or its framework is not installed.
    """
    path = configs.resolve(path)
    framework = framework_of(path)
    module = module_for(framework, "config", path)
    if device is None:
        device = "cuda" if import_module("torch").cuda.is_available() else "cpu"
    return OpenConfig(framework, path, module.load_config(path, overrides, device), device)


def _our_module(framework: str, name: str) -> ModuleType:
    """Import our "config", "steps", "training" or "checkpoints" for a framework."""
    return import_module(f"{__package__}.{framework}.{framework}_{name}")


def module_for(framework: str, name: str, config: str) -> ModuleType:
    """Import our module for the framework of a config; UserError says which package is missing."""
    if not installed(PACKAGES[framework]):
        raise missing(config, PACKAGES[framework])
    try:
        return _our_module(framework, name)
    except ModuleNotFoundError as error:
        raise missing(config, error) from error


def norm_settings(config: Mapping | Sequence, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each setting of a config that may name a norm: its dotted name, and its value."""
    for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
        full = f"{name}.{key}" if name else str(key)
        if isinstance(value, str):
            if "norm" in full.lower():
                yield full, value
        elif isinstance(value, Mapping | Sequence):
            yield from norm_settings(value, full)


def warn_of_misspelt(overrides: Iterable[str], known: Iterable[str]) -> None:
    """Warn of overrides KEY=VALUE of an unknown key that is nearly one of a config's own keys.

    The frameworks add keys that a config lacks, which then have no effect.
    """
    known = {*known}
    for override in overrides:
        # hydra's grammar has + or ++ before keys to add.
        key = re.split(r"[.=]", override.lstrip("+"), maxsplit=1)[0]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near and key not in known:
            warnings.warn(
                f"override {override!r} has no effect: the config has no {key!r}; did you mean "
                f"{near[0]!r}?",
                stacklevel=2,
            )


def unknown_norm(setting: str, norm: str, keys: Iterable[str]) -> UserError:
    """The error of a norm that the framework does not know, with the nearest keys."""
    by_lower_case = {key.lower(): key for key in keys}
    (word,) = re.match(r"\s*(\w*)", norm).groups()
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=3, cutoff=0)
    return UserError(
        f"{setting} is {norm!r}, an unknown norm; near ones are "
        f"{', '.join(by_lower_case[key] for key in near)}; all are {', '.join(keys)}"
    )


def installed(framework: str) -> bool:
    """Whether a package can be imported; a folder of that name without code does not count."""
    spec = importlib.util.find_spec(framework)
    return spec is not None and spec.origin is not None


def framework_of(path: str) -> str:
    """Return "detectron2" or "openmmlab", by a config's suffix and, of a .py, its content."""
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "does not exist"
        choice = f"a path, or {configs.SCHEME}NAME for one of this package's configs"
        raise UserError(f"config file {path!r} {problem}; give {choice}")
    suffix = Path(path).suffix
    if suffix not in (".yaml", ".yml", ".py"):
        raise UserError(f"config file {path!r} is no .yaml or .py file; give the path of one")
    if suffix != ".py":
        return "detectron2"
    code = Path(path).read_text(encoding="utf-8", errors="replace")
    return "detectron2" if DETECTRON2.search(code) or not MMENGINE.search(code) else "openmmlab"
