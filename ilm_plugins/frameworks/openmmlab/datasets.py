"""Datasets of MMEngine's configs: the ones that others wrap, and pipelines for images in memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope

from ...errors import UserError


def set_scope(cfg: Config) -> None:
    """Make a config's scope MMEngine's default scope, in which it builds what the config names."""
    init_default_scope(cfg.get("default_scope") or "mmengine")


def unwrapped(dataset: dict) -> Iterator[dict]:
    """Yield the datasets that a dataset wraps, at any depth; itself, if it wraps none."""
    inner = dataset.get("datasets", [])
    if "dataset" in dataset:
        inner = [dataset["dataset"]]
    for wrapped in inner:
        yield from unwrapped(wrapped)
    if not inner:
        yield dataset


def preprocessing(dataset: dict, name: str) -> tuple[Callable[[Sequence[np.ndarray]], Any], str]:
    """Return a function from images to a batch by a dataset's first pipeline; its description."""
    dataset = next(unwrapped(dataset))
    if "pipeline" not in dataset:
        raise UserError(
            f"{name} has no test_dataloader.dataset.pipeline to prepare images; define it"
        )
    kinds = [(step, str(step["type"]).rsplit(".", 1)[-1]) for step in dataset["pipeline"]]
    steps = [step for step, kind in kinds if not kind.startswith("Load")]
    # Images from files are BGR; datasets in memory, such as CIFAR10, are RGB.
    bgr = any(kind.startswith("LoadImage") for _, kind in kinds)
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
