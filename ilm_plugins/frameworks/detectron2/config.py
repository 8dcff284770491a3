"""Read detectron2's configs, yaml and LazyConfigs, and build what they describe."""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2 import modeling
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import nn
from yaml.constructor import ConstructorError

from ...errors import UserError
from ...layers import NORMS
from ...trust import code_is_allowed
from ..config_files import Inference, check_overrides, norm_settings, reading, unknown_norm
from .variants import TRAIN

#: detectron2's own keys of norms, which are nowhere to be read.
KEYS = "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"
#: Dataset that a LazyConfig registered -> the function that loads it.
OF_CONFIGS: dict[str, Callable] = {}


def load_config(
    path: str, overrides: Sequence[str] = (), device: str | None = None, amp: bool = False
) -> CfgNode | DictConfig:
    """Read a config with overrides; a yaml runs code only within ``loading(unsafe=True)``."""
    if path.endswith(".py"):
        with reading(path), registering_again():
            cfg = LazyConfig.load(path)
        check_overrides(overrides, OmegaConf.to_container(cfg, resolve=False))
        for override in overrides:
            key = re.match(r"\+*train\.(\w+)", override)
            if key and key[1] not in TRAIN:
                raise UserError(
                    f"override {override!r}: the command train does not read train.{key[1]}; leave "
                    f"it out, or give one of {', '.join(TRAIN)}"
                )
        with explaining_overrides(overrides, "KEY=VALUE"):
            cfg = LazyConfig.apply_overrides(cfg, list(overrides))
        if device is not None:
            OmegaConf.update(cfg, "train.device", device)
        if amp:
            OmegaConf.update(cfg, "train.amp.enabled", True)
        return cfg
    cfg = get_cfg()
    with reading(path):
        try:
            cfg.merge_from_file(path, allow_unsafe=code_is_allowed())
        except ConstructorError as error:
            raise UserError(
                f"{path}: {error.problem} {error.problem_mark}: it may run code; read the file, "
                "and if you trust it, give --unsafe"
            ) from error
    with explaining_overrides(overrides, "KEY VALUE"):
        cfg.merge_from_list(list(overrides))
    if device is not None:
        cfg.MODEL.DEVICE = device
    cfg.SOLVER.AMP.ENABLED |= amp
    return cfg


@contextmanager
def registering_again() -> Iterator[None]:
    """Let a LazyConfig register the datasets that an earlier reading registered."""
    for name in OF_CONFIGS:
        DatasetCatalog.pop(name, None)
    others = {*DatasetCatalog}
    try:
        yield
    finally:
        OF_CONFIGS.update({n: DatasetCatalog[n] for n in DatasetCatalog if n not in others})
        DatasetCatalog.update(OF_CONFIGS)  # also those of another config


@contextmanager
def explaining_overrides(overrides: Sequence[str], form: str) -> Iterator[None]:
    """Replace the errors of wrong overrides by a UserError."""
    try:
        yield
    except (AssertionError, HydraException, KeyError, ValueError) as error:
        reason = str(next(iter(error.args), error)).partition("\n")[0]
        raise UserError(
            f"overrides {shlex.join(overrides)}: {reason}; give {form}, with a key of the config"
        ) from error


def build_model(cfg: CfgNode | DictConfig) -> nn.Module:
    """Build a config's model with random weights; UserError for an unknown NORM."""
    with explaining_norms(cfg):
        return modeling.build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)


@contextmanager
def explaining_norms(cfg: CfgNode | DictConfig) -> Iterator[None]:
    """Replace a KeyError by a UserError if a NORM of the config is unknown."""
    try:
        yield
    except KeyError as error:
        for name, norm in norm_settings(cfg):
            if norm in error.args:
                raise unknown_norm(name, norm, [*NORMS, *KEYS]) from error
        raise


def inference(cfg: CfgNode | DictConfig, name: str, device: str) -> Inference:
    """The model, with random weights, and the resizing of images in the config's evaluation."""
    if isinstance(cfg, CfgNode):
        side, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        augmentations = [T.ResizeShortestEdge([side, side], longest)] if side else []
        order = cfg.INPUT.FORMAT
    else:
        mapper = OmegaConf.select(cfg, "dataloader.test.mapper") or {}
        augmentations = [instantiate(a) for a in mapper.get("augmentations", ())]
        order = mapper.get("image_format", "BGR")
    model, augment = build_model(cfg).to(device), T.AugmentationList(augmentations)

    def prepare(image: np.ndarray) -> dict:
        """A model's input of an (H, W, 3) RGB uint8 image; outputs have the size H, W again."""
        given = T.AugInput(np.ascontiguousarray(image[..., ::-1] if order == "BGR" else image))
        augment(given)
        pixels = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}

    @torch.no_grad()
    def forward(images: Sequence[np.ndarray]) -> Any:
        return model([prepare(image) for image in images])

    preprocessing = ", ".join(map(str, augmentations)) or "not resized"
    return Inference(name, model, forward, 1, preprocessing)
