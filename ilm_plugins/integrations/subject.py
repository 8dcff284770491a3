"""A model that is to be looked at, with all that it takes to run it on images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

#: Images, (H, W, 3) RGB uint8 each, of any size.
Forward = Callable[[Sequence[np.ndarray]], Any]


@dataclass(frozen=True)
class Subject:
    """A model and its inference on images.

    Attributes:
        name: for titles.
        model: on its device.
        forward: preprocesses images and runs the model on them, as in its evaluation.
        batch_size: how many images at once, where the user does not say.
        preprocessing: what ``forward`` does to an image, in words.
    """

    name: str
    model: nn.Module
    forward: Forward
    batch_size: int
    preprocessing: str
