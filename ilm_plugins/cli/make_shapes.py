"""The command ``make-shapes``: write the generated dataset `shapes`."""

import argparse

from ..errors import say, writing_to
from ..files import make_folder
from ..shapes.dataset import write_shapes


def run(args: argparse.Namespace) -> None:
    make_folder(args.root)
    with writing_to(args.root):
        folder = write_shapes(**vars(args))
    counts = f"{args.num_training} training and {args.num_validation} validation images"
    say(f"{folder}: {counts}")
