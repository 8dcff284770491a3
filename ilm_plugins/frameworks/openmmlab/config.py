"""MMEngine's configs: reading with overrides, the model, and its inference on images in memory."""

import inspect
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ...errors import OPERATORS, UserError, missing
from ...layers import NORMS
from ..config import flat
from ..config_files import (
    Inference,
    check_overrides,
    installed,
    norm_settings,
    reading,
    unknown_norm,
)
from .checkpoints import use_safe_checkpoints
from .norms import MMCVS_KEYS

#: Default scopes of configs, which are also the names of packages that need mmcv.
SCOPES = "mmdet", "mmpretrain", "mmseg"
#: Top-level keys that have an effect, though the Runner has no such argument.
BESIDE_RUNNER = (
    *("activation_checkpointing", "channels_last", "compile", "efficient_conv_bn_eval"),
    *("find_unused_parameters", "model_wrapper_cfg", "runner_type", "strategy", "sync_bn"),
    *("train_pipeline", "tta_model", "tta_pipeline"),
)
#: Keys of paths that any run may have.
PATHS = "work_dir", "load_from"


def load_config(
    path: str, overrides: Sequence[str] = (), device: str | None = None, amp: bool = False
) -> Config:
    """Read a config with overrides as of MMEngine's ``--cfg-options``; ``device`` has no effect."""
    use_safe_checkpoints()  # a model may load a checkpoint, such as a teacher's, while it is built
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise UserError(f"override {wrong[0]!r} of {path} is not KEY=VALUE; give it as one word")
    with reading(path):
        cfg, parsed = Config.fromfile(path), Namespace()
    scope = cfg.get("default_scope")
    for package in ("mmcv", scope) if scope in SCOPES else ():
        # Otherwise MMEngine says that a model or a norm is not in a registry.
        if not installed(package):
            raise missing(path, package)
    if scope == "mmdet" and not installed(OPERATORS):
        raise missing(path, OPERATORS)  # mmdet's import would fail, after a minute
    DictAction([], "options")(None, parsed, overrides)
    read = [*inspect.signature(Runner.__init__).parameters, *BESIDE_RUNNER]
    strict = "runner_type" not in cfg  # a Runner of one's own may read other keys
    check_overrides(overrides, cfg, read, strict)
    for word in overrides if strict else ():
        name = word.partition("=")[0].partition(".")[0]
        if name not in read:
            keys = (key for key, _ in flat(cfg) if key.partition(".")[0] in read)
            places = [key for key in keys if key.endswith(f".{name}")]
            where = f"give {', '.join(places)}" if places else "give the keys that have its value"
            raise UserError(
                f"override {word!r}: {name} is a variable of the config, without effect; {where}"
            )
    cfg.merge_from_dict({**parsed.options, **_paths(overrides)})
    if cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", Path(path).stem))
    if amp:
        # A constructor of several optimizers has a wrapper for each network.
        for wrapper in (cfg.optim_wrapper, *cfg.optim_wrapper.values()):
            if isinstance(wrapper, dict) and "optimizer" in wrapper:
                wrapper["type"] = "AmpOptimWrapper"
    return cfg


def _paths(overrides: Sequence[str]) -> dict[str, str | None]:
    """Return the overrides of PATHS as they are; DictAction drops spaces, and splits at commas."""
    pairs = (word.split("=", 1) for word in overrides)
    return {k: None if v == "None" else v.strip("'\"") for k, v in pairs if k in PATHS}


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model with random weights; its scope becomes MMEngine's default scope."""
    init_default_scope(cfg.get("default_scope") or "mmengine")
    # Like the Runner, pass on a data_preprocessor that the config has outside of model.
    beside = {key: cfg[key] for key in ("data_preprocessor",) if key in cfg}
    with explaining_norms(cfg.model):
        return MODELS.build(cfg.model, default_args=beside)


@contextmanager
def explaining_norms(model: dict) -> Iterator[None]:
    """Replace a KeyError by a UserError if the type of a norm_cfg is unknown."""
    try:
        yield
    except KeyError as error:
        # The registry of the default scope, too, such as mmpretrain's, has norms.
        with MODELS.switch_scope_and_registry(None) as registry:
            for name, norm in norm_settings(model, "model"):
                if name.endswith(".type") and registry.get(norm) is None:
                    raise unknown_norm(name, norm, [*NORMS, *sorted(MMCVS_KEYS)]) from error
        raise


def inference(cfg: Config, name: str, device: str) -> Inference:
    """Build a config's model, with BN for SyncBN, and the preprocessing of its test pipeline."""
    # A model may define preprocess_images(images), which returns a batch for its test_step.
    model = revert_sync_batchnorm(build_model(cfg)).to(device)
    loader = cfg.get("test_dataloader") or {}
    preprocess = getattr(model, "preprocess_images", None)
    description = "the model's own preprocessing"
    if preprocess is None:
        preprocess, description = _preprocessing(loader.get("dataset") or {}, name)

    @torch.no_grad()
    def forward(images: Sequence[np.ndarray]) -> Any:
        return model.test_step(preprocess(images))

    return Inference(name, model, forward, loader.get("batch_size", 1), description)


def unwrapped(dataset: dict) -> Iterator[dict]:
    """Yield the datasets that a dataset wraps, at any depth; itself, if it wraps none."""
    inner = dataset.get("datasets", [])
    if "dataset" in dataset:
        inner = [dataset["dataset"]]
    for one in inner:
        yield from unwrapped(one)
    if not inner:
        yield dataset


def _preprocessing(dataset: dict, name: str):
    """Return a function from images to a batch by a dataset's first pipeline; its description."""
    dataset = next(unwrapped(dataset))
    if "pipeline" not in dataset:
        raise UserError(
            f"{name} has no test_dataloader.dataset.pipeline to prepare images; define it"
        )
    kinds = [str(step["type"]).rsplit(".", 1)[-1] for step in dataset["pipeline"]]
    loads = [kind.startswith("Load") for kind in kinds]
    steps = [step for step, load in zip(dataset["pipeline"], loads, strict=True) if not load]
    # Images from files are BGR; datasets in memory, such as CIFAR10, are RGB.
    bgr = any(kind.startswith("LoadImage") for kind in kinds)
    pipeline = Compose(steps)

    def preprocess(images: Sequence[np.ndarray]) -> Any:
        pixels = (image[..., ::-1] if bgr else image for image in images)
        return pseudo_collate([pipeline(_loaded(i, image)) for i, image in enumerate(pixels)])

    types = " > ".join(str(step["type"]) for step in steps)
    return preprocess, f"the config's test pipeline, {types}"


def _loaded(number: int, image: np.ndarray) -> dict:
    """Return what LoadImageFromFile would make of an image (H, W, 3)."""
    height, width = image.shape[:2]
    return {
        "img": np.array(image),
        "img_id": number,
        "img_path": "",
        "img_shape": (height, width),
        "ori_shape": (height, width),
    }
