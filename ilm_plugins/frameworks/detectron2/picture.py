"""Draw a detectron2 model's predictions beside the ground truth."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

from .checkpoints import Checkpointer
from .config import inference

#: Number of images, and of those in a row; pixels of a side; least score that is drawn, 0 to 1.
COUNT, COLUMNS, SIDE, MIN_SCORE = 6, 3, 256, 0.6


def draw_predictions(cfg: CfgNode, path: Path) -> None:
    """Write a PNG of test images, each with its ground truth and, to the right, its predictions.

    The model has the weights MODEL.WEIGHTS; the images are of DATASETS.TEST[0].
    """
    name = cfg.DATASETS.TEST[0]
    records, metadata = spread(DatasetCatalog.get(name)), MetadataCatalog.get(name)
    detector = inference(cfg, name, cfg.MODEL.DEVICE)
    Checkpointer(detector.model.eval()).load(cfg.MODEL.WEIGHTS)
    rows = -(-len(records) // COLUMNS)
    picture = Image.new("RGB", (2 * SIDE * COLUMNS, SIDE * rows), "white")
    for i, record in enumerate(records):
        image = read_image(record["file_name"], "RGB")
        with torch.no_grad():
            found = detector.forward([image])[0]["instances"].to("cpu")
        scale = SIDE / max(image.shape[:2])
        truth, predicted = (
            Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.SEGMENTATION)
            for _ in range(2)
        )
        drawn = truth.draw_dataset_dict(record)
        corner = 2 * SIDE * (i % COLUMNS), SIDE * (i // COLUMNS)
        picture.paste(Image.fromarray(drawn.get_image()), corner)
        drawn = predicted.draw_instance_predictions(found[found.scores >= MIN_SCORE])
        picture.paste(Image.fromarray(drawn.get_image()), (corner[0] + SIDE, corner[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def spread(records: list) -> list:
    """Up to COUNT different records, spread evenly."""
    count = min(COUNT, len(records))
    return [records[i * len(records) // count] for i in range(count)]
