"""A model with the preprocessing of its evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

#: Runs a model on images, (H, W, 3) RGB uint8 each, of any size.
Forward = Callable[[Sequence[np.ndarray]], Any]


@dataclass(frozen=True)
class Inference:
    """A model under analysis, and how it runs on images.

    Attributes:
        name: for titles.
        model: on its device.
        forward: preprocesses images as the model's evaluation does, and runs the model on them.
        batch_size: the default number of images in a call of ``forward``.
        preprocessing: what ``forward`` does to an image, in words.
    """

    name: str
    model: nn.Module
    forward: Forward
    batch_size: int
    preprocessing: str


def describe_scaling(mean: Tensor | None, std: Tensor | None, order: str) -> str:
    """Describe a model's own normalization of pixels, "RGB" or "BGR", in words; empty without."""
    if mean is None:
        return ""
    means, deviations = (", ".join(f"{x:.4g}" for x in t.flatten().tolist()) for t in (mean, std))
    return f", mean {means}, std {deviations} ({order} of 0..255)"
