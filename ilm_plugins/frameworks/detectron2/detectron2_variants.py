"""Variants of detectron2's yaml configs and LazyConfigs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import UserError
from ..framework_config import OpenConfig
from ..variants import ADDRESS, Recipe, Variants

#: Keys of a LazyConfig's ``train`` that a training reads; detectron2's default_setup reads the last
#: two, which may be missing.
TRAIN = (
    *("output_dir", "init_checkpoint", "max_iter", "amp", "ddp", "checkpointer", "eval_period"),
    *("log_period", "device", "seed", "cudnn_benchmark"),
)
#: Those that count iterations.
COUNTS = {"max_iter", "eval_period", "log_period"}


class YamlVariants(Variants):
    """Variants of a yaml config, whose overrides are words KEY VALUE."""

    keys: ClassVar = {"seed": "SEED", "folder": "OUTPUT_DIR", "weights": "MODEL.WEIGHTS"}
    model, beside = "MODEL", ("MODEL.WEIGHTS", "MODEL.DEVICE")
    norm_names, example = ("NORM",), "MODEL.ROI_BOX_HEAD.NORM"
    test_set: ClassVar = ("DATASETS.TEST",)
    of_test: ClassVar = (
        *("DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST"),
        *("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
        *("TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS"),
    )
    words = 2

    def check_test(self) -> None:
        if self.config.TEST.AUG.ENABLED:
            raise UserError("TEST.AUG.ENABLED: train has no test-time augmentation; set it False")

    def override(self, key: str, value: Any) -> list[str]:
        return [key, str(value)]

    def norm(self, place: str, norm: str) -> list[str]:
        if place not in self.settings():
            raise UserError(
                f"--at {place}: the config has no such key; give one such as {self.example}"
            )
        return self.override(place, norm)

    def recipe(self, images: Mapping[str, Sequence[int]]) -> Recipe:
        solver = self.config.SOLVER
        counts = images[self.config.DATASETS.TRAIN[0]]
        return Recipe("iterations", solver.MAX_ITER, solver.IMS_PER_BATCH, *counts)

    def shorten(self, length: int) -> None:
        """Train for ``length`` iterations, with the schedule scaled; the warm-up stays."""
        solver = self.config.SOLVER
        steps = {max(1, round(step * length / solver.MAX_ITER)) for step in solver.STEPS}
        # detectron2 requires steps below MAX_ITER.
        solver.STEPS = tuple(sorted(step for step in steps if step < length))
        solver.MAX_ITER = length


class LazyVariants(Variants):
    """Variants of a LazyConfig."""

    keys: ClassVar = {
        "seed": "train.seed",
        "folder": "train.output_dir",
        "weights": "train.init_checkpoint",
    }
    norm_names, example = ("norm", "conv_norm"), "model.roi_heads.box_head.conv_norm"
    test_set: ClassVar = ("dataloader.test", "dataloader.evaluator")

    def check_test(self) -> None:
        train = self.contents().get("train", {})
        for key in TRAIN[:-2]:
            is_wrong = key in COUNTS and not isinstance(train.get(key, 0), int)
            if is_wrong or key not in train:
                what = f"is {train[key]!r}, expected an integer" if is_wrong else "is missing"
                raise UserError(
                    f"train.{key} {what}; correct it, or begin with the train of detectron2's "
                    "model_zoo.get_config('common/train.py')"
                )

    def contents(self) -> Mapping[str, Any]:
        from omegaconf import OmegaConf

        return OmegaConf.to_container(self.config, resolve=True)

    def override(self, key: str, value: Any) -> list[str]:
        # Quoted for hydra's grammar, in which a bracket calls a function.
        text = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return [f"{key}={value}" if isinstance(value, int) else f"{key}='{text}'"]

    def places(self) -> dict[str, str]:
        # A norm may also be a function or a class, which is called with the number of channels.
        makers = {
            key: getattr(value, "__name__", ADDRESS.sub("", repr(value)))
            for key, value in self.settings().items()
            if key.rpartition(".")[2] in self.norm_names and callable(value)
        }
        return {**super().places(), **makers}

    def save(self, folder: Path) -> Path:
        raise self._lazy()


def unread(settings: Mapping[str, Any]) -> list[str]:
    """Return the keys of a LazyConfig's ``train`` that a training does not read, unless off."""

    def is_on(value: Any) -> bool:
        return bool(value.get("enabled", True) if isinstance(value, Mapping) else value)

    return [key for key, value in settings.items() if key not in TRAIN and is_on(value)]


def variants(opened: OpenConfig) -> Variants:
    return (LazyVariants if opened.path.endswith(".py") else YamlVariants)(opened)
