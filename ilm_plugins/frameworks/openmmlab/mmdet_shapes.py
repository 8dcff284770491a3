"""The generated `shapes` as mmdet's ``ShapesDataset``; to be named in ``custom_imports``."""

from pathlib import Path
from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ...data import SHAPES, ensure_shapes


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """Instances of four classes, written to ``data_root`` on first use."""

    METAINFO: ClassVar = {"classes": tuple(SHAPES), "palette": list(SHAPES.values())}

    @staticmethod
    def generate(data_root: str) -> None:
        """Write the data set unless it is there; see :func:`ilm_plugins.data.ensure_shapes`."""
        ensure_shapes(Path(data_root))

    def load_data_list(self) -> list[dict]:
        self.generate(self.data_root)
        return super().load_data_list()
