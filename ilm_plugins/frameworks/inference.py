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
    """A model under analysis, and a function that runs it on images."""

    #: For titles.
    name: str
    #: The module, on its device.
    model: nn.Module
    #: Preprocesses images as the model's evaluation does, and runs the model on them.
    forward: Forward
    #: The default number of images in a call of ``forward``.
    batch_size: int
    #: In words.
    preprocessing: str
