"""The command ``make-shapes``: write the generated dataset `shapes`."""

import argparse
import os
from collections.abc import Sequence

from tqdm import tqdm

from ..data.shapes import write_shapes
from .command import command, new_parser, user_path


def main(argv: Sequence[str] | None = None) -> int:
    return command(lambda: write(**vars(parser().parse_args(argv))))


def parser() -> argparse.ArgumentParser:
    p = new_parser(
        "Write a dataset of drawn shapes to ROOT/shapes: photos, COCO instances,\n"
        "semantic masks, and pairs for pix2pix.",
        "make-shapes --root datasets --num-training 200",
    )
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    what = "folder that receives the folder shapes; default: $DETECTRON2_DATASETS or %(default)s"
    p.add_argument("--root", type=user_path, default=root, help=what)
    for name, default, what in (
        ("--num-training", 1000, "training images"),
        ("--num-validation", 200, "validation images"),
        ("--size", 128, "side of the images in pixels"),
        ("--seed", 0, "seed of the dataset"),
    ):
        what = f"{what}; default: {default}"
        p.add_argument(name, type=int, default=default, metavar="N", help=what)
    return p


def write(**options) -> None:
    folder = write_shapes(**options, progress=tqdm)
    counts = "{num_training} training and {num_validation} validation images".format(**options)
    print(f"{folder}: {counts}")
