"""Small images for mmpretrain; this module is imported only after mmpretrain.

:func:`stack_images` and :class:`CropFlipPreprocessor` replace the pipeline of CIFAR's recipes:
they augment a whole batch at once, on the model's device. The pipeline augments image by image on
the CPU, which is too slow to keep a GPU busy.
"""

from pathlib import Path

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from mmpretrain.datasets import BaseDataset
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from torch.nn.functional import pad

from ...data.packed import read_packed
from .norms import register


class PackedImages(BaseDataset):
    """Images and labels of ``data_root/split.npz``, see :mod:`ilm_plugins.data.packed`.

    Replaces mmpretrain's CIFAR10. All images are decoded once, when the data set is loaded, and
    enter the pipeline as ``img``, (H, W, 3), RGB, uint8, with their class as ``gt_label``.

    Args:
        data_root: the folder of the .npz files.
        split: "train" or "test".
        options: arguments of mmpretrain's BaseDataset.

    Raises:
        UserError: see :func:`ilm_plugins.data.packed.read_packed`.
    """

    def __init__(self, data_root: str, split: str = "train", **options) -> None:
        self.split = split
        super().__init__(ann_file="", data_root=data_root, **options)

    def load_data_list(self) -> list[dict]:
        path = Path(self.data_root).expanduser() / f"{self.split}.npz"
        images, labels, classes = read_packed(path)
        self._metainfo.setdefault("classes", classes)
        return [
            {"img": image, "gt_label": label} for image, label in zip(images, labels, strict=True)
        ]


def stack_images(samples: list[dict]) -> dict:
    """Collate samples of PackedImages with an empty pipeline into one batch.

    Args:
        samples: N dicts of ``img``, (H, W, 3) uint8, all of one size, and ``gt_label``, an int.

    Returns:
        ``inputs``, (N, 3, H, W) uint8; ``data_samples``, a list of one DataSample with N labels,
        since mmpretrain's heads concatenate the labels of all samples.
    """
    images = torch.from_numpy(np.stack([sample["img"] for sample in samples]))
    labels = torch.tensor([sample["gt_label"] for sample in samples])
    return {
        "inputs": images.permute(0, 3, 1, 2),
        "data_samples": [DataSample().set_gt_label(labels)],
    }


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


register(DATASETS, classes={"PackedImages": PackedImages})
register(MODELS, classes={"CropFlipPreprocessor": CropFlipPreprocessor})
register(FUNCTIONS, classes={"stack_images": stack_images})
