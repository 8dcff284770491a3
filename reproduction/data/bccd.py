"""BCCD in detectron2: the option ``--import reproduction.data.bccd`` registers it."""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

# Like detectron2 for its own datasets, read the variable now, not when the data are loaded.
FOLDER = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))) / "bccd"

for split in ("train", "test"):
    if f"bccd_{split}" not in DatasetCatalog:
        annotations = FOLDER / "annotations" / f"{split}.json"
        register_coco_instances(f"bccd_{split}", {}, str(annotations), str(FOLDER / "images"))
