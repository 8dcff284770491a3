"""The generated `shapes` as mmseg's ``ShapesSegDataset``; to be named in ``custom_imports``."""

from pathlib import Path
from typing import ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ...data import SHAPES, ensure_shapes


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Background and four classes, written to ``data_root`` on first use."""

    METAINFO: ClassVar = {
        "classes": ("background", *SHAPES),
        "palette": [[0, 0, 0], *map(list, SHAPES.values())],
    }

    @staticmethod
    def generate(data_root: str) -> None:
        """Write the data set unless it is there; see :func:`ilm_plugins.data.ensure_shapes`."""
        ensure_shapes(Path(data_root))

    def load_data_list(self) -> list[dict]:
        self.generate(self.data_root)
        return super().load_data_list()
