"""The generated dataset `shapes` for mmseg; name this module in ``custom_imports``."""

from pathlib import Path
from typing import ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from .dataset import SHAPES, ensure_shapes


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Label maps of background and four classes, generated in ``data_root`` on first use."""

    METAINFO: ClassVar = {
        "classes": ("background", *SHAPES),
        "palette": [[0, 0, 0], *map(list, SHAPES.values())],
    }

    def load_data_list(self) -> list[dict]:
        ensure_shapes(Path(self.data_root))
        return super().load_data_list()
