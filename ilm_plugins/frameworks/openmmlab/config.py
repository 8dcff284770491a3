"""MMEngine's configs: their models, data and training, and variants.

A place is a ``norm_cfg``, which is replaced as a whole.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ...errors import UserError
from ...layers import parse_call
from ..config import Inference, OpenConfig, is_below, norm_name
from ..length import Length
from ..run.record import RunRecord
from . import evaluation, training
from .config_files import load_config
from .datasets import preprocessing, set_scope
from .norms import MMCVS_KEYS

#: Keys that name a file of weights of a part of the model, and the part; ``init_cfg`` may be a
#: list.
INITIAL_WEIGHTS = re.compile(r"^(model(\..*)?)\.(pretrained|init_cfg(\.\d+)?\.checkpoint)$")
#: Types of norms whose inputs are tokens or vectors, not maps.
NOT_OF_MAPS = {"LN", "LayerNorm", "BN1d", "BatchNorm1d", "IN1d", "InstanceNorm1d"}


class OpenMMEngineConfig(OpenConfig):
    """A config of MMEngine."""

    framework = "openmmlab"
    packages = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
    has_tta = True
    checkpoint_entry = "state_dict"
    norm_keys = sorted(MMCVS_KEYS)
    keys: ClassVar = {"seed": "randomness.seed", "folder": "work_dir", "weights": "load_from"}
    example = "model.backbone.norm_cfg"
    amp = "optim_wrapper.type"
    freezing: ClassVar = ("frozen_stages", -1)
    shared_folder = "default_hooks.checkpoint.out_dir"
    test_set: ClassVar = ("test_dataloader", "test_evaluator", "test_pipeline")

    @classmethod
    def read(
        cls, path: str, overrides: Sequence[str], device: str, amp: bool
    ) -> "OpenMMEngineConfig":
        return cls(path, load_config(path, overrides, device, amp), device)

    @classmethod
    def register(cls, datasets: Sequence[tuple[str, str, str]]) -> None:
        if datasets:
            raise UserError(
                f"--dataset {datasets[0][0]} is for detectron2; in OpenMMLab, set data_root and "
                "ann_file of the config's datasets"
            )

    def run(self, record: RunRecord) -> None:
        training.run(self, record)

    def training_step(self, processes: int = 1) -> Callable[[], None]:
        model = self.build_model()
        model = (revert_sync_batchnorm(model) if self.device == "cpu" else model).train()
        wrapper = build_optim_wrapper(model, self.config.optim_wrapper)
        # A Runner says how far a training is, which some of mmdet's models read.
        begin = {"epoch": 0, "iter": 0, "max_epochs": 1, "max_iters": 1}
        MessageHub.get_current_instance().update_info_dict(begin)
        batch = next(self.training_batches(processes))
        return lambda: model.train_step(batch, wrapper)

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        return model(**model.data_preprocessor(batch, False), mode="tensor")

    def classes_of_test(self) -> tuple[str, ...] | None:
        return evaluation.classes_of_test(self)

    def unit(self, metric: str) -> str | None:
        return evaluation.unit(self, metric)

    def _build(self) -> nn.Module:
        set_scope(self.config)
        # Like the Runner, pass on a data_preprocessor that the config has outside of model.
        defaults = {k: v for k, v in self.config.items() if k == "data_preprocessor"}
        return MODELS.build(self.config.model, default_args=defaults)

    def _is_unknown(self, key: str, norm: str, error: KeyError) -> bool:
        # The registry of the default scope, too, such as mmpretrain's, has norms.
        with MODELS.switch_scope_and_registry(None) as registry:
            is_type = key.startswith("model.") and key.endswith(".type")
            return is_type and registry.get(norm) is None

    def inference(self) -> Inference:
        # A model may define preprocess_images(images), which returns a batch for its test_step.
        model = revert_sync_batchnorm(self.build_model())
        loader = self.config.get("test_dataloader") or {}
        preprocess = getattr(model, "preprocess_images", None)
        name, description = Path(self.path).stem, "the model's own preprocessing"
        if preprocess is None:
            preprocess, description = preprocessing(loader.get("dataset") or {}, name)

        @torch.no_grad()
        def forward(images: Sequence[np.ndarray]) -> Any:
            return model.test_step(preprocess(images))

        return Inference(name, model, forward, loader.get("batch_size", 1), description)

    def training_batches(self, processes: int = 1) -> Iterator[Any]:
        loader = self._train_loader()
        while True:
            yield from loader

    def _train_loader(self) -> DataLoader:
        set_scope(self.config)
        return Runner.build_dataloader(self.config.train_dataloader, seed=0)

    def length(self, processes: int = 1) -> Length | None:
        loop = self.config.get("train_cfg") or {}
        key, unit = "max_iters", "iterations"
        if "max_epochs" in loop:
            key, unit = "max_epochs", "epochs"
        if key not in loop:  # of one's own
            return None
        size, images = (self.config.get("train_dataloader") or {}).get("batch_size"), None
        folders = [v for k, v in self.settings.items() if k.endswith(".data_root") and v]
        with suppress(Exception):  # such as of files that are missing
            if all(map(os.path.isdir, folders)):  # without its folder, a dataset may download it
                images = len(self._train_loader().dataset)
        batch = size * processes if isinstance(size, int) else None
        return Length(unit, int(loop[key]), batch, images)

    def contents(self) -> Mapping[str, Any]:
        return self.config.to_dict()

    def is_of_norm(self, key: str) -> bool:
        return key.startswith("model.") and ".norm_cfg." in key

    def main_metric(self) -> tuple[str | None, bool]:
        hook = "default_hooks.checkpoint"
        best, rule = (self.settings.get(f"{hook}.{key}") for key in ("save_best", "rule"))
        return best if isinstance(best, str) and best != "auto" else None, rule == "less"

    def pretrained(self, places: Iterable[str]) -> str | None:
        if whole := super().pretrained(places):
            return whole
        for key, value in self.settings.items():
            match = INITIAL_WEIGHTS.match(key)
            if match is None or not isinstance(value, str):  # timm's backbones have True
                continue
            # mmseg's and mmdet's models pass their own on to the backbone.
            part = "model.backbone" if key == "model.pretrained" else match[1]
            if any(is_below(place, [part]) for place in places):
                return value
        return None

    def why_kept(self, key: str, norm: str) -> str:
        if norm in NOT_OF_MAPS:
            return "its inputs are tokens or vectors"
        if self.settings.get(f"{key}.requires_grad") is False:
            return "it is not trained"
        return super().why_kept(key, norm)

    def norms(self) -> dict[str, str]:
        return {
            key.removesuffix(".type"): norm_name(kind)
            for key, kind in self.settings.items()
            if key.startswith("model.") and key.endswith(".norm_cfg.type")
        }

    def _overrides_of_norm(self, place: str, norm: str) -> list[str]:
        kind, options = parse_call(norm)
        if kind == "GN":  # mmcv requires the number; the default is detectron2's
            options.setdefault("num_groups", 32)
        given = {"_delete_": True, "type": kind, **options}
        if f"{place}.requires_grad" in self.settings:
            given.setdefault("requires_grad", self.settings[f"{place}.requires_grad"])
        return [
            part
            for name, value in given.items()
            for part in self.override(f"{place}.{name}", value)
        ]


def kind_of(path: str) -> type[OpenMMEngineConfig]:
    return OpenMMEngineConfig
