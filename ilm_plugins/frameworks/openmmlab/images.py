"""What test images of MMEngine have by their annotations, and by a model."""

from typing import Any

import numpy as np

from ..images import Content


def content(sample: Any, kind: str = "pred") -> Content | None:
    """Return the objects or the classes that a data sample has; None without both.

    ``kind`` is "pred" of a model's output, and "gt" of an annotation.
    """
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
