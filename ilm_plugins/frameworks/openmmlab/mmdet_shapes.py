"""The generated data set `shapes` for mmdet; name this module in ``custom_imports``."""

from pathlib import Path
from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ...data import SHAPES, ensure_shapes


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """COCO-style instances of four classes of shapes, generated in ``data_root`` on first use."""

    METAINFO: ClassVar = {"classes": tuple(SHAPES), "palette": list(SHAPES.values())}

    @staticmethod
    def generate(data_root: str) -> None:
        """Generate the data set if it is missing; see :func:`ilm_plugins.data.ensure_shapes`."""
        ensure_shapes(Path(data_root))

    def load_data_list(self) -> list[dict]:
        self.generate(self.data_root)
        return super().load_data_list()
