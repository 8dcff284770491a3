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


def draw_predictions(
    cfg: CfgNode, path: Path, count: int = 6, columns: int = 3, score: float = 0.6
) -> None:
    """Write a PNG of test images, each twice: with the ground truth, and with the predictions.

    Args:
        cfg: the model, which runs on MODEL.DEVICE; MODEL.WEIGHTS is its checkpoint,
            DATASETS.TEST[0] the data set, which must be registered and not empty.
        path: the PNG to write, in place of an earlier file; its folder is created.
        count: number of images, evenly spread over the data set; all if it has fewer.
        columns: number of images in a row, each with its two pictures.
        score: minimum score, from 0 to 1, of a prediction that is drawn.

    Raises:
        CheckpointError: the checkpoint is missing, cannot be read or is of another model.
    """
    name = cfg.DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    model = build_model(cfg).eval()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    mapper = DatasetMapper(cfg, is_train=False)
    chosen = [records[i * len(records) // count] for i in range(min(count, len(records)))]
    tiles = []
    for record in chosen:
        with torch.no_grad():
            found = model([mapper(dict(record))])[0]["instances"].to("cpu")
        found = found[found.scores >= score]
        image = read_image(record["file_name"], "RGB")
        scale = 256 / max(image.shape[:2])

        def canvas(image=image, scale=scale):
            """Return a new drawing on the image, 256 pixels along its longer side."""
            return Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.SEGMENTATION)

        truth = canvas().draw_dataset_dict(record).get_image()
        predicted = canvas().draw_instance_predictions(found).get_image()
        tiles.append(_tile(truth, predicted))
    height, width = (max(tile.shape[d] for tile in tiles) for d in (0, 1))
    grid = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        grid.paste(Image.fromarray(tile), (i % columns * width, i // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, optimize=True)


def _tile(truth: np.ndarray, predicted: np.ndarray, margin: int = 6, title: int = 20) -> np.ndarray:
    """Place two (H, W, 3) uint8 images of one size side by side under titles.

    Args:
        truth, predicted: the images, the left and the right one.
        margin: width in pixels of the white border between, beside and below the images.
        title: height in pixels of the line of titles above them.

    Returns:
        The (H + title + margin, 2 * W + 3 * margin, 3) uint8 picture.
    """
    height, width = truth.shape[:2]
    tile = Image.new("RGB", (2 * width + 3 * margin, height + title + margin), "white")
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(14)
    for i, (label, image) in enumerate((("ground truth", truth), ("prediction", predicted))):
        left = margin + i * (width + margin)
        draw.text((left, 2), label, fill="black", font=font)
        tile.paste(Image.fromarray(image), (left, title))
    return np.asarray(tile)
