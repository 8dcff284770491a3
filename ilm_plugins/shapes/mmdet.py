"""The generated dataset `shapes` for mmdet; name this module in ``custom_imports``."""

from pathlib import Path
from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from .dataset import SHAPES, ensure_shapes


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """COCO-style instances of four classes of shapes, generated in ``data_root`` on first use."""

    METAINFO: ClassVar = {"classes": tuple(SHAPES), "palette": list(SHAPES.values())}

    def load_data_list(self) -> list[dict]:
        ensure_shapes(Path(self.data_root))
        return super().load_data_list()
