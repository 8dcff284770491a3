"""Draw a detectron2 model's predictions beside the ground truth."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image, ImageDraw, ImageFont

from .checkpoints import Checkpointer

#: Number of images, and of those in a row; least score, 0 to 1, of a prediction that is drawn.
COUNT, COLUMNS, MIN_SCORE = 6, 3, 0.6
#: Pixels around each image, and of the line of titles above it.
MARGIN, TITLE = 6, 20


def draw_predictions(cfg: CfgNode, path: Path) -> None:
    """Write a PNG of test images, each twice: with the ground truth, and with the predictions.

    Shows up to :data:`COUNT` images, spread evenly over the data set, and predictions with a score
    of :data:`MIN_SCORE` or more.

    Args:
        cfg: the model, which runs on MODEL.DEVICE; MODEL.WEIGHTS is its checkpoint,
            DATASETS.TEST[0] the data set, which must be registered and not empty.
        path: the PNG to write, in place of an earlier file; its folder is created.

    Raises:
        CheckpointError: the checkpoint is missing, cannot be read or is of another model.
    """
    name = cfg.DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    model = build_model(cfg).eval()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    mapper = DatasetMapper(cfg, is_train=False)
    tiles = []
    for record in spread(records):
        with torch.no_grad():
            found = model([mapper(dict(record))])[0]["instances"].to("cpu")
        found = found[found.scores >= MIN_SCORE]
        image = read_image(record["file_name"], "RGB")
        scale = 256 / max(image.shape[:2])

        def canvas(image=image, scale=scale):
            """Return a new drawing on the image, 256 pixels along its longer side."""
            return Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.SEGMENTATION)

        truth = canvas().draw_dataset_dict(record).get_image()
        predicted = canvas().draw_instance_predictions(found).get_image()
        tiles.append(_tile(truth, predicted))
    height, width = (max(tile.shape[d] for tile in tiles) for d in (0, 1))
    grid = Image.new("RGB", (COLUMNS * width, -(-len(tiles) // COLUMNS) * height), "white")
    for i, tile in enumerate(tiles):
        grid.paste(Image.fromarray(tile), (i % COLUMNS * width, i // COLUMNS * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, optimize=True)


def spread(records: list) -> list:
    """Return up to COUNT different records, spread evenly."""
    count = min(COUNT, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _tile(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Place two (H, W, 3) uint8 images of one size side by side under titles.

    Args:
        truth, predicted: the images, the left and the right one.

    Returns:
        The uint8 picture, larger by MARGIN pixels at most sides and by TITLE at the top.
    """
    height, width = truth.shape[:2]
    tile = Image.new("RGB", (2 * width + 3 * MARGIN, height + TITLE + MARGIN), "white")
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(14)
    for i, (label, image) in enumerate((("ground truth", truth), ("prediction", predicted))):
        left = MARGIN + i * (width + MARGIN)
        draw.text((left, 2), label, fill="black", font=font)
        tile.paste(Image.fromarray(image), (left, TITLE))
    return np.asarray(tile)
