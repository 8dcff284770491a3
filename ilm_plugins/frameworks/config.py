"""An open config of any kind, and arguments of ``train`` that change its norms or a run."""

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from .. import configs
from ..errors import UserError, printable
from .config_files import framework_of, module_for, unknown_norm

if TYPE_CHECKING:
    from torch import nn

#: The norm that stands for the config's own norms.
AS_IS = "as-is"
#: Where an object lies in memory, at the end of its text.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


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
    """A config, the model, data and training that it describes, and its variants.

    A subclass for each kind of config has these methods, too:

    - ``read(path, overrides, device, amp)``, a class method: read a file;
    - ``register(datasets)``, a class method, before a file is read: register the datasets of
      ``--dataset``, each a name, a json and a folder;
    - ``inference()``: the model and the preprocessing of its evaluation, an :class:`Inference`;
    - ``run(record)``: train, or evaluate, in this process of a run;
    - ``length(processes=1)``: the :class:`.Length` of the training in several processes, or None;
    - ``training_batches(processes=1)``: batches, each as one of several processes gets it;
    - ``training_step(processes=1)``: a function that trains a new model for one iteration, on the
      same batch each time;
    - ``outputs(model, batch)``: raw outputs, or predictions, for a batch of the training set;
    - ``classes_of_test()``: names of the test set's classes, in order, or None;
    - ``unit(metric)``: "percent", "fraction" or None.

    None means that the config does not tell. ``build_model`` needs ``_build()``, and
    ``_is_unknown(key, norm, error)``, whether a KeyError of building is of the norm of a key.
    """

    path: str
    #: As its framework reads it.
    config: Any
    device: str

    #: "detectron2", or "openmmlab" for all of MMEngine's.
    framework: ClassVar[str]
    #: Packages whose versions a record has, where they are imported.
    packages: ClassVar[tuple[str, ...]]
    #: Whether an evaluation may augment the test images.
    has_tta = False
    #: The entry of a checkpoint that is the state dict.
    checkpoint_entry: ClassVar[str]
    #: Keys of the framework's own norms.
    norm_keys: ClassVar[Iterable[str]]
    #: What a run sets -> its key.
    keys: ClassVar[dict[str, str]]
    #: The key of the model, and settings of it that do not change the model.
    model, ignored_settings = "model", ()
    #: Names of the settings that name a norm, and a key that may take one, for advice.
    norm_names: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str]
    #: Name of the setting that freezes a backbone's first stages, and the value that freezes none.
    freezing: ClassVar[tuple[str, int]] = ("freeze_at", 0)
    #: Key of a folder for the checkpoints of all runs.
    shared_folder = ""
    #: Keys of the test set; keys below them are of it, too.
    test_set: ClassVar[tuple[str, ...]]
    #: Key of mixed precision, True or the type of the optimizer's wrapper.
    amp: ClassVar[str]
    #: Number of arguments of the command line for an override.
    arguments_per_override = 1

    # ---- the model

    def build_model(self) -> "nn.Module":
        """The model, with random weights, on the device; UserError for an unknown norm."""
        with self.explaining_norms():
            return self._build().to(self.device)

    @contextmanager
    def explaining_norms(self) -> Iterator[None]:
        """Replace a KeyError by a UserError if the framework does not know a norm of the config."""
        try:
            yield
        except KeyError as error:
            from ..layers.registry import NORMS

            for key, norm in self.settings.items():
                is_norm = "norm" in key.lower() and isinstance(norm, str)
                if is_norm and self._is_unknown(key, norm, error):
                    raise unknown_norm(key, norm, [*NORMS, *self.norm_keys]) from error
            raise

    # ---- the settings

    def contents(self) -> Mapping[str, Any]:
        return self.config

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Key -> value of all settings at the first use; keys have dots, and numbers in lists."""
        return dict(flat(self.contents()))

    def settings_of_test(self) -> dict[str, Any]:
        """Return the settings that may change a test: all but the model's and a run's own."""
        of_run = {*self.keys.values()}
        settings = self.settings.items()
        return {k: v for k, v in settings if k not in of_run and not k.startswith(f"{self.model}.")}

    def settings_of_norms(self) -> dict[str, Any]:
        """Return the settings of the model's norms, as a JSON file keeps them."""
        return as_json({k: v for k, v in self.settings.items() if self.is_of_norm(k) and v})

    def is_of_norm(self, key: str) -> bool:
        return key.rpartition(".")[2] in self.norm_names

    def uses_amp(self) -> bool:
        """Return whether the config's training is in mixed precision."""
        return str(self.settings.get(self.amp)).endswith(("True", "AmpOptimWrapper"))

    def check_test(self) -> None:
        """Raise UserError if the command ``train`` cannot do the config's test."""

    def check_training(self, given: Collection[str]) -> None:
        """Raise UserError if the config's training ignores a setting or the ``--dataset`` given."""

    def main_metric(self) -> tuple[str | None, bool]:
        """Return the metric that chooses the best checkpoint, or None; and if lower is better."""
        return None, False

    def pretrained(self, places: Iterable[str]) -> str | None:
        """Return the file of weights from which the model, or its part with places, starts."""
        return self.settings.get(self.keys["weights"]) or None

    def check_same_model(self, other: "OpenConfig", name: str, places: Sequence[str]) -> None:
        """Raise UserError unless both configs have one model, apart from the norms at places."""
        both = as_json(self.settings), as_json(other.settings)
        for key, ours, theirs in differences(*both):
            is_ignored = key in self.ignored_settings or is_below(key, places)
            if key.startswith(f"{self.model}.") and not is_ignored:
                raise UserError(
                    f"--test {name}: its {key} is {theirs!r}, expected {ours!r}; give a config of "
                    "the same model"
                )

    # ---- overrides

    def override(self, key: str, value: Any) -> list[str]:
        """Return an override as arguments of the command line."""
        return [f"{key}={value}"]

    def overrides(self, **values: Any) -> list[str]:
        """Return the overrides of a run's ``seed``, ``folder`` and ``weights``."""
        return [
            part for name, value in values.items() for part in self.override(self.keys[name], value)
        ]

    def without_test_set(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides without the overrides of the config's test set."""
        return [
            argument
            for override in self.each_override(overrides)
            if not is_below(override[0].partition("=")[0], self.test_set)
            for argument in override
        ]

    def each_override(self, arguments: Sequence[str]) -> list[Sequence[str]]:
        """Split arguments of the command line by overrides."""
        size = self.arguments_per_override
        return [arguments[i : i + size] for i in range(0, len(arguments), size)]

    def norms(self) -> dict[str, str]:
        """Return key -> norm of each place where the config names a norm."""
        # A norm may also be a function or a class, which is called with the number of channels.
        return {
            key: norm_name(norm)
            for key, norm in self.settings.items()
            if self.is_of_norm(key) and norm and (isinstance(norm, str) or callable(norm))
        }

    def places(self) -> dict[str, str]:
        """Return key -> norm of the places that get another norm by default."""
        return {key: norm for key, norm in self.norms().items() if not self.why_kept(key, norm)}

    def why_kept(self, key: str, norm: str) -> str:
        """Say why a place keeps its norm by default; "" if it does not."""
        from ..layers.registry import norm_key

        if norm_key(norm):
            return ""
        if norm.startswith("Frozen"):
            return "it is not trained"
        name, of_none = self.freezing
        for above in self.parts_above(key):
            stages = self.settings.get(f"{above}.{name}")
            if isinstance(stages, int) and stages > of_none:
                return f"{above}.{name} = {stages} freezes norms"
        return ""

    def parts_above(self, key: str) -> list[str]:
        """Return the keys of the parts that a key of a norm is in, the innermost first."""
        names = key.split(".")
        return [".".join(names[:end]) for end in range(len(names) - 1, 0, -1)]

    def describe_norms(self, model: "nn.Module", asked: Collection[str] = ()) -> str:
        """Return the numbers of a model's norms, and the keys whose part of the model lacks theirs.

        UserError for a norm of this package that no layer has, and for a key of ``asked`` whose
        part has none.
        """
        from ..foreign_norms import TAKEN
        from ..layers.registry import NORMS, norm_key
        from ..surgery.norms import count_norms, may_be_norm

        parts, lacking = dict(model.named_modules()), []
        count = count_norms(model)
        for key, norm in self.norms().items():
            ours = norm_key(norm)
            if ours in TAKEN or (not ours and key not in asked):
                continue
            above = (part.partition(".")[2] for part in self.parts_above(key))
            part = parts[next(name for name in above if name in parts)]
            if ours:
                layers = {m for m in model.modules() if isinstance(m, NORMS[ours])}
            else:
                layers = {m for m in model.modules() if may_be_norm(m)}
            if not layers.isdisjoint(part.modules()):
                continue
            if key in asked or not layers:
                raise UserError(
                    f"{key} is {norm!r}, but no layer has this norm (norms of the model: {count}): "
                    "the part of this key is not built (is a _BASE_ missing?), or has no norms, as "
                    "a head of detectron2 with NUM_CONV 0; correct that, or remove the key"
                )
            lacking.append(key)
        return f"{count}; none at {printable(', '.join(lacking))}" if lacking else count

    def with_norm(self, norm: str, places: Iterable[str] = ()) -> list[str]:
        """Return the overrides that put a norm at places, by default wherever there is a norm.

        UserError for an unknown place.
        """
        if norm == AS_IS:
            return []
        overrides = []
        for place in places or self.places():
            # The object that is built may take the argument even if the config does not give it.
            above = place.rpartition(".")[0] or place
            is_known = any(key.startswith(f"{above}.") for key in self.settings)
            is_part = any(key.startswith(f"{place}.") for key in self.settings)
            if not is_known or (is_part and place not in self.norms()):
                problem = "it is a part, not a norm" if is_part else f"the config has no {above}"
                raise UserError(
                    f"--at {place}: {problem}; give another place, such as --at {self.example}"
                )
            overrides += self._overrides_of_norm(place, norm)
        return overrides

    def _overrides_of_norm(self, place: str, norm: str) -> list[str]:
        return self.override(place, norm)


def open_config(
    path: str | os.PathLike, overrides: Sequence[str] = (), device: str | None = "cpu", amp=False
) -> OpenConfig:
    """Read a config, a file or ``ilm_plugins://NAME``, with overrides as of the command ``train``.

    ``device=None`` is "cuda" if there is a GPU, else "cpu".

    Raises:
        UserError: there is no such file, or its framework is not installed.
    """
    path = configs.resolve(os.fsdecode(path))
    kind = kind_of(path)
    if device is None:
        device = "cuda" if import_module("torch").cuda.is_available() else "cpu"
    return kind.read(path, overrides, device, amp)


def kind_of(path: str) -> type[OpenConfig]:
    """Return the class of a config file's kind; UserError if its framework is not installed."""
    return module_for(framework_of(path), "config", path).kind_of(path)


def norm_name(norm: Any) -> str:
    """Return a config's norm as text, by its key if it is a class of NORMS or a partial of one."""
    from ..layers.registry import NORMS

    for key, layer in NORMS.items():
        if layer is getattr(norm, "func", norm) or norm == f"ilm_plugins.{layer.__name__}":
            return key
    return getattr(norm, "__name__", ADDRESS.sub("", str(norm)))


def check_statistics(model: "nn.Module", processes: int = 1) -> None:
    """Warn if a layer of a model in training mode uses untrained running statistics.

    Warn of several processes, too, each of which computes the batch's statistics by itself.
    """
    from ..layers.mixture import MixtureNorm

    mixtures = [layer for layer in model.modules() if isinstance(layer, MixtureNorm)]
    alone = [layer for layer in mixtures if layer.sync is False and layer.uses_batch_statistics]
    if processes > 1 and alone:
        warnings.warn(
            f"{type(alone[0]).__name__} in {processes} processes: each uses the statistics of its "
            "own part of the batch; for the whole batch's, give sync=True",
            stacklevel=2,
        )
    for name, layer in model.named_modules():
        # Weights of Caffe2 have a bias, and the same statistics as an untrained layer.
        tracks = isinstance(layer, MixtureNorm) and layer.tracks_statistics
        is_frozen = tracks and not layer.uses_batch_statistics
        if is_frozen and not (layer.running_mean.any() or layer.bias.any()):
            warnings.warn(
                f"{name} is frozen, by FREEZE_AT, frozen_stages or norm_eval, but not trained: its "
                "running mean is 0, the variance 1; load converted weights, or do not freeze it",
                stacklevel=2,
            )
            return


def is_below(key: str, above: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{part}.") for part in above)


def differences(
    settings: Mapping[Any, Any], others: Mapping[Any, Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each key with two values, and both; None for a missing one."""
    for key in dict.fromkeys([*settings, *others]):
        if (value := settings.get(key)) != (other := others.get(key)):
            yield key, value, other


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a JSON file keeps them: lists for tuples, text for all other objects."""
    # The address of a function or an object is another one in each process.
    return json.loads(json.dumps(settings, default=lambda value: ADDRESS.sub("", str(value))))


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in enumerate(node) if _is_nested(node) else node.items():
        if isinstance(value, Mapping) or _is_nested(value):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)
