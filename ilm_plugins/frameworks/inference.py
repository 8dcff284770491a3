"""A model together with the preprocessing of images that its evaluation applies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

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
