"""A data set for mmpretrain; this module is imported only after mmpretrain."""

from pathlib import Path

from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

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


register(DATASETS, classes={"PackedImages": PackedImages})
