"""Variants of a config, with another norm, seed, folder or weights, as overrides of ``train``."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..errors import UserError
from .framework_config import OpenConfig

#: The norm that stands for the config's own norms.
AS_IS = "as-is"
#: Where an object lies in memory, at the end of its text.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


#: Keys of MMEngine's configs that name a file of weights of a part of the model, and the part;
#: ``init_cfg`` may be a list.
INITIAL_WEIGHTS = re.compile(r"^(model(\..*)?)\.(pretrained|init_cfg(\.\d+)?\.checkpoint)$")
#: Settings of a loader that change only its speed.
OF_SPEED = {"num_workers", "persistent_workers", "pin_memory", "prefetch_factor"}
#: Types of OpenMMLab's norms whose inputs are tokens or vectors, not maps.
NOT_OF_MAPS = {"LN", "LayerNorm", "BN1d", "BatchNorm1d", "IN1d", "InstanceNorm1d"}


class YamlVariants:
    """Variants of a detectron2 yaml config; the subclasses override what differs elsewhere."""

    #: What a run sets -> its key.
    keys: ClassVar = {"seed": "SEED", "folder": "OUTPUT_DIR", "weights": "MODEL.WEIGHTS"}
    #: The key of the model, and settings of it that do not change the model.
    model, beside = "MODEL", ("MODEL.WEIGHTS", "MODEL.DEVICE")
    #: Key of a folder for the checkpoints of all runs.
    shared_folder = ""
    #: Keys of the test set; keys below them are of it, too.
    test_set: ClassVar = ("DATASETS.TEST",)
    #: Further keys that change the results of a trained model, beside the model's.
    of_test: ClassVar = (
        *("DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST"),
        *("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
        *("TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS"),
    )
    #: An example of a key that names a norm.
    example = "MODEL.ROI_BOX_HEAD.NORM"

    def __init__(self, opened: OpenConfig) -> None:
        self.opened = opened

    def settings(self) -> dict[str, Any]:
        """Return key -> value of all settings; keys have dots, elements of lists their number."""
        return dict(_flat(self.contents()))

    def contents(self) -> Mapping[str, Any]:
        return self.opened.config

    def override(self, key: str, value: Any) -> list[str]:
        """Return an override as arguments of the command line."""
        return [key, str(value)]

    def overrides(self, **values: Any) -> list[str]:
        """Return the overrides of a run's ``seed``, ``folder`` and ``weights``."""
        return [
            part for name, value in values.items() for part in self.override(self.keys[name], value)
        ]

    def without_test_set(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides without the overrides of the config's test set."""
        pairs = zip(overrides[::2], overrides[1::2], strict=True)
        return [word for pair in pairs if not self.is_of_test_set(pair[0]) for word in pair]

    def settings_of_test(self) -> dict[str, Any]:
        """Return the settings that may change a test: all but the model's and a run's own."""
        of_run = {*self.keys.values()}
        settings = self.settings().items()
        return {k: v for k, v in settings if k not in of_run and not k.startswith(f"{self.model}.")}

    def settings_of_results(self) -> dict[str, Any]:
        """Return the settings that change the results of a trained model, whatever its weights."""
        above = (*self.test_set, *self.of_test, self.model)
        return {
            key: value
            for key, value in self.settings().items()
            if _is_below(key, above)
            and not self.names_weights(key)
            and key not in self.beside
            and key.rpartition(".")[2] not in OF_SPEED
        }

    def names_weights(self, key: str) -> bool:
        return key == self.keys["weights"]

    def is_of_test_set(self, key: str) -> bool:
        return _is_below(key, self.test_set)

    def places(self) -> dict[str, str]:
        """Return key -> norm of each place where the config names a norm."""
        return {
            key: norm
            for key, norm in self.settings().items()
            if self.is_norm(key.rpartition(".")[2]) and norm and isinstance(norm, str)
        }

    def check_above(self, place: str) -> None:
        """Raise UserError if the config lacks the parent of a key."""
        above = place.rpartition(".")[0] or place
        if not any(key.startswith(f"{above}.") for key in self.settings()):
            raise UserError(
                f"--at {place}: the config has no {above}; give a key such as {self.example}"
            )

    def norms(self) -> dict[str, str]:
        """Return key -> norm of all places, also where ``compare`` leaves the norm by default."""
        return self.places()

    def is_norm(self, name: str) -> bool:
        return name == "NORM"

    def norm(self, place: str, norm: str) -> list[str]:
        """Return the override that puts a norm at a place; UserError for an unknown place."""
        if place not in self.settings():
            raise UserError(
                f"--at {place}: the config has no such key; give one such as {self.example}"
            )
        return self.override(place, norm)

    def with_norm(self, norm: str, places: Iterable[str] = ()) -> list[str]:
        """Return the overrides that put a norm at places, by default wherever there is a norm."""
        if norm == AS_IS:
            return []
        return [part for place in places or self.places() for part in self.norm(place, norm)]

    def main_metric(self) -> str | None:
        """Return the metric by which the config chooses its best checkpoint, or None."""
        return None

    def pretrained(self, places: Iterable[str]) -> str | None:
        """Return the file of weights from which the model, or its part with places, starts."""
        return self.settings().get(self.keys["weights"]) or None

    def check_same_model(self, other: "YamlVariants", name: str, places: Sequence[str]) -> None:
        """Raise UserError unless both configs have one model, apart from the norms at places."""
        ours, theirs = as_json(self.settings()), as_json(other.settings())
        for key in dict.fromkeys([*ours, *theirs]):
            is_norm = _is_below(key, places)
            if not key.startswith(f"{self.model}.") or key in self.beside or is_norm:
                continue
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"--test {name}: its {key} is {theirs.get(key)!r}, expected "
                    f"{ours.get(key)!r}; give a config of the same model"
                )


