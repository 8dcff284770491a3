"""A model together with the preprocessing of images that its evaluation applies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

#: A function that runs a model on a list of images of any size, each (H, W, 3), RGB, uint8.
Forward = Callable[[Sequence[np.ndarray]], Any]


@dataclass(frozen=True)
class Inference:
    """A model under analysis, and a function that runs it on images.

    Attributes:
        name: the model's name, for titles.
        model: the module, on its device.
        forward: preprocesses images as the model's evaluation does, and runs the model on them.
        batch_size: the default number of images in a call of ``forward``.
        preprocessing: a description of the preprocessing in words.
    """

    name: str
    model: nn.Module
    forward: Forward
    batch_size: int
    preprocessing: str


def describe_scaling(mean: Tensor | None, std: Tensor | None, order: str) -> str:
    """Describe in words how a model normalizes the pixels of its input.

    Args:
        mean, std: one value for each channel, of pixels from 0 to 255; both None without
            normalization.
        order: "RGB" or "BGR", the order of the channels.

    Returns:
        Text to append to a description, such as ", mean 103.5, 116.3, 123.7, std 1, 1, 1 (BGR of
        0..255)"; empty without normalization.
    """
    if mean is None:
        return ""
    means, deviations = (", ".join(f"{x:.4g}" for x in t.flatten().tolist()) for t in (mean, std))
    return f", mean {means}, std {deviations} ({order} of 0..255)"
