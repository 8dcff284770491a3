"""The generated data set `shapes` for mmseg; name this module in ``custom_imports``."""

from pathlib import Path
from typing import ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ...data import SHAPES, ensure_shapes


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Label maps of background and four classes, generated in ``data_root`` on first use."""

    METAINFO: ClassVar = {
        "classes": ("background", *SHAPES),
        "palette": [[0, 0, 0], *map(list, SHAPES.values())],
    }

    @staticmethod
    def generate(data_root: str) -> None:
        """Generate the data set if it is missing; see :func:`ilm_plugins.data.ensure_shapes`."""
        ensure_shapes(Path(data_root))

    def load_data_list(self) -> list[dict]:
        self.generate(self.data_root)
        return super().load_data_list()
