"""Test images of a config of MMEngine, their annotations, and what a model sees in them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ..config import OpenConfig
from ..images import Content, spread
from .datasets import set_scope


def test_images(opened: OpenConfig, count: int) -> Iterator[tuple[np.ndarray, Content | None]]:
    """Yield ``count`` test images, (H, W, 3) RGB uint8, and their annotations.

    Images that no file has, such as those of CIFAR10, are left out.
    """
    import mmcv

    set_scope(opened.config)
    dataset = DATASETS.build(opened.config.test_dataloader.dataset)
    for i in spread(len(dataset), count):
        sample = dataset[i]["data_samples"]
        if path := getattr(sample, "img_path", None):
            yield mmcv.imread(path, channel_order="rgb"), annotation(sample)


def annotation(sample: Any) -> Content | None:
    """Return the annotated objects or classes of a data sample; None without both."""
    return _content(sample, "gt")


def content(output: Any) -> Content | None:
    """Return the objects or the classes in a model's output for an image; None without both."""
    return _content(output, "pred")


def _content(sample: Any, kind: str) -> Content | None:
    """Return a data sample's annotation ("gt") or prediction ("pred")."""
    if f"{kind}_sem_seg" in sample:
        return Content(classes=_array(sample.get(f"{kind}_sem_seg").data)[0])
    objects = sample.get(f"{kind}_instances")
    if objects is None or "bboxes" not in objects:
        return None
    return Content(
        boxes=_array(objects.bboxes),
        labels=_array(objects.labels),
        scores=_array(objects.scores) if "scores" in objects else None,
        masks=_array(objects.masks) if "masks" in objects else None,
    )


def _array(values: Any) -> np.ndarray:
    """Return a tensor, or boxes or masks of mmdet, as an array."""
    if hasattr(values, "to_ndarray"):
        return values.to_ndarray()
    values = getattr(values, "tensor", values)
    return values.cpu().numpy()
