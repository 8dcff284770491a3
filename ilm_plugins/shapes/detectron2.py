"""Register the generated dataset `shapes` in detectron2."""

import functools
import os
from pathlib import Path


def register_datasets() -> None:
    """Register both splits; the dataset is generated when one is first loaded."""
    from detectron2.data.catalog import DatasetCatalog, MetadataCatalog

    from .dataset import SHAPES

    # Like detectron2 for its own datasets, read the variable now, not when the data are loaded.
    root = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
    for name, split in (("shapes_train", "training"), ("shapes_val", "validation")):
        if name in DatasetCatalog:
            continue
        images = root / "shapes" / "images" / split
        annotations = root / "shapes" / "annotations" / f"instances_{split}.json"
        DatasetCatalog.register(name, functools.partial(_load, root, name, annotations, images))
        MetadataCatalog.get(name).set(
            thing_classes=list(SHAPES),
            thing_colors=list(SHAPES.values()),
            json_file=str(annotations),
            image_root=str(images),
            evaluator_type="coco",
        )


def _load(root: Path, name: str, annotations: Path, images: Path) -> list[dict]:
    from detectron2.data.datasets import load_coco_json

    from .dataset import ensure_shapes

    ensure_shapes(root / "shapes")
    return load_coco_json(str(annotations), str(images), name)
