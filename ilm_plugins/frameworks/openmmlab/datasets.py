"""Data sets for mmpretrain, imported after it and registered there."""

from pathlib import Path

from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ...data.packed import read_packed
from .norms import register


class PackedImages(BaseDataset):
    """Images and labels of ``data_root/split.npz``, see :mod:`ilm_plugins.data.packed`.

    Takes the place of mmpretrain's CIFAR10: all images are decoded once, at loading, and enter the
    pipeline as ``img`` (H, W, 3), RGB, beside ``gt_label``.

    Args:
        data_root: the archives' folder.
        split: "train" or "test".
        options: those of mmpretrain's BaseDataset.

    Raises:
        FileNotFoundError, ValueError: see :func:`ilm_plugins.data.packed.read_packed`.
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


register(DATASETS, classes={"PackedImages": PackedImages})
