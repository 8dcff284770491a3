"""Augment a whole batch of images at once; this module is imported only after mmpretrain.models.

With :func:`..datasets.stack_images` this replaces the pipeline of CIFAR's recipes, which augments
image by image on the CPU, and is too slow to keep a GPU busy.
"""

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from torch.nn.functional import pad

from ..norms import register


class CropFlipPreprocessor(ClsDataPreprocessor):
    """ClsDataPreprocessor that first crops and flips each training image, on the model's device.

    It does the same as RandomCrop and RandomFlip: pad zeros on each side, cut out a square at a
    random position, and mirror each image with probability 1/2.

    Args:
        crop_size: height and width of the square, in pixels.
        padding: pixels on each side.
        options: arguments of ClsDataPreprocessor.
    """

    def __init__(self, crop_size: int = 32, padding: int = 4, **options) -> None:
        super().__init__(**options)
        self.crop_size, self.padding = crop_size, padding

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch whose ``inputs`` are (N, C, H, W); augment it if ``training``."""
        if training:
            data = {**data, "inputs": self._cropped(self.cast_data(data["inputs"]))}
        return super().forward(data, training)

    def _cropped(self, images: torch.Tensor) -> torch.Tensor:
        """Pad, crop and mirror images (N, C, H, W), each at random; return (N, C, size, size)."""
        images = pad(images, [self.padding] * 4)
        n, _, height, width = images.shape
        on_device, size = {"device": images.device}, self.crop_size
        window = torch.arange(size, **on_device)
        rows = window + torch.randint(height - size + 1, (n, 1), **on_device)
        columns = window + torch.randint(width - size + 1, (n, 1), **on_device)
        mirrored = torch.rand(n, 1, **on_device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        image = torch.arange(n, **on_device)[:, None, None]
        cropped = images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]
        return cropped.permute(0, 3, 1, 2)


register(MODELS, classes={"CropFlipPreprocessor": CropFlipPreprocessor})
