"""Train small detectors on the generated `shapes`, print their COCO AP and draw predictions."""

import argparse
import math
from pathlib import Path

from ..checkpoints import load_weights
from ..errors import say
from ..frameworks import OpenConfig, open_config
from ..frameworks.run.options import RunOptions
from ..frameworks.run.record import PLAIN, read_record
from ..frameworks.run.training import start

#: Largest number of images in the picture; least score, 0 to 1, of a prediction that is drawn.
COUNT, MIN_SCORE = 3, 0.6


def run(args: argparse.Namespace) -> None:
    """Train each config on the CPU in OUTPUT/NAME, draw predictions, and print a table."""
    rows = []
    for config in args.configs:
        folder = args.output / Path(config).stem
        overrides = ("OUTPUT_DIR", str(folder), *args.opts)
        start(RunOptions(config, overrides))
        opened = open_config(config, overrides)
        picture = folder / "predictions.png"
        draw_predictions(opened, folder / "model_final.pth", picture)
        result = read_record(folder)
        metrics = result["metrics"][PLAIN]
        norm = opened.config.MODEL.ROI_BOX_HEAD.NORM
        precisions = (metrics.get(name) for name in ("bbox/AP", "segm/AP"))
        # A model without predictions has null in its record, and a model without masks no segm/AP.
        box, mask = (math.nan if value is None else value for value in precisions)
        rows.append(f"{norm:14} {box:7.1f} {mask:8.1f} {result['seconds']:8.0f}   {picture}")
    say(f"\n{'box head norm':14} {'box AP':>7} {'mask AP':>8} {'seconds':>8}   picture")
    say(*rows)


def draw_predictions(opened: OpenConfig, checkpoint: Path, path: Path) -> None:
    """Write a PNG of some test images, each with the ground truth beside the predictions."""
    import numpy as np
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.utils.visualizer import ColorMode, Visualizer
    from PIL import Image, ImageDraw, ImageOps

    from ..images import read_image

    (name, *_) = opened.config.DATASETS.TEST
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    inference = opened.inference()
    load_weights(inference.model, checkpoint)
    inference.model.eval()
    number = min(COUNT, len(records))
    tiles = []
    for entry in (records[i * len(records) // number] for i in range(number)):
        image = np.asarray(read_image(entry["file_name"]))
        instances = inference.forward([image])[0]["instances"].to("cpu")
        mode = ColorMode.SEGMENTATION  # colours show classes
        truth, predicted = (Visualizer(image, metadata, 2, mode) for _ in range(2))
        pictures = (
            truth.draw_dataset_dict(entry),
            predicted.draw_instance_predictions(instances[instances.scores >= MIN_SCORE]),
        )
        tile = np.concatenate([picture.get_image() for picture in pictures], 1)
        tiles.append(np.pad(tile, ((3, 3), (3, 3), (0, 0)), constant_values=255))
    picture = ImageOps.expand(Image.fromarray(np.concatenate(tiles, 1)), (0, 24, 0, 0), "white")
    drawing, width = ImageDraw.Draw(picture), tiles[0].shape[1] / 2
    for i, head in enumerate(("annotations", "predictions") * number):
        drawing.text(((i + 0.5) * width, 12), head, "black", anchor="mm", font_size=16)
    picture.save(path, optimize=True)