class PythonVariants(YamlVariants):
    """Variants of a config in Python, whose overrides are words KEY=VALUE."""

    model, beside = "model", ()

    def without_test_set(self, overrides: Sequence[str]) -> list[str]:
        return [word for word in overrides if not self.is_of_test_set(word.partition("=")[0])]


class LazyVariants(PythonVariants):
    """Variants of a detectron2 LazyConfig."""

    keys: ClassVar = {
        "seed": "train.seed",
        "folder": "train.output_dir",
        "weights": "train.init_checkpoint",
    }
    test_set, of_test = ("dataloader.test", "dataloader.evaluator"), ()
    example = "model.roi_heads.box_head.conv_norm"

    def contents(self) -> Mapping[str, Any]:
        from omegaconf import OmegaConf

        return OmegaConf.to_container(self.opened.config, resolve=True)

    def override(self, key: str, value: Any) -> list[str]:
        # Quoted for hydra's grammar, in which a bracket calls a function.
        text = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return [f"{key}={value}" if isinstance(value, int) else f"{key}='{text}'"]

    def is_norm(self, name: str) -> bool:
        return name in ("norm", "conv_norm")

    def places(self) -> dict[str, str]:
        # A norm may also be a function or a class, which is called with the number of channels.
        makers = {
            key: getattr(value, "__name__", ADDRESS.sub("", repr(value)))
            for key, value in self.settings().items()
            if self.is_norm(key.rpartition(".")[2]) and callable(value)
        }
        return {**super().places(), **makers}

    def norm(self, place: str, norm: str) -> list[str]:
        # The class that is built may have the argument, though the config does not give it.
        self.check_above(place)
        return self.override(place, norm)


class MMEngineVariants(PythonVariants):
    """Variants of a config of MMEngine; a place is a ``norm_cfg``, which is replaced as a whole."""

    keys: ClassVar = {"seed": "randomness.seed", "folder": "work_dir", "weights": "load_from"}
    shared_folder = "default_hooks.checkpoint.out_dir"
    test_set = "test_dataloader", "test_evaluator", "test_pipeline"
    of_test = "test_cfg", "data_preprocessor"
    example = "model.backbone.norm_cfg"

    def contents(self) -> Mapping[str, Any]:
        return self.opened.config.to_dict()

    def override(self, key: str, value: Any) -> list[str]:
        return [f"{key}={value}"]

    def places(self) -> dict[str, str]:
        return {key: norm for key, norm in self.norms().items() if norm not in NOT_OF_MAPS}

    def norms(self) -> dict[str, str]:
        kinds = {k: v for k, v in self.settings().items() if k.endswith(".norm_cfg.type")}
        return {
            key.removesuffix(".type"): getattr(kind, "__name__", kind)
            for key, kind in kinds.items()
            if key.startswith("model.")
        }

    def norm(self, place: str, norm: str) -> list[str]:
        # Imports torch, which commands that only list or print do not need.
        from ..layers import parse_call

        kind, options = parse_call(norm)
        if kind == "GN":  # mmcv requires the number; the default is detectron2's
            options.setdefault("num_groups", 32)
        self.check_above(place)
        settings = self.settings()
        given = {"_delete_": True, "type": kind, **options}
        if f"{place}.requires_grad" in settings:
            given.setdefault("requires_grad", settings[f"{place}.requires_grad"])
        return [
            part
            for name, value in given.items()
            for part in self.override(f"{place}.{name}", value)
        ]

    def main_metric(self) -> str | None:
        best = self.settings().get("default_hooks.checkpoint.save_best")
        return best if isinstance(best, str) and best != "auto" else None

    def pretrained(self, places: Iterable[str]) -> str | None:
        if whole := super().pretrained(places):
            return whole
        for key, value in self.settings().items():
            match = INITIAL_WEIGHTS.match(key)
            if match is None or not isinstance(value, str):  # timm's backbones have True
                continue
            # mmseg's and mmdet's models pass their own on to the backbone.
            part = "model.backbone" if key == "model.pretrained" else match[1]
            if any(_is_below(place, [part]) for place in places):
                return value
        return None

    def names_weights(self, key: str) -> bool:
        return super().names_weights(key) or bool(re.search(r"\.(pretrained|init_cfg)\b", key))


def variants(opened: OpenConfig) -> YamlVariants:
    """Return the variants of an open config."""
    if opened.framework == "openmmlab":
        return MMEngineVariants(opened)
    kind = LazyVariants if opened.path.endswith(".py") else YamlVariants
    return kind(opened)


def digest_of_test(opened: OpenConfig) -> str:
    """Return a digest of all settings that change the results of a trained model."""
    text = json.dumps(as_json(variants(opened).settings_of_results()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_below(key: str, above: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{one}.") for one in above)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a JSON file keeps them: lists for tuples, text for all other objects."""
    # The address of a function or an object is another one in each process.
    return json.loads(json.dumps(settings, default=lambda value: ADDRESS.sub("", str(value))))


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    nested = isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node)
    items = enumerate(node) if nested else node.items()
    for name, value in items:
        key = f"{prefix}{name}"
        inner = isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
        if isinstance(value, Mapping) or inner:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
