"""Models of MMEngine's configs, with their test pipeline and ``test_step``."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from PIL import Image
from torch import nn

from ...errors import UserError
from ...pix2pix.networks import Pix2Pix
from ...pix2pix.pairs import DIRECTIONS, resize
from ..inference import Inference, describe_scaling
from . import train


def load(args: argparse.Namespace) -> Inference:
    """Build a config's model, with random weights, and the pipeline of its ``test_dataloader``.

    Args:
        args: as of :func:`ilm_plugins.integrations.training.parser`, and ``device``.

    Raises:
        UserError: the config cannot be read, or has no model, or no pipeline for testing.
    """
    cfg = train.load_config(args)
    model = revert_sync_batchnorm(train.build_model(args)).to(args.device)
    name = Path(args.config_file).stem
    loader = cfg.get("test_dataloader") or {}
    dataset = loader.get("dataset") or {}
    batch_size = loader.get("batch_size", 1)
    if isinstance(model, Pix2Pix):
        return _translation(name, model, dataset, batch_size)
    while dataset and "pipeline" not in dataset:
        dataset = dataset.get("dataset") or {}
    if not dataset:
        raise UserError(
            f"{args.config_file} has no test_dataloader.dataset.pipeline, by which images are "
            "prepared for its model; define it"
        )
    steps = [step for step in dataset["pipeline"] if not _loads(step)]
    bgr = any(_loads(step, image=True) for step in dataset["pipeline"])
    forward = partial(_test, model, Compose(steps), bgr)
    return Inference(name, model, forward, batch_size, _words(model, steps, bgr))


def _loads(step: dict, image: bool = False) -> bool:
    kind = str(step["type"]).rsplit(".", 1)[-1]
    return kind.startswith("LoadImage" if image else "Load")


def _test(model: nn.Module, pipeline: Compose, bgr: bool, images: Sequence[np.ndarray]) -> Any:
    entries = [
        pipeline(_entry(i, image[..., ::-1] if bgr else image)) for i, image in enumerate(images)
    ]
    return model.test_step(pseudo_collate(entries))


def _entry(number: int, image: np.ndarray) -> dict:
    """The results of LoadImageFromFile for an image in memory."""
    height, width = image.shape[:2]
    return {
        "img": np.array(image),
        "img_id": number,
        "img_path": "",
        "img_shape": (height, width),
        "ori_shape": (height, width),
        "height": height,
        "width": width,
    }


def _words(model: nn.Module, steps: Sequence[dict], bgr: bool) -> str:
    names = " > ".join(str(step["type"]) for step in steps)
    preprocessor = getattr(model, "data_preprocessor", None)
    mean, std = (getattr(preprocessor, key, None) for key in ("mean", "std"))
    flips = getattr(
        preprocessor, "_channel_conversion", getattr(preprocessor, "channel_conversion", False)
    )
    scaling = describe_scaling(mean, std, "RGB" if bgr == bool(flips) else "BGR")
    return f"the config's test pipeline, {names}{scaling}"


def _translation(name: str, model: Pix2Pix, dataset: dict, batch_size: int) -> Inference:
    size, direction = dataset.get("size", 256), dataset.get("direction", DIRECTIONS[0])
    halves = "pair_path" in (dataset.get("data_prefix") or {"pair_path": ""})

    def forward(images: Sequence[np.ndarray]) -> Any:
        squares = [resize(Image.fromarray(_input(i, halves, direction)), size) for i in images]
        batch = [torch.from_numpy(np.array(square)).permute(2, 0, 1) for square in squares]
        return model.test_step({"input": batch})

    half = {"right-to-left": "right", "left-to-right": "left"}[direction]
    words = f"{f'the {half} half' if halves else 'whole images'}, {size} x {size} pixels, -1 to 1"
    return Inference(name, model, forward, batch_size, words)


def _input(image: np.ndarray, halves: bool, direction: str) -> np.ndarray:
    half = image.shape[1] // 2
    if not halves:
        return image
    return image[:, half : 2 * half] if direction == DIRECTIONS[0] else image[:, :half]
