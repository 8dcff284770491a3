"""Small images for mmpretrain; this module is imported only after mmpretrain.datasets.

mmpretrain.models may be half imported then, and must not be imported here. :func:`stack_images`
and :class:`.models.crop_flip.CropFlipPreprocessor` replace the pipeline of CIFAR's recipes.
"""

from pathlib import Path

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

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


register(DATASETS, classes={"PackedImages": PackedImages})
register(FUNCTIONS, classes={"stack_images": stack_images})
